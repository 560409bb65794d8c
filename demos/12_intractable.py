"""Why p(x) of a latent variable model is intractable, and how importance weights help. About a minute.

p(x) = E_p(z)[p(x|z)]. The obvious estimate draws z from the prior p(z), but such z hardly ever decode to the digit x:
a thousand draws miss those that do, and the estimate is far too low. Draws of z from the encoder's q(z|x) do decode
to x, and with weights they have the same mean: E_q(z|x)[p(x|z) p(z) / q(z|x)] = p(x). The log of either mean over K
draws is too low an estimate of log p(x) on average, less so with more draws (Burda et al. 2016).
"""

import numpy as np
from common import TRAIN, options, run, save, trained
from matplotlib.figure import Figure
from tqdm import tqdm

from tinygen import Tensor, data, no_grad, ops
from tinygen.backend import to_device, to_host
from tinygen.distributions import Gaussian
from tinygen.plotting import draw_images

CONFIG = {
    "draws": (10_000, "of z for each digit; an estimate takes at most a tenth of them", 100, 1_000_000),
    "digits": (8, "digits to look at", 1, 500),
    **TRAIN,
}
BLOCK = 500  # images decoded at once


@no_grad()
def log_weights(vae, x, draws, rng, encoder):
    """(draws,): log p(x|z) p(z) / q(z) in nats, for z drawn from q, the encoder's or else the prior."""
    prior = Gaussian(Tensor(np.zeros((1, vae.latent), np.float32)).to(vae.device), np.float32(0))
    q = vae.encode(x) if encoder else prior
    found = []
    for start in range(0, draws, BLOCK):
        k = min(BLOCK, draws - start)
        z = Gaussian(ops.broadcast_to(q.mean, (k, vae.latent)), q.log_var).rsample(rng)
        p = vae.likelihood(z).log_prob(ops.broadcast_to(Tensor(x), (k, *x.shape[1:]))).sum((1, 2, 3))
        found.append((p + (prior.log_prob(z) - q.log_prob(z)).sum(1)).numpy())
    return np.concatenate(found).astype(float)


def estimates(log_w, k):
    """log 1/k sum_i w_i of each group of k successive weights: (len(log_w) // k,)"""
    groups = log_w[: len(log_w) // k * k].reshape(-1, k)
    top = groups.max(1, keepdims=True)
    return (top + np.log(np.exp(groups - top).mean(1, keepdims=True)))[:, 0]


def draw(ks, curves, images):
    """Means and deviations of estimates from K draws {way: (len(ks), 2)}, and the grid of images, seven rows of 8."""
    figure = Figure(figsize=(13, 4.3), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1.2, 1.2, 1))
    for name, curve in curves.items():
        mean, deviation = curve.T
        axes[0].errorbar(ks, -mean, deviation, marker="o", capsize=4, label=name)
        axes[1].plot(ks, deviation, "o-", label=name)
    labels = "estimate of -log p(x), nats", "standard deviation of an estimate, nats"
    titles = "mean over the digits; bars: standard deviation of an estimate", "how much estimates vary"
    for ax, label, title in zip(axes, labels, titles):
        ax.set(xscale="log", yscale="log", xlabel="K, draws of z in an estimate", ylabel=label)
        ax.set_title(title, fontsize=9)
        ax.grid(alpha=0.3)
    axes[0].legend()
    ticks = [80, 100, 150, 200, 300, 400, 600, 800, 1000]
    axes[0].minorticks_off()
    axes[0].set_yticks(ticks, ticks)
    rows = ["the digit x", "z ~ p(z),", "the prior,", "decoded", "z ~ q(z|x),", "the encoder,", "decoded"]
    draw_images(axes[2], images, 8, "draws of z, decoded", rows)
    return figure


def main():
    config = options(__doc__, CONFIG)
    rng = np.random.default_rng(config.seed)
    vae = trained("vae", config)
    images = data.binarize_static(data.digits().test_images[: config.digits], seed=0).astype(np.float32)
    weights = {"draws from the prior": [], "draws from the encoder": []}
    for image in tqdm(images, unit="digit", disable=None):
        x = to_device(image[None], config.device)
        for found, encoder in zip(weights.values(), (False, True)):
            found.append(log_weights(vae, x, config.draws, rng, encoder))

    ks = [k for k in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 100_000) if k <= config.draws // 10]
    print("mean of the estimates of log p(x), nats (standard deviation of one estimate)")
    print(f"{'K':>7}" + "".join(f"{name:>28}" for name in weights))
    curves = {name: np.zeros((len(ks), 2)) for name in weights}
    for i, k in enumerate(ks):
        for name, found in weights.items():
            each = [estimates(log_w, k) for log_w in found]  # of each digit, at least ten
            curves[name][i] = np.mean([e.mean() for e in each]), np.mean([e.std(ddof=1) for e in each])
        print(f"{k:7}" + "".join("{:17.1f} ({:8.2f})".format(*curve[i]) for curve in curves.values()))
    gap = curves["draws from the encoder"][-1, 0] - curves["draws from the prior"][-1, 0]
    print(f"with {ks[-1]:,} draws the prior's estimate is still {gap:.0f} nats lower")

    first = to_device(np.repeat(images[:1], 24, axis=0), config.device)
    with no_grad():
        from_encoder = vae.decode(vae.encode(first).rsample(rng)).numpy()
    shown = np.concatenate([images[:1], 0 * images[[0] * 7], to_host(vae.sample_means(24, rng)), from_encoder])
    save(draw(ks, curves, shown), config.out, "12_intractable")


if __name__ == "__main__":
    run(main)
