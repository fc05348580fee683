"""Pickles of weights, read without calling anything that they name.

A pickle is a program: it builds containers, and calls functions that it names. Here a name has to
be in a table, and what is called in its place is a function of this file, which only notes what
would come out. The data of arrays stays in the file.
"""

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .contents import WeightsError

# A ViT-H's training checkpoint takes 60,000 instructions. Each may cost some 100 bytes and 1 us.
_MOST_INSTRUCTIONS = 1_000_000
# Longer text is data: arrays are text in pickles of protocol 2.
_LONGEST_NAME = 1024
_MOST_AXES = 64
_CUT_SHORT = "it is cut short: copy or download it again"
_NO_NUMBERS = "it has arrays of something else than numbers of this machine"
_PLAIN = str | int | float | bool | None


@dataclass(frozen=True)
class Span:
    """Bytes of the file; `utf8`: of text that stands for bytes, one character each."""

    start: int
    size: int
    utf8: bool = False


@dataclass(eq=False)
class _NumpyType:
    name: str
    order: str = "="


@dataclass(eq=False)
class Array:
    """A numpy array, its data still in the file."""

    dtype: _NumpyType | None = None
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


class _Dict(dict):
    """An OrderedDict or Counter; its attributes (a state dict's metadata) are left out."""


class _Object:
    """Something that is no container, and not needed."""


class _Tensor:
    """A tensor of a torch file."""


@dataclass(frozen=True, eq=False)
class _Function:
    """What a pickle may call."""

    call: Callable[..., Any]


