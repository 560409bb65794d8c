"""A flow in continuous time: noise moves along a velocity field until it is data. A minute and a half.

FFJORD learns a velocity f(z, t), a small network. Points begin as normal noise at time 0, follow dz/dt = f(z, t) and
are samples at time 1. Walked backwards, the same path turns a data point into noise, and the divergence of f along the
way says how much the density changes: so log p(x) is known, and training maximizes it. Here the true densities are
known too. The demo prints the model's mean score on new points, in nats, beside the entropy of the true density, which
no model can go below; the difference is KL(true || model).
"""

import numpy as np
from common import options, run, save
from matplotlib.figure import Figure

from tinygen import Tensor, no_grad
from tinygen.backend import to_device, to_host
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
TIMES = np.linspace(0, 1, 41).tolist()  # of the paths that are drawn


def trained(density, config, rng):
    """An FFJORD that has learned from 50,000 points of the density."""
    model = FFJORD(hidden=3 * (config.hidden,), rtol=1e-4, rng=rng).to(config.device)
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
    (layer,) = model.scales[0]
    z = to_device(rng.standard_normal((n, 1, 1, 2), np.float32), model.device)
    places = [z]
    for start, stop in zip(TIMES[:-1], TIMES[1:]):
        z = layer.path(Tensor(z), start, stop).data
        places.append(z)
    return np.stack([to_host(place) for place in places])


def draw(figure, results, rng):
    """A row for each density: the true one, the model's, samples, and the paths of noise to them."""
    plane = np.stack(np.meshgrid(GRID, GRID), -1).reshape(-1, 1, 1, 2)
    rows = figure.subplots(len(results), 4, sharex=True, sharey=True)
    for row, (name, (density, model, samples, gap)) in zip(rows, results.items()):
        true, learned = np.exp(density.log_prob(plane)), np.exp(log_density(model, plane))
        for ax, p in zip(row, (true, learned)):
            picture = ax.pcolormesh(GRID, GRID, p.reshape(len(GRID), -1), vmin=0, vmax=true.max(), cmap="magma_r")
            figure.colorbar(picture, ax=ax, label="density")
        row[2].plot(*samples.reshape(-1, 2).T, ".", markersize=2, color="C0")
        way = paths(model, 60, rng).reshape(len(TIMES), -1, 2)
        row[3].plot(*way.transpose(2, 0, 1), linewidth=0.8, color="0.6")
        row[3].plot(*way[0].T, "o", markersize=3, color="C1", label="noise, t = 0")
        row[3].plot(*way[-1].T, "o", markersize=3, color="C0", label="sample, t = 1")
        row[0].set_ylabel(f"{name}\nx2")
        row[1].set_title(f"{gap:.2f} nats above the entropy", fontsize=9)
        row[0].set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
        for ax in row:
            ax.set_aspect("equal")
    for ax, title in zip(rows[0], ("true density", "density of the flow", "samples", "60 paths from noise to samples")):
        ax.set_title(f"{title}\n{ax.get_title()}", fontsize=10)
    for ax in rows[-1]:
        ax.set_xlabel("x1")
    rows[0, 3].legend(fontsize=7, loc="upper right")


def main():
    config = options(__doc__, CONFIG)
    rng, results = np.random.default_rng(config.seed), {}
    print(f"{'density':<16} {'entropy':>8} {'score':>8} {'KL':>16}   nats, of {config.points:,} new points")
    for name, density in DENSITIES.items():
        model = trained(density, config, rng)
        x = density.sample(config.points, rng)
        kl = density.log_prob(x) - log_density(model, x)
        error = kl.std() / len(x) ** 0.5
        entropy, gap = density.entropy, kl.mean()
        print(f"{name:<16} {entropy:>8.3f} {entropy + gap:>8.3f} {gap:>8.3f} +- {error:.3f}", flush=True)
        results[name] = density, model, to_host(model.sample(config.points, rng)), gap
    figure = Figure(figsize=(14, 12), layout="constrained")
    draw(figure, results, rng)
    save(figure, config.out, "09_ffjord")


if __name__ == "__main__":
    run(main)
