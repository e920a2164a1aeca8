"""Row i of a hooked map is row i of the inputs, or there is an error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attractorlab as al
from tests.models.hooked import FEATURES, WIDTH, Loop

X = torch.randn(4, FEATURES, generator=torch.Generator().manual_seed(3))
LENGTHS = torch.tensor([2, 5, 3, 4])


class Sorted(Loop):
    """Sorts its rows by length, and back after the loop."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        order = lengths.argsort(descending=True)
        return super().forward(x[order])[order.argsort()]

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z, x)


class SortedStart(Sorted):
    """The same, with nothing that drives the loop."""

    def begin(self, x: Tensor) -> Tensor:
        return x[:, :1].expand(-1, WIDTH) + 0.0

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z, torch.zeros(1, FEATURES))


class Graph(nn.Module):
    """Messages along edges, for all graphs at once: the numbers of the nodes are shifted by graph, before the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.GRUCell(FEATURES, FEATURES)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        rows, n, width = nodes.shape
        shifted = edges + (torch.arange(rows) * n)[:, None, None]
        h = nodes
        for _ in range(4):
            flat = h.reshape(rows * n, width)
            come = torch.zeros_like(flat).index_add(0, shifted[..., 1].reshape(-1), flat[shifted[..., 0].reshape(-1)])
            h = self.block(come, flat).reshape(rows, n, width)
        return h.mean(1)


class Averaged(Loop):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z, x)


class Spread(Loop):
    def begin(self, x: Tensor) -> Tensor:
        self.mean = x.mean(0)[:1]
        return super().begin(x)

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z + self.mean, x)


class Chosen(Loop):
    """A mask says how many of the features are used."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        self.n = int(mask.sum())
        return super().forward(x)

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(torch.cat([z[:, :2], z[:, 2:].narrow(1, 0, 1).expand(-1, self.n)[:, :1], z[:, 3:]], 1), x)


EDGES = torch.randint(0, 5, (4, 7, 2), generator=torch.Generator().manual_seed(1))
NODES = torch.randn(4, 5, FEATURES, generator=torch.Generator().manual_seed(2))
MIXED: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "sorted rows": (Sorted, (X, LENGTHS)),
    "two sorted rows": (Sorted, (X[:2], LENGTHS[:2])),
    "rows that are in order": (Sorted, (X, LENGTHS.sort(descending=True).values)),
    "a sorted start": (SortedStart, (X, LENGTHS)),
    "graphs": (Graph, (NODES, EDGES)),
    "the mean of all rows": (Averaged, X),
    "the mean of all rows for each": (Spread, X),
}


@pytest.mark.parametrize(("make", "inputs"), MIXED.values(), ids=MIXED)
def test_rows_that_are_not_the_rows_of_the_inputs_are_refused(make: Callable[[], nn.Module], inputs: Any) -> None:
    torch.manual_seed(0)
    with pytest.raises(
        ValueError,
        match=r"gave the model rows .* of the inputs, and .*: row i of the state is not row i of the inputs\. Each row .*\. Sort, shift or",
    ):
        al.hook(make(), block="block", inputs=inputs)


@pytest.mark.parametrize("n", [1, 2])
def test_a_number_that_doubles_with_the_rows_is_not_taken_for_their_number(n: int) -> None:
    mask = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1]])[:n]
    with pytest.raises(ValueError, match=r"saw a loop of which it can make no map.*`expand` got"):
        al.hook(Chosen(), block="block", inputs=(X[:n], mask))


class Started(Loop):
    def begin(self, x: Tensor) -> Tensor:
        return torch.randn(len(x), WIDTH, dtype=x.dtype)

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        return self.block(z, x)


class Jittered(Started):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn_like(x))


@pytest.mark.parametrize("make", [Started, Jittered])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_random_numbers_before_the_loop_are_kept(make: type[Loop], n: int, generator: torch.Generator) -> None:
    f, _ = found = al.hook(make(), block="block", inputs=X[:n])
    assert list(f.readout(f({"z": found.states["z"][-2]}))) == ["output"]
    al.check_map(f, {"z": torch.randn(n, WIDTH, generator=generator)}, generator=generator)


class Alternating(nn.Module):
    """Keeps count of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.turns = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)]), 0

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        self.turns += 1
        return torch.tanh(self.mix[self.turns % 2](z) + x[:, :1])


@pytest.mark.parametrize("turns", [4, 6])
def test_a_block_that_counts_its_calls_is_refused(turns: int) -> None:
    model = Started(turns)
    model.block = Alternating()
    with pytest.raises(ValueError, match=r"replayed tick \d twice, and the second time it differs: the block counts its calls"):
        al.hook(model, block="block", inputs=X)


class Conditioned(Started):
    """What drives the block is set as an attribute."""

    def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        self.block.x = x
        return self.block(z)


class Keeping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.x = nn.Linear(WIDTH, WIDTH), torch.zeros(())

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.mix(z) + self.x[:, :1])


def test_an_error_while_replaying_lists_what_was_seen() -> None:
    model = Conditioned()
    model.block = Keeping()
    with pytest.raises(ValueError, match=r"replayed tick 1, which ended in RuntimeError: .*\. A tick takes (.|\n)*call 3: z \[4, 5\]"):
        al.hook(model, block="block", inputs=X)
