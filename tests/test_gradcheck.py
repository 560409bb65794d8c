"""gradcheck passes right derivatives and, for every family of operations, catches wrong ones and names the entry."""

import re

import numpy as np
import pytest

from tinygen import Op, Tensor, gradcheck, ops
from tinygen.nn import BatchNorm, Conv2d, Linear
from tinygen.ops import conv, elementwise, lstm, reduce, shape
from tinygen.ops.matmul import Matmul
from tinygen.tensor import recording

ROW = re.compile(r"^ *(\d+) +(\([\d, ]*\)) +(\S+) +(\S+) +(\S+)$", re.MULTILINE)  # input, index, analytic, ...


def table(error):
    """[(input, index, analytic, numeric, relative error)], worst first."""
    return [(int(i), eval(index), float(a), float(n), float(e)) for i, index, a, n, e in ROW.findall(str(error))]


def order_of(error):
    return int(re.search(r"derivative of order (\d)", str(error))[1])


def normal(*shapes):
    rng = np.random.default_rng(7)
    return tuple(rng.standard_normal(s) for s in shapes)


LABELS = np.array([0, 2])
FAMILIES = {  # an operation of each family, differentiable twice with a derivative that depends on its input
    "unary": (ops.exp, normal((2, 3))),
    "saved output": (ops.tanh, normal((2, 3))),
    "saved input": (lambda x: ops.log(x), tuple(np.exp(x) for x in normal((2, 3)))),
    "binary": (ops.mul, normal((2, 3), (2, 3))),
    "broadcast": (ops.div, (normal((2, 3))[0], np.array([1.5, -2, 3]))),
    "softmax": (ops.softmax, normal((2, 3))),
    "log_softmax": (ops.log_softmax, normal((2, 3))),
    "logsumexp": (lambda x: ops.logsumexp(x, 1), normal((2, 3))),
    "matmul": (ops.matmul, normal((2, 3), (3, 2))),
    "batched matmul": (ops.matmul, normal((3, 2, 3), (3, 2))),
    "conv2d": (lambda x, w: ops.conv2d(x, w, padding=1), normal((1, 2, 3, 3), (2, 2, 3, 3))),
    "conv2d's bias": (lambda x, w, b: ops.conv2d(x, w, b), normal((1, 1, 3, 3), (1, 1, 2, 2), (1,))),
    "conv_transpose2d": (lambda x, w: ops.conv_transpose2d(x, w, stride=2), normal((1, 2, 2, 2), (2, 1, 3, 3))),
    "conv_filter_grad": (lambda x, g: ops.conv_filter_grad(x, g, 2), normal((1, 1, 3, 3), (1, 2, 2, 2))),
    "lstm_scan": (lambda *xs: ops.lstm_scan(*xs, (-1, 0)), normal((2, 4, 2, 1), (4, 1, 2), (1, 2, 1), (1, 2, 1))),
    "bce": (ops.bce_with_logits, normal((2, 3), (2, 3))),
    "cross entropy": (lambda x: ops.softmax_cross_entropy(x, LABELS), normal((2, 3))),
}
LINEAR = {  # their derivative depends on the cotangent alone
    "sum": (lambda x: ops.sum(x, 1), normal((2, 3))),
    "max": (lambda x: ops.max(x, 1), normal((2, 3))),
    "reshape": (lambda x: x.reshape(3, 2), normal((2, 3))),
    "transpose": (ops.transpose, normal((2, 3))),
    "slice": (lambda x: x[:, 1:], normal((2, 3))),
    "gather": (lambda x: x[np.array([0, 0, 1])], normal((2, 3))),
    "concatenate": (lambda *xs: ops.concatenate(xs), normal((2, 3), (1, 3))),
    "pad": (lambda x: ops.pad(x, [(1, 0), (0, 2)]), normal((2, 3))),
    "flip": (lambda x: ops.flip(x, 0), normal((2, 3))),
    "broadcast_to": (lambda x: ops.broadcast_to(x, (2, 2, 3)), normal((2, 3))),
    "sum_to": (lambda x: ops.sum_to(x, (1, 3)), normal((2, 3))),
    "skew": (ops.skew, normal((2, 3))),
    "unskew": (ops.unskew, normal((2, 3))),
    "add": (ops.add, normal((2, 3), (3,))),
    "sub": (ops.sub, normal((2, 3), (3,))),
    "where": (lambda x, y: ops.where(np.eye(2, dtype=bool), x, y), normal((2, 2), (2, 2))),
    "maximum": (ops.maximum, normal((2, 2), (2, 2))),
    "relu": (ops.relu, normal((2, 3))),
    "leaky_relu": (ops.leaky_relu, normal((2, 3))),
    "clip": (lambda x: ops.clip(x, -0.5, 0.5), normal((2, 3))),
    "abs": (ops.abs, normal((2, 3))),
}
each_family = pytest.mark.parametrize("function,inputs", (FAMILIES | LINEAR).values(), ids=FAMILIES | LINEAR)


