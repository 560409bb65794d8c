"""Elementwise operations, with NumPy's broadcasting. Derivatives at kinks follow PyTorch (relu'(0) = 0, and so on)."""

import contextlib
import math

import numpy as np

from tinygen import backend, check
from tinygen.backend import to_device, xp
from tinygen.ops.shape import sum_to
from tinygen.tensor import Op, Tensor, as_array


class Binary(Op):
    """An operation on two broadcast inputs. ``dx`` and ``dy`` return gradients of the broadcast shape."""

    def backward(self, gy):
        x, y = self.inputs
        return (
            sum_to(self.dx(gy, x, y), x.shape) if x.requires_grad else None,
            sum_to(self.dy(gy, x, y), y.shape) if y.requires_grad else None,
        )


class Add(Binary):
    saves = ()

    def forward(self, x, y):
        return x + y

    def dx(self, gy, x, y):
        return gy

    def dy(self, gy, x, y):
        return gy


def add(x, y) -> Tensor:
    """x + y"""
    return Add()(x, y)


class Sub(Binary):
    saves = ()

    def forward(self, x, y):
        return x - y

    def dx(self, gy, x, y):
        return gy

    def dy(self, gy, x, y):
        return -gy


def sub(x, y) -> Tensor:
    """x - y"""
    return Sub()(x, y)


class Mul(Binary):
    saves = ("inputs",)

    def forward(self, x, y):
        return x * y

    def dx(self, gy, x, y):
        return gy * y

    def dy(self, gy, x, y):
        return gy * x


def mul(x, y) -> Tensor:
    """x * y"""
    return Mul()(x, y)


class Div(Binary):
    def forward(self, x, y):
        return x / y

    def dx(self, gy, x, y):
        return gy / y

    def dy(self, gy, x, y):
        return -gy * self.output / y


def div(x, y) -> Tensor:
    """x / y"""
    return Div()(x, y)


class Pow(Binary):
    def forward(self, x, y):
        return x**y

    def dx(self, gy, x, y):
        # y x^(y-1), set to its limit 0 at x = y = 0
        power = y - 1
        if not (isinstance(y.data, np.generic) and y.data):  # a constant y other than 0 needs no check
            power = where((x.data == 0) & (y.data == 0), 1, power)
        return gy * (y * x**power)

    def dy(self, gy, x, y):
        # x^y log x, set to its limit 0 at x = 0
        return gy * (self.output * log(where(x.data == 0, 1, x)))


def pow(x, y) -> Tensor:
    """x ** y, differentiable in both (in y where x >= 0)"""
    return Pow()(x, y)


class Maximum(Binary):
    saves = ("inputs",)

    def forward(self, x, y):
        return xp(x, y).maximum(x, y)

    def dx(self, gy, x, y):
        return gy * _share(x, y)

    def dy(self, gy, x, y):
        return gy * _share(y, x)


class Minimum(Maximum):
    def forward(self, x, y):
        return xp(x, y).minimum(x, y)

    def dx(self, gy, x, y):
        return gy * _share(y, x)

    def dy(self, gy, x, y):
        return gy * _share(x, y)


def _share(x, y):
    """1 where x > y, 1/2 where they are equal, 0 elsewhere."""
    half = x.dtype.type(0.5)
    return Tensor((x > y) * half + (x >= y) * half)


def maximum(x, y) -> Tensor:
    """The larger of each pair; ties share the gradient equally."""
    return Maximum()(x, y)


def minimum(x, y) -> Tensor:
    """The smaller of each pair; ties share the gradient equally."""
    return Minimum()(x, y)


class Where(Op):
    saves = ()

    def __init__(self, condition):
        self.condition = condition

    def forward(self, x, y):
        return xp(self.condition, x, y).where(self.condition, x, y)[()]  # [()] keeps scalars, which work on any device

    def backward(self, gy):
        x, y = self.inputs
        return (
            sum_to(where(self.condition, gy, 0), x.shape) if x.requires_grad else None,
            sum_to(where(self.condition, 0, gy), y.shape) if y.requires_grad else None,
        )


