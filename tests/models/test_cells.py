"""Recurrent cells at a constant input: the states are the module's own."""

import pytest
import torch
from torch import Tensor, nn

import attractorlab as al

ROWS, FEATURES, WIDTH, STEPS = 4, 3, 5, 7
CELLS = [nn.RNNCell, nn.GRUCell, nn.LSTMCell]
LAYERS = [nn.RNN, nn.GRU, nn.LSTM]


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_gives_its_own_states(kind: type[nn.RNNCellBase]) -> None:
    cell, x = kind(FEATURES, WIDTH), inputs()
    f, z = al.from_cell(cell, x)
    own = None
    for _ in range(STEPS):
        z, own = f(z), cell(x, own)
        wanted = own if isinstance(own, tuple) else (own,)
        assert all(torch.equal(leaf, one) for leaf, one in zip(z.values(), wanted, strict=True))
    assert torch.equal(f.readout(z)["output"], wanted[0]) and f.clock == "step of the sequence"


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("first", [False, True], ids=["time first", "batch first"])
def test_a_layer_gives_its_own_outputs(kind: type[nn.RNNBase], first: bool) -> None:
    layer, x = kind(FEATURES, WIDTH, batch_first=first), inputs()
    out, _ = layer(x.unsqueeze(1).expand(-1, STEPS, -1) if first else x.expand(STEPS, -1, -1))
    f, z = al.from_cell(layer, x)
    for t in range(STEPS):
        z = f(z)
        # The layer multiplies the inputs of all steps at once, which some processors round differently than those of one step.
        torch.testing.assert_close(z["h"], out[:, t] if first else out[t], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", [*CELLS, *LAYERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_laws_hold_for_cells(kind: type[nn.Module], dtype: torch.dtype, generator: torch.Generator) -> None:
    f, z = al.from_cell(kind(FEATURES, WIDTH, dtype=dtype), inputs(dtype))
    before = torch._C._get_mkldnn_enabled()
    al.check_map(f, {name: torch.randn(leaf.shape, generator=generator).to(leaf) for name, leaf in z.items()}, generator=generator)
    assert torch._C._get_mkldnn_enabled() is before


@pytest.mark.parametrize("kind", [*CELLS, *LAYERS])
def test_the_jacobian_of_a_cell_is_that_of_finite_differences(kind: type[nn.Module], generator: torch.Generator) -> None:
    f, z = al.from_cell(kind(FEATURES, WIDTH, dtype=torch.float64), inputs(torch.float64))
    z = {name: torch.randn(leaf.shape, generator=generator).to(leaf) for name, leaf in z.items()}
    for name in z:
        for i in range(WIDTH):
            v = {one: torch.zeros_like(leaf) for one, leaf in z.items()}
            v[name][:, i] = 1
            ahead, behind = (f({one: z[one] + sign * 1e-5 * v[one] for one in z}) for sign in (1, -1))
            for one, column in f.jvp(z, v).items():
                torch.testing.assert_close(column, (ahead[one] - behind[one]) / 2e-5, atol=1e-8, rtol=1e-6)


def test_a_cell_follows_its_rows() -> None:
    f, z = al.from_cell(nn.GRUCell(FEATURES, WIDTH), inputs())
    rows = [3, 1, 1]
    torch.testing.assert_close(f.take(rows)({"h": z["h"][rows]})["h"], f(z)["h"][rows])


@pytest.mark.parametrize(
    ("cell", "shape", "text"),
    [
        (nn.GRU(FEATURES, WIDTH, num_layers=2), (ROWS, FEATURES), r"num_layers=2.* Use a layer with num_layers=1"),
        (nn.LSTM(FEATURES, WIDTH, bidirectional=True), (ROWS, FEATURES), r"bidirectional=True.* Use a layer with bidirectional=False"),
        (nn.LSTM(FEATURES, WIDTH, proj_size=2), (ROWS, FEATURES), r"proj_size=2.* Use a layer with proj_size=0"),
        (nn.GRU(FEATURES, WIDTH, num_layers=2, dropout=0.1), (ROWS, FEATURES), r"a layer with num_layers=2"),
        (
            nn.RNNCell(FEATURES, WIDTH),
            (ROWS, FEATURES + 1),
            r"inputs of shape \[4, 4\] for a cell of input_size=3.* Pass inputs of shape \[row, 3\]",
        ),
    ],
)
def test_what_is_no_single_cell_is_refused(cell: nn.Module, shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=f"`from_cell` got .*{text}"):
        al.from_cell(cell, torch.zeros(shape))


@pytest.mark.usefixtures("unchecked")
def test_a_module_that_is_no_cell_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`from_cell` got a Linear\. It knows RNNCell, GRUCell"):
        al.from_cell(nn.Linear(3, 3), torch.zeros(2, 3))
