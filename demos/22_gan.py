"""Generative adversarial networks: noise becomes digits while two players learn, and mode collapse. Two minutes.

A generator makes images of noise z, and a discriminator learns to tell them from digits; each gets better on account
of the other. There is no likelihood to watch. The upper pictures show what the same z become in the course of a
training in the Wasserstein form. The lower ones are of points in the plane, in eight heaps on a circle. A generator
fools its discriminator as well with one heap as with eight, as long as it moves on when it is found out. In the
non-saturating form at a high rate it does: this is mode collapse, provoked here on purpose. The critic of the
Wasserstein form, whose slope is held near 1, shows the way to all heaps.
"""

import numpy as np
from common import options, run, save
from matplotlib.figure import Figure

from tinygen import data
from tinygen.backend import to_host
from tinygen.models import GAN
from tinygen.optim import Adam
from tinygen.plotting import draw_images
from tinygen.training import fit

CONFIG = {
    "steps": (1200, "of training on digits, 64 at a time"),
    "points": (1500, "steps of training on points, 128 at a time"),
}
SHOWN = 4  # times at which pictures are taken, the start included
HEAPS, RADIUS, SPREAD = 8, 0.35, 0.01  # of points around (1/2, 1/2)


def watched(model, images, steps, rate, betas, batch_size, config):
    """Train the GAN. Returns what it makes of 36 z at SHOWN steps, and these steps."""
    every, seen, at = max(1, steps // (SHOWN - 1)), [], [0]

    def look():
        seen.append(to_host(model.sample(36, np.random.default_rng(config.seed))))

    def callback(row):
        look()
        at.append(row["step"])

    look()
    options = {"batch_size": batch_size, "averaging": 0.99, "validate_every": every, "callback": callback}
    optimizer = Adam(model.parameters(), rate, betas)
    fit(model, images, steps=steps, optimizer=optimizer, rng=np.random.default_rng(config.seed), **options)
    return seen, at


def heaps(n, rng):
    """(n, 1, 1, 2): points in HEAPS Gaussian heaps on a circle, and the centres (HEAPS, 2)."""
    angles = 2 * np.pi * np.arange(HEAPS) / HEAPS
    centres = 0.5 + RADIUS * np.stack([np.cos(angles), np.sin(angles)], 1)
    points = centres[rng.integers(HEAPS, size=n)] + SPREAD * rng.standard_normal((n, 2))
    return points.reshape(n, 1, 1, 2).astype(np.float32), centres


def hit(points, centres):
    """How many heaps have at least a fortieth of the points within 5 deviations, and the share of such points."""
    distances = np.linalg.norm(points.reshape(-1, 1, 2) - centres, axis=2)
    near = distances.min(1) < 5 * SPREAD
    counts = np.bincount(distances.argmin(1)[near], minlength=len(centres))
    return int((counts >= len(points) / 40).sum()), near.mean()


def draw(digits, at, points):
    """The images of the same z at the steps ``at``; ``points``: {title: (n, 1, 1, 2)}."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    above, below = figure.subfigures(2, 1)
    for ax, images, step in zip(above.subplots(1, len(at)), digits, at):
        draw_images(ax, images, 6, f"the same z after {step:,} steps")
    for ax, (title, part) in zip(below.subplots(1, len(points)), points.items()):
        ax.scatter(*part.reshape(-1, 2).T, s=2, color="black")
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=(), yticks=())
        ax.set_title(title, fontsize=9)
    return figure


def main():
    config = options(__doc__, CONFIG)
    model = GAN(form="wasserstein", channels=(16, 32, 64), rng=np.random.default_rng(config.seed)).to(config.device)
    images = data.digits().train_images / np.float32(255)
    seen, at = watched(model, images, config.steps, 1e-3, (0.5, 0.9), 64, config)

    real, centres = heaps(20_000, np.random.default_rng(config.seed))
    panels = {"points": real[:1000]}
    for form, betas in {"non-saturating": (0.9, 0.99), "wasserstein": (0.5, 0.9)}.items():
        gan = GAN((1, 1, 2), 2, form, (64, 64), rng=np.random.default_rng(config.seed)).to(config.device)
        watched(gan, real, config.points, 3e-3, betas, 128, config)
        made = to_host(gan.sample(1000, np.random.default_rng(config.seed)))
        found, share = hit(made, centres)
        print(f"{form}: {found} of {HEAPS} heaps, {100 * share:.0f} % of the points in them")
        panels[f"{form}: {found} of {HEAPS} heaps"] = made
    save(draw(seen, at, panels), config.out, "22_gan")


if __name__ == "__main__":
    run(main)
