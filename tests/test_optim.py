"""tinygen.optim: steps worked by hand, formulas written out in NumPy, state, the schedule, averaging."""

import copy
import functools
import re

import numpy as np
import pytest

from tinygen import Tensor, nn
from tinygen.backend import to_device, to_host
from tinygen.nn import Parameter
from tinygen.optim import SGD, Adam, Average, Muon, RMSProp, cosine, orthogonalized

OPTIMIZERS = {
    "sgd": functools.partial(SGD, lr=0.1),
    "momentum": functools.partial(SGD, lr=0.1, momentum=0.9),
    "rmsprop": functools.partial(RMSProp, lr=0.01, alpha=0.9),
    "adam": functools.partial(Adam, lr=0.01, betas=(0.8, 0.95)),
    "muon": functools.partial(Muon, lr=0.01, momentum=0.8),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def parameter(values, device="cpu", dtype=np.float64):
    return Parameter(to_device(np.array(values, dtype), device))


def give(parameters, gradients):
    for p, g in zip(parameters, gradients):
        p.grad = Tensor(to_device(np.asarray(g, p.dtype), p.device))


# --- steps worked by hand ----------------------------------------------------------------------------------------


def test_sgd_by_hand():
    p = parameter([1.0, 2.0])
    optimizer = SGD([p], lr=0.1)
    give([p], [[0.5, -1.0]])
    optimizer.step()
    np.testing.assert_allclose(p.data, [0.95, 2.1], rtol=1e-15)


def test_momentum_by_hand():
    p = parameter([1.0])
    optimizer = SGD([p], lr=0.1, momentum=0.9)
    for gradient, expected in ((2.0, 0.8), (1.0, 0.52), (0.0, 0.268)):  # velocities 2, 2.8, 2.52
        give([p], [[gradient]])
        optimizer.step()
        np.testing.assert_allclose(p.data, [expected], rtol=1e-14)


def test_rmsprop_by_hand():
    p = parameter([1.0, 1.0])
    optimizer = RMSProp([p], lr=0.01, alpha=0.99, eps=0.5)
    give([p], [[2.0, -40.0]])
    optimizer.step()  # s = 0.01 g^2, so sqrt(s) is 0.2 and 4
    np.testing.assert_allclose(p.data, [1 - 0.02 / 0.7, 1 + 0.4 / 4.5], rtol=1e-14)


def test_adam_by_hand():
    p = parameter([1.0, 1.0])
    optimizer = Adam([p], lr=0.1, betas=(0.9, 0.99), eps=0.0)
    give([p], [[3.0, -1e-3]])
    optimizer.step()  # without bias the first m / sqrt(v) is the sign of g, whatever its size
    np.testing.assert_allclose(p.data, [0.9, 1.1], rtol=1e-13)
    give([p], [[-3.0, 0.0]])
    optimizer.step()  # m: 0.27 - 0.3 over 1 - 0.81; v: (0.0891 + 0.09) over 1 - 0.9801, its root 3
    np.testing.assert_allclose(p.data[0], 0.9 + 0.1 * (0.03 / 0.19) / 3, rtol=1e-13)


# --- fifty steps against the formulas ----------------------------------------------------------------------------


def written_out(name, p, gradients):
    """The papers' formulas with sums over the whole history instead of running averages."""
    g = np.array(gradients)
    for t in range(1, len(g) + 1):
        age = np.arange(t)[::-1].reshape(-1, *[1] * p.ndim)
        past = g[:t]
        if name == "sgd":
            p = p - 0.1 * g[t - 1]
        elif name == "momentum":
            p = p - 0.1 * (0.9**age * past).sum(0)
        elif name == "rmsprop":
            p = p - 0.01 * g[t - 1] / (np.sqrt((0.1 * 0.9**age * past**2).sum(0)) + 1e-8)
        elif name == "muon" and p.ndim > 1:
            m = 0.2 * (0.8 ** (age + 1) * past).sum(0) + 0.2 * past[-1]  # Nesterov's, one step ahead
            p = p - 0.01 * 0.2 * np.sqrt(max(p.shape[0], p[0].size)) * by_singular_values(m)
        else:
            b1, b2 = (0.8, 0.95) if name == "adam" else (0.9, 0.999)
            m = (b1**age * past).sum(0) / (b1**age).sum(0)  # weights that sum to one: the bias is gone
            v = (b2**age * past**2).sum(0) / (b2**age).sum(0)
            p = p - 0.01 * m / (np.sqrt(v) + 1e-8)
    return p


def by_singular_values(g):
    """The five steps of Newton and Schulz on the singular values alone."""
    u, s, v = np.linalg.svd(g.reshape(len(g), -1), full_matrices=False)
    s = s / (np.sqrt((s**2).sum()) + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s @ v).reshape(g.shape)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fifty_steps(name, device, rng):
    shapes = [(3, 2), (2, 5, 3, 1), (4,), ()]
    start = [rng.standard_normal(shape) for shape in shapes]
    gradients = [[rng.standard_normal(shape) for shape in shapes] for _ in range(50)]
    parameters = [parameter(p, device) for p in start]
    optimizer = OPTIMIZERS[name](parameters)
    for step in gradients:
        give(parameters, step)
        optimizer.step()
    assert optimizer.steps == 50
    for i, p in enumerate(parameters):
        assert p.dtype == np.float64 and p.device == device
        expected = written_out(name, start[i], [step[i] for step in gradients])
        np.testing.assert_allclose(to_host(p.data), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5), (1, 7), (7, 1)])
