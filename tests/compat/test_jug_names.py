"""Jug's names, one by one, and what was wrong with them there and is right here."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jug_notebook.compat import commands, jugdir, loading
from jug_notebook.errors import JugError, NotReady, StoreError, TaskFailed
from jug_notebook.model import State
from tests.compat.test_jugfiles import OUR_VALUES, OURS, Side

HEAD = "from jug import *\nimport jug\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@contextmanager
def played(text: str, *arguments: str, read_only: bool = False) -> Iterator[dict[str, Any]]:
    """A script, loaded here."""
    Path("jugfile.py").write_text(HEAD + textwrap.dedent(text))
    given = argparse.Namespace(jugfile="jugfile.py", jugdir=None, user_args=list(arguments))
    with loading.loaded(loading.settled("shell", given), read_only) as space:
        yield space


def executed(text: str, *arguments: str) -> int:
    Path("jugfile.py").write_text(HEAD + textwrap.dedent(text))
    given = argparse.Namespace(jugfile="jugfile.py", jugdir=None, user_args=list(arguments), execute_keep_going=True)
    return commands.ACTIONS["execute"](loading.settled("execute", given))


# -- tasks, one by one -------------------------------------------------------------------------------------------------


def test_all_public_names_are_there() -> None:
    import importlib

    theirs = {
        "": "Task Tasklet TaskGenerator iteratetask value CachedFunction CompoundTask CompoundTaskGenerator barrier "
        "bvalue set_jugdir init is_jug_running file_store dict_store redis_store return_tuple __version__",
        ".task": "alltasks recursive_dependencies topological_sort describe return_tuple value Task Tasklet "
        "TaskGenerator CachedFunction iteratetask hash_one hash_update new_hash_object",
        ".barrier": "barrier bvalue BarrierError",
        ".compound": "CompoundTask CompoundTaskGenerator",
        ".io": "NoLoad Tasklet TaskGenerator write_task_out write_metadata print_task_summary_table",
        ".utils": "timed_path identity jug_execute CustomHash sync_move cached_glob add_task_selection_options",
        ".unsafe": "NoHash",
        ".mapreduce": "map currymap reduce mapreduce",
        ".hash": "hash_one hash_update new_hash_object",
        ".hooks": "register_hook register_hook_once jug_hook reset_all_hooks",
        ".hooks.exit_checks": "exit_if_file_exists exit_when_true exit_after_n_tasks exit_after_time exit_env_vars",
        ".hooks.execution": "register_time_tasks",
        ".backends": "select memoize_store",
        ".backends.file_store": "file_store file_keepalive_store fsync_dir",
        ".backends.redis_store": "redis_store",
        ".backends.dict_store": "dict_store",
        ".backends.memoize_store": "memoize_store",
        ".backends.base": "base_store base_lock",
        ".options": "set_jugdir Options default_options key_to_option find_local_configuration_files "
        "read_configuration_file",
        ".jug": "init is_jug_running",
        ".subcommands": "SubCommand cmdapi",
    }
    for module, names in theirs.items():
        found = importlib.import_module(f"jug_notebook.compat.jug{module}")
        assert [name for name in names.split() if not hasattr(found, name)] == [], module


def test_a_name_is_of_the_same_kind_as_jugs_whatever_was_imported_before() -> None:
    pytest.importorskip("jug", "2.7")
    text = """
    import sys
    sys.path.remove("")
    from importlib import import_module
    from jug.barrier import bvalue
    from jug.backends.select import select
    import jug.backends.memoize_store, jug.hooks.register, jug.compound, jug.io, jug.unsafe, jug.mapreduce
    from jug.hooks import exit_checks, execution
    for home, names in {
        "jug": "barrier bvalue compound hash hooks io jug mapreduce options return_tuple task unsafe utils value",
        "jug.barrier": "BarrierError barrier bvalue",
        "jug.backends": "base memoize_store select",
        "jug.hooks": "execution exit_checks jug_hook register register_hook",
        "jug.subcommands": "SubCommand cmdapi",
    }.items():
        print(home, [(name, callable(getattr(import_module(home), name))) for name in names.split()])
    """
    text = textwrap.dedent(text)
    ours = f"from jug_notebook.compat import replacing_jug\nwith replacing_jug():\n{textwrap.indent(text, ' ')}"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    run = partial(subprocess.check_output, env=environment, text=True, timeout=60)
    assert run([sys.executable, "-c", ours]) == run([sys.executable, "-c", text])


def test_an_attribute_error_while_a_value_is_loaded_or_hashed_is_not_hidden(folder: Path) -> None:
    (folder / "odd.py").write_text(
        "class Loaded:\n    def __getstate__(self):\n        return 1\n"
        "    def __setstate__(self, state):\n        self.x = state.inside\n"
        "class Hashed:\n    def __jug_hash__(self):\n        return self.within\n"
    )
    text = "import odd\nt = Task(odd.Loaded)\nu = lambda: Task(id, odd.Hashed())"
    assert executed(text) == 0
    with played(text, read_only=True) as space:
        with pytest.raises(RuntimeError, match="no attribute 'inside'") as raised:
            _ = space["t"].result
        assert isinstance(raised.value.__cause__, AttributeError)
        with pytest.raises(AttributeError, match="no attribute 'within'"):
            space["u"]()
        with pytest.raises(AttributeError, match="has no 'nosuch'"):
            _ = space["t"].nosuch


def test_a_tasks_methods() -> None:
    text = """
    def double(x):
        return 2 * x

    a = Task(double, 4)
    b = Task(double, a)
    """
    with played(text) as space:
        a, b = space["a"], space["b"]
        assert (a.name, a.args, a.kwargs, a.f(1)) == ("jugfile.double", (4,), {}, 2)
        assert (a.can_run(), b.can_run(), a.can_load(), a.is_loaded()) == (True, False, False, False)
        assert list(b.dependencies()) == [a]
        with pytest.raises(NotReady):
            _ = a.result
        with pytest.raises(AssertionError):
            b.run()
        assert a.run() == 8
        assert (a.result, a.value(), a.is_loaded(), b.can_run()) == (8, 8, True, True)
        a.unload()
        assert not a.is_loaded()
        a.load()
        assert b.run() == b.result == 16
        b.unload_recursive()
        assert (a.is_loaded(), b.is_loaded()) == (False, False)
        assert a.invalidate() == 1
        assert (a.can_load(), b.can_load()) == (False, False), "what was made from it falls back"
        assert a.run(save=False) == 8
        assert not a.can_load()
        assert len(a.hash()) == 40
        assert isinstance(a.hash(), bytes)


def test_locks_belong_to_who_took_them() -> None:
    with played("t = Task(abs, -1)\nother = Task(abs, -2)\nbad = Task(abs, 'x')") as space:
        t, bad = space["t"], space["bad"]
        assert not t.is_locked()
        assert t.lock()
        assert t.is_locked()
        assert not t.lock()
        assert t.run() == 1
        t.unlock()
        assert (t.is_locked(), t.can_load()) == (False, True)
        assert space["other"].lock()
        space["other"].unlock()
        assert not space["other"].is_locked()
        assert not bad.fail(), "nobody may fail what they have not locked"
        assert bad.lock()
        assert bad.fail()
        assert bad.is_failed()
        bad.unlock()
        assert not bad.is_failed()
        with pytest.raises(TypeError):
            bad.run()
        assert bad.is_failed()


def test_a_lock_ends_with_its_process() -> None:
    with played("t = Task(abs, -1)") as space:
        assert space["t"].lock()
    with played("t = Task(abs, -1)") as space:
        assert not space["t"].is_locked()


def test_a_task_is_true_and_equals_only_itself_and_is_not_gone_over() -> None:
    with played("a = Task(abs, -1)\nb = Task(abs, -1)") as space:
        a, b = space["a"], space["b"]
        assert a
        assert a != b
        assert a in [b, a]
        assert a.hash() == b.hash()
        with pytest.raises(NotImplementedError, match="iteratetask"):
            iter(a)
        with pytest.raises(NotImplementedError):
            _, _ = a[0]


def test_a_store_is_asked_as_jugs_are() -> None:
    with played("t = Task(abs, -1)\nu = Task(abs, -2)\nbad = Task(abs, 'x')") as space:
        t, u, store = space["t"], space["u"], space["Task"].store
        assert list(store.list()) == []
        store.dump(11, u.hash())
        assert (store.can_load(u.hash()), store.load(u.hash().decode()), u.result) == (True, 11, 11)
        t.run()
        assert sorted(store.list()) == sorted([t.hash(), u.hash()])
        assert store.metadata(t)["host"]
        assert store.remove(t.hash())
        assert store.remove_many([t.hash(), u.hash()]) == {u.hash()}
        lock = store.getlock(t.hash())
        assert lock.get()
        assert list(store.listlocks()) == [t.hash()]
        lock.release()
        from jug_notebook.compat.jugdir import file_store

        other = file_store("to-go")
        other.session.submissions.flush()
        other.close()
        assert Path("to-go/store.json").exists()
        other.remove_store("to-go")
        assert not Path("to-go").exists()
        with pytest.raises(TypeError):
            space["bad"].run()
        assert store.remove_locks() == 1


def test_options_of_configuration_files_can_be_asked_for(folder: Path) -> None:
    (folder / "jugrc").write_text("[main]\nshort = on\n[execute]\nnr-wait-cycles = 7\n[my-report]\nto-file = x\n")
    with played(
        """
        from io import StringIO
        from jug.options import *
        from jug import options
        read = options.read_configuration_file(default_options=options.default_options)
        printed = read.short, read.execute_nr_wait_cycles, read.my_report_to_file, read.jugfile, read.pdb
        files = options.find_local_configuration_files()
        other = options.read_configuration_file(StringIO("[execute]\\nkeep-going = yes\\n"), options.default_options)
        going = other.execute_keep_going, other.short, options.key_to_option("a-b")
        """
    ) as space:
        assert space["printed"] == (True, 7, "x", "jugfile.py", False)
        assert space["files"] == [str(folder / "jugrc")]
        assert space["going"] == (True, False, "a_b")


def test_init_loads_a_script_into_a_namespace() -> None:
    Path("other.py").write_text("from jug import Task\nx = Task(abs, -5)\n")
    with played("store, space = jug.init('other.py', 'other.jugdata')") as space:
        inner = space["space"]
        assert inner["x"].run() == 5
        assert inner["__name__"] == "other"
        assert space["Task"].store is space["store"]
        assert Path("other.jugdata/store.json").is_file()
    Path("bad.py").write_text("1 / 0\n")
    with pytest.raises(SystemExit), played("jug.init('bad.py')"):
        pass
    with played(
        "try:\n    jug.init('bad.py', on_error='propagate')\nexcept ZeroDivisionError as error:\n    printed = error"
    ) as space:
        assert str(space["printed"]) == "division by zero"


def test_tasks_go_to_the_store_that_is_set_whenever_they_were_made() -> None:
    with played("a = Task(abs, -1)\nset_jugdir('second')\nb = Task(abs, a)") as space:
        assert space["a"].run() == 1
        assert space["b"].run() == 1
        assert Path("second/store.json").is_file()
        assert jug_store(space).state(space["b"].key) is State.FINISHED


def jug_store(space: dict[str, Any]) -> Any:
    return space["Task"].store


def test_describing_a_task_tells_what_it_was_made_of() -> None:
    with played("t = Task(sum, [Task(abs, -1), Task(max, [1, 2])[0:1], 3])") as space:
        from jug_notebook.compat.jug.task import alltasks, describe

        alltasks[0].run()
        details = describe(space["t"])
        assert details["name"] == "builtins.sum"
        assert details["args"][0][0]["args"] == [-1]
        assert details["args"][0][0]["meta"]["seconds"] >= 0
        assert details["args"][0][1]["name"] == "tasklet"


def test_values_are_found_in_what_holds_them() -> None:
    with played("a, b = Task(abs, -1), Task(divmod, 7, 2)") as space:
        a, b, value = space["a"], space["b"], space["value"]
        a.run()
        b.run()
        assert value([a, (b[0], {"k": b}), {1}, "x"]) == [1, (3, {"k": (3, 1)}), {1}, "x"]
        tasklet = space["Tasklet"](b, sum)
        assert (tasklet.value(), tasklet.can_load(), list(tasklet.dependencies())) == (4, True, [b])


def test_a_script_knows_by_whom_it_runs() -> None:
    with played("running = is_jug_running()") as space:
        assert space["running"]
        assert space["__name__"] == "jugfile"
    from jug_notebook.compat.loading import is_jug_running

    assert not is_jug_running()


# -- what was wrong there ----------------------------------------------------------------------------------------------


def test_lists_in_lists_are_not_confused() -> None:
    with played("def f(x):\n    return x\na = Task(f, [[1], 2])\nb = Task(f, [[1, 2]])") as space:
        space["a"].run()
        assert not space["b"].can_load()


def test_lambdas_differ_by_constants_and_closures() -> None:
    text = """
    def f(x):
        return x

    base = Task(abs, -3)
    fs = [lambda v: v + 1, lambda v: v + 2] + [(lambda n: lambda v: v * n)(n) for n in (5, 7)]
    made = [Task(f, Tasklet(base, g)) for g in fs]
    direct = [Task(g, 3) for g in fs]
    """
    assert executed(text) == 0
    with played(text, read_only=True) as space:
        assert space["value"](space["made"]) == space["value"](space["direct"]) == [4, 5, 15, 21]


def test_methods_of_different_objects_and_inner_functions_differ() -> None:
    text = """
    class A:
        def __init__(self, n):
            self.n = n

        def get(self):
            return self.n

    class B(A):
        def get(self):
            return -self.n

    def outer(n):
        def inner():
            return n
        return inner

    made = [Task(x.get) for x in (A(1), A(2), B(1))] + [Task(outer(n)) for n in (8, 9)]
    """
    assert executed(text) == 0
    with played(text, read_only=True) as space:
        assert space["value"](space["made"]) == [1, 2, -1, 8, 9]


def test_positions_names_and_defaults_are_one_call() -> None:
    text = "def f(x, y=2):\n    return x\nts = [Task(f, 1), Task(f, x=1), Task(f, 1, y=2), Task(f, y=2, x=1)]"
    with played(text) as space:
        assert len({task.hash() for task in space["ts"]}) == 1


def test_names_are_the_same_in_every_process() -> None:
    side = Side(Path("ours"), OURS, OUR_VALUES)
    (side.folder / "jugfile.py").write_text(
        textwrap.dedent(
            """
            import numpy as np
            from jug import Task

            class Bag:
                def __init__(self, held):
                    self.held = held

            def f(x):
                return 1

            names = {"a", "b", "c", "d"}
            given = [frozenset(names), {"k": names}, Bag(names), np.array([None, "x", 1])]
            ts = [Task(f, x) for x in given]
            """
        )
    )
    assert side.run("execute", PYTHONHASHSEED="1").returncode == 0
    for seed in ("2", "3"):
        assert side.run("check", PYTHONHASHSEED=seed).returncode == 0


def test_code_that_changes_is_run_again_and_comments_are_not_code() -> None:
    text = "@TaskGenerator\ndef f(x):\n    return x + ONE\nONE = 1\ny = f(1)\n"
    assert executed(text) == 0
    commented = "# a comment\n" + text.replace("    return", "    # why\n    return")
    with played(commented, read_only=True) as space:
        assert space["y"].result == 2
    with played(text.replace("ONE = 1", "ONE = 2"), read_only=True) as space:
        assert not space["y"].can_load()


def test_the_name_of_the_script_does_not_count() -> None:
    executed("@TaskGenerator\ndef f(x):\n    return x\ny = f(1)\n")
    Path("jugfile.py").rename("renamed.py")
    given = argparse.Namespace(jugfile="renamed.py", jugdir="jugfile.jugdata", user_args=[])
    with loading.loaded(loading.settled("status", given), read_only=True) as space:
        assert space["y"].result == 1
        assert space["y"].name == "renamed.f"


def test_exit_when_true_does_not_call_itself() -> None:
    from jug_notebook.compat import hooks

    hooks.reset_all_hooks()
    asked = []
    hooks.exit_when_true(lambda: asked.append(1) or len(asked) > 1)
    hooks.jug_hook("execute.task-executed1", (None,))
    with pytest.raises(SystemExit):
        hooks.jug_hook("execute.task-executed1", (None,))
    hooks.reset_all_hooks()
    hooks.jug_hook("execute.task-executed1", (None,))
    with pytest.raises(ValueError, match="no event"):
        hooks.register_hook("execute.never", print)


@pytest.mark.parametrize(
    ("jugdir_", "url"),
    [
        ("redis://:secret@host:7000/3", "redis://:secret@host:7000/3"),
        ("redis://host/", "redis://host/"),
        ("redis:host", "redis://host"),
        ("redis:", "redis://localhost"),
        ("rediss://host", "rediss://host"),
        ("dict_store:some", "file:some"),
        ("file_keepalive:some", "file:some"),
        ("plain", "plain"),
    ],
)
def test_urls_are_read_whole(jugdir_: str, url: str) -> None:
    assert jugdir.url_of(jugdir_) == url


def test_arrays_are_written_as_arrays(folder: Path) -> None:
    numpy = pytest.importorskip("numpy")
    text = "import numpy as np\nfrom jug.io import write_task_out\nw = write_task_out(Task(np.arange, 5), 'x.dat')"
    assert executed(text) == 0
    assert numpy.load(folder / "x.dat").tolist() == [0, 1, 2, 3, 4]


def test_files_are_moved_within_a_folder(folder: Path) -> None:
    from jug_notebook.compat.jug.utils import sync_move

    (folder / "a").write_text("1")
    sync_move("a", "b")
    assert (folder / "b").read_text() == "1"


def test_a_touched_file_is_another_argument() -> None:
    Path("data").write_text("1")
    text = "from jug.utils import timed_path\n@TaskGenerator\ndef f(path):\n    return open(path).read()\n"
    text += "x = f(timed_path('data'))\n"
    assert executed(text) == 0
    Path("data").write_text("22")
    with played(text, read_only=True) as space:
        assert not space["x"].can_load()
    with pytest.raises(SystemExit) as ended, played("from jug.utils import timed_path\ntimed_path('absent')"):
        pass
    assert isinstance(ended.value.__context__, FileNotFoundError)


def test_a_command_that_fails_is_told() -> None:
    with played("from jug.utils import jug_execute\nx = jug_execute(['false'])") as space:
        with pytest.raises(SystemError, match="exit status 1"):
            space["x"].run()
        with pytest.raises(TaskFailed):
            _ = space["x"].result


def test_calls_inside_a_task_are_plain_calls() -> None:
    text = """
    from jug import mapreduce
    from jug.utils import identity

    @TaskGenerator
    def double(x):
        return 2 * x

    @TaskGenerator
    def all_of_it(n):
        from jug import Task, value
        from jug.mapreduce import reduce
        mapped = mapreduce.map(double, list(range(n)))
        assert CachedFunction(double, 1) == 2
        return reduce(max, mapped), value(Task(double, 3)), identity(4)

    x = all_of_it(5)
    """
    assert executed(text) == 0
    with played(text, read_only=True) as space:
        assert space["x"].result == (8, 6, 4)


def test_an_argument_that_is_changed_after_the_call_is_what_it_was() -> None:
    text = """
    @TaskGenerator
    def f(options):
        return options["n"]

    options = {}
    made = []
    for n in range(3):
        options["n"] = n
        made.append(f(options))
    """
    assert executed(text) == 0
    with played(text, read_only=True) as space:
        assert space["value"](space["made"]) == [0, 1, 2]


def test_tasks_in_an_argument_that_does_not_count_are_waited_for() -> None:
    text = """
    from jug.unsafe import NoHash
    from jug.utils import CustomHash

    @TaskGenerator
    def f(x):
        return x

    late = f(1)
    a = f(NoHash([late]))
    b = f(CustomHash({"k": late}, lambda x: b"name"))
    c = f(NoHash(1))
    d = f(NoHash(2))
    """
    assert executed(text) == 0
    with played(text, read_only=True) as space:
        assert space["value"]([space["a"], space["b"]]) == [[1], {"k": 1}]
        assert space["c"].hash() == space["d"].hash()


def test_a_jugdir_of_jugs_own_is_told_from_ours(folder: Path) -> None:
    (folder / "jugfile.jugdata" / "tempfiles").mkdir(parents=True)
    with pytest.raises(StoreError, match="import-jugdata"), played("t = Task(abs, -1)"):
        pass
    (folder / "jugfile.jugdata" / "tempfiles").rmdir()
    with played("t = Task(abs, -1)") as space:
        assert space["t"].run() == 1
    (folder / "jugfile.jugdata" / "ab").mkdir()
    with played("t = Task(abs, -1)") as space:
        assert space["t"].result == 1


def test_a_function_whose_meaning_changes_across_a_barrier_is_refused() -> None:
    text = "@TaskGenerator\ndef f(x):\n    return x + N\nN = 1\ny = f(1)\nbarrier()\nN = bvalue(y) + 1\nz = f(2)\n"
    Path("jugfile.py").write_text(HEAD + text)
    side = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "jug_notebook", "execute"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert side.returncode == 1
    assert "global N" in side.stderr
    assert "changed after f was first called" in side.stderr


def test_configuration_says_what_it_does_not_understand() -> None:
    Path(".jugrc").write_text("no section\n")
    with pytest.raises(JugError, match=r"\.jugrc"), played("t = 1"):
        pass


def test_long_chains_of_tasks_and_tasklets_are_no_burden() -> None:
    text = """
    @TaskGenerator
    def double(x):
        return 2 * x % 1_000_003

    s = 1
    for i in range(1500):
        s = double(s)
    part = s
    for i in range(50):
        part = Tasklet(part, abs)
    deep = double([[[part]]][0][0][0])
    barrier()
    for i in range(50):
        deep = double(deep)
    """
    assert executed(text) == 0
    with played(text, read_only=True) as space:
        assert space["deep"].result == pow(2, 1551, 1_000_003)
        assert len(repr(space["deep"])) < 200
        from jug_notebook.compat.jug.task import recursive_dependencies

        assert len(list(recursive_dependencies(space["s"]))) == 1499
