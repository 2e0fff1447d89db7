"""Scripts as Jug's users write them: each with what is to be looked at, and how it should end."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Case(NamedTuple):
    text: str
    look: tuple[str, ...] = ()  #: names of which the values are compared
    arguments: tuple[str, ...] = ()  #: for the script
    options: tuple[str, ...] = ()  #: for ``execute``
    files: Mapping[str, str] = MappingProxyType({})  #: beside the script
    written: tuple[str, ...] = ()  #: files that tasks write, to be compared
    described: tuple[str, ...] = ()  #: files that say what a value was computed from, to be compared but for times
    at_once: tuple[str, ...] = ()  #: names of tasks that Jug runs, and stores, when somebody only looks


CASES: dict[str, Case] = {
    "task generators": Case(
        """
from jug import TaskGenerator

@TaskGenerator
def double(x):
    return 2 * x

@TaskGenerator
def add(a, b=10):
    return a + b

vals = [double(v) for v in range(6)]
vals = [add(v, b=v) for v in vals]
total = add(vals[0])
nested = double([vals[1], (vals[2], {"k": vals[3]})])
""",
        ("vals", "total", "nested"),
    ),
    "tasks of plain functions, partials and builtins": Case(
        """
import math
from functools import partial
from jug import Task

def scale(x, by, offset=0):
    return x * by + offset

a = Task(scale, 2, 3)
b = Task(partial(scale, by=10), a)
c = Task(math.sqrt, Task(abs, -16))
d = Task(max, [a, b, c])
""",
        ("a", "b", "c", "d"),
    ),
    "processes of a task's own": Case(
        """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import Pool
from jug import TaskGenerator

class Weight:
    def __init__(self, by):
        self.by = by

def scaled(x, weight=Weight(3)):
    return x * weight.by

@TaskGenerator
def pooled(n):
    with Pool(2) as pool:
        found = pool.map(scaled, range(n))
        pool.close()  # Python's pool hangs now and then where it is terminated
        pool.join()
    return found

@TaskGenerator
def executed(n):
    with ProcessPoolExecutor(2) as pool:
        return [each.result() for each in [pool.submit(scaled, x, Weight(n)) for x in range(n)]]

four = pooled(4)
more = executed(len(range(3)))
""",
        ("four", "more"),
    ),
    "tasklets": Case(
        """
from jug import Task, TaskGenerator, Tasklet, iteratetask
from jug.task import return_tuple

def double(xs):
    return [2 * x for x in xs]

@TaskGenerator
def which():
    return 1

@return_tuple(2)
@TaskGenerator
def both(x):
    return x, x + 1

t = Task(double, [1, 2, 3, 4])
first, last = t[0], t[-1]
part = t[1:3]
chosen = t[which()]
plus = Tasklet(first, lambda v: v + 1)
a, b = iteratetask(t, 2)
lo, hi = both(chosen)
end = Task(double, [plus, a, b, lo, hi, last])
""",
        ("first", "last", "part", "plus", "lo", "hi", "end"),
    ),
    "barriers": Case(
        """
from jug import barrier, bvalue, value, TaskGenerator
import math

@TaskGenerator
def square(x):
    return math.pow(x, 2)

@TaskGenerator
def pair(a, b):
    return [a, b]

xs = [square(i) for i in range(4)]
barrier()
ys = [square(v) for v in value(xs)]
third = bvalue(ys[2])
more = [square(i) for i in range(int(third))]
nested = bvalue({"first": [ys[0]], "last": (ys[3],)})
end = pair(more[-1], nested["last"][0])
""",
        ("xs", "ys", "more", "end"),
    ),
    "map and reduce": Case(
        """
import operator
from jug import Task, TaskGenerator, mapreduce
import jug.mapreduce

@TaskGenerator
def double(x):
    return 2 * x

def plain(x):
    return x + 1

@TaskGenerator
def add(a, b):
    return a + b

def minus(a, b):
    return a - b

@TaskGenerator
def total(xs):
    return sum(xs)

