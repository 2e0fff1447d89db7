"""What a task cost: memory at most, processor time, bytes read and written, those of subprocesses too."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import jug_notebook as jn
from jug_notebook import system
from jug_notebook.launch.local import environment
from jug_notebook.model import Failed, Outcome, Run, Spread
from jug_notebook.render.profile import profile_html, profile_of, profile_text
from jug_notebook.session.workers import OVERHEAD
from jug_notebook.worker.usage import LONG, Meter, Usage, memory_of
from tests.worker.test_supervisor import Site, site  # noqa: F401

MB = 1_000_000
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems don't tell what a process used")


def in_a_process_of_its_own(measure: Callable[[], None]) -> None:
    """This one has subprocesses already, of other tests."""
    code = f"from tests.worker import test_usage; test_usage.{measure.__name__}()"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_memory_is_the_most_that_this_task_had_and_not_one_before_it() -> None:
    in_a_process_of_its_own(measure_memory)


def measure_memory() -> None:
    meter = Meter(alone=True)
    peaks = []
    for size in (400, 100, 200):
        before = memory_of(os.getpid())
        meter.begin(long=True)
        held = bytearray(size * MB)
        del held
        peaks.append((meter.end(LONG).peak - before) / (size * MB))
    assert peaks == pytest.approx([1, 1, 1], abs=0.05)


def test_subprocesses_and_files_count() -> None:
    in_a_process_of_its_own(measure_subprocess)


def measure_subprocess() -> None:
    meter = Meter(alone=True)
    meter.begin(long=True)
    code = f"import sys; held = bytearray({300 * MB}); sys.stdout.write('x' * {3 * MB}); sum(range(10**6))"
    assert len(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) == 3 * MB
    used = meter.end(LONG)
    assert used.peak > 300 * MB + memory_of(os.getpid())
    assert used.cpu > 0
    assert used.read >= 3 * MB
    assert used.written >= 3 * MB


def test_subprocesses_count_together_and_not_those_of_tasks_before() -> None:
    in_a_process_of_its_own(measure_subprocesses)


def measure_subprocesses() -> None:
    hold = "import sys, time; held = bytearray(int(sys.argv[1])); time.sleep(0.5)"
    meter, own, given = Meter(alone=True), memory_of(os.getpid()), ([500], [100], [100, 100, 100], [])
    for sizes in given:
        meter.begin(long=True)
        children = [subprocess.Popen([sys.executable, "-c", hold, str(size * MB)]) for size in sizes]
        assert [child.wait() for child in children] == [0] * len(sizes)
        interpreters = 20 * MB * len(sizes)
        assert 0 <= meter.end(LONG).peak - own - sum(sizes) * MB < interpreters + 15 * MB


def test_short_tasks_and_those_beside_others_are_not_measured() -> None:
    assert Meter(alone=True).end(LONG / 2) == Usage()
    beside = Meter(alone=False)
    beside.begin(long=True)
    assert beside.end(10.0) == Usage()


def test_a_run_keeps_what_it_took_also_if_it_was_ended_for_its_memory(site: Site) -> None:  # noqa: F811
    frugal = site.tasks.submit("import time\ndef f():\n    held = bytearray(3 * 10**8)\n    time.sleep(.05)")
    greedy = site.tasks.submit("def f():\n    held = []\n    while True: held.append(bytearray(10**7))")
    site.supervise(1, memory_limit=600 * MB)
    run = site.tasks.outcome(frugal).run
    assert 300 * MB < run.peak < 420 * MB
    assert run.cpu > 0
    failure = site.tasks.failure(greedy)
    assert failure.kind == "memory"
    assert failure.run.peak > 600 * MB


def test_a_run_names_the_versions_of_what_its_worker_had_imported(site: Site) -> None:  # noqa: F811
    before = site.tasks.submit("def f(): return 1")
    after = site.tasks.submit("def f():\n    import numpy\n    return numpy.__version__")
    later = site.tasks.submit("def f(): return 2", labels=None)
    site.supervise(1)
    runs = [site.tasks.outcome(key).run for key in (before, after, later)]
    first, second, third = (msgspec.msgpack.decode(site.store.get_blob(run.environment)) for run in runs)
    assert "numpy" not in first[3]
    assert second[3]["numpy"] == third[3]["numpy"] == site.tasks.value(after)
    assert runs[1].environment == runs[2].environment
    assert first[0] == platform.python_implementation()


def test_a_profile_tells_mean_most_and_which_call_that_was() -> None:
    def ran(number: int, peak: int) -> Outcome:
        run = Run("a-1-0", "a", 1, "ann", "3.11", 1e9, number / 10, peak=peak, read=number)
        return Failed(f"{number:02}" * 20, 0, b"", "memory" if number == 20 else "raised", "", "", run)

    profile = profile_of("fit", [ran(number, number * MB) for number in range(1, 21)])
    assert profile.memory == Spread(10.5 * MB, 19 * MB, 20 * MB)
    assert profile.duration.largest == 2.0
    assert (profile.largest, profile.killed, profile.runs) == ("20" * 20, 1, 20)
    text = profile_text([profile], 3)
    assert "20 MB" in text
    assert "fit(), 1 killed" in text
    assert text.endswith("3 earlier runs left out")
    assert "<table" in profile_html([profile], 0)
    assert profile_text([], 0) == "nothing was run yet"
    unmeasured = profile_of("fit", [ran(1, 0)])
    assert "–" in profile_text([unmeasured], 0)


SCRIPT = """
import jug_notebook as jn

