"""A flow in continuous time: noise moves along a velocity field until it is data. A minute and a half.

FFJORD learns a velocity f(z, t), a small network. Points begin as standard normal noise at time 0, follow dz/dt = f(z, t)
and are samples at time 1. Walked backwards, the same path turns a data point into noise, and the divergence of f along
the way says how much the density changes: so log p(x) is known, and training maximizes it. Here the true densities
are known too. The demo prints the model's mean score on new points, in nats, beside the entropy of the true density,
which no model can go below; the difference is KL(true || model).
"""

import numpy as np
from common import options, run, save
from matplotlib.figure import Figure

from tinygen import no_grad
from tinygen.backend import to_device
from tinygen.densities import DENSITIES
from tinygen.models import FFJORD
from tinygen.optim import Muon, cosine
from tinygen.training import fit

CONFIG = {
    "steps": (300, "of training for each density"),
    "hidden": (64, "units in each of the three layers of the velocity"),
    "points": (1500, "new points that the score is taken on, and samples that are drawn"),
}
GRID = np.linspace(-2.6, 2.6, 90)
TIMES = np.linspace(0, 1, 41)  # of the paths that are drawn


def trained(density, config, rng):
    """An FFJORD that has learned from 50,000 points of the density."""
    model = FFJORD(hidden=3 * (config.hidden,), steps=STEPS, rtol=1e-4, rng=rng).to(config.device)
    fit(
        model,
        density.sample(50_000, rng).astype(np.float32),
        steps=config.steps,
        optimizer=Muon(model.parameters(), 2e-2),
        rng=rng,
        batch_size=256,
        schedule=cosine,
        averaging=0.98,
    )
    return model


@no_grad()
def log_density(model, x):
    """log p(x) in nats of points on the host"""
    return model.log_prob(to_device(x.astype(np.float32), model.device)).numpy().astype(float)


@no_grad()
def paths(model, n, rng):
    """(times, n, 2): where n points of noise are at each of TIMES"""
    z = to_device(rng.standard_normal((n, 1, 1, 2), np.float32), model.device)
    (layer,), places = model.scales[0], [z]
    for start, stop in zip(TIMES[:-1], TIMES[1:]):
        z = layer.path(z, start, stop)
        places.append(z.data)
    return np.stack(places)
