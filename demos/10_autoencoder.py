"""The autoencoder: codes of several sizes against PCA, and why its codes cannot be sampled. About a minute.

An autoencoder learns to encode a digit in a few numbers and to decode it from them. PCA is the best linear map to as
many numbers; convolutions and ReLUs do better. But the code has no distribution of its own: training decides where
the digits lie, and codes that are drawn near them do not decode to digits. A VAE repairs that.
"""

import numpy as np
from common import options, run, save
from matplotlib.figure import Figure

from tinygen import data, no_grad
from tinygen.backend import to_device
from tinygen.models import PCA, Autoencoder
from tinygen.optim import Muon, cosine
from tinygen.plotting import draw_images
from tinygen.training import evaluate, fit

CONFIG = {"steps": (700, "of training for each size of the code, with 64 digits each")}
SIZES = (2, 8, 32)


def train(code, images, config):
    rng = np.random.default_rng(config.seed)
    model = Autoencoder(code=code, rng=rng).to(config.device)
    optimizer = Muon(model.parameters(), lr=0.005)
    fit(model, images, steps=config.steps, optimizer=optimizer, rng=rng, schedule=cosine, averaging=0.99)
    return model


def draw(reconstructions, decoded):
    """Grids of ten images {row: (10, 1, 28, 28)} and of 32 decoded codes {title: (32, 1, 28, 28)}."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    title = "reconstructions, by the size of the code"
    rows = np.clip(np.concatenate(list(reconstructions.values())), 0, 1)
    draw_images(left.subplots(), rows, 10, title, reconstructions)
    for ax, (title, images) in zip(right.subplots(1, len(decoded)), decoded.items()):
        draw_images(ax, np.clip(images, 0, 1), 4, title)
    right.suptitle(f"decoded codes of {SIZES[-1]} numbers", fontsize=10)
    return figure


def main():
    config = options(__doc__, CONFIG)
    rng = np.random.default_rng(config.seed)
    digits = data.digits()
    images, tested = (part.astype(np.float32) / 255 for part in (digits.train_images, digits.test_images))
    rows = {"digits": tested[:10]}
    for code in SIZES:
        model = train(code, images, config)
        linear = PCA(images, code).reconstruct(tested)
        rows[f"PCA, {code}"] = linear[:10]
        rows[f"autoencoder, {code}"] = model.reconstruct(to_device(tested[:10], config.device)).numpy()
        error, linear_error = evaluate(model, tested, rng), ((linear - tested) ** 2).sum((1, 2, 3)).mean()
        print(f"{code:2} numbers a code: squared error per image {error:5.2f}, PCA {linear_error:5.2f}")

    # Codes drawn uniformly from the range of the digits' codes, from a Gaussian fitted to them, and these codes
    with no_grad():
        codes = model.encode(to_device(images, config.device)).numpy()
    uniform = rng.uniform(codes.min(0), codes.max(0), (32, code))
    normal = rng.multivariate_normal(codes.mean(0), np.cov(codes.T), 32)
    codes_drawn = {
        "drawn uniformly\nfrom the digits' range": uniform,
        "drawn from a Gaussian\nfitted to the digits' codes": normal,
        "codes of digits": codes[:32],
    }
    decoded = {title: model.decode(to_device(z, config.device)).numpy() for title, z in codes_drawn.items()}
    save(draw(rows, decoded), config.out, "10_autoencoder")


if __name__ == "__main__":
    run(main)
