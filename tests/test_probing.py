"""Probes on states that are known to know, or not to."""

import math

import pytest
import torch

from attractorlab import every, fit_probe, repeat_rows, trace
from attractorlab.maps import LatentMap

INSTANCES, SITES, CLASSES, STARTS = 30, 5, 3, 2


def told(labels, share=1.0):
    """A map whose state turns, tick by tick, from noise into the label of each site, on the first `share` of the sites."""
    goal = torch.nn.functional.one_hot(labels, CLASSES).float()
    goal[:, math.ceil(share * SITES) :] = 0
    return LatentMap(
        lambda z, x: {"h": 0.2 * z["h"] + x["goal"], "flat": 0.5 * z["flat"]},
        {"goal": goal},
        clock="tick",
        instance=torch.arange(len(labels)),
        start=torch.zeros(len(labels)).long(),
    )


def recorded(labels, generator, *, share=1.0, starts=STARTS):
    f = told(labels, share).take(repeat_rows(len(labels), starts))
    rows = len(labels) * starts
    z = {"h": 3 * torch.randn(rows, SITES, CLASSES, generator=generator), "flat": torch.randn(rows, 4, generator=generator)}
    return trace(f, z, ticks=6, keep=every(3))


@pytest.fixture
def labels(generator):
    return torch.randint(CLASSES, (INSTANCES, SITES), generator=generator)


ALL = torch.ones(INSTANCES, SITES, dtype=torch.bool)


def probe(traj, labels, **more):
    options = {"leaf": "h", "sites": ALL, "test_share": 0.4, "generator": torch.Generator().manual_seed(1)} | more
    return fit_probe(traj, labels, **options)


def test_a_probe_reads_what_the_state_holds_and_only_when_it_does(labels, generator):
    fit = probe(recorded(labels, generator), labels, target="digit")
    assert fit.ticks.tolist() == [0, 3, 6] and fit.target == "digit" and fit.clock == "tick"
    assert fit.score[2] == 1 and 0.7 < fit.low[2] < fit.high[2] == 1
    assert fit.score[0] < 0.55 and fit.low[0] < 1 / CLASSES + 0.1 < fit.score[2]
    assert (fit.control < 0.6).all() and fit.selectivity.equal(fit.score - fit.control)
    assert (fit.train_instances, len(fit.held_out)) == (18, 12)
    assert fit.by_held_out.shape == (3, 12) and torch.allclose(fit.by_held_out.mean(1), fit.score)  # as many sites on every instance
    assert ((fit.low <= fit.score) & (fit.score <= fit.high)).all()


def test_only_the_sites_asked_for_count(labels, generator):
    traj = recorded(labels, generator, share=0.4)
    known = torch.zeros_like(ALL)
    known[:, :2] = True
    assert probe(traj, labels, sites=known).score[-1] == 1
    assert probe(traj, labels, sites=~known).score[-1] < 0.6


def test_instances_are_not_torn_between_training_and_test(generator):
    # Every instance has labels of its own that its state spells out by its number: only a row of the same instance could tell.
    labels = torch.randint(CLASSES, (INSTANCES, SITES), generator=generator)
    number = torch.nn.functional.one_hot(torch.arange(INSTANCES), INSTANCES).float()[:, None].expand(-1, SITES, -1)
    f = LatentMap(
        lambda z, x: {"h": x["number"].clone()},
        {"number": number},
        clock="tick",
        instance=torch.arange(INSTANCES),
        start=torch.zeros(INSTANCES).long(),
    ).take(repeat_rows(INSTANCES, 8))
    traj = trace(f, {"h": torch.zeros(8 * INSTANCES, SITES, INSTANCES)}, ticks=2, keep=every(2))
    assert probe(traj, labels).score[-1] < 0.6


def test_the_control_knows_the_frequencies_of_labels_and_no_more(generator):
    labels = (torch.rand(INSTANCES, SITES, generator=generator) < 0.15).long()
    fit = probe(recorded(labels, generator), labels)
    assert fit.score[-1] == 1 and 0.7 < fit.control[-1] <= 1


def test_the_seed_decides_and_renamed_labels_do_not_matter(labels, generator):
    traj = recorded(labels, generator)
    one, two = probe(traj, labels), probe(traj, labels)
    assert one.score.equal(two.score) and one.control.equal(two.control) and one.low.equal(two.low)
    # Shifted names sort alike, so that not even the optimizer's path differs.
    assert probe(traj, 5 * labels + 2).score.equal(one.score)
    other = probe(traj, labels, generator=torch.Generator().manual_seed(2))
    assert not other.score.equal(one.score)


def test_misuse_is_refused_with_what_to_do(labels, generator):
    traj = recorded(labels, generator)
    with pytest.raises(ValueError, match=r"`fit_probe` got leaf='z_H'.*Use one of h, flat"):
        probe(traj, labels, leaf="z_H")
    for share in (0.0, 0.04, 0.96, 1.0):
        with pytest.raises(ValueError, match=r"`fit_probe` got test_share=.* of 30 instances.*Two or more are needed on each side.*test_share=0.3"):
            probe(traj, labels, test_share=share)
    with pytest.raises(ValueError, match=r"`fit_probe` got a leaf of shape \(3, 60, 4\).*A leaf is \[kept row site width\]"):
        probe(traj, labels, leaf="flat")
    with pytest.raises(ValueError, match=r"labels of \(20, 5\).*Pass one row of labels and sites for each instance"):
        probe(traj, labels[:20], sites=ALL[:20])


def test_a_row_that_was_lost_is_refused_and_not_dropped(labels, generator):
    f = told(labels)
    z = {"h": torch.randn(INSTANCES, SITES, CLASSES, generator=generator), "flat": torch.zeros(INSTANCES, 4)}
    z["h"][3, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"`fit_probe` got states that are not all finite.*rows whose result is COMPLETED"):
        probe(trace(f, z, ticks=2, keep=every(1)), labels)


def test_bfloat16_states_can_be_probed(labels, generator):
    f = told(labels)
    drive = {"goal": f.drive["goal"].bfloat16()}
    g = LatentMap(f.rule, drive, clock="tick", instance=f.instance, start=f.start)
    z = {"h": torch.zeros(INSTANCES, SITES, CLASSES).bfloat16(), "flat": torch.zeros(INSTANCES, 4).bfloat16()}
    assert probe(trace(g, z, ticks=3, keep=every(3)), labels).score[-1] == 1
