"""FVSBN, NADE and MADE: what depends on what, probabilities, samplers, and NADE's operation."""

import itertools

import numpy as np
import pytest

from tinygen import Tensor, grad, gradcheck, ops, weights
from tinygen.backend import to_device, to_host
from tinygen.models import FVSBN, MADE, NADE, BernoulliMixture
from tinygen.nn import MaskedLinear
from tinygen.ops.nade import CHUNK, nade_loop
from tinygen.optim import Adam
from tinygen.training import fit

BUILD = {
    "fvsbn": FVSBN,
    "nade": lambda shape, levels=2, *, rng: NADE(shape, levels, hidden=4, rng=rng),
    "made": lambda shape, levels=2, *, rng: MADE(shape, levels, hidden=(20,), rng=rng),
    "made, deep": lambda shape, levels=2, *, rng: MADE(shape, levels, hidden=(20, 9, 14), rng=rng),
    "made, few units": lambda shape, levels=2, *, rng: MADE(shape, levels, hidden=(2, 3), rng=rng),
}
RANDOM = {
    "fvsbn, random": lambda shape, levels=2, *, rng: FVSBN(shape, levels, order="random", rng=rng),
    "made, random": lambda shape, levels=2, *, rng: MADE(shape, levels, (20,), order="random", rng=rng),
}
ORDERS = {"made, orders": lambda shape, levels=2, *, rng: MADE(shape, levels, hidden=(9, 8), orders=3, rng=rng)}
SHAPES = [(1, 1, 1), (1, 1, 2), (1, 1, 7), (1, 3, 2), (3, 1, 2), (2, 2, 2)]
every_order = pytest.mark.parametrize("name", BUILD)
every_model = pytest.mark.parametrize("name", BUILD | RANDOM | ORDERS)


def build(name, shape, levels=2, seed=0, dtype=np.float64):
    """A model with random parameters, masked ones included."""
    rng = np.random.default_rng(seed)
    model = (BUILD | RANDOM | ORDERS)[name](shape, levels, rng=rng)
    for p in model.parameters():
        p.data = rng.standard_normal(p.shape).astype(dtype)
    return model


def all_images(shape, levels):
    return np.array(list(itertools.product(range(levels), repeat=int(np.prod(shape))))).reshape(-1, *shape)


@every_order
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [2, 3])
def test_a_value_sees_all_values_before_it_and_no_other(name, shape, levels, rng):
    model, d = build(name, shape, levels), int(np.prod(shape))
    x = Tensor(rng.random((4, d)) + 0.1, requires_grad=True)
    y = model.vector_logits(x)  # (4, D, K)
    j = np.array([abs(grad(y[:, i].sum(), x)[0].data).sum(0) for i in range(d)])
    np.testing.assert_array_equal(j == 0, np.triu(np.ones((d, d), bool)))


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("shape,levels", [((1, 2, 4), 2), ((2, 2, 2), 3)])
def test_a_random_order_is_seen_as_it_is_ranked(name, shape, levels, tmp_path, rng):
    model = build(name, shape, levels)
    ranks = model.ranks.data.reshape(-1)
    assert sorted(ranks) == list(range(8)) and (np.diff(ranks) < 0).any()
    x = Tensor(rng.random((4, 8)) + 0.1, requires_grad=True)
    y = model.vector_logits(x)
    j = np.array([abs(grad(y[:, i].sum(), x)[0].data).sum(0) for i in range(8)])
    np.testing.assert_array_equal(j != 0, ranks[:, None] > ranks)
    settings = {"image_shape": shape, "levels": levels} | ({"hidden": [20]} if name.startswith("made") else {})
    weights.save(tmp_path / "a.npz", model, {"settings": settings}, half=False)
    x, loaded = all_images(shape, levels)[::37], weights.load(tmp_path / "a.npz")[0]  # built in raster order
    np.testing.assert_allclose(loaded.log_prob(x).data, model.log_prob(x).data, rtol=1e-5)