def test_orthogonalized(shape, device, rng):
    """All singular values of the result are near 1, whatever those of g are (from 1 to 1/30 here)."""
    u, _, v = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    g = u * np.geomspace(1, 1 / 30, min(shape)) @ v
    o = to_host(orthogonalized(to_device(g, device)))
    assert o.shape == shape
    np.testing.assert_allclose(np.linalg.svd(o)[1], 1, atol=0.35)
    np.testing.assert_allclose(to_host(orthogonalized(to_device(1e4 * g, device))), o, rtol=1e-4)
    np.testing.assert_allclose(u.T @ o @ v.T, np.diag(np.diag(u.T @ o @ v.T)), atol=1e-12)  # the same directions


@pytest.mark.parametrize("size", [1e-15, 1e-25, 1e-38])
def test_what_is_left_of_a_gradient_that_has_ended_moves_nothing(size, rng):
    """In float32 the squares of such small numbers are zero, which would be divided by."""
    g = np.float32(size) * rng.standard_normal((6, 8), np.float32)
    with np.errstate(over="raise", invalid="raise"):
        assert np.abs(orthogonalized(g)).max() < 1e-4


def test_orthogonalized_zero_and_masked():
    assert (orthogonalized(np.zeros((3, 4))) == 0).all()
    g = np.random.default_rng(0).standard_normal((6, 8))
    g[:, 2::3] = 0  # weights that a mask forbids have no gradient, and stay
    assert (orthogonalized(g)[:, 2::3] == 0).all()
    g[:, 2::3] = 1e-25  # what is left of the momentum of a dead unit: its products would be denormal, which is slow
    assert (orthogonalized(g)[:, 2::3] == 0).all()


@pytest.mark.parametrize("optimizer", [SGD, Muon])
def test_weight_decay_by_hand(optimizer, rng):
    """Weights shrink by lr weight_decay and then move as without it; parameters of one dimension do not shrink."""
    shapes = [(2, 2), (2,), (3, 2, 2, 1)]
    start, gradients = ([rng.standard_normal(shape) for shape in shapes] for _ in range(2))
    plain, decayed = ([parameter(values) for values in start] for _ in range(2))
    optimizers = optimizer(plain, lr=0.1), optimizer(decayed, lr=0.1, weight_decay=0.3)
    for rate in 0.1, 0.02:
        before = [(p.data.copy(), q.data.copy()) for p, q in zip(plain, decayed)]
        for optimizer in optimizers:
            optimizer.lr = rate
            give(optimizer.parameters, gradients)
            optimizer.step()
        for p, q, (p_before, q_before) in zip(plain, decayed, before):
            left = 1 - 0.3 * rate if p.ndim > 1 else 1
            np.testing.assert_allclose(q.data, left * q_before + (p.data - p_before), rtol=1e-12)