mapped = mapreduce.map(double, list(range(10)))
again = mapreduce.map(plain, mapped)
single = jug.mapreduce.map(plain, [1, 2, 3], map_step=1)
some = total(mapped[2:7])
one = mapped[3]
curried = jug.mapreduce.currymap(minus, [(3, 1), (9, 4), (5, 5)], map_step=2)
both = jug.mapreduce.mapreduce(add, double, list(range(30)), map_step=3, reduce_step=4)
reduced = jug.mapreduce.reduce(operator.add, list(range(20)))
empty = jug.mapreduce.reduce(add, [])
""",
        ("mapped", "again", "single", "some", "one", "curried", "both", "reduced", "empty"),
    ),
    "compound tasks": Case(
        """
from jug import CompoundTask, CompoundTaskGenerator, TaskGenerator, barrier, Task

@TaskGenerator
def double(x):
    return 2 * x

@TaskGenerator
def add(xs):
    return sum(xs)

@CompoundTaskGenerator
def twice(x):
    return double(double(x))

def spread(n):
    return Task(add.f, [double(i) for i in range(n)])

eight = twice(2)
many = CompoundTask(spread, 5)
barrier()
end = add([eight, many])
""",
        ("eight", "many", "end"),
    ),
    "cached functions and globs": Case(
        """
from jug import CachedFunction, TaskGenerator
from jug.utils import cached_glob

def names():
    return ["a", "b"]

@TaskGenerator
def upper(x):
    return x.upper()

found = cached_glob("*.dat")
made = [upper(x) for x in CachedFunction(names)] + [upper(f) for f in found]
""",
        ("found", "made"),
        files={"two.dat": "2", "one.dat": "1"},
        at_once=("jugfile.names", "jug.utils.glob_sort"),
    ),
    "tasks that are run while the script loads": Case(
        """
from jug import CachedFunction, Task, TaskGenerator, value

@TaskGenerator
def double(x):
    return 2 * x

def add(x, *, y):
    return x + y

def quarter(x):
    return x / 4

seven = CachedFunction(add, 3, y=4)
one = Task(quarter, 4)
first = one.run() if not one.can_load() else value(one)
made = [double(x) for x in (seven, first)]
""",
        ("seven", "first", "made"),
        at_once=("jugfile.add", "jugfile.quarter"),
    ),
    "arguments with names of their own": Case(
        """
import hashlib
from jug import TaskGenerator
from jug.hash import hash_one
from jug.utils import CustomHash, identity, timed_path
from jug.unsafe import NoHash

@TaskGenerator
def lines(path):
    with open(path) as f:
        return len(f.readlines())

@TaskGenerator
def total(xs, verbose):
    return sum(xs)

class Model:
    def __init__(self, rate):
        self.rate = rate
        self.lock = iter([])

    def __jug_hash__(self):
        return hashlib.sha1(repr(self.rate).encode()).hexdigest().encode()

    def __getstate__(self):
        return {"rate": self.rate}

@TaskGenerator
def rate(model):
    return model.rate

class Lazy:
    def __init__(self, parts):
        self.parts = parts

    def __jug_dependencies__(self):
        return self.parts

    def __jug_value__(self):
        from jug import value
        return value(self.parts)

    def __jug_hash__(self):
        return hash_one(self.parts)

n = lines(timed_path("text.txt"))
big = identity(list(range(100)))
one = total(big, NoHash(True))
two = total(CustomHash([1, n], lambda xs: b"some name"), NoHash(False))
three = rate(Model(0.5))
four = total(Lazy([one, two]), False)
same = hash_one({"a": [1, (2, 3)]}) == hash_one({"a": [1, (2, 3)]})
""",
        ("n", "one", "two", "three", "four", "same"),
        files={"text.txt": "a\nb\nc\n"},
    ),
    "tasks that are not loaded": Case(
        """
import jug
from jug.io import NoLoad

@jug.TaskGenerator
def part(i):
    return list(range(i))

@jug.TaskGenerator
def lengths(ts):
    return [len(jug.value(t.base)) for t in ts]

@jug.TaskGenerator
def stays(t):
    return jug.value(t) is t

