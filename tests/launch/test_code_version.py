"""What a job gets of a checkout."""

import subprocess

import pytest

from launch.code_version import PROJECT_ROOT, find_code_version


def git(root, *arguments):
    return subprocess.run(
        ["git", *arguments], cwd=root, check=True, capture_output=True, text=True
    ).stdout.rstrip("\n")


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "a checkout"
    root.mkdir()
    git(root, "init", "-q")
    git(root, "config", "user.email", "a@b")
    git(root, "config", "user.name", "a")
    (root / "code.py").write_text("one")
    (root / ".gitignore").write_text("build\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    return root


def test_a_clean_checkout_ships_its_commit(checkout):
    (checkout / "build").write_text("ignored")
    version = find_code_version(allow_dirty=False, root=checkout)
    assert version.shipped == version.head == git(checkout, "rev-parse", "HEAD")
    assert str(version) == version.head


@pytest.mark.parametrize("change", ["edit", "stage", "add", "delete"])
def test_what_is_not_committed_is_refused_or_shipped_and_nothing_here_changes(change, checkout):
    if change == "delete":
        (checkout / "code.py").unlink()
    else:
        (checkout / ("new file" if change == "add" else "code.py")).write_text("two")
    if change == "stage":
        git(checkout, "add", "-A")
    (checkout / "build").write_text("ignored")
    before = git(checkout, "status", "--porcelain")
    with pytest.raises(ValueError, match=r"(code\.py|new file).* is not committed.*--allow-dirty"):
        find_code_version(allow_dirty=False, root=checkout)
    version = find_code_version(allow_dirty=True, root=checkout)
    assert str(version) == f"{git(checkout, 'rev-parse', 'HEAD')} with uncommitted changes"
    shipped = git(checkout, "ls-tree", "-r", "--name-only", version.shipped).splitlines()
    expected = {".gitignore"} | ({"code.py"} if change != "delete" else set())
    expected |= {"new file"} if change == "add" else set()
    assert set(shipped) == expected
    if change in ("edit", "stage"):
        assert git(checkout, "show", f"{version.shipped}:code.py") == "two"
    assert git(checkout, "status", "--porcelain") == before
    assert git(checkout, "for-each-ref", "--contains", version.shipped) == ""


def test_a_folder_without_git_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no git checkout"):
        find_code_version(allow_dirty=True, root=tmp_path)


def test_a_file_that_fails_once_is_read_again(checkout, tmp_path):
    """As one that is gone between git's listing and its reading: another job's scratch file."""
    seen = tmp_path / "seen"
    # Fails at the first reading; the marker lies outside the checkout.
    git(checkout, "config", "filter.once.clean", f"test -e '{seen}' && cat || ! touch '{seen}'")
    git(checkout, "config", "filter.once.required", "true")
    (checkout / ".gitattributes").write_text("scratch filter=once\n")
    (checkout / "scratch").write_text("two")
    version = find_code_version(allow_dirty=True, root=checkout)
    assert seen.exists()
    assert git(checkout, "show", f"{version.shipped}:scratch") == "two"


def test_what_git_cannot_pack_is_named_in_its_own_words(checkout):
    git(checkout, "init", "-q", "inner")
    with pytest.raises(ValueError, match=r"uncommitted files of .*inner/.*remove what cannot"):
        find_code_version(allow_dirty=True, root=checkout)


def test_what_another_submission_unpacks_here_is_no_change():
    # NeMo-Run packs in the current folder, which is the checkout: nemo_run/core/packaging/git.py.
    ignored = git(PROJECT_ROOT, "check-ignore", "temp_extract_1/README.md")
    assert ignored == "temp_extract_1/README.md"
