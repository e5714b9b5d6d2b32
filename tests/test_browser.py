"""The widgets of `evaluation.widgets` in Chromium: over JupyterLab with the real chapter, saved and opened again,
and without any kernel on a page of their own. Written by hand.

`make test-browser` runs it; pytest by itself leaves it out. It needs Playwright (`pip install playwright`, without its
browsers) and a Chromium or Chrome of the system. TAV_SHOTS=FOLDER keeps screenshots there.

How long a step takes says more about the machine than about the widgets. So what is waited for is an event (a cell that
has its number, a server that answers), and it is given up when the process behind it has ended, or after a time that is
far beyond what a busy machine needs.
"""

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[1]
NAMES = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
ARGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync".split()
)
PATIENCE = 600  # seconds for one answer of a page or a kernel
MOST = 1800  # seconds for the whole chapter
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyter-widgets/jupyterlab-manager/plugin": {"saveState": True},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "A page of a headless browser; its errors are failures"
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if not browser:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=browser,
            headless=True,
            args=ARGS,
            viewport=dict(width=1200, height=1000),
        )
        page, errors = context.pages[0], []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_default_timeout(1000 * PATIENCE)
        yield page
        context.close()
    assert not [error for error in errors if "tav" in error.lower() or "render" in error], errors


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Lab:
    "JupyterLab on a folder with the chapter, with nothing of the user's own settings"

    def __init__(self, folder):
        self.folder, self.home = folder / "work", folder / "home"
        self.folder.mkdir()
        for name, values in SETTINGS.items():
            file = self.home / "settings" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        shutil.copy(ROOT / "nbs/3_does_it_move/14_widgets.ipynb", self.folder / "chapter.ipynb")
        self.port = free_port()
        homes = {
            name: str(self.home)
            for name in ("HOME", "JUPYTER_CONFIG_DIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR")
        }
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        command = [
            sys.executable,
            "-m",
            "jupyterlab",
            "--allow-root",
            "--no-browser",
            "--ip=127.0.0.1",
            f"--port={self.port}",
            "--IdentityProvider.token=",
            "--ServerApp.disable_check_xsrf=True",
            f"--ServerApp.root_dir={self.folder}",
        ]
        self.env = {**os.environ, **homes, "JUPYTERLAB_SETTINGS_DIR": str(self.home / "settings"), "PYTHONPATH": path}
        self.server = subprocess.Popen(
            command, cwd=self.folder, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(self.up, MOST, self.server)

    def api(self, path, method="GET"):
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{self.port}/api/{path}", method=method)
        ) as answer:
            return json.loads(answer.read() or "null")

    def up(self):
        try:
            return self.api("status")
        except OSError:
            return None

    def connect(self):
        "A second way to the kernel that runs the chapter"
        from jupyter_client import BlockingKernelClient

        self.client = BlockingKernelClient(
            connection_file=str(self.home / f"kernel-{self.api('sessions')[0]['kernel']['id']}.json")
        )
        self.client.load_connection_file()
        self.client.start_channels()

    def kernel(self, code):
        "The value of an expression in the kernel"
        said = []
        self.client.execute_interactive(
            f"print(repr({code}))",
            timeout=PATIENCE,
            store_history=False,
            output_hook=lambda message: said.append(
                message["content"].get("text", message["content"].get("evalue", ""))
            ),
        )
        return ast.literal_eval("".join(said).strip())

    def set(self, code):
        self.client.execute_interactive(code, timeout=PATIENCE, store_history=False, output_hook=lambda message: None)

    def end(self):
        for session in self.api("sessions"):
            self.api(f"sessions/{session['id']}", "DELETE")
        self.server.terminate()
        self.server.wait(20)


def until(what, seconds=PATIENCE, process=None):
    """What `what` gives as soon as that is something; not waited for longer than `seconds`, nor for a process that has
    ended
    """
    end = time.monotonic() + seconds
    while not (found := what()):
        assert process is None or process.poll() is None, f"the server has ended with code {process.poll()}"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


