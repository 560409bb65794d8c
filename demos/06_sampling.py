"""Sampling one pixel after the other: the cache against the textbook loop, temperature, completions. Half a minute.

Each pixel is drawn given all before it, so an image of 784 pixels needs 784 steps. The textbook loop runs the whole
network in each of them and uses one pixel of its output. But what a layer has computed at the pixels before never
changes, so the cache keeps it and computes the new pixel alone: the work for an image then grows as its pixels, not as
their square. Both draw the same images. The demo measures both with new models of 16 channels and 7 layers, and then
draws with the PixelCNN that ships. A temperature divides the logits: below 1 likely values become likelier. To
complete an image, its given pixels are kept and the others are drawn.
"""

import time

import numpy as np
from common import TRAIN, options, run, save, trained
from matplotlib.figure import Figure

from tinygen import data
from tinygen.backend import to_host
from tinygen.models import PixelCNN, PixelRNN
from tinygen.plotting import draw_images

CONFIG = {"side": (28, "of the largest images that are timed, in pixels", 4, 64), **TRAIN}
TEMPERATURES = (0.5, 0.7, 1.0, 1.3, 1.6)
ROWS = (7, 14, 21, 28)  # after which growing images are shown
UNKNOWN = 0.15  # the grey of pixels that are not drawn yet
MODELS = {
    "PixelCNN": lambda shape, rng: PixelCNN(shape, channels=16, blocks=7, rng=rng),
    "Row LSTM": lambda shape, rng: PixelRNN("row", shape, channels=16, rng=rng),
}


def seconds(sampler, n, seed):
    """For each of n images that are drawn together."""
    begun = time.perf_counter()
    to_host(sampler(n, np.random.default_rng(seed)))  # to_host waits for the device
    return (time.perf_counter() - begun) / n


def measure(config):
    """{model: (3, 2)}: seconds for one image with the cache and by the loop, at a quarter, a half, the whole side."""
    found = {}
    print("seconds for an image of   pixels     loop    cache  ratio   cache, each of 16 together")
    for name, constructor in MODELS.items():
        for side in (config.side // 4, config.side // 2, config.side):
            model = constructor((1, side, side), np.random.default_rng(config.seed)).to(config.device)
            loop, cache = (seconds(f, 1, config.seed) for f in (model.sample_by_definition, model.sample))
            found.setdefault(name, []).append((cache, loop))
            together = seconds(model.sample, 16, config.seed)
            print(f"{name:<25} {side**2:6} {loop:8.3f} {cache:8.3f} {loop / cache:6.0f} {together:28.4f}")
    return {name: np.array(times) for name, times in found.items()}


def growing(model, n, rng):
    """(len(ROWS) * n, 1, 28, 28): n images after each of ROWS, with UNKNOWN pixels."""
    after = []
    for rows, images in enumerate(model.sample_rows(n, rng), start=1):
        if rows in ROWS:
            after.append(np.where(np.arange(28)[:, None] < rows, to_host(images), UNKNOWN))
    return np.concatenate(after)


def complete(model, digits, n, rng):
    """Each digit's upper half, n completions and the digit: (len(digits) * (n + 2), 1, 28, 28)."""
    upper = np.arange(28)[:, None] < 14
    drawn = to_host(model.sample(len(digits) * n, rng, given=np.repeat(digits, n, axis=0), mask=upper))
    half = np.where(upper, digits, UNKNOWN)[:, None]
    return np.concatenate([half, drawn.reshape(-1, n, 1, 28, 28), digits[:, None]], axis=1).reshape(-1, 1, 28, 28)


def draw(pixels, times, grown, heated, completed):
    """Times of images of so many pixels, and the grids of images."""
    figure = Figure(figsize=(11, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    for color, (name, both) in zip(("C0", "C1"), times.items()):
        for style, way, values in zip(("o-", "o--"), ("cache", "textbook loop"), both.T):
            axes[0, 0].loglog(pixels, values, style, color=color, label=f"{name}, {way}")
    axes[0, 0].set(xlabel="pixels of the image", ylabel="time for one image, seconds")
    axes[0, 0].set_xticks(pixels, pixels)
    axes[0, 0].yaxis.set_major_formatter("{x:g}")
    axes[0, 0].minorticks_off()
    axes[0, 0].set_title("drawing one image, pixel by pixel", fontsize=9)
    axes[0, 0].grid(alpha=0.3)
    axes[0, 0].legend()
    draw_images(axes[0, 1], grown, 8, "eight images while they are drawn (grey: not yet)", [f"{k} rows" for k in ROWS])
    names = [f"temperature {t}" for t in TEMPERATURES]
    draw_images(axes[1, 0], heated, 8, "the same random numbers at other temperatures", names)
    draw_images(axes[1, 1], completed, 8, "completions", heads=["given", *["drawn"] * 6, "truth"])
    return figure


def main():
    config = options(__doc__, CONFIG)
    times = measure(config)
    model, seed = trained("pixelcnn", config), config.seed
    grown = growing(model, 8, np.random.default_rng(seed))
    heated = [to_host(model.sample(8, np.random.default_rng(seed), temperature=t)) for t in TEMPERATURES]
    for t, images in zip(TEMPERATURES, heated):
        print(f"temperature {t}: {100 * images.mean():4.1f} % of the pixels are ink")
    digits = data.binarize_static(data.digits().test_images[:6], seed=0)
    completed = complete(model, digits, 6, np.random.default_rng(seed))
    pixels = [(config.side // k) ** 2 for k in (4, 2, 1)]
    save(draw(pixels, times, grown, np.concatenate(heated), completed), config.out, "06_sampling")


if __name__ == "__main__":
    run(main)
