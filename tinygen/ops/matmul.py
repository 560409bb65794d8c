"""Matrix products."""

from tinygen.backend import xp
from tinygen.ops.shape import sum_to
from tinygen.tensor import Op, Tensor


class Matmul(Op):
    saves = ("inputs",)

    def forward(self, x, y):
        return xp(x, y).matmul(x, y)

    def backward(self, gy):
        x, y = self.inputs
        return (
            sum_to(gy @ _swapped(y), x.shape) if x.requires_grad else None,
            sum_to(_swapped(x) @ gy, y.shape) if y.requires_grad else None,
        )


def _swapped(x):
    return x.transpose(*range(x.ndim - 2), x.ndim - 1, x.ndim - 2)


def matmul(x, y) -> Tensor:
    """``x @ y`` as NumPy has it: (..., n, k) @ (..., k, m), leading axes broadcast.

    A vector is a row on the left, a column on the right. Raises ValueError where the inner sizes differ.
    """
    x, y = (t if isinstance(t, Tensor) else Tensor(t) for t in (x, y))
    if not x.ndim or not y.ndim or x.shape[-1] != y.shape[max(y.ndim - 2, 0)]:
        raise ValueError(f"matmul: x {x.shape} and y {y.shape} need (..., n, k) and (..., k, m)")
    rows = x if x.ndim > 1 else x.reshape(1, -1)
    columns = y if y.ndim > 1 else y.reshape(-1, 1)
    z = Matmul()(rows, columns)
    keep = z.shape[:-2] + (() if x.ndim == 1 else z.shape[-2:-1]) + (() if y.ndim == 1 else z.shape[-1:])
    return z.reshape(keep) if keep != z.shape else z
