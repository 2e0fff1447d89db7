"""Supervisors with real processes, which really die."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import redis

from jug_notebook import system
from jug_notebook.clock import CLOCK
from jug_notebook.errors import LaunchError
from jug_notebook.launch import Crew, local
from jug_notebook.model import Failed, Lease, Scale, State, Stop, Target, WorkerInfo
from jug_notebook.scheduler.views import SUPERVISOR_DIED
from jug_notebook.store import Store, open_store
from jug_notebook.worker import WorkerOptions
from jug_notebook.worker.crew import first_of_crew, wake
from jug_notebook.worker.status import Running, Termination, cause_of_death, death_outcome, overstepped
from tests.servers import Server
from tests.workbench import ORIGIN, PATIENCE, Fifo, Submitter, cell, is_readable, wait_until

ROOT = Path(local.__file__).parents[2]
HANG = "import signal\ndef hang(path):\n    say(path)\n    signal.pause()\n"
SAY = "import os\ndef say(path):\n    with open(path, 'w') as fifo: fifo.write(f'{os.getpid()}\\n')\n"


# -- decisions ---------------------------------------------------------------------------------------------------------


def running(timeout: float | None = None, failures: int = 0, retries: int = 0, deaths: int = 0) -> Running:
    return Running(1, Lease("k", 0, b"", 1), "f", 1000.0, 50.0, timeout, failures, retries, deaths)


def test_a_task_is_over_a_limit_or_within_all() -> None:
    assert overstepped(None, 10, 5, 60.0) is None
    assert overstepped(running(), 10, None, 1e9) is None
    assert overstepped(running(timeout=10), 0, None, 59.9) is None
    assert overstepped(running(timeout=10), 0, None, 60.0) == ("timeout", "timed out after 10 s")
    assert overstepped(running(), 5, 5, 60.0) is None
    over = overstepped(running(), 6_000_000, 5_000_000, 60.0)
    assert over == ("memory", "took 6 MB of memory, more than the limit of 5 MB")


def test_a_death_is_told_in_words() -> None:
    assert cause_of_death(9) == "killed by SIGKILL, probably out of memory"
    assert cause_of_death(11) == "killed by SIGSEGV, a fault in compiled code"
    assert cause_of_death(3 << 8) == "exited with status 3 (os._exit)"


def test_what_a_death_means_for_the_task() -> None:
    cause = "killed by SIGKILL"
    assert death_outcome(running(), None, cause) == ("died", cause, False, True)
    assert death_outcome(running(deaths=2), None, cause)[::2] == ("poison", True)
    termination = Termination(1, "timeout", "timed out after 1 s", 0.0)
    assert death_outcome(running(), termination, cause) == ("timeout", termination.text, True, False)
    assert death_outcome(running(retries=1), termination, cause) == ("timeout", termination.text, False, False)
    assert death_outcome(running(retries=9), Termination(1, "memory", "too much", 0.0), cause)[2] is True


def test_of_two_supervisors_of_a_crew_the_elder_stays() -> None:
    elder, younger = (
        WorkerInfo(name, "supervisor", "u", "h", 1, 1, "3", started, crew="c") for name, started in (("b", 1), ("a", 2))
    )
    beats = {elder.id: -1, younger.id: -1}
    assert first_of_crew("c", younger, [(elder, True, 0.0), (younger, True, 0.0)], beats) == elder
    assert first_of_crew("c", elder, [(elder, True, 0.0), (younger, True, 0.0)], beats) == elder
    assert first_of_crew("c", younger, [(elder, False, 0.0)], beats) == younger
    assert first_of_crew("d", younger, [(elder, True, 0.0)], beats) == younger


def test_an_elder_supervisor_of_another_machine_counts_once_it_has_been_seen_to_beat() -> None:
    elder = WorkerInfo("b", "supervisor", "u", "h", 1, 1, "3", 1, machine="another", crew="c", beat=7)
    me, beats = system.me("supervisor", crew="c"), dict[str, int]()
    for _ in range(3):
        assert first_of_crew("c", me, [(elder, True, 0.0)], beats) == me
    assert first_of_crew("c", me, [(msgspec.structs.replace(elder, beat=8), True, 0.0)], beats).id == elder.id


def test_options_travel_on_the_command_line_and_tell_crews_apart() -> None:
    plain = WorkerOptions(4)
    assert plain.suffix == WorkerOptions(8).suffix == ""
    assert WorkerOptions(4, memory_limit=5).suffix != WorkerOptions(4, memory_limit=6).suffix != ""
    words = WorkerOptions(
        4, 60, True, 3, 5.0, 10, target=Target(frozenset(["f"]), frozenset(["ab"])), tied_to="x"
    ).arguments()
    assert " ".join(words) == (
        "-n 4 --idle-timeout 60 --max-tasks 3 --max-time 5.0 --memory-limit 10 --patience 600.0 --tied-to x "
        "--keep-attached --target ab --target f"
    )
    assert WorkerOptions(4, keep_going=False).arguments()[-1] == "--no-keep-going"
    assert WorkerOptions(4, keep_going=False).suffix


# -- processes ---------------------------------------------------------------------------------------------------------


class Site:
    """A store, and the supervisors that a test starts for it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.store: Store = open_store(url)
        self.tasks = Submitter(self.store, folder)
        self.fifo = Fifo(folder)
        self.started: list[subprocess.Popen[str]] = []

    def supervise(
        self, size: int = 1, crew: str = "", within: Sequence[str] = (), **options: object
    ) -> subprocess.Popen[str]:
        """Start a supervisor; ``within`` is a command that runs it, as one that makes a namespace."""
        given = "".join(f", {name}={value!r}" for name, value in options.items())
        call = "import sys; from jug_notebook.model import Target; from jug_notebook.worker import WorkerOptions; "
        call += "from jug_notebook.worker.supervisor import supervise; "
        call += f"sys.exit(supervise({self.store.url!r}, WorkerOptions({size}{given}), crew={crew!r}))"
        self.started.append(
            subprocess.Popen(
                [*within, sys.executable, "-c", call],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return self.started[-1]

    def alive(self, kind: str = "worker") -> list[WorkerInfo]:
        return [info for info, alive, _ in self.store.processes() if alive and info.kind == kind]

    def until_workers(self, count: int) -> list[WorkerInfo]:
        wait_until(self.store, lambda: len(self.alive()) == count, f"never {count} workers")
        return self.alive()

    def order(self, order: Stop | Scale) -> None:
        supervisors = self.alive("supervisor")
        self.store.order([info.id for info in supervisors], order)
        for info in supervisors:
            wake(info)

    def hang(self, **options: object) -> str:
        """A task that says its pid and never ends."""
        return self.tasks.submit(cell(SAY + HANG, "hang"), self.fifo.path, **options)

    def remove_store(self) -> None:
        """Remove the store's folder, or all that is in its server."""
        if self.store.url.startswith("file:"):
            wait_until(self.store, self._folder_is_removed, "its processes filled it again and again")
        else:
            self.store._connection.command("FLUSHALL")  # type: ignore[attr-defined]

    def _folder_is_removed(self) -> bool:
        """Remove the folder; False where a process made a file in it meanwhile."""
        shutil.rmtree(self.folder / "jugdata", ignore_errors=True)
        return not (self.folder / "jugdata").exists()

    def open_again(self) -> None:
        """Open what is at the store's place now."""
        url = self.store.url
        self.store.close()
        self.store = open_store(url)
        self.tasks = Submitter(self.store, self.folder)

    def end(self) -> None:
        for supervisor in self.started:
            supervisor.kill()
            supervisor.communicate()
        for pid in [info.pid for info in self.alive("supervisor")]:
            os.kill(pid, signal.SIGKILL)
        self.store.close()


@pytest.fixture(params=["file", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    server = request.getfixturevalue("redis_server") if request.param == "redis" else None
    made = Site(tmp_path, f"file:{tmp_path}/jugdata" if server is None else server.url())
    yield made
    made.end()


@pytest.fixture
def folder_site(tmp_path: Path) -> Iterator[Site]:
    """One whose store is a folder."""
    made = Site(tmp_path, f"file:{tmp_path}/jugdata")
    yield made
    made.end()


def test_workers_run_what_there_is_and_end_when_nothing_is_left(site: Site) -> None:
    keys = [site.tasks.submit("def f(x): return x * x", x) for x in range(50)]
    supervisor = site.supervise(2, idle_timeout=0)
    assert [site.tasks.value(key) for key in keys] == [x * x for x in range(50)]
    assert supervisor.wait(PATIENCE) == 0
    assert site.alive() == site.alive("supervisor") == []


COUNT = """
import gc, sys
from collections import Counter
def count(number):
    gc.collect()
    return sys.getallocatedblocks(), Counter(type(one).__name__ for one in gc.get_objects())
"""


def test_a_worker_holds_as_much_after_many_tasks_as_after_few(site: Site) -> None:
    site.supervise(1)
    double = cell("def f(x): return x * 2")
    counted = cell(COUNT, "count")
    found = []
    for first in (0, 2000, 4000):
        work = [site.tasks.submission(double, x) for x in range(first, first + 2000)]
        site.store.submit(work, ORIGIN)
        wait_until(site.store, lambda work=work: set(site.store.states([w.key for w in work])) == {State.FINISHED})  # type: ignore[misc]
        found.append(site.tasks.value(site.tasks.submit(counted, first)))
    (_, _), (blocks, before), (more_blocks, after) = found
    assert not {kind: more for kind, more in (after - before).items() if more > 200}
    assert more_blocks - blocks < 400, "per 2000 tasks"


def test_a_large_value_lasts_in_a_server_which_forgets_what_nothing_names(tmp_path: Path, redis_server: Server) -> None:
    site = Site(tmp_path, redis_server.url("lasting"))
    small = site.tasks.submit("import numpy\ndef f(x): return numpy.full(40_000, x)", 1)
    large = site.tasks.submit("import numpy\ndef f(x): return numpy.full(5_000_000, x)", 1)
    site.supervise(1)
    assert len(site.tasks.value(small)) == 40_000
    assert len(site.tasks.value(large)) == 5_000_000
    site.store.put_blob([b"nothing names it"])
    with redis.Redis(unix_socket_path=str(redis_server.socket)) as line:
        kept = [line.ttl(name) for name in line.scan_iter("*lasting*:[vc]:*")]
    site.end()
    assert len(kept) > 4
    assert [lasts for lasts in kept if lasts != -1] == [pytest.approx(86_400, abs=100)]


def test_a_crowded_store_is_compacted_while_workers_work(folder_site: Site) -> None:
    site = folder_site
    done = site.tasks.submit("def f(x): return x", 1)
    logs = Path(site.store.url.removeprefix("file:")) / "log"
    [log] = [path for path in logs.iterdir() if path.stat().st_size]
    for number in range(101):  # of writers of former lives, whose machine is gone for long
        old = logs / f"00000000.elsewhere-{number}-abcdef.log"
        old.write_bytes(b"")
        os.utime(old, (1, 1))
    assert site.store.compact(dry_run=True)
    site.supervise(1)
    assert site.tasks.value(done) == 1
    wait_until(site.store, lambda: any((logs.parent / "sealed").iterdir()), "it was never compacted")
    assert log.exists(), "its writer lives"
    assert site.tasks.value(site.tasks.submit("def f(x): return x + 1", 1)) == 2
    assert not site.store.compact(dry_run=True)


def test_a_long_task_is_seen_to_run_though_others_of_its_name_were_short(site: Site) -> None:
    site.supervise()
    assert site.tasks.value(site.tasks.submit("def f(): return 1")) == 1
    key = site.tasks.submit(SAY + HANG.replace("hang", "f"), site.fifo.path)
    site.fifo.read_line()
    wait_until(site.store, lambda: site.tasks.state(key) is State.RUNNING)


def test_a_session_keeps_workers_from_leaving(site: Site) -> None:
    session = system.me("session")
    site.store.renew([session])
    supervisor = site.supervise(1, idle_timeout=0.2)
    site.until_workers(1)
    site.tasks.value(site.tasks.submit("def f(): return 1"))
    with pytest.raises(subprocess.TimeoutExpired):
        supervisor.wait(0.7)
    site.store.leave([session.id])
    assert supervisor.wait(PATIENCE) == 0


def test_workers_that_cost_money_end_when_idle_though_a_session_is_open(site: Site) -> None:
    site.store.renew([system.me("session")])
    supervisor = site.supervise(1, idle_timeout=0.2, keep_attached=False)
    site.until_workers(1)
    assert supervisor.wait(PATIENCE) == 0


def test_workers_of_a_slurm_job_end_with_it(folder_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site = folder_site
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(CLOCK.now()) + 8))
    supervisor = site.supervise(1)
    site.until_workers(1)
    assert supervisor.wait(PATIENCE) == 0
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1")  # the job was extended after it had started
    assert site.tasks.value((site.supervise(1), site.tasks.submit("def f(): return 1"))[1]) == 1


def test_a_killed_workers_task_runs_again_at_once(site: Site) -> None:
    source = SAY + (
        "import signal, time\ndef f(path):\n    print('last words', flush=True)\n    at = time.monotonic()\n"
        "    say(path)\n    if not os.path.exists(path + '.go'): signal.pause()\n    return at\n"
    )
    key = site.tasks.submit(source, site.fifo.path)
    site.supervise(2)
    first = int(site.fifo.read_line())
    Path(site.fifo.path + ".go").touch()
    killed = CLOCK.monotonic()
    os.kill(first, signal.SIGKILL)
    assert int(site.fifo.read_line()) != first
    again = site.tasks.value(key) - killed
    assert again < 0.5  # seconds; mostly some 0.01, but tests share their machine
    assert site.tasks.outcome(key).run.attempt == 2
    site.until_workers(2)


def test_a_task_in_which_three_workers_died_is_poison(site: Site) -> None:
    key = site.tasks.submit(
        "import os, subprocess\ndef f():\n    print('working')\n"
        "    subprocess.run('echo in it >&2', shell=True)\n    os._exit(3)"
    )
    site.supervise(1)
    failure = site.tasks.failure(key)
    assert (failure.kind, failure.run.attempt) == ("poison", 3)
    assert failure.error == "3 workers died in it; the last was exited with status 3 (os._exit)"
    assert failure.run.output == (("stdout", "working\n"), ("stderr", "in it\n"))
    assert site.tasks.value(site.tasks.submit("def f(): return 'next'")) == "next"


def test_a_task_that_takes_its_supervisor_with_it_is_poison_under_the_third(site: Site) -> None:
    key = site.tasks.submit(
        "import os, signal\ndef f():\n    os.kill(os.getppid(), signal.SIGKILL)\n    signal.pause()"
    )
    for _ in range(3):
        assert site.supervise(1).wait(PATIENCE) == -signal.SIGKILL
    site.supervise(1)
    failure = site.tasks.failure(key)
    assert (failure.kind, failure.run.attempt) == ("poison", 4)
    assert failure.error == "3 workers died in it, the last with its supervisor: was its host out of memory?"
    [last], _ = site.tasks.store.timeline()
    assert last.taken_over, "the attempts before it left nothing but that they were begun"


def test_a_crash_in_compiled_code_says_where(site: Site) -> None:
    key = site.tasks.submit("import ctypes\ndef f(): ctypes.string_at(0)")
    site.supervise(1)
    failure = site.tasks.failure(key)
    assert "SIGSEGV" in failure.error
    assert "Segmentation fault" in failure.run.output[-1][1]


def test_a_task_that_takes_too_long_is_ended_with_all_it_started(site: Site) -> None:
    source = SAY + (
        "import signal, subprocess\ndef f(path):\n    child = subprocess.Popen(['sleep', '1000'])\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    with open(path, 'w') as fifo: fifo.write(f'{child.pid}\\n')\n    print('waiting')\n    signal.pause()\n"
    )
    key = site.tasks.submit(source, site.fifo.path, timeout=0.3)
    site.supervise(1)
    child = os.pidfd_open(int(site.fifo.read_line()))
    failure = site.tasks.failure(key)
    assert (failure.kind, failure.error) == ("timeout", "timed out after 0.3 s")
    assert failure.run.output == (("stdout", "waiting\n"),)
    assert 0.3 <= failure.run.duration < PATIENCE
    assert is_readable(child)
    os.close(child)


def test_a_timeout_is_retried_where_retries_are_left(site: Site) -> None:
    key = site.hang(timeout=0.1, retries=1)
    site.supervise(1)
    failure = site.tasks.failure(key)
    assert (failure.kind, failure.run.attempt) == ("timeout", 2)


def test_a_task_that_takes_too_much_memory_is_ended(site: Site) -> None:
    key = site.tasks.submit(
        "import signal, subprocess, sys\ndef f():\n"
        "    subprocess.run([sys.executable, '-c', 'x = b\"x\" * 200_000_000; import signal; signal.pause()'])"
    )
    site.supervise(1, memory_limit=150_000_000)
    failure = site.tasks.failure(key)
    assert failure.kind == "memory"
    assert "more than the limit of 150 MB" in failure.error
    assert site.tasks.value(site.tasks.submit("def f(): return 'next'")) == "next"


def test_workers_of_another_python_say_why_they_do_nothing(site: Site) -> None:
    submission = msgspec.structs.replace(site.tasks.submission(cell("def f(): pass")), python="2.7")
    site.store.submit([submission], ORIGIN)
    supervisor = site.supervise(1, idle_timeout=0)
    _, printed = supervisor.communicate(timeout=PATIENCE)
    assert "1 ready task was made with Python 2.7" in printed


def test_stop_lets_the_current_task_finish(site: Site) -> None:
    source = SAY + "def f(path):\n    say(path)\n    with open(path + '.go') as go: return go.readline()\n"
    go = Fifo(site.folder, "fifo.go")
    key = site.tasks.submit(source, site.fifo.path)
    supervisor = site.supervise(2)
    site.until_workers(2)
    site.fifo.read_line()
    later = site.tasks.submit("def f(): return 'later'")
    site.tasks.value(later)
    site.order(Stop())
    site.until_workers(1)  # the one that has nothing to do is gone
    assert site.alive("supervisor")[0].size == 0
    go.write_line("finished")
    assert supervisor.wait(PATIENCE) == 0
    assert site.tasks.value(key) == "finished\n"


@pytest.mark.parametrize("by", ["order", "SIGTERM", "SIGINT twice"])
def test_stop_now_gives_the_task_back(site: Site, by: str) -> None:
    key = site.hang()
    supervisor = site.supervise(1)
    site.fifo.read_line()
    began = CLOCK.monotonic()
    if by == "order":
        site.order(Stop(now=True))
    elif by == "SIGTERM":
        supervisor.terminate()
    else:
        supervisor.send_signal(signal.SIGINT)
        assert supervisor.stderr is not None
        assert "press Ctrl-C again" in supervisor.stderr.readline()
        supervisor.send_signal(signal.SIGINT)
    assert supervisor.wait(PATIENCE) == 0
    assert CLOCK.monotonic() - began < 2
    assert site.alive() == []
    assert site.tasks.state(key) is not None
    assert site.tasks.state(key).value == "ready"  # type: ignore[union-attr]
    site.supervise(1)
    site.fifo.read_line()  # and it's no mark against the task


def test_workers_die_with_their_supervisor_however_it_dies(site: Site) -> None:
    site.hang()
    supervisor = site.supervise(2)
    site.fifo.read_line()
    workers = [os.pidfd_open(info.pid) for info in site.until_workers(2)]
    supervisor.kill()
    assert all(is_readable(pidfd) for pidfd in workers)
    for pidfd in workers:
        os.close(pidfd)
    supervisor.wait(PATIENCE)
    ended = site.store.snapshot().workers
    assert [(view.alive, view.info.note) for view in ended] == [(False, SUPERVISOR_DIED)] * 2, "idle or not"
    other = site.supervise(1)
    site.fifo.read_line()  # the task runs again without waiting for a lease
    other.send_signal(signal.SIGTERM)
    assert other.wait(PATIENCE) == 0
    noted = [
        view.info.note
        for view in site.store.snapshot().workers
        if view.info.supervisor not in {ended[0].info.supervisor}
    ]
    assert noted == [""], "it was stopped"


def test_a_crew_has_one_supervisor(site: Site) -> None:
    first, second = site.supervise(1, crew="c"), site.supervise(3, crew="c")
    workers = site.until_workers(3)
    wait_until(site.store, lambda: None not in (first.poll(), second.poll()) or len(site.alive("supervisor")) == 1)
    assert len({info.supervisor for info in workers}) == 1
    (ended_one,) = [one for one in (first, second) if one.pid != site.alive("supervisor")[0].pid]
    assert ended_one.wait(PATIENCE) == 0
    other_crew = site.supervise(1, crew="d")
    site.until_workers(4)
    assert other_crew.poll() is None


def test_scaling_starts_and_ends_workers(site: Site) -> None:
    site.supervise(1)
    site.until_workers(1)
    site.order(Scale(3, at_least=True))
    site.until_workers(3)
    site.order(Scale(2, at_least=True))
    site.tasks.value(site.tasks.submit("def f(): return 1"))
    assert len(site.alive()) == 3
    site.order(Scale(1))
    site.until_workers(1)


def test_a_supervisor_survives_an_order_that_it_cant_read(site: Site) -> None:
    supervisor = site.supervise(1)
    workers = site.until_workers(1)
    unreadable: Any = 2.5
    site.order(Scale(unreadable))
    site.order(Scale(2))
    assert workers[0].id in {info.id for info in site.until_workers(2)}
    assert supervisor.poll() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 2.5}, "workers=2.5: give a whole number of workers, 1 or more"),
        ({"size": True}, "workers=True: give a whole number of workers"),
        ({"max_tasks": 1.0}, "max_tasks=1.0: give a whole number of tasks, 1 or more"),
        ({"max_tasks": 0}, "max_tasks=0: give a whole number of tasks"),
        ({"max_time": -1}, "max_time=-1: give a number of seconds, more than 0; for no limit leave it out"),
        ({"max_time": math.nan}, "max_time=nan: give a number of seconds"),
        ({"idle_timeout": "90s"}, "idle_timeout='90s': give a number of seconds"),
        ({"memory_limit": math.inf}, "memory_limit=inf: give a number of bytes"),
        ({"memory_limit": True}, "memory_limit=True: give a number of bytes"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        WorkerOptions(**options)


def test_numbers_of_other_libraries_become_plain_ones() -> None:
    options = WorkerOptions(np.int64(2), max_time=np.float32(1.5), memory_limit=2e9)
    assert msgspec.json.decode(msgspec.json.encode(options), type=WorkerOptions) == options
    assert (options.size, options.max_time, options.memory_limit) == (2, 1.5, 2_000_000_000)


def test_a_supervisor_that_was_stopping_can_be_called_back(site: Site) -> None:
    site.hang()
    site.supervise(1)
    site.fifo.read_line()
    site.order(Stop())
    wait_until(site.store, lambda: site.alive("supervisor")[0].size == 0)
    site.order(Scale(1))
    site.until_workers(2)
    assert site.tasks.value(site.tasks.submit("def f(): return 1")) == 1


ORDERED_AS_IT_ENDS = """
import sys
from jug_notebook.model import Scale
from jug_notebook.store import open_store
from jug_notebook.worker import WorkerOptions, supervisor
from jug_notebook.worker.crew import engage, living

other = open_store(sys.argv[1])
leave = supervisor.Supervisor._left_crew

def order():
    print(engage(other, lambda: living(other, "c"), Scale(1)) is not None, flush=True)

def ordered(self):
    if not answers:
        order()
    answers.append(leave(self))
    if answers[-1]:
        order()
    return answers[-1]

answers = []
supervisor.Supervisor._left_crew = ordered
status = supervisor.supervise(sys.argv[1], WorkerOptions(1, idle_timeout=0), crew="c")
print(answers, status)
"""


def test_an_order_to_a_supervisor_that_ends_is_obeyed_or_seen_to_be_late(site: Site) -> None:
    ended = subprocess.run([sys.executable, "-c", ORDERED_AS_IT_ENDS, site.store.url], capture_output=True, text=True)
    assert ended.stdout.split("\n")[:3] == ["True", "False", "[False, True] 0"], ended.stderr


def test_workers_asked_for_as_others_end_are_waited_for(site: Site) -> None:
    crew = local.launch(site.store, WorkerOptions(1))
    site.hang()
    worker = int(site.fifo.read_line())
    [supervisor] = crew.supervisors
    try:
        crew.stop()
        wait_until(site.store, lambda: crew.supervisors[0].size == 0)
        os.kill(supervisor.pid, signal.SIGSTOP)
        again = local.launch(site.store, WorkerOptions(1))
        assert not again.starting, "there is one"
        os.kill(worker, signal.SIGKILL)
        wait_until(site.store, lambda: not site.alive())
        assert again.starting, "the supervisor is about to start one"
        os.kill(supervisor.pid, signal.SIGCONT)
        assert int(site.fifo.read_line()) != worker
    finally:
        os.kill(supervisor.pid, signal.SIGCONT)
        crew.stop(now=True)
        wait_until(site.store, lambda: not site.alive("supervisor"))


def test_a_tied_supervisor_ends_with_its_session(site: Site) -> None:
    session = system.me("session")
    site.store.renew([session])
    supervisor = site.supervise(1, tied_to=session.id)
    site.until_workers(1)
    site.store.leave([session.id])
    assert supervisor.wait(PATIENCE) == 0


def test_workers_end_after_their_share_of_tasks_or_of_time(site: Site) -> None:
    for x in range(10):
        site.tasks.submit("def f(x): return x", x)
    supervisor = site.supervise(2, max_tasks=3)
    assert supervisor.wait(PATIENCE) == 0
    states = [state.value for state in site.store.states(site.store.keys_named("f")) if state]
    assert states.count("finished") == 6
    assert "running" not in states
    assert site.supervise(1, max_time=0.2).wait(PATIENCE) == 0


@pytest.mark.parametrize("failure", ["raise KeyError('x')", "__import__('os')._exit(3)"])
def test_without_keep_going_a_task_that_failed_for_good_is_the_last(folder_site: Site, failure: str) -> None:
    failing = folder_site.tasks.submit(f"def f(): {failure}")
    after = [folder_site.tasks.submit("def f(n): return n", n) for n in range(3)]
    supervisor = folder_site.supervise(1, keep_going=False)
    assert supervisor.wait(PATIENCE) == 0
    assert supervisor.stderr is not None
    assert "a task failed: stopping after the current tasks" in supervisor.stderr.read()
    assert isinstance(folder_site.tasks.outcome(failing), Failed)
    assert [folder_site.tasks.state(key) for key in after] == [State.READY] * 3


def test_workers_that_die_before_their_first_task_are_not_started_for_ever(folder_site: Site) -> None:
    folder_site.hang()
    supervisor = folder_site.supervise(1)
    pid = int(folder_site.fifo.read_line())
    (folder_site.folder / "jugdata" / "store.json").write_text("no longer a store")
    os.kill(pid, signal.SIGKILL)
    assert supervisor.wait(PATIENCE) == 1
    assert supervisor.stderr is not None
    printed = supervisor.stderr.read()
    assert "giving up" in printed
    assert "StoreError" in printed


def test_workers_go_on_where_a_lost_identity_is_restored(folder_site: Site) -> None:
    folder_site.supervise(1)
    assert folder_site.tasks.value(folder_site.tasks.submit("def f(): return 0")) == 0
    [worker] = folder_site.until_workers(1)
    (folder_site.folder / "jugdata" / "store.json").unlink()
    folder_site.open_again()
    assert folder_site.tasks.value(folder_site.tasks.submit("def f(): return 1")) == 1
    assert [info.id for info in folder_site.alive()] == [worker.id]


def test_a_store_that_is_moved_away_ends_its_workers(folder_site: Site) -> None:
    folder_site.hang()
    supervisor = folder_site.supervise(1)
    worker = os.pidfd_open(int(folder_site.fifo.read_line()))
    (folder_site.folder / "jugdata").rename(folder_site.folder / "elsewhere")
    assert supervisor.wait(PATIENCE) == 1
    assert is_readable(worker)
    os.close(worker)
    assert supervisor.stderr is not None
    assert "Traceback" not in supervisor.stderr.read()
    (folder_site.folder / "elsewhere").rename(folder_site.folder / "jugdata")


@pytest.mark.parametrize("made_again", [False, True])
def test_idle_workers_leave_a_store_that_was_removed(site: Site, made_again: bool) -> None:
    supervisor = site.supervise(1, idle_timeout=PATIENCE)
    [info] = site.until_workers(1)
    worker = os.pidfd_open(info.pid)
    site.remove_store()
    if made_again:
        site.open_again()
        key = site.tasks.submit("def f(x): return x", 7)
    assert supervisor.wait(PATIENCE) == 1
    assert is_readable(worker)
    os.close(worker)
    assert supervisor.stderr is not None
    printed = supervisor.stderr.read()
    assert printed.splitlines()[-1].startswith("StoreGone: ")
    assert "Traceback" not in printed
    if not made_again:
        site.open_again()
        key = site.tasks.submit("def f(x): return x", 7)
    assert site.store.processes() == []
    assert site.tasks.state(key) is State.READY
    site.supervise(1)
    assert site.tasks.value(key) == 7


def test_a_busy_worker_stores_nothing_in_the_store_that_replaced_its_own(site: Site) -> None:
    release = Fifo(site.folder, "release")
    key = site.tasks.submit(
        cell(SAY + "def f(said, go):\n    say(said)\n    return open(go).readline()\n", "f"),
        site.fifo.path,
        release.path,
    )
    supervisor = site.supervise(1)
    site.fifo.read_line()
    site.remove_store()
    site.open_again()
    assert supervisor.wait(PATIENCE) == 1
    assert site.store.states([key]) == [None]
    assert site.store.processes() == []


def test_workers_start_clean_each_with_randomness_of_its_own(folder_site: Site) -> None:
    source = SAY + (
        "import sys, random, os, threading\ndef f(path, i):\n    say(path)\n"
        "    os.read(os.open(path + '.go', os.O_RDONLY), 1)\n"
        "    heavy = [m for m in ('IPython', 'numpy', 'redis', 'pandas', 'ipywidgets') if m in sys.modules]\n"
        "    return (random.random(), heavy, os.environ['OMP_NUM_THREADS'], sys.stdin.read(),\n"
        "            os.getpgrp() == os.getpid(), threading.active_count())\n"
    )
    go = Fifo(folder_site.folder, "fifo.go")
    keys = [folder_site.tasks.submit(source, folder_site.fifo.path, i) for i in range(2)]
    folder_site.supervise(2)
    assert folder_site.fifo.read_line() != folder_site.fifo.read_line()
    go.write_line("!")
    (one, *rest), (two, *other) = (folder_site.tasks.value(key) for key in keys)
    assert one != two
    assert rest == other == [[], str(max(1, system.cores() // 2)), "", True, 1]


def test_what_a_task_leaves_behind_does_not_fail_the_next(site: Site) -> None:
    rude = site.tasks.submit(
        "import signal, sys\ndef ring(*_): raise TimeoutError\ndef f():\n"
        "    signal.signal(signal.SIGALRM, ring)\n    signal.setitimer(signal.ITIMER_REAL, 60)\n"
        "    with sys.stdout as out: print('all of it', file=out)"
    )
    polite = site.tasks.submit(
        "import signal\ndef f():\n    print('still heard')\n    return signal.getitimer(signal.ITIMER_REAL)"
    )
    site.supervise(1)
    assert site.tasks.value(rude) is None
    assert site.tasks.value(polite) == (0.0, 0.0)
    assert site.tasks.outcome(rude).run.worker == site.tasks.outcome(polite).run.worker
    assert site.tasks.outcome(polite).run.output == (("stdout", "still heard\n"),)


def test_what_a_worker_prints_outside_tasks_is_in_its_log(site: Site) -> None:
    source = SAY + (
        "import threading, signal\ndef f(path):\n    threading.Thread(target=late, args=(path,)).start()\n"
        "def late(path):\n    go = open(path + '.go')\n    print(go.readline())\n    say(path)\n"
        "    print(go.readline())\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    go = Fifo(site.folder, "fifo.go")
    site.supervise(1)
    key = site.tasks.submit(source, site.fifo.path)
    worker = site.tasks.outcome(key).run.worker
    go.write_line("stray words")
    site.fifo.read_line()
    later = site.tasks.submit("def f(): print('own words')")
    assert site.tasks.outcome(later).run.output == (("stdout", "own words\n"),)
    go.write_line("last words")
    wait_until(site.store, lambda: "last words" in site.store.log(worker))
    assert site.store.log(worker).split() == ["stray", "words", "last", "words"]


# -- launching ---------------------------------------------------------------------------------------------------------


def test_launching_returns_at_once_and_asking_twice_is_asking_once(site: Site) -> None:
    began = CLOCK.monotonic()
    crew = local.launch(site.store, WorkerOptions(2))
    assert CLOCK.monotonic() - began < 0.3
    assert crew.starting
    try:
        site.until_workers(2)
        assert crew.alive() == 2
        assert not crew.starting
        again = local.launch(site.store, WorkerOptions(2))
        more = local.launch(site.store, WorkerOptions(3))
        site.until_workers(3)
        assert {info.id for info in again.workers} == {info.id for info in more.workers}
        assert site.tasks.value(site.tasks.submit("def f(): return 1")) == 1
        assert crew.wait(PATIENCE) is True
        assert repr(crew) == f"<Crew of 3 workers on {system.host()}>"
        assert os.getsid(crew.supervisors[0].pid) == crew.supervisors[0].pid
    finally:
        crew.stop(now=True)
        wait_until(site.store, lambda: not site.alive("supervisor"))
    assert crew.alive() == 0


def test_a_crew_that_is_stopped_before_it_came_has_not_failed(site: Site) -> None:
    crew = local.launch(site.store, WorkerOptions(1))
    crew.stop()
    wait_until(site.store, lambda: not crew.starting)
    assert crew.failures == []


def test_a_crew_that_can_not_start_says_why(site: Site, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'No module named jug_notebook' >&2\nexit 1\n")
    broken.chmod(0o755)
    crew = local.launch(site.store, WorkerOptions(1, python=str(broken)))
    with pytest.raises(LaunchError, match="No module named jug_notebook"):
        wait_until(site.store, lambda: not crew.starting)
    with pytest.raises(LaunchError, match="can't be started"):
        local.launch(site.store, WorkerOptions(1, python=str(tmp_path / "none")))


def test_the_workers_of_a_memory_store_are_threads(tmp_path: Path) -> None:
    store = open_store(f"memory:{tmp_path}")
    tasks = Submitter(store, tmp_path)
    crew: Crew = local.launch(store, WorkerOptions(2))
    key = tasks.submit("import os\ndef f(): print('hello'); return os.getpid()")
    assert tasks.value(key) == os.getpid()
    assert tasks.outcome(key).run.output == (("stdout", "hello\n"),)
    assert crew.alive() == local.launch(store, WorkerOptions(2)).alive() == 2
    crew.scale(3)
    wait_until(store, lambda: crew.alive() == 3)
    crew.stop()
    wait_until(store, lambda: crew.alive() == 0)
    wait_until(store, lambda: not crew.supervisors)


LEAVES = """
import os, signal, subprocess, sys

def leaves(path):
    stubborn = "import os, signal; signal.signal(15, signal.SIG_IGN); print('x', flush=True); signal.pause()"
    ended = subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True, stdout=subprocess.PIPE)
    ended.stdout.readline()
    daemon = f"setsid sh -c 'echo $$ > {path}; exec sleep 1000' > /dev/null 2>&1 &"
    subprocess.run(["sh", "-c", daemon], check=True)
    with open(path) as fifo: second = int(fifo.readline())
    come, came = os.pipe()
    third = os.fork()
    if not third:
        os.setsid()
        os.write(came, b"x")
        signal.pause()
    os.read(come, 1)
    return [ended.pid, second, third]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, they run on")
def test_what_a_task_leaves_behind_as_daemons_do_is_named_and_ends_with_its_worker(site: Site) -> None:
    key = site.tasks.submit(cell(LEAVES, "leaves"), site.fifo.path)
    after = site.tasks.submit("def f(): return 1")
    site.supervise(1)
    pids = site.tasks.value(key)
    assert site.tasks.value(after) == 1
    assert all(system.born(pid) for pid in pids)
    [worker] = site.until_workers(1)
    outcome = site.tasks.outcome(key)
    line = f"leaves {key[:8]} left processes behind, which will end with their worker: "
    for text in (site.store.log(worker.id), "".join(text for _, text in outcome.run.output)):
        assert line in text
        assert re.search(rf"\b{pids[1]} \((sleep|sh)\)", text), "it is a shell until it has become sleep"
        assert str(pids[0]) in text
        assert str(pids[2]) in text
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(site.store, lambda: not any(system.born(pid) for pid in pids), "they run on")
    assert "ended what its tasks had left behind: " in site.store.log(worker.id)
