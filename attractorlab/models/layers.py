"""The layers that the published puzzle reasoners are made of, without internal casts."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-5  # of the RMS norm, as published


def rms_norm(x: Float[Tensor, "..."], axis: int = -1) -> Float[Tensor, "..."]:
    """`x` over its root mean square along `axis`, in the dtype of `x`.

    The published code rounds to float32 in here, which caps every float64 residual at 1e-7.
    """
    return x * torch.rsqrt(x.square().mean(axis, keepdim=True) + EPSILON)


class Linear(nn.Module):
    """A matrix without bias, drawn from a normal law cut at two standard deviations."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=torch.float32))

    def draw(self, generator: torch.Generator) -> None:
        """Draw the weights anew, with standard deviation 1/√inputs."""
        truncated_normal_(self.weight, 1 / math.sqrt(self.weight.shape[1]), generator)

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        return functional.linear(x, self.weight)


class Embedding(nn.Module):
    """Token vectors, times √width."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embedding_weight = nn.Parameter(torch.empty(tokens, width, dtype=torch.float32))

    def draw(self, generator: torch.Generator) -> None:
        """Draw the vectors anew, with standard deviation 1/√width."""
        truncated_normal_(self.embedding_weight, 1 / math.sqrt(self.embedding_weight.shape[1]), generator)

    def forward(self, ids: Int[Tensor, "row site"]) -> Float[Tensor, "row site width"]:
        return self.embedding_weight[ids] * math.sqrt(self.embedding_weight.shape[1])


def inner_width(n: int, expansion: float) -> int:
    """2/3 of `expansion` times `n`, rounded up to a multiple of 256, as published."""
    return -(-round(expansion * n * 2 / 3) // 256) * 256


class SwiGLU(nn.Module):
    """down(silu(gate) * up); see `inner_width`."""

    def __init__(self, n: int, expansion: float) -> None:
        super().__init__()
        inner = inner_width(n, expansion)
        self.gate_up_proj = Linear(n, 2 * inner)
        self.down_proj = Linear(inner, n)

    def forward(self, x: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(functional.silu(gate) * up)

    def of_columns(self, x: Float[Tensor, "n column"]) -> Float[Tensor, "n column"]:
        """The same for vectors that are columns."""
        gate, up = (self.gate_up_proj.weight @ x).chunk(2)
        return self.down_proj.weight @ (functional.silu(gate) * up)


class Attention(nn.Module):
    """Attention of all tokens to all tokens, with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj = Linear(width, 3 * width)
        self.o_proj = Linear(width, width)

    def forward(self, x: Float[Tensor, "row token width"], cos: Float[Tensor, "token head"], sin: Float[Tensor, "token head"]) -> Tensor:
        query, key, value = self.qkv_proj(x).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2).chunk(3, dim=1)
        mixed = functional.scaled_dot_product_attention(rotate(query, cos, sin), rotate(key, cos, sin), value)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


def rotate(x: Float[Tensor, "row heads token head"], cos: Float[Tensor, "token head"], sin: Float[Tensor, "token head"]) -> Tensor:
    """`x` turned by its position: entry i of a head is paired with entry i + half (Su et al. 2021, in halves)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def rotary_tables(sites: int, head: int, base: float) -> tuple[Float[Tensor, "token head"], Float[Tensor, "token head"]]:
    """cos and sin of the rotary angles, made in float32 as published: another order of rounding moves them by 5e-6."""
    exponent = torch.arange(0, head, 2, dtype=torch.float32) / head
    angles = torch.outer(torch.arange(sites, dtype=torch.float32), 1.0 / base**exponent)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


class Block(nn.Module):
    """Mix over sites, then over channels, each as ``h <- rms(h + part(h))``.

    With token mixing by an MLP the first RMS norm runs along the sites, because that part sees the state transposed;
    with attention, along the channels. So it is in the published code.
    """

    def __init__(self, *, sites: int, width: int, heads: int, expansion: float, mixer: str) -> None:
        super().__init__()
        self.mixer = mixer
        if mixer == "mlp":
            self.mlp_t = SwiGLU(sites, expansion)
        else:
            self.self_attn = Attention(width, heads)
        self.mlp = SwiGLU(width, expansion)

    def forward(self, h: Float[Tensor, "row token width"], cos: Tensor, sin: Tensor) -> Float[Tensor, "row token width"]:
        if self.mixer == "mlp" and torch.compiler.is_compiling():
            return self._tokens_first(h.transpose(0, 1)).transpose(0, 1)
        if self.mixer == "mlp":
            turned = h.transpose(1, 2)
            h = rms_norm(turned + self.mlp_t(turned)).transpose(1, 2)
        else:
            h = rms_norm(h + self.self_attn(h, cos, sin))
        return rms_norm(h + self.mlp(h))

    def _tokens_first(self, h: Float[Tensor, "token row width"]) -> Float[Tensor, "token row width"]:
        """The same for compiled code: in this order mixing is one product for all rows and a block turns nothing.

        Eager code keeps rows first, for what is recorded or edited at its modules.
        """
        h = rms_norm(h + self.mlp_t.of_columns(h.flatten(1)).unflatten(1, h.shape[1:]), 0)
        return rms_norm(h + self.mlp(h.flatten(0, 1)).unflatten(0, h.shape[:2]))


class Stack(nn.Module):
    """Blocks one after the other on ``h + injection``."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(self, h: Float[Tensor, "row token width"], injection: Tensor, cos: Tensor, sin: Tensor) -> Float[Tensor, "row token width"]:
        h = h + injection
        for block in self.layers:
            h = block(h, cos, sin)
        return h.contiguous()


def truncated_normal_(tensor: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill in place with a normal law cut at two standard deviations, widened so that the standard deviation is `std`."""
    # A standard normal cut at ±2 has standard deviation 0.87962566103423978.
    with torch.no_grad():
        nn.init.trunc_normal_(tensor, std=1.0, a=-2.0, b=2.0, generator=generator)
        tensor.mul_(std / 0.87962566103423978)
