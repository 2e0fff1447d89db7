"""Closed doors: who can write to a store's folder and lacks its key touches nothing else, and stops nobody."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

import jug_notebook as jn
from jug_notebook import system
from jug_notebook.errors import JugError, StoreError
from jug_notebook.model import Order, Scale, Stop, Why, WorkerInfo
from jug_notebook.session import Session
from jug_notebook.store import keyring, open_store
from jug_notebook.store.file import FileStore, heartbeats
from jug_notebook.store.sealing import MAC
from jug_notebook.task import context
from tests.crews import working
from tests.store.test_store import HERE, task
from tests.workbench import cell

EVE = 64_020  #: a uid that is nobody's
Attack = Callable[[Callable[[], object]], None]
pytestmark = [pytest.mark.timeout(60), pytest.mark.filterwarnings("ignore:skipped:UserWarning")]


@pytest.fixture
def site() -> Iterator[Path]:
    """A folder in which everybody may write."""
    folder = Path(tempfile.mkdtemp(prefix="jug-doors-"))  # pytest's own folders are closed to others
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["the same user", "another user"])
def attack(request: pytest.FixtureRequest) -> Attack:
    """Runs a function as the user who attacks, in a process of its own."""
    other = request.param == "another user"
    if other and os.geteuid() != 0:
        pytest.skip("only root can be another user")

    def run(act: Callable[[], object]) -> None:
        pid = os.fork()
        if not pid:
            try:
                if other:
                    os.setgroups([])
                    os.setgid(EVE)
                    os.setuid(EVE)
                act()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0, "the attack could be made"

    return run


@pytest.fixture
def session(site: Path) -> Iterator[Session]:
    """A session of a store in which everybody may write, and which has been used."""
    session = jn.connect(site / "jugdata", notebook=site / "a.ipynb")
    double = jn.task(cell("def double(x): return 2 * x", "double"))
    with working(session):
        assert double(1).result() == 2
    session.access.store.put_blob([b"kept"])
    for folder, _, _ in os.walk(site / "jugdata"):
        os.chmod(folder, 0o777)
    yield session
    with suppress(JugError):
        session.close()


class Outside:
    """Files of the victim's, elsewhere: a thesis, and a folder of scripts that are run at each start."""

    def __init__(self, site: Path) -> None:
        self.folder = site / "elsewhere"
        self.folder.mkdir()
        self.thesis = self.folder / "thesis.tex"
        self.thesis.write_text("all of it")
        for path, mode in ((self.folder, 0o755), (self.thesis, 0o644)):
            path.chmod(mode)
            os.utime(path, (1, 1))
        self._before = self._seen()

    def _seen(self) -> object:
        return [
            (path.name, path.stat().st_mode, path.stat().st_mtime, path.read_bytes() if path.is_file() else b"")
            for path in sorted([self.folder, *self.folder.rglob("*")])
        ]

    def check(self) -> None:
        assert self._seen() == self._before


@pytest.fixture
def outside(site: Path) -> Iterator[Outside]:
    found = Outside(site)
    yield found
    found.check()


def beat(*infos: WorkerInfo) -> bytes:
    """A heartbeat as somebody without the key can make it."""
    data = bytes(MAC) + msgspec.msgpack.encode(infos)
    return len(data).to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little") + data


