"""Models as strangers write them: each calls a block in a loop, in a way of its own."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, SITES, FEATURES = 5, 3, 4


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(FEATURES, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], WIDTH, dtype=x.dtype)
        for _ in range(4):
            h = self.cell(x, h)
        return self.head(h)


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.embed, self.head = nn.LSTMCell(WIDTH, WIDTH), nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        e = self.embed(x)
        hx = None
        for _ in range(4):
            hx = self.cell(e, hx)
        return {"logits": self.head(hx[0])}


class Block(nn.Module):
    """An update of z by what drives it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.inject = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH), nn.Linear(FEATURES, WIDTH)
        with torch.no_grad():
            self.outer.weight.mul_(0.5)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.outer(torch.tanh(self.inner(z))) + self.inject(x))


class Attention(nn.Module):
    """A transformer's layer on [row site width]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        b, s, _ = hidden.shape
        q, k, v = self.qkv(self.norm(hidden)).view(b, s, 3, 1, WIDTH).permute(2, 0, 3, 1, 4)
        hidden = hidden + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, WIDTH))
        return hidden + 0.5 * self.mlp(self.norm(hidden))


class LoopedTransformer(nn.Module):
    """Tokens are injected at every tick; all but the last two ticks are without gradients, and the carry is detached."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.transformer, self.norm = nn.Embedding(7, WIDTH), nn.ModuleDict({"core": Attention()}), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, input_ids: Tensor, n_loops: int = 5) -> dict[str, Tensor]:
        h = self.embed(input_ids)
        z = torch.zeros_like(h)
        for i in range(n_loops):
            with torch.set_grad_enabled(i >= n_loops - 2):
                z = self.transformer["core"](self.norm(z) + h)
            if i < n_loops - 2:
                z = z.detach()
        return {"logits": self.head(z)}


class Level(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, injection: Tensor) -> Tensor:
        return F.rms_norm(0.3 * hidden + torch.tanh(self.mix(hidden + injection)), (WIDTH,))


