"""What PixelCNN, Gated PixelCNN and PixelRNN share: the likelihood by the chain rule, sampling pixel by pixel.

    log p(x) = sum_i log p(x_i | x_1 .. x_{i-1})        pixels in raster order, colours in a pixel in the order R, G, B

A subclass describes its network once, in ``network(x, apply)``: with ``apply`` calling a layer on whole images that is
the likelihood, all pixels at once; with a ``PixelCache`` it is the same network at one pixel, for sampling.
"""

from collections.abc import Iterator

import numpy as np

from tinygen import check
from tinygen.backend import to_device, xp
from tinygen.distributions import Bernoulli, Categorical
from tinygen.models.explicit.tractable.pixel_cache import PixelCache
from tinygen.models.images import check_images, check_shape
from tinygen.nn import Dropout, Module
from tinygen.tensor import Tensor, as_array, no_grad, recording


class Autoregressive(Module):
    """Images (N, C, H, W) of whole numbers 0 .. levels - 1."""

    unit = "nats per image"  # of the loss
    classes = 0  # how many there are to label images with; where it is not 0, ``network`` takes labels, too

    def __init__(self, image_shape, levels, width):
        self.image_shape = check_shape(image_shape)
        self.width = check.count("width", width)
        if self.width % self.image_shape[0]:
            raise ValueError(f"width: got {width}, needs a multiple of the {self.image_shape[0]} colours")
        self.levels = check.count("levels", levels, 2)
        self.outputs = 1 if self.levels == 2 else self.levels  # logits of a value: for a Bernoulli or Categorical

    def describe(self):
        classes = f", classes={self.classes}" if self.classes else ""
        return f"image_shape={self.image_shape}, levels={self.levels}{classes}"

    def network(self, x, apply) -> Tensor:
        """From scaled images to C * outputs channels, colour by colour; ``apply(layer, h, ...)`` evaluates a layer,
        with ``labels`` where it has classes."""
        raise NotImplementedError

    def logits(self, x, labels=None, *, rng: np.random.Generator | None = None) -> Tensor:
        """(N, C, H, W) -> (N, K, C, H, W): for each value the logits of p(x_i | x_<i); K = levels, or 1 for binary.

        ``rng``: for dropout, while learning; without one nothing is dropped.
        """

        def apply(layer, h, **given):
            return layer(h, rng) if isinstance(layer, Dropout) else layer(h, **given)

        check.generator(rng, or_none=True)
        x = check_images(x, self.image_shape, self.levels)
        n, (c, h, w) = x.shape[0], self.image_shape
        y = self.network(self._scaled(x), apply, **self._condition(labels, n))
        return y.reshape(n, c, self.outputs, h, w).transpose(0, 2, 1, 3, 4)

    def log_prob(self, x, labels=None, *, rng: np.random.Generator | None = None) -> Tensor:
        """(N, C, H, W) -> (N,): log p(x) in nats, exact; of a model with classes log p(x | labels), ``labels`` (N,).

        ``rng``: as for ``logits``; log p(x) is then a noisy value to learn from.
        Raises ValueError for another shape, an empty batch, labels of a model without classes or that are not (N,)
        whole numbers, or (on the host) values or labels out of range.
        """
        x = check_images(x, self.image_shape, self.levels)
        p = self._distribution(self.logits(x, labels, rng=rng), axis=1)
        # a Bernoulli takes floats, a Categorical classes
        return p.log_prob(x.astype(self.dtype) if self.levels == 2 else x.data.astype(np.int64)).sum((1, 2, 3))

    def loss(self, x, rng=None, labels=None) -> Tensor:
        """Mean of -log p(x) in nats per image. ``rng``: for dropout; not used under ``no_grad``, where nothing is
        learned."""
        return -self.log_prob(x, labels, rng=rng if recording() else None).mean()

    def _scaled(self, x):
        """Values from -1 to 1 in the parameters' dtype: for binary images, the zeros beyond the border are neither."""
        return x.astype(self.dtype) * (2 / (self.levels - 1)) - 1

    def _condition(self, labels, n) -> dict:
        """What ``network`` is given beside the image: nothing, or labels (n,) on the model's device."""
        labels = check.classes(labels, self.classes, n)
        return {} if labels is None else {"labels": to_device(labels, self.device)}

    def _distribution(self, logits, axis):
        """Of the values, given logits with the K outputs along ``axis``."""
        if self.levels > 2:
            return Categorical(logits, axis)
        return Bernoulli(logits.reshape(logits.shape[:axis] + logits.shape[axis + 1 :]))

    def sample(self, n: int, rng: np.random.Generator, given=None, mask=None, labels=None, temperature=1.0):
        """n images (n, C, H, W), uint8 (int64 above 256 levels), drawn exactly, on the model's device.

        ``given`` (n, C, H, W) with a boolean ``mask`` that broadcasts to it: values to keep where the mask holds; each
        other value is drawn given all before it. One pixel costs one pixel's work: activations are kept.
        ``labels`` (n,): the classes to draw from, for a model with classes. ``temperature``: divides the logits; below
        1 likely values become likelier, and the draws are no longer the model's own.
        Raises ValueError for n < 1, a temperature below 1e-30 or above 1e30, where only one of ``given`` and
        ``mask`` is there, something does not fit, or (on the host) parameters are nan.
        """
        *_, images = self.paint(n, rng, given, mask, labels, temperature)
        return images

    def paint(self, n, rng, given=None, mask=None, labels=None, temperature=1.0) -> Iterator:
        """``sample`` to watch: gives the images after each row, always the same array, zero where nothing is yet.

        As in any generator, nothing is checked before the first row is asked for.
        """
        n, scale = check.count("n", n), check.number("temperature", temperature, "[1e-30, 1e30]")  # beyond it overflows
        if (given is None) != (mask is None):
            got = "mask" if given is None else "given"
            raise ValueError(f"given and mask go together: got {got} alone, needs both, or neither")
        shape, device = (n, *self.image_shape), self.device
        u = to_device(check.generator(rng).random(shape), device)  # all at once: nothing crosses to the device later
        x = xp(u).zeros(shape, np.uint8 if self.levels <= 256 else np.int64)
        keep = None
        if given is not None:
            given = check_images(given, self.image_shape, self.levels).data
            if given.shape != shape:
                raise ValueError(f"given: has shape {given.shape}, needs {shape}")
            mask = to_device(as_array(mask, "mask"), device)
            if mask.dtype != bool:
                raise ValueError(f"mask: has dtype {mask.dtype}, needs booleans")
            try:
                keep = xp(u).broadcast_to(mask, shape)
            except ValueError:
                raise ValueError(f"mask: has shape {mask.shape}, needs to broadcast to {shape}") from None
            x = xp(u).where(keep, to_device(given, device), x).astype(x.dtype)
        of_class = self._condition(labels, n)
        cache = PixelCache(n, self.image_shape, self.parameters()[0].data)
        c, height, width = self.image_shape
        for row in range(height):
            with no_grad():  # not while the caller has the images
                for column in range(width):
                    cache.move(row, column)
                    for colour in range(c):
                        seen = Tensor(self._scaled(x[:, :, row, column]).T)  # the colours before
                        logits = self.network(seen, cache, **of_class).reshape(c, self.outputs, n)[colour]
                        drawn = self._distribution(logits / scale, axis=0).at(u[:, colour, row, column])
                        if keep is not None:
                            drawn = xp(u).where(keep[:, colour, row, column], x[:, colour, row, column], drawn)
                        x[:, colour, row, column] = drawn
                    cache.input(self._scaled(x[:, :, row, column]).T)
                check.no_nan("logits", logits.data)
            yield x
