"""What a training run is: one frozen record, presets, and strict reading of overrides."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from attractorlab.models import recursion
from attractorlab.models.compiling import ENGINES
from attractorlab.models.eqr import EqRConfig
from attractorlab.models.feedforward import FeedForwardConfig
from attractorlab.tasks import task_of

SEEDS = 2**32 // 1000 - 1  # the largest seed: a thousand times as much, and a little, is still told apart by torch's generators, which look at 32 bits
MOST = {"segments": 10**8 - 1, "batch": 2**20, "halt_max": 2**16, "puzzles": 10**8, **{name: recursion.MOST[name] for name in ("width", "blocks", "H_cycles", "L_cycles")}}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights, but the library versions.

    The shape fields are those of `EqRConfig`. The others:

    Args:
        model: "eqr", or "feedforward" for its unrolled twin with weights of their own in each update, which is given a new puzzle at every segment and learns through all its updates.
        begin: A model whose weights are begun with, of the same shape: a bundled one or a file. "" for fresh weights.
        segments: Segments to train for. One segment is one optimizer step on the whole batch.
        batch: Slots. A slot whose puzzle halts gets a new one at once.
        lr, warmup, weight_decay: AdamW's rate, segments until it is reached, and decoupled decay. The rate falls along a cosine
            to `final_lr` times itself over the last `decay` segments, or over all of them if they are fewer.
        ema: Decay of the weight average that is kept as the model; ramped up as (1 + t)/(10 + t).
        noise: β of the paper: normal noise of this scale at every update while training.
        loss: "stablemax" or "softmax".
        halt_max: Segments after which a slot is refilled at the latest.
        halt_explore: Share of puzzles that must run a random number of segments, 2 to `halt_max`, before they may halt.
        puzzles: Size of the generated pool; unused with `data`.
        data: A puzzle file to train on instead; "" for generated puzzles.
        reveal, reveal_up_to: Share of puzzles with blanks filled in, and the largest share of blanks.
        precision: "float32", or "bfloat16" for the matrix products.
        engine: "eager", or "compiled" to fuse what lies between the matrix products of a recursion (torch.compile; a C++ compiler must be installed).
            The first segments wait for it, half a minute or so; then a segment takes less time. The two differ in rounding.
        seed: Of weights, puzzles, stream, starts and noise.
    """

    task: str
    model: str = "eqr"
    begin: str = ""
    width: int = 64
    blocks: int = 2
    mixer: str = "mlp"
    heads: int = 4
    expansion: float = 4.0
    H_cycles: int = 2
    L_cycles: int = 2
    damping: float = 0.05
    start: str = "random"
    start_scale: float = 1.0
    segments: int = 2500
    batch: int = 128
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.1
    decay: int = 0
    final_lr: float = 0.1
    ema: float = 0.999
    noise: float = 0.01
    loss: str = "stablemax"
    halt_max: int = 16
    halt_explore: float = 0.1
    puzzles: int = 20000
    data: str = ""
    reveal: float = 0.0
    reveal_up_to: float = 0.6
    precision: str = "float32"
    engine: str = "eager"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", task_of(self.task).name)  # as instances carry it: a model for "sudoku" would take none
        for name, allowed in (("model", ("eqr", "feedforward")), ("loss", ("stablemax", "softmax")), ("precision", ("float32", "bfloat16")), ("engine", ENGINES)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"`TrainConfig` got {name}={getattr(self, name)!r}. It is one of {', '.join(allowed)}. Use {name}={allowed[0]}."
                )
        for name, most in MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"`TrainConfig` got {name}={getattr(self, name)}. It is a whole number from 1 to {most:,}. Use {name}={type(self).__dataclass_fields__[name].default}.")
        for name in ("reveal", "reveal_up_to", "halt_explore", "final_lr"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`TrainConfig` got {name}={getattr(self, name)}. It is a share. Use a number from 0 to 1.")
        if not self.decay >= 0 or not self.warmup >= 0 or not self.noise >= 0:
            raise ValueError(
                f"`TrainConfig` got decay={self.decay}, warmup={self.warmup}, noise={self.noise}. None of them is negative. "
                "Use decay=0, warmup=100, noise=0.01."
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"`TrainConfig` got weight_decay={self.weight_decay}. Weights are drawn to zero, or left. Use weight_decay=0.1.")
        if not 0 <= self.seed <= SEEDS:
            raise ValueError(f"`TrainConfig` got seed={self.seed}. Seeds are whole numbers from 0 to {SEEDS:,}: torch would draw the same for larger ones. Use seed=0.")
        if not 0 < self.lr < 1 or not 0 <= self.ema < 1:
            raise ValueError(f"`TrainConfig` got lr={self.lr}, ema={self.ema}. Rates lie between 0 and 1. Use lr=0.002, ema=0.999.")

    def shape(self, *, sites: int, vocabulary: int) -> EqRConfig | FeedForwardConfig:
        """The shape of the model."""
        kind = EqRConfig if self.model == "eqr" else FeedForwardConfig
        shared = {one.name for one in fields(kind)} & {one.name for one in fields(self)}
        return kind(sites=sites, vocabulary=vocabulary, **{name: getattr(self, name) for name in sorted(shared)})


PRESETS: Mapping[str, TrainConfig] = {
    "eqr-sudoku-4": TrainConfig("sudoku-4", width=32, segments=800, decay=200, puzzles=2000),
    "eqr-sudoku-6": TrainConfig("sudoku-6", segments=2500, decay=500, precision="bfloat16"),
    "trm-sudoku-6": TrainConfig("sudoku-6", segments=2500, decay=500, precision="bfloat16", start="fixed", damping=0.0, noise=0.0),
    "eqr-sudoku-9": TrainConfig("sudoku-9", width=96, segments=8000, decay=1500, puzzles=40000, reveal=0.5, precision="bfloat16"),
    "trm-sudoku-9": TrainConfig(
        "sudoku-9", width=96, segments=8000, decay=1500, puzzles=40000, reveal=0.5, precision="bfloat16", engine="compiled", start="fixed", damping=0.0, noise=0.0
    ),
    "feedforward-sudoku-9": TrainConfig("sudoku-9", model="feedforward", width=96, segments=5333, decay=1000, puzzles=40000, reveal=0.5, precision="bfloat16", engine="compiled"),
    "eqr-sudoku-extreme": TrainConfig(
        "sudoku-9", width=512, blocks=2, heads=8, H_cycles=3, L_cycles=6, segments=50_000, batch=768, lr=1e-4, warmup=2000, weight_decay=1.0, precision="bfloat16"
    ),
    "eqr-maze-11": TrainConfig("maze-11", blocks=1, heads=2, batch=64, segments=5000, decay=1000, precision="bfloat16", engine="compiled"),
    "eqr-maze-11-attention": TrainConfig("maze-11", blocks=1, heads=2, batch=64, segments=5000, decay=1000, precision="bfloat16", engine="compiled", mixer="attention"),
    "eqr-maze-30": TrainConfig(
        "maze-30", width=128, blocks=1, mixer="attention", heads=8, H_cycles=3, L_cycles=4, segments=100_000, batch=768, lr=1e-4, warmup=2000, weight_decay=1.0, puzzles=1000,
        precision="bfloat16",
    ),
}
"""The runs behind the bundled models, the baselines of side 9, and the published shapes. Those called trm differ from their partners in random starts, damping and noise only, and on side 9 in the engine, which is rounding.
The feed-forward one has two thirds of the segments: its gradient passes all its updates, not the last half, so that a segment costs half as much again.

Of the small mazes, the one that mixes by MLP learns within minutes on a processor; with attention, as published for mazes, the first hundreds of segments teach it no more than
how often a cell is on the path.

`eqr-sudoku-extreme` and `eqr-maze-30` have the numbers of the published code of arXiv 2605.21488, but the optimizer is AdamW, not AdamATan2, and the puzzles are
generated: pass the published ones as ``data=FOLDER``."""


YOUNGER: Mapping[str, str] = {"model": "eqr", "begin": "", "engine": "eager"}  # keys that the first files do not have, and what they meant


def read_config(preset: str, overrides: Mapping[str, str]) -> TrainConfig:
    """The preset with overrides such as ``{"lr": "1e-3"}`` put in; values are read by the type of their field.

    Raises:
        ValueError: On an unknown preset, an unknown key (nearest names are listed) or a value of the wrong type.

    Example:
        >>> read_config("eqr-sudoku-6", {"width": "48"}).width
        48
    """
    if preset not in PRESETS:
        raise ValueError(f"`train` got the unknown configuration {preset!r}. Configurations have names. Use one of {', '.join(PRESETS)}.")
    base = PRESETS[preset]
    return replace(base, **_typed(overrides))


def config_to_json(config: TrainConfig) -> str:
    """`config` as JSON."""
    return json.dumps(asdict(config), sort_keys=True)


def config_from_json(text: str) -> TrainConfig:
    """The configuration that `config_to_json` wrote; unknown or missing keys are refused, but those that are younger than the first files."""
    found = {**YOUNGER, **json.loads(text)}
    known = {one.name for one in fields(TrainConfig)}
    if set(found) != known:
        raise ValueError(
            f"A stored training configuration differs in the keys {sorted(set(found) ^ known)}. Every key must be known and present. "
            "Use the version of attractorlab that wrote the file."
        )
    return TrainConfig(**found)


def _typed(overrides: Mapping[str, str]) -> dict[str, Any]:
    kinds = {one.name: one.type for one in fields(TrainConfig)}
    typed: dict[str, Any] = {}
    for name, text in overrides.items():
        if name not in kinds:
            raise ValueError(
                f"`train` got the unknown key {name!r}. Every key must belong to the configuration. Use one of {', '.join(sorted(kinds))}."
            )
        kind = kinds[name]
        assert isinstance(kind, type)
        try:
            typed[name] = kind(text)
        except ValueError:
            raise ValueError(f"`train` got {name}={text!r}. `{name}` is of type {kind.__name__}. Write, for example, {name}={getattr(PRESETS['eqr-sudoku-6'], name)!r}.") from None
    return typed
