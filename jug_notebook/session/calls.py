"""All stored calls of a function as data, by whatever code: a table of them, and old values beside new ones."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from jug_notebook import codec, system
from jug_notebook.errors import BadTask, NoSuchTask, Unhashable, ValueLost
from jug_notebook.model import Key, Payload, State, Verdict
from jug_notebook.render.format import arguments_by_name
from jug_notebook.session.access import StoreAccess
from jug_notebook.store.signed import Brief, BriefSpec, function_bundle, template
from jug_notebook.task import TaskFunction, definitions, sweeps
from jug_notebook.task.handles import Call
from jug_notebook.task.sweeps import call_of, in_short

_NUMBERS = (int, float, complex)
_NAMED = (0, 1, 3)  #: kinds of parameters, as in `inspect`, that have a name for each argument


class StoredValue:
    """A value in the store: ``.load()`` returns it. Its repr describes it."""

    __slots__ = ("_access", "_payload", "_summary")

    def __init__(self, access: StoreAccess, payload: Payload, summary: str) -> None:
        self._access, self._payload, self._summary = access, payload, summary

    def load(self) -> Any:
        """Load the value. Raises ValueLost where the store has lost it since."""
        return codec.load_value(self._payload, self._access.store.get_blob)

    def __repr__(self) -> str:
        return f"<{self._summary}: .load()>"


class StoredCall(NamedTuple):
    """A call in the store, whose value isn't read yet. ``same`` is equal for the same call by whatever code."""

    key: Key
    call: Call
    code: str
    made: float
    same: tuple[bytes, bytes]
    state: State | None  #: None for a verdict that was invalidated
    verdict: Verdict | None


