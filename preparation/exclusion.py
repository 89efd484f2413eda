"""Lists of samples to leave out, as training writes them.

A line is a JSON object; its "key" is one of
    FOLDER/000012-000.tar/KEY   a sample of a prepared folder: KEY is found again, whatever the
                                folder, the shard or the options that made it
    PATH#ROW                    a record that training read from a JSON or JSONL file itself; PATH
                                is absolute, or relative to the folder of this process
    anything else               the key that a record has in its source, as `rejected.jsonl` and the
                                "source_key" of a sample have it
KEY is made of a record's key and content, so a list of a blend of several sources is safe to give
for each of them, and a record that was mended since is not left out.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from preparation.formats.json_rows import JSON_SUFFIXES, JsonRows
from preparation.source import Piece

# Digits of the name of a sample in a shard.
KEY_DIGITS = 24
_SHARD_KEY = re.compile(rf".*\.tar/([0-9a-f]{{{KEY_DIGITS}}})")


class Exclusions:
    """Samples to leave out.

    Args:
        paths: The lists.
        source: What is read now, a file or a folder.

    Raises:
        ValueError: A list cannot be read.
    """

    def __init__(self, paths: Iterable[Path], source: Path) -> None:
        self._source = source
        self._folder = (source if source.is_dir() else source.parent).resolve()
        self._rows: dict[Path, set[int]] = {}
        self._shard_keys: set[bytes] = set()
        self._source_keys: set[str] = set()
        for path in paths:
            self._read(path)
        for path, rows in self._rows.items():
            self._add_rows(path, rows)

    def has_source_key(self, key: str) -> bool:
        """Tells whether a record is listed by its own key."""
        return key in self._source_keys

    def has_shard_key(self, key: str) -> bool:
        """Tells whether a sample is listed by its name in a shard."""
        return bytes.fromhex(key) in self._shard_keys

    def __len__(self) -> int:
        return len(self._shard_keys) + len(self._source_keys)

    def _read(self, path: Path) -> None:
        try:
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        self._add(_key(line, f"exclude: line {number} of {path}"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"exclude: {path} cannot be read: {error}.") from error

    def _add(self, key: str) -> None:
        shard_key = _SHARD_KEY.fullmatch(key)
        if shard_key is not None:
            self._shard_keys.add(bytes.fromhex(shard_key[1]))
            return
        self._source_keys.add(key)
        name, _, row = key.rpartition("#")
        path = Path(name).resolve()
        if (
            row.isdecimal()
            and path.name.lower().endswith(JSON_SUFFIXES)
            and self._folder in path.parents
            and path.is_file()
        ):
            self._rows.setdefault(path, set()).add(int(row))

    def _add_rows(self, path: Path, rows: set[int]) -> None:
        """Finds the keys of rows: training counts records, readers remember where they start."""
        piece = Piece(path=path)
        source = self._source if self._source.is_dir() else path
        for number, record in enumerate(JsonRows(source, [path]).read(piece)):
            if number in rows:
                self._source_keys.add(record.key)


def _key(line: str, place: str) -> str:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON: {error}.") from error
    key = entry.get("key") if isinstance(entry, dict) else None
    if not isinstance(key, str) or not key:
        raise ValueError(f'{place} has no "key".')
    return key
