"""The engine: what a Tensor is, and reverse mode on graphs of every shape."""

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest

from tinygen import Op, Tensor, grad, gradcheck, no_grad, ops
from tinygen.backend import to_device
from tinygen.nn import Linear
from tinygen.optim import SGD
from tinygen.tensor import history, keep_values


def leaf(*values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


# -- derivatives worked by hand


def test_polynomial_to_order_3():
    """x^3 - 2x^2 + 5x, 3x^2 - 4x + 5, 6x - 4, 6 at x = 2."""
    x = Tensor(np.array(2.0), requires_grad=True)
    y = x**3 - 2 * x**2 + 5 * x
    found = [y.item()]
    for _ in range(3):
        (y,) = grad(y, x, create_graph=True)
        found.append(y.item())
    assert found == [10, 9, 8, 6]


def test_mixed_derivatives():
    """f = x^2 y^3: f_x = 2 x y^3, f_y = 3 x^2 y^2, f_xy = 6 x y^2, f_yy = 6 x^2 y, f_xyy = 12 x y at (3, 2)."""
    x, y = (Tensor(np.array(v), requires_grad=True) for v in (3.0, 2.0))
    fx, fy = grad(x * x * y * y * y, [x, y], create_graph=True)
    (fxy,), (fyx, fyy) = grad(fx, [y], create_graph=True), grad(fy, [x, y], create_graph=True)
    fyyx, fyxy = grad(fyy, x)[0], grad(fyx, y)[0]
    assert [t.item() for t in (fx, fy, fxy, fyx, fyy, fyyx, fyxy)] == [48, 108, 72, 72, 108, 72, 72]


def test_order_10():
    x = Tensor(np.array(0.0), requires_grad=True)
    y = ops.exp(2 * x)
    for _ in range(10):
        (y,) = grad(y, x, create_graph=True)
    assert y.item() == 2**10


GRAPHS = {  # each at x = (1, 2); the derivative of the sum
    "twice": (lambda x: x * x, [2, 4]),
    "x + x": (lambda x: x + x, [2, 2]),
    "x - x": (lambda x: x - x, [0, 0]),
    "diamond": (lambda x: (lambda h: (h + 1) * (h * 3))(x * 2), [6 * 4 + 6, 6 * 8 + 6]),  # 3h(h + 1) with h = 2x
    "three ways": (lambda x: x * 2 + x * 3 + x * x, [7, 9]),
    "one of two parts": (lambda x: (lambda a, b: b * x[:1])(*ops.split(x, 2)), [2, 1]),
    "unequal depth": (lambda x: (x * 2 * 2 * 2) * x, [16, 32]),
    "itself as condition": (lambda x: ops.where(x > 1.5, x * x, x), [1, 4]),
}


@pytest.mark.parametrize("function,expected", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_shared_inputs(function, expected, create_graph, device):
    x = Tensor(to_device(np.array([1.0, 2.0]), device), requires_grad=True)
    assert grad(function(x).sum(), x, create_graph=create_graph)[0].numpy().tolist() == expected


def test_a_gradient_with_many_terms_is_summed_without_changing_any():
    """One array is a term of several sums."""
    x, y = leaf(1, 2), leaf(3, 4)
    s = x + y
    total = s + s + s + x + y + x
    gs, gx, gy = grad(total, [s, x, y], np.array([1.0, 10.0]))
    assert [g.numpy().tolist() for g in (gs, gx, gy)] == [[3, 30], [5, 50], [4, 40]]


@pytest.mark.parametrize("seed", range(8))
def test_random_graphs(seed):
    """Twelve random steps on matrices, each on any of the results before it; some results are used many times."""
    plan = np.random.default_rng(seed)
    binary = [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a * b,
        lambda a, b: a @ b,
        lambda a, b: a / (2 + b * b),
        lambda a, b: ops.where(np.eye(2, dtype=bool), a, b),
        lambda a, b: ops.concatenate([a[:1], b[1:]]),
        lambda a, b: a + b.sum(0),
    ]
    unary = [ops.tanh, ops.sigmoid, ops.softmax, ops.softplus, lambda a: a.T, lambda a: a[[1, 1]]]
    steps = []
    for n in range(2, 14):
        table = binary if plan.random() < 0.6 else unary
        steps.append((table[plan.integers(len(table))], plan.integers(n), plan.integers(n), table is binary))

    def function(*xs):
        pool = list(xs)
        for operation, i, j, two in steps:
            h = operation(pool[i], pool[j]) if two else operation(pool[i])
            pool.append(ops.tanh(h))
        return pool[-1], pool[-3] * pool[5]

    gradcheck(function, tuple(plan.standard_normal((2, 2, 2))), rng=plan)


def test_numerical_derivative_of_a_whole_computation(rng):
    """A reference that shares no code with gradcheck: central differences, one entry at a time."""
    w, x = rng.standard_normal((3, 2)), rng.standard_normal((4, 3))

    def loss(w):
        return ops.logsumexp(ops.tanh(Tensor(x) @ w), axis=1).mean()

    (g,) = grad(loss(t := Tensor(w, requires_grad=True)), t)
    for index in np.ndindex(w.shape):
        d = np.zeros_like(w)
        d[index] = 1e-6
        numeric = (loss(Tensor(w + d)).item() - loss(Tensor(w - d)).item()) / 2e-6
        assert g.data[index] == pytest.approx(numeric, rel=1e-6, abs=1e-9)


# -- long chains, memory


def test_a_chain_of_100_000_steps():
    x = leaf(1.0, 2.0)
    y = x
    for _ in range(100_000):
        y = y + 1e-5
    assert grad(y.sum(), x)[0].numpy().tolist() == [1, 1]
    last = weakref.ref(y._op)
    del y  # must not recurse either
    assert last() is None


def test_a_long_chain_differentiates_with_its_graph():
    x = leaf(0.5)
    y = x
    for _ in range(20_000):
        y = y * 1.0
    (g,) = grad((y * y).sum(), x, create_graph=True)
    assert g.item() == 1 and grad(g, x)[0].item() == 2


def test_memory_goes_with_the_last_reference():
    gc.disable()
    try:
        x = leaf(1.0, 2.0)
        h = ops.tanh(x)
        y = (h * h).sum()
        refs = [weakref.ref(t) for t in (h, y, h._op, y._op)]
        (first,) = grad(y, x, create_graph=True)
        (second,) = grad(first.sum(), x, create_graph=True)
        y.backward()
        refs += [weakref.ref(t) for t in (first, second, first._op, second._op)]
        del h, y, first, second
        assert [ref() for ref in refs] == [None] * 8
    finally:
        gc.enable()


def test_the_gradients_of_passed_steps_are_freed_during_the_pass():
    alive, most = weakref.WeakSet(), []

    class Watch(Op):
        def forward(self, x):
            return x + 0

        def backward(self, gy):
            alive.add(gy)
            most.append(len(alive))
            return gy + 0

    x = leaf(1.0)
    y = x
    for _ in range(50):
        y = Watch()(y)
    grad(y, x)
    assert max(most) <= 3


# -- grad


def test_grad_gives_a_tuple_and_leaves_grad_alone():
    x, y = leaf(1, 2), leaf(3, 4)
    found = grad((x * y).sum(), [x, y])
    assert type(found) is tuple and [g.numpy().tolist() for g in found] == [[3, 4], [1, 2]]
    assert type(grad(x.sum(), x)) is tuple and x.grad is None and y.grad is None


def test_grad_again_gives_the_same():
    x = leaf(1, 2)
    y = (x * x * x).sum()
    assert [grad(y, x)[0].numpy().tolist() for _ in range(2)] == [[3, 12]] * 2


def test_several_outputs_with_their_cotangents():
    x = leaf(1.0, 2.0)
    ys = [x * x, x.sum(), 3 * x]
    (g,) = grad(ys, x, [np.array([1.0, 10.0]), None, Tensor(np.array([0.0, 1.0]))])
    assert g.numpy().tolist() == [2 + 1 + 0, 40 + 1 + 3]
    assert grad([ys[1], ys[1]], x)[0].numpy().tolist() == [2, 2]


def test_cotangents_take_the_outputs_dtype():
    x = leaf(1.0, 2.0, dtype=np.float32)
    for v in np.array([2.0, 3.0]), np.array([2, 3]), Tensor(np.array([2.0, 3.0])):
        for y in x * 1, x:
            (g,) = grad(y, x, v)
            assert g.dtype == np.float32 and g.numpy().tolist() == [2, 3]


def test_a_number_as_cotangent():
    x = leaf(1.0, 2.0)
    assert grad(x.sum(), x, 3)[0].numpy().tolist() == [3, 3]


def test_differentiable_cotangent():
    """<v, 3x>: its derivative in x is 3v, whose derivative in v is 3."""
    x, v = leaf(1.0, 2.0), leaf(5.0, 7.0)
    (g,) = grad(3 * x, x, v, create_graph=True)
    assert g.numpy().tolist() == [15, 21] and grad(g.sum(), v)[0].numpy().tolist() == [3, 3]


def test_intermediate_results_have_derivatives_too():
    x = leaf(1.0, 2.0)
    h = x * 2
    y = (h * h).sum()
    gx, gh, gy = grad(y, [x, h, y])
    assert (gx.numpy().tolist(), gh.numpy().tolist(), gy.item()) == ([8, 16], [4, 8], 1)
    assert grad(h, h, np.array([1.0, 2.0]))[0].numpy().tolist() == [1, 2]


def test_what_leads_to_no_wanted_input_is_not_differentiated():
    class Never(Op):
        def forward(self, x):
            return x * 2

        def backward(self, gy):
            raise AssertionError("was differentiated")

    x, z = leaf(1.0, 2.0), leaf(5.0, 5.0)
    h = Never()(x)
    y = (h * z).sum()
    assert grad(y, h)[0].numpy().tolist() == [5, 5]
    assert grad(y, z)[0].numpy().tolist() == [2, 4]


def test_without_create_graph_the_result_is_constant():
    x = leaf(2.0)
    assert not grad(x * x, x)[0].requires_grad
    (g,) = grad(x * x, x, create_graph=True)
    assert g.requires_grad and grad(g, x)[0].item() == 2


def test_the_derivative_of_a_linear_function_has_none():
    x = leaf(2.0)
    (g,) = grad(3 * x, x, create_graph=True)
    with pytest.raises(ValueError, match="depends on nothing that requires grad"):
        grad(g, x)


class Twice(Op):
    """An Op with two outputs, of which only one may be used."""

    def forward(self, x):
        return x * 2, x * 3

    def backward(self, g2, g3):
        parts = [g * k for g, k in ((g2, 2), (g3, 3)) if g is not None]
        return sum(parts[1:], parts[0])


def test_an_unused_output_has_no_gradient():
    x = leaf(1.0, 2.0)
    two, three = Twice()(x)
    assert grad(two.sum(), x)[0].numpy().tolist() == [2, 2]
    assert grad((two * three).sum(), x)[0].numpy().tolist() == [12, 24]
    assert grad((two * three).sum(), [three, x])[0].numpy().tolist() == [2, 4]


def test_a_backward_that_gives_another_shape_is_caught():
    class Wrong(Op):
        def forward(self, x):
            return x * 2

        def backward(self, gy):
            return gy.sum()

    x = leaf(1.0, 2.0)
    with pytest.raises(ValueError, match=r"Wrong\.backward gave \(\) for an input of shape \(2,\)"):
        grad(Wrong()(x).sum(), x)


x_used, x_unused = leaf(1.0, 2.0), leaf(3.0)
REFUSED = {
    "unused input": (lambda: grad(x_used.sum(), [x_used, x_unused]), r"inputs\[1\] \(shape \(1,\)\) is not part of"),
    "constant input": (lambda: grad(x_used.sum(), Tensor(1.0)), r"inputs\[0\] \(shape \(\)\) does not require grad"),
    "detached": (lambda: grad(x_used.detach().sum(), x_used), r"outputs\[0\] depends on nothing that requires grad"),
    "not a number": (lambda: grad([x_used.sum(), x_used], x_used), r"outputs\[1\] has shape \(2,\): give grad_outputs"),
    "not a number, backward": (lambda: (x_used * 2).backward(), r"has shape \(2,\)"),
    "cotangent's shape": (lambda: grad(x_used * 2, x_used, np.ones(3)), r"grad_outputs\[0\] has shape \(3,\).*\(2,\)"),
    "cotangent 1": (lambda: grad(x_used * 2, x_used, 1.0), r"grad_outputs\[0\] has shape \(\), .*\(2,\)"),
    "number of cotangents": (lambda: grad(x_used.sum(), x_used, [1, 1]), "grad_outputs has 2 entries, outputs 1"),
    "constant, backward": (lambda: Tensor(1.0).backward(), "depends on nothing that requires grad"),
    "derivative without a graph": (lambda: grad(grad(x_used.sum(), x_used), x_used), "create_graph=True"),
    "constant input, zeros": (
        lambda: grad(x_used.sum(), Tensor(1.0), materialize_grads=True),
        r"inputs\[0\] \(shape \(\)\) does not require grad",
    ),
}


@pytest.mark.parametrize("call,message", REFUSED.values(), ids=REFUSED)
def test_what_has_no_derivative_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "function,order", [(lambda x: 2 * x, 2), (ops.relu, 2), (lambda x: x * x, 3), (lambda x: x.detach() + x * 0, 2)]
)
def test_zeros_on_request_where_nothing_depends_on_the_input(function, order, device):
    x = Tensor(to_device(np.array([3.0, -1.0]), device), requires_grad=True)
    y = function(x)
    for _ in range(order):
        (y,) = grad(y.sum(), x, create_graph=True, materialize_grads=True)
    assert y.device == x.device and y.dtype == x.dtype and y.numpy().tolist() == [0, 0]


def test_zeros_beside_a_derivative():
    x, y = leaf(1.0, 2.0), leaf(3.0, dtype=np.float32)
    gx, gy = grad((x * x).sum(), [x, y], materialize_grads=True)
    assert gx.numpy().tolist() == [2, 4] and gy.numpy().tolist() == [0] and gy.dtype == np.float32


# -- what is kept, and what may change


class Double(Op):
    """2 x; its derivative needs no values, and says so."""

    saves = ()

    def forward(self, x):
        return x * 2

    def backward(self, gy):
        return gy * 2


class DoubleOfAll(Double):
    saves = Op.saves


def kept_arrays(op_class):
    """Whether the input and the result of such an Op stay in memory as long as the graph."""
    x = leaf(1.0, 2.0)
    h = x * 1.0
    y = op_class()(h)
    z = y + 1.0
    arrays = [weakref.ref(h.data), weakref.ref(y.data)]
    del h, y
    return [array() is not None for array in arrays], x, z


def test_only_values_that_a_derivative_needs_are_kept():
    kept, x, z = kept_arrays(Double)
    assert kept == [False, False] and grad(z.sum(), x)[0].numpy().tolist() == [2, 2]
    assert kept_arrays(DoubleOfAll)[0] == [True, True]
    with keep_values():
        assert kept_arrays(Double)[0] == [True, True]


@pytest.mark.parametrize("read", [lambda op, gy: gy * op.inputs[0], lambda op, gy: gy * op.output])
def test_reading_what_was_not_kept_is_an_error(read):
    class Reads(Double):
        def backward(self, gy):
            return read(self, gy)

    with pytest.raises(RuntimeError, match=r"add 'inputs' to the operation's saves|saves is \(\), needs 'output'"):
        grad(Reads()((x := leaf(1.0)) * 1.0), x)


class Softsign(Op):
    def forward(self, x):
        return x / (1 + abs(x))

    def backward(self, gy):
        return gy / (1 + ops.abs(self.inputs[0])) ** 2


@pytest.mark.parametrize("create_graph", [False, True])
def test_one_op_may_be_used_many_times(create_graph):
    """One Op is used several times in one forward pass, like an activation that a module holds."""
    one, x = Softsign(), leaf(0.5, -2.0)
    y, z = one(2 * one(3 * x)), Softsign()(2 * Softsign()(3 * x))
    found, right = (grad(t.sum(), x, create_graph=create_graph)[0].numpy() for t in (y, z))
    np.testing.assert_array_equal(found, right)
    assert grad(one(x).sum(), x)[0].numpy().tolist() == (1 / (1 + np.abs(x.numpy())) ** 2).tolist()
    gradcheck(lambda x: one(one(x) * x), np.array([0.5, -2.0]))
    assert vars(one) == {}  # and it holds on to nothing of them


def test_a_leaf_that_changes_between_two_passes_is_an_error():
    w, x = leaf(2.0), leaf(3.0)
    y = (w * x) ** 2
    y.backward()
    SGD([w], 0.1).step()
    with pytest.raises(RuntimeError, match=r"Mul: its input 0 \(shape \(1,\)\) has got new values"):
        y.backward()
    assert grad((w * x) ** 2, x)[0].item() == pytest.approx(2 * w.item() ** 2 * 3)  # computed again it is right


@pytest.mark.parametrize("change", ["step", "assign", "load"])
def test_it_is_an_error_where_the_values_are_seen_through_a_view_too(change, rng):
    layer, x = Linear(3, 2, rng=rng), Tensor(rng.standard_normal((4, 3), np.float32), requires_grad=True)
    y = layer(x).sum()
    if change == "step":
        layer.weight.data -= 0.1
    elif change == "assign":
        layer.weight.data = layer.weight.data * 2
    else:
        layer.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"Matmul: its input 1 \(shape \(3, 2\)\) has got new values"):
        grad(y, x)