def test_orders_are_seen_as_they_are_ranked(rng):
    model = build("made, orders", (1, 2, 3))
    for o, ranks in enumerate(model.ranks.data):
        x = Tensor(rng.random((4, 6)) + 0.1, requires_grad=True)
        y = model.in_order(o).vector_logits(x)
        j = np.array([abs(grad(y[:, i].sum(), x)[0].data).sum(0) for i in range(6)])
        np.testing.assert_array_equal(j != 0, ranks[:, None] > ranks)
    assert (model.ranks.data[0] == np.arange(6)).all() and len({tuple(r) for r in model.ranks.data}) == 3
    with pytest.raises(ValueError, match=r"belong to one of its orders: use model.in_order\(0\)"):
        model.logits(np.zeros((1, 1, 2, 3)))


@every_model
@pytest.mark.parametrize("shape,levels", [((1, 3, 3), 2), ((1, 1, 4), 3), ((3, 1, 2), 2), ((1, 1, 1), 5)])
def test_probabilities_sum_to_one(name, shape, levels):
    model = build(name, shape, levels, seed=1)
    log_p = model.log_prob(all_images(shape, levels)).data
    assert np.ptp(log_p) > 0.1  # not uniform
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, atol=1e-12)
    if name in ORDERS:
        for o in range(3):
            each = model.in_order(o).log_prob(all_images(shape, levels)).data
            np.testing.assert_allclose(np.exp(each).sum(), 1, atol=1e-12)


def test_several_orders_are_a_mixture(rng):
    model, x = build("made, orders", (1, 2, 3)), rng.integers(0, 2, (5, 1, 2, 3))
    each = np.array([model.in_order(o).log_prob(x).data for o in range(3)])
    assert np.ptp(each, axis=0).min() > 1e-3
    np.testing.assert_allclose(model.log_prob(x).data, np.log(np.exp(each).mean(0)))
    losses = {round(model.loss(x, np.random.default_rng(seed)).item(), 9) for seed in range(30)}
    assert losses == {round(-log_p.mean(), 9) for log_p in each}  # training draws one
    np.testing.assert_allclose(model.score(x).data, -model.log_prob(x).data)


@every_model
def test_frequencies_of_samples_are_the_probabilities(name):
    model, n = build(name, (1, 2, 2), seed=3), 20_000
    images = all_images((1, 2, 2), 2)
    expected = n * np.exp(model.log_prob(images).data)
    drawn = model.sample(n, np.random.default_rng(0)).reshape(n, 4) @ [8, 4, 2, 1]
    counts = np.bincount(drawn, minlength=16)
    assert ((counts - expected) ** 2 / expected).sum() < 15 + 5 * np.sqrt(30)


@every_model
@pytest.mark.parametrize("shape,levels", [((1, 3, 4), 2), ((3, 2, 2), 3), ((1, 1, 9), 2), ((1, 1, 1), 2)])
def test_the_fast_sampler_gives_the_draws_of_the_definition(name, shape, levels, rng):
    model = build(name, shape, levels)
    given, mask = rng.integers(0, levels, (6, *shape)), rng.random((6, *shape)) < 0.4
    for keep in ({}, {"given": given, "mask": mask}, {"temperature": 0.5}):
        fast, slow = (f(6, np.random.default_rng(4), **keep) for f in (model.sample, model.sample_by_definition))
        np.testing.assert_array_equal(fast, slow)
    drawn = model.sample(6, rng, given=given, mask=mask)
    np.testing.assert_array_equal(drawn[mask], given[mask])


@every_model
def test_samples_and_likelihoods_on_the_device(name, device):
    model, x = build(name, (1, 2, 3), dtype=np.float32), np.arange(12).reshape(2, 1, 2, 3) % 2
    expected = model.log_prob(x).data, model.sample(3, np.random.default_rng(0))
    model.to(device)
    np.testing.assert_allclose(to_host(model.log_prob(to_device(x, device)).data), expected[0], rtol=1e-5)
    np.testing.assert_array_equal(to_host(model.sample(3, np.random.default_rng(0))), expected[1])
    with pytest.raises(ValueError, match="built without classes"):
        model.log_prob(to_device(x, device), np.zeros(2, int))


