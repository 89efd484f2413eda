"""How many tokens a text has, for the report."""

from pathlib import Path
from typing import Any


class TokenCounter:
    """Counts tokens with the fast tokenizer of a folder.

    Args:
        folder: Holds `tokenizer.json`; None counts nothing.

    Raises:
        ValueError: The tokenizer cannot be read.
    """

    def __init__(self, folder: Path | None) -> None:
        self._tokenizer: Any = None
        if folder is None:
            return
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"tokenizer: {folder} cannot be read: {error}.") from error

    def __call__(self, text: str) -> int:
        """Counts the tokens of a text without special ones; -1 without a tokenizer."""
        if self._tokenizer is None:
            return -1
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)
