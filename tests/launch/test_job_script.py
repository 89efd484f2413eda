"""Values that a job's script must not change, read back by a real shell."""

import subprocess

import pytest

from launch.code_version import CodeVersion
from launch.job_script import quote, setup_lines

VALUES = [
    "plain",
    "two words",
    'it\'s "quoted"',
    "$HOME `date` $(date) \\ !",
    '{"a": [1, "b c"]}',
    "line\nline",
    "日本語 #1",
    "",
    "/shared/nemo_run/cache",
    "don't /nemo_run",
]


def in_shell(script):
    # NeMo-Run replaces this in scripts without a container.
    script = script.replace("/nemo_run", "/jobs/7")
    command = ["bash", "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={}).stdout


@pytest.mark.parametrize("value", VALUES)
def test_a_value_arrives_unchanged(value):
    assert in_shell(f"printf %s {quote(value)}") == value


def test_the_lines_of_a_script():
    code = CodeVersion("b" * 40, "a" * 40)
    lines = setup_lines(
        code,
        {"lower_Case": "x $y", "PYTHONPATH": "/mine", "PATH": "/a:/b"},
        ["echo later"],
        "/nemo_run/code/b",
        "/a venv/bin",
    )
    script = f'{lines}\nprintf "%s|" "$lower_Case" "$PYTHONPATH" "$PATH"'
    assert in_shell(script) == (
        f"code: nemo-vlm-recipes {'a' * 40} with uncommitted changes\n"
        "later\nx $y|/jobs/7/code/b:/mine|/a venv/bin:/a:/b|"
    )
