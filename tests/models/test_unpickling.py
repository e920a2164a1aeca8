"""The reader of torch files calls nothing: payloads stay asleep, and the weights beside them load."""

import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from attractorlab import models
from attractorlab.models import CheckpointError
from attractorlab.models.unpickling import Placeholder, mapping_of, read_archive, read_as_data, tensor_of
from tests.models import made

SETTINGS = made.arch("eqr", num_heads=2, H_cycles=1, L_cycles=1, lambda_=0.9)


class Reduced:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


class Restored:
    """Runs a command when its state is set."""

    def __init__(self, command):
        self.command = command

    def __setstate__(self, state):
        os.system(state["command"])


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(module, name, *args):
    """The bytes of a pickled call by STACK_GLOBAL."""
    return text(module) + text(name) + b"\x93(" + b"".join(text(arg) for arg in args) + b"tR"


def payloads(folder):
    """Objects that would leave a file behind, if anything in them ran."""
    touch = {name: f"touch {folder}/{name}" for name in ("system", "eval", "setstate", "nested", "partial", "getattr", "popen")}
    return {
        "system": Reduced(os.system, touch["system"]),
        "eval": Reduced(eval, f"__import__('os').system({touch['eval']!r})"),
        "setstate": Restored(touch["setstate"]),
        "nested": [{"deep": (Reduced(os.system, touch["nested"]),)}],
        "popen": collections.OrderedDict(a=Reduced(os.popen, touch["popen"])),
        "getattr": Reduced(getattr, Reduced(__import__, "os"), "system"),
    }


def with_pickle(path, change):
    """The file with the bytes of its pickle changed; lengths in the pickle are the changer's business."""
    with zipfile.ZipFile(path) as before:
        records = {info.filename: before.read(info) for info in before.infolist()}
    with zipfile.ZipFile(path, "w") as after:
        for name, content in records.items():
            after.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return path


def beside(*streams):
    """Puts further entries, given as opcodes, into the dict that a pickle is."""
    entries = b"".join(text(f"extra {k}") + stream + b"s" for k, stream in enumerate(streams))
    return lambda content: content[:-1] + entries + b"."


@pytest.fixture
def weights():
    return made.state_dict("eqr", width=16, sites=6)


def good(model, weights):
    return model.lm_head.weight.equal(weights["lm_head.weight"])


@pytest.mark.parametrize("name", ["system", "eval", "setstate", "nested", "popen", "getattr"])
def test_payloads_do_not_run_and_the_weights_beside_them_load(name, tmp_path, weights):
    folder = tmp_path / "ran"
    folder.mkdir()
    content = {"model": weights, "ema": None, "config": {"arch": SETTINGS}, "carry": payloads(folder)[name]}
    torch.save(content, tmp_path / "x.pth")
    assert good(models.load(tmp_path / "x.pth", task="toy", sites=6), weights)
    assert not any(folder.iterdir())


def test_the_payloads_would_run_in_an_ordinary_reader(tmp_path):
    for name in ("system", "eval", "setstate", "nested"):
        torch.save(payloads(tmp_path)[name], tmp_path / "x.pth")
        torch.load(tmp_path / "x.pth", weights_only=False)
        assert (tmp_path / name).exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_payloads_do_not_run_in_any_protocol(protocol, tmp_path, weights):
    folder = tmp_path / "ran"
    folder.mkdir()
    torch.save({"model": weights, "config": {"arch": SETTINGS}, "carry": list(payloads(folder).values())}, tmp_path / "x.pth", pickle_protocol=protocol)
    assert good(models.load(tmp_path / "x.pth", task="toy", sites=6), weights)
    assert not any(folder.iterdir())


