"""Gaussian, Bernoulli, Categorical; mixtures of Gaussians and of logistics, one-hot vectors. Log-probabilities are in
nats per element (per vector, or pixel, for the last three); the caller sums them."""

import math
from dataclasses import dataclass

import numpy as np

from tinygen import check, ops
from tinygen.backend import to_device, xp
from tinygen.tensor import Tensor, as_array, as_flag, as_tensor

LOG_VAR_LIMIT = 40.0  # log-variances are clipped to +-40: standard deviations from 2e-9 to 5e8
LOG_SCALE_LIMITS = -7.0, 20.0  # of logistics on -1 .. 1; the lower one is Salimans et al.'s


@dataclass
class Gaussian:
    """Independent Gaussians with ``mean`` and ``log_var`` (log of the variance), Tensors that broadcast.

    ``log_var`` is clipped to +-40, so that float32 does not overflow; its gradient is zero outside this range.
    """

    mean: Tensor
    log_var: Tensor

    def __post_init__(self):
        given = as_tensor(self.mean, "mean"), as_tensor(self.log_var, "log_var")
        self.mean, log_var = (t if t.dtype.kind == "f" else t.astype(np.float32) for t in given)
        self.log_var = ops.clip(log_var, -LOG_VAR_LIMIT, LOG_VAR_LIMIT)

    @property
    def mode(self) -> Tensor:
        """The value of the largest density: the mean."""
        return self.mean

    def rsample(self, rng: np.random.Generator, draws: tuple[int, ...] = ()) -> Tensor:
        """A draw that gradients pass through: mean + exp(log_var / 2) eps with eps standard normal.

        ``draws``: axes put before the others, for several draws. The noise is always drawn on the host, so that runs on
        both devices can be compared. Source: Kingma and Welling 2014, section 2.4.
        """
        shape = (*draws, *np.broadcast_shapes(self.mean.shape, self.log_var.shape))
        dtype = self.mean.dtype
        eps = check.generator(rng).standard_normal(shape, np.float64 if dtype == np.float64 else np.float32)
        return self.mean + (self.log_var * 0.5).exp() * Tensor(to_device(eps.astype(dtype), self.mean.device))

    def sample(self, rng: np.random.Generator, draws: tuple[int, ...] = ()):
        """A draw as an array."""
        return self.rsample(rng, draws).data

    def log_prob(self, x) -> Tensor:
        """log N(x; m, s^2) = -((x - m)^2 / s^2 + log s^2 + log 2 pi) / 2 of each element, in nats."""
        return -0.5 * ((x - self.mean) ** 2 * (-self.log_var).exp() + self.log_var + math.log(2 * math.pi))

    def kl(self, other: "Gaussian | None" = None) -> Tensor:
        """KL(self || other) of each element, in nats; ``other`` is the standard normal if not given.

        Source: Kingma and Welling 2014, appendix B, which has -KL summed over elements.
        """
        if other is None:  # (m^2 + s^2 - 1 - log s^2) / 2
            return 0.5 * (self.mean**2 + self.log_var.exp() - 1 - self.log_var)
        if not isinstance(other, Gaussian):
            raise TypeError(f"other: got {other!r}, needs a Gaussian")
        # ((m1 - m2)^2 / s2^2 + s1^2 / s2^2 - 1 - log s1^2 / s2^2) / 2
        difference = self.log_var - other.log_var
        squares = (self.mean - other.mean) ** 2 * (-other.log_var).exp()
        return 0.5 * (squares + difference.exp() - 1 - difference)


@dataclass
class Bernoulli:
    """Independent pixels that are 1 with probability sigmoid(``logits``)."""

    logits: Tensor

    def __post_init__(self):
        self.logits = as_tensor(self.logits, "logits")

    @property
    def mean(self) -> Tensor:
        """The probability of 1."""
        return ops.sigmoid(self.logits)

    def log_prob(self, x) -> Tensor:
        """log probability of each element of x, 0 or 1, in nats; finite at any finite logit."""
        x = as_tensor(x, "x")
        check.whole("x", x.data, 2)
        return -ops.bce_with_logits(self.logits, x)

    def sample(self, rng: np.random.Generator):
        """A draw, 0 or 1, as an array of the logits' dtype. Raises ValueError if, on the host, a logit is nan."""
        check.no_nan("logits", self.logits.data)
        return self.at(to_device(check.generator(rng).random(self.logits.shape), self.logits.device))

    def at(self, u):
        """The draw from uniform numbers ``u``: 1 where u < sigmoid(logits)."""
        return (as_array(u, "u") < ops.sigmoid(self.logits.detach()).data).astype(self.logits.dtype)


