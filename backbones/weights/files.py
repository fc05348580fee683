"""Files of weights, read without executing anything in them.

The kind of a file is seen from its first bytes, not from its name. Tensors of torch's and
safetensors' files stay in the file until they are used (memory-mapped).
"""

import argparse
import io
import json
import mmap
import pickle
import re
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from torch import Tensor

from .contents import State, WeightsError
from .foreign import refuse_foreign
from .pickle_names import NUMPY_NAMES, TORCH_NAMES, Array, Storage
from .pickles import Unpickler

# Where checkpoints keep their model, the first that is there. "teacher": DINO's, "blobs": Caffe2's,
# "target_encoder": I-JEPA's, "module": DeepSpeed's, "weights": Perception Encoder's.
_MODELS = (
    *("model", "state_dict", "model_state", "model_state_dict", "teacher", "model_ema", "blobs"),
    *("target_encoder", "module", "weights"),
)
# What wrappers put before every key: DistributedDataParallel, torch.compile, Lightning.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")

_TORCH_ARCHIVE = b"PK\3\4"
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of its magic number
_OTHER_KINDS = {
    rb"\Z": "it is empty: copy or download it again",
    rb"version https://git-lfs": "it is a Git LFS pointer, not the weights: git lfs pull gets them",
    rb"(\xef\xbb\xbf)?\s*<": "it is a web page, not weights: download them again, from the address "
    "of the file itself",
    rb"\s*[\[{]": "it is JSON, not weights: of an index of shards, name the folder",
    rb"PK": "it is a damaged or empty archive: copy or download it again",
    rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|(?s:.{257})ustar": "it is compressed or packed: "
    "unpack it first",
    rb"\x89HDF": "it is an HDF5 file (Keras), which is not read",
}

# Bytes of a torch archive's pickle or directory, a safetensors header or an index of shards. They
# take some ten times that in memory; a ViT-H's training checkpoint has a pickle of 2**18.
_LARGEST_HEADER = 2**24
_LONGEST_KEY = 1024
_DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
# Read for their keys, which say whose they are, and then refused, but for SAM 3's tables of rotary
# positions, which its format compares with what it computes.
_COMPLEX = (torch.complex64, torch.complex128)
_COMPLEX_TABLE = ".attn.freqs_cis"


def read_state(path: Path) -> State:
    """The tensors of a file's model, by the file's keys without the prefixes of wrappers.

    Read are the files of torch.save (since 1.6, and before), safetensors, pickles of numpy arrays
    (detectron2's model zoo), and folders of transformers' `save_pretrained`. What a checkpoint
    holds beside its model is left out.

    Raises:
        WeightsError: the file is of another kind, damaged, names code, holds no tensors, or is of a
            model that no encoder here computes.
        OSError: there is no such file, or it may not be read.
    """
    state = _read(path)
    while prefix := next((p for p in _PREFIXES if _before_all(p, state)), ""):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    with _one_line(path):
        refuse_foreign(state)
        for key, tensor in state.items():
            if tensor.dtype in _COMPLEX and not key.endswith(_COMPLEX_TABLE):
                raise WeightsError(no_numbers(key, tensor))
    return state


def read_config(path: Path) -> dict:
    """The config.json of transformers' `save_pretrained`, for its folder or the file of weights in
    it; {} where there is none.

    Raises:
        WeightsError: it is no JSON object.
    """
    file = (path.parent if path.name in _IN_FOLDER else path) / "config.json"
    if not file.is_file():
        return {}
    with _one_line(file):
        if file.stat().st_size > _LARGEST_HEADER:
            raise WeightsError("it is too large for a config")
        config = json.loads(file.read_text("utf-8"))
        if not isinstance(config, dict):
            raise WeightsError("it is no JSON object")
    return config


def _before_all(prefix: str, state: State) -> bool:
    return all(key.startswith(prefix) and key != prefix for key in state)


def _read(path: Path) -> State:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return _folder(path)
    with _one_line(path):
        if not stat.S_ISREG(mode):
            raise WeightsError("it is no regular file")
        with path.open("rb") as file:
            head, size = file.read(512), file.seek(0, io.SEEK_END)
            state = _usable(_reader(head)(path, file, size), size)
    return state


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """What libraries raise on damaged files is of any kind."""
    try:
        yield
    except PermissionError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        if not isinstance(error, WeightsError):
            message = f"it is damaged or cut short ({type(error).__name__}: {message})"
        message = "".join(c if c.isprintable() else "?" for c in message)
        raise WeightsError(f"cannot read {path}: {message}") from error


