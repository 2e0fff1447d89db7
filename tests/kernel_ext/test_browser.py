"""The widget in a real browser: it changes by itself, and its buttons act. The tests are one notebook's story."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("nbformat")
pytest.importorskip("ipywidgets")
import nbformat

from jug_notebook import State, render
from jug_notebook.model import FunctionView, Snapshot
from jug_notebook.model.views import Spread
from jug_notebook.store import Store, open_store
from kernel_ext.widgets import BLOCK, STYLE
from tests.browser import KERNEL, NOTEBOOK, PATIENCE, Lab, Tab, browser, missing

CELLS = [
    "%load_ext jug_notebook\nimport jug_notebook as jn",
    """%%jugtask
import os, time
def held(gate, n=0):
    print("<b>held</b>", n)
    while not os.path.exists(gate):
        time.sleep(0.01)
    return n
def picky(file, odd="<script>window.bad = 1</script>"):
    print("<script>window.bad = 2</script>")
    if not os.path.exists(file):
        raise ValueError(f"no {file} <img src=x onerror='window.bad = 3'> here")
    return 1
""",
    "tasks = [picky('missing'), picky('absent', 1), held('first'), held('second')]",
    "%jug_execute -n 2",
    "import os, time\nwhile not os.path.exists('enough'): time.sleep(0.01)",
    "later = held('third', 1)",
    "jn.execute(1)",
    "%jug_status",
    "%%jugtask answer --ask\nproduct = 6 * 7",
    "%%capture caught\n%jug_stop --now",
]
SCREENSHOTS = os.environ.get("JUG_SCREENSHOTS")  # a folder that keeps the pictures
EXECUTE, BUSY, LATER, AGAIN, STATUS, ASK = 3, 4, 5, 6, 7, 8
PANEL = "[...document.querySelectorAll('.jug-panel')].pop()"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    lacking = missing()
    if lacking and os.environ.get("CI") == "true":
        pytest.fail(f"the browser test can't run: {lacking}")
    if lacking:
        pytest.skip(lacking)
    folder = tmp_path_factory.mktemp("lab")
    lab = Lab(folder, XDG_CONFIG_HOME=str(folder / "keys"))
    try:
        with browser() as page:
            lab.write("story.ipynb", CELLS)
            lab.await_ready(page)
            tab = Tab(lab, page, "story.ipynb")
            tab.open()
            yield tab
            for gate in ("enough", "first", "second", "third", "fourth"):
                touch(tab, gate)
            tab.await_status("idle")
            tab.run(len(CELLS) - 1)
    finally:
        lab.close()


@pytest.fixture
def shot(tab: Tab, tmp_path: Path) -> Callable[[str], None]:
    """Keeps a picture of the page."""

    def keep(name: str) -> None:
        path = tmp_path / f"{name}.png"
        tab.page.screenshot(path=path)
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, SCREENSHOTS)

    return keep


def shows(tab: Tab, *output: str) -> None:
    """Wait until the latest widget says all that."""
    from playwright.sync_api import TimeoutError

    text = f"({PANEL}?.innerText ?? '').replace(/\\u00a0/g, ' ')"
    try:
        tab.page.wait_for_function(f"texts => texts.every(one => {text}.includes(one))", arg=list(output))
    except TimeoutError:
        pytest.fail(f"{output} not seen in:\n{tab.page.evaluate(text)}", pytrace=False)


def press(tab: Tab, label: str, nth: int = -1) -> None:
    tab.page.get_by_role("button", name=label, exact=True).nth(nth).click()


def touch(tab: Tab, name: str) -> None:
    (tab.lab.work / name).touch()


def store_of(tab: Tab) -> Store:
    return open_store(tab.lab.work / "jugdata")


def test_the_widget_appears_under_the_cell_that_starts_workers(tab: Tab, shot: Callable[[str], None]) -> None:
    for cell in range(EXECUTE + 1):
        tab.run(cell)
    shows(tab, "running 2", "2 failures", "2 workers, 2 busy", "● live", "started 2 workers")
    shot("under-the-cell")


def test_it_changes_while_the_kernel_is_idle(tab: Tab) -> None:
    tab.await_status("idle")
    touch(tab, "first")
    shows(tab, "finished 1", "running 1")
    assert tab.status == "idle"


def test_an_opened_failure_stays_open_and_markup_stays_text(tab: Tab, shot: Callable[[str], None]) -> None:
    page = tab.page
    page.locator(".jug-failure .jupyter-widget-Collapse-header", has_text="absent").click()
    page.wait_for_function(
        "window.opened = [...document.querySelectorAll('.jug-failure pre')].find(story => story.checkVisibility())"
    )
    story = page.evaluate("window.opened.parentElement.innerText")
    assert "raise ValueError" in story
    assert "file='absent', odd=1" in story
    assert "<script>window.bad = 2</script>" in story
    touch(tab, "second")
    shows(tab, "finished 2", "2 workers, 0 busy")
    assert page.evaluate("window.opened.isConnected && window.opened.checkVisibility()")
    assert page.evaluate("window.bad") is None
    assert page.locator(".jug-panel img, .jug-panel script").count() == 0
    shot("a-failure-open")


def test_it_changes_and_its_buttons_act_while_a_cell_runs(tab: Tab, shot: Callable[[str], None]) -> None:
    tab.begin(BUSY)
    tab.await_status("busy")
    touch(tab, "missing")
    touch(tab, "absent")
    beside = tab.page.evaluate(f"{KERNEL}.supportsSubshells && {KERNEL}.commsOverSubshells == 'perCommTarget'")
    press(tab, "retry failed")
    if beside:
        shows(tab, "2 tasks will be tried again", "finished 4")
        assert tab.runs(BUSY)
        shot("beside-a-running-cell")
    touch(tab, "enough")
    tab.await_end(BUSY)
    shows(tab, "finished 4", "all done")


def test_workers_are_added_and_stopped(tab: Tab, shot: Callable[[str], None]) -> None:
    press(tab, "+ worker")
    shows(tab, "3 workers", "starting one more: 3 workers on this host")
    press(tab, "stop after current")
    shows(tab, "no worker", "3 workers stopped")
    shot("stopped")
    store = store_of(tab)
    assert not any(alive for info, alive, _ in store.processes() if info.kind != "session")
    store.close()


def test_results_are_dropped_only_after_asking(tab: Tab) -> None:
    choice = tab.page.locator(".jug-panel").get_by_role("combobox")
    press(tab, "invalidate …")
    choice.select_option("held")
    press(tab, "keep them")
    choice.wait_for(state="hidden")
    press(tab, "invalidate …")
    press(tab, "invalidate these results")
    shows(tab, "invalidated 2 results of held", "ready 2")


def test_the_saved_notebook_shows_the_last_state_as_text_and_html(tab: Tab) -> None:
    shows(tab, "no worker")
    tab.page.wait_for_function(
        f"{NOTEBOOK}.content.widgets[{EXECUTE}].model.outputs.get(0).data['text/plain'].includes('ready 2')"
    )
    still, view = tab.save().cells[EXECUTE].outputs
    assert "ready 2" in still.data["text/plain"]
    assert "ready <b>2</b>" in still.data["text/html"]
    assert set(view.data) == {"application/vnd.jupyter.widget-view+json", "text/plain"}
    assert not view.data["text/plain"]


def test_a_tab_opened_again_is_live(tab: Tab, shot: Callable[[str], None]) -> None:
    tab.open()
    shows(tab, "ready 2", "● live")
    tab.run(LATER)
    shows(tab, "ready 3")
    tab.run(AGAIN)
    shows(tab, "running 1", "finished 4")
    assert tab.page.locator(".jug-panel").count() == 2
    both = "[...document.querySelectorAll('.jug-panel')]"
    tab.page.wait_for_function(both + ".every(panel => panel.innerText.replace(/\\s+/g, ' ').includes('finished 4'))")
    shot("opened-again")


def test_while_a_widget_is_there_its_saved_picture_is_hidden(tab: Tab) -> None:
    assert tab.page.locator("[class*=jug-still]").count() == 2
    assert not tab.page.locator("[class*=jug-still]").first.is_visible()


def test_a_restarted_kernel_finds_the_work_in_flight(tab: Tab, shot: Callable[[str], None]) -> None:
    tab.restart_kernel()
    tab.page.wait_for_function("document.querySelector('.jug-panel')?.matches('.jupyter-widgets-disconnected') ?? true")
    shot("kernel-restarted")
    tab.run(0)
    tab.run(STATUS)
    shows(tab, "running 1", "finished 4", "1 worker, 1 busy", "● live")
    touch(tab, "third")
    shows(tab, "finished 5", "all done")
    shot("after-the-restart")


def test_a_notebook_whose_kernel_has_ended_shows_the_saved_picture(tab: Tab, shot: Callable[[str], None]) -> None:
    tab.page.wait_for_function(
        f"{NOTEBOOK}.content.widgets[{STATUS}].model.outputs.get(0).data['text/plain'].includes('all done')"
    )
    tab.save()
    tab.restart_kernel()
    tab.open()
    saved = tab.page.locator("[class*=jug-still]").last
    saved.wait_for(state="visible")
    missing = tab.page.get_by_text("model not found").last
    missing.wait_for(state="attached")
    assert not missing.is_visible()
    output = " ".join(saved.inner_text().split())
    assert output.startswith("Saved picture, not live.")
    assert "all done" in output
    assert "held" in output
    shot("kernel-ended-and-opened-again")
    tab.run(0)


def test_another_notebook_on_the_same_store_sees_the_same_work(tab: Tab) -> None:
    tab.lab.write("other.ipynb", ["%load_ext jug_notebook", "%jug_status --all", "import jug_notebook as jn"])
    other = Tab(tab.lab, tab.page.context.new_page(), "other.ipynb")
    try:
        other.open()
        other.run(0)
        other.run(1)
        shows(other, "whole store", "finished 5", "all done", "● live")
        tab.run(STATUS)
        shows(tab, "this notebook", "finished 5", "● live")
        for gate in ("first", "second", "third"):
            (tab.lab.work / gate).unlink()
        press(other, "invalidate …")
        other.page.locator(".jug-panel").get_by_role("combobox").select_option("held")
        press(other, "invalidate these results")
        shows(other, "invalidated 3 results of held", "running 1", "ready 2")
        shows(tab, "running 1", "ready 2", "finished 2")
        for gate in ("first", "second", "third"):
            touch(tab, gate)
        shows(tab, "finished 5", "all done")
        other.page.evaluate(f"{NOTEBOOK}.sessionContext.shutdown()")  # as the menu's Shut Down Kernel does
        shows(other, "not live: its kernel has ended, so the buttons do nothing")
        buttons = other.page.locator(".jug-panel button")
        assert buttons.count() > 5
        assert all(button.is_disabled() for button in buttons.all())
    finally:
        other.page.close()


@pytest.mark.parametrize("width", [1106, 820, 584])  # of outputs, on pages of 1 200, 1 000 and 700 pixels
def test_mean_time_and_time_left_are_seen_beside_long_names_on_pages_of_any_width(tab: Tab, width: int) -> None:
    counts = {state: 1186 for state in State if state is not State.CANCELLED}
    long = FunctionView("reconstruct_the_surface_temperature_of_the_sea", counts, 123.0, memory=Spread(1, 42e6, 1e8))
    drawn = render.functions_html(Snapshot("s", 0.0, "all", (long,)), styles=render.CLASSES)
    page = tab.page.context.new_page()
    try:
        page.set_content(
            f'{STYLE}<div style="width: {width}px"><div class="jug-panel">{BLOCK.format(drawn)}</div></div>'
        )
        for head in ("mean\u00a0time", "time\u00a0left"):
            box = page.locator("th", has_text=head).bounding_box()
            assert box is not None
            assert box["x"] + box["width"] <= width + page.locator(".jug-panel").bounding_box()["x"]
    finally:
        page.close()


NOTICES = """
window.told = [];
window.asked = 0;
window.Notification = class extends window.Notification {
  static requestPermission() { window.asked += 1; return super.requestPermission(); }
  constructor(title, options) { super(title, options); window.told.push([title, options.body]); }
};
"""


def test_the_browser_itself_asks_for_leave_and_notifies_once(tab: Tab) -> None:
    start = "%jug_execute -n 1 --notify browser"
    tab.lab.write("told.ipynb", [CELLS[0], CELLS[1], f"task = held('fourth', 7)\n{start}", start])
    page = tab.page.context.new_page()
    page.add_init_script(NOTICES)
    told = Tab(tab.lab, page, "told.ipynb")
    try:
        told.open()
        for cell in range(3):
            told.run(cell)
        page.wait_for_function("window.asked == 1")
        page.context.grant_permissions(["notifications"], origin=tab.lab.url)
        told.run(3)
        touch(tab, "fourth")
        page.wait_for_function("window.told.length == 1", timeout=2 * PATIENCE)
        [[title, text]] = page.evaluate("window.told")
        assert (title, text.partition(", ")[0]) == ("jug_notebook", "jug_notebook: 1 done")
        assert text.endswith("/told.ipynb")
        outputs = f"{NOTEBOOK}.content.widgets[3].model.outputs"
        page.wait_for_function(f"!JSON.stringify({outputs}.toJSON()).includes('application/javascript')")
        assert page.evaluate("window.told.length") == 1
    finally:
        page.close()


def test_a_notebook_that_is_not_trusted_shows_the_saved_picture_and_runs_nothing(tab: Tab) -> None:
    saved = tab.save()
    saved.cells[0].source = "# changed by somebody, so its outputs are not signed"
    nbformat.write(saved, tab.lab.work / "strange.ipynb")
    strange = Tab(tab.lab, tab.page.context.new_page(), "strange.ipynb")
    try:
        strange.open()
        strange.page.locator("[class*=jug-still]").last.wait_for(state="visible")
        assert strange.page.locator(".jug-panel").count() == 0
        assert strange.page.evaluate("window.bad") is None
        assert not strange.page.evaluate(f"{NOTEBOOK}.content.model.cells.get({STATUS}).trusted")
    finally:
        strange.page.close()


def test_a_cell_that_asks_runs_once_its_button_is_clicked(tab: Tab, shot: Callable[[str], None]) -> None:
    tab.run(ASK)
    cell = tab.page.locator(".jp-Cell").nth(ASK)
    cell.get_by_text("answer would run: not timed yet").wait_for()
    store = store_of(tab)
    assert "answer" not in [view.name for view in store.snapshot().functions]
    store.close()
    shot("a-cell-that-asks")
    press(tab, "Run")
    cell.locator("button[disabled]", has_text="Run").wait_for()
    tab.run(STATUS)
    shows(tab, "answer", "finished 6", "all done")
