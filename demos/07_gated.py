"""Gated PixelCNN: no blind spot, and digits of the class one asks for. 15 seconds.

Stacked masked convolutions never see some pixels to the upper right: the blind spot. Two stacks see all: a vertical
one sees the rows above, and a horizontal one sees the pixels to the left and what the vertical one has seen. The gates
tanh(f) sigmoid(g) multiply, as in an LSTM; a class adds a learned vector to f and g in every layer. The demo shows
what one pixel's logit depends on, from its gradient, for a plain PixelCNN and a gated one with as many layers and all
weights equal. Pixels that the gated one misses too are merely too far away for so few layers. The demo also classifies
digits by Bayes' rule; these digits are among those that the model was trained on.
"""

import numpy as np
from common import TRAIN, options, run, save, trained
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from tinygen import Tensor, data, grad, no_grad
from tinygen.backend import to_device, to_host
from tinygen.models import GatedPixelCNN, PixelCNN
from tinygen.plotting import draw_images

CONFIG = {"layers": (8, "of the two networks whose context is shown"), **TRAIN}
PIXEL = 14, 14  # whose context is shown


def context(model):
    """(H, W): 0 where PIXEL's logit does not depend on a pixel, 1 where it does, 2 at PIXEL itself."""
    for p in model.parameters():  # residual branches are zero at first
        p.data = np.full(p.shape, 0.05)  # positive and small: no ReLU is off, no gate is saturated
    x = Tensor(np.ones((1, 1, 28, 28)), requires_grad=True)
    (g,) = grad(model.network(x)[0, 0, PIXEL[0], PIXEL[1]], x)
    seen = (g.numpy()[0, 0] != 0).astype(int)
    seen[PIXEL] = 2
    return seen


def main():
    config = options(__doc__, CONFIG)
    rng = np.random.default_rng(config.seed)
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(0.8, 0.8, 1.25, 1.25))
    for ax, (name, model) in zip(
        axes,
        {
            "PixelCNN": PixelCNN(channels=4, blocks=config.layers, rng=rng),
            "Gated PixelCNN": GatedPixelCNN(channels=4, layers=config.layers, rng=rng),
        }.items(),
    ):
        seen = context(model)
        before = PIXEL[0] * 28 + PIXEL[1]
        print(f"{name}, {config.layers} layers: sees {(seen == 1).sum()} of the {before} pixels before it")
        ax.imshow(seen, cmap=ListedColormap(["white", "C0", "C3"]), vmin=0, vmax=2)
        ax.set(xlabel="column", ylabel="row")
        ax.set_title(f"{name}, {config.layers} layers:\nwhat the red pixel sees", fontsize=9)

    model = trained("gated-pixelcnn-classes", config)
    drawn = to_host(model.sample(100, rng, labels=to_device(np.arange(100) // 10, config.device)))
    draw_images(axes[2], drawn, 10, "ten samples of each class", range(10))

    # Bayes' rule with equal priors: the class with the largest likelihood. No classifier was trained.
    digits = data.digits()
    binary = to_device(data.binarize_static(digits.test_images[:50], seed=0), config.device)
    with no_grad():
        of_class = np.stack(
            [model.log_prob(binary, to_device(np.full(50, k), config.device)).numpy() for k in range(10)]
        )
    right = 100 * (of_class.argmax(0) == digits.test_labels[:50]).mean()
    print(f"log p(x | class) is largest for the right class of {right:.0f} % of 50 digits")
    upper = np.arange(28)[:, None] < 14
    chosen = to_host(binary)[np.repeat(np.arange(10), 10)]
    half = model.sample(100, rng, given=chosen, mask=upper, labels=to_device(np.tile(np.arange(10), 10), config.device))
    draw_images(axes[3], to_host(half), 10, "upper half given; columns: lower half as a 0, 1, .. 9")
    save(figure, config.out, "07_gated")


if __name__ == "__main__":
    run(main)