def in_place_of(path: Path, make: Callable[[Path], object]) -> None:
    """Put something in the place of what a store has there."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(f".was-{path.name}"))
    else:
        path.unlink(missing_ok=True)
    make(path)


def live(session: Session) -> None:
    """Do all that a store can be used for, whatever of it is refused."""
    context.set_current(session)
    store = session.access.store
    assert isinstance(store, FileStore)
    me = session.access.process
    double = jn.task(cell("def double(x): return 2 * x", "double"))

    def run() -> None:
        with working(session):
            double(len(os.listdir(store.folder.parent))).result(timeout=0.3)

    for act in (
        lambda: store.renew([me]),
        lambda: store.order([me.id], Scale(1)),
        lambda: store.renew([me]),
        lambda: store.notice(me.id, "a line"),
        lambda: store.log(me.id),
        store.processes,
        session.status,
        run,
        lambda: store.get_blob(store.put_blob([b"kept"])),
        lambda: store.get_blob(store.put_blob([bytes(2 << 20)]), mapped=True),
        lambda: store.invalidate([view.key for view in store.tasks()], Why.DIRECT, "ann"),
        lambda: store.sweep([], [], -1.0),
        lambda: store.compact(dry_run=True),
        store.compact,
        lambda: store.leave([me.id]),
        session.close,
        lambda: Session(store.url).close(),
    ):
        with suppress(JugError):
            act()


# -- files elsewhere ---------------------------------------------------------------------------------------------------

IDS = [
    "00-evil.py",
    "../../elsewhere/thesis.tex",
    "../../study.ipynb",
    "/etc/x",
    "..",
    "",
    "x\x1b]52;c;eA==\x07",
    "a\0b",
]


@pytest.mark.parametrize("worker", IDS)
@pytest.mark.parametrize("kind", ["worker", "supervisor"])
def test_a_forged_heartbeat_moves_no_file_and_nobody_is_asked_to_stop(
    session: Session, site: Path, outside: Outside, attack: Attack, worker: str, kind: str
) -> None:
    (site / "study.ipynb").write_text("{}")
    forged = beat(msgspec.structs.replace(system.me(kind, crew="c", size=4), id=worker, pid=1 << 22, born=1))
    name = worker if worker == IDS[0] else "x-1-abcdef"

    def plant() -> None:
        in_place_of(site / "jugdata/workers/gone", lambda path: path.symlink_to(outside.folder))
        (site / "jugdata/workers" / name).write_bytes(forged)

    attack(plant)
    with suppress(StoreError):
        session.access.store.processes()
    (site / "jugdata/workers/gone").unlink()
    assert worker not in {info.id for info, _, _ in session.access.store.processes()}
    assert session.status().total == 1
    session.stop()
    assert (site / "study.ipynb").exists()
    assert (site / "jugdata/workers" / name).read_bytes() == forged


def test_an_order_goes_to_no_path(session: Session, site: Path, outside: Outside) -> None:
    store = session.access.store
    store.order(["../../elsewhere/x", "../x", "/tmp/x", "", ".x"], Stop())
    assert not list((site / "jugdata/orders").iterdir())


FOLDERS = (
    "log", "sealing", "sealed", "claims", "owners", "blobs", "trash", "workers", "workers/gone", "orders", "output",
)  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_a_store_that_was_replaced_by_a_link_is_not_followed(
    session: Session, site: Path, outside: Outside, attack: Attack, name: str
) -> None:
    attack(lambda: in_place_of(site / "jugdata" / name, lambda path: path.symlink_to(outside.folder)))
    live(session)
    with suppress(StoreError):
        live(Session(site / "jugdata"))  # one that hasn't held that folder before
    outside.check()


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("name", ["epoch", "news", "compacting", "key", "workers/{0}", "output/{0}.log", "blobs/ab"])
def test_a_file_of_a_store_that_was_replaced_by_a_link_is_not_followed(
    session: Session, site: Path, outside: Outside, attack: Attack, name: str, hard: bool
) -> None:
    path = site / "jugdata" / name.format(session.access.process.id)
    if hard and name == "news":
        pytest.skip("its time is set, by its name: that does no harm")

    def link(at: Path) -> None:
        os.link(outside.thesis, at) if hard else at.symlink_to(outside.thesis)

    try:
        attack(lambda: in_place_of(path, link))
    except AssertionError:
        pytest.skip("this system lets nobody make hard links to files of others")
    live(session)
    with suppress(StoreError):
        live(Session(site / "jugdata"))
    outside.check()


def test_blobs_are_neither_read_nor_written_through_links(
    session: Session, site: Path, outside: Outside, attack: Attack
) -> None:
    store = session.access.store
    data = os.urandom(100)
    address = store.put_blob([data])
    part = site / "jugdata/blobs" / address[:2]
    (outside.folder / address[2:]).write_bytes(data)
    attack(lambda: in_place_of(part, lambda path: path.symlink_to(outside.folder)))
    with pytest.raises(jn.JugError):
        store.get_blob(address)
    assert store.put_blob([data]) == address
    assert bytes(store.get_blob(address)) == data
    assert not part.is_symlink()
    (outside.folder / address[2:]).unlink()
    os.utime(outside.folder, (1, 1))


def test_sharing_opens_no_file_elsewhere_to_the_group(site: Path, outside: Outside, attack: Attack) -> None:
    Session(site / "jugdata").close()
    for folder, _, _ in os.walk(site / "jugdata"):
        os.chmod(folder, 0o777)

    def plant() -> None:
        (site / "jugdata/blobs/ab").symlink_to(outside.folder)
        (site / "jugdata/claims/x").symlink_to(outside.thesis)
        (site / "jugdata/x").symlink_to(outside.folder)

    attack(plant)
    with pytest.raises(StoreError, match=r"can't be shared: .* is a link, no file of ours; remove it"):
        Session(site / "jugdata", shared="group")


# -- what is no file ---------------------------------------------------------------------------------------------------


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


STRANGE: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a terabyte": sparse,
    "a folder": lambda path: (path / "in").mkdir(parents=True),
    "another's": lambda path: (path.write_bytes(b"x" * 100), os.chown(path, EVE, EVE) if os.geteuid() == 0 else None),
}
PLACES = {
    "heartbeats": "workers/{id} workers/x-1-abcdef workers/gone/x-1-abcdef",
    "orders and output": "orders/{id}.00000000000000000001 output/{id}.log",
    "logs": "log/x.x-1-abcdef.log sealed/000001.abcd.sealed sealing/x.x-1-abcdef.log",
    "the rest": "epoch news compacting key",
    "blobs": "blobs/{blob} trash/{swept} blobs/ab",
}


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("places", PLACES)
def test_nothing_waits_for_or_drowns_in_what_is_no_file_of_a_store(
    session: Session, site: Path, places: str, strange: str
) -> None:
    store = session.access.store
    address, swept = store.put_blob([b"kept"]), "ab" * 20
    for place in PLACES[places].split():
        name = place.format(id=session.access.process.id, blob=f"{address[:2]}/{address[2:]}", swept=swept)
        in_place_of(site / "jugdata" / name, STRANGE[strange])
    with suppress(JugError):
        store.get_blob(swept)
    live(session)
    with suppress(StoreError):
        live(Session(site / "jugdata"))


@pytest.mark.parametrize("strange", STRANGE)
def test_a_store_whose_identity_is_no_file_is_refused(site: Path, strange: str) -> None:
    open_store(site / "jugdata").close()
    in_place_of(site / "jugdata/store.json", STRANGE[strange])
    with pytest.raises(StoreError):
        open_store(site / "jugdata")


@pytest.mark.parametrize("identity", ["../../x", "a/b", "", "x" * 101, "a\0b"])
def test_an_identity_that_is_a_path_is_refused(site: Path, identity: str) -> None:
    open_store(site / "jugdata").close()
    (site / "jugdata/store.json").write_text(json.dumps({"format": 1, "id": identity}))
    with pytest.raises(StoreError, match=r"is no store: its store\.json can't be read"):
        open_store(site / "jugdata")


# -- orders ------------------------------------------------------------------------------------------------------------


def test_a_supervisor_obeys_only_orders_that_someone_with_the_key_gave_it_and_each_once(
    session: Session, site: Path
) -> None:
    store = session.access.store
    me, other = system.me("supervisor"), system.me("supervisor")
    store.renew([me])
    orders = site / "jugdata/orders"
    forged = msgspec.msgpack.encode(Scale(40))
    (orders / f"{me.id}.{1:020d}").write_bytes(forged)
    (orders / f"{me.id}.{2:020d}").write_bytes(bytes(MAC) + forged)
    for name in ("garbage", "-1", "+00000000000000000001", "１", "", "1" * 100):
        (orders / f"{me.id}.{name}").write_bytes(os.urandom(40))
    assert store.renew([me]) == []
    assert store.log(me.id).count("skipped an order that nobody with the store's key has given") == 1
    store.order([other.id, me.id], Stop())
    [mine] = orders.glob(f"{me.id}.*")
    [theirs] = orders.glob(f"{other.id}.*")
    sealed = mine.read_bytes()
    (orders / f"{me.id}.{theirs.name.rpartition('.')[2]}").write_bytes(theirs.read_bytes())
    assert store.renew([me]) == [Stop()]
    for number in (mine.name, f"{me.id}.{1:020d}", f"{me.id}.+{mine.name.rpartition('.')[2][1:]}"):
        (orders / number).write_bytes(sealed)
        assert store.renew([me]) == [], "it was given once"
    assert store.renew([other]) == [Stop()]


def test_what_is_thrown_into_a_store_in_masses_is_not_all_read_and_those_who_are_known_stay_known(
    session: Session, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = session.access.store
    me = session.access.process
    store.renew([me])
    assert me.id in [info.id for info, _, _ in store.processes()]
    monkeypatch.setattr(heartbeats, "MOST", 50)
    for number in range(400):
        (site / f"jugdata/workers/x-{number}-abcdef").write_bytes(b"x")
        (site / f"jugdata/orders/{me.id}.{number:020d}").write_bytes(b"x")
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        assert me.id in [info.id for info, alive, _ in store.processes() if alive]
        store.processes()
    texts = [str(warning.message) for warning in noted]
    assert sum("has more than 50 files" in text for text in texts) == 1
    assert len(texts) <= heartbeats.NAMED
    orders: list[Order] = []
    for _ in range(20):
        orders += store.renew([me])
    store.order([me.id], Scale(2))
    assert orders + list(store.renew([me])) == [Scale(2)]
    assert len(store.log(me.id).splitlines()) <= heartbeats.NAMED


# -- modes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("shared", [None, "group"])
def test_files_are_open_to_their_user_or_group_alone_whatever_the_umask(
    site: Path, umask: int, shared: str | None
) -> None:
    before = os.umask(umask)
    try:
        session = jn.connect(site / "jugdata", notebook=site / "a.ipynb", shared=shared)
        double = jn.task(cell("def double(x): return [x] * 100_000", "double"))
        with working(session):
            assert double(1).result()
        store = session.access.store
        store.notice(session.access.process.id, "a line")
        store.order([session.access.process.id], Stop())
        store.compact()
        store.sweep([], [], -1.0)
        store.put_blob([b"x" * 100])
        paths = [site / "jugdata", *(site / "jugdata").rglob("*")]
        found = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in paths if path.name != "key"}
        session.close()
    finally:
        os.umask(before)
    assert found == ({(True, 0o2770), (False, 0o660)} if shared else {(True, 0o700), (False, 0o600)})


def test_a_store_is_shared_only_if_someone_with_its_key_has_shared_it(site: Path) -> None:
    session = Session(site / "jugdata")
    session.close()
    path = site / "jugdata/store.json"
    for seal in ({}, {"seal": "0" * 32}):
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {"shared": "group"} | seal))
        with pytest.warns(UserWarning, match="is not treated as shared: its store.json says so, but nobody with"):
            store = open_store(site / "jugdata")
        store.notice("x-1-abcdef", "a line")
        store.put_blob([b"abc"])
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (site / "jugdata").rglob("*") if path.is_file()}
        assert modes == {0o600, stat.S_IMODE(path.stat().st_mode)}
        store.close()


def test_the_key_in_a_folder_is_that_of_the_store_or_none(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(site / "jugdata", shared="group")
    session.close()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(site / "another"))
    monkeypatch.setattr(keyring, "_here", {})
    (site / "jugdata/key").write_text(f"{session.identity} {'ab' * 32}\n")
    with pytest.raises(StoreError, match="is not the one with which the store was shared"):
        Session(site / "jugdata", shared="group")


# -- folders that move -------------------------------------------------------------------------------------------------


def test_a_store_that_was_put_back_from_a_copy_takes_what_is_written_next(site: Path) -> None:
    store = open_store(site / "jugdata")
    store.submit([task("a")], HERE)
    (site / "jugdata").rename(site / "former")
    shutil.copytree(site / "former", site / "jugdata")
    store.submit([task("b")], HERE)
    store.put_blob([b"new"])
    assert list((site / "jugdata/blobs").glob("*/*"))
    assert not list((site / "former/blobs").glob("*/*"))
    shutil.rmtree(site / "former")
    store.notice("x-1-abcdef", "a line")
    assert (site / "jugdata/output/x-1-abcdef.log").exists()
    store.close()


@pytest.mark.parametrize("moved", [False, True])
def test_what_is_written_to_a_folder_that_was_replaced_is_refused_not_lost(site: Path, moved: bool) -> None:
    store = open_store(site / "jugdata")
    store.submit([task("a")], HERE)
    (site / "jugdata").rename(site / "former") if moved else shutil.rmtree(site / "jugdata")
    with pytest.raises(jn.errors.StoreGone, match="is gone"):
        store.submit([task("b")], HERE)
    open_store(site / "jugdata").close()
    for act in (lambda: store.submit([task("b")], HERE), lambda: store.renew([system.me("worker")]), store.processes):
        with pytest.raises(jn.errors.StoreGone, match="another store in its place"):
            act()