def test_what_does_not_pass_a_changed_leaf_has_its_derivative():
    w, x = leaf(2.0), leaf(3.0)
    h = x * x
    y = h * w
    w.data += 1.0
    assert grad(h, x)[0].item() == 6 and grad(y, y)[0].item() == 1


def test_values_of_a_computed_tensor_are_not_assigned():
    y = leaf(1.0) * 2
    with pytest.raises(TypeError, match="only a leaf's values can be assigned"):
        y.data = np.zeros(1)
    z = y.detach()
    z.data = np.ones(1)
    assert y.item() == 2 and z.item() == 1


COPIES = [copy.copy, copy.deepcopy, lambda y: pickle.loads(pickle.dumps(y))]


@pytest.mark.parametrize("copied", COPIES, ids=["copy", "deepcopy", "pickle"])
def test_computed_tensors_are_not_copied(copied):
    """A copy of the graph would have leaves of its own, and (3 x + (y + z)).sum() the wrong gradient."""
    y = leaf(1.0)
    for _ in range(3000):
        y = y * 1.0
    for z in y, [y], {"a": (y,)}:
        if copied is not copy.copy or z is y:
            with pytest.raises(TypeError, match=r"a computed Tensor is not copied or pickled: .*\.detach\(\)"):
                copied(z)