@dataclass(eq=False)
class Storage:
    """What tensors of a torch file are views of."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(eq=False)
class Unpickler(pickle._Unpickler):
    """Reads a pickle in the names of a table.

    Args:
        file: at the pickle; `mmap` or `BytesIO`, whose `read` takes no memory for more than there
            is.
        names: what the names of a pickle stand for.
        storages: of torch's tensors, by their keys; filled by `load`.
    """

    file: Any
    names: dict[str, Any]
    storages: dict[str, Storage] = field(default_factory=dict)

    def load(self) -> Any:
        """The pickle's object, of containers, `Array` and stand-ins.

        Raises:
            WeightsError: it names what it may not, or is no pickle of weights.
            Exception: of any kind, if it is damaged.
        """
        self.stack, self.metastack, self.memo, self.proto = [], [], {}, 0
        self.append, self.readline = self.stack.append, self.file.readline
        self._left = _MOST_INSTRUCTIONS
        while self._left > 0:
            self._left -= 1
            code = self.read(1)
            if code == pickle.STOP:
                return self.stack.pop()
            if code[0] not in self.dispatch:
                raise WeightsError(
                    f"its pickle has an instruction {code}, which weights do not need"
                )
            self.dispatch[code[0]](self)
        raise WeightsError(
            f"its pickle has more than {_MOST_INSTRUCTIONS:,} instructions: save its tensors alone"
        )

    def read(self, size: int) -> bytes:
        found = self.file.read(size)
        if len(found) < size:
            raise WeightsError(_CUT_SHORT)
        return found

    def skip(self, size: int) -> Span:
        """Leaves bytes of the file where they are."""
        start = self.file.tell()
        self.file.seek(0, 2)
        if size > self.file.tell() - start:
            raise WeightsError(_CUT_SHORT)
        self.file.seek(start + size)
        return Span(start, size)

    def find_class(self, module: str, name: str) -> Any:
        name = f"{module}.{name}"
        if name not in self.names:
            raise WeightsError(
                f"its pickle names {ascii(name[:100])[1:-1]}, which weights do not need: where you "
                "trust the file, save its tensors alone, as torch.save(model.state_dict(), ...)"
            )
        return self.names[name]

    dispatch = {
        code[0]: pickle._Unpickler.dispatch[code[0]]
        for code in (
            *(pickle.PROTO, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
            *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT),
            *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
            *(pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.GLOBAL, pickle.STACK_GLOBAL),
            *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE),
            *(pickle.BINGET, pickle.LONG_BINGET),
        )
    }

    def _frame(self) -> None:
        self.read(8)  # its length; what is in it is read as it comes

    def _text(self, length: int, utf8: bool) -> None:
        size = int.from_bytes(self.read(length), "little")
        if size > _LONGEST_NAME:
            self.append(replace(self.skip(size), utf8=utf8))
        else:
            encoding = "utf-8" if utf8 else "latin1"
            self.append(self.read(size).decode(encoding, "surrogatepass"))

    def _bytes(self, length: int) -> None:
        self.append(self.skip(int.from_bytes(self.read(length), "little")))

    def _append(self, items: list) -> None:
        _of(list, self.stack[-1]).extend(items)

    def _set(self, items: list) -> None:
        target = _of(dict, self.stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Nested tuples that share their parts would take forever to hash.
            if not isinstance(key, _PLAIN) and not (
                isinstance(key, tuple)
                and len(key) < _MOST_AXES
                and all(isinstance(part, _PLAIN) for part in key)
            ):
                raise WeightsError("its pickle has a dict whose keys are no names")
            target[key] = value

    def _pop_two(self) -> list:
        value, key = self.stack.pop(), self.stack.pop()
        return [key, value]

    def _call(self) -> None:
        arguments = _of(tuple, self.stack.pop())
        self.append(_of(_Function, self.stack.pop()).call(*arguments))

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _NumpyType):
            _build_type(target, state)
        elif isinstance(target, Array):
            _build_array(target, *_of(tuple, state))
        else:
            _of(_Dict | _Object, target)
            self._left -= len(_of(dict, state))  # which torch copies

    def _storage(self) -> None:
        what, dtype, key, _, numel, *view = _of(tuple, self.stack.pop())
        if what != "storage" or view not in ([], [None]):
            raise WeightsError("its pickle refers to something beside storages")
        _check_sizes((numel,))
        storage = Storage(_of(str, key), _of(torch.dtype, dtype), numel)
        first = self.storages.setdefault(key, storage)
        if (first.dtype, first.numel) != (dtype, numel):
            raise WeightsError(f"its storage {key} has two sizes or types")
        self.append(first)

    dispatch |= {
        pickle.FRAME[0]: _frame,
        pickle.BINUNICODE[0]: lambda self: self._text(4, True),
        pickle.SHORT_BINUNICODE[0]: lambda self: self._text(1, True),
        pickle.BINUNICODE8[0]: lambda self: self._text(8, True),
        pickle.BINSTRING[0]: lambda self: self._text(4, False),
        pickle.SHORT_BINSTRING[0]: lambda self: self._text(1, False),
        pickle.BINBYTES[0]: lambda self: self._bytes(4),
        pickle.SHORT_BINBYTES[0]: lambda self: self._bytes(1),
        pickle.BINBYTES8[0]: lambda self: self._bytes(8),
        pickle.BYTEARRAY8[0]: lambda self: self._bytes(8),
        pickle.APPEND[0]: lambda self: self._append([self.stack.pop()]),
        pickle.APPENDS[0]: lambda self: self._append(self.pop_mark()),
        pickle.SETITEM[0]: lambda self: self._set(self._pop_two()),
        pickle.SETITEMS[0]: lambda self: self._set(self.pop_mark()),
        pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _call,
        pickle.BUILD[0]: _build,
        pickle.BINPERSID[0]: _storage,
    }


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise WeightsError("its pickle is damaged, or made for something else than weights")
    return value


def _check_sizes(sizes: tuple[int, ...]) -> None:
    if len(_of(tuple, sizes)) > _MOST_AXES or any(
        type(size) is not int or not 0 <= size < 2**62 for size in sizes
    ):
        raise WeightsError("it has a tensor of sizes that no tensor has")


def _rebuild(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
    _of(Storage, storage)
    for sizes in (shape, strides, (offset,)):
        _check_sizes(sizes)
    if hooks not in (None, {}) or metadata not in (None, {}) or len(shape) != len(strides):
        raise WeightsError("it has a tensor with more to it than values")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) > storage.numel or (0 not in shape and last >= storage.numel):
        raise WeightsError(f"it has a tensor of shape {shape} beyond the data of its storage")
    return _Tensor()


def _parameter(tensor, requires_grad=False, hooks=None):
    if hooks not in (None, {}):
        raise WeightsError("it has a tensor with more to it than values")
    return _of(_Tensor, tensor)


def _ordered_dict(*items):
    if items:
        raise WeightsError("its pickle is of Python 2: load it with torch, and save it again")
    return _Dict()


def _size(sizes):
    _check_sizes(sizes)
    return sizes


def _counter(counts):
    if len(_of(dict, counts)) > _MOST_AXES:
        raise WeightsError("its pickle has a Counter that is no scheduler's")
    return _Dict(counts)


def _device(*words):
    for word in words:
        _of(str | int, word)
    return _Object()


def _encode(text, encoding):
    if encoding != "latin1":
        raise WeightsError("its pickle has text where the data of an array should be")
    return _of(str | Span, text)


def _numpy_type(name, *_):
    return _NumpyType(_of(str, name))


def _build_type(target: _NumpyType, state: Any) -> None:
    target.order = _of(tuple, state)[1]


def _build_array(target: Array, _, shape, dtype, fortran, data) -> None:
    _check_sizes(shape)
    axes = tuple(range(len(shape)))
    target.dtype = _of(_NumpyType, dtype)
    target.shape = shape[::-1] if fortran else shape
    target.axes = axes[::-1] if fortran else axes
    target.data = _of(str | Span | list, data)  # a list: of Python objects


def _from_buffer(data, dtype, shape, order, axes=()) -> Array:
    array = Array()
    _build_array(array, 1, shape, dtype, order == "F", data)
    if order == "K":
        _check_sizes(axes)
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
    "collections.OrderedDict": _Function(_ordered_dict),
    "collections.Counter": _Function(_counter),
    "argparse.Namespace": _Function(lambda: _Object()),
    "torch.Size": _Function(_size),
    "torch.device": _Function(_device),
    "torch._utils._rebuild_tensor": _Function(_rebuild),
    "torch._utils._rebuild_tensor_v2": _Function(_rebuild),
    "torch._utils._rebuild_parameter": _Function(_parameter),
    **{f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()},
    **{str(dtype): _Object() for dtype in _STORAGES.values()},
}

# Of numpy arrays in plain containers: detectron2's model zoo. `core` became `_core` in numpy 2.
NUMPY_NAMES = {
    "collections.OrderedDict": _Function(_ordered_dict),
    "_codecs.encode": _Function(_encode),  # protocol 2 has no bytes
    "__builtin__.bytes": _Function(lambda: ""),
    "numpy.ndarray": _Object(),
    "numpy.dtype": _Function(_numpy_type),
    **{
        f"numpy.{core}.{name}": _Function(function)
        for core in ("core", "_core")
        for name, function in {
            "multiarray._reconstruct": lambda *_: Array(),
            "multiarray.scalar": lambda *_: _Object(),
            "numeric._frombuffer": _from_buffer,
        }.items()
    },
}
