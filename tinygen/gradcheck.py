"""Check derivatives against finite differences of the function."""

import numpy as np

from tinygen import check
from tinygen.tensor import Tensor, as_array, as_list, grad

STEPS = 1e-4, 1e-5, 1e-6, 1e-7, 1e-8  # step sizes, tried in this order until fn is finite and smooth enough
WAYS = {True: "as recorded (create_graph=True)", False: "as training runs it (create_graph=False)"}


def gradcheck(fn, inputs, order: int = 2, rng=None, rtol: float = 1e-6, atol: float = 1e-8, parameters=()) -> None:
    """Check the derivatives of ``fn`` at ``inputs`` up to ``order``, in float64, against central differences.

    ``fn`` takes Tensors and returns a Tensor or several; ``inputs`` is an array or a tuple of arrays, away from kinks.
    ``parameters``: a Module, or leaf Tensors, that ``fn`` uses besides its inputs. They are checked in the same way, in
    float64; afterwards their arrays, and those of buffers, are restored. If ``fn`` is a Module, its parameters are
    checked too.

    With a random cotangent v, the gradient of <v, fn(x)> is computed with and without create_graph, since an operation
    may have code for each. It must agree to 10 digits with differences of fn along a random direction. Otherwise each
    entry must agree within rtol of itself, plus atol and the rounding error of the outputs that depend on it. Order 2
    checks the gradient, as a function of x, in the same way, and so on.

    Raises AssertionError with a table of the worst entries (index, analytic, numeric, relative error), ValueError if
    ``order`` is below 1, or ``fn`` depends on no input, changes from call to call, or is not finite near x.
    """
    if not callable(fn):
        raise TypeError(f"gradcheck: fn is {fn!r}, needs a function or a Module")
    order = check.count("gradcheck: order", order)
    rng = check.generator(np.random.default_rng(0) if rng is None else rng)
    rtol, atol = check.number("gradcheck: rtol", rtol, "(0, inf)"), check.number("gradcheck: atol", atol, "[0, inf)")
    inputs = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
    named = {id(p): (name, p) for source in (fn, parameters) for name, p in _named(source, "named_parameters")}
    buffers = [b for source in (fn, parameters) for _, b in _named(source, "named_buffers")]
    parameters = [p for _, p in named.values()]
    own = [(t, t.data) for t in [*parameters, *buffers]]
    for x in inputs:
        as_array(x, "gradcheck: an input")
    arrays = [x.numpy() if isinstance(x, Tensor) else x for x in [*inputs, *parameters]]
    values = [np.array(x, np.float64) for x in arrays]
    names = [*map(str, range(len(inputs))), *(name for name, _ in named.values())]

    def leaves(values):
        for p, value in zip(parameters, values[len(inputs) :]):
            p.data = value
        return [*(Tensor(x, requires_grad=True) for x in values[: len(inputs)]), *parameters]

    def function(xs):
        ys = fn(*(x * 1.0 for x in xs[: len(inputs)]))  # not leaves: Ops keep a leaf's values whatever they save
        return list(ys) if isinstance(ys, tuple | list) else [ys]

    try:
        if not any(y.requires_grad for y in function(leaves(values))):
            raise ValueError("gradcheck: no output of fn depends on any of its inputs")
        for level in range(1, order + 1):
            function = _Order(function, leaves, values, rng).check(level, names, rng, rtol, atol)
    finally:
        for tensor, array in own:
            tensor.data = array


def _named(source, what):
    if hasattr(source, what):
        return getattr(source, what)()
    tensors = [] if callable(source) or what == "named_buffers" else as_list(source, "gradcheck: parameters")
    return [(f"parameters[{i}]", p) for i, p in enumerate(tensors)]


