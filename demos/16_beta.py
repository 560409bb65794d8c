"""The weight of the KL term: from an autoencoder to codes that say nothing, as rate and distortion. About a minute.

The loss is -E_q[log p(x|z)] + beta KL(q(z|x) || p(z)) (Higgins et al. 2017), so beta sets how much a VAE's codes may
say. The rate is what they say, the KL in nats per image; the distortion is what is missing, -E_q[log p(x|z)]. Their
sum is an upper bound on -log p(x), smallest near beta = 1. With a small beta reconstructions are sharp, but z from the
prior often decodes to no digit. With a large beta only what all digits have in common is left, and no dimension of z
is active. A dimension is active if the variance of q's mean over the digits is above 0.01 (Burda et al. 2016).
"""

import numpy as np
from common import options, run, save
from matplotlib.figure import Figure

from tinygen import Tensor, data, no_grad
from tinygen.backend import to_device, to_host
from tinygen.models import VAE
from tinygen.optim import Adam, cosine
from tinygen.plotting import draw_images
from tinygen.training import fit

CONFIG = {
    "steps": (1000, "of training for each beta, with 16 digits each"),
    "latent": (5, "dimensions of z"),
}
BETAS = (0.1, 1.0, 3.0, 10.0, 30.0)


def train(beta, config):
    rng = np.random.default_rng(config.seed)
    vae = VAE(latent=config.latent, beta=beta, rng=rng).to(config.device)
    fit(
        vae,
        data.digits().train_images,
        steps=config.steps,
        batch_size=16,
        optimizer=Adam(vae.parameters(), lr=0.004),
        rng=rng,
        prepare=data.binarize_dynamic,
        schedule=cosine,
        averaging=0.99,
    )
    return vae


def main():
    config = options(__doc__, CONFIG)
    binary = to_device(data.binarize_static(data.digits().test_images, seed=0).astype(np.float32), config.device)
    curve, ends = [], {}
    print("  beta      rate  distortion  rate + distortion  active dimensions   (nats per image, 500 test digits)")
    for beta in BETAS:
        vae, rng = train(beta, config), np.random.default_rng(config.seed)
        with no_grad():
            reconstruction, rate = (float(term.numpy().mean()) for term in vae.bound(binary, rng))
            active = int((vae.encode(binary).mean.numpy().var(0) > 0.01).sum())
        curve.append((rate, -reconstruction))
        print(f"{beta:6g} {rate:9.1f} {-reconstruction:11.1f} {rate - reconstruction:18.1f} {active:18}")
        if beta in (BETAS[0], 1.0, BETAS[-1]):
            with no_grad():
                pairs = np.stack([to_host(binary[:16]), vae.reconstruct(Tensor(binary[:16])).numpy()], axis=1)
            ends[beta] = pairs.reshape(-1, 1, 28, 28), to_host(vae.sample_means(32, rng))

    figure = Figure(figsize=(13, 5.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.4))
    ax, (rates, distortions) = left.subplots(), np.array(curve).T
    ax.plot(rates, distortions, "o-")
    for beta, *point in zip(BETAS, rates, distortions):
        ax.annotate(f"beta {beta:g}", point, (6, 4), textcoords="offset points", rotation=30)
    best = min(rates + distortions)
    line = np.array([0, best])
    ax.plot(line, best - line, "k:", linewidth=0.8, label=f"rate + distortion = {best:.0f}, the best bound here")
    ax.set(
        xlabel="rate: KL, nats per image",
        ylabel="distortion: -E log p(x|z), nats per image",
        xlim=0,
        ylim=(0, 1.15 * distortions.max()),
    )
    ax.legend()
    for column, (beta, (pairs, samples)) in zip(right.subplots(2, len(ends)).T, ends.items()):
        draw_images(column[0], pairs, 8, f"beta {beta:g}: digit, reconstruction")
        draw_images(column[1], samples, 8, "samples from the prior")
    save(figure, config.out, "16_beta")


if __name__ == "__main__":
    run(main)
