"""What a pickle of plain data may name: makers of sets, bytes and NumPy arrays, all of our own."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sample_loaders.pickle_arrays import ARRAY_GLOBALS
from sample_loaders.pickle_errors import DamagedPickle, UnsafePickle


def _make_set(*arguments: Any) -> set[Any]:
    return set(checked_keys(_items_of_list("builtins.set", arguments)))


def _make_frozenset(*arguments: Any) -> frozenset[Any]:
    return frozenset(checked_keys(_items_of_list("builtins.frozenset", arguments)))


def _items_of_list(name: str, arguments: tuple[Any, ...]) -> list[Any]:
    if not arguments:
        return []
    if len(arguments) != 1 or not isinstance(arguments[0], list):
        raise UnsafePickle(name, "its argument is not a list")
    return arguments[0]


def _make_bytes(*arguments: Any) -> bytes:
    if arguments:
        raise UnsafePickle("builtins.bytes", "it has arguments")
    return b""


def _make_bytearray(*arguments: Any) -> bytearray:
    if not arguments:
        return bytearray()
    if len(arguments) == 1 and isinstance(arguments[0], bytes):
        return bytearray(arguments[0])
    if len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] == "latin-1":
        return bytearray(_encode(arguments[0], "latin1"))
    raise UnsafePickle("builtins.bytearray", "its argument is not bytes")


def _make_complex(*arguments: Any) -> complex:
    if len(arguments) != 2 or not all(isinstance(part, float) for part in arguments):
        raise UnsafePickle("builtins.complex", "its arguments are not two numbers")
    return complex(*arguments)


def _encode(*arguments: Any) -> bytes:
    """Bytes as protocol 2 writes them, which has text only."""
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] != "latin1":
        raise UnsafePickle("_codecs.encode", "its arguments are not text and latin1")
    try:
        return arguments[0].encode("latin1")
    except UnicodeEncodeError as error:
        raise DamagedPickle(f"Bytes as text hold a character above 255: {error}.") from error


GLOBALS: Mapping[tuple[str, str], Any] = {
    **ARRAY_GLOBALS,
    ("_codecs", "encode"): _encode,
    **{
        (module, name): make
        for module in ("builtins", "__builtin__")
        for name, make in (
            ("set", _make_set),
            ("frozenset", _make_frozenset),
            ("bytes", _make_bytes),
            ("bytearray", _make_bytearray),
            ("complex", _make_complex),
        )
    },
}


def checked_keys(keys: list[Any]) -> list[Any]:
    """Returns keys of a dict or set, which must be plain or flat tuples of what is plain."""
    for key in keys:
        for part in key if type(key) is tuple else (key,):
            if not isinstance(part, str | bytes | int | float | complex | np.generic | None):
                raise UnsafePickle(f"a key of type {type(part).__name__}", "keys must be plain")
    return keys


_MAKERS = {id(make) for make in GLOBALS.values() if callable(make)}


def may_be_called(value: Any) -> bool:
    """Tells by identity whether a value is one of the functions in `GLOBALS`."""
    return id(value) in _MAKERS
