"""One worker, in this process: what a task gets, what is kept of it, and what happens when it goes wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from IPython.core.interactiveshell import InteractiveShell

from jug_notebook import system
from jug_notebook.errors import StoreError
from jug_notebook.model import Address, Claim, Scope, Settlement, State, WorkerInfo
from jug_notebook.store import Store, open_store
from jug_notebook.task.context import in_task
from jug_notebook.worker import execution as worker
from jug_notebook.worker import loop
from jug_notebook.worker.capture import NoCapture
from jug_notebook.worker.execution import LRUCache, TaskRunner
from jug_notebook.worker.loop import work
from jug_notebook.worker.status import BACKOFF, SharedStatus
from tests.workbench import ORIGIN, FakeClock, Need, Submitter, cell, wait_until


@pytest.fixture
def tasks(store: Store, tmp_path: Path) -> Submitter:
    return Submitter(store, tmp_path)


@pytest.fixture
def me() -> WorkerInfo:
    return system.me("worker")


def run_all(tasks: Submitter, me: WorkerInfo, **options: Any) -> int:
    tasks.store.renew([me])
    return work(tasks.store, tasks.seal, me, SharedStatus(), until_idle=True, **options)


def test_a_task_runs_once_and_its_value_is_kept(tasks: Submitter, me: WorkerInfo) -> None:
    key = tasks.submit("def f(x): return x + 1", 3)
    assert run_all(tasks, me) == 1
    assert tasks.value(key) == 4
    outcome = tasks.outcome(key)
    assert (outcome.run.worker, outcome.run.pid, outcome.run.attempt) == (me.id, os.getpid(), 1)
    assert outcome.run.started > 1.6e9
    assert run_all(tasks, me) == 0


def test_none_is_a_fine_result(tasks: Submitter, me: WorkerInfo) -> None:
    key = tasks.submit("def f(): pass")
    run_all(tasks, me)
    assert tasks.value(key) is None


def test_a_task_that_removes_the_folder_it_went_to_harms_no_other(
    tasks: Submitter, me: WorkerInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rude = tasks.submit("def f():\n    import os\n    os.mkdir('x'); os.chdir('x'); os.rmdir(os.getcwd())")
    polite = tasks.submit("def f():\n    import os\n    return os.getcwd()")
    run_all(tasks, me)
    assert tasks.value(rude) is None
    assert tasks.value(polite) == str(tmp_path)


def test_a_worker_that_ran_out_of_open_files_gives_the_next_task_back(
    tasks: Submitter, me: WorkerInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tasks.submit("def f(x): return x + 1", 3)

    def refuse(address: Address) -> memoryview:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(tasks.store, "get_blob", refuse)
        with pytest.raises(OSError, match="Too many"):
            run_all(tasks, me)
    assert tasks.state(key) is State.READY
    run_all(tasks, me)
    assert tasks.value(key) == 4


def test_a_result_waits_until_there_is_room_for_it(
    tasks: Submitter, me: WorkerInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    keys = [
        tasks.submit(f"def f(size):\n    open({str(ran)!r}, 'a').write('x')\n    return bytes(size)", size)
        for size in (1_000_000, 1)
    ]
    full = {"put_blob": 5, "claim": 5}

    def squeezed(verb: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def do(*args: Any, **named: Any) -> Any:
            if full[verb] and (verb == "put_blob" or (len(args) > 3 and args[3])):
                full[verb] -= 1
                raise StoreError("can't write: No space left on device") from OSError(errno.ENOSPC, "No space left")
            return act(*args, **named)

        return do

    for verb in full:
        monkeypatch.setattr(tasks.store, verb, squeezed(verb, getattr(tasks.store, verb)))
    run_all(tasks, me, clock=FakeClock())
    assert full == {"put_blob": 0, "claim": 0}
    assert [len(tasks.value(key)) for key in keys] == [1_000_000, 1]
    assert ran.read_text() == "xx"
    assert "waiting for free space" in tasks.store.log(me.id)


def test_needs_arrive_as_values_wherever_they_are(tasks: Submitter, me: WorkerInfo) -> None:
    one, two = tasks.submit("def f(x): return x * 10", 1), tasks.submit("def f(x): return x * 10", 2)
    both = tasks.submit("def f(d, n): return d['a'][0] + n", {"a": [Need(one)]}, Need(two))
    run_all(tasks, me)
    assert tasks.value(both) == 30


def test_a_task_does_not_see_what_another_did_to_a_shared_need(tasks: Submitter, me: WorkerInfo) -> None:
    shared = tasks.submit("def f(): return [1]")
    users = [tasks.submit("def f(xs, i): xs.append(i); return xs", Need(shared), i) for i in (7, 8)]
    run_all(tasks, me)
    assert [tasks.value(key) for key in users] == [[1, 7], [1, 8]]


def test_a_large_need_is_fetched_once_and_each_task_has_its_own(
    tasks: Submitter, me: WorkerInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numpy")
    shared = tasks.submit("def f(): import numpy; return numpy.zeros(20_000)")
    users = [tasks.submit("def f(a, i): a[i] = 1; return float(a.sum())", Need(shared), i) for i in range(5)]
    fetched: list[str] = []
    really = tasks.store.get_blob

    def get_blob(address: str, mapped: bool = False) -> memoryview:
        if mapped:
            fetched.append(address)
        return really(address, mapped)

    monkeypatch.setattr(tasks.store, "get_blob", get_blob)
    run_all(tasks, me)
    assert [tasks.value(key) for key in users] == [1.0] * 5
    assert len(fetched) == 1


@pytest.mark.parametrize(("hurry", "most"), [(0.0, 1), (1e9, loop.BATCH)], ids=["long", "short"])
def test_behind_a_long_task_none_is_claimed_in_advance(
    tasks: Submitter, me: WorkerInfo, monkeypatch: pytest.MonkeyPatch, hurry: float, most: int
) -> None:
    monkeypatch.setattr(worker, "HURRY", hurry)
    for i in range(6):
        tasks.submit("def f(x): return x", i)
    limits: list[int] = []
    really = tasks.store.claim

    def claim(who: str, limit: int, *rest: Any, **named: Any) -> list[Claim]:
        claims = really(who, limit, *rest, **named)
        if claims:
            limits.append(limit)
        return claims

    monkeypatch.setattr(tasks.store, "claim", claim)
    assert run_all(tasks, me) == 6
    assert set(limits[1:]) == {most}


def test_a_failure_shows_the_cells_lines_and_none_of_ours(
    tasks: Submitter, me: WorkerInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InteractiveShell, "_instance", None)  # one of another test says that it doesn't know the cell
    function = cell(
        """
        def g(x):
            return 1 / x  # here

        def f(x):
            return g(x)
        """
    )
    filename = function.__code__.co_filename
    key = tasks.submit(function, 0, labels={filename: "Cell In[3]"})
    run_all(tasks, me)
    failure = tasks.failure(key)
    assert (failure.kind, failure.error) == ("raised", "ZeroDivisionError: division by zero")
    assert "Cell In[3], line 6, in f\n    return g(x)" in failure.traceback
    assert "Cell In[3], line 3, in g\n    return 1 / x  # here" in failure.traceback
    assert "worker.py" not in failure.traceback
    assert failure.exception


def test_leaving_the_interpreter_is_a_failure_of_the_task_and_not_of_the_worker(
    tasks: Submitter, me: WorkerInfo
) -> None:
    left = tasks.submit("import sys\ndef f(): sys.exit(3)")
    interrupted = tasks.submit("def f(): raise KeyboardInterrupt")
    after = tasks.submit("def f(): return 'still here'")
    run_all(tasks, me)
    assert tasks.failure(left).error == "called sys.exit(3)"
    assert tasks.failure(interrupted).error == "KeyboardInterrupt"
    assert tasks.value(after) == "still here"


def test_a_copy_that_a_task_forked_does_not_go_on_as_a_second_worker(tasks: Submitter, me: WorkerInfo) -> None:
    key = tasks.submit("import os\ndef f():\n    copy = os.fork()\n    return copy and os.waitpid(copy, 0)[1]")
    run_all(tasks, me)
    assert tasks.value(key) == 0
    assert tasks.outcome(key).run.pid == os.getpid()


def test_an_exception_that_can_not_be_shown_is_still_a_failure(tasks: Submitter, me: WorkerInfo) -> None:
    key = tasks.submit(
        """
        class Odd(Exception):
            def __str__(self): raise RuntimeError
            def __reduce__(self): raise RuntimeError

        def f(): raise Odd
        """
    )
    run_all(tasks, me)
    assert tasks.failure(key).error.startswith("Odd: ")


def test_a_result_that_can_not_be_stored_is_named(tasks: Submitter, me: WorkerInfo) -> None:
    key = tasks.submit("def f(): return {'a': [1, (i for i in ())]}")
    run_all(tasks, me)
    failure = tasks.failure(key)
    assert failure.kind == "result"
    assert "generator" in failure.error


def test_bytes_that_nobody_signed_are_not_opened(tasks: Submitter, me: WorkerInfo) -> None:
    good = tasks.submission(cell("def f(): return 1"))
    forged = msgspec.structs.replace(good, body=b"\0" * 32 + good.body[32:])
    tasks.store.submit([forged], ORIGIN)
    run_all(tasks, me)
    failure = tasks.failure(good.key)
    assert failure.kind == "load"
    assert "SignatureError" in failure.error


def test_a_runner_calls_the_function_in_its_own_way(
    tasks: Submitter, me: WorkerInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "twice.py").write_text("def call(function, args, kwargs): return 2 * function(*args, **kwargs)")
    monkeypatch.syspath_prepend(str(tmp_path))
    key = tasks.submit("def f(x): return x", 21, runner="twice:call")
    run_all(tasks, me)
    assert tasks.value(key) == 42


def test_a_task_runs_in_its_notebooks_folder(tasks: Submitter, me: WorkerInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    key = tasks.submit("import os\ndef f(): return os.getcwd()")
    run_all(tasks, me)
    assert tasks.value(key) == os.path.realpath(tasks.folder)


def test_inside_a_task_calls_of_task_functions_are_plain(tasks: Submitter, me: WorkerInfo) -> None:
    key = tasks.submit("def f():\n    from jug_notebook.task.context import in_task\n    return in_task.on")
    run_all(tasks, me)
    assert tasks.value(key) is True
    assert not in_task.on


def test_a_warning_shows_in_each_task_and_filters_do_not_leak(tasks: Submitter, me: WorkerInfo) -> None:
    function = "import warnings\ndef f(n):\n    with warnings.catch_warnings(record=True) as caught:\n        g()\n"
    function += "    warnings.simplefilter('ignore')\n    return len(caught)\ndef g(): warnings.warn('careful')"
    keys = [tasks.submit(function, n) for n in (1, 2)]
    run_all(tasks, me)
    assert [tasks.value(key) for key in keys] == [1, 1]


def test_a_failure_with_retries_left_is_tried_again_later(tmp_path: Path, me: WorkerInfo) -> None:
    clock = FakeClock()
    tasks = Submitter(open_store(f"memory:{tmp_path}", clock), tmp_path)
    key = tasks.submit("def f(): raise ValueError", retries=2)
    runner = TaskRunner(tasks.store, tasks.seal, me, SharedStatus(), clock, NoCapture(), False)
    attempts = []
    for pause in (0.0, BACKOFF, 2 * BACKOFF):
        clock.advance(pause * 0.9)
        assert pause == 0 or tasks.store.claim(me.id, 1, 0.0) == []
        clock.advance(pause * 0.2)
        (claim,) = tasks.store.claim(me.id, 1, 0.0)
        attempts.append(claim.lease.attempt)
        settlement = runner.attempt(claim)
        assert settlement is not None
        tasks.store.claim(me.id, 0, 0.0, [settlement])
    assert attempts == [1, 2, 3]
    assert tasks.failure(key).error == "ValueError"


def test_a_claim_that_no_longer_fits_its_needs_is_given_back(tmp_path: Path, me: WorkerInfo) -> None:
    tasks = Submitter(open_store(f"memory:{tmp_path}"), tmp_path)
    need = tasks.submit("def f(): return 1")
    user = tasks.submit("def f(x): return x", Need(need))
    run_all(tasks, me, max_tasks=1)
    (claim,) = tasks.store.claim(me.id, 1, 0.0)
    other = msgspec.structs.replace(claim.lease, inputs=b"x" * 20)
    stale = msgspec.structs.replace(claim, lease=other)
    slot = SharedStatus()
    runner = TaskRunner(tasks.store, tasks.seal, me, slot, FakeClock(), NoCapture(), False)
    assert runner.attempt(stale) is None
    assert slot.read() is None
    assert tasks.state(user) is State.RUNNING  # the claim that fits still stands


def test_a_lost_value_is_computed_again(tmp_path: Path, me: WorkerInfo) -> None:
    tasks = Submitter(open_store(f"file:{tmp_path}/jugdata"), tmp_path)
    need = tasks.submit("def f(): print('again'); return b'x' * 200_000")
    run_all(tasks, me)
    user = tasks.submit("def f(x): return len(x)", Need(need))
    for blob in (tmp_path / "jugdata" / "blobs").glob("*/*"):
        if blob.stat().st_size >= 200_000:
            blob.unlink()
    run_all(tasks, me)
    assert tasks.value(user) == 200_000
    assert tasks.outcome(need).round == 1


def test_ctrl_c_gives_an_in_process_task_back(tasks: Submitter, me: WorkerInfo) -> None:
    key = tasks.submit("def f(): raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        run_all(tasks, me, in_process=True)
    assert tasks.state(key) is State.READY


class Watched:
    """A store that remembers how it was asked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.claims: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def claim(
        self, worker: str, limit: int, wait: float, settled: Sequence[Settlement] = (), *more: Any, **named: Any
    ) -> list[Claim]:
        self.claims.append((limit, len(settled)))
        return self._store.claim(worker, limit, wait, settled, *more, **named)


