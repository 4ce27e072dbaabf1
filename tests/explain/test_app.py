"""The page in a real browser, served by the real command; screenshots are kept in build/screenshots."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from comvex.cli import main
from comvex.explain import serve
from comvex.explain.explorer import Explorer
from comvex.explain.panels import heads_html
from comvex.inference.predictor import load

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
WATCHED = """
import sys

def tell(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in ("127.0.0.1", "::1"):
        print("connects to", arguments[1], file=sys.stderr)
    if event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "localhost", None):
        print("looks up", arguments[0], file=sys.stderr)

sys.addaudithook(tell)
from comvex.cli import main
raise SystemExit(main())
"""
"""The command, telling on standard error of every machine but this one that it turns to."""
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def address(small_run: Path) -> Iterator[str]:
    """Where ``comvex app`` serves a run, in a process that neither warns nor asks anything of another machine."""
    command = [sys.executable, "-c", WATCHED, "app", str(small_run), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        address = json.loads(line)["address"]
        yield address
        with urllib.request.urlopen(f"{address}/gradio_api/heartbeat/a-page-that-is-open", timeout=30):
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
        assert process.stderr.read() == ""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page as a new visitor; afterwards no console error, and no request to another machine, was seen."""
    contexts, troubles = [], []

    def watch(request: Any) -> None:
        if not request.url.startswith((f"{address}/", "data:", f"blob:{address}/")):
            troubles.append(f"asked {request.url}")

    def open_page(size: str = "desktop") -> Any:
        context = browser.new_context(viewport=SIZES[size])
        contexts.append(context)
        context.on("request", watch)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("response", lambda answer: troubles.append(answer.url) if answer.status >= 400 else None)
        page.goto(address)
        page.wait_for_selector("#cx-heads img")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def click(page: Any, row: int, column: int) -> None:
    """Click the middle of a patch of the 4 x 4 of the run's pictures."""
    canvas = page.locator(".cx-patches")
    box = canvas.bounding_box()
    canvas.click(position={"x": (column + 0.5) * box["width"] / 4, "y": (row + 0.5) * box["height"] / 4})


def wait_for_patch(page: Any, row: int, column: int) -> None:
    page.wait_for_selector(f"#cx-layers :text('patch in row {row}, column {column} looks')")


def upload(page: Any, file: Path) -> None:
    page.set_input_files("#cx-drop input[type=file]", file)


def best_class(page: Any) -> str:
    return page.locator("#cx-classes .cx-class").first.inner_text()


@needs_browser
@pytest.mark.parametrize("size", SIZES)
def test_the_page_shows_a_picture_and_fits_the_screen(visit, size):
    page = visit(size)
    assert page.locator("#cx-classes .cx-class").count() == 5
    assert page.locator("#cx-layers img").count() == 2
    assert page.locator("#cx-heads img").count() == 4
    assert page.locator("#cx-gates tbody tr").count() == 2
    click(page, 3, 0)
    wait_for_patch(page, 3, 0)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"app-{size}.png", full_page=True)


@needs_browser
def test_the_slider_and_the_halves_show_other_attention(visit):
    page = visit()
    blended = page.locator("#cx-heads").inner_text()
    page.get_by_label("content").check()
    page.wait_for_function("before => document.querySelector('#cx-heads').innerText != before", arg=blended)
    assert page.locator("#cx-layer :is(input, button):visible").count() == 1  # a field takes what is no layer
    page.locator("#cx-layer input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#cx-heads :text('to the class token')")
    assert page.locator("#cx-layers .cx-chosen").inner_text().startswith("layer 1")
    assert "gate" not in page.locator("#cx-heads .cx-heads").inner_text()
    page.get_by_label("positional").check()
    page.wait_for_selector("#cx-heads :text('no positional half')")


@needs_browser
def test_an_example_is_a_click_away(visit):
    page = visit()
    before = page.locator("#cx-canvas img").get_attribute("src")
    page.locator("#cx-examples button").nth(3).click()
    page.wait_for_function("before => document.querySelector('#cx-canvas img').src != before", arg=before)


@needs_browser
def test_photographs_grey_pictures_and_what_is_no_picture(visit, tmp_path):
    random = np.random.default_rng(0)
    large = Image.fromarray(random.integers(0, 255, (30, 40, 3), dtype=np.uint8)).resize((4000, 3000))
    files = {"photograph.jpg": large, "grey.png": large.convert("L").resize((90, 120))}
    for name, picture in files.items():
        picture.save(tmp_path / name)
    (tmp_path / "fake.png").write_text("this is no picture")
    page = visit()
    for name in files:
        before = page.locator("#cx-canvas img").get_attribute("src")
        upload(page, tmp_path / name)
        page.wait_for_function("before => document.querySelector('#cx-canvas img').src != before", arg=before)
    kept = best_class(page)
    upload(page, tmp_path / "fake.png")
    refusal = page.wait_for_selector("#cx-message [role=alert]").inner_text()
    assert refusal == "The picture fake.png cannot be read: it is in no picture format that Pillow knows."
    assert best_class(page) == kept
    page.screenshot(path=SCREENSHOTS / "app-refusal.png", full_page=True)
    upload(page, tmp_path / "grey.png")
    page.wait_for_selector("#cx-message [role=alert]", state="detached")
    click(page, 0, 3)
    wait_for_patch(page, 0, 3)


