"""HRM, the Hierarchical Reasoning Model, as published: z_H and z_L have stacks of their own."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attractorlab.models.recursion import AbstractRecursion, AbstractShape


@dataclass(frozen=True)
class HRMConfig(AbstractShape):
    """The shape of an HRM. What it shares with EqR and TRM is described in `AbstractShape`.

    Args:
        H_blocks: Blocks in the stack that updates z_H.
        L_blocks: Blocks in the stack that updates z_L.
    """

    H_blocks: int = 4
    L_blocks: int = 4


class HRM(AbstractRecursion):
    """The Hierarchical Reasoning Model (Wang et al. 2025, arXiv 2506.21734).

    One tick, the recursion, is `L_cycles` updates z_L <- Blocks_L(z_L + z_H + x), then z_H <- Blocks_H(z_H + z_L). A segment is
    ``strobe(f, H_cycles)``. The start is fixed; `random_start` draws others, which the model has not seen in training. The published run stops where the readout `halt` exceeds `continue`.
    """

    config: HRMConfig

    def __init__(self, config: HRMConfig, *, generator: torch.Generator) -> None:
        """Fresh weights, drawn as published."""
        super().__init__(config)
        self.H_level = self.stack(config.H_blocks)
        self.L_level = self.stack(config.L_blocks)
        self.draw(generator)

    def update_L(self, h: Float[Tensor, "row token width"], injection: Tensor) -> Float[Tensor, "row token width"]:
        return self.L_level(h, injection, self.get_buffer("cos"), self.get_buffer("sin"))

    def update_H(self, h: Float[Tensor, "row token width"], injection: Tensor) -> Float[Tensor, "row token width"]:
        return self.H_level(h, injection, self.get_buffer("cos"), self.get_buffer("sin"))
