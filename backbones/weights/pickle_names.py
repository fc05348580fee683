"""What names in a pickle of weights stand for: containers, torch's tensors, numpy's arrays.

The data of arrays stays in the file.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .contents import WeightsError

MOST_AXES = 64
_NO_NUMBERS = "it has arrays of something else than numbers of this machine"


@dataclass(frozen=True)
class Span:
    """Bytes of the file; `utf8`: of text that stands for bytes, one character each."""

    start: int
    size: int
    utf8: bool = False


@dataclass(eq=False)
class NumpyType:
    name: str
    order: str = "="


@dataclass(eq=False)
class Array:
    """A numpy array, its data still in the file."""

    dtype: NumpyType | None = None
    shape: tuple[int, ...] = ()  # of the data, row-major
    axes: tuple[int, ...] = ()  # the array's axes among those of the data
    data: str | Span = ""

    @property
    def size(self) -> int:
        """Bytes of the data, at least."""
        return self.data.size if isinstance(self.data, Span) else len(self.data)

    def tensor(self, file: BinaryIO) -> Tensor:
        """Its values, read from the file.

        Raises:
            WeightsError: they are no numbers, or fewer or more than the shape says.
        """
        dtype = _NUMPY_TYPES.get(self.dtype.name) if self.dtype else None
        if dtype is None or self.dtype.order not in ("<", "|", "="):
            raise WeightsError(_NO_NUMBERS)
        size = math.prod(self.shape) * dtype.itemsize
        data = self.data
        if isinstance(data, Span):
            file.seek(data.start)
            if data.utf8:
                data = file.read(data.size).decode()
        if (found := data.size if isinstance(data, Span) else len(data)) != size:
            raise WeightsError(f"it has an array of shape {self.shape} in {found} bytes")
        values = torch.empty(self.shape, dtype=dtype)
        raw = values.view(-1).view(torch.uint8).numpy()
        if isinstance(data, Span):
            file.readinto(raw)
        else:
            raw[:] = bytearray(data.encode("latin1"))
        return values.permute(self.axes)


class Dict(dict):
    """An OrderedDict or Counter; its attributes (a state dict's metadata) are left out."""


class Object:
    """Something that is no container, and not needed."""


class _Tensor:
    """A tensor of a torch file."""


@dataclass(frozen=True, eq=False)
class Function:
    """What a pickle may call."""

    call: Callable[..., Any]


@dataclass(eq=False)
class Storage:
    """What tensors of a torch file are views of."""

    key: str
    dtype: torch.dtype
    numel: int


def checked(kind: type, value: Any) -> Any:
    """The value, if it is of that type; a pickle where it is not is no whole one of weights."""
    if not isinstance(value, kind):
        raise WeightsError("its pickle is damaged, or made for something else than weights")
    return value


def check_sizes(sizes: tuple[int, ...]) -> None:
    if len(checked(tuple, sizes)) > MOST_AXES or any(
        type(size) is not int or not 0 <= size < 2**62 for size in sizes
    ):
        raise WeightsError("it has a tensor of sizes that no tensor has")


def _rebuild(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
    checked(Storage, storage)
    for sizes in (shape, strides, (offset,)):
        check_sizes(sizes)
    if hooks not in (None, {}) or metadata not in (None, {}) or len(shape) != len(strides):
        raise WeightsError("it has a tensor with more to it than values")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) > storage.numel or (0 not in shape and last >= storage.numel):
        raise WeightsError(f"it has a tensor of shape {shape} beyond the data of its storage")
    return _Tensor()


def _parameter(tensor, requires_grad=False, hooks=None):
    if hooks not in (None, {}):
        raise WeightsError("it has a tensor with more to it than values")
    return checked(_Tensor, tensor)


def _ordered_dict(*items):
    if items:
        raise WeightsError("its pickle is of Python 2: load it with torch, and save it again")
    return Dict()


def _size(sizes):
    check_sizes(sizes)
    return sizes


def _counter(counts):
    if len(checked(dict, counts)) > MOST_AXES:
        raise WeightsError("its pickle has a Counter that is no scheduler's")
    return Dict(counts)


def _device(*words):
    for word in words:
        checked(str | int, word)
    return Object()


def _encode(text, encoding):
    if encoding != "latin1":
        raise WeightsError("its pickle has text where the data of an array should be")
    return checked(str | Span, text)


def _numpy_type(name, *_):
    return NumpyType(checked(str, name))


def build_type(target: NumpyType, state: Any) -> None:
    target.order = checked(tuple, state)[1]


def build_array(target: Array, _, shape, dtype, fortran, data) -> None:
    check_sizes(shape)
    axes = tuple(range(len(shape)))
    target.dtype = checked(NumpyType, dtype)
    target.shape = shape[::-1] if fortran else shape
    target.axes = axes[::-1] if fortran else axes
    target.data = checked(str | Span | list, data)  # a list: of Python objects


def _from_buffer(data, dtype, shape, order, axes=()) -> Array:
    array = Array()
    build_array(array, 1, shape, dtype, order == "F", data)
    if order == "K":
        check_sizes(axes)
        array.axes = axes
    return array


_STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_NUMPY_TYPES = {
    "f4": torch.float32,
    "f8": torch.float64,
    "f2": torch.float16,
    "u1": torch.uint8,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "b1": torch.bool,
}

# Of torch.save, and of what training scripts put beside the tensors. torch.load knows them too.
TORCH_NAMES = {
    "collections.OrderedDict": Function(_ordered_dict),
    "collections.Counter": Function(_counter),
    "argparse.Namespace": Function(lambda: Object()),
    "torch.Size": Function(_size),
    "torch.device": Function(_device),
    "torch._utils._rebuild_tensor": Function(_rebuild),
    "torch._utils._rebuild_tensor_v2": Function(_rebuild),
    "torch._utils._rebuild_parameter": Function(_parameter),
    **{f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()},
    **{str(dtype): Object() for dtype in _STORAGES.values()},
}

# Of numpy arrays in plain containers: detectron2's model zoo. `core` became `_core` in numpy 2.
NUMPY_NAMES = {
    "collections.OrderedDict": Function(_ordered_dict),
    "_codecs.encode": Function(_encode),  # protocol 2 has no bytes
    "__builtin__.bytes": Function(lambda: ""),
    "numpy.ndarray": Object(),
    "numpy.dtype": Function(_numpy_type),
    **{
        f"numpy.{core}.{name}": Function(function)
        for core in ("core", "_core")
        for name, function in {
            "multiarray._reconstruct": lambda *_: Array(),
            "multiarray.scalar": lambda *_: Object(),
            "numeric._frombuffer": _from_buffer,
        }.items()
    },
}
