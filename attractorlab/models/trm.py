"""TRM, the Tiny Recursive Model, as published: one stack for both leaves, a fixed start, prefix tokens, no damping."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attractorlab.models.recursion import AbstractRecursion, AbstractShape


@dataclass(frozen=True)
class TRMConfig(AbstractShape):
    """The shape of a TRM. What it shares with EqR and HRM is described in `AbstractShape`.

    Args:
        blocks: Blocks in the one stack that updates both leaves.
    """

    blocks: int = 2


class TRM(AbstractRecursion):
    """The Tiny Recursive Model (Jolicoeur-Martineau 2025, arXiv 2510.04871).

    One tick, the recursion, is `L_cycles` updates z_L <- Blocks(z_L + z_H + x), then z_H <- Blocks(z_H + z_L). A segment is
    ``strobe(f, H_cycles)``. The start is fixed; `random_start` draws others, which the model has not seen in training. Most trainings leave the readout `continue` as it was.
    """

    config: TRMConfig

    def __init__(self, config: TRMConfig, *, generator: torch.Generator) -> None:
        """Fresh weights, drawn as published."""
        super().__init__(config)
        self.L_level = self.stack(config.blocks)
        self.draw(generator)

    def update_L(self, h: Float[Tensor, "row token width"], injection: Tensor) -> Float[Tensor, "row token width"]:
        return self.L_level(h, injection, self.get_buffer("cos"), self.get_buffer("sin"))

    def update_H(self, h: Float[Tensor, "row token width"], injection: Tensor) -> Float[Tensor, "row token width"]:
        return self.L_level(h, injection, self.get_buffer("cos"), self.get_buffer("sin"))
