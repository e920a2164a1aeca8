"""Rows through a fixed number of slots: a slot whose row ended takes the next one at once, on the device, asking the host once in a while."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attractorlab import trees
from attractorlab.dynamics.orbits import DIVERGED
from attractorlab.maps import DrivenReadout, LatentMap, relative
from attractorlab.types import Result, State

WINDOW = 3  # last ticks that scores average, as in the paper
PROVEN = 4  # ticks in a row that return to the bit, after which the window and the one before it hold nothing else
ASKED = 16  # ticks between two looks whether all rows have ended, where looking waits for a device
HELD = "state equal to the bit to that of one tick or two before"
FOLLOWED = Result.COMPLETED.code


class Slots:
    """One run of rows through slots. Everything that is kept of a row is a few columns of a table, whatever the ticks.

    Columns are the ticks to be read, then the halting, then two that always hold the last tick and the one before it (by parity), then one that is thrown away: so writing
    never asks which rows are concerned.
    """

    def __init__(
        self, f: LatentMap, z: State, *, ticks: int, read: Sequence[int], slots: int, targets: Int[Tensor, "row site"] | None, leave: bool, hold: float | None, caller: str
    ) -> None:
        self.f, self.z, self.n, self.slots = f, z, trees.rows(z), slots
        self.ticks, self.read, self.leave, self.hold, self.caller = ticks, list(read), leave, hold, caller
        self.device = next(iter(z.values())).device
        self.targets = None if targets is None else targets.to(self.device)
        self.above, self.after, self.stops = 0.0, 1, False
        self.rest: float | None = None
        self._read = torch.tensor(self.read, device=self.device)
        self._halt, self._last, self._trash = len(read), len(read) + 1, len(read) + 3
        self._table: dict[str, Tensor] = {}
        self._row = {name: self._blank(-1) for name in ("first", "since", "stopped", "ended", "known")} | {"result": self._blank(FOLLOWED)}

    def stop_at(self, *, above: float, after: int, rest: float | None) -> None:
        """Record, or leave at, the first tick at which a row may stop."""
        self.above, self.after, self.rest, self.stops = above, after, rest, True

    @torch.no_grad()
    def go(self) -> None:
        """Run until every row has ended."""
        s, n = self.slots, self.n
        job = torch.arange(s, device=self.device).clamp(max=n)  # n: no row, the slot idles
        z, g = self._take(job)
        out = g.readout(z)
        self._check(out)
        logits = out.get("logits")
        age = torch.zeros(s, dtype=torch.int64, device=self.device)
        none = torch.full_like(age, -1)
        first, since, stopped, returned = none, none, none, torch.zeros_like(age)
        large = DIVERGED * trees.norm(z).clamp(min=1)
        older, changes, moves = z, self._window(large), self._window(large)
        halt = out["halt"].float() if "halt" in out else None
        given, done = torch.tensor(min(s, n), device=self.device), torch.zeros((), dtype=torch.int64, device=self.device)
        sure = 0
        while True:
            if sure == 0:
                left, waiting = (n - count for count in torch.stack([done, given]).tolist())
                if not left:
                    return
                # No fewer ticks than the first are left: until then there is nothing to ask. On a device a few ticks without a row cost less than asking at each.
                sure = max(-(-waiting // s) + 1, 1 if self.device.type == "cpu" else ASKED)
            sure -= 1
            new = g(z)
            age = age + 1
            size = trees.norm(new)
            fine = (size <= large) & size.isfinite()
            moves = torch.cat([moves[1:], relative(trees.distance(new, z), z)[None]])
            out = g.readout(new)
            answer = torch.where(fine[:, None], _answer(out), -1)
            halting = out["halt"].float() if "halt" in out else None
            change, still = None, torch.zeros_like(fine)
            if logits is not None:
                lengths = torch.linalg.vector_norm(trees.single(out["logits"]) - trees.single(logits), dim=-1).reshape(s, -1)
                changes = torch.cat([changes[1:], lengths.mean(1).to(changes)[None]])
                change = _mean(changes, age)
                if self.hold is not None:
                    still = self._still(out["logits"], lengths, halting, halt, age) & (moves < self.hold).all(0) & (age >= WINDOW)
                logits = out["logits"]
            back = (_equal(new, z) | (_equal(new, older) & (age >= 2))) & fine
            returned = torch.where(back, returned + 1, 0)
            known = (returned >= PROVEN) & (age >= self.after + 2)
            residual = _mean(moves, age)
            solved = None if self.targets is None else (answer == self._aim).all(1)
            if solved is not None:
                first = torch.where(solved & (first < 0), age, first)
                since = torch.where(solved, torch.where(since < 0, age, since), -1)
            stop = torch.zeros_like(fine)
            if self.stops:
                stop = (age >= self.after) & fine & (stopped < 0)
                low = torch.zeros_like(fine) if self.rest is None else (moves < self.rest).all(0) & (age >= WINDOW)
                stop = stop & (low if halting is None else low | (halting > self.above))
                stopped = torch.where(stop, age, stopped)
                # What the policy will do is settled once it has let a row go, or by the halting value alone from its first tick on: nothing is said of when a residual will be low.
                still = still & ((stopped >= 0) | ((age >= self.after) & (self.rest is None)))
            busy = job < n
            self._write(
                job,
                age,
                stop,
                {
                    "answer": answer,
                    "residual": _lost(residual, fine),
                    **({} if solved is None else {"solved": solved}),
                    **({} if change is None else {"logit_change": _lost(change, fine)}),
                    **({} if halting is None else {"halt": _lost(halting, fine)}),
                },
            )
            leaving = stop if self.leave else torch.zeros_like(stop)
            ended = busy & ((age >= self.ticks) | ~fine | leaving | known | still)
            code = torch.where(leaving, torch.where(age < self.ticks, Result.HALTED.code, FOLLOWED), torch.where(age >= self.ticks, FOLLOWED, Result.CONVERGED.code))
            code = torch.where(fine, code, torch.where(trees.finite(new), Result.DIVERGED.code, Result.NONFINITE.code))
            at = torch.where(ended, job, n)
            for name, values in {"first": first, "since": since, "stopped": stopped, "ended": age, "known": known.long(), "result": code}.items():
                self._row[name][at] = values
            older, z, halt = z, new, halting
            done = done + ended.sum()
            # Asking costs nothing on a processor; on a device it would wait for all that was begun.
            if self.device.type == "cpu" and not bool(ended.any()):
                continue
            turn = given + ended.cumsum(0) - 1
            job = torch.where(ended, turn.clamp(max=n), job)
            given = torch.minimum(given + ended.sum(), torch.full_like(given, n))
            fresh, g = self._take(job)
            z, older = trees.where(ended, fresh, z), trees.where(ended, fresh, older)
            out = g.readout(z)
            logits = out.get("logits")
            halt = out["halt"].float() if "halt" in out else None
            age, returned = torch.where(ended, 0, age), torch.where(ended, 0, returned)
            first, since, stopped = (torch.where(ended, -1, one) for one in (first, since, stopped))
            large = torch.where(ended, DIVERGED * trees.norm(fresh).clamp(min=1), large)
            moves, changes = (torch.where(ended, 0, one) for one in (moves, changes))

    def seen(self) -> dict[str, Tensor]:
        """What was read: a column for each tick, one for the halting, one for the last tick of the policy followed."""
        asked = torch.tensor([*self.read, self.ticks, self.ticks])
        ended, stopped = self.computed(), self.halt_tick()
        # A row that returns to the bit goes on in step with its two last ticks; any other keeps the last one.
        column = self._last + torch.where(self._returns()[:, None], asked[None], ended[:, None]) % 2
        place = torch.cat([torch.arange(len(self.read)), torch.tensor([self._halt, self._last])])
        written = (asked[None] <= ended[:, None]).index_fill(1, torch.tensor([len(self.read), len(self.read) + 1]), False)
        written[:, len(self.read)] = stopped >= 0
        choose = torch.where(written, place[None], column)
        found = {}
        for name, values in self._table.items():
            known = values[: self.n].cpu()
            index = choose.reshape(*choose.shape, *[1] * (known.ndim - 2)).expand(*choose.shape, *known.shape[2:])
            found[name] = known.gather(1, index)
        return found

    def computed(self) -> Int[Tensor, " row"]:
        """Ticks that were computed."""
        return self._of("ended")

    def result(self) -> Int[Tensor, " row"]:
        return self._of("result")

    def last_tick(self) -> Int[Tensor, " row"]:
        """The tick up to which a row counts: that of its halting, where it left, or of its loss; else the last."""
        held = self.result() == Result.CONVERGED.code
        return torch.where(held, self.ticks, self.computed())

    def halt_tick(self) -> Int[Tensor, " row"]:
        return self._of("stopped")

    def first_solved(self) -> Int[Tensor, " row"] | None:
        return None if self.targets is None else self._of("first")

    def stays_solved(self) -> Int[Tensor, " row"] | None:
        """The first tick from which a row is solved to the last one; a held row that alternates is judged at the ticks it would have had."""
        if self.targets is None:
            return None
        both = self._table["solved"][: self.n, self._last : self._last + 2].cpu()
        swings = self._returns() & (both[:, 0] != both[:, 1])
        return torch.where(swings, torch.where(both[:, self.ticks % 2], self.ticks, -1), self._of("since"))

    def _returns(self) -> Bool[Tensor, " row"]:
        """Which rows left early because they return to the bit."""
        return (self.result() == Result.CONVERGED.code) & (self._of("known") == 1)

    def _take(self, job: Int[Tensor, " slot"]) -> tuple[State, LatentMap]:
        """The starts of these rows, and the map with their drive; an idle slot works on the last row once more."""
        row = job.clamp(max=self.n - 1)
        drive = {name: leaf.index_select(0, row) for name, leaf in self.f.drive.items()}
        readout = replace(self.f.readout, drive=drive) if isinstance(self.f.readout, DrivenReadout) else self.f.readout
        if self.targets is not None:
            self._aim = self.targets.index_select(0, row)
        return {name: leaf.index_select(0, row) for name, leaf in self.z.items()}, replace(self.f, drive=drive, readout=readout)

    def _write(self, job: Tensor, age: Tensor, stop: Bool[Tensor, " slot"], values: dict[str, Tensor]) -> None:
        """Enter the values of this tick: in the column of the tick if it is read, in that of the halting if this is it, and as the last ones."""
        place = torch.searchsorted(self._read, age).clamp(max=len(self.read) - 1)
        column = torch.where(self._read[place] == age, place, self._trash)
        for name, value in values.items():
            if name not in self._table:
                self._table[name] = value.new_zeros((self.n + 1, self._trash + 1, *value.shape[1:]))
            for at in (column, torch.where(stop, self._halt, self._trash), self._last + age % 2):
                self._table[name][job, at] = value

    def _still(self, logits: Tensor, lengths: Tensor, halting: Tensor | None, before: Tensor | None, age: Tensor) -> Bool[Tensor, " slot"]:
        """Whether no site can change its class, nor the halting value cross its threshold, in the ticks left at the pace of the last one."""
        left = (self.ticks - age).float()
        top = logits.topk(min(2, logits.shape[-1]), dim=-1).values  # in the precision of the logits: in a coarser one a gap may open
        gap = (top[..., 0] - top[..., 1]).float().reshape(len(logits), -1).amin(1) if logits.shape[-1] > 1 else torch.full_like(left, torch.inf)
        still = left * 2**0.5 * lengths.amax(1) < gap
        if halting is not None and before is not None and self.stops:
            still &= left * (halting - before).abs() < (halting - self.above).abs()
        return still

    def _check(self, out: Mapping[str, Tensor]) -> None:
        if "logits" not in out and "answer" not in out:
            raise ValueError(f"`{self.caller}` got a map with the readouts {sorted(out) or 'none'}. Attempts are judged by their answers. Give the map a readout of `logits` or `answer`.")
        if self.hold is not None and "logits" not in out:
            raise ValueError(f"`{self.caller}` got hold={self.hold:g} for a map that reads out no logits. A row is held where its logits cannot change the answer. Use hold=None.")
        if self.stops and self.rest is None and "halt" not in out:
            raise ValueError(f"`{self.caller}` got a policy on the halting value for a map that reads out no `halt`. Nothing could ever stop. Use halting=None, or give it a `rest`.")
        if self.targets is not None and _answer(out).shape[1] != self.targets.shape[1]:
            raise ValueError(f"`{self.caller}` got targets of {self.targets.shape[1]} sites for answers of {_answer(out).shape[1]}. They are compared site by site. Pass the `targets` that were bound.")

    def _window(self, like: Float[Tensor, " slot"]) -> Float[Tensor, "window slot"]:
        return like.new_zeros(WINDOW, self.slots)

    def _blank(self, value: int) -> Int[Tensor, " row"]:
        return torch.full((self.n + 1,), value, device=self.device)

    def _of(self, name: str) -> Int[Tensor, " row"]:
        return self._row[name][: self.n].cpu()


def _answer(out: Mapping[str, Tensor]) -> Int[Tensor, "slot site"]:
    """The class of each site; in as few bytes as hold it."""
    if "logits" not in out:
        return out["answer"].reshape(len(out["answer"]), -1)
    logits = out["logits"]
    answer = logits.argmax(-1).reshape(len(logits), -1)
    return answer.to(torch.int8 if logits.shape[-1] < 2**7 else torch.int32)


def _equal(u: State, v: State) -> Bool[Tensor, " slot"]:
    return torch.stack([(u[name] == v[name]).flatten(1).all(1) for name in u]).all(0)


def _mean(window: Float[Tensor, "window slot"], age: Int[Tensor, " slot"]) -> Float[Tensor, " slot"]:
    """The mean of the values that there were: those not yet there are 0."""
    return window.sum(0) / age.clamp(max=WINDOW).to(window.dtype)


def _lost(values: Float[Tensor, " slot"], fine: Bool[Tensor, " slot"]) -> Float[Tensor, " slot"]:
    return torch.where(fine, values, torch.nan)
