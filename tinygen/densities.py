"""Four densities in the plane that are known exactly, to compare learned ones with.

A point is an image of shape (1, 1, 2), so that every model of real images takes it; the points fill the square from -2
to 2 and a little more. ``entropy`` is the lowest mean score that any model can reach on such points.
"""

import math
from dataclasses import dataclass

import numpy as np

from tinygen import check


@dataclass(frozen=True)
class Mixture:
    """Equally likely Gaussians with ``means`` (K, 2) and standard deviations ``scales`` (K, 2) along the two axes, each
    turned by its ``angles`` (K,), in radians.

    With ``swirl`` the point at distance r from the origin is then turned by swirl r. That changes no area, so the
    density moves along unchanged, and the entropy stays the same.
    """

    means: np.ndarray
    scales: np.ndarray
    angles: np.ndarray
    swirl: float = 0.0

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """(n, 1, 1, 2)"""
        k = check.generator(rng).integers(len(self.means), size=check.count("n", n))
        noise = rng.standard_normal((n, 2)) * self.scales[k]
        x = self.means[k] + _turned(noise, self.angles[k])
        return _turned(x, self.swirl * np.hypot(*x.T)).reshape(n, 1, 1, 2)

    def log_prob(self, x) -> np.ndarray:
        """log p(x) of each point, (..., 2) -> (N,) in nats: log 1/K sum_k N(x; mean_k, covariance_k)."""
        x = np.asarray(x, np.float64).reshape(-1, 2)
        x = _turned(x, -self.swirl * np.hypot(*x.T))
        eps = _turned(x[:, None] - self.means, -self.angles) / self.scales  # (N, K, 2)
        log_p = -0.5 * (eps**2).sum(2) - np.log(2 * math.pi * self.scales.prod(1))
        return np.logaddexp.reduce(log_p, 1) - math.log(len(self.means))

    @property
    def entropy(self) -> float:
        """-sum of p log p over a fine grid, times its cell's area, in nats.

        It is accurate to 1e-6 for means within 2 of the origin and deviations from 0.1 to 0.5.
        """
        line = np.arange(-5, 5, 0.025)  # a quarter of the smallest deviation: the sum is as good as the integral
        unturned = Mixture(self.means, self.scales, self.angles)
        log_p = np.concatenate([unturned.log_prob(np.stack([line, np.full_like(line, y)], 1)) for y in line])
        return -float((np.exp(log_p) * log_p).sum()) * 0.025**2


@dataclass(frozen=True)
class Checkerboard:
    """Uniform on the eight black squares of a board of 4 x 4, each with sides of length 1."""

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """(n, 1, 1, 2)"""
        column, half = check.generator(rng).integers((4, 2), size=(check.count("n", n), 2)).T
        corner = np.stack([column, 2 * half + column % 2], 1) - 2
        return (corner + rng.random((n, 2))).reshape(n, 1, 1, 2)

    def log_prob(self, x) -> np.ndarray:
        """log p(x) of each point, (..., 2) -> (N,) in nats: -log 8, or -inf on white squares and off the board."""
        x = np.asarray(x, np.float64).reshape(-1, 2)
        black = (np.floor(x).sum(1) % 2 == 0) & (np.floor(x) >= -2).all(1) & (np.floor(x) < 2).all(1)
        return np.where(black, -math.log(8), -np.inf)

    @property
    def entropy(self) -> float:
        """log 8, the logarithm of the area, in nats."""
        return math.log(8)


def eight_gaussians() -> Mixture:
    """Eight round Gaussians on a circle of radius 1.6, with standard deviation 0.2."""
    return Mixture(1.6 * _directions(8), np.full((8, 2), 0.2), np.zeros(8))


def two_moons() -> Mixture:
    """Two half circles of radius 1.2 that reach into each other, as 2 x 24 Gaussians with standard deviation 0.12."""
    angle = math.pi * (np.arange(24) + 0.5) / 24
    upper = 1.2 * np.stack([np.cos(angle), np.sin(angle)], 1) + (-0.6, -0.3)
    return Mixture(np.concatenate([upper, -upper]), np.full((48, 2), 0.12), np.zeros(48))


def pinwheel() -> Mixture:
    """Five long Gaussians that point away from the origin, bent by a swirl."""
    angle = 2 * math.pi * np.arange(5) / 5
    return Mixture(1.1 * _directions(5), np.tile((0.35, 0.1), (5, 1)), angle, swirl=1.0)


def _directions(k):
    """(k, 2): unit vectors around the circle"""
    angle = 2 * math.pi * np.arange(k) / k
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def _turned(x, angle):
    """The points x (..., 2), turned by ``angle`` around the origin"""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], -1)


DENSITIES = {
    "eight Gaussians": eight_gaussians(),
    "two moons": two_moons(),
    "pinwheel": pinwheel(),
    "checkerboard": Checkerboard(),
}
