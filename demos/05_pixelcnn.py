"""PixelCNN: what masked convolutions see, the blind spot, surprising pixels, and samples. Ten seconds.

Masks hide later pixels from each convolution, so the network computes all conditionals at once: training is as
parallel as that of any convolutional network, and only sampling goes pixel by pixel. Mask A, in the first layer, also
hides the pixel itself; mask B does not. The demo shows how strongly one pixel's logit depends on each other pixel: its
gradient in the PixelCNN that ships, averaged over digits. It is exactly zero below, where the masks hide pixels, and
in the blind spot at the upper right, which stacked masks never reach. The demo prints how long an image takes in
training, beside PixelRNNs with as many channels and layers, and how surprising each pixel of a digit was.
"""

import numpy as np
from common import TRAIN, options, run, save, trained
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure

from tinygen import Tensor, data, grad, no_grad
from tinygen.backend import to_device, to_host
from tinygen.models import PixelCNN, PixelRNN
from tinygen.nn import MaskedConv2d
from tinygen.optim import Adam
from tinygen.plotting import draw_images, tile
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


def print_training_times(config, images):
    rng = np.random.default_rng(config.seed)
    print("a training step of models with 16 channels and 7 layers:")
    for name, model in {
        "PixelCNN": PixelCNN(channels=16, blocks=7, rng=rng),
        "PixelRNN, Row LSTM": PixelRNN("row", channels=16, rng=rng),
        "PixelRNN, Diagonal BiLSTM": PixelRNN("diagonal", channels=16, rng=rng),
    }.items():
        model.to(config.device)
        how = {"optimizer": Adam(model.parameters(), 1e-3), "rng": rng, "batch_size": 32, "progress": False}
        fit(model, images, steps=1, **how)  # warms up
        record = fit(model, images, steps=config.steps, **how)
        print(f"  {name:<25} {1000 * record[-1]['seconds'] / (32 * config.steps):5.1f} ms an image")


def draw(depends, digits, nats, samples):
    """Masks, the context of PIXEL (H, W), digits with the nats of each pixel, and samples, all (N, 1, H, W)."""
    figure = Figure(figsize=(11, 7.8), layout="constrained")
    axes = figure.subplot_mosaic([["A", "B", "seen"], ["nats", "nats", "samples"]], width_ratios=(1, 1, 2.2))
    for mask, of_itself in (("A", "hides"), ("B", "keeps")):
        ax, kept = axes[mask], MaskedConv2d(mask, 1, 1, 7, rng=np.random.default_rng(0)).mask
        ax.imshow(kept, cmap="Blues", vmin=0, vmax=2)
        for (i, j), tap in np.ndenumerate(kept.astype(int)):
            ax.text(j, i, tap, ha="center", va="center", fontsize=9)
        ax.plot(3, 3, "s", color="C3", markersize=18, fillstyle="none")
        ax.set_title(f"mask {mask} (1: kept)\n{of_itself} the pixel itself", fontsize=9)
        ax.set_axis_off()

    ax, (row, column) = axes["seen"], np.indices(depends.shape)
    blind = (row * 28 + column < PIXEL[0] * 28 + PIXEL[1]) & (depends == 0)
    colours = ListedColormap(["0.9", "C1"])  # later pixels, and the blind spot
    ax.imshow(blind, cmap=colours, vmin=0, vmax=1)
    picture = ax.imshow(np.where(depends > 0, depends, np.nan), cmap="viridis", norm=LogNorm())
    ax.plot(PIXEL[1], PIXEL[0], "s", color="C3", markersize=5)
    for color, name in (("C3", "this pixel"), ("C1", "its blind spot"), ("0.9", "later pixels, hidden by the masks")):
        ax.plot([], [], "s", color=color, label=name)
    ax.legend(loc="lower center")
    ax.set(xlabel="column", ylabel="row")
    ax.set_title("how much one pixel's logit depends on the others", fontsize=9)
    figure.colorbar(picture, ax=ax, label="mean |d logit / d pixel|")

    draw_images(axes["nats"], np.stack([digits, np.zeros_like(digits)], axis=1).reshape(-1, 1, 28, 28), 8)
    pairs = np.stack([np.full(nats.shape, np.nan), nats], axis=1).reshape(-1, 1, 28, 28)
    picture = axes["nats"].imshow(np.ma.masked_invalid(tile(pairs, 8)), cmap="magma_r", vmin=0, vmax=4)
    figure.colorbar(picture, ax=axes["nats"], orientation="horizontal", label="-log p of the pixel, nats", extend="max")
    axes["nats"].set_title("digits, and how surprising each of their pixels was", fontsize=9)
    draw_images(axes["samples"], samples, 8, "samples")
    return figure


def main():
    config = options(__doc__, CONFIG)
    rng, digits = np.random.default_rng(config.seed), data.digits()
    binary = data.binarize_static(digits.test_images, seed=0)
    model = trained("pixelcnn", config)
    nats, depends = surprise(model, binary[:32]), context(model, binary[:32])
    print(f"PixelCNN: {model.num_parameters():,} parameters")
    seen = "new" if config.train else "of its own training"
    print(f"32 digits, {seen}: {nats.sum((1, 2, 3)).mean():.1f} nats per image;", end=" ")
    worst = np.sort(nats, axis=None)[::-1]
    print(f"half of that is in {np.searchsorted(worst.cumsum(), worst.sum() / 2) / worst.size:.1%} of the pixels")
    before = PIXEL[0] * 28 + PIXEL[1]
    print(f"pixel {PIXEL} depends on {(depends > 0).sum()} of the {before} before it")
    print_training_times(config, binary)
    samples = to_host(model.sample(config.images, rng))
    save(draw(depends, binary[:16], nats[:16], samples), config.out, "05_pixelcnn")


if __name__ == "__main__":
    run(main)
