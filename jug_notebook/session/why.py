"""Explain why a task isn't stored: read it and the most similar stored task, and find their `differences`.

What is read for one explanation is bounded, however large the store.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from blake3 import blake3

from jug_notebook import codec, system
from jug_notebook.errors import SignatureError, ValueLost
from jug_notebook.keys import packages
from jug_notebook.model import (
    OPEN_STATES,
    Address,
    Cause,
    Explanation,
    Failed,
    FunctionBundle,
    Invalidation,
    Key,
    Outcome,
    Payload,
    Reason,
    Scope,
    Spec,
    State,
    Why,
    decoder,
    of_host,
)
from jug_notebook.render.format import shortage
from jug_notebook.session import differences
from jug_notebook.session.differences import listed
from jug_notebook.store.signed import SignedReader, function_bundle, template

_module_files: Callable[[memoryview], dict[str, bytes]] = decoder(dict[str, bytes], "a module")

EXPLAINED = 1000  #: most tasks of a list that are explained
OPENED = 20_000  #: most specs read for one explanation
STORED = 5_000  #: most stored tasks of one function that are compared, the latest first
DECODED = 200  #: most candidates whose arguments are compared
HEAVY = 1 << 20  #: parts of arguments of this many bytes are not read to find the nearest,
READ = 1 << 28  #: most bytes read in all
CHAIN = 40  #: levels of needs that are followed


class WhyQuery:
    """Explains tasks of a store; keeps what it has read for one question."""

    def __init__(self, signed: SignedReader, scope: Scope, ignored: Callable[[str], Iterable[str]]) -> None:
        self._store, self._signed = signed.store, signed
        self._scope = scope
        self._ignored = ignored  #: function name -> its arguments that keys ignore
        self._specs: dict[Key, Spec | None] = {}
        self._idents: dict[Key, bytes] = {}
        self._stored: dict[str, list[Spec]] = {}
        self._calls: dict[str, dict[bytes, list[Spec]]] = {}
        self._bundles: dict[str, FunctionBundle | None] = {}
        self._arguments: dict[Key, dict[str, Any] | None] = {}
        self._digests: dict[Key, dict[str, bytes | None]] = {}
        self._sizes: dict[Address, int] = {}
        self._left = READ
        self._between: dict[tuple[Key, Key], tuple[Reason, ...]] = {}

    def explain(self, keys: Sequence[Key]) -> list[Explanation]:
        """Return each task (at most the first `EXPLAINED`) with the reasons why it isn't stored."""
        keys = list(dict.fromkeys(keys))[:EXPLAINED]
        self._read(keys)
        states = self._store.states(keys)
        ends = self._store.invalidations(keys)
        return [
            self._explain(key, state or State.CANCELLED, end, alone=len(keys) == 1)
            for key, state, end in zip(keys, states, ends, strict=True)
        ]

    def _explain(self, key: Key, state: State, end: Invalidation | None, alone: bool) -> Explanation:
        spec = self._spec(key)
        if spec is None:
            unknown = Reason(Cause.UNKNOWN, "", "the store doesn't know this task, or it isn't signed with its key")
            return Explanation(key, "", "", state, (unknown,))
        name = template(spec.template).name
        plain = Explanation(key, name, spec.args_repr, state)
        if state is State.FINISHED:
            return self._explain_stored(plain, spec) if alone else plain
        reasons = [*self._state_reasons(key, state), *_ended(end), *_foreign(spec), *self._need_reasons(spec, state)]
        if state not in OPEN_STATES or end is not None:
            return _with_reasons(plain, reasons)
        near = self._nearest(spec)
        if near is None:
            line = f"new function: no result of `{name}` is stored yet"
            return _with_reasons(plain, [*reasons, Reason(Cause.NEW, "new function", line)])
        return _with_reasons(plain, reasons + (self._reasons_between(near, spec) or _unseen(near, spec)), near)

    def _explain_stored(self, plain: Explanation, spec: Spec) -> Explanation:
        """Explain a stored task: why an earlier value of the same call, if there is one, isn't used."""
        outcome = self._outcome(spec.key)
        if outcome is None:
            unknown = Reason(Cause.UNKNOWN, "", "what is stored for it isn't signed with the store's key")
            return _with_reasons(plain, [unknown])
        found = msgspec.structs.replace(plain, run=outcome.run)
        if outcome.key != spec.key:
            found = msgspec.structs.replace(found, source=outcome.key)
            former = self._spec(outcome.key)
        else:
            alike = self._same_call(spec)
            former = next((near for near in alike if near.made <= spec.made and near.template != spec.template), None)
        had = self._signed.environment(outcome.run)
        changed = [] if had is None else [_environment_reason(*change) for change in packages.changes(had)]
        if former is None:
            return _with_reasons(found, changed)
        return _with_reasons(found, [*self._reasons_between(former, spec), *changed], former)

    # -- reading -------------------------------------------------------------------------------------------------------

    def _read(self, keys: Iterable[Key]) -> None:
        wanted = [key for key in dict.fromkeys(keys) if key not in self._specs][: max(0, OPENED - len(self._specs))]
        for key, body in zip(wanted, self._store.specs(wanted), strict=True):
            try:
                self._specs[key] = None if body is None else self._signed.spec(key, body)
            except SignatureError:  # signed by somebody else: treated as absent
                self._specs[key] = None

    def _spec(self, key: Key) -> Spec | None:
        if key not in self._specs:
            self._read([key])
        return self._specs.get(key)

    def _outcome(self, key: Key) -> Outcome | None:
        try:
            return self._signed.outcomes([key])[0]
        except SignatureError:
            return None

    def _bundle(self, spec: Spec) -> FunctionBundle | None:
        address = template(spec.template).bundle
        if address not in self._bundles:
            try:
                self._bundles[address] = function_bundle(self._store, address)
            except ValueLost:
                self._bundles[address] = None
        return self._bundles[address]

    def _candidates(self, name: str) -> list[Spec]:
        """Return stored tasks of one function, latest first: this notebook's, or if it has none, the whole store's."""
        if name not in self._stored:
            found: list[Spec] = []
            for scope in dict.fromkeys((self._scope.notebook, None)):
                keys = self._store.keys_named(name, Scope(scope))[::-1]
                states = self._store.states(keys)
                keys = [key for key, state in zip(keys, states, strict=True) if state is State.FINISHED][:STORED]
                self._read(keys)
                found = [spec for key in keys if (spec := self._specs.get(key)) is not None]
                if found:
                    break
            found.sort(key=lambda spec: -spec.made)
            self._stored[name] = found
        return self._stored[name]

    # -- which is the nearest ------------------------------------------------------------------------------------------

    def _ident(self, key: Key, depth: int = CHAIN) -> bytes:
        """Return a digest of a call that ignores its code and that of what it needs."""
        known = self._idents.get(key)
        if known is None:
            spec = self._spec(key) if depth else None
            if spec is None:
                return key.encode()
            self._read(spec.needs)
            whole = blake3(f"{template(spec.template).name}\0".encode())
            whole.update(msgspec.msgpack.encode(spec.arguments))
            for need in spec.needs:
                whole.update(self._ident(need, depth - 1))
            known = self._idents[key] = whole.digest(20)
        return known

    def _same_call(self, spec: Spec) -> list[Spec]:
        """Return stored tasks of the same call with other code, latest first."""
        name = template(spec.template).name
        if name not in self._calls:
            calls = self._calls[name] = {}
            candidates = self._candidates(name)
            self._read(need for candidate in candidates for need in candidate.needs)
            for candidate in candidates:
                calls.setdefault(self._ident(candidate.key), []).append(candidate)
        return [near for near in self._calls[name].get(self._ident(spec.key), ()) if near.key != spec.key]

    def _nearest(self, spec: Spec) -> Spec | None:
        alike = self._same_call(spec)
        if alike:
            return alike[0]
        candidates = [near for near in self._candidates(template(spec.template).name) if near.key != spec.key][:DECODED]
        found: Spec | None = differences.nearest(
            template(spec.template).code,
            [(template(near.template).code, self._distance(near, spec), near) for near in candidates],
        )
        return found

    def _distance(self, before: Spec, now: Spec) -> int:
        """Return how many arguments differ. Large arguments are compared by their addresses, not loaded."""
        if not (self._is_light(before.arguments) and self._is_light(now.arguments)):
            was_sent, is_sent = before.arguments, now.arguments
            return (was_sent.data != is_sent.data) + len(set(was_sent.buffers) ^ set(is_sent.buffers))
        was, is_now = self._named(before), self._named(now)
        return sum(was.get(name) != is_now.get(name) or is_now.get(name) is None for name in {**was, **is_now})

    def _is_light(self, payload: Payload) -> bool:
        """Return whether its blobs are small enough to read (those of classes are)."""
        for address in payload.buffers:
            if address not in self._sizes:
                if self._left <= 0:
                    return False
                try:
                    self._sizes[address] = self._store.get_blob(address, mapped=True).nbytes
                except ValueLost:
                    self._sizes[address] = HEAVY
                self._left -= self._sizes[address]
            if self._sizes[address] >= HEAVY:
                return False
        return True

    def _named(self, spec: Spec) -> dict[str, bytes | None]:
        if spec.key not in self._digests:
            found = self._bound(spec)
            self._digests[spec.key] = {name: differences.named(value) for name, value in (found or {}).items()}
        return self._digests[spec.key]

    def _bound(self, spec: Spec) -> dict[str, Any] | None:
        """Return the arguments by name; None where they can't be decoded here."""
        if spec.key not in self._arguments:
            self._arguments[spec.key] = self._decoded(spec)
        return self._arguments[spec.key]

    def _decoded(self, spec: Spec) -> dict[str, Any] | None:
        def stand_in(slot: int, steps: tuple[tuple[str, Any], ...]) -> Need:
            need = spec.needs[slot]
            return Need(self._call(need) + _steps(steps), self._ident(need).hex())

        try:
            args, kwargs = codec.inspect_call(spec.arguments, stand_in, self._store.get_blob)
        except Exception:  # decoding runs the user's own code, and needs modules that may not be here
            return None
        bundle = self._bundle(spec)
        found = differences.bound(() if bundle is None else bundle.signature, args, kwargs)
        for name in self._ignored(template(spec.template).name):
            found.pop(name, None)
        return found

    # -- comparing -----------------------------------------------------------------------------------------------------

    def _reasons_between(self, before: Spec, now: Spec, depth: int = CHAIN) -> list[Reason]:
        found = [*self._code_reasons(before, now)]
        if self._ident(before.key) != self._ident(now.key):
            found += self._argument_reasons(before, now)
        if depth:
            found += self._upstream_reasons(before, now, depth - 1)
        return found

    def _code_reasons(self, before: Spec, now: Spec) -> list[Reason]:
        if template(before.template).code == template(now.template).code:
            return []
        was, is_now = self._bundle(before), self._bundle(now)
        if was is None or is_now is None:
            return [Reason(Cause.CODE, "code", "its code changed; the previous code is lost")]
        texts = dict(was.texts), dict(is_now.texts)
        for bundle, known in zip((was, is_now), texts, strict=True):
            known.update(self._module_texts(bundle))
        return differences.code_reasons(was.parts, is_now.parts, *texts, self._values_of(was, is_now))

    def _values_of(self, *bundles: FunctionBundle) -> Callable[[str], tuple[Any, Any] | None]:
        """Return what looks up a global, default or closure in two versions of a function, loaded once it is asked."""

        @functools.cache
        def spaces() -> list[dict[str, Any]]:
            self._left -= sum(len(bundle.function) for bundle in bundles)
            if self._left < 0:
                return []
            try:
                return [
                    differences.values_in(codec.inspect_function(bundle, self._store.get_blob)) for bundle in bundles
                ]
            except Exception:  # loading runs the user's own code, and needs modules that may not be here
                return []

        def look_up(label: str) -> tuple[Any, Any] | None:
            found = [space[label] for space in spaces() if label in space]
            return (found[0], found[1]) if len(found) == 2 else None

        return look_up

    def _module_texts(self, bundle: FunctionBundle) -> dict[str, str]:
        """Return the source texts of project modules that count as a whole."""
        found = {}
        for label in bundle.parts:
            kind, _, name = label.partition(" ")
            root = name.partition(".")[0]
            if kind != "module" or root not in bundle.modules:
                continue
            try:
                files = _module_files(self._store.get_blob(bundle.modules[root]))
            except ValueLost:
                continue
            stem = name.replace(".", "/")
            text = files.get(f"{stem}.py") or files.get(f"{stem}/__init__.py") or b""
            found[label] = text.decode("utf-8", "replace")
        return found

    def _argument_reasons(self, before: Spec, now: Spec) -> list[Reason]:
        was, is_now = self._bound(before), self._bound(now)
        if was is None or is_now is None:
            texts = differences.window(before.args_repr, now.args_repr)
            return [Reason(Cause.ARGUMENT, "arguments", f"arguments: {texts[0]} → {texts[1]}", *texts)]
        return differences.argument_reasons(was, is_now, self._defaults(before), self._defaults(now))

    def _defaults(self, spec: Spec) -> Mapping[str, str]:
        bundle = self._bundle(spec)
        parts = {} if bundle is None else {**bundle.parts, **bundle.texts}
        return {
            label.removeprefix("default "): f"{text} (default)"
            for label, text in parts.items()
            if label.startswith("default ") and " of " not in label
        }

    def _upstream_reasons(self, before: Spec, now: Spec, depth: int) -> list[Reason]:
        """Return what changed in the needs that are the same calls with other code."""
        known = set(before.needs)
        fresh = [need for need in now.needs if need not in known]
        if not fresh:
            return []
        self._read([*before.needs, *fresh])
        was = {self._ident(need): need for need in before.needs}
        found: list[Reason] = []
        for need in fresh:
            former = was.get(self._ident(need))
            if former is not None and former != need:
                found += self._of_need(former, need, depth)
        return found

    def _of_need(self, former: Key, need: Key, depth: int) -> tuple[Reason, ...]:
        if (former, need) not in self._between:
            before, now = self._spec(former), self._spec(need)
            assert before is not None, "a task with a digest of its own was read"
            assert now is not None, "a task with a digest of its own was read"
            name = template(now.template).name
            self._between[former, need] = differences.once(
                reason if reason.of else msgspec.structs.replace(reason, of=name)
                for reason in self._reasons_between(before, now, depth)
            )
        return self._between[former, need]

    # -- where it stands -----------------------------------------------------------------------------------------------

    def _state_reasons(self, key: Key, state: State) -> list[Reason]:
        if state is State.READY:
            return self._resource_reasons(key)
        if state is State.CANCELLED:
            return [Reason(Cause.CANCELLED, "cancelled", "cancelled: it is no longer requested")]
        if state is not State.FAILED:
            return []
        outcome = self._outcome(key)
        at = 0.0 if outcome is None else outcome.run.started + outcome.run.duration
        return [Reason(Cause.FAILED, "failed", f"failed: {_error_of(outcome)}", at=at)]

    def _resource_reasons(self, key: Key) -> list[Reason]:
        if limit := self._store.waits_for([key])[0]:
            return [Reason(Cause.RESOURCES, "limit", f"waits for {limit}")]
        spec = self._spec(key)
        crews = [(info.host, info.resources) for info, alive, _ in self._store.processes() if alive and info.resources]
        short = shortage(of_host(template(spec.template).resources), crews) if spec is not None and crews else ""
        return [Reason(Cause.RESOURCES, "resources", f"waits for {short}")] if short else []

    def _need_reasons(self, spec: Spec, state: State) -> list[Reason]:
        """Return the needs that aren't stored; for a blocked task, those that block it."""
        if state not in (State.WAITING, State.BLOCKED):
            return []
        absent: dict[tuple[str, str], list[str]] = {}
        states = self._store.states(spec.needs)
        blocking_tasks = self._store.blocking_tasks(spec.needs)
        ends = self._store.invalidations(spec.needs)
        self._read(spec.needs)
        for need, state_of, blocking, end in zip(spec.needs, states, blocking_tasks, ends, strict=True):
            if state_of is State.FINISHED or (state is State.BLOCKED and state_of not in (State.FAILED, State.BLOCKED)):
                continue
            failed = need if state_of is State.FAILED else blocking
            why = ""
            if failed is not None:
                error = _error_of(self._outcome(failed))
                why = f"failed: {error}" if failed == need else f"needs {self._call(failed)}, which failed: {error}"
            elif end is not None:
                why = _cause_of(end)
            above = self._spec(need)
            name = need[:8] if above is None else template(above.template).name
            absent.setdefault((name, why), []).append(self._call(need))
        return [_need_reason(name, why, calls) for (name, why), calls in absent.items()]

    def _call(self, key: Key) -> str:
        spec = self._spec(key)
        return key[:8] if spec is None else f"{template(spec.template).name}({spec.args_repr})"


