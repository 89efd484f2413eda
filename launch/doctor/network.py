"""An all-reduce over all ranks of an allocation, and their clocks."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from launch.doctor.finding import Finding
from launch.doctor.machine import check_clocks

_ROUNDS = 5
_TIMEOUT = timedelta(minutes=3)
_PORT = 29_617
_GPU_BYTES, _CPU_BYTES = 2**30, 2**24
_SLOW_GBIT_PER_SECOND = 80.0
"""Of GPUs on several nodes; InfiniBand and EFA give a node hundreds, Ethernet 10 to 25."""


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that were started together."""

    rank: int
    size: int
    local_rank: int
    address: str


def find_place(environment: Mapping[str, str]) -> Place | None:
    """Return the place that Slurm or torchrun has given; None for a process of its own."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
    elif "SLURM_PROCID" in environment and "SLURM_NTASKS" in environment:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "MASTER_ADDR")
    else:
        return None
    rank, size, local_rank = (int(environment[name]) for name in names[:3])
    if size == 1:
        return None
    address = environment.get("MASTER_ADDR") or _first_node(environment)
    return Place(rank, size, local_rank, address)


def check_network(place: Place, on_gpus: bool) -> list[Finding]:
    """Reduce over all ranks; every rank must call this. Rank 0's findings count.

    Args:
        place: of this process.
        on_gpus: with NCCL, else with gloo.
    """
    import torch
    import torch.distributed as dist

    if on_gpus:
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group(
        "nccl" if on_gpus else "gloo",
        init_method=f"tcp://{place.address}:{os.environ.get('MASTER_PORT', _PORT)}",
        rank=place.rank,
        world_size=place.size,
        timeout=_TIMEOUT,
    )
    try:
        seconds = _all_reduce_seconds(on_gpus)
        reports: list[Any] = [None] * place.size
        dist.barrier()
        dist.all_gather_object(reports, (socket.gethostname(), time.time(), seconds))
    finally:
        dist.destroy_process_group()
    clocks = {f"{node} (rank {rank})": now for rank, (node, now, _) in enumerate(reports)}
    nodes = len({node for node, _, _ in reports})
    slowest = max(seconds for _, _, seconds in reports)
    nbytes = _GPU_BYTES if on_gpus else _CPU_BYTES
    return [
        judge_bandwidth(bus_bandwidth(nbytes, place.size, slowest), place.size, nodes, on_gpus),
        check_clocks(clocks),
    ]


def bus_bandwidth(nbytes: int, ranks: int, seconds: float) -> float:
    """Return what each rank's link carries in an all-reduce of n bytes, in bytes per second.

    In a ring each rank sends 2 (n - 1) / n of its bytes.
    """
    return nbytes * 2 * (ranks - 1) / ranks / seconds


def judge_bandwidth(bytes_per_second: float, ranks: int, nodes: int, on_gpus: bool) -> Finding:
    """Judge the bandwidth of each node: that of a rank times the ranks of a node."""
    gbit = bytes_per_second * 8 / 1e9 * (ranks // nodes)
    name = f"all-reduce of {ranks} ranks on {nodes} nodes ({'NCCL' if on_gpus else 'gloo'})"
    found = f"{gbit:.1f} Gbit/s per node"
    if on_gpus and nodes > 1 and gbit < _SLOW_GBIT_PER_SECOND:
        advice = "NCCL may use Ethernet: look at NCCL_DEBUG=INFO for NET/IB or NET/OFI"
        return Finding(name, "warn", found, advice)
    return Finding(name, "ok", found)


def _all_reduce_seconds(on_gpus: bool) -> float:
    """Return the median time of an all-reduce, after one to warm up."""
    import statistics

    import torch
    import torch.distributed as dist

    device = "cuda" if on_gpus else "cpu"
    data = torch.ones((_GPU_BYTES if on_gpus else _CPU_BYTES) // 4, device=device)
    measured = []
    for _ in range(_ROUNDS + 1):
        data.fill_(1.0)
        begun = time.perf_counter()
        dist.all_reduce(data)
        if on_gpus:
            torch.cuda.synchronize()
        measured.append(time.perf_counter() - begun)
    if data[0].item() != dist.get_world_size() or data[-1].item() != dist.get_world_size():
        raise RuntimeError(f"an all-reduce of ones over {dist.get_world_size()} gave {data[0]}")
    return statistics.median(measured[1:])


def _first_node(environment: Mapping[str, str]) -> str:
    """Return the first node of a list like n[1-2,5],m3."""
    head, bracket, rest = environment["SLURM_JOB_NODELIST"].partition("[")
    if "," in head:
        return head.split(",")[0]
    if not bracket:
        return head
    first = rest.split("]")[0].split(",")[0].split("-")[0]
    return head + first
