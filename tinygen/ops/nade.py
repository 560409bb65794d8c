"""NADE's logits as one operation: a running pre-activation, one value of the image after the other.

    a_1 = c,   a_{i+1} = a_i + x_i W_i         pre-activations of the hidden units, before value i
    h_i = sigmoid(a_i),   y_i = b_i + V_i h_i   hidden units, and the logits of value i

Where x_i is zero the pre-activations do not change, and most values of binary images are zero. So step i computes only
the images in which x_i is not zero. For the backward pass the pre-activations are kept at every ``CHUNK``-th value and
computed again from there, so that the hidden units of all values need not be stored.
"""

import numpy as np

from tinygen import check
from tinygen.backend import xp
from tinygen.ops.elementwise import sigmoid
from tinygen.ops.reduce import cumsum
from tinygen.tensor import Op, Tensor, as_tensor, grad, recording

CHUNK = 64


class NadeLogits(Op):
    saves = ("inputs",)

    def forward(self, x, w, v, b, c):
        (n, values), m = x.shape, xp(x, w)
        y = m.empty((n, *b.shape), x.dtype)
        a = m.zeros((n, len(c)), x.dtype) + c
        h = _sigmoid(a)
        self.starts = []
        for i in range(values):
            if i % CHUNK == 0:
                self.starts.append(a.copy())
            y[:, i] = h @ v[i].T + b[i]
            _step(a, h, x[:, i], w[i], xp(x) is np)
        return y

    def backward(self, gy):
        if recording():
            return self._backward_composed(gy)
        return tuple(Tensor(g) for g in self._backward_arrays(gy.data))

    def _backward_composed(self, gy):
        """The derivative of ``nade_loop``, recorded so that it can be differentiated again."""
        xs = [x * 1.0 for x in self.inputs]  # copies, since one input may have been computed from another
        wanted = [x for x in xs if x.requires_grad]
        found = iter(grad(nade_loop(*xs), wanted, gy, create_graph=True))
        return tuple(next(found) if x.requires_grad else None for x in xs)

    def _backward_arrays(self, gy):
        x, w, v, _, c = (t.data for t in self.inputs)
        (n, values), m = x.shape, xp(x, w)
        gx, gw, gv = m.zeros_like(x), m.zeros_like(w), m.zeros_like(v)
        # The gradient of x is needed where x is zero too; and on a device, finding the zeros would wait for it
        sparse = m is np and not self.inputs[0].requires_grad
        ga, gh = m.zeros((2, n, len(c)), x.dtype)  # of a_i; and the part of the gradient of h_i not yet added to ga
        for start, a in zip(range(0, values, CHUNK)[::-1], self.starts[::-1]):
            chunk, kept = range(start, min(start + CHUNK, values)), []
            a = a.copy()
            h = _sigmoid(a)
            for i in chunk:
                gv[i] = gy[:, i].T @ h
                kept.append(_step(a, h, x[:, i], w[i], sparse))
            for i, (changed, before) in zip(chunk[::-1], kept[::-1]):
                after = h[changed]
                ga_changed = ga[changed] + gh[changed] * after * (1 - after)  # of a_{i+1}
                ga[changed], gh[changed], h[changed] = ga_changed, 0, before
                gw[i] = x[changed, i] @ ga_changed
                gx[changed, i] = ga_changed @ w[i]
                gh += gy[:, i] @ v[i]
        gc = (ga + gh * h * (1 - h)).sum(0)
        return gx, gw, gv, gy.sum(0), gc


def _step(a, h, x_i, w_i, sparse):
    """Update a and h in place with value i; returns the images that changed, and their h before.

    ``sparse``: skip images in which x_i is zero.
    """
    changed = x_i.nonzero()[0] if sparse else slice(None)
    before = h[changed].copy()
    a_new = a[changed] + x_i[changed, None] * w_i
    a[changed], h[changed] = a_new, _sigmoid(a_new)
    return changed, before


def _sigmoid(a):
    """The sigmoid as (1 + tanh(a / 2)) / 2, which is fast and cannot overflow."""
    h = xp(a).tanh(a * 0.5)
    h *= 0.5
    h += 0.5
    return h


def nade_loop(x, w, v, b, c) -> Tensor:
    """``nade_logits`` as a textbook writes it, used by its tests and for its higher derivatives."""
    terms = x.expand_dims(2) * w  # (N, D, H): x_i W_i
    h = sigmoid(cumsum(terms, 1) - terms + c)  # the sum over j < i
    return (h.expand_dims(2) * v).sum(3) + b  # (N, D, K)


def nade_logits(x, w, v, b, c) -> Tensor:
    """Logits (N, D, K) of every value given those before it: y_i = b_i + V_i sigmoid(c + sum_{j<i} x_j W_j).

    x (N, D): the values; w (D, H), v (D, K, H): the weights of H hidden units; b (D, K), c (H,): biases.
    Raises ValueError if shapes do not fit, TypeError if dtypes differ.
    Source: Larochelle and Murray 2011, equations 2 to 4.
    """
    w, v = check.tensor("nade_logits: w", w, "D", "H"), as_tensor(v, "nade_logits: v")
    values, hidden = w.shape
    v = check.tensor("nade_logits: v", v, values, "K", hidden)
    x = check.tensor("nade_logits: x", x, "N", values)
    b, c = check.tensor("nade_logits: b", b, *v.shape[:2]), check.tensor("nade_logits: c", c, hidden)
    if len({t.dtype for t in (x, w, v, b, c)}) > 1 or x.dtype.kind != "f":
        dtypes = ", ".join(str(t.dtype) for t in (x, w, v, b, c))
        raise TypeError(f"nade_logits: x, w, v, b, c are {dtypes}: needs one floating-point dtype")
    return NadeLogits()(x, w, v, b, c)