def where(condition, x, y) -> Tensor:
    """x where ``condition`` (a boolean array) holds, y elsewhere."""
    condition = condition.data if isinstance(condition, Tensor) else condition
    if not hasattr(condition, "dtype"):
        condition = as_array(condition, "where: condition")[()]
    if condition.dtype != bool:
        raise TypeError(f"where: condition has dtype {condition.dtype}, needs booleans")
    if not isinstance(x, Tensor) and not isinstance(y, Tensor):
        if isinstance(x, int | float):  # a NumPy scalar works on any device
            x = np.asarray(x, np.float32 if isinstance(x, float) else None)[()]
        x = Tensor(x)
    return Where(condition)(x, y)


class Neg(Op):
    saves = ()

    def forward(self, x):
        return -x

    def backward(self, gy):
        return -gy


def neg(x) -> Tensor:
    """-x"""
    return Neg()(x)


class Exp(Op):
    saves = ("output",)

    def forward(self, x):
        return xp(x).exp(x)

    def backward(self, gy):
        return gy * self.output


def exp(x) -> Tensor:
    """e^x"""
    return Exp()(x)


class Log(Op):
    saves = ("inputs",)

    def forward(self, x):
        return xp(x).log(x)

    def backward(self, gy):
        return gy / self.inputs[0]


def log(x) -> Tensor:
    """The natural logarithm of x."""
    return Log()(x)


class Log1p(Op):
    saves = ("inputs",)

    def forward(self, x):
        return xp(x).log1p(x)

    def backward(self, gy):
        return gy / (1 + self.inputs[0])


def log1p(x) -> Tensor:
    """log(1 + x), accurate near 0"""
    return Log1p()(x)


class Expm1(Op):
    saves = ("output",)

    def forward(self, x):
        return xp(x).expm1(x)

    def backward(self, gy):
        return gy * (self.output + 1)


def expm1(x) -> Tensor:
    """exp(x) - 1, accurate near 0"""
    return Expm1()(x)


class Sqrt(Op):
    saves = ("output",)

    def forward(self, x):
        return xp(x).sqrt(x)

    def backward(self, gy):
        return gy / (2 * self.output)


def sqrt(x) -> Tensor:
    """The square root of x."""
    return Sqrt()(x)


class Abs(Op):
    saves = ("inputs",)

    def forward(self, x):
        return xp(x).abs(x)

    def backward(self, gy):
        x = self.inputs[0].data
        return gy * Tensor(xp(x).sign(x))


def abs(x) -> Tensor:
    """|x|; the derivative at 0 is 0"""
    return Abs()(x)


class Sin(Op):
    saves = ("inputs",)

    def forward(self, x):
        return xp(x).sin(x)

    def backward(self, gy):
        return gy * cos(self.inputs[0])


def sin(x) -> Tensor:
    """The sine of x."""
    return Sin()(x)


class Cos(Op):
    saves = ("inputs",)

    def forward(self, x):
        return xp(x).cos(x)

    def backward(self, gy):
        return -gy * sin(self.inputs[0])


def cos(x) -> Tensor:
    """The cosine of x."""
    return Cos()(x)


class Erf(Op):
    saves = ("inputs",)

    def forward(self, x):
        return backend.erf(x)

    def backward(self, gy):
        x = self.inputs[0]
        return gy * (2 / math.sqrt(math.pi) * exp(-x * x))


