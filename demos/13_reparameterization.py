"""The reparameterization trick: how much less its gradient varies than the score function's. About ten seconds.

Training a VAE needs the gradient of E_q[f(z)] in m and s, with f(z) = log p(x|z) and z ~ q = N(m, s^2).

    score function       f(z) d log q(z) / d(m, s)         holds for any f, but uses only the value of f at z
    ... with a baseline  (f(z) - b) d log q(z) / d(m, s)   has the same mean; b is the mean of f over the other draws
    reparameterization   d f(m + s e) / d(m, s)            uses the direction in which f grows; e ~ N(0, 1)

All three have the right mean, but different variances. The demo prints the variance, summed over the gradient's
entries, for f(z) = -|z - 1|^2 / 2 in more and more dimensions, and for the decoder of the VAE that ships, at one digit.
"""

import numpy as np
from common import TRAIN, options, run, save, trained
from matplotlib.figure import Figure

from tinygen import Tensor, data, grad, no_grad, ops
from tinygen.backend import to_device
from tinygen.distributions import Gaussian

CONFIG = {
    "draws": (1000, "of z for every variance", 2, 100_000),
    "digit": (5, "which test digit", 0, 499),
    **TRAIN,
}
ESTIMATORS = ("score function", "score function with baseline", "reparameterization")


def gradients(f, mean, log_var, draws, rng):
    """{estimator: (draws, 2 D)}: one gradient of E f(z) in mean and log-variance, both (D,), for each draw of z."""
    rows = [Tensor(np.tile(t, (draws, 1)), requires_grad=True) for t in (mean, log_var)]  # a row for each draw
    q = Gaussian(*rows)
    z = q.rsample(rng)
    found = {"reparameterization": grad(f(z).sum(), rows)}
    z = z.detach()
    values = f(z).detach()
    score = grad(q.log_prob(z).sum(), rows)
    others = (values.data.sum() - values.data) / (draws - 1)
    found["score function"] = [g * values.reshape(-1, 1) for g in score]
    found["score function with baseline"] = [g * Tensor(values.data - others).reshape(-1, 1) for g in score]
    return {name: np.concatenate([g.numpy() for g in found[name]], axis=1) for name in ESTIMATORS}


def draw(dimensions, variances, gradient, dimension):
    """Variances {estimator: one for each of ``dimensions``}, and the VAE's gradient {estimator: one for each draw} in
    the mean of this dimension of z."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    left, middle, right = figure.subfigures(1, 3)
    ax = left.subplots()
    for name, values in variances.items():
        ax.loglog(dimensions, values, "o-", label=name)
    ax.set(xlabel="dimensions of z", ylabel="variance of the gradient, summed over its entries")
    ax.set_title("f(z) = $-|z - 1|^2 / 2$", fontsize=9)
    ax.legend()
    what = f"d log p(x|z) / d mean of z[{dimension}]"
    best = gradient[ESTIMATORS[-1]].mean()
    for i, (ax, (name, g)) in enumerate(zip(middle.subplots(3, 1, sharex=True), gradient.items())):
        count = np.arange(1, len(g) + 1)
        ax.semilogx(count, g.cumsum() / count, color=f"C{i}")
        ax.axhline(best, color="0.5", linestyle=":")
        ax.set_title(name, fontsize=9, color=f"C{i}")
    ax.set(xlabel="draws of z so far (dotted: green's last mean)", xlim=(1, len(g)))
    middle.suptitle(f"VAE: mean of {what} so far", fontsize=9)
    middle.supylabel("nats (each panel has its own scale)", fontsize=10)
    ax, most = right.subplots(), max(np.abs(g).max() for g in gradient.values())
    for g in gradient.values():
        ax.hist(np.abs(g), np.geomspace(0.1, most, 40), histtype="step", linewidth=1.5)
    ax.set(xscale="log", xlim=(0.1, most), xlabel="size of the gradient from one draw, nats", ylabel="draws")
    ax.set_title(f"VAE: |{what}|, if above 0.1", fontsize=9)
    return figure


def main():
    config = options(__doc__, CONFIG)
    rng = np.random.default_rng(config.seed)

    dimensions = [1, 2, 4, 8, 16, 32, 64, 128]
    variances = {name: [] for name in ESTIMATORS}
    for d in dimensions:
        zero = to_device(np.zeros(d), config.device)
        estimates = gradients(lambda z: -0.5 * ((z - 1) ** 2).sum(1), zero, zero, config.draws, rng)
        for name, g in estimates.items():
            variances[name].append(g.var(0).sum())
    print(f"f(z) = -|z - 1|^2 / 2 in {d} dimensions, variance of the gradient from one draw of z:")
    for name, values in variances.items():
        print(f"  {name:<29} {values[-1]:12.4g}")
    true = np.concatenate([np.ones(d), -0.5 * np.ones(d)])  # d/dm = 1 - m, d/dlog s^2 = -s^2 / 2 at m = 0, s = 1
    worst = max(np.abs((g.mean(0) - true) / (g.std(0) / config.draws**0.5)).max() for g in estimates.values())
    print(f"  the means are at most {worst:.1f} standard errors from the true gradient, over {6 * d} entries")

    vae = trained("vae", config)
    digits = data.binarize_static(data.digits().test_images, 0)
    x = to_device(digits[config.digit : config.digit + 1].astype(np.float32), config.device)
    with no_grad():
        q = vae.encode(x)

    def log_likelihood(z):
        return vae.likelihood(z).log_prob(ops.broadcast_to(Tensor(x), (z.shape[0], *x.shape[1:]))).sum((1, 2, 3))

    estimates = gradients(log_likelihood, q.mean.data[0], q.log_var.data[0], config.draws, rng)
    print(f"log p(x|z) of a VAE with {vae.latent} latent dimensions, at one digit:")
    for name, g in estimates.items():
        print(f"  {name:<29} {g.var(0).sum():12.4g}")
    ratio = estimates["score function with baseline"].var(0).sum() / estimates["reparameterization"].var(0).sum()
    print(f"  the score function needs {ratio:.0f} times as many draws for the same precision, even with its baseline")

    most = int(np.abs(q.mean.numpy()[0]).argmax())  # a dimension that this digit uses
    one = {name: g[:, most] for name, g in estimates.items()}
    save(draw(dimensions, variances, one, most), config.out, "13_reparameterization")


if __name__ == "__main__":
    run(main)
