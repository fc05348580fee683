"""Nothing in a file is executed; what it names is said in one line."""

import copyreg
import functools
import importlib
import io
import operator
import os
import pickle
import subprocess
import time
import timeit
from pathlib import Path

import pytest
import torch

from backbones import ViT
from backbones.weights import WeightsError, load_encoder
from backbones.weights.pickle_names import TORCH_NAMES

from .hostile import refusal, text, with_pickle


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
    "INST": lambda mark: b"(" + text(f"touch {mark}") + b"ios\nsystem\n.",
    "OBJ": lambda mark: b"(cos\nsystem\n" + text(f"touch {mark}") + b"o.",
    "STACK_GLOBAL": lambda mark: b"\x80\x04" + _STACK_GLOBAL + text(f"touch {mark}") + b"\x85R.",
    "NEWOBJ": lambda mark: b"c" + _MARKS + text(mark) + b"\x85\x81.",
    "NEWOBJ_EX": lambda mark: b"c" + _MARKS + b")}" + text("mark") + text(mark) + b"s\x92.",
    "BUILD": lambda mark: b"c" + _MARKS + b")\x81}" + text("mark") + text(mark) + b"sb.",
    "EXT1": lambda mark: b"\x82\xf1" + text(mark) + b"\x85R.",
    "class of a container": lambda mark: (
        b"cargparse\nNamespace\n)\x81N}" + text("__class__") + b"c" + _MARKS + b"s\x86b}"
        + text("mark") + text(mark) + b"sb."
    ),
    "method of a container": lambda mark: (
        b"ccollections\nOrderedDict\n)R}" + text("__reduce_ex__") + b"cos\nsystem\nsb0"
        + b"cos\nsystem\n" + text(f"touch {mark}") + b"\x85R."
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
