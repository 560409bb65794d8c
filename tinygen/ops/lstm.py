"""One recurrence for three layers: an LSTM whose state is a line of cells.

    a_t = gates_t + W * h_{t-1}             a convolution along the line, with zeros beyond its ends
    i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of the four parts of a_t
    c_t = f c_{t-1} + i g,   h_t = o tanh(c_t)

    line of length 1, taps (0,)       the plain LSTM
    taps (-1, 0, 1)                   the Row LSTM: steps are rows, the line is a row
    taps (-1, 0)                      the Diagonal BiLSTM on a skewed image: steps are diagonals, the line is a column

A diagonal of a skewed image covers a span of the line. Only the cells in the span are computed; the others stay zero.

Arrays are laid out (step, channel, line, image). Each step is then one matrix product, (4h, taps * h) times
(taps * h, cells * images), a shift along the line moves contiguous images, and the four gates are contiguous blocks.
"""

import math

from tinygen import check
from tinygen.backend import xp
from tinygen.ops.elementwise import sigmoid, tanh
from tinygen.ops.shape import pad, stack
from tinygen.tensor import Op, Tensor, as_array, as_tensor, grad, recording


class LstmScan(Op):
    def __init__(self, taps, spans):
        self.taps, self.spans = taps, spans

    def forward(self, gates, w, h0, c0):
        steps, _, line, images = gates.shape
        n = h0.shape[0]
        m = xp(gates, w, h0, c0)
        matrix = w.transpose(0, 2, 1).reshape(4 * n, -1)  # (4h, taps * h)
        hs, cs = (m.zeros((steps, n, line, images), gates.dtype) for _ in range(2))
        self.activations = []
        before, c_before = h0, c0  # (h, line, N)
        for t in range(steps):
            span, shape = self._cells(t, images)
            a = m.matmul(matrix, _shifted(before, self.taps, span)).reshape(4 * n, *shape)
            a += gates[t, :, span]  # (4h, cells, N)
            _sigmoid(a[: 2 * n])
            m.tanh(a[2 * n : 3 * n], out=a[2 * n : 3 * n])
            _sigmoid(a[3 * n :])
            i, f, g, o = a = a.reshape(4, n, *shape)  # (h, cells, N) each
            self.activations.append(a)
            h, c = hs[t, :, span], cs[t, :, span]
            m.multiply(f, c_before[:, span], out=c)
            c += i * g
            m.tanh(c, out=h)
            h *= o
            before, c_before = hs[t], cs[t]
        return hs, cs

    def _cells(self, t, images):
        """The span of step t as a slice, and the shape (cells, images) of its part of the state."""
        span = slice(*self.spans[t])
        return span, (span.stop - span.start, images)

    def backward(self, ghs, gcs):
        if recording():
            return self._backward_composed(ghs, gcs)
        return tuple(Tensor(g) for g in self._backward_arrays(*(None if t is None else t.data for t in (ghs, gcs))))

    def _backward_composed(self, ghs, gcs):
        """The derivative of ``lstm_loop``, recorded so that it can be differentiated again."""
        xs = [x * 1.0 for x in self.inputs]  # copies, since one input may have been computed from another
        pairs = [(y, gy) for y, gy in zip(lstm_loop(*xs, self.taps, self.spans), (ghs, gcs)) if gy is not None]
        wanted = [x for x in xs if x.requires_grad]
        found = iter(grad([y for y, _ in pairs], wanted, [gy for _, gy in pairs], create_graph=True))
        return tuple(next(found) if x.requires_grad else None for x in xs)

    def _backward_arrays(self, ghs, gcs):
        _, w, h0, c0 = (x.data for x in self.inputs)
        hs, cs = self.result
        m = xp(w)
        steps, n, line, images = hs.shape
        matrix = w.transpose(0, 2, 1).reshape(4 * n, -1)  # (4h, taps * h)
        ggates = m.zeros((steps, 4, n, line, images), hs.dtype)
        gmatrix = m.zeros_like(matrix)
        gh, gc = m.zeros_like(h0), m.zeros_like(c0)  # (h, line, N)
        for t in reversed(range(steps)):
            span, shape = self._cells(t, images)
            i, f, g, o = a = self.activations[t]  # (h, cells, N) each
            h_before, c_before = (hs[t - 1], cs[t - 1]) if t else (h0, c0)
            gh, gc, tanh_c = gh[:, span], gc[:, span], m.tanh(cs[t, :, span])  # (h, cells, N) each
            if ghs is not None:
                gh = gh + ghs[t, :, span]
            if gcs is not None:
                gc = gc + gcs[t, :, span]
            gc = gc + gh * o * (1 - tanh_c * tanh_c)  # h = o tanh(c)
            ga = 1 - a  # (4, h, cells, N), the gradient of a_t: sigmoid' = y (1 - y), tanh' = 1 - y^2
            ga *= a
            m.subtract(1, g * g, out=ga[2])
            ga[0] *= gc * g
            ga[1] *= gc * c_before[:, span]
            ga[2] *= gc * i
            ga[3] *= gh * tanh_c
            ggates[t, :, :, span] = ga
            ga = ga.reshape(4 * n, math.prod(shape))  # (4h, cells * N)
            gmatrix += ga @ _shifted(h_before, self.taps, span).T
            gh = _unshifted((matrix.T @ ga).reshape(len(self.taps), n, *shape), self.taps, span, line)
            here, gc = gc * f, m.zeros((n, line, images), hs.dtype)  # c = f c_before + i g
            gc[:, span] = here
        gw = gmatrix.reshape(4 * n, len(self.taps), n).transpose(0, 2, 1)
        return ggates.reshape(steps, 4 * n, line, images), gw, gh, gc


