"""Models on disk: ours, safetensors with the whole configuration; those of the published trainers; bundled ones by name."""

import errno
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_safetensors

from attractorlab.models.eqr import EqR, EqRConfig
from attractorlab.models.feedforward import FeedForward, FeedForwardConfig
from attractorlab.models.hrm import HRM, HRMConfig
from attractorlab.models.official import Given, Official, read_official, refuse_other_tensors
from attractorlab.models.recursion import AbstractRecursion, AbstractShape
from attractorlab.models.trm import TRM, TRMConfig
from attractorlab.models.unpickling import ZIP, CheckpointError

FORMAT = "attractorlab-model-1"
CONFIGS: Mapping[str, type[AbstractShape]] = {"eqr": EqRConfig, "trm": TRMConfig, "hrm": HRMConfig, "feedforward": FeedForwardConfig}
LATER = {"prefix", "positions"}  # keys of a configuration that the first files do not have; their defaults are what those files mean
BUNDLED = Path(__file__).parent.parent / "assets" / "models"
ALIASES = {"eqr-sudoku": "eqr-sudoku-9"}
CHECKPOINTS = ("step_*", "*.pth", "*.pt")  # what the published trainers call their files


def names() -> list[str]:
    """The names of the bundled models."""
    return sorted(path.stem for path in BUNDLED.glob("*.safetensors"))


class NoModelError(ValueError):
    """There is no model of that name or at that path."""


def find(model: str | os.PathLike[str]) -> Path:
    """The file of a bundled name, or of a path to a model file, to a training folder of ours, or to a published one with one checkpoint.

    Raises:
        NoModelError: If there is neither such a name nor such a file.
        ValueError: If a folder holds several checkpoints.
    """
    try:
        found = _file_of(Path(model), str(model))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        found = None  # no file can have such a name
    if found is None:
        raise NoModelError(
            f"`load` found no model {str(model)!r}. A model is a bundled name, the path of a model file, or a folder with one. "
            f"Use one of {', '.join(names())}, or check the path."
        )
    return found


