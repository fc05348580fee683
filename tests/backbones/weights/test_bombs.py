"""No file takes memory or time that it has not."""

import pickle
import struct
import tracemalloc

import pytest
import torch

from backbones.weights.files import read_state

from .hostile import KINDS, assert_same, memory, refusal, text, with_pickle


def _long(number: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", number)


def _storage(numel: int, key: str = "0", kind: str = "Float") -> bytes:
    """Of a torch archive; see `_of_kind`."""
    return (
        b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key) + text("cpu")
        + _long(numel) + b"tQ"
    )  # fmt: skip


def _tensor(storage: bytes, offset: int, size: int, stride: int) -> bytes:
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + _long(offset) + _long(size) + b"\x85"
        + _long(stride) + b"\x85\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


_RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"


def _array(shape: bytes, data: bytes, dtype: bytes = b"f4") -> bytes:
    return (
        _RECONSTRUCT + b"(cnumpy\nndarray\n(K\0tC\x01btR(K\x01" + shape
        + b"cnumpy\ndtype\n(U\x02" + dtype + b"K\0K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\0tb\x89" + data + b"tb"
    )  # fmt: skip


def _laughs(last: bytes) -> bytes:
    """Each tuple is twice the one before: 2 ** 60 parts to hash, compare or show."""
    return b")" + b"q\0h\0\x86" * 60 + last


def _of_kind(kind: str, program: bytes) -> bytes:
    """A whole file; legacy files say of a storage that it is no view."""
    if kind == "legacy":
        program = program.replace(b"tQ", b"NtQ")
    return with_pickle(kind, b"\x80\x02" + program)


_HUGE = 10**12


_W = text("w")


_DAMAGED = "its pickle is damaged, or made for something else than weights"


_BEYOND = "it has a tensor of shape "


_NO_SIZES = "it has a tensor of sizes that no tensor has"


_MORE = "it has a tensor with more to it than values"


_NO_NAMES = "its pickle has a dict whose keys are no names"


_NO_NUMBERS = "it has arrays of something else than numbers of this machine"


_TOO_LONG = "its pickle has more than 1,000,000 instructions: save its tensors alone"


_CUT_SHORT = "it is cut short: copy or download it again"


_ORDERED = b"ccollections\nOrderedDict\n"


_MANY = b"(" + b"".join(b"M" + struct.pack("<H", i) + b"K\1" for i in range(20000)) + b"u"


_PARAMETER = b"ctorch._utils\n_rebuild_parameter\n"


_ONE = _storage(1)


