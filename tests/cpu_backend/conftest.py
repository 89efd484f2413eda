import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


def _environment(changes: dict[str, str]) -> dict[str, str]:
    inherited = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **inherited, **changes}


@pytest.fixture(scope="session")
def run_python() -> Callable[..., str]:
    """Runs Python with arguments from the repository root; returns what it printed."""

    def run(*arguments: str, cwd: Path = ROOT, **environment: str) -> str:
        result = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env=_environment(environment),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
        return result.stdout

    return run


@pytest.fixture(scope="session")
def run_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Runs a script of this folder in two processes that find each other."""

    def run(script: str, *arguments: str, **environment: str) -> None:
        meeting = tmp_path_factory.mktemp("meeting") / "file"
        processes = []
        for rank in range(2):
            variables = {"RANK": str(rank), "WORLD_SIZE": "2", "MEETING_FILE": str(meeting)}
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(HERE / script), *arguments],
                    cwd=ROOT,
                    env=_environment({**variables, **environment}),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        for process, output in zip(processes, outputs, strict=True):
            assert process.returncode == 0, output[-6000:]

    return run
