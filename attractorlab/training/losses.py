"""The losses of the published trainer."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


def stablemax_cross_entropy(logits: Float[Tensor, "row site class"], targets: Int[Tensor, "row site"]) -> Float[Tensor, "row site"]:
    """−log of the stablemax probability of each target (Prieto et al. 2025): s(x)/Σs with s(x) = x + 1 above zero, 1/(1 − x) below.

    Evaluated in float64, as published: s spans many orders of magnitude.

    Example:
        >>> round(stablemax_cross_entropy(torch.tensor([[[1.0, 0.0, -1.0]]]), torch.tensor([[0]])).exp().item(), 6)
        1.75
    """
    x = logits.double()
    # Both branches of `where` are differentiated, so each is kept away from its pole.
    s = torch.where(x >= 0, x.clamp(min=0) + 1, 1 / (1 - x.clamp(max=0)))
    chosen = s.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return s.sum(-1).log() - chosen.log()


def softmax_cross_entropy(logits: Float[Tensor, "row site class"], targets: Int[Tensor, "row site"]) -> Float[Tensor, "row site"]:
    """−log of the softmax probability of each target, in float32."""
    return functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")


def halt_loss(halt: Float[Tensor, " row"], solved: Bool[Tensor, " row"]) -> Float[Tensor, " row"]:
    """Binary cross-entropy of the halting logit against "this whole answer is correct"."""
    return functional.binary_cross_entropy_with_logits(halt.float(), solved.float(), reduction="none")