# Pickles that take memory or time without end, or tensors that are none: kinds of file, what is
# said, and the pickle.
BOMBS = {
    "bytearray": ("*", "its pickle names", b"cbuiltins\nbytearray\n" + _long(_HUGE) + b"\x85R."),
    "storage by name": ("torch", _DAMAGED, b"ctorch\nFloatStorage\n" + _long(_HUGE) + b"\x85R."),
    "untyped": (
        "*", "its pickle names", b"ctorch.storage\nUntypedStorage\n" + _long(_HUGE) + b"\x85R."
    ),
    "storage": ("archive", "it lacks data of the storage 0", _storage(_HUGE) + b"."),
    "legacy storage": ("legacy", "its storage 0 has two sizes", _storage(_HUGE) + b"."),
    "no record": ("archive", "it lacks data of the storage 1", _storage(1, "1") + b"."),
    "no storage": ("legacy", "its storages are not those of its tensors", _storage(1, "1") + b"."),
    "record of a strange name": (
        "archive", "it lacks data of the storage a?[31m b", _storage(1, "a\x1b[31m\nb") + b"."
    ),
    "size": ("torch", _BEYOND, b"}" + _W + _tensor(_ONE, 0, _HUGE, 1) + b"s."),
    "stride of 0": ("torch", _BEYOND, b"}" + _W + _tensor(_ONE, 0, _HUGE, 0) + b"s."),
    "stride": ("torch", _BEYOND, b"}" + _W + _tensor(_ONE, 0, 2, _HUGE) + b"s."),
    "stride within": ("torch", _BEYOND, b"}" + _W + _tensor(_ONE, 0, 2, 0) + b"s."),
    "offset": ("torch", _BEYOND, b"}" + _W + _tensor(_ONE, _HUGE, 1, 1) + b"s."),
    "offset by one": ("torch", _BEYOND, b"}" + _W + _tensor(_ONE, 1, 1, 1) + b"s."),
    "negative offset": ("torch", _NO_SIZES, b"}" + _W + _tensor(_ONE, -1, 1, 1) + b"s."),
    "negative size": ("torch", _NO_SIZES, b"}" + _W + _tensor(_ONE, 0, -1, 1) + b"s."),
    "strides": (
        "torch",
        _MORE,
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + _ONE + b"K\0K\1\x85)\x89" + _ORDERED + b")RtR.",
    ),
    "hooks": (
        "torch",
        _MORE,
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + _ONE + b"K\0K\1\x85K\1\x85\x89"
        + b"}" + _W + b"K\1stR.",
    ),
    "hooks of a parameter": (
        "torch", _MORE, _PARAMETER + _tensor(_ONE, 0, 1, 1) + b"\x89}" + _W + b"K\1s\x87R."
    ),
    "parameter of something": ("torch", _DAMAGED, _PARAMETER + b"]\x89}\x87R."),
    "metadata": ("torch", _MORE, _tensor(_ONE, 0, 1, 1)[:-2] + b"}" + text("conj") + b"\x88stR."),
    "set_": ("torch", _DAMAGED, _tensor(_ONE, 0, 1, 1) + b"(" + _ONE + b"tb."),
    "two sizes": ("torch", "its storage 0 has two sizes or types", _ONE + _storage(_HUGE) + b"."),
    "two types": (
        "torch", "its storage 0 has two sizes or types", _ONE + _storage(1, kind="Double") + b"."
    ),
    "what is no storage": (
        "torch",
        "its pickle refers to something beside storages",
        _ONE.replace(text("storage"), text("modules")) + b".",
    ),
    "sizes": ("torch", _NO_SIZES, b"ctorch\nSize\n(" + b"K\1" * 1000 + b"t\x85R."),
    "device": ("torch", _DAMAGED, b"ctorch\ndevice\n" + _laughs(b"\x85R.")),
    "Counter": (
        "torch",
        "its pickle has a Counter that is no scheduler's",
        b"ccollections\nCounter\n}" + _MANY + b"\x85R.",
    ),
    "Counter of laughs": (
        "torch", _DAMAGED, b"ccollections\nCounter\n" + _laughs(b"K\1\x86\x85\x85R.")
    ),
    "OrderedDict of pairs": (
        "*", "its pickle is of Python 2", _ORDERED + _laughs(b"K\1\x86\x85R.")
    ),
    "state of laughs": ("*", _DAMAGED, _ORDERED + b")R]" + _laughs(b"K\1\x86ab.")),
    "copies": ("*", _TOO_LONG, _ORDERED + b")R}" + _MANY + b"q\0" + b"bh\0" * 10000 + b"b."),
    "call of laughs": ("*", _DAMAGED, _laughs(b")R.")),
    "object of laughs": ("*", _DAMAGED, _laughs(b")\x81.")),
    "key of laughs": ("*", _NO_NAMES, b"}" + _laughs(b"K\1s.")),
    "storage of laughs": (
        "torch",
        _DAMAGED,
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + _laughs(text("cpu") + b"K\1tQ."),
    ),
    "dtype of laughs": ("pickle", _DAMAGED, b"cnumpy\ndtype\n" + _laughs(b"\x85R.")),
    "axes of laughs": (
        "pickle",
        _NO_SIZES,
        b"cnumpy._core.numeric\n_frombuffer\n(C\0cnumpy\ndtype\nU\x02f4\x85R)U\1K("
        + _laughs(b"ttR."),
    ),
    "codec": (
        "torch",
        "its pickle names _codecs.encode",
        b"c_codecs\nencode\n" + _W + text("zlib") + b"\x86R.",
    ),
    "codec of an array": (
        "pickle",
        "its pickle has text where the data of an array should be",
        b"c_codecs\nencode\n" + _W + text("zlib") + b"\x86R.",
    ),
    "memo": ("pickle", "it holds no tensors", b"}r\xff\xff\xff\xff."),
    "text": ("*", _CUT_SHORT, b"\x8d" + struct.pack("<Q", 2**62) + b"x."),
    "bytes": ("*", _CUT_SHORT, b"\x8e" + struct.pack("<Q", 2**62) + b"x."),
    "bytearray of protocol 5": ("*", _CUT_SHORT, b"\x96" + struct.pack("<Q", 2**62) + b"x."),
    "frame": ("pickle", "it holds no tensors", b"\x95" + struct.pack("<Q", 2**62) + b"}."),
    "dicts": ("pickle", _TOO_LONG, b"}" * 1_000_000 + b"."),
    "shape": (
        "pickle",
        "it has an array of shape (1000000000000,) in 4 bytes",
        b"}" + _W + _array(_long(_HUGE) + b"\x85", b"C\4abcd") + b"s.",
    ),
    "shapes": (
        "pickle",
        "it has an array of shape (2, 2, 2, 2",
        b"}" + _W + _array(b"(" + b"K\2" * 63 + b"t", b"C\4abcd") + b"s.",
    ),
    "short array": (
        "pickle",
        "it has an array of shape (2,) in 4 bytes",
        b"}" + _W + _array(b"K\2\x85", b"C\4abcd") + b"s.",
    ),
    "axes": ("pickle", _NO_SIZES, b"}" + _W + _array(b"(" + b"K\1" * 65 + b"t", b"C\0") + b"s."),
    "negative shape": (
        "pickle", _NO_SIZES, b"}" + _W + _array(_long(-1) + b"\x85", b"C\4abcd") + b"s."
    ),
    "objects": ("pickle", _NO_NUMBERS, b"}" + _W + _array(b"K\1\x85", b"]", b"O8") + b"s."),
    "addresses": (
        "pickle", _NO_NUMBERS, b"}" + _W + _array(b"K\1\x85", b"C\x08abcdefgh", b"O8") + b"s."
    ),
    "array of nothing": ("pickle", _NO_NUMBERS, b"}" + _W + _RECONSTRUCT + b")Rs."),
    "data twice": (
        "pickle",
        "its arrays share their data",
        b"}(" + text("data") + b"B\0\x10\0\0" + bytes(4096) + b"q\0"
        + b"".join(text(f"w{i}") + _array(b"M\0\x04\x85", b"h\0") for i in range(99)) + b"u.",
    ),
}  # fmt: skip


