"""States in files of bounded size: read back bit for bit, whole or not at all, and one process's apart from another's."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from attractorlab.models import CheckpointError
from attractorlab.training import shards
from attractorlab.training.ranks import ALONE, Ranks
from attractorlab.training.shards import newest, read_shards, write_shards

TINY = ["train", "eqr-sudoku-4", *(word for pair in ("width=16", "batch=8", "puzzles=50", "segments=24", "noise=0.05") for word in ("--set", pair)), "--save-every", "4", "--threads", "1"]


@pytest.fixture
def tensors():
    g = torch.Generator().manual_seed(0)
    kinds = {"bytes": torch.uint8, "floats": torch.float32, "halves": torch.bfloat16, "longs": torch.int64}
    made = {name: torch.randint(0, 200, (50, 7), generator=g).to(kind) for name, kind in kinds.items()}
    return made | {"number": torch.tensor(3.0), "empty": torch.zeros(0, 4), "long row": torch.arange(900.0)[None]}


@pytest.mark.parametrize("limit", [1, 100, 1000, 2**20])
def test_a_state_comes_back_bit_for_bit_from_files_no_larger_than_asked(tmp_path, tensors, limit, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", limit)
    write_shards(tensors, tmp_path, {"training": "x"}, segment=7, ranks=ALONE)
    state = newest(tmp_path)
    found, about = read_shards(state, ranks=ALONE)
    assert found.keys() == tensors.keys() and about["training"] == "x"
    assert all(found[name].dtype == one.dtype and found[name].equal(one) for name, one in tensors.items())
    sizes = [sum(one.nbytes for one in content.values()) for content in shards._packed(tensors)]
    largest_row = max(one[:1].nbytes if one.ndim else one.nbytes for one in tensors.values())
    assert max(sizes) <= max(limit, largest_row) and len(sizes) == len(list(state.iterdir()))


def test_a_new_state_takes_the_place_of_the_old_one_and_of_what_a_kill_left(tmp_path, tensors):
    write_shards(tensors, tmp_path, {}, segment=4, ranks=ALONE)
    (tmp_path / ".segment-00000006").mkdir()
    (tmp_path / "notes").mkdir()
    assert newest(tmp_path).name == "segment-00000004"
    write_shards(tensors, tmp_path, {}, segment=8, ranks=ALONE)
    write_shards(tensors, tmp_path, {}, segment=8, ranks=ALONE)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["notes", "segment-00000008"]
    assert newest(tmp_path / "nothing here") is None


def test_a_save_onto_a_full_disk_leaves_the_one_before_and_says_so(tmp_path, tensors, monkeypatch):
    write_shards(tensors, tmp_path, {}, segment=4, ranks=ALONE)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_shards(tensors, tmp_path, {}, segment=8, ranks=ALONE)
    assert [one.name for one in tmp_path.iterdir()] == ["segment-00000004"]


def test_files_of_two_states_are_not_mixed(tmp_path, tensors, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 1000)
    for segment in (1, 2):
        write_shards(tensors, tmp_path / str(segment), {"segment": str(segment)}, segment=segment, ranks=ALONE)
    second = "rank-0-of-1-0001.safetensors"
    os.replace(tmp_path / "2" / "segment-00000002" / second, tmp_path / "1" / "segment-00000001" / second)
    with pytest.raises(CheckpointError, match=r"does not belong to the files beside it.*Copy the folder segment-00000001 again"):
        read_shards(tmp_path / "1" / "segment-00000001", ranks=ALONE)
    (tmp_path / "1" / "segment-00000001" / second).unlink()
    with pytest.raises(CheckpointError, match="cannot be read as a safetensors file"):
        read_shards(tmp_path / "1" / "segment-00000001", ranks=ALONE)
    with pytest.raises(CheckpointError, match="holds the parts of 1 processes, and 4 would read it"):
        read_shards(tmp_path / "1" / "segment-00000001", ranks=Ranks(0, 4))


@pytest.mark.parametrize(("limit", "files"), [(1000, 8), (2**20, 1)])
def test_a_flipped_bit_anywhere_in_a_state_is_noticed(tmp_path, tensors, limit, files, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", limit)
    write_shards(tensors, tmp_path, {"training": "a", "segment": "1"}, segment=1, ranks=ALONE)
    state = tmp_path / "segment-00000001"
    found = sorted(state.iterdir())
    assert len(found) == files and read_shards(state, ranks=ALONE)
    chance = random.Random(0)
    for file in found:
        whole = file.read_bytes()
        told = [whole.index(b'"files":"') + 9, whole.index(b"sha256")]  # what tells how far to read and what to compare
        for place in (*told, 8 + int.from_bytes(whole[:8], "little"), len(whole) - 1, *chance.choices(range(len(whole)), k=100)):
            flipped = bytearray(whole)
            flipped[place] ^= 1 if place in told else 1 << chance.randrange(8)
            file.write_bytes(flipped)
            with pytest.raises(CheckpointError):
                read_shards(state, ranks=ALONE)
        file.write_bytes(whole)
    assert read_shards(state, ranks=ALONE)[1]["segment"] == "1"


def run(*words, **options):
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options)


def finished(process):
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told


def curve(folder):
    times = ("seconds", "seconds_left", "samples_per_second")
    return [{key: value for key, value in json.loads(line).items() if key not in times} for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_training_that_is_killed_at_any_moment_goes_on_to_the_same_curve_and_the_same_weights(tmp_path):
    command = ["-m", "attractorlab", *TINY, "--out"]
    whole = run(*command, str(tmp_path / "whole"))
    parts = tmp_path / "parts"
    going = run(*command, str(parts))
    while newest(parts / "state") is None and going.poll() is None:
        time.sleep(0.005)
    time.sleep(0.05)  # somewhere in the next segments
    going.send_signal(signal.SIGKILL)
    going.communicate()
    assert going.returncode == -signal.SIGKILL
    finished(whole)
    finished(run(*command, str(parts), "--resume"))
    assert curve(parts) == curve(tmp_path / "whole")
    weights = [shards.load_file(folder / "model.safetensors") for folder in (parts, tmp_path / "whole")]
    assert all(weights[0][name].equal(one) for name, one in weights[1].items())


def test_two_processes_share_the_slots_and_stay_of_one_mind(tmp_path):
    def torchrun(folder, segments, *more):
        words = [word.replace("segments=24", f"segments={segments}") for word in TINY]
        return run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "attractorlab", *words, "--out", str(folder), *more, env={**os.environ, "OMP_NUM_THREADS": "1"})

    finished(torchrun(tmp_path, 12))
    state = newest(tmp_path / "state")
    ours, theirs = (read_shards(state, ranks=Ranks(rank, 2))[0] for rank in (0, 1))
    assert ours["slots.inputs"].shape == (4, 16) and not ours["slots.inputs"].equal(theirs["slots.inputs"])
    for name, one in ours.items():
        if name.startswith(("model.", "average.", "optimizer.")):
            assert one.equal(theirs[name]), name
    assert [line["segment"] for line in curve(tmp_path)] == [4, 8, 12]
