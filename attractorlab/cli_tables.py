"""What commands print, 80 columns wide: tables of fixed points, spectra and exponents, and the lines of scale."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WIDTH = 80
LISTED = 8  # points whose eigenvalues are printed
GAP = "  "

Facts = Mapping[str, Any]


def fixed_point_lines(facts: Facts) -> Iterator[str]:
    """What `fixed-points` prints."""
    ids = _Ids([one["puzzle"] for one in facts["by_puzzle"]])
    yield from _head(facts, ids)
    yield from _said(f"Polished in float64 by {facts['search']}, {facts['max_steps']} steps at most: converged with a residual below {facts['tol']:g}.")
    yield ""
    rows = [
        (ids.short(one["puzzle"]), *(str(one[key]) for key in ("starts", "converged", "distinct", "solved")), *(_small(one[key]) for key in ("residual", "error", "moved")))
        for one in facts["by_puzzle"]
    ]
    sums = [str(sum(one[key] for one in facts["by_puzzle"])) for key in ("starts", "converged", "distinct", "solved")]
    tops = [_small(max((one[key] for one in facts["by_puzzle"] if one[key] is not None), default=None)) for key in ("residual", "error", "moved")]
    yield from _table(("puzzle", " starts", " converged", " distinct", " solved", " residual", " error", " moved"), [*rows, ("all", *sums, *tops)])
    yield ""
    yield _counts("results", facts["results"])
    if "max_steps" in facts["results"]:
        yield from _said(f"max steps: no fixed point was found in {facts['max_steps']} steps, which is no proof that there is none.")
    if facts["far"]:
        yield from _said(f"far: {facts['far']} of the converged moved by more than a hundredth of the norm: where the run ended there was no fixed point.")
    if facts["unseen"] is not None:
        yield from _said(f"unseen: about {100 * facts['unseen']:.3g} % of further starts that converge would do so on fixed points not met here (Good and Turing, mean over the puzzles).")
    yield from _said(
        "distinct are the fixed points that differ, solved those of them that are solutions; residual, error (of one Newton step) and moved are the largest among the "
        "converged, relative to the state's norm."
    )


def spectrum_lines(facts: Facts) -> Iterator[str]:
    """What `spectrum` prints."""
    points = facts["points"]
    ids = _Ids([one["puzzle"] for one in points])
    yield from _head(facts, ids)
    yield from _said(f"Polished in float64 by {facts['search']} to a residual below {facts['tol']:g}: {_words(facts['results'])}.")
    if not points:
        yield from _said("No end became a fixed point, so there is no spectrum.")
        return
    yield from _said(f"Fixed points that differ: {len(points)}. {facts['k']} leading eigenvalues of one tick at each by {facts['method']}, {facts['products']:,} products with the Jacobian.")
    yield ""
    level = f" {100 * facts['level']:g} % interval"
    yield from _table(
        ("verdict", " near", " share", level, " far"),
        [
            (one["verdict"], str(one["near"]), _percent(one["share"]), f"{100 * one['low']:.1f} to {_percent(one['high'])}", str(one["far"]))
            for one in facts["verdicts"]
        ],
    )
    yield ""
    if facts["radius"]["median"] is not None:
        median, lowest, highest = (_fixed(facts["radius"][key]) for key in ("median", "lowest", "highest"))
        yield f"spectral radius, near: median {median}, from {lowest} to {highest}"
    yield from _said("near are points within a hundredth of the norm of an end; far ones were reached by polishing alone, no run rests on them. Intervals are Clopper and Pearson's.")
    yield ""
    yield from _table(
        ("puzzle", " starts", " solved", " moved", " radius", " ± error", "verdict"),
        [
            (ids.short(one["puzzle"]), str(one["starts"]), _yes(one["solved"]), _small(one["moved"]), _fixed(one["radius"]), _small(one["error"]), one["verdict"])
            for one in points
        ],
    )
    yield ""
    yield f"eigenvalues ± condition times defect{'' if len(points) <= LISTED else f', of the first {LISTED} points (all with --json)'}"
    for one in points[:LISTED]:
        values = [f"{_complex(*value)} ± {_small(error)}" for value, error in zip(one["eigenvalues"], one["errors"], strict=True)]
        width = max(len(value) for value in values)
        first = ids.short(one["puzzle"])
        per_line = max(1, (WIDTH - ids.width) // (width + len(GAP)))
        for k in range(0, len(values), per_line):
            yield GAP.join([(first if k == 0 else "").ljust(ids.width), *[value.ljust(width) for value in values[k : k + per_line]]]).rstrip()
    yield ""
    yield from _said(f"starts: how many of the ends lead to the point. A dash: no error can be told. Eigenvalues are per tick, {facts['clock']}.")


def lyapunov_lines(facts: Facts) -> Iterator[str]:
    """What `lyapunov` prints."""
    orbits = facts["orbits"]
    ids = _Ids([one["puzzle"] for one in orbits])
    yield from _head(facts, ids)
    yield from _said(f"{facts['k']} exponents in nats per tick over {facts['counted']} ticks, after {facts['transient']} that do not count, in float64.")
    yield ""
    yield from _table(
        ("puzzle", " start", " first", " ± error", " last", " ± error", " dimension", "result"),
        [
            (
                *(ids.short(one["puzzle"]), str(one["start"])),
                *(text for k in (0, -1) for text in (_fixed(one["exponents"][k]), _small(one["standard_errors"][k]))),
                *("-" if one["kaplan_yorke"] is None else f"{one['kaplan_yorke']:.3f}", one["result"]),
            )
            for one in orbits
        ],
    )
    yield ""
    if facts["exponents"] and facts["exponents"][0]["median"] is not None:
        yield from _table(
            ("exponent", " median", " lowest", " highest", " largest error"),
            [(str(k), _fixed(one["median"]), _fixed(one["lowest"]), _fixed(one["highest"]), _small(one["largest_error"])) for k, one in enumerate(facts["exponents"], 1)],
        )
        yield ""
    yield _counts("results", facts["results"])
    if facts["first_exponent"]:
        yield _counts("first exponent", facts["first_exponent"])
    yield from _said(
        "Errors are standard errors from batches of neighbouring ticks, none below 16 ticks; a first exponent has a sign if it is three of them from 0. dimension is Kaplan and Yorke's, "
        "- where these exponents never add up to less than 0."
    )


def scale_lines(facts: Facts) -> Iterator[str]:
    """What `scale` prints: accuracy in per cent; all else is in the files."""
    from attractorlab.report.markdown import short

    if "grid" not in facts:
        yield from _said(f"{facts['model']} (weights {facts['weights']}) on {facts['puzzles']} puzzles of {facts['task']}, {facts['solutions that differ']} solutions. {facts['clock']}.")
        yield f"accuracy: {_percent(facts['accuracy'])}, {100 * facts['level']:g} % interval {100 * facts['low']:.1f} to {_percent(facts['high'])}"
        yield from _said(facts.get("answers", ""))
        return
    grid = facts["grid"]
    yield from _said(
        f"{facts['model']} (weights {facts['weights']}) in {facts['dtype']} on {facts['puzzles']} puzzles of {facts['task']}, {facts['solutions that differ']} solutions; starts: "
        f"{facts['starts drawn']}, seed {facts['seed']}. One tick is {facts['clock']}. Accuracy in %, with {100 * facts['level']:g} % intervals over solutions."
    )
    yield from _said(facts.get("answers", ""))
    for name, one in (("every start followed to depth", grid), (f"halting: {facts['halting']}", facts.get("elastic"))):
        if one is None:
            continue
        yield from ("", name)
        for some in _fitting(one["selectors"], taken=len("depth  breadth  1.024e+04")):
            head = (" depth", " breadth", " ticks", *(f" {one['selectors'][s]}" for s in some))
            lines = []
            for i, d in enumerate(one["depth"]):
                for j, b in enumerate(one["breadth"]):
                    lines.append((str(d), str(b), short(one["map_calls"][i][j]), *(f"{100 * one['accuracy'][i][j][s]:.1f}" for s in some)))
                    lines.append(("", "", "", *(f"{100 * one['low'][i][j][s]:.0f}-{100 * one['high'][i][j][s]:.0f}" for s in some)))
            yield from _table(head, lines)
    if "gain" in facts:
        gain = facts["gain"]
        yield ""
        for i, d in enumerate(gain["depth"]):
            match = gain["matched"][i]
            yield from _said(
                f"depth {d}: {100 * gain['accuracy'][i]:.1f} % with halting after {short(gain['calls'][i])} ticks on average, {100 * gain['full'][i]:.1f} % without after {d} "
                f"({short(gain['saving'][i])} x); without halting as good "
                + (f"at tick {match}, {short(gain['ratio'][i])} x its ticks." if match > 0 else f"at none of the ticks read, up to {facts['ticks']}.")
            )
    yield from ("", f"results: {facts['results']}")
    if facts["throughput"]:
        yield ""
        yield from _said(f"{speed(facts['throughput'])}.")


def speed(timed: Facts) -> str:
    """What halting with refill saves in time, in words."""
    return (
        f"{timed['instances_per_second_refill']:.3g} instances a second with halting and refill, {timed['instances_per_second_full']:.3g} with all run to tick {timed['ticks']} (or until a state returns to the bit): "
        f"{timed['ratio']:.3g} times, for {timed['ticks_full'] / timed['ticks_refill']:.3g} times fewer ticks ({timed['instances']} instances, {timed['slots']} slots, {timed['threads']} threads, {timed['device']})"
    )


def _fitting(words: Sequence[str], *, taken: int) -> list[list[int]]:
    """Which columns stand in which of the tables that they need: as many in each as fit beside what is taken, none narrower than an interval."""
    tables: list[list[int]] = [[]]
    room = WIDTH - taken
    for k, word in enumerate(words):
        width = len(GAP) + max(len(word), len("100-100"))
        if width > room and tables[-1]:
            tables.append([])
            room = WIDTH - taken
        tables[-1].append(k)
        room -= width
    return tables


def _head(facts: Facts, ids: "_Ids") -> Iterator[str]:
    taken = f"{facts['rows']} of {facts['of']} " if facts["rows"] < facts["of"] else f"{facts['rows']} "
    what = f"ends after {facts['ticks']} ticks" if facts["ticks"] else "starts"
    yield from _said(f"{facts['model']} (weights {facts['weights']}) on {facts['puzzles']} puzzles of {facts['task']}: {taken}{what}. One tick is {facts['clock']}.")
    if ids.shared:
        yield from _said(f"Puzzles are named by what follows {ids.shared}")


class _Ids:
    """The names of puzzles without what all begin with, up to a slash, and cut to a width that leaves room for the numbers."""

    LONGEST = 12

    def __init__(self, names: Sequence[str]) -> None:
        self.shared = names[0] if names else ""
        while self.shared and not (self.shared.endswith("/") and all(name.startswith(self.shared) for name in names)):
            head, slash, _ = self.shared.removesuffix("/").rpartition("/")
            self.shared = head + slash
        self.width = max([len("puzzle"), *(len(self.short(name)) for name in names)])

    def short(self, name: str) -> str:
        rest = name.removeprefix(self.shared)
        return rest if len(rest) <= self.LONGEST else f"…{rest[1 - self.LONGEST :]}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows in columns as wide as they need; a heading that begins with a space has its column at the right."""
    lines = [[cell.removeprefix(" ") for cell in head], *rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    for line in lines:
        cells = [cell.rjust(width) if name.startswith(" ") else cell.ljust(width) for cell, width, name in zip(line, widths, head, strict=True)]
        yield GAP.join(cells).rstrip()


def _said(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _counts(name: str, counts: Mapping[str, int]) -> str:
    return f"{name}: {_words(counts)}"


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {word.replace('_', ' ')}" for word, n in counts.items()) or "none"


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _fixed(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}" if 0 < abs(value) < 5e-4 else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _complex(real: float | None, imag: float | None) -> str:
    if real is None or imag is None:
        return "-"
    return _fixed(real) if imag == 0 else f"{_fixed(real)}{'+' if imag > 0 else '-'}{_fixed(abs(imag))}i"
