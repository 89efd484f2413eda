"""What a LoRA checkpoint says about itself and about its base. Files only: nothing is loaded.

NeMo saves of a LoRA run only what was trained, and beside it `weights/adapter_metadata.json` with
the path of the base. This project adds the base's path relative to the checkpoint, so that a folder
of runs can be moved, and the settings that `export` rebuilds the adapters from.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

METADATA_NAME = "adapter_metadata.json"
LORA, DORA = "lora", "dora"
_WEIGHTS = "weights"


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Shape and place of the adapters.

    Attributes:
        dim: rank of the adapters.
        alpha: the adapters' product is scaled by alpha / dim.
        dropout: of the adapters' input or output in training.
        target_modules: patterns of LanguageLoRA.
        kind: lora or dora.
    """

    dim: int
    alpha: int
    dropout: float
    target_modules: tuple[str, ...]
    kind: str = LORA

    def adapts(self, layer: str) -> bool:
        """Return whether the patterns ask for an adapter on a linear layer, by its full name."""
        name = layer.rpartition(".")[2]
        return any(
            pattern == name or re.fullmatch(pattern.replace("*", "(.*)"), layer)
            for pattern in self.target_modules
        )


def is_adapter_checkpoint(checkpoint: str | Path) -> bool:
    """Return whether a checkpoint holds adapters instead of a whole model."""
    return (Path(checkpoint) / _WEIGHTS / METADATA_NAME).is_file()


def write_metadata(checkpoint: Path, base: Path, settings: AdapterSettings) -> None:
    """Write the description of an adapter checkpoint.

    Args:
        checkpoint: the folder that holds `weights`.
        base: the checkpoint that the adapters were trained on.
        settings: of the adapters.
    """
    checkpoint, base = checkpoint.resolve(), checkpoint_folder(base).resolve()
    description = {
        "model_ckpt_path": str(base),  # NeMo's name for it
        "relative_base": os.path.relpath(base, checkpoint),
        "lora": asdict(settings),
    }
    path = checkpoint / _WEIGHTS / METADATA_NAME
    path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def base_checkpoint(checkpoint: str | Path, argument: str = "ckpt") -> Path:
    """Return the checkpoint that the adapters of another one were trained on.

    Args:
        checkpoint: holds adapters.
        argument: what the user calls it, for the message.

    Raises:
        ValueError: the base is gone, or the description is damaged.
    """
    folder = checkpoint_folder(checkpoint)
    description = _read(folder, argument)
    recorded = Path(description["model_ckpt_path"])
    places = [recorded]
    if "relative_base" in description:
        places.append(folder.resolve() / description["relative_base"])
    for place in places:
        base = checkpoint_folder(place)
        if (base / _WEIGHTS / "metadata.json").is_file():
            return base.resolve()
    raise ValueError(
        f"{argument}: {folder} holds adapters for {recorded}, which is no checkpoint (any more); "
        "put the base back there, or at the same place relative to the adapters."
    )


def adapter_settings(checkpoint: str | Path, argument: str = "ckpt") -> AdapterSettings:
    """Return the settings of the adapters of a checkpoint.

    Raises:
        ValueError: the description is damaged, or of another program.
    """
    folder = checkpoint_folder(checkpoint)
    found = _read(folder, argument).get("lora")
    if found is None:
        raise ValueError(
            f"{argument}: {folder} does not say how its adapters are scaled; it was not trained "
            "with a recipe of this project."
        )
    return AdapterSettings(**found | {"target_modules": tuple(found["target_modules"])})


def checkpoint_folder(path: str | Path) -> Path:
    """Return a checkpoint's folder for it or for the folder `weights` in it."""
    path = Path(path)
    return path.parent if path.name == _WEIGHTS else path


def _read(folder: Path, argument: str) -> dict[str, Any]:
    path = folder / _WEIGHTS / METADATA_NAME
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{argument}: {path} cannot be read ({error}).") from error
    if not isinstance(description, dict) or "model_ckpt_path" not in description:
        raise ValueError(f"{argument}: {path} does not name the base of the adapters.")
    return description
