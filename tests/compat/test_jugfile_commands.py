"""The commands for jugfiles, as a shell sees them: options, configuration, environment, exit statuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from datetime import date
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.compat.test_jugfiles import JUG, OUR_VALUES, OURS, THEIR_VALUES, Side, table
from tests.workbench import Fifo

ROOT = Path(__file__).parents[2]
SIMPLE = """
from jug import TaskGenerator

@TaskGenerator
def double(x):
    return 2 * x

@TaskGenerator
def add(xs):
    return sum(xs)

doubled = [double(x) for x in range(4)]
total = add(doubled)
"""


@pytest.fixture
def side(tmp_path: Path) -> Side:
    return Side(tmp_path / "ours", OURS, OUR_VALUES)


def script(side: Side, text: str = SIMPLE, name: str = "jugfile.py") -> Side:
    (side.folder / name).write_text(text)
    return side


def start(side: Side, *words: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*OURS, *words], cwd=side.folder, env=side.environment, stdout=pipe, stderr=pipe, stdin=pipe, text=True
    )


def test_the_programs_that_are_installed_are_there_and_clash_with_none_of_jugs(side: Side) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert not {"jug", "jug-execute"} & set(scripts)
    script(side)
    for name, words in (("jug-notebook-execute", ["jugfile.py", "--will-cite"]), ("jug-notebook", ["check"])):
        module, _, function = scripts[name].partition(":")
        program = [sys.executable, "-c", f"import sys; from {module} import {function}; sys.exit({function}())"]
        ran = subprocess.run([*program, *words], cwd=side.folder, env=side.environment, check=False, timeout=60)
        assert ran.returncode == 0, name


# -- which script, which store -----------------------------------------------------------------------------------------


def test_jugfile_py_is_meant_where_no_store_is_named(side: Side) -> None:
    script(side)
    assert side.run("execute").returncode == 0
    assert (side.folder / "jugfile.jugdata" / "store.json").is_file()
    assert side.run("check").returncode == 0
    assert side.run("status", "--jugdir", "jugfile.jugdata", "--json").stdout.startswith("{"), "that is a store"


def test_a_script_that_is_not_there_ends_as_with_jug(side: Side) -> None:
    ran = side.run("execute", "absent.py")
    assert ran.returncode == 1
    assert ran.stderr == "jug-notebook: no jugfile at 'absent.py'\n"


def test_looking_makes_no_store_and_hands_nothing_in(side: Side) -> None:
    script(side)
    for command in ("status", "count", "check", "graph"):
        side.run(command)
    assert not (side.folder / "jugfile.jugdata").exists()
    ready, waiting = (0, 0, 4, 0, 0), (0, 1, 0, 0, 0)
    assert side.counts() == {"jugfile.double": ready, "jugfile.add": waiting, "Total": (0, 1, 4, 0, 0)}


def test_the_name_of_the_jugdir_is_filled_in(side: Side) -> None:
    script(side)
    assert side.run("execute", "--jugdir", "of-%(jugfile)s-%(date)s").returncode in (0, 2)
    assert side.run("execute", "jugfile.py", "--jugdir", "of-%(jugfile)s-%(date)s").returncode == 0
    assert (side.folder / f"of-jugfile-{date.today():%Y-%m-%d}").is_dir()
    assert "per cent" in side.run("execute", "jugfile.py", "--jugdir", "100%").stderr


def test_configuration_files_count_the_nearest_first(side: Side) -> None:
    script(side)
    (side.folder / ".config" / "jug").mkdir(parents=True)
    (side.folder / ".config" / "jug" / "jugrc").write_text("[main]\njugdir = far\nshort = yes\n")
    assert side.run("status").stdout == "5 tasks waiting to be run, 0 failed, 0 complete, (none active).\n"
    (side.folder / ".jugrc").write_text("[main]\njugdir = near\n[execute]\nkeep-going = on\nwait-cycle-time = 0.5\n")
    assert side.run("execute").returncode == 0
    assert (side.folder / "near").is_dir()
    assert not (side.folder / "far").exists()
    (side.folder / ".git").mkdir()
    (side.folder / "below").mkdir()
    (side.folder / "below" / "jugfile.py").write_text(SIMPLE)
    below = subprocess.run(
        [*OURS, "count", "--short"], cwd=side.folder / "below", env=side.environment, capture_output=True, check=False
    )
    assert below.returncode == 0
    assert not (side.folder / "below" / "near").exists()
    (side.folder / ".jugrc").write_text("[execute]\nwait-cycle-time = soon\n")
    ran = side.run("execute")
    assert ran.returncode == 2
    assert "wait_cycle_time" in ran.stderr or "wait-cycle-time" in ran.stderr


@pytest.mark.parametrize("jugdir", ["dict_store:kept", "file_keepalive:kept", "file:kept", "kept"])
def test_stores_by_all_their_names(side: Side, jugdir: str) -> None:
    script(side)
    assert side.run("execute", "jugfile.py", "--jugdir", jugdir).returncode == 0
    assert side.run("check", "jugfile.py", "--jugdir", "kept").returncode == 0


def test_a_store_in_memory_ends_with_the_process(side: Side) -> None:
    script(side)
    assert side.run("execute", "jugfile.py", "--jugdir", "dict_store").returncode == 0
    assert side.run("execute", "-n", "2", "jugfile.py", "--jugdir", "dict_store").returncode == 0
    assert side.run("check", "jugfile.py", "--jugdir", "dict_store").returncode == 1
    assert [path.name for path in side.folder.glob("*dict*")] == []


def test_a_url_of_a_kind_that_there_isnt_is_no_folder(side: Side) -> None:
    script(side)
    ran = side.run("execute", "jugfile.py", "--jugdir", "nosuch://host/3")
    assert ran.returncode == 2
    assert "no store of kind 'nosuch'" in ran.stderr
    assert [path.name for path in side.folder.iterdir() if path.is_dir()] in ([], ["__pycache__"])


def test_commands_about_stores_take_a_script(side: Side) -> None:
    script(side, SIMPLE + "from jug import set_jugdir\nset_jugdir('other')\n")
    assert side.run("execute").returncode == 0
    assert "add" in side.run("log", "--history", "jugfile.py").stdout
    assert "no worker is alive" in side.run("stop", "jugfile.py").stdout


# -- execute -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [("--name", "double"), ("--name", "jugfile.doub*"), ("--pattern", "/doub.e$/")])
def test_only_the_tasks_that_are_named_are_run(side: Side, how: tuple[str, str]) -> None:
    script(side)
    ran = side.run("execute", *how, "jugfile.py")
    assert ran.returncode == 0, "what was asked for is there"
    assert table(ran.stdout)["Total"] == (4, 0)
    assert side.counts()["jugfile.add"] == (0, 0, 1, 0, 0)


def test_what_named_tasks_need_is_left_to_others(side: Side) -> None:
    script(side)
    ran = side.run("execute", "--target", "add", "--nr-wait-cycles", "0", "jugfile.py")
    assert ran.returncode == 1
    assert side.counts()["Total"] == (0, 1, 4, 0, 0)
    assert side.run("execute", "--pattern", "", "jugfile.py").returncode == 2


def test_workers_run_named_tasks_too(side: Side) -> None:
    script(side)
    ran = side.run("execute", "-n", "2", "--name", "double", "jugfile.py")
    assert ran.returncode == 0, ran.stderr
    assert table(ran.stdout)["Total"] == (4, 0)


def test_an_error_ends_it_unless_it_is_to_go_on(side: Side) -> None:
    script(
        side,
        "from jug import TaskGenerator\n@TaskGenerator\ndef f(x):\n    return 1 / x\nxs = [f(x) for x in (0, 1, 2)]\n",
    )
    ran = side.run("execute")
    assert ran.returncode == 1
    assert "ZeroDivisionError" in ran.stderr
    assert side.counts()["Total"] == (1, 0, 2, 0, 0)
    assert side.run("execute", "--keep-going").returncode == 1
    assert side.counts()["Total"] == (1, 0, 0, 2, 0)
    assert "0 failed" not in side.run("status", "--short").stdout


def test_failures_of_a_kind_are_printed_once(side: Side) -> None:
    script(
        side,
        "from jug import TaskGenerator\n@TaskGenerator\ndef f(x):\n    return {}[f'{x}']\n"
        "xs = [f(x) for x in range(3)]\n@TaskGenerator\ndef g(x):\n    return 1 / x\ny = g(0)\n",
    )
    printed = side.run("execute", "--keep-going").stderr
    assert printed.count("Traceback (most recent call last)") == 2
    assert "\nand 2 similar failures\n" in printed


def test_failures_are_tried_again_unless_they_are_kept(side: Side) -> None:
    script(
        side,
        "import os\nfrom jug import TaskGenerator\n@TaskGenerator\ndef f():\n    open('tries', 'a').write('.')\n"
        "    assert os.path.exists('mended')\nx = f()\n",
    )
    for _ in range(2):
        side.run("execute")
    assert (side.folder / "tries").read_text() == ".."
    assert side.run("execute", "--keep-failed").returncode == 1
    assert (side.folder / "tries").read_text() == ".."
    (side.folder / "mended").touch()
    assert side.run("cleanup", "--failed-only").stdout == "Removed 1 failure locks\n"
    assert side.run("execute", "--keep-failed").returncode == 0


def test_the_environment_and_a_file_stop_it(side: Side) -> None:
    script(side)
    ran = side.run("execute", JUG_MAX_TASKS="2")
    assert ran.returncode == 1, "not all is there"
    assert side.counts()["Total"] == (0, 1, 2, 2, 0)
    (side.folder / "__jug_please_stop_running.txt").touch()
    assert side.run("execute").returncode == 1
    assert side.run("execute", "-n", "1").returncode == 1
    assert side.counts()["Total"] == (0, 1, 2, 2, 0)
    assert side.run("execute", "--no-check-environment", JUG_MAX_TASKS="1").returncode == 0


def test_other_limits_of_the_environment(side: Side) -> None:
    script(side)
    (side.folder / "enough").touch()
    assert side.run("execute", JUG_EXIT_IF_FILE_EXISTS="enough").returncode == 1
    assert side.run("execute", JUG_MAX_SECONDS="3000", JUG_MAX_HOURS="1").returncode == 0


def test_what_comes_out_the_same_is_taken_over_and_counted_as_loaded(side: Side) -> None:
    script(side, SIMPLE + "\nhalves = [double(add([x, 4 - x])) for x in (0, 1, 2)]\n")
    ran = table(side.run("execute").stdout)
    assert ran == {"jugfile.double": (5, 2), "jugfile.add": (4, 0), "Total": (9, 2)}


def test_tasks_that_change_their_arguments_are_found_out(side: Side) -> None:
    script(
        side,
        "from jug import TaskGenerator\n@TaskGenerator\ndef f(xs):\n    xs.append(1)\n    return xs\nx = f([1])\n",
    )
    ran = side.run("execute", "--debug")
    assert ran.returncode == 1
    assert "changed its argument" in ran.stderr
    assert side.run("execute").returncode == 0


def test_a_debugger_looks_at_an_error(side: Side) -> None:
    script(side, "from jug import Task\ndef f(x):\n    inside = 7 * x\n    return 1 / 0\nt = Task(f, 6)\n")
    running = start(side, "execute", "--pdb")
    out, _ = running.communicate("p inside\nq\n", timeout=60)
    assert "42" in out
    assert running.returncode == 1


def test_it_can_tell_more_and_less(side: Side) -> None:
    script(side)
    assert side.run("execute", "--short", "--aggressive-unload", "--will-cite").stdout == (
        "Executed:  5 tasks\nLoaded:  0 tasks\n** Total: 5 tasks.\n"
    )
    assert side.run("status", "--short", "--cache").stdout == "All tasks complete (5 tasks).\n"
    (side.folder / "old").touch()
    assert side.run("status", "--cache", "--cache-file", "old", "--clear").returncode == 0
    assert not (side.folder / "old").exists()


def test_being_verbose_names_each_task(side: Side) -> None:
    script(side)
    assert "Executing jugfile.double" in side.run("execute", "--verbose", "info").stderr


def test_options_may_stand_anywhere_and_the_script_gets_the_rest(side: Side) -> None:
    script(side, "import sys\nfrom jug import Task\nx = Task(list, sys.argv)\n")
    assert side.run("execute", "jugfile.py", "--keep-going", "one", "--", "--two").returncode == 0
    assert side.run("check", "jugfile.py", "one", "--", "--two").returncode == 0
    assert side.run("check", "jugfile.py", "one").returncode == 1


def test_executions_share_the_work_and_a_killed_ones_task_is_run_again(side: Side) -> None:
    fifo, gate = Fifo(side.folder, "printed"), Fifo(side.folder, "gate")
    script(
        side,
        f"""
