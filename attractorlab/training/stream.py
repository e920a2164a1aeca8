"""The data stream: puzzles drawn from a pool, each under a random symmetry of its task."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from attractorlab.tasks import random_symmetries, task_of
from attractorlab.types import Instance


@dataclass(frozen=True, eq=False)
class PuzzleStream:
    """Endless training pairs from `pool`, drawn with `generator`, whose state is the stream's only state.

    Args:
        pool: The puzzles, with their targets, on the device of `generator`.
        generator: Draws rows, symmetries and revealed cells.
        reveal: Share of puzzles that get some of their blanks (in mazes, free cells) filled in. Easier puzzles among hard ones teach the
            network to hold still at a solution (Ren and Liu 2026).
        reveal_up_to: Largest share of blanks that is filled in.
    """

    pool: Instance
    generator: torch.Generator
    reveal: float
    reveal_up_to: float

    def next(self, rows: int) -> tuple[Int[Tensor, "row site"], Int[Tensor, "row site"]]:
        """Inputs and targets of `rows` more puzzles."""
        assert self.pool.targets is not None
        g = self.generator
        chosen = torch.randint(len(self.pool), (rows,), generator=g, device=g.device)
        symmetry = random_symmetries(self.pool.task, rows, generator=g)
        inputs, targets = symmetry.apply(self.pool.inputs[chosen]), symmetry.apply(self.pool.targets[chosen])
        share = torch.rand(rows, 1, generator=g, device=g.device) * self.reveal_up_to * (torch.rand(rows, 1, generator=g, device=g.device) < self.reveal)
        shown = (torch.rand(inputs.shape, generator=g, device=g.device) < share) & (inputs == task_of(self.pool.task).kind.blank)
        return torch.where(shown, targets, inputs), targets
