"""Grids of images and latent manifolds. Only the functions that draw need matplotlib."""

import io
from functools import partial
from statistics import NormalDist

import numpy as np

from tinygen.backend import to_device, to_host
from tinygen.models import VAE
from tinygen.tensor import Tensor, no_grad

GAP = 3  # pixels between the images of a grid


def tile(images, columns: int) -> np.ndarray:
    """(N, C, H, W), C = 1 or 3, on either device -> one picture (rows, columns[, 3]), with gaps between the images.

    The gaps, and the empty cells of the last row, have the smallest value of the images.
    """
    images = to_host(images.data if isinstance(images, Tensor) else images)
    n, c, h, w = images.shape
    rows = -(-n // columns)
    picture = np.full((rows * (h + GAP) - GAP, columns * (w + GAP) - GAP, c), images.min(), images.dtype)
    for i, image in enumerate(images):
        y, x = i // columns * (h + GAP), i % columns * (w + GAP)
        picture[y : y + h, x : x + w] = image.transpose(1, 2, 0)
    return picture[..., 0] if c == 1 else picture


def draw_images(ax, images, columns: int, title: str = "", rows=(), heads=()) -> None:
    """Draw a grid of images on matplotlib Axes, with a title, names for the rows and heads for the columns.

    In grey images 0 is white and 1 is black, so that panels can be compared; values outside 0 .. 1 widen the range.
    """
    picture = tile(images, columns)
    ax.imshow(picture, cmap="gray_r", vmin=min(0, picture.min()), vmax=max(1, picture.max()), interpolation="nearest")
    ax.set_title(title, fontsize=9, pad=18 if heads else 6)
    ax.set_axis_off()
    height, width = images.shape[2:]
    for i, name in enumerate(rows):
        ax.text(-4, i * (height + GAP) + height / 2, name, ha="right", va="center", fontsize=9)
    for i, name in enumerate(heads):
        ax.text(i * (width + GAP) + width / 2, -4, name, ha="center", va="bottom", fontsize=9)


def figure(panels: dict):
    """A matplotlib Figure of grids side by side, which a notebook displays.

    ``panels``: {title: (images, columns)} or {title: (images, columns, names of the rows)}. A panel is 4.2 inches wide;
    all are as tall as the tallest grid, up to four times that.
    """
    from matplotlib.figure import Figure

    shapes = [tile(images, columns).shape for images, columns, *_ in panels.values()]
    tallest = min(max(height / width for height, width, *_ in shapes), 4)
    # About 3.9 inches of a panel's width are left for its grid, and 0.4 inches of the height are for the titles
    drawn = Figure(figsize=(4.2 * len(panels), 3.9 * tallest + 0.4), layout="constrained")
    drawn.get_layout_engine().set(wspace=0.06, h_pad=0.1)
    for ax, (title, (images, columns, *rows)) in zip(drawn.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        draw_images(ax, images, columns, title, *rows)
    drawn._repr_png_ = partial(_png, drawn)  # a notebook calls it: it cannot draw a Figure without pyplot
    return drawn


def _png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


@no_grad()
def manifold(vae: VAE, size: int = 12) -> np.ndarray:
    """(size * size, C, H, W): a VAE with two latent dimensions, decoded on a grid.

    z takes quantiles of the standard normal, so that all cells of the grid have equal probability. The first dimension
    grows to the right, the second upwards (Kingma and Welling 2014, figure 4). Raises ValueError for other VAEs.
    """
    if vae.latent != 2:
        raise ValueError(f"manifold: the VAE has {vae.latent} latent dimensions, needs 2")
    z = np.array([NormalDist().inv_cdf((i + 0.5) / size) for i in range(size)], np.float32)
    grid = np.stack(np.meshgrid(z, z[::-1]), axis=-1).reshape(-1, 2)
    return vae.decode(to_device(grid, vae.device)).numpy()
