"""Attribute changes that can be taken back, exactly and in reverse order."""

from collections.abc import Callable
from typing import Any

_ABSENT = object()


class PatchLedger:
    """Remembers what every changed attribute was, so that nothing is left behind."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def set_attribute(self, owner: Any, name: str, value: Any) -> None:
        """Sets `owner.name`, to be restored (or deleted, where it was inherited or absent)."""
        # The own dictionary and not getattr: an inherited method must not become an own one.
        before = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)
        if before is _ABSENT:
            self._undo.append(lambda: delattr(owner, name))
        else:
            self._undo.append(lambda: setattr(owner, name, before))

    def set_item(self, mapping: Any, key: Any, value: Any) -> None:
        """Sets `mapping[key]`, to be restored or deleted."""
        before = mapping.get(key, _ABSENT)
        mapping[key] = value

        def undo() -> None:
            if before is _ABSENT:
                mapping.pop(key, None)
            else:
                mapping[key] = before

        self._undo.append(undo)

    def on_restore(self, action: Callable[[], None]) -> None:
        """Registers an action that undoes something other than an assignment."""
        self._undo.append(action)

    def restore(self) -> None:
        """Undoes everything, the last change first."""
        while self._undo:
            self._undo.pop()()