_KINDS_OF_PICKLE = {"*": ("archive", "legacy", "pickle"), "torch": ("archive", "legacy")}


@pytest.mark.parametrize("name", BOMBS)
def test_no_file_takes_memory_or_time(name, tmp_path):
    kinds, expected, program = BOMBS[name]
    for kind in _KINDS_OF_PICKLE.get(kinds, (kinds,)):
        (tmp_path / kind).write_bytes(_of_kind(kind.replace("archive", "torch"), program))
        with memory(2**30):
            assert refusal(tmp_path / kind).startswith(expected)


def test_views_that_are_more_than_the_file(tmp_path):
    values = torch.arange(10000.0)
    views = {str(i): values[i : i + 9000] for i in range(5)}
    for kind in ("torch", "legacy"):
        KINDS[kind](tmp_path / kind, views)
        assert refusal(tmp_path / kind) == "its tensors are larger than the file"


def test_arrays_are_not_held_twice(tmp_path):
    """In Python's memory, that is: what becomes a tensor is not counted here."""
    state = {str(i): torch.randn(2**18) for i in range(8)}  # 1 MiB each
    for protocol, most in ((2, 6), (3, 0.5), (4, 0.5), (5, 0.5)):
        KINDS[f"pickle {protocol}"](tmp_path / "w", state)
        tracemalloc.start()
        read_state(tmp_path / "w")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < most * 2**20


def test_without_the_bomb_it_is_read(tmp_path):
    """What the bombs are made of is right."""
    for kind in ("torch", "legacy"):
        program = b"}" + text("w") + _tensor(_storage(1), 0, 1, 1) + b"s."
        (tmp_path / kind).write_bytes(_of_kind(kind, program))
        assert_same(read_state(tmp_path / kind), {"w": torch.ones(1)})
    program = b"\x80\x02}" + _W + _array(b"K\1\x85", b"C\x04\0\0\x80?") + b"s."
    (tmp_path / "pickle").write_bytes(program)
    assert_same(read_state(tmp_path / "pickle"), {"w": torch.ones(1)})


def test_a_dict_that_holds_itself(tmp_path):
    for kind in ("torch", "pickle"):
        (tmp_path / kind).write_bytes(_of_kind(kind, b"}q\0" + text("model") + b"h\0s."))
        assert refusal(tmp_path / kind).startswith("it holds no tensors by name")


def test_attributes_of_a_dict_are_not_called(tmp_path):
    """OrderedDicts have attributes of their own in a file: not those that reading uses."""
    items = text("w") + _tensor(_storage(1), 0, 1, 1) + b"s"
    attributes = b"".join(text(name) + b"K\1s" for name in ("items", "get", "keys", "values"))
    program = b"ccollections\nOrderedDict\n)R" + items + b"}" + attributes + b"b."
    for kind in ("torch", "legacy"):
        (tmp_path / kind).write_bytes(_of_kind(kind, program))
        assert_same(read_state(tmp_path / kind), {"w": torch.ones(1)})


def test_storages_of_a_legacy_file(tmp_path):
    program = b"}" + text("w") + _tensor(_storage(2), 0, 1, 1) + b"s."
    (tmp_path / "w").write_bytes(_of_kind("legacy", program))
    assert refusal(tmp_path / "w") == "its storage 0 has two sizes"
    program = b"}" + text("w") + _tensor(_storage(1, "1"), 0, 1, 1) + b"s."
    (tmp_path / "w").write_bytes(_of_kind("legacy", program))
    assert refusal(tmp_path / "w") == "its storages are not those of its tensors"
    data = _of_kind("legacy", b"}" + _W + _tensor(_ONE, 0, 1, 1) + b"s.")
    keys = b"\x80\x02](" + _laughs(_laughs(b"e."))  # two to compare, part by part
    (tmp_path / "w").write_bytes(data.replace(pickle.dumps(["0"], protocol=2), keys))
    assert refusal(tmp_path / "w") == "its storages are not those of its tensors"


def test_a_protocol_that_torch_does_not_take(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pth", pickle_protocol=4)
    expected = (
        "torch.load(weights_only=True) does not take its pickle, as of another protocol than 2"
    )
    assert refusal(tmp_path / "w.pth").startswith(expected)
