"""Many keys of tasks in little memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jug_notebook.model import Key

_SIZE = 20  #: bytes of a key


class KeyList:
    """Keys in the order in which they came, 20 bytes each, where a set of them takes seven times as much."""

    def __init__(self) -> None:
        self._raw = bytearray()
        self._doubtful = 0  #: bytes of it that may be keys that are there twice

    def extend(self, keys: Sequence[Key], known: bool) -> None:
        """Add keys. ``known``: some of them may have been added before."""
        self._raw += bytes.fromhex("".join(keys))
        self._doubtful += _SIZE * len(keys) if known else 0
        if self._doubtful > len(self._raw) // 2:
            self._raw, self._doubtful = bytearray().join(dict.fromkeys(self._each())), 0

    def _each(self) -> Iterator[bytes]:
        return (bytes(self._raw[at : at + _SIZE]) for at in range(0, len(self._raw), _SIZE))

    def __iter__(self) -> Iterator[Key]:
        """Yield each key once."""
        return (raw.hex() for raw in dict.fromkeys(self._each()))

    def __len__(self) -> int:
        return len(self._raw) // _SIZE
