"""FFJORD beside Real NVP with about as many parameters and the same minutes: densities in the plane, digits of 8 x 8.

    python benchmarks/densities.py                            # four densities and the digits, two minutes a training
    python benchmarks/densities.py "two moons" --minutes 0.5  # one of them

Prints for each the mean score of both models on 5,000 new points, in nats, beside the entropy of the true density,
which no model can go below, and the difference of these two with its standard error. The digits (scikit-learn's, values
0 to 16) come from ``digits_8x8.npz`` in the folder that TINYGEN_DATA names; the last 297 are for testing, and the score
is in bits per dimension, that of P(x + u) with u uniform on [0, 1).
"""

import argparse
import os
from pathlib import Path

import numpy as np

from tinygen.densities import DENSITIES
from tinygen.models import FFJORD, RealNVP, bits_per_dim
from tinygen.nn import Module
from tinygen.optim import Muon, cosine
from tinygen.tensor import no_grad
from tinygen.training import fit

DIGITS = "digits of 8 x 8"
PLANE = {  # the constructor's arguments and the learning rate, 17,284 and 17,084 parameters
    FFJORD: ({"hidden": (64, 64, 64), "rtol": 1e-4}, 2e-2),
    RealNVP: ({"image_shape": (1, 1, 2), "levels": None, "couplings": 4, "hidden": 30, "blocks": 2}, 5e-3),
}
IMAGES = {  # 66,176 and 66,764 parameters
    FFJORD: ({"image_shape": (1, 8, 8), "levels": 17, "hidden": (128, 128), "rtol": 1e-3}, 1e-2),
    RealNVP: ({"image_shape": (1, 8, 8), "levels": 17, "hidden": 15}, 5e-3),
}


def digits():
    """1,500 digits to train on and 297 to test with, uint8 (N, 1, 8, 8) of values 0 to 16."""
    with np.load(Path(os.environ.get("TINYGEN_DATA", ".")) / "digits_8x8.npz") as file:
        images = file["images"][:, None]
    return images[:1500], images[1500:]


def trained(model, images, minutes, lr, batch_size) -> Module:
    """The model after so many minutes, with averaged weights."""
    options = {"rng": np.random.default_rng(0), "batch_size": batch_size, "averaging": 0.99, "progress": False}
    fit(model, images, seconds=60 * minutes, optimizer=Muon(model.parameters(), lr), schedule=cosine, **options)
    return model


@no_grad()
def scores(model, images):
    """(N,): in nats, as many images at once as the memory easily holds"""
    rng = np.random.default_rng(2)
    return np.concatenate([model.score(images[i : i + 1000], rng).numpy() for i in range(0, len(images), 1000)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*DENSITIES, DIGITS], help="which (default: all)")
    parser.add_argument("--minutes", type=float, default=2.0, help="of each training")
    given = parser.parse_args()
    print(f"{'':<16} {'model':<8} {'parameters':>10} {'entropy':>8} {'score':>8} {'above':>7} {'+-':>6}")
    for name in given.names:
        for kind, (settings, lr) in (IMAGES if name == DIGITS else PLANE).items():
            model = kind(**settings, rng=np.random.default_rng(0))
            if name == DIGITS:
                train, test = digits()
                nats = scores(trained(model, train, given.minutes, lr, 64), test)
                columns = f"{'':>8} {bits_per_dim(nats.mean(), (1, 8, 8)):>8.3f} bits per dimension"
            else:
                density, rng = DENSITIES[name], np.random.default_rng(1)
                train, test = (density.sample(n, rng).astype(np.float32) for n in (100_000, 5000))
                above = scores(trained(model, train, given.minutes, lr, 256), test) + density.log_prob(test)
                entropy, error = density.entropy, above.std() / len(above) ** 0.5
                columns = f"{entropy:>8.3f} {entropy + above.mean():>8.3f} {above.mean():>7.3f} {error:>6.3f}"
            print(f"{name:<16} {kind.__name__:<8} {model.num_parameters():>10,} {columns}", flush=True)


if __name__ == "__main__":
    main()
