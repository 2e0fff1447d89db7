"""GPUs, memory and other things that a host has a limited amount of: who gets what, with workers that really die."""

from __future__ import annotations

import os
import random
import re
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jug_notebook import system
from jug_notebook.errors import LaunchError
from jug_notebook.model import Resources, Scope, State, Target
from jug_notebook.render import text as text_status
from jug_notebook.render.format import parse_resources, shortage
from jug_notebook.session.why import WhyQuery
from jug_notebook.store import open_store
from jug_notebook.store.signed import SignedReader
from jug_notebook.worker import WorkerOptions, resources
from jug_notebook.worker.process import signal_group
from jug_notebook.worker.resources import (
    KEPT_AFTER,
    TURN,
    UNIT,
    HostLocks,
    Reservations,
    VisibleDevices,
    find_devices,
    find_memory,
    names_of,
    visible,
)
from tests.workbench import ORIGIN, Fifo, cell, is_readable, wait_until
from tests.worker.test_supervisor import PATIENCE, Site, folder_site, site

__all__ = ["folder_site", "site"]

ONE, TWO, HALF = (("gpu", 1.0),), (("gpu", 2.0),), (("gpu", 0.5),)


# -- what is asked for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "amounts"),
    [
        ("gpu=1,mem=8G", (("gpu", 1.0), ("mem", 8e9))),
        ({"mem": "8GiB", "gpu": 0.5}, (("gpu", 0.5), ("mem", float(8 << 30)))),
        ({"license": "2", "disk": "1.5TB"}, (("disk", 1.5e12), ("license", 2.0))),
        ({}, ()),
        ("", ()),
    ],
)
def test_resources_are_amounts_by_name(given: object, amounts: object) -> None:
    assert parse_resources(given) == amounts


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("gpu", "'gpu' is not a resource; give names and amounts, as in gpu=1,mem=8G"),
        ({"gpu": 1.5}, "gpu=1.5: give a whole number of GPUs, or a share of one, as 0.5"),
        ({"gpu": 0}, "gpu=0: give a number of more than 0, or a size as in mem=8G"),
        ({"mem": "lots"}, "mem='lots': give a number of more than 0, or a size as in mem=8G"),
        ({"license": True}, "license=True: give a number of more than 0, or a size as in mem=8G"),
        ({"gpus": 1}, "resource 'gpus' is called 'gpu'"),
        ({"a b": 1}, "resource 'a b': a name is letters, digits and _, as in license=2"),
        (3, 'resources=3: give names and amounts, as in {"gpu": 1, "mem": "8G"}'),
    ],
)
def test_a_slip_in_resources_is_one_line(given: object, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        parse_resources(given)


def test_what_hosts_have_travels_on_the_command_line() -> None:
    options = WorkerOptions(
        4, gpus="0,1", resources={"license": 2, "mem": "16G"}, env=["A=1=2", "B="],  # type: ignore[arg-type]
        target=Target(not_names=frozenset(["slow"])),
    )  # fmt: skip
    words = " ".join(options.arguments())
    assert "--gpus 0,1 --resources license=2,mem=16000000000 --env A=1=2 --env B=" in words
    assert words.endswith("--not-target slow")
    assert WorkerOptions(4, gpus="none").arguments()[-2:] == ["--gpus", "none"]  # type: ignore[arg-type]
    assert WorkerOptions().suffix != WorkerOptions(gpus="0").suffix != WorkerOptions(gpus="1").suffix  # type: ignore[arg-type]
    for slip, line in (
        ({"gpus": "0,0"}, "gpus=['0', '0']: give the ids of GPUs, each once, as in '0,1'; 'none' for none"),
        ({"resources": {"gpu": 2}}, "GPUs of a host are named by their ids: --gpus 0,1, or gpus='0,1'"),
        ({"env": ["A"]}, "env=['A'] is not a variable with a value; give NAME=VALUE"),
    ):
        with pytest.raises(LaunchError) as refused:
            WorkerOptions(**slip)  # type: ignore[arg-type]
        assert str(refused.value) == line


# -- who gets what -----------------------------------------------------------------------------------------------------


def test_a_device_is_given_once_until_its_worker_gives_it_back_or_ends() -> None:
    host = Reservations({}, lambda: ("0", "1"))
    assert host.fits(1, TWO)
    assert host.fits(1, ONE)
    assert host.reserve(1, ONE) == ("0",)
    assert host.reserve(2, ONE) == ("1",)
    assert not host.fits(3, ONE)
    assert not host.fits(3, HALF)
    host.release(1)
    assert host.fits(1, ONE)
    assert host.fits(3, ONE)
    assert not host.fits(3, TWO)
    host.forget(2)
    assert host.reserve(3, TWO) == ("0", "1")
    assert host.usage() == (("gpu", 2, 2.0),)


def test_shares_of_a_device_add_up_to_all_of_it_and_no_more() -> None:
    host = Reservations({}, lambda: ("a", "b"))
    assert [host.reserve(worker, HALF) for worker in (1, 2, 3)] == [("a",), ("a",), ("b",)]
    assert not host.fits(4, ONE)
    assert host.fits(4, HALF)
    host.release(1)
    host.release(2)
    assert host.fits(4, ONE)
    assert not host.fits(4, TWO)
    tenths = Reservations({}, lambda: ("a",))
    for worker in range(10):
        assert tenths.fits(worker, (("gpu", 0.1),))
        tenths.reserve(worker, (("gpu", 0.1),))
    assert not tenths.fits(10, (("gpu", 0.1),))


def test_a_worker_gets_the_same_devices_again_or_none() -> None:
    host = Reservations({}, lambda: ("0", "1", "2"))
    host.reserve(1, ONE)
    host.release(1)
    assert host.bound(1) == ("0",)
    assert host.reserve(2, ONE) == ("1",)  # the other has a context on 0 and so takes memory there
    assert not host.fits(1, TWO)
    assert host.fits(-1, TWO)
    assert host.reserve(3, ONE) == ("2",)
    assert host.reserve(1, HALF) == ("0",)


def test_what_has_waited_for_a_while_is_given_what_becomes_free(tmp_path: Path) -> None:
    host = Reservations({"mem": 8.0}, lambda: ("0", "1"))

    def look(worker: int, now: float, *wants: Resources) -> list[Resources]:
        host.look(now)
        return [want for want in wants if host.fits(worker, want)]

    for worker in (1, 2):
        assert look(worker, 0.0, ONE) == [ONE]
        host.reserve(worker, ONE)
    memory, all_of_it = (("mem", 1.0),), (("gpu", 2.0), ("mem", 8.0))
    three = (("gpu", 3.0),)
    host.release(1)
    assert look(1, 1.0, three, all_of_it, ONE) == [ONE]
    assert look(1, 1.0 + 0.9 * KEPT_AFTER, three, all_of_it, ONE) == [ONE]
    now = 1.0 + KEPT_AFTER
    assert look(1, now, three, all_of_it, ONE, HALF, memory) == []  # what the host never has isn't waited for
    assert look(1, now, ONE, all_of_it) == [ONE]  # what is older, or of a higher priority, goes first
    assert look(1, now, ONE) == [ONE]  # it was cancelled, or runs elsewhere
    assert look(1, now, all_of_it, ONE) == [ONE]
    now += KEPT_AFTER
    assert look(1, now, all_of_it, ONE) == []
    assert not host.makes_room(1)
    assert host.usage() == (("gpu", 2, 2), ("mem", 8.0, 8.0))  # what is kept is not to be had
    host.release(2)
    assert host.makes_room(1)
    assert look(3, now, all_of_it) == [all_of_it]
    host.reserve(3, all_of_it)
    host.release(3)
    assert look(1, now, all_of_it, ONE) == [ONE]


def test_other_amounts_are_counted_and_what_nobody_was_given_is_not_there() -> None:
    host = Reservations({"mem": 10e9, "license": 2})
    assert host.fits(1, (("license", 2), ("mem", 10e9)))
    assert not host.fits(1, (("mem", 11e9),))
    host.reserve(1, (("license", 1), ("mem", 6e9)))
    assert not host.fits(2, (("mem", 6e9),))
    assert host.fits(2, (("license", 1), ("mem", 4e9)))
    assert not host.fits(2, (("disk", 1),))
    assert not host.fits(2, ONE)
    assert host.usage() == (("license", 2, 1), ("mem", 10e9, 6e9))
    host.release(1)
    assert host.usage() == (("license", 2, 0), ("mem", 10e9, 0))


def crews(path: Path, number: int = 2, memory: float = 0.0, gpus: tuple[str, ...] = ("0", "1")) -> list[Reservations]:
    """Return what that many supervisors of one host have: all of it."""
    return [Reservations({"mem": memory}, lambda: gpus, HostLocks(path), memory > 0) for _ in range(number)]


def test_a_device_is_held_by_one_supervisor_of_a_host_at_a_time(tmp_path: Path) -> None:
    one, other = crews(tmp_path / "devices")
    assert one.fits(1, HALF)
    one.reserve(1, HALF)
    assert not other.fits(1, TWO)
    assert other.fits(1, HALF)
    assert other.reserve(1, HALF) == ("1",)  # never the rest of the other's
    assert not other.fits(2, ONE)
    assert not one.fits(2, ONE)
    assert one.usage()[0] == ("gpu", 2, 1.5)
    other.forget(1)
    assert not one.fits(2, ONE)
    other.share()
    assert one.fits(2, ONE)


def test_an_idle_worker_ends_for_a_supervisor_that_wants_its_device(tmp_path: Path) -> None:
    one, other = crews(tmp_path / "devices")
    for worker in (1, 2):
        assert one.fits(worker, ONE)
        one.reserve(worker, ONE)
    one.release(1)
    assert one.share() == set()  # its context stays while nobody wants the place
    assert not other.fits(1, ONE)
    other.share()
    assert one.share() == {1}
    one.forget(1)
    one.share()
    assert other.fits(1, ONE)
    assert other.reserve(1, ONE) == ("0",)
    other.share()
    assert one.share() == set()


def test_two_supervisors_that_want_all_devices_get_them_in_turn(tmp_path: Path) -> None:
    one, other = crews(tmp_path / "devices")
    for crew in (one, other):
        assert crew.fits(1, ONE)
        crew.reserve(1, ONE)
    for crew in (one, other):
        crew.release(1)
        assert not crew.fits(-1, TWO)
    for crew in (one, other):
        crew.share()
    for crew in (one, other):
        assert crew.share() == {1}
        crew.forget(1)
        crew.share()
    assert other.fits(2, TWO)
    other.reserve(2, TWO)
    assert not one.fits(2, TWO)
    other.forget(2)
    other.share()
    assert one.fits(2, TWO)


def test_supervisors_that_always_have_work_take_turns(tmp_path: Path) -> None:
    one, other = crews(tmp_path / "devices", gpus=("0",))
    for crew in (one, other):
        crew.look(0.0)
    assert one.fits(1, ONE)
    one.reserve(1, ONE)
    assert not other.fits(1, ONE)
    other.share()
    for now in (0.5 * TURN, TURN):
        one.look(now)
        assert one.share() == set()  # it is in use
        one.release(1)
        if now < TURN:
            assert one.fits(1, ONE)
            one.reserve(1, ONE)
    assert not one.fits(1, ONE)
    assert one.share() == {1}
    one.forget(1)
    one.share()
    assert other.fits(1, ONE)
    other.share()
    one.share()
    other.forget(1)
    other.share()
    assert one.fits(2, ONE)  # nobody wants it any more


def test_memory_that_is_found_is_shared_out_among_the_supervisors_of_a_host(tmp_path: Path) -> None:
    one, other = crews(tmp_path / "devices", memory=10.0 * UNIT)
    mine, theirs = (("mem", 6.0 * UNIT),), (("mem", 4.5 * UNIT),)
    assert one.fits(1, mine)
    one.reserve(1, mine)
    assert not other.fits(1, theirs)
    assert other.usage() == (("mem", 10.0 * UNIT, 6.0 * UNIT),)
    assert other.fits(1, (("mem", 4.0 * UNIT),))
    other.reserve(1, (("mem", 4.0 * UNIT),))
    one.release(1)
    assert not other.fits(2, (("mem", 1.0),))
    one.share()
    assert other.fits(2, (("mem", 1.0),))
    job = HostLocks(tmp_path / "devices", "job 7")
    assert Reservations({"mem": 10.0 * UNIT}, locks=job, shares_memory=True).fits(1, (("mem", 10.0 * UNIT),))
    named = Reservations({"mem": 10.0 * UNIT}, locks=HostLocks(tmp_path / "devices"))
    assert named.fits(1, (("mem", 10.0 * UNIT),))  # whoever names an amount has shared it out


def test_what_a_supervisor_held_is_free_once_it_and_its_workers_have_ended(tmp_path: Path) -> None:
    ready, end = Fifo(tmp_path, "ready"), Fifo(tmp_path, "end")
    script = f"""
import os
from pathlib import Path
from jug_notebook.worker.resources import HostLocks
locks = HostLocks(Path({str(tmp_path / "devices")!r}))
worker = os.fork()
if worker:
    assert locks.take("a")
    with open({ready.path!r}, "w") as fifo:
        fifo.write(str(worker) + chr(10))
os.read(os.open({end.path!r}, os.O_RDONLY), 1)
"""
    supervisor = subprocess.Popen([sys.executable, "-c", script])
    worker = int(ready.read_line())
    locks = HostLocks(tmp_path / "devices")
    supervisor.kill()
    supervisor.wait()
    assert not locks.take("a")
    watched = os.pidfd_open(worker)
    os.kill(worker, signal.SIGKILL)
    assert is_readable(watched)
    assert locks.take("a")
    os.close(watched)


def test_the_file_of_locks_is_for_all_users_and_never_a_link(tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        assert HostLocks(tmp_path / "devices").take("a")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "devices").stat().st_mode) == 0o666
    (tmp_path / "link").symlink_to(tmp_path / "devices")
    one, other = HostLocks(tmp_path / "link"), HostLocks(tmp_path / "link")
    assert (tmp_path / f"link-{os.getuid()}").stat().st_ino != (tmp_path / "devices").stat().st_ino
    assert one.take("a")
    assert not other.take("a")


