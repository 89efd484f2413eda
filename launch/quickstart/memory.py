"""Peak memory of this process and everything that it started."""

from __future__ import annotations

import threading

import psutil

_INTERVAL_SECONDS = 1.0


class PeakMemory:
    """Samples the memory of the process tree in the background.

    A page that several processes share is counted once (proportional set size), so the sum is what
    the machine has to hold.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """End."""
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        root = psutil.Process()
        while True:
            # Before the first wait, so that a short block has a figure too.
            self.peak_bytes = max(self.peak_bytes, _tree_bytes(root))
            if self._done.wait(_INTERVAL_SECONDS):
                return


def _tree_bytes(root: psutil.Process) -> int:
    total = 0
    for process in (root, *root.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended, or changed its user, between the listing and the reading
    return total