def test_nothing_settled_stays_back_while_a_task_of_unknown_length_runs(tasks: Submitter, me: WorkerInfo) -> None:
    for i in range(5):
        tasks.submit("def f(x): return x", i)
    run_all(tasks, me)
    watched: Any = Watched(tasks.store)
    function = "import os\ndef h(path): return os.path.exists(path)"
    for i in range(5, 8):
        tasks.submit("def f(x): return x", i)
    tasks.submit(cell(function, "h"), "/")
    work(watched, tasks.seal, me, SharedStatus(), until_idle=True)
    before = 0
    for limit, settled in watched.claims:
        assert settled <= 3
        before += settled
        if limit == 0:
            assert settled > 0
    assert before == 4


def chain(tasks: Submitter, function: str, links: int) -> list[str]:
    """Submit tasks that need one another, and before them some by which their function is known to be short."""
    for i in range(20):
        tasks.submit(function, -i - 1)
    keys = [tasks.submit(function, 0)]
    for _ in range(links - 1):
        keys.append(tasks.submit(function, Need(keys[-1])))
    return keys


def test_a_chain_of_short_tasks_takes_few_claims(tasks: Submitter, me: WorkerInfo) -> None:
    keys = chain(tasks, "def f(x): return x + 1", 60)
    watched: Any = Watched(tasks.store)
    tasks.store.renew([me])
    assert work(watched, tasks.seal, me, SharedStatus(), until_idle=True) == 80
    assert tasks.value(keys[-1]) == 60
    assert tasks.store.runs(Scope(), 0)[1] == 80
    assert len(watched.claims) < 25


