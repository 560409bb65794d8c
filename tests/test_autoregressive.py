"""The autoregressive models: what each pixel depends on, likelihoods that sum to one, and the sampler against both."""

import itertools

import numpy as np
import pytest

from tinygen import Tensor, grad, no_grad, ops
from tinygen.backend import to_device
from tinygen.models import GatedPixelCNN, PixelCNN, PixelRNN, bits_per_dim
from tinygen.nn.pixel_cache import PixelCache
from tinygen.optim import Adam
from tinygen.training import evaluate, fit

BUILD = {
    "cnn": lambda shape, levels=2, depth=2, channels=6, **kw: PixelCNN(shape, levels, channels, depth, **kw),
    "gated": lambda shape, levels=2, depth=2, channels=6, **kw: GatedPixelCNN(shape, levels, channels, depth, **kw),
    "row": lambda shape, levels=2, depth=2, channels=6, **kw: PixelRNN("row", shape, levels, channels, depth, **kw),
    "diagonal": lambda shape, levels=2, depth=2, channels=6, **kw: PixelRNN(
        "diagonal", shape, levels, channels, depth, **kw
    ),
}
DROP = ["cnn", "row", "diagonal"]  # have dropout
every_model = pytest.mark.parametrize("name", BUILD)


def build(name, shape, levels=2, dtype=np.float64, seed=1, **settings):
    """A model with random parameters: as built, the residual branches and the logits are zero."""
    rng = np.random.default_rng(seed)
    model = BUILD[name](shape, levels, rng=rng, **settings)
    for p in model.parameters():
        p.data = (0.4 * rng.standard_normal(p.shape)).astype(dtype)
    return model


def residual_layers(model):
    return model.blocks if isinstance(model, PixelCNN) else model.layers


def branch_ends(model):
    """The last convolution of each residual branch."""
    return [part.out if isinstance(model, GatedPixelCNN) else part.up for part in residual_layers(model)]


def all_images(shape, levels=2):
    return np.array(list(itertools.product(range(levels), repeat=int(np.prod(shape))))).reshape(-1, *shape)


