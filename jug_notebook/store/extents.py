"""How far the logs of a store had come: whether the end of one is missing that was there before."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress

from jug_notebook.errors import StoreError, clean
from jug_notebook.store import Store, keyring


class Extents:
    """How far logs had come when somebody last looked: what is missing of that was cut off, lost or put back.

    That is known of a user's own last log from their keyring, and of others from what their readers wrote at last.
    """

    def __init__(self, store: Store) -> None:
        self.note = ""  #: what is missing, in words; empty if nothing is
        self._store = store
        self._expected: dict[str, int] | None = None  # None until the pin was read
        self._since: dict[str, float] = {}

    def expect(self, extents: Mapping[str, int]) -> None:
        """Expect logs to have come that far."""
        for name, extent in extents.items():
            self._missing()[name] = max(extent, self._missing().get(name, 0))

    def _missing(self) -> dict[str, int]:
        if self._expected is None:
            self._expected = keyring.extents(self._store.pin) if self._store.pin else {}
        return self._expected

    def check(
        self, now: float, extent: Callable[[str], int], patience: Callable[[str], float], look: Callable[[], object]
    ) -> None:
        """Compare with what was read: see `note`, which is also a warning, once.

        ``extent`` returns how far a log has come, and ``patience`` for how many seconds it may still be on its way.
        ``look`` reads all once more, for what is expected may have been written since it was read.
        """
        missing = self._missing()
        if any(extent(name) < size for name, size in missing.items()):
            look()
        elif not missing:
            return
        self._expected = {name: size for name, size in missing.items() if extent(name) < size}
        late = [name for name in self._expected if now - self._since.setdefault(name, now) >= patience(name)]
        if late and not self.note:
            self.note = (
                f"{self._store.display_url}: the end of {len(late)} of its logs is missing (an older copy?), so that "
                "what was invalidated since may count again. It was cut off, lost in a crash, or a copy was put back"
            )
            warnings.warn(clean(self.note), stacklevel=2)
        elif not self._expected:
            self.note = ""

    def leave(self, extents: Mapping[str, int]) -> None:
        """Note, as this process ends, how far its log has come, if it has one."""
        pin = self._store.pin
        with suppress(StoreError):
            if extents and pin and keyring.pinned(pin) == self._store.id:
                keyring.pin(pin, self._store.id, extents)
