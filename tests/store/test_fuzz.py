"""Whatever bytes a store holds, reading them raises our own errors only, takes little memory, and ends.

``make fuzz`` tries many more examples, new ones each time.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jug_notebook import codec, render, system
from jug_notebook.cli import notebook as notebooks
from jug_notebook.compat import configuration
from jug_notebook.compat.jugdir import is_jugs_own
from jug_notebook.errors import JugError, SignatureError, StoreError, StoreGone, ValueLost
from jug_notebook.model import (
    NO_INPUTS,
    Acceptance,
    CurrentOutcome,
    Display,
    Event,
    Failed,
    Finished,
    FunctionBundle,
    Invalidated,
    Lease,
    Origin,
    Payload,
    Run,
    RunView,
    Scale,
    Scope,
    Settled,
    Spec,
    State,
    Submitted,
    TaskTemplate,
    TaskView,
    Verdict,
    Why,
    WorkerInfo,
)
from jug_notebook.render import display
from jug_notebook.render.tasks import history_html, history_text, tasks_html, tasks_text
from jug_notebook.scheduler.state import SchedulerState
from jug_notebook.scheduler.views import snapshot
from jug_notebook.session import access
from jug_notebook.store import Store, addresses_in, keyring, open_store, read_heartbeats, read_orders
from jug_notebook.store.file import journal
from jug_notebook.store.redis import frames
from jug_notebook.store.sealing import FIRST, EventSeal
from jug_notebook.store.signed import SignedReader, function_bundle, seal_of, template, unverified_spec
from tests.servers import Server
from tests.workbench import Submitter

LONG = int(os.environ.get("FUZZ_EXAMPLES", "0"))
MEMORY = 400 << 20  #: bytes that reading anything may add
KEY, OTHER = "ab" * 20, "cd" * 20
encode = msgspec.msgpack.Encoder().encode


def fuzzed(examples: int) -> Callable[[Any], Any]:
    """Return the settings of a test: few examples, always the same ones, or with ``make fuzz`` many new ones."""
    return settings(
        max_examples=LONG or examples,
        derandomize=not LONG,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True, scope="module")
def _memory_is_bounded() -> Iterator[None]:
    Path("/proc/self/clear_refs").write_text("5")  # what tests before took at most doesn't count
    before = memory("VmRSS")
    yield
    assert memory("VmHWM") - before < MEMORY


def memory(line: str) -> int:
    """Return how many bytes this process has resident, or had at most, by a line of its status."""
    _, _, rest = Path("/proc/self/status").read_text().partition(f"{line}:")
    return int(rest.split()[0]) * 1024


# -- hostile bytes -----------------------------------------------------------------------------------------------------

RUN = Run("a-1-abcdef", "a", 1, "ann", "3.11", 1e9, 1.0, 1.0, 1, (("stdout", "x"),), (Display(0, {"text/plain": "x"}),))
PAYLOAD = Payload("pickle", b"\x80\x05K\x01.", ())
ORIGIN = Origin("ann", "n.ipynb", "c")
TEMPLATE = TaskTemplate("f", "12" * 20, KEY, "3.11")
REAL: list[Any] = [
    TEMPLATE,
    Spec(KEY, encode(TEMPLATE), (OTHER,), b"form", PAYLOAD, "n=1", ORIGIN, "/", 1e9),
    Finished(KEY, 0, NO_INPUTS, b"c" * 20, PAYLOAD, "1", RUN),
    Failed(KEY, 0, NO_INPUTS, "raised", "E", "T", RUN),
    Acceptance(KEY, 0, NO_INPUTS, OTHER, 0, b"c" * 20, "c", "ann", 1e9),
    FunctionBundle(b"x", {"m": KEY}, {"f": "x"}, {"p": "q"}, {}, {}, (), {}, (), ()),
    WorkerInfo("a-1-abcdef", "worker", "ann", "a", 1, 1, "3.11", 1e9),
    [WorkerInfo("a-1-abcdef", "worker", "ann", "a", 1, 1, "3.11", 1e9)] * 2,
    Scale(3),
    Settled("a-1-abcdef", [Verdict(KEY, 0, NO_INPUTS, 1, b"c" * 20)]),
    Submitted("f", 0, "3.11", [KEY], [(OTHER,)], [b"form"]),
]
NUMBERS = st.sampled_from([-1, 0, 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, -(2**63), 2**64 - 1])
FLOATS = st.sampled_from([0.0, -1.0, 1e9, 1e300, float("inf"), float("-inf"), float("nan")])
TEXTS = st.sampled_from(["", KEY, OTHER, "f", "\x1b]0;x\x07", "../../x", "\u202e", "a" * 5000]) | st.text(max_size=8)
LEAVES = NUMBERS | FLOATS | TEXTS | st.binary(max_size=24) | st.none() | st.booleans() | st.just(NO_INPUTS)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=12) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=30
)
#: declared lengths far beyond what follows, and nesting
CLAIMS = st.sampled_from(
    [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff"]
)
DEEP = st.sampled_from([b"\x91" * 20_000, b"\x81\xa1a" * 20_000, b"\xdd\x00\x00\xff\xff" * 4_000])


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    """Real bytes with flips, cuts, repetitions, and lengths that are declared."""
    data = bytearray(encode(draw(st.sampled_from(REAL))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        act = draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
        if act == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif act == "cut":
            del data[at : at + draw(st.integers(1, 30))]
        elif act == "insert":
            data[at:at] = draw(CLAIMS | st.binary(max_size=8) | NUMBERS.map(encode))
        else:
            data[at:at] = data[at : at + 40]
    return bytes(data)


@st.composite
def refilled(draw: st.DrawFn) -> bytes:
    """A real record with other values in some of its fields."""
    fields = msgspec.msgpack.decode(encode(draw(st.sampled_from(REAL))))
    places: list[Any] = [(fields, at) for at in (fields if isinstance(fields, dict) else range(len(fields)))]
    for _ in range(draw(st.integers(1, 3))):
        holder, at = draw(st.sampled_from(places))
        holder[at] = draw(VALUES)
    return encode(fields)


BYTES = changed() | refilled() | VALUES.map(encode) | st.binary(max_size=64) | DEEP


def own(act: Callable[[], Any]) -> Any:
    """Return what it returns; None where it raises an error of ours. Any other one rises."""
    try:
        return act()
    except JugError:
        return None


# -- what is signed ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    opened = open_store("memory:fuzz")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def signed(store: Store) -> SignedReader:
    return SignedReader(store, seal_of(store, make=True))


@fuzzed(400)
@given(data=BYTES, round=NUMBERS, proof=st.lists(BYTES, max_size=2))
def test_what_is_not_signed_is_not_opened(signed: SignedReader, data: bytes, round: int, proof: list[bytes]) -> None:
    held = CurrentOutcome(Verdict(KEY, round, NO_INPUTS, 1), data)
    reused = CurrentOutcome(Verdict(OTHER, round, NO_INPUTS, 1), data, tuple(proof))
    for act in (
        lambda: signed.spec(KEY, data),
        lambda: signed.outcome(KEY, held),
        lambda: signed.outcome(KEY, reused),
        lambda: signed.result(KEY, data, proof),
        lambda: signed.acceptance(KEY, data),
    ):
        with pytest.raises(SignatureError):
            act()
    own(lambda: unverified_spec(data))
    addresses_in(data)


@fuzzed(400)
@given(data=BYTES)
def test_what_is_signed_and_nonsense_raises_our_errors_and_can_be_shown(
    store: Store, signed: SignedReader, data: bytes
) -> None:
    seal = seal_of(store)
    spec = own(lambda: signed.spec(KEY, seal.seal("spec", KEY, 0, b"", data)))
    body = seal.seal("outcome", KEY, 0, NO_INPUTS, data)
    outcome = own(lambda: signed.outcome(KEY, CurrentOutcome(Verdict(KEY, 0, NO_INPUTS, 1), body)))
    own(lambda: signed.result(KEY, body))
    own(lambda: signed.acceptance(KEY, seal.seal("acceptance", KEY, 0, NO_INPUTS, data)))
    if spec is not None:
        known = own(lambda: template(spec.template))
        assert known is None or isinstance(known.name, str)
    if outcome is not None:
        pieces = signed.pieces(outcome.run)
        display.outputs_text(pieces)
        display.outputs_html(pieces)
        display.origin_text(outcome.run, 1e9)
        if isinstance(outcome, Finished) and not outcome.value.data:
            own(lambda: codec.load_value(outcome.value, store.get_blob))


@fuzzed(200)
@given(data=BYTES)
def test_what_blobs_hold_is_decoded_or_lost(store: Store, signed: SignedReader, data: bytes) -> None:
    address = store.put_blob([data])
    own(lambda: function_bundle(store, address))
    signed.pieces(msgspec.structs.replace(RUN, displays=(Display(0, {}, {}, address),)))
    with pytest.raises(ValueLost):
        codec.load_value(Payload("pickle", b"", ("00" * 20,)), store.get_blob)
    with pytest.raises(ValueLost):
        codec.load_value(Payload("pickle", b"", ()), store.get_blob)


# -- what processes report, and are told -------------------------------------------------------------------------------


@fuzzed(300)
@given(data=st.lists(BYTES, max_size=3))
def test_orders_and_heartbeats_that_cannot_be_read_are_skipped(data: list[bytes]) -> None:
    read_orders(data, lambda line: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in data:
            read_heartbeats(one)


# -- events ------------------------------------------------------------------------------------------------------------

KEYS = st.sampled_from([KEY, OTHER, "", "x"])
ROUNDS = st.sampled_from([0, 1, 2, 2**31 - 1])
LEASES = st.builds(Lease, KEYS, ROUNDS, st.sampled_from([NO_INPUTS, b"\xff" * 20]), ROUNDS)
MOMENTS = FLOATS
VERDICTS = st.builds(
    Verdict, KEYS, ROUNDS, st.sampled_from([NO_INPUTS, b"\xff" * 20]), ROUNDS, st.binary(max_size=30), MOMENTS, MOMENTS,
    st.booleans(), st.booleans(), MOMENTS,
)  # fmt: skip
EVENTS: st.SearchStrategy[Any] = (
    st.builds(lambda key, needs, name: Submitted(name, 0, "3.11", [key], [needs], [b"f"]), KEYS, st.tuples(KEYS), TEXTS)
    | st.builds(lambda leases: ["claimed", "a", leases], st.lists(LEASES, max_size=3))
    | st.builds(lambda leases: ["released", leases], st.lists(LEASES, max_size=3))
    | st.builds(lambda verdicts: Settled("a", verdicts), st.lists(VERDICTS, max_size=3))
    | st.builds(lambda key, round, why: Invalidated([key], [round], why, "u", 0.0), KEYS, ROUNDS, st.sampled_from(Why))
    | st.builds(lambda c, key, round: ["forgotten", c, [key], [round]], NUMBERS, KEYS, ROUNDS)
    | st.builds(
        lambda c, undone, key, round, source: [
            "accepted", c, undone, "u", 0.0, [key], [round], [NO_INPUTS], [source], [round], [b"d"],
        ],
        NUMBERS, st.booleans(), KEYS, ROUNDS, KEYS,
    )
    | st.builds(
        lambda origin, c, wanted, key: ["requested", [["u", origin, ""], c, wanted], [key]],
        TEXTS, NUMBERS, st.booleans(), KEYS,
    )
)  # fmt: skip
_event = msgspec.msgpack.Decoder(Event)


@fuzzed(300)
@given(events=st.lists(EVENTS, max_size=12))
def test_any_events_make_a_picture(events: list[Any]) -> None:
    state = SchedulerState()
    for number, event in enumerate(events):
        try:
            decoded = _event.decode(encode(event))
        except msgspec.ValidationError:
            continue
        keys = getattr(decoded, "keys", None) or getattr(decoded, "verdicts", None) or ()
        state.apply(decoded, [number * 10 + at for at in range(len(keys))])
    state.ready(10, 1e9, None, "3.11")
    picture = snapshot(state, [], Scope(), "s", 1e9)
    render.text(picture)
    render.html(picture)
    runs = list(state.runs())
    assert all(isinstance(outcome[0], Verdict) for _, outcome in runs)
    for key in (KEY, OTHER, "", "x"):
        assert state.state(key) is None or isinstance(state.state(key), State)


@fuzzed(200)
@given(round=NUMBERS, inputs=st.binary(max_size=40))
def test_events_with_impossible_rounds_or_columns_are_refused(round: int, inputs: bytes) -> None:
    row = ["settled", "a", [[KEY, round, inputs, 1, b"c"]]]
    if 0 <= round < 2**31 and len(inputs) == 20:
        _event.decode(encode(row))
    else:
        with pytest.raises(msgspec.ValidationError):
            _event.decode(encode(row))
    with pytest.raises(msgspec.ValidationError):
        _event.decode(encode(["invalidated", [KEY, OTHER], [0], "direct", "u", 0.0]))


@fuzzed(100)
@given(started=FLOATS, took=FLOATS, name=TEXTS, key=TEXTS)
def test_any_numbers_and_names_can_be_listed(started: float, took: float, name: str, key: str) -> None:
    views = [TaskView(key, name, State.FINISHED, started=started, duration=took, args_repr=name, summary=name)]
    runs = [RunView(key, name, State.FAILED, name, name, name, 1, started, took, name, name)]
    for drawn in (tasks_text(views, 9), tasks_html(views, 9), history_text(runs, 9), history_html(runs, 9)):
        assert "\x1b" not in drawn


# -- logs --------------------------------------------------------------------------------------------------------------

EXTENTS = st.dictionaries(TEXTS | st.just("x.x-1-abcdef.log"), NUMBERS, max_size=3) | VALUES
#: what a frame holds in a folder and in a server: an event, or what is no event, with sizes or places that may be wrong
HEADS = st.tuples(
    st.builds(lambda read: ["closed", read], EXTENTS)
    | st.builds(lambda replaces, before: ["sealed", replaces, before], EXTENTS, st.binary(max_size=20))
    | st.builds(lambda frames: ["again", frames], st.lists(st.tuples(NUMBERS, st.binary(max_size=9)), max_size=2))
    | st.builds(lambda chains: ["read", chains], EXTENTS)
    | st.builds(lambda upto, chains: ["covered", upto, chains], st.binary(max_size=9), VALUES)
    | EVENTS,
    st.lists(NUMBERS | st.integers(0, 9), max_size=3),
)


def in_file(head: Any) -> bytes:
    """What a frame of a log in a folder holds."""
    data = head if isinstance(head, bytes) else encode(head)
    return len(data).to_bytes(4, "little") + data + b"x" * 9


@fuzzed(60)
@given(heads=st.lists(HEADS | BYTES, max_size=4), sealed=st.booleans())
def test_logs_that_are_sealed_and_nonsense_are_read_as_far_as_they_make_sense(
    tmp_path_factory: pytest.TempPathFactory, heads: list[Any], sealed: bool
) -> None:
    place = tmp_path_factory.mktemp("logs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = open_store(place / "s")
        name = "000001.abcdef01.sealed" if sealed else "x.x-1-abcdef.log"
        chain = journal.Chain(name, EventSeal(keyring.secret(store.id), store.id))
        path = place / "s" / ("sealed" if sealed else "log") / name
        path.write_bytes(b"".join(chain.frame(in_file(head)) for head in heads))
        os.utime(path, (1, 1))  # or what another machine writes is waited for
        for use in (lambda: store.states([KEY]), store.snapshot, store.compact, store.close):
            own(use)
        again = open_store(place / "s")
        own(lambda: render.text(again.snapshot()))
        again.close()
    shutil.rmtree(place)


@fuzzed(200)
@given(contents=st.lists(HEADS.map(lambda head: encode([b"", 0, head[0]])) | BYTES, max_size=4), number=NUMBERS)
def test_frames_of_a_server_that_are_sealed_and_nonsense_are_skipped(contents: list[bytes], number: int) -> None:
    seal = EventSeal(bytes(32), "s")
    reader = frames.FrameReader(seal, "s")
    for at, content in enumerate(contents):
        turn = (at if number < 0 else number) % (1 << 63)
        head = frames._HEAD.pack(turn, FIRST, seal.frame(b"writer", turn, FIRST, content))
        found = reader.open(b"writer", head + content)
        assert found is None or isinstance(found.event, Event | frames.Covered)
    assert all(isinstance(note, str) for note in reader.notes)
    for name, extent in reader.read_by_writers.items():
        assert isinstance(extent, int)
        assert reader.extent(name) >= 0


PINS = st.lists(TEXTS | st.just("0123abcd") | st.builds("{} {}".format, TEXTS, NUMBERS), max_size=4)


@fuzzed(200)
@given(data=PINS.map(lambda lines: "\n".join(lines).encode(errors="replace")) | st.binary(max_size=100))
def test_a_pin_names_a_store_or_is_refused(data: bytes) -> None:
    path = keyring._pin_path("file:/x")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    store_id = own(lambda: keyring.pinned("file:/x"))
    assert store_id is None or keyring._STORE_ID.fullmatch(store_id)
    assert all(" " not in name and extent >= 0 for name, extent in keyring.extents("file:/x").items())


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


JSON = VALUES.map(lambda value: json.dumps(_jsonable(value)).encode()) | st.binary(max_size=200)
DEEP_JSON = st.sampled_from([b"[" * 50_000, b'{"id":' * 50_000, b'{"cells":[{"id":' + b"9" * 5_000 + b"}]}"])


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


@fuzzed(150)
@given(data=JSON | DEEP_JSON)
def test_a_store_whose_identity_is_nonsense_is_refused(folder: Path, data: bytes) -> None:
    place = folder / "store"
    place.mkdir(exist_ok=True)
    (place / "store.json").write_bytes(data)
    own(lambda: open_store(f"file:{place}").close())
    is_jugs_own(place)


CELLS = st.fixed_dictionaries(
    {}, optional={"id": LEAVES, "cell_type": LEAVES | st.just("code"), "source": VALUES, "outputs": VALUES}
)
NOTEBOOKS = st.fixed_dictionaries(
    {},
    optional={
        "nbformat": st.just(4) | NUMBERS | VALUES,
        "nbformat_minor": st.just(5) | VALUES,
        "metadata": VALUES,
        "cells": st.lists(CELLS, max_size=3) | VALUES,
    },
).map(lambda value: json.dumps(_jsonable(value)).encode())


@fuzzed(150)
@given(data=NOTEBOOKS | JSON | DEEP_JSON)
def test_a_file_that_is_no_notebook_is_refused(folder: Path, data: bytes) -> None:
    path = folder / "n.ipynb"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own(lambda: notebooks.read(path))
    assert all(isinstance(name, str) for name in access._cell_ids(path))


LINES = st.sampled_from(
    ["[main]", "[execute]", "[", "[a", "jugdir=x", "wait-cycle-time=x", "=", "%(x)s", "a", "\0", "\x1b", ""]
)


@fuzzed(150)
@given(lines=st.lists(LINES | TEXTS, max_size=8))
def test_a_configuration_file_is_read_or_refused(lines: list[str]) -> None:
    own(lambda: configuration.parsed("\n".join(lines), "jugrc", {"execute_wait_cycle_time": 12, "jugdir": "x"}))


# -- what lies in the place of something else --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["a pipe", "a link"])
def test_claiming_where_the_folder_of_claims_is_something_else_ends_with_an_error(tmp_path: Path, kind: str) -> None:
    first = open_store(f"file:{tmp_path / 'jugdata'}")
    Submitter(first, tmp_path).submit("def f(x):\n    return x\n", 1)
    first.close()
    claims = tmp_path / "jugdata" / "claims"
    claims.rmdir()
    os.mkfifo(claims) if kind == "a pipe" else claims.symlink_to(tmp_path)
    store = open_store(f"file:{tmp_path / 'jugdata'}")
    with pytest.raises(StoreError, match=kind):
        store.claim("a-1-abcdef", 1, 0.0, python=system.python())
    store.close()


def test_a_server_whose_store_has_a_nonsensical_id_holds_another_store(redis_server: Server) -> None:
    store = open_store(redis_server.url())
    with redis.Redis(unix_socket_path=str(redis_server.socket)) as line:
        [key] = line.keys(f"*{store.url.rpartition('=')[2]}*:id")
        line.set(key, b"\xf0\x28\x8c")
    with pytest.raises(StoreGone):
        store.states([KEY])