def _reader(head: bytes):
    if head.startswith(_TORCH_ARCHIVE):
        return _torch_archive
    if head.startswith(_LEGACY_TORCH):
        return _legacy_torch
    if re.match(rb"\x80[\x02-\x05]", head):
        return _numpy_pickle
    for start, what in _OTHER_KINDS.items():
        if re.match(start, head):
            raise WeightsError(what)
    if head[8:9] == b"{":
        return _safetensors
    raise WeightsError(f"it is no file of weights: it begins with {head[:8]!r}")


def _folder(path: Path) -> State:
    for name in _IN_FOLDER:
        index = path / f"{name}.index.json"
        if (path / name).is_file():
            return _read(path / name)
        if index.is_file():
            with _one_line(index):
                shards = _shards(index)
            state: State = {}
            for shard in sorted(set(shards.values())):
                state |= _read(path / shard)
            with _one_line(path):
                if missing := shards.keys() - state.keys():
                    raise WeightsError(f"its files lack {min(missing)}")
            return state
    raise WeightsError(
        f"cannot read {path}: it is a folder without {' or '.join(_IN_FOLDER)}: name a file"
    )


def _shards(index: Path) -> dict[str, str]:
    """File names by key."""
    if index.stat().st_size > _LARGEST_HEADER:
        raise WeightsError("it is too large for an index of shards")
    shards = json.loads(index.read_text("utf-8"))["weight_map"]
    for name in set(shards.values()):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise WeightsError(f"it names {name}, which is no file beside it")
    return shards


def _torch_archive(path: Path, file: BinaryIO, size: int) -> dict:
    """Of torch.save since 1.6: a zip of a pickle and a record per storage."""
    records = _records(file, size)
    root = next(iter(records), "").split("/")[0]
    if f"{root}/data.pkl" not in records:
        raise WeightsError("it is a zip archive, but none of torch.save")
    start, length = records[f"{root}/data.pkl"]
    if length > _LARGEST_HEADER:
        raise WeightsError("it has too much beside its tensors: save them alone")
    file.seek(start)
    unpickler = Unpickler(io.BytesIO(file.read(length)), TORCH_NAMES)
    unpickler.load()
    # torch.load looks at the name first; and not all of torch computes with what is not aligned.
    mapped = path.suffix != ".safetensors"
    for storage in unpickler.storages.values():
        start, length = records.get(f"{root}/data/{storage.key}", (0, -1))
        if length < _bytes(storage):
            raise WeightsError(f"it lacks data of the storage {storage.key}")
        mapped &= start % storage.dtype.itemsize == 0
    return _torch_load(path if mapped else file, mapped)


class _ShortReads(io.FileIO):
    """Of a zip's directory, which zipfile reads at once."""

    def read(self, size: int = -1) -> bytes:
        if size > _LARGEST_HEADER:
            raise WeightsError("its directory is too large for an archive of torch.save")
        return super().read(size)


def _records(file: BinaryIO, size: int) -> dict[str, tuple[int, int]]:
    """Where each record of a torch archive begins, and its bytes, in order of the directory."""
    with _ShortReads(file.name) as opened, zipfile.ZipFile(opened) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(
            "it is a TorchScript program, not weights: where you trust it, torch.save("
            "torch.jit.load(FILE, map_location='cpu').state_dict(), OUT) makes a file of weights"
        )
    if names and all(name.endswith(".npy") for name in names):
        raise WeightsError("it is a NumPy archive (.npz, as of JAX), which is not read")
    if len({name.lower() for name in names}) < len(names):  # torch does not tell them apart
        raise WeightsError("it has two records of one name")
    records, end = {}, 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
        if not stored or entry.compress_size != entry.file_size:
            raise WeightsError("its records are compressed, as those of torch.save never are")
        file.seek(entry.header_offset)
        header = file.read(30)
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if entry.header_offset < end or start + entry.file_size > size:
            raise WeightsError("its records lie on one another, or are cut short")
        end = start + entry.file_size
        records[entry.filename] = start, entry.file_size
    return {name: records[name] for name in names}