def test_l1_by_hand(rng):
    """Weights end lr l1 nearer to zero than without it, or at zero; parameters of one dimension do not."""
    start, gradients = ([rng.standard_normal(shape) for shape in [(4, 5), (6,)]] for _ in range(2))
    plain, shrunk = ([parameter(values) for values in start] for _ in range(2))
    for optimizer in Adam(plain, lr=0.1), Adam(shrunk, lr=0.1, l1=3.0):
        give(optimizer.parameters, gradients)
        optimizer.step()
    p, q = plain[0].data, shrunk[0].data
    np.testing.assert_allclose(q, np.sign(p) * np.maximum(abs(p) - 0.3, 0), atol=1e-15)
    assert 0 < (q == 0).sum() < 20
    np.testing.assert_array_equal(shrunk[1].data, plain[1].data)
    with pytest.raises(ValueError, match=r"l1: got -1, needs a number in \[0, inf\)"):
        Adam(plain, lr=0.1, l1=-1)


@pytest.mark.parametrize(
    "decay, message",
    [
        (-0.1, r"weight_decay: got -0.1"),
        (np.nan, r"weight_decay: got nan"),
        (10.0, r"lr weight_decay: got 1.0"),
    ],
)
@pytest.mark.parametrize("optimizer", [SGD, Muon])
def test_a_decay_that_turns_weights_round_is_refused(optimizer, decay, message):
    with pytest.raises(ValueError, match=message):
        optimizer([parameter([1.0])], lr=0.1, weight_decay=decay)


def test_muon_is_as_jordan_says_and_keeps_squares_of_vectors_alone():
    p, q = parameter([1.0, 2.0]), parameter([[1.0, 2.0]])
    optimizer = Muon([p, q], lr=0.01)
    assert (optimizer.momentum, optimizer.betas, optimizer.eps) == (0.95, (0.9, 0.999), 1e-8)
    assert [set(state) for state in optimizer.state] == [{"mean", "square"}, {"mean"}]


@pytest.mark.parametrize(
    "make, setting",
    [
        (SGD, "momentum"),
        (RMSProp, "alpha"),
        (Adam, "betas"),
        (Muon, "betas"),
        (Muon, "momentum"),
    ],
)
def test_averages_that_never_forget_are_refused(make, setting):
    for value in (1.0, -0.1, np.nan):
        name = "betas[1]" if setting == "betas" else setting
        with pytest.raises(ValueError, match=re.escape(f"{name}: got {value}")):
            make([parameter([1.0])], lr=0.1, **{setting: (0.9, value) if setting == "betas" else value})


@pytest.mark.parametrize("eps", [-1e-8, np.nan, "1e-8"])
@pytest.mark.parametrize("make", [RMSProp, Adam])
def test_a_negative_eps_is_refused(make, eps):
    with pytest.raises(ValueError, match=r"eps: got"):
        make([parameter([1.0])], lr=0.1, eps=eps)


@every_optimizer
def test_float32_stays(make, device):
    p, q = parameter([1.0, 2.0], device, np.float32), parameter([[1.0, 2.0]], device, np.float32)
    optimizer = make([p, q])
    give([p, q], [[0.1, 0.2], [[0.3, 0.4]]])
    optimizer.step()
    assert p.dtype == q.dtype == np.float32
    assert all(a.dtype == np.float32 for slots in optimizer.state for a in slots.values())


