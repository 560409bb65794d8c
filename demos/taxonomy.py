"""The taxonomy of generative models, with nine samples at each leaf. Half a minute.

The tree is the lecture's, after figure 9 of Goodfellow's tutorial (2016, arXiv 1701.00160), and so are the folders of
tinygen/models. At each leaf are samples of the model that ships under this name, not selected, and what its file says
of its evaluation: minus log p(x) in nats per image or bits per dimension, where lower is better, or the estimate of
Parzen windows, where higher is better. benchmarks/RESULTS.md says on which pixels: not all figures can be compared. Of
VAEs and the GSN the mean of each pixel is shown, and diffusion takes 50 steps without new noise instead of 1,000. A
leaf without weights shows its name alone.
"""

import time
from dataclasses import dataclass

import numpy as np
from common import options, run, save
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from tinygen.models import Diffusion
from tinygen.plotting import tile
from tinygen.weights import FOLDER, load


@dataclass(frozen=True)
class Row:
    """A branch that has leaves: what its models have in common, and their names by the names of their weights."""

    idea: str
    leaves: dict[str, str]


TREE = {
    "explicit\ndensity": {
        "tractable": {
            "belief\nnetworks": Row(
                "p(x) is a sum over components, or a product over pixels, each given those before",
                {"bernoulli-mixture": "Mixture", "fvsbn": "FVSBN", "nade": "NADE", "made": "MADE"},
            ),
            "pixel networks": Row(
                "The same product; the networks that give its factors see rows and columns",
                {
                    "row-lstm": "Row LSTM",
                    "diagonal-bilstm": "Diagonal BiLSTM",
                    "pixelcnn": "PixelCNN",
                    "gated-pixelcnn": "Gated PixelCNN",
                    "gated-pixelcnn-classes": "given its class",
                },
            ),
            "flows": Row(
                "x = f(z) can be inverted: p(x) is p(z) times the change of volume",
                {"nice": "NICE", "realnvp": "Real NVP", "glow": "Glow", "ffjord": "FFJORD"},
            ),
        },
        "approximate": {
            "variational": Row(
                "p(x) is an integral over z, too hard to compute; a lower bound is maximized instead",
                {
                    "vae": "VAE",
                    "vae-categorical": "Categorical VAE",
                    "vae-mixture": "Mixture prior",
                    "beta-tcvae": "beta-TCVAE",
                    "diffusion": "Diffusion",
                },
            ),
            "Markov chain": Row(
                "p(x) is known but for a constant; a chain learns and draws",
                {"rbm": "RBM"},
            ),
        },
    },
    "implicit\ndensity": {
        "direct": Row(
            "A generator makes x of noise z, and a discriminator judges it; no p(x) is computed",
            {"gan": "GAN", "gan-wasserstein": "Wasserstein GAN"},
        ),
        "Markov chain ": Row(
            "Corrupting and reconstructing, again and again, draws x; no p(x) is computed",
            {"gsn": "GSN"},
        ),
    },
}
COLOURS = {"tractable": "#2f6db0", "approximate": "#3a8a4d", "implicit\ndensity": "#c2651a"}  # of a branch and below
INK, GREY, LIGHT = "#222222", "#777777", "#f3f4f6"
ON_LIGHT = LinearSegmentedColormap.from_list("on light", [LIGHT, "black"])
ABOUT = """
Nine samples each, not selected,
of the weights that ship with tinygen.
Under them minus log p(x) of test images:
lower is better, ≤ marks an upper bound.
≈ an estimate. Parzen: higher is better.
Of VAEs and the GSN means are shown.
""".strip()

# The picture is measured in pixels of a page 900 wide, and drawn with twice as many.
COLUMNS = (8, 106, 198, 300)  # left edges of the boxes: the root, and three generations
WIDTHS = (78, 70, 82, 98)
LEAVES, LEAF, STEP = 414, 90, 108  # left edge of the first leaf, a leaf's side, and from leaf to leaf
BOX, IDEA, CAPTION, BETWEEN = 36, 20, 31, 14  # heights
WIDE = LEAVES + 5 * STEP - 4


def samples(name, seed):
    """(9, C, H, W) in [0, 1], what the file says of the evaluation, and the seconds for the samples; or None."""
    path = FOLDER / f"{name}.npz"
    if not path.exists():
        return None
    model, about = load(path)
    begun = time.perf_counter()
    draw = getattr(model, "sample_means", model.sample)
    how = {"labels": np.arange(1, 10)} if model.classes else {}
    if isinstance(model, Diffusion):
        how |= {"steps": 50, "eta": 0.0}
    images = draw(9, np.random.default_rng(seed), **how) / np.float32(255 if about["protocol"] == "8-bit" else 1)
    return images, figure_of(model, about), time.perf_counter() - begun


