import os
import pickle
import resource
import struct
import time

import numpy as np
import pytest

from sample_loaders.safe_pickle import DamagedPickle, UnsafePickle, load_pickle, loads_pickle

PLAIN = {
    "none": None,
    "truth": [True, False],
    "numbers": [0, 255, 256, 65_535, 65_536, -1, -(2**31), 2**40, -(2**100), 1.5, 2j],
    "text": ["", "a", "日本語", "x" * 300, "y" * 70_000, "\ud800"],
    "bytes": [b"", b"\x00\xff", b"z" * 300, bytearray(b"w"), bytearray()],
    "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}, set(), {1, 2}],
    "frozen": frozenset("ab"),
    "keys": {1: "a", "b": 2, (1, "c"): 3, None: 4, b"d": 5},
}

ARRAYS = {
    "floats": np.arange(6, dtype=np.float32).reshape(2, 3),
    "big-endian": np.arange(3, dtype=">i2"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "text": np.array(["a", "bcd", "日本"]),
    "bytes": np.array([b"a", b"bcd"]),
    "truth": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "empty": np.zeros((0, 5), dtype=np.int8),
    "scalar array": np.array(3.5),
    "scalar": np.float64(2.5),
    "small scalar": np.int8(-3),
    "truth scalar": np.bool_(True),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_come_back(protocol):
    assert loads_pickle(pickle.dumps(PLAIN, protocol)) == PLAIN


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back(name, protocol, core):
    array = ARRAYS[name]
    data = pickle.dumps([array, array, {"a": array}], protocol)
    if b"numpy.core" in data and core != b"numpy.core":
        data = _with_longer_module(data, protocol)
    first, second, inside = loads_pickle(data)
    assert type(first) is type(array)
    assert first.dtype == array.dtype
    assert first.shape == array.shape
    np.testing.assert_array_equal(first, array)
    assert inside["a"] is second is first  # also behind a memo that was filled before the data


def _with_longer_module(data, protocol):
    """The module names of NumPy 2, with the lengths before them."""
    for module in (b"numpy.core.multiarray", b"numpy.core.numeric"):
        longer = module.replace(b".core.", b"._core.")
        if protocol < 4:
            data = data.replace(b"c" + module, b"c" + longer)
            continue
        counted = bytes([len(module)]) + module
        data = data.replace(counted, bytes([len(longer)]) + longer)
        # The frame is one byte longer.
        frame = data.find(b"\x95")
        size = struct.unpack("<Q", data[frame + 1 : frame + 9])[0]
        grown = len(data) - frame - 9 - size
        data = data[: frame + 1] + struct.pack("<Q", size + grown) + data[frame + 9 :]
    return data


class Reduced:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("function", "arguments", "asked_for"),
    [
        (os.system, ("touch {mark}",), "posix.system"),
        (eval, ("open('{mark}', 'w')",), "builtins.eval"),
        (getattr, (os, "system"), "builtins.getattr"),
        (open, ("{mark}", "w"), "io.open"),
        (np.load, ("{mark}",), "numpy.load"),
        (np.zeros, (2**50,), "numpy.zeros"),
        (bytearray.fromhex, ("00",), "builtins.getattr"),
    ],
)
def test_calls_are_refused_by_name(function, arguments, asked_for, protocol, tmp_path):
    mark = tmp_path / "mark"
    arguments = tuple(
        value.format(mark=mark) if isinstance(value, str) else value for value in arguments
    )
    if function is getattr:
        data = b"\x80\x02cbuiltins\ngetattr\ncos\nopen\nX\x06\x00\x00\x00system\x86R."
    else:
        data = pickle.dumps([Reduced(function, *arguments)], protocol)
    with pytest.raises(UnsafePickle) as caught:
        loads_pickle(data)
    assert caught.value.asked_for.replace("__builtin__", "builtins") == asked_for
    assert asked_for.rpartition(".")[2] in str(caught.value)
    assert not mark.exists()


def test_a_file_is_read_and_refused_like_bytes(tmp_path):
    path = tmp_path / "part.pkl"
    path.write_bytes(pickle.dumps(PLAIN))
    assert load_pickle(path) == PLAIN
    path.write_bytes(pickle.dumps(Reduced(os.getcwd)))
    with pytest.raises(UnsafePickle, match="getcwd"):
        load_pickle(str(path))


class Plain:
    pass


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps(Plain(), 4), "Plain"),
        (pickle.dumps(np.array([{}, 1], dtype=object), 4), "dtype 'O8'"),
        (pickle.dumps(np.array([{}, 1], dtype=object), 2), "dtype 'O8'"),
        (pickle.dumps(np.zeros(2, dtype=[("a", "i4")]), 4), "dtype 'V4'"),
        (pickle.dumps(np.array(["2020-01-01"], dtype="M8[D]"), 4), "dtype 'M8'"),
        (pickle.dumps(np.ma.array([1, 2]), 4), "numpy.ma"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", "numpy.ndarray.tofile"),
        (b"\x80\x04K\x01K\x02\x93.", "1.2"),
        (b"\x80\x02cnumpy\nndarray\n)R.", "a call of a ArrayType"),
        (b"\x80\x02cbuiltins\nset\nX\x01\x00\x00\x00a\x85R.", "not a list"),
        (b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "builtins.bytearray"),
        (b"\x80\x02cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.", "builtins.bytes"),
        (b"\x80\x02cbuiltins\nset\n}X\x01\x00\x00\x00aK\x01sb.", "a change of a function"),
        (b"\x80\x02}}X\x01\x00\x00\x00aK\x01sb.", "a change of a dict"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.", "latin1"),
        (b"\x80\x02}]K\x01s.", "a key of type list"),
        (b"\x80\x02Pid\n.", "PERSID"),
        (b"\x80\x02K\x01Q.", "BINPERSID"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02(ios\nsystem\n.", "INST"),
        (b"\x80\x02cbuiltins\nset\n)\x81.", "NEWOBJ"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
    ],
)
def test_what_is_not_plain_is_refused(data, message):
    with pytest.raises(UnsafePickle) as caught:
        loads_pickle(data)
    assert message in str(caught.value)


def array_pickle(shape, data, code="f8", order="C"):
    """An array of protocol 5 with parts that need not fit."""
    return (
        b"\x80\x05cnumpy.core.numeric\n_frombuffer\n("
        + pickle.dumps(bytearray(data), 5)[2 + 9 : -1]
        + b"cnumpy\ndtype\n"
        + pickle.dumps((code, False, True), 2)[2:-1]
        + b"R"
        + pickle.dumps(shape, 2)[2:-1]
        + pickle.dumps(order, 2)[2:-1]
        + b"tR."
    )


def test_the_hand_made_array_is_right():
    data = np.arange(6.0).tobytes()
    np.testing.assert_array_equal(
        loads_pickle(array_pickle((2, 3), data)), np.arange(6.0).reshape(2, 3)
    )


@pytest.mark.parametrize(
    ("shape", "data", "code"),
    [
        ((2**40,), b"12345678", "f8"),
        ((3,), b"12345678", "f8"),
        ((-1,), b"12345678", "f8"),
        ((2**61, 8), b"", "f8"),
        ((0, 2**62), b"", "f8"),
        ((True,), b"12345678", "f8"),
        ([1], b"12345678", "f8"),
        ((1,) * 40, b"12345678", "f8"),
        ((1,), b"12345678", "U1000000000"),
        ((1,), b"12345678", "O"),
        ((1,), b"12345678", "f8,f8"),
    ],
)
def test_arrays_larger_than_their_data_are_refused(shape, data, code):
    with pytest.raises(UnsafePickle):
        loads_pickle(array_pickle(shape, data, code))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        b"\x80\x09N.",
        b"\x80\x04",
        b"\x80\x04.",
        b"\x80\x04]",
        b"\x80\x04h\x07.",
        b"\x80\x04e.",
        b"\x80\x04N\xff.",
        b"\x80\x04C\x05ab.",
        b"\x80\x04\x8c\x02\xff\xff.",
        b"\x80\x02cos\nsys",
        b"\x80\x02}K\x01a.",
        b"\x80\x02}(K\x01u.",
        pickle.dumps(PLAIN, 4)[:-200],
        pickle.dumps([1], 0),
        pickle.dumps([1], 1),
    ],
)
def test_damaged_files_are_named_so(data):
    with pytest.raises(DamagedPickle):
        loads_pickle(data)


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x80\x04]r\xff\xff\xff\xff.",  # a memo of four billion places
        b"\x80\x04\x8e" + struct.pack("<Q", 2**46) + b"a.",  # bytes that are not there
        b"\x80\x05\x96" + struct.pack("<Q", 2**46) + b"a.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**46) + b"a.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**46) + b"N.",
        b"\x80\x02\x8b" + struct.pack("<i", 2**30) + b"a.",
    ],
)
def test_small_files_allocate_little(bomb, tmp_path):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if bomb.startswith(b"\x80\x04]"):
        assert load_pickle(path) == []
    else:
        with pytest.raises((UnsafePickle, DamagedPickle)):
            load_pickle(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_shared_parts_cost_nothing_and_are_no_keys():
    # Each level holds the one below twice: 2**60 leaves in 500 bytes.
    nested = b"\x80\x04)\x94" + b"".join(
        b"h" + bytes([level]) + b"h" + bytes([level]) + b"\x86\x94" for level in range(60)
    )
    started = time.monotonic()
    value = loads_pickle(nested + b".")
    assert value[0] is value[1]
    for keyed in (nested + b"}h\x3cNs.", nested + b"\x8f(h\x3c\x90.", nested + b"(h\x3c\x91."):
        with pytest.raises(UnsafePickle, match="key"):
            loads_pickle(keyed)
    assert time.monotonic() - started < 5


def test_instructions_are_counted():
    data = b"\x80\x04(" + b"}" * 1000 + b"t."
    assert len(loads_pickle(data)) == 1000
    with pytest.raises(UnsafePickle, match="more than 900 instructions"):
        loads_pickle(data, max_instructions=900)
