"""EqR, the Equilibrium Reasoner, as published; without random starts and noise it is TRM-like."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attractorlab.maps import Update, in_turn
from attractorlab.models.base import AbstractReasoner
from attractorlab.models.layers import Block, Embedding, Linear, Stack, rotary_tables, truncated_normal_
from attractorlab.types import Drive, Instance, State


@dataclass(frozen=True)
class EqRConfig:
    """The shape of an EqR and the two constants of its update.

    Args:
        task: The task whose instances it takes, e.g. "sudoku-6".
        sites: Tokens of an instance.
        vocabulary: Token kinds, answers included.
        width: Numbers per site in z_H and in z_L.
        blocks: Blocks in the one stack that updates both.
        mixer: How sites see each other, "mlp" or "attention".
        heads: Attention heads; unused by "mlp".
        expansion: Inner width of the channel and token MLPs, before the 2/3 of SwiGLU.
        H_cycles: Recursions in a segment.
        L_cycles: Updates of z_L in a recursion.
        damping: λ of the paper, the weight that the old state keeps at every update. The published code calls
            its complement `lambda_`.
        start: "random" draws every number of a start anew; "fixed" repeats one learned-shape vector over the sites (TRM).
        start_scale: Standard deviation of a random start.
    """

    task: str
    sites: int
    vocabulary: int
    width: int = 64
    blocks: int = 2
    mixer: str = "mlp"
    heads: int = 4
    expansion: float = 4.0
    H_cycles: int = 2
    L_cycles: int = 2
    damping: float = 0.05
    start: str = "random"
    start_scale: float = 1.0
    rotary_base: float = 10000.0

    def __post_init__(self) -> None:
        for name, allowed in (("mixer", ("mlp", "attention")), ("start", ("random", "fixed"))):
            value = str(getattr(self, name))
            if value not in allowed:
                raise ValueError(
                    f"`EqRConfig` got {name}={value!r}. It is one of {', '.join(allowed)}. Use {name}={allowed[0]!r}."
                )
        for name in ("sites", "vocabulary", "width", "blocks", "heads", "H_cycles", "L_cycles"):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ValueError(f"`EqRConfig` got {name}={count!r}. It is a whole number of 1 or more. Use {name}=2.")
        for name, top in (("expansion", 64.0), ("start_scale", 1e6), ("rotary_base", 1e12)):
            number = getattr(self, name)
            if not isinstance(number, (int, float)) or not 0 < number <= top:
                raise ValueError(f"`EqRConfig` got {name}={number!r}. It is a number above 0, up to {top:g}. Use {name}={type(self).__dataclass_fields__[name].default:g}.")
        if not isinstance(self.damping, (int, float)) or not 0 <= self.damping < 1:
            raise ValueError(f"`EqRConfig` got damping={self.damping}. The old state keeps a weight from 0 up to, not with, 1. Use 0.05.")
        if self.mixer == "attention" and self.width % (2 * self.heads):
            raise ValueError(
                f"`EqRConfig` got width={self.width} for {self.heads} heads. Rotary halves need a width that 2 x heads divides. "
                f"Use width={2 * self.heads * max(1, self.width // (2 * self.heads))}."
            )


class EqR(AbstractReasoner):
    """The Equilibrium Reasoner (Huang, Geng and Kolter 2026, arXiv 2605.21488).

    One tick, the recursion, is `L_cycles` updates z_L <- G(z_L; z_H + x), then z_H <- G(z_H; z_L), with
    G(h; i) = λh + (1−λ) Blocks(h + i). A segment is ``strobe(f, H_cycles)``. The published noise is not in the map: see `noisy`.
    """

    clock = "recursion"

    def __init__(self, config: EqRConfig, *, generator: torch.Generator) -> None:
        """Fresh weights drawn as published: truncated normal of standard deviation 1/√inputs, halting head 0 with bias −5."""
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocabulary, config.width)
        self.lm_head = Linear(config.width, config.vocabulary)
        self.q_head = nn.Linear(config.width, 2)
        self.L_level = Stack(
            [
                Block(sites=config.sites, width=config.width, heads=config.heads, expansion=config.expansion, mixer=config.mixer)
                for _ in range(config.blocks)
            ]
        )
        cos, sin = rotary_tables(config.sites, max(2, config.width // config.heads), config.rotary_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.register_buffer("H_init", torch.empty(config.width))
        self.register_buffer("L_init", torch.empty(config.width))
        self._draw(generator)

    def _draw(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, (Linear, Embedding)):
                module.draw(generator)
        nn.init.zeros_(self.q_head.weight)
        nn.init.constant_(self.q_head.bias, -5.0)
        truncated_normal_(self.get_buffer("H_init"), 1.0, generator)
        truncated_normal_(self.get_buffer("L_init"), 1.0, generator)

    def embed(self, instance: Instance) -> Drive:
        """The injected input x, √width times the token vectors: ``{"x": [row site width]}``."""
        c = self.config
        if instance.task != c.task or instance.inputs.shape[1] != c.sites:
            raise ValueError(
                f"A model for {c.task} ({c.sites} sites) got instances of {instance.task} ({instance.inputs.shape[1]} sites). "
                f"A reasoner only takes the task it was built for. Load instances of {c.task}, or a model for {instance.task}."
            )
        return {"x": self.embed_tokens(instance.inputs.to(self.embed_tokens.embedding_weight.device))}

    def start(self, drive: Drive, *, generator: torch.Generator) -> State:
        """A start for every row of `drive`: random, or the model's fixed one, as its configuration says."""
        if self.config.start == "random":
            return self.random_start(drive, scale=self.config.start_scale, generator=generator)
        return {
            name: self.get_buffer(buffer).expand(drive["x"].shape).clone()
            for name, buffer in (("z_H", "H_init"), ("z_L", "L_init"))
        }

    def random_start(self, drive: Drive, *, scale: float, generator: torch.Generator) -> State:
        """A random start for every row, whatever the model was trained with.

        Normal numbers cut at two standard deviations, of standard deviation `scale`, drawn in float32 row by row in the order z_H, z_L, so that
        float32 and float64 models share their starts, and the first rows of a larger draw are a smaller draw.
        """
        x = drive["x"]
        draw = torch.empty(x.shape[0], 2, *x.shape[1:], device=generator.device)
        truncated_normal_(draw, scale, generator)
        draw = draw.to(x)
        return {"z_H": draw[:, 0].contiguous(), "z_L": draw[:, 1].contiguous()}

    def tick(self, z: State, drive: Drive) -> State:
        """One recursion without noise."""
        return in_turn(self.updates())(z, drive)

    def updates(self) -> tuple[Update, ...]:
        """The recursion as `L_cycles` updates of z_L, "L0", "L1", ..., and one of z_H, "H"."""
        return self._parts(self._update)

    def readout(self, z: State) -> Mapping[str, Tensor]:
        """The logits of every site, and the halting logit (positive: the model takes its answer for correct)."""
        return {"logits": self.lm_head(z["z_H"]), "halt": self.q_head(z["z_H"][:, 0])[..., 0]}

    def noisy(self, scale: float, generator: torch.Generator) -> Callable[[State, Drive], State]:
        """A rule with the published noise: `scale` times normal numbers added at every update.

        It is random, so it breaks the law `deterministic`, and no analysis that needs a law takes it.
        """

        def update(h: Tensor, injection: Tensor) -> Tensor:
            h = self._update(h, injection)
            return h + scale * torch.randn(h.shape, generator=generator, dtype=h.dtype, device=h.device)

        return in_turn(self._parts(update))

    def _update(self, h: Tensor, injection: Tensor) -> Float[Tensor, "row site width"]:
        keep = self.config.damping
        return keep * h + (1 - keep) * self.L_level(h, injection, self.get_buffer("cos"), self.get_buffer("sin"))

    def _parts(self, update: Callable[[Tensor, Tensor], Tensor]) -> tuple[Update, ...]:
        def of_L(z: State, drive: Drive) -> State:
            return {"z_H": z["z_H"], "z_L": update(z["z_L"], z["z_H"] + drive["x"])}

        def of_H(z: State, drive: Drive) -> State:
            return {"z_H": update(z["z_H"], z["z_L"]), "z_L": z["z_L"]}

        return (*[Update(f"L{k}", ("z_L",), of_L) for k in range(self.config.L_cycles)], Update("H", ("z_H",), of_H))