@needs_browser
@pytest.mark.parametrize("pause", [0, 0.05])
def test_forty_clicks_in_a_row_end_at_the_last_again_and_again(visit, pause):
    """Some come just as an answer arrives; one that is lost would have the page wait for it for ever."""
    page = visit("phone" if pause else "desktop")
    canvas = page.locator(".cx-patches")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for times in range(4):
        last = (times % 2, 3)
        patches = [(number % 4, number // 4 % 3) for number in range(39)]
        for row, column in [*patches, last]:  # no click before is in the last column
            page.mouse.click(box["x"] + (column + 0.5) * box["width"] / 4, box["y"] + (row + 0.5) * box["height"] / 4)
            page.wait_for_timeout(1000 * pause)
        wait_for_patch(page, *last)
        assert f"row {last[0]}, column 3" in page.locator("#cx-patch").inner_text()


@needs_browser
def test_the_patch_moves_with_the_arrow_keys_and_stays_in_the_picture(visit):
    page = visit()
    page.locator(".cx-patches").focus()
    for key in ("ArrowUp", "ArrowRight"):
        page.keyboard.press(key)
    wait_for_patch(page, 1, 3)
    for _ in range(5):
        page.keyboard.press("ArrowDown")
    wait_for_patch(page, 3, 3)
    frame, picture = page.locator(".cx-frame").bounding_box(), page.locator(".cx-patches").bounding_box()
    for side, length in (("x", "width"), ("y", "height")):
        assert frame[side] + frame[length] == pytest.approx(picture[side] + picture[length], abs=1)
        assert frame[length] == pytest.approx(picture[length] / 4, abs=1)


@needs_browser
def test_another_picture_is_looked_at_from_its_middle(visit):
    page = visit()
    click(page, 0, 0)
    wait_for_patch(page, 0, 0)
    page.locator("#cx-examples button").nth(2).click()
    wait_for_patch(page, 2, 2)
    assert "row 2, column 2" in page.locator("#cx-patch").inner_text()
    click(page, 0, 0)
    wait_for_patch(page, 0, 0)


@needs_browser
def test_two_visitors_do_not_see_each_other(visit):
    first, second = visit(), visit("phone")
    second.locator("#cx-examples button").nth(4).click()
    classes = first.locator("#cx-classes").inner_text()
    second.wait_for_function("other => document.querySelector('#cx-classes').innerText != other", arg=classes)
    alone = {}
    for page, patch in ((first, (0, 1)), (second, (3, 2))):
        click(page, *patch)
        wait_for_patch(page, *patch)
        alone[page] = page.locator("#cx-heads").inner_text(), best_class(page)
    for page in (first, second):
        click(page, 1, 1)
        wait_for_patch(page, 1, 1)
    click(first, 0, 1)  # both at once
    click(second, 3, 2)
    wait_for_patch(first, 0, 1)
    wait_for_patch(second, 3, 2)
    for page, seen in alone.items():
        assert (page.locator("#cx-heads").inner_text(), best_class(page)) == seen


def test_many_threads_get_the_maps_of_their_own_picture(small_run):
    """Analysis listens in on the layers of the one model that all visitors share."""
    explorer = Explorer(load(small_run, device="cpu"))
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 255, (8, 8), dtype=np.uint8) for _ in range(6)]

    def heads_of(picture: np.ndarray) -> str:
        view = explorer.open(picture)
        return heads_html(view.seen.shown, view.maps[1], gates=explorer.gates[1], query=view.query)

    alone = [heads_of(picture) for picture in pictures]
    assert len(set(alone)) == len(alone)
    together: dict[int, list[str]] = {number: [] for number in range(len(pictures))}

    def visitor(number: int) -> None:
        for _ in range(8):
            together[number].append(heads_of(pictures[number]))

    threads = [threading.Thread(target=visitor, args=(number,)) for number in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, answers in together.items():
        assert answers == [alone[number]] * 8


def test_without_gradio_the_command_says_what_to_install(small_run, capsys, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert main(["app", str(small_run)]) == 2
    assert re.fullmatch(r"comvex: comvex app needs Gradio.*pip install 'comvex\[app\]'.*\n", capsys.readouterr().err)


def test_a_port_that_is_taken_or_none_is_refused_in_a_sentence():
    with serve.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"127\.0\.0\.1, port {port}: Address already in use; choose"):
            serve.listen("127.0.0.1", port)
    with pytest.raises(ValueError, match=r"The page cannot be served on 203\.0\.113\.7, port 0: "):
        serve.listen("203.0.113.7", 0)
    with pytest.raises(ValueError, match="port is 70000: it must lie between 0"):
        serve.listen("127.0.0.1", 70000)
