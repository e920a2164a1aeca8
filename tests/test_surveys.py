"""What is found out about a map before it is run inside: where its rows are, its dtypes, and whether its updates are its rule."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import attractorlab as al
from attractorlab.dynamics import orbits
from attractorlab.maps import LatentMap
from attractorlab.points import Tap
from tests.tapped import made


class Heads(nn.Module):
    """[row width] -> [head row width] for two heads: the first axis is 2 by chance where there are two rows."""

    def forward(self, x):
        return torch.stack([x, 2 * x])


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_an_axis_of_length_two_is_not_taken_for_the_rows(rows) -> None:
    model = nn.ModuleDict({"heads": Heads()})
    f = LatentMap(lambda z, x: {"z": model["heads"](z["z"]).mean(0)}, {}, model=model)
    z = {"z": torch.zeros(rows, 4)}
    assert [point.name for point in f.names(z)] == ["z"]
    refused = r"heads gives \(2, 3, 4\) in a tick of 3 rows\. .*rows first\. Name another point"
    with pytest.raises(ValueError, match=refused):
        al.trace(f, z, ticks=1, keep=al.only_last(), tap=Tap(model, "heads"))
    with pytest.raises(ValueError, match=refused):
        al.trace(f, z, ticks=1, keep=al.only_last(), edits=[al.ablate("heads", ticks=0)], continuation=al.free_running)


def test_a_survey_runs_the_tick_twice_on_five_rows_at_most() -> None:
    seen = []
    f = LatentMap(lambda z, x: (seen.append(len(z["z"])), {"z": z["z"] + 1})[1], {})
    f.names({"z": torch.zeros(64, 4)})
    assert seen == [2, 3]


def flagged(generator, rows):
    """A map whose rule follows a flag of the row's drive that its updates do not know of."""
    model, f, z = made(rows, generator)
    drive = {**f.drive, "flag": torch.zeros(rows, dtype=torch.float64)}

    def rule(z, x):
        return {name: leaf + 1e-13 * x["flag"][:, None] for name, leaf in f.rule(z, x).items()}

    return model, replace(f, rule=rule, drive=drive), z


@pytest.mark.parametrize("row", [0, 1, 4])
def test_updates_that_are_the_rule_in_all_rows_but_one_are_refused(row, generator, monkeypatch) -> None:
    model, f, z = flagged(generator, 5)
    al.trace(f, z, ticks=1, keep=al.only_last(), tap=Tap(model, "cell"))
    f.drive["flag"][row] = 1
    refused = rf"got a map whose updates and rule differ by up to \de-1\d in row {row}\. .*bit for bit"
    with pytest.raises(ValueError, match="`trace` " + refused):
        al.trace(f, z, ticks=1, keep=al.only_last(), tap=Tap(model, "cell"))
    with pytest.raises(ValueError, match="`floquet` " + refused):
        al.floquet(f, z, k=1)
    monkeypatch.setattr(orbits, "CPU_CHUNK", 1)  # rows in several chunks
    model, f, z = flagged(generator, 20)
    f.drive["flag"][15 + row] = 1
    with pytest.raises(ValueError, match=rf"in row {15 + row}\."):
        al.floquet(f, z, k=1)


def test_rows_that_are_not_finite_are_no_difference(generator) -> None:
    model, f, z = made(3, generator)
    z["z_H"][1] = torch.nan
    assert al.trace(f, z, ticks=1, keep=al.only_last(), tap=Tap(model, "cell")).taps["cell"][0, :, 1].isnan().any()
