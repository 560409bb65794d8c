"""FFJORD, a normalizing flow in continuous time (Grathwohl et al. 2019, arXiv 1810.01367).

Noise becomes an image along a path: it starts at z(0) ~ N(0, I), moves with the velocity dz/dt = f(z, t), and is the
image at time 1. On the way its log density changes with the divergence of f, d log p / dt = -trace(df/dz). So f may be
any network: nothing needs to be triangular, or to be inverted by hand, since the same path is walked back.

The trace is a derivative inside the model, which training differentiates once more.
"""

import math

import numpy as np

from tinygen import check, ops
from tinygen.backend import to_device, xp
from tinygen.models.explicit.tractable.flow import Flow, Normal
from tinygen.nn import Module, init
from tinygen.ode import dopri5, rk4
from tinygen.tensor import Tensor, enable_grad, grad, recording


class FFJORD(Flow):
    """One continuous layer between z ~ N(0, I) and the images, whose velocity f is a network with tanh.

    ``image_shape`` (C, H, W); ``levels`` and ``dequantization`` as in ``Flow``; ``hidden``: units of the network's
    layers; ``steps`` of the fourth-order Runge-Kutta method in training. ``trace``: how training computes it,
    ``"exact"`` with D = C H W derivatives at each point of the path, or ``"hutchinson"``, an unbiased estimate with
    one. ``log_prob``, ``score``, ``encode``, ``decode`` and ``sample`` choose their steps so that each has an error of
    at most ``rtol`` (1 + |z|), and take the exact trace. Raises ValueError for another trace or invalid numbers.

    Deviation from the paper: training takes a fixed number of steps and differentiates through them, where the paper
    chooses the steps and solves a second equation for the gradient, which is then not exactly that of the loss. With
    too few steps the solver's error grows unnoticed: the loss falls below the entropy while the score rises. So the
    loss adds ``smooth`` times the integral of |f|^2 + |df/dz|^2, which keeps paths straight (Finlay et al. 2020); with
    Hutchinson's trace |e^T df/dz|^2 estimates the second term.
    """

    def __init__(
        self,
        image_shape=(1, 1, 2),
        levels=None,
        hidden=(64, 64, 64),
        steps=4,
        trace="hutchinson",
        smooth=0.01,
        rtol=1e-5,
        dequantization="uniform",
        *,
        rng: np.random.Generator,
    ):
        super().__init__(image_shape, levels, dequantization=dequantization, rng=rng)
        self.trace = check.choice("trace", trace, "exact", "hutchinson")
        self.steps, size = check.count("steps", steps), math.prod(self.image_shape)
        self.smooth = check.number("smooth", smooth, "[0, inf)")
        velocity = Velocity(size, check.counts("hidden", hidden), rng=rng)
        self.scales, self.prior = [[Continuous(velocity, self.image_shape, rtol)]], Normal()

    def describe(self):
        return f"{super().describe()}, steps={self.steps}, trace={self.trace!r}"

    def loss(self, x, rng: np.random.Generator | None = None, labels=None) -> Tensor:
        """The mean score in nats, with ``steps`` equal steps and the ``trace`` that the model was built with, plus what
        ``smooth`` adds.

        Hutchinson's estimate is e^T (df/dz) e with E[e e^T] = I, here signs of +1 and -1; one e serves the whole path
        of an image. Source: Grathwohl et al. 2019, equations 6 to 8.
        """
        check.no_labels(labels)
        x, log_det = self._dequantized(x, rng)
        (layer,), times = self.scales[0], np.linspace(1, 0, self.steps + 1).tolist()
        probes = layer.units(x)
        if self.trace == "hutchinson":
            e = 2 * check.generator(rng).integers(0, 2, (1, x.shape[0], math.prod(self.image_shape))) - 1
            probes = Tensor(to_device(e.astype(self.dtype), self.device))
        z, change, roughness = layer.backwards(x, probes, lambda f, state: rk4(f, state, times), 3)
        log_p = self.prior.log_prob(z.reshape(x.shape[0], -1)) + log_det + change
        return (self.smooth * roughness - log_p).mean()


