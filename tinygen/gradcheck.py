"""Is a derivative right? Compare it with differences of the function itself."""

import numpy as np

from tinygen.tensor import Tensor, grad


def gradcheck(fn, inputs, order: int = 2, rng=None, rtol: float = 1e-6, atol: float = 1e-8) -> None:
    """Check the derivatives of ``fn`` at ``inputs`` up to ``order``, in float64, against central differences.

    ``fn`` takes Tensors and returns a Tensor or a tuple of them; ``inputs`` is an array or a tuple of arrays, away from
    kinks. With a random cotangent v, s(x) = <v, fn(x)> must have the directional derivative <grad s, d> along a random
    direction d; if not, every entry is compared. Order 2 does the same to x -> grad s(x), and so on.
    Raises AssertionError with a table of the worst entries (index, analytic, numeric, relative error),
    and ValueError where ``fn`` does not depend on any input.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    inputs = [np.array(x, np.float64) for x in (inputs if isinstance(inputs, tuple | list) else [inputs])]
    if not any(y.requires_grad for y in _outputs(fn, [Tensor(x, requires_grad=True) for x in inputs])):
        raise ValueError("gradcheck: no output of fn depends on any of its inputs")
    for level in range(1, order + 1):
        scalar = _contracted(fn, rng)
        fn = _gradient_of(scalar)
        _compare(scalar, fn, inputs, level, rng, rtol, atol)


def _outputs(fn, xs):
    ys = fn(*xs)
    return ys if isinstance(ys, tuple | list) else (ys,)


def _contracted(fn, rng):
    """x -> <v, fn(x)> for a random v, drawn once."""
    cotangents = []

    def scalar(*xs):
        ys = _outputs(fn, xs)
        if not cotangents:
            cotangents.extend(rng.standard_normal(y.shape) for y in ys)
        # 0 * x: an input on which this derivative does not depend has derivative zero here, and no error.
        return sum((y * v).sum() for y, v in zip(ys, cotangents)) + sum((x * 0.0).sum() for x in xs)

    return scalar


def _gradient_of(scalar):
    def gradient(*xs):
        return grad(scalar(*xs), xs, create_graph=True)

    return gradient


def _compare(scalar, gradient, inputs, level, rng, rtol, atol):
    analytic = [g.data for g in gradient(*(Tensor(x, requires_grad=True) for x in inputs))]
    directions = [rng.standard_normal(x.shape) for x in inputs]
    numeric, noise = _difference(scalar, inputs, directions)
    expected = sum(float((g * d).sum()) for g, d in zip(analytic, directions))
    size = sum(float(np.abs(g * d).sum()) for g, d in zip(analytic, directions))
    if abs(expected - numeric) <= atol + rtol * max(size, abs(numeric)) + noise:
        return
    rows = []
    for which, x in enumerate(inputs):
        for index in np.ndindex(x.shape):
            unit = [np.zeros_like(other) for other in inputs]
            unit[which][index] = 1.0
            a, (n, noise) = float(analytic[which][index]), _difference(scalar, inputs, unit)
            rows.append((abs(a - n) / max(abs(a), abs(n), atol + noise), which, index, a, n))  # rounding ranks low
    rows.sort(key=lambda row: row[0] if row[0] == row[0] else np.inf, reverse=True)
    table = "\n".join(
        f"{which:>5}  {index!s:<20} {a:>15.8g} {n:>15.8g} {e:>9.1e}" for e, which, index, a, n in rows[:10]
    )
    raise AssertionError(
        f"derivative of order {level} is wrong: along a random direction {expected:.10g}, "
        f"by differences {numeric:.10g}\n"
        f"input  {'index':<20} {'analytic':>15} {'numeric':>15} {'relative':>9}\n{table}"
    )


def _difference(scalar, inputs, directions):
    """d/dt s(x + t d) at t = 0 by a five-point rule (error of order h^4), and what rounding may have added."""
    h = 1e-4

    def at(t):
        # Recorded, since from order 2 on s itself contains a derivative.
        return float(scalar(*(Tensor(x + t * d, requires_grad=True) for x, d in zip(inputs, directions))))

    near, far = at(h) - at(-h), at(2 * h) - at(-2 * h)
    return (8 * near - far) / (12 * h), 1e-12 * abs(at(0)) / h