@every_optimizer
def test_step_moves_nothing_between_host_and_device(make, strict):
    p = parameter(np.ones((3, 4)), "cuda", np.float32)
    optimizer, average = make([p]), Average([p], 0.9)
    p.grad = Tensor(p.data * 2)
    strict.count.clear()
    for _ in range(3):
        optimizer.step()
        average.step()
    average.swap()
    assert not strict.count


def test_gradients_are_left_as_they_are():
    p = parameter([1.0, 2.0])
    q = parameter([[1.0, 2.0]])
    for make in OPTIMIZERS.values():
        give([p, q], [[0.5, -0.25], [[1.0, 2.0]]])
        make([p, q]).step()
        assert p.grad.data.tolist() == [0.5, -0.25] and q.grad.data.tolist() == [[1.0, 2.0]]


# --- errors ------------------------------------------------------------------------------------------------------


@every_optimizer
def test_missing_gradient_changes_nothing(make):
    parameters = [parameter([1.0]), parameter([2.0]), parameter([3.0])]
    optimizer = make(parameters)
    give(parameters[:1], [[1.0]])
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"step: parameters \[1, 2\] have no gradient"):
        optimizer.step()
    assert [p.data.item() for p in parameters] == [1.0, 2.0, 3.0]
    np.testing.assert_equal(optimizer.state_dict(), before)


def test_zero_grad():
    p = parameter([1.0])
    give([p], [[1.0]])
    SGD([p], lr=1).zero_grad()
    assert p.grad is None


@every_optimizer
def test_a_gradient_of_another_shape_changes_nothing(make):
    p, q = parameter([1.0]), parameter([2.0, 3.0])
    optimizer = make([p, q])
    give([p, q], [[1.0], [1.0]])  # (1,) would broadcast to (2,)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"step: parameter 1 has shape \(2,\), its gradient \(1,\)"):
        optimizer.step()
    assert p.data.tolist() == [1.0] and q.data.tolist() == [2.0, 3.0]
    np.testing.assert_equal(optimizer.state_dict(), before)


@every_optimizer
def test_a_parameter_counts_once(make):
    once, twice = parameter([1.0]), parameter([1.0])
    for p, optimizer in ((once, make([once])), (twice, make([twice, twice]))):
        give([p], [[0.5]])
        optimizer.step()
    assert once.data.item() == twice.data.item() != 1.0


def test_one_parameter_is_taken_as_it_is():
    p = parameter([[1.0, 2.0], [3.0, 4.0]])
    assert [q is p for q in SGD(p, lr=1).parameters] == [True]


@every_optimizer
def test_a_frozen_parameter_stays(make):
    p, q = parameter([1.0]), parameter([[2.0]])
    optimizer = make([p, q])
    q.requires_grad = False
    give([p], [[0.5]])
    optimizer.step()
    assert p.data.item() != 1.0 and q.data.item() == 2.0


@pytest.mark.parametrize("lr", [0, -1.0, float("nan"), float("inf"), "0.1", None])
def test_bad_rate(lr):
    with pytest.raises(ValueError, match=r"lr: got"):
        Adam([parameter([1.0])], lr=lr)


@pytest.mark.parametrize("parameters, got", [([], "none"), (None, "NoneType"), (nn.Linear, "type"), ([1.0], "float")])
def test_no_parameters(parameters, got):
    with pytest.raises(ValueError, match=f"parameters: got {got}"):
        SGD(parameters, lr=1)


# --- state -------------------------------------------------------------------------------------------------------


@every_optimizer
def test_state_round_trip(make, device, rng):
    start, gradients = rng.standard_normal((2, 3)), rng.standard_normal((10, 2, 3))

    def go(p, optimizer, gradients):
        for g in gradients:
            give([p], [g])
            optimizer.step()

    p = parameter(start, device)
    optimizer = make([p])
    go(p, optimizer, gradients[:5])
    state, middle = optimizer.state_dict(), np.array(to_host(p.data))
    assert all(isinstance(value, np.ndarray) for value in state.values())
    kept = copy.deepcopy(state)
    go(p, optimizer, gradients[5:])
    np.testing.assert_equal(state, kept)  # a copy: later steps do not reach it

    q = parameter(middle, device)
    other = make([q])
    other.load_state_dict(state)
    go(q, other, gradients[5:])
    assert np.array_equal(to_host(p.data), to_host(q.data))
    np.testing.assert_equal(state, kept)


