"""The flows: inverses, log-determinants against whole Jacobians, densities against integrals, actnorm's first batch."""

import numpy as np
import pytest

from tinygen import Tensor, grad, gradcheck, ops
from tinygen.backend import to_device
from tinygen.models import NICE, Glow, RealNVP
from tinygen.models.explicit.tractable.flow import (
    MLP,
    ConvNet,
    Coupling,
    Flatten,
    Logistic,
    Normal,
    SoftUniform,
    Squeeze,
)
from tinygen.models.explicit.tractable.glow import ActNorm, InvertibleConv1x1
from tinygen.models.explicit.tractable.nice import Scaling
from tinygen.optim import Adam
from tinygen.training import _batch, fit

SMALL = {
    NICE: {"couplings": 3, "hidden": 5, "layers": 1},
    RealNVP: {"couplings": 2, "hidden": 4, "blocks": 1},
    Glow: {"steps": 2, "hidden": 4, "blocks": 1},
}
SHAPES = [(1, 4, 4), (1, 8, 4), (3, 4, 4), (2, 2, 2), (1, 5, 7), (3, 5, 3), (1, 1, 1), (1, 1, 2), (1, 1, 3), (1, 1, 8),
          (4, 1, 1), (1, 6, 1), (1, 3, 4)]  # fmt: skip
every_flow = pytest.mark.parametrize("model", SMALL)


def build(model, shape, levels, rng, dtype=np.float64, by=0.3, **settings):
    """Small, with no parameter at its special first value."""
    flow = model(shape, levels, **SMALL[model] | settings, rng=rng)
    for name, p in flow.named_parameters():
        first = 0.5 if name.endswith("factor") else p.data  # with larger scales float32 has too few digits
        p.data = (first + by * rng.standard_normal(p.shape)).astype(dtype)
    return flow


def draw(shape, levels, rng, n=3):
    return rng.standard_normal((n, *shape)) if levels is None else rng.uniform(0, levels, (n, *shape))


def log_dets(function, x):
    """log |det| of d function(x) / dx of each x[i], (N, ...) -> (N, D), from its whole Jacobian."""
    x = Tensor(x, requires_grad=True)
    z = function(x)
    rows = [grad(z[:, j].sum(), x)[0].data.reshape(len(x.data), -1) for j in range(z.shape[1])]
    return np.linalg.slogdet(np.stack(rows, 1))[1]


@every_flow
@pytest.mark.parametrize("levels", [None, 2, 256])
@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_inverts_encoding(model, levels, shape, rng):
    for dtype, tolerance in (np.float32, 1e-4), (np.float64, 1e-10):
        flow = build(model, shape, levels, rng, dtype, by=0.1)
        x = draw(shape, levels, rng).astype(dtype)
        z = flow.encode(x)
        assert z.shape == (3, np.prod(shape)) and z.dtype == dtype
        y = flow.decode(z)
        assert y.shape == x.shape and y.dtype == dtype
        np.testing.assert_allclose(y.data, x, rtol=0, atol=tolerance * (levels or 1))
        np.testing.assert_allclose(flow.encode(y).data, z.data, rtol=0, atol=20 * tolerance)


