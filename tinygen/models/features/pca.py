"""Principal component analysis: the best linear autoencoder, in closed form (Baldi and Hornik 1989)."""

import numpy as np

from tinygen import check
from tinygen.models.images import check_images


class PCA:
    """The principal components of ``images`` (N, C, H, W), a NumPy array; ``code``: their number, at most C * H * W.

    ``directions`` (code, C * H * W): the directions of largest variance, in descending order; ``variances`` (code,):
    the variance along each. Raises ValueError for other shapes, and if ``code`` is not from 1 to C * H * W.
    """

    def __init__(self, images: np.ndarray, code: int):
        images = check_images(images).numpy()
        if len(images) < 2:
            raise ValueError(f"images: got shape {images.shape}, needs at least two images")
        self.image_shape = images.shape[1:]
        x = images.reshape(len(images), -1)
        code = check.count("code", code)
        if code > x.shape[1]:
            raise ValueError(f"code: got {code}, needs at most the {x.shape[1]} numbers of an image")
        self.mean = x.mean(0)
        variances, directions = np.linalg.eigh(np.atleast_2d(np.cov(x.T)))  # ascending
        self.variances, self.directions = variances[::-1][:code], directions.T[::-1][:code]

    def encode(self, x) -> np.ndarray:
        """(N, C, H, W) -> (N, code)"""
        x = check_images(x, self.image_shape).numpy()
        return (x.reshape(len(x), -1) - self.mean) @ self.directions.T

    def decode(self, code) -> np.ndarray:
        """(N, code) -> (N, C, H, W)"""
        code = check.tensor("code", code, "N", len(self.directions)).numpy()
        return (code @ self.directions + self.mean).reshape(len(code), *self.image_shape)

    def reconstruct(self, x) -> np.ndarray:
        """(N, C, H, W) -> (N, C, H, W)"""
        return self.decode(self.encode(x))