import os
from jug import TaskGenerator

@TaskGenerator
def f(x):
    with open({fifo.path!r}, "w") as out:
        out.write("began\\n")
    gate = os.open({gate.path!r}, os.O_RDONLY)
    return os.read(gate, 3)

xs = [f(x) for x in range(3)]
""",
    )
    first = start(side, "execute")
    assert fifo.read_line() == "began"
    assert side.counts()["Total"][4] == 1, "one runs"
    first.kill()
    first.wait()
    assert side.run("check").returncode == 1
    others = [start(side, "execute") for _ in range(2)]
    assert [fifo.read_line(), fifo.read_line()] == ["began", "began"], "both work"
    for _ in range(3):
        gate.write_line("go")
    ended = [each.communicate(timeout=60) for each in others]
    assert [each.returncode for each in others] == [0, 0], ended
    assert side.run("check").returncode == 0
    rows = [table(out) for out, _ in ended]
    assert sum(row["Total"][0] for row in rows) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_the_task_is_open_again(side: Side, number: signal.Signals) -> None:
    fifo = Fifo(side.folder, "printed")
    script(
        side,
        f"import time\nfrom jug import Task\ndef f():\n    with open({fifo.path!r}, 'w') as o:\n"
        "        o.write('began\\n')\n    time.sleep(600)\nt = Task(f)\n",
    )
    running = start(side, "execute")
    assert fifo.read_line() == "began"
    running.send_signal(number)
    _, printed = running.communicate(timeout=60)
    assert running.returncode == 130, printed
    assert side.counts()["Total"] == (0, 0, 1, 0, 0)


# -- the others --------------------------------------------------------------------------------------------------------


def test_count_and_check_and_sleep_until(side: Side) -> None:
    script(side)
    assert table(side.run("count").stdout) == {"jugfile.double": (4,), "jugfile.add": (1,), "Total": (5,)}
    assert side.run("check").returncode == 1
    sleeper = start(side, "sleep-until")
    assert side.run("execute").returncode == 0
    assert sleeper.wait(60) == 0
    assert side.run("check").returncode == 0


def test_sleep_until_goes_on_past_a_barrier_and_ends_at_a_failure(side: Side) -> None:
    script(side, SIMPLE + "from jug import barrier, value\nbarrier()\nmore = double(value(total))\n")
    sleeper = start(side, "sleep-until")
    assert side.run("execute").returncode == 0
    assert sleeper.wait(60) == 0
    script(side, "from jug import Task\nx = Task(int, 'no number')\n", "bad.py")
    sleeper = start(side, "sleep-until", "bad.py")
    assert side.run("execute", "bad.py").returncode == 1
    assert sleeper.wait(60) == 1


@pytest.mark.parametrize("how", [("--name", "double"), ("--pattern", "doub"), ("--invalid", "jugfile.double")])
def test_invalidate_takes_what_was_made_from_it_too(side: Side, how: tuple[str, str]) -> None:
    script(side)
    side.run("execute")
    ran = side.run("invalidate", *how)
    assert table(ran.stdout) == {"jugfile.double": (4,), "jugfile.add": (1,), "Total": (5,)}
    assert side.counts()["Total"] == (0, 1, 4, 0, 0)
    assert side.run("invalidate", *how).stdout == "Tasks invalidated, but no results removed\n"
    assert side.run("invalidate", "--name", "nobody").stdout == "No results invalidated.\n"
    assert side.run("invalidate", "jugfile.py").returncode == 2
    assert side.run("execute").returncode == 0


def test_cleanup_forgets_what_the_script_no_longer_makes_and_nothing_else(side: Side) -> None:
    script(side, SIMPLE.replace("range(4)", "range(6)"))
    side.run("execute")
    script(side)
    side.run("execute")
    ran = side.run("cleanup")
    assert ran.stdout == "Removed 3 objects\nRemoved 0 locks\n", "two doubled, and their total"
    assert side.run("check").returncode == 0
    assert table(side.run("execute").stdout)["Total"] == (0, 5)
    assert side.run("cleanup", "--locks-only").stdout == "Removed 0 locks\n"
    assert "locks" not in side.run("cleanup", "--keep-locks").stdout


def test_cleanup_removes_nothing_where_a_barrier_hides_what_is_made(side: Side) -> None:
    script(side, SIMPLE + "from jug import barrier\nbarrier()\nmore = double(7)\n")
    assert side.run("execute").returncode == 0
    assert side.run("invalidate", "--name", "add").returncode == 0
    ran = side.run("cleanup")
    assert ran.returncode == 1
    assert "barrier" in ran.stdout
    assert table(side.run("execute").stdout)["jugfile.double"][0] == 0, "what lies beyond was kept"


def test_pack_leaves_everything_there(side: Side) -> None:
    assert script(side).run("execute").returncode == 0
    assert "file:jugfile.jugdata" in side.run("pack").stdout
    assert side.run("check").returncode == 0


def test_an_option_that_only_stores_have_asks_the_scripts_store(side: Side) -> None:
    assert script(side).run("execute").returncode == 0
    assert side.run("status", "--json").stdout.startswith("{")
    assert side.run("status", "jugfile.py", "--json").stdout.startswith("{")
    assert "all that is stored is in use" in side.run("cleanup", "--dry-run").stdout
    assert side.run("sleep-until", "jugfile.jugdata").returncode == 0


def test_graph_writes_what_graphviz_reads(side: Side) -> None:
    script(side)
    assert side.run("graph").returncode == 0
    dot = (side.folder / "jugfile.dot").read_text()
    assert '"jugfile.double" -> "jugfile.add"' in dot
    assert "4R" in dot
    assert (side.folder / "jugfile.png").exists() or (side.folder / "jugfile.svg").exists()
    side.run("graph", "--no-status", "--file-format", "svg")
    assert "4R" not in (side.folder / "jugfile.dot").read_text()


def test_a_page_follows_a_script_that_is_executed(side: Side) -> None:
    pytest.importorskip("tornado")
    script(side)
    (side.folder / ".jugrc").write_text("[webstatus]\nip = localhost\n")
    server = start(side, "webstatus", "jugfile.py", "--jugdir", "kept")
    try:
        assert server.stdout is not None
        url = urlsplit(server.stdout.readline().strip())
        assert url.hostname == "localhost"
        page = HTTPConnection(url.netloc, timeout=20)
        page.request("GET", url.path)
        assert "0 of 5 finished" in page.getresponse().read().decode(), "none has run, and all are on the page"
        page.request("GET", f"{url.path}events")
        events = page.getresponse()
        assert events.getheader("Content-Type") == "text/event-stream"
        assert json.loads(events.readline().removeprefix(b"data: "))["parts"]
        assert side.run("execute", "jugfile.py", "--jugdir", "kept").returncode == 0
        while "5 of 5 finished" not in events.readline().decode():
            pass
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0


def test_a_shell_has_the_scripts_names_and_five_more(side: Side) -> None:
    script(side)
    side.run("execute")
    asked = (
        "print('values', value([total, doubled[1]]))\n"
        "print('all', len(get_tasks()), len(get_filtered_tasks(loadable=True)))\n"
        "invalidate(doubled[0])\n"
        "print('left', len(get_filtered_tasks(loadable=True)), len(get_filtered_tasks(available=True)))\n"
        "print('ran', doubled[0].run())\n"
        "load_all()\n"
        "print('loaded', doubled, total)\n"
    )
    running = start(side, "shell")
    out, printed = running.communicate(asked, timeout=60)
    assert running.returncode == 0, printed
    for line in ("values [12, 2]", "all 5 5", "left 3 1", "ran 0", "loaded [0, 2, 4, 6] 12"):
        assert line in out


def test_what_needs_no_script(side: Side) -> None:
    assert side.run("demo").returncode == side.run("demo").returncode == 0
    demo = subprocess.run(
        [*OURS, "execute", "primes.py", "-n", "4"],
        cwd=side.folder / "jug-demo", env=side.environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert demo.returncode == 0, demo.stderr
    assert (side.folder / "jug-demo" / "output.txt").read_text() == "there are 25 primes up to 100\n"
    assert side.run("test-jug").stdout.endswith("all is well\n")
    assert side.run("install-skills").returncode == 2
    assert side.run("install-skills", "--output", "skills").returncode == 0
    assert (side.folder / "skills" / "jug-notebook" / "SKILL.md").is_file()
    assert side.run("install-skills", "--output", "skills").returncode == 1
    assert side.run("install-skills", "--output", "skills", "--force").returncode == 0


def test_users_commands_are_found(side: Side) -> None:
    script(side)
    side.run("execute")
    folder = side.folder / ".config" / "jug"
    folder.mkdir(parents=True)
    (folder / "jug_user_commands.py").write_text(
        """
