"""That one mutable object is met twice counts, in any shape, and costs next to nothing; so do cycles."""

from __future__ import annotations

import ast
import collections
import copy
import dataclasses
import functools
import pickle
import random
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jug_notebook.codec import dump_value
from jug_notebook.errors import Unhashable
from jug_notebook.keys import modules
from jug_notebook.keys.code import examine
from jug_notebook.keys.digest import digest, name_call, remembering
from jug_notebook.task.patterns import unordered
from tests.workbench import with_hash_seeds

pytestmark = pytest.mark.slow  # graphs of thousands of objects, and processes with other hash seeds

np = pytest.importorskip("numpy")


class Node:
    def __init__(self, **held: Any) -> None:
        vars(self).update(held)


@dataclasses.dataclass(frozen=True)
class Fixed:
    x: Any


class Known:
    """Compared by value, but hashed by identity."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Known) and self.x == other.x

    def __hash__(self) -> int:
        return id(self)


def key(*args: Any, **kwargs: Any) -> str:
    return name_call("c", "f", [("args", args), *kwargs.items()]).key


# -- what counts -------------------------------------------------------------------------------------------------------

MUTABLE: dict[str, Callable[[], Any]] = {
    "list": lambda: [1, 2],
    "empty list": list,
    "dict": lambda: {"a": 1},
    "dict of numbers": lambda: {1: 1},
    "set": lambda: {1},
    "bytearray": lambda: bytearray(b"a"),
    "array": lambda: np.arange(3),
    "long array": lambda: np.arange(100_000),
    "object": lambda: Node(a=1),
    "hashed by identity": lambda: Known(1),
    "deque": lambda: collections.deque([1]),
    "default dict": lambda: collections.defaultdict(list, a=1),
    "counter": lambda: collections.Counter("a"),
    "generator": lambda: np.random.default_rng(1),
    "subclass": lambda: type("L", (list,), {})([1]),
}


@pytest.mark.parametrize("make", MUTABLE.values(), ids=MUTABLE)
def test_sharing_decides_results_so_it_counts(make: Callable[[], Any]) -> None:
    one, two = make(), make()
    if type(one) is type(two):
        assert digest(one) == digest(two)
    two = copy.deepcopy(one)
    holders: list[Callable[[Any, Any], Any]] = [
        lambda a, b: [a, b],
        lambda a, b: (a, b),
        lambda a, b: {"x": a, "y": b},
        lambda a, b: {"x": [a], "y": (1, {2: b})},
        lambda a, b: Node(x=a, y=[b]),
        lambda a, b: Node(x=Fixed(a), y=b),
        lambda a, b: [[a, 1], [b, 1], [[], 1], [[], 1]],
        lambda a, b: [a, *[make()] * 0, "between", b],
        lambda a, b: [functools.partial(print, a), b],
    ]
    for hold in holders:
        assert digest(hold(one, one)) != digest(hold(one, two))
        assert digest(hold(one, one)) == digest(hold(two, two))
        assert digest(hold(one, one)) == digest(pickle.loads(_pickled(hold(one, one))))
    assert key(one, one) != key(one, two)
    assert key(one, b=one) != key(one, b=two) == key(two, b=one)


def _pickled(value: Any) -> bytes:
    import cloudpickle

    return cloudpickle.dumps(value)  # type: ignore[no-any-return]


def test_rows_in_place_and_apart_are_two_things() -> None:
    assert digest([[0] * 2] * 2) != digest([[0] * 2 for _ in "ab"])
    assert digest([[0] * 2] * 9) != digest([[0] * 2 for _ in range(9)])
    nine = [[0] * 2 for _ in range(9)]
    assert digest([*nine[:8], nine[0]]) != digest([*nine[:8], nine[1]])


@pytest.mark.parametrize(
    "make",
    [
        lambda: (1, 2),
        lambda: (1, (2, 3)),
        lambda: "text" * 10,
        lambda: 2**70,
        lambda: frozenset({1, "a"}),
        lambda: Fixed((1, 2)),
        lambda: np.float64(1.5),
        lambda: tuple(range(20_000)),
    ],
)
def test_sharing_of_equal_immutables_does_not_count(make: Callable[[], Any]) -> None:
    one, two = make(), pickle.loads(pickle.dumps(make()))
    assert digest([one, one]) == digest([one, two])
    assert digest({"x": one, "y": [one]}) == digest({"x": two, "y": [one]})
    inside: list[int] = []
    assert digest([(one, inside), (one, inside)]) == digest([(two, inside)] * 2)
    assert digest([(one, inside), (one, inside)]) != digest([(two, inside), (one, [])])


def test_parts_of_library_types_and_memory_that_views_share_do_not_count() -> None:
    pd = pytest.importorskip("pandas")
    index = pd.Index([1, 2])
    one = [pd.Series([1, 2], index=index), pd.Series([3, 4], index=index)]
    two = [pd.Series([1, 2], index=pd.Index([1, 2])), pd.Series([3, 4], index=pd.Index([1, 2]))]
    assert digest(one) == digest(two)
    base = np.arange(4)
    assert digest([base[:2], base[:2]]) == digest([np.arange(2), np.arange(2)])


def test_a_global_and_an_argument_are_two_pickles_so_that_they_are_one_does_not_count_but_two_globals_are_one() -> None:
    def made(a: Any, b: Any) -> Any:
        def f() -> int:
            a.append(1)
            return len(b)

        return f

    one: list[int] = []
    assert examine(made(one, one)).digest != examine(made(one, [])).digest
    again: list[int] = []
    assert examine(made(one, one)).digest == examine(made(again, again)).digest
    assert examine(made([], [])).digest == examine(made(one, [])).digest


def test_a_heavy_constant_of_a_map_is_numbered_as_if_it_were_walked() -> None:
    rows = [[i] for i in range(5000)]
    big = {"rows": rows, "more": [Node(a=row) for row in rows[:10]]}

    def keys() -> list[str]:
        return [
            key(rows[3], big, rows[4]),
            key([1], big, rows[4]),
            key([1], [2], big, rows[4]),
            key(big, rows[7], big),
            key((big, 1), (big, 1)),
            key(big, [7]),
            key(rows, big),
        ]

    apart = keys()
    assert len(set(apart)) == len(apart)
    with remembering():
        assert keys() == apart == keys()


def test_a_tower_of_tuples_over_a_list_is_written_once() -> None:
    def tower() -> Any:
        inner: Any = ([],)
        for _ in range(60):
            inner = (inner, inner)
        return inner

    assert digest(tower()) == digest(tower())


# -- no order of creation, of memory or of insertion -------------------------------------------------------------------


@dataclasses.dataclass
class Drawn:
    """A graph as data: by vertex its label, how it holds others, and which."""

    vertices: list[tuple[int, str, list[int]]]

    def built(self, order: list[int]) -> Any:
        """The graph as objects, made, linked and inserted in another order each time."""
        made: dict[int, Any] = {}
        for at in order:
            kind = self.vertices[at][1]
            made[at] = [] if kind == "list" else {} if kind == "dict" else Node()
        for at in order:
            label, kind, others = self.vertices[at]
            links = [made[other] for other in others]
            if kind == "list":
                made[at] += [label, *links]
            elif kind == "dict":
                pairs = [("label", label), *((f"n{n}", link) for n, link in enumerate(links))]
                made[at].update(pairs)
            elif kind == "ordered":
                made[at].label, made[at].others = label, (tuple(links), 1)
            else:
                objects = [link for link in links if isinstance(link, Node)]
                random.Random(order[-1]).shuffle(objects)
                if kind == "set":
                    made[at].others = set(objects)
                else:
                    made[at].others = unordered(dict.fromkeys(objects, label))
                made[at].label = label
        return made[0]


graphs = st.integers(1, 7).flatmap(
    lambda n: st.builds(
        Drawn,
        st.lists(
            st.tuples(
                st.integers(0, 1),
                st.sampled_from(["list", "dict", "ordered", "set", "set", "keys"]),
                st.lists(st.integers(0, n - 1), max_size=3),
            ),
            min_size=n,
            max_size=n,
        ),
    )
)


@settings(max_examples=300, deadline=None)
@given(graphs, st.data())
def test_graphs_that_are_equal_but_for_their_making_have_one_key(graph: Drawn, data: st.DataObject) -> None:
    size = len(graph.vertices)
    one = graph.built(list(range(size)))
    two = graph.built(data.draw(st.permutations(range(size))))
    assert digest(one) == digest(two)


def spelt(root: Any) -> set[str]:
    """All ways to write a graph down, by each order of each set; equal graphs have one in common."""

    def ways(todo: tuple[Any, ...], numbers: dict[int, int]) -> Any:
        if not todo:
            yield ""
            return
        value, rest = todo[0], todo[1:]
        if isinstance(value, int | str):
            for after in ways(rest, numbers):
                yield f"{value!r},{after}"
            return
        if isinstance(value, tuple):
            for after in ways((*value, *rest), numbers):
                yield f"({len(value)},{after}"
            return
        if id(value) in numbers:
            for after in ways(rest, numbers):
                yield f"@{numbers[id(value)]},{after}"
            return
        now = {**numbers, id(value): len(numbers)}
        if isinstance(value, list):
            inside = [tuple(value)]
        elif isinstance(value, dict):
            inside = [tuple(x for pair in value.items() for x in pair)]
        elif isinstance(value.others, tuple):
            inside = [(value.label, value.others)]
        else:
            import itertools

            inside = [(value.label, *order) for order in itertools.permutations(value.others)]
        kind = type(value).__name__ + (type(value.others).__name__ if isinstance(value, Node) else "")
        for items in inside:
            for after in ways((*items, *rest), now):
                yield f"{kind}{len(items)}:{after}"

    return set(ways((root,), {}))


@settings(max_examples=400, deadline=None)
@given(graphs, graphs)
def test_keys_agree_where_graphs_do_and_only_there(one: Drawn, two: Drawn) -> None:
    a, b = one.built(list(range(len(one.vertices)))), two.built(list(range(len(two.vertices))))
    assert (digest(a) == digest(b)) == (not spelt(a).isdisjoint(spelt(b)))


@settings(max_examples=300, deadline=None)
@given(graphs, st.data())
def test_another_edge_is_another_key(graph: Drawn, data: st.DataObject) -> None:
    size = len(graph.vertices)
    at = data.draw(st.integers(0, size - 1))
    label, kind, others = graph.vertices[at]
    changed = [*others]
    if changed and data.draw(st.booleans()):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, size - 1))
    else:
        changed.append(data.draw(st.integers(0, size - 1)))
    other = Drawn([*graph.vertices[:at], (label, kind, changed), *graph.vertices[at + 1 :]])
    a, b = graph.built(list(range(size))), other.built(list(range(size)))
    assert (digest(a) == digest(b)) == (not spelt(a).isdisjoint(spelt(b)))


def test_objects_alike_in_a_set_are_told_apart_by_what_else_leads_to_them() -> None:
    def made(order: int) -> Any:
        objects = [Node() for _ in range(6)]
        shared: list[int] = []
        for node in objects[:2]:
            node.held = shared
        for node in objects[2:]:
            node.held = []
        random.Random(order).shuffle(objects)
        one = next(node for node in objects if node.held is shared)
        return set(objects), unordered(dict.fromkeys(objects, 1)), one

    assert len({key(*made(order)) for order in range(12)}) == 1


def test_rings_of_other_lengths_in_one_set_are_told_apart() -> None:
    def rings(order: int, *lengths: int) -> set[Any]:
        found = []
        for length in lengths:
            ring = [Node() for _ in range(length)]
            for n, node in enumerate(ring):
                node.near = {ring[n - 1], ring[(n + 1) % length]}
            found += ring
        random.Random(order).shuffle(found)
        return set(found)

    assert len({digest(rings(order, 6, 3, 3)) for order in range(10)}) == 1
    assert len({digest(rings(0, *lengths)) for lengths in ((6, 3, 3), (6, 6), (3, 3, 3, 3), (4, 4, 4), (12,))}) == 5


ELSEWHERE = """
import sys
from jug_notebook.keys.digest import digest
class Node: pass
def graph():
    nodes = [Node() for _ in range(20)]
    for n, node in enumerate(nodes):
        node.kind, node.near = n % 2, {nodes[n - 1], nodes[(n + 1) % 20], nodes[n // 2]}
    return {"all": set(nodes), "some": {node: [node] for node in nodes[:5]}, 3: nodes[7]}
sys.stdout.write(digest(graph()).hex())
"""


def test_other_processes_agree_about_sets_of_objects() -> None:
    assert len(set(with_hash_seeds(ELSEWHERE, 3))) == 1


# -- cycles ------------------------------------------------------------------------------------------------------------


def complete(n: int) -> Any:
    nodes = [Node(n=i) for i in range(n)]
    for node in nodes:
        node.others = [other for other in nodes if other is not node]
    return nodes


def ring(n: int) -> Any:
    nodes = [Node() for _ in range(n)]
    for i, node in enumerate(nodes):
        node.next, node.last = nodes[(i + 1) % n], nodes[i - 1]
    return nodes[0]


def mesh(n: int) -> Any:
    nodes = {(x, y): Node(at=(x, y), near=[]) for x in range(n) for y in range(n)}
    for (x, y), node in nodes.items():
        node.near = [nodes[at] for at in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)) if at in nodes]
    return nodes


def cell_mesh(n: int) -> Any:
    nodes = mesh(n)
    for node in nodes.values():
        node.near = set(node.near)
    return set(nodes.values())


class Listener:
    def __init__(self) -> None:
        self.listeners: list[Any] = []

    def hear(self) -> None: ...


def listening(n: int) -> Any:
    nodes = [Listener() for _ in range(n)]
    for node in nodes:
        node.listeners = [other.hear for other in nodes]
    return nodes


def closures(n: int) -> Any:
    nodes = [Node(n=i) for i in range(n)]
    for node in nodes:
        node.callbacks = [(lambda node=node, nodes=nodes: (node, nodes)) for _ in range(2)]
    return nodes


SIZES: dict[str, tuple[Callable[[int], Any], int]] = {
    "complete": (complete, 300),
    "ring": (ring, 20_000),
    "mesh": (mesh, 100),
    "mesh of sets": (cell_mesh, 25),
    "bound methods": (listening, 60),
}


@pytest.mark.parametrize("kind", SIZES)
def test_graphs_with_cycles_take_near_linear_time(kind: str) -> None:
    make, size = SIZES[kind]
    one, two = make(size), make(size)
    start = time.process_time()
    found = digest(one)
    assert time.process_time() - start < 5
    assert found == digest(two) != digest(make(size - 1))


def capturing(held: Any) -> Any:
    return [lambda x, held=held, i=i: (x, held) for i in range(5_000)]


def leading_back(n: int) -> Any:
    nodes = [Node(n=i) for i in range(n)]
    for node in nodes:
        node.call = types.MethodType(lambda self, nodes=nodes: nodes, node)
        node.part = functools.partial(lambda node=node: node, nodes[node.n - 1])
    return nodes


TANGLES: dict[str, Callable[[], Any]] = {
    "callbacks": lambda: closures(12),
    "few callbacks": lambda: closures(5),
    "methods and partials": lambda: leading_back(6),
    "objects": lambda: capturing([Node(a=i) for i in range(5_000)]),
    "rows": lambda: capturing([{"a": i, "b": [i]} for i in range(20_000)]),
    "numbers": lambda: capturing(list(range(500_000))),
    "tuples": lambda: capturing(tuple((i, (i,)) for i in range(5_000))),
    "all of them": lambda: [closures(4), leading_back(3), capturing([Node(a=i) for i in range(500)])],
}


@pytest.mark.parametrize("make", TANGLES.values(), ids=TANGLES)
def test_what_leads_to_the_same_again_and_again_is_refused_in_a_moment(make: Callable[[], Any]) -> None:
    value = make()
    start = time.process_time()
    for _ in range(2):
        with pytest.raises(Unhashable, match=r"(in too many ways|too deeply).*__jug_hash__"):
            key(value)
    assert time.process_time() - start < 15  # two seconds where nothing else runs


def test_what_is_met_once_is_never_too_much() -> None:
    apart = [lambda x, held=[i]: (x, held) for i in range(5_000)]
    assert digest(apart) == digest(list(apart))
    large = [Node(a=i) for i in range(50_000)]
    assert digest(lambda x: (x, large)) == digest(lambda x: (x, large))
    assert digest([lambda x: (x, large), 1]) == digest([lambda x: (x, large), 1])


def test_a_task_whose_global_is_such_a_tangle_says_which() -> None:
    space: dict[str, Any] = {"__name__": "__main__", "GRAPH": closures(12)}
    exec("def f(): return GRAPH", space)
    with pytest.raises(Unhashable, match=r"global 'GRAPH' read by f\(\) leads to .*ignore_globals=\['GRAPH'\]"):
        examine(space["f"])


def test_where_no_more_threads_are_to_be_had_what_is_deep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(Unhashable, match="nested too deeply"):
        digest(ring(5_000))


def test_a_figure_is_a_result_by_its_payload_and_refused_as_an_argument_in_a_moment() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    figure, axes = plt.subplots()
    start = time.process_time()
    with pytest.raises(Unhashable, match="pass the task that returns it"):
        key(axes)
    assert dump_value(figure, lambda chunks: "0" * 40)[1][:1] == b"p"
    assert time.process_time() - start < 5
    plt.close(figure)


def test_the_modules_of_a_project_are_parsed_once_until_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[object] = []
    parse = ast.parse

    def counting(text: Any, *args: Any, **kwargs: Any) -> Any:
        parsed.append(text)
        return parse(text, *args, **kwargs)

    monkeypatch.setattr(ast, "parse", counting)
    text = f"import a.b\nfrom . import c  # {time.time()}\n"
    for _ in range(3):
        assert modules.imported(text, "p") == {"a.b", "p", "p.c"}
        assert modules.text_digest(text) == modules.text_digest("".join(text))
    assert len(parsed) == 2
    assert modules.imported(text.replace("a.b", "d"), "p") == {"d", "p", "p.c"}
