"""The feed-forward twin of EqR: one segment unrolled, each update with blocks of its own."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attractorlab.models.eqr import EqR, refuse_damping
from attractorlab.models.layers import Embedding, Linear, Stack, truncated_normal_
from attractorlab.models.recursion import AbstractShape, injected, refuse_others, stack, tables
from attractorlab.types import Drive, Instance


@dataclass(frozen=True)
class FeedForwardConfig(AbstractShape):
    """The shape of a feed-forward twin; `start_scale` is the one of its EqR and unused. What it shares with it is described in `AbstractShape`.

    Args:
        blocks: Blocks in the stack of each update.
        damping: The weight that the old state keeps at every update.
    """

    blocks: int = 2
    damping: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_damping(self.damping, "FeedForwardConfig")

    @property
    def depth(self) -> int:
        """Blocks that a token passes, each with weights of its own: 42 for the published Sudoku model, 15 for the published maze model."""
        return self.blocks * self.H_cycles * (self.L_cycles + 1)


class FeedForward(nn.Module):
    """An EqR's segment unrolled and untied: the same blocks in the same wiring from a fixed start, and no two updates share weights.

    A baseline: what the same depth and computation do without recurrence. It is no reasoner and binds to no map, because it has no tick: its k-th update differs
    from its (k+1)-th, so there is nothing to iterate, no fixed point and no spectrum. With all updates given one EqR's weights (see `untied`) it is a segment of that EqR.
    """

    config: FeedForwardConfig
    name: str = "unnamed"

    def __init__(self, config: FeedForwardConfig, *, generator: torch.Generator) -> None:
        """Fresh weights, drawn as EqR's are."""
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocabulary, config.width)
        self.lm_head = Linear(config.width, config.vocabulary)
        self.levels = nn.ModuleList(stack(config, config.blocks) for _ in range(config.H_cycles * (config.L_cycles + 1)))
        cos, sin = tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.register_buffer("H_init", torch.empty(config.width, dtype=torch.float32))
        self.register_buffer("L_init", torch.empty(config.width, dtype=torch.float32))
        if config.prefix:
            self.register_buffer("prefix", torch.zeros(config.prefix, config.width, dtype=torch.float32))
        for module in self.modules():
            if isinstance(module, (Linear, Embedding)):
                module.draw(generator)
        truncated_normal_(self.get_buffer("H_init"), 1.0, generator)
        truncated_normal_(self.get_buffer("L_init"), 1.0, generator)

    def embed(self, instance: Instance) -> Drive:
        """The injected input: ``{"x": [row token width]}``.

        Raises:
            ValueError: If the instances are of another task or size than the network's.
        """
        refuse_others(instance, task=self.config.task, sites=self.config.sites)
        return {"x": self._injected(instance.inputs)}

    def forward(self, ids: Int[Tensor, "row site"]) -> Float[Tensor, "row site class"]:
        """The logits of every site, from the tokens of the instances."""
        c, x = self.config, self._injected(ids)
        z_H, z_L = (self.get_buffer(name).expand(x.shape) for name in ("H_init", "L_init"))
        levels = iter(self.levels)
        for _ in range(c.H_cycles):
            for _ in range(c.L_cycles):
                z_L = self._update(next(levels), z_L, z_H + x)
            z_H = self._update(next(levels), z_H, z_L)
        return self.lm_head(z_H[:, c.prefix :])

    def _injected(self, ids: Tensor) -> Tensor:
        return injected(self.embed_tokens, self.get_buffer("prefix") if self.config.prefix else None, ids)

    def _update(self, level: nn.Module, h: Tensor, injection: Tensor) -> Tensor:
        assert isinstance(level, Stack)
        keep = self.config.damping
        return keep * h + (1 - keep) * level(h, injection, self.get_buffer("cos"), self.get_buffer("sin"))


def untied(reasoner: EqR) -> FeedForward:
    """The feed-forward twin of `reasoner` with its weights in every update: its first segment from its fixed start, to be trained apart.

    Example:
        >>> from attractorlab.models.eqr import EqRConfig
        >>> eqr = EqR(EqRConfig("sudoku-4", 16, 6, width=8, H_cycles=2, L_cycles=3), generator=torch.Generator().manual_seed(0))
        >>> untied(eqr).config.depth
        16
    """
    c = reasoner.config
    shared = {name: getattr(c, name) for name in FeedForwardConfig.__dataclass_fields__}
    network = FeedForward(FeedForwardConfig(**shared), generator=torch.Generator().manual_seed(0)).to(reasoner.dtype)
    ours = reasoner.state_dict()
    tensors = {name: ours[name] for name in ours if not name.startswith(("L_level.", "q_head."))}
    for k in range(len(network.levels)):
        tensors |= {f"levels.{k}.{name.removeprefix('L_level.')}": tensor for name, tensor in ours.items() if name.startswith("L_level.")}
    network.load_state_dict(tensors)
    network.name = f"{reasoner.name}-untied"
    return network
