"""One cluster for all tests of this folder."""

import os
import tempfile
from pathlib import Path

import pytest

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