def planted(function, corrupt):
    """``function`` whose last operation passes its first input's gradient through ``corrupt``."""

    def wrong(*xs):
        result = function(*xs)
        op = (result[0] if isinstance(result, tuple) else result)._op
        right = op.backward

        def backward(*gys):
            gxs = right(*gys)
            first, *others = gxs if isinstance(gxs, tuple) else (gxs,)
            return corrupt(first), *others

        op.backward = backward  # of this one step: gradcheck itself multiplies, adds and sums
        return result

    return wrong


@each_family
def test_right_derivatives_pass(function, inputs):
    gradcheck(function, inputs, order=3)


@each_family
@pytest.mark.parametrize("factor", [-1, 0.5, 1.001, 0], ids=["sign", "half", "a thousandth", "zero"])
def test_a_wrong_sign_or_scale_is_caught(function, inputs, factor):
    with pytest.raises(AssertionError) as caught:
        gradcheck(planted(function, lambda g: g * factor), inputs)
    assert order_of(caught.value) == 1
    which, index, analytic, numeric, relative = table(caught.value)[0]
    assert 0 <= which < len(inputs) and len(index) == inputs[which].ndim
    assert relative == pytest.approx(abs(analytic - numeric) / max(abs(analytic), abs(numeric)), rel=0.05)


@each_family
def test_one_wrong_entry_is_named(function, inputs):
    """The table's first row names the wrong entry, with its right and its wrong value."""
    xs = [Tensor(x, requires_grad=True) for x in inputs]
    result = function(*xs)
    total = sum(((y * 1.7).sum() for y in (result if isinstance(result, tuple) else (result,))), 0.0)
    total.backward()
    wrong_at = np.unravel_index(np.abs(xs[0].grad.data).argmax(), inputs[0].shape)  # some entries have no derivative
    factor = np.ones(inputs[0].shape)
    factor[wrong_at] = 2
    with pytest.raises(AssertionError) as caught:
        gradcheck(planted(function, lambda g: g * factor), inputs)
    rows = table(caught.value)
    which, index, analytic, numeric, relative = rows[0]
    assert (which, index) == (0, wrong_at)
    assert analytic == pytest.approx(2 * numeric, rel=1e-4) and relative == pytest.approx(0.5, abs=0.01)
    assert all(row[-1] < 1e-3 for row in rows[1:])


@pytest.mark.parametrize("function,inputs", FAMILIES.values(), ids=FAMILIES)
def test_a_derivative_that_is_right_but_not_differentiable_is_caught_at_order_2(function, inputs):
    wrong = planted(function, lambda g: g.detach())
    gradcheck(wrong, inputs, order=1)
    with pytest.raises(AssertionError) as caught:
        gradcheck(wrong, inputs, order=2)
    assert order_of(caught.value) == 2


# Mistakes as they are made: (where, what to put there, what uses it)


def tanh_detached(self, gy):
    y = self.output.detach()
    return gy * (1 - y * y)


def softmax_elementwise(self, gy):
    y = self.output
    return gy * y * (1 - y)


def sum_to_first(self, x):
    added = x.ndim - len(self.shape)
    x = x[(0,) * added]
    return x[tuple(slice(0, n) for n in self.shape)]


def scatter_without_adding(self, x):
    y = np.zeros(self.shape)
    y[self.index] = x
    return y


def matmul_untransposed(self, gy):
    x, y = self.inputs
    return gy @ y, x @ gy