from jug.subcommands import SubCommand

class Report(SubCommand):
    "Tells the total"
    name = "report"

    def run(self, options, store, jugspace, *args, **kwargs):
        from jug import value
        options.print_out(options.report_title, value(jugspace["total"]), store.can_load(jugspace["total"].hash()))
        return 3

    def parse(self, parser):
        parser.add_argument("--title", action="store", dest="report_title")

    def parse_defaults(self):
        return {"report_title": "the total is"}

Report()
"""
    )
    ran = side.run("report", "jugfile.py")
    assert (ran.stdout, ran.returncode) == ("the total is 12 True\n", 3), ran.stderr
    assert side.run("report", "--title", "it:").stdout == "it: 12 True\n"
    (side.folder / ".jugrc").write_text("[report]\ntitle = from the file:\n")
    assert side.run("report").stdout == "from the file: 12 True\n"
    assert "no command 'reprot'" in side.run("reprot").stderr


# -- beside Jug --------------------------------------------------------------------------------------------------------


@pytest.fixture
def theirs(tmp_path: Path) -> Side:
    pytest.importorskip("jug", "2.7")
    return Side(tmp_path / "theirs", JUG, THEIR_VALUES)


MIXED = """
from jug import CachedFunction, CompoundTaskGenerator, Task, TaskGenerator, barrier, mapreduce, value
from jug.task import return_tuple
from jug.utils import CustomHash, identity, timed_path
from jug.io import NoLoad

