"""Samples of WebDataset tars, streamed; nothing is unpacked to disk and no link is followed."""

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from preparation.formats.files import name_in_source
from preparation.formats.rows import Row
from preparation.reasons import RejectionReason
from preparation.source import Piece, Rejected

TAR_SUFFIXES = (".tar",)
MAX_MEMBER_BYTES = 256 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024


class TarRows:
    """The samples of tars: members that follow each other and share their name up to a dot.

    A row's value is a dict of the bytes of each part by the part's name, such as `jpg` and `txt`.
    A tar is a piece, read once from front to back. Members are only read, never written anywhere:
    those with names that lead out of a folder, links and devices are rejected one by one.

    Args:
        source: The folder or file that keys are relative to.
        files: The tars.
        max_member_bytes: Longer members are rejected without being read.
    """

    def __init__(
        self, source: Path, files: Sequence[Path], max_member_bytes: int = MAX_MEMBER_BYTES
    ) -> None:
        self.source = source
        self.files = tuple(files)
        self.max_member_bytes = max_member_bytes

    def pieces(self) -> Sequence[Piece]:
        """Lists the tars."""
        return [Piece(path=path, size_bytes=path.stat().st_size) for path in self.files]

    def read(self, piece: Piece) -> Iterator[Row | Rejected]:
        """Decodes a tar."""
        name = name_in_source(self.source, piece.path)
        started: str | None = None
        parts: dict[str, bytes] = {}
        number = 0
        key = ""
        seen: set[str] = set()
        for member in self._members(piece.path, name):
            if isinstance(member, Rejected):
                if member.reason is RejectionReason.DAMAGED_FILE:
                    started = None  # parts of the last sample may be missing
                yield member
                continue
            stem, extension, data = member
            if stem != started:
                if started is not None:
                    yield Row(key=f"{name}#{key}", number=number, value=parts)
                    number += 1
                started, parts = stem, {}
                # Names come back where tars were joined or written carelessly.
                key = f"{stem}~{number}" if stem in seen else stem
                seen.add(stem)
            if extension in parts:
                yield Rejected(
                    key=f"{name}#{stem}.{extension}",
                    reason=RejectionReason.INVALID_RECORD,
                    message=f"The tar {name} holds {stem}.{extension} twice.",
                )
                continue
            parts[extension] = data
        if started is not None:
            yield Row(key=f"{name}#{key}", number=number, value=parts)

    def _members(self, path: Path, name: str) -> Iterator[tuple[str, str, bytes] | Rejected]:
        """Yields stem, extension and content of each file in the tar, as it comes."""
        size_bytes = os.path.getsize(path)
        try:
            with open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                    if member.isdir():
                        continue
                    if member.offset_data + member.size > size_bytes:
                        raise tarfile.ReadError(f"{member.name!r} is longer than what is left")
                    refused = self._refused(member, name)
                    if refused is not None:
                        yield refused
                        continue
                    content = tar.extractfile(member)
                    assert content is not None, "only regular files come here"
                    folder, _, file_name = member.name.rpartition("/")
                    stem, _, extension = file_name.partition(".")
                    yield (
                        f"{folder}/{stem}" if folder else stem,
                        extension.lower(),
                        content.read(),
                    )
                end = tar.offset  # type: ignore[attr-defined]
            _check_end(path, end)
        except (tarfile.TarError, EOFError, OSError) as error:
            yield Rejected(
                key=name,
                reason=RejectionReason.DAMAGED_FILE,
                message=(
                    f"The tar {name} cannot be read to its end, so its last sample is left out: "
                    f"{error}."
                ),
            )

    def _refused(self, member: tarfile.TarInfo, name: str) -> Rejected | None:
        parts = PurePosixPath(member.name.replace("\\", "/"))
        message = ""
        reason = RejectionReason.UNSAFE_MEMBER
        if not member.isreg() or member.issparse():
            message = "is a link, a device or sparse"
        elif parts.is_absolute() or ".." in parts.parts:
            message = "leads out of its folder"
        elif member.size > self.max_member_bytes:
            message = f"has {member.size} bytes, more than {self.max_member_bytes}"
            reason = RejectionReason.INVALID_RECORD
        if not message:
            return None
        return Rejected(
            key=f"{name}#{member.name}",
            reason=reason,
            message=f"The member {member.name!r} of {name} {message}.",
        )


def _check_end(path: Path, end: int) -> None:
    """Checks that only zeros follow, at least a block of them; `tarfile` takes any end for one.

    Raises:
        tarfile.TarError: The tar was cut off, or is damaged, or another one was put behind it.
    """
    with open(path, "rb") as stream:
        stream.seek(end)
        block = stream.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"it ends at byte {end + len(block)} without an end mark")
        while block:
            if block.strip(b"\0"):
                raise tarfile.ReadError(f"there is no member and no end mark at byte {end}")
            block = stream.read(_CHUNK_BYTES)
