"""What PixelCNN, Gated PixelCNN and PixelRNN share: a network of masked layers from an image to its logits."""

from tinygen import check
from tinygen.models.explicit.tractable.autoregressive import Autoregressive
from tinygen.models.images import check_images
from tinygen.nn.pixel_cache import PixelCache
from tinygen.tensor import Tensor


class PixelNetwork(Autoregressive):
    """A subclass defines its network once, in ``network``: on whole images, all pixels at once, for the likelihood; and
    with a ``PixelCache`` as ``at``, the same network at one pixel, for sampling."""

    def __init__(self, image_shape, levels, channels):
        super().__init__(image_shape, levels)
        self.channels = check.count("channels", channels)
        if self.channels % self.image_shape[0]:
            raise ValueError(f"channels: got {channels}, needs a multiple of the {self.image_shape[0]} colours")

    def network(self, x, rng=None, labels=None, at=None) -> Tensor:
        """From scaled images (N, C, H, W) to logits (N, C * outputs, H, W), colour by colour.

        ``rng``: for dropout, in training; ``labels`` (N,): for a model with classes; ``at``: the ``PixelCache`` for one
        pixel; x is then (C, N) and the logits are (C * outputs, N).
        """
        raise NotImplementedError

    def logits(self, x, rng=None, labels=None):
        x = check_images(x, self.image_shape, self.levels)
        n, (c, h, w) = x.shape[0], self.image_shape
        y = self.network(self._scaled(x, self.dtype), rng, self._labels(labels, n))
        return y.reshape(n, c, self.outputs, h, w).transpose(0, 2, 1, 3, 4)

    def conditionals(self, n, labels):
        c, height, width = self.image_shape
        at = PixelCache(n, height, width, self.parameters()[0].data)

        def conditional(x, row, column, colour):
            if (row, column) != (at.row, at.column):  # the previous pixel is complete
                at.store(self._scaled(x[:, :, at.row, at.column], self.dtype).T)
                at.row, at.column = row, column
            seen = Tensor(self._scaled(x[:, :, row, column], self.dtype).T)  # (C, n): earlier colours of the pixel
            return self.network(seen, labels=labels, at=at).reshape(c, self.outputs, n)[colour]

        return conditional
