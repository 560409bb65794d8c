"""The fused LSTM against the textbook loop, and both against a loop over every cell."""

import numpy as np
import pytest

from tinygen import Tensor, grad, gradcheck, no_grad, ops
from tinygen.backend import to_device

SHAPES = {  # taps: steps, hidden, line, images
    "plain": ((0,), 4, 3, 1, 2),
    "plain on a line": ((0,), 2, 2, 3, 2),
    "row": ((-1, 0, 1), 3, 2, 4, 2),
    "diagonal": ((-1, 0), 3, 2, 3, 2),
    "one step": ((-1, 0), 1, 2, 3, 2),
    "one cell": ((-1, 0, 1), 2, 3, 1, 1),
    "no images": ((-1, 0), 2, 3, 2, 0),
    "far": ((-2, 1), 3, 2, 4, 1),
    "beyond the line": ((-3, 0), 2, 2, 2, 2),
    "aside only": ((1,), 2, 2, 3, 1),
}
each_shape = pytest.mark.parametrize("taps,steps,hidden,line,images", SHAPES.values(), ids=SHAPES)


def draw(rng, taps, steps, hidden, line, images, dtype=np.float64):
    """gates, w, h0, c0"""
    shapes = (steps, 4 * hidden, line, images), (4 * hidden, hidden, len(taps)), *[(hidden, line, images)] * 2
    return tuple(rng.standard_normal(s).astype(dtype) for s in shapes)


def leaves(arrays, device="cpu"):
    return [Tensor(to_device(a, device), requires_grad=True) for a in arrays]


def cell_by_cell(gates, w, h0, c0, taps, spans=None):
    """Every cell of every image on its own, written from the equations; zero outside of the spans."""
    hs, cs = np.zeros((2, len(gates), *h0.shape))
    hidden, line, images = h0.shape
    h, c = h0, c0
    for t in range(len(gates)):
        for position, n in np.ndindex(line, images):
            if spans is not None and position not in range(*spans[t]):
                continue
            a = gates[t, :, position, n].copy()
            for k, tap in enumerate(taps):
                if 0 <= position + tap < line:
                    a += w[:, :, k] @ h[:, position + tap, n]
            i, f, g, o = a.reshape(4, hidden)
            i, f, o = (1 / (1 + np.exp(-v)) for v in (i, f, o))
            cs[t, :, position, n] = f * c[:, position, n] + i * np.tanh(g)
            hs[t, :, position, n] = o * np.tanh(cs[t, :, position, n])
        h, c = hs[t], cs[t]
    return hs, cs


@each_shape
@pytest.mark.parametrize("operation", [ops.lstm_scan, ops.lstm_loop])
def test_values(operation, taps, steps, hidden, line, images, rng, device):
    arrays = draw(rng, taps, steps, hidden, line, images)
    for found, expected in zip(operation(*leaves(arrays, device), taps), cell_by_cell(*arrays, taps)):
        assert found.shape == expected.shape and found.device == device
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-14)


def test_one_step_by_hand():
    """Gates 0: i = f = o = 1/2, g = tanh(0) = 0, so c = c0 / 2 and h = tanh(c) / 2. The gates' order: i, f, g, o."""
    zeros = np.zeros((1, 4, 1, 1)), np.zeros((4, 1, 1)), np.zeros((1, 1, 1)), np.ones((1, 1, 1))
    h, c = ops.lstm_scan(*leaves(zeros))
    assert c.item() == 0.5 and h.item() == pytest.approx(np.tanh(0.5) / 2)
    for gate, cell, state in [  # one gate at +50 opens it
        (0, 0.5, np.tanh(0.5) / 2),
        (1, 1.0, np.tanh(1.0) / 2),
        (2, 1.0, np.tanh(1.0) / 2),
        (3, 0.5, np.tanh(0.5)),
    ]:
        gates = np.zeros((1, 4, 1, 1))
        gates[0, gate] = 50
        h, c = ops.lstm_scan(*leaves((gates, *zeros[1:])))
        assert c.item() == pytest.approx(cell) and h.item() == pytest.approx(state)


@each_shape
def test_derivatives(taps, steps, hidden, line, images, rng):
    arrays = draw(rng, taps, steps, hidden, line, images)
    gradcheck(lambda *xs: ops.lstm_scan(*xs, taps), arrays, order=2, rng=rng)