def max_to_all_ties(self, gy):
    return self.spread(gy) * Tensor(self.inputs[0].data == self.spread(self.output.detach()).data)


def pow_off_by_one(self, gy, x, y):
    return gy * (y * x**y)


def concatenate_swapped(self, gy):
    n = self.inputs[0].shape[0]
    return gy[n:], gy[:n]


MISTAKES = {
    "a detached output": (elementwise.Tanh, "backward", tanh_detached, ops.tanh, normal((2, 3)), 2),
    "no cross terms": (reduce.Softmax, "backward", softmax_elementwise, ops.softmax, normal((2, 3)), 1),
    "rows not summed": (shape.SumTo, "forward", sum_to_first, ops.add, normal((2, 3), (3,)), 1),
    "a column not summed": (shape.SumTo, "forward", sum_to_first, ops.mul, normal((2, 3), (2, 1)), 1),
    "repeated indices not added": (
        *(shape.Scatter, "forward", scatter_without_adding),
        *(lambda x: x[np.array([1, 0, 1])], normal((2, 3)), 1),
    ),
    "not transposed": (Matmul, "backward", matmul_untransposed, ops.matmul, normal((2, 2), (2, 2)), 1),
    "a power": (elementwise.Pow, "dx", pow_off_by_one, lambda x: x**3, normal((2, 3)), 1),
    "parts swapped": (
        *(shape.Concatenate, "backward", concatenate_swapped),
        *(lambda x, y: ops.concatenate([x, y]), normal((2, 3), (2, 3)), 1),
    ),
}


@pytest.mark.parametrize("op,method,wrong,function,inputs,order", MISTAKES.values(), ids=MISTAKES)
def test_typical_mistakes(op, method, wrong, function, inputs, order, monkeypatch):
    gradcheck(function, inputs)
    monkeypatch.setattr(op, method, wrong)
    with pytest.raises(AssertionError) as caught:
        gradcheck(function, inputs)
    assert order_of(caught.value) == order


def test_a_missing_sum_that_changes_the_shape_says_so(monkeypatch):
    monkeypatch.setattr(elementwise.Binary, "backward", lambda self, gy: (gy, gy))
    with pytest.raises(ValueError, match=r"Add.backward gave \(2, 3\) for an input of shape \(3,\)"):
        gradcheck(ops.add, normal((2, 3), (3,)))


def test_a_gradient_that_is_zero_for_a_cotangent_of_ones_is_checked(monkeypatch):
    """sum(softmax(x)) is constant: with a cotangent of ones its wrong derivative 0 would pass."""
    monkeypatch.setattr(reduce.Softmax, "backward", lambda self, gy: gy * self.output * 0)
    with pytest.raises(AssertionError):
        gradcheck(ops.softmax, normal((2, 3)))


def test_nan_is_an_error():
    with pytest.raises(AssertionError) as caught:
        gradcheck(planted(ops.exp, lambda g: g * np.array([1, np.nan])), normal((2,)))
    assert table(caught.value)[0][:2] == (0, (1,))


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("recorded", [False, True])
def test_an_infinite_derivative_is_an_error(value, recorded):
    """An infinite derivative fails, recorded or not: no tolerance is as large."""
    for wrong in value, np.array([0.0, 0.0, value]):
        with pytest.raises(AssertionError, match=f"create_graph={recorded}"):
            gradcheck(
                planted(ops.exp, lambda g, wrong=wrong: g + wrong if recording() is recorded else g), normal((3,))
            )


def test_the_wrong_input_of_several_is_named():
    wrong = planted(ops.mul, lambda g: g * 2)
    with pytest.raises(AssertionError) as caught:
        gradcheck(lambda x, y, z: wrong(y, x) + ops.exp(z), normal((2,), (2,), (2,)))
    rows = table(caught.value)
    assert {row[0] for row in rows if row[-1] > 0.4} == {1} and {row[0] for row in rows} == {0, 1, 2}


def test_rounding_does_not_rank_above_a_mistake():
    """The second input's derivative is 0 but for rounding, all of it "relative error"."""
    wrong = planted(ops.exp, lambda g: g * 1.5)
    with pytest.raises(AssertionError) as caught:
        gradcheck(lambda x, y: wrong(x) + 100 * (ops.log(ops.exp(y)) - y), normal((3,), (3,)))
    assert [row[0] for row in table(caught.value)] == [0, 0, 0, 1, 1, 1]


