"""Forked processes end by their rank's SIGTERM, and by nobody else's."""

import subprocess
import sys

PARENT = """
import os, signal, subprocess, time
from recipes.child_signals import STOP_SIGNALS, shield_forked_processes

def fork():
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    return child

def others_signal(child, name):
    subprocess.run(["kill", "-s", name, str(child)], check=True)
    time.sleep(0.2)

before = fork()
for _ in range(2):
    shield_forked_processes()
not_blocked = fork()
signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
shielded = fork()
for name in ("TERM", "USR1", "TERM"):
    others_signal(shielded, name)
print(os.waitpid(shielded, os.WNOHANG))
os.kill(shielded, signal.SIGUSR1)
time.sleep(0.2)
print(os.waitpid(shielded, os.WNOHANG))
os.kill(shielded, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(shielded, 0)[1]))
for child in (before, not_blocked):
    others_signal(child, "TERM")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_who_may_end_a_forked_process(project_root):
    result = subprocess.run(
        [sys.executable, "-c", PARENT],
        env=project_root.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.splitlines() == ["(0, 0)", "(0, 0)", "143", "-15", "-15"], result.stderr
