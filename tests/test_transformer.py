"""PixelTransformer and its layer: what a value sees, likelihoods that sum to one, and the sampler against both."""

import itertools

import numpy as np
import pytest

from tinygen import Tensor, grad, gradcheck, no_grad, ops
from tinygen.backend import to_device
from tinygen.models import PixelTransformer, bits_per_dim
from tinygen.nn import CausalSelfAttention
from tinygen.nn.pixel_cache import PixelCache
from tinygen.optim import Adam
from tinygen.training import fit

SETTINGS = {"channels": 4, "blocks": 2, "heads": 2, "kernel": 3, "first_kernel": 3}


def build(shape, levels=2, dtype=np.float64, seed=1, **settings):
    """A model with random parameters: as built, the residual branches and the logits are zero."""
    rng = np.random.default_rng(seed)
    model = PixelTransformer(shape, levels, **{**SETTINGS, **settings}, rng=rng)
    for p in model.parameters():
        p.data = (0.5 * rng.standard_normal(p.shape)).astype(dtype)
    return model


def all_images(shape, levels=2):
    return np.array(list(itertools.product(range(levels), repeat=int(np.prod(shape))))).reshape(-1, *shape)


# -- the layer


def layer_by_hand(layer, x):
    """(channels, positions) -> the same, position by position and head by head."""
    weight, bias = layer.qkv.weight.data[:, :, 0, 0], layer.qkv.bias.data
    q, k, v = np.split(weight @ x + bias[:, None], 3)
    d = len(x) // layer.heads
    y = np.zeros_like(x)
    for head, i in np.ndindex(layer.heads, x.shape[1]):
        mine = slice(head * d, head * d + d)
        scores = [q[mine, i] @ k[mine, j] / np.sqrt(d) for j in range(i + 1)]
        w = np.exp(scores) / np.exp(scores).sum()
        y[mine, i] = sum(w[j] * v[mine, j] for j in range(i + 1))
    return layer.out.weight.data[:, :, 0, 0] @ y + layer.out.bias.data[:, None]


def attention_layer(channels, heads, rng, dtype=np.float64):
    layer = CausalSelfAttention(channels, heads, rng=rng)
    for p in layer.parameters():
        p.data = rng.standard_normal(p.shape).astype(dtype)
    return layer


@pytest.mark.parametrize("channels,heads,size", [(4, 2, (2, 3)), (6, 3, (3, 2)), (3, 1, (1, 4)), (2, 2, (1, 1))])
def test_the_layer_is_the_loop_over_positions(channels, heads, size, rng, device):
    layer, x = attention_layer(channels, heads, rng), rng.standard_normal((2, channels, *size))
    by_hand = [layer_by_hand(layer, image.reshape(channels, -1)).reshape(channels, *size) for image in x]
    y = layer.to(device)(Tensor(to_device(x, device)))
    np.testing.assert_allclose(y.numpy(), by_hand, atol=1e-12)
    at = PixelCache(2, *size, layer.out.weight.data)
    for at.row, at.column in np.ndindex(*size):
        here = Tensor(to_device(x[:, :, at.row, at.column].T.copy(), device))
        for _ in range(2):  # a pixel may be evaluated again
            found = layer(here, at).numpy()
        np.testing.assert_allclose(found.T, np.array(by_hand)[:, :, at.row, at.column], atol=1e-12)


def test_the_layer_differentiates_twice(rng):
    layer, x = attention_layer(4, 2, rng), rng.standard_normal((2, 4, 2, 2))
    gradcheck(lambda x: layer(x), x, order=2, parameters=layer)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_scores_at_one_pixel(dtype, rng):
    layer, x = attention_layer(2, 1, rng, dtype), 40 * rng.standard_normal((1, 2, 2, 3)).astype(dtype)
    y, at = layer(Tensor(x)).data, PixelCache(1, 2, 3, layer.out.weight.data)
    for at.row, at.column in np.ndindex(2, 3):
        here = layer(Tensor(x[:, :, at.row, at.column].T), at).data
        assert here.dtype == dtype
        np.testing.assert_allclose(here[:, 0], y[0, :, at.row, at.column], rtol=1e-4)


