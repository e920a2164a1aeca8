"""The recursion that EqR, TRM and HRM share: z_L several times, then z_H, on the instance's tokens behind a prefix."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attractorlab.maps import LatentMap, Update, in_turn
from attractorlab.models.base import AbstractReasoner
from attractorlab.models.layers import Block, Embedding, Linear, Stack, rotary_tables, truncated_normal_
from attractorlab.types import Drive, Instance, State

CHOICES = {"mixer": ("mlp", "attention"), "positions": ("rotary", "none"), "start": ("random", "fixed")}
MOST = {"H_cycles": 10_000, "L_cycles": 10_000, "width": 2**16, "sites": 2**16, "prefix": 2**16, "vocabulary": 2**20, "blocks": 1000, "H_blocks": 1000, "L_blocks": 1000, "heads": 2**16}
COUNTS = ("sites", "vocabulary", "width", "blocks", "H_blocks", "L_blocks", "heads", "H_cycles", "L_cycles")
NUMBERS = {"expansion": 64.0, "start_scale": 1e6, "rotary_base": 1e12}


@dataclass(frozen=True)
class AbstractShape:
    """What the shapes of EqR, TRM and HRM have in common.

    Args:
        task: The task whose instances it takes, e.g. "sudoku-6".
        sites: Tokens of an instance.
        vocabulary: Token kinds, answers included.
        width: Numbers per token in z_H and in z_L.
        mixer: How tokens see each other, "mlp" or "attention".
        heads: Attention heads; unused by "mlp".
        expansion: Inner width of the channel and token MLPs, before the 2/3 of SwiGLU.
        H_cycles: Recursions in a segment.
        L_cycles: Updates of z_L in a recursion.
        prefix: Tokens before those of the instance. They carry the published puzzle embedding and have no answer.
        positions: What attention knows of a token's place: "rotary" or "none"; unused by "mlp".
        rotary_base: Base of the rotary frequencies.
        start_scale: Standard deviation of a random start.
    """

    task: str
    sites: int
    vocabulary: int
    width: int = 64
    mixer: str = "mlp"
    heads: int = 4
    expansion: float = 4.0
    H_cycles: int = 2
    L_cycles: int = 2
    prefix: int = 0
    positions: str = "rotary"
    rotary_base: float = 10000.0
    start_scale: float = 1.0

    def __post_init__(self) -> None:
        kind, values = type(self).__name__, {one.name: getattr(self, one.name) for one in fields(self)}
        for name in CHOICES.keys() & values.keys():
            if values[name] not in CHOICES[name]:
                raise ValueError(
                    f"`{kind}` got {name}={values[name]!r}. It is one of {', '.join(CHOICES[name])}. Use {name}={CHOICES[name][0]!r}."
                )
        for name in (*(name for name in COUNTS if name in values), "prefix"):
            count, least, most = values[name], int(name != "prefix"), MOST[name]
            if not isinstance(count, int) or isinstance(count, bool) or not least <= count <= most:
                raise ValueError(f"`{kind}` got {name}={count!r}. It is a whole number from {least} to {most:,}. Use {name}=2.")
        for name, top in NUMBERS.items():
            number = values[name]
            if not isinstance(number, (int, float)) or not 0 < number <= top:
                default = type(self).__dataclass_fields__[name].default
                raise ValueError(f"`{kind}` got {name}={number!r}. It is a number above 0, up to {top:g}. Use {name}={default:g}.")
        if self.mixer == "attention" and self.width % (2 * self.heads):
            raise ValueError(
                f"`{kind}` got width={self.width} for {self.heads} heads. Rotary halves need a width that 2 x heads divides. "
                f"Use width={2 * self.heads * max(1, self.width // (2 * self.heads))}."
            )

    @property
    def tokens(self) -> int:
        """Tokens of a state: the prefix and the instance's."""
        return self.prefix + self.sites


