"""Reading files: every kind exactly; what is damaged, hostile or something else, in one line."""

import argparse
import copyreg
import functools
import importlib
import io
import json
import operator
import os
import pickle
import resource
import struct
import subprocess
import time
import timeit
import tracemalloc
import zipfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torchvision.models import VisionTransformer

from backbones import ViT
from backbones.weights import WeightsError, encoder_words, load_encoder, read
from backbones.weights.files import read_state
from backbones.weights.pickles import TORCH_NAMES

from .hostile import KINDS, legacy_torch, repacked, torch_archive, with_pickle

STATE = {
    "blocks.0.weight": torch.randn(3, 4),
    "blocks.0.bias": torch.randn(700),  # longer than a name may be
    "half": torch.randn(2, 3, 4).half(),
    "transposed": torch.randn(5, 2).T,
    "permuted": torch.randn(2, 3, 4).permute(1, 0, 2),
    "number": torch.tensor(7),
    "none": torch.zeros(0, 3),
    "flags": torch.tensor([True, False]),
    "bytes": torch.arange(4, dtype=torch.uint8),
}


def refusal(path) -> str:
    """What reading it says: one line that names the file."""
    with pytest.raises(WeightsError) as error:
        read_state(path)
    message = str(error.value)
    assert message.startswith(f"cannot read {path}: ")
    assert message.isprintable()
    return message.removeprefix(f"cannot read {path}: ")


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=0)


# What is read


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["weights", "weights.pth", "weights.safetensors"])
def test_every_kind_is_read_exactly_whatever_its_name(kind, name, tmp_path):
    KINDS[kind](tmp_path / name, STATE)
    (tmp_path / name).chmod(0o444)
    assert_same(read_state(tmp_path / name), STATE)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_and_big_arrays(kind, tmp_path):
    state = {"w": torch.randn(400, 300)}
    if "pickle" not in kind:
        state["bfloat16"] = torch.randn(3).bfloat16()
    KINDS[kind](tmp_path / "weights", state)
    assert_same(read_state(tmp_path / "weights"), state)


def test_arrays_of_python_2(tmp_path):
    """Its strings are bytes: names, numpy's, and the data."""

    def text(data: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(data)) + data

    array = np.random.randn(20, 30).astype(np.float32)
    name = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    kind = (
        b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNN"
        + 2 * b"J\xff\xff\xff\xff"
        + b"K\x00tb"
    )
    state = b"(K\x01(K\x14K\x1et" + kind + b"\x89" + text(array.tobytes()) + b"tb"
    program = b"\x80\x02}U\x05blobs}U\x01w" + name + state + b"ss."
    assert np.array_equal(pickle.loads(program, encoding="latin1")["blobs"]["w"], array)
    (tmp_path / "R-50.pkl").write_bytes(program)
    assert_same(read_state(tmp_path / "R-50.pkl"), {"w": torch.from_numpy(array)})


