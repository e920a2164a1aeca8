"""Small models with inner points, and what a run must leave of them as it was; for tests of taps and edits."""

import torch
from torch import nn

from attractorlab.maps import LatentMap, Update, in_turn


class Cell(nn.Module):
    """tanh(W h + i), with a part that is used twice in a call."""

    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.idle = nn.Linear(width, width)

    def forward(self, h, i):
        return torch.tanh(self.inner(self.inner(h)) + i)


class Two(nn.Module):
    """A model of two leaves: z_L twice, then z_H, through one shared cell."""

    def __init__(self, width, generator, dtype=torch.float64):
        super().__init__()
        self.cell = Cell(width)
        self.head = nn.Linear(width, 2)
        self.to(dtype)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=dtype))

    def bind(self, x):
        def low(z, drive):
            return {"z_H": z["z_H"], "z_L": self.cell(z["z_L"], z["z_H"] + drive["x"])}

        def high(z, drive):
            return {"z_H": self.cell(z["z_H"], z["z_L"]), "z_L": z["z_L"]}

        updates = (Update("L0", ("z_L",), low), Update("L1", ("z_L",), low), Update("H", ("z_H",), high))
        return LatentMap(
            in_turn(updates),
            {"x": x},
            readout=lambda z: {"logits": self.head(z["z_H"])},
            clock="recursion",
            instance=torch.arange(len(x)),
            start=torch.zeros(len(x), dtype=torch.int64),
            updates=updates,
            model=self,
        )


def made(rows, generator, width=3):
    model = Two(width, generator)
    f = model.bind(torch.randn(rows, width, generator=generator, dtype=torch.float64))
    z = {name: torch.randn(rows, width, generator=generator, dtype=torch.float64) for name in ("z_H", "z_L")}
    return model, f, z


def counter(dtype=torch.float64):
    """A map of one leaf whose model counts: each of two calls of a tick adds 1."""
    plus = nn.Module()
    plus.one = Plus()
    return plus, LatentMap(lambda z, x: {"z": plus.one(plus.one(z["z"]))}, {}, model=plus), {"z": torch.zeros(3, 2, dtype=dtype)}


class Plus(nn.Module):
    def forward(self, x):
        return x + 1


def condition(model):
    """All that a run must leave as it was."""
    return {
        "hooks": [
            (
                name,
                list(one._forward_hooks.items()),
                list(one._forward_pre_hooks.items()),
                dict(one._forward_hooks_with_kwargs),
                dict(one._forward_hooks_always_called),
            )
            for name, one in model.named_modules()
        ],
        "training": [one.training for one in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "weights": [p.detach().clone() for p in model.parameters()],
        "grad": torch.is_grad_enabled(),
        "functorch": torch._C._functorch.peek_interpreter_stack() is None,
        "dispatch": torch._C._len_torch_dispatch_stack(),
        "function": torch._C._len_torch_function_stack(),
    }


def unchanged(before, model):
    after = condition(model)
    weights, others = before.pop("weights"), after.pop("weights")
    assert before == after
    assert all(a.equal(b) for a, b in zip(weights, others, strict=True))
