"""Switches the backend on and off and looks for traces; run by test_switch.py."""

import importlib.metadata
import logging
import os
import sys
import types

import cpu_backend

assert "torch" not in sys.modules, "importing the package must cost nothing"

import pytest  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402

finders = list(sys.meta_path)
variables = dict(os.environ)
CLASSES = [
    torch.Tensor,
    torch.nn.Module,
    torch.nn.Parameter,
    torch.amp.autocast_mode.autocast,
    torch.utils._device.DeviceContext,
]


def attributes():
    """Every attribute of every module of torch, and of the classes."""
    prefixes = ("torch", "logging")
    modules = {
        name: vars(module).copy()
        for name, module in sys.modules.items()
        if name.split(".")[0] in prefixes
    }
    return modules | {repr(one): dict(vars(one)) for one in CLASSES}


def assert_unchanged(before, after):
    for owner, old in before.items():
        new = after[owner]
        assert old.keys() <= new.keys(), (owner, old.keys() - new.keys())
        for name, value in new.items():
            if name in old:
                assert value is old[name], f"{owner}.{name} is left changed"
            else:
                # A submodule that something imported meanwhile.
                assert isinstance(value, types.ModuleType), f"{owner}.{name} is left behind"


def assert_off():
    assert not cpu_backend.is_enabled()
    assert sys.meta_path == finders
    assert dict(os.environ) == variables
    assert not [name for name in sys.modules if name.startswith("transformer_engine")]
    assert logging.getLogger("megatron.core.tensor_parallel.random").filters == []
    assert torch.cuda.default_generators == ()
    with pytest.raises(ModuleNotFoundError):
        import transformer_engine  # noqa: F401
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("transformer-engine")


def assert_refused(package):
    sys.modules[package] = types.ModuleType(package)
    with pytest.raises(RuntimeError, match=f"before {package} is imported"):
        cpu_backend.enable()
    del sys.modules[package]


# Filled lazily by torch; asked for here so that it is not taken for a trace.
operators = torch.jit._builtins._get_builtin_table()
torch.utils._device._device_constructors()
operators_before = dict(operators)
before = attributes()

assert_refused("transformer_engine")
assert_refused("megatron.core")
assert_unchanged(before, attributes())

for _ in range(2):
    cpu_backend.enable()
    enabled_type = torch.Tensor.type
    cpu_backend.enable()
    assert torch.Tensor.type is enabled_type, "a second enable() changed something"
    assert cpu_backend.is_enabled()
    import transformer_engine

    assert transformer_engine.__version__ == "1.12.0"
    assert importlib.metadata.version("transformer-engine") == "1.12.0"
    assert torch.cuda.device_count() == 1
    assert torch.zeros(1, device="cuda").device.type == "cpu"
    del transformer_engine

    cpu_backend.disable()
    assert_off()
    assert_unchanged(before, attributes())
    assert operators == operators_before
    cpu_backend.disable()


# An error half way through takes back what was done before it.
from cpu_backend import import_hooks  # noqa: E402


def fail(ledger):
    raise OSError("no more")


install, import_hooks.install = import_hooks.install, fail
with pytest.raises(OSError, match="no more"):
    cpu_backend.enable()
import_hooks.install = install
assert_off()
assert_unchanged(before, attributes())