@every_flow
@pytest.mark.parametrize("levels", [None, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_log_det_is_that_of_the_jacobian(model, levels, shape, rng):
    flow, x = build(model, shape, levels, rng), draw(shape, levels, rng, 2)
    inside = flow.log_prob(x).data - flow.prior.log_prob(flow.encode(x)).data
    np.testing.assert_allclose(log_dets(flow.encode, x), inside, rtol=1e-8, atol=1e-8)


def layers(rng):
    mask = np.array([1, 0, 0, 1]).reshape(4, 1, 1)
    yield Squeeze(), (2, 4, 2)
    yield Flatten((2, 1, 3)), (2, 1, 3)
    yield Coupling(mask, ConvNet((4, 2, 3), 3, 1, rng=rng)), (4, 2, 3)
    yield Coupling(mask, ConvNet((4, 2, 3), 3, 1, outputs=1, rng=rng)), (4, 2, 3)
    yield Coupling(np.indices((1, 3, 3)).sum(0) % 2, ConvNet((1, 3, 3), 3, 1, rng=rng)), (1, 3, 3)
    yield Coupling(mask, MLP((4, 1, 1), 3, 1, rng=rng)), (4, 1, 1)
    yield Scaling((2, 2, 2)), (2, 2, 2)
    yield ActNorm(3), (3, 2, 2)
    yield InvertibleConv1x1(3, rng=rng), (3, 2, 2)


@pytest.mark.parametrize("i", range(9))
def test_each_layer(i, rng, monkeypatch, device):
    layer, shape = list(layers(rng))[i]
    for p in layer.parameters():
        p.data = p.data + 0.3 * rng.standard_normal(p.shape)
    x = rng.standard_normal((2, *shape))
    y, log_det = layer(Tensor(x))
    log_det = np.broadcast_to(log_det if isinstance(log_det, float) else log_det.data, 2)
    np.testing.assert_allclose(layer.inverse(y).data, x, atol=1e-12)
    np.testing.assert_allclose(log_dets(lambda x: layer(x)[0].reshape(2, -1), x), log_det, atol=1e-10)
    layer.to(device)
    there, _ = layer(Tensor(to_device(x, device)))
    np.testing.assert_allclose(there.numpy(), y.data, atol=1e-12)
    np.testing.assert_allclose(layer.inverse(there).numpy(), x, atol=1e-12)
    layer.to("cpu")
    monkeypatch.setattr(ops, "relu", ops.softplus)  # no kinks
    gradcheck(lambda x: [t for t in layer(x) if isinstance(t, Tensor)], (x,), parameters=layer)
    gradcheck(layer.inverse, (y.data,), parameters=layer)


@every_flow
@pytest.mark.parametrize("levels, shape", [(None, (1, 1, 3)), (3, (1, 2, 2)), (3, (1, 3, 3)), (None, (1, 4, 2))])
def test_the_loss_differentiates_twice(model, levels, shape, rng, monkeypatch):
    monkeypatch.setattr(ops, "relu", ops.softplus)
    flow = build(model, shape, levels, rng, **{"hidden": 2})
    x = draw(shape, None, rng, 2) if levels is None else rng.integers(0, levels, (2, *shape))
    gradcheck(lambda: flow.loss(x, np.random.default_rng(1)), (), parameters=flow)


def wide_line(n=701):
    """Points and the distances between them, close near 0 and far at the ends."""
    t, step = np.linspace(-7, 7, n, retstep=True)
    return np.sinh(t), np.cosh(t) * step


@every_flow
@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 1, 1)])
def test_a_density_of_two_numbers_integrates_to_one(model, shape, rng):
    flow = build(model, shape, None, rng, by=0.2)
    line, step = wide_line()
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, *shape)
    p = np.concatenate([np.exp(flow.log_prob(part).data) for part in np.array_split(grid, 8)])
    np.testing.assert_allclose((p * np.outer(step, step).reshape(-1)).sum(), 1, atol=2e-3)


