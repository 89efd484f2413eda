"""The one switch: puts every stand-in in place, and takes every one out again.

torch is imported in `enable()` and not here, so that `import cpu_backend` stays free.
"""

import contextlib
import importlib
import os
import sys

from cpu_backend.environment import process_variables
from cpu_backend.patches import PatchLedger

_ledger: PatchLedger | None = None


def is_enabled() -> bool:
    """Returns whether the backend is switched on in this process."""
    return _ledger is not None


def enable() -> None:
    """Switches the backend on in this process; a second call changes nothing.

    Raises:
        RuntimeError: Transformer Engine or Megatron-Core was imported before. Both look once, when
            they are imported, at what the machine has.
    """
    global _ledger
    if _ledger is not None:
        return
    for package in ("transformer_engine", "megatron.core"):
        if package in sys.modules:
            raise RuntimeError(
                f"cpu_backend.enable() must run before {package} is imported, but it already is; "
                "call it first, or start the program with `python -m cpu_backend`."
            )
    ledger = PatchLedger()
    with contextlib.ExitStack() as on_failure:
        # Half a backend would be worse than none.
        on_failure.callback(ledger.restore)
        _install(ledger)
        on_failure.pop_all()
    _ledger = ledger


def disable() -> None:
    """Takes every stand-in out again; without `enable()` before, changes nothing.

    Modules that were imported in between (Megatron-Core, NeMo) keep the classes that they took
    from the stand-ins: they cannot be used for anything else in this process.
    """
    global _ledger
    if _ledger is None:
        return
    _ledger.restore()
    _ledger = None


def _install(ledger: PatchLedger) -> None:
    # When it is imported, dynamo makes tables of torch's functions: they must still be the original
    # ones, and its own configuration must not depend on the variables set here.
    importlib.import_module("torch._dynamo")
    for name, value in process_variables().items():
        ledger.set_item(os.environ, name, value)

    from cpu_backend import (
        cuda_devices,
        cuda_random,
        cuda_runtime,
        gloo_collectives,
        import_hooks,
        tensor_types,
    )

    cuda_devices.install(ledger)
    cuda_runtime.install(ledger)
    cuda_random.install(ledger)
    tensor_types.install(ledger)
    gloo_collectives.install(ledger)
    import_hooks.install(ledger)