class Need:
    """Stands in arguments for the value of a task. Equal calls are equal, whatever their code."""

    __slots__ = ("call", "ident")

    def __init__(self, call: str, ident: str) -> None:
        self.call = call
        self.ident = ident

    def __repr__(self) -> str:
        return self.call

    def __jug_hash__(self) -> str:
        return self.call + self.ident


def _unseen(before: Spec, now: Spec) -> list[Reason]:
    """Return the reason where code and arguments are equal."""
    if before.folder == now.folder:
        return [_ALIKE]
    line = f"working folder: {before.folder} → {now.folder}, where relative paths mean other files"
    return [Reason(Cause.ARGUMENT, "working folder", line, before.folder, now.folder)]


_ALIKE = Reason(
    Cause.UNKNOWN,
    "",
    "its code and arguments look the same but have a different digest: something else has changed",
)


def _with_reasons(plain: Explanation, reasons: Iterable[Reason], near: Spec | None = None) -> Explanation:
    found = msgspec.structs.replace(plain, reasons=differences.once(reasons))
    return found if near is None else msgspec.structs.replace(found, nearest=near.key, nearest_args=near.args_repr)


def _steps(steps: Iterable[tuple[str, Any]]) -> str:
    formats = {"item": "[{!r}]", "call": " | {}", "unloaded": ", not loaded"}
    return "".join(formats[verb].format(getattr(what, "__name__", what)) for verb, what in steps)