@pytest.mark.parametrize("write", [torch_archive, legacy_torch])
def test_a_training_checkpoint(write, tmp_path):
    """Of the model alone; with all that the scripts of MAE, DeiT, torchvision and detectron2 put
    beside it."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 4])
    args = argparse.Namespace(lr=0.1, betas=(0.9, 0.999), device=torch.device("cuda", 0))
    args.dtype, args.size = torch.float16, torch.Size([3, 4])
    content = dict(
        optimizer=optimizer.state_dict(),
        lr_scheduler=scheduler.state_dict(),
        scaler={"scale": 65536.0},
        args=args,
        epoch=3,
        path="surrogate \udc80",
        log="x" * 5000,
        model=model.state_dict(),
    )
    write(tmp_path / "checkpoint.pth", content)
    assert isinstance(scheduler.state_dict()["milestones"], Counter)
    assert_same(read_state(tmp_path / "checkpoint.pth"), model.state_dict())
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("write", [torch_archive, legacy_torch])
def test_parameters_become_tensors(write, tmp_path):
    write(tmp_path / "w.pth", {"w": torch.nn.Parameter(torch.ones(2)), "n": 3, "author": "a"})
    state = read_state(tmp_path / "w.pth")
    assert_same(state, {"w": torch.ones(2)})
    assert type(state["w"]) is torch.Tensor
    assert not state["w"].requires_grad


@pytest.mark.parametrize("write", [torch_archive, legacy_torch])
def test_tied_and_sliced_tensors(write, tmp_path):
    both = torch.randn(4, 6)
    state = {"w": both, "tied": both, "row": both[1], "column": both[:, 2]}
    write(tmp_path / "w.pth", {k: state[k] for k in ("w", "tied")})
    assert_same(read_state(tmp_path / "w.pth"), {k: state[k] for k in ("w", "tied")})
    write(tmp_path / "w.pth", {k: state[k] for k in ("row", "column")})
    assert_same(read_state(tmp_path / "w.pth"), {k: state[k] for k in ("row", "column")})


@pytest.mark.parametrize(
    "name",
    [
        *("model", "state_dict", "model_state", "model_state_dict", "teacher", "model_ema"),
        *("blobs", "target_encoder", "module", "weights"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_wrappers_are_taken_off(name, prefix, tmp_path):
    content = {"epoch": torch.tensor(3), name: {prefix + k: v for k, v in STATE.items()}}
    torch.save(content, tmp_path / "w.pth")
    assert_same(read_state(tmp_path / "w.pth"), STATE)


def test_prefixes_of_some_keys_stay(tmp_path):
    for keys in (("model.a", "module.b"), ("module.a", "module.")):
        state = {key: torch.ones(1) for key in keys}
        torch.save(state, tmp_path / "w.pth")
        assert_same(read_state(tmp_path / "w.pth"), state)


def anonymous() -> int:
    """Bytes of this process's memory that are no file's."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x)
    return int(line.split()[1]) * 1024


def test_tensors_of_torch_and_safetensors_stay_in_the_file(tmp_path):
    """So do those of the optimizer."""
    big = {"w": torch.zeros(2**24)}
    torch.save({"model": big, "optimizer": {"m": torch.zeros(2**24)}}, tmp_path / "w.pth")
    safetensors.torch.save_file(big, tmp_path / "w.safetensors")
    del big
    for name in ("w.pth", "w.safetensors"):
        before = anonymous()
        state = read_state(tmp_path / name)
        assert state["w"].sum() == 0
        assert anonymous() - before < 2**23


def test_misaligned_tensors_are_copied(tmp_path):
    """Zips of other tools, and safetensors with a header of any length."""
    torch.save(STATE, tmp_path / "w.pth")
    data = repacked((tmp_path / "w.pth").read_bytes(), {"data.pk": b"x"})
    (tmp_path / "w.pth").write_bytes(data)
    state = read_state(tmp_path / "w.pth")
    assert_same(state, STATE)
    assert not any(tensor.data_ptr() % tensor.element_size() for tensor in state.values())
    header = json.dumps({"w": dict(dtype="F32", shape=[2, 2], data_offsets=[0, 16])}).encode()
    header += b" " * (1 - len(header) % 4)
    data = struct.pack("<Q", len(header)) + header + torch.arange(4.0).numpy().tobytes()
    (tmp_path / "w.safetensors").write_bytes(data)
    state = read_state(tmp_path / "w.safetensors")
    assert_same(state, {"w": torch.arange(4.0).view(2, 2)})
    assert state["w"].data_ptr() % 4 == 0


# Folders


def folder(path: Path, form: str) -> Path:
    path.mkdir()
    if form == "one":
        safetensors.torch.save_file(
            {"module.a": torch.ones(1), "b": torch.ones(2)}, path / "model.safetensors"
        )
    elif form == "bin":
        torch.save({"module.a": torch.ones(1), "b": torch.ones(2)}, path / "pytorch_model.bin")
    else:
        safetensors.torch.save_file({"module.a": torch.ones(1)}, path / "1.safetensors")
        safetensors.torch.save_file({"b": torch.ones(2)}, path / "2.safetensors")
        shards = {"module.a": "1.safetensors", "b": "2.safetensors"}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return path