@pytest.mark.parametrize("prior", [Normal(), Logistic(), SoftUniform(1)])
def test_priors(prior, rng):
    z, step = np.linspace(-60, 60, 240_001, retstep=True)
    for log_s in (-4.0, 0.5):
        for p in prior.parameters():
            p.data = np.full(1, log_s)
        p = np.exp(prior.log_prob(Tensor(z[:, None])).data)
        np.testing.assert_allclose(p.sum() * step, 1, atol=1e-6)
        draws = prior.sample((100_000, 1), rng)
        variance = (z**2 * p).sum() * step
        np.testing.assert_allclose(draws.var(), variance, rtol=0.03)
        cumulated = np.interp([-1.2, 0.0, 0.7], z, p.cumsum() * step)
        np.testing.assert_allclose([(draws < t).mean() for t in (-1.2, 0.0, 0.7)], cumulated, atol=0.006)
        gradcheck(prior.log_prob, (rng.standard_normal((3, 1)),), parameters=prior)
    far = prior.log_prob(Tensor(np.array([[-80.0], [80.0]], np.float32))).data
    assert np.isfinite(far).all() and far[0] == far[1] < -30


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("counted", [False, True])
@every_flow
def test_equalization_and_dequantization_count_once(model, levels, counted, rng):
    """One pixel: the density on [0, levels] by hand, its integral, and the bound's mean over u."""
    flow = build(model, (1, 1, 1), levels, rng)
    share = np.full(levels, 1 / levels)
    if counted:
        flow.counts.data = np.array([8, 2, 0][:levels])
        share = 0.1 / levels + 0.9 * np.array([0.8, 0.2, 0.0])[:levels]
    n = 2000
    x = ((np.arange(levels * n) + 0.5) / n).reshape(-1, 1, 1, 1)
    v = np.interp(x, np.arange(levels + 1), 2 * np.r_[0, np.cumsum(share)] - 1)
    z, log_det = flow._transform(Tensor(v), 0.0)  # on real numbers
    slope = 2 * share.repeat(n)
    by_hand = flow.prior.log_prob(z).data + np.broadcast_to(getattr(log_det, "data", 0.0), len(x)) + np.log(slope)
    log_p = flow.log_prob(x).data
    np.testing.assert_allclose(log_p, by_hand, atol=1e-9)
    ends = flow.encode(np.array([0.0, levels]).reshape(2, 1, 1, 1)).data[:, 0]
    grid = np.linspace(*sorted(ends), 20_001)
    inside = np.exp(flow.prior.log_prob(Tensor(grid[:, None])).data)
    np.testing.assert_allclose(np.exp(log_p).sum() / n, inside.mean() * (grid[-1] - grid[0]), rtol=1e-3)
    whole = np.repeat(np.arange(levels), 20_000).reshape(-1, 1, 1, 1)
    bound = flow.bound(whole, rng).total.data.reshape(levels, -1)
    np.testing.assert_allclose(bound.mean(1), log_p.reshape(levels, n).mean(1), atol=5 * bound.std() / 140)
    bits = flow.bits_per_dim(whole, np.random.default_rng(0)).data
    np.testing.assert_allclose(bits, -flow.bound(whole, np.random.default_rng(0)).total.data / np.log(2))
    middle = flow.log_prob(np.arange(levels, dtype=np.uint8).reshape(-1, 1, 1, 1)).data
    np.testing.assert_allclose(middle, flow.log_prob(np.arange(levels).reshape(-1, 1, 1, 1) + 0.5).data)


def test_bits_by_hand(rng):
    """All layers the identity, x in the middle: 256 levels become 2 / 256 wide, and the logistic's p(0) is 1 / 4."""
    flow = NICE((1, 2, 2), 256, **SMALL[NICE], rng=rng)
    expected = 4 * np.log(2 / 256 / 4)
    np.testing.assert_allclose(flow.log_prob(np.full((1, 1, 2, 2), 128.0)).data, expected, rtol=1e-6)


@every_flow
def test_equalized_levels_are_as_wide_as_they_are_frequent(model, rng):
    """Images of the frequencies that were counted are spread evenly over [-1, 1], for whatever images come later."""
    flow, x = model((1, 2, 4), 4, **SMALL[model], rng=rng), rng.choice(4, (5000, 1, 2, 4), p=[0.7, 0.1, 0.2, 0.0])
    flow.initialize(x[:2500], rng)
    assert flow.counts.data.sum() == 2500 * 8 and flow.counts.data[3] == 0
    before = flow.counts.data
    flow.initialize(x[:5], rng)  # once only
    np.testing.assert_array_equal(flow.counts.data, before)
    v = flow._dequantized(x, rng)[0].data
    counts = np.histogram(v, [-1, -0.5, 0, 0.5, 0.95])[0] / v.size
    np.testing.assert_allclose(counts, np.array([0.5, 0.5, 0.5, 0.45]) / 1.9, atol=0.03)
    assert model((1, 2, 4), None, **SMALL[model], rng=rng).counts.size == 0  # real numbers are not counted


