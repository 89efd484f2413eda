"""Versions beside the supported ones, the GPU's libraries, and the variables a site hands on."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from launch.doctor.finding import Finding

_PROJECT = Path(__file__).parents[2] / "pyproject.toml"
_GPU_EXTRA = "gpu"


def check_software(needs_gpu: bool, variables: Iterable[str] = ()) -> list[Finding]:
    """Look at versions and variables.

    Args:
        needs_gpu: whether Transformer Engine belongs to the supported set.
        variables: names that the site hands on to its jobs.
    """
    project = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    if needs_gpu:
        wanted += project["optional-dependencies"][_GPU_EXTRA]
    findings = [check_version(Requirement(text), _installed(text)) for text in wanted]
    return findings + [check_variable(name, os.environ) for name in variables]


def check_version(requirement: Requirement, version: str | None) -> Finding:
    """Compare an installed version with the supported ones."""
    name, supported = requirement.name, str(requirement.specifier) or "any version"
    if version is None:
        return Finding(name, "bad", "not installed", f"install {requirement}")
    # Containers have builds of their own: 2.8.0a0+nv25.7 is a 2.8.0 to us.
    if requirement.specifier.contains(version.split("+")[0], prereleases=True):
        return Finding(name, "ok", version)
    return Finding(name, "warn", version, f"tested with {supported}")


def check_variable(name: str, environment: Mapping[str, str]) -> Finding:
    """Look whether a variable that a site hands on is set; its value is never shown."""
    if environment.get(name):
        return Finding(name, "ok", "set")
    return Finding(name, "warn", "not set", "export it in the shell that submits, if it is needed")


def _installed(requirement: str) -> str | None:
    try:
        return metadata.version(Requirement(requirement).name)
    except metadata.PackageNotFoundError:
        return None