@pytest.mark.parametrize("copied", COPIES, ids=["copy", "deepcopy", "pickle"])
def test_leaves_are_copied(copied, rng):
    x = leaf(1.0, 2.0)
    y = copied(x)
    assert y.requires_grad and y is not x and grad((3 * x + y * y).sum(), [x, y])[1].numpy().tolist() == [2, 4]
    layer = copied(Linear(3, 2, rng=rng))
    assert grad(layer(Tensor([[1.0, 2.0, 3.0]])).sum(), layer.bias)[0].numpy().tolist() == [1, 1]


# -- backward


def test_backward_fills_leaves_only_and_a_second_call_adds():
    x, c = leaf(1.0, 2.0), Tensor(np.array([3.0, 4.0]))
    h = x * c
    y = (h * h).sum()
    y.backward()
    assert x.grad.numpy().tolist() == [18, 64]
    assert h.grad is None and y.grad is None and c.grad is None and not x.grad.requires_grad
    y.backward()
    assert x.grad.numpy().tolist() == [36, 128]
    x.grad = None
    y.backward()
    assert x.grad.numpy().tolist() == [18, 64]


def test_gradients_share_no_memory(device):
    """x + y hands one array to both: changing one leaf's gradient must not change another's."""
    x, y, z = (Tensor(to_device(np.array([1.0, 2.0]), device), requires_grad=True) for _ in range(3))
    loss = (x + y + z.reshape(1, 2).T.reshape(2)).sum()
    loss.backward()
    x.grad.data[...] = 100
    assert y.grad.numpy().tolist() == z.grad.numpy().tolist() == [1, 1]
    kept = y.grad
    loss.backward()
    assert [g.numpy().tolist() for g in (kept, y.grad, x.grad)] == [[1, 1], [2, 2], [101, 101]]


