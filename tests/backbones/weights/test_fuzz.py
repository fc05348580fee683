"""Files of every kind, mutated: they are read, or refused in one line; nothing else happens."""

import io
import itertools
import json
import pickle
import pickletools
import resource
import struct
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.models import VisionTransformer

from backbones import ViT
from backbones.weights import WeightsError, encoder_words, load_encoder, read
from backbones.weights.files import read_state

from .hostile import KINDS, repacked

STATE = {
    "blocks.0.weight": torch.arange(6.0).view(2, 3).T,
    "blocks.0.bias": torch.ones(2).half(),
    "n": torch.tensor(7),
}
CONTENT = {"model": STATE, "epoch": 3, "betas": (0.9, 0.999), "log": "x" * 20}
MARK = "fuzz-mark"

_CALL = b"cos\nsystem\n(" + b"X%c\0\0\0touch " % (6 + len(MARK)) + MARK.encode() + b"tR"
_NAMES = (
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n",
    b"ccollections\nCounter\n",
    b"cargparse\nNamespace\n",
    b"ctorch\nSize\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy._core.numeric\n_frombuffer\n",
    b"cnumpy\ndtype\n",
    b"cnumpy\nndarray\n",
    b"cbuiltins\nbytearray\n",
)
_NUMBERS = [
    struct.pack(form, number)
    for form in ("<B", "<H", "<I", "<Q")
    for number in (0, 1, 0x7F, 0xFF)
] + [struct.pack("<q", number) for number in (-1, 2**31, 2**40, 2**62, -(2**62))]  # fmt: skip

bytes_edits = st.tuples(
    st.sampled_from(("flip", "delete", "insert", "copy", "cut", "number")),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 255),
    st.one_of(st.binary(max_size=8), st.sampled_from(_NUMBERS)),
)
instructions = st.one_of(
    st.sampled_from([op.code.encode("latin1") for op in pickletools.opcodes]),
    st.sampled_from((*_NAMES, _CALL)),
    st.integers(0, 30).map(lambda i: b"h" + bytes([i])),
    st.sampled_from(_NUMBERS).map(lambda number: b"\x8a" + bytes([len(number)]) + number),
    st.binary(min_size=1, max_size=4).map(lambda text: b"U" + bytes([len(text)]) + text),
)
pickle_edits = st.tuples(
    st.sampled_from(("insert", "delete", "replace", "copy")),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 4),
    st.lists(instructions, min_size=1, max_size=3).map(b"".join),
)