class Point:
    def __init__(self, x):
        self.x = x

@TaskGenerator
def shift(p, by=1):
    return Point(p.x + by)

@TaskGenerator
def norm(p):
    return p.x * p.x

@return_tuple(2)
@TaskGenerator
def both(x):
    return x, -x

@CompoundTaskGenerator
def twice(x):
    return norm(shift(shift(x)))

@TaskGenerator
def lengths(ts):
    return [len(str(value(t.base))) for t in ts]

def names():
    open("asked", "a").write(".")
    return ["b", "a"]

points = [shift(Point(i), by=i) for i in range(3)]
lo, hi = both(norm(points[2]))
mapped = mapreduce.map(norm, points, map_step=2)
whole = mapreduce.reduce(max, mapped[:2])
set_like = [Task(len, n) for n in set(CachedFunction(names))]
far = twice(Point(3))
barrier()
end = identity({"lo": lo, "hi": value(hi), "far": far})
sizes = lengths([NoLoad(p) for p in points])
named = norm(CustomHash(Point(9), lambda p: b"nine"))
"""


def test_what_jug_has_stored_is_taken_over(side: Side, theirs: Side) -> None:
    script(theirs, MIXED)
    assert theirs.run("execute", "--will-cite").returncode == 0
    script(side, MIXED)
    (theirs.folder / "jugfile.jugdata").rename(side.folder / "jugfile.jugdata")
    refused = side.run("execute")
    assert refused.returncode == 2
    assert "jugdir of Jug itself" in refused.stderr
    assert "import-jugdata" in refused.stderr
    untrusted = side.run("import-jugdata", "jugfile.py", "jugfile.jugdata", "--jugdir", "mine")
    assert untrusted.returncode == 2
    assert "can run code as you. If you trust them, give --trust" in untrusted.stderr
    ran = side.run("import-jugdata", "--trust", "jugfile.py", "jugfile.jugdata", "--jugdir", "mine")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = table(ran.stdout)
    assert rows["Total"][2] == 0, "none is missing"
    assert not (side.folder / "asked").exists(), "nothing was computed"
    assert "imported as they are" in ran.stdout
    again = side.run("execute", "jugfile.py", "--jugdir", "mine")
    assert again.returncode == 0
    assert table(again.stdout)["Total"][0] == 0
    assert side.run("import-jugdata", "jugfile.py").returncode == 2
    assert "is not a jugdir" in side.run("import-jugdata", "jugfile.py", "mine").stderr


def test_a_part_is_taken_over_where_a_part_is_stored(side: Side, theirs: Side) -> None:
    script(theirs)
    assert theirs.run("execute", "--will-cite", "--nr-wait-cycles", "0", "--name", "double").returncode == 0
    script(side, SIMPLE.replace("range(4)", "range(6)"))
    ran = side.run(
        "import-jugdata", "jugfile.py", str(theirs.folder / "jugfile.jugdata"), "--jugdir", "mine", "--trust"
    )
    assert ran.returncode == 1
    assert table(ran.stdout)["jugfile.double"] == (4, 0, 2)
    assert table(side.run("execute", "jugfile.py", "--jugdir", "mine").stdout)["Total"] == (3, 4)


def test_an_installed_jug_is_left_alone(side: Side) -> None:
    pytest.importorskip("jug", "2.7")
    script(side)
    text = """
import argparse, sys
import jug, jug.task
theirs = jug, jug.task
from jug_notebook.compat import loading
given = argparse.Namespace(jugfile="jugfile.py", jugdir=None, user_args=[])
with loading.loaded(loading.settled("status", given), read_only=True) as space:
    import jug, jug.mapreduce
    assert jug is not theirs[0] and jug.__name__ == "jug_notebook.compat.jug"
import jug, jug.mapreduce
assert (jug, jug.task) == theirs, jug
assert jug.mapreduce.__name__ == "jug.mapreduce"
from jug_notebook.compat.jug import mapreduce
assert mapreduce.__spec__.name == mapreduce.__name__
"""
    ran = subprocess.run(
        [sys.executable, "-c", text], cwd=side.folder, env=side.environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
