"""hook: the loop inside a model that is not ours, as a LatentMap; from_function: a map from a plain function."""

import difflib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from attractorlab.maps import DrivenReadout, LatentMap
from attractorlab.models.base import versions
from attractorlab.models.containers import flatten, paths, rebuild
from attractorlab.models.outputs import read_off
from attractorlab.models.recording import Recorder, Ref, copied
from attractorlab.models.replaying import Pair, Unfit, Weight, eagerly, origin_of
from attractorlab.models.rowwise import check_rows, others
from attractorlab.models.sightings import Sighting, between, parameters_of
from attractorlab.models.ticking import Ticks, called, rolled
from attractorlab.types import Drive, Origin, State

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a model is called with: one tensor, positional arguments, or arguments by name."""


@dataclass(frozen=True, eq=False)
class Hooked:
    """A model's loop as a map. Unpacks into two, ``f, z0 = hook(...)``.

    Args:
        map: One tick of the loop, with the inputs bound.
        start: The state before the first tick.
        states: The states that the model itself went through, the start first.
        saw: The calls of the block, one a line: what each argument was.
        between: What happens between the calls, and which parts of the model's output are no readout, and why.
    """

    map: LatentMap
    start: State
    states: Mapping[str, Shaped[Tensor, "call row ..."]]
    saw: str
    between: str

    def __iter__(self) -> Iterator[Any]:
        return iter((self.map, self.start))


def hook(
    model: nn.Module,
    *,
    block: str,
    inputs: Inputs,
    state: str | int | None = None,
    output: str | int | None = None,
    names: Sequence[str] | None = None,
    readout: Callable[[State], Mapping[str, Tensor]] | None = None,
) -> Hooked:
    """The map that a model iterates when it calls its `block` in a loop, and the state where it begins.

    The model runs twice, on `inputs` and on another number of their rows in another order, while all that happens to tensors outside of the block is
    noted down. The ticks of the second run are replayed with what drives the first: row i of the map is row i of the inputs, or there is an error.
    The map repeats one period of what was seen: the calls of the block, and the operations between them. Detaching is left out, so the
    map has a Jacobian also where the model gives none. What the model decides by looking at numbers (when to stop, where to branch) is not part of
    the map. Compiled parts run as they were written. The replayed states equal the model's own bit for bit (under a solver, up to rounding), or there is an
    error. Modules between the calls are replayed operation by operation: of all modules, the map calls the block alone.
    What the model computes before the loop is kept as it was.

    Args:
        model: Any module whose state is batch first. Put it into evaluation mode first; it is left as it is.
        block: The name of the part that is called in a loop, as in ``model.named_modules()``.
        inputs: What the model is called with: a tensor, a tuple of positional arguments, or a mapping of arguments by name. The first axis of
            every tensor is the row.
        state: Where a solver (Anderson, Broyden) calls the block: which of the block's arguments is the state, by name or position. One
            call of the block is then one tick. Leave it out where the model itself goes round.
        output: With `state`, which of the block's outputs is the next state, by name or position, where several are like it.
        names: Names for the leaves of the state, in their order. Left out, they are called as the block calls the arguments that they are.
        readout: What is read off a state, in place of the rest of the model.

    Returns:
        The map and the start, with the states seen. The readout gives each tensor of the model's output that is a function of the state: by its key or
        field, by its number in a tuple, or as "output"; what a tick makes besides the state is read from the tick that begins with it. Only a tensor named "logits" is taken for logits by other functions.

    Raises:
        ValueError: If there is no such block, it is called less than twice, no loop is found, or the loop is not a function of the state alone. The text
            lists, call by call, what was seen.

    Example:
        >>> class Looped(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.core, self.head = torch.nn.GRUCell(3, 4), torch.nn.Linear(4, 2)
        ...
        ...     def forward(self, x):
        ...         h = torch.zeros(len(x), 4)
        ...         for _ in range(5):
        ...             h = self.core(x, h)
        ...         return {"logits": self.head(h)}
        >>> f, z0 = hook(Looped(), block="core", inputs=torch.randn(2, 3))
        >>> list(z0), list(f.drive), list(f.readout(f(z0)))
        (['hx'], ['input'], ['logits'])
    """
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():  # whose tensors have no derivatives ever after
            leaves, shape = flatten(inputs if isinstance(inputs, Tensor) else _nested(inputs))
            ordinary = rebuild(shape, [copied(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves])
            return hook(model, block=block, inputs=ordinary, state=state, output=output, names=names, readout=readout)
    if output is not None and state is None:
        raise ValueError(f"`hook` got output={output!r} without a state. Which output is the state is found from the calls unless a solver makes them. Name the state too: state=\"z\".")
    seen, twin, outputs = _watch_twice(model, block, inputs, 2 if state is None else 1)
    record, rows = seen.record, (_rows(inputs)[0], len(_rows(inputs)[1]))
    results = [record.ref(leaf) for leaf in outputs[0].values()]
    ticks = rolled(seen, twin, names) if state is None else called(seen, twin, state, names, output=output, results=results)
    pair = Pair(record, twin.record, rows, _owners(model), _drive_names(seen, ticks), {}, {}, {})
    try:
        program = ticks.program(pair)
    except Unfit as reason:
        raise seen.error(
            f"saw a loop of which it can make no map, with {rows[0]} rows and then with {rows[1]}: {reason}",
            "A map takes any number of rows, and its tensors are batch first",
            "Make the first axis of the state and of what drives it the row, or give the map by `from_function`",
        ) from None
    start, states, remarks = ticks.states(pair, program)
    check_rows(ticks, pair, program, _rows(inputs)[1], model)
    readers, told = ([], []) if readout is not None else read_off(ticks, pair, *outputs, chosen=_rows(inputs)[1], model=model)
    drive = dict(pair.drive)

    def read(z: State, x: Drive) -> Mapping[str, Tensor]:
        return {name: value for one in readers for name, value in one(z, x).items()}

    note = " ".join([between(ticks.seen_events, record), *ticks.part(), *remarks, *told])
    n = rows[0] if drive else 0
    f = LatentMap(
        rule=program,
        drive=drive,
        readout=readout if readout is not None else DrivenReadout(read, drive),
        clock="call" if ticks.calls == 1 else f"{ticks.calls} calls",
        instance=torch.arange(n),
        start=torch.zeros(n, dtype=torch.int64),
        origin=origin_of(model, next(iter(start.values()))),
        model=model,
    )
    return Hooked(f, start, states, seen.table(), note)


def from_function(
    rule: Callable[[State, Drive], State],
    *,
    drive: Drive,
    clock: str,
    readout: Callable[[State], Mapping[str, Tensor]] | None = None,
    model: nn.Module | None = None,
) -> LatentMap:
    """The map whose tick is a plain function, one row per row of `drive`.

    Nothing is checked but the drive: `attractorlab.testing.check_map` tests the laws.

    Args:
        rule: From a state and the drive to the next state, named leaves both.
        drive: What the instances contribute to every tick, batch first. Empty for a map without instances, which takes any number of rows.
        clock: What one tick is: "step of the sequence", "sweep", ...
        readout: What can be read off a state. One that needs the drive is a `DrivenReadout`.
        model: The module that the rule runs, if it runs one: its parts can then be tapped and edited by name, and its weights are on record.

    Raises:
        ValueError: If the leaves of `drive` differ in their number of rows, or the clock has no name.

    Example:
        >>> f = from_function(lambda z, x: {"z": 0.5 * z["z"] + x["x"]}, drive={"x": torch.ones(2, 1)}, clock="step")
        >>> f({"z": torch.zeros(2, 1)})["z"].flatten().tolist()
        [1.0, 1.0]
    """
    counts = {name: leaf.shape[0] if leaf.ndim else 0 for name, leaf in drive.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise ValueError(
            f"`from_function` got a drive with {counts} rows. All leaves of a drive are batched over the same rows. "
            "Make the first axis of every leaf the row, and close over what is the same for all rows."
        )
    if not clock:
        raise ValueError(
            "`from_function` got clock=''. The clock says what one tick is, and goes with every number. Name it, e.g. clock='step'."
        )
    n = next(iter(counts.values()), 0)
    origin = Origin(versions=versions()) if model is None else origin_of(model, next(model.parameters(), torch.zeros(0)))
    bound = LatentMap(rule, drive, clock=clock, instance=torch.arange(n), start=torch.zeros(n, dtype=torch.int64), origin=origin, model=model)
    return bound if readout is None else LatentMap(**{**vars(bound), "readout": readout})


def _part(model: nn.Module, block: str) -> nn.Module:
    if not isinstance(model, nn.Module) or not isinstance(block, str):
        raise ValueError(
            f"`hook` got a model of {type(model).__name__} and a block of {type(block).__name__}. It takes a module and the name of one of its parts. "
            'Use hook(model, block="NAME", inputs=...) with a name of `model.named_modules()`.'
        )
    parts = dict(model.named_modules())
    # What torch.compile wrapped goes by its own name too.
    short = {name.replace("_orig_mod.", ""): one for name, one in parts.items()}
    if block in parts or block in short:
        return parts.get(block, short.get(block, model))
    near = difflib.get_close_matches(block, [name for name in short if name], n=3, cutoff=0.4) or [name for name in short if name][:5]
    raise ValueError(
        f"`hook` got block={block!r}. A block is named as in `model.named_modules()`. "
        + (f"Use one of {', '.join(near)}." if near else "This model has no parts.")
    )


def _watch_twice(
    model: nn.Module, block: str, inputs: Inputs, least: int
) -> tuple[Sighting, Sighting, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """What was seen of the model on its inputs and on another number of their rows, and what it gave."""
    part = _part(model, block)
    if isinstance(part, torch.jit.ScriptModule):
        raise ValueError(
            f"`hook` got block={block!r}, which is a scripted module. The calls of a block are watched by hooks, which a scripted one does not pass on. "
            "Hook the model as it was before `torch.jit.script`."
        )
    chosen = _rows(inputs)[1]
    fewer = _take(inputs, chosen)
    written: list[str] = []
    with eagerly(), _buffers_kept(model, written):
        record, out = _watch(model, part, inputs)
        seen = Sighting(part, block, record, _inputs_of(model, record, inputs))
        if len(record.calls) < least:
            raise seen.error(
                f"saw {len(record.calls) or 'no'} call{'s' * (len(record.calls) != 1)} of {block!r}"
                + (f", which was called inside {record.inside[0]}, where calls are not seen one by one" if record.inside else ""),
                f"A loop calls its block {'twice' if least == 2 else 'once'} or more, as a module: `block(...)`",
                "Pass the name of the block that goes round, or inputs that make it go round",
            )
        with _noted(
            f"`hook` ran the model a second time, on {len(chosen)} rows, to see what follows the rows. A map takes any number of rows."
        ):
            other, out2 = _watch(model, part, fewer)
    if written:
        raise seen.error(
            f"saw the model write into its buffer {written[0]!r}",
            "A tick changes the state and nothing else",
            "Call `model.eval()` first, or give the map by `from_function`",
        )
    twin = Sighting(part, block, other, _inputs_of(model, other, fewer))
    if not other.calls:
        raise seen.error(
            f"saw calls of {block!r} with all rows, and none with {len(chosen)}",
            "A map takes any number of rows, and its ticks are the same for all of them",
            "Pass inputs for which the model goes round alike",
        )
    return seen, twin, (_outputs(out), _outputs(out2))


@contextmanager
def _noted(text: str) -> Iterator[None]:
    """An exception that passes is told where it came from."""
    try:
        yield
    finally:
        error = sys.exception()
        if error is not None:
            error.add_note(text)


def _watch(model: nn.Module, part: nn.Module, inputs: Inputs) -> tuple[Recorder, Any]:
    record = Recorder(model, part)
    for leaf in flatten(inputs)[0]:
        if isinstance(leaf, Tensor):
            record.ref(leaf)
    with record.watching():
        if isinstance(inputs, Tensor):
            out = model(inputs)
        elif isinstance(inputs, Mapping):
            out = model(**inputs)
        else:
            out = model(*inputs)
    return record, out


def _rows(inputs: Inputs) -> tuple[int, list[int]]:
    """How many rows there are, and which are taken for the second run."""
    counts = {
        name: leaf.shape[0] for name, leaf in _outputs(inputs if isinstance(inputs, Tensor) else _nested(inputs)).items() if leaf.ndim
    }
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(
            f"`hook` got inputs with {counts or 'no'} rows. The first axis of every tensor among the inputs is the row. "
            "Pass one batch, e.g. inputs=x, inputs=(x, mask) or inputs={'x': x}; bind what has no rows to the model beforehand."
        )
    n = next(iter(counts.values()))
    return n, others(n)


def _nested(inputs: Sequence[Any] | Mapping[str, Any]) -> Any:
    """The inputs as a plain dict or tuple."""
    return dict(inputs) if isinstance(inputs, Mapping) else tuple(inputs)


def _take(inputs: Inputs, chosen: list[int]) -> Inputs:
    leaves, shape = flatten(inputs if isinstance(inputs, Tensor) else _nested(inputs))
    index = torch.tensor(chosen)
    taken: Inputs = rebuild(
        shape, [leaf.index_select(0, index.to(leaf.device)) if isinstance(leaf, Tensor) and leaf.ndim else leaf for leaf in leaves]
    )
    return taken


def _outputs(out: Any) -> dict[str, Tensor]:
    """The tensors of a model's output, by name."""
    leaves, shape = flatten(out)
    return {path or "output": leaf for path, leaf in zip(paths(shape), leaves, strict=True) if isinstance(leaf, Tensor)}


def _inputs_of(model: nn.Module, record: Recorder, inputs: Inputs) -> dict[Ref, str]:
    """What the model calls its inputs."""
    if not isinstance(inputs, Mapping):
        given = [inputs] if isinstance(inputs, Tensor) else inputs
        names = [*parameters_of(model), *(f"input{k}" for k in range(len(given)))]
        inputs = dict(zip(names, given, strict=False))
    return {record.ref(leaf): name for name, leaf in _outputs(_nested(inputs)).items()}


def _drive_names(seen: Sighting, ticks: Ticks) -> dict[Ref, str]:
    """Names for what drives the loop: as the block calls its arguments, else as the inputs are called."""
    return {**seen.inputs, **ticks.argument_names}


def _owners(model: nn.Module) -> dict[int, Weight]:
    return {
        id(tensor): Weight(module, name)
        for module in model.modules()
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    }


@contextmanager
def _buffers_kept(model: nn.Module, written: list[str]) -> Iterator[None]:
    """Buffers are afterwards as they were; `written` gets the names of those that were not."""
    before = [
        (f"{path}.{name}".lstrip("."), module, name, buffer, buffer.detach().clone(), -1 if buffer.is_inference() else buffer._version)
        for path, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for label, module, name, buffer, copy, version in before:
            replaced = module._buffers.get(name) is not buffer
            if replaced:
                module._buffers[name] = buffer
            if version >= 0 and buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(copy)
                replaced = True
            if replaced:
                written.append(label)
