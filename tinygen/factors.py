"""Images made from five known factors, and the mutual information gap: how well a code keeps known factors apart.

The images follow dSprites (Matthey et al. 2017, github.com/google-deepmind/dsprites-dataset): one shape, in every
combination of the factors. Here width, orientations and positions are half as many, and the scales 4 instead of 6.
"""

from itertools import product
from typing import NamedTuple

import numpy as np

from tinygen import check
from tinygen.backend import to_host
from tinygen.tensor import as_array

SIZE, FINE = 32, 4  # pixels of a side; points of a pixel's side at which the shape is looked up
FACTORS = {"shape": 3, "scale": 4, "orientation": 20, "x": 16, "y": 16}  # the number of values of each
SHAPES = {  # whether the point (u, v) is inside, in pixels from the centre of the largest shape; about equal areas
    "square": lambda u, v: (abs(u) <= 5.3) & (abs(v) <= 5.3),
    "ellipse": lambda u, v: (u / 8) ** 2 + (v / 4.2) ** 2 <= 1,
    "heart": lambda u, v: _heart(u / 5.6, v / 5.6 - 0.27),
}
BINS = 64  # intervals of a code, equally likely


class Sprites(NamedTuple):
    """Images uint8 (61440, 1, 32, 32), values 0 and 1; factors uint8 (61440, 5): the number of each factor's value."""

    images: np.ndarray
    factors: np.ndarray


def sprites() -> Sprites:
    """All combinations of 3 shapes, 4 scales from 0.5 to 1, 20 orientations and 16 x 16 positions, the last fastest.

    Orientations are 18 degrees apart, and positions one pixel. A square looks the same every 90 degrees and an ellipse
    every 180, as in dSprites, so several orientations of these have one image. A pixel is 1 if at least half of 4 x 4
    points in it are inside the shape.
    """
    turned = [_patch(*of) for of in product(SHAPES.values(), np.linspace(0.5, 1, 4), np.arange(20) * np.pi / 10)]
    images = np.zeros((len(turned), 16, 16, SIZE, SIZE), np.uint8)
    for x, y in product(range(16), range(16)):  # a shape is at most 17 pixels wide
        images[:, x, y, y : y + 17, x : x + 17] = turned
    factors = np.indices(tuple(FACTORS.values()), np.uint8).reshape(len(FACTORS), -1).T
    return Sprites(images.reshape(-1, 1, SIZE, SIZE), np.ascontiguousarray(factors))


def _patch(inside, scale, angle):
    """(17, 17): one shape around the centre of the middle pixel."""
    line = (np.arange(17 * FINE) + 0.5) / FINE - 8.5
    y, x = np.meshgrid(line, line, indexing="ij")
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = (cos * x + sin * y) / scale, (cos * y - sin * x) / scale
    return inside(u, v).reshape(17, FINE, 17, FINE).mean((1, 3)) >= 0.5


def _heart(u, v):
    return (u**2 + v**2 - 1) ** 3 + u**2 * v**3 <= 0  # v points downwards


def mutual_information(codes, factors, bins: int = BINS) -> np.ndarray:
    """(K, D): I(z_j; v_k) of each factor v_k and each dimension z_j of the code, in nats.

    ``codes`` (N, D): draws of q(z|x), or any other real numbers; ``factors`` (N, K): whole numbers from 0 on, such as
    ``sprites().factors``. Each z_j is cut into ``bins`` intervals with as many codes in each, and the information is
    that of the joint counts: invariant to any increasing function of z_j. Cutting loses information, and a finite N
    adds about (bins - 1)(values - 1) / 2N. Raises ValueError for other shapes or values.
    """
    codes, factors = _checked(codes, factors)
    edges = np.quantile(codes, np.arange(1, check.count("bins", bins, 2)) / bins, axis=0)  # (bins - 1, D)
    cells = np.stack([np.searchsorted(e, z, side="right") for e, z in zip(edges.T, codes.T)])  # (D, N)
    return np.array([[_information(v, cell, bins) for cell in cells] for v in factors.T])


def mutual_information_gap(codes, factors, bins: int = BINS) -> np.ndarray:
    """(K,): the gap of each factor, from 0 to 1. Their mean is the MIG.

    (I(z_a; v_k) - I(z_b; v_k)) / H(v_k), where z_a and z_b are the dimensions that know most about the factor v_k. It
    is 1 if one dimension alone determines the factor. Arguments are as for ``mutual_information``, D at least 2.
    Source: Chen et al. 2018 (arXiv 1802.04942), equation 6; they integrate q(z_j|v_k) by Monte Carlo, without bins.
    """
    information, entropy = np.sort(mutual_information(codes, factors, bins), axis=1), entropies(factors)
    if information.shape[1] < 2:
        raise ValueError("codes: have 1 dimension, need at least 2 for a gap")
    if not entropy.all():
        raise ValueError(f"factors: number {entropy.argmin()} has one value only, needs at least two")
    return (information[:, -1] - information[:, -2]) / entropy


def entropies(factors) -> np.ndarray:
    """(K,): H(v_k) of each factor in nats, from its counts in ``factors`` (N, K)."""
    shares = [np.bincount(v) / len(v) for v in _whole(factors).T]
    return np.array([-(p * np.log(p)).sum() for p in shares])  # each value occurs


def _information(v, cell, bins):
    """I(v; cell) = sum p(v, cell) log p(v, cell) / (p(v) p(cell)) of two columns of whole numbers."""
    p = np.bincount(v * bins + cell, minlength=(v.max() + 1) * bins).reshape(-1, bins) / len(v)
    independent = p.sum(1, keepdims=True) * p.sum(0)
    return (p[p > 0] * np.log(p[p > 0] / independent[p > 0])).sum()


def _whole(factors):
    factors = to_host(as_array(factors, "factors"))
    if factors.ndim != 2 or not factors.size or factors.dtype.kind not in "iu" or factors.min() < 0:
        found = f"shape {factors.shape}, dtype {factors.dtype}"
        raise ValueError(f"factors: got {found}, needs whole numbers of at least 0, of shape (N, K)")
    # Numbered by the values that occur, which may be few and large
    return np.stack([np.unique(column, return_inverse=True)[1] for column in factors.T], 1)


def _checked(codes, factors):
    factors = _whole(factors)
    codes = to_host(as_array(codes, "codes"))
    if codes.ndim != 2 or len(codes) != len(factors) or not codes.shape[1] or not np.isfinite(codes).all():
        raise ValueError(f"codes: got shape {codes.shape}, needs finite numbers of shape ({len(factors)}, D)")
    return codes.astype(np.float64), factors
