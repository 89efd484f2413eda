"""What the documents name exists: links, modules, verbs, make targets."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", ".bootstrap", "runs"} & set(path.relative_to(ROOT).parts)
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_modules_and_targets_exist(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), target
    for module in re.findall(r"python -m ([a-z_]+(?:\.[a-z_]+)*)", text):
        assert importlib.util.find_spec(module) is not None, module
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"`make ([a-z]+)", text):
        assert target in targets, target


def test_the_readme_shows_verbs_that_exist():
    from launch.__main__ import build_parser

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (actions,) = [action for action in build_parser()._actions if action.dest == "verb"]
    shown = set(re.findall(r"python -m launch ([a-z]+)", text))
    assert shown == set(actions.choices)


def test_our_top_level_names_are_ours():
    """Other distributions install packages of these names; the checkout must win."""
    for name in ("recipes", "models", "datamodules", "sample_loaders", "converters", "launch"):
        (place,) = importlib.util.find_spec(name).submodule_search_locations
        assert Path(place).parent == ROOT


def test_requirement_files_have_hashes_and_no_index():
    for path in (ROOT / "requirements").glob("*.txt"):
        text = path.read_text(encoding="utf-8")
        assert "://" not in text, path.name
        if path.name != "container.txt":
            assert text.count("==") <= text.count("--hash=sha256:"), path.name