class StoredCalls:
    """The stored calls of functions, from one session's point of view."""

    def __init__(self, access: StoreAccess, flush: Callable[[], None]) -> None:
        self._access, self._flush = access, flush
        self._store, self._signed = access.store, access.signed
        self._names: dict[bytes, tuple[str, ...]] = {}

    def history_frame(self, function: Any, values: bool = False) -> Any:
        """Return a pandas.DataFrame of all stored calls of a function, made by whatever code, in order of submission.

        What was invalidated since has rows of its own, before that of its call, with the state "invalidated". Columns:
        the parameters (numbers, texts and the like as they are, what is large as text); "state"; "started"
        (UTC) and "seconds" of the run that counts; "edition", which numbers the versions of the code from the oldest,
        1; "current", whether that is the code as it is now; and "key": ``jn.resolve(key)`` are tasks. With ``values``
        there is "result", too: small values, and for each large one what loads it, ``.load()``. Raises NoSuchTask.
        """
        name, now = self._named(function)
        with system.uncollected():
            stored = self._calls(name)
            editions = _editions(stored)
            former = self._store.invalidated_calls(name)
            calls = [
                one
                for call in stored
                for one in (*(call._replace(state=None, verdict=verdict) for verdict in former.get(call.key, ())), call)
            ]
            columns = [call.call for call in calls]
            ours: dict[str, Any] = {
                "state": [_state_text(call) for call in calls],
                "started": sweeps.moments([call.verdict.started if call.verdict else None for call in calls]),
                "seconds": [call.verdict.duration if call.verdict else None for call in calls],
                "edition": [editions[call.code] for call in calls],
                "current": [call.code == now for call in calls],
                "key": [call.key for call in calls],
            }
            if values:
                found = self._values([call.key for call in calls])
                ours["result"] = [None if call.state is None else found.get(call.key) for call in calls]
            return sweeps.beside(columns, ours, "task.")

    def compare(self, function: Any) -> Any:
        """Return a pandas.DataFrame of the values that the function's code gives now beside those of its earlier code.

        It has a row for each call, with the same arguments, that is stored for both: its parameters; "before" and
        "now", or "before.PART" and "now.PART" of results with parts; "difference", now minus before, for numbers;
        "equal"; and "edition", the version of the code that "before" comes from: the latest one that has the call.
        Large values are not loaded: each has ``.load()``. Raises NoSuchTask if no call is stored for both.
        """
        name, now = self._named(function)
        calls = [call for call in self._calls(name) if call.verdict is not None and call.state is State.FINISHED]
        editions = _editions(calls)
        code = now if now in editions else max(editions, key=editions.__getitem__, default="")
        former: dict[tuple[bytes, bytes], StoredCall] = {}
        for call in calls:
            if call.code != code and (
                call.same not in former or editions[call.code] >= editions[former[call.same].code]
            ):
                former[call.same] = call
        pairs = [(former[call.same], call) for call in calls if call.code == code and call.same in former]
        if not pairs or (now and now != code):
            raise NoSuchTask(
                f"no call of {name} is stored both for its current code and for earlier code; make the calls again, "
                "wait for them, and compare"
            )
        found = self._values([call.key for pair in pairs for call in pair])
        before, after = ([found.get(pair[i].key) for pair in pairs] for i in (0, 1))
        ours = _side_by_side(before, after)
        ours["equal"] = [one.verdict.digest == two.verdict.digest for one, two in pairs if one.verdict and two.verdict]
        ours["edition"] = [editions[one.code] for one, _ in pairs]
        return sweeps.beside([call.call for _, call in pairs], ours, "result.")

    def _named(self, function: Any) -> tuple[str, str]:
        """Return a function's name, and the digest of its code as it is now; empty where that isn't known."""
        if isinstance(function, str):
            name, function = function, definitions.get(function)
        elif isinstance(function, TaskFunction):
            name = function.name
        else:
            raise BadTask(f"give a task function or its name, not {type(function).__name__} {function!r:.60}")
        try:
            return name, "" if function is None else function.examine(self._access.folder).digest
        except Unhashable:
            return name, ""

    def _calls(self, name: str) -> list[StoredCall]:
        self._flush()
        found = self._store.calls(name)
        if not found:
            raise NoSuchTask(f"no call of {name} is in {self._access.display_url}")
        calls = []
        for part in system.batched(found, 10_000):
            bodies = self._store.specs([key for key, _, _ in part])
            for (key, state, verdict), body in zip(part, bodies, strict=True):
                if body is not None:
                    spec = self._signed.brief_spec(key, body)
                    same = spec.call, verdict.inputs if verdict else b""
                    code = template(spec.template).code
                    calls.append(StoredCall(key, self._bound(spec), code, spec.made, same, state, verdict))
        return calls

    def _bound(self, spec: BriefSpec) -> Call:
        """Return a call's parameters. What isn't small and plain is the text that describes it."""
        names = self._signature(spec.template)
        given: dict[str, Any] = {}
        payload = spec.arguments
        if names and payload.format == "pickle" and payload.data and not payload.buffers:
            try:
                args, kwargs = pickle.loads(payload.data)
                if not kwargs and len(args) == len(names):
                    return names, in_short(args)
                given = {**dict(zip(names, args, strict=False)), **kwargs}
            except Exception:  # a class of the user's may not be importable here, or may refuse
                given = {}
        if len(given) == len(names) and names:
            return call_of([(name, given[name]) for name in names])
        texts = arguments_by_name(spec.args_repr)  # defaults are there as texts alone
        if texts is None:
            return call_of(list(given.items())) if given else (("call",), (spec.args_repr,))
        return call_of([(name, given[name] if name in given else _literal(text)) for name, text in texts.items()])

    def _signature(self, encoded: bytes) -> tuple[str, ...]:
        """Return the names of a function version's parameters; none where calls can have others."""
        if encoded not in self._names:
            self._names[encoded] = ()
            with suppress(ValueLost):
                signature = function_bundle(self._store, template(encoded).bundle).signature
                if all(kind in _NAMED for _, kind, _ in signature):
                    self._names[encoded] = tuple(name for name, _, _ in signature)
        return self._names[encoded]

    def _values(self, keys: Sequence[Key]) -> dict[Key, Any]:
        """Return the values of those tasks that have one; for a large one, what loads it."""
        values: dict[Key, Any] = {}
        for part in system.batched(keys, 10_000):
            for key, held in zip(part, self._store.outcomes(part), strict=True):
                outcome = None if held is None else self._signed.brief(key, held)
                if isinstance(outcome, Brief):
                    payload = outcome.value
                    values[key] = StoredValue(self._access, payload, outcome.summary)
                    if payload.data and not payload.buffers:
                        with suppress(Exception):  # as above: it stays what loads it, and then raises
                            values[key] = codec.load_value(payload, self._store.get_blob)
        return values


def _state_text(call: StoredCall) -> str:
    if call.state is None:
        return "invalidated"
    failed = call.state is State.CANCELLED and call.verdict is not None  # and nobody requests it any more
    return (State.FAILED if failed else call.state).value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _editions(calls: Iterable[StoredCall]) -> dict[str, int]:
    """Return the number of each version of the code, 1 for that whose first call is oldest."""
    first: dict[str, float] = {}
    for call in calls:
        first[call.code] = min(first.get(call.code, call.made), call.made)
    return {code: number for number, code in enumerate(sorted(first, key=first.__getitem__), 1)}


def _side_by_side(before: Sequence[Any], now: Sequence[Any]) -> dict[str, list[Any]]:
    """Return columns of values before and now, part by part, with the differences of numbers."""
    parts, parts_now = sweeps.results_by_name(before), sweeps.results_by_name(now)
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys([*parts, *parts_now]):
        after = "" if name == "result" else f".{name}"
        was, becomes = ([None] * len(before) if name not in found else found[name] for found in (parts, parts_now))
        columns[f"before{after}"], columns[f"now{after}"] = was, becomes
        if any(isinstance(one, _NUMBERS) and isinstance(two, _NUMBERS) for one, two in zip(was, becomes, strict=True)):
            columns[f"difference{after}"] = [
                two - one if isinstance(one, _NUMBERS) and isinstance(two, _NUMBERS) else None
                for one, two in zip(was, becomes, strict=True)
            ]
    return columns