def shoot(page, name, widget=None):
    if folder := os.environ.get("TAV_SHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (widget or page).screenshot(path=f"{folder}/{name}.png")


@pytest.fixture(scope="module")
def lab(page, tmp_path_factory):
    "The chapter, run from top to bottom in the browser"
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        page.goto(f"http://127.0.0.1:{lab.port}/lab/tree/chapter.ipynb?reset", timeout=1000 * MOST)
        page.get_by_role("button", name="Python 3 (ipykernel) | Idle").wait_for(timeout=1000 * MOST)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        lab.connect()
        until(lambda: all_run(page), MOST, lab.server)
        errors = page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']")
        assert not errors.count(), errors.first.inner_text()
        widget(page, "Noise explorer").wait_for()
        assert not page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count(), (
            "a cell has failed or warned"
        )
        yield lab
    finally:
        lab.end()


def all_run(page):
    "Has the kernel answered every cell that it was sent? A cell that it has yet to run has a star for a number"
    prompts = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").all_inner_texts()
    return any(character.isdigit() for prompt in prompts for character in prompt) and not any(
        "*" in prompt for prompt in prompts
    )


def saved_state(path):
    "The state of the widgets in a notebook; None while the file is being written"
    try:
        return json.loads(path.read_text())["metadata"].get("widgets")
    except json.JSONDecodeError:
        return None


def widget(page, kind):
    return page.locator(f".tav[aria-label^='{kind}:']").last


def shown(widget):
    return int(widget.locator(".tav-bar output").first.inner_text().split()[-1])


def picture(widget, number=0):
    return widget.locator("canvas").nth(number).evaluate("canvas => canvas.toDataURL()")


def drag(page, element, start, stop):
    "The mouse from one place to another, in shares of the element"
    element.scroll_into_view_if_needed()
    box = element.bounding_box()

    def at(place):
        return (box["x"] + box["width"] * place[0], box["y"] + box["height"] * place[1])

    page.mouse.move(*at(start))
    page.mouse.down()
    page.mouse.move(*at(stop), steps=5)
    page.mouse.up()


def agree(lab, one, name, expected, trait="index"):
    "Page and kernel both have it"
    until(lambda: lab.kernel(f"{name}.{trait}") == expected)
    if trait == "index":
        until(lambda: shown(one) == expected)


def test_a_film_is_scrubbed_by_keys_by_mouse_and_from_the_kernel(page, lab):
    one = widget(page, "Frames")
    before, slider = picture(one), one.locator(".tav-frame")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    agree(lab, one, "scrubber", 3)
    assert picture(one) != before and slider.get_attribute("aria-valuetext") == "frame 3 of 0 to 11"
    page.keyboard.press("End")
    agree(lab, one, "scrubber", 11)
    drag(page, slider, (0.99, 0.5), (0.5, 0.5))
    assert 4 <= until(lambda: shown(one)) <= 7
    agree(lab, one, "scrubber", shown(one))
    lab.set("scrubber.index = 2")
    agree(lab, one, "scrubber", 2)
    one.focus()
    page.keyboard.press("ArrowLeft")
    agree(lab, one, "scrubber", 1)
    shoot(page, "scrubber", one)


def test_play_goes_on_by_itself_and_space_stops_it(page, lab):
    one = widget(page, "Frames")
    button = one.locator(".tav-play")
    button.click()
    assert button.get_attribute("aria-label") == "Pause"
    seen = set()
    until(lambda: seen.add(shown(one)) or len(seen) > 3)
    one.locator(".tav-frame").focus()
    page.keyboard.press(" ")
    assert button.get_attribute("aria-label") == "Play"
    still = shown(one)
    time.sleep(0.5)
    assert shown(one) == still
    agree(lab, one, "scrubber", still)


def test_the_worst_pair_is_one_click_away_and_curves_slice_and_film_are_handles(page, lab):
    one = widget(page, "Consistency explorer")
    one.locator(".tav-worst").click()
    worst = lab.kernel("explorer.worst")
    assert worst == 6, "where the hair turns green"
    agree(lab, one, "explorer", worst)
    plain = picture(one)
    for number, name in enumerate(("difference", "flow"), 1):
        one.get_by_label("Show", exact=True).select_option(str(number))
        agree(lab, one, "explorer", name, "overlay")
        assert picture(one) != plain
        shoot(page, f"explorer-{name}", one)
    slice_ = picture(one, 1)
    drag(page, one.locator("canvas").first, (0.5, 0.4), (0.5, 0.9))
    agree(lab, one, "explorer", 115, "row")
    assert picture(one, 1) != slice_
    drag(page, one.locator("canvas").nth(1), (0.5, 0.1), (0.5, 3.5 / 12))
    agree(lab, one, "explorer", 3)
    drag(page, one.locator("svg").first, (0.3, 0.5), (0.98, 0.5))
    agree(lab, one, "explorer", 10)
    value = lab.kernel("explorer.scores.per_pair['warping_error'][10].item()")
    assert abs(float(one.locator("figcaption").first.inner_text().split()[-1]) / value - 1) < 0.01
    shoot(page, "explorer", one)


def test_two_films_are_wiped_and_put_side_by_side_at_the_same_moment(page, lab):
    one = widget(page, "Comparison")
    before = picture(one)
    drag(page, one.locator("canvas"), (0.5, 0.5), (0.25, 0.5))
    agree(lab, one, "compare", 0.25, "wipe")
    assert picture(one) != before
    one.locator(".tav-wipe").focus()
    page.keyboard.press("ArrowRight")
    agree(lab, one, "compare", 0.26, "wipe")
    shoot(page, "compare", one)
    one.get_by_label("Show", exact=True).select_option("1")
    agree(lab, one, "compare", "side by side", "mode")
    one.locator(".tav-frame").focus()
    page.keyboard.press("End")
    agree(lab, one, "compare", 5)
    assert one.locator("canvas").evaluate("canvas => canvas.width") == 2 * lab.kernel("compare.width") + 4
    shoot(page, "compare-side", one)


def test_attention_is_read_block_by_block(page, lab):
    one = widget(page, "Attention explorer")
    drag(page, one.locator("canvas").first, (0.5, 0.5), (0.5, 5.5 / 8))
    agree(lab, one, "watcher", 5)
    said = one.locator("[aria-live]").inner_text()
    row = lab.kernel("watcher.attention[watcher.blocks[watcher.block]].mean(0)[5].tolist()")
    assert (
        said.startswith(f"Frame 5 attends most to {row.index(max(row))} ({max(row):.2f})")
        or abs(max(row) - float(said.split("(")[1].split(")")[0])) < 0.011
    ), (said, row)
    one.get_by_label("Block", exact=True).select_option("1")
    one.get_by_label("Head", exact=True).select_option("1")
    agree(lab, one, "watcher", 1, "block")
    agree(lab, one, "watcher", 0, "head")
    shoot(page, "attention", one)


def test_another_strength_is_drawn_by_the_kernel(page, lab):
    one = widget(page, "Noise explorer")
    before = picture(one, 2)
    one.locator(".tav-strength").focus()
    page.keyboard.press("Home")
    until(lambda: lab.kernel("sorted(noise_explorer.results)")[0] == "0")
    agree(lab, one, "noise_explorer", 0, "stop")
    until(lambda: "correlate by 0.00" in one.locator("[aria-live]").inner_text())
    until(lambda: picture(one, 2) != before)
    shoot(page, "noise", one)


def test_saved_and_opened_again_it_scrubs_before_any_cell_has_run(page, lab):
    page.get_by_role("menuitem", name="File", exact=True).click()
    page.get_by_role("menuitem", name="Save Notebook").first.click()
    saved = lab.folder / "chapter.ipynb"
    until(lambda: saved_state(saved))
    later = lab.folder / "later.ipynb"
    notebook = json.loads(saved.read_text())
    notebook["metadata"]["sent_by"] = "somebody else"  # what JupyterLab itself has saved it trusts
    later.write_text(json.dumps(notebook))

    def open_later():
        return page.goto(f"http://127.0.0.1:{lab.port}/lab/tree/later.ipynb?reset")

    open_later()
    page.locator(
        ".jp-OutputArea-output img[src^='data:image/png']"
    ).first.wait_for()  # it may not run programs here: the still picture
    assert not page.locator(".tav").count()
    subprocess.run([sys.executable, "-m", "jupyter", "trust", str(later)], env=lab.env, check=True, capture_output=True)
    open_later()
    one = widget(page, "Frames")
    one.wait_for()
    one.locator(".tav-frame").focus()
    start, before = shown(one), picture(one)
    page.keyboard.press("ArrowLeft" if start else "ArrowRight")  # it may have been saved at its last frame
    assert shown(one) == (start - 1 if start else 1) and picture(one) != before
    other = widget(page, "Consistency explorer")
    other.locator(".tav-worst").click()
    assert shown(other) == 6
    shoot(page, "opened-again")


def test_a_page_of_its_own_works_from_the_disk_in_the_dark(page, tmp_path):
    from dataclasses import replace

    from tav_nb.evaluation.widgets import Compare, ConsistencyExplorer, FrameScrubber, save_page
    from tav_nb.toy.rendering import render
    from tav_nb.toy.scenes import random_scene

    film = render(replace(random_scene(3), hold=1), 8, 64, 64).frames
    broken = film[[0, 1, 2, 3, 7, 6, 5, 4]]
    path = save_page(
        tmp_path / "page.html",
        FrameScrubber(film),
        ConsistencyExplorer(broken, names=("residual",)),
        Compare(film, broken),
    )
    page.emulate_media(color_scheme="dark")
    page.goto(path.as_uri())
    one, two = widget(page, "Frames"), widget(page, "Consistency explorer")
    widget(page, "Comparison").wait_for()
    one.locator(".tav-frame").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert shown(one) == 5 and page.evaluate("models[0].get('index')") == 5
    two.locator(".tav-worst").click()
    assert shown(two) == ConsistencyExplorer(broken).worst
    dark = [
        int(part)
        for part in one.evaluate("node => getComputedStyle(node).backgroundColor").strip("rgba()").split(",")[:3]
    ]
    assert sum(dark) < 200, dark
    shoot(page, "page-dark")
    page.emulate_media(color_scheme="light")


def test_voila_serves_the_chapter_as_a_page_with_a_kernel_behind_it(page, tmp_path):
    pytest.importorskip("voila", reason="Voila is not installed: pip install voila")
    chapter = (ROOT / "nbs/3_does_it_move/14_widgets.ipynb").read_text(encoding="utf-8")
    shutil.copytree(ROOT / "nbs/badges", tmp_path / "badges")
    # Voila looks for images from its root folder on and refuses a page with one above it
    (tmp_path / "chapter.ipynb").write_text(chapter.replace("../badges", "badges"), encoding="utf-8")
    port = free_port()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    homes = {name: str(tmp_path / "home") for name in ("JUPYTER_CONFIG_DIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR")}
    command = [sys.executable, "-m", "voila", "chapter.ipynb", "--no-browser", "--Voila.ip=127.0.0.1", f"--port={port}"]
    server = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, **homes, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def up():
        with socket.socket() as visitor:
            return visitor.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(up, MOST, server)
        page.goto(f"http://127.0.0.1:{port}/", timeout=1000 * MOST)  # Voila runs the chapter before it answers
        one, noise = widget(page, "Frames"), widget(page, "Noise explorer")
        noise.wait_for(timeout=1000 * MOST)
        before, slider = picture(one), one.locator(".tav-frame")
        slider.focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert shown(one) == 3 and picture(one) != before
        drawn = picture(noise, 2)
        noise.locator(".tav-strength").focus()
        page.keyboard.press("Home")
        until(
            lambda: "correlate by 0.00" in noise.locator("[aria-live]").inner_text()
        )  # the kernel has drawn another film
        until(lambda: picture(noise, 2) != drawn)
        shoot(page, "voila")
    finally:
        server.terminate()
        server.wait(20)
