"""Density estimation by maximum likelihood, in one dimension and, by the chain rule, in two. About ten seconds.

In one dimension a mixture of Gaussians is fitted to draws from a known density, by maximizing the mean of log p(x). In
two dimensions p(x1, x2) = p(x1) p(x2 | x1). The first factor is again a mixture; the second is a mixture whose
weights, means and variances are computed from x1 by a small network. PixelCNN does the same with 784 factors. The
demo prints the Kullback-Leibler divergence of the learned density from the true one, in nats.
"""

import numpy as np
from common import options, run, save
from matplotlib.figure import Figure
from tqdm import trange

from tinygen import Tensor, no_grad, ops
from tinygen.backend import to_device
from tinygen.distributions import Gaussian
from tinygen.nn import Linear, Module, Parameter
from tinygen.optim import Adam

CONFIG = {
    "steps": (1500, "steps of training for each density"),
    "draws": (5000, "numbers drawn from each true density"),
    "components": (8, "of each mixture"),
}
LINE, GRID = np.linspace(-4.5, 5, 500), np.linspace(-4, 4, 200)  # where densities are drawn
TRUE = np.array([(0.4, -2.0, 0.6), (0.35, 0.0, 0.25), (0.25, 2.0, 0.9)])  # weight, mean, standard deviation


class Mixture(Module):
    """A mixture of Gaussians p(x). Its parameters are the means, the log-variances and the logits of the weights."""

    def __init__(self, components, rng):
        self.logits = Parameter(np.zeros(components, np.float32))
        self.means = Parameter(rng.standard_normal(components, np.float32))
        self.log_vars = Parameter(np.zeros(components, np.float32))

    def log_prob(self, x):
        return mixture_log_prob(x[:, -1:], self.logits, self.means, self.log_vars)


class ConditionalMixture(Module):
    """p(x2 | x1): a mixture whose parameters a network computes from x1 (mixture density network, Bishop 1994)."""

    def __init__(self, components, rng, hidden=32):
        self.into = Linear(1, hidden, rng=rng, gain=4.0)
        self.middle = Linear(hidden, hidden, rng=rng)
        self.out = Linear(hidden, 3 * components, rng=rng)

    def log_prob(self, x):
        h = ops.tanh(self.middle(ops.tanh(self.into(x[:, :1]))))
        return mixture_log_prob(x[:, 1:], *ops.split(self.out(h), 3, axis=1))


def mixture_log_prob(x, logits, means, log_vars):
    """x (N, 1), the rest (K,) or (N, K) -> (N,): log sum_k w_k N(x; m_k, v_k), w = softmax(logits), in nats."""
    return ops.logsumexp(ops.log_softmax(logits) + Gaussian(means, log_vars).log_prob(x), axis=1)


def true_1d(x):
    """The true density at x."""
    return sum(w * np.exp(-0.5 * ((x - m) / s) ** 2) / (s * np.sqrt(2 * np.pi)) for w, m, s in TRUE)


def draw_1d(n, rng):
    _, means, deviations = TRUE[rng.choice(len(TRUE), n, p=TRUE[:, 0])].T
    return (means + deviations * rng.standard_normal(n))[:, None]


def branches(x1):
    """x2 lies on one of two curves, each with probability 1/2, with Gaussian noise of 0.2."""
    return np.stack([np.sin(2 * x1) + 1, -0.3 * x1**2])


def true_2d(x1, x2):
    normal = np.exp(-0.5 * ((x2 - branches(x1)) / 0.2) ** 2) / (0.2 * np.sqrt(2 * np.pi))
    return true_1d(x1) * normal.mean(0)


def draw_2d(n, rng):
    x1 = draw_1d(n, rng)[:, 0]
    x2 = branches(x1)[rng.integers(2, size=n), np.arange(n)] + 0.2 * rng.standard_normal(n)
    return np.stack([x1, x2], axis=1)


def maximize_likelihood(factors, x, config, rng):
    """Minimize the mean of -log p(x) with Adam in minibatches of 250; ``factors`` are those of the chain rule."""
    optimizer = Adam([p for f in factors for p in f.parameters()], lr=0.01)
    for _ in trange(config.steps, unit="step", desc=f"{len(factors)}-d", disable=None):
        batch = Tensor(to_device(x[rng.integers(len(x), size=250)].astype(np.float32), config.device))
        optimizer.zero_grad()
        (-log_prob(factors, batch).mean()).backward()
        optimizer.step()


def log_prob(factors, x):
    """log p(x1) + log p(x2 | x1) + ..., (N,): each factor sees the numbers up to its own."""
    return sum((f.log_prob(x[:, : i + 1]) for i, f in enumerate(factors)), start=0)


@no_grad()
def log_density(factors, x, device):
    return log_prob(factors, Tensor(to_device(x.astype(np.float32), device))).numpy().astype(float)


def draw(draws, curves, planes):
    """The draws (N,), the densities {name: (500,)} on LINE, and those {name: (200 * 200,)} on the square of GRID."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    axes[0].hist(draws, 80, density=True, color="0.85", label="draws")
    for style, (name, p) in zip(("k", "C3--"), curves.items()):
        axes[0].plot(LINE, p, style, label=f"{name} density")
    axes[0].set(xlabel="x", ylabel="density p(x)", title="1-d: a mixture of Gaussians")
    axes[0].legend()
    for ax, (name, p) in zip(axes[1:], planes.items()):
        picture = ax.pcolormesh(GRID, GRID, p.reshape(200, 200), vmin=0, vmax=planes["true"].max(), cmap="magma_r")
        ax.set(xlabel="x1", ylabel="x2", title=f"2-d, {name}")
    figure.colorbar(picture, ax=axes[1:], label="density p(x1, x2)")
    return figure


def main():
    config = options(__doc__, CONFIG)
    rng = np.random.default_rng(config.seed)
    one = [Mixture(config.components, rng).to(config.device)]
    two = [m.to(config.device) for m in (Mixture(config.components, rng), ConditionalMixture(config.components, rng))]
    for factors, draws, true in ((one, draw_1d, lambda x: true_1d(x[:, 0])), (two, draw_2d, lambda x: true_2d(*x.T))):
        maximize_likelihood(factors, draws(config.draws, rng), config, rng)
        x = draws(100_000, rng)
        kl = np.log(true(x)) - log_density(factors, x, config.device)
        error = kl.std() / len(x) ** 0.5
        print(f"{len(factors)}-d: KL(true || learned) = {kl.mean():.4f} +- {error:.4f} nats, from 100,000 new draws")

    plane = np.stack(np.meshgrid(GRID, GRID), axis=-1).reshape(-1, 2)
    curves = {"true": true_1d(LINE), "learned": np.exp(log_density(one, LINE[:, None], config.device))}
    planes = {"true": true_2d(*plane.T), "learned: p(x1) p(x2 | x1)": np.exp(log_density(two, plane, config.device))}
    save(draw(draw_1d(config.draws, rng)[:, 0], curves, planes), config.out, "01_density")


if __name__ == "__main__":
    run(main)
