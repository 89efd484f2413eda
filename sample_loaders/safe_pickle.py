"""Reads pickles of plain data and runs nothing that they name.

Admitted are None, booleans, numbers, text, bytes, lists, tuples, dicts, sets and NumPy arrays and
scalars of numbers or text; their instructions are followed by a small machine of our own, which has
none for importing, calling or changing anything else. It also

- takes no more bytes for a string or an array than the file still has,
- keeps its memo in a dict, so that a large index costs nothing,
- allows only plain keys, as the hash of tuples that share their parts can take for ever,
- stops after `max_instructions`, as one byte can make an object of two hundred.

The instructions are documented in Python's `pickletools`. Those of protocols 0 and 1 are not read.
"""

import io
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sample_loaders.pickle_arrays import PendingArray, PendingDtype
from sample_loaders.pickle_errors import DamagedPickle, UnsafePickle
from sample_loaders.pickle_globals import GLOBALS, checked_keys, may_be_called

__all__ = ["DamagedPickle", "UnsafePickle", "load_pickle", "loads_pickle"]

MAX_INSTRUCTIONS = 50_000_000
_PROTOCOLS = range(2, 6)
_LONGEST_NAME_BYTES = 512
_LONGEST_INTEGER_BYTES = 1024
_NOT_ADMITTED = "only plain containers, text, bytes, numbers and NumPy arrays are admitted"


def load_pickle(path: str | os.PathLike[str], max_instructions: int = MAX_INSTRUCTIONS) -> Any:
    """Reads the pickle in a file.

    Args:
        path: The file.
        max_instructions: A pickle of more instructions is refused.

    Raises:
        UnsafePickle: It asks for more than plain data.
        DamagedPickle: It ends early or is no pickle.
    """
    with open(path, "rb") as stream:
        size_bytes = os.fstat(stream.fileno()).st_size
        return _Machine(stream, size_bytes, Path(path).name, max_instructions).run()


def loads_pickle(data: bytes, max_instructions: int = MAX_INSTRUCTIONS) -> Any:
    """Reads a pickle from bytes; else as `load_pickle`."""
    return _Machine(io.BytesIO(data), len(data), "the pickle", max_instructions).run()


