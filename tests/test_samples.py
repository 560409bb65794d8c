"""Judging samples: Parzen windows by hand, the Frechet distance in closed form, nearest images."""

import math

import numpy as np
import pytest

from tinygen.samples import frechet_distance, nearest_distances, parzen


def test_one_sample_is_a_gaussian(rng):
    s, x = rng.standard_normal((1, 1, 2, 3)), rng.standard_normal((5, 1, 2, 3))
    log_p = -((x - s) ** 2).sum((1, 2, 3)) / (2 * 0.3**2) - 6 / 2 * math.log(2 * math.pi * 0.3**2)
    found = parzen(s, x, 0.3)
    assert found.mean == pytest.approx(log_p.mean()) and found.stderr == pytest.approx(log_p.std(ddof=1) / 5**0.5)


def test_parzen_by_hand():
    """p(x) = (N(x; 0, 1) + N(x; 2, 1)) / 2 at 1 and 0."""
    found = parzen(np.array([[0.0], [2.0]]), np.array([[1.0], [0.0]]), 1.0)
    at_one = math.exp(-0.5) / math.sqrt(2 * math.pi)
    at_zero = (1 + math.exp(-2)) / 2 / math.sqrt(2 * math.pi)
    assert found.mean == pytest.approx((math.log(at_one) + math.log(at_zero)) / 2)
    assert found.stderr == pytest.approx(abs(math.log(at_one) - math.log(at_zero)) / 2)


def test_parzen_integrates_to_one_and_is_finite_far_away(rng):
    samples, grid = rng.random((1203, 1)), np.linspace(-3, 4, 1401)[:, None]
    p = np.exp([parzen(samples, np.repeat(x[None], 2, axis=0), 0.2).mean for x in grid[::20]])
    assert p.sum() * 0.1 == pytest.approx(1, abs=1e-3)
    assert np.isfinite(parzen(samples, grid + 1e3, 1e-3).mean)
    assert parzen(samples, grid, 0.2).mean == pytest.approx(  # in parts, as in one
        np.mean(np.log(np.mean(np.exp(-((grid - samples.T) ** 2) / 0.08), 1) / math.sqrt(2 * math.pi * 0.04)))
    )


def with_moments(n, mean, covariance, rng):
    """n rows with exactly this mean and covariance."""
    x = rng.standard_normal((n, len(mean)))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_gaussians(rng):
    mean, a, b = np.array([1.0, 2.0, 3.0]), np.diag([1.0, 4.0, 9.0]), np.diag([4.0, 4.0, 1.0])
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    x, y = with_moments(20, 0 * mean, turn @ a @ turn.T, rng), with_moments(30, mean, turn @ b @ turn.T, rng)
    # |m|^2 + sum (s_a - s_b)^2 of the deviations, as both have the same axes
    assert frechet_distance(x, y) == pytest.approx(14 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_covariances_that_do_not_commute(rng):
    a, b = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.5], [-0.5, 2.0]])
    # in two dimensions trace((A B)^(1/2)) = sqrt(trace(A B) + 2 sqrt(det(A B)))
    root = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a @ b)))
    x, y = (with_moments(9, np.zeros(2), s, rng) for s in (a, b))
    assert frechet_distance(x, y) == pytest.approx(np.trace(a + b) - 2 * root)
    flat = np.concatenate([x, np.zeros((9, 2))], 1)  # features that never differ
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-6)


def test_nearest_distances(rng):
    images, samples = rng.random((700, 1, 2, 2)), rng.random((600, 1, 2, 2))
    images[3] = samples[5]
    expected = np.sqrt(((samples[:, None] - images[None]) ** 2).sum((2, 3, 4)).min(1))
    found = nearest_distances(samples, images)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert found[5] < 1e-7


X = np.zeros((3, 2))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: parzen(X, X, 0), "sigma: got 0"),
        (lambda: parzen(X, X[:, :1], 1.0), "points: got 1 numbers in each, the samples have 2"),
        (lambda: parzen(X[:0], X, 1.0), r"samples: got shape \(0, 2\)"),
        (lambda: parzen(X, X[:1], 1.0), r"points: got shape \(1, 2\), needs .* at least 2"),
        (lambda: parzen(X, X * np.nan, 1.0), "points: some values are not finite"),
        (lambda: parzen("3", X, 1.0), "samples is"),
        (lambda: frechet_distance(X, X[:, :1]), "features_b: got 1 features, features_a has 2"),
        (lambda: frechet_distance(X[:1], X), r"features_a: got shape \(1, 2\)"),
        (lambda: frechet_distance(X[0], X), r"features_a: got shape \(2,\)"),
        (lambda: nearest_distances(X, X[:, :1]), "images: got 1 numbers in each, the samples have 2"),
        (lambda: nearest_distances(X, X[:0]), r"images: got shape \(0, 2\)"),
    ],
)
def test_what_is_wrong_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