@pytest.mark.parametrize("name", ["nade", "made", "made, orders"])
def test_fit_gives_the_same_bits_for_any_number_of_workers_and_after_a_resume(name, monkeypatch, tmp_path, rng):
    monkeypatch.setattr("tinygen.parallel.shard_size", lambda *_: 4)
    images, found = rng.integers(0, 2, (40, 1, 2, 3)), []
    for workers, parts in ((1, (6,)), (2, (6,)), (1, (3, 6))):
        for steps in parts:
            model = (BUILD | RANDOM | ORDERS)[name]((1, 2, 3), rng=np.random.default_rng(1))
            path = tmp_path / f"{workers}{parts}.npz"
            how = {"batch_size": 12, "checkpoint": path, "workers": workers, "progress": False, "averaging": 0.9}
            fit(
                model, images, steps=steps, optimizer=Adam(model.parameters(), 0.1), rng=np.random.default_rng(2), **how
            )
        found.append(model.state_dict())
    for other in found[1:]:
        for key, value in found[0].items():
            np.testing.assert_array_equal(value, other[key])


def test_new_models(rng):
    x = rng.integers(0, 2, (5, 1, 3, 4))
    for model in (FVSBN((1, 3, 4), rng=rng), MADE((1, 3, 4), hidden=(8,), rng=rng)):
        np.testing.assert_allclose(model.log_prob(x).data, -12 * np.log(2), rtol=1e-6)  # uniform
    h = Tensor(rng.standard_normal((4000, 300)).astype(np.float32))
    mask = rng.random((200, 300)) < np.linspace(0.02, 1, 200)[:, None]
    y = MaskedLinear(mask, rng=rng)(h).data
    np.testing.assert_allclose(y.std(0), 1, atol=0.5)  # for outputs that see few and many inputs
    for wrong in (mask.astype(float), mask[0], mask[:0]):
        with pytest.raises(ValueError, match=r"MaskedLinear: mask is .* needs \(out, in\) booleans"):
            MaskedLinear(wrong, rng=rng)


@pytest.mark.parametrize("name", [n for n in BUILD if n.startswith("made")])
def test_mades_masks_are_those_of_the_degrees(name):
    """Units of every layer see all that their degree allows, also without direct connections."""
    model, d = build(name, (1, 1, 7)), 7
    degrees = [m.data for m in model.degrees]
    assert all((m >= 0).all() and (m <= d - 2).all() and (np.diff(m) >= 0).all() for m in degrees)
    np.testing.assert_array_equal(model.first.mask, degrees[0][:, None] >= np.arange(d))
    for layer, before, after in zip(model.hidden, degrees, degrees[1:], strict=False):
        np.testing.assert_array_equal(layer.mask, after[:, None] >= before)
    np.testing.assert_array_equal(model.last.mask, np.arange(d)[:, None] > degrees[-1])


def test_an_order_that_is_saved_is_the_order_that_is_loaded(tmp_path, rng):
    x, model = all_images((1, 2, 2), 2), build("made, orders", (1, 2, 2))
    alone = model.in_order(2)
    weights.save(tmp_path / "a.npz", alone, {"settings": {"image_shape": [1, 2, 2], "hidden": [9, 8]}}, half=False)
    loaded = weights.load(tmp_path / "a.npz")[0]
    np.testing.assert_allclose(loaded.log_prob(x).data, alone.log_prob(x).data, rtol=1e-5)
    weights.save(tmp_path / "b.npz", model, {"settings": {"image_shape": [1, 2, 2], "hidden": [9, 8], "orders": 3}})
    loaded = weights.load(tmp_path / "b.npz")[0]
    np.testing.assert_array_equal(loaded.ranks.data, model.ranks.data)
    with pytest.raises(ValueError, match="o: axis 3"):
        model.in_order(3)


@every_model
def test_complete_draws_what_sample_draws_around_what_is_given(name, rng):
    model, x, mask = build(name, (1, 2, 3)), rng.integers(0, 2, (5, 1, 2, 3)), rng.random((5, 1, 2, 3)) < 0.5
    completed = model.complete(x, np.random.default_rng(3), mask)
    np.testing.assert_array_equal(completed, model.sample(5, np.random.default_rng(3), given=x, mask=mask))
    assert (completed != x).any()


# --- the mixture of Bernoullis


def mixture(components=3, shape=(1, 2, 2)):
    model, rng = BernoulliMixture(shape, components, rng=np.random.default_rng(0)), np.random.default_rng(5)
    for p in model.parameters():
        p.data = rng.standard_normal(p.shape)
    return model


