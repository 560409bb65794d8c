"""A page to play with: walk through a VAE's codes, and draw a digit that a Gated PixelCNN completes. Ctrl-C ends it.

The page opens in the browser, served by matplotlib's WebAgg (extra ``web``) to this machine alone, under the names
127.0.0.1 and localhost; ``--window`` opens a window of the desktop instead. On the left is a plane of z: press or drag
to decode the point; the strip shows digits on the line from the point pressed before. Sliders below it move eight of
the 32 dimensions of a larger VAE. On the right, draw with the left button, erase with the right one, choose a class,
and press *paint*: the rows down to the last one with ink are given, and the model draws the rows below pixel by pixel.
Below the drawing are its probabilities for the first image. On two cores a press is answered within 0.1 s, and six
images are painted in less than 2 s.
"""

import argparse
import webbrowser

import numpy as np
from common import run
from matplotlib import pyplot as plt
from matplotlib.widgets import Button, RadioButtons, Slider

from tinygen import data, no_grad, pretrained
from tinygen.plotting import tile

COMPLETIONS = 6
SLIDERS = 8
UNKNOWN = (0.75, 0.85, 1.0)  # the colour of pixels that are not drawn yet


def picture(figure, rectangle, title, columns=1, rows=1):
    """An empty picture of ``columns`` x ``rows`` images, dark on light, in axes of its own."""
    ax = figure.add_axes(rectangle)
    ax.set_title(title, fontsize=9)
    ax.set_axis_off()
    colours = plt.get_cmap("gray_r").with_extremes(bad=UNKNOWN)  # for NaN
    blank = tile(np.zeros((columns * rows, 1, 28, 28)), columns)
    return ax.imshow(blank, cmap=colours, vmin=0, vmax=1, interpolation="nearest")


def redraw(*panels):
    """Draw only these axes again: drawing the whole figure would be too slow while the mouse moves."""
    for ax in panels:
        ax.redraw_in_frame()
    panels[0].figure.canvas.blit()


class Plane:
    """The codes of a VAE with two dimensions. It decodes the chosen point, and points on the line from the last one."""

    def __init__(self, figure, vae, images, labels):
        self.vae, self.figure = vae, figure
        self.ax = figure.add_axes((0.04, 0.46, 0.27, 0.48))
        codes = vae.encode(images).mean.numpy()
        for digit in range(10):
            self.ax.plot(*codes[labels == digit].T, ",", color=f"C{digit}")
            self.ax.text(0.05 + 0.1 * digit, 0.94, digit, color=f"C{digit}", weight="bold", transform=self.ax.transAxes)
        self.ax.set(xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), ylabel="z[1]")
        self.ax.set_xlabel("z[0]", labelpad=0)
        self.ax.set_title("press or drag to decode z (dots: codes of digits, by class)", fontsize=9)
        self.before, self.now = np.array([-1.5, -1.5]), np.array([1.5, 1.5])
        (self.way,) = self.ax.plot([], [], "k-o", markerfacecolor="white")
        self.decoded = picture(figure, (0.33, 0.54, 0.15, 0.36), "decoded: probability of ink")
        self.strip = picture(figure, (0.04, 0.28, 0.44, 0.09), "on the way from the point before", columns=8)
        for event in ("button_press_event", "motion_notify_event"):
            figure.canvas.mpl_connect(event, self.move)
        self.show()

    def move(self, event):
        if event.inaxes is not self.ax or event.button != 1 or self.figure.canvas.widgetlock.locked():
            return  # the toolbar locks the canvas for zooming
        if event.name == "button_press_event":
            self.before = self.now
        self.now = np.array([event.xdata, event.ydata])
        self.show()

    @no_grad()
    def show(self):
        way = self.before + np.linspace(0, 1, 8)[:, None] * (self.now - self.before)
        images = self.vae.decode(way).numpy()
        self.way.set_data(*way[[0, -1]].T)
        self.strip.set_data(tile(images, 8))
        self.decoded.set_data(images[-1, 0])
        redraw(self.ax, self.strip.axes, self.decoded.axes)


class Sliders:
    """A code of a larger VAE, moved along the dimensions that differ most between digits."""

    def __init__(self, figure, vae, images):
        self.vae, self.figure, self.codes, self.index = vae, figure, vae.encode(images).mean.numpy(), 0
        self.dimensions = np.argsort(-self.codes.var(0))[:SLIDERS]
        self.sliders = [
            Slider(
                figure.add_axes((0.07, 0.22 - 0.025 * i, 0.2, 0.02)),
                f"z[{dimension}]",
                -3,
                3,
                valinit=0,
                valfmt="%+.1f",
            )
            for i, dimension in enumerate(self.dimensions)
        ]
        for slider in self.sliders:
            slider.on_changed(self.show)
        self.decoded = picture(figure, (0.35, 0.02, 0.1, 0.2), f"{vae.latent}-d z: sliders for {SLIDERS}")
        self.button = Button(figure.add_axes((0.455, 0.1, 0.04, 0.05)), "next\ndigit")
        self.button.on_clicked(self.next)
        self.next()

    def next(self, event=None):
        self.index = (self.index + 1) % len(self.codes)
        self.code = self.codes[self.index].copy()
        for slider, value in zip(self.sliders, self.code[self.dimensions]):
            slider.eventson = False  # no event until all are set
            slider.set_val(value)
            slider.eventson = True
        self.show()

    @no_grad()
    def show(self, value=None):
        self.code[self.dimensions] = [slider.val for slider in self.sliders]
        self.decoded.set_data(self.vae.decode(self.code[None]).numpy()[0, 0])
        redraw(self.decoded.axes)