@every_flow
@pytest.mark.parametrize("levels", [None, 4])
def test_draws_are_of_the_density(model, levels, rng):
    flow, n = build(model, (1, 1, 2), levels, rng, by=0.2), 20_000
    x = flow.sample(n, rng)
    if levels is None:
        line, step = wide_line()
    else:
        assert x.dtype == np.uint8 and x.max() < levels
        line, step = (np.arange(levels * 50) + 0.5) / 50, np.full(levels * 50, 1 / 50)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 1, 1, 2)
    p = np.exp(flow.log_prob(grid).data).reshape(len(line), -1) * np.outer(step, step)
    if levels is None:
        mean = [(p.sum(1) * line).sum(), (p.sum(0) * line).sum()]
        np.testing.assert_allclose(x.reshape(n, 2).mean(0), mean, atol=5 * x.std() / n**0.5)
        product = x[:, 0, 0, 0] * x[:, 0, 0, 1]
        np.testing.assert_allclose(product.mean(), line @ p @ line, atol=5 * product.std() / n**0.5)
    else:  # what is drawn outside is clipped to the first or the last level; the levels between are exact
        p = p.reshape(levels, 50, levels, 50).sum((1, 3))
        counted = np.histogram2d(*x.reshape(n, 2).T, bins=np.arange(levels + 1) - 0.5)[0] / n
        np.testing.assert_allclose(counted[1:-1, 1:-1], p[1:-1, 1:-1], atol=0.02)
        assert (counted > p - 0.02).all()


@every_flow
def test_learned_noise(model, rng, monkeypatch):
    """q(u | x) starts uniform; its log_det is that of the Jacobian; the bound stays below log P of whole numbers."""
    flow = model((1, 2, 2), 3, **SMALL[model], dequantization="variational", rng=rng)
    plain = model((1, 2, 2), 3, **SMALL[model], rng=rng)
    plain.load_state_dict({n: a for n, a in flow.state_dict().items() if not n.startswith("noise.")})
    x = rng.integers(0, 3, (5, 1, 2, 2))
    first, same = (f.bound(x, np.random.default_rng(1)).total.data for f in (flow, plain))
    np.testing.assert_allclose(first, same, rtol=1e-5)
    for p in flow.parameters():
        p.data = p.data + 0.3 * rng.standard_normal(p.shape)
    v, u = rng.uniform(-1, 1, (5, 1, 2, 2)), rng.uniform(0, 1, (5, 1, 2, 2))
    noise, log_det = flow.noise(Tensor(v), Tensor(u))
    assert (noise.data > 0).all() and (noise.data < 1).all() and abs(noise.data - u).max() > 0.05
    np.testing.assert_allclose(
        log_dets(lambda u: flow.noise(Tensor(v), u)[0].reshape(5, 4), u), log_det.data, atol=1e-9
    )
    monkeypatch.setattr(ops, "relu", ops.softplus)
    gradcheck(lambda: flow.loss(x, np.random.default_rng(1)), (), parameters=flow)


def test_learned_noise_is_a_bound_that_training_tightens(rng):
    flow = NICE((1, 1, 1), 3, **SMALL[NICE], dequantization="variational", rng=rng)
    flow.scales[0][-1].log_scale.data = np.array([1.5])  # p(x + u) is far from even within the bins
    whole, n = np.repeat(np.arange(3), 4000).reshape(-1, 1, 1, 1), 3000
    fine = ((np.arange(3 * n) + 0.5) / n).reshape(-1, 1, 1, 1)
    exact = np.log(np.exp(flow.log_prob(fine).data).reshape(3, n).mean(1))
    for p in flow.parameters():
        p.requires_grad = False
    for p in flow.noise.parameters():
        p.data, p.requires_grad = p.data.astype(np.float64), True
    before = flow.bound(whole, rng).total.data.reshape(3, -1).mean(1)
    optimizer = Adam(flow.noise.parameters(), 0.02)
    for _ in range(150):
        flow.loss(whole[::50], rng).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = flow.bound(whole, rng).total.data.reshape(3, -1)
    assert (exact - before > 0.03).any() and (exact - after.mean(1) > -4 * after.std(1) / 60).all()
    assert (exact - after.mean(1)).sum() < 0.3 * (exact - before).sum()


def test_what_is_sampled(rng):
    assert build(RealNVP, (1, 2, 2), 300, rng).sample(3, rng).dtype == np.int64
    assert build(RealNVP, (1, 2, 2), None, rng, np.float32).sample(3, rng).dtype == np.float32
    flow = build(RealNVP, (1, 4, 4), None, rng)
    cold = flow.sample(3, rng, temperature=1e-9)
    np.testing.assert_allclose(cold, np.tile(flow.decode(np.zeros((1, 16))).data, (3, 1, 1, 1)), atol=1e-6)