class _Order:
    """The check of one order: ``function(leaves)`` returns the outputs y, and ``v`` has a cotangent for each output."""

    def __init__(self, function, leaves, values, rng):
        self.function, self.leaves, self.values = function, leaves, values
        self.y = self.at(values)
        if not all(np.isfinite(y).all() for y in self.y):
            raise ValueError("gradcheck: fn is not finite at its inputs")
        self.v = [rng.standard_normal(y.shape) for y in self.y]

    def check(self, level, names, rng, rtol, atol):
        """Compare, and return the gradient of <v, y>, which is the function to check at the next order."""
        direction = [rng.standard_normal(x.shape) for x in self.values]
        numeric, _, noise = self.difference(direction, STEPS[0])
        for create_graph, way in WAYS.items():
            gradient = [g.numpy() for g in self.gradient(self.leaves(self.values), create_graph)]
            terms = np.concatenate([(g * d).ravel() for g, d in zip(gradient, direction)])
            size = np.abs(terms).sum()
            # Rounding of large outputs could hide errors of small ones
            reliable = np.isfinite(terms).all() and noise <= 1e-8 * size
            if reliable and abs(terms.sum() - numeric) <= 1e-10 * size + noise:
                continue
            rows = self.entries(gradient, names, rtol, atol)
            if any(self.changes() for _ in range(8)):
                raise ValueError(
                    "gradcheck: fn gives other values when called again: let it make its noise anew, as "
                    "with np.random.default_rng(0) inside it, or give the noise as an input"
                )
            if wrong := sum(row[0] > rtol for row in rows):
                table = "\n".join(
                    f"{name:<9} {i!s:<20} {a:>15.8g} {n:>15.8g} {e:>9.1e}" for e, name, i, a, n in rows[:10]
                )
                raise AssertionError(
                    f"derivative of order {level} is wrong in {wrong} entries, {way}\n"
                    f"{'input':<9} {'index':<20} {'analytic':>15} {'numeric':>15} {'relative':>9}\n{table}"
                )
        return self.gradient

    def gradient(self, xs, create_graph=True):
        return grad(self.function(xs), xs, self.v, create_graph, materialize_grads=True)

    def entries(self, gradient, names, rtol, atol):
        """(relative error, input, index, analytic, numeric) of every entry, worst first; errors up to rtol pass."""
        rows = []
        for which, (g, name) in enumerate(zip(gradient, names)):
            for index in np.ndindex(g.shape):
                unit = [np.zeros_like(x) for x in self.values]
                unit[which][index] = 1.0
                for step in STEPS:
                    n, coarse, noise = self.difference(unit, step)
                    if np.isfinite(n) and coarse <= 1e-4 * abs(n) + noise:
                        break  # the three-point and five-point differences agree, so the latter is accurate
                if not np.isfinite(n):
                    raise ValueError(f"gradcheck: fn is not finite on both sides of input {name} at {index}")
                a = float(g[index])
                error = abs(a - n) / max(abs(a), abs(n), (atol + noise) / rtol)
                rows.append((np.inf if np.isnan(error) else error, name, index, a, n))
        return sorted(rows, key=lambda row: -row[0])

    def difference(self, direction, step):
        """<v, dy> along ``direction`` by five points, its distance from the three-point value, and a rounding bound."""
        with np.errstate(all="ignore"):
            ys = [self.at([x + t * step * d for x, d in zip(self.values, direction)]) for t in (-2, -1, 1, 2)]
            three = five = size = 0.0
            for y, v, a, b, c, d in zip(self.y, self.v, *ys):
                three += (v * (c - b)).sum() / (2 * step)  # outputs that do not change add nothing, not even rounding
                five += (v * (8 * (c - b) - (d - a))).sum() / (12 * step)
                size += np.abs(v * y * (a != d)).sum()
        return five, abs(five - three), 1e-14 * size / step

    def at(self, values):
        return [y.numpy().copy() for y in self.function(self.leaves(values))]

    def changes(self):
        return any(np.abs(y - again).max(initial=0) > 0 for y, again in zip(self.y, self.at(self.values)))
