"""Losses against closed forms and finite differences."""

import math

import pytest
import torch

from attractorlab.training.losses import halt_loss, softmax_cross_entropy, stablemax_cross_entropy


def test_stablemax_is_its_closed_form():
    # s(1) = 2, s(0) = 1, s(−1) = 1/2, s(−3) = 1/4: the sum is 15/4.
    logits = torch.tensor([[[1.0, 0.0, -1.0, -3.0]]])
    for target, s in enumerate((2, 1, 0.5, 0.25)):
        assert stablemax_cross_entropy(logits, torch.tensor([[target]])).item() == pytest.approx(math.log(15 / 4 / s), rel=1e-15)


def test_stablemax_is_a_probability(generator):
    logits = 5 * torch.randn(3, 4, 6, generator=generator)
    total = sum(stablemax_cross_entropy(logits, torch.full((3, 4), k)).neg().exp() for k in range(6))
    assert (total - 1).abs().max() < 1e-12 and total.dtype == torch.float64


def test_stablemax_has_the_gradient_of_its_secant_and_a_finite_one_everywhere(generator):
    logits = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(5, (2, 3), generator=generator)
    assert torch.autograd.gradcheck(lambda x: stablemax_cross_entropy(x, targets), logits.requires_grad_())
    odd = torch.tensor([[[0.0, -0.0, 1.0, -1.0, 1e30, -1e30, 1e-30]]], requires_grad=True)
    for target in range(7):
        loss = stablemax_cross_entropy(odd, torch.tensor([[target]])).sum()
        (gradient,) = torch.autograd.grad(loss, odd)
        assert loss.isfinite() and gradient.isfinite().all(), target


def test_softmax_is_its_closed_form_and_shared_by_shifts():
    logits = torch.tensor([[[math.log(3.0), math.log(1.0)], [5.0, 5.0]]])
    loss = softmax_cross_entropy(logits, torch.tensor([[1, 0]]))
    assert loss[0].tolist() == pytest.approx([math.log(4), math.log(2)], rel=1e-6) and loss.shape == (1, 2)
    assert (softmax_cross_entropy(logits + 7, torch.tensor([[1, 0]])) - loss).abs().max() < 1e-6


def test_the_halting_loss_is_minus_the_log_of_the_right_side():
    loss = halt_loss(torch.tensor([0.0, 2.0, 2.0]), torch.tensor([True, True, False]))
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert loss.tolist() == pytest.approx([math.log(2), right, wrong], rel=1e-6)


def test_losses_of_bfloat16_logits_are_not_rounded_to_bfloat16():
    logits = torch.tensor([[[1.0, 0.0, -1.0, -3.0]]]).bfloat16()
    assert stablemax_cross_entropy(logits, torch.tensor([[0]])).dtype == torch.float64
    assert softmax_cross_entropy(logits, torch.tensor([[0]])).dtype == torch.float32
    assert halt_loss(torch.zeros(1).bfloat16(), torch.tensor([True])).dtype == torch.float32
