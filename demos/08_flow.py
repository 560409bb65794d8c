"""A normalizing flow step by step: layers bend noise into a density, and digits turn into each other. Half a minute.

Real NVP is a chain of couplings. Each moves some of the numbers, stretching and shifting them by what a network makes
of the others, which stay; so it can be undone exactly, and log |det| is the sum of the stretchings' logarithms. In the
plane one coordinate moves at a time. The animation shows a grid and points of noise on their way through the inverse
layers, until they lie where the true density is high. The demo prints the flow's mean score on new points, in nats,
beside the entropy of the true density, which no model can go below; the difference is KL(true || model).

A Real NVP of digits ships with tinygen. It was trained on 50,000 digits, including those that are shown here. Two
digits are encoded, and points of the straight line between their z are decoded: z is softly uniform, so it is likely in
a cube, which the line does not leave. Below are averages of the same digits' pixels. The demo prints how likely the
model finds what lies halfway, by either way, in bits per dimension: fewer is likelier.
"""

from functools import partial
from pathlib import Path

import numpy as np
from common import TRAIN, options, run, save, trained
from matplotlib import colormaps
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure

from tinygen import Tensor, data, no_grad
from tinygen.backend import to_device, to_host
from tinygen.densities import DENSITIES
from tinygen.models import RealNVP, bits_per_dim
from tinygen.optim import Muon, cosine
from tinygen.parallel import first_rank
from tinygen.plotting import draw_images
from tinygen.training import evaluate, fit

CONFIG = {
    "steps": (1200, "of training in the plane"),
    "frames": (5, "of the animation for each layer", 1, 50),
    "points": (400, "of noise in the animation"),
    **TRAIN,
}
NAME, NEW = "pinwheel", 5000  # the density in the plane, and the new points that the score is taken on
LIMIT, MOST = 2.6, 1.0  # of the part of the plane that is drawn, and of its colours for the density
PAIRS = (0, 6), (3, 5), (4, 9), (2, 8)  # the first digits of these classes
STEPS = 11  # images from one digit to the other


def in_the_plane(density, config, rng):
    """A Real NVP of points, which has learned from 50,000 of the density."""
    flow = RealNVP((1, 1, 2), levels=None, couplings=4, hidden=64, rng=rng).to(config.device)
    fit(
        flow,
        density.sample(50_000, rng).astype(np.float32),
        steps=config.steps,
        optimizer=Muon(flow.parameters(), 1e-2),
        rng=rng,
        batch_size=256,
        schedule=cosine,
        averaging=0.98,
    )
    return flow


@no_grad()
def log_density(flow, x):
    """log p(x) in nats, (N, 1, 1, 2) on the host -> (N,)"""
    return flow.log_prob(to_device(x.astype(np.float32), flow.device)).numpy().astype(float)


@no_grad()
def stations(flow, z):
    """(layers + 1, N, 2): where the points z (N, 2) are before the first inverse layer and after each."""
    x = [Tensor(to_device(z.astype(np.float32).reshape(-1, 1, 1, 2), flow.device))]
    for layer in reversed(flow.scales[0]):
        x.append(layer.inverse(x[-1]))
    return np.stack([part.numpy().reshape(-1, 2) for part in x])


def names(flow):
    """Titles of the noise, and of each inverse layer while it acts."""
    *couplings, _ = reversed(flow.scales[0])  # next to the data there is no coupling, but a scale for each coordinate
    ways = ["x1 (sideways)" if to_host(layer.mask).argmin() == 0 else "x2 (up and down)" for layer in couplings]
    acts = [f"coupling {i} of {len(ways)} moves {way}" for i, way in enumerate(ways, 1)]
    return ["noise", *acts, "each coordinate is scaled: samples"]


def grid(lines=13):
    """(2 lines, 101, 2): points along the lines of a grid over most of the noise, which is softly uniform on -1..1"""
    along, across = np.meshgrid(np.linspace(-1.5, 1.5, 101), np.linspace(-1.5, 1.5, lines))
    return np.concatenate([np.stack([along, across], -1), np.stack([across, along], -1)])


def draw_density(ax, log_prob, title):
    """Colours for a density, given log_prob: (N, 1, 1, 2) -> (N,); returns what a colour bar needs."""
    line = np.linspace(-LIMIT, LIMIT, 130)
    p = np.exp(log_prob(np.stack(np.meshgrid(line, line), -1).reshape(-1, 1, 1, 2))).reshape(len(line), -1)
    picture = ax.pcolormesh(line, line, p, vmin=0, vmax=MOST, cmap="magma_r")
    ax.set(xlabel="x1", ylabel="x2", aspect="equal")
    ax.set_title(title, fontsize=10)
    return picture


def draw_plane(ax, lines, points, colours, title):
    """The grid's lines (L, P, 2) and the points (N, 2); returns what an animation moves."""
    drawn = [ax.plot(*line.T, color="0.65", linewidth=0.8)[0] for line in lines]
    dots = ax.scatter(*points.T, c=colours, s=7, zorder=2)
    ax.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), xlabel="x1", ylabel="x2", aspect="equal")
    ax.set_title(title, fontsize=10)
    return drawn, dots


