"""Judging samples: Parzen windows, the Frechet distance between features, and copies of training images.

No single number says how good samples are. Parzen windows measure a likelihood that mixes up samples and kernel, and
give the centres of k-means a better one than the data themselves (Theis et al. 2016). The Frechet distance sees what
its features see. Copies of the training images do well in both, so their share is looked at as well.
"""

import math
from typing import NamedTuple

import numpy as np

from tinygen import check
from tinygen.backend import to_host
from tinygen.models.features.kmeans import squared_distances
from tinygen.tensor import as_array

SIGMAS = np.geomspace(0.1, 1, 10)  # among which the papers chose, for values in [0, 1]
CHUNK = 200  # rows of a table of distances that are computed at once, to bound memory


class LogLikelihood(NamedTuple):
    """A mean over points, in nats."""

    mean: float
    stderr: float  # of the mean: the standard deviation over the points, divided by the root of their number


def parzen(samples, points, sigma: float) -> LogLikelihood:
    """Mean of log 1/n sum_i N(x; s_i, sigma^2 I) over the ``points`` x, for n ``samples`` s_i: arrays (n, ...).

    Papers chose ``sigma`` on validation images, and took 10,000 samples (after Breuleux et al. 2011).
    Raises ValueError for no samples, fewer than two points, other shapes, or a sigma that is not positive.
    """
    samples, points = _rows("samples", samples, 1), _rows("points", points, 2)
    if samples.shape[1] != points.shape[1]:
        raise ValueError(f"points: got {points.shape[1]} numbers in each, the samples have {samples.shape[1]}")
    variance = check.number("sigma", sigma, "[1e-100, 1e100]") ** 2
    constant = math.log(len(samples)) + samples.shape[1] / 2 * math.log(2 * math.pi * variance)
    exponents = (-distances / (2 * variance) for distances in _distances(points, samples))  # each (CHUNK, n)
    log_p = np.concatenate([np.logaddexp.reduce(e, axis=1) for e in exponents]) - constant  # (N,)
    return LogLikelihood(float(log_p.mean()), float(log_p.std(ddof=1) / math.sqrt(len(log_p))))


def best_sigma(samples, validation) -> float:
    """Which of ``SIGMAS`` gives the ``validation`` points the highest likelihood."""
    return float(max(SIGMAS, key=lambda sigma: parzen(samples, validation, sigma).mean))


def frechet_distance(features_a, features_b) -> float:
    """|m_a - m_b|^2 + trace(S_a + S_b - 2 (S_a S_b)^(1/2)) of two sets of features (n, D): the squared 2-Wasserstein
    distance between Gaussians with their means m and covariances S.

    It is biased upwards, less so for more rows: compare only distances from equally many.
    Raises ValueError for fewer than two rows or other shapes.
    Source: Heusel et al. 2017 (arXiv 1706.08500), equation 6.
    """
    a, b = _rows("features_a", features_a, 2), _rows("features_b", features_b, 2)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features_b: got {b.shape[1]} features, features_a has {a.shape[1]}")
    s_a, s_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    # trace (S_a S_b)^(1/2) is the sum of the singular values of S_a^(1/2) S_b^(1/2)
    cross = np.linalg.svd(_root(s_a) @ _root(s_b), compute_uv=False).sum()
    return max(0.0, float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s_a) + np.trace(s_b) - 2 * cross))


def _root(s):
    """S^(1/2) of a covariance matrix"""
    values, vectors = np.linalg.eigh(s)
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T


def nearest_distances(samples, images) -> np.ndarray:
    """(n,): the Euclidean distance of each sample to the nearest of the ``images``; both are arrays (n, ...).

    Raises ValueError for empty arrays or other shapes.
    """
    samples, images = _rows("samples", samples, 1), _rows("images", images, 1)
    if samples.shape[1] != images.shape[1]:
        raise ValueError(f"images: got {images.shape[1]} numbers in each, the samples have {samples.shape[1]}")
    nearest = np.concatenate([distances.argmin(1) for distances in _distances(samples, images)])
    return np.sqrt(((samples - images[nearest]) ** 2).sum(1))  # computed anew, so that a copy is at distance 0


def _rows(name, array, least):
    """(n, D) in float64 from an array (n, ...)."""
    array = to_host(as_array(array, name)).astype(np.float64)
    if array.ndim < 2 or len(array) < least or not array.size:
        raise ValueError(f"{name}: got shape {array.shape}, needs (n, ...) with n at least {least}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: some values are not finite")
    return array.reshape(len(array), -1)


def _distances(a, b):
    """Yield squared distances (CHUNK, K) of the rows of a (N, D), some at a time, from those of b (K, D)."""
    centre = b.mean(0)  # distances stay, and lose fewer digits
    return (squared_distances(a[i : i + CHUNK] - centre, b - centre) for i in range(0, len(a), CHUNK))
