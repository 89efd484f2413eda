"""A real Slurm of a few nodes on this machine: munged, slurmctld and one slurmd for each node.

Everything lies below one folder, and nothing outside of it is read; only SLURM_CONF has to be set.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.free_ports import free_port

LAST_STATES = ("COMPLETED", "FAILED", "CANCELLED")
"""On its way to another attempt a job is COMPLETING, PREEMPTED, REQUEUED or CONFIGURING too."""

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
# Why: a requeued job waits cred_expire seconds; SlurmdTimeout is when a silent node counts as lost;
# MinJobAge keeps ended jobs in squeue, which stands in for sacct; no cgroups are needed; and the
# nodes say that they have more CPUs than this machine.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CommunicationParameters=NoAddrCache
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ReturnToService=2
JobRequeue=1
KillWait=2
SlurmdTimeout=6
SlurmdParameters=config_overrides
SlurmctldTimeout=30
TCPTimeout=2
MessageTimeout=5
OverTimeLimit=0
MinJobAge=86400
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PropagateResourceLimits=NONE
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] \
CPUs=8 RealMemory=4000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=1 \
GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""
# On a cluster without accounting: enough for NeMo-Run's `sacct --parsable2 -j NUMBER`.
SACCT = """\
#!/bin/bash
while (($#)); do case $1 in -j) id=$2; shift ;; esac; shift; done
echo 'JobID|JobName|Partition|Account|AllocCPUS|State|ExitCode'
exec squeue -h -j "$id" -t all -o '%i|%j|%P|%a|%C|%T|0:0'
"""


def missing_programs():
    """Return what has to be installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


class Cluster:
    """A cluster below a folder; `start` and `stop`, or a with statement."""

    def __init__(self, folder: Path, nodes: int = 3) -> None:
        self.folder, self.nodes = folder, [f"n{number + 1}" for number in range(nodes)]
        self._processes: dict[str, subprocess.Popen] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to talk to the cluster."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        path = os.pathsep.join([str(self.folder / "bin"), _path()])
        return own | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def __enter__(self) -> "Cluster":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        for name in ("bin", "log", "munge", "state"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for folder in (self.folder, self.folder / "munge"):
            folder.chmod(0o755)
        sacct = self.folder / "bin" / "sacct"
        sacct.write_text(SACCT)
        sacct.chmod(0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        port = free_port()  # and one for each node after it
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                folder=self.folder,
                host=socket.gethostname().split(".")[0],
                user=getpass.getuser(),
                nodes=len(self.nodes),
                port=port,
                first=port + 1,
                last=port + len(self.nodes),
            )
        )
        munge = self.folder / "munge"
        self._spawn(
            "munged", "--foreground", f"--key-file={key}", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
            "--num-threads=2",
        )  # fmt: skip
        self.wait_until(lambda: (munge / "socket").exists(), "munged")
        self._spawn("slurmctld", "-D", "-i", "-f", str(self.folder / "slurm.conf"))
        for node in self.nodes:
            self.start_node(node)
        self.wait_until(lambda: self.states() == ["idle"] * len(self.nodes), "idle nodes")

    def stop(self) -> None:
        if "slurmctld" in self._processes:
            self.call("scancel", "--user", str(os.getuid()), check=False)
            with contextlib.suppress(TimeoutError):
                self.wait_until(lambda: not self.call("squeue", "-h", check=False), "", seconds=6)
        # Daemons leave the tasks of their jobs behind.
        for name in [*(f"slurmd-{node}" for node in self.nodes), "slurmctld"]:
            self._end(name)
        for process_id in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        self._end("munged")

    def start_node(self, node: str) -> None:
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        configuration = str(self.folder / "slurm.conf")
        self._spawn("slurmd", "-D", "-N", node, "-f", configuration, name=f"slurmd-{node}")

    def lose_node(self, node: str) -> None:
        """End a node as a power cut would: its daemons first, so that nobody tells of its tasks."""
        daemon = self._processes.pop(f"slurmd-{node}")
        daemon.kill()
        daemon.wait()
        steps, tasks = set(), []
        for process_id in self.processes():
            with contextlib.suppress(OSError):
                folder = Path(f"/proc/{process_id}")
                if f"SLURMD_NODENAME={node}\0" in (folder / "environ").read_text():
                    tasks.append(process_id)
                    parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                    if Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd"):
                        steps.add(parent)
        for process_id in [*steps, *tasks]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)

    def states(self) -> list[str]:
        return self.call("sinfo", "-hN", "-p", "main", "-o", "%T", check=False).split()

    def call(self, *command: str, check: bool = True) -> str:
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=check, timeout=30
        ).stdout.strip()

    def processes(self) -> list[int]:
        """Return the processes of jobs: those with this cluster in their environment."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        own = {os.getpid(), *(process.pid for process in self._processes.values())}
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int(path.name) not in own and mark in (path / "environ").read_bytes():
                    found.append(int(path.name))
        return found

    def wait_until(self, done, what: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if done():
                return
            time.sleep(0.05)
        logs = "\n".join(path.read_text()[-2000:] for path in (self.folder / "log").iterdir())
        raise TimeoutError(f"no {what} after {seconds} s\n{logs}")

    def _spawn(self, program: str, *arguments: str, name: str | None = None) -> None:
        name = name or program
        command = shutil.which(program, path=_path())
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [str(command), *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _end(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
