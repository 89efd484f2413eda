"""A login node: an sshd on loopback from which a test cluster's jobs are submitted."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from tests.free_ports import free_port

CONFIGURATION = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile {folder}/pid
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
SetEnv SLURM_CONF={slurm_conf} PATH={path}
"""
# As a person's ~/.ssh/config and known_hosts.
CLIENT = """\
#!/bin/bash
exec {ssh} -o UserKnownHostsFile={folder}/known_hosts -o BatchMode=yes "$@"
"""


def missing_programs():
    """Return what has to be installed."""
    found = {name: shutil.which(name, path=_path()) for name in ("sshd", "ssh", "rsync")}
    return [name for name, path in found.items() if path is None]


class LoginNode:
    """A with statement; `user`, `port` and `identity` say how to get in."""

    def __init__(self, folder: Path, cluster) -> None:
        self.folder, self._cluster = folder, cluster
        self.user, self.port, self.identity = getpass.getuser(), free_port(), folder / "key"

    def __enter__(self) -> "LoginNode":
        (self.folder / "bin").mkdir()
        for name in ("key", "host_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name]
            subprocess.run(command, check=True)
        host_key = (self.folder / "host_key.pub").read_text()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}")
        environment = self._cluster.environment
        (self.folder / "sshd_config").write_text(
            CONFIGURATION.format(
                folder=self.folder,
                port=self.port,
                slurm_conf=environment["SLURM_CONF"],
                path=environment["PATH"],
            )
        )
        client = self.folder / "bin" / "ssh"
        client.write_text(CLIENT.format(ssh=shutil.which("ssh"), folder=self.folder))
        client.chmod(0o755)
        Path("/run/sshd").mkdir(exist_ok=True)
        command = [shutil.which("sshd", path=_path()), "-D", "-e"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "-f", self.folder / "sshd_config"], stderr=log, stdin=subprocess.DEVNULL
            )
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)

    @property
    def client_path(self) -> str:
        """The PATH of a person who knows this host."""
        return os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])

    def _wait(self) -> None:
        for _ in range(100):
            assert self._process.poll() is None, (self.folder / "log").read_text()
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise TimeoutError((self.folder / "log").read_text())


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
