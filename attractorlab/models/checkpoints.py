"""Models on disk: safetensors with the whole configuration; bundled ones by name."""

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from attractorlab.errors import BadData
from attractorlab.models.eqr import EqR, EqRConfig

FORMAT = "attractorlab-model-1"
BUNDLED = Path(__file__).parent.parent / "assets" / "models"
ALIASES = {"eqr-sudoku": "eqr-sudoku-9"}


class CheckpointError(BadData):
    """A model file that cannot be read as one."""


def names() -> list[str]:
    """The names of the bundled models."""
    return sorted(path.stem for path in BUNDLED.glob("*.safetensors"))


def find(model: str | os.PathLike[str]) -> Path:
    """The file of a bundled name, or of a path to a model file or to a training folder.

    Raises:
        ValueError: If there is neither such a name nor such a file.
    """
    path = Path(model)
    if path.is_dir() and (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    if path.is_file():
        return path
    bundled = BUNDLED / f"{ALIASES.get(str(model), str(model))}.safetensors"
    if path.suffix == "" and bundled.is_file():
        return bundled
    raise ValueError(
        f"`load` found no model {str(model)!r}. A model is a bundled name or the path of a .safetensors file. "
        f"Use one of {', '.join(names())}, or check the path."
    )


def load(model: str | os.PathLike[str]) -> EqR:
    """The reasoner with a bundled name, or in a file that `save` wrote.

    Nothing in the file is executed. Weights are float32, as saved.

    Raises:
        ValueError: If there is no such name or file.
        CheckpointError: If the file is not a whole model file of ours.

    Example:
        >>> load("eqr-sudoku-6").clock
        'recursion'
    """
    path = find(model)
    about = describe(path)
    config = _config(path, about)
    reasoner = EqR(config, generator=torch.Generator().manual_seed(0))
    reasoner.name = about["name"]
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    wanted = {name: (tensor.dtype, tensor.shape) for name, tensor in reasoner.state_dict().items()}
    given = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    if wanted != given:
        wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise CheckpointError(
            f"{path} has other tensors than its configuration asks for: {', '.join(wrong)}. Names, shapes and dtypes must match exactly. "
            "Write the file again with `attractorlab train` or `attractorlab.models.save`."
        )
    reasoner.load_state_dict(tensors)
    return reasoner.eval().requires_grad_(False)


def save(reasoner: EqR, path: str | os.PathLike[str], *, about: Mapping[str, str]) -> None:
    """Write the weights and configuration of `reasoner` to `path`, whole or not at all.

    Args:
        reasoner: The model.
        path: Where to; an existing file is replaced.
        about: What else the file should say, e.g. the training configuration and the data's fingerprint.

    Raises:
        ValueError: If float32 cannot hold the weights as they are, or `about` uses a key of the format.
    """
    metadata = {"format": FORMAT, "model": "eqr", "name": reasoner.name, "config": json.dumps(asdict(reasoner.config), sort_keys=True)}
    if metadata.keys() & about.keys():
        raise ValueError(
            f"`save` got {', '.join(sorted(metadata.keys() & about.keys()))} in `about`. These keys belong to the format. Use other names."
        )
    tensors = {name: tensor.detach().cpu() for name, tensor in reasoner.state_dict().items()}
    if not all(tensor.float().to(tensor.dtype).equal(tensor) for tensor in tensors.values()):
        raise ValueError("`save` got weights that float32 rounds. Model files hold float32. Use reasoner.to(torch.float32).")
    write_tensors({name: tensor.float().contiguous() for name, tensor in tensors.items()}, Path(path), {**metadata, **about})


def describe(path: str | os.PathLike[str]) -> dict[str, str]:
    """What a model file says of itself: format, model, name, config and whatever was added when it was saved.

    Raises:
        CheckpointError: If it is not a whole safetensors file of ours.
    """
    about = read_metadata(Path(path))
    if about.get("format") != FORMAT or about.get("model") != "eqr":
        raise CheckpointError(
            f"{path} is a safetensors file of format {about.get('format', 'unknown')!r}. A model file says format {FORMAT!r} in its metadata. "
            "Use a file written by `attractorlab train`."
        )
    return about


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file through a temporary one, so that `path` is never half written.

    Metadata is written with sorted keys: the same content gives the same bytes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(dict(tensors), temporary, metadata=dict(metadata))
        _sort_header(temporary)
        with open(temporary, "rb") as file:
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


def _config(path: Path, about: Mapping[str, str]) -> EqRConfig:
    try:
        found: dict[str, Any] = dict(json.loads(about["config"]))
        about["name"]
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{path} has no readable name and configuration in its metadata. A model file says both. "
            "Write the file again with `attractorlab train` or `attractorlab.models.save`."
        ) from None
    known = {one.name for one in fields(EqRConfig)}
    if set(found) != known:
        raise CheckpointError(
            f"{path} has a configuration that differs in the keys {sorted(set(found) ^ known)}. Every key must be known and present. "
            "Use the version of attractorlab that wrote the file."
        )
    try:
        return EqRConfig(**found)
    except ValueError as error:
        raise CheckpointError(f"{path} holds a configuration that cannot be built: {error}") from None


def _sort_header(path: Path) -> None:
    # The library writes the metadata in the order of a hash map, which differs from run to run.
    with open(path, "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise RuntimeError(f"{path}: the sorted header grew from {length} to {len(text)} bytes.")
        file.seek(8)
        file.write(text.ljust(length))
