"""The data manifold: the plane of a two-dimensional z, paths between digits, single dimensions. Ten seconds.

A VAE with two latent dimensions arranges all digits on a plane. It is decoded on a grid with equal probability between
the lines: neighbours look alike, and one class turns into the next. In 32 dimensions a straight line between the codes
of two digits passes through digits too, and a single dimension changes one property, such as slant or stroke. The demo
prints how often the nearest code is of the same class: how well z separates classes, although it never saw labels.

With --faces 3000 it also trains a VAE with a 2-d z on the Frey faces, frames of a film of one man, as the VAE's paper
does, for two minutes, and draws its plane: from one side to the other his mood changes, or he turns his head.
"""

import numpy as np
from common import TRAIN, options, run, save, trained
from matplotlib.figure import Figure

from tinygen import data, no_grad
from tinygen.backend import to_device
from tinygen.models import VAE
from tinygen.optim import Muon, cosine
from tinygen.plotting import draw_images, manifold
from tinygen.training import fit

CONFIG = {
    "size": (20, "rows and columns of the plane"),
    "faces": (0, "steps of training on the Frey faces (0: none)", 0, 10**6),
    **TRAIN,
}
STEPS = 10  # images of a path or a traversal


@no_grad()
def codes(vae, images):
    """Means of q(z|x): (N, latent) on the host."""
    return vae.encode(to_device(images, vae.device)).mean.numpy()


@no_grad()
def decoded(vae, z):
    return vae.decode(to_device(z, vae.device)).numpy()


def most_varied(z):
    """The dimensions, most varied means first: these carry most information."""
    return np.argsort(-z.var(0))


def nearest_class_share(z, labels):
    """How often the nearest other code is of the same class, in percent."""
    distances = ((z[:, None] - z[None]) ** 2).sum(2)
    np.fill_diagonal(distances, np.inf)
    return 100 * (labels[distances.argmin(1)] == labels).mean()


def of_faces(config):
    """A VAE with a 2-d z of the Frey faces; of the film the last frames, which are unlike the others, judge it."""
    images, rng = data.frey_faces() / np.float32(255), np.random.default_rng(config.seed)
    learned, held_out = images[:1700], images[1700:]
    model = VAE(images.shape[1:], 2, likelihood="gaussian", rng=rng).to(config.device)
    optimizer = Muon(model.parameters(), 3e-3)
    options = {"steps": config.faces, "optimizer": optimizer, "rng": rng, "batch_size": 64, "schedule": cosine}
    record = fit(model, learned, validation=held_out, validate_every=config.faces, averaging=0.99, **options)
    print(f"Frey faces: {record[-1]['validation']:.0f} nats per image on {len(held_out)} frames not seen in training")
    return model


def draw_faces(plane, size):
    figure = Figure(figsize=(7, 9.5), layout="constrained")
    title = "Frey faces, as a VAE draws them: z[0] to the right, z[1] upwards, by quantiles"
    draw_images(figure.subplots(), plane, size, title)
    return figure


def draw(plane, size, flat, wide, labels, paths, traversals):
    """The decoded plane; codes (N, 2) and (N, latent) with their labels; {name: images} of paths and traversals."""
    figure = Figure(figsize=(14, 7), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=(1.5, 1.15, 1.1))
    title = "2-d z, decoded: z[0] to the right, z[1] upwards, by quantiles of the normal distribution"
    draw_images(left.subplots(), plane, size, title)
    i, j = most_varied(wide)[:2]
    for ax, points, names, title in zip(
        middle.subplots(2, 1),
        (flat, wide[:, [i, j]]),
        (("z[0]", "z[1]"), (f"z[{i}]", f"z[{j}]")),
        ("2-d z: means of q(z|x)", f"{wide.shape[1]}-d z: means of q(z|x), the two that vary most"),
    ):
        dots = ax.scatter(*points.T, c=labels, cmap="tab10", vmin=-0.5, vmax=9.5, s=9)
        ax.set(xlabel=names[0], ylabel=names[1])
        ax.set_title(title, fontsize=9)
    middle.colorbar(dots, ax=middle.axes, ticks=range(10), label="class of the digit", shrink=0.6)
    above, below = right.subplots(2, 1)
    title = f"{wide.shape[1]}-d z: straight lines between the codes of two digits"
    draw_images(above, np.concatenate(list(paths.values())), STEPS, title, paths)
    ends = ["-3", *[""] * (STEPS - 2), "3"]
    title = f"{wide.shape[1]}-d z: a three, one dimension changed from -3 to 3"
    draw_images(below, np.concatenate(list(traversals.values())), STEPS, title, traversals, ends)
    return figure


def main():
    config = options(__doc__, CONFIG)
    digits = data.digits()
    binary = data.binarize_static(digits.test_images, seed=0)
    flat, deep = trained("vae-2d", config), trained("vae", config)
    z, wide = codes(flat, binary), codes(deep, binary)
    for name, c in (("2", z), (str(deep.latent), wide)):
        share = nearest_class_share(c, digits.test_labels)
        print(f"{name:>2}-d z: the nearest code is of the same class for {share:.0f} % of 500 digits")

    paths, traversals = {}, {}
    for a, b in ((0, 1), (2, 3), (4, 5), (6, 7)):  # the first digit of each class
        start, end = (wide[np.flatnonzero(digits.test_labels == k)[0]] for k in (a, b))
        t = np.linspace(0, 1, STEPS)[:, None]
        paths[f"{a} to {b}"] = decoded(deep, (1 - t) * start + t * end)
    print(f"{deep.latent}-d z: in {(wide.var(0) > 0.01).sum()} dimensions the means' variance is above 0.01")
    three = wide[np.flatnonzero(digits.test_labels == 3)[0]]
    for dimension in most_varied(wide)[:4]:
        row = np.tile(three, (STEPS, 1))
        row[:, dimension] = np.linspace(-3, 3, STEPS)
        traversals[f"z[{dimension}]"] = decoded(deep, row)

    plane = manifold(flat, config.size)
    figure = draw(plane, config.size, z, wide, digits.test_labels, paths, traversals)
    save(figure, config.out, "15_manifold")
    if config.faces:
        size = min(12, config.size)
        white_is_1 = 1 - manifold(of_faces(config), size)  # draw_images has 0 white
        save(draw_faces(white_is_1, size), config.out, "15_faces")


if __name__ == "__main__":
    run(main)