def chi_square_is_plausible(counts, p):
    """Pearson's statistic is within 5 standard deviations of its mean; cells with under 5 expected draws are merged."""
    expected = p * counts.sum()
    rare = expected < 5
    counts, expected = (np.append(a[~rare], a[rare].sum()) for a in (counts, expected))
    counts, expected = counts[expected > 1e-9], expected[expected > 1e-9]
    freedom = len(counts) - 1
    return ((counts - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("name", DROP)
def test_dropout_is_for_learning_alone(name, rng):
    """With an rng the loss is noisy; scores, likelihoods and samples are those of a model without dropout."""
    plain, model = (build(name, (1, 4, 5), dropout=p) for p in (0.0, 0.4))
    x = rng.integers(0, 2, (6, 1, 4, 5))
    right = plain.loss(x).item()
    assert plain.loss(x, rng).item() == right
    assert model.loss(x).item() == right and -model.log_prob(x).mean().item() == right
    assert model.score(x, rng).mean().item() == right
    with no_grad():  # the same loss, whether it is recorded or not
        noisy = model.loss(x, np.random.default_rng(0)).item()
    assert noisy == model.loss(x, np.random.default_rng(0)).item() != right
    np.testing.assert_allclose(evaluate(model, x, rng), right, rtol=1e-12)
    losses = [model.loss(x, np.random.default_rng(seed)).item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2] and right not in losses
    drawn = [m.sample(4, np.random.default_rng(3)) for m in (plain, model)]
    np.testing.assert_array_equal(*drawn)
    for last in branch_ends(model):  # all noise reaches the logits through the branches
        last.weight.data = last.weight.data * 0
    assert model.loss(x, rng).item() == model.loss(x).item()


def test_where_dropout_acts(rng, monkeypatch):
    seen = []
    monkeypatch.setattr(ops, "dropout", lambda x, p, given: seen.append((x.shape, p, given is rng)) or x)
    x = rng.integers(0, 2, (3, 1, 4, 5))
    for name in DROP:
        build(name, (1, 4, 5), dropout=0.4).loss(x, rng)
        assert seen and set(seen) == {((3, 6, 4, 5), 0.4, True)}, name  # on the branches' features, with the rng given
        seen.clear()


def test_dropout_sends_a_mask_to_the_device_and_waits_for_nothing(rng, strict):
    model = build("cnn", (1, 4, 5), dtype=np.float32, dropout=0.4).to("cuda")
    x = to_device(rng.integers(0, 2, (3, 1, 4, 5)), "cuda")
    strict.count.clear()
    grad(model.loss(x, rng), model.parameters())
    assert +strict.count == {"h2d": 2}  # one a block


# --- what depends on what


def jacobian(model, positive=False, rng=None):
    """(sub-pixel, sub-pixel): how strongly the logits of the one depend on the other, in raster order, colours last.

    ``positive``: all parameters and inputs are, so that every path from one to the other adds: nothing cancels and no
    ReLU is off, and an entry is zero only where there is no path.
    """
    (c, height, width), n = model.image_shape, int(np.prod(model.image_shape))
    if positive:
        for p in model.parameters():
            p.data = np.full(p.shape, 0.05)
    x = Tensor(np.full((n, c, height, width), 0.3) if positive else rng.standard_normal((n, c, height, width)))
    x.requires_grad = True
    y = model.network(x)
    chosen = np.zeros((n, c, model.outputs, height, width))  # of image i only the logits of sub-pixel i
    for i, (row, column, colour) in enumerate(np.ndindex(height, width, c)):
        chosen[i, colour, :, row, column] = 1 if positive else rng.standard_normal(model.outputs)
    return grad(y, x, chosen.reshape(y.shape))[0].data.transpose(0, 2, 3, 1).reshape(n, n)


SHAPES = [(1, 5, 5), (1, 3, 6), (1, 6, 3), (1, 1, 1), (1, 2, 3), (1, 1, 4), (1, 4, 1), (3, 3, 4), (3, 1, 1), (3, 2, 1)]


@every_model
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [2, 4])
def test_nothing_leaks(name, shape, levels, rng):
    model = build(name, shape, levels)
    j = sum(np.abs(jacobian(model, rng=rng)) for _ in range(3))
    assert (np.triu(j) == 0).all()  # of itself and of what comes later


@every_model
@pytest.mark.parametrize("shape", SHAPES)
def test_neighbours_and_borders_are_seen(name, shape, rng):
    c, height, width = shape
    j = np.abs(jacobian(build(name, shape), positive=True)).reshape(height, width, c, height, width, c)
    for row, column, colour in np.ndindex(height, width, c):
        mine = j[row, column, colour]
        assert (mine[row, column, :colour] != 0).all()  # earlier colours of this pixel
        if column:
            assert (mine[row, column - 1] != 0).all()
        if row:
            assert (mine[row - 1, column] != 0).all()
        if row == 0:  # nothing but what is left
            assert (mine[0, max(0, column - 3) : column] != 0).all()
            assert (mine[1:] == 0).all() and (mine[0, column + 1 :] == 0).all()
        if column == 0:  # nothing of its own row but earlier colours, and of the row above also what is right
            assert (mine[row, 0, colour:] == 0).all() and (mine[row, 1:] == 0).all()
            assert row == 0 or (mine[row - 1, :4] != 0).all()


def first_layer(up, left, reach=3):
    """Whether a 7x7 kernel with mask A sees the pixel that lies ``up`` rows above and ``left`` columns to the left."""
    return (1 <= up <= reach and abs(left) <= reach) or (up == 0 and 1 <= left <= reach)


CONTEXT = {
    # A 3x3 block adds a row above and one column: to the right only one for each row further up.
    "cnn": lambda up, left: (up > 0 and -left <= up + 2) or (up == 0 and left > 0),
    "gated": lambda up, left: up > 0 or (up == 0 and left > 0),
    "row": lambda up, left: (up > 0 and -left <= up + 2) or (up == 0 and left > 0),
    "diagonal": lambda up, left: up > 0 or (up == 0 and left > 0),
}


@every_model
@pytest.mark.parametrize("height,width", [(7, 7), (4, 9), (8, 4)])
def test_context_of_a_deep_stack(name, height, width):
    """The blind spot of plain PixelCNN, above to the right, exactly; a deep Row LSTM's is the same.

    The Diagonal BiLSTM sees everything but the last pixel of the row above, unless the 7x7 convolution reaches it.
    The direction from the right, shifted down by one row, ends at that pixel, where mask A hides it.
    """
    j = jacobian(build(name, (1, height, width), depth=8, channels=2), positive=True) != 0
    pixels = list(np.ndindex(height, width))
    expected = np.array([[CONTEXT[name](r - rr, c - cc) for rr, cc in pixels] for r, c in pixels])
    if name == "diagonal":
        for row in range(1, height):
            for column in range(width - 4):
                expected[row * width + column, row * width - 1] = False
    np.testing.assert_array_equal(j, expected)


@pytest.mark.parametrize("depth", [1, 2])
def test_context_of_a_shallow_row_lstm_is_a_triangle(depth):
    """Each layer sees one pixel to the left in its row, and one more on both sides for each row further up."""
    pixels = list(np.ndindex(7, 9))

    def matrix(sees):
        return np.array([[sees(r - rr, c - cc) for rr, cc in pixels] for r, c in pixels], int)

    expected = matrix(first_layer)
    layer = matrix(lambda up, left: up >= 0 and -up <= left <= up + 1)
    for _ in range(depth):
        expected = layer @ expected  # contains the pixel itself, so the residual adds nothing
    model = build("row", (1, 7, 9), depth=depth, channels=2)
    np.testing.assert_array_equal(jacobian(model, positive=True) != 0, expected != 0)


@pytest.mark.parametrize("depth,kernel,first", [(0, 3, 7), (1, 3, 7), (2, 3, 7), (1, 5, 7), (1, 3, 3), (0, 3, 11)])
def test_context_of_a_shallow_pixelcnn(depth, kernel, first, rng):
    pixels, reach = list(np.ndindex(9, 9)), kernel // 2

    def matrix(sees):
        return np.array([[sees(r - rr, c - cc) for rr, cc in pixels] for r, c in pixels], int)

    expected = matrix(lambda up, left: first_layer(up, left, first // 2))
    block = matrix(lambda up, left: (1 <= up <= reach and abs(left) <= reach) or (up == 0 and 0 <= left <= reach))
    for _ in range(depth):
        expected = block @ expected
    model = PixelCNN((1, 9, 9), channels=2, blocks=depth, kernel=kernel, first_kernel=first, rng=rng)
    np.testing.assert_array_equal(jacobian(model, positive=True) != 0, expected != 0)


@pytest.mark.parametrize("depth,kernel,first", [(0, 3, 7), (0, 3, 3), (1, 3, 3), (2, 3, 3), (1, 5, 3), (2, 1, 5)])
def test_context_of_a_shallow_gated_pixelcnn(depth, kernel, first, rng):
    pixels, far, reach = list(np.ndindex(9, 9)), first // 2, kernel // 2

    def matrix(sees):
        return np.array([[sees(r - rr, c - cc) for rr, cc in pixels] for r, c in pixels], int)

    vertical = matrix(lambda up, left: 1 <= up <= far and abs(left) <= far)
    expected = vertical + matrix(lambda up, left: up == 0 and 1 <= left <= far)
    for _ in range(depth):
        vertical = matrix(lambda up, left: 0 <= up <= reach and abs(left) <= reach) @ vertical
        expected = matrix(lambda up, left: up == 0 and 0 <= left <= reach) @ expected + vertical
    model = GatedPixelCNN((1, 9, 9), channels=2, layers=depth, kernel=kernel, first_kernel=first, rng=rng)
    np.testing.assert_array_equal(jacobian(model, positive=True) != 0, expected != 0)


@pytest.mark.parametrize("kind", ["row", "diagonal"])
def test_the_first_kernel_of_a_pixelrnn(kind, rng):
    pixels = list(np.ndindex(6, 9))
    expected = np.array([[first_layer(r - rr, c - cc, 5) for rr, cc in pixels] for r, c in pixels])
    model = PixelRNN(kind, (1, 6, 9), channels=2, layers=0, first_kernel=11, rng=rng)
    np.testing.assert_array_equal(jacobian(model, positive=True) != 0, expected)


@every_model
def test_context_of_colours(name):
    """All colours of another pixel are seen, or none; in its own pixel a colour sees the earlier ones."""
    height, width = 4, 6
    grey = jacobian(build(name, (1, height, width), depth=4), positive=True) != 0
    expected = np.kron(grey, np.ones((3, 3), bool))
    expected |= np.kron(np.eye(height * width, dtype=bool), np.tri(3, k=-1, dtype=bool))
    if name == "diagonal":  # here mask A hides only the last colour of the last pixel of the row above
        for row in range(1, height):
            end = 3 * row * width
            expected[end : end + 3 * width, end - 3 : end - 1] = True
    colours = jacobian(build(name, (3, height, width), depth=4), positive=True) != 0
    np.testing.assert_array_equal(colours, expected)


# --- the likelihood


@every_model
@pytest.mark.parametrize(
    "shape,levels",
    [((1, 1, 1), 2), ((1, 2, 2), 2), ((1, 2, 3), 2), ((1, 3, 3), 2), ((1, 2, 2), 3), ((3, 1, 2), 2), ((3, 1, 1), 4)],
)
def test_probabilities_sum_to_one(name, shape, levels):
    # with seed 1 the gated one happens to be nearly uniform on one pixel
    log_p = build(name, shape, levels, seed=2).log_prob(all_images(shape, levels)).data
    assert np.ptp(log_p) > 0.02  # not uniform
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, atol=1e-12)


@every_model
def test_log_prob_is_the_chain_rule_and_loss_its_mean(name, rng):
    model = build(name, (3, 2, 3), 4)
    x = rng.integers(0, 4, (5, 3, 2, 3))
    p = np.exp(model.logits(x).data)
    p /= p.sum(1, keepdims=True)
    by_hand = np.log(np.take_along_axis(p, x[:, None], 1)).sum((1, 2, 3, 4))
    np.testing.assert_allclose(model.log_prob(x).data, by_hand)
    np.testing.assert_allclose(model.loss(x).item(), -by_hand.mean())
    np.testing.assert_allclose(model.loss(np.concatenate([x, x])).item(), model.loss(x).item())
    for same in (x.astype(np.uint8), x.astype(np.float32), Tensor(x)):
        np.testing.assert_array_equal(model.log_prob(same).data, model.log_prob(x).data)


@pytest.mark.parametrize("levels", [2, 3, 256])
def test_the_network_sees_values_from_minus_one_to_one(levels, monkeypatch):
    model, seen = build("cnn", (1, 1, levels), levels), []
    network = model.network
    monkeypatch.setattr(model, "network", lambda x, *given: seen.append(x.data) or network(x, *given))
    model.logits(np.arange(levels).reshape(1, 1, 1, levels))
    np.testing.assert_allclose(seen[0].ravel(), np.linspace(-1, 1, levels), atol=1e-15)


@every_model
def test_a_new_model_is_the_uniform_distribution(name, rng):
    shape = (3, 4, 4)
    new = BUILD[name](shape, 256, rng=rng)
    log_p = new.log_prob(rng.integers(0, 256, (3, *shape)))
    np.testing.assert_allclose(bits_per_dim(-log_p.data, shape), 8, rtol=1e-6)
    assert log_p.dtype == np.float32
    binary = BUILD[name]((1, 28, 28), rng=rng).log_prob(rng.integers(0, 2, (2, 1, 28, 28)))
    np.testing.assert_allclose(-binary.data, 543.43, atol=0.005)  # 784 ln 2


@every_model
def test_without_its_branches_the_residual_stack_is_the_identity(name, rng):
    model = build(name, (1, 4, 5))
    x = rng.integers(0, 2, (3, 1, 4, 5))
    before = model.logits(x).data
    for last in branch_ends(model):
        last.weight.data[:] = last.bias.data[:] = 0
    identity = model.logits(x).data
    residual_layers(model).clear()
    np.testing.assert_array_equal(identity, model.logits(x).data)
    assert np.abs(before - identity).max() > 0.1
    new = BUILD[name]((1, 4, 5), rng=rng)  # and it starts as the identity
    assert all((p.data == 0).all() for last in branch_ends(new) for p in last.parameters())


# --- the sampler


def record_logits(model, monkeypatch):
    """The logits that the sampler draws from, one entry for each value of an image: (K, n)."""
    recorded, distribution = [], model._distribution

    def spy(logits, axis):
        recorded.append(logits.data)
        return distribution(logits, axis)

    monkeypatch.setattr(model, "_distribution", spy)
    return recorded


@every_model
@pytest.mark.parametrize("dtype,atol", [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize(
    "shape,levels",
    [
        *(((1, 5, 5), 2), ((1, 3, 6), 3), ((1, 6, 3), 2), ((1, 1, 1), 2), ((1, 1, 5), 2), ((1, 5, 1), 4)),
        *(((3, 4, 3), 5), ((3, 2, 4), 2)),
    ],
)
def test_sampler_is_its_definition(name, shape, levels, dtype, atol, monkeypatch):
    model = build(name, shape, levels, dtype)
    defined = model.sample_by_definition(7, np.random.default_rng(5))
    recorded = record_logits(model, monkeypatch)
    x = model.sample(7, np.random.default_rng(5))
    assert x.dtype == np.uint8 and x.shape == (7, *shape)
    monkeypatch.undo()
    if dtype == np.float64:
        np.testing.assert_array_equal(x, defined)
    by_value = np.array(recorded).reshape(*shape[1:], shape[0], model.outputs, 7)
    np.testing.assert_allclose(by_value.transpose(4, 3, 2, 0, 1), model.logits(x).data, atol=atol)


@pytest.mark.parametrize("kernel, first", [(5, 15), (1, 3)])
@pytest.mark.parametrize("name", ["cnn", "gated"])
def test_sampler_of_other_kernels(name, kernel, first):
    model = build(name, (3, 4, 7), 3, kernel=kernel, first_kernel=first)
    x = model.sample(7, np.random.default_rng(5))
    np.testing.assert_array_equal(x, model.sample_by_definition(7, np.random.default_rng(5)))


@every_model
@pytest.mark.parametrize("shape,levels", [((1, 4, 5), 2), ((3, 3, 3), 4)])
@pytest.mark.parametrize("part", ["rows", "scattered", "each its own", "everything"])
def test_completion_keeps_what_is_given(name, shape, levels, part, rng):
    model, n = build(name, shape, levels), 6
    given = rng.integers(0, levels, (n, *shape))
    mask = {
        "rows": np.arange(shape[1])[:, None] < 2,
        "scattered": rng.random(shape[1:]) < 0.4,
        "each its own": rng.random((n, *shape)) < 0.5,
        "everything": np.array(True),
    }[part]
    x = model.sample(n, np.random.default_rng(5), None, given, mask)
    kept = np.broadcast_to(mask, x.shape)
    np.testing.assert_array_equal(x[kept], given[kept])
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x, model.sample_by_definition(n, np.random.default_rng(5), None, given, mask))
    # What is not to be kept may be anything.
    other = np.where(mask, given, rng.integers(0, levels, given.shape))
    np.testing.assert_array_equal(x, model.sample(n, np.random.default_rng(5), None, other, mask))


@every_model
def test_paint_gives_the_sample_row_by_row(name):
    model = build(name, (1, 4, 3), 3)
    sample = model.sample(5, np.random.default_rng(5))
    seen = [x.copy() for x in model.sample_rows(5, np.random.default_rng(5))]
    assert len(seen) == 4
    for row, x in enumerate(seen, start=1):
        np.testing.assert_array_equal(x, sample * (np.arange(4)[:, None] < row))
    left, x = (
        np.arange(3) < 1,
        next(model.sample_rows(5, np.random.default_rng(5), given=sample, mask=np.arange(3) < 1)),
    )
    np.testing.assert_array_equal(x[:, :, 1:], sample[:, :, 1:] * left)  # given ones are there from the start


def test_gradients_are_recorded_between_two_rows(rng):
    model = build("cnn", (1, 3, 2), 2)
    for _ in model.sample_rows(1, rng):
        assert model.log_prob(np.zeros((1, 1, 3, 2))).requires_grad


@every_model
@pytest.mark.parametrize("levels, colours", [(2, 1), (3, 1), (2, 3)])
def test_temperature_divides_the_logits(name, levels, colours, monkeypatch):
    model = build(name, (colours, 3, 4), levels)
    recorded = record_logits(model, monkeypatch)
    x = model.sample(6, np.random.default_rng(5), temperature=0.4)
    monkeypatch.undo()
    by_value = np.array(recorded).reshape(3, 4, colours, model.outputs, 6).transpose(4, 3, 2, 0, 1)
    np.testing.assert_allclose(by_value, model.logits(x).data / 0.4, atol=1e-12)
    np.testing.assert_array_equal(x, model.sample_by_definition(6, np.random.default_rng(5), temperature=0.4))


@pytest.mark.parametrize("levels", [2, 3])
def test_the_lowest_temperature_draws_the_likeliest(levels, rng):
    model = build("cnn", (1, 3, 4), levels, dtype=np.float32)
    x = model.sample(6, rng, temperature=1e-30)
    logits = model.logits(x).data
    np.testing.assert_array_equal(x, logits[:, 0] > 0 if levels == 2 else logits.argmax(1))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [1e30, 10**30, np.float16(2), np.array(0.5)])
def test_sample_takes_any_number_as_a_temperature(temperature, rng):
    assert build("cnn", (1, 3, 2), 2, np.float32).sample(2, rng, temperature=temperature).max() <= 1


@pytest.mark.parametrize("temperature", [0, -1.0, 1e-31, 1e31, 10**400, float("nan"), float("inf"), "hot", None])
def test_sample_refuses_a_temperature(temperature, rng):
    with pytest.raises(ValueError, match=r"temperature: got"):
        build("cnn", (1, 3, 2), 2).sample(1, rng, temperature=temperature)


@every_model
@pytest.mark.parametrize("shape,levels", [((1, 2, 2), 2), ((1, 2, 3), 2), ((3, 1, 1), 3)])
def test_frequencies_of_samples_are_the_probabilities(name, shape, levels, rng):
    model, images = build(name, shape, levels), all_images(shape, levels)
    x = model.sample(20_000, rng).reshape(20_000, -1)
    counts = np.bincount(x @ levels ** np.arange(x.shape[1])[::-1], minlength=len(images))
    assert chi_square_is_plausible(counts, np.exp(model.log_prob(images).data))
    assert not chi_square_is_plausible(counts, np.full(len(images), 1 / len(images)))  # the test has power


@every_model
def test_frequencies_of_completions_are_the_conditional_probabilities(name, rng):
    shape, images = (1, 2, 3), all_images((1, 2, 3))
    model, n = build(name, shape), 20_000
    given, mask = np.array([1, 0, 0, 0, 1, 0]).reshape(shape), np.array([1, 1, 0, 0, 1, 0], bool).reshape(shape)
    x = model.sample(n, rng, None, np.tile(given, (n, 1, 1, 1)), mask).reshape(n, -1)
    counts = np.bincount(x @ 2 ** np.arange(6)[::-1], minlength=64)
    logits = model.logits(images).data[:, 0]
    p = 1 / (1 + np.exp(np.where(images == 1, -logits, logits)))
    p = np.where(mask, images == given, p).prod((1, 2, 3))  # each free pixel given all before it
    np.testing.assert_allclose(p.sum(), 1)
    assert chi_square_is_plausible(counts, p)


def test_many_levels_need_more_than_a_byte(rng):
    x = PixelCNN((1, 2, 2), 300, channels=2, blocks=1, rng=rng).sample(200, rng)
    assert x.dtype == np.int64
    assert 255 < x.max() < 300


@every_model
def test_sampling_crosses_to_the_device_once_whatever_the_size(name, strict):
    def count(shape, **kwargs):
        model = build(name, shape, 3, np.float32).to("cuda")
        strict.count.clear()
        x = model.sample(2, np.random.default_rng(5), **kwargs)
        counted = +strict.count
        defined = model.sample_by_definition(2, np.random.default_rng(5), **kwargs)
        np.testing.assert_array_equal(x.get(), defined.get())
        host = model.to("cpu").sample(2, np.random.default_rng(5), **kwargs)
        np.testing.assert_array_equal(x.get(), host)
        return counted

    assert count((1, 2, 2)) == count((1, 5, 4)) == count((3, 3, 2)) == {"h2d": 1}
    given = np.ones((2, 1, 3, 4), int)
    assert count((1, 3, 4), given=given, mask=given[0] == 1) == {"h2d": 3}  # and the given values and where they hold


# --- what is refused


@every_model
@pytest.mark.parametrize(
    "settings,message",
    [
        ({"shape": (28, 28)}, r"image_shape: got \(28, 28\)"),
        ({"shape": (1, 0, 4)}, r"image_shape: got \(1, 0, 4\)"),
        ({"shape": (1, 4, 4), "levels": 1}, "levels: got 1"),
        ({"shape": (3, 4, 4), "channels": 4}, "channels: got 4"),
    ],
)
def test_constructors_refuse(name, settings, message, rng):
    with pytest.raises(ValueError, match=message):
        BUILD[name](**settings, rng=rng)


def test_unknown_kind(rng):
    with pytest.raises(ValueError, match="kind: got 'column'"):
        PixelRNN("column", rng=rng)


@pytest.mark.parametrize("levels", [2, 256])
@pytest.mark.parametrize(
    "value,message",
    [
        (-1, "values from -1 to 0, needs whole numbers 0 .. LAST"),
        (256, "values from 0 to 256, needs whole numbers 0 .. LAST"),
        (0.5, "values from 0.0 to 0.5"),
        (np.nan, "some values are not finite"),
        (np.inf, "some values are not finite"),
    ],
)
def test_values_that_are_no_levels_are_refused(levels, value, message, rng):
    model = PixelCNN((1, 2, 3), levels, channels=2, blocks=1, rng=rng)
    x = np.zeros((2, 1, 2, 3), type(value))
    x[1, 0, 1, 1] = value
    for call in (model.logits, model.log_prob, model.loss, lambda x: model.sample(2, rng, None, x, True)):
        with pytest.raises(ValueError, match="images: " + message.replace("LAST", str(levels - 1))):
            call(x)


@pytest.mark.parametrize(
    "n,given,mask,message",
    [
        (0, None, None, "n: got 0"),
        (2, np.zeros((2, 1, 2, 3)), None, "given and mask go together: got given alone"),
        (2, None, np.ones((2, 3), bool), "given and mask go together: got mask alone"),
        (2, np.zeros((3, 1, 2, 3)), True, r"given: has shape \(3, 1, 2, 3\)"),
        (2, np.zeros((2, 1, 3, 2)), True, r"images has shape \(2, 1, 3, 2\)"),
        (
            2,
            np.zeros((2, 1, 2, 3)),
            np.ones((3, 2), bool),
            r"mask: has shape \(3, 2\)",
        ),
        (2, np.zeros((2, 1, 2, 3)), np.full((2, 3), 0.5), "mask: has dtype float64"),
        (1, np.zeros((1, 1, 2, 3)), np.ones((2, 1, 2, 3), bool), r"mask: has shape \(2, 1, 2, 3\)"),
    ],
)
def test_sample_refuses(n, given, mask, message, rng):
    model = PixelCNN((1, 2, 3), channels=2, blocks=1, rng=rng)
    with pytest.raises(ValueError, match=message):
        model.sample(n, rng, None, given, mask)


@pytest.mark.parametrize(
    "model", [PixelCNN((1, 5, 4), rng=np.random.default_rng(0), channels=3, blocks=2), None], ids=["cnn", "row"]
)
def test_the_network_is_the_papers_figure(model, rng):
    """Figure 5 and table 1, layer by layer, with the ReLUs where they belong."""
    model = model or PixelRNN("row", (1, 5, 4), channels=3, layers=2, rng=rng)
    for p in model.parameters():
        p.data = rng.standard_normal(p.shape)
    x = rng.integers(0, 2, (2, 1, 5, 4))
    h = model.first(Tensor(2.0 * x - 1))
    for block in getattr(model, "blocks", []):
        h = h + block.up(ops.relu(block.middle(ops.relu(block.down(ops.relu(h))))))
    for layer in getattr(model, "layers", []):
        h = h + layer.up(layer.lstm(h))
    y = model.last(ops.relu(model.hidden(ops.relu(h))))
    np.testing.assert_allclose(model.logits(x).data[:, 0], y.data, atol=1e-12)


def test_the_position_begins_at_zero_and_is_of_the_models_dtype(rng):
    assert (GatedPixelCNN((1, 4, 4), rng=rng).vertical.position.data == 0).all()
    for dtype in (np.float32, np.float64):
        model = build("gated", (1, 4, 5), dtype=dtype)
        assert model.vertical.position_bias(4, 5).dtype == model.logits(np.zeros((1, 1, 4, 5))).dtype == dtype
        at = PixelCache(2, 4, 5, model.parameters()[0].data)
        assert model.vertical(Tensor(np.zeros((1, 2), dtype)), at=at).dtype == dtype


def test_gated_starts_with_activations_of_its_inputs_scale(rng):
    """The outputs of the vertical stack and of the first layer neither vanish nor explode."""
    model = GatedPixelCNN((1, 16, 16), channels=64, layers=8, rng=rng)
    x = Tensor(rng.choice([-1.0, 1.0], (4, 1, 16, 16)).astype(np.float32))
    to_horizontal = model.vertical(x)
    assert all(0.6 < y.data.std() < 1.5 for y in to_horizontal)
    assert 0.2 < model.first(x, to_horizontal[0]).data.std() < 1
    h = Tensor(rng.standard_normal((4, 64, 16, 16), np.float32))
    assert 0.75 < model.hidden(ops.relu(h)).data.std() < 1.5


def test_blocks_start_with_activations_of_unit_scale(rng):
    model = PixelCNN((1, 16, 16), channels=64, blocks=1, rng=rng)
    block, h = model.blocks[0], Tensor(rng.standard_normal((4, 128, 16, 16), np.float32))
    for layer in (block.down, block.middle):
        h = layer(ops.relu(h))
        # He et al. 2015, equation 10; a little less, since kernels reach over the border
        assert 0.75 < float(h.data.std()) < 1.2 * 2**0.5, type(layer)


@pytest.mark.parametrize("levels,dtype", [(2, np.uint8), (256, np.uint8), (257, np.int64)])
def test_dtype_of_samples(levels, dtype, rng):
    assert PixelCNN((1, 1, 2), levels=levels, channels=2, blocks=0, rng=rng).sample(1, rng).dtype == dtype


def test_a_mask_may_be_on_the_device(strict, rng):
    model = PixelCNN((1, 2, 3), channels=2, blocks=1, rng=rng).to("cuda")
    given, mask = rng.integers(0, 2, (4, 1, 2, 3)), rng.random((1, 2, 3)) < 0.5
    here = model.sample(4, np.random.default_rng(1), given=given, mask=mask).get()
    for there in (strict.cupy.asarray(mask), Tensor(strict.cupy.asarray(mask))):
        drawn = model.sample(4, np.random.default_rng(1), given=strict.cupy.asarray(given), mask=there).get()
        np.testing.assert_array_equal(drawn, here)
    np.testing.assert_array_equal(here[:, mask], given[:, mask])


# --- classes


def with_classes(shape=(1, 3, 4), levels=2, classes=3, dtype=np.float64, **settings):
    return build("gated", shape, levels, dtype, classes=classes, **settings)


@pytest.mark.parametrize("shape,levels", [((1, 2, 3), 2), ((3, 1, 2), 2), ((1, 2, 2), 3)])
def test_probabilities_given_a_class_sum_to_one(shape, levels):
    model, images = with_classes(shape, levels), all_images(shape, levels)
    of_class = [model.log_prob(images, np.full(len(images), k)).data for k in range(3)]
    np.testing.assert_allclose(np.exp(of_class).sum(1), 1, atol=1e-12)
    assert np.abs(of_class[0] - of_class[1]).max() > 0.01 < np.abs(of_class[1] - of_class[2]).max()


@pytest.mark.parametrize("shape,levels", [((1, 4, 5), 2), ((3, 3, 3), 4)])
def test_each_image_has_its_own_class(shape, levels, rng):
    model, labels = with_classes(shape, levels), np.array([2, 0, 1, 2, 2])
    x = rng.integers(0, levels, (5, *shape))
    together = model.log_prob(x, labels).data
    one_by_one = [model.log_prob(x[i : i + 1], labels[i : i + 1]).item() for i in range(5)]
    np.testing.assert_allclose(together, one_by_one, atol=1e-10)
    np.testing.assert_allclose(model.loss(x, labels=labels).item(), -together.mean())
    order = np.array([3, 1, 0, 2, 4])
    drawn = model.sample(5, np.random.default_rng(0), labels=labels)
    upper = np.arange(shape[1])[:, None] < 2  # what is completed is what these draws gave before
    np.testing.assert_array_equal(model.sample(5, np.random.default_rng(0), labels, drawn, upper), drawn)
    for given in (list(labels[order]), tuple(labels[order]), Tensor(labels[order])):
        np.testing.assert_allclose(model.log_prob(x[order], given).data, together[order], atol=1e-10)


@pytest.mark.parametrize("shape,levels", [((1, 4, 5), 2), ((3, 3, 2), 3)])
def test_sampler_with_classes_draws_from_the_logits(shape, levels, monkeypatch):
    model, labels = with_classes(shape, levels), np.array([2, 0, 1, 2, 2])
    recorded = record_logits(model, monkeypatch)
    x = model.sample(5, np.random.default_rng(5), labels=labels)
    monkeypatch.undo()
    by_value = np.array(recorded).reshape(*shape[1:], shape[0], model.outputs, 5)
    np.testing.assert_allclose(by_value.transpose(4, 3, 2, 0, 1), model.logits(x, labels=labels).data, atol=1e-12)
    np.testing.assert_array_equal(x, model.sample_by_definition(5, np.random.default_rng(5), labels=labels))


@pytest.mark.parametrize(
    "labels,message",
    [
        (None, r"labels: got none"),
        ([1], r"labels: got shape \(1,\), dtype int64"),
        (1, r"labels: got shape \(\), dtype int64"),
        ([0.0, 1.0], r"labels: got shape \(2,\), dtype float32"),
        ([0, 3], "labels: got 0 to 3"),
        ([True, False], r"labels: got shape \(2,\), dtype bool"),
        ((-1, 1), "labels: got -1 to 1"),
        (np.array([-1, 2]), "labels: got -1 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message, rng):
    model, x = with_classes(), rng.integers(0, 2, (2, 1, 3, 4))
    for call in (lambda: model.log_prob(x, labels), lambda: model.sample(2, rng, labels=labels)):
        with pytest.raises(ValueError, match=message):
            call()


@every_model
def test_models_without_classes_refuse_labels(name, rng):
    model, x = build(name, (1, 2, 3)), rng.integers(0, 2, (2, 1, 2, 3))
    for call in (lambda: model.loss(x, labels=[0, 1]), lambda: model.sample(2, rng, labels=[0, 1])):
        with pytest.raises(ValueError, match="labels: the model was built without classes"):
            call()


def test_classes_are_learned(rng):
    """Class 0 is black, class 1 is white: the model learns to draw the image from the label alone."""
    labels = rng.integers(0, 2, 128)
    images = np.broadcast_to(labels[:, None, None, None], (128, 1, 3, 3)).astype(np.uint8)
    model = GatedPixelCNN((1, 3, 3), channels=4, layers=1, first_kernel=3, classes=2, rng=rng)
    optimizer = Adam(model.parameters(), 0.05)
    record = fit(
        model, images, labels=labels, steps=150, optimizer=optimizer, rng=rng, batch_size=32, workers=2, progress=False
    )
    assert record[-1]["train"] < 3
    assert evaluate(model, images, rng, labels=labels) < 0.1
    assert evaluate(model, images, rng, labels=1 - labels) > 10
    np.testing.assert_array_equal(model.sample(20, rng, labels=labels[:20]), images[:20])


def test_the_gated_network_is_the_papers_figure(rng):
    """2016b, figure 2, layer by layer on whole images: the vertical stack on images shifted down by one row, with a
    linear function of the coordinates in every layer."""
    model = with_classes((1, 5, 4), channels=3)
    x, labels = Tensor(rng.integers(0, 2, (2, 1, 5, 4)) * 2.0 - 1), np.array([2, 0])

    def gate(layer, y):
        y = y.data + layer.weight.data[labels][:, :, None, None]
        return Tensor(np.tanh(y[:, :3]) / (1 + np.exp(-y[:, 3:])))

    down = Tensor(np.pad(x.data, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1])
    kernel = ops.pad(
        model.vertical.convs[0].weight[:, :, :3], ((0, 0), (0, 0), (1, 0), (0, 0))
    )  # on rows that lie lower
    v = ops.conv2d(ops.pad(down, ((0, 0), (0, 0), (3, 0), (3, 3))), kernel, model.vertical.convs[0].bias)
    position = np.einsum("plc,pij->lcij", model.vertical.position.data, np.mgrid[-1:1:5j, -1:1:4j])
    np.testing.assert_allclose(model.vertical.position_bias(5, 4).data, position, rtol=1e-13)
    v = v + position[0]
    h = x
    for i, layer in enumerate([model.first, *model.layers]):
        if i:
            conv = model.vertical.convs[i]
            v = gate(model.vertical.gates[i - 1], v)
            v = ops.conv2d(ops.pad(v, ((0, 0), (0, 0), (1, 0), (1, 1))), conv.weight[:, :, :2], conv.bias) + position[i]
        link, reach = model.vertical.links[i], 1 if i else 3
        w = layer.conv.weight[:, :, :, : reach + (i > 0)]
        left = ops.pad(h, ((0, 0), (0, 0), (0, 0), (reach, 0)))[:, :, :, : 4 + (reach if i else reach - 1)]
        y = ops.conv2d(left, w, layer.conv.bias) + ops.conv2d(v, link.weight, link.bias)
        y = ops.conv2d(gate(layer.gate, y), layer.out.weight, layer.out.bias)
        h = h + y if i else y
    y = model.last(ops.relu(model.hidden(ops.relu(h))))
    np.testing.assert_allclose(model.logits(x.data > 0, labels=labels).data[:, 0], y.data, atol=1e-12)