def _sigmoid(a):
    """The sigmoid in place, as (1 + tanh(a / 2)) / 2: faster than ``ops.sigmoid``, less accurate where it is near 0."""
    a *= 0.5
    xp(a).tanh(a, out=a)
    a *= 0.5
    a += 0.5


def _shifted(h, taps, span):
    """The state that each tap sees: (h, line, images) -> (taps * h, cells of the span * images)."""
    n, line, images = h.shape
    cells = span.stop - span.start
    seen = xp(h).zeros((len(taps), n, cells, images), h.dtype)
    for k, tap in enumerate(taps):
        here, there = _overlap(tap, line, span)
        seen[k, :, here] = h[:, there]
    return seen.reshape(len(taps) * n, cells * images)


def _unshifted(g, taps, span, line):
    """The derivative of ``_shifted``: (taps, h, cells of the span, images) -> (h, line, images)."""
    _, n, _, images = g.shape
    total = xp(g).zeros((n, line, images), g.dtype)
    for k, tap in enumerate(taps):
        here, there = _overlap(tap, line, span)
        total[:, there] += g[k, :, here]
    return total


def _overlap(tap, line, span):
    """Two slices: the cells of the span that have a neighbour at offset ``tap``, and these neighbours in the line."""
    start = max(span.start, -tap)
    stop = max(start, min(span.stop, line - tap))
    return slice(start - span.start, stop - span.start), slice(start + tap, stop + tap)


def lstm_loop(gates, w, h0, c0, taps=(0,), spans=None) -> tuple[Tensor, Tensor]:
    """``lstm_scan`` as a textbook writes it, used by its tests and for its higher derivatives."""
    taps = check.counts("lstm_loop: taps", taps, smallest=-(10**6))
    gates, w, c0 = (as_tensor(x, "lstm_loop: an input") for x in (gates, w, c0))
    h0 = check.tensor("lstm_loop: h0", h0, "h", "line", "N")
    n, line, images = h0.shape
    reach = max(abs(tap) for tap in taps)
    h, c, hs, cs = h0, c0, [], []
    for t in range(gates.shape[0]):
        wide = pad(h, ((0, 0), (reach, reach), (0, 0)))  # (h, line + 2 reach, N)
        a = gates[t]  # (4h, line, N)
        for k, tap in enumerate(taps):
            seen = wide[:, reach + tap : reach + tap + line]  # (h, line, N)
            a = a + (w[:, :, k] @ seen.reshape(n, line * images)).reshape(4 * n, line, images)
        start, stop = (0, line) if spans is None else spans[t]
        a, c = a[:, start:stop], c[:, start:stop]
        i, f, g, o = (sigmoid(a[:n]), sigmoid(a[n : 2 * n]), tanh(a[2 * n : 3 * n]), sigmoid(a[3 * n :]))
        c = f * c + i * g
        h = o * tanh(c)
        h, c = (pad(s, ((0, 0), (start, line - stop), (0, 0))) for s in (h, c))
        hs.append(h)
        cs.append(c)
    return stack(hs), stack(cs)


def lstm_scan(
    gates, w, h0, c0, taps: tuple[int, ...] = (0,), spans: list[tuple[int, int]] | None = None
) -> tuple[Tensor, Tensor]:
    """An LSTM over a line of cells, as one fused operation; the module's docstring has its equations.

    gates (T, 4h, line, N): the input-to-state part with the bias, in the order i, f, g, o.
    w (4h, h, taps): the state-to-state weights. h0, c0 (h, line, N): the state before the first step.
    ``taps``: the offsets of the cells that a cell sees. ``spans``: (start, stop) for each step, the part of the line
    that is computed; h and c are zero elsewhere. Result: h and c after each step, both (T, h, line, N).
    Raises ValueError if shapes or spans do not fit, TypeError if dtypes differ.
    Source: Hochreiter and Schmidhuber 1997, with forget gates; van den Oord et al. 2016, equation 3.
    """
    taps = check.counts("lstm_scan: taps", taps, smallest=-(10**6))
    h0 = check.tensor("lstm_scan: h0", h0, "h", "line", "N")
    n = h0.shape[0]
    gates = check.tensor("lstm_scan: gates", gates, "T", 4 * n, *h0.shape[1:])
    w, c0 = check.tensor("lstm_scan: w", w, 4 * n, n, len(taps)), check.tensor("lstm_scan: c0", c0, *h0.shape)
    if len({x.dtype for x in (gates, w, h0, c0)}) > 1:
        raise TypeError(
            f"lstm_scan: gates, w, h0, c0 are {gates.dtype}, {w.dtype}, {h0.dtype}, {c0.dtype}: needs one dtype"
        )
    if gates.shape[0] == 0:
        raise ValueError("lstm_scan: gates has no steps")
    steps, line = gates.shape[0], h0.shape[1]
    ends = as_array([(0, line)] * steps if spans is None else spans, "lstm_scan: spans")
    whole = ends.shape == (steps, 2) and ends.dtype.kind in "iu"
    if not whole or not all(0 <= start <= stop <= line for start, stop in ends):
        raise ValueError(f"lstm_scan: spans {spans}, needs {steps} (start, stop) within the line of {line}")
    return LstmScan(taps, ends.tolist())(gates, w, h0, c0)