def test_a_mixture_of_bernoullis_by_hand_and_by_enumeration():
    model, x = mixture(), all_images((1, 2, 2), 2)
    w, p = np.exp(model.log_w.data), 1 / (1 + np.exp(-model.logits.data))
    flat = x.reshape(16, 1, 4)
    by_hand = (w / w.sum() * (p**flat * (1 - p) ** (1 - flat)).prod(2)).sum(1)
    np.testing.assert_allclose(np.exp(model.log_prob(x).data), by_hand)
    np.testing.assert_allclose(by_hand.sum(), 1)
    drawn = model.sample(20_000, np.random.default_rng(0)).reshape(-1, 4) @ [8, 4, 2, 1]
    counts, expected = np.bincount(drawn, minlength=16), 20_000 * by_hand
    assert ((counts - expected) ** 2 / expected).sum() < 15 + 5 * np.sqrt(30)


def test_expectation_maximization(rng):
    """One component has the pixels' frequencies; each round raises the likelihood; images may be many."""
    images = (rng.random((5300, 1, 2, 2)) < [[0.1, 0.5], [0.7, 0.9]]).astype(np.uint8)
    images[5000:] = 1
    one = BernoulliMixture((1, 2, 2), 1, rng=rng)
    one.maximize(images, 1, prior=1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-one.logits.data[0])), images.reshape(-1, 4).mean(0), rtol=1e-4)
    model, found = mixture(), []
    for _ in range(5):
        r = model._joint(images).data
        r = np.exp(r - r.max(1, keepdims=True))
        r /= r.sum(1, keepdims=True)
        model.maximize(images, 1, prior=0.25)
        n, on = r.sum(0), r.T @ images.reshape(-1, 4)
        np.testing.assert_allclose(1 / (1 + np.exp(-model.logits.data)), (on + 0.25) / (n + 0.5)[:, None])
        found.append(model.log_prob(images).data.mean())
    assert (np.diff(found) > 0).all()


# --- NADE's operation


def inputs(rng, n=3, d=5, k=1, hidden=4, zeros=0.6):
    x = rng.standard_normal((n, d)) * (rng.random((n, d)) > zeros)
    shapes = (d, hidden), (d, k, hidden), (d, k), (hidden,)
    return x, *(rng.standard_normal(shape) for shape in shapes)


@pytest.mark.parametrize("n,d,k", [(3, 5, 1), (1, 1, 3), (2, CHUNK, 1), (3, 2 * CHUNK + 3, 2)])
def test_nade_logits_are_the_textbook_ones_with_the_same_derivatives(n, d, k, rng):
    arrays = inputs(rng, n, d, k)
    gy = rng.standard_normal((n, d, k))
    for differentiated in (range(5), range(1, 5)):  # x too, or the images are data
        results = []
        for f in (ops.nade_logits, nade_loop):
            ts = [Tensor(a, requires_grad=i in differentiated) for i, a in enumerate(arrays)]
            y = f(*ts)
            results.append([y, *grad(y, [ts[i] for i in differentiated], gy)])
        for fast, slow in zip(*results, strict=True):
            np.testing.assert_allclose(fast.data, slow.data, atol=1e-11)


def test_derivatives_of_nade_logits(rng):
    gradcheck(ops.nade_logits, inputs(rng, 2, 4, 2, 3), order=2)
    x, *weights = inputs(rng, 2, 4, 1, 3)
    gradcheck(lambda *ws: ops.nade_logits(x, *ws), tuple(weights), order=2)
    w = rng.standard_normal((3, 3))  # one input computed from another
    gradcheck(lambda w: ops.nade_logits(w * 2, w, w.reshape(3, 1, 3), w[:, :1], w[0]), w, order=2)


def test_nade_logits_refuses(rng):
    x, w, v, b, c = inputs(rng)
    with pytest.raises(
        TypeError, match=r"nade_logits: x, w, v, b, c are float64, float32, .* one floating-point dtype"
    ):
        ops.nade_logits(x, w.astype(np.float32), v, b, c)
    with pytest.raises(ValueError, match=r"nade_logits: v has shape \(5, 1, 3\)"):
        ops.nade_logits(x, w, v[:, :, :3], b, c)
