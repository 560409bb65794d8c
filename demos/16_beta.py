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

from tinygen import data, no_grad
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


def draw(curve, digits, reconstructions, samples):
    """Rates and distortions (len(BETAS), 2); 16 digits; for each beta their reconstructions, and 16 samples."""
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.4))
    ax, (above, below) = left.subplots(), right.subplots(2, 1, height_ratios=(6, 5))
    rates, distortions = curve.T
    ax.plot(rates, distortions, "o-")
    for beta, *point in zip(BETAS, rates, distortions):
        ax.annotate(f"beta {beta:g}", point, (7, 5), textcoords="offset points")
    best, wide, tall = curve.sum(1).min(), np.ptp(rates), np.ptp(distortions)
    line = np.array([rates.min() - 0.05 * wide, rates.max() + 0.25 * wide])
    ax.plot(line, best - line, "k:", label=f"rate + distortion = {best:.0f}, the best bound here")
    ax.set(xlabel="rate: KL, nats per image", ylabel="distortion: -E log p(x|z), nats per image", xlim=line)
    ax.set_ylim(min(distortions.min(), best - line[1]) - 0.05 * tall, distortions.max() + 0.2 * tall)
    ax.legend(loc="upper right")
    names = [f"beta {beta:g}" for beta in BETAS]
    rows = np.concatenate([digits, *reconstructions])
    draw_images(above, rows, 16, "digits, and their reconstructions", ["digit", *names])
    draw_images(below, np.concatenate(samples), 16, "samples: means of p(x|z), the same z from the prior", names)
    return figure


def main():
    config = options(__doc__, CONFIG)
    binary = to_device(data.binarize_static(data.digits().test_images, seed=0).astype(np.float32), config.device)
    curve, reconstructions, samples = [], [], []
    print("  beta      rate  distortion  rate + distortion  active dimensions   (nats per image, 500 test digits)")
    for beta in BETAS:
        vae, rng = train(beta, config), np.random.default_rng(config.seed)
        with no_grad():
            reconstruction, rate = (float(term.numpy().mean()) for term in vae.bound(binary, rng))
            active = int((vae.encode(binary).mean.numpy().var(0) > 0.01).sum())
            reconstructions.append(vae.reconstruct(binary[:16]).numpy())
        samples.append(to_host(vae.sample_means(16, np.random.default_rng(config.seed))))
        curve.append((rate, -reconstruction))
        print(f"{beta:6g} {rate:9.1f} {-reconstruction:11.1f} {rate - reconstruction:18.1f} {active:18}")
    save(draw(np.array(curve), to_host(binary[:16]), reconstructions, samples), config.out, "16_beta")


if __name__ == "__main__":
    run(main)
