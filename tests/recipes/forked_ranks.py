"""Starts trainings from a process that has imported everything: an import costs half a minute.

The process reads a request per line, {"number", "runs", "num_processes", "port", "log"}, and
answers each with two lines that begin with its number: the process that leads the ranks (and their
session), and its exit status, negative for a signal. Ranks have the environment that torchrun gives
them, and end as its do: when one fails, the others are ended, the log says its status, and that of
the whole is 1.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

TORCHRUN = {
    "GROUP_RANK": 0,
    "GROUP_WORLD_SIZE": 1,
    "MASTER_ADDR": "127.0.0.1",
    "TORCHELASTIC_RESTART_COUNT": 0,
    "TORCHELASTIC_MAX_RESTARTS": 0,
    "TORCHELASTIC_RUN_ID": "none",
    # No agent keeps a store: the first rank does.
    "TORCHELASTIC_USE_AGENT_STORE": False,
}


def wait_for_runs():
    """Returns, in each new rank, its runs; the process itself ends when no requests come."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    assert threading.active_count() == 1, "a fork has no other threads"
    for line in sys.stdin:
        request = json.loads(line)
        leader = os.fork()
        if leader == 0:
            answers.close()
            _lead(request)
            return request["runs"]
        number = request["number"]
        print(number, leader, file=answers)
        print(number, os.waitstatus_to_exitcode(os.waitpid(leader, 0)[1]), file=answers)
    sys.exit(0)


def _lead(request):
    """Begins a session, and returns in each of its ranks."""
    os.setsid()
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    with Path(request["log"]).open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    count = request["num_processes"]
    if count == 1:
        return
    ranks = []
    for rank in range(count):
        process = os.fork()
        if process == 0:
            _set_environment(rank, count, request["port"])
            return
        ranks.append(process)
    status = _wait(ranks)
    sys.stderr.flush()
    os._exit(status)


def _set_environment(rank, count, port):
    values = TORCHRUN | {"RANK": rank, "LOCAL_RANK": rank, "ROLE_RANK": rank, "MASTER_PORT": port}
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE"):
        values[name] = count
    os.environ.update({name: str(value) for name, value in values.items()})


def _wait(ranks):
    left = set(ranks)
    while left:
        process, status = os.wait()
        left.discard(process)
        if status:
            print(f"a rank ended with {os.waitstatus_to_exitcode(status)}", file=sys.stderr)
            for signal_number in (signal.SIGTERM, signal.SIGKILL):
                for other in left:
                    os.kill(other, signal_number)
                _wait_at_most(30, left)
            return 1
    return 0


def _wait_at_most(seconds, left):
    for _ in range(seconds * 10):
        for process in list(left):
            if os.waitpid(process, os.WNOHANG)[0]:
                left.discard(process)
        if not left:
            return
        time.sleep(0.1)
