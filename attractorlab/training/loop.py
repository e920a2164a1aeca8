"""The trainer: segments with detached carry, one optimizer step per segment, halting with refill, weight average."""

import copy
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from attractorlab import tasks
from attractorlab.models.checkpoints import load, load_feedforward, read_metadata, save, write_tensors
from attractorlab.models.eqr import EqR, EqRConfig
from attractorlab.models.feedforward import FeedForward
from attractorlab.models.layers import Stack
from attractorlab.models.unpickling import CheckpointError
from attractorlab.tasks import generate
from attractorlab.training.config import TrainConfig, config_from_json, config_to_json
from attractorlab.training.losses import halt_loss, softmax_cross_entropy, stablemax_cross_entropy
from attractorlab.training.stream import PuzzleStream, fingerprint
from attractorlab.types import Instance, State

STATE_FORMAT = "attractorlab-training-1"
LOSSES = {"stablemax": stablemax_cross_entropy, "softmax": softmax_cross_entropy}
Progress = dict[str, float]


class Trainer:
    """A training run. `run` yields progress; `save_state` and `Trainer.resume` continue it to the same bytes.

    On one machine with one number of threads, a run that was stopped and resumed writes the same model file, byte for byte, as one that was not.
    """

    def __init__(self, config: TrainConfig, *, device: str = "cpu", pool: Instance | None = None) -> None:
        """A fresh run.

        Args:
            config: What to train.
            device: "cpu", "cuda", ...
            pool: The puzzles, if they are already at hand; made or read as `config` says otherwise.
        """
        self.config = config
        self.device = torch.device(device)
        self.pool = training_pool(config) if pool is None else pool
        # One generator per use: changing how one thing is drawn leaves the others as they were.
        self.generators = {name: torch.Generator().manual_seed(config.seed * 1000 + k) for k, name in enumerate(("weights", "stream", "starts", "halting"))}
        self.generators["noise"] = torch.Generator(device=self.device).manual_seed(config.seed * 1000 + 4)
        sites = self.pool.inputs.shape[1]
        self.model = _network(config, sites, self.generators["weights"]).to(self.device).train()
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True)
        if config.engine == "compiled":
            _compile(self.model, self.device)
        self.stream = PuzzleStream(self.pool, self.generators["stream"], config.reveal, config.reveal_up_to)
        self.segment = 0
        n = config.batch
        self.inputs = torch.zeros(n, sites, dtype=torch.int64, device=self.device)
        self.targets = torch.zeros_like(self.inputs)
        leaves = ("z_H", "z_L") if isinstance(self.model, EqR) else ()
        self.carry: State = {name: torch.zeros(n, sites, config.width, device=self.device) for name in leaves}
        self.steps = torch.zeros(n, dtype=torch.int64)
        self.least = torch.zeros(n, dtype=torch.int64)
        self.halted = torch.ones(n, dtype=torch.bool)

    def run(self, *, every: int = 20) -> Iterator[Progress]:
        """Train to the end of the configuration, yielding averages since the last yield at every multiple of `every` segments."""
        began, first, last = time.monotonic(), self.segment, self.segment
        sums, finished = {"loss": 0.0, "halt_loss": 0.0}, [0, 0, 0]
        while self.segment < self.config.segments:
            losses, (done, solved, used) = self._segment()
            if not math.isfinite(losses["loss"] + losses["halt_loss"]):
                raise ValueError(
                    f"`train` met a loss of {losses['loss']} at segment {self.segment}. Training goes on only from finite numbers. "
                    "Lower lr or the scale of starts and noise, and begin again or resume from the last save."
                )
            for name, value in losses.items():
                sums[name] += value
            finished = [finished[0] + done, finished[1] + solved, finished[2] + used]
            if self.segment % every == 0 or self.segment == self.config.segments:
                n = self.segment - last
                spent = time.monotonic() - began
                yield {
                    "segment": self.segment,
                    "loss": sums["loss"] / n,
                    "halt_loss": sums["halt_loss"] / n,
                    "exact": finished[1] / max(1, finished[0]),
                    "puzzles": finished[0],
                    "segments_per_puzzle": finished[2] / max(1, finished[0]),
                    "seconds": spent,
                    "seconds_left": spent / (self.segment - first) * (self.config.segments - self.segment),
                }
                sums, finished, last = {"loss": 0.0, "halt_loss": 0.0}, [0, 0, 0], self.segment

    def _segment(self) -> tuple[dict[str, float], tuple[int, int, int]]:
        """One segment on the whole batch: refill, run, learn, halt."""
        c = self.config
        self._refill()
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        with self._precision():
            z, logits, halt = self._forward()
        solved = (logits.argmax(-1) == self.targets).all(1)
        answer = LOSSES[c.loss](logits.float(), self.targets).mean()
        halting = torch.zeros_like(answer) if halt is None else halt_loss(halt, solved).mean()
        self.optimizer.zero_grad(set_to_none=True)
        (answer + 0.5 * halting).backward()
        self.optimizer.step()
        self._average()
        self.carry = {name: leaf.detach().float() for name, leaf in z.items()}
        self.steps += 1
        if halt is None:  # nothing is carried on
            self.halted = torch.ones_like(self.halted)
        else:
            self.halted = (self.steps >= c.halt_max) | ((halt.detach() > 0).cpu() & (self.steps >= self.least))
        self.segment += 1
        ended = (int(self.halted.sum()), int((self.halted & solved.cpu()).sum()), int(self.steps[self.halted].sum()))
        return {"loss": float(answer.detach()), "halt_loss": float(halting.detach())}, ended

    def _forward(self) -> tuple[State, Tensor, Tensor | None]:
        """The state after a segment, its logits and its halting logits; a feed-forward network has only logits."""
        model = self.model
        if isinstance(model, FeedForward):
            return {}, model(self.inputs), None
        rule = model.noisy(self.config.noise, self.generators["noise"]) if self.config.noise else model.tick
        with torch.no_grad():
            drive = {"x": model.embed_tokens(self.inputs)}
            z = self.carry
            for _ in range(self.config.H_cycles - 1):
                z = rule(z, drive)
        z = rule(z, {"x": model.embed_tokens(self.inputs)})
        out = model.readout(z)
        return z, out["logits"], out["halt"]

    def _refill(self) -> None:
        n = int(self.halted.sum())
        if n == 0:
            return
        fresh = self.halted
        inputs, targets = self.stream.next(n)
        where = fresh.to(self.device)
        self.inputs[where], self.targets[where] = inputs.to(self.device), targets.to(self.device)
        if isinstance(self.model, EqR):
            start = self.model.start({"x": self.carry["z_H"][where]}, generator=self.generators["starts"])
            self.carry = {name: leaf.masked_scatter(where[:, None, None], start[name]) for name, leaf in self.carry.items()}
        g = self.generators["halting"]
        explore = torch.rand(n, generator=g) < self.config.halt_explore
        random = torch.randint(2, max(3, self.config.halt_max + 1), (n,), generator=g)
        self.least[fresh] = torch.where(explore, random, torch.ones_like(random))
        self.steps[fresh] = 0

    def _rate(self) -> float:
        c = self.config
        rate = c.lr * min(1.0, (self.segment + 1) / max(1, c.warmup))
        into = self.segment - (c.segments - c.decay)
        if into > 0:
            rate *= c.final_lr + (1 - c.final_lr) * 0.5 * (1 + math.cos(math.pi * into / c.decay))
        return rate

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema, (1 + self.segment) / (10 + self.segment))
        ours: list[Tensor] = list(self.average.parameters())
        theirs: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)

    def _precision(self) -> AbstractContextManager[object]:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def finished_model(self, name: str) -> EqR | FeedForward:
        """The averaged model, on the CPU."""
        model = self.average.to("cpu").eval()
        model.name = name
        return model

    def save_model(self, path: Path, *, name: str, command: str) -> None:
        """Write the averaged model with its whole configuration, the data's fingerprint and the command."""
        about = {"training": config_to_json(self.config), "data": fingerprint(self.pool), "segments": str(self.segment), "command": command}
        save(self.finished_model(name), path, about=about)

    def save_state(self, path: Path) -> None:
        """Write all that `resume` needs, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for prefix, model in (("model", self.model), ("average", self.average)):
            tensors |= {f"{prefix}.{name}": tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        for (name, _), parameter in zip(self.model.named_parameters(), self.optimizer.param_groups[0]["params"], strict=True):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value).detach().cpu().clone()
        for name, generator in self.generators.items():
            tensors[f"generator.{name}"] = generator.get_state()
        tensors |= {f"carry.{name}": leaf.cpu().contiguous() for name, leaf in self.carry.items()}
        slots = {"inputs": self.inputs, "targets": self.targets, "steps": self.steps, "least": self.least, "halted": self.halted}
        tensors |= {f"slots.{name}": tensor.cpu().contiguous() for name, tensor in slots.items()}
        about = {"format": STATE_FORMAT, "training": config_to_json(self.config), "data": fingerprint(self.pool), "segment": str(self.segment)}
        write_tensors(tensors, path, about)

    @classmethod
    def resume(cls, path: Path, *, device: str = "cpu", pool: Instance | None = None) -> "Trainer":
        """The run that `save_state` wrote, as it was.

        Raises:
            CheckpointError: If the file is not a whole training state, or its data are not the same any more.
        """
        from safetensors.torch import load_file

        about = read_metadata(path)
        if about.get("format") != STATE_FORMAT:
            raise CheckpointError(
                f"{path} says format {about.get('format', 'unknown')!r}. A training is resumed from a file of format {STATE_FORMAT!r}. "
                "Use the state.safetensors that `attractorlab train` left in its folder."
            )
        config = config_from_json(about["training"])
        trainer = cls(replace(config, begin=""), device=device, pool=pool)  # the weights are in the file
        trainer.config = config
        if fingerprint(trainer.pool) != about["data"]:
            raise CheckpointError(
                f"{path} was trained on data with the fingerprint {about['data']}, and the data here have {fingerprint(trainer.pool)}. "
                "A run is resumed on the same data. Put the same file where it was."
            )
        trainer._restore(load_file(path), int(about["segment"]))
        return trainer

    def _restore(self, tensors: dict[str, Tensor], segment: int) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average.load_state_dict(part("average."))
        for name, parameter in self.model.named_parameters():
            moments = part(f"optimizer.{name}.")
            if moments:
                self.optimizer.state[parameter] = {key: value if key == "step" else value.to(self.device) for key, value in moments.items()}
        for name, generator in self.generators.items():
            generator.set_state(tensors[f"generator.{name}"])
        self.carry = {name: leaf.to(self.device) for name, leaf in part("carry.").items()}
        slots = part("slots.")
        self.inputs, self.targets = slots["inputs"].to(self.device), slots["targets"].to(self.device)
        self.steps, self.least, self.halted = slots["steps"], slots["least"], slots["halted"]
        self.segment = segment


def _network(config: TrainConfig, sites: int, generator: torch.Generator) -> EqR | FeedForward:
    """The network to train, with fresh weights or those that the configuration begins with."""
    shape = config.shape(sites=sites, vocabulary=tasks.task_of(config.task).vocabulary)
    network = EqR(shape, generator=generator) if isinstance(shape, EqRConfig) else FeedForward(shape, generator=generator)
    if config.begin:
        other = load(config.begin) if isinstance(shape, EqRConfig) else load_feedforward(config.begin)
        ours, theirs = ({name: tuple(tensor.shape) for name, tensor in one.state_dict().items()} for one in (network, other))
        if ours != theirs:
            raise ValueError(
                f"`train` got begin={config.begin!r}, whose weights are not those of the configuration ({', '.join(sorted(dict(ours.items() ^ theirs.items()))[:4])}). "
                "A training is begun with weights of its own shape. Set width, blocks and mixer to those that `attractorlab inspect` shows."
            )
        network.load_state_dict(other.state_dict())
    return network


def _compile(network: nn.Module, device: torch.device) -> None:
    """Let the stacks of `network` run as compiled code; names and weights stay as they are."""
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(
            f"`train` got engine='compiled' and found no {compiler}. On the CPU, compiled training needs a C++ compiler. "
            "Install g++, name another one in the environment variable CXX, or use engine=eager."
        )
    for module in network.modules():
        if isinstance(module, Stack):
            module.compile(dynamic=False)


def training_pool(config: TrainConfig) -> Instance:
    """The puzzles that `config` asks for, without those that have a symmetric twin among the bundled test and validation puzzles.

    The smallest boards, such as Sudoku of side 4, are the exception: up to symmetry they are so few that every pool holds the bundled ones, and no
    claim about unseen puzzles can be made there.
    """
    pool = tasks.load(config.task, path=config.data, split="train") if config.data else generate(config.task, config.puzzles, seed=config.seed)
    if not tasks.task_of(config.task).unseen:
        return pool
    seen = torch.zeros(len(pool), dtype=torch.bool)
    for split in ("test", "validation"):
        seen |= tasks.overlap(tasks.load(config.task, split=split), pool)
    return pool[~seen]


def train(trainer: Trainer, folder: str | os.PathLike[str], *, name: str, command: str, save_every: int, report: Callable[[Progress], None]) -> Path:
    """Train to the end in `folder` and return the path of the model file.

    The folder gets `model.safetensors` (the averaged model so far), `state.safetensors` (to resume from) and `log.jsonl`. The first two are
    written every `save_every` segments and at the end, so that an interruption anywhere loses at most that many.

    Raises:
        ValueError: If `save_every` is below 1.
    """
    if save_every < 1:
        raise ValueError(f"`train` got save_every={save_every}. The state is saved once in 1 or more segments. Use save_every=200.")
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    log = place / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    # After a kill the log may be ahead of the state that was saved, and its last line may be torn.
    lines = [line for line in lines if line.endswith("}") and json.loads(line)["segment"] <= trainer.segment]
    log.write_text("".join(line + "\n" for line in lines))
    with open(log, "a") as file:
        for progress in trainer.run(every=math.gcd(20, save_every)):
            file.write(json.dumps(progress) + "\n")
            file.flush()
            report(progress)
            if int(progress["segment"]) % save_every == 0:
                trainer.save_state(place / "state.safetensors")
                trainer.save_model(place / "model.safetensors", name=name, command=command)
    trainer.save_state(place / "state.safetensors")
    trainer.save_model(place / "model.safetensors", name=name, command=command)
    return place / "model.safetensors"
