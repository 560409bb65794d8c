"""Gaussian, Bernoulli, Categorical. Log-probabilities are in nats per element; the caller sums them."""

import math
from dataclasses import dataclass

import numpy as np

from tinygen import check, ops
from tinygen.backend import to_device, xp
from tinygen.tensor import Tensor, as_array, as_tensor

LOG_VAR_LIMIT = 40.0  # log-variances are clipped to +-40: standard deviations from 2e-9 to 5e8


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

    def rsample(self, rng: np.random.Generator) -> Tensor:
        """A draw that gradients pass through: mean + exp(log_var / 2) eps with eps standard normal.

        The noise is always drawn on the host, so that runs on both devices can be compared.
        Source: Kingma and Welling 2014, section 2.4.
        """
        shape = np.broadcast_shapes(self.mean.shape, self.log_var.shape)
        dtype = self.mean.dtype
        eps = check.generator(rng).standard_normal(shape, np.float64 if dtype == np.float64 else np.float32)
        return self.mean + (self.log_var * 0.5).exp() * Tensor(to_device(eps.astype(dtype), self.mean.device))

    def sample(self, rng: np.random.Generator):
        """A draw as an array."""
        return self.rsample(rng).data

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
