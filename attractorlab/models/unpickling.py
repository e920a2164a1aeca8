"""What torch.save wrote, read as data: every name in the pickle becomes an inert stand-in, and nothing is called."""

import io
import math
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from attractorlab.errors import BadData

DEEPEST = 100  # nesting of values; training files have a dozen
ZIP = b"PK\x03\x04"
REBUILT = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v3")
WRAPPED = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
# What a stream that is no pickle, or one made by hand, makes of the readers of the standard library and of torch.
MALFORMED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


class CheckpointError(BadData):
    """A model file that cannot be read as one."""


class Storage(NamedTuple):
    """The numbers behind tensors: which record of the archive, of what kind and how many. The device they were on does not matter."""

    kind: str
    key: str
    numbers: int


class _HoldState:
    # A class has no state of its own: BUILD on the class itself, rather than on an instance, finds a function that does nothing.
    def __get__(self, instance: "Placeholder | None", owner: type) -> Callable[[Any], None]:
        return (lambda state: None) if instance is None else instance.hold


class Placeholder:
    """A stand-in for whatever a pickle names. It keeps what it was given, and calling it makes another one.

    Each name has a subclass of its own, so that a pickle may make instances of it in every way that pickles know.
    """

    name: ClassVar[str] = "?"
    args: tuple[Any, ...]
    state: Any
    items: list[tuple[Any, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> "Placeholder":
        made = object.__new__(cls)
        made.args, made.state, made.items = args, None, [*kwargs.items()]
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    __setstate__ = _HoldState()

    def hold(self, state: Any) -> None:
        """Keep what a pickle gives as the state of an object."""
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> "Placeholder":
        return type(self)(*args, **kwargs)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        """Keep an element of a list."""
        self.items.append((None, value))

    def extend(self, values: Any) -> None:
        """Keep elements of a list."""
        self.items += [(None, value) for value in values]

    def add(self, value: Any) -> None:
        """Keep an element of a set."""
        self.items.append((None, value))


@dataclass(frozen=True)
class Archive:
    """A file of torch.save: what it holds, and the bytes of its storages where they are not tensors yet."""

    path: Path
    holds: Any
    storages: Mapping[str, bytes]


def read_archive(path: Path) -> Archive:
    """What a file of torch.save holds; tensors lie on the CPU, or are to be made by `tensor_of`, one at a time.

    torch's own reader of weights goes first. It refuses files that name classes, as training files do. They are read as data, by `read_as_data`.

    Raises:
        CheckpointError: If the file is truncated, damaged, or not written by torch.save.
    """
    check_archive(path)
    _check_pickle(path)
    try:
        with open(path, "rb") as file, warnings.catch_warnings():  # given a path, torch goes by its ending
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols that it may not know: the other reader knows them
            return Archive(path, torch.load(file, map_location="cpu", weights_only=True), {})
    except MALFORMED:
        return read_as_data(path)


def read_as_data(path: Path) -> Archive:
    """What a file of torch.save holds, as containers, numbers, text, `Storage` and `Placeholder`: nothing that it names is imported, made or called.

    Raises:
        CheckpointError: If the file is truncated, damaged, or not written by torch.save.
    """
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        records = {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}
    if "data.pkl" not in records:
        raise CheckpointError(f"{path} is a zip file without a record data.pkl. torch.save writes one. Give the file that the training wrote.")
    if records.get("byteorder", b"little") != b"little":
        raise CheckpointError(
            f"{path} was written on a big-endian machine. Only little-endian files are read. Save it again with torch on a little-endian machine."
        )
    with _as_data(path):
        _check_opcodes(records["data.pkl"])
        holds = _Reader(io.BytesIO(records["data.pkl"])).load()
    return Archive(path, holds, {name.removeprefix("data/"): content for name, content in records.items() if name.startswith("data/")})


def _check_pickle(path: Path) -> None:
    """Raise a CheckpointError if reading the pickle of the archive could take forever; torch's reader, which goes first, would not notice."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith("data.pkl"):
                with _as_data(path):
                    _check_opcodes(archive.read(info))


@contextmanager
def _as_data(path: Path) -> Iterator[None]:
    """Turns what a pickle that is no data raises into a CheckpointError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of odd escapes in texts
            yield
    except MALFORMED as error:
        raise CheckpointError(
            f"{path} holds a pickle that cannot be read as data ({_said(error)}). A checkpoint is made of containers, numbers, text and tensors. "
            "Save its state dict alone: torch.save(model.state_dict(), path)."
        ) from None


def check_archive(path: Path) -> None:
    """Raise a CheckpointError unless `path` is a whole zip file whose records are stored as they are, as torch.save stores them."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            broken = next((info.filename for info in infos if info.compress_type != zipfile.ZIP_STORED), None)
            if not broken and (len({info.filename for info in infos}) < len(infos) or sum(info.file_size for info in infos) > path.stat().st_size):
                raise zipfile.BadZipFile("records overlap, or share a name")
            broken = broken or archive.testzip()
    except (zipfile.BadZipFile, OSError, *MALFORMED) as error:
        raise CheckpointError(
            f"{path} begins like a file of torch.save and cannot be read to its end ({_said(error)}). Such a file is a whole zip archive. "
            "Copy or fetch it again; it is probably truncated."
        ) from None
    if broken:
        raise CheckpointError(
            f"{path} has the damaged or compressed record {broken!r}. torch.save stores records as they are, with a checksum. Copy or fetch the file again."
        )


def tensor_of(archive: Archive, record: Any) -> torch.Tensor | None:
    """The tensor that a record of the pickle describes, on the CPU; None if the record is no tensor.

    Raises:
        CheckpointError: If the record contradicts itself or the bytes that the file holds.
    """
    if isinstance(record, torch.Tensor):
        if record.layout == torch.strided and record.device.type == "cpu" and record.numel() * record.element_size() > record.untyped_storage().nbytes():
            raise CheckpointError(
                f"{archive.path} describes a tensor of {record.numel()} numbers that holds fewer. Size, stride and offset lie within the stored numbers. Copy or fetch the file again."
            )
        return record
    for _ in range(2):  # a parameter wraps a tensor
        if isinstance(record, Placeholder) and record.name in WRAPPED and record.args:
            record = record.args[0]
    if not isinstance(record, Placeholder) or record.name not in REBUILT:
        return None
    wrong = f"{archive.path} describes a tensor that cannot be: {{}}. Size, stride and offset lie within the stored numbers. Copy or fetch the file again."
    if len(record.args) < 4 or not isinstance(record.args[0], Storage):
        raise CheckpointError(wrong.format(f"{record.name} with {len(record.args)} arguments"))
    storage, offset, size, stride = record.args[:4]
    dtype = DTYPES.get(storage.kind)
    if dtype is None:
        raise CheckpointError(
            f"{archive.path} stores numbers as {storage.kind}. {', '.join(sorted(DTYPES))} are read. Save the weights in one of these, e.g. as float32."
        )
    plain = all(isinstance(part, tuple) and all(type(n) is int and 0 <= n < 2**48 for n in part) for part in (size, stride, (offset,)))
    if not plain or len(size) != len(stride):
        raise CheckpointError(wrong.format(f"size {size!r}, stride {stride!r}, offset {offset!r}"))
    content = archive.storages.get(storage.key, b"")
    width = dtype.itemsize
    if len(content) != storage.numbers * width:
        raise CheckpointError(wrong.format(f"{storage.numbers} numbers of {width} bytes in a record of {len(content)} bytes"))
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 in size:
        return torch.empty(size, dtype=dtype)
    if last >= storage.numbers or math.prod(size) > storage.numbers:
        raise CheckpointError(wrong.format(f"size {size}, stride {stride}, offset {offset} in {storage.numbers} numbers"))
    return torch.frombuffer(bytearray(content), dtype=dtype).as_strided(size, stride, offset).clone()


def mapping_of(value: Any) -> Mapping[str, Any] | None:
    """`value` as a mapping by name, if it is a dict, an ordered one, or an object with fields; None otherwise."""
    if isinstance(value, Mapping):
        return {key: part for key, part in value.items() if isinstance(key, str)}
    if not isinstance(value, Placeholder):
        return None
    if value.name == "collections.OrderedDict":
        given = value.args[0] if value.args and isinstance(value.args[0], (list, tuple)) else ()
        pairs = (one for one in (*given, *value.items) if isinstance(one, (list, tuple)) and len(one) == 2)
        return {key: part for key, part in pairs if isinstance(key, str)}
    return mapping_of(value.state) if isinstance(value.state, dict) else None


class _Seen(NamedTuple):
    """What is known of a value on the pickle's stack: whether its hash goes through all that it holds, and how deep it is nested."""

    hashed_through: bool
    depth: int


def _check_opcodes(stream: bytes) -> None:
    """Follow the stream without making anything, and refuse what a reader would pay for before it notices.

    That is lengths and memo slots beyond the stream, registered extensions, values nested without end, and tuples as keys, whose hash may take forever.
    """
    stack: list[_Seen | None] = []  # None is a mark
    memo: dict[int, _Seen | None] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        name, slot = opcode.name, int(argument) if isinstance(argument, int) else 0
        if name.startswith("EXT"):
            raise pickle.UnpicklingError("an extension code")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            if slot > len(stream):
                raise pickle.UnpicklingError("a memo slot beyond the end of the stream")
            memo[len(memo) if name == "MEMOIZE" else slot] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[slot])
        elif name == "MARK":
            stack.append(None)
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            _one_opcode(opcode, stack)


def _one_opcode(opcode: pickletools.OpcodeInfo, stack: list[_Seen | None]) -> None:
    name, wanted = opcode.name, [one.name for one in opcode.stack_before]
    above: list[_Seen] = []
    if "mark" in wanted:
        if None not in stack:
            raise pickle.UnpicklingError("a mark that is not there")
        while (top := stack.pop()) is not None:
            above.insert(0, top)
        wanted = wanted[: wanted.index("mark")]
    taken = [stack.pop() for _ in wanted][::-1]
    held = [one for one in taken if one is not None] + above
    keys = held[1:2] if name == "SETITEM" else above[0::2] if name in ("SETITEMS", "DICT") else above if name in ("ADDITEMS", "FROZENSET") else []
    if any(key.hashed_through for key in keys):
        raise pickle.UnpicklingError("a tuple or a set as a key")
    grows = name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")  # the first value takes in the others
    inner = max((one.depth for one in (held[1:] if grows else held)), default=-1) + 1
    depth = max(inner, held[0].depth) if grows and held else inner
    if depth > DEEPEST:
        raise pickle.UnpicklingError(f"values nested more than {DEEPEST} deep")
    stack += [_Seen(name.startswith("TUPLE") or name == "FROZENSET", depth) for _ in opcode.stack_after]


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        return type("Placeholder", (Placeholder,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: Any, /) -> Storage:
        word, kind, key, _, count = pid
        if word != "storage" or not isinstance(key, str) or type(count) is not int or not isinstance(kind, type) or not issubclass(kind, Placeholder):
            raise pickle.UnpicklingError("a storage that torch.save does not write")
        return Storage(kind.name.rpartition(".")[2].removesuffix("Storage"), key, count)


def _said(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:120].rstrip(".") or type(error).__name__
