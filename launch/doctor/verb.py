"""The verb doctor: a table of what was looked at; status 1 when something is bad."""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.doctor.finding import Finding
from launch.doctor.gpus import check_gpus
from launch.doctor.machine import check_machine
from launch.doctor.network import check_network, find_place
from launch.doctor.software import check_software
from launch.site import LOCAL, Site, read_site
from launch.status import print_table

_COLUMNS = ("check", "verdict", "found", "advice")


def examine(options: Namespace) -> dict[str, Any]:
    """Look at this machine, and at the network when other ranks were started with this one.

    Only rank 0 of a node prints, and only the first node's prints what is the same for all.
    """
    site = LOCAL if options.site is None else read_site(options.site)
    folder = Path(options.dir)
    if not folder.is_dir():
        raise ValueError(f"dir: {folder} is no folder; name one on the disk that runs go to.")
    findings = check_machine(folder) + check_gpus(_gpus(site))
    place = find_place(os.environ)
    if place is None or place.rank == 0:
        findings = check_software(_gpus(site) > 0, site.pass_environment) + findings
    if place is not None:
        findings += check_network(place, _gpus(site) > 0)
    if place is None or place.local_rank == 0:
        print_table([dict(zip(_COLUMNS, _COLUMNS, strict=True)), *map(_row, findings)])
    bad = [finding.check for finding in findings if finding.verdict == "bad"]
    return {"findings": [asdict(finding) for finding in findings], "failed": bool(bad)}


def _gpus(site: Site) -> int:
    """Return the GPUs that a node should have: on this machine, those that it has."""
    if site is not LOCAL:
        return site.gpus_per_node
    return 1 if shutil.which("nvidia-smi") else 0


def _row(finding: Finding) -> dict[str, str]:
    return {name: str(getattr(finding, name)) for name in _COLUMNS}
