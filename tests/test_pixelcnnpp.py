"""PixelCNN++: the mixture of discretized logistics, what each pixel depends on, and the sampler against enumeration."""

import itertools
from decimal import Decimal, localcontext

import numpy as np
import pytest

from tinygen import Tensor, grad, gradcheck, ops
from tinygen.backend import to_device
from tinygen.distributions import LogisticMixture
from tinygen.models import PixelCNNpp, bits_per_dim
from tinygen.nn import MaskedConv2d
from tinygen.nn.pixel_cache import PixelCache
from tinygen.optim import Muon
from tinygen.training import evaluate

SMALL = {"channels": (4, 3, 2), "blocks": 1, "components": 3, "first_kernel": 3}


def build(shape, levels=3, dtype=np.float64, seed=1, scale=0.4, **settings):
    """A model with random parameters: as built, the branches and the mixture's dependence on the image are zero."""
    rng = np.random.default_rng(seed)
    model = PixelCNNpp(shape, levels, **SMALL | settings, rng=rng)
    for p in model.parameters():
        p.data = (scale * rng.standard_normal(p.shape)).astype(dtype)
    return model


def all_images(shape, levels):
    return np.array(list(itertools.product(range(levels), repeat=int(np.prod(shape))))).reshape(-1, *shape)