def _file_of(path: Path, model: str) -> Path | None:
    if path.is_dir() and (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    if path.is_file():
        return path
    if path.is_dir() and model:
        inside = sorted({file for folder in (path, path / "checkpoints") for name in CHECKPOINTS for file in folder.glob(name) if file.is_file()})
        if len(inside) == 1:
            return inside[0]
        if inside:
            raise ValueError(
                f"`load` found {len(inside)} checkpoints in {path}: {', '.join(str(file.relative_to(path)) for file in inside)}. "
                "A folder stands for the one it holds. Give the path of one of them."
            )
    bundled = BUNDLED / f"{ALIASES.get(model, model)}.safetensors"
    return bundled if path.suffix == "" and bundled.is_file() else None


def load(
    model: str | os.PathLike[str],
    *,
    kind: str | None = None,
    task: str | None = None,
    sites: int | None = None,
    prefix: int | None = None,
    heads: int | None = None,
    positions: str | None = None,
    H_cycles: int | None = None,
    L_cycles: int | None = None,
    damping: float | None = None,
    start_scale: float | None = None,
    identifier: int | None = None,
) -> AbstractRecursion:
    """The reasoner with a bundled name, in a file that `save` wrote, or in an official file of EqR, TRM or HRM.

    Nothing in the file is executed. Weights are float32. What kind of file it is, its content tells. Our files say everything; the keywords are for official files,
    `attractorlab.models.official` says which of them are needed when. A feed-forward twin is no reasoner: `load_feedforward` reads it.

    Args:
        model: A bundled name, a file, or a folder with one.
        kind: "eqr", "trm" or "hrm".
        task: The task whose instances it takes. Known for 11 token kinds on 81 sites, "sudoku-9", and for 6 token kinds, "maze-30", or of another side if `sites` is another square.
        sites: Tokens of an instance. An attention model does not fix it.
        prefix: Tokens before those of the instance.
        heads: Attention heads. The tensors do not tell.
        positions: "rotary" or "none", for attention.
        H_cycles, L_cycles: Recursions in a segment, and updates of z_L in a recursion.
        damping: The weight that an EqR's old state keeps.
        start_scale: Standard deviation of an EqR's random starts.
        identifier: Which of several puzzle embeddings becomes the prefix.

    Raises:
        ValueError: If there is no such name or file, or what is needed is not known; each is named.
        CheckpointError: If the file is damaged, of another model, or contradicts itself or a keyword.

    Example:
        >>> load("eqr-sudoku-6").clock
        'recursion'
    """
    path = find(model)
    given = Given(
        kind=kind,
        task=task,
        sites=sites,
        prefix=prefix,
        heads=heads,
        positions=positions,
        H_cycles=H_cycles,
        L_cycles=L_cycles,
        damping=damping,
        start_scale=start_scale,
        identifier=identifier,
    )
    reasoner = _official(path, given)[0] if _is_archive(path) else _ours(path, given)
    return reasoner.eval().requires_grad_(False)


def load_feedforward(model: str | os.PathLike[str]) -> FeedForward:
    """The feed-forward network with a bundled name, or in a file that `save` wrote.

    Raises:
        NoModelError: If there is neither such a name nor such a file.
        CheckpointError: If the file is not a whole one of ours, or holds a reasoner.

    Example:
        >>> load_feedforward("feedforward-sudoku-9").config.width
        96
    """
    path = find(model)
    about = describe(path)
    if about["model"] != "feedforward":
        raise CheckpointError(f"{path} holds a reasoner, {about['model']!r}. `load_feedforward` reads feed-forward networks. Use `attractorlab.models.load`.")
    config = _config(path, about)
    assert isinstance(config, FeedForwardConfig)
    network = FeedForward(config, generator=torch.Generator().manual_seed(0))
    network.name = about["name"]
    _fill(network, path)
    return network.eval().requires_grad_(False)


def convert(path: str | os.PathLike[str], out: str | os.PathLike[str], *, given: Given, about: Mapping[str, str]) -> AbstractRecursion:
    """Write the model of an official file to `out` in our format, whole or not at all, and return it.

    Args:
        path: The official file, or a folder with one.
        out: Where to; an existing file is replaced.
        given: What the file does not say.
        about: What else `out` should say.

    Raises:
        ValueError: If what is needed is not known; each is named.
        CheckpointError: If `path` is not an official file, or it is damaged, of another model, or contradicts itself or `given`.
    """
    source = find(path)
    if not _is_archive(source):
        raise CheckpointError(f"{source} is no file of torch.save. `convert` reads what the published trainers write. Use `attractorlab inspect` to see what the file is.")
    reasoner, official = _official(source, given)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    save(reasoner, out, about={**official.about, **about})
    return reasoner.eval().requires_grad_(False)


def save(model: AbstractRecursion | FeedForward, path: str | os.PathLike[str], *, about: Mapping[str, str]) -> None:
    """Write the weights and configuration of `model` to `path`, whole or not at all.

    Args:
        model: The model.
        path: Where to; an existing file is replaced.
        about: What else the file should say, e.g. the training configuration and the data's fingerprint.

    Raises:
        ValueError: If float32 cannot hold the weights as they are, `about` uses a key of the format, or the model is of a class of your own.
    """
    kinds = [kind for kind, config in CONFIGS.items() if type(getattr(model, "config", None)) is config]
    if not kinds:
        raise ValueError(f"`save` got a {type(model).__name__}. Files hold {', '.join(CONFIGS)}. Save its state_dict() yourself, e.g. with safetensors.")
    metadata = {"format": FORMAT, "model": kinds[0], "name": model.name, "config": json.dumps(asdict(model.config), sort_keys=True)}
    if metadata.keys() & about.keys():
        raise ValueError(
            f"`save` got {', '.join(sorted(metadata.keys() & about.keys()))} in `about`. These keys belong to the format. Use other names."
        )
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    if not all(tensor.float().to(tensor.dtype).equal(tensor) for tensor in tensors.values()):
        raise ValueError("`save` got weights that float32 rounds. Model files hold float32. Use reasoner.to(torch.float32).")
    write_tensors({name: tensor.float().contiguous() for name, tensor in tensors.items()}, Path(path), {**metadata, **about})


def describe(path: str | os.PathLike[str]) -> dict[str, str]:
    """What a model file says of itself: format, model, name, config and whatever was added when it was saved.

    An official file is described by what `load` makes of it.

    Raises:
        ValueError: If it is an official file that does not say what `load` needs; each is named.
        CheckpointError: If it is not a whole model file.
    """
    if _is_archive(Path(path)):
        official = read_official(Path(path), Given())
        config = json.dumps(asdict(official.config), sort_keys=True)
        return {"format": "official", "model": official.kind, "name": official.name, "config": config, **official.about}
    about = read_metadata(Path(path))
    if about.get("format") != FORMAT or about.get("model") not in CONFIGS:
        raise CheckpointError(
            f"{path} is a safetensors file of format {about.get('format', 'unknown')!r}. A model file says format {FORMAT!r} in its metadata, and a model of "
            f"{', '.join(CONFIGS)}. Use a file written by `attractorlab train` or `attractorlab convert`."
        )
    return about


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file through a temporary one, so that `path` is never half written.

    Metadata is written with sorted keys: the same content gives the same bytes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        content = _sorted_header(as_safetensors(dict(tensors), metadata=dict(metadata)))
        with open(temporary, "wb") as file:  # not by the library, whose error on a full disk is none of the system
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file.

    Raises:
        CheckpointError: If the file is truncated or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a safetensors file ({error}). A model file is complete and in that format. "
            "Copy it again, or train the model anew with `attractorlab train`."
        ) from None


