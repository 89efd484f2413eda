"""Where a run keeps its checkpoints, and a checkpoint its assets. Paths only: nothing is loaded."""

from __future__ import annotations

import re
from pathlib import Path

_UNFINISHED_SUFFIX = "-unfinished"
"""NeMo writes `<checkpoint>-unfinished` beside a checkpoint and removes it when it is whole."""


def is_checkpoint(path: Path) -> bool:
    """Return whether a folder is a whole NeMo checkpoint."""
    unfinished = path.with_name(path.name + _UNFINISHED_SUFFIX)
    return (path / "weights" / "metadata.json").is_file() and not unfinished.exists()


def find_checkpoint(start: str | Path, argument: str = "init_from") -> Path:
    """Return a checkpoint: `start` itself, or the newest whole one of the run in that folder.

    Args:
        start: a checkpoint, or the folder of a run (which has a folder `checkpoints`).
        argument: what the user calls it, for the message.

    Raises:
        ValueError: there is none.
    """
    start = Path(start)
    if is_checkpoint(start):
        return start
    newest = newest_checkpoint(start / "checkpoints")
    if newest is None:
        raise ValueError(
            f"{argument}: {start} is neither a whole checkpoint (weights and context) nor the "
            "folder of a run that has one; run `import`, `assemble` or the stage before first."
        )
    return newest


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the whole checkpoint of the highest step in a folder, or None."""
    candidates = [path for path in folder.glob("*") if is_checkpoint(path)]
    return max(candidates, key=_age, default=None)


def unfinished_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder whose writing was cut off."""
    markers = sorted(folder.glob(f"*{_UNFINISHED_SUFFIX}"))
    return [path.with_name(path.name.removesuffix(_UNFINISHED_SUFFIX)) for path in markers]


def checkpoint_step(checkpoint: Path) -> int | None:
    """Return the step in a checkpoint's name, the first being 0; None for an imported model."""
    step = re.search(r"step=(\d+)", checkpoint.name)
    return int(step[1]) if step else None


def _age(checkpoint: Path) -> tuple[int, float]:
    step = checkpoint_step(checkpoint)
    return (-1 if step is None else step, checkpoint.stat().st_mtime)


def find_assets(start: str | Path) -> Path:
    """Return a folder with config.json and tokenizer: `start` itself or a checkpoint's.

    Raises:
        ValueError: there is none.
    """
    start = Path(start)
    if (start / "config.json").is_file():
        return start
    assets = find_checkpoint(start, "assets") / "context" / "assets"
    if not (assets / "config.json").is_file():
        raise ValueError(f"assets: {assets} has no config.json; import the model again.")
    return assets
