"""The base class of fully visible models: likelihood by the chain rule, sampling one value after the other.

    log p(x) = sum_i log p(x_i | x_1 .. x_{i-1})        pixels in raster order, colours in a pixel in the order R, G, B

A subclass computes all conditionals of whole images at once, for the likelihood, and one at a time, for sampling.
"""

from collections.abc import Callable, Iterator

import numpy as np

from tinygen import check
from tinygen.backend import to_device, xp
from tinygen.distributions import Bernoulli, Categorical
from tinygen.models.base import Model
from tinygen.models.images import check_images, check_shape
from tinygen.tensor import Tensor, no_grad


class Autoregressive(Model):
    """Images (N, C, H, W) of whole numbers 0 .. levels - 1. A subclass defines ``logits`` and ``conditionals``."""

    def __init__(self, image_shape, levels):
        self.image_shape = check_shape(image_shape)
        self.levels = check.count("levels", levels, 2)
        self.outputs = 1 if self.levels == 2 else self.levels  # K, logits per value: of a Bernoulli or Categorical

    def describe(self):
        classes = f", classes={self.classes}" if self.classes else ""
        return f"image_shape={self.image_shape}, levels={self.levels}{classes}"

    def logits(self, x, rng: np.random.Generator | None = None, labels=None) -> Tensor:
        """(N, C, H, W) -> (N, K, C, H, W): for each value the logits of p(x_i | x_<i); K = levels, or 1 for binary.

        ``rng``: for dropout; without it nothing is dropped.
        """
        raise NotImplementedError

    def conditionals(self, n, labels) -> Callable:
        """A function that sampling calls for each of ``positions``, in this order, while it draws n images.

        It takes the images so far (n, C, H, W) and the row, column and colour of the value to draw next, and returns
        the logits (K, n) of p(x_i | x_<i), a Tensor. It may keep activations from one call to the next.
        """
        raise NotImplementedError

    def positions(self) -> list[tuple[int, int, int]]:
        """(row, column, colour) of all values, in the order of the chain rule."""
        c, h, w = self.image_shape
        return list(np.ndindex(h, w, c))

    def log_prob(self, x, labels=None) -> Tensor:
        """(N, C, H, W) -> (N,): log p(x) in nats, exact; for a model with classes log p(x | labels), ``labels`` (N,).

        Raises ValueError for another shape, an empty batch, labels for a model without classes, labels that are not
        (N,) whole numbers, or (on the host) values or labels out of range.
        """
        return self._log_prob(x, None, labels)

    def loss(self, x, rng: np.random.Generator | None = None, labels=None) -> Tensor:
        """Mean of -log p(x) in nats per image, with dropout from ``rng``; without dropout if it is None."""
        return -self._log_prob(x, check.generator(rng, or_none=True), labels).mean()

    def _log_prob(self, x, rng, labels):
        x = check_images(x, self.image_shape, self.levels)
        p = self._distribution(self.logits(x, rng, labels), axis=1)  # over (N, C, H, W)
        values = x.astype(self.dtype) if self.levels == 2 else x.data.astype(np.int64)  # a Bernoulli takes floats
        return p.log_prob(values).sum((1, 2, 3))  # sum_i log p(x_i | x_1 .. x_{i-1})

    def _scaled(self, x, dtype):
        """Values scaled to -1 .. 1, in ``dtype``: the zeros beyond the border then differ from both binary values."""
        return x.astype(dtype) * (2 / (self.levels - 1)) - 1

    def _labels(self, labels, n):
        """The labels (n,) on the model's device, or None for a model without classes."""
        labels = check.classes(labels, self.classes, n)
        return None if labels is None else to_device(labels, self.device)

    def _distribution(self, logits, axis):
        """The distribution of the values, given logits with the K outputs along ``axis``."""
        if self.levels > 2:
            return Categorical(logits, axis)
        return Bernoulli(logits.reshape(logits.shape[:axis] + logits.shape[axis + 1 :]))

    def _draw(self, logits, u, temperature):
        """Values (n,) drawn from p(x_i | x_1 .. x_{i-1}), given its logits (K, n), with uniform numbers u (n,)."""
        return self._distribution(logits / temperature, axis=0).at(u)

    def sample(self, n: int, rng: np.random.Generator, labels=None, given=None, mask=None, temperature=1.0):
        """n images (n, C, H, W), uint8 (int64 above 256 levels), drawn exactly, on the model's device.

        ``labels`` (n,): the classes to draw from, for a model with classes.
        ``given`` (n, C, H, W) and a boolean ``mask`` that broadcasts to it: values to keep where the mask is True; each
        other value is drawn given all before it. Activations are kept, so each pixel is computed only once.
        ``temperature``: divides the logits; below 1 likely values become likelier. Only with 1 are the draws the
        model's own.
        Raises ValueError for n < 1, a temperature below 1e-30 or above 1e30, only one of ``given`` and ``mask``,
        arguments that do not fit, or (on the host) parameters that are nan.
        """
        *_, images = self.sample_rows(n, rng, labels, given, mask, temperature)
        return images

    def complete(self, x, rng: np.random.Generator, mask, labels=None):
        """(n, C, H, W): the values of x where ``mask`` holds, the others drawn as ``sample`` does with ``given``."""
        x = check_images(x, self.image_shape, self.levels).data
        return self.sample(len(x), rng, labels, x, mask)

    def sample_by_definition(self, n, rng, labels=None, given=None, mask=None, temperature=1.0):
        """``sample`` without kept activations: the whole network runs again for each value, H * W * C times.

        It takes the arguments of ``sample`` and returns the same draws up to rounding.
        """
        *_, images = self.sample_rows(n, rng, labels, given, mask, temperature, by_definition=True)
        return images

    def sample_rows(
        self, n, rng, labels=None, given=None, mask=None, temperature=1.0, by_definition: bool = False
    ) -> Iterator:
        """``sample`` as a generator: yields the images after each row, always the same array, zero in values to come.

        ``by_definition``: as ``sample_by_definition`` does it. As in any generator, arguments are not checked before
        the first row is requested.
        """
        x, u, keep, labels, temperature = self._begin(n, rng, labels, given, mask, temperature)
        conditional = (self._by_definition if by_definition else self.conditionals)(len(x), labels)
        positions = self.positions()
        in_a_row = len(positions) // x.shape[2]
        for row in range(x.shape[2]):
            with no_grad():  # it ends before the yield, so the caller's computations are recorded
                for position in positions[row * in_a_row : (row + 1) * in_a_row]:
                    logits = conditional(x, *position)  # (K, n)
                    i = np.s_[:, position[2], position[0], position[1]]  # x[i] is (n,)
                    x[i] = xp(x).where(keep[i], x[i], self._draw(logits, u[i], temperature))
                check.no_nan("logits", logits.data)
            yield x

    def _by_definition(self, n, labels):
        """``conditionals`` from the logits of whole images."""

        def conditional(x, row, column, colour):
            return self.logits(x, labels=labels)[:, :, colour, row, column].T

        return conditional

    def _begin(self, n, rng, labels, given, mask, temperature):
        """Check the arguments of ``sample`` and move them to the device, so that nothing is copied later.

        Returns the images with the given values, a uniform number for each value, and which values are kept, all
        (n, C, H, W); labels; temperature.
        """
        n = check.count("n", n)
        temperature = check.number("temperature", temperature, "[1e-30, 1e30]")  # beyond it logits overflow
        if (given is None) != (mask is None):
            got = "mask" if given is None else "given"
            raise ValueError(f"given and mask go together: got {got} alone, needs both, or neither")
        shape, device = (n, *self.image_shape), self.device
        u = to_device(check.generator(rng).random(shape), device)
        x = xp(u).zeros(shape, np.uint8 if self.levels <= 256 else np.int64)
        keep = xp(u).zeros(shape, bool)
        if given is not None:
            given = check_images(given, self.image_shape, self.levels).data
            if given.shape != shape:
                raise ValueError(f"given: has shape {given.shape}, needs {shape}")
            keep = check.mask(mask, shape, device)
            x = xp(u).where(keep, to_device(given, device), x).astype(x.dtype)
        return x, u, keep, self._labels(labels, n), temperature
