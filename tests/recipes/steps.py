"""What the tests of trainings read from the runs' step logs, and how they compare two runs."""

from pathlib import Path

import pytest

from recipes.steps_file import STEPS_FILE, read_steps


def steps_of(folder, name):
    return read_steps(Path(folder) / name / STEPS_FILE)


def assert_same_steps(wanted, found, loss, **others):
    """Compares the steps of two runs; `loss` and the others are relative tolerances by name."""
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for one, two in zip(wanted, found, strict=True):
        for name, tolerance in {"loss": loss, "tokens": 0, **others}.items():
            assert two[name] == pytest.approx(one[name], rel=tolerance), (name, one["step"])
