"""The trainer: segments with detached carry, one optimizer step per segment, halting with refill, weight average."""

import copy
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from attractorlab.errors import BadData
from attractorlab.models.checkpoints import save
from attractorlab.models.eqr import EqR
from attractorlab.models.feedforward import FeedForward
from attractorlab.models.unpickling import CheckpointError
from attractorlab.tasks import data_fingerprint
from attractorlab.training.config import TrainConfig, config_from_json, config_to_json
from attractorlab.training.learning import segment_of
from attractorlab.training.preparing import network, training_pool
from attractorlab.training.ranks import ALONE, Ranks
from attractorlab.training.shards import newest, read_shards, write_shards
from attractorlab.training.stream import PuzzleStream
from attractorlab.training.validation import validation_accuracy, validation_puzzles
from attractorlab.types import Instance, State

SUMS = ("loss", "halt_loss", "done", "solved", "used")  # what is added up between two reports
CACHED = 32  # slots that a CPU learns from at a time: what their layers hold in between stays in its cache, or near it
Progress = dict[str, float]


class Trainer:
    """A training run. `run` yields progress; `save_state` and `Trainer.resume` continue it to the same bytes.

    On one machine with one number of threads, a run that was stopped and resumed writes the same model file, byte for byte, as one that was not.
    """

    def __init__(self, config: TrainConfig, *, device: str = "cpu", pool: Instance | None = None, ranks: Ranks = ALONE) -> None:
        """A fresh run.

        Args:
            config: What to train.
            device: "cpu", "cuda", ...
            pool: The puzzles, if they are already at hand; made or read as `config` says otherwise.
            ranks: The processes that share the slots evenly. The weights are the same in all.

        Raises:
            ValueError: If the processes cannot share the slots evenly.
        """
        if config.batch % ranks.count:
            raise ValueError(
                f"`train` got batch={config.batch} for {ranks.count} processes. Each trains on as many slots. Set batch to a multiple of {ranks.count}."
            )
        self.ranks = ranks
        self.config = config
        self.device = torch.device(device)
        self.pool = training_pool(config) if pool is None else pool
        # One generator per use: changing how one thing is drawn leaves the others as they were. On a CPU torch looks at the lowest 32 bits of a seed alone.
        uses = {"weights": torch.device("cpu"), **dict.fromkeys(("stream", "starts", "halting", "noise"), self.device)}
        seeds = {name: config.seed * 1000 + k for k, name in enumerate(uses)}
        if ranks.rank:
            seeds |= {name: zlib.crc32(f"{seed} of process {ranks.rank}".encode()) for name, seed in seeds.items() if name != "weights"}
        self.generators = {name: torch.Generator(device=where).manual_seed(seeds[name]) for name, where in uses.items()}
        sites = self.pool.inputs.shape[1]
        self.model = network(config, sites, self.generators["weights"]).to(self.device).train()
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True)
        assert self.pool.targets is not None
        near = replace(self.pool, inputs=self.pool.inputs.to(self.device), targets=self.pool.targets.to(self.device))
        self.stream = PuzzleStream(near, self.generators["stream"], config.reveal, config.reveal_up_to)
        self.segment = 0
        n = config.batch // ranks.count
        self.inputs = torch.zeros(n, sites, dtype=torch.int64, device=self.device)
        self.targets = torch.zeros_like(self.inputs)
        leaves = ("z_H", "z_L") if isinstance(self.model, EqR) else ()
        self.carry: State = {name: torch.zeros(n, sites, config.width, device=self.device) for name in leaves}
        self.steps = torch.zeros(n, dtype=torch.int64, device=self.device)
        self.least = torch.zeros_like(self.steps)
        self.halted = torch.ones_like(self.steps, dtype=torch.bool)
        self.groups = torch.arange(n, device=self.device).chunk(-(-n // CACHED) if self.device.type == "cpu" else 1)
        self.learn = segment_of(self.model, config, slots=n, device=self.device, noise=self.generators["noise"])
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.device)  # read, and with that waited for, at reports alone

    def run(self, *, every: int = 20) -> Iterator[Progress]:
        """Train to the end of the configuration, yielding averages since the last yield at every multiple of `every` segments.

        Losses are means over segments; `exact` and `segments_per_puzzle` are over the puzzles that ended, and are left out where none did. `samples_per_second` counts slots times
        segments, and leaves out the time that the reader of this iterator takes. `seconds` are since this process began to train, that time included.
        """
        began, first, last = time.monotonic(), self.segment, self.segment
        lap = began
        while self.segment < self.config.segments:
            self._segment()
            if self.segment % every == 0 or self.segment == self.config.segments:
                self.ranks.average_([self.sums])
                sums = dict(zip(SUMS, self.sums.tolist(), strict=True))
                self.sums.zero_()
                now = time.monotonic()
                n, ended, spent = self.segment - last, sums["done"], now - began
                last = self.segment
                if not math.isfinite(sums["loss"] + sums["halt_loss"]):
                    raise ValueError(
                        f"`train` met a loss that is no finite number, {sums['loss'] / n}, at segment {self.segment} or up to {n - 1} before. Training goes on only from finite numbers. "
                        "Lower lr or the scale of starts and noise, and begin again or resume from the last save."
                    )
                yield {
                    "segment": self.segment,
                    "loss": sums["loss"] / n,
                    "halt_loss": sums["halt_loss"] / n,
                    **({"exact": sums["solved"] / ended, "segments_per_puzzle": sums["used"] / ended} if ended else {}),
                    "puzzles": round(ended * self.ranks.count),
                    "samples_per_second": n * self.config.batch / max(now - lap, 1e-9),
                    "seconds": spent,
                    "seconds_left": spent / (self.segment - first) * (self.config.segments - self.segment),
                }
                lap = time.monotonic()

    def _segment(self) -> None:
        """One segment on the whole batch: refill, run, learn, halt. Nothing in it waits for the device."""
        c = self.config
        self._refill()
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.zero_grad(set_to_none=True)
        learned = [self._learn(group) for group in self.groups]
        solved, halt, answer, halting = (torch.cat(parts) for parts in zip(*learned, strict=True))
        self.ranks.average_([one.grad for one in self.model.parameters() if one.grad is not None])
        self.optimizer.step()
        self._average()
        self.steps += 1
        self.halted = (self.steps >= c.halt_max) | ((halt > 0) & (self.steps >= self.least))
        if not self.carry:  # nothing is carried on, so every slot is free
            self.halted = torch.ones_like(self.halted)
        self.segment += 1
        ended = self.halted.sum(), (self.halted & solved).sum(), (self.steps * self.halted).sum()
        self.sums += torch.stack([one.double() for one in (answer.sum(), halting.sum(), *ended)])

    def _learn(self, group: Int[Tensor, " slot"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One segment on some of the slots: their states are carried on and their gradients added up.

        Returns:
            For each slot whether it is solved, and its halting logit (0 without one); and its part in the mean of each of the two losses.
        """
        z, solved, halt, answer, halting = self.learn({name: leaf[group] for name, leaf in self.carry.items()}, self.inputs[group], self.targets[group])
        (answer + 0.5 * halting).sum().backward()
        for name, leaf in z.items():
            self.carry[name][group] = leaf.detach().float()
        return solved, halt.detach(), answer.detach(), halting.detach()

    def _refill(self) -> None:
        """New puzzles and starts in the slots that halted. On an accelerator they are drawn for all slots, because counting those would wait for it."""
        places = self.halted.nonzero().squeeze(1) if self.device.type == "cpu" else torch.arange(len(self.halted), device=self.device)
        n = len(places)
        if n == 0:
            return
        fresh = self.halted[places]

        def put(slots: Tensor, new: Tensor) -> None:
            shaped = fresh.view(-1, *[1] * (slots.ndim - 1))
            slots[places] = torch.where(shaped, new, slots[places])

        inputs, targets = self.stream.next(n)
        put(self.inputs, inputs)
        put(self.targets, targets)
        if isinstance(self.model, EqR):
            start = self.model.start({"x": self.carry["z_H"][places]}, generator=self.generators["starts"])
            for name, leaf in self.carry.items():
                put(leaf, start[name])
        g = self.generators["halting"]
        explore = torch.rand(n, generator=g, device=self.device) < self.config.halt_explore
        random = torch.randint(2, max(3, self.config.halt_max + 1), (n,), generator=g, device=self.device)
        put(self.least, torch.where(explore, random, torch.ones_like(random)))
        put(self.steps, torch.zeros_like(random))

    def _rate(self) -> float:
        c = self.config
        rate = c.lr * min(1.0, (self.segment + 1) / max(1, c.warmup))
        decay = min(c.decay, c.segments)
        into = self.segment - (c.segments - decay)
        if into > 0:
            rate *= c.final_lr + (1 - c.final_lr) * 0.5 * (1 + math.cos(math.pi * into / decay))
        return rate

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema, (1 + self.segment) / (10 + self.segment))
        ours: list[Tensor] = list(self.average.parameters())
        theirs: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)

    def finished_model(self, name: str) -> EqR | FeedForward:
        """The averaged model, on the CPU."""
        model = copy.deepcopy(self.average).to("cpu").eval()
        model.name = name
        return model

    def save_model(self, path: Path, *, name: str, command: str) -> None:
        """Write the averaged model with its whole configuration, the data's fingerprint and the command."""
        about = {"training": config_to_json(self.config), "data": data_fingerprint(self.pool), "segments": str(self.segment), "command": command}
        save(self.finished_model(name), path, about=about)

    def save_state(self, folder: Path) -> None:
        """Write all that `resume` needs into a folder of its own in `folder`, in files of at most 14 MB, whole or not at all; others are then removed.

        Raises:
            ValueError: If a number is not finite. Nothing is written or removed then.
        """
        tensors = self._tensors()
        odd = sorted(name for name, one in tensors.items() if one.is_floating_point() and not bool(one.isfinite().all()))
        if odd:
            raise ValueError(
                f"`train` met numbers that are not finite in {odd[0]} after segment {self.segment}. Training goes on only from finite numbers, so the save before this one was kept. "
                "Lower lr or the scale of starts and noise, and begin again."
            )
        about = {"training": config_to_json(self.config), "data": data_fingerprint(self.pool), "segment": str(self.segment)}
        write_shards(tensors, folder, about, segment=self.segment, ranks=self.ranks)

    def _tensors(self) -> dict[str, Tensor]:
        """All that a state holds, on the CPU."""
        tensors: dict[str, Tensor] = {}
        for prefix, model in (("model", self.model), ("average", self.average)):
            tensors |= {f"{prefix}.{name}": tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        for (name, _), parameter in zip(self.model.named_parameters(), self.optimizer.param_groups[0]["params"], strict=True):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value).detach().cpu()
        for name, generator in self.generators.items():
            tensors[f"generator.{name}"] = generator.get_state()
        tensors |= {f"carry.{name}": leaf.cpu() for name, leaf in self.carry.items()}
        slots = {"inputs": self.inputs, "targets": self.targets, "steps": self.steps, "least": self.least, "halted": self.halted}
        tensors |= {f"slots.{name}": tensor.cpu() for name, tensor in slots.items()}
        return tensors

    @classmethod
    def resume(cls, folder: Path, *, device: str = "cpu", pool: Instance | None = None, ranks: Ranks = ALONE) -> "Trainer":
        """The run that `save_state` wrote, as it was.

        Raises:
            CheckpointError: If the folder holds no whole training state, or its data are not the same any more, or it was saved on another kind of device.
        """
        state = newest(folder)
        if state is None:
            raise CheckpointError(
                f"{folder} holds no training state. A training is resumed from a folder of states, each whole. Use the folder `state` that `attractorlab train` left in its own."
            )
        tensors, about = read_shards(state, ranks=ranks)
        try:
            config, data, segment = config_from_json(about["training"]), about["data"], int(about["segment"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{state} does not say what was trained ({error!r}). A state names its training, its data and its segment. Copy the folder again.") from None
        trainer = cls(replace(config, begin=""), device=device, pool=pool, ranks=ranks)  # the weights are in the file
        trainer.config = config
        if data_fingerprint(trainer.pool) != data:
            raise CheckpointError(
                f"{state} was trained on data with the fingerprint {data}, and the data here have {data_fingerprint(trainer.pool)}. "
                "A run is resumed on the same data. Put the same file where it was."
            )
        trainer._refuse_others(state, tensors, segment)
        trainer._restore(tensors, segment)
        return trainer

    def _refuse_others(self, state: Path, tensors: dict[str, Tensor], segment: int) -> None:
        """Raise a CheckpointError unless the tensors are those of a state of this training."""
        wanted = {name: (one.shape, one.dtype) for name, one in self._tensors().items()}
        for name, parameter in self.model.named_parameters() if segment else ():
            moments = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            wanted |= {f"optimizer.{name}.{key}": (shape, torch.float32) for key, shape in moments.items()}
        found = {name: (one.shape, one.dtype) for name, one in tensors.items()}
        odd = sorted({name for name, _ in wanted.items() ^ found.items()})
        if odd and all(name.startswith("generator.") and name in found and name in wanted for name in odd):
            raise CheckpointError(
                f"{state} was saved on another kind of device than {self.device}. Random numbers are drawn on the device, and differ between kinds. Pass the --device that the training was begun on."
            )
        if odd or not 0 <= segment <= self.config.segments:
            raise CheckpointError(
                f"{state} is no state of its training: {', '.join(odd[:4]) or f'segment {segment}'} {'are' if len(odd) > 1 else 'is'} not as it should be. "
                "A state holds every tensor in its shape. Copy the folder again."
            )

    def _restore(self, tensors: dict[str, Tensor], segment: int) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average.load_state_dict(part("average."))
        for name, parameter in self.model.named_parameters():
            moments = part(f"optimizer.{name}.")
            if moments:
                self.optimizer.state[parameter] = {key: value.to(self.device) for key, value in moments.items()}  # the fused optimizer counts its steps there, too
        for name, generator in self.generators.items():
            generator.set_state(tensors[f"generator.{name}"])
        self.carry = {name: leaf.to(self.device) for name, leaf in part("carry.").items()}
        slots = part("slots.")
        self.inputs, self.targets = slots["inputs"].to(self.device), slots["targets"].to(self.device)
        self.steps, self.least, self.halted = (slots[name].to(self.device) for name in ("steps", "least", "halted"))
        self.segment = segment


def train(trainer: Trainer, folder: str | os.PathLike[str], *, name: str, command: str, save_every: int, report: Callable[[Progress], None]) -> Path:
    """Train to the end in `folder` and return the path of the model file.

    The folder gets `model.safetensors` (the averaged model so far), `state` (a folder to resume from) and `log.jsonl`. The first two are
    written every `save_every` segments and at the end, so that an interruption anywhere loses at most that many. Then, too, the averaged model is tried on the bundled
    validation puzzles of its task, and the log says how many of them it solved.

    Raises:
        ValueError: If `save_every` is below 1.
    """
    if save_every < 1:
        raise ValueError(f"`train` got save_every={save_every}. The state is saved once in 1 or more segments. Use save_every=200.")
    place = Path(folder)
    first = trainer.ranks.rank == 0

    def keep() -> None:
        trainer.save_state(place / "state")
        if first:
            trainer.save_model(place / "model.safetensors", name=name, command=command)

    if first:
        place.mkdir(parents=True, exist_ok=True)
        _cut_log(place / "log.jsonl", trainer.segment)
    unseen = validation_puzzles(trainer.config.task)
    for progress in trainer.run(every=math.gcd(20, save_every)):
        ends = int(progress["segment"]) % save_every == 0 or progress["segment"] == trainer.config.segments
        if first and ends:
            progress |= {"validation": validation_accuracy(trainer.average, unseen, segments=trainer.config.halt_max), "validation_puzzles": len(unseen)}
        if first:
            with open(place / "log.jsonl", "a") as file:
                file.write(json.dumps(progress) + "\n")
            report(progress)
        if ends and trainer.segment < trainer.config.segments:
            keep()
    keep()
    return place / "model.safetensors"


def _cut_log(log: Path, segment: int) -> None:
    """Leave the lines up to `segment`: after a kill the log may be ahead of the state that was saved, and its last line may be torn.

    Raises:
        BadData: If another line is none of a training.
    """
    text = log.read_text(errors="replace") if log.exists() else ""
    lines, kept = text.splitlines(), []
    for number, line in enumerate(lines, start=1):
        try:
            if json.loads(line)["segment"] <= segment:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError, RecursionError):
            if number < len(lines):
                raise BadData(f"{log} is no log of a training in line {number}. Each line is one object of numbers, with segment and loss. Remove the line, then resume.") from None
    if "".join(kept) != text:
        shorter = log.with_name(f".{log.name}.{os.getpid()}.tmp")
        shorter.write_text("".join(kept))
        os.replace(shorter, log)  # a kill here leaves the longer log or the shorter one