def test_what_follows_a_failure_is_blocked_by_it(tasks: Submitter, me: WorkerInfo) -> None:
    keys = chain(tasks, "def f(x): return x + (5 - x) // (5 - x)", 10)
    assert run_all(tasks, me) == 26
    assert [tasks.state(key) for key in keys[4:7]] == [State.FINISHED, State.FAILED, State.BLOCKED]


def test_a_task_begun_behind_its_need_that_takes_longer_holds_back_no_result_and_runs_once(
    tasks: Submitter, me: WorkerInfo, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    function = f"""
        def f(x):
            import os, time
            while x == 3 and not os.path.exists({str(gate)!r}):
                time.sleep(0.01)
            return x + 1
        """
    keys = chain(tasks, function, 8)
    worker = threading.Thread(target=run_all, args=(tasks, me))
    worker.start()
    wait_until(tasks.store, lambda: tasks.state(keys[2]) is State.FINISHED)
    assert tasks.state(keys[3]) is State.RUNNING
    assert tasks.store.claim("another", 9, 0.0) == []
    gate.touch()
    worker.join()
    assert tasks.value(keys[-1]) == 8
    assert tasks.store.runs(Scope(), 0)[1] == 28


def test_limits_end_the_loop_and_give_the_rest_back(tasks: Submitter, me: WorkerInfo) -> None:
    keys = [tasks.submit("def f(x): return x", i) for i in range(6)]
    assert run_all(tasks, me, max_tasks=2) == 2
    assert run_all(tasks, me, deadline=0.0) == 0
    stops = iter([False, False, False, True])
    assert run_all(tasks, me, stop=lambda: next(stops, True)) <= 2
    assert State.RUNNING not in tasks.store.states(keys)


def test_a_cache_keeps_what_was_used_last_within_its_weight() -> None:
    cache: LRUCache[str, str] = LRUCache(places=3, weight=10)
    for name in "abc":
        cache.put(name, name, 3)
    assert cache.get("a") == "a"
    cache.put("d", "d", 4)
    assert [cache.get(name) for name in "abcd"] == ["a", None, "c", "d"]
    cache.put("heavy", "heavy", 11)
    assert cache.get("heavy") is None
    assert cache.get("a") == "a"


def test_a_slot_tells_what_runs_since_when_and_how_often_that_ended_badly(tasks: Submitter, me: WorkerInfo) -> None:
    tasks.submit("def f(): return 1", timeout=2.5, retries=3)
    (claim,) = tasks.store.claim(me.id, 1, 0.0)
    slot = SharedStatus()
    assert slot.read() is None
    template = msgspec.convert(("f", "", "", "", "", 3, 2.5), worker.TaskTemplate)
    slot.begin(msgspec.structs.replace(claim, failures=1, deaths=2), template, 100.0, 5.0)
    status = slot.read()
    assert status == (1, claim.lease, "f", 100.0, 5.0, 2.5, 1, 3, 2, (0, 0))
    slot.report(3, 7)
    status = slot.read()
    assert status is not None
    assert status.progress == (3, 7)
    slot.begin(claim, template, 101.0, 6.0)
    status = slot.read()
    assert status is not None
    assert status.progress == (0, 0)
    slot.end()
    assert slot.read() is None
    assert slot.done == 1
    slot.stop()
    assert slot.stopping


# -- what tasks print --------------------------------------------------------------------------------------------------


def captured(script: str) -> list[list[str]]:
    """What a capture took, in a process of its own, of what this script printed."""
    start = (
        "import os, sys, json, subprocess, threading\nfrom jug_notebook.worker.capture import *\n"
        "screen = os.dup(1)\ncapture = Capture(Files())\ncapture.install()\n"
    )
    end = "\nos.write(screen, json.dumps(capture.take()).encode())\nassert capture.take() == ()\n"
    done = subprocess.run(
        [sys.executable, "-c", start + script + end],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(worker.__file__).parents[2])},
    )
    output: list[list[str]] = msgspec.json.decode(done.stdout)
    return output