def animate(density, lines, points, colours, titles, frames, path):
    """Write an animation of lines (layers + 1, L, P, 2) and points (layers + 1, N, 2), moved by one layer at a time."""
    figure = Figure(figsize=(8.8, 4.9), layout="constrained")
    ax, right = figure.subplots(1, 2)
    drawn, dots = draw_plane(ax, lines[0], points[0], colours, titles[0])
    draw_density(right, density.log_prob, "true density (dark: high)")
    figure.draw_without_rendering()  # lays the panels out, once for all frames
    figure.set_layout_engine("none")
    layers, writer = len(titles) - 1, PillowWriter(fps=8)
    with writer.saving(figure, path, dpi=75):
        for step in [0] * 8 + list(range(frames * layers)) + [frames * layers] * 16:  # the ends stay for a while
            before = max(step - 1, 0) // frames
            done = step / frames - before  # of the layer that acts now
            for line, place in zip(drawn, (1 - done) * lines[before] + done * lines[before + 1]):
                line.set_data(*place.T)
            dots.set_offsets((1 - done) * points[before] + done * points[before + 1])
            ax.set_title(titles[before + (step > 0)], fontsize=10)
            writer.grab_frame()


@no_grad()
def between(model, a, b):
    """STEPS images from a to b (C, H, W), evenly spaced on the straight line between their z, as real numbers."""
    z = model.encode(to_device(np.stack([a, b]), model.device)).numpy()
    t = np.linspace(0, 1, STEPS)[:, None]
    return model.decode(to_device((1 - t) * z[:1] + t * z[1:], model.device)).numpy().clip(0, model.levels)


def averages(a, b):
    """The same of the pixels themselves, each in the middle of its bin."""
    t = np.linspace(0, 1, STEPS)[:, None, None, None]
    return ((1 - t) * a + t * b + 0.5).astype(np.float32)


def draw(density, flow, lines, points, colours, rows, samples):
    """Above the plane; below {name: images} of the rows between digits, and samples; images from 0 to 1."""
    figure = Figure(figsize=(13, 9.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(4, 5.6))
    true, learned, bent = above.subplots(1, 3)
    draw_density(true, density.log_prob, "plane: true density")
    picture = draw_density(learned, partial(log_density, flow), "plane: density of the flow")
    above.colorbar(picture, ax=[true, learned], label="density", shrink=0.8)
    draw_plane(bent, lines, points, colours, "plane: samples of the flow, bent grid")
    left, right = below.subplots(1, 2, width_ratios=(8.2, 4.8))
    title = "digits: points of the line between two z, decoded; averages of pixels"
    draw_images(left, np.concatenate(list(rows.values())), STEPS, title, rows)
    draw_images(right, samples, 6, f"digits: {len(samples)} samples")
    return figure


def main():
    config = options(__doc__, CONFIG)
    rng, density, digits = np.random.default_rng(config.seed), DENSITIES[NAME], data.digits()
    model = trained("realnvp", config)  # first, since it may be missing
    flow = in_the_plane(density, config, rng)
    x = density.sample(NEW, rng)
    kl = density.log_prob(x) - log_density(flow, x)
    score, error = density.entropy + kl.mean(), kl.std() / NEW**0.5
    print(f"{NAME}: entropy {density.entropy:.3f} nats; score {score:.3f} nats on {NEW:,} new points,")
    print(f"KL(true || model) = {kl.mean():.3f} +- {error:.3f} nats")
    lines, z = grid(), flow.prior.sample((config.points, 2), rng)
    lines = stations(flow, lines.reshape(-1, 2)).reshape(-1, *lines.shape)
    points, colours = stations(flow, z), colormaps["hsv"](np.arctan2(*z.T) / (2 * np.pi) + 0.5)
    path = Path(config.out) / "08_flow.gif"
    if first_rank():
        animate(density, lines, points, colours, names(flow), config.frames, path)
    print(f"picture: {path.resolve()}", flush=True)

    images, levels = digits.test_images, model.levels
    seen = "new" if config.train else "some of its own training"
    bits = bits_per_dim(evaluate(model, images, rng), model.image_shape)
    print(f"Real NVP: {model.num_parameters():,} parameters, {bits:.2f} bits per dimension, on {seen} digits")
    rows, halfway = {}, {"through z": [], "averages": []}
    for pair in PAIRS:
        a, b = (images[np.flatnonzero(digits.test_labels == k)[0]] for k in pair)
        for way, row in zip(halfway, (between(model, a, b), averages(a, b))):
            rows[f"{pair[0]} to {pair[1]}\n{way}"] = row / levels
            halfway[way].append(row[STEPS // 2])
    for way, middles in halfway.items():
        bits = bits_per_dim(-log_density(model, np.stack(middles)), model.image_shape)
        print(f"halfway, {way}: {', '.join(f'{b:.2f}' for b in bits)} bits per dimension")
    samples = to_host(model.sample(48, rng)) / (levels - 1)
    save(draw(density, flow, lines[-1], points[-1], colours, rows, samples), config.out, "08_flow")


if __name__ == "__main__":
    run(main)
