"""EqR, the Equilibrium Reasoner, as published; without random starts and noise it is TRM-like."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attractorlab.maps import in_turn
from attractorlab.models.recursion import AbstractRecursion, AbstractShape, parts
from attractorlab.types import Drive, State


@dataclass(frozen=True)
class EqRConfig(AbstractShape):
    """The shape of an EqR and the constants of its update. What it shares with TRM and HRM is described in `AbstractShape`.

    Args:
        blocks: Blocks in the one stack that updates both leaves.
        damping: λ of the paper, the weight that the old state keeps at every update. The published code calls
            its complement `lambda_`.
        start: "random" draws every number of a start anew; "fixed" repeats one learned-shape vector over the tokens (TRM).
    """

    blocks: int = 2
    damping: float = 0.05
    start: str = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_damping(self.damping, "EqRConfig")


class EqR(AbstractRecursion):
    """The Equilibrium Reasoner (Huang, Geng and Kolter 2026, arXiv 2605.21488).

    One tick, the recursion, is `L_cycles` updates z_L <- G(z_L; z_H + x), then z_H <- G(z_H; z_L), with
    G(h; i) = λh + (1−λ) Blocks(h + i). A segment is ``strobe(f, H_cycles)``. The published noise is not in the map: see `noisy`.
    """

    config: EqRConfig

    def __init__(self, config: EqRConfig, *, generator: torch.Generator) -> None:
        """Fresh weights, drawn as published."""
        super().__init__(config)
        self.L_level = self.stack(config.blocks)
        self.draw(generator)

    def start(self, drive: Drive, *, generator: torch.Generator) -> State:
        """A start for every row of `drive`: random, or the model's fixed one, as its configuration says."""
        if self.config.start == "random":
            return self.random_start(drive, scale=self.config.start_scale, generator=generator)
        return self.fixed_start(drive)

    def update_L(self, h: Float[Tensor, "row token width"], injection: Tensor) -> Float[Tensor, "row token width"]:
        return self._update(h, injection)

    def update_H(self, h: Float[Tensor, "row token width"], injection: Tensor) -> Float[Tensor, "row token width"]:
        return self._update(h, injection)

    def readout(self, z: State) -> Mapping[str, Tensor]:
        """The logits of every site, and the halting logit (positive: the model takes its answer for correct)."""
        return {"logits": self.answer(z), "halt": self.halting(z)[:, 0]}

    def noisy(self, scale: float, generator: torch.Generator) -> Callable[[State, Drive], State]:
        """A rule with the published noise: `scale` times normal numbers added at every update.

        It is random, so it breaks the law `deterministic`, and no analysis that needs a law takes it.
        """
        return lambda z, drive: self.noisy_tick(z, drive, self.noise(z, scale, generator))

    def noise(self, z: State, scale: float, generator: torch.Generator) -> tuple[Float[Tensor, "row token width"], ...]:
        """The published noise of one recursion: `scale` times normal numbers, for one update after the other."""
        h = z["z_H"]
        return tuple(scale * torch.randn(h.shape, generator=generator, dtype=h.dtype, device=h.device) for _ in range(self.config.L_cycles + 1))

    def noisy_tick(self, z: State, drive: Drive, noise: Sequence[Float[Tensor, "row token width"]]) -> State:
        """One recursion, with `noise` added to what its updates give, in turn."""
        left = iter(noise)

        def update(h: Tensor, injection: Tensor) -> Tensor:
            return self._update(h, injection) + next(left)

        return in_turn(parts(self.config.L_cycles, update, update))(z, drive)

    def _update(self, h: Tensor, injection: Tensor) -> Tensor:
        keep = self.config.damping
        return keep * h + (1 - keep) * self.L_level(h, injection, self.get_buffer("cos"), self.get_buffer("sin"))


def refuse_damping(damping: float, kind: str) -> None:
    """Raise a ValueError unless the old state may keep this weight."""
    if not isinstance(damping, (int, float)) or not 0 <= damping < 1:
        raise ValueError(f"`{kind}` got damping={damping}. The old state keeps a weight from 0 up to, not with, 1. Use 0.05.")
