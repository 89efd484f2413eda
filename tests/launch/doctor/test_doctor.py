"""The doctor's verdicts on values that were chosen here, and a reduction of two real processes."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from launch.__main__ import main
from launch.doctor import gpus, machine, network, software
from tests.free_ports import free_port

ROOT = Path(__file__).parents[3]
GIB = 2**30


def verdicts(findings):
    return [(finding.verdict, finding.found) for finding in findings]


@pytest.mark.parametrize(
    ("requirement", "version", "verdict"),
    [
        ("torch==2.8.0", "2.8.0", "ok"),
        ("torch==2.8.0", "2.8.0+cu128", "ok"),
        ("torch==2.8.0", "2.7.1", "warn"),
        ("transformers>=4.53,<4.54", "4.53.3", "ok"),
        ("transformers>=4.53,<4.54", "4.54.0", "warn"),
        ("pillow", "3", "ok"),
        ("pillow", None, "bad"),
    ],
)
def test_versions(requirement, version, verdict):
    assert software.check_version(Requirement(requirement), version).verdict == verdict


def test_a_secret_is_never_shown():
    found = software.check_variable("HF_TOKEN", {"HF_TOKEN": "hf_secret"})
    assert found.verdict == "ok"
    assert "secret" not in repr(found)
    assert software.check_variable("HF_TOKEN", {}).verdict == "warn"


def test_disk_memory_and_files():
    folder = Path("/runs")
    disk = [machine.check_free_disk(folder, n * GIB) for n in (500, 100, 5)]
    assert verdicts(disk) == [("ok", "500 GiB"), ("warn", "100 GiB"), ("bad", "5 GiB")]
    inodes = [machine.check_inodes(folder, *n) for n in ((10**6, 10**7), (10, 10**7), (0, 0))]
    assert verdicts(inodes) == [("ok", "1,000,000"), ("warn", "10"), ("ok", "unlimited")]
    speed = [machine.check_disk_speed(folder, n) for n in (1e9, 1e8)]
    assert verdicts(speed) == [("ok", "1000 MB/s"), ("warn", "100 MB/s")]
    files = [machine.check_open_files(n) for n in (resource.RLIM_INFINITY, 1024, 256)]
    assert verdicts(files) == [("ok", "unlimited"), ("ok", "1,024"), ("bad", "256")]
    shared = [machine.check_shared_memory(n) for n in (32 * GIB, 2 * GIB, 64 * 2**20)]
    assert verdicts(shared) == [("ok", "32.0 GiB"), ("warn", "2.0 GiB"), ("bad", "0.1 GiB")]


def test_a_clock_that_is_off_is_named():
    assert machine.check_clocks({"n1": 100.0, "n2": 100.4, "n3": 99.8}).verdict == "ok"
    found = machine.check_clocks({"n1": 100.0, "n2": 130.0, "n3": 99.8})
    assert (found.verdict, found.found) == ("warn", "30.00 s at most")
    assert "n2" in found.advice


def test_gpus():
    lines = [
        "0, NVIDIA H100, 81559, 4, 0, No",
        "1, NVIDIA H100, 81559, 40000, 0, No",
        "2, NVIDIA H100, 81559, 4, 3, No",
        "3, NVIDIA H100, 81559, 4, 0, Yes",
        "4, NVIDIA GeForce, 24000, 4, [N/A], [N/A]",
    ]
    assert verdicts(gpus.judge_gpus("\n".join(lines), 8)) == [
        ("bad", "5 of 8"),
        ("ok", "free, no ECC errors"),
        ("warn", "40000 MiB in use"),
        ("bad", "3 uncorrected ECC errors"),
        ("bad", "pages to retire"),
        ("ok", "free, no ECC errors"),
    ]


def test_a_node_without_its_driver_is_bad(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert verdicts(gpus.check_gpus(8)) == [("bad", "no nvidia-smi")]
    assert verdicts(gpus.check_gpus(0)) == [("ok", "none wanted")]
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    ((verdict, found),) = verdicts(gpus.check_gpus(8))
    assert (verdict, "9" in found) == ("bad", True)


def test_bandwidth():
    # A ring of 4: each sends 3/4 of the bytes to reduce, and again to spread the result.
    assert network.bus_bandwidth(8_000, 4, 2.0) == 6_000.0
    found = network.judge_bandwidth(25e9, 16, 2, on_gpus=True)
    assert (found.verdict, found.found) == ("ok", "1600.0 Gbit/s per node")
    assert network.judge_bandwidth(1e9, 16, 2, on_gpus=True).verdict == "warn"
    assert network.judge_bandwidth(1e9, 8, 1, on_gpus=True).verdict == "ok"


def test_places():
    slurm = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}
    lists = {"n[1-2,5]": "n1", "n[07,9]": "n07", "a1,n[1-2]": "a1", "one": "one"}
    for nodes, first in lists.items():
        place = network.find_place(slurm | {"SLURM_JOB_NODELIST": nodes})
        assert place == network.Place(3, 4, 1, first)
    alone = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "MASTER_ADDR": "x"}
    assert network.find_place(slurm | alone) is None
    assert network.find_place({}) is None


def test_two_processes_reduce_and_one_prints(tmp_path):
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "launch", "doctor", "--dir", str(tmp_path)]
            + ["--json", str(tmp_path / f"{rank}.json")],
            cwd=ROOT,
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    findings = json.loads((tmp_path / "0.json").read_text())["findings"]
    assert findings[-2]["check"] == "all-reduce of 2 ranks on 1 nodes (gloo)"
    assert float(findings[-2]["found"].split()[0]) > 0
    assert findings[-1]["check"] == "clocks"
    assert "megatron-core" in printed[0]
    assert "megatron-core" not in printed[1]


def test_the_command_fails_where_something_is_bad(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert main(["doctor", "--dir", str(tmp_path)]) == 3  # this node, and not what all share
    assert "ulimit -n 4096" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert main(["doctor", "--dir", str(tmp_path / "no")]) == 2