def test_flows_start_as_the_identity(rng):
    x = rng.standard_normal((2, 1, 4, 4))
    for model in NICE, RealNVP:
        z = model((1, 4, 4), None, rng=rng).encode(x).data
        np.testing.assert_allclose(np.sort(z, 1), np.sort(x.reshape(2, -1), 1), rtol=1e-6)
    weight = InvertibleConv1x1(5, rng=rng).weight.data
    np.testing.assert_allclose(weight @ weight.T, np.eye(5), atol=1e-6)


def test_half_leaves_at_each_scale(rng):
    """z's first half, which left first, does not depend on what later layers do."""
    flow = build(RealNVP, (1, 8, 8), None, rng)
    x = rng.standard_normal((2, 1, 8, 8))
    assert [len(s) for s in flow.scales] == [6, 5] and flow.shapes == [(4, 4, 4), (8, 2, 2)]
    np.testing.assert_array_equal(flow.scales[0][-1].mask.ravel(), [1, 1, 0, 0])  # what leaves is changed last
    before = flow.encode(x).data
    for p in flow.scales[1][1].parameters():
        p.data = p.data + 1
    after = flow.encode(x).data
    assert (before[:, :32] == after[:, :32]).all() and (before[:, 32:] != after[:, 32:]).any()


@every_flow
def test_samples_are_decoded_noise_rounded_down(model, rng):
    flow = build(model, (1, 4, 4), 256, rng, by=0.1)
    z = flow.prior.sample((50, 16), np.random.default_rng(3))
    x = flow.decode(z).data
    assert ((x > 0) & (x < 256)).any()
    np.testing.assert_array_equal(flow.sample(50, np.random.default_rng(3)), np.clip(np.floor(x), 0, 255))


def test_fit_shows_glow_the_whole_first_minibatch_and_nothing_else(rng):
    x, how = rng.integers(0, 256, (80, 1, 4, 4)).astype(np.uint8), {"batch_size": 64, "progress": False, "steps": 0}

    def new():
        return Glow((1, 4, 4), **SMALL[Glow], rng=np.random.default_rng(3))

    trained, right = new(), new()
    fit(trained, x, optimizer=Adam(trained.parameters(), 0.1), rng=np.random.default_rng(0), **how)
    seed = int(np.random.default_rng(0).integers(2**63))
    right.initialize(*_batch((x,), 64, seed, 0), np.random.default_rng([seed, 3]))
    for name, value in right.state_dict().items():
        np.testing.assert_array_equal(trained.state_dict()[name], value)
    frozen = new()
    norm = frozen.scales[0][1]
    norm.requires_grad = False
    fit(frozen, x, optimizer=Adam(frozen.parameters(), 0.1), rng=np.random.default_rng(0), **how)
    assert not norm.bias.data.any() and frozen.scales[0][4].bias.data.any()
    for wrong in ({"validation": x + 0.5}, {"labels": np.zeros(80, int)}, {"validation": x.astype(int) - 300}):
        model = new()
        with pytest.raises(ValueError, match=r"images: values from|labels: the model was built without"):
            fit(model, x, optimizer=Adam(model.parameters(), 0.1), rng=rng, **how, **wrong)
        assert not model.initialized.data.any() and not model.scales[0][1].bias.data.any()


@pytest.mark.parametrize("shape, levels", [((1, 4, 4), 256), ((3, 4, 8), None), ((1, 1, 6), None)])
def test_actnorms_first_batch(shape, levels, rng, monkeypatch):
    flow = build(Glow, shape, levels, rng)
    x = rng.standard_normal((64, *shape)) if levels is None else rng.integers(0, levels, (64, *shape))
    flow.initialize(x, rng)
    seen = []
    forward = ActNorm.forward
    monkeypatch.setattr(ActNorm, "forward", lambda self, x: seen.append(forward(self, x)[0]) or forward(self, x))
    flow._transform(*flow._dequantized(x, rng))  # other noise: nearly the same
    assert len(seen) == 2 * len(flow.scales)
    for y in seen:
        np.testing.assert_allclose(y.data.mean((0, 2, 3)), 0, atol=1e-9 if levels is None else 0.1)
        np.testing.assert_allclose(y.data.var((0, 2, 3)), 1, atol=1e-4 if levels is None else 0.1)
    before = flow.state_dict()
    flow.initialize(2 * x if levels is None else x[:3], rng)  # once only
    other = Glow(shape, levels, **SMALL[Glow], rng=rng)
    other.load_state_dict(before)
    other.initialize(x[:5], rng)
    for name, value in before.items():
        np.testing.assert_array_equal(flow.state_dict()[name], value)
        np.testing.assert_allclose(other.state_dict()[name], value, rtol=1e-6)