def test_the_wrong_output_of_several_is_caught():
    gradcheck(lambda x: (ops.exp(x), ops.tanh(x)), normal((2, 3)))
    gradcheck(lambda x: [ops.exp(x), ops.tanh(x)], normal((2, 3)))
    wrong = planted(ops.tanh, lambda g: g * 1.01)
    with pytest.raises(AssertionError):
        gradcheck(lambda x: (ops.exp(x), wrong(x)), normal((2, 3)))


def test_an_input_that_is_not_used_has_derivative_zero():
    gradcheck(lambda x, y: ops.exp(x), normal((2,), (3,)))


def test_a_function_of_no_input_raises():
    for function in (lambda x: Tensor(np.ones(2))), (lambda x: ops.exp(x.detach())):
        with pytest.raises(ValueError, match="no output of fn depends"):
            gradcheck(function, normal((2,)))


def test_a_lost_connection_is_caught():
    """The derivative along one of two paths from x to the result is missing."""
    with pytest.raises(AssertionError):
        gradcheck(lambda x: x + ops.exp(x.detach()), normal((2,)))


def test_inputs_of_any_shape_and_dtype():
    gradcheck(ops.exp, 1.5)
    gradcheck(ops.exp, np.array([1, 2]))  # computed in float64
    gradcheck(ops.exp, [np.float32(1.5)])
    gradcheck(ops.exp, Tensor([1.5], requires_grad=True))
    gradcheck(ops.exp, np.zeros((0, 3)))
    gradcheck(ops.mul, (np.zeros((2, 1)), 3.0))


def test_inputs_are_left_alone():
    (x,) = normal((2, 3))
    before = x.copy()
    gradcheck(lambda x: x * x, x)
    assert np.array_equal(x, before)


def test_float32_inside_is_caught():
    """An operation must keep float64: rounding to float32, 1e-7, is far above the tolerance."""
    with pytest.raises(AssertionError):
        gradcheck(lambda x: ops.exp(x.astype(np.float32)), normal((2, 3)))


def test_large_and_small_functions(rng):
    (x,) = normal((2, 3))
    for scale in 1e-4, 1.0, 1e6:
        gradcheck(lambda x, scale=scale: ops.tanh(x) * scale, x, rng=rng)


# -- what training runs, where that is other code than what is recorded

FUSED = {
    "conv2d": (conv.Conv2d, lambda x, w: ops.conv2d(x, w, padding=1), normal((1, 2, 3, 3), (2, 2, 3, 3))),
    "conv_transpose2d": (
        *(conv.ConvTranspose2d, lambda x, w: ops.conv_transpose2d(x, w, stride=2)),
        normal((1, 2, 2, 2), (2, 1, 3, 3)),
    ),
    "lstm_scan": (
        *(lstm.LstmScan, lambda *xs: ops.lstm_scan(*xs, (-1, 0))),
        normal((2, 4, 2, 1), (4, 1, 2), (1, 2, 1), (1, 2, 1)),
    ),
}


