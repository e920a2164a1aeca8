"""What all tasks on boards share: their error, and the checks of shapes and ids."""

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
            if len(board) != sites:
                raise DataError(
                    f"`from_tokens` got a board of {len(board)} ids in row {row}. "
                    f"In {task} a board has {sites}, row by row. "
                    "Correct the row, or pass another `task`."
                )
    given = ids.clone() if isinstance(ids, Tensor) else torch.tensor(np.asarray(ids))
    if given.dim() != 2 or given.shape[1] != sites or given.is_floating_point():
        raise DataError(
            f"`from_tokens` got ids of shape {tuple(given.shape)} and type {given.dtype} for {task}. "
            f"Ids are integers of shape [row {sites}]. "
            "Pass a board to a row, or another `task`."
        )
    tokens = given.long()
    wrong = ((tokens < lowest) | (tokens > highest)).nonzero()
    if len(wrong):
        row, site = wrong[0].tolist()
        raise DataError(f"`from_tokens` got the id {int(tokens[row, site])} in row {row}, site {site}. {rule}")
    return tokens
