"""A run on disk: a manifest and immutable segments, each an xarray DataTree in Zarr, committed by one rename."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attractorlab import types
from attractorlab.errors import BadData, SpaceError
from attractorlab.types import Origin, Trajectory, dims_of

if TYPE_CHECKING:
    import xarray

SCHEMA = 5  # 4: a scaling grid has clusters, a policy and intervals of its spread; 5: a segment lists its files, each with its checksum
ROOT = "zarr.json"  # the file of a segment that says what is in it
NOUNS: Mapping[str, type] = {
    noun.__name__: noun
    for noun in (
        *(types.Instance, types.Trajectory, types.Convergence, types.FixedPointSet, types.PeriodicOrbitSet, types.Spectrum, types.Floquet, types.LyapunovEstimate),
        *(types.NonNormality, types.BasinEstimate, types.BasinSlice, types.ScalingGrid, types.Projection, types.ProbeFit, types.TraceEstimate, types.SpectralDensity),
        *(types.Branch, types.Attempts, types.HaltingGain, types.Foresight, types.SolveTimes),
    )
}


class RunError(BadData):
    """A folder that cannot be read as a run."""


@dataclass(frozen=True)
class Manifest:
    """What was asked of a run: never changed once written."""

    config: Mapping[str, Any]
    units: tuple[str, ...]
    created: str
    schema: int = SCHEMA
    optional: tuple[str, ...] = ()  # units that may be added; a run without them is complete


class Run:
    """A run's folder: ``manifest.json`` and ``segments/<unit>.zarr``.

    A segment is complete or absent: it is written under a dotted name and renamed. A killed run loses the unit in flight and nothing else;
    the units without a segment are what is left to do.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """The run in folder `path`.

        Raises:
            RunError: If the folder has no readable manifest.
        """
        self.path = Path(path)
        try:
            found = json.loads((self.path / "manifest.json").read_text())
            self.manifest = Manifest(
                config=dict(found["config"]),
                units=tuple(found["units"]),
                created=found["created"],
                schema=found["schema"],
                optional=tuple(found.get("optional", ())),
            )
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise RunError(
                f"{self.path} has no readable manifest.json ({type(error).__name__}). A run is a folder that `attractorlab record` or `report` made. "
                "Check the path, or record the run again."
            ) from None
        if self.manifest.schema != SCHEMA:
            raise RunError(f"{self.path} has schema {self.manifest.schema!r}. This version reads schema {SCHEMA}. Use the version of attractorlab that wrote it.")
        _check_units((*self.manifest.units, *self.manifest.optional))

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, config: Mapping[str, Any], units: Sequence[str], optional: Sequence[str] = ()) -> "Run":
        """A new run, or the one that is there if it asked for the same. Units that are `optional` may be added to it later.

        Args:
            path: Its folder.
            config: What was asked, as JSON can hold it. A run is continued by the same alone, but for the entry `command`: how it is typed or shared out is no difference.
            units: The names of what it will hold, each written once.
            optional: Names of what may be added.

        Raises:
            RunError: If the folder holds another run, or a unit's name cannot name a file.
        """
        _check_units((*units, *optional))
        place = Path(path)
        if not (place / "manifest.json").exists():
            now = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = json.dumps(asdict(Manifest(config=config, units=tuple(units), created=now, optional=tuple(optional))), indent=1, allow_nan=False)
            (place / "segments").mkdir(parents=True, exist_ok=True)
            _put_first(place / "manifest.json", manifest.encode())
        run = cls(place)
        asked, there = json.loads(json.dumps(dict(config))), run.manifest.config
        differ = sorted(key for key in {*asked, *there} - {"command"} if key not in asked or key not in there or asked[key] != there[key])
        if differ or tuple(units) != run.manifest.units:
            raise RunError(f"{place} holds a run that differs in {', '.join(differ) or 'its units'}. A run is only continued with the same settings. Choose another --out, or remove that folder.")
        return run

    def done(self) -> list[str]:
        """The units that have a segment, in the order of the manifest, optional ones last."""
        return [unit for unit in (*self.manifest.units, *self.manifest.optional) if self.has(unit)]

    def missing(self) -> list[str]:
        """The units that have none; optional ones are not missed."""
        return [unit for unit in self.manifest.units if not self.has(unit)]

    def unfinished(self) -> list[str]:
        """The folders of segments that are being written, or whose writer was killed; they may be removed once nothing writes."""
        return sorted(str(one) for one in (self.path / "segments").glob(".tmp-*"))

    def has(self, unit: str) -> bool:
        """Whether `unit` has a segment."""
        return self._segment(unit).is_dir()

    def write(self, unit: str, nouns: Mapping[str, Any]) -> None:
        """Write `nouns`, each under its name, as the segment of `unit`.

        Args:
            unit: One of the manifest's units that has no segment yet.
            nouns: Records as the library's functions return them.

        Raises:
            RunError: If the manifest has no such unit, it has its segment already, or something is no noun that a run holds.
        """
        if self.has(unit):
            raise RunError(f"{self.path} has the segment {unit!r} already. A segment is never changed. Write another unit, or make another run.")
        self.commit(unit, nouns)

    def commit(self, unit: str, nouns: Mapping[str, Any]) -> None:
        """The same for processes that share a run: if another one was faster, its segment stays.

        Raises:
            RunError: As `write`, but for a segment that is there.
        """
        import xarray
        from zarr.storage import MemoryStore

        if unit not in (*self.manifest.units, *self.manifest.optional):
            raise RunError(f"{self.path} has no unit {unit!r}. A run holds the units of its manifest. Use one of {', '.join(self.manifest.units)}.")
        strange = {name: type(noun).__name__ for name, noun in nouns.items() if type(noun).__name__ not in NOUNS}
        if strange:
            name, kind = next(iter(strange.items()))
            raise RunError(f"{self.path} was given {name!r}, a {kind}. A run holds nouns, which say what their axes are: {', '.join(sorted(NOUNS))}. Write those that it is made of.")
        temporary = self.path / "segments" / f".tmp-{uuid.uuid4().hex}"
        try:
            tree = xarray.DataTree.from_dict({name: to_dataset(noun) for name, noun in nouns.items()})
            # Zarr writes files from several threads, and the others go on when one has failed, into a folder that is being removed. So it writes to memory.
            files: dict[str, Any] = {}
            tree.to_zarr(MemoryStore(files), zarr_format=3, consolidated=False, encoding=None)
            for name, content in _listed({name: content.to_bytes() for name, content in files.items()}).items():
                put(temporary / name, content)
            try:
                os.rename(temporary, self._segment(unit))
            except OSError:
                if not self.has(unit):
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def read(self, unit: str) -> dict[str, Any]:
        """The nouns in the segment of `unit`.

        Raises:
            RunError: If there is none.
        """
        import xarray

        if not self.has(unit):
            raise RunError(f"{self.path} has no segment {unit!r}. A unit is read once it is complete. Run the command again to complete it.")
        remedy = "Remove that segment and run the command again: it is recorded anew."
        if wrong := _changed(self._segment(unit)):
            raise RunError(f"{self.path} has a damaged segment {unit!r}: {', '.join(wrong[:4])} is not what was written. Numbers are used as they were stored. {remedy}")
        try:
            with xarray.open_datatree(self._segment(unit), engine="zarr", consolidated=False) as tree:
                data = {name: node.to_dataset().load() for name, node in tree.children.items()}
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:  # what zarr and its codecs raise on damaged bytes
            raise RunError(f"{self.path} has a damaged segment {unit!r} ({type(error).__name__}). A segment is read whole. {remedy}") from error
        return {name: from_dataset(one) for name, one in data.items()}

    def damage(self, unit: str) -> str:
        """What is wrong with the segment of `unit`, in a sentence; empty if every array is what was written.

        Raises:
            RunError: If there is none.
        """
        try:
            self.read(unit)
        except RunError as error:
            if not self.has(unit):
                raise
            return str(error)
        return ""

    def trajectory_of(self, series: str) -> Trajectory:
        """The trajectories of all finished units of a series, side by side.

        Raises:
            RunError: If no unit of it is finished.
        """
        parts = [self.read(unit)["trajectory"] for unit in self.done() if unit.rpartition("-")[0] == series]
        if not parts:
            raise RunError(f"{self.path} has no finished unit of series {series!r}. There is nothing to read yet. Run the command again to continue it.")
        return join(parts)

    def bytes(self) -> int:
        """What the folder holds on disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def _segment(self, unit: str) -> Path:
        return self.path / "segments" / f"{unit}.zarr"


def join(parts: Sequence[Trajectory]) -> Trajectory:
    """Trajectories of different rows of one run as one.

    Raises:
        RunError: If they are of different clocks, ticks, leaves, readouts, taps, edits or weights.
    """
    first = parts[0]
    kinds = {
        (part.clock, part.origin.weights, tuple(part.states), tuple(part.readouts), tuple(part.calls.items()), part.edits, part.continuation, *part.kept.tolist(), *part.ticks.tolist())
        for part in parts
    }
    if len(kinds) > 1:
        clocks = ", ".join(sorted({f"{int(part.ticks[-1])} ticks of {part.clock} of {part.origin.model}" for part in parts}))
        raise RunError(f"`join` got trajectories of {len(kinds)} kinds: {clocks}. Only rows of one model, clock and length stand side by side. Join the units of one series.")

    def side_by_side(name: str, axis: int) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim=axis)

    return Trajectory(
        states={name: torch.cat([part.states[name] for part in parts], dim=1) for name in first.states},
        kept=first.kept,
        ticks=first.ticks,
        residual=side_by_side("residual", 1),
        recurrence=side_by_side("recurrence", 1),
        readouts={name: torch.cat([part.readouts[name] for part in parts], dim=1) for name in first.readouts},
        last_tick=side_by_side("last_tick", 0),
        result=side_by_side("result", 0),
        instance=side_by_side("instance", 0),
        start=side_by_side("start", 0),
        clock=first.clock,
        origin=first.origin,
        taps={name: torch.cat([part.taps[name] for part in parts], dim=2) for name in first.taps},
        calls=first.calls,
        edits=first.edits,
        continuation=first.continuation,
    )


def to_dataset(noun: Any) -> "xarray.Dataset":
    """A noun as a labelled dataset; dimension names come from its annotations."""
    import xarray

    variables: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    dims = dims_of(type(noun))
    for one in fields(noun):
        value = getattr(noun, one.name)
        if isinstance(value, Tensor):
            variables[one.name] = _variable(value, dims[one.name], one.name)
        elif isinstance(value, Origin):
            attributes[one.name] = json.dumps(asdict(value))
        elif isinstance(value, Mapping) and all(isinstance(leaf, Tensor) for leaf in value.values()):
            named = dims.get(one.name, ("...",))
            for key, leaf in value.items():
                # Points fire unequally often: the call axis is a point's own.
                own = [f"call.{key}" if dim == "call" else dim for dim in named]
                variables[f"{one.name}.{key}"] = _variable(leaf, own, f"{one.name}.{key}")
            attributes[one.name] = json.dumps(list(value))
        else:
            attributes[one.name] = json.dumps(value if not isinstance(value, Mapping) else dict(value))
    return xarray.Dataset(variables, attrs={"noun": type(noun).__name__, **attributes})


def from_dataset(data: "xarray.Dataset") -> Any:
    """The noun that `to_dataset` wrote.

    Raises:
        RunError: If `data` is something else.
    """
    noun = NOUNS.get(data.attrs.get("noun", ""))
    absent = [one.name for one in fields(noun) if one.name not in data.variables and one.name not in data.attrs] if noun else []
    if noun is None or absent:
        raise RunError(
            f"A segment holds {data.attrs.get('noun', 'no noun')!r} without {', '.join(absent) or 'a known name'}. A noun is stored with all its fields. "
            "Use the version of attractorlab that wrote it."
        )
    values: dict[str, Any] = {}
    for one in fields(noun):
        if one.name in data.variables:
            values[one.name] = _tensor(data[one.name])
        elif one.name == "origin":
            found = json.loads(data.attrs["origin"])
            values["origin"] = Origin(**{**found, "argv": tuple(found["argv"])})
        else:
            stored = json.loads(data.attrs[one.name])
            if isinstance(stored, list) and stored and all(f"{one.name}.{key}" in data.variables for key in stored):
                values[one.name] = {key: _tensor(data[f"{one.name}.{key}"]) for key in stored}
            elif stored == [] and "Mapping" in str(one.type):
                values[one.name] = {}
            elif isinstance(stored, dict):
                values[one.name] = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
            else:
                values[one.name] = tuple(stored) if isinstance(stored, list) else stored
    return noun(**values)


@contextmanager
def room_for(path: str | os.PathLike[str], size: int) -> Iterator[None]:
    """Refuse at once if `path` has no room for `size` bytes.

    Raises:
        SpaceError: If it has not.
    """
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size:
        raise SpaceError(
            f"{path} has {free / 1e6:.1f} MB free and this run writes about {size / 1e6:.1f} MB. A run is only begun if it fits. "
            "Choose another --out, or fewer puzzles, starts or ticks."
        )
    yield


def _check_units(units: Sequence[str]) -> None:
    wrong = [unit for unit in units if not isinstance(unit, str) or unit in ("", "..") or Path(unit).name != unit]
    if wrong:
        raise RunError(f"A run has a unit {wrong[0]!r}. A unit's name names a file. Use letters, digits, dots and hyphens.")


def _variable(value: Tensor, dims: Sequence[str], name: str) -> tuple[tuple[str, ...], Any, dict[str, str]]:
    named = [dim for dim in dims if dim != "..."]
    extra = tuple(f"{name}_{k}" for k in range(value.ndim - len(named)))
    at = list(dims).index("...") if "..." in dims else len(named)
    # numpy has no bfloat16; float32 holds all of it.
    values = value.detach().cpu()
    stored = (values.float() if value.dtype == torch.bfloat16 else values).numpy()
    return (*named[:at], *extra, *named[at:]), stored, {"dtype": str(value.dtype)}


def _listed(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a segment, of which the first now lists the others with their checksums."""
    root = json.loads(files[ROOT])
    root["attributes"] = {"files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != ROOT}}
    return {**files, ROOT: json.dumps(root).encode()}


def _changed(segment: Path) -> list[str]:
    """The files of a segment that are missing, or not what was written."""
    try:
        listed = json.loads((segment / ROOT).read_bytes())["attributes"]["files"]
        return sorted(name for name, digest in listed.items() if not (segment / name).is_file() or hashlib.sha256((segment / name).read_bytes()).hexdigest() != digest)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return [ROOT]


def _tensor(stored: "xarray.DataArray") -> Tensor:
    values = torch.as_tensor(stored.values.copy())
    return values.bfloat16() if stored.attrs.get("dtype") == "torch.bfloat16" else values


def _put_first(file: Path, content: bytes) -> None:
    """Write a file whole, unless another process was faster: then its file stays."""
    temporary = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    try:
        put(temporary, content)
        try:
            os.link(temporary, file)  # unlike a rename this replaces nothing
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def put(file: Path, content: bytes) -> None:
    """Write a file, and its folder if there is none; it is on the disk afterwards."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
