"""Versions of packages: in a key where they are pinned, on record for each run, and named where they changed."""

import importlib
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

import jug_notebook as jn
from jug_notebook.errors import BadTask, TaskFailed
from jug_notebook.keys import packages
from jug_notebook.model import Cause


@pytest.fixture
def session(store_url, tmp_path):
    opened = jn.connect(store_url, notebook=tmp_path / "study.ipynb")
    yield opened
    opened.close()
    jn.definitions.clear()


@pytest.fixture
def gauge(tmp_path_factory, monkeypatch):
    """A package "heat-gauge" that is imported as ``gauge``: returns what installs a version of it."""
    site = tmp_path_factory.mktemp("libraries") / "site-packages"
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))

    def install(version):
        shutil.rmtree(site, ignore_errors=True)
        (site / "gauge").mkdir(parents=True)
        (site / "gauge" / "__init__.py").write_text(f"__version__ = {version!r}\ndef read(): return {version!r}\n")
        info = site / f"heat_gauge-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: heat-gauge\nVersion: {version}\n")
        (info / "top_level.txt").write_text("gauge\n")
        importlib.invalidate_caches()
        packages._distributions.cache_clear()

    install("1.0")
    yield install
    sys.modules.pop("gauge", None)
    packages._distributions.cache_clear()


def pinned_read(**options):
    @jn.task(**options)
    def read(x):
        import gauge

        return gauge.read(), x

    return read


def test_a_package_that_names_its_version_nowhere_but_in_its_metadata_is_on_record(gauge):
    sys.modules.pop("gauge", None)
    assert packages.version_of("gauge") == "", "not imported, and no package has this name"
    (Path(importlib.import_module("gauge").__file__)).write_text("def read(): return 1\n")
    importlib.reload(sys.modules["gauge"])
    del sys.modules["gauge"].__version__
    assert packages.version_of("gauge") == "1.0"


def test_an_upgrade_of_a_pinned_package_is_another_task_and_why_names_it(session, gauge):
    read = pinned_read(pin="heat-gauge")
    before = read(1)
    session.run_here()
    assert before.result() == ("1.0", 1)
    assert read(1).key == before.key
    sys.modules.pop("gauge")
    gauge("2.0")
    session.begin_cell("the next")
    after = pinned_read(pin="heat-gauge")(1)
    assert after.key != before.key
    why = jn.why(after)
    assert [reason.line for reason in why.reasons] == ["heat-gauge 1.0 → 2.0"]
    session.run_here()
    assert after.result() == ("2.0", 1)


def test_a_package_is_found_by_its_name_for_import_too_and_python_can_be_pinned(session, gauge):
    assert pinned_read(pin=("gauge", "python")).examine(Path.cwd()).pins == {
        "gauge": "1.0", "python": "{}.{}.{}".format(*sys.version_info[:3]),
    }  # fmt: skip
    assert packages.installed("sklearn") == metadata.version("scikit-learn")


def test_a_tag_that_stands_for_the_code_does_not_stand_for_the_package(session, gauge):
    first = pinned_read(version="a", pin="heat-gauge")(1)
    gauge("2.0")
    session.begin_cell("the next")
    assert pinned_read(version="a", pin="heat-gauge")(1).key != first.key


def test_what_is_not_installed_can_not_be_pinned(session):
    with pytest.raises(BadTask, match="give a list of names"):  # it would not be this version that is pinned
        pinned_read(pin={"heat-gauge": "0.9"})
    with pytest.raises(BadTask, match="pin='scikit-lern': no package of this name is installed here"):
        pinned_read(pin="scikit-lern")(1)


def test_a_worker_with_another_version_fails_the_task_and_says_so(session, gauge):
    task = pinned_read(pin="heat-gauge")(1)
    session.submissions.flush()
    gauge("2.0")
    session.run_here()
    with pytest.raises(TaskFailed, match=r"pinned to heat-gauge 1\.0, and .* has heat-gauge 2\.0: install"):
        task.result()


def test_a_process_that_loaded_a_package_before_its_upgrade_does_not_pass_for_upgraded(session, gauge, monkeypatch):
    import gauge as loaded

    monkeypatch.setattr(packages, "_LOADED", time.time() - 5)
    pinned_read(pin="heat-gauge")(1)
    gauge("2.0")
    session.begin_cell("the next")
    with pytest.raises(BadTask, match="heat-gauge was installed anew since this process loaded it"):
        pinned_read(pin="heat-gauge")(1)
    assert loaded.__version__ == "1.0"


def test_workers_run_what_is_pinned(gauge, tmp_path):
    session = jn.connect(tmp_path / "jugdata", notebook=tmp_path / "study.ipynb")
    tasks = pinned_read(pin="heat-gauge").map(range(3))
    crew = jn.execute(1)
    try:
        assert jn.result(tasks) == [("1.0", x) for x in range(3)]
    finally:
        crew.stop()
        session.close()


def test_what_is_pinned_to_a_version_that_is_gone_is_not_verified_after_an_upgrade(session, gauge):
    old = pinned_read(pin="heat-gauge").map(range(3))
    session.run_here()
    sys.modules.pop("gauge")
    gauge("2.0")
    found = jn.verify(old, changed_environment=True)
    assert (found.checked, found.total, found.differing) == (0, 0, ())
    assert jn.verify(old, fraction=1.0).total == 3


def test_after_an_upgrade_those_computed_before_it_are_verified(session, gauge):
    old = pinned_read().map(range(20))
    session.run_here()
    assert repr(jn.verify(old, changed_environment=True)) == (
        "nothing to verify: finished tasks ran with the versions installed here, or theirs are not on record"
    )
    sys.modules.pop("gauge")
    gauge("2.0")
    new = pinned_read().map(range(22))
    session.run_here()
    found = jn.verify(new, fraction=0.1, changed_environment=True)
    assert not found
    assert found.changes == (("gauge", "1.0", "2.0"),)
    assert (found.checked, found.total) == (2, 20)
    assert repr(found).startswith(
        "of values from other versions (gauge 1.0 → 2.0), 2 of 20 values computed again: 2 differ"
    )
    [reason] = jn.why(new[3]).reasons
    assert reason.cause is Cause.ENVIRONMENT
    assert reason.line == "computed with gauge 1.0; here it is 2.0, which is not part of its key"
    assert jn.why(new[21]).reasons == ()


def test_what_a_run_had_is_compared_by_python_and_system_too():
    here = packages.system_text()
    then = packages.Environment("CPython", "3.9.1", "Linux riscv64", {"numpy": "0.1", "msgspec": "0.1", "absent": "1"})
    found = {name: (before, now) for name, before, now in packages.changes(then)}
    assert found["Python"][0] == "3.9.1"
    assert found["system"] == ("Linux riscv64", here)
    assert found["numpy"] == ("0.1", metadata.version("numpy"))
    assert set(found) == {"Python", "system", "numpy"}


def test_a_version_of_a_class_of_its_own_is_recorded_as_text(session, gauge):
    @jn.task
    def read(x):
        import gauge

        class Version(str):
            __slots__ = ()

        gauge.__version__ = Version("1.0+cpu")
        return x

    task = read(1)
    session.run_here()
    assert task.provenance()["run"]["environment"]["packages"]["gauge"] == "1.0+cpu"
