"""Runge-Kutta methods for dy/dt = f(t, y): one with fixed steps and one that chooses its steps.

The state y is a tuple of Tensors, and ``f(t, *y)`` returns the derivative of each. A method is its Butcher tableau: the
slopes k_i = f(t + c_i h, y + h sum_j a_ij k_j), then y + h sum_i b_i k_i. It is made of Tensor operations, so gradients
pass through a solution, exactly those of the steps that were taken; under ``no_grad`` nothing is kept.
Source: Hairer, Norsett and Wanner 1993, Solving Ordinary Differential Equations I, chapter II.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tinygen import check
from tinygen.backend import xp


class Tableau(NamedTuple):
    """The coefficients of a Runge-Kutta method, without those of the first slope, which is f(t, y)."""

    a: tuple  # row i: the weights of the slopes before slope i
    b: tuple  # the weights of the slopes in the result
    c: tuple  # the times of the slopes in the step, as a fraction of it
    error: tuple = ()  # b less the weights of a result of lower order, which estimates the error


RK4 = Tableau(  # Kutta 1901: order 4 with four slopes
    a=((1 / 2,), (0, 1 / 2), (0, 0, 1)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    c=(1 / 2, 1 / 2, 1),
)
DOPRI5 = Tableau(  # Dormand and Prince 1980: order 5, compared with order 4; the last slope is the next step's first
    a=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0),
    c=(1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
    error=(71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)


def rk4(f: Callable, y: tuple, times) -> tuple:
    """y at the last of the ``times`` from ``y`` at the first, with one step from each to the next.

    The error falls with the fourth power of the steps' length. Raises ValueError for fewer than two times.
    """
    if len(times) < 2:
        raise ValueError(f"times: got {times!r}, needs two or more")
    for t, after in zip(times, times[1:]):
        y = _moved(y, after - t, RK4.b, _slopes(f, t, after - t, y, f(t, *y), RK4))
    return y


def dopri5(f: Callable, y: tuple, start: float, stop: float, rtol: float = 1e-5, atol: float = 1e-5) -> tuple:
    """y at the time ``stop`` from ``y`` at ``start``, in steps whose error, estimated for each number of the state, is
    at most atol + rtol |y|.

    The estimate is the difference of two results, of orders 5 and 4; a step with a larger one is repeated with a
    smaller h. Each step waits for the device. Raises FloatingPointError where steps become too small.
    Source: Hairer et al. 1993, sections II.4 and II.5.
    """
    start, stop = check.number("start", start, "(-inf, inf)"), check.number("stop", stop, "(-inf, inf)")
    rtol, atol = check.number("rtol", rtol, "[0, inf)"), check.number("atol", atol, "(0, inf)")
    t, h, first = start, (stop - start) / 10, f(start, *y)
    while t != stop:
        h = h if abs(h) < abs(stop - t) else stop - t
        if t + h / 100 == t:
            raise FloatingPointError(
                f"dopri5: at t = {t:.6g} the step has shrunk to {h:.1e}: f is not finite there, or the tolerance is "
                f"below the rounding error of {y[0].dtype}"
            )
        slopes = _slopes(f, t, h, y, first, DOPRI5)
        new = _moved(y, h, DOPRI5.b, slopes)
        error = np.max([_error(i, y, new, h, slopes, rtol, atol) for i in range(len(y))])  # nan if one of them is
        if error <= 1:
            t, y, first = stop if h == stop - t else t + h, new, slopes[-1]
        h *= min(5, max(0.2, 0.9 * max(error, 1e-9) ** -0.2))  # equation II.4.13; 0.2 where the error is nan
    return y


def _slopes(f, t, h, y, first, tableau):
    """[k_1, ..., k_s], each a tuple with a slope for each part of y."""
    slopes = [first]
    for weights, c in zip(tableau.a, tableau.c):
        slopes.append(f(t + c * h, *_moved(y, h, weights, slopes)))
    return slopes


def _moved(y, h, weights, slopes):
    """y + h sum_j weights_j k_j"""
    for weight, k in zip(weights, slopes):
        if weight:
            y = tuple(part + (h * weight) * slope for part, slope in zip(y, k))
    return y


def _error(i, y, new, h, slopes, rtol, atol):
    """The largest error of part i of the state, as a multiple of the tolerance."""
    error = h * sum(weight * k[i].data for weight, k in zip(DOPRI5.error, slopes))
    m, before, after = xp(error), abs(y[i].data), abs(new[i].data)
    return float((abs(error) / (atol + rtol * m.maximum(before, after))).max())