def test_a_device_has_one_name_however_processes_number_it(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "GPU 0: A100 (UUID: GPU-aa11)\nGPU 1: A100 (UUID: GPU-bb22)\n  MIG 1g.5gb Device 0: (UUID: MIG-cc33)\n"
    monkeypatch.setattr(resources, "_listed", lambda: listed)
    assert names_of(["1", "GPU-aa", "MIG-cc33"], {}) == ["GPU-bb22", "GPU-aa11", "/MIG-cc33"]
    monkeypatch.setattr(resources, "_listed", lambda: "")
    assert names_of(["0"], {"SLURM_JOB_ID": "7"}) != names_of(["0"], {"SLURM_JOB_ID": "8"})


def test_devices_are_found_in_the_environment_and_tasks_see_theirs_alone() -> None:
    assert find_devices({"CUDA_VISIBLE_DEVICES": "2,GPU-ab"}) == ("2", "GPU-ab")
    assert find_devices({"CUDA_VISIBLE_DEVICES": "", "SLURM_JOB_GPUS": "1"}) == ()
    assert find_devices({"SLURM_JOB_GPUS": "1,3"}) == ("1", "3")
    assert visible(("2", "3"), {})["CUDA_VISIBLE_DEVICES"] == visible(("2", "3"), {})["HIP_VISIBLE_DEVICES"] == "2,3"
    below = visible(("2", "3"), {"ROCR_VISIBLE_DEVICES": "2,3,4"})
    assert (below["ROCR_VISIBLE_DEVICES"], below["HIP_VISIBLE_DEVICES"]) == ("2,3", "0,1")


def test_devices_are_set_while_they_stay_the_same_and_whatever_a_task_did_to_them(monkeypatch: Any) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    seen = VisibleDevices()
    for devices in (("1",), ("1",), ("0", "2"), ()):
        assert seen.let_see(devices) == (visible(devices, {}) if devices else {})
        assert os.environ["CUDA_VISIBLE_DEVICES"] == (",".join(devices) or "0,1,2")
        os.environ["CUDA_VISIBLE_DEVICES"] = "2" if devices else "0,1,2"
    assert "HIP_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    ("group", "files", "limit"),
    [
        ("0::/job/step", {"job/memory.max": "5000", "job/step/memory.max": "max"}, 5000.0),
        ("0::/", {"memory.max": "7000"}, 7000.0),
        ("4:cpu:/x\n9:memory:/job", {"memory/job/memory.limit_in_bytes": "4000"}, 4000.0),
        ("9:memory:/elsewhere", {"memory/memory.limit_in_bytes": "3000"}, 3000.0),
    ],
)
def test_memory_is_that_of_the_control_group(tmp_path: Path, group: str, files: dict[str, str], limit: float) -> None:
    for name, text in {"proc/self/cgroup": group, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found, pool = find_memory({}, tmp_path)
    assert found == limit
    assert pool == str(
        (tmp_path / "sys/fs/cgroup" / next(name for name, text in files.items() if text != "max")).parent
    )
    job = {"SLURM_MEM_PER_NODE": "0.001", "SLURM_JOB_ID": "7"}
    assert find_memory(job, tmp_path) == (2.0**20 / 1000, "job 7")
    assert find_memory({}, tmp_path / "none")[0] > 1e8
    assert find_memory({}, tmp_path / "none")[1] == ""


def test_what_a_task_waits_for_is_one_line() -> None:
    full, free = ("a", (("gpu", 2, 2.0), ("mem", 8e9, 2e9))), ("b", (("gpu", 2, 1.0), ("mem", 8e9, 8e9)))
    other = ("b", full[1])
    assert shortage(ONE, [full, other]) == "a GPU: 4 of 4 in use on 2 hosts"
    assert shortage((("gpu", 3.0),), [full, other]) == "3 GPUs: 4 of 4 in use on 2 hosts; none has 3"
    assert shortage(ONE, [full, full]) == "a GPU: 2 of 2 in use on 1 host"
    assert shortage(ONE, [full, free]) == ""
    assert shortage((("license", 2.0),), [full]) == (
        "2 license: no worker's host has any; start workers with --resources license=2"
    )
    assert shortage(ONE, [("a", ())]) == "a GPU: no worker's host has any; start workers with --gpus 0,1"
    assert shortage((("gpu", 1.0), ("mem", 4e9)), [full, free]) == "a GPU and 4.0 GB of memory on one host"
    assert shortage((("mem", 7e9),), [full]) == "7.0 GB of memory: 2.0 GB of 8.0 GB in use on 1 host"


# -- real workers ------------------------------------------------------------------------------------------------------

USE = """
import fcntl, os, signal, time
def use(folder, number, dies):
    devices = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    held = [open(f"{folder}/device-{device}", "a") for device in devices]
    with open(f"{folder}/notes", "a") as notes:
        for file in held:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                notes.write(f"twice {file.name}\\n")
        notes.write(f"{number} {','.join(devices)} {time.monotonic()} begins\\n")
        notes.flush()
        once = f"{folder}/died-{number}"
        time.sleep(0.002)
        if dies and not os.path.exists(once):
            open(once, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        notes.write(f"{number} {','.join(devices)} {time.monotonic()} ends\\n")
    return devices
"""


def test_no_device_is_ever_held_twice_though_workers_are_killed(folder_site: Site) -> None:
    site, use = folder_site, cell(USE, "use")
    wants = [1.0] * 250 + [2.0] * 50
    random.Random(3).shuffle(wants)
    made = [
        site.tasks.submission(use, str(site.folder), number, number % 20 == 0, resources=(("gpu", want),))
        for number, want in enumerate(wants)
    ]
    site.store.submit(made, ORIGIN)
    site.supervise(6, gpus="0,1,2,3")
    keys = [submission.key for submission in made]
    for left in (200, 100):
        wait_until(site.store, partial(is_left, site, keys, left), "no progress", 3 * PATIENCE)
        for info in site.alive()[:2]:
            signal_group(info.pid, signal.SIGKILL)  # it may have ended just now
    wait_until(site.store, partial(is_left, site, keys, 0), "not done", 3 * PATIENCE)
    assert set(site.store.states(keys)) == {State.FINISHED}
    notes = (site.folder / "notes").read_text().splitlines()
    assert not [line for line in notes if line.startswith("twice")]
    values = [site.tasks.value(key) for key in keys]
    assert [len(devices) for devices in values] == [int(want) for want in wants]
    assert {device for devices in values for device in devices} == {"0", "1", "2", "3"}


def test_two_crews_of_one_host_never_hold_a_device_at_once_though_all_are_killed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    sites = [Site(tmp_path / name, f"file:{tmp_path / name}/jugdata") for name in ("one", "two")]
    use, keys = cell(USE, "use"), []
    try:
        for site in sites:
            made = [
                site.tasks.submission(use, str(tmp_path), number, number % 20 == 0, resources=(("gpu", want),))
                for number, want in enumerate([1.0, 1.0, 1.0, 2.0] * 30)
            ]
            site.store.submit(made, ORIGIN)
            keys.append([submission.key for submission in made])
        crews = [site.supervise(3, gpus="0,1") for site in sites] + [sites[0].supervise(2, "other", gpus="1,0")]
        for left in (90, 60, 30):
            for site, of_site in zip(sites, keys, strict=True):
                wait_until(site.store, partial(is_left, site, of_site, left), "no progress", 3 * PATIENCE)
                for info in site.alive()[:1]:
                    signal_group(info.pid, signal.SIGKILL)  # it may have ended just now
            if left == 60:
                crews[0].kill()
                sites[0].supervise(3, "again", gpus="0,1")
        for site, of_site in zip(sites, keys, strict=True):
            wait_until(site.store, partial(is_left, site, of_site, 0), "not done", 3 * PATIENCE)
            assert set(site.store.states(of_site)) == {State.FINISHED}
        assert not [line for line in (tmp_path / "notes").read_text().splitlines() if line.startswith("twice")]
    finally:
        for site in sites:
            site.end()


def is_left(site: Site, keys: list[str], at_most: int) -> bool:
    return sum(state is not None and not state.settled for state in site.store.states(keys)) <= at_most


HOLD = """
import os, sys
def hold(says, hears, number):
    with open(says, "w") as fifo:
        fifo.write(os.environ.get("CUDA_VISIBLE_DEVICES", "-") + "\\n")
    os.read(os.open(hears, os.O_RDONLY), 1)
    return number
"""


class Holders:
    """Tasks that run until a test lets them end, each with these resources."""

    def __init__(self, site: Site, *wants: object) -> None:
        self.site, self.hears = site, Fifo(site.folder, "hears")
        hold = cell(HOLD, "hold")
        made = [
            site.tasks.submission(hold, site.fifo.path, self.hears.path, number, resources=parse_resources(want))
            for number, want in enumerate(wants)
        ]
        site.store.submit(made, ORIGIN)
        self.keys = [submission.key for submission in made]

    def until_begun(self, count: int) -> list[str]:
        """Return the devices of the next tasks that begin."""
        return [self.site.fifo.read_line() for _ in range(count)]

    def states(self) -> list[State | None]:
        return self.site.store.states(self.keys)

    def end_one(self) -> None:
        self.hears.write_line("")  # one byte: one of them reads it


@pytest.mark.parametrize(
    ("want", "options", "together"),
    [
        ({"gpu": 0.5}, {"gpus": "7"}, 2),
        ({"mem": "6G"}, {"resources": "mem=15G"}, 2),
        ({"license": 1}, {"resources": "license=2"}, 2),
        ({"gpu": 2}, {"gpus": "0,1,2"}, 1),
    ],
)
def test_no_more_tasks_run_at_once_than_fit(
    folder_site: Site, want: dict[str, float], options: dict[str, str], together: int
) -> None:
    holders = Holders(folder_site, *[want] * (together + 1))
    folder_site.supervise(4, **options)
    devices = holders.until_begun(together)
    if "gpu" in want:
        assert devices == (["7", "7"] if want["gpu"] < 1 else ["0,1"])
    folder_site.tasks.value(
        folder_site.tasks.submit(cell("def free(): return 1", "free"))
    )  # others have had their chance
    assert sorted(map(str, holders.states())) == sorted(map(str, [State.READY] + [State.RUNNING] * together))
    holders.end_one()
    assert len(holders.until_begun(1)) == 1
    for _ in range(together):
        holders.end_one()
    assert [folder_site.tasks.value(key) for key in holders.keys] == list(range(together + 1))


@pytest.mark.parametrize("small", [{"gpu": 1}, {}])
def test_a_task_that_needs_much_runs_though_small_ones_keep_coming(folder_site: Site, small: dict[str, float]) -> None:
    site = folder_site
    nap = cell("import time\ndef nap(n): time.sleep(0.02)", "nap")
    site.supervise(2, gpus="0,1")
    holders = Holders(site, "gpu=1", "gpu=1")  # both workers have used a device, so neither can run what needs both
    holders.until_begun(2)
    for _ in holders.keys:
        holders.end_one()
    assert [site.tasks.value(key) for key in holders.keys] == [0, 1]
    large = site.tasks.submission(cell("def large(): return 1", "large"), resources=TWO)
    naps = [site.tasks.submission(nap, number, resources=parse_resources(small)) for number in range(1000)]
    for some in (naps[:10], [large], naps[10:]):
        site.store.submit(some, ORIGIN)
    keys = [submission.key for submission in naps]
    assert site.tasks.value(large.key) == 1
    assert not is_left(site, keys, 200)


def test_what_no_worker_was_given_waits_and_the_status_and_why_tell(site: Site) -> None:
    holders = Holders(site, "gpu=2", "gpu=1", "gpu=3", "license=1")
    site.supervise(3, gpus="0,1")
    holders.until_begun(1)
    elsewhere = msgspec.structs.replace(
        system.me("worker"), id="other", host="other", machine="other", resources=(("gpu", 2.0, 2.0),)
    )
    site.store.renew([elsewhere])
    wait_until(site.store, lambda: "4 of 4" in site.store.snapshot().shortage, "no heartbeat told")
    lines = {
        "1 task waits for a GPU: 4 of 4 in use on 2 hosts",
        "1 task waits for 3 GPUs: 4 of 4 in use on 2 hosts; none has 3",
        "1 task waits for 1 license: no worker's host has any; start workers with --resources license=1",
    }
    shortage = site.store.snapshot().shortage
    assert set(shortage.split(" · ")) == lines
    assert shortage[:60] in text_status(site.store.snapshot())
    why = WhyQuery(SignedReader(site.store, site.tasks.seal), Scope(), lambda _: ())
    found = [
        explanation.reasons[0].line for explanation in why.explain(holders.keys) if explanation.state is State.READY
    ]
    assert {f"1 task {line}" for line in found} == lines
    holders.end_one()


def test_a_worker_that_used_other_devices_makes_room_for_a_new_one(folder_site: Site) -> None:
    site = folder_site
    site.supervise(1, gpus="0,1")
    use = cell("import os\ndef use(n): return os.environ['CUDA_VISIBLE_DEVICES'], os.getpid()", "use")
    found = []
    for number, want in enumerate((1, 1, 2, 0.5)):
        found.append(site.tasks.value(site.tasks.submit(use, number, resources=(("gpu", float(want)),))))
    devices, pids = zip(*found, strict=True)
    assert devices == ("0", "0", "0,1", "0")
    assert pids[0] == pids[1]
    assert len(set(pids)) == 3


def test_a_task_that_waits_and_is_submitted_again_needs_what_it_needs_now(folder_site: Site) -> None:
    site = folder_site
    task = cell("def f(): return 1")
    before = site.tasks.submission(task, resources=(("gpu", 1.0),))
    now = site.tasks.submission(task, resources=(("license", 1.0),))
    assert before.key == now.key  # what a task needs is no part of its key
    site.store.submit([before], ORIGIN)
    report = site.store.submit([now], ORIGIN)
    assert (report.new, report.known) == (0, 1)
    fresh = open_store(site.store.url)
    for store in (site.store, fresh):
        assert store.claim("w-1-aaaaaa", 1, 0.0, fits=lambda resources: resources != now.resources) == []
    fresh.close()
    site.supervise(1, resources="license=1")
    assert site.tasks.value(now.key) == 1
    assert site.store.submit([before], ORIGIN).finished == 1


def test_functions_are_left_out_and_variables_set(folder_site: Site) -> None:
    site = folder_site
    slow, quick = cell("def slow(): return 1", "slow"), cell("import os\ndef quick(): return os.environ['A']", "quick")
    left = site.tasks.submit(slow)
    taken = site.tasks.submit(quick)
    others = Target(not_names=frozenset(["slow"]))
    supervisor = site.supervise(1, idle_timeout=0, keep_attached=False, env={"A": "b=c"}, target=others)
    assert site.tasks.value(taken) == "b=c"
    assert supervisor.wait(PATIENCE) == 0
    assert site.tasks.state(left) is State.READY