def test_the_layer_refuses():
    with pytest.raises(ValueError, match="CausalSelfAttention: 3 heads must divide 4 channels"):
        CausalSelfAttention(4, 3, rng=np.random.default_rng(0))


# -- what depends on what


def jacobian(model, rng):
    """(value, value): how strongly the logits of the one depend on the other, both in the order of the chain rule."""
    (c, h, w), n = model.image_shape, int(np.prod(model.image_shape))
    x = Tensor(rng.standard_normal((n, c, h, w)), requires_grad=True)
    chosen = np.zeros((n, model.outputs, c, h, w))  # of image i only the logits of value i
    for i, (row, column, colour) in enumerate(np.ndindex(h, w, c)):
        chosen[i, :, colour, row, column] = rng.standard_normal(model.outputs)
    with pytest.MonkeyPatch.context() as patch:  # between the levels too, or there would be no derivative
        patch.setattr("tinygen.models.explicit.tractable.transformer.check_images", lambda x, *_: x)
        patch.setattr(ops, "relu", ops.softplus)  # a ReLU that is off hides what it would see
        g = grad(model.logits(x), x, chosen)[0].data
    return g.transpose(0, 2, 3, 1).reshape(n, n)


SHAPES = [(1, 4, 5), (1, 1, 6), (1, 5, 1), (1, 1, 1), (1, 1, 2), (3, 3, 2), (3, 1, 1), (2, 2, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", [{}, {"blocks": 1, "kernel": 1, "first_kernel": 1}, {"classes": 2}])
def test_each_value_sees_all_before_it_and_nothing_else(shape, settings, rng, monkeypatch):
    model = build(shape, 4, **settings)
    if model.classes:
        monkeypatch.setattr(model, "_labels", lambda labels, n: np.arange(n) % 2)
    j = sum(np.abs(jacobian(model, rng)) for _ in range(3))
    assert (np.triu(j) == 0).all()  # of itself and of what comes later
    assert (j[np.tril_indices(len(j), -1)] > 0).all()


def test_without_attention_only_the_neighbourhood_is_seen(rng):
    """So it is attention that carries what is far away."""
    model = build((1, 6, 6))
    for block in model.blocks:
        block.attention.out.weight.data = 0 * block.attention.out.weight.data
    j = sum(np.abs(jacobian(model, rng)) for _ in range(3)) > 0
    assert not j[35, :12].any() and j[35, 12:35].any()  # three kernels of 3 x 3 reach three rows up


def test_the_first_pixel_has_a_free_probability(rng):
    """It sees the start and its position, so both its probability and all others can be learned."""
    model = build((1, 2, 2))
    first = model.logits(all_images((1, 2, 2))).data[:, 0, 0, 0, 0]
    assert np.ptp(first) == 0 and np.isfinite(first).all()
    (g,) = grad(model.logits(np.zeros((1, 1, 2, 2)))[0, 0, 0, 0, 0], [model.start])
    assert g.data != 0
    black = np.zeros((16, 1, 1, 2), np.uint8)
    black[4:, 0, 0, 0] = 1  # white in three of four images
    learner = PixelTransformer((1, 1, 2), rng=rng, **SETTINGS)
    fit(learner, black, steps=150, optimizer=Adam(learner.parameters(), 0.02), rng=rng, workers=1, progress=False)
    with no_grad():
        p = 1 / (1 + np.exp(-learner.logits(black[:1]).data[0, 0, 0, 0, 0]))
    assert abs(p - 0.75) < 0.03


def test_positions_matter(rng, monkeypatch):
    """Without their vectors, one layer of attention takes the values before the last in any order."""
    monkeypatch.setattr(ops, "relu", ops.softplus)
    model = build((1, 1, 6), blocks=1, kernel=1, first_kernel=1)
    x = rng.integers(0, 2, (1, 1, 1, 6))
    x[..., :3] = 0, 0, 1
    moved = x[..., [2, 0, 1, 3, 4, 5]]
    assert abs((model.logits(x) - model.logits(moved)).data[..., 5]).max() > 1e-4
    model.position.data = model.position.data * 0
    np.testing.assert_allclose(model.logits(x).data[..., 5], model.logits(moved).data[..., 5], atol=1e-12)


def test_what_the_network_is_given_is_shifted_by_one(monkeypatch):
    model, seen = build((3, 2, 2), 3), []
    monkeypatch.setattr(model.first, "forward", lambda x, at=None: seen.append(x.data) or x * np.ones((4, 1, 1)))
    x = np.arange(12).reshape(1, 3, 2, 2) % 3
    model.logits(x)
    in_order = x.transpose(0, 2, 3, 1).ravel() - 1.0  # levels 0, 1, 2 as -1, 0, 1
    assert seen[0].shape == (1, 1, 2, 6)
    np.testing.assert_allclose(seen[0].ravel(), [model.start.data[0], *in_order[:-1]])


def norm_by_hand(layer, x):
    y = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    return y * layer.weight.data[:, None, None] + layer.bias.data[:, None, None]


def test_the_network_is_what_its_page_says(rng):
    """Layer by layer, on one image, in NumPy but for the convolutions."""
    model, x = build((1, 3, 4)), rng.integers(0, 2, (1, 1, 3, 4))
    shifted = np.append(model.start.data, 2.0 * x.ravel()[:-1] - 1).reshape(1, 1, 3, 4)
    h = model.first(Tensor(shifted)).data + model.position.data
    for block in model.blocks:
        h = h + layer_by_hand(block.attention, norm_by_hand(block.norms[0], h).reshape(4, 12)).reshape(h.shape)
        f, g = np.split(block.conv(Tensor(norm_by_hand(block.norms[1], h))).data, 2, 1)
        h = h + block.out(Tensor(np.tanh(f) / (1 + np.exp(-g)))).data
    h = model.hidden(Tensor(np.maximum(h, 0))).data
    y = model.last(Tensor(np.maximum(h, 0)))
    np.testing.assert_allclose(model.logits(x).data[:, 0], y.data, atol=1e-12)


# -- the likelihood


@pytest.mark.parametrize(
    "shape,levels",
    [((1, 1, 1), 2), ((1, 1, 2), 3), ((1, 1, 2), 2), ((1, 2, 3), 2), ((1, 2, 2), 3), ((3, 1, 1), 4), ((3, 1, 2), 2)],
)
def test_probabilities_sum_to_one(shape, levels):
    log_p = build(shape, levels).log_prob(all_images(shape, levels)).data
    assert np.ptp(log_p) > 0.02  # not uniform
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, atol=1e-12)


def test_probabilities_given_a_class_sum_to_one():
    model, images = build((1, 2, 3), classes=3), all_images((1, 2, 3))
    of_class = [model.log_prob(images, np.full(len(images), k)).data for k in range(3)]
    np.testing.assert_allclose(np.exp(of_class).sum(1), 1, atol=1e-12)
    assert np.abs(of_class[0] - of_class[1]).max() > 0.01 < np.abs(of_class[1] - of_class[2]).max()


def test_a_new_model_is_the_uniform_distribution(rng):
    x = rng.integers(0, 256, (2, 3, 4, 3))
    log_p = PixelTransformer((3, 4, 3), 256, **SETTINGS, rng=rng).log_prob(x)
    np.testing.assert_allclose(bits_per_dim(-log_p.data, (3, 4, 3)), 8, rtol=1e-6)
    assert log_p.dtype == np.float32


def test_dropout_is_for_learning_alone(rng, monkeypatch):
    plain, model = build((1, 3, 4)), build((1, 3, 4), dropout=0.4)
    x = rng.integers(0, 2, (3, 1, 3, 4))
    assert model.loss(x).item() == plain.loss(x).item() == plain.loss(x, rng).item() == -model.log_prob(x).mean().item()
    assert model.loss(x, np.random.default_rng(0)).item() != model.loss(x).item()
    seen = []
    monkeypatch.setattr(ops, "dropout", lambda x, p, given: seen.append((x.shape, p, given is rng)) or x)
    model.loss(x, rng)
    assert seen == 4 * [((3, 4, 3, 4), 0.4, True)]  # two branches in each of two blocks


# -- the sampler


def drawn_logits(model, n, monkeypatch, **given):
    """A sample, and the logits (n, K, C, H, W) that it was drawn from."""
    recorded, distribution = [], model._distribution
    monkeypatch.setattr(model, "_distribution", lambda y, axis: recorded.append(y.data) or distribution(y, axis))
    x = model.sample(n, np.random.default_rng(5), **given)
    monkeypatch.undo()
    c, h, w = model.image_shape
    return x, np.array(recorded).reshape(h, w, c, model.outputs, n).transpose(4, 3, 2, 0, 1)


@pytest.mark.parametrize("dtype,atol", [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize(
    "shape,levels", [((1, 4, 5), 2), ((1, 1, 1), 2), ((1, 1, 5), 3), ((3, 3, 2), 5), ((2, 4, 1), 2)]
)
def test_sampler_is_its_definition(shape, levels, dtype, atol, monkeypatch):
    model = build(shape, levels, dtype)
    x, logits = drawn_logits(model, 5, monkeypatch)
    np.testing.assert_array_equal(x, model.sample_by_definition(5, np.random.default_rng(5)))
    np.testing.assert_allclose(logits, model.logits(x).data, atol=atol)


@pytest.mark.parametrize("settings", [{"kernel": 5, "first_kernel": 7}, {"kernel": 1, "heads": 1}, {"blocks": 0}])
def test_sampler_of_other_settings(settings):
    model = build((3, 3, 4), 3, **settings)
    x = model.sample(4, np.random.default_rng(5))
    np.testing.assert_array_equal(x, model.sample_by_definition(4, np.random.default_rng(5)))


def test_sampler_with_classes(monkeypatch):
    model, labels = build((3, 2, 3), 3, classes=3), np.array([2, 0, 1, 2])
    x, logits = drawn_logits(model, 4, monkeypatch, labels=labels)
    np.testing.assert_allclose(logits, model.logits(x, labels=labels).data, atol=1e-12)
    np.testing.assert_array_equal(x, model.sample_by_definition(4, np.random.default_rng(5), labels=labels))


@pytest.mark.parametrize("shape,levels", [((1, 4, 5), 2), ((3, 3, 2), 4)])
def test_completion_keeps_what_is_given(shape, levels, rng):
    model, given = build(shape, levels), rng.integers(0, levels, (4, *shape))
    for mask in (np.arange(shape[1])[:, None] < 2, rng.random((4, *shape)) < 0.5):
        x = model.complete(given, np.random.default_rng(5), mask)
        kept = np.broadcast_to(mask, x.shape)
        np.testing.assert_array_equal(x[kept], given[kept])
        defined = model.sample_by_definition(4, np.random.default_rng(5), None, given, mask)
        np.testing.assert_array_equal(x, defined)


@pytest.mark.parametrize("shape,levels", [((1, 2, 3), 2), ((3, 1, 1), 3)])
def test_frequencies_of_samples_are_the_probabilities(shape, levels, rng):
    model, images, n = build(shape, levels), all_images(shape, levels), 20_000
    x = model.sample(n, rng).reshape(n, -1)
    counts = np.bincount(x @ levels ** np.arange(x.shape[1])[::-1], minlength=len(images))
    p = np.exp(model.log_prob(images).data)
    freedom = len(images) - 1
    for expected, plausible in (p, True), (np.full(len(p), 1 / len(p)), False):  # and the test has power
        statistic = ((counts - n * expected) ** 2 / (n * expected)).sum()
        assert (statistic < freedom + 5 * np.sqrt(2 * freedom)) == plausible


def test_sampling_crosses_to_the_device_once(strict):
    for shape in (1, 3, 3), (3, 2, 2):
        model = build(shape, 3, np.float32).to("cuda")
        strict.count.clear()
        x = model.sample(2, np.random.default_rng(5))
        assert +strict.count == {"h2d": 1}
        np.testing.assert_array_equal(x.get(), model.to("cpu").sample(2, np.random.default_rng(5)))


def test_workers_and_devices_give_the_same_weights(rng):
    x, states = rng.integers(0, 2, (64, 1, 3, 3), dtype=np.uint8), []
    for workers in 1, 2:
        model = PixelTransformer((1, 3, 3), dropout=0.2, rng=np.random.default_rng(0), **SETTINGS)
        adam = Adam(model.parameters(), 0.01)
        options = {"rng": np.random.default_rng(1), "batch_size": 32, "workers": workers, "progress": False}
        fit(model, x, steps=3, optimizer=adam, **options)
        states.append(model.state_dict())
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
