"""tinygen: a reverse-mode autograd over NumPy and CuPy arrays, and generative models built on it."""

from tinygen import ops
from tinygen.gradcheck import gradcheck
from tinygen.tensor import Op, Tensor, grad, no_grad

__version__ = "0.1.0"
__all__ = ["Op", "Tensor", "grad", "gradcheck", "no_grad", "ops", "pretrained"]


def __dir__():
    return [*globals(), "pretrained"]


def __getattr__(name):  # so that the models are imported only when one is asked for
    if name == "pretrained":
        from tinygen.weights import pretrained

        return pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
