"""Matrix products, and the inverse and the determinant of a matrix."""

import string

import numpy as np

from tinygen.backend import xp
from tinygen.ops.shape import broadcast_to, reshape, sum_to
from tinygen.tensor import Op, Tensor, as_tensor


class Matmul(Op):
    saves = ("inputs",)

    def forward(self, x, y):
        return xp(x, y).matmul(x, y)

    def backward(self, gy):
        x, y = self.inputs
        return (
            sum_to(gy @ _swapped(y), x.shape) if x.requires_grad else None,
            sum_to(self._of_y(x, gy, y.data.flags.f_contiguous), y.shape) if y.requires_grad else None,
        )

    def _of_y(self, x, gy, turned):
        """x.T @ gy, in the memory order of y: for y = W.T the gradient of W then lies in memory as W does."""
        return _swapped(_swapped(gy) @ x) if turned else _swapped(x) @ gy


def _swapped(x):
    return x.transpose(*range(x.ndim - 2), x.ndim - 1, x.ndim - 2)


def matmul(x, y) -> Tensor:
    """``x @ y`` as in NumPy: (..., n, k) @ (..., k, m), with broadcast leading axes.

    A vector is a row on the left and a column on the right. Raises ValueError where the inner sizes differ.
    """
    x, y = as_tensor(x, "matmul: x"), as_tensor(y, "matmul: y")
    if not x.ndim or not y.ndim or x.shape[-1] != y.shape[max(y.ndim - 2, 0)]:
        raise ValueError(f"matmul: x {x.shape} and y {y.shape} need (..., n, k) and (..., k, m)")
    if x.dtype == y.dtype == np.float16:  # sums of float16 are computed in float32
        return matmul(x.astype(np.float32), y.astype(np.float32)).astype(np.float16)
    rows = x if x.ndim > 1 else x.reshape(1, -1)
    columns = y if y.ndim > 1 else y.reshape(-1, 1)
    z = Matmul()(rows, columns)
    keep = z.shape[:-2] + (() if x.ndim == 1 else z.shape[-2:-1]) + (() if y.ndim == 1 else z.shape[-1:])
    return z.reshape(keep) if keep != z.shape else z


class Einsum(Op):
    """``terms``: a string for each operand, with a different letter for each axis; ``result``: that of the result."""

    saves = ("inputs",)

    def __init__(self, terms, result):
        self.terms, self.kept = terms, result

    def forward(self, *xs):
        return xp(*xs).einsum(f"{','.join(self.terms)}->{self.kept}", *xs, optimize=True)

    def backward(self, gy):
        return tuple(self._gradient(i, gy) if x.requires_grad else None for i, x in enumerate(self.inputs))

    def _gradient(self, i, gy):
        """Operand i and the result swap roles: for x @ y the gradients are gy @ y.T and x.T @ gy."""
        x, term = self.inputs[i], self.terms[i]
        others, terms = ([*kept[:i], *kept[i + 1 :]] for kept in (self.inputs, self.terms))
        # The gradient is constant along axes that no other term has, and along axes of size 1: it is broadcast there.
        known = "".join(c for c, n in zip(term, x.shape) if n != 1 and c in "".join([self.kept, *terms]))
        g = Einsum([self.kept, *terms], known)(gy, *others)
        sizes = dict(zip(known, g.shape))
        return broadcast_to(reshape(g, *[sizes.get(c, 1) for c in term]), x.shape)


def einsum(subscripts: str, *operands) -> Tensor:
    """Sum of products as in ``numpy.einsum``: ``einsum("nic,ioc->no", x, w)``; axes of ``...`` are broadcast.

    Indices that are not in the result are summed. Without ``->`` the result has ``...`` and then each index that occurs
    once, in alphabetical order. Raises ValueError where a term does not have one letter for each axis, all different.
    """
    operands = [as_tensor(x, "einsum: an operand") for x in operands]
    terms, arrow, result = str(subscripts).replace(" ", "").partition("->")
    if not arrow:
        result = "..." + "".join(sorted(c for c in terms if c.isalpha() and terms.count(c) == 1))
    terms = terms.split(",")
    if len(terms) != len(operands):
        raise ValueError(f"einsum: {subscripts!r} has {len(terms)} terms, but there are {len(operands)} operands")
    spare = [c for c in string.ascii_letters if c not in subscripts]
    counts = [x.ndim - len(term.replace("...", "")) for x, term in zip(operands, terms)]  # how many axes ... stands for
    for x, term, n in zip(operands, terms, counts):
        letters = term.replace("...", "", 1)
        if n < 0 or (n and "..." not in term) or len({*letters}) < len(letters):
            raise ValueError(f"einsum: the term {term!r} for shape {x.shape} needs one letter per axis, each only once")
    terms = [term.replace("...", "".join(spare[:n][::-1])) for term, n in zip(terms, counts)]
    result = result.replace("...", "".join(spare[: max(counts)][::-1]))
    if all(x.dtype == np.float16 for x in operands):
        return Einsum(terms, result)(*[x.astype(np.float32) for x in operands]).astype(np.float16)
    return Einsum(terms, result)(*operands)


class Inverse(Op):
    saves = ("output",)

    def forward(self, x):
        return xp(x).linalg.inv(x)

    def backward(self, gy):  # Y X = I, so dY = -Y dX Y
        y = _swapped(self.output)
        return -(y @ gy @ y)


def inverse(x) -> Tensor:
    """The inverse of a square matrix, or of each in a batch (..., n, n).

    Raises ValueError for a singular matrix on the host; a device is not checked, since that would wait for it.
    """
    return Inverse()(x)


class Slogdet(Op):
    saves = ("inputs",)

    def forward(self, x):
        return tuple(xp(x).linalg.slogdet(x))

    def backward(self, _, gy):  # d log |det X| = tr(X^-1 dX); the sign has derivative 0
        x = self.inputs[0]
        return reshape(gy, *gy.shape, 1, 1) * _swapped(inverse(x))


def slogdet(x) -> tuple[Tensor, Tensor]:
    """Sign and log |det x| of a square matrix, or of each in a batch (..., n, n); (0, -inf) if it is singular."""
    sign, log_det = Slogdet()(x)
    return sign.detach(), log_det