def test_hand_made_opcodes_do_not_run(tmp_path, weights):
    folder = tmp_path / "ran"
    folder.mkdir()
    command = f"touch {folder}/ran"
    streams = {
        "a call by STACK_GLOBAL": call("os", "system", command),
        "torch.load by STACK_GLOBAL": call("torch", "load", "other.pth"),
        "a dotted name": call("os", "path.os.system", command),
        "an instance by INST": b"(" + text(command) + b"ios\nsystem\n",
        "an instance by OBJ": b"(cos\nsystem\n" + text(command) + b"o",
        "NEWOBJ": b"cos\nsystem\n(" + text(command) + b"t\x81",
        "NEWOBJ_EX": b"cos\nsystem\n(" + text(command) + b"t}" + text("a") + b"K\x01s\x92",
        "BUILD on a placeholder": b"cos\nsystem\n(tR}" + text("__class__") + text("x") + b"sb",
        "BUILD with slots": b"cos\nsystem\n(tR(N}" + text("hold") + b"cos\nsystem\nstb",
        "BUILD on the name itself": b"cos\nsystem\n}" + text("__call__") + b"cos\nsystem\nsb",
        "BUILD on a rebuilding function": b"ctorch._utils\n_rebuild_tensor_v2\n(N}" + text("__defaults__") + b"(K\x01tstb",
        "a call of a call": b"cbuiltins\ngetattr\n(cos\nsystem\n" + text("__call__") + b"tR(" + text(command) + b"tR",
        "items of a placeholder": b"cos\nenviron\n(tR(" + text("PATH") + text("x") + b"u",
        "elements of a placeholder": b"csys\npath\n(tR(" + text("x") + b"e",
        "a set of placeholders": b"\x8f(cos\nsystem\n\x90",
    }
    path = tmp_path / "x.pth"
    for name, stream in streams.items():
        torch.save({"model": weights, "config": {"arch": SETTINGS}}, path)
        with_pickle(path, beside(stream))
        holds = read_as_data(path).holds
        assert "extra 0" in holds, name
        assert good(models.load(path, task="toy", sites=6), weights), name
        assert not any(folder.iterdir()), name
    before = os.environ["PATH"], list(sys.path), torch._utils._rebuild_tensor_v2.__defaults__
    with_pickle(path, beside(*streams.values()))
    read_as_data(path)
    assert before == (os.environ["PATH"], list(sys.path), torch._utils._rebuild_tensor_v2.__defaults__)