def test_output_is_kept_in_order_with_the_names_of_the_streams() -> None:
    script = """
print("one")
print("two", file=sys.stderr)
subprocess.run("echo three; echo four >&2", shell=True)
print("five", flush=True)
thread = threading.Thread(target=print, args=("six",))
thread.start(); thread.join()
sys.stdout.buffer.write(b"seven\\n")
print("acht \\udc80 ü")
"""
    output = captured(script)
    assert [name for name, _ in output] == ["stdout", "stderr", "stdout", "stderr", "stdout"]
    assert [text for _, text in output] == [
        "one\n",
        "two\n",
        "three\n",
        "four\n",
        "five\nsix\nseven\nacht \\udc80 ü\n",
    ]


def test_too_much_output_keeps_its_head_and_its_tail() -> None:
    script = """
print("first")
for i in range(300):
    print("x" * 99_999)
    print("e" * 9_999, file=sys.stderr)
print("last")
"""
    output = captured(script)
    text = "".join(text for _, text in output)
    assert text.startswith("first\nxxx")
    assert text.endswith("\nlast\n")
    assert "bytes left out" in text
    assert len(text) < 1.01 * (1 << 20)


def test_output_for_ever_does_not_fill_the_memory() -> None:
    script = """
for i in range(64):
    os.write(1, b"y" * (1 << 20))
    print("z")
blocks = os.fstat(1).st_blocks * 512
os.write(screen, b"")
assert blocks < 16 << 20, blocks
"""
    captured(script)