class AbstractRecursion(AbstractReasoner):
    """A reasoner of two leaves, z_H and z_L, each [row token width]. One tick, the recursion, is `L_cycles` updates of z_L, then one of z_H.

    Write `update_L` and `update_H`. The start is fixed and the readout that of TRM and HRM, unless a subclass has its own.
    """

    clock = "recursion"
    config: AbstractShape

    def __init__(self, config: AbstractShape) -> None:
        """Embedding, heads, tables and fixed starts. A subclass adds its stacks and calls `draw`."""
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocabulary, config.width)
        self.lm_head = Linear(config.width, config.vocabulary)
        self.q_head = nn.Linear(config.width, 2, dtype=torch.float32)
        cos, sin = tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.register_buffer("H_init", torch.empty(config.width, dtype=torch.float32))
        self.register_buffer("L_init", torch.empty(config.width, dtype=torch.float32))
        if config.prefix:  # zero before training, as published
            self.register_buffer("prefix", torch.zeros(config.prefix, config.width, dtype=torch.float32))

    @abstractmethod
    def update_L(self, h: Float[Tensor, "row token width"], injection: Tensor) -> Float[Tensor, "row token width"]:
        """z_L after one update, from z_L and what is injected, z_H + x."""

    @abstractmethod
    def update_H(self, h: Float[Tensor, "row token width"], injection: Tensor) -> Float[Tensor, "row token width"]:
        """z_H after one update, from z_H and what is injected, z_L."""

    def draw(self, generator: torch.Generator) -> None:
        """Draw weights as published: truncated normal of standard deviation 1/√inputs, halting head 0 with bias −5."""
        for module in self.modules():
            if isinstance(module, (Linear, Embedding)):
                module.draw(generator)
        nn.init.zeros_(self.q_head.weight)
        nn.init.constant_(self.q_head.bias, -5.0)
        truncated_normal_(self.get_buffer("H_init"), 1.0, generator)
        truncated_normal_(self.get_buffer("L_init"), 1.0, generator)

    def embed(self, instance: Instance) -> Drive:
        """The injected input x, √width times the prefix and the token vectors: ``{"x": [row token width]}``."""
        refuse_others(instance, task=self.config.task, sites=self.config.sites)
        prefix = self.get_buffer("prefix") if self.config.prefix else None
        return {"x": injected(self.embed_tokens, prefix, instance.inputs)}

    def bind(self, instance: Instance) -> LatentMap:
        """The map of one recursion with `instance` bound. Its rule is its updates themselves, unless a subclass has a `tick` of its own."""
        f = super().bind(instance)
        return replace(f, rule=in_turn(f.updates)) if type(self).tick is AbstractRecursion.tick else f

    def start(self, drive: Drive, *, generator: torch.Generator) -> State:
        """The model's fixed start on every row of `drive`; nothing is drawn."""
        return self.fixed_start(drive)

    def fixed_start(self, drive: Drive) -> State:
        """The start that the model holds: one vector for z_H and one for z_L, on every token of every row of `drive`."""
        shape = drive["x"].shape
        return {name: self.get_buffer(buffer).expand(shape).clone() for name, buffer in (("z_H", "H_init"), ("z_L", "L_init"))}

    def random_start(self, drive: Drive, *, scale: float, generator: torch.Generator) -> State:
        """A random start for every row, whatever the model was trained with.

        Normal numbers cut at two standard deviations, of standard deviation `scale`, drawn in float32 for all rows at once, so that float32 and float64 models share their
        starts. The numbers of a row depend on how many rows are drawn.
        """
        x = drive["x"]
        draw = torch.empty(x.shape[0], 2, *x.shape[1:], device=generator.device, dtype=torch.float32)
        truncated_normal_(draw, scale, generator)
        draw = draw.to(x)
        return {"z_H": draw[:, 0].contiguous(), "z_L": draw[:, 1].contiguous()}

    def tick(self, z: State, drive: Drive) -> State:
        """One recursion without noise."""
        return in_turn(self.updates())(z, drive)

    def updates(self) -> tuple[Update, ...]:
        """The recursion as `L_cycles` updates of z_L, "L0", "L1", ..., and one of z_H, "H"."""
        return parts(self.config.L_cycles, self.update_L, self.update_H)

    def readout(self, z: State) -> Mapping[str, Tensor]:
        """The logits of every site, and the two halting values, `halt` and `continue`."""
        halting = self.halting(z)
        return {"logits": self.answer(z), "halt": halting[:, 0], "continue": halting[:, 1]}

    def answer(self, z: State) -> Float[Tensor, "row site class"]:
        """The logits of the instance's sites, read off z_H behind the prefix."""
        return self.lm_head(z["z_H"][:, self.config.prefix :])

    def halting(self, z: State) -> Float[Tensor, "row 2"]:
        """The two halting values, read off z_H at the first token, prefix or not, as published."""
        return self.q_head(z["z_H"][:, 0])

    def stack(self, blocks: int) -> Stack:
        """A stack of this shape, not yet drawn."""
        return stack(self.config, blocks)


def parts(L_cycles: int, update_L: Callable[[Tensor, Tensor], Tensor], update_H: Callable[[Tensor, Tensor], Tensor]) -> tuple[Update, ...]:
    """A recursion made of two updates, each from a leaf and what is injected into it."""

    def of_L(z: State, drive: Drive) -> State:
        return {"z_H": z["z_H"], "z_L": update_L(z["z_L"], z["z_H"] + drive["x"])}

    def of_H(z: State, drive: Drive) -> State:
        return {"z_H": update_H(z["z_H"], z["z_L"]), "z_L": z["z_L"]}

    return (*[Update(f"L{k}", ("z_L",), of_L) for k in range(L_cycles)], Update("H", ("z_H",), of_H))


def injected(embedding: Embedding, prefix: Tensor | None, ids: Int[Tensor, "row site"]) -> Float[Tensor, "row token width"]:
    """√width times the prefix, if there is one, and the vectors of the tokens."""
    x = embedding(ids.to(embedding.embedding_weight.device))
    if prefix is None:
        return x
    return torch.cat([math.sqrt(prefix.shape[1]) * prefix.expand(len(ids), *prefix.shape), x], dim=1)


def stack(shape: AbstractShape, blocks: int) -> Stack:
    """A stack of `blocks` blocks of this shape, not yet drawn."""
    one = {"sites": shape.tokens, "width": shape.width, "heads": shape.heads}
    return Stack([Block(**one, expansion=shape.expansion, mixer=shape.mixer) for _ in range(blocks)])


def tables(shape: AbstractShape) -> tuple[Float[Tensor, "token head"], Float[Tensor, "token head"]]:
    """cos and sin of the rotary angles; of no angle at all without positions."""
    cos, sin = rotary_tables(shape.tokens, max(2, shape.width // shape.heads), shape.rotary_base)
    return (cos, sin) if shape.positions == "rotary" else (torch.ones_like(cos), torch.zeros_like(sin))


def refuse_others(instance: Instance, *, task: str, sites: int) -> None:
    """Raise a ValueError unless `instance` is of this task and size."""
    if instance.task != task or instance.inputs.shape[1] != sites:
        raise ValueError(
            f"A model for {task} ({sites} sites) got instances of {instance.task} ({instance.inputs.shape[1]} sites). "
            f"A reasoner only takes the task it was built for. Load instances of {task}, or a model for {instance.task}."
        )
