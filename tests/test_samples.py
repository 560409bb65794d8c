"""Judging samples: Parzen windows by hand, the Frechet distance in closed form, nearest images."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from tinygen import data, models, weights
from tinygen.samples import best_sigma, frechet_distance, nearest_distances, parzen

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))


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


def test_the_best_sigma_is_the_deviation(rng):
    samples, validation = 0.278 * rng.standard_normal((1, 500)), 0.278 * rng.standard_normal((40, 500))
    assert best_sigma(0 * samples, validation) == pytest.approx(0.278, abs=1e-3)


# -- the table


@pytest.fixture
def table(monkeypatch, tmp_path):
    """benchmarks/samples.py with the digits that ship in place of MNIST, and folders of its own."""
    import likelihood
    import samples

    digits = data.digits()
    monkeypatch.setattr(data, "mnist", lambda: digits)
    monkeypatch.setattr(likelihood, "LEARNED", 4000)
    monkeypatch.setattr(sys.modules["report"], "RESULTS", tmp_path / "RESULTS.md")
    for name, value in {"FOLDER": tmp_path, "COPIES": 100, "TUNED": 50}.items():
        monkeypatch.setattr(samples, name, value)
    return samples


def test_the_table_of_samples(table, tmp_path, monkeypatch, rng, capsys):
    for name, model, protocol in (
        ("gsn", models.GSN(hidden=(3,), rng=rng), "grey"),
        ("bernoulli", models.BernoulliMixture(components=1, rng=rng), "published"),
        ("gated-pixelcnn-classes", models.GatedPixelCNN(channels=2, layers=1, classes=10, rng=rng), "static"),
    ):
        settings = {"gsn": {"hidden": (3,)}, "bernoulli": {"components": 1}}.get(name)
        settings = settings or {"channels": 2, "layers": 1, "classes": 10}
        weights.save(tmp_path / f"{name}.npz", model, {"settings": settings, "protocol": protocol})
    monkeypatch.setattr(table, "SAMPLES", 60)
    monkeypatch.setattr(sys, "argv", ["samples.py", "--samples", "60"])
    table.main()
    text = (tmp_path / "RESULTS.md").read_text()
    found = {tuple(c[:2]): c[2:] for line in text.splitlines() if (c := [x.strip() for x in line.split("|")][1:-1])}
    new, old = found["validation digits", "grey"], found["training digits", "grey"]
    assert float(new[1].split()[0]) > 90  # the classifier is sure of digits, grey and binary
    assert float(found["validation digits", "binary"][1].split()[0]) > 90
    assert float(new[3].split()[0]) < 5 and old[3] == "100.0 %"
    nets = {name: found[name, "binary" if name != "gsn" else "grey"] for name in ("gsn", "bernoulli")}
    assert all(float(cells[0]) > 3 * float(new[0]) for cells in nets.values())  # untrained
    assert float(found["centres of k-means", "grey"][4].split()[0]) > float(old[4].split()[0])
    assert ("gated-pixelcnn-classes", "binary") in found and "±" in nets["gsn"][4] and nets["bernoulli"][4] == ""


def test_centres_are_means_of_what_is_nearest(table, rng):
    images = np.concatenate([rng.normal(0, 0.1, (30, 1, 2, 2)), rng.normal(5, 0.1, (20, 1, 2, 2))])
    found = table.centres(images, 2, 5, np.random.default_rng(1))
    found = found[np.argsort(found[:, 0, 0, 0])]
    np.testing.assert_allclose(found, np.stack([images[:30].mean(0), images[30:].mean(0)]))


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


def test_frechet_distance_with_fewer_rows_than_features(rng):
    x = rng.random((20, 200)) * 255
    assert frechet_distance(x, x) < 1e-6
    moved = x + 1e-4 * rng.standard_normal(x.shape)
    assert 0 < frechet_distance(x, moved) < 5e-6


def test_copies_are_at_distance_zero_wherever_they_lie(rng):
    x = (rng.random((40, 300)) * 255).astype(np.float32)
    np.testing.assert_array_equal(nearest_distances(x, x), 0)
    far = nearest_distances(x[:5] + 1e7, x[5:] + 1e7)  # float32 rounds these to whole numbers
    np.testing.assert_allclose(far, nearest_distances(x[:5], x[5:]), rtol=0.01)
