"""Hugging Face models by directory or by their name on the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import requests
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_SCHEME = "hf://"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.py")
_WEIGHT_FILES = ("model*.safetensors",)
_SUBFOLDERS = ("*/*",)
"""Published models keep another copy of the weights there (`original/`): not downloaded."""


@dataclass(frozen=True)
class DirectorySource:
    """A directory on this machine."""

    directory: Path

    def small_files(self) -> Path:
        """Return the directory."""
        return self.directory

    def all_files(self) -> Path:
        """Return the directory."""
        return self.directory


@dataclass
class HubSource:
    """A model on the hub, downloaded into huggingface_hub's cache."""

    name: str
    revision: str | None
    _snapshot: Path | None = field(default=None, init=False)

    def small_files(self) -> Path:
        """Download everything but the weights.

        Raises:
            ValueError: no such model, no access to it, or no connection.
        """
        if self._snapshot is None:
            self._snapshot = self._download(_SMALL_FILES, self.revision)
        return self._snapshot

    def all_files(self) -> Path:
        """Download the weights too, of the revision that `small_files` has found.

        Raises:
            ValueError: no such model, no access to it, or no connection.
        """
        return self._download((*_SMALL_FILES, *_WEIGHT_FILES), self.small_files().name)

    def _download(self, patterns: tuple[str, ...], revision: str | None) -> Path:
        try:
            return Path(
                snapshot_download(
                    self.name,
                    revision=revision,
                    allow_patterns=list(patterns),
                    ignore_patterns=list(_SUBFOLDERS),
                )
            )
        except (OSError, HFValidationError) as error:  # every HTTP and connection error is one
            raise ValueError(f"hf: {self._explain(error)}") from error

    def _explain(self, error: Exception) -> str:
        """Say in one sentence what went wrong and what to do."""
        place = f"{constants.ENDPOINT}/{self.name}"
        login = "set HF_TOKEN or run `huggingface-cli login`"
        if isinstance(error, GatedRepoError):
            return (
                f"{self.name} is gated and this account has no access to it; accept its licence on "
                f"{place} and {login} with a token of the account that did."
            )
        if isinstance(error, RepositoryNotFoundError):
            return (
                f"{self.name} is neither a folder nor a model on the hub that this account can "
                f"see; check the name, and if {place} is private, {login}."
            )
        if isinstance(error, RevisionNotFoundError):
            return f"{self.name} has no revision {self.revision!r}; look at {place}."
        if isinstance(error, LocalEntryNotFoundError):
            cause = error.__cause__
            if isinstance(cause, OfflineModeIsEnabled):
                return (
                    f"{self.name} is not in the cache and HF_HUB_OFFLINE is set; unset it, or give "
                    "a downloaded directory."
                )
            if isinstance(cause, requests.HTTPError) and cause.response is not None:
                error = cause
            else:
                return (
                    f"{self.name} is not in the cache and {constants.ENDPOINT} cannot be reached; "
                    "check the connection, or give a downloaded directory."
                )
        if isinstance(error, requests.HTTPError) and error.response is not None:
            status = error.response.status_code
            remedy = f"check the token ({login})" if status in (401, 403) else "try again later"
            return f"the hub answered {status} for {self.name}; {remedy}."
        reason = str(error).strip().split("\n")[0]
        return f"{self.name} cannot be downloaded ({type(error).__name__}: {reason})."


def open_source(hf: str | Path) -> DirectorySource | HubSource:
    """Decide whether `hf` is a directory or a name on the hub; nothing is read yet.

    A folder of that name wins; `hf://` always means the hub, with `@revision` at the end if wanted.

    Raises:
        ValueError: it starts with hf:// but names no model.
    """
    text = os.fspath(hf)
    explicit = text.startswith(_SCHEME)
    name, _, revision = text.removeprefix(_SCHEME).partition("@")
    if explicit and not _NAME.fullmatch(name):
        raise ValueError(f"hf: {text!r} names no model; write hf://organisation/name.")
    if explicit or (_NAME.fullmatch(name) and not Path(text).exists()):
        return HubSource(name, revision or None)
    return DirectorySource(Path(text))
