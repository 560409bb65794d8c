"""A generative adversarial network: noise becomes digits while two players learn, and mode collapse. Two minutes.

A generator makes images of noise z, and a discriminator learns to tell them from digits; each gets better on account
of the other. There is no likelihood to watch, so the pictures show what the same z become in the course of a training
in the Wasserstein form. Then the discriminator is made to stand still, while the generator goes on learning. Nothing
punishes it for making one image again and again, so of nearly any z it makes what this discriminator likes best, even
if that is no digit. This is mode collapse, provoked on purpose. In a game where the generator learns faster, it
happens by itself: the discriminator finds the image out, the generator moves on to another one, and so forth.
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
    "steps": (1200, "of training, with 64 digits each"),
    "alone": (100, "steps in which the generator learns alone"),
}
TIMES = 4  # at which pictures are taken while both learn, the start included


def train(model, images, steps, every, look, config):
    """Train what does not stand still of the GAN; ``look(step)`` is called after every so many steps."""
    fit(
        model,
        images,
        steps=steps,
        optimizer=Adam(model.parameters(), 1e-3, (0.5, 0.9)),
        rng=np.random.default_rng(config.seed),
        averaging=0.98,
        validate_every=every,
        callback=lambda row: look(row["step"]),
    )


def spread(images):
    """The mean Euclidean distance between two of the images (N, C, H, W)."""
    x = images.reshape(len(images), -1)
    return np.linalg.norm(x[:, None] - x, axis=2).sum() / (len(x) * (len(x) - 1))


def draw(panels):
    """``panels``: {title: (36, 1, 28, 28)}."""
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    for ax, (title, images) in zip(figure.subplots(1, len(panels)), panels.items()):
        draw_images(ax, images, 6, title)
    return figure


def main():
    config = options(__doc__, CONFIG)
    model = GAN(form="wasserstein", channels=(16, 32, 64), rng=np.random.default_rng(config.seed)).to(config.device)
    images, panels = data.digits().train_images / np.float32(255), {}

    def look(title):
        made = to_host(model.sample(100, np.random.default_rng(config.seed)))
        print(f"{title:<28} mean distance between two images {spread(made):5.2f}", flush=True)
        panels[title] = made[:36]

    print(f"{'100 digits':<28} mean distance between two images {spread(images[:100]):5.2f}")
    look("the same z before training")
    every = max(1, config.steps // (TIMES - 1))
    train(model, images, config.steps, every, lambda step: look(f"after {step:,} steps"), config)
    model.discriminator.requires_grad = False
    train(model, images, config.alone, config.alone, lambda step: look(f"{step:,} steps alone"), config)
    save(draw(panels), config.out, "19_gan")


if __name__ == "__main__":
    run(main)
