"""GPUs: how many, what errors their memory had, and who else uses them."""

from __future__ import annotations

import subprocess

from launch.doctor.finding import Finding

_FIELDS = (
    "index",
    "name",
    "memory.total",
    "memory.used",
    "ecc.errors.uncorrected.volatile.total",
    "retired_pages.pending",
)
_USED_MIB = 2_000


def check_gpus(wanted: int) -> list[Finding]:
    """Ask nvidia-smi.

    Args:
        wanted: GPUs that a node of the site has; 0 where there are none.
    """
    if wanted == 0:
        return [Finding("GPUs", "ok", "none wanted")]
    try:
        printed = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
    except FileNotFoundError:
        return [Finding("GPUs", "bad", "no nvidia-smi", "install the driver, or leave this node")]
    except subprocess.SubprocessError as error:
        return [Finding("GPUs", "bad", f"nvidia-smi failed ({error})", "leave this node")]
    return judge_gpus(printed, wanted)


def judge_gpus(printed: str, wanted: int) -> list[Finding]:
    """Judge what nvidia-smi has printed: a line for each GPU, values in the order of the query."""
    gpus = [[value.strip() for value in line.split(",")] for line in printed.splitlines() if line]
    findings = [_count(len(gpus), wanted)]
    for index, name, total, used, errors, pending in gpus:
        check = f"GPU {index} ({name}, {total} MiB)"
        if errors.isdigit() and int(errors) > 0:
            advice = "have the node drained: results may be wrong"
            findings.append(Finding(check, "bad", f"{errors} uncorrected ECC errors", advice))
        elif pending == "Yes":
            findings.append(Finding(check, "bad", "pages to retire", "have the node rebooted"))
        elif used.isdigit() and int(used) > _USED_MIB:
            findings.append(Finding(check, "warn", f"{used} MiB in use", "another process has it"))
        else:
            findings.append(Finding(check, "ok", "free, no ECC errors"))
    return findings


def _count(found: int, wanted: int) -> Finding:
    if found < wanted:
        return Finding("GPUs", "bad", f"{found} of {wanted}", "leave this node: GPUs are lost")
    return Finding("GPUs", "ok", str(found))
