"""The lecture's autoencoder: it learns features without labels by reconstructing images through a narrow code."""

import numpy as np

from tinygen import check
from tinygen.models.base import Model
from tinygen.models.images import check_images, check_shape
from tinygen.models.networks import CHANNELS, Decoder, Encoder
from tinygen.models.recipe import Recipe
from tinygen.tensor import Tensor


class Autoencoder(Model):
    """A convolutional encoder to a code and a decoder back, trained with squared error.

    ``image_shape`` (C, H, W), any size; ``code``: size of the code; ``channels``: output channels of each convolution.
    Images are real numbers, best in [0, 1]. Raises ValueError for a number below 1 or no channels.
    """

    unit = "squared error per image"

    def __init__(self, image_shape=(1, 28, 28), code: int = 32, channels=CHANNELS, *, rng: np.random.Generator):
        self.image_shape = check_shape(image_shape)
        code, channels = check.count("code", code), check.counts("channels", channels)
        self.encoder = Encoder(self.image_shape, code, channels, rng=rng)
        self.decoder = Decoder(self.image_shape, code, channels, rng=rng)

    def encode(self, x) -> Tensor:
        """(N, C, H, W) -> (N, code)"""
        return self.encoder(self._checked(x))

    def decode(self, code) -> Tensor:
        """(N, code), array or Tensor on the model's device -> (N, C, H, W)"""
        return self.decoder(code)

    def reconstruct(self, x) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)"""
        return self.decode(self.encode(x))

    def score(self, x, rng=None, labels=None) -> Tensor:
        """(N, C, H, W) -> (N,): the squared error, summed over an image's pixels. ``rng`` is not used."""
        check.no_labels(labels)
        x = self._checked(x)
        return ((self.reconstruct(x) - x) ** 2).sum((1, 2, 3))

    def _checked(self, x):
        """x as a Tensor in the parameters' dtype, after checking it."""
        return check_images(x, self.image_shape, grey=True).astype(self.dtype)


RECIPES = {
    "autoencoder": Recipe(
        Autoencoder,
        {"code": 32, "channels": (32, 64, 96, 128)},
        protocol="grey",
        steps=(6400,),
        lr=3e-3,
        weight_decay=0.0,
        batch_size=64,
    )
}
