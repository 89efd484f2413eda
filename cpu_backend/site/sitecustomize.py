"""Run by every Python that starts with this folder on PYTHONPATH; switches the backend on lazily.

A child process of NeMo-Run deserialises the recipe, and so imports NeMo, before any function of
ours runs: only the interpreter's start comes early enough. It must stay cheap, so nothing is
imported here that Python has not imported already, until NeMo or Megatron-Core is asked for.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is not imported: it would cost a third of Python's start
    from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
_TRIGGERS = frozenset({"transformer_engine", "megatron.core", "nemo"})


class _EnablingFinder:
    """Enables the backend right before the first import that depends on it."""

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Finds nothing itself; what it enables is asked next."""
        if fullname not in _TRIGGERS:
            return None
        sys.meta_path.remove(self)
        _backend().enable()
        # The loop over sys.meta_path that called us does not see the finders added meanwhile.
        return importlib.util.find_spec(fullname)


def _backend() -> Any:
    """Returns our package, from this file's own checkout, without changing sys.path."""
    if "cpu_backend" not in sys.modules:
        package = os.path.dirname(_HERE)
        spec = importlib.util.spec_from_file_location(
            "cpu_backend",
            os.path.join(package, "__init__.py"),
            submodule_search_locations=[package],
        )
        assert spec is not None, "a path was given"
        assert spec.loader is not None, "the path is a Python file"
        module = importlib.util.module_from_spec(spec)
        sys.modules["cpu_backend"] = module
        spec.loader.exec_module(module)
    return sys.modules["cpu_backend"]


def _run_the_next_sitecustomize() -> None:
    """Runs the sitecustomize that this one hides, as Python would have."""
    entries = [os.path.abspath(entry) for entry in sys.path]
    # Those after this one: another checkout's copy looks behind itself in turn.
    hidden = sys.path[entries.index(_HERE) + 1 :] if _HERE in entries else []
    hidden = [entry for entry in hidden if os.path.abspath(entry) != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", hidden)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if os.environ.get("NEMO_VLM_CPU_BACKEND") == "1":
    sys.meta_path.insert(0, _EnablingFinder())
_run_the_next_sitecustomize()
