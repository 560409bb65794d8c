"""A generative stochastic network: a denoising autoencoder is run as a Markov chain that draws digits. Two minutes.

A step of the chain spoils a digit, by salt and pepper on two fifths of its pixels, and draws a clean one from what the
network makes of it. The network only learns to undo the damage. If it does so perfectly, the chain visits digits as
often as the data have them. An imperfect network leads the chain to images that training has never spoiled, from
where it knows no way back. Walkback trains on the chain's own way: from wherever it has gone, back to the digit.
"""

import numpy as np
from common import options, run, save
from matplotlib.figure import Figure

from tinygen import data, no_grad
from tinygen.backend import to_device, to_host
from tinygen.models import GSN
from tinygen.optim import Adam, cosine
from tinygen.plotting import draw_images
from tinygen.training import fit

CONFIG = {
    "steps": (600, "of both trainings, with 64 digits each"),
    "hidden": (400, "units of both layers", 1, 5000),
    "chain": (60, "steps of the chains that begin with noise", 1, 100_000),
}
COLUMNS = 10  # steps of the chain that are shown


def train(walkback, images, config):
    """A GSN trained with so many steps of walkback."""
    model = GSN(hidden=(config.hidden,) * 2, walkback=walkback, rng=np.random.default_rng(config.seed))
    fit(
        model.to(config.device),
        images,
        steps=config.steps,
        optimizer=Adam(model.parameters(), 1e-3),
        rng=np.random.default_rng(config.seed),
        schedule=cosine,
    )
    return model


def way(model, digits, rng):
    """(N * 2 * COLUMNS, 1, 28, 28): for each digit a row of x~ and a row of the means of P(x|x~), step after step."""
    passed = model.chain(digits, rng, COLUMNS)
    rows = np.stack([np.stack([to_host(spoilt), to_host(mean)]) for spoilt, _, mean in passed])  # (steps, 2, N, ...)
    return rows.transpose(2, 1, 0, 3, 4, 5).reshape(-1, *digits.shape[1:])


@no_grad()
def errors(model, images, seed, steps):
    """Mean of -log P(x|x~) in nats at the first and at the last of so many steps of the chain from the images x."""
    sums = []
    for k in (1, steps - 1, steps):  # the score is the mean over k steps
        model.walkback = k
        sums.append(k * float(model.score(images, np.random.default_rng(seed)).numpy().mean()))
    return sums[0], sums[2] - sums[1]


def draw(ways, noise):
    """The rows of the chain, and {title: images where chains from noise have come}."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    axes = figure.subplots(1, 1 + len(noise), width_ratios=(1.3, *[1] * len(noise)))
    draw_images(axes[0], ways, COLUMNS, "two chains: spoilt, and cleaned", ["x~", "P(x|x~)"] * 2)
    for ax, (title, images) in zip(axes[1:], noise.items()):
        draw_images(ax, images, 8, title)
    return figure


def main():
    config = options(__doc__, CONFIG)
    digits = data.digits()
    images, tested = digits.train_images / np.float32(255), digits.test_images / np.float32(255)
    on_device = to_device(tested, config.device)
    noise = {}
    print("mean of -log P(x|x~), nats per image, on 500 test digits")
    print(f"{'trained with':<24}{'first step':>12}{'fifth step':>12}")
    for walkback in (1, 4):
        model = train(walkback, images, config)
        first, last = errors(model, on_device, config.seed, 5)
        name = f"walkback of {walkback}" if walkback > 1 else "no walkback"
        print(f"{name:<24}{first:>12.1f}{last:>12.1f}")
        rng = np.random.default_rng(config.seed)
        noise[f"{name}: {config.chain} steps from noise"] = to_host(model.sample_means(64, rng, steps=config.chain))
    ways = way(model, on_device[::260], np.random.default_rng(config.seed))
    save(draw(ways, noise), config.out, "20_gsn")


if __name__ == "__main__":
    run(main)