@pytest.mark.parametrize("form", ["one", "bin", "shards"])
def test_folders_of_transformers(form, tmp_path):
    expected = {"module.a": torch.ones(1), "b": torch.ones(2)}
    assert_same(read_state(folder(tmp_path / "model", form)), expected)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"weight_map": {"b": "../2.safetensors"}},
            "names ../2.safetensors, which is no file beside",
        ),
        ({"weight_map": {"b": "/etc/passwd"}}, "names /etc/passwd, which is no file beside"),
        ({"weight_map": {"b": "3.safetensors"}}, "names 3.safetensors, which is no file beside"),
        ({"weight_map": {"c": "2.safetensors"}}, "its files lack c"),
        ({"weight_map": {"c": 2}}, "damaged"),
        ({"weight_map": [1]}, "damaged"),
        ([], "damaged"),
    ],
)
def test_a_wrong_index_of_shards(index, message, tmp_path):
    path = folder(tmp_path / "model", "shards")
    (path.parent / "2.safetensors").write_bytes((path / "2.safetensors").read_bytes())
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=message) as error:
        read_state(path)
    assert len(str(error.value).splitlines()) == 1


def test_an_index_of_a_million_brackets(tmp_path):
    path = folder(tmp_path / "model", "shards")
    (path / "model.safetensors.index.json").write_text("[" * 10**6)
    with pytest.raises(WeightsError, match="damaged or cut short"):
        read_state(path)


# What is no file of weights


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty: copy or download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 374979\n",
            "it is a Git LFS pointer, not the weights: git lfs pull gets them",
        ),
        (b"<!DOCTYPE html>\n<html><title>404</title></html>", "it is a web page, not weights"),
        (b"\xef\xbb\xbf\n <?xml version='1.0'?><Error/>", "it is a web page, not weights"),
        (b'{"weight_map": {}}', "it is JSON, not weights: of an index of shards, name the folder"),
        (b"\x1f\x8b\x08\x00", "it is compressed or packed: unpack it first"),
        (b"x" * 257 + b"ustar  ", "it is compressed or packed: unpack it first"),
        (b"PK\5\6" + bytes(18), "it is a damaged or empty archive"),
        (b"PK\3\4", "it is damaged or cut short (BadZipFile: File is not a zip file)"),
        (b"\x89HDF\r\n", "it is an HDF5 file (Keras), which is not read"),
        (b"torch.save", "it is no file of weights: it begins with b'torch.sa'"),
        (b"\x80\x02", "it is cut short: copy or download it again"),
        (b"\x80\x02].", "it holds no dict of tensors"),
        (b"\x80\x02}.", "it holds no tensors by name, at its top level or as its model"),
        (b"\x10\0\0\0\0\0\0\0{", "it is damaged or cut short (SafetensorError"),
        (b"\x10\0\0\1\0\0\0\0{", "its header is too large for safetensors"),
    ],
)
def test_what_is_something_else(content, message, tmp_path):
    (tmp_path / "weights.pth").write_bytes(content)
    assert refusal(tmp_path / "weights.pth").startswith(message)


def test_what_is_no_file(tmp_path):
    for path in (tmp_path / "missing.pth", tmp_path / "missing" / "weights.pth"):
        with pytest.raises(FileNotFoundError):
            read_state(path)
    assert "without model.safetensors or pytorch_model.bin: name a file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert refusal(tmp_path / "fifo") == "it is no regular file"