def erf(x) -> Tensor:
    """The error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    return Erf()(x)


class Tanh(Op):
    saves = ("output",)

    def forward(self, x):
        return xp(x).tanh(x)

    def backward(self, gy):
        y = self.output
        return gy * (1 - y * y)


def tanh(x) -> Tensor:
    """The hyperbolic tangent of x."""
    return Tanh()(x)


class Sigmoid(Op):
    saves = ("output",)

    def forward(self, x):
        # exp overflows above 11, 88, 709 (float16, float32, float64), where the sigmoid is 0 or denormal anyway
        x = 0.0 - x  # -x would be positive for unsigned integers
        return 1 / (1 + xp(x).exp(xp(x).minimum(x, {2: 11, 4: 88}.get(x.dtype.itemsize, 709))))

    def backward(self, gy):
        y = self.output
        return gy * (y * (1 - y))


def sigmoid(x) -> Tensor:
    """1 / (1 + exp(-x)), without overflow"""
    return Sigmoid()(x)


class Softplus(Op):
    """log(1 + exp(x))"""

    saves = ("inputs",)

    def forward(self, x):
        return xp(x).maximum(x, 0) + xp(x).log1p(xp(x).exp(0.0 - xp(x).abs(x)))

    def backward(self, gy):
        return gy * sigmoid(self.inputs[0])


def softplus(x) -> Tensor:
    """log(1 + exp(x)), without overflow"""
    return Softplus()(x)


class Relu(Op):
    saves = ("output",)

    def forward(self, x):
        return xp(x).maximum(x, 0)

    def backward(self, gy):
        return gy * Tensor(self.result > 0)


def relu(x) -> Tensor:
    """max(x, 0); the derivative at 0 is 0"""
    return Relu()(x)


class LeakyRelu(Op):
    saves = ("inputs",)

    def __init__(self, slope):
        self.slope = slope

    def forward(self, x):
        return xp(x).where(x > 0, x, x * self.slope)

    def backward(self, gy):
        return where(self.inputs[0].data > 0, gy, gy * self.slope)


def leaky_relu(x, slope: float = 0.01) -> Tensor:
    """x where positive, slope * x elsewhere"""
    return LeakyRelu(check.number("leaky_relu: slope", slope, "(-inf, inf)"))(x)


class Elu(Op):
    """x where positive, exp(x) - 1 elsewhere."""

    def forward(self, x):
        return xp(x).where(x > 0, x, xp(x).expm1(xp(x).minimum(x, 0)))

    def backward(self, gy):
        return gy * where(self.inputs[0].data > 0, 1, self.output + 1)


def elu(x) -> Tensor:
    """x where positive, exp(x) - 1 elsewhere"""
    return Elu()(x)


class Clip(Op):
    saves = ("inputs",)

    def __init__(self, low, high):
        self.low, self.high = low, high

    def forward(self, x):
        return xp(x).clip(x, self.low, self.high)

    def backward(self, gy):
        x = self.inputs[0].data
        return gy * Tensor((x >= self.low) & (x <= self.high))


def clip(x, low: float, high: float) -> Tensor:
    """x limited to [low, high]; the derivative is 1 inside and at the limits, 0 outside"""
    low = check.number("clip: low", low, "[-inf, inf]")
    return Clip(low, check.number("clip: high", high, f"[{low}, inf]"))(x)


class Astype(Op):
    saves = ()

    def __init__(self, dtype):
        self.dtype = dtype

    def forward(self, x):
        return x.astype(self.dtype)

    def backward(self, gy):
        return astype(gy, self.inputs[0].dtype)


def astype(x, dtype) -> Tensor:
    """x in another floating dtype. Raises TypeError for other dtypes, which have no derivative."""
    with contextlib.suppress(TypeError, ValueError):
        dtype = dtype if dtype is None else np.dtype(dtype)
    if getattr(dtype, "kind", "?") != "f":
        raise TypeError(f"astype: dtype is {dtype}, needs a floating one")
    return x if x.dtype == dtype else Astype(dtype)(x)


def dropout(x, p: float, rng) -> Tensor:
    """Zero each value with probability p and divide the others by 1 - p (Srivastava et al. 2014, inverted).

    Raises ValueError unless 0 <= p < 1, TypeError if x has integers.
    """
    p = check.number("dropout: p", p, "[0, 1)")
    if x.dtype.kind != "f":
        raise TypeError(f"dropout: x has dtype {x.dtype}, needs a floating one")
    kept = xp(x.data).empty_like(x.data)  # in x's memory order: the product is five times faster than in another
    kept[...] = to_device(check.generator(rng).random(x.shape, np.float32) >= p, x.device)
    return x * Tensor(kept / x.dtype.type(1 - p))