def _error_of(outcome: Outcome | None) -> str:
    return outcome.error if isinstance(outcome, Failed) else "no details are known"


def _cause_of(end: Invalidation) -> str:
    if end.why is Why.LOST:
        return "its stored value was lost (missing or damaged)"
    if end.why is Why.RETRY:
        return f"retried by {end.user}"
    return f"invalidated by {end.user}"


def _ended(end: Invalidation | None) -> list[Reason]:
    return [] if end is None else [Reason(Cause.INVALIDATED, "invalidated", _cause_of(end), at=end.at)]


def _foreign(spec: Spec) -> list[Reason]:
    made, mine = template(spec.template).python, system.python()
    if made == mine:
        return []
    line = f"made by Python {made}: workers with Python {mine} don't run it"
    return [Reason(Cause.PYTHON, "Python", line, made, mine)]


def _environment_reason(name: str, before: str, now: str) -> Reason:
    line = f"computed with {name} {before}; here it is {now}, which is not part of its key"
    return Reason(Cause.ENVIRONMENT, name, line, before, now)


def _need_reason(name: str, why: str, calls: Sequence[str]) -> Reason:
    if len(calls) <= 3:
        who, them = listed(calls), "isn't" if len(calls) == 1 else "aren't"
    else:
        who, them = f"{len(calls)} tasks of `{name}`", "aren't"
    line = f"needs {who}, which {them} stored" + (f": {why}" if why else "")
    return Reason(Cause.NEED, f"needs `{name}`" + (f": {why}" if why else ""), line)
