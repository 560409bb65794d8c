"""Continuous flows: the solvers against known solutions, log-densities against Jacobians and a closed form, the trace
against its estimate, densities in the plane against integrals."""

import math

import numpy as np
import pytest

from tinygen import Tensor, grad, gradcheck, no_grad
from tinygen.backend import to_device
from tinygen.densities import DENSITIES, Mixture
from tinygen.models import FFJORD
from tinygen.nn import Module, Parameter
from tinygen.ode import DOPRI5, RK4, dopri5, rk4
from tinygen.optim import Adam, Muon
from tinygen.tensor import enable_grad, recording
from tinygen.training import evaluate, fit

PLANE = np.stack(np.meshgrid(*[np.linspace(-5, 5, 81)] * 2), -1).reshape(-1, 1, 1, 2)
CELL = (10 / 80) ** 2


def build(shape=(1, 1, 2), hidden=(8, 8), dtype=np.float64, size=0.7, **settings):
    """A model whose velocity is anything but zero."""
    rng = np.random.default_rng(3)
    model = FFJORD(shape, hidden=hidden, rng=rng, **settings)
    for p in model.parameters():
        p.data = (size * rng.standard_normal(p.shape) / np.sqrt(max(1, p.size / len(p.data)))).astype(dtype)
    return model


def layer(model):
    return model.scales[0][0]


# -- solvers


def equal_steps(f, y, start, stop, steps):
    return rk4(f, y, np.linspace(start, stop, steps + 1).tolist())


def turn(t, x, y):
    """The harmonic oscillator: its solution turns by the angle t."""
    return y, -x


def turned(solver, dtype=np.float64, angle=2.0, **settings):
    """The largest error at t = ``angle`` from (1, 0) and (0.5, 2) at t = 0."""
    start = np.array([[1.0, 0.0], [0.5, 2.0]]).T
    x, y = solver(turn, tuple(Tensor(part.astype(dtype)) for part in start), 0.0, angle, **settings)
    (a, b), cos, sin = start, np.cos(angle), np.sin(angle)
    return max(np.abs(x.data - (cos * a + sin * b)).max(), np.abs(y.data - (cos * b - sin * a)).max())


def test_rk4_has_order_4():
    errors = [turned(equal_steps, steps=n) for n in (16, 32, 64)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, 4, atol=0.06)


def test_time_enters_a_step():
    """dy/dt = 5 t^4 has the solution t^5: RK4 integrates cubics exactly, and Dormand-Prince this."""
    one = (Tensor(np.ones(1)),)
    (cubic,) = rk4(lambda t, y: (Tensor(np.full(1, 4 * t**3)),), one, [1.0, 3.0])
    np.testing.assert_allclose(cubic.data, 81, rtol=1e-13)
    (quintic,) = dopri5(lambda t, y: (Tensor(np.full(1, 5 * t**4)),), one, 1.0, 3.0, 0.0, 1e3)
    np.testing.assert_allclose(quintic.data, 243, rtol=1e-12)


@pytest.mark.parametrize("tableau, order", [(RK4, 4), (DOPRI5, 5)])
def test_tableaus_meet_the_conditions_of_their_order(tableau, order):
    """sum_i b_i c_i^(q-1) = 1/q for q up to the order, and each c_i is the sum of its row (Hairer et al., II.1)."""
    b, c = np.array(tableau.b), np.array([0, *tableau.c])
    np.testing.assert_allclose([sum(row) for row in tableau.a], tableau.c, rtol=1e-14)
    np.testing.assert_allclose([b @ c ** (q - 1) for q in range(1, order + 1)], 1 / np.arange(1, order + 1), rtol=1e-12)
    if tableau.error:  # the other result has order 4
        e = np.array(tableau.error)
        np.testing.assert_allclose([e @ c ** (q - 1) for q in range(1, 5)], 0, atol=1e-15)
        assert abs(e @ c**4) > 1e-4


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_dopri5_meets_its_tolerance(tolerance):
    calls = []

    def counted(t, x, y):
        calls.append(t)
        return turn(t, x, y)

    settings = {"rtol": tolerance, "atol": tolerance, "angle": 20.0}
    error = turned(lambda f, *given, **kw: dopri5(counted, *given, **kw), **settings)
    assert 0.01 * tolerance < error < 40 * tolerance  # errors of steps add up along the way
    assert len(calls) < 60 * tolerance ** (-1 / 5) + 100 and max(calls) <= 20  # order 5, and never past the end


