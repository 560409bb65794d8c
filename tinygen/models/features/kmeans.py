"""k-means clustering (Lloyd 1982): each image is represented by the nearest of k centres."""

import numpy as np

from tinygen import check
from tinygen.models.images import check_images


class KMeans:
    """Finds ``centres`` (clusters, C * H * W) of ``images`` (N, C, H, W), a NumPy array; ``clusters``: at most N.

    The initial centres are images, each drawn with a probability proportional to its squared distance from the nearest
    centre drawn before (k-means++, Arthur and Vassilvitskii 2007), so that they start far apart. Then each centre
    becomes the mean of the images nearest to it, until no image changes its centre, or ``iterations`` times.
    Raises ValueError for other shapes, and if ``clusters`` is not from 1 to N.
    """

    def __init__(self, images: np.ndarray, clusters: int, iterations: int = 100, *, rng: np.random.Generator):
        images = check_images(images).numpy()
        self.image_shape, x = images.shape[1:], images.reshape(len(images), -1).astype(float)
        clusters, rng = check.count("clusters", clusters), check.generator(rng)
        if clusters > len(x):
            raise ValueError(f"clusters: got {clusters}, needs at most the {len(x)} images")
        centres = x[rng.integers(len(x), size=1)]
        while len(centres) < clusters:
            distances = squared_distances(x, centres).min(1)
            total = distances.sum()  # 0 if every image equals a centre: then all are equally probable
            p = distances / total if total else None
            centres = np.concatenate([centres, x[rng.choice(len(x), 1, p=p)]])
        self.centres = centres
        nearest = self._nearest(x)
        for _ in range(check.count("iterations", iterations, 0)):
            self.centres = np.stack(
                [x[nearest == j].mean(0) if (nearest == j).any() else c for j, c in enumerate(self.centres)]
            )
            before, nearest = nearest, self._nearest(x)
            if (nearest == before).all():
                break

    def encode(self, x) -> np.ndarray:
        """(N, C, H, W) -> (N,): the index of the nearest centre."""
        x = check_images(x, self.image_shape).numpy()
        return self._nearest(x.reshape(len(x), -1))

    def decode(self, code) -> np.ndarray:
        """(N,) -> (N, C, H, W): the centres with these indices."""
        return self.centres[check.labels("code", code, len(self.centres))].reshape(-1, *self.image_shape)

    def reconstruct(self, x) -> np.ndarray:
        """(N, C, H, W) -> (N, C, H, W)"""
        return self.decode(self.encode(x))

    def _nearest(self, x):
        return squared_distances(x, self.centres).argmin(1)


def squared_distances(x, centres):
    """(N, D), (K, D) -> (N, K): |x|^2 - 2 x c + |c|^2, at least 0 in spite of rounding."""
    return np.maximum((x**2).sum(1)[:, None] - 2 * x @ centres.T + (centres**2).sum(1), 0)