parts = [part(i) for i in range(5)]
held = NoLoad(parts[1])
sizes = lengths([NoLoad(t) for t in parts])
kept = stays(held)
asked = [jug.bvalue(held) is held, jug.value({"k": (held,)})["k"][0] is held, jug.bvalue([held, 2])[0] is held]
asked += [isinstance(held, jug.Tasklet), held.base is parts[1], list(held.dependencies()) == [parts[1]]]
""",
        ("sizes", "kept", "asked"),
    ),
    "results written to files": Case(
        """
from jug import TaskGenerator
from jug.io import write_metadata, write_task_out
from jug.utils import sync_move

@TaskGenerator
def double(x):
    return 2 * x

@TaskGenerator
def note(x, name):
    with open(name + ".tmp", "w") as out:
        out.write(f"it is {x}")
    sync_move(name + ".tmp", "./" + name)
    return name

x = double(double(4))
written = write_task_out(x, "x.pkl", metadata_fname="x.json", metadata_format="json")
meta = write_metadata(x, "y.json", metadata_format="json")
noted = note(x, "note.txt")
write_task_out([x, {"half": double(2)}, 7], "list.pkl", metadata_fname="list.yaml")
write_task_out({"x": x}, "dict.pkl", metadata_fname="dict.json", metadata_format="json")
write_task_out("plain", "plain.pkl", metadata_fname="plain.json", metadata_format="json")
write_metadata(note(double([double(x=5), "a"])[0], name="n.txt"), "n.json", metadata_format="json")
""",
        ("x", "noted"),
        written=("x.pkl", "note.txt", "list.pkl", "dict.pkl", "plain.pkl"),
        described=("x.json", "y.json", "list.yaml", "dict.json", "plain.json", "n.json"),
    ),
    "commands": Case(
        """
from jug import TaskGenerator
from jug.utils import jug_execute
from jug.unsafe import NoHash

copied = jug_execute(["cp", "in.txt", "out.txt"], return_value="out.txt")

@TaskGenerator
def read(name):
    return open(name).read()

text = read(copied)
after = jug_execute(["touch", "flag"], run_after=text)
quiet = jug_execute(["false"], check_exit=False, return_value=3)
""",
        ("copied", "text", "after", "quiet"),
        files={"in.txt": "hello"},
        written=("out.txt", "flag"),
    ),
    "arguments of the script": Case(
        """
import sys
from jug import TaskGenerator, is_jug_running, set_jugdir

assert is_jug_running()
assert __name__ == "jugfile"
set_jugdir("elsewhere-" + sys.argv[1])

@TaskGenerator
def echo(x):
    return x

printed = [echo(a) for a in sys.argv[1:]]
script = echo(sys.argv[0])
""",
        ("printed", "script"),
        arguments=("alpha", "beta"),
    ),
    "modules beside the script": Case(
        """
from jug import Task
from tools import triple, Point, shift
import tools

points = [shift(Point(i, i), 2) for i in range(3)]
sums = [triple(Task(tools.norm, p)) for p in points]
""",
        ("sums",),
        files={
            "tools.py": """
from jug import TaskGenerator

class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y

@TaskGenerator
def triple(x):
    return 3 * x

@TaskGenerator
def shift(p, by):
    return Point(p.x + by, p.y)

def norm(p):
    return p.x * p.x + p.y * p.y
"""
        },
    ),
    "modules beside the script, past a barrier": Case(
        """
from jug import Task, barrier, value
import steps

x = steps.fetch(3)
y = Task(steps.plain, x)
barrier()
w = steps.more(value(y))
""",
        ("x", "y", "w"),
        files={
            "steps.py": """
from jug import TaskGenerator

BY = 5

def helper(x):
    return x + BY

@TaskGenerator
def fetch(n):
    return helper(n)

def plain(x):
    import late
    return late.less(x)

@TaskGenerator
def least(xs):
    import later
    return later.smallest(xs)

def more(n):
    return [least([fetch(i) for i in range(n)])]
""",
            "late.py": "def less(x):\n    return x - 1\n",
            "later.py": "def smallest(xs):\n    return min(xs)\n",
        },
    ),
    "arrays": Case(
        """
import numpy as np
from jug import TaskGenerator

array = TaskGenerator(np.array)

@TaskGenerator
def outer(a, b):
    return np.outer(a, b)

