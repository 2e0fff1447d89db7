"""Run a stored task again in this process, with its original arguments: to debug it, or to verify its value."""

from __future__ import annotations

import contextlib
import io
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
from blake3 import blake3

from jug_notebook import codec
from jug_notebook.errors import NoSuchTask
from jug_notebook.model import Address, Finished, FunctionBundle, Key, State
from jug_notebook.render.values import summarise
from jug_notebook.session.access import StoreAccess
from jug_notebook.session.results import Results
from jug_notebook.session.targets import TargetResolver
from jug_notebook.store.signed import template
from jug_notebook.task.context import running
from jug_notebook.worker.execution import Runner, in_a_line, runner_of
from jug_notebook.worker.inputs import Needs

_SIZE = 20  #: bytes of a blob's address


class Call(NamedTuple):
    """A stored call, ready to be made: ``function(*args, **kwargs)``."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Difference(NamedTuple):
    """A value that differs from the stored one."""

    key: Key
    call: str
    how: str  #: both values in short


class Verified(msgspec.Struct, frozen=True):
    """The result of `Rerun.verify`: ``checked`` of ``total`` values were computed again. True if none differs."""

    checked: int
    total: int
    differing: tuple[Difference, ...]

    def __bool__(self) -> bool:
        return not self.differing

    def __repr__(self) -> str:
        if not self.total:
            return "nothing to verify: none of these is finished"
        of = f"{self.checked:,} of {self.total:,} values computed again"
        if not self.differing:
            return f"{of}: all came out equal"
        lines = [f"{of}: {len(self.differing):,} differ{'s' * (len(self.differing) == 1)}"]
        lines += [f"  {one.key[:8]}  {one.call}: {one.how}" for one in self.differing[:50]]
        if len(self.differing) > 50:
            lines.append(f"  and {len(self.differing) - 50:,} more")
        return "\n".join(lines)


class Rerun:
    """Repeats stored calls in this process. Stores nothing."""

    def __init__(self, access: StoreAccess, targets: TargetResolver, results: Results) -> None:
        self._store = access.store
        self._signed = access.signed
        self._targets = targets
        self._results = results

    def recall(self, key: Key) -> Call:
        """Return a stored call: its function, args and kwargs; task functions that it calls are plain functions.

        Raises NoSuchTask, NotReady where a value that it needs is not stored.
        """
        self._targets.flush()
        with contextlib.ExitStack() as around:
            return self._recall(key, around)[0]

    def rerun(self, key: Key) -> Any:
        """Repeat a stored call here, as a worker would, and return its value. Raises what the call raises."""
        self._targets.flush()
        with contextlib.ExitStack() as around:
            around.enter_context(running())
            call, runner = self._recall(key, around)
            if runner is not None:
                return runner.call(*call)
            return call.function(*call.args, **call.kwargs)

    def _recall(self, key: Key, around: contextlib.ExitStack) -> tuple[Call, Runner | None]:
        [spec] = self._signed.specs([key])
        if spec is None:
            raise NoSuchTask(f"no task {key[:12]} in {self._store.display_url}")
        known = template(spec.template)
        runner = runner_of(known.runner) if known.runner else None
        if runner is not None and runner.stage is not None:
            around.enter_context(runner.stage())
        values = self._results.collect(spec.needs, wait=False)
        bundle = msgspec.msgpack.decode(self._store.get_blob(known.bundle), type=FunctionBundle)
        function = codec.load_function(bundle, self._store.get_blob)
        codec.use_modules(bundle)
        needs = Needs(spec.needs, [partial(_itself, value) for value in values], self._signed)
        args, kwargs = codec.load_call(spec.arguments, needs, self._store.get_blob)
        return Call(function, args, kwargs), runner

    def verify(self, target: Any, fraction: float = 0.01, namespace: Mapping[str, Any] | None = None) -> Verified:
        """Compute a sample of a target's finished tasks again, in this process, and compare the values.

        ``fraction`` of them, at least one. Return a `Verified`, true where all came out equal. Stores nothing, and
        what the tasks print is discarded. Raises NoSuchTask.
        """
        keys = self._targets.keys(target, namespace)
        states = self._store.states(keys)
        finished = [key for key, state in zip(keys, states, strict=True) if state is State.FINISHED]
        count = min(len(finished), max(1, math.ceil(len(finished) * fraction)))
        sample = set(random.sample(finished, count))
        ordered = [key for key in finished if key in sample]
        return Verified(len(ordered), len(finished), tuple(self._differing(ordered)))

    def _differing(self, keys: Sequence[Key]) -> Iterator[Difference]:
        for key, outcome in zip(keys, self._signed.outcomes(keys), strict=True):
            if isinstance(outcome, Finished):
                how = self._difference(key, outcome)
                if how:
                    [view] = self._signed.views([key])
                    yield Difference(key, f"{view.name}({view.args_repr})", how)

    def _difference(self, key: Key, outcome: Finished) -> str:
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                value = self.rerun(key)
            _, digest = codec.dump_value(value, _address)
        except Exception as error:  # any error differs from the stored value
            return f"{outcome.summary} then; now {in_a_line(error)}"
        if digest == outcome.digest:
            return ""
        how = f"{outcome.summary} then; now {summarise(value)}"
        if digest[:1] != b"c" or outcome.digest[:1] != b"c":
            how += " (compared by their pickles, which may differ for equal values of its type)"
        return how


def _itself(value: Any) -> Any:
    return value


def _address(parts: Iterable[bytes | memoryview]) -> Address:
    """Return the address that a store would give these bytes, without storing them."""
    hashed = blake3()
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest(length=_SIZE)