@each_shape
@pytest.mark.parametrize("used", ["h and c", "h", "c", "last h"])
def test_the_fused_derivative_is_the_loops(used, taps, steps, hidden, line, images, rng, device):
    """gradcheck with recording tests the loop's derivative; the fused one runs only without recording."""
    arrays = draw(rng, taps, steps, hidden, line, images)
    v, u = (to_device(rng.standard_normal((steps, hidden, line, images)), device) for _ in range(2))
    found = []
    for operation in ops.lstm_scan, ops.lstm_loop:
        xs = leaves(arrays, device)
        h, c = operation(*xs, taps)
        score = {
            "h and c": lambda h=h, c=c: (h * v).sum() + (c * u).sum(),
            "h": lambda h=h: (h * v).sum(),
            "c": lambda c=c: (c * u).sum(),
            "last h": lambda h=h: (h[-1] * v[0]).sum(),
        }[used]()
        found.append(grad(score, xs))
    for fused, loop in zip(*found):
        np.testing.assert_allclose(fused.numpy(), loop.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 1), (1, 2), (0, 3)])
@pytest.mark.parametrize("create_graph", [False, True])
def test_some_inputs_are_constant(wanted, create_graph, rng):
    arrays = draw(rng, (-1, 0), 3, 2, 3, 2)
    every = leaves(arrays)
    h, c = ops.lstm_scan(*every, (-1, 0))
    expected = grad((h * c).sum(), every)
    xs = [Tensor(a, requires_grad=i in wanted) for i, a in enumerate(arrays)]
    h, c = ops.lstm_scan(*xs, (-1, 0))
    found = grad((h * c).sum(), [xs[i] for i in wanted], create_graph=create_graph)
    for i, g in zip(wanted, found):
        np.testing.assert_allclose(g.numpy(), expected[i].numpy(), rtol=1e-10, atol=1e-12)


def test_twice_the_same_and_inputs_left_alone(rng):
    """The derivative may read what the forward pass stored, but not change it."""
    arrays = draw(rng, (-1, 0, 1), 4, 3, 3, 2)
    before = [a.copy() for a in arrays]
    xs = leaves(arrays)
    h, c = ops.lstm_scan(*xs, (-1, 0, 1))
    values = h.numpy().copy(), c.numpy().copy()
    cotangents = [rng.standard_normal(h.shape) for _ in range(2)]
    kept = [v.copy() for v in cotangents]
    first, second = (grad([h, c], xs, cotangents) for _ in range(2))
    for g, again in zip(first, second):
        assert np.array_equal(g.numpy(), again.numpy())
    for a, b in zip((*arrays, h.data, c.data, *cotangents), (*before, *values, *kept)):
        assert np.array_equal(a, b)


def test_gradients_share_no_memory(rng):
    xs = leaves(draw(rng, (0,), 2, 2, 1, 2))
    h, c = ops.lstm_scan(*xs)
    (h.sum() + c.sum()).backward()
    for i, x in enumerate(xs):
        assert not any(np.shares_memory(x.grad.data, y.grad.data) for y in xs[i + 1 :])


