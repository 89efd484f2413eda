"""NumPy arrays and scalars from the parts that their pickles consist of, each part checked.

NumPy's own `__setstate__` is never called: what is built here comes from `frombuffer` over bytes
that the pickle brought along, so an array cannot be larger than its data.
"""

import re
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from sample_loaders.pickle_errors import UnsafePickle

_DTYPE_CODE = re.compile(r"b1|[iu][1248]|f[248]|c(?:8|16)|[SU][0-9]{1,6}")
_DTYPE_STATE_FIELDS = 8
_MOST_DIMENSIONS = 32


class ArrayType:
    """Stands for `numpy.ndarray` itself, which array pickles name."""

    __slots__ = ()


class PendingDtype:
    """A dtype before its byte order is known; immutable but for one `build`."""

    __slots__ = ("code", "dtype")

    def __init__(self, code: str) -> None:
        self.code = code
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> "PendingDtype":
        """Takes the byte order of a dtype's pickled state.

        Raises:
            UnsafePickle: The state is that of a dtype with fields, shape, or Python objects.
        """
        plain = (
            isinstance(state, tuple)
            and len(state) == _DTYPE_STATE_FIELDS
            and state[1] in ("<", ">", "|", "=")
            and all(part is None for part in state[2:5])
        )
        if not plain:
            raise UnsafePickle("numpy.dtype", f"the state of dtype {self.code} is not a plain one")
        self.dtype = np.dtype(self.code)
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])
        return self


class PendingArray:
    """An array before its data are there."""

    __slots__ = ()

    def build(self, state: Any) -> np.ndarray:
        """Makes the array of its pickled state: version, shape, dtype, order and data.

        Raises:
            UnsafePickle: The parts do not fit each other.
        """
        if not isinstance(state, tuple) or len(state) != 5:
            raise UnsafePickle("numpy.ndarray", "its state is not that of an array")
        _, shape, dtype, fortran, data = state
        return make_array(data, dtype, shape, "F" if fortran else "C")


def make_array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Makes an array over bytes.

    Raises:
        UnsafePickle: The parts do not fit each other, or the array is of Python objects.
    """
    if not isinstance(dtype, PendingDtype):
        raise UnsafePickle("numpy.ndarray", "its dtype is none")
    if not isinstance(data, bytes | bytearray):
        raise UnsafePickle("numpy.ndarray", "its data are not bytes, as with Python objects")
    if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS:
        raise UnsafePickle("numpy.ndarray", "its shape is not a short tuple")
    if any(type(size) is not int or not 0 <= size < 2**63 for size in shape):
        raise UnsafePickle("numpy.ndarray", f"its shape {shape!r} is not of sizes")
    if order not in ("C", "F") or prod(shape) * dtype.dtype.itemsize != len(data):
        raise UnsafePickle(
            "numpy.ndarray",
            f"its shape {shape!r} of {dtype.dtype} does not fit {len(data)} bytes of data",
        )
    if prod(shape) == 0 or dtype.dtype.itemsize == 0:
        if max(shape, default=0) > len(data) + 2**20:
            raise UnsafePickle("numpy.ndarray", f"its empty shape {shape!r} is not a likely one")
        return np.zeros(shape, dtype.dtype)
    return np.frombuffer(bytearray(data), dtype.dtype).reshape(shape, order=order)


def _make_dtype(*arguments: Any) -> PendingDtype:
    code = arguments[0] if arguments else None
    if not isinstance(code, str) or not _DTYPE_CODE.fullmatch(code):
        raise UnsafePickle("numpy.dtype", f"the dtype {code!r} is not of numbers or text")
    return PendingDtype(code)


def _reconstruct(*arguments: Any) -> PendingArray:
    if not arguments or not isinstance(arguments[0], ArrayType):
        raise UnsafePickle("numpy.ndarray", "another class of arrays is asked for")
    return PendingArray()


def _make_scalar(*arguments: Any) -> Any:
    if len(arguments) != 2:
        raise UnsafePickle("numpy scalar", "it is not of dtype and data")
    return make_array(arguments[1], arguments[0], (), "C")[()]


def _from_buffer(*arguments: Any) -> np.ndarray:
    if len(arguments) != 4:
        raise UnsafePickle("numpy.ndarray", "it is not of data, dtype, shape and order")
    return make_array(*arguments)


# The module paths of NumPy 1 and of NumPy 2.
ARRAY_GLOBALS: Mapping[tuple[str, str], Any] = {
    ("numpy", "ndarray"): ArrayType(),
    ("numpy", "dtype"): _make_dtype,
    **{
        (f"numpy.{core}.{module}", name): make
        for core in ("core", "_core")
        for module, name, make in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _make_scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