def test_nothing_that_a_file_names_is_imported(tmp_path, weights, monkeypatch):
    (tmp_path / "sleeping_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save({"model": weights, "config": {"arch": SETTINGS}}, tmp_path / "x.pth")
    with_pickle(tmp_path / "x.pth", beside(b"csleeping_module\nname\n"))
    assert good(models.load(tmp_path / "x.pth", task="toy", sites=6), weights)
    assert "sleeping_module" not in sys.modules and not (tmp_path / "ran").exists()


def test_bombs_of_shared_stand_ins_are_refused_at_once(tmp_path, weights):
    """Each level holds the one below twice: 2^60 of them, which nobody would live to see written out."""
    level = b"cos\nsystem\n(tRq\x01"
    for k in range(1, 61):
        level += b"0cos\nsystem\n(h" + bytes([k]) + b"h" + bytes([k]) + b"tRq" + bytes([k + 1])
    torch.save({"model": weights, "config": {"arch": SETTINGS}}, tmp_path / "x.pth")
    # Memo slots of the file itself would be overwritten: the bomb goes to the end.
    with_pickle(tmp_path / "x.pth", beside(level))
    with pytest.raises(CheckpointError, match="values nested more than 100 deep"):
        models.load(tmp_path / "x.pth", task="toy", sites=6)


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (b"})" + b"2\x86" * 40 + b"K\x01s", "a tuple or a set as a key"),  # its hash takes 2^40 steps
        (b"}N" + b"\x85" * 100_000 + b"K\x01s", "nested more than 100 deep"),  # its hash overflows the C stack
        (b"]" + b"(" + b"]" * 3 + b"\x91", "a mark|set|list|unhashable|as a key|pickle"),
    ],
    ids=["shared tuples", "deep tuple", "frozen set of lists"],
)
def test_keys_whose_hash_may_take_forever_are_refused_before_anybody_hashes_them(tmp_path, weights, stream, said):
    torch.save({"model": weights, "config": {"arch": SETTINGS}}, tmp_path / "x.pth")
    with_pickle(tmp_path / "x.pth", lambda pickled: b"\x80\x02" + stream + b".")
    with pytest.raises(CheckpointError, match=said):
        models.load(tmp_path / "x.pth", task="toy", sites=6)


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (b"r\xff\xff\xff\x7f", "a memo slot beyond the end of the stream"),
        (b"p999999999\n", "a memo slot beyond the end of the stream"),
        (b"\x82\x01", "an extension code"),
        (b"\x8e" + struct.pack("<Q", 2**40) + b"x", "expected 1099511627776 bytes"),
        (b"t", "MARK|mark"),
        (b"N}b", "__dict__"),
        (b"N(tR", "NoneType"),
        (b"cos\nsystem\n(tQ", "unpack"),
        (b"(" + text("storage") + b"NNNNtQ", "a storage that torch.save does not write"),
        (b"X\xff\xff\xff\xff", "expected|not enough data"),
        (b"\x00", "opcode|unknown"),
    ],
)
def test_malformed_pickles_are_refused_with_the_reason(stream, said, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pth")
    with_pickle(tmp_path / "x.pth", lambda content: content[:-1] + stream + b"0.")
    for read in (read_as_data, models.load):
        with pytest.raises(CheckpointError, match=rf"x\.pth holds a pickle that cannot be read as data \(.*({said}).*\)\. A checkpoint is made of"):
            read(tmp_path / "x.pth")


def test_a_pickle_cut_anywhere_is_refused(tmp_path):
    torch.save({"model": made.state_dict("eqr", width=16, sites=6), "x": Reduced(os.getcwd)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as archive:
        length = len(archive.read("whole/data.pkl"))
    for kept in range(0, length - 1, 61):
        cut = tmp_path / "cut.pth"
        cut.write_bytes((tmp_path / "whole.pth").read_bytes())
        with_pickle(cut, lambda content, kept=kept: content[:kept])
        with pytest.raises(CheckpointError, match=r"cannot be read as data"):
            read_archive(cut)


def read(value, path):
    torch.save(value, path)
    return read_as_data(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool])
def test_tensors_are_those_that_torch_reads(dtype, tmp_path):
    whole = (torch.arange(24).reshape(4, 6) % 7).to(dtype)
    views = {"whole": whole, "turned": whole.T, "part": whole[1:3, ::2], "number": whole[2, 3], "none": whole[:0], "parameter": whole}
    if dtype.is_floating_point:
        views["parameter"] = torch.nn.Parameter(whole)
    archive = read(views, tmp_path / "x.pt")
    for name, view in views.items():
        found = tensor_of(archive, archive.holds[name])
        assert found is not None and found.dtype == dtype and found.shape == view.shape and found.equal(view.detach()), name
    assert tensor_of(archive, 3) is None and tensor_of(archive, Placeholder()) is None


def test_state_dicts_objects_and_arrays_are_data(tmp_path):
    module = types.ModuleType("soon_gone")
    module.Thing = type("Thing", (), {"__module__": "soon_gone"})
    sys.modules["soon_gone"] = module
    thing = module.Thing()
    thing.inside = torch.ones(3)
    values = {"layers": torch.nn.Linear(2, 3).state_dict(), "thing": thing, "array": np.arange(6.0), "number": np.float32(2), "given": collections.OrderedDict(a=1, b=2)}
    try:
        archive = read(values, tmp_path / "x.pt")
    finally:
        del sys.modules["soon_gone"]
    holds = archive.holds
    assert mapping_of(holds["given"]) == {"a": 1, "b": 2}
    assert list(mapping_of(holds["layers"])) == ["weight", "bias"] and tensor_of(archive, mapping_of(holds["layers"])["bias"]).shape == (3,)
    assert holds["thing"].name == "soon_gone.Thing" and tensor_of(archive, mapping_of(holds["thing"])["inside"]).equal(torch.ones(3))
    assert isinstance(holds["array"], Placeholder) and "_reconstruct" in holds["array"].name
    assert mapping_of(3) is None and mapping_of(holds["array"]) is None


def forged(path, **changed):
    """A tensor whose record says something else than its storage holds."""
    torch.save({"a": torch.arange(6.0)}, path)
    said = {"key": "0", "numbers": 6, "offset": 0, "size": (6,), "stride": (1,), "kind": "Float"} | changed
    storage = b"(" + text("storage") + f"ctorch\n{said['kind']}Storage\n".encode() + text(said["key"]) + text("cpu") + pickle.dumps(said["numbers"], 2)[2:-1] + b"tQ"
    parts = b"".join(pickle.dumps(said[name], 2)[2:-1] for name in ("offset", "size", "stride"))
    with_pickle(path, lambda content: b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + parts + b"\x89NtR.")
    return read_as_data(path)


def test_records_of_tensors_are_checked_against_their_bytes(tmp_path):
    path = tmp_path / "x.pt"
    fine = forged(path)
    assert tensor_of(fine, fine.holds).equal(torch.arange(6.0))
    for changed, said in (
        ({"numbers": 7}, r"7 numbers of 4 bytes in a record of 24 bytes"),
        ({"numbers": 3}, r"3 numbers of 4 bytes in a record of 24 bytes"),
        ({"key": "9"}, r"in a record of 0 bytes"),
        ({"kind": "Double"}, r"6 numbers of 8 bytes in a record of 24 bytes"),
        ({"size": (7,)}, r"size \(7,\), stride \(1,\), offset 0 in 6 numbers"),
        ({"offset": 1}, r"offset 1 in 6 numbers"),
        ({"offset": -1}, r"offset -1"),
        ({"stride": (2,)}, r"stride \(2,\)"),
        ({"stride": (-1,)}, r"stride \(-1,\)"),
        ({"size": (2, 3)}, r"size \(2, 3\), stride \(1,\)"),
        ({"size": (10**9, 10**9), "stride": (0, 0)}, r"in 6 numbers"),
        ({"size": "many"}, r"size 'many'"),
        ({"size": (2**60,)}, r"size \(1152921504606846976,\)"),
        ({"size": (True,)}, r"size \(True,\)"),
    ):
        archive = forged(path, **changed)
        with pytest.raises(CheckpointError, match=rf"x\.pt describes a tensor that cannot be: .*{said}.*Size, stride and offset lie within"):
            tensor_of(archive, archive.holds)
    archive = forged(path, kind="ComplexFloat")
    with pytest.raises(CheckpointError, match=r"stores numbers as ComplexFloat\. BFloat16, Bool, .* are read"):
        tensor_of(archive, archive.holds)
    archive = read_as_data(with_pickle(path, lambda content: b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NtR."))
    with pytest.raises(CheckpointError, match=r"_rebuild_tensor_v2 with 1 arguments"):
        tensor_of(archive, archive.holds)


def test_big_endian_files_are_refused(tmp_path):
    torch.save({"a": torch.zeros(2), "b": Reduced(os.getcwd)}, tmp_path / "x.pth")
    content = (tmp_path / "x.pth").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(tmp_path / "x.pth", "w") as after:
        for info in before.infolist():
            after.writestr(info.filename, b"big" if info.filename.endswith("byteorder") else before.read(info))
    with pytest.raises(CheckpointError, match=r"was written on a big-endian machine"):
        read_as_data(tmp_path / "x.pth")
