"""What a snapshot has to say, before it becomes text or HTML: counts, shares of bars, times left, kinds of failures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec.structs import asdict, replace

from jug_notebook.frames import is_users
from jug_notebook.model import (
    OPEN_STATES,
    FailureKind,
    FailureView,
    FunctionView,
    LimitView,
    SimilarFailure,
    Snapshot,
    State,
    TaskView,
    WorkerInfo,
    WorkerView,
)
from jug_notebook.render.format import ago, duration, elide_call, number, plural, size

FUNCTIONS = 20  #: rows of functions that are shown,
WORKERS = 16  #: of workers,
FAILURES = 10  #: and of kinds of failures
SIMILAR = 12  #: similar failures that are named, of each kind
LINE = 300  #: characters of an error that count for its kind


NUMBERS = ("pid", "running for", "memory", "done", "last seen")  #: columns of a table of workers


class Look(NamedTuple):
    """How a state is drawn. The colours differ for any colour vision, and the word stands beside each."""

    glyph: str
    colour: str


STATE_STYLES = {  # in the order of the bar: what is done, what is to come, what went wrong
    State.FINISHED: Look("█", "#009e73"),
    State.RUNNING: Look("▓", "#0072b2"),
    State.READY: Look("▒", "#56b4e9"),
    State.WAITING: Look("░", "#999999"),
    State.BLOCKED: Look("–", "#cc79a7"),
    State.FAILED: Look("×", "#d55e00"),
    State.CANCELLED: Look("·", "#666666"),
}


class Hints(NamedTuple):
    """What to type: the same commands are written differently in a notebook and in a shell."""

    start: str
    stop: str
    stop_now: str
    retry: str
    log: str
    failed: str  #: lists all failed tasks
    more: str  #: has all rows of a table of the status


NOTEBOOK = Hints(
    "%jug_execute -n 4",
    "%jug_stop",
    "%jug_stop --now",
    "%jug_retry",
    "%jug_log",
    "%jug_tasks --state failed",
    "jn.status().{}",
)
SHELL = Hints(
    "jug-notebook worker URL -n 4",
    "jug-notebook stop",
    "jug-notebook stop --now",
    "jug-notebook retry FUNCTION",
    "jug-notebook log KEY",
    "jug-notebook log FUNCTION",
    "jug-notebook status --json",
)


def finished(snapshot: Snapshot) -> str:
    """Return how many tasks have a value, and how many of them did not run for it."""
    reused = f", {snapshot.reused:,} of them reused" if snapshot.reused else ""
    return f"{snapshot.counts[State.FINISHED]:,} of {snapshot.total:,} finished{reused}"


def percent(snapshot: Snapshot) -> str:
    """Return how much is finished; 100 % only where everything is."""
    total = snapshot.total
    return f"{snapshot.counts[State.FINISHED] * 100 // total} %" if total else "0 %"


def call(name: str, args_repr: str, width: int = LINE) -> str:
    """Return a call as people write it, "fit(n=3)", in ``width`` characters."""
    return elide_call(f"{name}({args_repr})", width)


def attempt_text(attempt: int, attempts: int, mark: str) -> str:
    """Return "attempt 2 of 3" behind a mark; nothing for the only attempt. Those that died are more than planned."""
    if attempt == attempts == 1:
        return ""
    return f"{mark}attempt {attempt}" + (f" of {attempts}" if attempt <= attempts else "")


def shares(counts: Mapping[State, int], cells: int, least: int = 1) -> list[tuple[State, int]]:
    """Return how many of a bar's ``cells`` each state gets: in proportion, but ``least`` at least, from the largest."""
    present = {state: counts[state] for state in STATE_STYLES if state is not State.CANCELLED and counts.get(state)}
    if not present:
        return []
    total = sum(present.values())
    widths = {state: max(least, count * cells // total) for state, count in present.items()}
    widths[max(present, key=present.__getitem__)] += cells - sum(widths.values())
    return list(widths.items())


def total_counts(several: Iterable[Mapping[State, int]]) -> dict[State, int]:
    """Return the sum of counts by state."""
    total: dict[State, int] = {}
    for counts in several:
        for state, count in counts.items():
            total[state] = total.get(state, 0) + count
    return total


def state_label(view: TaskView) -> str:
    """Return how a task stands, in a word or two.

    "earlier version" where its result is requested no more, "reused" where another task's run stands for it.
    """
    if view.kept or (view.state is State.CANCELLED and view.summary):
        return "earlier version"
    return "reused" if view.source else view.state.value


def visible_states(counts: Mapping[State, int]) -> list[State]:
    """Return the states that get a column: those that there are, and while tasks are open also those to come next."""
    under_way = any(counts.get(state) for state in OPEN_STATES)
    always = (State.FINISHED, State.RUNNING, State.READY) if under_way else (State.FINISHED,)
    return [state for state in STATE_STYLES if state is not State.CANCELLED and (state in always or counts.get(state))]


def beside(kept: int, cancelled: int) -> str:
    """Return what counts in no total: "+242 earlier versions kept · 3 cancelled"; empty where there is none."""
    parts = [f"+{plural(kept, 'earlier version')} kept"] if kept else []
    return " · ".join([*parts, *([f"{number(cancelled)} cancelled"] if cancelled else [])])


def beside_tasks(snapshot: Snapshot) -> str:
    """Return `beside` for the tasks of a snapshot."""
    return beside(snapshot.kept, snapshot.counts[State.CANCELLED])


def cut_functions(
    functions: Sequence[FunctionView], limit: int = FUNCTIONS
) -> tuple[list[FunctionView], list[FunctionView]]:
    """Return (shown, left out), both in order. Where there are too many, the active ones are shown."""
    if len(functions) <= limit:
        return list(functions), []

    def dullness(index: int) -> tuple[bool, bool, bool, int]:
        counts = functions[index].counts
        return (
            not counts.get(State.FAILED),
            not counts.get(State.RUNNING),
            not any(counts.get(state) for state in (*OPEN_STATES, State.BLOCKED)),
            index,
        )

    kept = set(sorted(range(len(functions)), key=dullness)[:limit])
    return (
        [function for index, function in enumerate(functions) if index in kept],
        [function for index, function in enumerate(functions) if index not in kept],
    )


def cut_workers(workers: Sequence[WorkerView], limit: int = WORKERS) -> tuple[list[WorkerView], list[WorkerView]]:
    """Return (shown, left out), by host. Where there are too many, the busy and the recently ended are shown."""
    order = visible_workers(workers)
    if len(order) <= limit:
        return order, []
    ranked = sorted(order, key=lambda view: (view.alive, not view.info.task))
    kept = {id(view) for view in ranked[:limit]}
    return [view for view in order if id(view) in kept], [view for view in order if id(view) not in kept]


def time_left(snapshot: Snapshot, function: FunctionView) -> str:
    """Return how long a function will still take if all workers run it; nothing where that isn't known."""
    if not snapshot.alive or not function.open or function.mean is None:
        return ""
    left = snapshot.time_left([function])
    return duration(left) if left >= 1 else "< 1 s"


def memory_text(function: FunctionView) -> str:
    """Return the memory that a task of a function usually takes at most; nothing where that wasn't measured."""
    return size(function.memory.p95) if function.memory.largest else ""


def memory_details(function: FunctionView) -> str:
    """Return more of that."""
    found = function.memory
    return f"at most: {size(found.mean)} on average, {size(found.p95)} in 95 % of runs, {size(found.largest)} once"


def progress_text(info: WorkerInfo, now: float) -> str:
    """Return how far its task says it is, "37/100", or "37" where the total isn't known; and what a kill would cost.

    That is what it did after its last checkpoint, "checkpoint 3 min ago". Empty where there is neither.
    """
    done, total = info.progress
    steps = f"{number(done)}/{number(total)}" if total else number(done) if done else ""
    saved = f"checkpoint {ago(now - info.checkpoint[0])}" if info.checkpoint[0] else ""
    return ", ".join(filter(None, (steps, saved)))


def host_label(info: WorkerInfo, several: bool) -> str:
    """Return where a worker is; with ``several`` users, also whose it is."""
    return f"{info.user} on {info.where}" if several else info.where


def visible_workers(workers: Sequence[WorkerView]) -> list[WorkerView]:
    """Return workers by host. Of those that have ended, only the ones with a note or a task.

    The last heartbeat of one that ended properly may still name a task: a snapshot can't tell whether it was lost.
    """
    found = [view for view in workers if view.alive or view.info.task or view.info.note]
    return sorted(found, key=lambda view: (view.info.host, view.info.pid))


def apart(snapshot: Snapshot) -> tuple[Snapshot, Snapshot]:
    """Return the snapshot with its live workers alone, and with those that ended lately."""
    found = visible_workers(snapshot.workers)
    alive, ended = ([view for view in found if view.alive is is_alive] for is_alive in (True, False))
    return replace(snapshot, workers=tuple(alive)), replace(snapshot, workers=tuple(ended), starting=0)


def worker_count_text(snapshot: Snapshot) -> str:
    """ "4 workers on 2 hosts, 3 busy, 2 starting, 1 ended recently"."""
    alive = [view for view in snapshot.workers if view.alive]
    ended = len(visible_workers(snapshot.workers)) - len(alive)
    hosts = len({view.info.machine or view.info.where for view in alive})
    if not alive and snapshot.starting:
        text = f"{plural(snapshot.starting, 'worker')} starting"
    elif alive:
        text = plural(len(alive), "worker") + (f" on {plural(hosts, 'host')}" if hosts > 1 else "")
        text += f", {number(sum(bool(view.info.task) for view in alive))} busy"
        text += f", {number(snapshot.starting)} starting" if snapshot.starting else ""
    else:
        text = "no workers"
    return text + (f", {number(ended)} ended recently" if ended else "")


def without_tasks(snapshot: Snapshot) -> str:
    """Return what there is to see of a store, or a notebook, that has no tasks now."""
    return f"{'no tasks now' if beside_tasks(snapshot) else 'no tasks yet'} · {worker_count_text(snapshot)}"


def current(snapshot: Snapshot) -> list[FunctionView]:
    """Return the functions that have tasks now, and not only results of earlier versions."""
    return [function for function in snapshot.functions if function.current]


def eta_text(snapshot: Snapshot) -> str:
    """Return how long it will still take, or why that isn't known."""
    counts = snapshot.counts
    if not snapshot.total:
        return "no tasks now" if beside_tasks(snapshot) else "no tasks yet"
    if not any(counts[state] for state in OPEN_STATES):
        return _stopped(counts[State.FAILED], counts[State.BLOCKED])
    if not snapshot.alive:
        return f"{plural(snapshot.starting, 'worker')} starting" if snapshot.starting else "no workers running"
    if snapshot.eta is not None:
        return f"about {duration(snapshot.eta)} left" if snapshot.eta >= 1 else "less than 1 s left"
    known = snapshot.time_left(snapshot.functions)
    untimed = sum(function.open for function in snapshot.functions if function.mean is None)
    if known < 1 or untimed > sum(function.open for function in snapshot.functions) / 2:
        return "time left not known yet"
    return f"more than {duration(known)} left"


def _stopped(failed: int, blocked: int) -> str:
    """ "stopped: 1 failed, 2 blocked by it"; "all done" where nothing is wrong."""
    parts = [f"{number(failed)} failed"] if failed else []
    by = ("" if not failed else " by it" if failed == 1 else " by them") if blocked else ""
    parts += [f"{number(blocked)} blocked{by}"] if blocked else []
    return f"stopped: {', '.join(parts)}" if parts else "all done"


def advise(snapshot: Snapshot, hints: Hints) -> list[tuple[str, str]]:
    """Return pairs (what for, what to type): only what makes sense now."""
    counts = snapshot.counts
    advice = []
    if any(counts[state] for state in OPEN_STATES) and not snapshot.alive and not snapshot.starting:
        advice.append(("start workers", hints.start))
    if snapshot.alive or snapshot.starting:
        advice += [("stop after the current task", hints.stop), ("stop at once", hints.stop_now)]
    if counts[State.FAILED]:
        advice += [("see one failure whole", hints.log), ("try the failed again", hints.retry)]
    return advice


_FRAME = re.compile(
    r'^\s*(?:File "(?P<file>[^"\n]*)"|(?P<cell>Cell .+?)), line (?P<line>\d+)(?:,? in (?P<function>\S+))?.*$', re.M
)


def where_raised(traceback: str) -> str:
    """Return the last frame of the user's in a line: "Cell In[3], line 4, in fit: x = table[k]".

    Where all are a library's, the last one.
    """
    found = list(_FRAME.finditer(traceback))
    if not found:
        return ""
    last = next((frame for frame in reversed(found) if frame["cell"] or is_users(frame["file"])), found[-1])
    where = f"{last['cell'] or last['file'].rsplit('/', 1)[-1]}, line {last['line']}"
    if last["function"] and not last["function"].startswith("<"):
        where += f", in {last['function']}"
    source = traceback[last.end() :].lstrip("\n").split("\n", 1)[0].strip()
    return f"{where}: {source}" if source else where


# -- kinds of failures: alike but for a number, an address or a quoted word, unless that is the name of what is missing

_NAMES = re.compile(r"(Key|Attribute|Name|UnboundLocal|Import|ModuleNotFound)Error: ")
_QUOTED = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`[^`]*`)(?!\w)""")
_VARIES = re.compile(
    r"0x[0-9a-f]+"  # an address
    r"|\b(?=[a-f]*\d)[0-9a-f]{8,}\b|\b[0-9a-f]{8}-[0-9a-f-]{27}\b"  # a digest, a UUID
    r"|[-+]?\d+(?:[.,:_]\d+)*(?:e[-+]?\d+)?",  # a number, a date, a time
    re.IGNORECASE,
)
_ROW = re.compile(r"#(?:(?:, |,| )#)+")


def pattern(error: str) -> str:
    """Return what an error has in common with similar ones: "bad row #, no '…'"."""
    line = error[:LINE]
    return _ROW.sub("#", _VARIES.sub("#", line if _NAMES.match(line) else _QUOTED.sub("'…'", line)))


def failure_kinds(failures: Sequence[FailureView]) -> list[FailureKind]:
    """Return the kinds of failures, in the order of their first."""
    groups: dict[tuple[str, str], list[FailureView]] = {}
    for failure in failures:
        groups.setdefault((failure.name, pattern(failure.error)), []).append(failure)
    return [
        FailureKind(
            about,
            group[0],
            tuple(failure.key for failure in group),
            tuple(SimilarFailure(failure.key, failure.args_repr, failure.error) for failure in group[1 : SIMILAR + 1]),
        )
        for (_, about), group in groups.items()
    ]


def kinds(snapshot: Snapshot) -> Sequence[FailureKind]:
    """Return the kinds of failures of a snapshot, sorted here if they aren't yet."""
    return snapshot.kinds or failure_kinds(snapshot.failures)


# -- for programs ------------------------------------------------------------------------------------------------------


def plain(snapshot: Snapshot) -> dict[str, Any]:
    """Return the snapshot for programs: numbers, strings, lists and dicts only.

    Times are in seconds (since the epoch, or durations), sizes in bytes; what isn't known is null. ``counts`` has all
    states, ``kept`` counts further results, of earlier versions::

        {"store", "scope", "at", "total", "eta", "done", "counts": {state: n}, "kept",
         "functions": [{"name", "counts": {state: n}, "mean", "kept",
                        "limits": [{"name", "number", "period", "used"}]}],
         "workers": [{"id", "host", "pid", "user", "alive", "beat_age", "task", "task_name", "since", "progress",
                      "done", "memory", "note"}],
         "failures": [{"key", "name", "arguments", "error", "traceback", "host", "pid", "started", "duration",
                       "output", "attempt", "attempts"}],
         "notes": [line]}

    ``done`` is true once every requested task is finished. ``failures`` has the latest few. ``period`` is 0 if a limit
    is on tasks at a time; ``used`` says how many tasks have a token now.
    """

    def named(counts: Mapping[State, int]) -> dict[str, int]:
        return {state.value: counts.get(state, 0) for state in State}

    def worker(view: WorkerView) -> dict[str, Any]:
        found = {name: getattr(view.info, name) for name in ("id", "host", "pid", "user", "done", "memory", "note")}
        maybe = {name: getattr(view.info, name) or None for name in ("task", "task_name", "since")}
        state = {"alive": view.alive, "beat_age": view.beat_age, "progress": list(view.info.progress)}
        return {**found, **state, **maybe}

    def failure(view: FailureView) -> dict[str, Any]:
        return {"arguments" if name == "args_repr" else name: value for name, value in asdict(view).items()}

    def limit(view: LimitView) -> dict[str, Any]:
        return {name: getattr(view, name) for name in ("name", "number", "period", "used")}

    return {
        "store": snapshot.store,
        "scope": snapshot.scope,
        "at": snapshot.at,
        "total": snapshot.total,
        "eta": snapshot.eta,
        "done": snapshot.counts[State.FINISHED] == snapshot.total,
        "counts": named(snapshot.counts),
        "kept": snapshot.kept,
        "functions": [
            {
                "name": f.name,
                "counts": named(f.counts),
                "mean": f.mean,
                "kept": f.kept,
                "limits": list(map(limit, f.limits)),
            }
            for f in snapshot.functions
        ],
        "workers": [worker(view) for view in snapshot.workers],
        "failures": [failure(view) for view in snapshot.failures],
        "notes": list(snapshot.notes),
    }
