"""What is learned from some slots in one segment, as functions of tensors alone, compiled or not."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attractorlab.models.compiling import compiled
from attractorlab.models.eqr import EqR
from attractorlab.models.feedforward import FeedForward
from attractorlab.training.config import TrainConfig
from attractorlab.training.losses import halt_loss, softmax_cross_entropy, stablemax_cross_entropy
from attractorlab.types import State

LOSSES = {"stablemax": stablemax_cross_entropy, "softmax": softmax_cross_entropy}


class Learned(NamedTuple):
    """What a segment leaves: the states, and for each slot whether it is solved, and its parts in the losses of answers and of halting."""

    z: State
    solved: Bool[Tensor, " slot"]
    halt: Float[Tensor, " slot"]
    """The halting logit; 0 without one."""
    answer: Float[Tensor, " slot"]
    halting: Float[Tensor, " slot"]


Segment = Callable[[State, Int[Tensor, "slot site"], Int[Tensor, "slot site"]], Learned]


def segment_of(model: EqR | FeedForward, config: TrainConfig, *, slots: int, device: torch.device, noise: torch.Generator) -> Segment:
    """One segment of `model`, from states, tokens and targets of some of its `slots`; only its last recursion is learned from.

    Compiled are a recursion without gradient, which runs as often as is asked, and the last one with its readout and its losses: what lies between their matrix products is fused.
    Noise is drawn outside of them.

    Raises:
        ValueError: If they are to be compiled and there is no compiler.
    """
    loss = LOSSES[config.loss]

    def draw(z: State) -> tuple[Tensor, ...]:
        return model.noise(z, config.noise, noise) if isinstance(model, EqR) and config.noise else ()

    def recursion(z: State, x: Float[Tensor, "slot site width"], drawn: tuple[Tensor, ...]) -> State:
        assert isinstance(model, EqR)
        return model.noisy_tick(z, {"x": x}, drawn) if drawn else model.tick(z, {"x": x})

    def last(z: State, inputs: Int[Tensor, "slot site"], targets: Int[Tensor, "slot site"], drawn: tuple[Tensor, ...]) -> Learned:
        halt = None
        if isinstance(model, EqR):
            z = recursion(z, model.embed_tokens(inputs), drawn)
            out = model.readout(z)
            logits, halt = out["logits"], out["halt"]
        else:
            logits = model(inputs)
        solved = (logits.argmax(-1) == targets).all(1)
        answer = loss(logits.float(), targets).mean(1) / slots
        if halt is None:
            return Learned(z, solved, torch.zeros_like(answer), answer, torch.zeros_like(answer))
        return Learned(z, solved, halt, answer, halt_loss(halt, solved) / slots)

    ahead, learn = (compiled(recursion, device, "train"), compiled(last, device, "train")) if config.engine == "compiled" else (recursion, last)

    def segment(z: State, inputs: Tensor, targets: Tensor) -> Learned:
        with precision_of(config, device):
            if isinstance(model, EqR):
                with torch.no_grad():
                    x = model.embed_tokens(inputs)
                    for _ in range(config.H_cycles - 1):
                        z = ahead(z, x, draw(z))
            return learn(z, inputs, targets, draw(z))

    return segment


def precision_of(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """What the matrix products of a training are computed in."""
    return nullcontext() if config.precision == "float32" else torch.autocast(device.type, torch.bfloat16)