@pytest.mark.parametrize(
    "other",
    [
        lambda p: RMSProp([p], lr=1),
        lambda p: SGD([p], lr=1),
        lambda p: Adam([p, parameter([1.0, 2.0])], lr=1),
        lambda p: Adam([parameter([1.0])], lr=1),
    ],
    ids=["rmsprop", "sgd", "two", "shape"],
)
def test_foreign_state_is_refused(other):
    p = parameter([1.0, 2.0])
    optimizer = Adam([p], lr=1)
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match="of other parameters or another optimizer"):
        optimizer.load_state_dict(other(p).state_dict())
    np.testing.assert_equal(optimizer.state_dict(), before)


# --- schedule and averaging --------------------------------------------------------------------------------------


def test_cosine():
    assert cosine(0.0) == 0
    assert cosine(0.01) == pytest.approx(0.5)
    assert cosine(0.02) == 1
    assert cosine(0.51) == pytest.approx(0.5)  # half way from 0.02 to 1
    assert cosine(1.0) == pytest.approx(0, abs=1e-15)
    assert cosine(0.0, warmup=0) == 1
    assert cosine(0.25, warmup=0) == pytest.approx((1 + 0.5**0.5) / 2)
    up, down = np.linspace(0, 0.1, 50), np.linspace(0.1, 1, 50)
    assert (np.diff([cosine(t, 0.1) for t in up]) > 0).all() and (np.diff([cosine(t, 0.1) for t in down]) < 0).all()


def test_average_by_definition(device, rng):
    start, path = rng.standard_normal((2, 3)), rng.standard_normal((120, 2, 3))
    p = parameter(start, device)
    average = Average([p], 0.9)
    expected = start
    for t, weights in enumerate(path, 1):
        p.data = to_device(weights, device)
        average.step()
        keep = min(0.9, t / (t + 10))  # 0.9 from t = 90 on
        expected = keep * expected + (1 - keep) * weights
    average.swap()
    np.testing.assert_allclose(to_host(p.data), expected, rtol=1e-12)
    average.swap()
    assert np.array_equal(to_host(p.data), path[-1])


def test_average_of_constant_weights():
    p = parameter([1.0, -2.0])
    average = Average([p], 0.99)
    for _ in range(20):
        average.step()
    assert average.values[0].tolist() == [1.0, -2.0]
    assert average.values[0] is not p.data


@pytest.mark.parametrize("decay", [0, 1, -0.5, 2])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match=r"averaging: got"):
        Average([parameter([1.0])], decay)


@pytest.mark.parametrize("betas", [0.9, None, (0.9,), (0.9, 0.9, 0.9), "99"])
def test_betas_are_two(betas):
    with pytest.raises(ValueError, match=r"betas(\[0\])?: got"):
        Adam([parameter([1.0])], lr=0.1, betas=betas)


@pytest.mark.parametrize(
    "change", [{"steps": np.array(-1)}, {"steps": np.array(1.5)}, {"0.mean": np.ones(1, complex)}, None]
)
def test_a_malformed_state_is_refused(change):
    optimizer = Adam([parameter([1.0])], lr=0.1)
    state = None if change is None else {**optimizer.state_dict(), **change}
    with pytest.raises(ValueError, match="of other parameters or another optimizer"):
        optimizer.load_state_dict(state)


def test_a_gradient_that_is_no_tensor_is_missing():
    p = parameter([1.0])
    p.grad = np.ones(1)
    with pytest.raises(ValueError, match=r"parameters \[0\] have no gradient"):
        SGD([p], lr=0.1).step()
