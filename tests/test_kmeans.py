"""tinygen.models.KMeans."""

import numpy as np
import pytest

from tinygen import data
from tinygen.models import KMeans


def test_clusters_that_are_apart_are_found(rng):
    corners = 10 * np.array([[0, 0], [0, 1], [1, 0], [1, 1]], float)
    images = (corners[rng.integers(4, size=200)] + rng.standard_normal((200, 2))).reshape(-1, 1, 1, 2)
    kmeans = KMeans(images, 4, rng=rng)
    found = kmeans.centres[((kmeans.centres[None] - corners[:, None]) ** 2).sum(2).argmin(1)]
    assert abs(found - corners).max() < 0.6  # four standard errors of a mean of 50
    np.testing.assert_array_equal(
        kmeans.reconstruct(images), kmeans.centres[kmeans.encode(images)].reshape(-1, 1, 1, 2)
    )


def test_at_the_end_each_centre_is_the_mean_of_its_images(rng):
    images = data.digits().test_images[:200] / 255
    kmeans = KMeans(images, 7, rng=rng)
    x, of = images.reshape(200, -1), kmeans.encode(images)
    distances = ((x[:, None] - kmeans.centres) ** 2).sum(2)
    assert (of == distances.argmin(1)).all()
    for j in range(7):
        np.testing.assert_allclose(kmeans.centres[j], x[of == j].mean(0), atol=1e-12)


def test_more_iterations_are_no_worse(rng):
    images = data.digits().test_images[:300] / 255
    errors = []
    for iterations in (0, 1, 3, 100):
        kmeans = KMeans(images, 10, iterations, rng=np.random.default_rng(0))
        errors.append(((kmeans.reconstruct(images) - images) ** 2).sum())
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.95 * errors[0]


def test_as_many_clusters_as_images(rng):
    images = rng.random((5, 1, 2, 2))
    assert np.allclose(KMeans(images, 5, rng=rng).reconstruct(images), images)
    assert KMeans(np.ones((5, 1, 1, 1)), 3, rng=rng).centres.tolist() == [[1.0]] * 3  # all alike


@pytest.mark.parametrize(
    "clusters, rng, message",
    [
        (0, np.random.default_rng(0), "clusters: got 0"),
        (6, np.random.default_rng(0), "clusters: got 6"),
        (2, 0, "rng: got 0"),
    ],
)
def test_what_makes_no_sense(clusters, rng, message):
    with pytest.raises(ValueError, match=message):
        KMeans(np.zeros((5, 1, 2, 2)), clusters, rng=rng)
    with pytest.raises(ValueError, match="code: got 2 to 2"):
        KMeans(np.zeros((5, 1, 2, 2)), 2, rng=np.random.default_rng(0)).decode([2])