def test_scans_joined_are_one_scan(rng):
    """Three steps and then four from their state equal a scan of seven; derivatives too."""
    taps = (-1, 0)
    gates, w, h0, c0 = leaves(draw(rng, taps, 7, 2, 3, 2))
    h, c = ops.lstm_scan(gates, w, h0, c0, taps)
    h1, c1 = ops.lstm_scan(gates[:3], w, h0, c0, taps)
    h2, c2 = ops.lstm_scan(gates[3:], w, h1[-1], c1[-1], taps)
    for whole, parts in (h, (h1, h2)), (c, (c1, c2)):
        np.testing.assert_allclose(whole.numpy(), ops.concatenate(parts).numpy(), rtol=1e-12)
    for one, two in zip(grad(h[-1].sum(), [gates, w, h0, c0]), grad(h2[-1].sum(), [gates, w, h0, c0])):
        np.testing.assert_allclose(one.numpy(), two.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("taps", [(0,), (-1, 0), (-1, 0, 1)])
def test_reach(taps, rng):
    """Step t sees exactly the cells of h0 that t + 1 taps reach."""
    steps, line = 3, 9
    gates, w, h0, c0 = leaves(draw(rng, taps, steps, 2, line, 1))
    h, _ = ops.lstm_scan(gates, w, h0, c0, taps)
    (g,) = grad(h[-1, :, 4].sum(), h0)
    seen = set(np.flatnonzero(np.abs(g.numpy()).sum((0, 2))).tolist())
    assert seen == set(range(4 + steps * min(taps), 4 + steps * max(taps) + 1))


def test_images_do_not_meet(rng):
    gates, w, h0, c0 = leaves(draw(rng, (-1, 0, 1), 3, 2, 4, 3))
    h, _ = ops.lstm_scan(gates, w, h0, c0, (-1, 0, 1))
    g = grad(h[:, :, :, 1].sum(), gates)[0].numpy()
    assert (g[..., 1] != 0).any() and (g[..., 0] == 0).all() and (g[..., 2] == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("far", [50.0, 1000.0])
def test_far_from_zero(far, dtype, rng, device):
    gates, w, h0, c0 = draw(rng, (0,), 3, 2, 1, 4, dtype)
    xs = leaves((np.sign(gates) * dtype(far), w, h0, c0), device)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        h, c = ops.lstm_scan(*xs)
        gradients = grad((h * h).sum() + c.sum(), xs)
    assert all(np.isfinite(t.numpy()).all() and t.dtype == dtype for t in (h, c, *gradients))


def test_without_recording(rng):
    xs = leaves(draw(rng, (-1, 0), 3, 2, 3, 2))
    with no_grad():
        h, c = ops.lstm_scan(*xs, (-1, 0))
    assert not h.requires_grad and not c.requires_grad
    assert np.array_equal(h.numpy(), ops.lstm_scan(*xs, (-1, 0))[0].numpy())


def test_a_strided_view_counts_by_its_values(rng):
    gates, w, h0, c0 = draw(rng, (-1, 0), 4, 2, 3, 2)
    views = gates[::-1], w[:, ::-1], np.asfortranarray(h0), np.broadcast_to(c0[:, :1], c0.shape)
    h, c = ops.lstm_scan(*leaves(views), (-1, 0))
    for found, expected in zip((h, c), cell_by_cell(*views, (-1, 0))):
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


SPANS = {  # taps, line, spans
    "a diagonal scan": ((-1, 0), 3, [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]),
    "gaps": ((-1, 0, 1), 4, [(1, 3), (0, 4), (3, 4), (0, 1), (0, 4)]),
    "far": ((-2, 1), 4, [(0, 2), (2, 4), (1, 3)]),
    "beyond": ((-3, 4), 3, [(0, 1), (1, 3)]),
    "an array": ((-1, 0), 2, np.array([(0, 2), (0, 1)])),
    "none": ((-1, 0), 3, [(0, 2), (1, 1), (0, 3)]),
    "an empty line": ((-1, 0), 0, [(0, 0), (0, 0)]),
}


@pytest.mark.parametrize("taps,line,spans", SPANS.values(), ids=SPANS)
def test_outside_of_the_spans_states_are_zero(taps, line, spans, rng, device):
    arrays = draw(rng, taps, len(spans), 2, line, 2)
    expected = cell_by_cell(*arrays, taps, spans)
    for operation in ops.lstm_scan, ops.lstm_loop:
        for found, right in zip(operation(*leaves(arrays, device), taps, spans), expected):
            np.testing.assert_allclose(found.numpy(), right, rtol=1e-12, atol=1e-14)
    cotangents = [to_device(rng.standard_normal(right.shape), device) for right in expected]
    for used in (slice(0, 2), slice(0, 1), slice(1, 2)):  # h and c, h, c
        found = []
        for operation in ops.lstm_scan, ops.lstm_loop:
            xs = leaves(arrays, device)
            found.append(grad(operation(*xs, taps, spans)[used], xs, cotangents[used]))
        for fused, loop in zip(*found):
            np.testing.assert_allclose(fused.numpy(), loop.numpy(), rtol=1e-9, atol=1e-12)
    gradcheck(lambda *xs: ops.lstm_scan(*xs, taps, spans), arrays, order=2, rng=rng)


@pytest.mark.parametrize("operation", [ops.lstm_scan, ops.lstm_loop])
def test_what_lies_outside_of_the_spans_counts_for_nothing(operation, rng):
    taps, line, spans = SPANS["gaps"]
    gates, *others = draw(rng, taps, len(spans), 2, line, 2)
    right = operation(*leaves((gates, *others)), taps, spans)
    for t, (start, stop) in enumerate(spans):
        gates[t, :, :start] = gates[t, :, stop:] = np.nan
    for found, expected in zip(operation(*leaves((gates, *others)), taps, spans), right):
        np.testing.assert_array_equal(found.data, expected.data)


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 3)] * 2,
        [(0, 3), (0, 3), (1, 4)],
        [(0, 3), (2, 1), (0, 3)],
        [(-1, 2)] * 3,
        [(0, 2.0)] * 3,
        [(0, 1, 2)] * 3,
        [1, 2, 3],
    ],
)
def test_spans_that_do_not_fit_are_refused(spans, rng):
    with pytest.raises(ValueError, match=r"lstm_scan: spans .* needs 3 \(start, stop\) within the line of 3"):
        ops.lstm_scan(*leaves(draw(rng, (0,), 3, 2, 3, 2)), (0,), spans)


