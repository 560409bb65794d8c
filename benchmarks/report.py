"""Where results go: sections of ``RESULTS.md``, and the plot."""

import re
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

from tinygen.files import written

RESULTS = Path(__file__).with_name("RESULTS.md")


def write_section(title, text):
    """Write the section ``## title`` of RESULTS.md, replacing an existing one; the other sections stay."""
    head, *sections = re.split(
        r"^(?=## )", RESULTS.read_text() if RESULTS.exists() else "# Results\n\n", flags=re.MULTILINE
    )
    new = f"## {title}\n\n{text}"
    i = next((i for i, section in enumerate(sections) if section.startswith(f"## {title}\n")), len(sections))
    sections[i : i + 1] = [new]
    with written(RESULTS) as file:
        file.write(("\n\n".join(part.strip() for part in [head, *sections]) + "\n").encode())


def table(columns, rows):
    """A Markdown table. All columns but the first two are numbers, aligned right."""
    lines = [columns, ["---"] * 2 + ["---:"] * (len(columns) - 2), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


CONTENDERS = ["pytorch", "pytorch channels_last", "dezero", "autograd"]  # in the order of their colours
PANELS = {  # prefix of a work's name: title
    "step/": "Training step",
    "op/": "Single operation, forward and backward",
    "sample/": "Sampling, beside a loop without a cache, which runs the whole network for each pixel",
}
FAR = 0.1  # ratios below this have an axis of their own
NAMES = {
    "autoencoder": "Autoencoder",
    "vae": "VAE",
    "fvsbn": "FVSBN",
    "nade": "NADE",
    "made": "MADE",
    "nice": "NICE",
    "realnvp": "Real NVP",
    "glow": "Glow",
    "ffjord": "FFJORD",
    "gan": "GAN",
    "wgan": "GAN, Wasserstein",
    "gsn": "GSN",
    "pixelcnn": "PixelCNN",
    "pixelrnn-row": "Row LSTM",
    "pixelrnn-diagonal": "Diagonal BiLSTM",
    "conv3x3": "3x3 convolution",
    "masked_conv3x3": "masked 3x3 convolution",
    "conv_transpose": "transposed convolution",
    "lstm": "LSTM",
}


def readable(work):
    """``step/pixelcnn-h16`` -> PixelCNN, width 16"""
    name, h, n = re.fullmatch(r".*?/(.*?)(?:-(h?)(\d+))?", work).groups()
    size = f", width {n}" if h else f", {n} channels" if n else ""
    return NAMES.get(name, name) + size


def plot(rows, path):
    """Plot tinygen's time divided by each other contender's, with a line at 1 and a panel for each kind of work."""
    rows = [r for r in rows if r["ratio"] and r["contender"] != "tinygen"]
    panels = {title: found for p, title in PANELS.items() if (found := [r for r in rows if r["work"].startswith(p)])}
    if not panels:
        raise ValueError("plot: no row has a ratio to show")
    sizes = [len(found) + 0.8 * len({r["work"] for r in found}) + 3 for found in panels.values()]  # in bars
    figure = Figure(figsize=(9, 0.5 + 0.17 * sum(sizes)), layout="constrained")
    axes, bars = figure.subplots(len(panels), 1, height_ratios=sizes, squeeze=False)[:, 0], {}
    for ax, (title, found) in zip(axes, panels.items()):
        bars |= _bars(ax, found, far=max(r["ratio"] for r in found) < FAR)
        ax.set_title(title, fontsize=10)
        if ax.get_xscale() == "linear":  # the same limits in all linear panels
            ax.set_xlim(0, 1.1 * max(1, *(r["ratio"] for r in rows)))
    legend = {name: bars[name] for name in CONTENDERS if name in bars}
    figure.legend(legend.values(), legend, loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=150)


def _bars(ax, rows, far):
    """Draw a panel, on a logarithmic axis if all ratios are ``far`` below 1. Returns {contender: one of its bars}."""
    bars, ticks, y = {}, {}, 0
    for work, group in groupby(rows, key=lambda row: row["work"]):
        top = y
        for row in group:
            name, ratio = row["contender"], row["ratio"]
            colour = f"C{CONTENDERS.index(name)}"
            bars[name] = ax.barh(y, ratio - 1 if far else ratio, left=1 if far else 0, color=colour)
            text = f"{1 / ratio:,.0f} times as fast" if far else f"{ratio:.2f}"
            paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the line at 1
            options = {"xytext": (-4 if far else 4, 0), "textcoords": "offset points", "bbox": paper}
            ax.annotate(text, (ratio, y), va="center", ha="right" if far else "left", fontsize=7, **options)
            y += 1
        ticks[readable(work)] = (top + y - 1) / 2
        y += 0.8  # a gap
    if far:
        ax.set_xscale("log")
        ax.set_xlim(min(row["ratio"] for row in rows) / 8, 1.5)
        ax.xaxis.set_major_formatter("{x:g}")
    ax.axvline(1, color="black", linewidth=0.8)
    ax.tick_params(labelsize=8)
    ax.set_xlabel("time of tinygen / time of the other (below 1: tinygen is faster)", fontsize=8)
    ax.set_yticks(list(ticks.values()), ticks)
    ax.set_ylim(y - 0.8, -1)
    return bars
