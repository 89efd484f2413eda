"""The code that a job gets: a commit, whose hash the job's log names."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[1]
_SHOWN = 5
_ATTEMPTS = 5
_AUTHOR = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "nemo-vlm-recipes"), ("EMAIL", "none@localhost"))
}


@dataclass(frozen=True)
class CodeVersion:
    """What is shipped.

    Attributes:
        shipped: hash of the commit that is packed.
        head: hash of the commit that is checked out.
    """

    shipped: str
    head: str

    def __str__(self) -> str:
        """Return the hash, and whether there is more in it than is committed."""
        return self.head if self.shipped == self.head else f"{self.head} with uncommitted changes"


def find_code_version(allow_dirty: bool, root: Path = PROJECT_ROOT) -> CodeVersion:
    """Return the commit to ship.

    Args:
        allow_dirty: also ship what is not committed (files that git ignores stay behind). It is
            packed from a commit that no branch names; the checkout and its index are left alone.
        root: of the checkout.

    Raises:
        ValueError: there is no git here, or something is not committed.
    """
    try:
        head = _git(root, "rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"site: {root} is no git checkout with a commit, and a job on other machines gets its "
            "code from one; clone the project with git."
        ) from error
    changed = _git(root, "status", "--porcelain").splitlines()
    if not changed:
        return CodeVersion(head, head)
    if not allow_dirty:
        names = ", ".join(line[3:] for line in changed[:_SHOWN])
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise ValueError(
            f"site: {names}{more} in {root} is not committed, and a job gets what is; commit it, "
            "or ship it as it is with --allow-dirty."
        )
    try:
        return CodeVersion(_commit_of_working_tree(root, head), head)
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split())
        raise ValueError(
            f"site: git cannot pack the uncommitted files of {root} ({reason}); "
            "commit them, or remove what cannot be packed."
        ) from error


def _commit_of_working_tree(root: Path, head: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        # An index of its own: the user's is not touched.
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        _git(root, "read-tree", head, **index)
        _add_all(root, index)
        tree = _git(root, "write-tree", **index)
    return _git(root, "commit-tree", tree, "-p", head, "-m", "uncommitted changes", **_AUTHOR)


def _add_all(root: Path, index: dict[str, str]) -> None:
    # git gives up when a file is gone between its listing and its reading, as an editor's swap file
    # or another job's scratch file is; what has changed by then is read with the next attempt.
    for attempt in range(_ATTEMPTS):
        try:
            _git(root, "add", "--all", **index)
        except subprocess.CalledProcessError:
            if attempt + 1 == _ATTEMPTS:
                raise
        else:
            return


def _git(root: Path, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        ["git", *arguments],
        cwd=root,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.rstrip("\n")
