"""Read along what a generator task yields, from any process, while it still runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from jug_notebook import codec
from jug_notebook.errors import BadTask, SignatureError, ValueLost
from jug_notebook.model import Key, Lease
from jug_notebook.store import Store
from jug_notebook.store.scratch import STREAM, Piece, latest_stream, stream_of
from jug_notebook.store.sealing import Seal

LOOK = 0.1  #: seconds between two looks for values


class StreamReader:
    """Yields the values of one task, each once. After a kill it goes on with the next attempt's at the same index."""

    def __init__(self, store: Store, seal: Seal, key: Key) -> None:
        self._scratch = store.scratch
        self._seal = seal
        self._key = key
        self._attempt: Lease | None = None
        self._position = 0  #: in its record
        self.count = 0  #: values that were yielded

    def new(self) -> list[Any]:
        """Return the values that have come since the last look."""
        attempt = latest_stream(self._scratch, self._key)
        if attempt is None:
            return []
        if attempt != self._attempt:
            self._attempt, self._position = attempt, 0
        found: list[Any] = []
        pieces, self._position = self._scratch.read(stream_of(attempt), self._position)
        for piece in pieces:
            first, values = self._opened(attempt, piece)
            if first <= self.count + len(found):
                found += values[self.count + len(found) - first :]
        self.count += len(found)
        return found

    def _opened(self, attempt: Lease, piece: Piece) -> tuple[int, list[Any]]:
        """Return the index of the first value in a piece, and its values: none of what is damaged or not the task's."""
        try:
            data = self._seal.open(STREAM, attempt.key, attempt.round, attempt.inputs, piece)
            number, first, values = codec.unpack(data)
        except (SignatureError, ValueLost):  # those values come with the result
            return 0, []
        return (first, values) if number == attempt.attempt else (0, [])


def follow(
    store: Store,
    seal: Seal,
    key: Key,
    check: Callable[[Callable[[], int], Callable[[], bool]], None],
    collect: Callable[[], list[Any]],
) -> Iterator[Any]:
    """Yield what a task yields, as it comes, and when it has ended what is left of the value in ``collect()``.

    ``check`` raises where nobody will run it, ``collect`` where it has failed.
    """
    reader, seen = StreamReader(store, seal, key), store.watch(-1, 0.0)

    def over() -> bool:
        [state] = store.states([key])
        return state is None or state.settled

    while not over():
        yield from reader.new()
        check(lambda: 1, over)
        seen = store.watch(seen, LOOK)
    [value] = collect()
    if not isinstance(value, list):
        raise BadTask(f"its value is of type {type(value).__name__}: only what a generator yields comes in parts")
    yield from value[reader.count :]
