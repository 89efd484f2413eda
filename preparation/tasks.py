"""The same request as several tasks that share an output folder."""

from collections.abc import Sequence
from dataclasses import dataclass

_OPTIONS_OF_ONE_RUN = ("--task", "--tasks", "--json")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCommands:
    """Command lines, each a list of arguments.

    Attributes:
        tasks: May run at the same time, on machines that see the same folders.
        finish: Runs when all tasks have ended well.
    """

    tasks: tuple[tuple[str, ...], ...]
    finish: tuple[str, ...]


def task_commands(arguments: Sequence[str], count: int) -> TaskCommands:
    """Divides a request into tasks.

    Args:
        arguments: What follows `python -m launch prepare` in the request.
        count: How many tasks.

    Raises:
        ValueError: The number is not positive.
    """
    if count < 1:
        raise ValueError(f"tasks: {count} is not allowed; give 1 or more.")
    common = ("python", "-m", "launch", "prepare", *_without(arguments))
    return TaskCommands(
        tasks=tuple((*common, "--task", f"{number}/{count}") for number in range(count)),
        finish=(*common, "--finish"),
    )


def _without(arguments: Sequence[str]) -> list[str]:
    """Leaves out what belongs to one run: `--name value` and `--name=value`."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in _OPTIONS_OF_ONE_RUN:
            skip = True
        elif argument != "--finish" and argument.partition("=")[0] not in _OPTIONS_OF_ONE_RUN:
            kept.append(argument)
    return kept
