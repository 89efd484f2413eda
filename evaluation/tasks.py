"""The evaluation tasks by name."""

from collections.abc import Callable
from typing import Any

from evaluation.exact_match import exact_match

TASKS: dict[str, Callable[..., Any]] = {"exact_match": exact_match}


def get_task(name: str) -> Callable[..., Any]:
    """Returns the function of a task.

    Raises:
        ValueError: If there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"task={name!r} is unknown: allowed are {', '.join(sorted(TASKS))}")
    return TASKS[name]
