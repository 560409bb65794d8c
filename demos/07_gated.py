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
from matplotlib.patches import Patch

from tinygen import Tensor, data, grad, no_grad
from tinygen.backend import to_device, to_host
from tinygen.models import GatedPixelCNN, PixelCNN
from tinygen.plotting import draw_images

CONFIG = {"layers": (8, "of the two networks whose context is shown"), **TRAIN}
PIXEL = 14, 14  # whose context is shown


def context(model):
    """(H, W): whether PIXEL's logit depends on each pixel."""
    for p in model.parameters():  # residual branches are zero at first
        p.data = np.full(p.shape, 0.05)  # positive and small: no ReLU is off, no gate is saturated
    x = Tensor(np.ones((1, 1, 28, 28)), requires_grad=True)
    (g,) = grad(model.network(x)[0, 0, PIXEL[0], PIXEL[1]], x)
    return g.numpy()[0, 0] != 0


def draw(contexts, samples, halves, labels):
    """Contexts {title: (H, W)}; ten samples of each class; ten digits' halves completed as each class, and labels."""
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=(0.8, 1, 1.1))
    *_, reached = contexts.values()  # by the gated network, which has no blind spot
    for ax, (title, seen) in zip(left.subplots(2, 1, sharex=True), contexts.items()):
        picture = np.where(seen, 2, np.where(reached, 1, 0))
        picture.flat[PIXEL[0] * 28 + PIXEL[1] :] = 4
        picture[PIXEL] = 3
        colours = {"too far away": "white", "blind spot": "C1", "seen": "C0", "the pixel": "C3", "later pixels": "0.85"}
        ax.imshow(picture, cmap=ListedColormap(colours.values()), vmin=0, vmax=4)
        ax.set(ylabel="row", ylim=(PIXEL[0] + 1.5, -0.5))  # below, all pixels are later
        ax.set_title(f"what one pixel sees: {title}", fontsize=9)
    ax.set_xlabel("column")
    handles = [Patch(facecolor=color, edgecolor="0.5", label=name) for name, color in colours.items()]
    left.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
    draw_images(middle.subplots(), samples, 10, "ten samples of each class", [f"class {k}" for k in range(10)])
    names = [f"truth {k}" for k in labels]
    title = "upper halves given, lower ones drawn as the class above"
    draw_images(right.subplots(), halves, 11, title, names, ["given", *range(10)])
    return figure


def main():
    config = options(__doc__, CONFIG)
    rng, contexts = np.random.default_rng(config.seed), {}
    for name, model in {
        "PixelCNN": PixelCNN(channels=4, blocks=config.layers, rng=rng),
        "Gated PixelCNN": GatedPixelCNN(channels=4, layers=config.layers, rng=rng),
    }.items():
        seen = contexts[f"{name}, {config.layers} layers"] = context(model)
        before = PIXEL[0] * 28 + PIXEL[1]
        print(f"{name}, {config.layers} layers: sees {seen.sum()} of the {before} pixels before it")

    model, classes = trained("gated-pixelcnn-classes", config), np.arange(10)
    samples = to_host(model.sample(100, rng, labels=to_device(np.repeat(classes, 10), config.device)))

    # Bayes' rule with equal priors: the class with the largest likelihood. No classifier was trained.
    digits = data.digits()
    binary, labels = data.binarize_static(digits.test_images[:50], seed=0), digits.test_labels[:50]
    with no_grad():
        x = to_device(binary, config.device)
        of_class = np.stack([model.log_prob(x, to_device(np.full(50, k), config.device)).numpy() for k in classes])
    right = 100 * (of_class.argmax(0) == labels).mean()
    print(f"log p(x | class) is largest for the right class of {right:.0f} % of 50 digits")

    upper, chosen = np.arange(28)[:, None] < 14, np.repeat(binary[:10], 10, axis=0)
    asked = to_device(np.tile(classes, 10), config.device)
    drawn = to_host(model.sample(100, rng, labels=asked, given=chosen, mask=upper)).reshape(10, 10, 1, 28, 28)
    halves = np.concatenate([np.where(upper, binary[:10], 0.15)[:, None], drawn], axis=1).reshape(-1, 1, 28, 28)
    save(draw(contexts, samples, halves, labels[:10]), config.out, "07_gated")


if __name__ == "__main__":
    run(main)