def test_dopri5_takes_small_steps_only_where_it_must():
    """y' = 1 / (0.01 + t^2) is steep at 0 alone: its solution is 10 arctan(10 t)."""
    times = []

    def steep(t, y):
        times.append(t)
        return (Tensor(np.full(1, 1 / (0.01 + t * t))),)

    (y,) = dopri5(steep, (Tensor(np.zeros(1)),), -3.0, 3.0, 1e-8, 1e-8)
    np.testing.assert_allclose(y.data, 20 * math.atan(30), rtol=1e-7)
    near = np.mean(np.abs(times) < 0.3)
    assert near > 0.35  # a tenth of the way


@pytest.mark.parametrize("solver, settings", [(equal_steps, {"steps": 20}), (dopri5, {"rtol": 1e-10, "atol": 1e-10})])
def test_gradients_through_a_solution(solver, settings):
    """y' = a y + b: y(1) = e^a y + b (e^a - 1) / a, and back again."""
    a, b, y = (Tensor(np.array([v]), requires_grad=True) for v in (0.7, -0.4, 1.3))
    (end,) = solver(lambda t, y: (a * y + b,), (y,), 0.0, 1.0, **settings)
    e = np.exp(0.7)
    np.testing.assert_allclose(end.data, e * 1.3 - 0.4 * (e - 1) / 0.7, rtol=1e-6)
    expected = e * 1.3 - 0.4 * (e / 0.7 - (e - 1) / 0.49), (e - 1) / 0.7, e
    for g, value in zip(grad(end, [a, b, y]), expected, strict=True):
        np.testing.assert_allclose(g.data, value, rtol=1e-6)
    (start,) = solver(lambda t, y: (a * y + b,), (end,), 1.0, 0.0, **settings)
    np.testing.assert_allclose(start.data, 1.3, rtol=1e-6)


def test_what_cannot_be_solved_is_said():
    y = (Tensor(np.ones(2, np.float32)),)
    with pytest.raises(FloatingPointError, match=r"dopri5: at t = 0 the step has shrunk to .*float32"):
        dopri5(lambda t, y: (y * np.nan,), y, 0.0, 1.0)
    with pytest.raises(FloatingPointError, match="dopri5: at t = 1 the step"):  # y = 1 / (1 - t)
        dopri5(lambda t, y: (y * y,), (Tensor(np.ones(2)),), 0.0, 2.0)
    with pytest.raises(ValueError, match=r"times: got \[0.0\], needs two or more"):
        rk4(turn, y, [0.0])
    with pytest.raises(ValueError, match=r"atol: got 0, needs a number in \(0, inf\)"):
        dopri5(turn, y, 0.0, 1.0, 1e-3, 0)


# -- the engine


def test_a_derivative_inside_no_grad(rng):
    x = Tensor(rng.standard_normal(3), requires_grad=True)
    with no_grad():
        with enable_grad():
            (g,) = grad((x**3).sum(), x)
            with no_grad():
                assert not recording()
            assert recording()
        assert not recording()
    np.testing.assert_allclose(g.data, 3 * x.data**2)
    assert recording()
    with pytest.raises(ValueError), no_grad(), enable_grad():
        raise ValueError
    assert recording()


def test_a_derivative_with_respect_to_a_late_value_visits_only_what_follows(rng):
    x = Tensor(rng.standard_normal(3), requires_grad=True)
    early = x.exp()
    late = early * early
    (g,) = grad((late.sin() * early).sum(), late)
    np.testing.assert_allclose(g.data, np.cos(late.data) * early.data)
    g, h = grad((late.sin() * early).sum(), [late, early])
    np.testing.assert_allclose(g.data, np.cos(late.data) * early.data)
    np.testing.assert_allclose(h.data, np.sin(late.data) + 2 * np.cos(late.data) * early.data**2)


