"""A training's state on disk: files of at most 14 MB in a folder that appears whole or not at all."""

import filecmp
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from attractorlab.models.checkpoints import read_metadata, write_tensors
from attractorlab.models.unpickling import CheckpointError
from attractorlab.training.ranks import Ranks

SHARD = 13 * 2**20  # bytes of tensors in a file; with its header it stays below 14 MB, so that a state passes through whatever carries small files
STATE_FORMAT = "attractorlab-training-3"  # 3: each file has a checksum
CHECKSUM = "sha256"  # entry of a file's metadata, of all else that is in it: safetensors has none of its own
_WHOLE = re.compile(r"segment-(\d{8})")


def write_shards(tensors: Mapping[str, Tensor], folder: Path, about: Mapping[str, str], *, segment: int, ranks: Ranks) -> None:
    """Write the state after a segment to a folder of its own in `folder`, and then remove all others.

    All processes write their files beside each other; the first then gives the folder its name. So the newest folder is always whole.
    """
    name = f"segment-{segment:08d}"
    partial, whole = folder / f".{name}", folder / name
    if ranks.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    ranks.wait()
    files = _packed(tensors)
    try:
        for number, content in enumerate(files):
            told = {**about, "format": STATE_FORMAT, "files": str(len(files))}
            write_tensors(content, partial / _file(ranks, number), {**told, CHECKSUM: _checksum(content, told)})
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    ranks.wait()
    if ranks.rank == 0:
        if _same(partial, whole):  # saved before
            shutil.rmtree(partial)
        else:
            _synced(partial)
            aside = folder / f".{name}-before"
            shutil.rmtree(aside, ignore_errors=True)
            if whole.exists():  # of another training, or damaged
                os.rename(whole, aside)
            os.rename(partial, whole)
            _synced(folder)
            shutil.rmtree(aside, ignore_errors=True)
        for other in folder.iterdir():
            if other != whole and other.is_dir() and _WHOLE.fullmatch(other.name.removeprefix(".")):
                shutil.rmtree(other)
    ranks.wait()


def newest(folder: Path) -> Path | None:
    """The last whole state in `folder`, if there is one."""
    found = [one for one in folder.iterdir() if one.is_dir() and _WHOLE.fullmatch(one.name)] if folder.is_dir() else []
    return max(found, key=lambda one: one.name, default=None)


def read_shards(state: Path, *, ranks: Ranks) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata that this process wrote to `state`.

    Raises:
        CheckpointError: If a file is missing, damaged or of another format, or as many processes are not at hand as wrote it.
    """
    if not (state / _file(ranks, 0)).exists():
        there = {int(match.group(1)) for one in state.iterdir() if (match := re.fullmatch(r"rank-\d+-of-(\d+)-\d+\.safetensors", one.name))}
        raise CheckpointError(
            f"{state} holds the parts of {', '.join(map(str, sorted(there))) or 'no'} processes, and {ranks.count} would read it. A training is resumed by as many processes as saved it. "
            "Start as many with torchrun, or use the state folder that `attractorlab train` left."
        )
    about = read_metadata(state / _file(ranks, 0))
    about.pop(CHECKSUM, None)
    if about.get("format") != STATE_FORMAT:
        raise CheckpointError(
            f"{state} says format {about.get('format', 'unknown')!r}. A training is resumed from files of format {STATE_FORMAT!r}. "
            "Use the version of attractorlab that wrote them."
        )
    count = about.get("files", "1")
    if not count.isdecimal() or int(count) < 1:
        raise CheckpointError(f"{state} says that it has {count!r} files. That is a number from 1. Copy the folder {state.name} again.")
    pieces: dict[str, Tensor] = {}
    for number in range(int(count)):
        path = state / _file(ranks, number)
        told = read_metadata(path)
        checksum = told.pop(CHECKSUM, None)
        if told != about:
            raise CheckpointError(f"{path} does not belong to the files beside it. A state is read whole. Copy the folder {state.name} again.")
        content = load_file(path)
        if checksum != _checksum(content, about):
            raise CheckpointError(f"{path} is not as it was written: its checksum is another or missing. A state is read to the last bit. Copy the folder {state.name} again.")
        pieces |= content
    joined: dict[str, list[Tensor]] = {}
    for key in sorted(pieces):
        joined.setdefault(key.partition(":")[0], []).append(pieces[key])
    return {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in joined.items()}, about


def _packed(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors in the order of their names, cut by rows where they are large, in as few files as come of filling one after the other."""
    files: list[dict[str, Tensor]] = [{}]
    held = 0
    for name in sorted(tensors):
        whole = tensors[name]
        rows = max(1, SHARD // max(1, whole.nbytes // max(1, len(whole)))) if whole.ndim else 1
        pieces = whole.split(rows) if whole.ndim and whole.nbytes > SHARD else (whole,)
        for number, piece in enumerate(pieces):
            if held and held + piece.nbytes > SHARD:
                files.append({})
                held = 0
            files[-1][name if len(pieces) == 1 else f"{name}:{number:06d}"] = piece.contiguous().clone()
            held += piece.nbytes
    return files


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """The SHA-256 of tensors with their names, dtypes and shapes, and of metadata."""
    digest = hashlib.sha256(repr(sorted(about.items())).encode())
    for name, one in sorted(tensors.items()):
        digest.update(f"{name} {one.dtype} {tuple(one.shape)} ".encode())
        digest.update(one.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _file(ranks: Ranks, number: int) -> str:
    return f"rank-{ranks.rank}-of-{ranks.count}-{number:04d}.safetensors"


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files, to the last bit."""
    names = {file.name for file in one.iterdir()}
    return other.is_dir() and names == {file.name for file in other.iterdir()} and not any(filecmp.cmpfiles(one, other, names, shallow=False)[1:])


def _synced(folder: Path) -> None:
    place = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)
