"""Scaled dot-product attention as one operation, in memory that does not grow with queries times keys.

    S = Q K^T / sqrt(d)     how well each query fits each key; causal: -inf where the key comes after the query
    Y = softmax(S) V        for each query a mean of the values, weighted over the keys

The weights of 784 queries and 784 keys are 2.5 MB for each head of each image. So they are computed for a few queries
at a time. A causal block ends at the last key that its queries see, which saves almost half of the work. For the
backward pass only log sum exp of each row of S is kept; the weights are computed again (Dao et al. 2022, algorithm 1).
"""

import math

import numpy as np

from tinygen import check
from tinygen.backend import xp
from tinygen.ops.reduce import softmax
from tinygen.tensor import Op, Tensor, as_flag, grad, recording

QUERIES = 112  # in a block
WEIGHTS = 2**17, 2**26  # in a block, on the host and on a device; the first fit into a core's cache


class ScaledDotProductAttention(Op):
    def __init__(self, is_causal):
        self.is_causal = is_causal

    def forward(self, q, k, v):  # (B, T, d), (B, S, d), (B, S, e)
        m, q = xp(q, k, v), q * q.shape[-1] ** -0.5
        y = m.empty((*q.shape[:2], v.shape[2]), v.dtype)
        self.log_sums = m.empty((*q.shape[:2], 1), v.dtype)
        later = _later(q, QUERIES)
        for b, rows, keys in self._blocks(q, k):
            w = self._scores(q[b, rows], k[b, keys], later)
            top = w.max(-1, keepdims=True)
            w -= top
            m.exp(w, out=w)
            total = w.sum(-1, keepdims=True)  # at least 1, the term of the largest score
            y[b, rows] = w @ v[b, keys] / total
            self.log_sums[b, rows] = top + m.log(total)
        return y

    def backward(self, gy):
        if recording():
            return self._backward_composed(gy)
        return tuple(Tensor(g) for g in self._backward_arrays(gy.data))

    def _backward_composed(self, gy):
        """The derivative of ``attention_by_definition``, recorded so that it can be differentiated again."""
        xs = [x * 1.0 for x in self.inputs]  # copies, since one input may have been computed from another
        wanted = [x for x in xs if x.requires_grad]
        found = iter(grad(attention_by_definition(*xs, self.is_causal), wanted, gy, create_graph=True))
        return tuple(next(found) if x.requires_grad else None for x in xs)

    def _backward_arrays(self, gy):
        q, k, v = (x.data for x in self.inputs)
        m, scale = xp(q), q.shape[-1] ** -0.5
        q = q * scale
        gq, gk, gv = m.empty_like(q), m.zeros_like(k), m.zeros_like(v)
        mean = (gy * self.result).sum(-1, keepdims=True)  # (B, T, 1): of the gradient of w, weighted with w
        later = _later(q, QUERIES)
        for b, rows, keys in self._blocks(q, k):
            w = self._scores(q[b, rows], k[b, keys], later)
            w -= self.log_sums[b, rows]
            m.exp(w, out=w)  # (b, rows, keys)
            gv[b, keys] += w.swapaxes(1, 2) @ gy[b, rows]
            gs = gy[b, rows] @ v[b, keys].swapaxes(1, 2)  # the gradient of w
            gs -= mean[b, rows]
            gs *= w  # the gradient of S
            gq[b, rows] = gs @ k[b, keys]
            gk[b, keys] += gs.swapaxes(1, 2) @ q[b, rows]
        gq *= scale
        return gq, gk, gv

    def _blocks(self, q, k):
        """Slices of the batch, of the queries, and of the keys that these see."""
        batch, queries, _ = q.shape
        for start in range(0, queries, QUERIES):
            stop = min(start + QUERIES, queries)
            seen = stop if self.is_causal else k.shape[1]
            together = max(1, WEIGHTS[xp(q) is not np] // ((stop - start) * seen))
            for first in range(0, batch, together):
                yield slice(first, first + together), slice(start, stop), slice(seen)

    def _scores(self, q, k, later):
        """S of the queries and keys of a block."""
        s = q @ k.swapaxes(1, 2)
        if self.is_causal:  # only the last keys, as many as there are queries, come after one of them
            n = q.shape[1]
            s[..., -n:] += later[:n, :n]
        return s


def _later(like, n):
    """(n, n), on the device and in the dtype of ``like``: -inf above the diagonal, where a key comes after the query,
    else 0."""
    return xp(like).triu(xp(like).full((n, n), -np.inf, like.dtype), 1)


def attention_by_definition(q, k, v, is_causal=False) -> Tensor:
    """``scaled_dot_product_attention`` as a textbook writes it, used by its tests and for its higher derivatives."""
    s = (q @ k.transpose(0, 2, 1)) * q.shape[-1] ** -0.5  # (B, T, S)
    if is_causal:
        s = s + Tensor(_later(s.data, s.shape[1]))
    return softmax(s, -1) @ v


def scaled_dot_product_attention(q, k, v, is_causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, the softmax over the keys.

    q (..., T, d): queries; k (..., S, d): keys; v (..., S, e): values; the result is (..., T, e).
    ``is_causal``: query t sees the keys 0 .. t only, and T = S. It always sees a key, so no row of weights is nan.
    Raises ValueError if shapes do not fit or there is no key, TypeError if dtypes differ.
    Source: Vaswani et al. 2017, equation 1.
    """
    as_flag(is_causal, "scaled_dot_product_attention: is_causal")
    q = check.tensor("scaled_dot_product_attention: q", q, ..., "T", "d")
    *batch, queries, d = q.shape
    k = check.tensor("scaled_dot_product_attention: k", k, *batch, queries if is_causal else "S", d)
    v = check.tensor("scaled_dot_product_attention: v", v, *batch, k.shape[-2], "e")
    if len({x.dtype for x in (q, k, v)}) > 1 or q.dtype.kind != "f":
        dtypes = f"{q.dtype}, {k.dtype}, {v.dtype}"
        raise TypeError(f"scaled_dot_product_attention: q, k, v are {dtypes}: needs one floating-point dtype")
    if 0 in k.shape[-2:]:
        raise ValueError(f"scaled_dot_product_attention: k has shape {k.shape}, needs at least one key, of one number")
    size = math.prod(batch)
    q, k, v = (x.reshape(size, *x.shape[-2:]) for x in (q, k, v))
    return ScaledDotProductAttention(is_causal)(q, k, v).reshape(*batch, queries, v.shape[-1])