# -- the flow


def jacobian(f, x, out):
    """(N, out, D) of the function f of images x, one output at a time."""
    x = Tensor(x, requires_grad=True)
    y = f(x).reshape(x.shape[0], -1)
    return np.stack([grad(y[:, i].sum(), x)[0].data.reshape(len(x), -1) for i in range(out)], 1)


@pytest.mark.parametrize("shape, levels", [((1, 1, 1), None), ((1, 1, 2), None), ((2, 1, 2), None), ((1, 2, 2), 5)])
def test_log_prob_is_the_determinant_of_the_jacobian(shape, levels, rng):
    model, d = build(shape, levels=levels, rtol=1e-9), math.prod(shape)
    x = rng.uniform(0.5, 4.5, (4, *shape)) if levels else rng.standard_normal((4, *shape))
    log_det = np.linalg.slogdet(jacobian(model.encode, x, d))[1]
    z = model.encode(x).data
    expected = -0.5 * (z**2).sum(1) - d / 2 * np.log(2 * np.pi) + log_det
    np.testing.assert_allclose(model.log_prob(x).data, expected, rtol=1e-6)
    assert np.abs(log_det).max() > 0.04  # the test has power


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 2, 3)])
def test_trace(shape, rng):
    """Exact against the full Jacobian, and Hutchinson's estimate against it in the mean."""
    model, d, n = build(shape), math.prod(shape), 4000
    z = rng.standard_normal((3, d))
    expected = np.trace(jacobian(lambda z: layer(model).velocity(z, 0.3), z, d), axis1=1, axis2=2)
    f, trace, smoothness = layer(model).derivative(Tensor(z), 0.3, layer(model).units(Tensor(z)))
    np.testing.assert_allclose(trace.data, expected, rtol=1e-12)
    np.testing.assert_allclose(f.data, layer(model).velocity(Tensor(z), 0.3).data)
    full = jacobian(lambda z: layer(model).velocity(z, 0.3), z, d)
    np.testing.assert_allclose(smoothness.data, -(f.data**2).sum(1) - (full**2).sum((1, 2)))
    e = Tensor(rng.integers(0, 2, (1, 3 * n, d)) * 2.0 - 1)
    draws = layer(model).derivative(Tensor(np.repeat(z, n, 0)), 0.3, e)[1].data.reshape(3, n)
    assert (np.abs(draws.mean(1) - expected) < 4 * draws.std(1) / np.sqrt(n)).all() and (draws.std(1) > 0.01).all()


def test_both_losses_agree_in_the_mean(rng):
    x = rng.standard_normal((1, 1, 1, 2))
    exact, draws = (build(trace=trace, steps=6, smooth=0) for trace in ("exact", "hutchinson"))
    many = [draws.loss(np.repeat(x, 200, 0), rng).item() for _ in range(5)]
    np.testing.assert_allclose(np.mean(many), exact.loss(x).item(), atol=5 * np.std(many) / np.sqrt(5) + 1e-12)
    assert np.std(many) > 1e-5
    fine = build(trace="exact", steps=40, smooth=0)
    np.testing.assert_allclose(fine.loss(x).item(), exact.score(x).data.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    "shape, levels, dtype, tolerance",
    [
        ((1, 1, 2), None, np.float32, 1e-4),
        ((1, 1, 2), None, np.float64, 1e-10),
        ((3, 2, 2), None, np.float64, 1e-7),
        ((1, 3, 2), 17, np.float32, 1e-4),
        ((1, 3, 2), 17, np.float64, 1e-7),
    ],
)
def test_there_and_back(shape, levels, dtype, tolerance, rng):
    model = build(shape, levels=levels, dtype=dtype, rtol=tolerance / 10)
    x = rng.uniform(1, 16, (5, *shape)) if levels else rng.standard_normal((5, *shape))
    z = model.encode(x)
    assert z.shape == (5, math.prod(shape)) and z.dtype == dtype
    np.testing.assert_allclose(model.decode(z).data, x, rtol=10 * tolerance, atol=10 * tolerance)
    assert np.abs(z.data.reshape(x.shape) - x).max() > 0.1