@dataclass
class Categorical:
    """One of K classes along ``axis``, with probabilities softmax(``logits``)."""

    logits: Tensor
    axis: int = 1

    def __post_init__(self):
        self.logits = as_tensor(self.logits, "logits")
        self.axis = check.axis("Categorical", self.axis, self.logits.ndim)

    def log_prob(self, x) -> Tensor:
        """log probability of the classes x, integers of the logits' shape without ``axis``, in nats."""
        return -ops.softmax_cross_entropy(self.logits, x, self.axis)

    def sample(self, rng: np.random.Generator):
        """Drawn classes as an int64 array. Raises ValueError if, on the host, a probability is nan."""
        check.no_nan("probabilities", ops.softmax(self.logits.detach(), self.axis).data)
        shape = list(self.logits.shape)
        del shape[self.axis]
        return self.at(to_device(check.generator(rng).random(shape), self.logits.device))

    def at(self, u):
        """The classes drawn from uniform numbers ``u`` < 1, by inverting the cumulative distribution."""
        logits, u = self.logits.detach(), as_array(u, "u")
        if logits.dtype == np.float16:  # a float16 sum of equal terms stops growing after 2,048 terms
            logits = logits.astype(np.float32)
        p = ops.softmax(logits, self.axis).data
        cumulated = xp(p).cumsum(p, axis=self.axis)
        # Rounding may leave the total below 1; then u near 1 would fall beyond the last class
        total = cumulated.max(axis=self.axis, keepdims=True)
        return (cumulated <= xp(p).expand_dims(u, self.axis) * total).sum(axis=self.axis)


@dataclass
class GaussianMixture:
    """p(z) = sum_k w_k N(z; m_k, s_k^2) over vectors z (..., D), whose dimensions are independent in each component.

    ``logits`` (..., K): the weights w are their softmax; ``components``: a Gaussian over (..., K, D).
    """

    logits: Tensor
    components: Gaussian

    def __post_init__(self):
        self.logits = as_tensor(self.logits, "logits")
        if not isinstance(self.components, Gaussian):
            raise TypeError(f"components: got {self.components!r}, needs a Gaussian")

    @property
    def weights(self) -> Tensor:
        """(..., K): w, which sum to 1."""
        return ops.softmax(self.logits, -1)

    @property
    def mode(self) -> Tensor:
        """An approximation of the mode, which has no closed form: the mean of the likeliest component, (..., D)."""
        chosen = Tensor(OneHot(self.logits).mode.data[..., None])
        return (chosen * self.components.mean).sum(-2)

    def log_prob(self, z) -> Tensor:
        """log p(z) of each vector, (..., D) -> (...), in nats; other leading axes are broadcast."""
        log_p = self.components.log_prob(ops.expand_dims(z, -2)).sum(-1)  # log N(z; m_k, s_k^2), (..., K)
        return ops.logsumexp(ops.log_softmax(self.logits, -1) + log_p, -1)

    def sample(self, rng: np.random.Generator, draws: tuple[int, ...] = ()):
        """A draw as an array: a component k with probability w_k, then z ~ N(m_k, s_k^2).

        No gradient passes through the choice of k. For E[f(z)] with a gradient take a draw of each component,
        ``components.rsample``: sum_k w_k f(z_k) has the right mean, and so has its gradient.
        """
        logits = ops.broadcast_to(self.logits, (*draws, *self.logits.shape))
        chosen = OneHot(logits).sample(rng)[..., None]  # (..., K, 1)
        mean, log_var = (chosen * t.data for t in (self.components.mean, self.components.log_var))
        return Gaussian(mean.sum(-2), log_var.sum(-2)).sample(rng)


