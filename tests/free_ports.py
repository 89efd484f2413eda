"""Ports for processes that find each other on this machine."""

import contextlib
import random
import socket


def free_port():
    """A port with free ones after it (runs of one launch take the next), below the ephemeral."""
    while True:
        first = random.randrange(12_000, 30_000, 50)
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for port in range(first, first + 30):
                probe = probes.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port))
            return first