REFUSED = {  # which input, its shape, the message
    "gates' channels": (0, (3, 7, 3, 2), r"lstm_scan: gates has shape \(3, 7, 3, 2\)"),
    "gates' line": (0, (3, 8, 4, 2), r"lstm_scan: gates has shape \(3, 8, 4, 2\)"),
    "gates' axes": (0, (3, 8, 3), r"lstm_scan: gates has shape \(3, 8, 3\)"),
    "w's taps": (1, (8, 2, 3), r"lstm_scan: w has shape \(8, 2, 3\)"),
    "w's rows": (1, (6, 2, 2), r"lstm_scan: w has shape \(6, 2, 2\)"),
    "c0": (3, (2, 3, 1), r"lstm_scan: c0 has shape \(2, 3, 1\)"),
    "no steps": (0, (0, 8, 3, 2), r"lstm_scan: gates has no steps"),
}


@pytest.mark.parametrize("which,shape,message", REFUSED.values(), ids=REFUSED)
def test_a_refusal_says_what_it_got(which, shape, message, rng):
    arrays = list(draw(rng, (-1, 0), 3, 2, 3, 2))
    arrays[which] = np.ones(shape)
    with pytest.raises(ValueError, match=message):
        ops.lstm_scan(*leaves(arrays), (-1, 0))


def test_nothing_is_copied_from_the_device_or_waited_for(rng, strict):
    xs = leaves(draw(rng, (-1, 0, 1), 3, 2, 4, 2, np.float32), "cuda")
    strict.count.clear()
    for spans in None, [(0, 2), (1, 4), (2, 3)]:
        for twice in False, True:
            h, c = ops.lstm_scan(*xs, (-1, 0, 1), spans)
            grad((h * c).sum(), xs, create_graph=twice)
    assert not +strict.count


def test_a_tap_longer_than_the_line_sees_nothing(rng):
    arrays = [rng.standard_normal(shape) for shape in [(3, 8, 2, 2), (8, 2, 2), (2, 2, 2), (2, 2, 2)]]
    for taps in [(-3, 0), (0, 5)]:
        for ours, textbook in zip(ops.lstm_scan(*map(Tensor, arrays), taps), ops.lstm_loop(*map(Tensor, arrays), taps)):
            np.testing.assert_allclose(ours.data, textbook.data, atol=1e-14)
        gradcheck(lambda *a, taps=taps: ops.lstm_scan(*a, taps), arrays)


def test_inputs_that_depend_on_each_other(rng):
    """Each path counts once, recorded too: c0 is h0 or computed from it, the gates depend on the weights."""
    gates, w, h0 = (rng.standard_normal(shape) for shape in ((2, 8, 3, 2), (8, 2, 1), (2, 3, 2)))
    gradcheck(lambda g, w, h: ops.lstm_scan(g, w, h, h), (gates, w, h0))
    gradcheck(lambda g, w, h: ops.lstm_scan(g + w.sum(), w, h, 2 * h), (gates, w, h0))
