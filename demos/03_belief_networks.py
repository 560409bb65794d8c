"""Fully visible belief networks: FVSBN, NADE and MADE side by side. Five seconds.

All three write p(x) as a product of conditionals, one for each pixel given those before it. FVSBN has a logistic
regression for each pixel. In NADE and MADE pixels share hidden units: NADE's see one pixel more at each step, MADE
masks the weights of an autoencoder. The demo shows the weights of the models that ship, samples, and what likelihood
they reach with how many parameters and minutes, beside mixtures of Bernoullis and the pixel models.
"""

import numpy as np
from common import options, run, save
from matplotlib.figure import Figure

from tinygen.backend import to_host
from tinygen.plotting import draw_images
from tinygen.weights import FOLDER, load

CONFIG = {"images": (24, "sampled from each model", 1, 1000)}
NETWORKS = "fvsbn", "nade", "made"
MIXTURES = "bernoulli", "bernoulli-mixture"
PIXEL_MODELS = "pixelcnn", "row-lstm", "diagonal-bilstm", "gated-pixelcnn"


def filters(models):
    """{model: (12, 1, 28, 28)}: the weights between the image and 12 pixels (FVSBN) or hidden units, from -1 to 1."""
    pixels = [28 * row + column for row in (8, 14, 20) for column in (8, 12, 16, 20)]
    units = models["nade"].w.numpy().T, models["made"].first.masked_weight().numpy()
    strongest = [w[np.argsort(-(w**2).sum(1), kind="stable")[:12]] for w in units]
    rows = [models["fvsbn"].linear.masked_weight().numpy()[pixels], *strongest]
    return {name: (w / abs(w).max(1, keepdims=True)).reshape(-1, 1, 28, 28) for name, w in zip(models, rows)}


def draw(weights, samples, table):
    """Weights and samples of each model, (N, 1, 28, 28), and the table {row: (nats, parameters, minutes)}."""
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    axes = figure.subplots(2, 4, width_ratios=(1, 1, 1, 1.7))
    for i, (name, what) in enumerate(zip(weights, ("pixels", "hidden units", "hidden units"))):
        draw_images(axes[0, i], (weights[name] + 1) / 2, 4, f"{name.upper()}: weights of 12 {what}\n(grey: zero)")
        draw_images(axes[1, i], samples[name], 6, f"{name.upper()}: samples")
    for ax, column, xlabel in (
        (axes[0, 3], 1, "parameters"),
        (axes[1, 3], 2, "minutes of training on two cores"),
    ):
        for names, colour, label in (
            (MIXTURES, "C7", "mixtures of Bernoullis"),
            (NETWORKS, "C3", "belief networks"),
            (PIXEL_MODELS, "C0", "PixelCNN, PixelRNN, Gated PixelCNN"),
        ):
            x, y = [max(table[name][column], 0.05) for name in names], [table[name][0] for name in names]
            ax.plot(x, y, "o", color=colour, label=label)
            for name, *place in zip(names, x, y):
                if names != PIXEL_MODELS:  # they lie too close together
                    ax.annotate(name, place, xytext=(5, 3), textcoords="offset points", fontsize=8)
        ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="nats per image on test images")
        ax.set_yticks([80, 100, 150, 200], ["80", "100", "150", "200"])
        ax.yaxis.set_minor_formatter("")
        ax.margins(x=0.2)
        ax.grid(alpha=0.3)
    axes[0, 3].legend(fontsize=8, loc="center left")
    return figure


def main():
    config = options(__doc__, CONFIG)
    rng, table = np.random.default_rng(config.seed), {}
    loaded = {name: load(FOLDER / f"{name}.npz") for name in (*MIXTURES, *NETWORKS, *PIXEL_MODELS)}
    print(f"{'row':<20} nats per image   parameters   minutes")
    for name, (model, about) in sorted(loaded.items(), key=lambda item: -item[1][1]["result"]["nats"]):
        table[name] = about["result"]["nats"], model.num_parameters(), about["minutes"][-1]
        print(f"{name:<20} {table[name][0]:14.2f} {table[name][1]:12,} {table[name][2]:9.1f}")
    models = {name: loaded[name][0].to(config.device) for name in NETWORKS}
    samples = {name: to_host(model.sample(config.images, rng)) for name, model in models.items()}
    save(draw(filters(models), samples, table), config.out, "03_belief_networks")


if __name__ == "__main__":
    run(main)