@pytest.mark.parametrize("op,function,inputs", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("recorded", [False, True], ids=["as training runs it", "as recorded"])
@pytest.mark.parametrize("which", [0, 1], ids=["input", "weights"])
def test_both_ways_are_checked(op, function, inputs, recorded, which, monkeypatch):
    """The derivative of one input is tripled, either when recorded or when not."""
    right = op.backward

    def backward(self, *gys):
        gxs = list(right(self, *gys))
        if recording() is recorded:
            gxs[which] = gxs[which] * 3
        return tuple(gxs)

    gradcheck(function, inputs)
    monkeypatch.setattr(op, "backward", backward)
    with pytest.raises(AssertionError, match=f"order 1 is wrong.*create_graph={recorded}") as caught:
        gradcheck(function, inputs)
    assert table(caught.value)[0][0] == which


def test_both_ways_are_checked_at_order_2():
    class Cube(Op):
        def forward(self, x):
            return x**3

        def backward(self, gy):
            return gy * Square()(self.inputs[0]) * 3

    class Square(Op):
        def forward(self, x):
            return x**2

        def backward(self, gy):
            return gy * self.inputs[0] * (2 if recording() else 2.5)

    gradcheck(Cube(), normal((3,)), order=1)
    with pytest.raises(AssertionError, match="order 2 is wrong in 3 entries, as training runs it"):
        gradcheck(Cube(), normal((3,)), order=2)


# -- one entry among many


def squares_but_one(index, factor):
    """x^2, whose derivative is multiplied by ``factor`` at ``index``."""

    class Wrong(Op):
        def forward(self, x):
            return x * x

        def backward(self, gy):
            signs = np.ones(self.inputs[0].shape)
            signs[index] = factor
            return gy * 2 * self.inputs[0] * signs

    return Wrong()


@pytest.mark.parametrize("count,weight", [(1000, 1.0), (1000, 1e-3), (1000, 1e-5), (100_000, 1e-2)])
def test_one_wrong_entry_among_many_is_caught(count, weight, rng, monkeypatch):
    """It is caught even if it has little effect on the result: the tolerance does not grow with the other entries."""
    x, weights = rng.uniform(0.5, 2, count), np.ones(count)
    weights[0] = weight
    near = np.array([0])
    monkeypatch.setattr(np, "ndindex", lambda shape: [(int(i),) for i in near] if len(shape) == 1 else [()])  # quicker
    gradcheck(lambda x: squares_but_one(0, 1.0)(x) * weights, x, rng=rng)
    with pytest.raises(AssertionError) as caught:
        gradcheck(lambda x: squares_but_one(0, -1.0)(x) * weights, x, rng=rng)
    assert table(caught.value)[0][1] == (0,)


def test_an_entry_that_is_wrong_by_a_hundred_thousandth_is_caught(rng):
    with pytest.raises(AssertionError, match="in 1 entries"):
        gradcheck(squares_but_one(3, 1 + 1e-5), rng.uniform(0.5, 2, 300), rng=rng)


def test_a_wrong_entry_beside_large_outputs_is_caught(rng):
    x = rng.uniform(0.5, 2, 100)
    x[0] = 1e5
    gradcheck(squares_but_one(37, 1.0), x, rng=rng)
    with pytest.raises(AssertionError, match="in 1 entries"):
        gradcheck(squares_but_one(37, 1.001), x, rng=rng)


DIFFICULT = {  # right derivatives that are hard to confirm
    "close to a pole": (ops.log, np.array([1e-4, 2.0])),
    "closer": (lambda x: x**-1.0, np.array([1e-3, 1.0, -5.0])),
    "pole, near and far": (lambda x: x**-1.0, np.geomspace(1e-5, 1e-1, 25)),
    "log, near and far": (ops.log, np.geomspace(1e-5, 1e-1, 25)),
    "root, near and far": (ops.sqrt, np.geomspace(1e-6, 1.0, 25)),
    "steep": (lambda x: ops.exp(30 * x), np.array([1.0, -1.0])),
    "large and small": (lambda x: x * np.array([1e6, 1.0, 1e-6]), np.ones(3)),
    "cancellation": (lambda x: ops.logsumexp(x, 0) - x[0], np.array([30.0, 1.0, -5.0])),
    "large offset": (lambda x: ops.tanh(x) + 1e6, np.array([0.3, -0.7])),
    "fast": (lambda x: ops.sin(100 * x), np.array([0.3, 2.0])),
    "root near zero": (ops.sqrt, np.array([1e-4, 4.0])),
    "nothing": (lambda x: 0 * x, np.array([1.0, 2.0])),
    "linear": (lambda x: 2 * x, np.array([1.0, 2.0])),
    "flat": (ops.relu, np.array([1.0, -2.0])),
}


@pytest.mark.parametrize("function,x", DIFFICULT.values(), ids=DIFFICULT)
def test_difficult_functions_pass(function, x):
    gradcheck(function, x, order=3)


@pytest.mark.parametrize(
    "function,x", [DIFFICULT[k] for k in ("close to a pole", "closer", "steep", "fast", "root near zero")]
)
def test_and_their_mistakes_are_caught(function, x):
    with pytest.raises(AssertionError):
        gradcheck(planted(function, lambda g: g * 1.0001), x)


# -- what is no derivative at all


def test_noise_is_called_noise(rng):
    for shared in (lambda x: ops.dropout(x, 0.5, rng)), (lambda x: x * Tensor(rng.standard_normal(x.shape))):
        with pytest.raises(ValueError, match="gives other values when called again"):
            gradcheck(shared, np.ones(50))
    gradcheck(lambda x: ops.dropout(x, 0.5, np.random.default_rng(0)), np.ones(50))


def test_values_that_are_not_finite_are_called_so():
    with pytest.raises(ValueError, match="not finite at its inputs"):
        gradcheck(ops.log, np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"not finite on both sides of input 1 at \(2,\)"), np.errstate(all="ignore"):
        gradcheck(lambda x, y: x + ops.sqrt(y), (np.ones(3), np.array([1.0, 2.0, 0.0])))


@pytest.mark.parametrize("order", [0, -1, 1.5, True, None, "2"])
def test_an_order_that_checks_nothing_is_refused(order):
    with pytest.raises(ValueError, match=r"order: got .* needs a whole number of at least 1"):
        gradcheck(ops.exp, np.ones(2), order=order)


def test_a_kink_is_no_derivative():
    with pytest.raises(AssertionError):
        gradcheck(ops.relu, np.array([1.0, 0.0]))


# -- modules


def test_a_module_is_checked_in_its_weights_too(rng, monkeypatch):
    layer, x = Conv2d(2, 3, 3, padding=1, rng=rng), rng.standard_normal((2, 2, 4, 3))
    arrays, gradients = [p.data for p in layer.parameters()], [Tensor(np.ones(1)) for _ in layer.parameters()]
    for p, g in zip(layer.parameters(), gradients):
        p.grad = g
    gradcheck(layer, x)
    gradcheck(lambda x: ops.tanh(layer(x)), x, parameters=layer)
    gradcheck(lambda: ops.tanh(layer.weight), (), parameters=[layer.weight])
    assert all(p.data is a and p.grad is g for p, a, g in zip(layer.parameters(), arrays, gradients))
    monkeypatch.setattr(conv.ChannelSums, "backward", lambda self, gb: None)
    right = conv.ChannelSums.forward
    monkeypatch.setattr(conv.ChannelSums, "forward", lambda self, g: right(self, g) * 1.01)
    with pytest.raises(AssertionError, match=r"(?s)in 3 entries.*\bbias +\(\d,\)"):
        gradcheck(layer, x, order=1)
    assert all(p.data is a for p, a in zip(layer.parameters(), arrays))


def test_modules_with_buffers_and_without_inputs(rng):
    x = rng.standard_normal((4, 3))
    gradcheck(lambda x: norm(x, training=True), x, parameters=(norm := BatchNorm(3)))
    linear = Linear(3, 2, rng=rng)
    gradcheck(lambda: linear(Tensor(x)), (), parameters=linear)


def test_saves_that_lack_what_backward_reads_are_caught():
    """They are caught although an Op can read a leaf's values without saving them."""

    class Square(Op):
        saves = ()

        def forward(self, x):
            return x * x

        def backward(self, gy):
            return gy * 2 * self.inputs[0]

    with pytest.raises(RuntimeError, match="add 'inputs' to the operation's saves"):
        gradcheck(Square(), np.ones(2))


def test_weights_of_the_same_name_and_buffers(rng):
    """All are checked, and all have their old values afterwards."""
    other, norm, wrong = Linear(2, 2, rng=rng), BatchNorm(2), planted(lambda w: w * 1.0, lambda g: g * 7)

    class Outer(Linear):
        def forward(self, x):
            return x @ wrong(self.weight) + other(x)

    x = rng.standard_normal((4, 2))
    with pytest.raises(AssertionError, match="in 4 entries"):
        gradcheck(Outer(2, 2, rng=rng), x, parameters=other)
    gradcheck(lambda: ops.exp(other.weight), (), parameters=other.weight)
    before = [b.data for _, b in norm.named_buffers()]
    gradcheck(lambda x: norm(x, training=True), x, parameters=norm)
    assert all(b.data is array for (_, b), array in zip(norm.named_buffers(), before))
