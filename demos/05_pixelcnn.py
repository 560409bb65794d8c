"""PixelCNN: masks, what a pixel sees, samples, completions, surprising pixels, and what it costs. 15 seconds.

Masks hide later pixels from each convolution, so the network computes all conditionals at once: training is as
parallel as that of any convolutional network, and only sampling goes pixel by pixel. Mask A, in the first layer, also
hides the pixel itself; mask B does not. The demo shows how strongly one pixel's logit depends on each other pixel: its
gradient in the PixelCNN that ships, averaged over digits. It is exactly zero below, where the masks hide pixels, and
at the upper right, where they never reach.
"""

import time

import numpy as np
from common import TRAIN, options, run, save, trained
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from tinygen import Tensor, data, grad, no_grad
from tinygen.backend import to_device, to_host
from tinygen.models import PixelCNN, PixelRNN
from tinygen.nn import MaskedConv2d
from tinygen.optim import Adam
from tinygen.plotting import draw_images
from tinygen.training import fit

CONFIG = {
    "images": (64, "sampled"),
    "steps": (5, "of training for each measured time"),
    **TRAIN,
}
PIXEL = 14, 14  # whose context is shown


def context(model, images):
    """(H, W): mean absolute gradient of PIXEL's logit with respect to each pixel."""
    x = Tensor(to_device(2 * images.astype(np.float32) - 1, model.device), requires_grad=True)
    logits = model.network(x)
    (g,) = grad(logits[:, 0, PIXEL[0], PIXEL[1]].sum(), x)
    return np.abs(g.numpy()).mean((0, 1))


@no_grad()
def surprise(model, images):
    """(N, 1, H, W): -log p of each pixel, in nats."""
    logits = model.logits(to_device(images, model.device)).numpy()[:, 0]
    return np.logaddexp(0, np.where(images == 1, -logits, logits))


def seconds(function, *arguments, **keywords):
    begun = time.perf_counter()
    result = function(*arguments, **keywords)
    return time.perf_counter() - begun, result


def print_times(config, images):
    """Time models of one width and depth: a training step, sampling, and sampling without the cache: 28 times 28 runs
    of the network on a whole image."""
    rng = np.random.default_rng(config.seed)
    print("width 16, 7 layers            training, ms an image   sampling, s for 16   s for one, without the cache")
    for name, model in {
        "PixelCNN": PixelCNN(channels=16, blocks=7, rng=rng),
        "PixelRNN, Row LSTM": PixelRNN("row", channels=16, rng=rng),
        "PixelRNN, Diagonal BiLSTM": PixelRNN("diagonal", channels=16, rng=rng),
    }.items():
        model.to(config.device)
        how = {"optimizer": Adam(model.parameters(), 1e-3), "rng": rng, "batch_size": 32, "progress": False}
        fit(model, images, steps=1, **how)  # warms up
        record = fit(model, images, steps=config.steps, **how)
        training = record[-1]["seconds"] / (32 * config.steps)
        sampling, _ = seconds(model.sample, 16, rng)
        row = sum(seconds(surprise, model, images[:1])[0] for _ in range(28))
        print(f"{name:<27} {1000 * training:18.1f} {sampling:22.2f} {28 * row:24.1f}")


def main():
    config = options(__doc__, CONFIG)
    rng, digits = np.random.default_rng(config.seed), data.digits()
    binary = data.binarize_static(digits.test_images, seed=0)
    model = trained("pixelcnn", config)
    nats = surprise(model, binary[:32])
    print(f"PixelCNN: {model.num_parameters():,} parameters")
    seen = "new" if config.train else "of its own training"
    print(f"32 digits, {seen}: {nats.sum((1, 2, 3)).mean():.1f} nats per image;", end=" ")
    worst = np.sort(nats, axis=None)[::-1]
    print(f"half of that is in {np.searchsorted(worst.cumsum(), worst.sum() / 2) / worst.size:.1%} of the pixels")
    depends = context(model, binary[:32])
    before = PIXEL[0] * 28 + PIXEL[1]
    print(f"pixel {PIXEL} depends on {(depends > 0).sum()} of the {before} before it")
    print_times(config, binary)

    figure = Figure(figsize=(13, 7.5), layout="constrained")
    axes = figure.subplots(2, 3)
    masks = np.zeros((7, 15))
    for mask, start in (("A", 0), ("B", 8)):
        masks[:, start : start + 7] = 0.25 + 0.75 * MaskedConv2d(mask, 1, 1, 7, rng=rng).mask
        axes[0, 0].text(start + 3, 3, mask, color="C3", weight="bold", ha="center", va="center")
    axes[0, 0].imshow(masks, cmap="Blues", vmin=0, vmax=1)
    axes[0, 0].set_title("masks A and B, 7 x 7: dark is kept, red the pixel itself", fontsize=9)
    axes[0, 0].set_axis_off()
    picture = axes[0, 1].imshow(np.where(depends > 0, depends, np.nan), cmap="viridis", norm=LogNorm())
    axes[0, 1].plot(PIXEL[1], PIXEL[0], "rs", markersize=5)
    axes[0, 1].set(xlabel="column", ylabel="row")
    axes[0, 1].set_title("how much the red pixel depends on others", fontsize=9)
    figure.colorbar(picture, ax=axes[0, 1], label="mean |d logit / d pixel|")
    pairs = np.concatenate([binary[:16, 0], nats[:16, 0]]).reshape(2, 16, 1, 28, 28).swapaxes(0, 1)
    shown = np.stack([pairs[:, 0], np.minimum(pairs[:, 1] / 2, 1)], axis=1).reshape(-1, 1, 28, 28)
    draw_images(axes[0, 2], shown, 8, "digit; which pixels were surprising (black: 2 nats or more)")
    drawn = to_host(model.sample(config.images, rng))
    draw_images(axes[1, 0], drawn, 8, "samples")
    upper = np.arange(28)[:, None] < 14
    chosen = binary[:8]
    completed = to_host(model.sample(48, rng, given=np.repeat(chosen, 6, axis=0), mask=upper)).reshape(8, 6, 1, 28, 28)
    rows = np.concatenate([(chosen * upper)[:, None], completed, chosen[:, None]], axis=1)
    draw_images(axes[1, 1], rows.reshape(-1, 1, 28, 28), 8, "given half, six completions, the digit")
    share = 100 * np.arange(1, worst.size + 1) / worst.size
    axes[1, 2].plot(share, 100 * worst.cumsum() / worst.sum())
    axes[1, 2].axhline(50, color="0.8", linewidth=0.8)
    axes[1, 2].set(xscale="log", xlim=(0.1, 100), xlabel="pixels, most surprising first, percent")
    axes[1, 2].set(ylabel="of all nats, percent")
    axes[1, 2].set_title("few pixels carry the likelihood", fontsize=9)
    save(figure, config.out, "05_pixelcnn")


if __name__ == "__main__":
    run(main)