@pytest.mark.filterwarnings("ignore")
def test_other_archives(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "clip.pt")
    message = refusal(tmp_path / "clip.pt")
    assert message.startswith(
        "it is a TorchScript program, not weights: where you trust it, torch.save("
    )
    command = message.partition("it, ")[2].partition(" makes")[0]
    names = dict(torch=torch, FILE=tmp_path / "clip.pt", OUT=tmp_path / "weights.pth")
    eval(command, names)  # what the message says to do helps
    assert read_state(tmp_path / "weights.pth").keys() == {"weight", "bias"}
    np.savez(tmp_path / "jax.npz", w=np.ones(2))
    assert (
        refusal(tmp_path / "jax.npz")
        == "it is a NumPy archive (.npz, as of JAX), which is not read"
    )
    with zipfile.ZipFile(tmp_path / "notes.zip", "w") as archive:
        archive.writestr("notes/a.txt", "a")
    assert refusal(tmp_path / "notes.zip") == "it is a zip archive, but none of torch.save"


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_short(kind, tmp_path):
    KINDS[kind](tmp_path / "weights", STATE)
    data = (tmp_path / "weights").read_bytes()
    step = max(1, len(data) // 40)
    for length in (*range(0, 100, 7), *range(100, len(data), step), len(data) - 1):
        (tmp_path / "weights").write_bytes(data[:length])
        assert refusal(tmp_path / "weights")


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8), "_rebuild_qtensor"),
        (torch.ones(2, device="meta"), "_rebuild_meta_tensor_no_storage"),
        (torch.ones(2).to(torch.float8_e4m3fn), "torch._utils._rebuild_tensor_v3"),
    ],
)
def test_tensors_of_another_kind(tensor, kind, tmp_path):
    torch.save({"w": tensor}, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth")
    assert "its pickle names torch." in message
    assert kind in message
    assert "save its tensors alone" in message


@pytest.mark.parametrize("kind", ["torch", "legacy", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_numbers(kind, dtype, tmp_path):
    if (kind, dtype) != ("safetensors", torch.complex128):  # which it cannot write
        KINDS[kind](tmp_path / "w", {"w": torch.ones(2, dtype=dtype)})
        expected = f"w is {dtype}, not dense floating-point or whole numbers"
        assert refusal(tmp_path / "w") == expected.replace("torch.", "")


@pytest.mark.parametrize("kind", ["torch", "pickle 4"])
def test_containers_that_are_not_known_are_named(kind, tmp_path):
    """Not "holds no tensors": which of them is the model is for the user to know."""
    parts = dict(generator={"w": torch.ones(2)}, critic={"w": torch.ones(3)}, epoch=3)
    if kind == "torch":
        torch.save(parts, tmp_path / "w")
    else:
        arrays = {k: {"w": v["w"].numpy()} if k != "epoch" else v for k, v in parts.items()}
        (tmp_path / "w").write_bytes(pickle.dumps(arrays, protocol=4))
    assert refusal(tmp_path / "w") == (
        "its tensors lie in generator, critic: save the one that is the model alone, as "
        "torch.save(checkpoint[NAME], OUT)"
    )


def test_safetensors_of_another_type(tmp_path):
    state = {"w": torch.ones(2).to(torch.float8_e4m3fn)}
    safetensors.torch.save_file(state, tmp_path / "w")
    expected = "w is float8_e4m3fn, not dense floating-point or whole numbers"
    assert refusal(tmp_path / "w") == expected


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a"]),
        np.array([None]),
        np.ones(2, complex),
        np.ones(2, ">f4"),
        np.ones(2, "f4,f4"),
    ],
)
def test_arrays_of_something_else(array, tmp_path):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": {"w": array}}))
    expected = "it has arrays of something else than numbers of this machine"
    assert refusal(tmp_path / "w.pkl") == expected


@pytest.mark.parametrize("key", ["two\nlines", "\x1b[31m", "x" * 1025])
@pytest.mark.parametrize("kind", ["torch", "pickle 4", "safetensors"])
def test_keys_that_are_no_names(key, kind, tmp_path):
    KINDS[kind](tmp_path / "w", {key: torch.ones(1)})
    assert "no name" in refusal(tmp_path / "w")


# What is hostile


class Call:
    """Pickled, it becomes a call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments

    def __call__(self):
        """pickle only calls what can be called."""


class Marks:
    """Leaves a mark when it is made, or given a state."""

    def __new__(cls, *mark, **marks):
        for path in (*mark, *marks.values()):
            Path(path).touch()
        return super().__new__(cls)

    def __setstate__(self, state):
        Path(state["mark"]).touch()


def _text(text) -> bytes:
    return b"X" + struct.pack("<I", len(str(text))) + str(text).encode()


_MARKS = f"{__name__}\nMarks\n".encode()
_EXTENSION = 0xF1
_SHORT = {k: bytes([len(k)]) + k.encode() for k in (__name__, "Marks", "os", "system", "posix")}
_STACK_GLOBAL = b"\x8c" + _SHORT["posix"] + b"\x8c" + _SHORT["system"] + b"\x93"
# Pickles that leave a mark when they are loaded, of a file to touch.
HOSTILE = {
    "os.system": lambda mark: Call(os.system, f"touch {mark}"),
    "eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"),
    "exec": lambda mark: Call(exec, f"open({str(mark)!r}, 'w')"),
    "open": lambda mark: Call(open, str(mark), "w"),
    "subprocess": lambda mark: Call(subprocess.check_call, ("touch", str(mark))),
    "getattr chain": lambda mark: Call(
        Call(getattr, Call(importlib.import_module, "os"), "system"), f"touch {mark}"
    ),
    "partial": lambda mark: Call(Call(functools.partial, os.system, f"touch {mark}")),
    "methodcaller": lambda mark: Call(
        Call(operator.methodcaller, "system", f"touch {mark}"), Call(importlib.import_module, "os")
    ),
    "attrgetter": lambda mark: Call(
        Call(Call(operator.attrgetter, "system"), Call(importlib.import_module, "os")),
        f"touch {mark}",
    ),
    "map": lambda mark: Call(list, Call(map, os.system, [f"touch {mark}"])),
    "timeit": lambda mark: Call(
        timeit.timeit, f"open({str(mark)!r}, 'w')", "", time.perf_counter, 1
    ),
    "torch.load": lambda mark: Call(
        torch.storage._load_from_bytes, _saved(Call(os.system, f"touch {mark}"))
    ),
    "torch's shell": lambda mark: Call(
        importlib.import_module("torch.utils.collect_env").run, f"touch {mark}"
    ),
    "numpy's exec": lambda mark: Call(
        importlib.import_module("numpy.testing._private.utils").runstring,
        f"open({str(mark)!r}, 'w')",
        {},
    ),
    "INST": lambda mark: b"(" + _text(f"touch {mark}") + b"ios\nsystem\n.",
    "OBJ": lambda mark: b"(cos\nsystem\n" + _text(f"touch {mark}") + b"o.",
    "STACK_GLOBAL": lambda mark: b"\x80\x04" + _STACK_GLOBAL + _text(f"touch {mark}") + b"\x85R.",
    "NEWOBJ": lambda mark: b"c" + _MARKS + _text(mark) + b"\x85\x81.",
    "NEWOBJ_EX": lambda mark: b"c" + _MARKS + b")}" + _text("mark") + _text(mark) + b"s\x92.",
    "BUILD": lambda mark: b"c" + _MARKS + b")\x81}" + _text("mark") + _text(mark) + b"sb.",
    "EXT1": lambda mark: b"\x82\xf1" + _text(mark) + b"\x85R.",
    "class of a container": lambda mark: (
        b"cargparse\nNamespace\n)\x81N}" + _text("__class__") + b"c" + _MARKS + b"s\x86b}"
        + _text("mark") + _text(mark) + b"sb."
    ),
    "method of a container": lambda mark: (
        b"ccollections\nOrderedDict\n)R}" + _text("__reduce_ex__") + b"cos\nsystem\nsb0"
        + b"cos\nsystem\n" + _text(f"touch {mark}") + b"\x85R."
    ),
}  # fmt: skip


def _saved(content) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


@pytest.fixture
def extension():
    copyreg.add_extension(__name__, "Marks", _EXTENSION)
    yield
    copyreg.remove_extension(__name__, "Marks", _EXTENSION)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.usefixtures("extension")
def test_nothing_in_a_file_is_executed(name, tmp_path):
    mark = tmp_path / "mark"
    program = HOSTILE[name](mark)
    if not isinstance(program, bytes):
        program = pickle.dumps({"model": {"w": program}}, protocol=2)
    pickle.loads(program)
    assert mark.exists()
    mark.unlink()
    for kind in ("torch", "legacy", "pickle"):
        (tmp_path / kind).write_bytes(with_pickle(kind, program))
        message = refusal(tmp_path / kind)
        assert "weights do not need" in message
        with pytest.raises(WeightsError):
            load_encoder(ViT(img_size=64, embed_dim=16, depth=1, num_heads=1), tmp_path / kind)
        assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        "torch.hub.load",
        "torch.jit.load",
        "torch.load",
        "torch.utils.model_zoo.load_url",
        "torch._utils._rebuild_wrapper_subclass",
        "torch.distributed.rpc.rpc_sync",
        "torch.storage.UntypedStorage",
        "numpy.load",
        "numpy.core.multiarray.fromfile",
        "numpy._core.records.fromfile",
        "builtins.getattr",
        "builtins.bytearray",
        "__builtin__.set",
        "os.system",
    ],
)
def test_what_a_file_names_is_named(name, tmp_path):
    module, _, function = name.rpartition(".")
    program = f"\x80\x02c{module}\n{function}\n)R.".encode("latin1")
    for kind in ("torch", "legacy", "pickle"):
        (tmp_path / kind).write_bytes(with_pickle(kind, program))
        assert refusal(tmp_path / kind) == (
            f"its pickle names {name}, which weights do not need: where you trust the file, save "
            "its tensors alone, as torch.save(model.state_dict(), ...)"
        )


def test_names_are_torchs_own():
    """torch.load, which comes second, takes no name for another one and knows each."""
    known = torch._weights_only_unpickler._get_allowed_globals()
    for name in TORCH_NAMES.keys() - {"argparse.Namespace"}:
        assert name in known
        assert tuple(name.rsplit(".", 1)) not in torch._weights_only_unpickler.NAME_MAPPING


@contextmanager
def memory(more: int):
    """What asks for more memory than this, in bytes, does not get it."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmSize" in x)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(line.split()[1]) * 1024 + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _long(number: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", number)


def _storage(numel: int, key: str = "0", kind: str = "Float") -> bytes:
    """Of a torch archive; see `_of_kind`."""
    return (
        b"(" + _text("storage") + f"ctorch\n{kind}Storage\n".encode() + _text(key) + _text("cpu")
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
_W = _text("w")
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
    "metadata": ("torch", _MORE, _tensor(_ONE, 0, 1, 1)[:-2] + b"}" + _text("conj") + b"\x88stR."),
    "set_": ("torch", _DAMAGED, _tensor(_ONE, 0, 1, 1) + b"(" + _ONE + b"tb."),
    "two sizes": ("torch", "its storage 0 has two sizes or types", _ONE + _storage(_HUGE) + b"."),
    "two types": (
        "torch", "its storage 0 has two sizes or types", _ONE + _storage(1, kind="Double") + b"."
    ),
    "what is no storage": (
        "torch",
        "its pickle refers to something beside storages",
        _ONE.replace(_text("storage"), _text("modules")) + b".",
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
        b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _laughs(_text("cpu") + b"K\1tQ."),
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
        b"c_codecs\nencode\n" + _W + _text("zlib") + b"\x86R.",
    ),
    "codec of an array": (
        "pickle",
        "its pickle has text where the data of an array should be",
        b"c_codecs\nencode\n" + _W + _text("zlib") + b"\x86R.",
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
        b"}(" + _text("data") + b"B\0\x10\0\0" + bytes(4096) + b"q\0"
        + b"".join(_text(f"w{i}") + _array(b"M\0\x04\x85", b"h\0") for i in range(99)) + b"u.",
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
        program = b"}" + _text("w") + _tensor(_storage(1), 0, 1, 1) + b"s."
        (tmp_path / kind).write_bytes(_of_kind(kind, program))
        assert_same(read_state(tmp_path / kind), {"w": torch.ones(1)})
    program = b"\x80\x02}" + _W + _array(b"K\1\x85", b"C\x04\0\0\x80?") + b"s."
    (tmp_path / "pickle").write_bytes(program)
    assert_same(read_state(tmp_path / "pickle"), {"w": torch.ones(1)})


def test_a_dict_that_holds_itself(tmp_path):
    for kind in ("torch", "pickle"):
        (tmp_path / kind).write_bytes(_of_kind(kind, b"}q\0" + _text("model") + b"h\0s."))
        assert refusal(tmp_path / kind).startswith("it holds no tensors by name")


def test_attributes_of_a_dict_are_not_called(tmp_path):
    """OrderedDicts have attributes of their own in a file: not those that reading uses."""
    items = _text("w") + _tensor(_storage(1), 0, 1, 1) + b"s"
    attributes = b"".join(_text(name) + b"K\1s" for name in ("items", "get", "keys", "values"))
    program = b"ccollections\nOrderedDict\n)R" + items + b"}" + attributes + b"b."
    for kind in ("torch", "legacy"):
        (tmp_path / kind).write_bytes(_of_kind(kind, program))
        assert_same(read_state(tmp_path / kind), {"w": torch.ones(1)})


def test_storages_of_a_legacy_file(tmp_path):
    program = b"}" + _text("w") + _tensor(_storage(2), 0, 1, 1) + b"s."
    (tmp_path / "w").write_bytes(_of_kind("legacy", program))
    assert refusal(tmp_path / "w") == "its storage 0 has two sizes"
    program = b"}" + _text("w") + _tensor(_storage(1, "1"), 0, 1, 1) + b"s."
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


# Zip bombs


@pytest.fixture
def archive(tmp_path) -> bytes:
    torch.save(STATE, tmp_path / "w.pth")
    return (tmp_path / "w.pth").read_bytes()


@pytest.mark.parametrize("record", ["data.pkl", "data/0", "extra"])
def test_compressed_records(record, archive, tmp_path):
    data = repacked(archive, {record: bytes(2**26)}, zipfile.ZIP_DEFLATED)
    assert len(data) < 2**18
    (tmp_path / "w.pth").write_bytes(data)
    with memory(2**25):
        message = refusal(tmp_path / "w.pth")
    assert message == "its records are compressed, as those of torch.save never are"


def directory_patched(data: bytes, record: str, field: int, form: str, value: int) -> bytes:
    """A field of the entry of a record in the zip's directory replaced."""
    at = data.rindex(record.encode()) - 46
    assert data[at : at + 4] == b"PK\1\2"
    patched = bytearray(data)
    struct.pack_into(form, patched, at + field, value)
    return bytes(patched)


@pytest.mark.parametrize(
    ("record", "field", "form", "value", "message"),
    [
        ("w/data/0", 24, "<I", 2**31, "its records are compressed"),
        ("w/data/0", 42, "<I", 0, "its records lie on one another"),
        ("w/data.pkl", 42, "<I", 2**31, "it is damaged or cut short"),
        ("w/data/0", 8, "<H", 1, "its records are compressed"),
        ("w/data/0", 10, "<H", 12, "its records are compressed"),
    ],
)
def test_a_directory_that_lies(record, field, form, value, message, archive, tmp_path):
    (tmp_path / "w.pth").write_bytes(directory_patched(archive, record, field, form, value))
    assert refusal(tmp_path / "w.pth").startswith(message)


@pytest.mark.parametrize("name", ["data.pkl", "DATA.PKL", "Data/0"])
def test_two_records_of_one_name(name, archive, tmp_path):
    """zipfile takes the last one; torch the first, and does not tell capitals apart."""
    (tmp_path / "w.pth").write_bytes(archive)
    with zipfile.ZipFile(tmp_path / "w.pth", "a") as opened:
        opened.writestr(f"w/{name}", b"")
    assert refusal(tmp_path / "w.pth") == "it has two records of one name"


def test_sizes_beyond_the_file(archive, tmp_path):
    last = "w/.data/serialization_id"
    data = directory_patched(archive, last, 20, "<I", 2**31)
    data = directory_patched(data, last, 24, "<I", 2**31)
    (tmp_path / "w.pth").write_bytes(data)
    assert refusal(tmp_path / "w.pth") == "its records lie on one another, or are cut short"


def test_a_record_that_is_missing_or_short(archive, tmp_path):
    (tmp_path / "w.pth").write_bytes(archive.replace(b"data/1", b"data/x"))
    assert refusal(tmp_path / "w.pth") == "it lacks data of the storage 1"
    (tmp_path / "w.pth").write_bytes(repacked(archive, {"data/1": b"abc"}))
    assert refusal(tmp_path / "w.pth") == "it lacks data of the storage 1"


def test_a_directory_or_pickle_without_end(tmp_path):
    """Each byte of them takes some ten."""
    with (tmp_path / "w.pth").open("wb") as file:
        file.write(b"PK\3\4" + bytes(26))
        file.truncate(2**25)
        file.seek(0, io.SEEK_END)
        file.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 9, 9, 2**25, 0, 0))
    assert refusal(tmp_path / "w.pth") == "its directory is too large for an archive of torch.save"
    (tmp_path / "w.pth").write_bytes(with_pickle("torch", b"N" * (2**24 + 1)))
    assert refusal(tmp_path / "w.pth") == "it has too much beside its tensors: save them alone"


def test_safetensors_that_lie(tmp_path):
    for entry, message in (
        (dict(dtype="F32", shape=[2**40], data_offsets=[0, 4]), "SafetensorError"),
        (dict(dtype="F32", shape=[2**62, 2**62], data_offsets=[0, 4]), "SafetensorError"),
        (dict(dtype="F32", shape=[1], data_offsets=[0, 2**40]), "SafetensorError"),
        (dict(dtype="F32", shape=[1], data_offsets=[4, 0]), "SafetensorError"),
        (dict(dtype="X", shape=[1], data_offsets=[0, 4]), "SafetensorError"),
    ):
        header = json.dumps({"w": entry}).encode()
        (tmp_path / "w").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        with memory(2**30):
            assert message in refusal(tmp_path / "w")


# Through the public API


@pytest.fixture
def vit() -> dict[str, torch.Tensor]:
    sizes = dict(image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32)
    return VisionTransformer(**sizes).state_dict()


_MLP = "encoder.layers.encoder_layer_0.mlp.0.weight"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "blocks.0.mlp.fc1.weight has 1 values that are NaN or infinite"),
        (float("inf"), "blocks.0.mlp.fc1.weight has 1 values that are NaN or infinite"),
        (-float("inf"), "blocks.0.mlp.fc1.weight has 1 values that are NaN or infinite"),
        (torch.int64, "blocks.0.mlp.fc1.weight is torch.int64, not torch.float32"),
        (None, ""),
    ],
)
def test_load_encoder_takes_finite_floating_point_numbers(kind, value, message, vit, tmp_path):
    if isinstance(value, torch.dtype):
        vit[_MLP] = vit[_MLP].to(value)
    elif value is not None:
        vit[_MLP].view(-1)[3] = value
    path = tmp_path / "vit_b_16.pth"
    KINDS[kind](path, vit)
    encoder = ViT(**encoder_words(read(path)))
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    if not message:
        load_encoder(encoder, path, show=str)
        assert torch.equal(encoder.blocks[0].mlp.fc1.weight, vit[_MLP])
        return
    with pytest.raises(WeightsError) as error:
        load_encoder(encoder, path)
    assert str(error.value) == f"{path}: {message}"
    assert_same(encoder.state_dict(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_other_precisions_become_the_encoders(kind, vit, tmp_path):
    vit = {k: v.half() for k, v in vit.items()}
    KINDS[kind](tmp_path / "w", vit)
    encoder = ViT(**encoder_words(read(tmp_path / "w")))
    load_encoder(encoder, tmp_path / "w", show=str)
    assert torch.equal(encoder.blocks[0].mlp.fc1.weight, vit[_MLP].float())