def edited(data: bytes, edits: list[tuple]) -> bytes:
    """Bytes changed at any place."""
    for what, place, number, extra in edits:
        at = int(place * len(data))
        if what == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (number or 1)]) + data[at + 1 :]
        elif what == "delete":
            data = data[:at] + data[at + 1 + number :]
        elif what == "insert":
            data = data[:at] + extra + data[at:]
        elif what == "copy":
            data = data[:at] + data[at // 2 : at // 2 + number] + data[at:]
        elif what == "cut":
            data = data[:at]
        elif what == "number":
            data = data[:at] + extra + data[at + len(extra) :]
    return data


def pickle_edited(program: bytes, edits: list[tuple]) -> bytes:
    """Instructions changed, at their borders."""
    starts = [at for _, _, at in pickletools.genops(program)] + [len(program)]
    parts = [program[a:b] for a, b in itertools.pairwise(starts)]
    for what, place, number, extra in edits:
        at = 1 + int(place * (len(parts) - 1))
        if what == "insert":
            parts[at:at] = [extra]
        elif what == "replace":
            parts[at : at + number] = [extra]
        elif what == "delete":
            del parts[at : at + number]
        elif what == "copy":
            parts[at:at] = parts[at // 2 : at // 2 + number]
    return b"".join(parts)


def saved(kind: str, folder: Path) -> bytes:
    KINDS[kind](folder / "saved", CONTENT if kind in ("torch", "legacy") else STATE)
    return (folder / "saved").read_bytes()


def in_archive(data: bytes, edits: list[tuple]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        program = archive.read("saved/data.pkl")
    return repacked(data, {"data.pkl": pickle_edited(program, edits)})


def in_legacy(data: bytes, edits: list[tuple]) -> bytes:
    file = io.BytesIO(data)
    ends = [[file.tell() for _ in pickletools.genops(file)][-1] for _ in range(4)]
    program = pickle_edited(data[ends[2] : ends[3]], edits)
    return data[: ends[2]] + program + data[ends[3] :]


def in_header(data: bytes, edits: list[tuple]) -> bytes:
    """Safetensors with a changed header of the right length."""
    (size,) = struct.unpack("<Q", data[:8])
    header = edited(data[8 : 8 + size], edits)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


# What is changed: kind of file, how, and by which edits.
TARGETS: dict[str, tuple[str, Callable[[bytes, list], bytes], st.SearchStrategy]] = {
    **{f"bytes of {kind}": (kind, edited, bytes_edits) for kind in KINDS},
    "pickle of torch": ("torch", in_archive, pickle_edits),
    "pickle of legacy": ("legacy", in_legacy, pickle_edits),
    **{
        f"pickle of {kind}": (kind, pickle_edited, pickle_edits)
        for kind in KINDS
        if kind.startswith("pickle")
    },
    "header of safetensors": ("safetensors", in_header, bytes_edits),
}


tensor_edits = st.tuples(
    st.sampled_from(("drop", "rename", "flat", "axis", "empty", "number", "twice", "int", "nan")),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from((".", "x", "", "11", ".weight")),
)


def tensors_edited(state: dict, edits: list[tuple]) -> dict:
    """Keys, shapes and types changed."""
    state = dict(state)
    for what, place, text in edits:
        key = list(state)[int(place * len(state))]
        tensor = state.pop(key)
        if what == "rename":
            at = int(place * 1000) % len(key)
            state[key[:at] + text + key[at + 1 :]] = tensor
        elif what != "drop":
            state[key] = {
                "flat": tensor.flatten(),
                "axis": tensor[None],
                "empty": tensor.flatten()[:0],
                "number": tensor.flatten()[:1].sum(),  # of an empty one, too
                "twice": torch.cat([tensor, tensor]),
                "int": tensor.long(),
                "nan": tensor * float("nan"),
            }[what]
    return state


def memory() -> int:
    """The most that this process has taken, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def fuzz(target: str, examples: int, folder: Path) -> Counter:
    """Reads mutated files; returns how many were read, and how many refused."""
    kind, change, edits = TARGETS[target]
    data, path = saved(kind, folder), folder / "mutated"
    path.write_bytes(change(data, []))
    assert read_state(path).keys() == STATE.keys()
    seen, before = Counter(), memory()

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(edits, min_size=1, max_size=3))
    def one(changes):
        path.write_bytes(change(data, changes))
        start = time.monotonic()
        try:
            state = read_state(path)
        except WeightsError as error:
            seen["refused"] += 1
            message = str(error)
            assert message.startswith(f"cannot read {path}: ")
            assert message.isprintable()
            assert "MemoryError" not in message
        else:
            seen["read"] += 1
            for key, tensor in state.items():
                assert key.isprintable()
                tensor.clone()  # what is mapped is there
        assert time.monotonic() - start < 5
        assert memory() - before < 200
        assert not Path(MARK).exists()

    one()
    return seen


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_files(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = fuzz(target, 40, tmp_path)
    assert seen["refused"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_ten_thousand_mutated_files(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = fuzz(target, -(-10_000 // len(TARGETS)), tmp_path)
    assert min(seen["refused"], seen["read"]) > 0


def test_the_call_would_leave_its_mark(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(b"\x80\x02" + _CALL + b".")
    assert Path(MARK).exists()


@settings(max_examples=50, derandomize=True, database=None, deadline=None)
@given(st.lists(bytes_edits, min_size=1, max_size=3))
def test_mutated_indexes_of_shards(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("model")
    for number, (key, tensor) in enumerate(STATE.items()):
        KINDS["safetensors"](folder / f"{number}.safetensors", {key: tensor})
    shards = {key: f"{number}.safetensors" for number, key in enumerate(STATE)}
    index = json.dumps({"weight_map": shards}).encode()
    (folder / "model.safetensors.index.json").write_bytes(edited(index, changes))
    try:
        message = "".join(read_state(folder))
    except WeightsError as error:
        message = str(error)
    assert message.isprintable()


@pytest.mark.parametrize("kind", ["torch", "pickle 4", "safetensors"])
def test_files_with_other_tensors(kind, tmp_path):
    """Through the public API: they fit, or are refused in one line that names the file."""
    sizes = dict(image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32)
    vit, path = VisionTransformer(**sizes).state_dict(), tmp_path / "w"
    KINDS[kind](path, vit)
    words, seen = encoder_words(read(path)), Counter()

    @settings(max_examples=60, derandomize=True, database=None, deadline=None)
    @given(st.lists(tensor_edits, min_size=1, max_size=3), st.booleans())
    def one(changes, strict):
        KINDS[kind](path, tensors_edited(vit, changes))
        try:
            load_encoder(ViT(**words), path, strict, show=str)
            seen["loaded"] += 1
        except WeightsError as error:
            seen["refused"] += 1
            message = str(error)
            assert str(path) in message
            assert message.isprintable()

    one()
    assert min(seen["loaded"], seen["refused"]) > 0
