"""The RBM against enumeration of all its images and hidden units, its gradients, its chains and its estimates of Z."""

import itertools

import numpy as np
import pytest

from tinygen import Tensor, grad, gradcheck
from tinygen.backend import to_device
from tinygen.models import RBM
from tinygen.models.explicit.approximate import rbm
from tinygen.nn import Linear, Module, RowBuffer
from tinygen.optim import SGD, Adam
from tinygen.training import evaluate, fit

SHAPE = (1, 2, 3)
STATES = np.array(list(itertools.product([0.0, 1.0], repeat=6))).reshape(-1, *SHAPE)  # all images


def build(rng, hidden=4, scale=1.0, shape=SHAPE, **settings):
    """An RBM in float64 with strong weights, whose annealing begins at frequencies other than 1/2."""
    model = RBM(shape, hidden, **settings, rng=rng)
    for t in (*model.parameters(), model.base):
        t.data = scale * rng.standard_normal(t.shape)
    if model.chains is not None:
        model.chains.data = model.chains.data.astype(float)
    return model


def joint(model):
    """log p*(v, h) of all images and values of the hidden units, (2^D, 2^H), from the definition of the energy."""
    h = np.array(list(itertools.product([0.0, 1.0], repeat=model.hidden_bias.size))) - 0.5
    v, w, b, c = STATES.reshape(64, -1), model.weight.data, model.bias.data, model.hidden_bias.data
    v = v - 1 / (1 + np.exp(-model.base.data))
    return (v @ b)[:, None] + h @ c + v @ w.T @ h.T


def distribution(model):
    """p(v) of all images."""
    p = np.exp(joint(model)).sum(1)
    return p / p.sum()


def exact_samples(model, n, rng):
    return STATES[rng.choice(64, n, p=distribution(model))]


