"""Denoising diffusion: noise becomes digits in many small steps, and what each of them costs. Two minutes.

Noise is added to a digit step by step until nothing else is left, and a network learns to tell the noise from the
digit. To draw, one starts from noise and takes a little of it away at each step. The animation shows the draws on their
way beside what the network takes each for: at first an average of digits, then a blurred digit, then details.

The picture shows draws with fewer steps than the model was trained with. Ancestral sampling adds new noise in each
step; DDIM adds none, and needs fewer steps for it. The curve shows where the bound on log p(x) is spent: the KL of each
step in bits per dimension, over the standard deviation of its noise in grey levels. Steps of large noise decide which
digit it is, and cost little; the many bits are in the exact grey levels of the strokes' edges. The demo prints the
bound's three terms on test digits: the prior's KL, the steps' and the decoder's. A model of digits ships with tinygen.
"""

from pathlib import Path

import numpy as np
from common import TRAIN, options, run, save, trained
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure

from tinygen import Tensor, data, no_grad
from tinygen.backend import to_device, to_host
from tinygen.models import bits_per_dim
from tinygen.parallel import first_rank
from tinygen.plotting import draw_images

CONFIG = {
    "steps": (1000, "of the draws with the most steps, at most those of the model", 1, 1000),
    "frames": (40, "of the animation, a step of sampling each", 2, 1000),
    "images": (50, "test digits for the bound", 2, 500),
    **TRAIN,
}
DRAWN = 12  # in each row
STATIONS = 41  # steps t whose KL is measured


@no_grad()
def frames(model, count, rng):
    """For each of ``count`` steps, (2, 16, 1, 28, 28): z_t, and what the network takes it for, both about -1 .. 1."""
    times = np.linspace(model.steps, 0, count + 1).round().astype(int)
    for t, z in zip(times, model.chain(16, rng, steps=count)):
        yield np.stack([to_host(z), model.denoised(Tensor(z), model.at(np.full(16, t))).numpy()])


def animate(model, count, rng, path):
    """Write the animation of 16 draws; the last frame stays for a while."""
    figure = Figure(figsize=(8.8, 4.8), layout="constrained")
    axes, writer = figure.subplots(1, 2), PillowWriter(fps=12)
    with writer.saving(figure, path, dpi=75):
        for i, pair in enumerate(frames(model, count, rng)):
            titles = f"step {i} of {count}: the draws", "what the network takes them for"
            for ax, images, title in zip(axes, pair, titles):
                ax.clear()
                draw_images(ax, np.clip((images + 1) / 2, 0, 1), 4, title)
            writer.grab_frame()
        for _ in range(24):
            writer.grab_frame()


@no_grad()
def costs(model, x, rng):
    """Some t, and of each the mean KL in bits per dimension on the images x."""
    times = np.unique(np.linspace(1, model.steps, STATIONS).round().astype(int))
    kl = [model.kl(x, np.full(len(x), t), rng).numpy().astype(float).mean() for t in times]
    return times, bits_per_dim(np.array(kl), model.image_shape)


def draw(rows, grey, bits, steps):
    """{name: draws} of each row, and the bits of steps whose noise has the standard deviations ``grey``."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(7.6, 5))
    draw_images(left, np.concatenate(list(rows.values())), DRAWN, "draws", rows)
    right.plot(grey, 1000 * bits, ".-")
    right.set(xscale="log", xlabel="standard deviation of the noise, in grey levels")
    right.set(ylabel="thousandths of a bit per dimension", ylim=(0, None))
    right.set_title(f"the bound: KL of one of {steps:,} steps", fontsize=9)
    right.grid(alpha=0.3)
    return figure


def main():
    config = options(__doc__, CONFIG)
    rng, images = np.random.default_rng(config.seed), data.digits().test_images
    model = trained("diffusion", config)
    most = min(config.steps, model.steps)
    path = Path(config.out) / "21_diffusion.gif"
    if first_rank():
        animate(model, config.frames, rng, path)
    print(f"picture: {path.resolve()}", flush=True)

    x = to_device(images[:: len(images) // config.images][: config.images], config.device)
    with no_grad():
        terms = [float(bits_per_dim(term.numpy().mean(), model.image_shape)) for term in model.bound(x, rng)]
    times, bits = costs(model, x, rng)
    terms[1] = np.interp(np.arange(1, model.steps + 1), times, bits).sum()  # more exact than one t for each digit
    print(
        f"prior {terms[0]:.4f} + steps {terms[1]:.3f} + decoder {terms[2]:.4f} = {sum(terms):.3f} bits per dimension, "
        f"on {config.images} test digits"
    )
    rows = {}
    for steps, eta in [(10, 1), (10, 0), (50, 1), (50, 0), (most, 1)]:
        drawn = model.sample(DRAWN, np.random.default_rng(config.seed), steps=min(steps, most), eta=eta)
        rows[f"{min(steps, most)} steps,\n{'ancestral' if eta else 'DDIM'}"] = to_host(drawn) / (model.levels - 1)
    grey = model.levels / 2 * np.exp(-model.log_snr[times] / 2)  # of x: the noise over the signal
    save(draw(rows, grey, bits, model.steps), config.out, "21_diffusion")


if __name__ == "__main__":
    run(main)
