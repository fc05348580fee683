"""Pickles of weights, read without calling anything that they name.

A pickle is a program: it builds containers, and calls functions that it names. Here a name has to
be in a table (`pickle_names`), and what is called in its place only notes what would come out.
"""

import pickle
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .contents import WeightsError
from .pickle_names import (
    MOST_AXES,
    Array,
    Dict,
    Function,
    NumpyType,
    Object,
    Span,
    Storage,
    build_array,
    build_type,
    check_sizes,
    checked,
)

# A ViT-H's training checkpoint takes 60,000 instructions. Each may cost some 100 bytes and 1 us.
_MOST_INSTRUCTIONS = 1_000_000
# Longer text is data: arrays are text in pickles of protocol 2.
_LONGEST_NAME = 1024
_CUT_SHORT = "it is cut short: copy or download it again"
_PLAIN = str | int | float | bool | None


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
        checked(list, self.stack[-1]).extend(items)

    def _set(self, items: list) -> None:
        target = checked(dict, self.stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Nested tuples that share their parts would take forever to hash.
            if not isinstance(key, _PLAIN) and not (
                isinstance(key, tuple)
                and len(key) < MOST_AXES
                and all(isinstance(part, _PLAIN) for part in key)
            ):
                raise WeightsError("its pickle has a dict whose keys are no names")
            target[key] = value

    def _pop_two(self) -> list:
        value, key = self.stack.pop(), self.stack.pop()
        return [key, value]

    def _call(self) -> None:
        arguments = checked(tuple, self.stack.pop())
        self.append(checked(Function, self.stack.pop()).call(*arguments))

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, NumpyType):
            build_type(target, state)
        elif isinstance(target, Array):
            build_array(target, *checked(tuple, state))
        else:
            checked(Dict | Object, target)
            self._left -= len(checked(dict, state))  # which torch copies

    def _storage(self) -> None:
        what, dtype, key, _, numel, *view = checked(tuple, self.stack.pop())
        if what != "storage" or view not in ([], [None]):
            raise WeightsError("its pickle refers to something beside storages")
        check_sizes((numel,))
        storage = Storage(checked(str, key), checked(torch.dtype, dtype), numel)
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