@dataclass
class OneHot:
    """One-hot vectors of K numbers along the last axis; the 1 is at k with probability softmax(``logits``)_k."""

    logits: Tensor

    def __post_init__(self):
        self.logits = as_tensor(self.logits, "logits")

    @property
    def mode(self) -> Tensor:
        """The vector with the largest probability."""
        return Tensor(self._largest(self.logits.data))

    def log_prob(self, z) -> Tensor:
        """log probability of each vector, (..., K) -> (...), in nats."""
        return (ops.log_softmax(self.logits, -1) * z).sum(-1)

    def kl(self) -> Tensor:
        """KL(self || uniform) of each vector, (...): log K - entropy, in nats."""
        log_p = ops.log_softmax(self.logits, -1)
        return (log_p.exp() * log_p).sum(-1) + math.log(self.logits.shape[-1])

    def sample(self, rng: np.random.Generator, draws: tuple[int, ...] = ()):
        """A draw as an array: 1 where logits + g is largest, with g from the Gumbel distribution (Gumbel 1954).

        Raises ValueError if, on the host, a logit is nan.
        """
        check.no_nan("logits", self.logits.data)
        return self._largest(self._perturbed(rng, draws).data)

    def rsample(self, rng: np.random.Generator, temperature: float = 1.0, straight_through: bool = False) -> Tensor:
        """softmax((logits + g) / temperature), a relaxed draw that gradients pass through: as the temperature falls to
        0, it becomes the draw of ``sample`` with the same ``rng``, and its gradient varies more and more.

        ``straight_through``: the value is that draw at any temperature, and the gradient is the relaxed one's.
        Source: Jang et al. 2017 (arXiv 1611.01144), equation 2 and section 2.2.
        """
        y = ops.softmax(self._perturbed(rng, ()) * (1 / check.number("temperature", temperature, "[1e-30, 1e30]")), -1)
        if not as_flag(straight_through, "straight_through"):
            return y
        return Tensor(self._largest(y.data)) + (y - y.detach())

    def _perturbed(self, rng, draws):
        """logits + g with g = -log(-log u), u uniform on (0, 1)"""
        shape, dtype = (*draws, *self.logits.shape), self.logits.dtype
        # -log u of a uniform u is exponential
        noise = check.generator(rng).standard_exponential(shape, np.float64 if dtype == np.float64 else np.float32)
        g = -np.log(np.maximum(noise, np.finfo(noise.dtype).tiny))
        return self.logits + Tensor(to_device(g.astype(dtype), self.logits.device))

    @staticmethod
    def _largest(y):
        """1 at the largest number along the last axis, else 0, in the dtype of y"""
        return (xp(y).arange(y.shape[-1]) == y.argmax(-1)[..., None]).astype(y.dtype)