def test_density_integrates_to_one(rng):
    model = build(size=1.0, rtol=1e-4)
    p = np.exp(model.log_prob(PLANE).data)
    np.testing.assert_allclose(p.sum() * CELL, 1, atol=1e-3)
    x = model.sample(20_000, rng).reshape(-1, 2)
    flat = PLANE.reshape(-1, 2)
    mean = (p[:, None] * flat).sum(0) * CELL
    covariance = (p[:, None, None] * (flat - mean)[:, :, None] * (flat - mean)[:, None]).sum(0) * CELL
    np.testing.assert_allclose(x.mean(0), mean, atol=0.05)
    np.testing.assert_allclose(np.cov(x.T), covariance, rtol=0.05, atol=0.03)
    assert np.abs(covariance - np.eye(2)).max() > 0.1


class Affine(Module):
    def __init__(self, a, b):
        self.a, self.b = Parameter(a), Parameter(b)

    def forward(self, z, t):
        return z @ self.a.T + self.b


def test_linear_velocity_gives_a_gaussian(rng):
    """dz/dt = A z + b with constant A: x ~ N(m, S), where e^A = 1 + A + A^2 / 2 + ... gives S = e^A e^A^T."""
    model, a, b = build(rtol=1e-10), rng.standard_normal((2, 2)), rng.standard_normal(2)
    layer(model).velocity = Affine(a, b)
    power, e, integral = np.eye(2), np.zeros((2, 2)), np.zeros((2, 2))
    for k in range(1, 40):
        e, integral, power = e + power, integral + power / k, power @ a / k
    x = rng.standard_normal((6, 1, 1, 2))
    delta = x.reshape(-1, 2) - integral @ b
    s = e @ e.T
    expected = -0.5 * (delta * np.linalg.solve(s, delta.T).T).sum(1) - 0.5 * np.linalg.slogdet(2 * np.pi * s)[1]
    np.testing.assert_allclose(model.log_prob(x).data, expected, rtol=1e-8)
    model.trace, model.steps, model.smooth = "exact", 30, 0
    np.testing.assert_allclose(model.loss(x).item(), -expected.mean(), rtol=1e-5)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize("shape, levels", [((1, 1, 2), None), ((1, 1, 2), 4)])
def test_gradients(trace, shape, levels, rng):
    model = build(shape, (2,), levels=levels, trace=trace, steps=1)
    x = rng.integers(0, levels, (3, *shape)) if levels else rng.standard_normal((3, *shape))
    gradcheck(lambda: model.loss(x, np.random.default_rng(1)), (), parameters=model)


def test_gradients_of_log_prob_are_those_of_the_loss_with_many_steps(rng):
    """... but for the tolerance: they are the gradients of the steps that were taken."""
    model = build(rtol=1e-8, steps=40, smooth=0, trace="exact")
    x = Tensor(rng.standard_normal((3, 1, 1, 2)), requires_grad=True)
    wanted = [x, *model.parameters()]
    for g, expected in zip(grad(-model.log_prob(x).mean(), wanted), grad(model.loss(x, rng), wanted), strict=True):
        np.testing.assert_allclose(g.data, expected.data, rtol=1e-5, atol=1e-7)


