"""Why p(x) of a latent variable model is intractable, and how importance weights help. Less than a minute.

p(x) = E_p(z)[p(x|z)]. The obvious estimate draws z from the prior p(z), but such z hardly ever decode to the digit x:
thousands of draws miss those that do, and the estimate is far too low. Draws of z from the encoder's q(z|x) do decode
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
    "draws": (10_000, "of z for each digit and each estimate", 100, 1_000_000),
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


def main():
    config = options(__doc__, CONFIG)
    rng = np.random.default_rng(config.seed)
    vae = trained("vae", config)
    grey = data.digits().test_images[: config.digits]
    images = data.binarize_static(grey, seed=0).astype(np.float32)
    weights = {"draws from the prior": [], "draws from the encoder": []}
    for image in tqdm(images, unit="digit", disable=None):
        x = to_device(image[None], config.device)
        for found, encoder in zip(weights.values(), (False, True)):
            found.append(log_weights(vae, x, config.draws, rng, encoder))

    ks = [k for k in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 100_000) if k <= config.draws]
    print(
        f"{'K':>7}"
        + "".join(f"{name:>28}" for name in weights)
        + "      mean log p(x), nats (standard deviation of one estimate; of fewer than 10: -)"
    )
    curves = {name: [] for name in weights}
    for k in ks:
        line = f"{k:7}"
        for name, found in weights.items():
            each = [estimates(log_w, k) for log_w in found]
            deviation = np.mean([e.std(ddof=1) for e in each]) if len(each[0]) >= 10 else np.nan  # unknown for fewer
            curves[name].append((np.mean([e.mean() for e in each]), deviation))
            line += f"{curves[name][-1][0]:17.1f} ({f'{deviation:.2f}' if deviation == deviation else '-':>8})"
        print(line)
    gap = curves["draws from the encoder"][-1][0] - curves["draws from the prior"][-1][0]
    print(f"with {ks[-1]:,} draws the prior's estimate is still {gap:.0f} nats lower")

    figure = Figure(figsize=(13, 4.3), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1.3, 1, 0.8))
    for name, curve in curves.items():
        mean, deviation = np.array(curve).T
        axes[0].plot(ks, mean, "o-", label=name)
        axes[0].fill_between(ks, mean - deviation, mean + deviation, alpha=0.2)
        axes[1].plot(ks, deviation, "o-", label=name)
    axes[0].set(xscale="log", xlabel="K, draws of z in an estimate", ylabel="estimate of log p(x), nats")
    axes[0].set_title(f"mean over {len(images)} digits; band: standard deviation of an estimate")
    axes[0].legend()
    axes[1].set(
        xscale="log",
        yscale="log",
        xlabel="K, draws of z in an estimate",
        ylabel="standard deviation of an estimate, nats",
    )
    first = to_device(np.repeat(images[:1], 24, axis=0), config.device)
    with no_grad():
        from_encoder = vae.decode(vae.encode(first).rsample(rng)).numpy()
    pictures = np.concatenate([to_host(vae.sample_means(24, rng)), from_encoder])
    draw_images(axes[2], pictures, 8, "decoded: z from the prior; from q(z|x)")
    save(figure, config.out, "12_intractable")


if __name__ == "__main__":
    run(main)
