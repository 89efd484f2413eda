"""A large file written at the disk's speed: hashed while it grows, and hardly kept in memory.

Bytes pass through a few small buffers that stay in the processor's cache. What has been written
goes to the disk at once, and leaves the system's cache soon after, together with what has been read
for it: a conversion takes no memory away from others, and never waits for gigabytes at its end.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from converters.lazy import FileBytes, LazyTensor, byte_view

_BUFFER_BYTES = 2**20
_BUFFERS = 8
WINDOW_BYTES = 64 * 2**20
"""So much is sent to the disk at once."""

_WINDOWS_ON_THEIR_WAY = 2
_WAIT_BEFORE, _START_WRITE, _WAIT_AFTER = 1, 2, 4
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EOPNOTSUPP)


class HashedFile:
    """A new file; a thread hashes its bytes while the next ones are written.

    Args:
        path: of the file, which must not exist.
        release: gives back the memory of what was read for what is written.
    """

    def __init__(self, path: Path, release: Callable[[], None]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o666)
        self._release = release
        self._behind = _WriteBehind(self._descriptor)
        self._written = 0
        self._buffer, self._filled = memoryview(bytearray(_BUFFER_BYTES)), 0
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for _ in range(_BUFFERS - 1):
            self._free.put(memoryview(bytearray(_BUFFER_BYTES)))
        self._full: queue.SimpleQueue[tuple[memoryview, int] | None] = queue.SimpleQueue()
        self._sha256 = hashlib.sha256()
        self._thread = threading.Thread(target=self._hash, daemon=True)
        self._thread.start()

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes."""
        view = memoryview(data).cast("B")
        for room, done in self._rooms(len(view)):
            room[:] = view[done : done + len(room)]
        return len(view)

    def copy(self, source: FileBytes) -> None:
        """Append bytes of another file.

        Raises:
            ValueError: it cannot be read.
        """
        for room, done in self._rooms(source.nbytes):
            source.file.read_into(room, source.offset + done)
        source.file.drop(source.offset, source.nbytes)

    def append(self, tensor: LazyTensor, start: int, stop: int) -> None:
        """Append rows [start, stop) of a tensor."""
        for piece in tensor.pieces(start, stop):
            if isinstance(piece, FileBytes):
                self.copy(piece)
            elif piece.numel():
                self.write(memoryview(byte_view(piece).numpy()))

    def tell(self) -> int:
        """Return how much was appended."""
        return self._written + self._filled

    def close(self) -> str:
        """Finish the file and return the hexadecimal SHA-256 of its bytes.

        Raises:
            OSError: the disk is full or failed.
        """
        try:
            self._hand_over()
            os.fsync(self._descriptor)
        finally:
            self._full.put(None)
            self._thread.join()
            os.close(self._descriptor)
        return self._sha256.hexdigest()

    def _rooms(self, nbytes: int) -> Iterator[tuple[memoryview, int]]:
        """Yield room for so many bytes, and how much came before; it is to be filled at once."""
        done = 0
        while done < nbytes:
            count = min(nbytes - done, _BUFFER_BYTES - self._filled)
            yield self._buffer[self._filled : self._filled + count], done
            self._filled += count
            done += count
            if self._filled == _BUFFER_BYTES:
                self._hand_over()
                self._buffer = self._free.get()

    def _hand_over(self) -> None:
        """Write the buffer, and leave it to the thread."""
        view = self._buffer[: self._filled]
        while view:
            view = view[os.write(self._descriptor, view) :]
        self._written += self._filled
        self._full.put((self._buffer, self._filled))
        self._filled = 0
        if self._behind.follow(self._written):
            self._release()

    def _hash(self) -> None:
        while (full := self._full.get()) is not None:
            buffer, filled = full
            self._sha256.update(buffer[:filled])
            self._free.put(buffer)


class _WriteBehind:
    """Sends what was written to the disk, window by window, and frees the memory it took.

    Without it the system collects gigabytes, finds new memory for each page of them, and writes
    them when somebody waits.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._library = ctypes.CDLL(None, use_errno=True)
        self._sent = 0
        self._supported = True

    def follow(self, end: int) -> bool:
        """Send the windows that are complete; return whether there was one.

        Args:
            end: how much has been written.

        Raises:
            OSError: the disk is full or failed.
        """
        before = self._sent
        while self._sent + WINDOW_BYTES <= end:
            self._send(self._sent, _START_WRITE)
            older = self._sent - _WINDOWS_ON_THEIR_WAY * WINDOW_BYTES
            if older >= 0:
                self._send(older, _WAIT_BEFORE | _START_WRITE | _WAIT_AFTER)
                os.posix_fadvise(self._descriptor, older, WINDOW_BYTES, os.POSIX_FADV_DONTNEED)
            self._sent += WINDOW_BYTES
        return self._sent > before

    def _send(self, offset: int, flags: int) -> None:
        if not self._supported:
            return
        place, length = ctypes.c_int64(offset), ctypes.c_int64(WINDOW_BYTES)
        if self._library.sync_file_range(self._descriptor, place, length, flags) == 0:
            return
        number = ctypes.get_errno()
        if number not in _UNSUPPORTED:
            raise OSError(number, os.strerror(number))
        self._supported = False  # a file system without it: `fsync` does all at the end