def test_a_leafs_gradient_is_not_its_cotangent():
    x = leaf(1.0)
    x.backward()
    x.grad.data += 1
    x.backward()
    assert x.grad.item() == 3


def test_a_gradient_has_its_tensors_dtype():
    x = leaf(1.0, 2.0, dtype=np.float32)
    for y in x.astype(np.float64) * 2, x * np.array([2.0, 2.0]), ops.concatenate([x, leaf(1.0)]) * 2:
        assert y.dtype == np.float64 and grad(y.sum(), x)[0].dtype == np.float32
        y.sum().backward()
    assert x.grad.dtype == np.float32 and x.grad.numpy().tolist() == [6, 6]


# -- recording


def test_no_grad_nests_and_survives_errors():
    x = leaf(1.0)
    with no_grad():
        with no_grad():
            assert not (x * 2).requires_grad
        assert not (x * 2).requires_grad
        assert (x * 2)._op is None
    assert (x * 2).requires_grad
    again = no_grad()
    with pytest.raises(KeyError), again, again:
        raise KeyError
    assert (x * 2).requires_grad


def test_no_grad_as_decorator():
    x = leaf(1.0)

    @no_grad()
    def double(n):
        return double(n - 1) if n else x * 2

    assert not double(0).requires_grad and not double(3).requires_grad and (x * 2).requires_grad
    assert double.__name__ == "double"


