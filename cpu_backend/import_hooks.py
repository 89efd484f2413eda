"""What imports find: our Transformer Engine, no GPU extensions, a Lightning that takes the CPU."""

import importlib
import importlib.machinery
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from cpu_backend.patches import PatchLedger

STAND_INS_DIRECTORY = Path(__file__).parent / "stand_ins"
_TRANSFORMER_ENGINE = "transformer_engine"
# Extensions of NeMo's containers that work on a GPU only, and that NeMo and Megatron-Core would
# use, or set as defaults, because they can be imported.
_GPU_ONLY = frozenset(
    {
        "amp_C",
        "apex",
        "flash_attn",
        "flash_attn_3",
        "flash_attn_interface",
        "fused_weight_gradient_mlp_cuda",
        "transformer_engine_torch",
    }
)
_CONNECTORS = tuple(
    f"{package}.trainer.connectors.accelerator_connector"
    for package in ("lightning.pytorch", "pytorch_lightning")
)


class StandInFinder:
    """Finds `transformer_engine` in our folder, which is on no path."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns the specification of the stand-in; submodules follow from its folder."""
        if fullname != _TRANSFORMER_ENGINE:
            return None
        return importlib.machinery.PathFinder.find_spec(fullname, [str(STAND_INS_DIRECTORY)])

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context | None = None
    ) -> Iterator[importlib.metadata.Distribution]:
        """Yields a distribution of the stand-in's version; NeMo's LoRA asks for its number."""
        name = context.name if context is not None else None
        if name is not None and name.lower().replace("-", "_") == _TRANSFORMER_ENGINE:
            yield _StandInDistribution()


class _StandInDistribution(importlib.metadata.Distribution):
    """What importlib.metadata knows about the stand-in: its name and version."""

    def read_text(self, filename: str) -> str | None:
        if filename != "METADATA":
            return None
        version = importlib.import_module(_TRANSFORMER_ENGINE).__version__
        return f"Metadata-Version: 2.1\nName: transformer-engine\nVersion: {version}\n"

    def locate_file(self, path: str | os.PathLike[str]) -> Any:
        return STAND_INS_DIRECTORY / path


class _ChangingLoader:
    """Runs a module as its own loader does, then changes it."""

    def __init__(self, loader: Any, change: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._change = change

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._change(module)

    def __getattr__(self, name: str) -> Any:
        # get_source, get_data and the rest, which inspect and the traceback printer use.
        return getattr(self._loader, name)


class AfterImportFinder:
    """Changes modules of given names right after they have been imported."""

    def __init__(self, changes: dict[str, Callable[[ModuleType], None]]) -> None:
        self._changes = changes

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns the module's own specification with a loader that also makes the change."""
        change = self._changes.get(fullname)
        if change is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _ChangingLoader(spec.loader, change)  # type: ignore[assignment]
        return spec


def _cpu_name() -> str:
    return "cpu"


def install(ledger: PatchLedger) -> None:
    """Installs the finders, and changes what has already been imported."""

    def change_connector(module: ModuleType) -> None:
        # A recipe says accelerator="gpu" or "auto"; one visible device would be taken for a GPU.
        connector = module._AcceleratorConnector
        for method in ("_choose_auto_accelerator", "_choose_gpu_accelerator_backend"):
            ledger.set_attribute(connector, method, staticmethod(_cpu_name))

    for name in _CONNECTORS:
        if name in sys.modules:
            change_connector(sys.modules[name])
    for name in _GPU_ONLY:
        # None makes `import` fail and importlib.util.find_spec answer "not there".
        ledger.set_item(sys.modules, name, None)
    finders: list[Any] = [
        StandInFinder(),
        AfterImportFinder(dict.fromkeys(_CONNECTORS, change_connector)),
    ]
    sys.meta_path[:0] = finders
    importlib.invalidate_caches()

    def remove() -> None:
        for finder in finders:
            sys.meta_path.remove(finder)
        for name in list(sys.modules):
            if name == _TRANSFORMER_ENGINE or name.startswith(f"{_TRANSFORMER_ENGINE}."):
                del sys.modules[name]

    ledger.on_restore(remove)