def chi_square_is_plausible(counts, p):
    """Pearson's statistic is within 5 standard deviations of its mean; cells with under 5 expected draws are merged."""
    expected = p * counts.sum()
    rare = expected < 5
    counts, expected = (np.append(a[~rare], a[rare].sum()) for a in (counts, expected))
    counts, expected = counts[expected > 1e-9], expected[expected > 1e-9]
    freedom = len(counts) - 1
    return ((counts - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


# --- the mixture


def mixture(levels, colours=1, components=4, pixels=(), seed=0, dtype=np.float64):
    """Parameters drawn once, the same for all ``pixels``."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return np.broadcast_to(rng.standard_normal(shape).reshape(*shape, *[1] * len(pixels)), (*shape, *pixels))

    logits, means, log_scales = draw(components), draw(colours, components), draw(colours, components) - 2
    coefficients = draw(colours * (colours - 1) // 2, components)
    return LogisticMixture(*(a.astype(dtype) for a in (logits, means, log_scales, coefficients)), levels)


def one(mean, log_scale, levels, dtype=np.float64):
    """All values, and a mixture of one component at each."""
    full = np.ones((1, 1, levels), dtype)
    return np.arange(levels)[None], LogisticMixture(full[0], full * dtype(mean), full * dtype(log_scale), None, levels)


MEANS = [-1000, -1.5, -1, -0.9961, 0, 0.003, 0.6, 1, 1000]
LOG_SCALES = [-1000, -7, -5.5, -2, 0, 3, 20, 1000]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype, atol", [(np.float64, 1e-13), (np.float32, 2e-6)])
@pytest.mark.parametrize("levels", [2, 3, 16, 256])
def test_masses_sum_to_one_at_every_scale(levels, dtype, atol):
    for mean, log_scale in itertools.product(MEANS, LOG_SCALES):
        x, p = one(mean, log_scale, levels, dtype)
        log_p = p.log_prob(x)
        assert log_p.dtype == dtype and np.isfinite(log_p.data).all()
        np.testing.assert_allclose(np.exp(log_p.data.astype(float)).sum(), 1, atol=atol, err_msg=f"{mean} {log_scale}")


def sigmoid(x):
    return 1 / (1 + (-x).exp())


@pytest.mark.parametrize("mean, log_scale", [(-1000, -7), (-1, -7), (0.003, -7), (0.6, -2), (-0.3, 20), (1000, 0)])
@pytest.mark.parametrize("levels", [2, 5, 256])
def test_masses_are_differences_of_sigmoids(mean, log_scale, levels):
    """With 60 digits and large exponents the textbook's difference, and its derivatives, need no care."""
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, -(10**9), 10**9
        values = sorted({0, 1, levels // 2, levels - 1})
        m, s = Decimal(mean), Decimal(log_scale).exp()
        for x in values:
            last = Decimal(levels - 1)
            ends = [(2 * x + side) / last - 1 for side in (1, -1)]
            # sigmoid(a) - sigmoid(b) = sigmoid(-b) - sigmoid(-a), of which one has the larger digits
            a, b = ((end - m) / s for end in ends)
            flip = -1 if a > 0 else 1
            upper, lower = sigmoid(flip * a), sigmoid(flip * b)
            if x == levels - 1:
                upper = Decimal(flip == 1)
            if x == 0:
                lower = Decimal(flip == -1)
            wanted = float(abs(upper - lower).ln())
            mean_ = Tensor(np.full((1, 1), float(mean)), requires_grad=True)
            got = LogisticMixture(np.zeros(1), mean_, np.full((1, 1), float(log_scale)), None, levels).log_prob([x])
            np.testing.assert_allclose(got.item(), wanted, rtol=1e-10, atol=1e-10)
            # d log P / dm = (density at b - density at a) / P, with density sigmoid (1 - sigmoid) / s
            da = Decimal(0) if x == levels - 1 else sigmoid(a) * sigmoid(-a)
            db = Decimal(0) if x == 0 else sigmoid(b) * sigmoid(-b)
            slope = float((db - da) / s / abs(upper - lower))
            np.testing.assert_allclose(grad(got.sum(), mean_)[0].item(), slope, rtol=1e-7, atol=1e-7)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_parameters_have_finite_values_and_gradients(dtype):
    extremes = np.array(list(itertools.product([-1000, 0, 1000], MEANS, LOG_SCALES)), dtype).T  # (3, cases)
    logits, mean, log_scale = (Tensor(np.stack([a, 0 * a]), requires_grad=True) for a in extremes)
    for x in (0, 1, 100, 254, 255):
        p = LogisticMixture(logits, mean.reshape(1, *mean.shape), log_scale.reshape(1, *mean.shape), None, 256)
        log_p = p.log_prob(np.full((1, extremes.shape[1]), x))
        assert np.isfinite(log_p.data).all()
        for g in grad(log_p.sum(), [logits, mean, log_scale]):
            assert g.dtype == dtype and np.isfinite(g.data).all()


def test_gradients_of_the_mixture(rng):
    x = rng.integers(0, 5, (3, 6))
    x[:, 0], x[:, 1] = 0, 4
    shapes = [(2, 6), (3, 2, 6), (3, 2, 6), (3, 2, 6)]
    arrays = [rng.standard_normal(shape) for shape in shapes]
    gradcheck(lambda *given: LogisticMixture(*given, 5).log_prob(x), arrays)


def test_the_coupling_of_colours_by_hand():
    """Each mean moves with the colours before it, by the coefficients in the order GR, BR, BG; log-probabilities of
    colours are summed before components are mixed."""
    rng = np.random.default_rng(0)
    levels, x = 9, np.array([2, 7, 4])
    w, m, s, a = rng.standard_normal(2), rng.standard_normal((3, 2)), rng.standard_normal((3, 2)), rng.random((3, 2))
    r, g, _ = x / 4 - 1
    moved = [m[0], m[1] + a[0] * r, m[2] + a[1] * r + a[2] * g]
    total = 0
    for k in range(2):
        product = np.exp(w[k]) / np.exp(w).sum()
        for c in range(3):
            side = LogisticMixture(np.zeros(1), moved[c][None, k : k + 1], s[c][None, k : k + 1], None, levels)
            product *= np.exp(side.log_prob(x[c : c + 1]).item())
        total += product
    np.testing.assert_allclose(LogisticMixture(w, m, s, a, levels).log_prob(x).item(), np.log(total), rtol=1e-12)


@pytest.mark.parametrize("colours, levels", [(1, 256), (2, 7), (3, 4), (4, 2)])
def test_pixels_sum_to_one_and_colours_follow_the_chain_rule(colours, levels):
    x = all_images((colours,), levels).T
    p = mixture(levels, colours, pixels=x.shape[1:])
    log_p = p.log_prob(x).data
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, atol=1e-12)
    chain = sum(p.given(x, c).log_prob(x[c : c + 1]).data for c in range(colours))
    np.testing.assert_allclose(chain, log_p, atol=1e-12)
    x[-1] = 0  # not read
    np.testing.assert_array_equal(p.given(x, colours - 1).logits.data.shape, (4, x.shape[1]))


@pytest.mark.parametrize("levels", [2, 5, 256])
@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_draws_have_the_probabilities_of_log_prob(levels, components, dtype):
    """200,000 evenly spaced u: each value is drawn for exactly its share of them."""
    n = 200_000
    p = mixture(levels, 1, components, (1,), dtype=dtype)
    many = LogisticMixture(*(np.broadcast_to(t.data, (*t.shape[:-1], n)) for t in (p.logits, p.means, p.log_scales)),
                           None, levels)  # fmt: skip
    drawn = many.at((np.arange(n) + 0.5) / n)
    assert drawn.dtype == np.int64 and drawn.shape == (n,)
    every = mixture(levels, 1, components, (levels,), dtype=np.float64)
    share = np.exp(every.log_prob(np.arange(levels)[None]).data)
    tolerance = (2 * components if dtype == np.float64 else 2 * components + 1) / n
    np.testing.assert_allclose(np.bincount(drawn, minlength=levels) / n, share, atol=tolerance)


@pytest.mark.filterwarnings("error")
def test_draws_at_the_ends():
    for mean, log_scale in itertools.product(MEANS, LOG_SCALES):
        _, p = one(mean, log_scale, 256)
        drawn = p.at(np.linspace(0, np.nextafter(1, 0), 256))
        assert drawn.min() >= 0 and drawn.max() <= 255 and (np.diff(drawn) >= 0).all()
        if log_scale <= -7 and mean in (-1000, 1000):
            assert (drawn == (0 if mean < 0 else 255)).all()
    _, p = one(0, 0, 256)
    assert p.at(np.zeros(256)).max() == 0 and p.at(np.full(256, np.nextafter(1, 0))).min() == 255


# --- what depends on what


def jacobian(model, seed=None):
    """(pixel, pixel): how strongly the mixture of the one depends on the values of the other, in raster order.

    Without a seed all parameters and inputs are positive, so that every path from one to the other adds.
    """
    (c, height, width), rng = model.image_shape, np.random.default_rng(seed)
    n = height * width
    if seed is None:
        for p in model.parameters():
            p.data = np.full(p.shape, 0.1)
    draw = np.ones if seed is None else rng.standard_normal
    x = Tensor(0.3 * draw((n, c, height, width)), requires_grad=True)
    y = model.network(x)
    chosen = np.zeros(y.shape)  # of image i only what is said of pixel i
    for i, (row, column) in enumerate(np.ndindex(height, width)):
        chosen[i, :, row, column] = draw(y.shape[1])
    j = np.abs(grad(y, x, chosen)[0].data)  # (pixel, colour, row, column)
    return (j.min(1) if seed is None else j.max(1)).reshape(n, n)


SHAPES = [(1, 6, 7), (1, 8, 8), (3, 5, 5), (2, 4, 3), (1, 1, 9), (1, 9, 1), (1, 1, 1), (1, 2, 3), (1, 13, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", [{}, {"kernel": 5, "blocks": 2, "channels": (3, 2)}, {"channels": (2, 2, 2, 2)}])
def test_nothing_leaks(shape, settings):
    model = build(shape, **settings)
    j = sum(jacobian(model, seed) for seed in range(3))
    assert (np.triu(j) == 0).all()  # of itself and of what comes later


@pytest.mark.parametrize("shape", SHAPES)
def test_all_earlier_pixels_are_seen(shape):
    j = jacobian(build(shape, blocks=2)) > 0
    np.testing.assert_array_equal(j, np.tri(len(j), k=-1, dtype=bool))


def test_without_smaller_images_it_sees_less():
    j = jacobian(build((1, 12, 12), channels=(3,), blocks=1)) > 0
    assert (j <= np.tri(len(j), k=-1, dtype=bool)).all() and j.sum() < np.tri(len(j), k=-1).sum()


def test_colours_see_the_earlier_colours_of_their_pixel(rng):
    """The weights of p(x_ic | ..) depend on all of them, its mean too, its scale on none."""
    model, x = build((3, 2, 3), 5), rng.integers(0, 5, (1, 3, 2, 3))
    before = model.logits(x).data.reshape(1, 3, 3, 3, 2, 3)  # (N, what, K, C, H, W)
    for colour in range(3):
        other = x.copy()
        other[0, colour, 1, 1] = (other[0, colour, 1, 1] + 2) % 5
        changed = (model.logits(other).data.reshape(before.shape) != before)[0, :, :, :, 1, 1].any(1)  # (what, C)
        later = np.arange(3) > colour
        np.testing.assert_array_equal(changed, [later, later, [False] * 3])


# --- the likelihood


@pytest.mark.parametrize(
    "shape, levels", [((1, 1, 2), 3), ((3, 1, 2), 3), ((1, 2, 3), 2), ((1, 2, 2), 4), ((2, 3, 1), 2)]
)
def test_probabilities_sum_to_one(shape, levels):
    log_p = build(shape, levels).log_prob(all_images(shape, levels)).data
    assert np.ptp(log_p) > 0.02  # not uniform
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, atol=1e-12)


def test_log_prob_is_the_chain_rule_over_values(rng):
    model, x = build((3, 3, 4), 6), rng.integers(0, 6, (4, 3, 3, 4))
    w, mean, log_scale = np.split(model.logits(x).data.transpose(1, 2, 0, 3, 4), 3)  # (K, C, N, H, W) each
    total = sum(
        LogisticMixture(w[:, c], mean[None, :, c], log_scale[None, :, c], None, 6).log_prob(x[None, :, c]).data
        for c in range(3)
    )
    np.testing.assert_allclose(total.sum((1, 2)), model.log_prob(x).data, rtol=1e-12)
    np.testing.assert_allclose(model.loss(x).item(), -model.log_prob(x).data.mean(), rtol=1e-12)


def test_float32_is_close_to_float64(rng):
    double, single = (build((3, 8, 9), 256, dtype, scale=0.2) for dtype in (np.float64, np.float32))
    x = rng.integers(0, 256, (4, 3, 8, 9), np.uint8)
    log_p = single.log_prob(x)
    assert log_p.dtype == np.float32
    np.testing.assert_allclose(log_p.data, double.log_prob(x).data, rtol=1e-5)


def test_a_new_model_is_nearly_uniform(rng):
    shape = (1, 6, 6)
    log_p = PixelCNNpp(shape, rng=rng).log_prob(rng.integers(0, 256, (8, *shape)))
    np.testing.assert_allclose(bits_per_dim(-log_p.data, shape), 8, atol=0.35)


def test_dropout_is_for_learning_alone(rng):
    plain, model = (build((1, 5, 4), dropout=p) for p in (0.0, 0.4))
    x = rng.integers(0, 3, (6, 1, 5, 4))
    right = plain.loss(x).item()
    assert plain.loss(x, rng).item() == right == model.loss(x).item() == -model.log_prob(x).mean().item()
    np.testing.assert_allclose(model.score(x, rng).data.mean(), right, rtol=1e-12)
    np.testing.assert_allclose(evaluate(model, x, rng), right, rtol=1e-12)
    losses = [model.loss(x, np.random.default_rng(seed)).item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2] and right not in losses
    np.testing.assert_array_equal(*(m.sample(4, np.random.default_rng(3)) for m in (plain, model)))


def test_a_whole_model_differentiates_twice(rng, monkeypatch):
    monkeypatch.setattr(ops, "relu", ops.softplus)  # no kinks
    model = build((2, 3, 3), 5, classes=2, dropout=0.3, channels=(2, 2))
    x, labels = rng.integers(0, 5, (2, 2, 3, 3)), np.array([1, 0])
    gradcheck(lambda: model.loss(x, np.random.default_rng(1), labels), (), parameters=model)


@pytest.mark.parametrize("shape", [(1, 5, 6), (3, 4, 3)])
def test_it_learns(shape, rng):
    """Two images are learned by heart."""
    model = PixelCNNpp(shape, 8, **SMALL | {"channels": (6, 6)}, rng=rng)
    x = rng.integers(0, 8, (2, *shape))
    optimizer, start = Muon(model.parameters(), 0.01), model.loss(x).item()
    for _ in range(50):
        optimizer.zero_grad()
        loss = model.loss(x, rng)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.6 * start


# --- the sampler


SAMPLED = [
    *(((1, 5, 6), 3, {}), ((1, 8, 8), 256, {}), ((3, 5, 4), 4, {}), ((2, 3, 7), 5, {}), ((4, 2, 2), 2, {})),
    *(((1, 1, 1), 2, {}), ((1, 1, 7), 3, {}), ((1, 7, 1), 3, {}), ((1, 2, 3), 300, {"channels": (2, 2, 2, 2, 2)})),
    *(((1, 9, 10), 4, {"kernel": 5, "first_kernel": 7, "blocks": 2}), ((3, 4, 5), 4, {"channels": (3,)})),
]


@pytest.mark.parametrize("dtype, atol", [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("shape, levels, settings", SAMPLED)
def test_sampler_is_its_definition(shape, levels, settings, dtype, atol, monkeypatch):
    model = build(shape, levels, dtype, scale=0.3, **settings)
    recorded, draw = [], model._draw
    monkeypatch.setattr(model, "_draw", lambda logits, *given: recorded.append(logits.data) or draw(logits, *given))
    x = model.sample(4, np.random.default_rng(5))
    monkeypatch.undo()
    assert x.shape == (4, *shape) and x.dtype == (np.uint8 if levels <= 256 else np.int64)
    if dtype == np.float64:
        np.testing.assert_array_equal(x, model.sample_by_definition(4, np.random.default_rng(5)))
    found = np.array(recorded).reshape(*shape[1:], shape[0], -1, 4).transpose(4, 3, 2, 0, 1)
    np.testing.assert_allclose(found, model.logits(x).data, atol=atol, rtol=atol)


@pytest.mark.parametrize("shape, levels", [((1, 1, 2), 3), ((3, 1, 2), 3), ((1, 2, 3), 2)])
def test_frequencies_of_samples_are_the_probabilities(shape, levels, rng):
    model, images, n = build(shape, levels), all_images(shape, levels), 20_000
    x = model.sample(n, rng).reshape(n, -1).astype(int)
    counts = np.bincount(x @ levels ** np.arange(x.shape[1])[::-1], minlength=len(images))
    assert chi_square_is_plausible(counts, np.exp(model.log_prob(images).data))
    assert not chi_square_is_plausible(counts, np.full(len(images), 1 / len(images)))  # the test has power


def test_frequencies_of_completions_are_the_conditional_probabilities(rng):
    """Green is given, red and blue of the same pixel are not: each is drawn given the colours before it."""
    model, n, images = build((3, 1, 1), 3, scale=1.0), 20_000, all_images((3, 1, 1), 3)
    given, mask = np.array([0, 2, 0]).reshape(3, 1, 1), np.array([False, True, False]).reshape(3, 1, 1)
    x = model.sample(n, rng, None, np.tile(given, (n, 1, 1, 1)), mask).reshape(n, 3).astype(int)
    assert (x[:, 1] == 2).all()
    joint = np.exp(model.log_prob(images).data).reshape(3, 3, 3)  # R, G, B
    p = joint.sum((1, 2))[:, None] * joint[:, 2] / joint[:, 2].sum(1, keepdims=True)  # p(R) p(B | R, G = 2)
    assert chi_square_is_plausible(np.bincount(3 * x[:, 0] + x[:, 2], minlength=9), p.ravel())
    wrong = joint[:, 2].sum(1)[:, None] / joint[:, 2].sum() * joint.sum(1) / joint.sum((1, 2))[:, None]
    assert np.abs(wrong - p).max() > 0.01


@pytest.mark.parametrize("shape, levels", [((1, 5, 4), 2), ((3, 3, 3), 4)])
@pytest.mark.parametrize("part", ["rows", "each its own", "everything"])
def test_completion_keeps_what_is_given(shape, levels, part, rng):
    model, n = build(shape, levels), 5
    given = rng.integers(0, levels, (n, *shape))
    mask = {
        "rows": np.arange(shape[1])[:, None] < 2,
        "each its own": rng.random((n, *shape)) < 0.5,
        "everything": np.array(True),
    }[part]
    x = model.complete(given, np.random.default_rng(5), mask)
    kept = np.broadcast_to(mask, x.shape)
    np.testing.assert_array_equal(x[kept], given[kept])
    np.testing.assert_array_equal(x, model.sample_by_definition(n, np.random.default_rng(5), None, given, mask))


def test_temperature_sharpens_weights_and_scales(rng):
    model = build((1, 3, 4), 256, scale=0.5)
    cold = model.sample(5, np.random.default_rng(5), temperature=1e-30)
    np.testing.assert_array_equal(cold, model.sample_by_definition(5, np.random.default_rng(5), temperature=1e-30))
    w, mean, _ = np.split(model.logits(cold).data[:, :, 0], 3, axis=1)
    likeliest = np.take_along_axis(mean, w.argmax(1)[:, None], 1)[:, 0]
    centre = np.clip(np.rint((likeliest + 1) * 127.5), 0, 255)
    assert np.abs(cold[:, 0] - centre).max() <= 6  # scales end at exp(-7)
    warm = [np.std(model.sample(200, np.random.default_rng(0), temperature=t)) for t in (0.5, 1, 2)]
    assert warm[0] < warm[1] < warm[2]


def test_samples_are_the_same_on_the_device_and_it_is_not_waited_for(strict):
    def count(shape):
        model = build(shape, 4, np.float32, classes=2).to("cuda")
        strict.count.clear()
        x = model.sample(2, np.random.default_rng(5), labels=[1, 0])
        counted = +strict.count
        host = model.to("cpu").sample(2, np.random.default_rng(5), labels=[1, 0])
        np.testing.assert_array_equal(x.get(), host)
        return counted

    assert count((1, 2, 2)) == count((1, 5, 4)) == count((3, 3, 2)) == {"h2d": 2}  # u and the labels


def test_log_prob_is_the_same_on_every_device(rng, device):
    model, x = build((3, 5, 4), 6), rng.integers(0, 6, (2, 3, 5, 4))
    here = model.log_prob(x).data
    model.to(device)
    np.testing.assert_allclose(model.log_prob(to_device(x, device)).numpy(), here, rtol=1e-12)


# --- classes


def test_classes(rng):
    model, images = build((1, 2, 2), 3, classes=3), all_images((1, 2, 2), 3)
    of_class = [model.log_prob(images, np.full(len(images), k)).data for k in range(3)]
    np.testing.assert_allclose(np.exp(of_class).sum(1), 1, atol=1e-12)
    assert np.abs(of_class[0] - of_class[1]).max() > 0.01 < np.abs(of_class[1] - of_class[2]).max()
    labels = np.array([2, 0, 1, 2])
    drawn = model.sample(4, np.random.default_rng(0), labels)
    np.testing.assert_array_equal(drawn, model.sample_by_definition(4, np.random.default_rng(0), labels))
    with pytest.raises(ValueError, match="labels: got none"):
        model.sample(4, rng)


# --- layers


@pytest.mark.parametrize("mask", ["B", "rows"])
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 1), (3, 4)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_stride_skips_results(mask, size, stride, rng):
    layer = MaskedConv2d(mask, 2, 3, 3, stride=stride, rng=rng)
    every = MaskedConv2d(mask, 2, 3, 3, rng=rng)
    every.weight, every.bias = layer.weight, layer.bias
    x = rng.standard_normal((4, 2, *size)).astype(np.float32)
    y = layer(x).data
    np.testing.assert_allclose(y, every(x).data[:, :, ::stride, ::stride], atol=1e-6)
    at = PixelCache(4, *size, x)
    if mask == "rows":
        at.column = None
    for row in range(size[0]):
        at.row = row
        for column in [None] if mask == "rows" else range(size[1]):
            at.column = column
            columns = slice(None) if column is None else column
            given = x[:, :, row, columns]
            out = layer(Tensor(given.T if column is not None else given.transpose(2, 1, 0)), at)
            if row % stride or (column or 0) % stride:
                assert out is None
                continue
            wanted = y[:, :, row // stride, columns if column is None else column // stride]
            wanted = wanted.T if column is not None else wanted.transpose(2, 1, 0)
            np.testing.assert_allclose(out.data, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"channels": ()}, r"channels: got \(\)"),
        ({"channels": (4, 0)}, r"channels: got \(4, 0\)"),
        ({"blocks": 0}, "blocks: got 0"),
        ({"components": 0}, "components: got 0"),
        ({"kernel": 4}, "kernel: got 4"),
        ({"kernel": 1}, "kernel: got 1"),
        ({"first_kernel": 2}, "first_kernel: got 2"),
        ({"levels": 1}, "levels: got 1"),
        ({"dropout": 1.0}, "p: got 1.0"),
        ({"classes": -1}, "classes: got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message, rng):
    with pytest.raises(ValueError, match=message):
        PixelCNNpp(**settings, rng=rng)