def test_grad_inside_no_grad_differentiates_what_was_recorded_before():
    x = leaf(3.0)
    y = x * x
    with no_grad():
        assert grad(y, x)[0].item() == 6
        with pytest.raises(ValueError, match="no_grad"):
            grad(x * x, x)


def test_no_grad_holds_for_its_thread_only():
    x, seen = leaf(1.0), []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append((x * 2).requires_grad))
        thread.start()
        thread.join()
    assert seen == [True]


def test_one_no_grad_shared_by_threads():
    """A decorated function is one object for all threads; here they enter it in turn and leave in the same order."""
    x, shared, seen = leaf(1.0), no_grad(), []
    entered, leave = threading.Event(), threading.Event()

    def other():
        with no_grad():
            with shared:
                entered.set()
                leave.wait(10)
            seen.append((x * 2).requires_grad)
        seen.append((x * 2).requires_grad)

    thread = threading.Thread(target=other)
    with shared:
        thread.start()
        assert entered.wait(10)
    seen.append((x * 2).requires_grad)
    leave.set()
    thread.join()
    assert seen == [True, False, True]


def test_threads_differentiate_side_by_side():
    """The same leaf in several graphs at once, as the shards of a batch use their model."""
    w, found = leaf(*np.linspace(-1, 1, 50)), {}

    def work(k):
        y = w
        for _ in range(50):
            y = ops.tanh(y * k)
        found[k] = grad(y.sum(), w)[0].numpy()

    threads = [threading.Thread(target=work, args=(k,)) for k in (1, 2, 3, 4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    together = dict(found)
    for k in (1, 2, 3, 4):
        work(k)
        assert np.array_equal(found[k], together[k])


# -- what a Tensor is


def test_dtypes_of_new_tensors():
    assert Tensor(1.5).dtype == Tensor([[1.5, 2]]).dtype == np.float32
    assert Tensor(np.array([1.5])).dtype == np.float64 and Tensor(np.float64(1)).dtype == np.float64
    assert Tensor(3).dtype.kind == Tensor([1, 2]).dtype.kind == "i" and Tensor([True]).dtype == bool
    data = np.zeros(3)
    assert Tensor(data).data is data


@pytest.mark.parametrize("data", [1, [1, 2], True, np.zeros(2, np.uint8)], ids=repr)
def test_only_floats_require_grad(data):
    with pytest.raises(TypeError, match="requires_grad needs a floating dtype, data has"):
        Tensor(data, requires_grad=True)


@pytest.mark.parametrize("data", [None, "text", 1j, [1j], np.array([1j]), np.array(["a"]), {}], ids=repr)
def test_only_real_numbers(data):
    with pytest.raises(TypeError, match="needs real numbers"):
        Tensor(data)


def test_no_tensor_of_a_tensor():
    with pytest.raises(TypeError, match="is a Tensor already"):
        Tensor(Tensor(1.0))


def test_attributes(device):
    x = Tensor(to_device(np.zeros((2, 3), np.float32), device))
    assert (x.shape, x.ndim, x.size, x.dtype, x.device, len(x)) == ((2, 3), 2, 6, np.float32, device, 2)
    assert x.to("cpu").device == "cpu" and x.to(device).numpy().tolist() == x.numpy().tolist()


def test_repr(device):
    x = Tensor(to_device(np.array([1.0, 2.0], np.float32), device), requires_grad=True)
    for part in ("[1., 2.]", "(2,)", "float32", device, "requires_grad"):
        assert part in repr(x)
    assert "[2., 4.]" in repr(x * 2) and "Mul" in repr(x * 2) and "requires_grad" not in repr(x.detach())
    assert len(repr(Tensor(np.zeros((1000, 1000))))) < 300


def test_python_numbers(device):
    for value in 3, 2.5, True:
        x = Tensor(to_device(np.array(value), device))
        assert x.item() == value and float(x) == value and bool(x) is True
    with pytest.raises((ValueError, TypeError)):
        bool(Tensor([1, 2]))


def test_arrays_from_tensors():
    x = Tensor(np.array([1.0, 2.0]))
    assert np.asarray(x).tolist() == [1, 2] and np.asarray(x, np.float32).dtype == np.float32
    for y in Tensor(x.data, requires_grad=True), leaf(1.0) * 2:
        with pytest.raises(TypeError, match=r"use \.numpy\(\)"):
            np.asarray(y)
        assert y.numpy() is y.data


def test_a_device_tensor_becomes_no_array_unasked(strict):
    with pytest.raises(TypeError):
        np.asarray(Tensor(to_device(np.zeros(2), "cuda")))


def test_array_first(device):
    a = to_device(np.array([1.0, 2.0]), device)
    x = Tensor(to_device(np.array([3.0, 4.0]), device), requires_grad=True)
    for y, expected in [
        (a + x, [4, 6]),
        (a - x, [-2, -2]),
        (a * x, [3, 8]),
        (a / x, [1 / 3, 1 / 2]),
        (a**x, [1, 16]),
        (a @ x, 11),
        ([1.0, 2.0] * x, [3, 8]),
        ([1.0, 2.0] @ x if device == "cpu" else a @ x, 11),
    ]:
        assert isinstance(y, Tensor) and y.requires_grad
        np.testing.assert_allclose(y.numpy(), expected)


def test_comparisons_give_plain_arrays(device):
    x, y = (Tensor(to_device(np.array(v), device), requires_grad=True) for v in ([1.0, 2, 3], [3.0, 2, 1]))
    for found, expected in [
        (x < y, [True, False, False]),
        (x <= 2, [True, True, False]),
        (x > y.data, [False, False, True]),
        (2 >= x, [True, True, False]),
        (x == y, [False, True, False]),
        (x.data != y, [True, False, True]),
    ]:
        assert type(found) is type(x.data) and found.tolist() == expected


def test_tensors_are_keys_by_identity():
    x, y = leaf(1.0), leaf(1.0)
    assert {x: 1, y: 2}[x] == 1 and len({x, y, x}) == 2


NUMPYS = {
    "np.exp": (lambda x: np.exp(x), r"np\.exp .*tinygen\.ops\.exp"),
    "np.sum": (lambda x: np.sum(x), r"np\.sum .*tinygen\.ops\.sum"),
    "np.maximum": (lambda x: np.maximum(np.ones(2), x), r"np\.maximum .*tinygen\.ops\.maximum"),
    "np.concatenate": (lambda x: np.concatenate([x, x]), r"np\.concatenate .*tinygen\.ops\.concatenate"),
    "another name": (lambda x: np.absolute(x), r"np\.absolute .*tinygen\.ops\.abs"),
    "none": (lambda x: np.fft.fft(x), r"np\.fft .*a function of tinygen\.ops, or x\.numpy\(\)"),
    "in place": (lambda x: np.ones(2).__iadd__(x), r"np\.add .*tinygen\.ops\.add"),
    "a method of a ufunc": (lambda x: np.add.reduce(x), r"np\.add .*tinygen\.ops\.add"),
}


@pytest.mark.parametrize("call,message", NUMPYS.values(), ids=NUMPYS)
def test_numpys_functions_name_the_one_to_use(call, message):
    for x in leaf(1.0, 2.0), Tensor([1.0, 2.0]):
        with pytest.raises(TypeError, match=message):
            call(x)
        assert np.shape(x) == (2,) and np.ndim(x) == 1 and np.size(x) == 2


def test_a_numpy_number_first():
    x = leaf(1.0, 2.0)
    y = np.float64(3) * x
    assert isinstance(y, Tensor) and grad(y.sum(), x)[0].numpy().tolist() == [3, 3]
    assert (np.array([2.0, 1.0]) < x).tolist() == [False, True] and (np.float64(2) >= x).tolist() == [True, True]


def test_iteration():
    x = Tensor(np.array([[1.0, 2], [3, 4]]), requires_grad=True)
    first, second = x
    assert grad((first * second).sum(), x)[0].numpy().tolist() == [[3, 4], [1, 2]]
    with pytest.raises(TypeError):
        iter(x.sum())


def test_assignment_is_refused_and_says_what_to_do():
    x = leaf(1.0, 2.0)
    for target in x, x * 2, x.detach():
        with pytest.raises(TypeError, match=r"in place.*ops\.where"):
            target[0] = 1.0


def test_augmented_assignment_makes_a_new_tensor():
    x = leaf(1.0, 2.0)
    y = x
    y += 1
    y *= x
    assert x.numpy().tolist() == [1, 2] and grad(y.sum(), x)[0].numpy().tolist() == [3, 5]


def test_methods_are_the_operations(rng):
    x = Tensor(rng.standard_normal((2, 3)))
    for y, z in [
        (x.sum(0), ops.sum(x, 0)),
        (x.mean(-1, keepdims=True), ops.mean(x, -1, True)),
        (x.reshape(3, 2), ops.reshape(x, (3, 2))),
        (x.transpose(1, 0), x.T),
        (x.exp().log(), x * 1),
        (abs(x), ops.abs(x)),
    ]:
        np.testing.assert_allclose(y.numpy(), z.numpy())


def test_gradients_travel_back_from_a_device(strict):
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = x.to("cuda")
    assert y.device == "cuda" and y.to("cuda") is y and x.to("cpu") is x
    (y * y).sum().backward()
    assert x.grad.device == "cpu" and x.grad.numpy().tolist() == [2, 4]


def test_whole_numbers_leave_the_dtype_alone():
    x = Tensor([1.0, 2.0, 3.0])
    for y in (
        x * np.arange(3),
        x ** np.arange(3),
        np.arange(3) - x,
        x + True,
        ops.bce_with_logits(x, np.array([0, 1, 1])),
    ):
        assert y.dtype == np.float32
    assert (Tensor(np.array([True, False])) * 0.5).dtype == np.float32
    whole = Tensor(np.arange(3))
    for y in x * whole, whole - x, whole @ x, ops.where(x > 1, whole, x), ops.concatenate([whole, x]):
        assert y.dtype == np.float32
    assert (whole * whole).dtype == whole.dtype
    with pytest.raises(OverflowError):
        Tensor(np.array([1], np.uint8)) + 300


def test_a_leaf_that_changes_through_its_detached_self_is_an_error():
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    z = x.detach()
    z.data -= 1.0
    with pytest.raises(RuntimeError, match="has got new values"):
        grad(y, x)


def test_shapes_of_inputs_that_are_not_kept_are_known():
    class Mean(Op):
        saves = ()

        def forward(self, x):
            return x.mean(axis=0)

        def backward(self, gy):
            (x,) = self.inputs
            assert (x.shape, x.ndim, x.size, x.dtype) == ((2, 3), 2, 6, np.float64)
            return ops.broadcast_to(gy / x.shape[0], x.shape)

    gradcheck(Mean(), np.ones((2, 3)))


def test_a_leaf_is_not_changed_in_place():
    """``p -= step`` would create another Tensor and leave the parameter unchanged."""
    x = leaf(1.0)
    with no_grad(), pytest.raises(TypeError, match=r"x\.data -= step"):
        x -= 0.1
    y = x
    y -= 0.5  # recorded, as any computation
    with no_grad():
        z = x * 2
        z += 1.0
    assert x.item() == 1 and y.item() == 0.5 and z.item() == 3


MISTAKEN = {
    "forward gives a Tensor": (lambda x: Tensor(x), lambda gy: gy, r"Mistaken\.forward gave Tensor, needs an array"),
    "forward gives nothing": (lambda x: None, lambda gy: gy, r"Mistaken\.forward gave NoneType"),
    "backward gives an array": (
        lambda x: x * 2,
        lambda gy: gy.data,
        r"Mistaken\.backward gave \(ndarray\), needs 1 Tens",
    ),
    "backward gives too many": (lambda x: x * 2, lambda gy: (gy, gy), r"gave \(Tensor, Tensor\), needs 1 Tensors"),
}


@pytest.mark.parametrize("forward,backward,message", MISTAKEN.values(), ids=MISTAKEN)
def test_mistakes_in_an_operation_of_ones_own(forward, backward, message):
    class Mistaken(Op):
        def forward(self, x):
            return forward(x)

        def backward(self, gy):
            return backward(gy)

    with pytest.raises(TypeError, match=message):
        grad(Mistaken()(x := leaf(1.0)), x)


def test_a_leaf_that_changes_is_an_error_through_an_operation_that_returns_its_input_too():
    class Identity(Op):
        saves = ()

        def forward(self, x):
            return x

        def backward(self, gy):
            return gy

    x = leaf(1.0, 2.0)
    y, z = Identity()(x), Identity()(x).T[::-1]  # and through a view of a view
    totals = [(y * y).sum(), (z * z).sum()]
    x.data -= 1.0
    for total in totals:
        with pytest.raises(RuntimeError, match="has got new values"):
            grad(total, x)


def test_the_history_after_an_op_leaves_out_what_came_before():
    x = Tensor(np.ones(2), requires_grad=True)
    for _ in range(50):
        x = x * 1.01
    y = (x * 2).sum()
    assert len(history([y])) == 52 and len(history([y], x._op._order)) == 2
