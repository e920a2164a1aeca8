"""Accuracy on puzzles that a training has not met; on the smallest boards, where there are so few up to symmetry, that it may have met."""

import torch

from attractorlab import tasks
from attractorlab.models.eqr import EqR
from attractorlab.models.feedforward import FeedForward
from attractorlab.types import Instance, State

PUZZLES = 100  # of the bundled validation split, which goes in cycles from easy to hard


def validation_puzzles(task: str) -> Instance:
    """The first bundled validation puzzles of a task.

    Example:
        >>> len(validation_puzzles("sudoku-9"))
        100
    """
    return tasks.load(task, split="validation", rows=slice(0, PUZZLES))


@torch.no_grad()
def validation_accuracy(model: EqR | FeedForward, puzzles: Instance, *, segments: int) -> float:
    """The share of puzzles solved after so many segments without noise, from one start each that is always the same.

    A feed-forward network answers at once, whatever `segments` says.
    """
    assert puzzles.targets is not None
    device = model.get_buffer("cos").device
    inputs, targets = puzzles.inputs.to(device), puzzles.targets.to(device)
    if isinstance(model, FeedForward):
        logits = model(inputs)
    else:
        drive = {"x": model.embed_tokens(inputs)}
        z: State = {name: leaf.to(device) for name, leaf in model.start({"x": drive["x"].cpu()}, generator=torch.Generator().manual_seed(0)).items()}
        for _ in range(segments * model.config.H_cycles):
            z = model.tick(z, drive)
        logits = model.readout(z)["logits"]
    return float((logits.argmax(-1) == targets).all(1).double().mean())