class Continuous(Module):
    """The layer of a flow that follows dz/dt = ``velocity``(z, t) from the image at t = 1 back to the noise at t = 0.

    Its steps are adaptive, with a tolerance ``rtol`` (1 + |z|) for each number and for the log-determinant.
    """

    def __init__(self, velocity, shape, rtol):
        self.velocity, self.shape, self.rtol = velocity, shape, check.number("rtol", rtol, "(0, 1)")

    def forward(self, x):
        return self.backwards(x, self.units(x), lambda f, state: dopri5(f, state, 1.0, 0.0, self.rtol, self.rtol))

    def inverse(self, z) -> Tensor:
        return self.path(z, 0.0, 1.0)

    def path(self, z, start: float, stop: float) -> Tensor:
        """Where the points z (N, C, H, W), which are there at the time ``start``, are at the time ``stop``."""
        state = (z.reshape(z.shape[0], -1),)
        (z,) = dopri5(lambda t, z: (self.velocity(z, t),), state, start, stop, self.rtol, self.rtol)
        return z.reshape(-1, *self.shape)

    def backwards(self, x, probes, solver, parts=2):
        """Image x -> noise z, both (N, C, H, W), and log |det dz/dx| (N,), the integral of the trace from 1 to 0; for
        ``parts`` = 3 also that of |f|^2 + |df/dz|^2 from 0 to 1, (N,).
        """
        zero = Tensor(xp(x.data).zeros(x.shape[0], x.dtype))
        state = (x.reshape(x.shape[0], -1), zero, zero)[:parts]
        z, *integrals = solver(lambda t, z, *_: self.derivative(z, t, probes)[:parts], state)
        return z.reshape(*x.shape), *integrals

    def derivative(self, z, t: float, probes):
        """f(z, t) (N, D), and the sums of e^T (df/dz) e and of -|f|^2 - |e^T df/dz|^2 over the ``probes`` e (K, N or 1,
        D), which are (N,). For K = D unit vectors the first is the trace of df/dz.
        """
        recorded = recording()  # whether what is computed here may be differentiated again
        with enable_grad():
            z = z if recorded and z.requires_grad else Tensor(z.data, requires_grad=True)
            f = self.velocity(z, t)
            trace, smoothness = 0.0, -(f**2).sum(1)
            for e in probes:
                e = ops.broadcast_to(e, z.shape)
                (g,) = grad(f, z, e, create_graph=recorded)  # e^T df/dz, (N, D)
                trace, smoothness = trace + (g * e).sum(1), smoothness - (g**2).sum(1)
        return (f, trace, smoothness) if recorded else (f.detach(), trace, smoothness.detach())

    def units(self, x):
        """The unit vectors of D dimensions, (D, 1, D)."""
        d = math.prod(self.shape)
        return Tensor(xp(x.data).eye(d, dtype=x.dtype).reshape(d, 1, d))


class Velocity(Module):
    """f(z, t): z (N, D) at time t -> (N, D), a network with tanh. It begins at zero, and the flow at the identity."""

    def __init__(self, size, hidden, *, rng):
        self.layers = [TimeLinear(n, m, rng=rng) for n, m in zip((size, *hidden), hidden)]
        self.out = TimeLinear(hidden[-1], size, gain=0.0, rng=rng)

    def forward(self, z, t: float):
        for layer in self.layers:
            z = ops.tanh(layer(z, t))
        return self.out(z, t)


class TimeLinear(Module):
    """A fully connected layer that changes with the time t: y = (W + t V) x + b + t c."""

    def __init__(self, in_features, out_features, gain=1.0, *, rng):
        self.weight = init.he(rng, (out_features, in_features), in_features, gain)
        self.weight_change = init.zeros((out_features, in_features))
        self.bias, self.bias_change = init.zeros(out_features), init.zeros(out_features)

    def forward(self, x, t: float):
        return x @ (self.weight + t * self.weight_change).T + (self.bias + t * self.bias_change)
