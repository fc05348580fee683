"""Files of weights of every kind, and how to put a pickle of one's own into them."""

import io
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch

from backbones.weights import WeightsError
from backbones.weights.files import read_state

LEGACY_HEAD = b"".join(
    pickle.dumps(part, protocol=2)
    for part in (
        torch.serialization.MAGIC_NUMBER,
        torch.serialization.PROTOCOL_VERSION,
        dict(protocol_version=1001, little_endian=True),
    )
)


def torch_archive(path: Path, content) -> None:
    torch.save(content, path)


def legacy_torch(path: Path, content) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def numpy_pickle(protocol: int) -> Callable[[Path, dict], None]:
    """As detectron2's model zoo."""

    def write(path: Path, content) -> None:
        arrays = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in content.items()}
        about = dict(__author__="somebody", matching_heuristics=True)
        path.write_bytes(pickle.dumps(dict(model=arrays, **about), protocol=protocol))

    return write


def safetensors_file(path: Path, content) -> None:
    safetensors.torch.save_file({k: v.contiguous() for k, v in content.items()}, path)


KINDS = {
    "torch": torch_archive,
    "legacy": legacy_torch,
    "pickle 2": numpy_pickle(2),
    "pickle 3": numpy_pickle(3),
    "pickle 4": numpy_pickle(4),
    "pickle 5": numpy_pickle(5),
    "safetensors": safetensors_file,
}


def repacked(data: bytes, records: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    """A zip with some records replaced or added, by their names behind the first slash."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", compression) as new:
        root = old.namelist()[0].split("/")[0]
        found = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
        for name, content in (found | records).items():
            new.writestr(f"{root}/{name}", content)
    return out.getvalue()


def with_pickle(kind: str, program: bytes) -> bytes:
    """A file of a kind whose pickle is this; its storage "0" has a float32."""
    if kind == "torch":
        out = io.BytesIO()
        torch.save({"w": torch.ones(1)}, out)
        return repacked(out.getvalue(), {"data.pkl": program})
    if kind == "legacy":
        keys = pickle.dumps(["0"], protocol=2)
        return LEGACY_HEAD + program + keys + struct.pack("<qf", 1, 1.0)
    return program if program.startswith(b"\x80") else b"\x80\x02" + program


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


def text(words) -> bytes:
    return b"X" + struct.pack("<I", len(str(words))) + str(words).encode()
