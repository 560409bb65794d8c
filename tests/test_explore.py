"""The page of demos/explore.py: what its panels compute, what its server refuses; and, with the extra web-test and
Chromium (pytest -m browser), the page in a real browser."""

import asyncio
import contextlib
import http.client
import importlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backend_bases import MouseEvent
from matplotlib.image import imread

from tinygen import no_grad
from tinygen.plotting import tile

ROOT = Path(__file__).parent.parent
UNKNOWN = np.array([0.75, 0.85, 1.0])
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(*arguments):
    """The demo as a process; ``true`` stands for the browser that it would open."""
    return subprocess.Popen(
        [sys.executable, "demos/explore.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "BROWSER": "true", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


class Page:
    """The figure in the browser: places are fractions of it."""

    def __init__(self, page):
        self.page, self.box = page, page.locator("canvas").first.bounding_box()

    def at(self, place, x=0.5, y=0.5):
        """The page's pixel coordinates of a point in a place, whose lower left corner is (0, 0)."""
        left, bottom, width, height = place
        return (
            self.box["x"] + (left + x * width) * self.box["width"],
            self.box["y"] + (1 - bottom - y * height) * self.box["height"],
        )

    def drag(self, place, *points):
        self.page.mouse.move(*self.at(place, *points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.at(place, *point))
        self.page.mouse.up()

    def look(self, place):
        """The pixels of a place, (H, W, 3)."""
        (left, top), (right, bottom) = self.at(place, 0, 1), self.at(place, 1, 0)
        clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        return imread(io.BytesIO(self.page.screenshot(clip=clip)), format="png")[..., :3]

    def wait(self, place, condition, seconds=60):
        """Look at the place until the condition holds."""
        end = time.monotonic() + seconds
        while not condition(seen := self.look(place)):
            assert time.monotonic() < end, "what was waited for never came"
            time.sleep(0.02)
        return seen


def unknown(picture):
    return (np.abs(picture - UNKNOWN).max(2) < 0.02).mean()


@pytest.fixture(scope="module")
def panels():
    """The figure without a browser."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "demos")
        yield importlib.import_module("explore").build()


@pytest.fixture(scope="module")
def places(panels):
    """Where on the figure the panels are: x, y from below, width, height, as fractions of it."""
    plane, sliders, canvas = panels
    axes = {"plane": plane.ax, "decoded": plane.decoded.axes, "strip": plane.strip.axes}
    axes |= {"slider": sliders.sliders[0].ax, "larger": sliders.decoded.axes}
    axes |= {name: getattr(canvas, name).axes for name in ("drawing", "probabilities", "painted")}
    axes |= {button.label.get_text(): button.ax for button in canvas.buttons}
    return types.SimpleNamespace(**{name: ax.get_position(original=True).bounds for name, ax in axes.items()})


def mouse(panel, ax, x, y, kind="button_press_event", button=1):
    """The mouse at (x, y), in the axes' own units."""
    place = ax.transData.transform((x, y))
    panel.figure.canvas.callbacks.process(kind, MouseEvent(kind, panel.figure.canvas, *place, button))


def test_a_click_decodes_its_point_and_the_way_there(panels):
    plane, _, _ = panels
    mouse(plane, plane.ax, 0.5, -1.5)
    mouse(plane, plane.ax, -1.25, 0.75)
    way = np.linspace((0.5, -1.5), (-1.25, 0.75), 8)
    images = plane.vae.decode(way).numpy()
    np.testing.assert_allclose(plane.decoded.get_array(), images[-1, 0], atol=1e-5)
    np.testing.assert_allclose(plane.strip.get_array(), tile(images, 8), atol=1e-5)


def test_sliders_move_the_code_of_a_digit(panels):
    _, sliders, _ = panels
    sliders.next()
    code = sliders.codes[sliders.index].copy()
    sliders.sliders[2].set_val(1.5)
    code[sliders.dimensions[2]] = 1.5
    np.testing.assert_allclose(sliders.decoded.get_array(), sliders.vae.decode(code[None]).numpy()[0, 0], atol=1e-5)


@pytest.mark.parametrize("choice", ["any", "7"])
def test_painting_is_sampling_with_what_was_drawn(panels, choice):
    _, _, canvas = panels
    canvas.clear()
    for x in (8, 18):
        mouse(canvas, canvas.drawing.axes, x, 6, "button_press_event" if x == 8 else "motion_notify_event")
    assert canvas.ink[6, 8:19].all() and canvas.ink[:9].sum() == canvas.ink.sum() and not canvas.ink[12:].any()
    last = np.flatnonzero(canvas.ink.any(1))[-1]
    canvas.classes.set_active(0 if choice == "any" else 1 + int(choice))
    canvas.temperature.set_val(0.6)
    canvas.seed.set_val(5)
    canvas.paint(None)
    for _ in range(14):
        canvas.go_on()
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 10, 6) if choice == "any" else np.full(6, 7)
    rows = np.broadcast_to(np.arange(28)[:, None] <= last, (28, 28))
    given = np.broadcast_to(canvas.ink, (6, 1, 28, 28))
    images = canvas.model.sample(6, rng, labels, given, rows, 0.6)
    np.testing.assert_array_equal(canvas.painted.get_array(), tile(images, 3))
    with no_grad():
        logits = canvas.model.logits(images[:1], labels=labels[:1]).numpy()[0, 0, 0]
    np.testing.assert_allclose(canvas.probabilities.get_array(), 1 / (1 + np.exp(-logits / 0.6)), rtol=1e-4)


@pytest.fixture(scope="module")
def served():
    """The port of the demo, which runs, and the lines that it prints."""
    pytest.importorskip("tornado")
    port, lines = free_port(), []
    server = start("--port", str(port))
    for line in server.stdout:  # the page is there once it says how to stop it
        if "Ctrl+C" in line:
            break
    reader = threading.Thread(target=lines.extend, args=(server.stdout,))
    reader.start()
    yield port, lines
    server.terminate()
    server.wait()
    reader.join()


def ask(port, path, **headers):
    """The status code of the response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade"}
UPGRADE |= {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "x" * 16}


@pytest.mark.parametrize("path", ["/", "/1", "/js/mpl.js", "/_static/css/page.css", "/1/download.png", "/no", "/1/ws"])
def test_no_other_name_is_answered(served, path):
    port, _ = served
    headers = UPGRADE if path == "/1/ws" else {}
    usual = {"/no": 404, "/1/ws": 101}.get(path, 200)
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost", "LOCALHOST:1"):
        assert ask(port, path, Host=host, **headers) == usual
    for host in ("example.com", f"example.com:{port}", "127.0.0.1.example.com", "xlocalhost", "127.0.0.2", ""):
        assert ask(port, path, Host=host, **headers) == 403


def test_no_other_page_opens_a_websocket(served):
    port, _ = served
    own = f"127.0.0.1:{port}"
    assert ask(port, "/1/ws", Host=own, Origin=f"http://{own}", **UPGRADE) == 101
    for origin in ("http://example.com", f"http://127.0.0.1:{port + 1}", f"http://localhost:{port}", "null"):
        assert ask(port, "/1/ws", Host=own, Origin=origin, **UPGRADE) == 403


CLICK = {"type": "button_press", "x": 300, "y": 200, "button": 0, "buttons": 1, "modifiers": []}
BAD = [
    *("", "no JSON", b"\xff\x00", "[" * 10**5, "5", "null", '["type"]', "{}", '{"type": ["draw"]}'),
    *({"type": kind} for kind in ("unknown", "x\ny", "event", "unknown_event", "", None, 5)),
    *({"type": kind} for kind in ("button_press", "motion_notify", "toolbar_button")),
    *({**CLICK, name: value} for name in ("x", "y", "button", "buttons") for value in (None, "1", [], {})),
    *({**CLICK, name: value} for name in ("x", "y") for value in (float("nan"), float("inf"), 1e300)),
    {**CLICK, "modifiers": 5},
    {"type": "supports_binary", "value": False},
    {"type": "toolbar_button", "name": "download"},
    *({"type": "set_device_pixel_ratio", "device_pixel_ratio": ratio} for ratio in ("2", 0, -1, 1e6, float("nan"))),
    *({"type": "resize", "width": width, "height": 680} for width in ("500", 0, -500, 1e6, 10**400, float("nan"))),
    {"type": "resize", "width": 6000, "height": 6000, "device_pixel_ratio": 10},
    {"type": "the last"},
]


def test_a_bad_message_is_one_line_and_harms_nobody(served, panels):
    port, lines = served
    websocket = pytest.importorskip("tornado.websocket")

    async def receive(client, what):
        """The client's next message of this type: bytes for a picture, None for the end."""
        while not isinstance(message := await client.read_message(), what):
            pass
        return message

    async def talk():
        bad, good, huge = [await websocket.websocket_connect(f"ws://127.0.0.1:{port}/1/ws") for _ in range(3)]
        for message in BAD:
            binary = isinstance(message, bytes)
            await bad.write_message(message if binary or isinstance(message, str) else json.dumps(message), binary)
        await bad.write_message('{"type": "key_press", "key": "kq"}')  # on matplotlib's own page it closes the figure
        with contextlib.suppress(websocket.WebSocketClosedError):
            await huge.write_message("1" * 11 * 2**20)
        await receive(huge, type(None))  # is no longer connected
        await bad.write_message('{"type": "draw"}')
        return [await receive(client, bytes) for client in (bad, good)]

    for picture in asyncio.run(asyncio.wait_for(talk(), 60)):
        assert imread(io.BytesIO(picture), format="png").shape[1::-1] == tuple(panels[0].figure.bbox.size)
    end = time.monotonic() + 60
    while not any("the last" in line for line in lines) and time.monotonic() < end:
        time.sleep(0.02)
    ignored = [line for line in lines if line.startswith("ignored a message: ")]
    assert len(ignored) == len(BAD) and max(map(len, ignored)) < 250


@pytest.fixture
def page(places):
    from playwright.sync_api import sync_playwright

    port, said, hosts = free_port(), [], set()
    server = start("--port", str(port))
    try:
        for line in server.stdout:  # the page is there once it says how to stop it
            if "Ctrl+C" in line:
                break
        with sync_playwright() as playwright:
            # without Debian's or the system's Chromium: the one of "playwright install chromium"
            path = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
            page = browser.new_page(viewport={"width": 1400, "height": 800})
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
            page.on("websocket", lambda socket: hosts.add(socket.url.split("/")[2]))
            page.goto(f"http://127.0.0.1:{port}/")
            shown = Page(page)
            shown.wait(places.plane, lambda seen: seen.std() > 0.05)
            yield shown
            browser.close()
        assert not said and hosts == {f"127.0.0.1:{port}"}
    finally:
        server.terminate()
        output, _ = server.communicate()
    assert "ignored a message" not in output


@pytest.mark.browser
def test_a_click_decodes_and_a_slider_moves(page, places):
    before, strip = page.look(places.decoded), page.look(places.strip)
    page.page.mouse.click(*page.at(places.plane, 0.3, 0.4))
    page.wait(places.decoded, lambda seen: np.abs(seen - before).mean() > 0.01)
    page.wait(places.strip, lambda seen: np.abs(seen - strip).mean() > 0.005)
    before = page.look(places.larger)
    page.page.mouse.click(*page.at(places.slider, 0.05))
    page.wait(places.larger, lambda seen: np.abs(seen - before).mean() > 0.005)


@pytest.mark.browser
def test_what_is_drawn_is_kept_and_finished(page, places):
    empty = unknown(page.look(places.drawing))
    assert empty > 0.5 and unknown(page.look(places.painted)) > 0.5
    page.drag(places.drawing, (0.35, 0.75), (0.65, 0.75), (0.65, 0.6))
    page.wait(places.drawing, lambda seen: 0.3 * empty < unknown(seen) < 0.8 * empty)  # the rows above are given
    for _ in range(2):  # the second time what was painted is painted anew
        page.page.mouse.click(*page.at(places.paint))
        page.wait(places.painted, lambda seen: unknown(seen) > 0.2)
        page.wait(places.painted, lambda seen: unknown(seen) == 0 and (seen.max(2) < 0.1).mean() > 0.02)
    assert unknown(page.look(places.probabilities)) == 0
    page.page.mouse.click(*page.at(places.clear))
    page.wait(places.painted, lambda seen: unknown(seen) > 0.5)
    page.wait(places.drawing, lambda seen: unknown(seen) == empty)


@pytest.mark.browser
def test_a_taken_port_is_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = start("--port", str(port))
        output, _ = server.communicate(timeout=120)
    assert server.returncode == 2 and f"--port: {port} is taken" in output and "Traceback" not in output


@pytest.mark.parametrize(
    "arguments, message", [([], "tinygen[web]"), (["--window"], "no display"), (["--port", "0"], "--port: got 0")]
)
def test_what_is_missing_is_one_sentence(arguments, message, tmp_path):
    (tmp_path / "tornado.py").write_text("raise ImportError")  # stands before the real one, if there is one
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "demos/explore.py", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
