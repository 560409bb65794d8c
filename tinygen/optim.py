"""Optimizers with PyTorch's formulas, a learning-rate schedule, and the averaging of weights."""

import math
from collections.abc import Iterable

import numpy as np

from tinygen import backend, check
from tinygen.backend import xp
from tinygen.tensor import Tensor


class Optimizer:
    """``step()`` moves each parameter against its ``.grad`` with the learning rate ``lr``.

    ``slots`` names the running averages that a subclass keeps for each parameter: arrays of its shape, zero at first.
    Raises ValueError for an empty list of parameters and for invalid settings.
    """

    slots: tuple[str, ...] = ()
    weight_decay = l1 = 0.0  # for subclasses; step() applies them to parameters of several dimensions

    def __init__(self, parameters, lr: float):
        many = isinstance(parameters, Iterable) and not isinstance(parameters, Tensor)
        parameters = list(parameters) if many else [parameters]
        if not parameters or not all(isinstance(p, Tensor) for p in parameters):
            kinds = ", ".join(sorted({type(p).__name__ for p in parameters})) or "none"
            raise ValueError(f"parameters: got {kinds}, needs Tensors, such as model.parameters()")
        self.parameters = list({id(p): p for p in parameters}.values())  # a shared parameter only once
        self.lr, self.steps = check.number("lr", lr, "(0, inf)"), 0
        self.state = [{s: xp(p.data).zeros_like(p.data) for s in self.slots} for p in self.parameters]

    def _decay(self, weight_decay):
        self.weight_decay = check.number("weight_decay", weight_decay, "[0, inf)")
        # Above 1 the decay would flip the sign of weights
        check.number("lr weight_decay", self.lr * self.weight_decay, "[0, 1)")

    def step(self) -> None:
        """Update every parameter that requires grad.

        Raises ValueError, and changes nothing, if a gradient is missing or has another shape or device.
        """
        moving = [(p, state) for p, state in zip(self.parameters, self.state) if p.requires_grad]
        if missing := [i for i, (p, _) in enumerate(moving) if not isinstance(p.grad, Tensor)]:
            raise ValueError(f"{type(self).__name__}.step: parameters {missing} have no gradient: call backward first")
        for i, (p, state) in enumerate(moving):
            if p.grad.shape != p.shape:
                got = f"parameter {i} has shape {p.shape}, its gradient {p.grad.shape}"
                raise ValueError(f"{type(self).__name__}.step: {got}")
            xp(p.data, p.grad.data, *state.values())  # raises before any update if devices differ
        self.steps += 1
        for p, state in moving:
            if self.weight_decay and p.ndim > 1:
                p.data *= 1 - self.lr * self.weight_decay
            p.data -= self.update(p.grad.data, **state)
            if self.l1 and p.ndim > 1:
                p.data -= xp(p.data).clip(p.data, -self.lr * self.l1, self.lr * self.l1)

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for p in self.parameters:
            p.grad = None

    def update(self, g, **state):
        """The step to subtract from a parameter with gradient g. Updates the arrays of ``state`` in place."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the running averages and the number of steps, on the host."""
        state = {f"{i}.{s}": np.array(backend.to_host(a)) for i, d in enumerate(self.state) for s, a in d.items()}
        return {"steps": np.array(self.steps), **state}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a ``state_dict()``. Raises ValueError if it is for other parameters or another optimizer."""
        own, given = (
            {name: (np.shape(a), np.asarray(a).dtype.kind) for name, a in arrays.items()}
            for arrays in (self.state_dict(), state if isinstance(state, dict) else {})
        )
        if own != given or not state["steps"] >= 0:
            raise ValueError(
                f"{type(self).__name__}.load_state_dict: the state is of other parameters or another optimizer"
            )
        self.steps = int(state["steps"])
        for i, d in enumerate(self.state):
            for s, a in d.items():
                a[...] = backend.to_device(np.asarray(state[f"{i}.{s}"], a.dtype), backend.device_of(a))


class SGD(Optimizer):
    """v <- momentum v + g;  p <- p - lr v

    ``weight_decay``: parameters of several dimensions are first multiplied by 1 - lr weight_decay. Unlike PyTorch's, it
    does not enter the velocity.
    """

    slots = ("velocity",)

    def __init__(self, parameters, lr: float, momentum: float = 0.0, weight_decay: float = 0.0):
        super().__init__(parameters, lr)
        self.momentum = check.number("momentum", momentum, "[0, 1)")
        self._decay(weight_decay)

    def update(self, g, velocity):
        velocity *= self.momentum
        velocity += g
        return self.lr * velocity


class RMSProp(Optimizer):
    """s <- alpha s + (1 - alpha) g^2;  p <- p - lr g / (sqrt(s) + eps)  (Hinton's lecture 6e)"""

    slots = ("square",)

    def __init__(self, parameters, lr: float, alpha: float = 0.99, eps: float = 1e-8):
        super().__init__(parameters, lr)
        self.alpha, self.eps = check.number("alpha", alpha, "[0, 1)"), check.number("eps", eps, "[0, inf)")

    def update(self, g, square):
        square *= self.alpha
        square += (1 - self.alpha) * g * g
        return self.lr * g / (xp(g).sqrt(square) + self.eps)


class Adam(Optimizer):
    """m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;
    p <- p - lr m' / (sqrt(v') + eps) with m' = m / (1 - beta1^t), v' = v / (1 - beta2^t) at step t

    ``weight_decay``: parameters of several dimensions are first multiplied by 1 - lr weight_decay. ``l1``: after
    the step their entries move by lr l1 towards zero, but not past it, so weights that help little stay at zero.
    Source: Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019 (arXiv 1711.05101), algorithm 2; ``l1`` is
    decoupled from the gradient like their decay.
    """

    slots = ("mean", "square")

    def __init__(
        self,
        parameters,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        l1: float = 0.0,
    ):
        super().__init__(parameters, lr)
        self._decay(weight_decay)
        self.l1 = check.number("l1", l1, "[0, inf)")
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"betas: got {betas!r}, needs two numbers in [0, 1)")
        b1, b2 = betas
        self.betas = check.number("betas[0]", b1, "[0, 1)"), check.number("betas[1]", b2, "[0, 1)")
        self.eps = check.number("eps", eps, "[0, inf)")

    def update(self, g, mean, square):
        b1, b2 = self.betas
        mean *= b1
        mean += (1 - b1) * g
        square *= b2
        square += (1 - b2) * g * g
        correction1, correction2 = 1 - b1**self.steps, (1 - b2**self.steps) ** 0.5
        root = xp(g).sqrt(square)  # both corrections go into the two numbers, which saves passes over the arrays
        root += self.eps * correction2
        return (self.lr * correction2 / correction1) * mean / root