def _legacy_torch(path: Path, file: BinaryIO, size: int) -> dict:
    """Of torch.save before 1.6: five pickles, and behind them the storages."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        unpickler = Unpickler(pages, TORCH_NAMES)
        *_, keys = [unpickler.load() for _ in range(5)]
        named = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not named or sorted(keys) != sorted(unpickler.storages):
            raise WeightsError("its storages are not those of its tensors")
        for key in keys:
            storage = unpickler.storages[key]
            (numel,) = struct.unpack("<q", unpickler.read(8))
            if numel != storage.numel:
                raise WeightsError(f"its storage {key} has two sizes")
            unpickler.skip(_bytes(storage))
    return _torch_load(file, mapped=False)


def _torch_load(file: Path | BinaryIO, mapped: bool) -> dict:
    """By torch's own unpickler, which calls few functions; but with any arguments, and it takes the
    memory that a file asks for: `Unpickler` comes first.

    argparse.Namespace is what the training scripts of MAE and DeiT write beside the model.
    """
    if not mapped:
        file.seek(0)
    known = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([*{argparse.Namespace}.difference(known)]):
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            raise WeightsError(
                "torch.load(weights_only=True) does not take its pickle, as of another protocol "
                "than 2: where you trust it, load it with torch and save it again"
            ) from error
    model = _model(content)
    return {k: v.detach() for k, v in dict.items(model) if isinstance(v, Tensor)}


def _bytes(storage: Storage) -> int:
    return storage.numel * storage.dtype.itemsize


def _numpy_pickle(path: Path, file: BinaryIO, size: int) -> dict:
    """Of detectron2's model zoo. Arrays are copied out of the file, as they are not aligned."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        model = _model(Unpickler(pages, NUMPY_NAMES).load())
    arrays = {key: value for key, value in model.items() if isinstance(value, Array)}
    different = set(arrays.values())
    if sum(array.size for array in different) > size:
        raise WeightsError("its arrays share their data")
    tensors = {array: array.tensor(file) for array in different}
    return {key: tensors[array] for key, array in arrays.items()}


def _safetensors(path: Path, file: BinaryIO, size: int) -> dict:
    file.seek(0)
    if int.from_bytes(file.read(8), "little") > _LARGEST_HEADER:
        raise WeightsError("its header is too large for safetensors")
    with safetensors.safe_open(path, framework="pt", device="cpu") as opened:
        return {key: _aligned(opened.get_tensor(key)) for key in opened.keys()}  # noqa: SIM118


def _aligned(tensor: Tensor) -> Tensor:
    """The file's header may have any length; see `_torch_archive`."""
    if tensor.data_ptr() % tensor.dtype.itemsize == 0:
        return tensor
    raw = tensor.reshape(-1).view(torch.uint8).clone()
    return raw.view(tensor.dtype).view(tensor.shape)


def _model(content: Any) -> dict:
    if not isinstance(content, dict):
        raise WeightsError("it holds no dict of tensors")
    found = (dict.get(content, name) for name in _MODELS)
    model = next((model for model in found if isinstance(model, dict)), content)
    inside = [
        name
        for name, part in dict.items(model)
        if isinstance(part, dict) and any(map(_is_data, dict.values(part)))
    ]
    if inside and not any(map(_is_data, dict.values(model))):
        names = ", ".join(map(str, inside[:5]))
        raise WeightsError(
            f"its tensors lie in {names}: save the one that is the model alone, as "
            "torch.save(checkpoint[NAME], OUT)"
        )
    return model


def _is_data(value: Any) -> bool:
    return isinstance(value, Tensor | Array)


def no_numbers(key: str, tensor: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{key} is {kind}, not dense floating-point or whole numbers"


def _usable(state: dict, size: int) -> State:
    """Tensors that can be computed with, by printable names, and no more of them than the file has.

    Raises:
        WeightsError: there are none.
    """
    if not state:
        raise WeightsError("it holds no tensors by name, at its top level or as its model")
    left, seen = size, set()
    for key, tensor in state.items():
        if not isinstance(key, str) or not key.isprintable() or len(key) > _LONGEST_KEY:
            raise WeightsError(f"it has a tensor whose key is no name: {ascii(key)[:80]}")
        if tensor.layout != torch.strided or tensor.dtype not in (*_DTYPES, *_COMPLEX):
            raise WeightsError(no_numbers(key, tensor))
        if (view := (tensor.data_ptr(), tensor.shape, tensor.stride())) not in seen:
            seen.add(view)
            left -= tensor.nbytes
    if left < 0:
        raise WeightsError("its tensors are larger than the file")
    return state