def _is_archive(path: Path) -> bool:
    """Whether a file is one of torch.save, by its first bytes."""
    with open(path, "rb") as file:
        first = file.read(9)
    if first[:1] == b"\x80" and first[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and first[8:9] != b"{":
        raise CheckpointError(
            f"{path} is a bare pickle. torch.save has written zip files since torch 1.6, and only these are read. "
            "Load it where you trust it, and save its state dict again with a newer torch."
        )
    return first.startswith(ZIP)


def _official(path: Path, given: Given) -> tuple[AbstractRecursion, Official]:
    official = read_official(path, given)
    reasoner = _fresh(official.config)
    refuse_other_tensors(path, reasoner.state_dict(), official.tensors)
    _refuse_nonfinite(path, official.tensors)
    reasoner.load_state_dict(dict(official.tensors))
    reasoner.name = official.name
    return reasoner, official


def _ours(path: Path, given: Given) -> AbstractRecursion:
    about = describe(path)
    if about["model"] == "feedforward":
        raise CheckpointError(f"{path} holds a feed-forward network, which is no reasoner: it has no tick. `load` gives reasoners. Use `attractorlab.models.load_feedforward`, or `attractorlab scale`, which measures it.")
    config = _config(path, about)
    facts = {"kind": about["model"], **asdict(config)}
    wrong = [f"{name}={value!r}" for name, value in asdict(given).items() if value is not None and value != facts.get(name, value)]
    if wrong:
        raise CheckpointError(f"{path} says otherwise than {', '.join(wrong)}. A file of ours says everything itself. Leave these keywords out.")
    reasoner = _fresh(config)
    reasoner.name = about["name"]
    _fill(reasoner, path)
    return reasoner


def _fresh(config: AbstractShape) -> AbstractRecursion:
    generator = torch.Generator().manual_seed(0)
    if isinstance(config, EqRConfig):
        return EqR(config, generator=generator)
    if isinstance(config, HRMConfig):
        return HRM(config, generator=generator)
    assert isinstance(config, TRMConfig)
    return TRM(config, generator=generator)


def _fill(model: torch.nn.Module, path: Path) -> None:
    """Put the tensors of a file of ours into a model of its configuration."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    wanted = {name: (tensor.dtype, tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    if wanted != given:
        wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise CheckpointError(
            f"{path} has other tensors than its configuration asks for: {', '.join(wrong)}. Names, shapes and dtypes must match exactly. "
            "Write the file again with `attractorlab train` or `attractorlab.models.save`."
        )
    _refuse_nonfinite(path, tensors)
    model.load_state_dict(tensors)


def _refuse_nonfinite(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    wrong = sorted(name for name, tensor in tensors.items() if not bool(tensor.isfinite().all()))
    if wrong:
        raise CheckpointError(f"{path} holds NaN or infinity in {', '.join(wrong)}. Weights are finite numbers. Copy the file again, or take an earlier checkpoint of the training.")


def _config(path: Path, about: Mapping[str, str]) -> AbstractShape:
    kind = CONFIGS[about["model"]]
    try:
        found: dict[str, Any] = dict(json.loads(about["config"]))
        about["name"]
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{path} has no readable name and configuration in its metadata. A model file says both. "
            "Write the file again with `attractorlab train` or `attractorlab.models.save`."
        ) from None
    known = {one.name for one in fields(kind)}
    if set(found) | LATER != known:
        raise CheckpointError(
            f"{path} has a configuration that differs in the keys {sorted((set(found) | LATER) ^ known)}. Every key must be known and present. "
            "Use the version of attractorlab that wrote the file."
        )
    try:
        return kind(**found)
    except ValueError as error:
        raise CheckpointError(f"{path} holds a configuration that cannot be built: {error}") from None


def _sorted_header(content: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library writes them in that of a hash map, which differs from run to run."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) > length:
        raise RuntimeError(f"The sorted header of a model file grew from {length} to {len(text)} bytes.")
    return content[:8] + text.ljust(length) + content[8 + length :]