class Muon(Adam):
    """For weights, m <- beta m + (1 - beta) g;
    p <- (1 - lr weight_decay) p - lr 0.2 sqrt(max(rows, columns)) O(beta m + (1 - beta) g)

    with O(G) = U V^T for G = U S V^T, computed by five Newton-Schulz iterations: the step is as long in weak directions
    of the gradient as in strong ones. A weight of more dimensions is reshaped to a matrix: filters are
    (out, in * kh * kw). Parameters of one dimension use Adam, whose steps are about as large, so the same ``lr`` fits.
    ``weight_decay`` applies to weights only and bounds them: steps of constant length would let them grow without end.
    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; for the factor 0.2 sqrt(max(rows, columns)) and the
    decay, Liu et al. 2025, section 2.2.
    """

    def __init__(
        self,
        parameters,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ):
        super().__init__(parameters, lr, betas, weight_decay=weight_decay)
        self.momentum = check.number("momentum", momentum, "[0, 1)")
        for p, state in zip(self.parameters, self.state):
            if p.ndim > 1:
                del state["square"]

    def update(self, g, mean, square=None):
        if g.ndim < 2:
            return super().update(g, mean, square)
        mean *= self.momentum
        mean += (1 - self.momentum) * g
        ahead = self.momentum * mean + (1 - self.momentum) * g
        o = orthogonalized(ahead.reshape(len(g), -1))
        return self.lr * 0.2 * max(o.shape) ** 0.5 * o.reshape(g.shape)


def orthogonalized(g):
    """Approximates U V^T for a matrix g = U S V^T: singular values end up between 0.7 and 1.2, tiny ones lower.

    It needs only matrix products. Source: Jordan et al. 2024, who fitted the polynomial's three coefficients.
    """
    o = g / ((g * g).sum() ** 0.5 + 1e-7)  # 1e-7 keeps a vanishing gradient from being scaled up
    # The momentum of a dead unit decays until its products are denormal numbers, which are 20 times as slow
    o = o * (abs(o) > 1e-7)
    if g.shape[0] > g.shape[1]:
        o = o.T
    for _ in range(5):
        square = o @ o.T
        o = 3.4445 * o + (-4.7750 * square + 2.0315 * (square @ square)) @ o
    return o.T if g.shape[0] > g.shape[1] else o


def cosine(done: float, warmup: float = 0.02) -> float:
    """The factor on the learning rate after the fraction ``done`` of training.

    It rises from 0 during ``warmup``, then falls to 0 along half a cosine (Loshchilov and Hutter 2017).
    """
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


class Average:
    """An exponential moving average of the parameters, which generalizes better than their last values (after Polyak
    and Juditsky 1992, who weight all steps equally).

    Step t moves the average by the fraction 1 - min(decay, t / (t + 10)) of its distance to the parameters, so early
    averages follow them closely.
    """

    def __init__(self, parameters, decay: float):
        self.parameters, self.decay, self.steps = list(parameters), check.number("averaging", decay, "(0, 1)"), 0
        self.values = [p.data.copy() for p in self.parameters]

    def step(self) -> None:
        """Move the average towards the current parameters."""
        self.steps += 1
        weight = 1 - min(self.decay, self.steps / (self.steps + 10))
        for p, value in zip(self.parameters, self.values):
            value += weight * (p.data - value)

    def swap(self) -> None:
        """Exchange the parameters' values with the averages; a second call undoes it."""
        for i, p in enumerate(self.parameters):
            p.data, self.values[i] = self.values[i], p.data