def test_noise_needs_no_graph(rng):
    """Under no_grad log_prob is the same, and nothing is recorded."""
    model, x = build(), rng.standard_normal((4, 1, 1, 2))
    recorded = model.log_prob(x)
    with no_grad():
        p = model.log_prob(x)
    np.testing.assert_array_equal(p.data, recorded.data)
    assert recorded.requires_grad and not p.requires_grad


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize("levels", [None, 17])
def test_a_training_step_on_every_device(trace, levels, rng, device):
    model = build((1, 2, 2), levels=levels, trace=trace)
    x, results = rng.integers(0, 17, (3, 1, 2, 2)), []
    for where in ("cpu", device):
        model.to(where)
        loss = model.loss(to_device(x if levels else x / 10, where), np.random.default_rng(1))
        results.append([loss.numpy(), *(g.numpy() for g in grad(loss, model.parameters()))])
        results[-1] += [model.log_prob(to_device(x / 1.0, where)).numpy(), model.sample(3, np.random.default_rng(2))]
        results[-1][-1] = results[-1][-1].get() if where == "cuda" else results[-1][-1]
    for host, there in zip(*results, strict=True):
        np.testing.assert_allclose(there, host, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("trace, copies", [("exact", {}), ("hutchinson", {"h2d": 1})])
def test_a_training_step_never_waits_for_the_device(trace, copies, rng, strict):
    model = build(trace=trace, dtype=np.float32).to("cuda")
    x, optimizer = to_device(rng.standard_normal((3, 1, 1, 2)), "cuda"), Adam(model.parameters(), 0.01)
    strict.count.clear()
    model.loss(x, rng).backward()
    optimizer.step()
    assert +strict.count == copies
    assert all(p.dtype == np.float32 for p in model.parameters())


@pytest.fixture
def shards_of_16(monkeypatch):
    monkeypatch.setattr("tinygen.parallel.shard_size", lambda *_: 16)


def test_workers_and_a_resumed_run_give_the_same_bits(rng, shards_of_16, tmp_path):
    x, found = rng.standard_normal((80, 1, 1, 2)).astype(np.float32), []
    for workers, stops, file in ((1, [6], None), (2, [6], None), (2, [3, 6], tmp_path / "run.npz")):
        for steps in stops:
            model = FFJORD(hidden=(8,), steps=2, rng=np.random.default_rng(0))
            options = {"batch_size": 48, "workers": workers, "checkpoint": file, "progress": False, "averaging": 0.9}
            optimizer = Muon(model.parameters(), 0.05)
            fit(model, x, steps=steps, optimizer=optimizer, rng=np.random.default_rng(1), **options)
        found.append(b"".join(value.tobytes() for value in model.state_dict().values()))
    assert found[0] == found[1] == found[2]


def test_it_learns_a_density(shards_of_16):
    """A Gaussian that is wide and off the centre, to within 0.05 nats of its entropy, in a few seconds."""
    target = Mixture(np.array([[0.5, -0.5]]), np.array([[1.5, 0.3]]), np.array([0.6]))
    x = target.sample(2000, np.random.default_rng(0)).astype(np.float32)
    model = FFJORD(hidden=(16,), steps=2, rng=np.random.default_rng(0))
    before = evaluate(model, x[:200], rng=np.random.default_rng(0))
    optimizer = Muon(model.parameters(), 0.05)
    fit(model, x, steps=100, optimizer=optimizer, rng=np.random.default_rng(0), batch_size=32, progress=False)
    held_out = target.sample(500, np.random.default_rng(1))
    gap = -model.log_prob(held_out).data.mean() + target.log_prob(held_out).mean()
    assert gap < 0.05 < 0.5 < before - target.entropy


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"image_shape": (2,)}, r"image_shape: got \(2,\), needs \(channels, height, width\)"),
        ({"levels": 1}, "levels: got 1, needs a whole number from 2 to 65536"),
        ({"hidden": ()}, r"hidden: got \(\), needs whole numbers, each at least 1"),
        ({"hidden": 64}, "hidden: got 64, needs whole numbers, each at least 1"),
        ({"steps": 0}, "steps: got 0, needs a whole number of at least 1"),
        ({"trace": "none"}, "trace: got 'none', needs 'exact' or 'hutchinson'"),
        ({"smooth": -1}, r"smooth: got -1, needs a number in \[0, inf\)"),
        ({"rtol": 0}, r"rtol: got 0, needs a number in \(0, 1\)"),
        ({"rng": 0}, "rng: got 0, needs a generator"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message, rng):
    with pytest.raises(ValueError, match=message):
        FFJORD(**{"rng": rng, **settings})


def test_images_that_do_not_fit_are_refused(rng):
    model = build(levels=5, trace="hutchinson")
    for x, message in (
        (np.zeros((2, 2)), r"images has shape \(2, 2\), needs \(N, 1, 1, 2\)"),
        (np.full((2, 1, 1, 2), 5), "images: values from 5 to 5, needs whole numbers 0 .. 4"),
    ):
        with pytest.raises(ValueError, match=message):
            model.loss(x, rng)
    with pytest.raises(ValueError, match="rng: got None, needs a generator"):
        build().loss(np.zeros((2, 1, 1, 2)))
    with pytest.raises(ValueError, match=r"code has shape \(3, 4\), needs \(N, 2\)"):
        model.decode(np.zeros((3, 4)))


