"""Deep equilibrium models as strangers write them: a solver calls the block."""

import torch
from torch import Tensor, nn

from tests.models.hooked import WIDTH, Block


class Anderson(nn.Module):
    """A deep equilibrium model: Anderson's method without gradients, then one call with."""

    def __init__(self, last: bool = True, steps: int = 7) -> None:
        super().__init__()
        self.f, self.head, self.last, self.steps = Block(), nn.Linear(WIDTH, 2), last, steps

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = self.solve(x)
        return self.head(self.f(z, x) if self.last else z)

    def solve(self, x: Tensor, m: int = 3, lam: float = 1e-4, beta: float = 1.0) -> Tensor:
        n = x.shape[0]
        xs, fs = torch.zeros(n, m, WIDTH, dtype=x.dtype), torch.zeros(n, m, WIDTH, dtype=x.dtype)
        start = torch.zeros(n, WIDTH, dtype=x.dtype)
        xs[:, 0], fs[:, 0] = start, self.f(start, x)
        xs[:, 1], fs[:, 1] = fs[:, 0], self.f(fs[:, 0].view_as(start), x)
        h, y = torch.zeros(n, m + 1, m + 1, dtype=x.dtype), torch.zeros(n, m + 1, 1, dtype=x.dtype)
        h[:, 0, 1:] = h[:, 1:, 0] = 1
        y[:, 0] = 1
        for k in range(2, self.steps):
            size = min(k, m)
            g = fs[:, :size] - xs[:, :size]
            h[:, 1 : size + 1, 1 : size + 1] = torch.bmm(g, g.transpose(1, 2)) + lam * torch.eye(size, dtype=x.dtype)[None]
            alpha = torch.linalg.solve(h[:, : size + 1, : size + 1], y[:, : size + 1])[:, 1 : size + 1, 0]
            xs[:, k % m] = beta * (alpha[:, None] @ fs[:, :size])[:, 0] + (1 - beta) * (alpha[:, None] @ xs[:, :size])[:, 0]
            fs[:, k % m] = self.f(xs[:, k % m].view_as(start), x)
            if (fs[:, k % m] - xs[:, k % m]).norm().item() < 1e-12:
                break
        return xs[:, k % m].view_as(start)


class Broyden(nn.Module):
    """A deep equilibrium model under Broyden's method, whose low-rank inverse grows with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.head = Block(), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = torch.zeros(x.shape[0], WIDTH, dtype=x.dtype)
        g = self.f(z, x) - z
        us: list[Tensor] = []
        vs: list[Tensor] = []
        for _ in range(5):
            step = g + sum((u * (v * g).sum(1, keepdim=True) for u, v in zip(us, vs, strict=True)), torch.zeros_like(g))
            z = z + step
            new = self.f(z, x) - z
            y = new - g
            inverse_y = -y + sum((u * (v * -y).sum(1, keepdim=True) for u, v in zip(us, vs, strict=True)), torch.zeros_like(g))
            v = step
            u = (step + inverse_y) / (v * -inverse_y).sum(1, keepdim=True)
            us, vs, g = [*us, u], [*vs, v], new
        return {"logits": self.head(z), "z": z}