def figure_of(model, about):
    """The figure on the test images, with its unit; empty if the file has none."""
    result = about.get("result", {})
    bounded = hasattr(model, "bound") or about["protocol"] == "8-bit"  # not exact, but not less likely than this
    sign = "≤ " if bounded else "≈ " if "log_z" in result else ""
    if "nats" in result:
        return f"{sign}{result['nats']:.1f} nats"
    if "bits_per_dim" in result:
        return f"{sign}{result['bits_per_dim']:.2f} bits/dim"
    return f"Parzen {result['parzen']:.0f} nats" if "parzen" in result else ""


def rows_of(tree):
    """The rows of a tree, from top to bottom."""
    return [row for branch in tree.values() for row in ([branch] if isinstance(branch, Row) else rows_of(branch))]


def draw(found):
    """``found``: for the name of each leaf that has weights, its samples and its figure."""
    tops, y = {}, 8
    for row in rows_of(TREE):
        tops[row.idea] = y
        y += IDEA + (LEAF + CAPTION if row.leaves.keys() & found.keys() else BOX - IDEA) + BETWEEN
    figure = Figure(figsize=(2 * WIDE / 110, 2 * y / 110), facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDE), ylim=(y, 0))
    ax.set_axis_off()

    def text(x, y, words, size=11, **how):
        ax.text(x, y, words, fontsize=size * 2 * 72 / 110, **{"color": INK, "va": "center", **how})

    def box(column, y, words, colour):
        x, width = COLUMNS[column], WIDTHS[column]
        shape = "round,pad=0,rounding_size=6"
        ax.add_patch(FancyBboxPatch((x, y - BOX / 2), width, BOX, shape, facecolor=colour, edgecolor="none"))
        text(x + width / 2, y, words.strip(), 10, color="white", ha="center", weight="bold", linespacing=1.1)

    def leaves(row, top, colour):
        text(LEAVES, top + 7, row.idea, 10.5, style="italic")
        x, without = LEAVES, [title for name, title in row.leaves.items() if name not in found]
        for name, title in row.leaves.items():
            if name in found:
                images, figure_ = found[name]
                y = top + IDEA
                ax.add_patch(Rectangle((x - 4, y - 2), LEAF + 8, LEAF + 4, color=LIGHT, lw=0, zorder=-1))
                ax.imshow(tile(images, 3), cmap=ON_LIGHT, vmin=0, vmax=1, extent=(x, x + LEAF, y + LEAF, y))
                text(x, y + LEAF + 11, title, 10.5, color=colour, weight="bold")
                text(x, y + LEAF + 24, figure_, 10.5)
                x += STEP
        if without and x > LEAVES:
            text(x, top + IDEA, "also in tinygen:\n" + "\n".join(without), 10.5, color=GREY, va="top", linespacing=1.35)
        elif without:
            text(x, top + 27, "in tinygen: " + ", ".join(without), 10.5, color=GREY)

    def branch(words, node, column, colour):
        """Draw a node and all below it; returns the height of its middle."""
        colour = COLOURS.get(words, colour)
        if isinstance(node, Row):
            top = tops[node.idea]
            middle = top + (IDEA + LEAF / 2 if node.leaves.keys() & found.keys() else BOX / 2)
            leaves(node, top, colour)
            column = 3
        else:
            middles = [branch(*child, column + 1, colour) for child in node.items()]
            middle = sum(middles[:: max(1, len(middles) - 1)]) / min(2, len(middles))
            left = COLUMNS[column] + WIDTHS[column]
            x = left + (COLUMNS[column + 1] - left) / 2
            ax.plot([left, x], [middle, middle], color=GREY, lw=2, zorder=0)
            ax.plot([x, x], [middles[0], middles[-1]], color=GREY, lw=2, zorder=0)
            for below, y in zip(node.values(), middles):
                right = COLUMNS[3 if isinstance(below, Row) else column + 1]
                ax.plot([x, right], [y, y], color=GREY, lw=2, zorder=0, solid_capstyle="butt")
        box(column, middle, words, colour)
        return middle

    branch("generative\nmodels", TREE, 0, "#444444")
    text(COLUMNS[0], 8, ABOUT, 10.5, color=GREY, va="top", linespacing=1.35)
    ax.set(xlim=(0, WIDE), ylim=(y, 0), aspect="auto")
    return figure


def main():
    config = options(__doc__, {})
    found = {}
    for row in rows_of(TREE):
        for name, title in row.leaves.items():
            if (leaf := samples(name, [config.seed, *name.encode()])) is None:
                print(f"{title:<20} no weights ship")
            else:
                *found[name], seconds = leaf
                print(f"{title:<20} {found[name][1]:<18} {seconds:5.1f} s for nine samples", flush=True)
    save(draw(found), config.out, "taxonomy")


if __name__ == "__main__":
    run(main)
