"""The variational autoencoder: the two terms of its bound while it learns, reconstructions, samples. Half a minute.

ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)) <= log p(x). The first term rewards codes that describe the image
well; the second charges for every nat they carry. The codes carry nothing at first, and more as the decoder learns to
use them. Samples decode z from the prior, to which the second term keeps the codes close. The curves are of a training
on 4,500 digits that the demo runs; the pictures are of the VAE that ships, trained on 50,000.
"""

import numpy as np
from common import TRAIN, options, run, save, trained
from matplotlib.figure import Figure
from tqdm import trange

from tinygen import Tensor, data, no_grad
from tinygen.backend import to_device, to_host
from tinygen.models import VAE
from tinygen.optim import Muon, cosine
from tinygen.plotting import draw_images

CONFIG = {
    "steps": (800, "of the training whose curves are drawn, with 64 digits each"),
    "latent": (32, "dimensions of z"),
    **TRAIN,
}
RATE = 0.005


def train(config):
    """Train a VAE. Returns it and its two terms at each step, (steps, 2), in nats per image."""
    rng, images = np.random.default_rng(config.seed), data.digits().train_images
    vae = VAE(latent=config.latent, rng=rng).to(config.device)
    optimizer, terms = Muon(vae.parameters(), lr=RATE), []
    for step in trange(config.steps, unit="step", disable=None):
        x = data.binarize_dynamic(images[rng.integers(len(images), size=64)], rng)
        reconstruction, kl = (term.mean() for term in vae.bound(to_device(x, config.device), rng))
        optimizer.lr = RATE * cosine((step + 0.5) / config.steps)
        optimizer.zero_grad()
        (kl - reconstruction).backward()
        optimizer.step()
        terms.append((reconstruction.item(), kl.item()))
    return vae, np.array(terms)


def draw(terms, pairs, samples):
    """The terms at each step (steps, 2), digits beside their reconstructions, and samples, both (80, 1, 28, 28)."""
    figure = Figure(figsize=(13, 4.3), layout="constrained")
    axes = figure.subplots(1, 3)
    width = max(1, len(terms) // 80)
    reconstruction, kl = terms[: len(terms) // width * width].reshape(-1, width, 2).mean(1).T
    step = (np.arange(len(kl)) + 0.5) * width
    axes[0].plot(step, kl - reconstruction, "k", label="$-$ELBO, the sum of both")
    axes[0].plot(step, -reconstruction, label="$-$reconstruction")
    axes[0].plot(step, kl, label="KL")
    axes[0].set(xlabel="step", ylabel="nats per image", xlim=(0, len(terms)))
    axes[0].set(ylim=(0, max(250, 1.1 * (kl - reconstruction)[-1])))  # the first steps lie above
    axes[0].set_title("training, mean over a few steps", fontsize=9)
    axes[0].legend()
    draw_images(axes[1], pairs, 8, "digits, each with its reconstruction at its right")
    draw_images(axes[2], samples, 10, "samples: means of p(x|z), z from the prior")
    return figure


def main():
    config = options(__doc__, CONFIG)
    rng = np.random.default_rng(config.seed)
    vae, terms = train(config)
    reconstruction, kl = terms[-max(1, config.steps // 20) :].mean(0)
    print(
        f"at the end: ELBO {reconstruction - kl:.1f} = reconstruction {reconstruction:.1f} - KL {kl:.1f} nats per image"
    )
    binary = data.binarize_static(data.digits().test_images, seed=0)
    shown = trained("vae", config)
    with no_grad():
        r, k = (float(term.numpy().mean()) for term in vae.bound(to_device(binary, config.device), rng))
        print(f"on 500 test digits: ELBO {r - k:.1f} = {r:.1f} - {k:.1f} nats per image")
        chosen = binary[:40].astype(np.float32)
        drawn = shown.reconstruct(Tensor(chosen).to(config.device)).numpy()
    pairs = np.stack([chosen, drawn], axis=1).reshape(-1, 1, 28, 28)

    save(draw(terms, pairs, to_host(shown.sample_means(80, rng))), config.out, "14_vae")


if __name__ == "__main__":
    run(main)