@dataclass
class LogisticMixture:
    """p(x) = sum_k w_k prod_c P(x_c | m_ck, s_ck) over pixels x of C colours, whole numbers 0 .. ``levels`` - 1.

    Values are scaled to -1 .. 1. P(x_c | m, s) is what the logistic distribution with the mean m and the scale s has
    between the midpoints to the neighbours of x_c; the first interval begins at -infinity, the last ends at infinity:

        P(x_c | m, s) = sigmoid((upper - m) / s) - sigmoid((lower - m) / s)

    In a component the mean of a colour depends linearly on the colours before it: m_c + sum_b a_cb x_b over b < c.

    ``logits`` (K, ...): w is their softmax over the K components; ``means`` and ``log_scales`` (C, K, ...), the latter
    clipped to -7 .. 20; ``coefficients`` a (C (C - 1) / 2, K, ...), in the order of the rows of a lower triangle.
    Source: Salimans et al. 2017 (arXiv 1701.05517), sections 2.1 and 2.2.
    """

    logits: Tensor
    means: Tensor
    log_scales: Tensor
    coefficients: Tensor | None
    levels: int

    def __post_init__(self):
        self.levels = check.count("levels", self.levels, 2)
        self.logits = as_tensor(self.logits, "logits")
        self.means = check.tensor("means", self.means, "C", *self.logits.shape)
        colours, *shape = self.means.shape
        self.log_scales = ops.clip(check.tensor("log_scales", self.log_scales, colours, *shape), *LOG_SCALE_LIMITS)
        if colours > 1:
            self.coefficients = check.tensor(
                "coefficients", self.coefficients, colours * (colours - 1) // 2, *self.logits.shape
            )

    def log_prob(self, x) -> Tensor:
        """log p(x) of each pixel, (C, ...) -> (...), in nats. Finite wherever the parameters are."""
        x = self._values(x)
        log_p = ops.log_softmax(self.logits, 0)
        for colour in range(len(self.means)):
            log_p = log_p + self._log_mass(x, colour)
        return ops.logsumexp(log_p, 0)

    def given(self, x, colour: int) -> "LogisticMixture":
        """p(x_c | x_b, b < c), for c = ``colour``: a mixture over one colour, whose weights are those of the
        components after the colours before c have been seen. x (C, ...): its colours from c on are not read."""
        x, logits, colour = self._values(x), self.logits, check.axis("colour", colour, len(self.means))
        for before in range(colour):
            logits = logits + self._log_mass(x, before)
        mean, log_scale = self._mean(x, colour), self.log_scales[colour]
        return LogisticMixture(logits, ops.expand_dims(mean, 0), ops.expand_dims(log_scale, 0), None, self.levels)

    def at(self, u):
        """(...): values of a mixture over one colour from uniform numbers ``u`` (...) < 1, as an int64 array.

        u chooses the component, and where it falls within the component's share of 0 .. 1 is a uniform number v again.
        The logistic number m + s log(v / (1 - v)), rounded to the next of the values, has exactly the probability P.
        Raises ValueError if, on the host, a parameter is nan.
        """
        shape, u = self.logits.shape[1:], as_array(u, "u").ravel()
        m = xp(u)
        # float64 even in a float32 model: v has what is left of the digits
        logits, mean, log_scale = (
            t.data.astype(np.float64).reshape(-1, len(u)) for t in (self.logits, self.means[0], self.log_scales[0])
        )
        w = m.exp(logits - logits.max(0))
        cumulated = w.cumsum(0)
        u = u * cumulated[-1]
        chosen = (cumulated <= u).sum(0), m.arange(len(u))
        v = m.clip(1 - (cumulated[chosen] - u) / w[chosen], 1e-300, 1 - 2**-53)
        x = mean[chosen] + m.exp(log_scale[chosen]) * m.log(v / (1 - v))
        check.no_nan("parameters", x)
        last = self.levels - 1
        return m.clip(m.rint((x + 1) * (last / 2)), 0, last).astype(np.int64).reshape(shape)

    def _values(self, x):
        x = check.tensor("x", x, len(self.means), *self.logits.shape[1:]).data
        check.whole("x", x, self.levels)
        return x.astype(self.logits.dtype)

    def _mean(self, x, colour):
        mean, first = self.means[colour], colour * (colour - 1) // 2
        for before in range(colour):
            mean = mean + self.coefficients[first + before] * (x[before] * (2 / (self.levels - 1)) - 1)
        return mean

    def _log_mass(self, x, colour):
        """log P(x_c | m_c, s_c) of each component, (K, ...).

        With a = (upper - m) / s and b = (lower - m) / s,

            sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))

        has no difference of nearly equal numbers. Where the interval is open, a factor is missing.
        """
        mean, log_scale, x, last = self._mean(x, colour), self.log_scales[colour], x[colour], self.levels - 1
        inverse, one = (-log_scale).exp(), x.dtype.type(1)  # 1 / s
        a, b = ((Tensor((2 * x + side) * (one / last) - one) - mean) * inverse for side in (one, -one))
        closed_above, closed_below = (Tensor(side.astype(x.dtype)) for side in (x < last, x > 0))
        width = ops.log(-ops.expm1(inverse * (-2 / last)))  # log(1 - exp(b - a)), as a - b = 2 / (levels - 1) / s
        inside = closed_above * closed_below * width
        return inside - closed_above * ops.softplus(-a) - closed_below * ops.softplus(b)
