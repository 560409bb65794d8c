"""Normalizing flows: an invertible function z = f(x) turns images into independent noise, whose density is known.

    log p(x) = log p(z) + log |det dz/dx|                            (Dinh et al. 2014, equation 2)

f is a chain of layers. Each has ``forward(x) -> y, log_det``, where log_det (N,) is log |det dy/dx| of each image, and
``inverse(y) -> x``; the determinant of the chain is the product of theirs. Here are what all flows share: the way from
whole numbers to real ones, the multi-scale chain, coupling layers with their networks, and the densities of z.
"""

import math
from typing import NamedTuple

import numpy as np

from tinygen import check, ops
from tinygen.backend import to_device, xp
from tinygen.models.base import Model
from tinygen.models.images import bits_per_dim, check_images, check_shape
from tinygen.nn import Buffer, Conv2d, Linear, Module, Parameter
from tinygen.tensor import Tensor, no_grad

EVEN = 0.1  # the share of a uniform histogram in equalization, so that rare values keep some width
FACTOR = 1.0  # the initial bound on |s| in y = x exp(s) + t


class Terms(NamedTuple):
    """The two terms of log p(x), each (N,) in nats."""

    prior: Tensor  # log p(z)
    log_det: Tensor  # log |det dz/dx|

    @property
    def total(self) -> Tensor:
        """(N,): log p(x) = log p(z) + log |det dz/dx|."""
        return self.prior + self.log_det


