"""from_cell: a recurrent cell at a constant input, as a LatentMap."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attractorlab.maps import LatentMap
from attractorlab.models.replaying import origin_of, transformable
from attractorlab.types import Drive, State

CLOCK = "step of the sequence"
Cell = nn.RNNCellBase | nn.RNNBase


def from_cell(cell: Cell, inputs: Float[Tensor, "row feature"]) -> tuple[LatentMap, State]:
    """The map that a recurrent cell iterates while its input stays the same, and the start at zero.

    A layer (`nn.RNN`, `nn.GRU`, `nn.LSTM`) is run one step at a time. In a longer sequence torch multiplies the inputs of all steps at once, which
    some processors round differently, and all may for very small batches; otherwise the states equal the module's own outputs bit for bit.

    Args:
        cell: `nn.RNNCell`, `nn.GRUCell` or `nn.LSTMCell`, or a layer of one direction that is not stacked.
        inputs: One input a row, that the cell gets at every step.

    Returns:
        The map, with the leaves "h" and, for an LSTM, "c"; and zeros for each row. The readout "output" is h.

    Raises:
        ValueError: If the layer is stacked, runs in two directions, projects its state or drops out, or the inputs are not of its size.

    Example:
        >>> f, z0 = from_cell(torch.nn.LSTMCell(3, 4), torch.zeros(2, 3))
        >>> {name: tuple(leaf.shape) for name, leaf in f(z0).items()}, f.clock
        ({'h': (2, 4), 'c': (2, 4)}, 'step of the sequence')
    """
    if isinstance(cell, nn.RNNBase):
        odd = {
            "num_layers": (cell.num_layers, 1),
            "bidirectional": (cell.bidirectional, False),
            "proj_size": (cell.proj_size, 0),
            "dropout": (cell.dropout, 0),
        }
        for name, (value, wanted) in odd.items():
            if value != wanted:
                raise ValueError(
                    f"`from_cell` got a layer with {name}={value}. One step of one cell is a map of its state; the steps of a deeper layer are not. "
                    f"Use a layer with {name}={wanted}, or hook the model around it: `hook(model, block=..., inputs=...)`."
                )
    elif type(cell) not in (nn.RNNCell, nn.GRUCell, nn.LSTMCell):
        raise ValueError(
            f"`from_cell` got a {type(cell).__name__}. It knows RNNCell, GRUCell, LSTMCell and their layers RNN, GRU, LSTM. "
            "Use `from_function`, or hook the model that calls it: `hook(model, block=..., inputs=...)`."
        )
    if inputs.ndim != 2 or inputs.shape[1] != cell.input_size:
        raise ValueError(
            f"`from_cell` got inputs of shape {list(inputs.shape)} for a cell of input_size={cell.input_size}. The input is one vector a row, and the same at "
            f"every step. Pass inputs of shape [row, {cell.input_size}]."
        )
    long = isinstance(cell, nn.LSTMCell | nn.LSTM)
    n = len(inputs)
    start = {name: inputs.new_zeros(n, cell.hidden_size) for name in (("h", "c") if long else ("h",))}
    f = LatentMap(
        rule=_layer(cell, long) if isinstance(cell, nn.RNNBase) else _cell(cell, long),
        drive={"x": inputs.detach().clone()},
        readout=_output,
        clock=CLOCK,
        instance=torch.arange(n),
        start=torch.zeros(n, dtype=torch.int64),
        origin=origin_of(cell, inputs),
        model=cell,
    )
    return f, start


def _output(z: State) -> Mapping[str, Tensor]:
    return {"output": z["h"]}


def _cell(cell: nn.RNNCellBase, long: bool) -> Callable[[State, Drive], State]:
    def rule(z: State, drive: Drive) -> State:
        with transformable():
            new = cell(drive["x"], (z["h"], z["c"]) if long else z["h"])
        return {"h": new[0], "c": new[1]} if long else {"h": new}

    return rule


def _layer(layer: nn.RNNBase, long: bool) -> Callable[[State, Drive], State]:
    time = 1 if layer.batch_first else 0

    def rule(z: State, drive: Drive) -> State:
        before = (z["h"][None], z["c"][None]) if long else z["h"][None]
        with transformable():
            _, new = layer(drive["x"].unsqueeze(time), before)
        return {"h": new[0][0], "c": new[1][0]} if long else {"h": new[0]}

    return rule
