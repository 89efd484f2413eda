"""The verb doctor: a table of what was looked at; status 1 when something is bad."""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.doctor.container import check_container
from launch.doctor.finding import Finding
from launch.doctor.gpus import check_gpus
from launch.doctor.machine import check_machine
from launch.doctor.network import check_network, find_place
from launch.doctor.software import check_software
from launch.site import LOCAL, Site, read_site
from launch.status import print_table

_COLUMNS = ("check", "verdict", "found", "advice")

NODE_STATUS = 3
"""Exit status of the ranks of a node that is not fit; what all nodes share gives 1."""


def examine(options: Namespace) -> dict[str, Any]:
    """Look at this machine, and at the network when other ranks were started with this one.

    The first rank of a node looks at it and prints; what is the same for all is rank 0's.
    """
    site = LOCAL if options.site is None else read_site(options.site)
    gpus = _gpus(site) if options.gpus is None else options.gpus
    folder = Path(options.dir)
    if not folder.is_dir():
        raise ValueError(f"dir: {folder} is no folder; name one on the disk that runs go to.")
    place = find_place(os.environ)
    is_first_of_node = place is None or place.local_rank == 0
    of_node = check_machine(folder) + check_gpus(gpus) if is_first_of_node else []
    findings = list(of_node)
    if place is None or place.rank == 0:
        findings = check_software(gpus > 0, site.pass_environment) + findings
        findings += [] if site.container is None else [check_container(site.container.image)]
    if place is not None:
        of_network = check_network(place, gpus > 0)
        findings += of_network if place.rank == 0 else []
    if is_first_of_node:
        head = dict(zip(_COLUMNS, _COLUMNS, strict=True))
        print_table([head, *map(_row, findings)])
    failed = NODE_STATUS if _any_bad(of_node) else _any_bad(findings)
    return {"findings": [asdict(finding) for finding in findings], "failed": failed}


def _any_bad(findings: list[Finding]) -> bool:
    return any(finding.verdict == "bad" for finding in findings)


def _gpus(site: Site) -> int:
    """Return the GPUs that a node should have: on this machine, those that it has."""
    if site is not LOCAL:
        return site.gpus_per_node
    return 1 if shutil.which("nvidia-smi") else 0


def _row(finding: Finding) -> dict[str, str]:
    return {name: str(getattr(finding, name)) for name in _COLUMNS}
