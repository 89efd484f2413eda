"""The bytes of images: loose files, base64 text, byte strings and the structs of tables."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from preparation.formats.rows import Refusal
from preparation.reasons import RejectionReason
from preparation.source import RawImage

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tiff", ".tif", ".gif")


def read_loose(folder: Path, names: Sequence[str], max_bytes: int = 256 * 1024 * 1024) -> RawImage:
    """Reads the first of several names that is a file below a folder.

    Args:
        folder: Where images are.
        names: Paths below it, the likeliest first.
        max_bytes: Longer files are refused.

    Raises:
        Refusal: No such file is there, a name leaves the folder, or the file is too long.
    """
    for name in names:
        path = _below(folder, name)
        try:
            size_bytes = path.stat().st_size if path.is_file() else -1
        except (OSError, ValueError):  # a name that is too long, or holds a zero byte
            continue
        if size_bytes < 0:
            continue
        if size_bytes > max_bytes:
            raise Refusal(
                RejectionReason.IMAGE_TOO_LARGE,
                f"The image {name} has {size_bytes} bytes, more than {max_bytes}.",
            )
        return RawImage(name=name, data=path.read_bytes())
    raise Refusal(
        RejectionReason.MISSING_IMAGE,
        f"There is no image {' or '.join(repr(name) for name in names[:4])} in {folder}.",
    )


def loose_size_bytes(folder: Path, name: str) -> int:
    """Returns the size of a loose image, 0 where there is none."""
    try:
        return _below(folder, name).stat().st_size
    except (Refusal, OSError, ValueError):
        return 0


def embedded(value: Any, name: str, folder: Path | None = None) -> RawImage:
    """Returns an image that a record holds itself.

    Args:
        value: Its bytes, base64 text, or `{"bytes": ..., "path": ...}` as `datasets` stores it.
        name: What to call it.
        folder: Where a struct without bytes has its path; None where there is no such place.

    Raises:
        Refusal: There is no image, or it is of another type.
    """
    if isinstance(value, Mapping):
        path = value.get("path") or name
        if value.get("bytes") and not isinstance(value["bytes"], Mapping):
            return embedded(value["bytes"], str(path))
        if folder is not None and isinstance(value.get("path"), str):
            return read_loose(folder, [value["path"]])
        raise Refusal(RejectionReason.MISSING_IMAGE, f"The image {path} has no bytes.")
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        if not data:
            raise Refusal(RejectionReason.MISSING_IMAGE, f"The image {name} has no bytes.")
        return RawImage(name=name, data=data)
    if isinstance(value, str) and value:
        return RawImage(name=name, data=decode_base64(value, name))
    raise Refusal(
        RejectionReason.MISSING_IMAGE,
        f"The image {name} is {'missing' if value is None else 'a ' + type(value).__name__}.",
    )


def decode_base64(text: str, name: str) -> bytes:
    """Decodes base64 text strictly; a `data:` prefix is passed over.

    Raises:
        Refusal: It is not base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(
            RejectionReason.UNREADABLE_IMAGE, f"The image {name} is not base64: {error}."
        ) from error


def _below(folder: Path, name: str) -> Path:
    """Joins a name from a record to its folder, which it must not leave."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise Refusal(
            RejectionReason.UNSAFE_MEMBER, f"The image {name!r} is not below the image folder."
        )
    return folder / parts