class _Machine:
    """Follows the instructions of one pickle.

    Args:
        stream: Where it is.
        size_bytes: How long it is at most.
        name: Names it in messages.
        max_instructions: How many instructions are followed.
    """

    def __init__(self, stream: BinaryIO, size_bytes: int, name: str, max_instructions: int) -> None:
        self._stream = stream
        self._left_bytes = size_bytes
        self._name = name
        self._max_instructions = max_instructions
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._pending: dict[int, list[int]] = {}

    def run(self) -> Any:
        """Follows the pickle to its end and returns what it made."""
        if self._take(1) != b"\x80" or self._take(1)[0] not in _PROTOCOLS:
            raise DamagedPickle(f"{self._name} is no pickle of the protocols 2 to 5.")
        steps = {code: getattr(self, method) for code, method in _STEPS.items()}
        try:
            for _ in range(self._max_instructions):
                code = self._take(1)
                if code == b".":
                    return self._stack.pop()
                step = steps.get(code)
                if step is None:
                    raise self._not_followed(code)
                step()
        except (IndexError, KeyError, struct.error, UnicodeDecodeError, TypeError) as error:
            raise DamagedPickle(
                f"{self._name} is damaged, {self._left_bytes} bytes before its end: {error!r}."
            ) from error
        raise UnsafePickle(f"more than {self._max_instructions} instructions", "that is the bound")

    def _not_followed(self, code: bytes) -> ValueError:
        name = _REFUSED.get(code)
        if name is not None:
            return UnsafePickle(f"the instruction {name}", _NOT_ADMITTED)
        return DamagedPickle(f"{self._name} has the byte {code!r}, which is no instruction.")

    def _take(self, count: int) -> bytes:
        if count > self._left_bytes:
            raise DamagedPickle(
                f"{self._name} ends early: {count} bytes are due, {self._left_bytes} are left."
            )
        data = self._stream.read(count)
        self._left_bytes -= count
        if len(data) != count:
            raise DamagedPickle(f"{self._name} ends early.")
        return data

    def _take_line(self) -> str:
        line = self._stream.readline(_LONGEST_NAME_BYTES)
        self._left_bytes -= len(line)
        if not line.endswith(b"\n"):
            raise DamagedPickle(f"{self._name} has a name that does not end.")
        return line[:-1].decode("utf-8")

    def _take_counted(self, form: str) -> bytes:
        return self._take(self._number(form))

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _pop_marked(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    # Values.

    def _push_none(self) -> None:
        self._stack.append(None)

    def _push_true(self) -> None:
        self._stack.append(True)

    def _push_false(self) -> None:
        self._stack.append(False)

    def _push_int4(self) -> None:
        self._stack.append(self._number("<i"))

    def _push_int1(self) -> None:
        self._stack.append(self._take(1)[0])

    def _push_int2(self) -> None:
        self._stack.append(self._number("<H"))

    def _push_long1(self) -> None:
        self._stack.append(int.from_bytes(self._take_counted("<B"), "little", signed=True))

    def _push_long4(self) -> None:
        count = self._number("<i")
        if not 0 <= count <= _LONGEST_INTEGER_BYTES:
            raise UnsafePickle(f"an integer of {count} bytes", "that is too long")
        self._stack.append(int.from_bytes(self._take(count), "little", signed=True))

    def _push_float(self) -> None:
        self._stack.append(self._number(">d"))

    def _push_text1(self) -> None:
        self._stack.append(str(self._take_counted("<B"), "utf-8", "surrogatepass"))

    def _push_text4(self) -> None:
        self._stack.append(str(self._take_counted("<I"), "utf-8", "surrogatepass"))

    def _push_text8(self) -> None:
        self._stack.append(str(self._take_counted("<Q"), "utf-8", "surrogatepass"))

    def _push_bytes1(self) -> None:
        self._stack.append(self._take_counted("<B"))

    def _push_bytes4(self) -> None:
        self._stack.append(self._take_counted("<I"))

    def _push_bytes8(self) -> None:
        self._stack.append(self._take_counted("<Q"))

    def _push_bytearray8(self) -> None:
        self._stack.append(bytearray(self._take_counted("<Q")))

    # Containers.

    def _push_list(self) -> None:
        self._stack.append([])

    def _push_dict(self) -> None:
        self._stack.append({})

    def _push_set(self) -> None:
        self._stack.append(set())

    def _push_tuple0(self) -> None:
        self._stack.append(())

    def _push_tuple1(self) -> None:
        self._stack[-1:] = [(self._stack[-1],)]

    def _push_tuple2(self) -> None:
        self._stack[-2:] = [(self._stack[-2], self._stack[-1])]

    def _push_tuple3(self) -> None:
        self._stack[-3:] = [(self._stack[-3], self._stack[-2], self._stack[-1])]

    def _push_tuple(self) -> None:
        items = self._pop_marked()
        self._stack.append(tuple(items))

    def _push_frozenset(self) -> None:
        items = self._pop_marked()
        self._stack.append(frozenset(checked_keys(items)))

    def _append(self) -> None:
        item = self._stack.pop()
        self._top(list).append(item)

    def _append_marked(self) -> None:
        items = self._pop_marked()
        self._top(list).extend(items)

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._top(dict)[checked_keys([key])[0]] = value

    def _set_marked_items(self) -> None:
        items = self._pop_marked()
        if len(items) % 2:
            raise DamagedPickle(f"{self._name} has a key without a value.")
        keys = checked_keys(items[::2])
        self._top(dict).update(zip(keys, items[1::2], strict=True))

    def _add_marked_items(self) -> None:
        items = self._pop_marked()
        self._top(set).update(checked_keys(items))

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise DamagedPickle(
                f"{self._name} adds to a {type(self._stack[-1]).__name__} as if it were a "
                f"{kind.__name__}."
            )
        return self._stack[-1]

    # The stack and the memo.

    def _mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_marked()

    def _put(self, index: int) -> None:
        value = self._stack[-1]
        self._memo[index] = value
        if type(value) is PendingArray:
            self._pending.setdefault(id(value), []).append(index)

    def _put1(self) -> None:
        self._put(self._take(1)[0])

    def _put4(self) -> None:
        self._put(self._number("<I"))

    def _memoize(self) -> None:
        self._put(len(self._memo))

    def _get1(self) -> None:
        self._stack.append(self._memo[self._take(1)[0]])

    def _get4(self) -> None:
        self._stack.append(self._memo[self._number("<I")])

    def _frame(self) -> None:
        if self._number("<Q") > self._left_bytes:
            raise DamagedPickle(f"{self._name} ends early, inside a frame.")

    # What is named.

    def _push_global(self) -> None:
        module = self._take_line()
        self._stack.append(self._find(module, self._take_line()))

    def _push_stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(self._find(module, name))

    def _find(self, module: Any, name: Any) -> Any:
        found = None
        if isinstance(module, str) and isinstance(name, str):
            found = GLOBALS.get((module, name))
        if found is None:
            raise UnsafePickle(f"{module}.{name}", _NOT_ADMITTED)
        return found

    def _reduce(self) -> None:
        arguments, make = self._stack.pop(), self._stack.pop()
        if not isinstance(arguments, tuple) or not may_be_called(make):
            raise UnsafePickle(f"a call of a {type(make).__name__}", _NOT_ADMITTED)
        self._stack.append(make(*arguments))

    def _build(self) -> None:
        state, pending = self._stack.pop(), self._stack.pop()
        if not isinstance(pending, PendingArray | PendingDtype):
            raise UnsafePickle(f"a change of a {type(pending).__name__}", _NOT_ADMITTED)
        built = pending.build(state)
        for index in self._pending.pop(id(pending), ()):
            self._memo[index] = built
        self._stack.append(built)


_STEPS: Mapping[bytes, str] = {
    b"N": "_push_none",
    b"\x88": "_push_true",
    b"\x89": "_push_false",
    b"J": "_push_int4",
    b"K": "_push_int1",
    b"M": "_push_int2",
    b"\x8a": "_push_long1",
    b"\x8b": "_push_long4",
    b"G": "_push_float",
    b"\x8c": "_push_text1",
    b"X": "_push_text4",
    b"\x8d": "_push_text8",
    b"C": "_push_bytes1",
    b"B": "_push_bytes4",
    b"\x8e": "_push_bytes8",
    b"\x96": "_push_bytearray8",
    b"]": "_push_list",
    b"}": "_push_dict",
    b"\x8f": "_push_set",
    b")": "_push_tuple0",
    b"\x85": "_push_tuple1",
    b"\x86": "_push_tuple2",
    b"\x87": "_push_tuple3",
    b"t": "_push_tuple",
    b"\x91": "_push_frozenset",
    b"a": "_append",
    b"e": "_append_marked",
    b"s": "_set_item",
    b"u": "_set_marked_items",
    b"\x90": "_add_marked_items",
    b"(": "_mark",
    b"0": "_pop",
    b"1": "_pop_marked",
    b"q": "_put1",
    b"r": "_put4",
    b"\x94": "_memoize",
    b"h": "_get1",
    b"j": "_get4",
    b"\x95": "_frame",
    b"c": "_push_global",
    b"\x93": "_push_stack_global",
    b"R": "_reduce",
    b"b": "_build",
}

_REFUSED: Mapping[bytes, str] = {
    b"i": "INST",
    b"o": "OBJ",
    b"\x81": "NEWOBJ",
    b"\x92": "NEWOBJ_EX",
    b"P": "PERSID",
    b"Q": "BINPERSID",
    b"\x82": "EXT1",
    b"\x83": "EXT2",
    b"\x84": "EXT4",
    b"2": "DUP",
    b"\x97": "NEXT_BUFFER",
    b"\x98": "READONLY_BUFFER",
}
