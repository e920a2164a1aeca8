"""What all tasks on boards share: their error, and the checks of shapes and ids."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int, Integer
from numpy.typing import NDArray
from torch import Tensor

from attractorlab.errors import BadData
from attractorlab.types import Instance


class DataError(BadData):
    """Raised for puzzles that break their own rules; the message names the row."""


def refuse_other_answers(instance: Instance, answers: Tensor, *, caller: str) -> None:
    """Raise a ValueError unless there is an answer for each puzzle."""
    if tuple(answers.shape[-2:]) != tuple(instance.inputs.shape):
        raise ValueError(
            f"`{caller}` got answers of shape {tuple(answers.shape)} for puzzles of shape {tuple(instance.inputs.shape)}. "
            "The last two axes are row and site, an answer for each puzzle. "
            "Choose or repeat the puzzles with `instance[rows]`."
        )


def board_ids(
    ids: Sequence[Sequence[int]] | NDArray[np.integer] | Integer[Tensor, "row site"], *, task: str, side: int, lowest: int, highest: int, rule: str
) -> Int[Tensor, "row site"]:
    """Token ids as a tensor, for `from_tokens`.

    Raises:
        DataError: If a row has the wrong length or an id outside the vocabulary, which `rule` explains.
    """
    sites = side * side
    if isinstance(ids, Sequence):
        for row, board in enumerate(ids):
            if not isinstance(board, (Sequence, np.ndarray, Tensor)) or isinstance(board, str) or not np.ndim(board):
                raise DataError(
                    f"`from_tokens` got {str(board)[:40]!r} as row {row}. A row is a board, a list of {sites} token ids. "
                    "Put one board into a list of its own, and read text with `task_of(...).from_text`."
                )
            if len(board) != sites:
                raise DataError(
                    f"`from_tokens` got a board of {len(board)} ids in row {row}. "
                    f"In {task} a board has {sites}, row by row. "
                    "Correct the row, or pass another `task`."
                )
    found = ids if isinstance(ids, Tensor) else np.asarray(ids)
    numbers = found.dtype.kind in "iu" if isinstance(found, np.ndarray) else not found.is_floating_point() and not found.is_complex() and found.dtype != torch.bool
    if found.ndim != 2 or found.shape[1] != sites or not numbers:
        raise DataError(
            f"`from_tokens` got ids of shape {tuple(found.shape)} and type {found.dtype} for {task}. "
            f"Ids are integers of shape [row {sites}]. "
            "Pass a board to a row, or another `task`."
        )
    given = found.clone() if isinstance(found, Tensor) else torch.tensor(found)
    tokens = given.long()
    wrong = ((tokens < lowest) | (tokens > highest)).nonzero()
    if len(wrong):
        row, site = wrong[0].tolist()
        raise DataError(f"`from_tokens` got the id {int(tokens[row, site])} in row {row}, site {site}. {rule}")
    return tokens


def data_fingerprint(instance: Instance) -> str:
    """The first 16 hex digits of the SHA-256 of the inputs and targets: the same for the same rows in the same order alone."""
    digest = hashlib.sha256(instance.task.encode())
    for tokens in (instance.inputs, instance.targets):
        if tokens is not None:
            digest.update(tokens.to(torch.uint8).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