class TwoLevels(nn.Module):
    """(H, L) with nested loops; `tied` calls one module for both."""

    def __init__(self, tied: bool = False, h_cycles: int = 3, l_cycles: int = 2) -> None:
        super().__init__()
        self.l_level = Level()
        self.h_level = self.l_level if tied else Level()
        self.embed, self.head, self.cycles = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, 2), (h_cycles, l_cycles)
        self.h_init = nn.Parameter(torch.randn(WIDTH, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        e = self.embed(x)
        z_h, z_l = self.h_init.expand(x.shape[0], WIDTH), torch.zeros_like(e)
        with torch.no_grad():
            for _ in range(self.cycles[0] - 1):
                z_h, z_l = self.cycle(z_h, z_l, e)
        z_h, z_l = self.cycle(z_h, z_l, e)
        return self.head(z_h), z_h[:, 0]

    def cycle(self, z_h: Tensor, z_l: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(self.cycles[1]):
            z_l = self.l_level(z_l, z_h + e)
        return self.h_level(z_h, z_l), z_l


class Carry(NamedTuple):
    z: Tensor
    memory: Tensor


@dataclass
class Output:
    state: Tensor
    extra: Tensor | None = None


@dataclass
class Keyed(OrderedDict):
    """As some libraries write their outputs: a mapping whose keys are attributes, known to torch as a tree."""

    state: Any = None
    logits: Any = None

    def __post_init__(self) -> None:
        self.update({"state": self.state, "logits": self.logits})


torch.utils._pytree.register_pytree_node(
    Keyed, lambda one: (list(one.values()), list(one.keys())), lambda values, keys: Keyed(**dict(zip(keys, values, strict=True)))
)


class Wrapped(nn.Module):
    """A block whose arguments and output are nested as `pack` and `unpack` say."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any], unpack: Callable[[Any], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.mix, self.pack, self.unpack = nn.Linear(2 * WIDTH, 2 * WIDTH), pack, unpack

    def forward(self, carry: Any, *, x: Tensor) -> Any:
        z, memory = self.unpack(carry)
        new = torch.tanh(self.mix(torch.cat([z + F.pad(x, (0, 1)), memory], 1)))
        return self.pack(new[:, :WIDTH], 0.5 * memory + new[:, WIDTH:])


class Carrying(nn.Module):
    """A carry of two leaves, in a container of any kind."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any], unpack: Callable[[Any], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.block, self.head = Wrapped(pack, unpack), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        carry = self.block.pack(torch.zeros(len(x), WIDTH, dtype=x.dtype), torch.ones(len(x), WIDTH, dtype=x.dtype))
        for _ in range(3):
            carry = self.block(carry, x=x)
        return self.head(self.block.unpack(carry)[0])


def as_tuple() -> nn.Module:
    return Carrying(lambda z, memory: (z, memory), lambda carry: carry)


def as_dict() -> nn.Module:
    return Carrying(lambda z, memory: {"z": z, "memory": memory}, lambda carry: (carry["z"], carry["memory"]))


def as_named_tuple() -> nn.Module:
    return Carrying(Carry, lambda carry: (carry.z, carry.memory))


def as_record() -> nn.Module:
    return Carrying(Output, lambda carry: (carry.state, carry.extra))


@dataclass
class Attributed(OrderedDict):
    """The same, unknown to torch."""

    state: Any = None
    extra: Any = None

    def __post_init__(self) -> None:
        self.update({"state": self.state, "extra": self.extra})


def as_mapping() -> nn.Module:
    return Carrying(Attributed, lambda carry: (carry["state"], carry.extra))


class Loop(nn.Module):
    """A loop around one `Block`; the subclasses say what one turn is."""

    def __init__(self, turns: int = 4) -> None:
        super().__init__()
        self.block, self.norm, self.head, self.turns = Block(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2), turns

    def begin(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), WIDTH, dtype=x.dtype)

    def forward(self, x: Tensor) -> Any:
        z = self.begin(x)
        for t in range(self.turns):
            z = self.turn(z, x, t)
        return self.head(z)

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        raise NotImplementedError


class ByKeyword(Loop):
    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(x=x, z=z)


class Added(Loop):
    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return z + 0.5 * self.block(z, x)


class AddedInPlace(Loop):
    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return z.mul_(0.5).add_(self.block(z, x))


class Indexed(Loop):
    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        new = self.block(z, x)
        z = z.clone()
        z[:, 1:] = new[:, 1:]
        z[:, 0] += 0.5 * new[:, 0]
        return 0.9 * z


class Normalised(Loop):
    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        z = self.block(z, x)
        return z / (1 + z.norm(dim=-1, keepdim=True))


class PostResidual(Loop):
    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.norm(z + self.block(z, x))


class PreNorm(Loop):
    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(self.norm(z), x) + z * 0.5


class TwoBlocks(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.second = Block()

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.second(self.block(z, x), 2 * x)


class NoGrad(Loop):
    @torch.no_grad()
    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z, x)


class Inferring(Loop):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.norm(z + self.block(z, x))


class ByData(Loop):
    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        z = self.block(z, x).data
        return z.detach_().requires_grad_()


class HeavyBall(Loop):
    def forward(self, x: Tensor) -> Tensor:
        z = before = self.begin(x)
        for _ in range(5):
            z, before = self.block(z, x) + 0.3 * (z - before), z
        return self.head(z)


class FromTheFirst(Loop):
    """The block is called for something else before, and the start is its output."""

    def forward(self, x: Tensor) -> Tensor:
        e = self.block(torch.ones(len(x), WIDTH, dtype=x.dtype), x)
        z = e.tanh()
        for _ in range(3):
            z = self.block(z + e, x)
        return self.head(z)


class Reembedding(Loop):
    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z, np.sqrt(np.float64(2)) * torch.stack([x, x]).mean(0) * torch.ones(x.shape[0], 1, dtype=x.dtype))


class Logging(Loop):
    """Keeps the path in a buffer and returns it; halts by looking at it."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        z = self.begin(x)
        path = torch.zeros(x.shape[0], 9, WIDTH, dtype=x.dtype)
        steps = 0
        for t in range(9):
            new = self.block(z, x)
            path[:, t] = new
            steps += 1
            change = (new - z).norm().item()
            z = new
            if change < 0.05:
                break
        return {"logits": self.head(z), "path": path, "steps": torch.tensor(steps), "all": (self.head(z), z)}


class WithExtra(nn.Module):
    """The block gives the state and something besides, in a record."""

    def __init__(self, kind: Callable[[Tensor, Tensor], Any] = Output) -> None:
        super().__init__()
        self.block, self.read, self.kind = Block(), nn.Linear(WIDTH, 2), kind
        self.core = Twofold(self.block, self.read, kind)

    def forward(self, x: Tensor) -> Any:
        z = torch.zeros(len(x), WIDTH, dtype=x.dtype)
        for _ in range(3):
            out = self.core(z, x)
            z = out[0] if isinstance(out, tuple) else out.state
        return out


class Twofold(nn.Module):
    def __init__(self, block: nn.Module, read: nn.Module, kind: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.block, self.read, self.kind = block, read, kind

    def forward(self, z: Tensor, x: Tensor) -> Any:
        z = self.block(z, x)
        return self.kind(z, self.read(z))


class Heads(nn.Module):
    """Attention heads are folded into the row axis between the calls: sizes in the record follow the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.mix = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        z = torch.zeros(n, SITES, 4, dtype=x.dtype)
        for _ in range(3):
            y = self.mix(z).view(n, SITES, 2, 2).transpose(1, 2).reshape(2 * n, SITES, 2)
            y = torch.bmm(y.softmax(1), torch.eye(2, dtype=x.dtype).expand(2 * n, 2, 2))
            z = torch.tanh(self.block(y.view(n, 2, SITES, 2).transpose(1, 2).reshape(n, SITES, 4)) + x[:, None])
        return z


class Stock(nn.Module):
    """A layer from the library, which takes a faster way where it can, in the block and outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0)
        self.core = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None] + torch.arange(SITES, dtype=x.dtype)[:, None]
        e = self.first(x)
        z = torch.zeros_like(e)
        for _ in range(3):
            z = self.core(z + self.attend(e, z, z, need_weights=False)[0])
        return z
