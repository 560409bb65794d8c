"""All differentiable operations, one family per file, and the operators and methods of Tensor."""

import functools

from tinygen.ops.attention import scaled_dot_product_attention
from tinygen.ops.conv import conv2d, conv_filter_grad, conv_transpose2d
from tinygen.ops.elementwise import (
    abs,
    add,
    astype,
    clip,
    cos,
    div,
    dropout,
    elu,
    erf,
    exp,
    expm1,
    leaky_relu,
    log,
    log1p,
    maximum,
    minimum,
    mul,
    neg,
    pow,
    relu,
    sigmoid,
    sin,
    softplus,
    sqrt,
    sub,
    tanh,
    where,
)
from tinygen.ops.losses import bce_with_logits, softmax_cross_entropy
from tinygen.ops.lstm import lstm_loop, lstm_scan
from tinygen.ops.matmul import einsum, inverse, matmul, slogdet
from tinygen.ops.nade import nade_logits
from tinygen.ops.pool import avg_pool2d, interpolate, max_pool2d
from tinygen.ops.reduce import cumsum, log_softmax, logsumexp, max, mean, min, prod, softmax, std, sum, var
from tinygen.ops.shape import (
    broadcast_to,
    concatenate,
    expand_dims,
    flip,
    getitem,
    pad,
    repeat,
    reshape,
    skew,
    split,
    squeeze,
    stack,
    sum_to,
    to,
    transpose,
    unskew,
)
from tinygen.tensor import Tensor
from tinygen.tensor import as_tensor as _as_tensor

Tensor.__add__ = add
Tensor.__radd__ = lambda x, y: add(y, x)
Tensor.__sub__ = sub
Tensor.__rsub__ = lambda x, y: sub(y, x)
Tensor.__mul__ = mul
Tensor.__rmul__ = lambda x, y: mul(y, x)
Tensor.__truediv__ = div
Tensor.__rtruediv__ = lambda x, y: div(y, x)
Tensor.__pow__ = pow
Tensor.__rpow__ = lambda x, y: pow(y, x)
Tensor.__matmul__ = matmul
Tensor.__rmatmul__ = lambda x, y: matmul(y, x)
Tensor.__neg__ = neg
Tensor.__abs__ = abs
Tensor.__getitem__ = getitem
Tensor.T = property(transpose)


def _of_anything(operation):
    """Let ``operation`` accept an array, number or nested list as x: it becomes a Tensor."""

    @functools.wraps(operation)
    def call(x, *args, **kwargs):
        return operation(x if isinstance(x, Tensor) else _as_tensor(x, f"{operation.__name__}: x"), *args, **kwargs)

    call.__module__ = __name__  # where pickle finds it
    return call


for _op in (  # operations on one Tensor are also its methods
    *(
        abs,
        astype,
        clip,
        cos,
        dropout,
        elu,
        erf,
        exp,
        expm1,
        leaky_relu,
        log,
        log1p,
        relu,
        sigmoid,
        sin,
        softplus,
        sqrt,
    ),
    *(tanh, inverse, slogdet, avg_pool2d, interpolate, max_pool2d),
    *(cumsum, log_softmax, logsumexp, max, mean, min, prod, softmax, std, sum, var),
    *(broadcast_to, expand_dims, flip, pad, repeat, reshape, skew, split, squeeze, sum_to, to, transpose, unskew),
):
    setattr(Tensor, _op.__name__, _op)
    globals()[_op.__name__] = _of_anything(_op)