@TaskGenerator
def mean(m):
    return float(m.mean())

a = array(list(range(8)))
m = outer(a, a[::2])
end = mean(m)
""",
        ("end",),
    ),
    "graph walks": Case(
        """
from jug import Task, TaskGenerator
from jug.task import alltasks, describe, recursive_dependencies, topological_sort

@TaskGenerator
def inc(x):
    return x + 1

a = inc(0)
b = inc(a)
c = inc(b[0]) if False else inc(b)
below = sorted(t.name for t in recursive_dependencies(c))
near = len(list(recursive_dependencies(c, 1)))
order = [c, a, b]
topological_sort(order)
sorted_well = order.index(a) < order.index(b) < order.index(c)
known = len(alltasks)
details = describe(c)["args"][0]["name"]
state = [c.is_loaded(), isinstance(c.hash(), bytes), len(list(c.dependencies())), str(c), c.f.__name__]
""",
        ("c", "below", "near", "sorted_well", "known", "details", "state"),
    ),
    "helpers that come later": Case(
        """
from jug import TaskGenerator

@TaskGenerator
def outer(x):
    return inner(x) + OFFSET

y = outer(1)

OFFSET = 5

def inner(x):
    return 10 * x
""",
        ("y",),
    ),
    "hooks": Case(
        """
from jug import TaskGenerator
from jug import hooks
from jug.hooks.execution import register_time_tasks

register_time_tasks()

def note(line):
    with open("log.txt", "a") as log:
        log.write(line + "\\n")

hooks.register_hook_once("execute.task-loadable", "mine", lambda t: note("there " + t.name))
hooks.register_hook_once("execute.task-pre-execute", "mine", lambda t: note("before " + t.name))
hooks.register_hook_once("execute.task-executed1", "mine", lambda t: note(f"after {t.name} {t.result}"))
hooks.register_hook_once("execute.finished_pre_status", "mine", lambda: note("table next"))

@hooks.register_hook("execute.finished_post_status")
def over():
    note("over")

@TaskGenerator
def double(x):
    return 2 * x

x = double(double(1))
same = double(1)
""",
        ("x",),
        written=("log.txt",),
    ),
    "hooks.that stop after some tasks": Case(
        """
from jug import TaskGenerator
from jug.hooks import exit_checks

exit_checks.exit_after_n_tasks(2)

@TaskGenerator
def double(x):
    return 2 * x

xs = [double(i) for i in range(5)]
""",
    ),
    "hooks.that stop when something is true": Case(
        """
from jug import TaskGenerator
from jug.hooks.exit_checks import exit_when_true

seen = []
exit_when_true(lambda t: t.result == 4, function_takes_Task=True)

@TaskGenerator
def double(x):
    return 2 * x

a = double(1)
b = double(a)
c = double(b)
""",
    ),
    "hooks.that end with a status": Case(
        """
import sys
from jug import TaskGenerator, hooks

hooks.register_hook("execute.task-executed1", lambda t: sys.exit(7))

@TaskGenerator
def double(x):
    return 2 * x

xs = [double(i) for i in range(3)]
""",
    ),
    "failures.that end it": Case(
        """
from jug import TaskGenerator

@TaskGenerator
def fail(x):
    raise ValueError("no")

a = fail(1)
""",
    ),
    "failures.that are kept": Case(
        """
from jug import TaskGenerator

@TaskGenerator
def some(x):
    if x in (2, 5, 8):
        raise ValueError(x)
    return x

@TaskGenerator
def plus1(x):
    return x + 1

vals = [plus1(some(x)) for x in range(10)]
""",
        options=("--keep-going", "--keep-failed"),
    ),
    "failures.below a barrier": Case(
        """
from jug import TaskGenerator, barrier

@TaskGenerator
def fail():
    raise ValueError("no")

@TaskGenerator
def fine():
    return 1

a, b = fail(), fine()
barrier()
c = fine()
""",
        options=("--keep-going", "--keep-failed"),
    ),
    "scripts.that can't be loaded": Case("import jug\nraise ValueError('in the script')\n"),
    "scripts.that end themselves": Case("import sys, jug\nsys.exit(5)\n"),
}
