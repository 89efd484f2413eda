"""Ports for processes that find each other on this machine."""

import contextlib
import os
import random
import socket

_WORKERS = 16


def free_port():
    """A port with free ones after it (runs of one launch take the next), below the ephemeral.

    Between the look and the launch another worker of pytest-xdist could take it, so that each
    worker looks among ports of its own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    while True:
        first = random.randrange(12_000 + 50 * worker, 30_000, 50 * _WORKERS)
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for port in range(first, first + 30):
                probe = probes.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port))
            return first
