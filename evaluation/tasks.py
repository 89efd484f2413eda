"""The evaluation tasks by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evaluation import exact_match


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is done with a data file.

    Attributes:
        prepare: Reads the questions and their images; needs no model.
        check: Refuses questions that the model's processor could not render.
        score: Asks the model.
    """

    prepare: Callable[..., Any]
    check: Callable[..., None]
    score: Callable[..., Any]


TASKS: dict[str, Task] = {
    "exact_match": Task(
        prepare=exact_match.prepare, check=exact_match.check_samples, score=exact_match.score
    )
}


def get_task(name: str) -> Task:
    """Returns a task.

    Raises:
        ValueError: If there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"task={name!r} is unknown: allowed are {', '.join(sorted(TASKS))}")
    return TASKS[name]
