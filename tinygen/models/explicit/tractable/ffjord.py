"""FFJORD, a normalizing flow in continuous time (Grathwohl et al. 2019).

A point moves along dz/dt = f(z, t), from z(0) ~ N(0, I) at time 0 to x = z(1) at time 1. On the way its log-density
changes by d log p / dt = -trace(df/dz), so f may be any network.
"""

import math

import numpy as np

from tinygen import check, ops
from tinygen.backend import to_device, xp
from tinygen.models.base import Model
from tinygen.models.images import check_images, check_shape
from tinygen.nn import Module, init
from tinygen.ode import dopri5, rk4
from tinygen.tensor import Tensor, enable_grad, grad, no_grad, recording


class TimeLinear(Module):
    """A fully connected layer whose weights are linear in the time t: x @ (weight + t slope).T + bias + t shift."""

    def __init__(self, in_features: int, out_features: int, gain: float = 1.0, *, rng: np.random.Generator):
        self.weight = init.he(rng, (out_features, in_features), in_features, gain)
        self.slope = init.zeros((out_features, in_features))
        self.bias, self.shift = init.zeros(out_features), init.zeros(out_features)

    def forward(self, x, t: float):
        return x @ (self.weight + t * self.slope).T + (self.bias + t * self.shift)


class Velocity(Module):
    """f(z, t): (N, D), time -> (N, D), a network with tanh. It is zero at first, so that the flow is the identity."""

    def __init__(self, size: int, hidden: tuple[int, ...], *, rng: np.random.Generator):
        sizes = (size, *hidden)
        self.layers = [TimeLinear(n, m, rng=rng) for n, m in zip(sizes, hidden)]
        self.out = TimeLinear(hidden[-1], size, gain=0.0, rng=rng)

    def forward(self, z, t: float):
        for layer in self.layers:
            z = ops.tanh(layer(z, t))
        return self.out(z, t)


class FFJORD(Model):
    def __init__(
        self, image_shape=(1, 1, 2), hidden=(64, 64, 64), steps=8, trace="exact", rtol=1e-5, *, rng: np.random.Generator
    ):
        self.image_shape = check_shape(image_shape)
        self.trace = check.choice("trace", trace, "exact", "hutchinson")
        self.steps, self.rtol = check.count("steps", steps), check.number("rtol", rtol, "(0, 1)")
        self.f = Velocity(math.prod(self.image_shape), check.counts("hidden", hidden), rng=rng)

    def derivative(self, t: float, z, log_det, probes):
        """The derivatives of z (N, D) and of ``log_det`` (N,) at time t: f(z, t) and trace(df/dz).

        The trace is the sum of e^T (df/dz) e over the ``probes`` e (K, 1 or N, D): exact for K = D unit vectors.
        """
        further = recording()  # whether the trace is differentiated again
        with enable_grad():
            z = z if further and z.requires_grad else Tensor(z.data, requires_grad=True)
            dz = self.f(z, t)
            trace = 0.0
            for e in probes:
                e = ops.broadcast_to(e, z.shape)
                (vjp,) = grad(dz, z, e, create_graph=further)  # e^T df/dz, (N, D)
                trace = trace + (vjp * e).sum(1)
        return (dz if further else dz.detach()), trace

    def _solve(self, x, solver, probes):
        n = len(x.data)
        state = x.reshape(n, -1), Tensor(xp(x.data).zeros(n, x.dtype))
        return solver(lambda t, z, l: self.derivative(t, z, l, probes), state)

    def _unit(self):
        d = math.prod(self.image_shape)
        like = self.f.out.bias.data
        return Tensor(xp(like).eye(d, dtype=like.dtype)).reshape(d, 1, d)

    def log_prob(self, x):
        x = check_images(x, self.image_shape).astype(self.dtype)
        return self._lp(*self._solve(x, lambda f, y: dopri5(f, y, 1.0, 0.0, self.rtol, self.rtol), self._unit()))

    def _lp(self, z, log_det):
        return log_det - 0.5 * (z**2 + math.log(2 * math.pi)).sum(1)

    def loss(self, x, rng):
        x = check_images(x, self.image_shape).astype(self.dtype)
        if self.trace == "exact":
            probes = self._unit()
        else:
            e = 2 * rng.integers(2, size=(1, len(x), math.prod(self.image_shape))) - 1
            probes = Tensor(to_device(e.astype(self.dtype), self.device))
        return -self._lp(*self._solve(x, lambda f, y: rk4(f, y, 1.0, 0.0, self.steps), probes)).mean()