class Flow(Model):
    """The base class. A subclass builds ``scales``, a list of layers for each of ``shapes``, and ``prior``, the
    density of z.

    After each scale but the last, the second half of the channels leaves: it becomes part of z as it is
    (Dinh et al. 2017, section 3.6). z is (N, D) with D = C H W, what left first in front.

    ``levels``: images are whole numbers 0 .. levels - 1. Uniform noise u in [0, 1) is added, and x + u is equalized
    to [-1, 1]: the bin of each level gets a width in proportion to how frequent the level is in the first minibatch.
    Then a pixel that is black in most images is spread over most of [-1, 1], and noise that must stay uniform noise
    is about as wide as z. (Dinh et al. 2017, section 4.1, take a logit, after which that noise is 80 times narrower
    than the way from black to white.) None: images are real numbers, which the layers get as they are.
    A vector of D numbers is an image (1, 1, D).

    ``dequantization``: ``"uniform"``, or ``"variational"``, which learns the noise, see ``Noise``.
    """

    def __init__(self, image_shape, levels, scales: int = 0, dequantization="uniform", *, rng):
        self.image_shape = check_shape(image_shape)
        self.levels = None if levels is None else check.count("levels", levels, 2, most=1 << 16)
        # How often each level was seen; without any, all widths are equal.
        self.counts = Buffer(np.zeros(self.levels or 0, np.int64))
        # The shape (C, H, W) in each scale, after its squeeze; what cannot be squeezed is one scale.
        (c, h, w), squeezed = self.image_shape, []
        while len(squeezed) < scales and h % 2 == w % 2 == 0:
            c, h, w = 4 * (c // 2 if squeezed else c), h // 2, w // 2
            squeezed.append((c, h, w))
        self.shapes = squeezed or [self.image_shape]
        check.choice("dequantization", dequantization, "uniform", "variational")
        if variational := dequantization == "variational":
            check.room(rng, math.prod(self.image_shape))
        self.noise = Noise(self.image_shape, rng=rng) if variational and levels is not None else None

    def describe(self):
        return f"image_shape={self.image_shape}, levels={self.levels}"

    @no_grad()
    def initialize(self, x, rng: np.random.Generator, labels=None):
        """Count the levels in a first minibatch x. ``fit`` calls it before training; it does nothing the second time,
        or where trained weights were loaded.
        """
        check.no_labels(labels)
        if self.levels is not None and not self.counts.data.any():
            x = check_images(x, self.image_shape, self.levels).data
            self.counts.data = xp(x).bincount(x.astype(np.int64).reshape(-1), minlength=self.levels)

    # -- densities

    def log_prob(self, x, labels=None) -> Tensor:
        """(N, C, H, W) -> (N,): log p(x) in nats, where p is a density over the D real numbers of x.

        With ``levels`` x may be any real number from 0 to levels. Integers of integer dtype stand for the middle of
        their bin, x + 1/2. Raises ValueError for numbers outside.
        """
        check.no_labels(labels)
        return self._terms(*self._real(self._checked(x))).total

    def bound(self, x, rng: np.random.Generator | None = None, labels=None) -> Terms:
        """The terms of log p(x + u) for each image, with one draw of u in [0, 1) for each number; log_det includes
        -log q(u | x), which is 0 for uniform noise.

        The expectation of their sum is a lower bound on log P(x) of the whole numbers x, P(x) = integral over u of
        p(x + u) (Theis et al. 2016, equation 3; Ho et al. 2019, equation 6). Without ``levels`` it is log p(x), and no
        noise is drawn.
        """
        check.no_labels(labels)
        return self._terms(*self._dequantized(x, rng))

    def bits_per_dim(self, x, rng: np.random.Generator | None = None) -> Tensor:
        """(N, C, H, W) -> (N,): the score in bits for each of the C H W numbers."""
        return bits_per_dim(self.score(x, rng), self.image_shape)

    def _terms(self, v, log_det):
        z, log_det = self._transform(v, log_det)
        return Terms(self.prior.log_prob(z), log_det)

    # -- images to noise and back

    def encode(self, x) -> Tensor:
        """(N, C, H, W) -> z (N, D); x as for ``log_prob``."""
        return self._transform(*self._real(self._checked(x)))[0]

    def decode(self, z) -> Tensor:
        """z (N, D), array or Tensor on the model's device -> (N, C, H, W), the real numbers x with encode(x) = z.

        With ``levels``, an unlikely z may give numbers outside 0 .. levels, which ``encode`` refuses.
        """
        z = check.tensor("code", z, "N", math.prod(self.image_shape)).astype(self.dtype)
        x, end = None, z.shape[1]
        for i in reversed(range(len(self.scales))):
            c, h, w = self.shapes[i]
            stayed = c // 2 if i + 1 < len(self.scales) else 0
            start = end - (c - stayed) * h * w
            left = z[:, start:end].reshape(-1, c - stayed, h, w)
            x, end = left if x is None else ops.concatenate([x, left], 1), start
            for layer in reversed(self.scales[i]):
                x = layer.inverse(x)
        if self.levels is None:
            return x
        left, width = self._bins()
        i = xp(left).clip(xp(left).searchsorted(left, x.data, "right") - 1, 0, self.levels - 1)
        return i.astype(self.dtype) + (x - left[i]) * (1 / width[i])  # the ends go on in straight lines

    @no_grad()
    def sample(self, n: int, rng: np.random.Generator, labels=None, *, temperature: float = 1.0):
        """(n, C, H, W) array on the model's device: z from the prior, times ``temperature``, decoded.

        With ``levels`` whole numbers, uint8 or, if there are more than 256, int64; a draw outside 0 .. levels, where no
        training image is, becomes the nearest of them. A temperature below 1 makes draws more typical.
        Raises ValueError for n < 1, a temperature below 1e-30 or above 1e30, or parameters that (on the host) are nan.
        """
        check.no_labels(labels)
        n, temperature = check.count("n", n), check.number("temperature", temperature, "[1e-30, 1e30]")
        z = temperature * self.prior.sample((n, math.prod(self.image_shape)), check.generator(rng))
        x = self.decode(to_device(z.astype(self.dtype), self.device)).data
        check.no_nan("images", x)
        if self.levels is None:
            return x
        return xp(x).clip(xp(x).floor(x), 0, self.levels - 1).astype(np.uint8 if self.levels <= 256 else np.int64)

    # -- the parts

    def _checked(self, x):
        """x as a Tensor in the model's dtype, integers in the middle of their bins."""
        x = check_images(x, self.image_shape)
        if self.levels is None:
            return x.astype(self.dtype)
        if x.dtype.kind in "iub":
            check.whole("images", x.data, self.levels)
            return x.astype(self.dtype) + 0.5
        if xp(x.data) is np and not (x.data.min() >= 0 and x.data.max() <= self.levels):
            found = f"values from {x.data.min()} to {x.data.max()}"
            raise ValueError(f"images: {found}, needs numbers from 0 to {self.levels}")
        return x.astype(self.dtype)

    def _dequantized(self, x, rng):
        """Whole numbers x -> the layers' real numbers, and log |det| of the way there less log q(u | x), (N,)."""
        if self.levels is None:
            return self._checked(x), 0.0
        x = check_images(x, self.image_shape, self.levels).astype(self.dtype)
        level = x.data.astype(np.int64)
        u = check.generator(rng).random(level.shape, np.float64 if self.dtype == np.float64 else np.float32)
        u, log_det = Tensor(to_device(u.astype(self.dtype), self.device)), 0.0
        if self.noise is not None:
            u, log_det = self.noise(self._equalized(level, 0.5)[0], u)
        v, slope = self._equalized(level, u + (x - level.astype(self.dtype)))  # adds 0, but gradients reach x
        return v, slope + log_det

    def _real(self, x):
        """Numbers from 0 to levels -> the layers' real numbers, and log |det| of the way (N,)."""
        if self.levels is None:
            return x, 0.0
        level = xp(x.data).clip(x.data.astype(np.int64), 0, self.levels - 1)
        return self._equalized(level, x - level.astype(self.dtype))

    def _equalized(self, level, u):
        """The number u of the way from a level's lower to its upper end -> [-1, 1], and log |det| (N,)."""
        left, width = self._bins()
        # v = left_i + width_i u for the level i, so dv/dx = width_i
        return u * Tensor(width[level]) + left[level], Tensor(xp(width).log(width)[level].sum((1, 2, 3)))

    def _bins(self):
        """The left end of each level's bin in [-1, 1], and its width, both (levels,)."""
        counts, m = self.counts.data, xp(self.counts.data)
        share = counts / m.maximum(counts.sum(), 1)
        share = m.where(counts.any(), EVEN / self.levels + (1 - EVEN) * share, 1 / self.levels)
        right = 2 * m.cumsum(share) - 1
        return (right - 2 * share).astype(self.dtype), (2 * share).astype(self.dtype)

    def _transform(self, x, log_det, before=lambda layer, x: None):
        """What the layers make of x (N, C, H, W): z (N, D), and ``log_det`` with theirs added.

        ``before``: called with each layer and its input.
        """
        parts = []
        for i, layers in enumerate(self.scales):
            for layer in layers:
                before(layer, x)
                x, d = layer(x)
                log_det = log_det + d
            stays = x.shape[1] // 2 if i + 1 < len(self.scales) else 0
            x, leaves = x[:, :stays], x[:, stays:]
            parts.append(leaves.reshape(x.shape[0], -1))
        return ops.concatenate(parts, 1), log_det


# -- layers


class Squeeze(Module):
    """Each 2 x 2 square of pixels becomes four channels: (N, C, H, W) -> (N, 4 C, H / 2, W / 2).

    Source: Dinh et al. 2017, section 3.6.
    """

    def forward(self, x):
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 1, 3, 5, 2, 4)
        return x.reshape(n, 4 * c, h // 2, w // 2), 0.0

    def inverse(self, y):
        n, c, h, w = y.shape
        y = y.reshape(n, c // 4, 2, 2, h, w).transpose(0, 1, 4, 2, 5, 3)
        return y.reshape(n, c // 4, 2 * h, 2 * w)


class Flatten(Module):
    """All numbers become channels of one pixel: (N, *shape) -> (N, D, 1, 1)."""

    def __init__(self, shape):
        self.shape = shape

    def forward(self, x):
        return x.reshape(x.shape[0], -1, 1, 1), 0.0

    def inverse(self, y):
        return y.reshape(y.shape[0], *self.shape)


class Coupling(Module):
    """y = x where ``mask`` is 1; elsewhere y = x exp(s) + t with s and t functions of the x where it is 1.

    s = factor tanh(.) is bounded by a learned factor. ``network``: (N, C, H, W) -> (N, 2 C, H, W); one that gives only
    C channels gives t alone, and s is 0. ``mask``: 0 and 1, (C, 1, 1) or (C, H, W).
    Source: Dinh et al. 2017, equations 4 to 9; additive: Dinh et al. 2014, section 3.2.
    """

    def __init__(self, mask, network):
        self.mask, self.network = np.asarray(mask, np.float32), network
        self.factor = Parameter(np.full(len(mask), FACTOR, np.float32)) if network.outputs == 2 else None

    def to(self, device):
        self.mask = to_device(self.mask, device)
        return super().to(device)

    def terms(self, x):
        """s and t, both 0 where the mask is 1; s is None if there is none."""
        mask, c = Tensor(self.mask.astype(x.dtype, copy=False)), x.shape[1]
        changes, h = 1.0 - mask, self.network(x * mask)
        t = h[:, :c] * changes
        if self.factor is None:
            return None, t
        return ops.tanh(h[:, c:]) * (self.factor.reshape(c, 1, 1) * changes), t

    def forward(self, x):
        s, t = self.terms(x)
        if s is None:
            return x + t, 0.0
        return x * ops.exp(s) + t, s.sum((1, 2, 3))  # the Jacobian is triangular: log |det| = sum of s

    def inverse(self, y):
        s, t = self.terms(y)  # what they see is the same in y as in x
        return y - t if s is None else (y - t) * ops.exp(-s)


class Noise(Module):
    """Noise q(u | x) in [0, 1) for dequantization: u = sigmoid(a exp(s) + t), where a is the logit of uniform noise,
    and s and t are functions of the image. At first q is uniform.

    A uniform u makes the flow spread each level evenly over its bin, which is a task that the data do not set.
    Source: Ho et al. 2019 (arXiv 1902.00275), section 3.1. Deviation: one affine layer, where theirs is a flow.
    """

    def __init__(self, shape, *, rng):
        self.network = coupling_network(shape, 16, 1, rng=rng)

    def forward(self, x, u):
        """x (N, C, H, W), and u of the same shape, uniform -> u ~ q(u | x), and -log q(u | x), (N,)."""
        u = ops.clip(u, 1e-6, 1 - 1e-6)
        h, c = self.network(x), x.shape[1]
        t, s = h[:, :c], FACTOR * ops.tanh(h[:, c:])
        a = ops.log(u) - ops.log(1.0 - u)
        b = a * ops.exp(s) + t
        # With sigmoid' = sigmoid (1 - sigmoid), -log of which is softplus(b) + softplus(-b):
        # du/du0 = exp(s) sigmoid'(b) / sigmoid'(a), and q(u | x) = 1 / (du/du0)
        log_det = s + ops.softplus(a) + ops.softplus(-a) - ops.softplus(b) - ops.softplus(-b)
        return ops.sigmoid(b), log_det.sum((1, 2, 3))


# -- networks of couplings


def coupling_network(shape, hidden, blocks, outputs=2, *, rng):
    """A ``ConvNet`` for images; an ``MLP`` where height or width is 1, since a vector's neighbours are not related."""
    network = MLP if min(shape[1:]) == 1 else ConvNet
    return network(shape, hidden, blocks, outputs, rng=rng)


class ConvNet(Module):
    """Convolution, residual blocks, convolution: (N, C, H, W) -> (N, outputs C, H, W), at first all zero.

    Deviation from Dinh et al. 2017: nothing is normalized.
    """

    def __init__(self, shape, hidden, blocks, outputs=2, *, rng):
        c, self.outputs = shape[0], outputs
        self.first = Conv2d(c, hidden, 3, padding=1, rng=rng, gain=2.0)
        self.blocks = [
            (
                Conv2d(hidden, hidden, 3, padding=1, rng=rng, gain=2.0),
                Conv2d(hidden, hidden, 1, rng=rng, gain=0.0),
            )
            for _ in range(blocks)
        ]
        self.last = Conv2d(hidden, outputs * c, 3, padding=1, rng=rng, gain=0.0)

    def forward(self, x):
        h = self.first(x)
        for wide, narrow in self.blocks:
            h = h + narrow(ops.relu(wide(ops.relu(h))))
        return self.last(ops.relu(h))


class MLP(Module):
    """Linear layers with ReLU on all numbers of an image: (N, C, H, W) -> (N, outputs C, H, W), at first all zero."""

    def __init__(self, shape, hidden, blocks, outputs=2, *, rng):
        self.outputs, size = outputs, math.prod(shape)
        self.hidden = [Linear(a, hidden, rng=rng, gain=2.0) for a in (size, *[hidden] * blocks)]
        self.last = Linear(hidden, outputs * size, rng=rng, gain=0.0)

    def forward(self, x):
        n, c, *size = x.shape
        h = x.reshape(n, -1)
        for layer in self.hidden:
            h = ops.relu(layer(h))
        return self.last(h).reshape(n, self.outputs * c, *size)


# -- densities of z: independent numbers


class Normal(Module):
    """z_i ~ N(0, 1)."""

    def log_prob(self, z):
        return -0.5 * (z**2 + math.log(2 * math.pi)).sum(1)

    def sample(self, shape, rng):
        return rng.standard_normal(shape)


class Logistic(Module):
    """log p(z_i) = -log(1 + e^z_i) - log(1 + e^-z_i) (Dinh et al. 2014, section 3.4)."""

    def log_prob(self, z):
        return -(ops.softplus(z) + ops.softplus(-z)).sum(1)

    def sample(self, shape, rng):
        return rng.logistic(size=shape)


class SoftUniform(Module):
    """z_i = a + s_i b with a uniform on [-1, 1], b logistic, and a learned s_i: a uniform density with soft ends.

    p(z) = (sigmoid((z + 1) / s) - sigmoid((z - 1) / s)) / 2

    Dequantization makes a pixel of one value uniform noise, and affine layers cannot make a Gaussian of it: it would
    cost KL(uniform || N) = log(2 pi e / 12) / 2 nats, 0.25 bits for each of the many black pixels of MNIST.
    """

    def __init__(self, size):
        self.log_s = Parameter(np.full(size, np.log(0.5), np.float32))

    def log_prob(self, z):
        rate = ops.exp(-self.log_s)  # 1 / s
        # sigmoid(p) - sigmoid(q) = sigmoid(p) sigmoid(-q) (1 - exp(q - p)), with no difference of near numbers
        ends = ops.softplus(-(z + 1.0) * rate) + ops.softplus((z - 1.0) * rate)
        return (ops.log(-ops.expm1(-2.0 * rate)) - math.log(2) - ends).sum(1)

    def sample(self, shape, rng):
        return rng.uniform(-1, 1, shape) + np.exp(self.log_s.numpy()) * rng.logistic(size=shape)