@every_flow
def test_training_has_the_same_bits_for_any_workers_and_after_a_resume(model, rng, tmp_path, monkeypatch):
    monkeypatch.setattr("tinygen.parallel.shard_size", lambda *_: 16)
    x = rng.integers(0, 256, (80, 1, 4, 4)).astype(np.uint8)

    def trained(steps, workers, checkpoint=None):
        flow = model((1, 4, 4), **SMALL[model], rng=np.random.default_rng(3))
        optimizer, seed = Adam(flow.parameters(), 0.01), np.random.default_rng(0)
        fit(flow, x, steps=steps, optimizer=optimizer, rng=seed, batch_size=32, workers=workers, progress=False,
            checkpoint=checkpoint)  # fmt: skip
        return flow.state_dict()

    one, two = trained(6, 1), trained(6, 2)
    trained(4, 2, tmp_path / "run")
    resumed = trained(6, 1, tmp_path / "run")
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value, err_msg=name)
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    if model is Glow:
        assert one["initialized"] == 1 and abs(one["scales.0.1.bias"]).max() > 0.02


@every_flow
@pytest.mark.parametrize("shape, levels", [((1, 4, 4), 256), ((1, 3, 3), None)])
def test_the_same_on_every_device(model, shape, levels, rng, device):
    flow = build(model, shape, levels, rng)
    x = rng.standard_normal((3, *shape)) if levels is None else rng.integers(0, levels, (3, *shape))
    results = []
    for where in ("cpu", device):
        flow.to(where)
        z = flow.encode(to_device(x, where))
        results.append([
            z.numpy(), flow.decode(z).numpy(), flow.bound(to_device(x, where), np.random.default_rng(1)).total.numpy(),
            Tensor(flow.sample(2, np.random.default_rng(2))).numpy(),
        ])  # fmt: skip
    for host, there in zip(*results):
        np.testing.assert_allclose(there, host, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m, rng: m(levels=1, rng=rng), "levels: got 1, needs a whole number from 2 to 65536"),
        (lambda m, rng: m((1, 4), rng=rng), r"image_shape: got \(1, 4\), needs \(channels, height, width\)"),
        (lambda m, rng: m(hidden=0, rng=rng), "hidden: got 0, needs a whole number of at least 1"),
        (lambda m, rng: m((1, 2, 2), rng=rng).bound(np.full((1, 1, 2, 2), 0.5), rng), "needs whole numbers 0 .. 255"),
        (lambda m, rng: m((1, 2, 2), rng=rng).bound(np.full((1, 1, 2, 2), 256), rng), "needs whole numbers 0 .. 255"),
        (lambda m, rng: m((1, 2, 2), rng=rng).log_prob(np.full((1, 1, 2, 2), 256)), "needs whole numbers 0 .. 255"),
        (lambda m, rng: m((1, 2, 2), rng=rng).log_prob(np.full((1, 1, 2, 2), -0.5)), "needs numbers from 0 to 256"),
        (lambda m, rng: m((1, 2, 2), None, rng=rng).encode(np.full((1, 1, 2, 2), np.nan)), "images: some values are"),
        (lambda m, rng: m((1, 2, 2), rng=rng).bound(np.zeros((1, 1, 2, 2)), None), "rng: got None, needs a generator"),
        (lambda m, rng: m((1, 2, 2), rng=rng).decode(np.zeros((1, 3))), r"code has shape \(1, 3\), needs \(N, 4\)"),
        (lambda m, rng: m((1, 2, 2), rng=rng).sample(0, rng), "n: got 0, needs a whole number of at least 1"),
        (lambda m, rng: m((1, 2, 2), rng=rng).sample(1, None), "rng: got None, needs a generator"),
        (lambda m, rng: m((1, 2, 2), rng=rng).sample(1, rng, temperature=0), "temperature: got 0, needs a number in"),
    ],
)
@every_flow
def test_refused(model, call, message, rng):
    with pytest.raises(ValueError, match=message):
        call(model, rng)