class Canvas:
    """The drawing, and the model's completions of it."""

    def __init__(self, figure, model):
        self.model, self.figure, self.last = model, figure, None
        self.drawing = picture(figure, (0.53, 0.5, 0.19, 0.42), "draw (right button: erase), then paint")
        self.probabilities = picture(figure, (0.53, 0.03, 0.19, 0.42), "probability of ink, first image")
        self.painted = picture(
            figure, (0.74, 0.42, 0.25, 0.5), f"{COMPLETIONS} completions by Gated PixelCNN", columns=3, rows=2
        )
        choices = figure.add_axes((0.74, 0.03, 0.06, 0.36), title="class")
        choices.title.set_fontsize(9)
        self.classes = RadioButtons(choices, ["any", *map(str, range(10))])
        self.temperature = Slider(figure.add_axes((0.88, 0.32, 0.08, 0.03)), "temperature ", 0.3, 1.5, valinit=1)
        self.seed = Slider(figure.add_axes((0.88, 0.26, 0.08, 0.03)), "seed ", 0, 99, valinit=0, valstep=1)
        self.buttons = []
        for y, label, action in ((0.15, "paint", self.paint), (0.07, "clear", self.clear)):
            self.buttons.append(Button(figure.add_axes((0.84, y, 0.12, 0.06)), label))
            self.buttons[-1].on_clicked(action)
        self.timer = figure.canvas.new_timer(interval=1)
        self.timer.add_callback(self.go_on)
        for event in ("button_press_event", "motion_notify_event", "button_release_event"):
            figure.canvas.mpl_connect(event, self.draw)
        self.clear()

    def clear(self, event=None):
        self.ink = np.zeros((28, 28), np.uint8)
        self.restart()

    def restart(self):
        """Stop painting, and show only the drawing."""
        self.timer.stop()
        self.given = np.arange(28)[:, None] <= np.max(np.flatnonzero(self.ink.any(1)), initial=-1)
        self.drawing.set_data(np.where(self.given, self.ink, np.nan))
        self.show(0, np.zeros((COMPLETIONS, 1, 28, 28)))

    def draw(self, event):
        elsewhere = event.inaxes is not self.drawing.axes or self.figure.canvas.widgetlock.locked()
        if elsewhere or event.button not in (1, 3) or event.name == "button_release_event":
            self.last = None
            return
        now = np.array([event.ydata, event.xdata])
        start = now if self.last is None or event.name == "button_press_event" else self.last
        for y, x in start + np.linspace(0, 1, 20)[:, None] * (now - start):  # the mouse may have jumped
            near = np.hypot(np.arange(28)[:, None] - y, np.arange(28) - x) < 1.3
            self.ink[near] = event.button == 1
        self.last = now
        self.restart()

    def paint(self, event):
        self.restart()
        rng, choice = np.random.default_rng(self.seed.val), self.classes.value_selected
        self.heat = self.temperature.val
        self.labels = rng.integers(0, 10, COMPLETIONS) if choice == "any" else np.full(COMPLETIONS, int(choice))
        given = np.broadcast_to(self.ink, (COMPLETIONS, 1, 28, 28))
        painting = self.model.sample_rows(COMPLETIONS, rng, self.labels, given, self.given, self.heat)
        self.painting = enumerate(painting, start=1)
        self.timer.start()

    def go_on(self):
        """Paint two more rows; between calls the page responds to events."""
        next(self.painting)
        rows, images = next(self.painting)
        self.show(rows, images)
        if rows == 28:
            self.timer.stop()

    @no_grad()
    def show(self, rows, images):
        """Show the first ``rows`` rows of the completions, and the probabilities from which the first was drawn."""
        p = np.zeros((28, 28))
        if rows:
            logits = self.model.logits(images[:1], labels=self.labels[:1]).numpy()[0, 0, 0]
            p = 1 / (1 + np.exp(-logits / self.heat))
        known = np.arange(28)[:, None] < rows
        self.painted.set_data(tile(np.where(known, images, np.nan), 3))
        self.probabilities.set_data(np.where(known, p, np.nan))
        redraw(self.drawing.axes, self.painted.axes, self.probabilities.axes)


def build():
    """The panels of a new figure. It responds only while they are referenced."""
    figure = plt.figure("tinygen: codes to walk through, digits to finish", figsize=(12.8, 6.8))
    digits = data.digits()
    binary = data.binarize_static(digits.train_images, seed=0)
    with no_grad():
        plane = Plane(figure, pretrained("vae-2d"), binary, digits.train_labels)
        sliders = Sliders(figure, pretrained("vae"), binary[:100])
        return plane, sliders, Canvas(figure, pretrained("gated-pixelcnn-classes"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--window", action="store_true", help="a window of the desktop instead of the browser")
    parser.add_argument("--port", type=int, default=8988, help="of the page (default: %(default)s)")
    options = parser.parse_args()
    if not 1 <= options.port < 2**16:
        parser.error(f"--port: got {options.port}, needs a number from 1 to 65535")
    if options.window:
        if plt.get_backend().lower() == "agg":
            parser.error("--window: matplotlib finds no display or no window toolkit; without it the browser is used")
    else:
        try:
            plt.switch_backend("webagg")
        except (ImportError, RuntimeError):
            parser.error("the page needs tornado: pip install 'tinygen[web]', or --window for a window of the desktop")
        plt.rcParams.update({"webagg.port": options.port, "webagg.port_retries": 1, "webagg.address": "127.0.0.1"})
    panels = build()  # noqa: F841
    if options.window:
        plt.show()
        return
    from server import Server  # needs tornado

    try:
        Server.initialize()
    except SystemExit:
        parser.error(f"--port: {options.port} is taken, needs another")
    print(f"http://127.0.0.1:{options.port}/")
    webbrowser.open(f"http://127.0.0.1:{options.port}/")
    Server.start()


if __name__ == "__main__":
    run(main)