def test_free_energy_log_z_and_probabilities_against_enumeration(rng, monkeypatch):
    model = build(rng)
    energy = joint(model)
    np.testing.assert_allclose(-model.free_energy(STATES).data, np.log(np.exp(energy).sum(1)), rtol=1e-12)
    log_z = np.log(np.exp(energy).sum())
    np.testing.assert_allclose(model.exact_log_z().item(), log_z, rtol=1e-12)
    monkeypatch.setattr(rbm, "PART", 3)  # parts that do not divide 16
    np.testing.assert_allclose(model.exact_log_z().item(), log_z, rtol=1e-12)
    np.testing.assert_allclose(np.exp(model.log_prob(STATES).data), distribution(model), rtol=1e-11)
    np.testing.assert_allclose(np.exp(model.log_prob(STATES).data).sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(model.score(STATES, rng).data, -model.log_prob(STATES).data)


def test_centring_changes_the_parameters_but_not_the_distribution(rng):
    """It is the textbook's RBM with b - 1/2 sum_j W_j and c - W m."""
    model, v = build(rng), STATES.reshape(64, 6)
    m = 1 / (1 + np.exp(-model.base.data))
    b, c = model.bias.data - 0.5 * model.weight.data.sum(0), model.hidden_bias.data - model.weight.data @ m
    minus_f = v @ b + np.log1p(np.exp(c + v @ model.weight.data.T)).sum(1)
    difference = minus_f + model.free_energy(STATES).data
    np.testing.assert_allclose(difference, difference[0], rtol=1e-10)


def test_conditionals_against_enumeration(rng):
    model, h = build(rng), np.array(list(itertools.product([0.0, 1.0], repeat=4)))
    p = np.exp(joint(model))
    given_v, given_h = p / p.sum(1, keepdims=True), p / p.sum(0)
    np.testing.assert_allclose(model.encode(STATES).data, given_v @ h, rtol=1e-11)
    np.testing.assert_allclose(model.decode(h).data.reshape(16, 6), given_h.T @ STATES.reshape(64, 6), rtol=1e-11)
    again = model.decode(model.encode(STATES).data).data
    np.testing.assert_array_equal(model.reconstruct(STATES).data, again)


def chi_square(found, p):
    """The statistic of counts against probabilities, in standard deviations from its mean."""
    n, freedom = found.sum(), len(p) - 1
    return (((found - n * p) ** 2 / (n * p)).sum() - freedom) / np.sqrt(2 * freedom)


def number(x):
    """Each image as the index of its row in STATES."""
    return np.asarray(x).reshape(len(x), 6).astype(int) @ (2 ** np.arange(5, -1, -1))


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_gibbs_sampling_leaves_the_distribution_invariant(beta, rng):
    """Exact draws stay exact draws, also at the temperatures of annealing; other draws approach them."""
    model = build(rng)
    v = STATES.reshape(64, 6)
    a = model.hidden_logits(v).data
    log_p = (1 - beta) * v @ model.base.data + beta * v @ model.bias.data
    log_p += (np.log1p(np.exp(beta * a)) - beta * a / 2).sum(1)
    p = np.exp(log_p) / np.exp(log_p).sum()
    draws = v[rng.choice(64, 40_000, p=p)]
    after = model.gibbs(draws, rng, beta, model.base)
    assert (after != draws).any(1).mean() > 0.5  # they move
    assert chi_square(np.bincount(number(after), minlength=64), p) < 4
    other = model.gibbs(v[np.zeros(40_000, int)], rng, beta, model.base)
    assert chi_square(np.bincount(number(other), minlength=64), p) > 9


def test_samples_and_completions_are_draws_from_the_model(rng):
    model = build(rng, scale=0.7)
    p = distribution(model)
    assert chi_square(np.bincount(number(model.sample(20_000, rng, rounds=30)), minlength=64), p) < 4
    start = np.bincount(number(model.sample(20_000, rng, rounds=0)), minlength=64)
    assert chi_square(start, p) > 9  # independent pixels are no such draws
    x = np.tile(STATES[37], (20_000, 1, 1, 1))
    mask = np.array([[[True, False, False], [False, True, False]]])
    completed = model.complete(x, rng, mask, rounds=30)
    assert (completed[:, mask] == STATES[37][mask]).all()
    given = p * (STATES[:, mask] == STATES[37][mask]).all(1)
    found = np.bincount(number(completed), minlength=64)
    assert chi_square(found[given > 0], given[given > 0] / given.sum()) < 4


# -- the gradient


def exact_gradient(model, x):
    return [g.data for g in grad(-model.log_prob(x).mean(), model.parameters())]


def test_exact_gradient_is_that_of_enumeration(rng):
    model, x = build(rng), STATES[rng.integers(0, 64, 5)]
    gradcheck(lambda: model.log_prob(x).sum(), (), parameters=model)
    p, h = distribution(model), model.encode(STATES).data  # d -log p = E_p[h v] - E_data[h v]
    flat, given = STATES.reshape(64, 6), x.reshape(5, 6)
    flat, given, h = flat - model.mean.data, given - model.mean.data, h - 0.5
    expected = (h * p[:, None]).T @ flat - (model.encode(x).data - 0.5).T @ given / 5
    np.testing.assert_allclose(exact_gradient(model, x)[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("chains", [0, 40_000])
def test_the_gradient_of_many_rounds_is_the_exact_one(chains, rng):
    """Contrastive divergence, and chains that go on: the mean over 40,000 chains, within 5 standard errors."""
    n = 40_000
    model = build(rng, scale=0.7, steps=30, chains=chains)
    x = np.tile(STATES[[5, 40, 41, 63]], (n // 4, 1, 1, 1))
    found = [g.data for g in grad(model.loss(x, rng), model.parameters())]
    for g, exact in zip(found, exact_gradient(model, x), strict=True):
        assert np.abs(g - exact).max() < 5 * 0.5 / np.sqrt(n)  # no entry of dF has a deviation above 1/2
        assert np.abs(exact).max() > 20 * 0.5 / np.sqrt(n)  # the test has power


def test_one_round_of_contrastive_divergence_points_in_the_right_direction(rng):
    """Its expectation is E_q[dF] where q is one exact round from the data. It is not the gradient, but close to it."""
    model, n = build(rng, steps=1, chains=0), 40_000
    data = np.tile(STATES[[5, 40, 41, 63]], (n // 4, 1, 1, 1))
    p = np.exp(joint(model))
    round_trip = (p / p.sum(1, keepdims=True)) @ (p / p.sum(0)).T  # (2^D, 2^D): p(v' | v)
    q = round_trip[[5, 40, 41, 63]].mean(0)
    h, flat = model.encode(STATES).data, STATES.reshape(64, 6)
    m, flat, h = model.mean.data, flat - model.mean.data, h - 0.5
    expected = (h * q[:, None]).T @ flat - (model.encode(data).data - 0.5).T @ (data.reshape(n, 6) - m) / n
    found = [g.data for g in grad(model.loss(data, rng), model.parameters())]
    assert np.abs(found[0] - expected).max() < 5 * 0.5 / np.sqrt(n)
    exact = exact_gradient(model, data)
    assert np.abs(found[0] - exact[0]).max() > 12 * 0.5 / np.sqrt(n)  # biased
    inner = sum((a * b).sum() for a, b in zip(found, exact))
    assert inner > 0.5 * np.sqrt(sum((a**2).sum() for a in found) * sum((b**2).sum() for b in exact))


def test_chains_go_on_from_where_they_were(rng):
    model, other = build(rng, steps=2, chains=8), np.random.default_rng(5)
    start, x = rng.integers(0, 2, (8, 6)).astype(float), STATES[:5]
    model.chains.data = start
    loss = model.loss(x, np.random.default_rng(5))
    assert (other.random((5, 7), np.float32)[:, 0] > rbm.RESTART).all()
    v = model.gibbs(model.gibbs(start[:5], other), other)
    np.testing.assert_array_equal(model.chains.data, np.concatenate([v, start[5:]]))
    end = v.reshape(-1, *SHAPE)
    np.testing.assert_allclose(loss.item(), model.free_energy(x).data.mean() - model.free_energy(end).data.mean())


def test_some_chains_begin_anew(rng, monkeypatch):
    """A chain begins anew with the probability that is named, at pixels that are 0 or 1 alike; the others stay."""
    monkeypatch.setattr(rbm, "RESTART", 0.1)
    monkeypatch.setattr(RBM, "gibbs", lambda self, v, rng: v)
    model = build(rng, chains=20_000)
    model.chains.data[:] = 2.0
    model.loss(np.tile(STATES[5], (20_000, 1, 1, 1)), rng)
    anew = model.chains.data[(model.chains.data != 2).any(1)]
    assert abs(len(anew) - 2000) < 4 * np.sqrt(1800)
    assert chi_square(np.bincount(number(anew), minlength=64), np.full(64, 1 / 64)) < 4


@pytest.mark.parametrize("chains", [0, 100])
def test_learning_finds_a_mixture_of_two_images(chains, rng):
    """Each pixel of either image is flipped with probability 0.2. An RBM with one hidden unit can be this mixture."""
    flips = np.stack([(STATES != STATES[i]).sum((1, 2, 3)) for i in (7, 56)])
    p = (0.2**flips * 0.8 ** (6 - flips)).mean(0)
    x = STATES[rng.choice(64, 5000, p=p)].astype(np.uint8)
    model = RBM(SHAPE, 2, steps=2, chains=chains, rng=rng)

    def divergence():  # KL(true || learned)
        return (p * (np.log(p) - model.log_prob(STATES).data)).sum()

    model.initialize(x)
    independent = divergence()
    options = {"batch_size": 100, "schedule": lambda done: 1 - done, "workers": 1, "progress": False}
    fit(model, x, steps=250, optimizer=Adam(model.parameters(), 0.05), rng=rng, **options)
    assert 0 < divergence() < 0.05 * independent


def test_the_first_minibatch_sets_what_depends_on_the_data(rng):
    model, x = RBM(SHAPE, 3, chains=5, rng=rng), rng.integers(0, 2, (3, *SHAPE))
    model.initialize(Tensor(x), rng)
    p = (x.reshape(3, 6).sum(0) + 1) / 5
    np.testing.assert_allclose(model.base.data, np.log(p / (1 - p)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.bias.data, model.base.data)
    np.testing.assert_array_equal(model.chains.data, x.reshape(3, 6)[[0, 1, 2, 0, 1]])
    before = model.state_dict()
    model.initialize(Tensor(STATES), rng)  # another set: nothing changes
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    model = RBM(SHAPE, 3, chains=2, rng=rng)
    model.initialize(np.stack([x[0], 1 - x[0]]))  # every mean is 1/2
    model.bias.data = model.bias.data + 1
    model.initialize(x)
    assert (model.bias.data == 1).all()


# -- annealed importance sampling


@pytest.mark.parametrize("temperatures", [2, 3, 30])
def test_annealing_from_both_ends_against_enumeration(temperatures, rng):
    """Z is right on average for any number of temperatures, within the standard error that is reported."""
    model = build(rng)
    exact, n = model.exact_log_z().item(), 20_000
    for samples in (None, exact_samples(model, n, rng)):
        value, error = model.log_z(rng, temperatures, n, samples)
        assert abs(value - exact) < 4 * error < 0.2, (temperatures, samples is None)


def from_data(model, temperatures, chains, rng):
    """The estimate of one of log_z's two starts."""
    v = model._independent(chains, rng, model.base)
    return model._anneal(v, np.linspace(0, 1, temperatures + 1), model.base, rng)


def test_few_chains_err_downwards_from_one_end_and_upwards_from_the_other(rng):
    model = build(rng, scale=1.5)
    exact = model.exact_log_z().item()
    below = [from_data(model, 2, 3, rng).value for _ in range(100)]
    above = [model.log_z(rng, 2, samples=exact_samples(model, 3, rng)).value for _ in range(100)]
    assert np.mean(below) < exact - 0.05 and np.mean(above) > exact + 0.05


def test_annealing_finds_a_mode_that_is_far_from_the_data(rng):
    """The data are nearly black; of Z the mode of bright images has e^5 times as much as that of dark ones."""
    model = RBM((1, 1, 60), 1, rng=rng)
    for t, value in zip((model.weight, model.bias, model.hidden_bias, model.base), (2.0, 0.0, 0.0, -4.0), strict=True):
        t.data = np.full(t.shape, value)
    dark, bright = model.log_p_hidden(np.array([[0.0], [1.0]])).data
    model.hidden_bias.data += 5 - (bright - dark)
    exact = model.exact_log_z().item()
    value, error = model.log_z(rng, 500, 50)
    assert abs(value - exact) < 4 * error < 0.4
    assert from_data(model, 500, 50, rng).value < exact - 4  # the start that misses it, whose error does not tell


def test_the_standard_error_is_that_of_many_runs(rng):
    model = build(rng)
    runs = [model.log_z(rng, 5, 200) for _ in range(100)]
    values, errors = np.array(runs).T
    np.testing.assert_allclose(values.std(), np.sqrt((errors**2).mean()), rtol=0.2)


def test_without_weights_every_chain_knows_z(rng):
    """At W = 0 and c = 0 Z is a product; if b is the base's too, all weights are equal."""
    model = build(rng)
    model.weight.data[:], model.hidden_bias.data[:], model.bias.data[:] = 0, 0, model.base.data
    value, error = model.log_z(rng, 7)
    b, m = model.bias.data, model.mean.data
    np.testing.assert_allclose(value, (np.log1p(np.exp(b)) - m * b).sum() + 4 * np.log(2))
    assert error < 1e-12


def test_score_of_a_larger_model_is_estimated(rng, monkeypatch):
    monkeypatch.setattr(rbm, "FEW", 3)
    model = build(rng)
    value = model.log_z(np.random.default_rng(5), *rbm.ROUGHLY).value
    scores = model.score(STATES, np.random.default_rng(5))
    np.testing.assert_allclose(scores.data, model.free_energy(STATES).data + value)
    assert 0 < abs(scores.data + model.log_prob(STATES).data).max() < 0.3 and not scores.requires_grad


# -- training in shards


class Counter(Module):
    """Its rows say how often, and by which image, they were seen."""

    def __init__(self, n):
        self.layer = Linear(1, 1, rng=np.random.default_rng(0))
        self.rows = RowBuffer(np.zeros((n, 2), np.float32))

    def loss(self, x, rng):
        assert len(self.rows.data) == x.shape[0]
        self.rows.data = np.stack([self.rows.data[:, 0] + 1, x.data.ravel()], 1)
        return self.layer(x.reshape(-1, 1)).mean()


@pytest.mark.parametrize("workers", [1, 3])
def test_rows_of_a_buffer_belong_to_the_images_of_a_minibatch(workers, rng, monkeypatch):
    monkeypatch.setattr("tinygen.parallel.shard_size", lambda *_: 16)
    model, seen = Counter(50), []
    images = np.arange(100, dtype=np.float32).reshape(100, 1, 1, 1) / 7
    monkeypatch.setattr("tinygen.training._batch", lambda data, size, *_: seen.append(data[0][:size]) or (seen[-1],))
    fit(model, images, steps=3, optimizer=SGD(model.parameters(), 0.1), rng=rng, batch_size=50, workers=workers)
    np.testing.assert_array_equal(model.rows.data, np.stack([np.full(50, 3), images[:50].ravel()], 1))


def test_the_same_for_any_number_of_workers_and_after_an_interruption(rng, monkeypatch, tmp_path):
    monkeypatch.setattr("tinygen.parallel.shard_size", lambda *_: 16)
    images = rng.integers(0, 2, (200, 1, 4, 4)).astype(np.uint8)

    def trained(steps, workers, checkpoint=None):
        model = RBM((1, 4, 4), 5, steps=2, chains=50, rng=np.random.default_rng(0))
        optimizer = Adam(model.parameters(), 0.01)
        options = {"rng": np.random.default_rng(1), "averaging": 0.9, "progress": False, "checkpoint": checkpoint}
        fit(model, images, steps=steps, optimizer=optimizer, batch_size=50, workers=workers, **options)
        return model.state_dict()

    once = trained(6, 1)
    assert set(np.unique(once["chains"])) == {0, 1} and len(np.unique(once["chains"], axis=0)) > 25
    for other in (
        trained(6, 2),
        trained(6, 4),
        trained(3, 2, tmp_path / "c.npz") and trained(6, 1, tmp_path / "c.npz"),
    ):
        for name, value in once.items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)


def test_on_every_device(rng, device):
    model, x = build(rng, steps=2, chains=8), STATES[:8]
    model.chains.data = STATES[20:28].reshape(8, 6)
    results, start = [], model.state_dict()
    for where in ("cpu", device):
        model.load_state_dict(start)
        model.to(where)
        there, new = to_device(x, where), np.random.default_rng
        (g, *_) = grad(model.loss(there, new(5)), model.parameters())
        mask = to_device(np.arange(3) > 0, where)
        arrays = [g.data, model.chains.data, model.sample(5, new(5), rounds=9), model.complete(there, new(5), mask)]
        arrays += [model.free_energy(there).data, model.reconstruct(there).data, model.exact_log_z().data]
        numbers = [*model.log_z(new(5), 20), *model.log_z(new(5), 20, samples=there), evaluate(model, x, new(5))]
        results.append([*(Tensor(a).numpy() for a in arrays), np.array(numbers)])
    for host, there in zip(*results, strict=True):
        np.testing.assert_allclose(there, host, rtol=1e-10)


def test_a_step_with_chains_never_waits_for_the_device(rng, strict):
    model = RBM(SHAPE, 4, steps=3, chains=8, rng=rng).to("cuda")
    x = to_device(STATES[:8], "cuda")
    strict.count.clear()
    model.loss(x, rng).backward()
    assert +strict.count == {"h2d": 4}  # the noise of each round, and where chains begin anew


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 4), (1, 1, 9)])
@pytest.mark.parametrize("chains", [0, 16])
def test_any_image_size(shape, chains, rng):
    model, x = RBM(shape, 5, chains=chains, rng=rng), rng.integers(0, 2, (4, *shape))
    model.initialize(x)
    assert model.loss(x, rng).dtype == model.sample(1, rng, rounds=2).dtype == np.float32
    assert model.complete(x, rng, np.ones(shape, bool), rounds=1).shape == x.shape == model.reconstruct(x).shape
    assert model.score(x, rng).shape == (4,) and model.encode(x).shape == (4, 5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m, rng: m.loss(np.full((1, *SHAPE), 0.5), rng), "values from 0.5 to 0.5, needs whole numbers 0 .. 1"),
        (lambda m, rng: m.decode(np.zeros((2, 5))), r"h has shape \(2, 5\), needs \(N, 4\)"),
        (lambda m, rng: m.log_z(rng, 0), "temperatures: got 0"),
        (lambda m, rng: m.log_z(rng, 5, 1), "chains: got 1"),
        (lambda m, rng: m.log_z(rng, 5, samples=STATES[:1]), "samples: got 1, needs at least 2"),
        (
            lambda m, rng: RBM(SHAPE, 21, rng=rng).log_prob(STATES),
            "21 hidden units have too many values, needs at most",
        ),
        (lambda m, rng: m.score(STATES, None), "rng: got None"),
        (lambda m, rng: m.sample(1, rng, rounds=-1), "rounds: got -1"),
        (lambda m, rng: RBM(SHAPE, steps=0, rng=rng), "steps: got 0"),
        (lambda m, rng: RBM(SHAPE, chains=-1, rng=rng), "chains: got -1"),
    ],
)
def test_refused(call, message, rng):
    with pytest.raises(ValueError, match=message):
        call(build(rng), rng)


def test_a_minibatch_with_more_shards_than_chains_is_refused(rng, monkeypatch):
    monkeypatch.setattr("tinygen.parallel.shard_size", lambda *_: 16)
    model, x = RBM(SHAPE, 4, chains=16, rng=rng), rng.integers(0, 2, (40, *SHAPE))
    options = {"optimizer": Adam(model.parameters(), 0.1), "rng": rng, "workers": 1, "progress": False}
    with pytest.raises(ValueError, match=r"chains: \d+ images have \d+ of them, needs as many"):
        fit(model, x, steps=1, batch_size=40, **options)
