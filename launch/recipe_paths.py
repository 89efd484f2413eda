"""The paths in a recipe, on their way to another machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import fiddle as fdl

from launch.site import Site

PATH_FIELDS = frozenset(
    {
        "log_dir", "save_dir", "init_from", "assets", "path", "validation_path", "test_path",
        "data_root", "train_paths", "validation_paths", "test_paths", "image_folder",
        "validation_image_folder", "test_image_folder", "bad_sample_file",
    }
)  # fmt: skip
"""Arguments of models, data modules, loggers and starts that are a path, or a list of paths."""


def settle_paths(recipe: fdl.Buildable, site: Site, folder: Path) -> None:
    """Make a recipe's paths absolute, and refuse those that its ranks would not see.

    Args:
        recipe: changed in place.
        site: where it will run.
        folder: where relative paths begin.

    Raises:
        ValueError: a relative path for a machine that has no such folder, or one that is not
            mounted in the container.
    """
    seen = site.folders

    def settle(name: str, path: str) -> str:
        if not path or "://" in path:
            return path
        if site.is_remote and not PurePosixPath(path).is_absolute():
            raise ValueError(
                f"{name}: {path!r} is relative, and this site's jobs run on machines that have no "
                "such folder; give an absolute path."
            )
        absolute = PurePosixPath(folder / path)
        if seen is not None and not any(absolute.is_relative_to(one) for one in seen):
            raise ValueError(
                f"{name}: {absolute} is not in the site's container, which has the folders "
                f"{', '.join(seen) or 'none'} from outside; add one."
            )
        return str(absolute)

    for config, place in _configs(recipe, ""):
        for name in PATH_FIELDS & config.__arguments__.keys():
            value = getattr(config, name)
            if isinstance(value, str | Path):
                setattr(config, name, settle(place + name, str(value)))
            elif isinstance(value, list | tuple):
                setattr(config, name, [settle(place + name, str(path)) for path in value])


def _configs(value: Any, place: str) -> Iterator[tuple[fdl.Buildable, str]]:
    """Yield every configuration in a recipe, with its place as a prefix."""
    if isinstance(value, fdl.Buildable):
        yield value, place
        for name, argument in value.__arguments__.items():
            yield from _configs(argument, f"{place}{name}.")
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _configs(one, place)