# -- the densities


@pytest.mark.parametrize("name", DENSITIES)
def test_a_density_is_one(name, rng):
    """It integrates to one, its entropy is -integral of p log p, and its samples fall where it says."""
    density, width = DENSITIES[name], 1 / 16
    middle = np.arange(-4, 4, width) + width / 2
    grid = np.stack(np.meshgrid(middle, middle, indexing="ij"), -1)
    log_p = density.log_prob(grid).reshape(128, 128)
    p = np.exp(log_p)
    np.testing.assert_allclose(p.sum() * width**2, 1, atol=1e-3)
    entropy = -(p * np.where(p > 0, log_p, 0)).sum() * width**2
    np.testing.assert_allclose(density.entropy, entropy, atol=2e-3)
    x = density.sample(100_000, rng)
    assert x.shape == (100_000, 1, 1, 2)
    log_q = density.log_prob(x)
    assert abs(-log_q.mean() - density.entropy) < 4 * log_q.std() / np.sqrt(len(x)) + 1e-6
    counts = np.histogram2d(*x.reshape(-1, 2).T, bins=[np.arange(-4, 4.1, 0.5)] * 2)[0]
    expected = 100_000 * width**2 * p.reshape(16, 8, 16, 8).sum((1, 3))
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected) + 0.002 * expected + 3).all()
    assert counts.sum() > 99_990


def test_samples_need_a_generator_and_a_number(rng):
    for density in DENSITIES.values():
        with pytest.raises(ValueError, match="rng: got None, needs a generator"):
            density.sample(3, None)
        with pytest.raises(ValueError, match="n: got 0, needs a whole number of at least 1"):
            density.sample(0, rng)


def test_a_part_of_the_state_that_is_not_finite_is_an_error():
    y = Tensor(np.ones(1)), Tensor(np.ones(1))
    for f in (lambda t, a, b: (-a, b * np.nan), lambda t, a, b: (a * np.nan, -b)):
        with pytest.raises(FloatingPointError, match="the step has shrunk"):
            dopri5(f, y, 0.0, 1.0)
    for wrong in (np.nan, np.inf, "1"):
        with pytest.raises(ValueError, match="stop: got"):
            dopri5(lambda t, a, b: (a, b), y, 0.0, wrong)


def test_the_error_of_every_part_of_the_state_counts():
    slow, fast = Tensor(np.ones(1)), Tensor(np.ones(1))
    _, found = dopri5(lambda t, a, b: (0 * a, 40 * np.cos(40 * t) * (0 * b + 1)), (slow, fast), 0.0, 1.0, 1e-8, 1e-8)
    np.testing.assert_allclose(found.data, 1 + np.sin(40), atol=1e-6)


def test_the_loss_adds_smooth_times_the_roughness_of_the_path(rng):
    model, x = build(trace="exact"), rng.standard_normal((4, 1, 1, 2))
    losses = []
    for model.smooth in (0, 0.5, 1.0):
        losses.append(model.loss(x, np.random.default_rng(0)).item())
    assert losses[1] > losses[0]
    np.testing.assert_allclose(losses[2] - losses[1], losses[1] - losses[0])


def test_each_image_has_a_probe_of_its_own(rng, monkeypatch):
    model, seen = build(trace="hutchinson"), []
    layer = model.scales[0][0]
    backwards = layer.backwards
    monkeypatch.setattr(
        layer, "backwards", lambda x, probes, *how: seen.append(probes.data) or backwards(x, probes, *how)
    )
    model.loss(rng.standard_normal((50, 1, 1, 2)), np.random.default_rng(0))
    (probes,) = seen
    assert probes.shape == (1, 50, 2) and set(np.unique(probes)) == {-1, 1} and abs(probes.mean(1)).max() < 0.5
