"""What the fully visible belief networks FVSBN, NADE and MADE share: an image is a vector of values in raster order."""

import math

import numpy as np

from tinygen import check
from tinygen.models.explicit.tractable.autoregressive import Autoregressive
from tinygen.models.images import check_images
from tinygen.tensor import Tensor


class BeliefNetwork(Autoregressive):
    """Images (N, C, H, W) as vectors of D = C * H * W values, in the order row, column, colour.

    A subclass defines ``vector_logits`` and, for sampling, ``conditionals``. Values are scaled to 0 .. 1, so that
    binary ones are 0 and 1, as in the papers. A value with K > 2 levels has K logits, a binary one has K = 1.
    """

    def __init__(self, image_shape, levels):
        super().__init__(image_shape, levels)
        self.values = math.prod(self.image_shape)  # D

    def _ranks(self, order, rng):
        """(D,): the rank of each value, 0 to D - 1, in raster order or in a random one."""
        check.choice("order", order, "raster", "random")
        return np.arange(self.values) if order == "raster" else check.generator(rng).permutation(self.values)

    def vector_logits(self, x) -> Tensor:
        """(N, D) from 0 to 1 -> (N, D, K): the logits of p(x_i | x_<i)"""
        raise NotImplementedError

    def logits(self, x, rng=None, labels=None):
        x = check_images(x, self.image_shape, self.levels)
        n, (c, h, w) = x.shape[0], self.image_shape
        self._labels(labels, n)  # raises if there are any
        y = self.vector_logits(self._vectors(x))
        return y.reshape(n, h, w, c, self.outputs).transpose(0, 4, 3, 1, 2)  # (N, K, C, H, W)

    def _vectors(self, x):
        """(N, C, H, W), array or Tensor -> (N, D)"""
        return self._scaled(x, self.dtype).transpose(0, 2, 3, 1).reshape(len(x), self.values)

    def _scaled(self, x, dtype):
        return x.astype(dtype) * (1 / (self.levels - 1))

    def _in_order(self, ranks):
        """The positions (row, column, colour) of the values, that of rank 0 first."""
        raster = super().positions()
        return [raster[i] for i in ranks.numpy().argsort()]

    def _index(self, row, column, colour):
        """The place of a value in the vector."""
        c, _, width = self.image_shape
        return (row * width + column) * c + colour
