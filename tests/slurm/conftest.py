"""One cluster for all tests of this folder, and the command that submits to it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.nano_start import write_nano_start
from tests.slurm.cluster import Cluster, missing_programs


@pytest.fixture(scope="session")
def cluster():
    """Two nodes; where Slurm is not installed the tests are skipped, and in CI they fail."""
    missing = missing_programs()
    if missing:
        reason = f"needs {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    # munge wants a path that everybody may enter, which pytest's folders are not.
    with tempfile.TemporaryDirectory(prefix="slurm_") as folder, Cluster(Path(folder)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def launch(cluster, project_root, tmp_path_factory):
    """Runs `train` in the checkout, at once or with a site; returns what it reported."""
    folder = tmp_path_factory.mktemp("launch")
    start = write_nano_start(folder / "start")
    environment = project_root.environment | cluster.environment
    environment["NEMORUN_HOME"] = str(folder / "jobs")

    def run(name, nodes, overrides, site=None):
        factory = (
            f"nvila(stage='sft', size='nano', dir='{folder}', name='{name}', num_nodes={nodes}, "
            f"init_from='{start['init_from']}')"
        )
        paths = [
            f"data.train_paths={start['train_paths']}",
            f"data.image_folder={start['image_folder']}",
        ]
        report = folder / f"{name}.json"
        options = ["--json", str(report)]
        if site is not None:
            (folder / "site.toml").write_text(site)
            options += ["--site", str(folder / "site.toml"), "--allow-dirty"]
        finished = subprocess.run(
            [sys.executable, "-m", "launch", "train", "--factory", factory, *paths]
            + [*overrides, *options],
            cwd=project_root.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
        return json.loads(report.read_text())

    run.folder = folder
    return run