@jn.task(version="1")
def hold(megabytes, number):
    held = bytearray(megabytes * 1_000_000)
    import time
    time.sleep(0.2)
    return len(held)

session = jn.connect("jugdata")
session.execute(2)
jn.wait(hold.map([200] * 4, range(4)))
session.stop()
session.workers.ended(60)
held = hold.map([200] * 12, range(100, 112))
plan = session.workers.plan(3)
print(plan.seconds, plan.memory, plan.peaks["hold"], plan.functions[0].mean)
print(plan)
print(msgspec.structs.replace(plan, available=10**8))
session.execute(3)  # while the supervisor of those before still ends
jn.wait(held)
print(session.profile()[0].memory.largest)
"""


def test_a_dry_run_foretells_time_and_memory_and_warns_where_the_host_has_less(tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text(f"import msgspec\n{SCRIPT}")
    ran = subprocess.run(
        [sys.executable, "study.py"], cwd=tmp_path, capture_output=True, text=True, env=environment(), check=False
    )
    assert ran.returncode == 0, ran.stderr
    seconds, memory, peak, mean = map(float, ran.stdout.split("\n", 1)[0].split())
    assert seconds == pytest.approx(12 / 3 * (mean + OVERHEAD))
    assert 200 * MB < peak < 400 * MB
    assert memory == 3 * peak
    assert ", with 3 workers, up to " in ran.stdout
    assert "; this host has 100 MB: start fewer workers" in ran.stdout
    assert 1 / 2 < memory / (3 * float(ran.stdout.split()[-1])) < 2


def test_a_dry_run_foretells_no_less_than_the_longest_chain_takes_and_than_the_cores_need(tmp_path: Path) -> None:
    @jn.task
    def link(before: int, n: int) -> int:
        time.sleep(0.01)
        return before + n

    @jn.task
    def counted(n: int) -> int:
        until = time.process_time() + 0.1
        while time.process_time() < until:
            n += 1
        return 0

    def chained(first: int) -> object:
        last: object = first
        for n in range(1, 7):
            last = link(last, n)  # type: ignore[arg-type]
        return last

    session = jn.connect(tmp_path / "jugdata", notebook=tmp_path / "n.ipynb")
    crew = jn.execute(1)
    try:
        jn.wait([chained(100), counted(0)])
    finally:
        crew.stop()
    assert session.workers.ended(60.0), "or one takes a link yet"
    chained(200)
    mean = {view.name.rpartition(".")[2]: view.mean for view in session.workers.plan(3).functions}
    assert session.workers.plan(3).seconds == pytest.approx(6 * mean["link"])
    counted.map(range(1, 101))
    [cpu] = [one.cpu.mean for one in session.profile() if one.name.endswith("counted")]
    assert cpu >= 0.1
    assert session.workers.plan(1000).seconds == pytest.approx(100 * cpu / system.cores(), rel=0.2)
    assert len(session.workers.plan(1000, target=chained(200)).functions) == 1
    assert session.workers.plan(1000, target=chained(200)).seconds == pytest.approx(6 * mean["link"])
    session.close()


def test_what_ran_more_at_a_time_than_there_are_cores_is_foretold_as_with_a_core_for_each(tmp_path: Path) -> None:
    @jn.task
    def crowded(n: int) -> int:
        until = time.process_time() + 0.1
        while time.process_time() < until:
            n += 1
        return 0

    session, allowed = jn.connect(tmp_path / "jugdata", notebook=tmp_path / "n.ipynb"), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})  # workers may use this core alone, whatever else is there
    try:
        crew = jn.execute(4)
    finally:
        os.sched_setaffinity(0, allowed)
    seen = -1
    while crew.alive() < 4:
        seen = session.access.store.watch(seen, 0.1)
    try:
        jn.wait(crowded.map(range(12)))
    finally:
        crew.stop()
        session.workers.ended(60)  # a plan counts those that are there
    [known] = session.profile()
    crowded.map(range(100, 110))
    plan = session.workers.plan(1)
    session.close()
    assert known.duration.mean > 2 * known.cpu.mean
    assert plan.functions[0].mean == pytest.approx(known.cpu.mean, rel=0.2)
    assert plan.seconds == pytest.approx(10 * known.cpu.mean, rel=0.2)


def test_each_attempt_is_a_run_in_the_profile_also_those_that_failed_were_killed_or_count_no_more(
    tmp_path: Path,
) -> None:
    def attempt(folder: str, name: str) -> int:
        with open(os.path.join(folder, name), "a") as file:
            file.write(".")
        return os.path.getsize(os.path.join(folder, name))

    @jn.task(retries=2)
    def unlucky(folder: str, name: str) -> str:
        assert attempt(folder, name) == 3
        return name

    @jn.task
    def ended_once(folder: str, name: str) -> str:
        if attempt(folder, name) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return name

    @jn.task
    def computed_again(folder: str, name: str) -> str:
        attempt(folder, name)
        return name

    folder = str(tmp_path)
    session = jn.connect(tmp_path / "jugdata", notebook=tmp_path / "n.ipynb")
    crew = jn.execute(1)
    try:
        first, second, third = unlucky(folder, "a"), ended_once(folder, "b"), computed_again(folder, "c")
        jn.result([first, second, third])
        third.invalidate()
        jn.result(third)
        runs = {one.name.rpartition(".")[2]: one.runs for one in session.profile()}
        [of_one] = session.profile(first)
    finally:
        crew.stop()
        session.close()
    assert [(tmp_path / name).stat().st_size for name in "abc"] == [3, 2, 2]
    assert runs == {"unlucky": 3, "ended_once": 2, "computed_again": 2}
    assert of_one.runs == 3


def test_the_status_has_the_memory_of_functions_whose_runs_were_measured(tmp_path: Path) -> None:
    @jn.task
    def roomy(n: int) -> int:
        held = bytearray(3 * 10**8)
        time.sleep(LONG)
        return len(held) * n

    @jn.task
    def short(n: int) -> int:
        return n

    session = jn.connect(tmp_path / "jugdata", notebook=tmp_path / "n.ipynb")
    tasks = roomy.map([0, 1]), short.map([1, 2])
    crew = jn.execute(1)
    try:
        jn.result(tasks)
        status = session.status()
    finally:
        crew.stop()
        session.close()
    memory = {view.name.rpartition(".")[2]: view.memory for view in status.functions}
    assert 300 * MB < memory["roomy"].mean <= memory["roomy"].p95 <= memory["roomy"].largest
    assert memory["short"] == Spread()
    assert re.search(r"time left +memory\n.*roomy +2 .* MB\n.*short +2 .*ms\n", repr(status))
    assert 'title="at most: ' in status._repr_html_()
