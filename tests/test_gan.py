"""The GAN: each player's gradient from the one loss, the gradient penalty, and the best discriminator by hand."""

import numpy as np
import pytest

from tinygen import Tensor, grad, gradcheck, no_grad, ops
from tinygen.backend import to_host
from tinygen.models import GAN
from tinygen.models.implicit.gan import with_constants
from tinygen.nn import Linear, Module
from tinygen.optim import Adam
from tinygen.training import evaluate, fit

both = pytest.mark.parametrize("form", ["non-saturating", "wasserstein"])


def build(form, rng, shape=(1, 4, 3)):
    """A small GAN in float64 with all parameters drawn anew, and images for it."""
    model = GAN(shape, latent=2, form=form, channels=(3, 4), rng=rng)
    for p in model.parameters():
        p.data = 0.5 * rng.standard_normal(p.shape) + (p.ndim == 1)
    return model, rng.random((5, *shape))


@both
def test_each_player_gets_the_gradient_of_its_own_cost(form, rng):
    """By finite differences along a random direction of its own weights; the other player's cost is no part of it."""
    model, x = build(form, rng)
    g = dict(zip(dict(model.named_parameters()), grad(model.loss(x, np.random.default_rng(1)), model.parameters())))
    for player, own in enumerate(["discriminator", "generator"]):
        parameters = {name: p for name, p in model.named_parameters() if name.startswith(own)}
        before = {name: p.data for name, p in parameters.items()}
        way = {name: rng.standard_normal(p.shape) for name, p in parameters.items()}
        costs = []
        for h in (1e-6, -1e-6):
            for name, p in parameters.items():
                p.data = before[name] + h * way[name]
            costs.append(model.costs(x, np.random.default_rng(1))[player].item())
        for name, p in parameters.items():
            p.data = before[name]
        slope = sum((g[name].data * way[name]).sum() for name in parameters)
        assert abs(slope) > 1e-2
        np.testing.assert_allclose((costs[0] - costs[1]) / 2e-6, slope, rtol=1e-6)


@both
def test_the_costs_are_those_of_the_papers_and_nothing_leaks(form, rng):
    """Beside costs that are written down anew, with each player's gradient taken from its own alone."""
    model, x = build(form, rng)
    n, noise = len(x), np.random.default_rng(1)
    z = noise.standard_normal((n, 2))
    made = model.generator(Tensor(z), training=True)
    real, fake = model.discriminator(Tensor(x)), model.discriminator(made)
    if form == "wasserstein":
        u = noise.random((n, 1, 1, 1))
        between = Tensor(u * x + (1 - u) * made.data, requires_grad=True)
        (slope,) = grad(model.discriminator(between).sum(), between, create_graph=True)
        length = ops.sqrt((slope**2).sum((1, 2, 3)))
        expected = (fake - real).mean() + 10 * ((length - 1) ** 2).mean(), -fake.mean()
    else:
        expected = (ops.softplus(-real) + ops.softplus(fake)).mean(), ops.softplus(-fake).mean()
    costs = model.costs(x, np.random.default_rng(1))
    players = model.discriminator.parameters(), model.generator.parameters()
    for cost, wanted, own, other in zip(costs, expected, players, reversed(players)):
        np.testing.assert_allclose(cost.item(), wanted.item(), rtol=1e-9)
        for a, b in zip(*(grad(c, own, materialize_grads=True) for c in (cost, wanted)), strict=True):
            np.testing.assert_allclose(a.data, b.data, rtol=1e-9, atol=1e-12)
        assert not any(g.data.any() for g in grad(cost, other, materialize_grads=True))
    assert model.loss(x, np.random.default_rng(1)).item() == sum(costs).item()


def test_constants_share_their_values_and_pass_gradients_to_the_input(rng):
    model, x = build("non-saturating", rng)
    constant, x = with_constants(model.discriminator), Tensor(x, requires_grad=True)
    y = constant(x)
    for a, b in zip(grad(y.sum(), x), grad(model.discriminator(x).sum(), x)):
        np.testing.assert_array_equal(a.data, b.data)
    assert constant.parameters() == [] and constant.convs[1].weight.data is model.discriminator.convs[1].weight.data
    assert all(p.requires_grad for p in model.discriminator.parameters())


class Critic(Module):
    """s(x) = w x + b, or with ``square`` half of |x|^2 more."""

    def __init__(self, w, square=0.0):
        self.layer, self.square = Linear(len(w), 1, rng=np.random.default_rng(0)), square
        self.layer.weight.data = np.array([w], np.float64)

    def forward(self, x):
        x = x.reshape(x.shape[0], -1)
        return self.layer(x)[:, 0] + self.square * (x**2).sum(1) / 2


def test_the_penalty_by_hand(rng):
    model, x = GAN((1, 1, 2), 2, "wasserstein", (2,), rng=rng), rng.random((4, 1, 1, 2))
    for p in model.generator.parameters():
        p.data = p.data.astype(np.float64)
    made = Tensor(rng.random((4, 1, 1, 2)))
    model.discriminator = Critic([3.0, 4.0])
    penalty = model.penalty(Tensor(x), made, rng)
    assert penalty.item() == pytest.approx((5 - 1) ** 2)
    (g,) = grad(penalty, model.discriminator.layer.weight)
    np.testing.assert_allclose(g.data, [[2 * 4 * 3 / 5, 2 * 4 * 4 / 5]])
    model.discriminator = Critic([0.0, 0.0], square=1.0)  # the slope at x is x
    found = model.penalty(Tensor(x), made, np.random.default_rng(3)).item()
    u = np.random.default_rng(3).random((4, 1, 1, 1))
    length = np.sqrt(((u * x + (1 - u) * made.data) ** 2).sum((1, 2, 3)))
    assert found == pytest.approx(((length - 1) ** 2).mean())
    with no_grad():
        assert model.penalty(Tensor(x), made, np.random.default_rng(3)).item() == found


def test_the_penalty_differentiates_twice(rng, monkeypatch):
    monkeypatch.setattr(ops, "leaky_relu", lambda x, slope: slope * x + (1 - slope) * ops.softplus(x))  # no kinks
    model, x = build("wasserstein", rng, (1, 2, 2))
    made = Tensor(rng.random(x.shape))
    gradcheck(lambda: model.penalty(Tensor(x), made, np.random.default_rng(1)), (), parameters=model.discriminator)


def test_the_best_discriminator_is_the_share_of_the_images(rng):
    """D* = p / (p + q), and its cost log 4 - 2 JS(p || q) (Goodfellow et al. 2014, proposition 1, theorem 1)."""
    p, q = np.array([4, 3, 1]), np.array([1, 3, 4])
    images, made = (np.repeat(np.eye(3), n, axis=0).reshape(-1, 1, 1, 3) for n in (p, q))

    class Table(Module):
        def forward(self, z, training=False):
            return Tensor(made)

    model = GAN((1, 1, 3), 2, channels=(2,), rng=rng)
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)
    model.discriminator, model.generator = Critic([0.0, 0.0, 0.0]), Table()
    optimizer = Adam(model.parameters(), 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        model.loss(images, rng).backward()
        optimizer.step()
    with no_grad():
        found = ops.sigmoid(model.discriminator(Tensor(np.eye(3)))).data
        cost = model.costs(images, rng)[0].item()
    np.testing.assert_allclose(found, p / (p + q), atol=1e-3)
    m = (p + q) / 16
    js = 0.5 * (p / 8 * np.log(p / 8 / m)).sum() + 0.5 * (q / 8 * np.log(q / 8 / m)).sum()
    assert cost == pytest.approx(np.log(4) - 2 * js, abs=1e-5)


@both
def test_the_generator_learns_where_the_images_are(form):
    images = np.full((64, 1, 2, 2), 0.8, np.float32)
    images[:, :, 0] = 0.1
    model = GAN((1, 2, 2), 2, form, (4,), rng=np.random.default_rng(0))
    options = {"rng": np.random.default_rng(1), "batch_size": 16, "averaging": 0.95, "workers": 1, "progress": False}
    fit(model, images, steps=300, optimizer=Adam(model.parameters(), 0.01, (0.5, 0.9)), **options)
    made = model.sample(200, np.random.default_rng(2))
    np.testing.assert_allclose(made.mean(0), images[0], atol=0.2)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 1, 1), (3, 5, 7), (1, 1, 6)])
def test_any_image_size(shape, rng):
    model = GAN(shape, latent=3, channels=(2, 3, 4), rng=rng)
    made = model.sample(4, rng)
    assert made.shape == (4, *shape) and made.dtype == np.float32 and 0 < made.min() < made.max() < 1
    assert np.isfinite(model.loss(rng.random((2, *shape)), rng).item())


def test_a_sample_depends_on_its_own_noise_alone(rng):
    """Training normalizes by the batch; sampling uses the running averages."""
    model, x = build("non-saturating", rng)
    before = model.state_dict()
    model.loss(x, rng)
    changed = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    assert changed == {f"generator.norms.{i}.running_{of}" for i in (0, 1) for of in ("mean", "var")}
    z = np.random.default_rng(5).standard_normal((4, 2))
    made = model.sample(4, np.random.default_rng(5))
    np.testing.assert_allclose(model.decode(z[:1]).data, made[:1], rtol=1e-12)
    np.testing.assert_allclose(model.decode(z).data, made, rtol=1e-12)


def test_samples_are_the_same_on_every_device(rng, device):
    model, _ = build("non-saturating", rng)
    here = model.sample(3, np.random.default_rng(1))
    there = model.to(device).sample(3, np.random.default_rng(1))
    np.testing.assert_allclose(to_host(there), here, rtol=1e-9)


@both
def test_the_loss_validates_in_place_of_a_score(form, rng):
    """It changes no running average then."""
    model, x = build(form, rng)
    assert not hasattr(model, "score")
    before, seed = model.state_dict(), int(np.random.default_rng(5).integers(2**63))
    found = evaluate(model, x, np.random.default_rng(5), workers=1)
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    assert found == pytest.approx(model.loss(x, np.random.default_rng([seed, 0, 0])).item())


@both
def test_training_has_the_same_bits_for_any_workers_and_after_a_resume(form, rng, tmp_path, monkeypatch):
    monkeypatch.setattr("tinygen.parallel.shard_size", lambda *_: 16)
    x = rng.random((80, 1, 4, 4)).astype(np.float32)

    def trained(steps, workers, checkpoint=None):
        model = GAN((1, 4, 4), 2, form, (3, 4), rng=np.random.default_rng(3))
        optimizer, seed = Adam(model.parameters(), 0.01), np.random.default_rng(0)
        options = {"batch_size": 48, "workers": workers, "averaging": 0.9, "progress": False, "checkpoint": checkpoint}
        fit(model, x, steps=steps, optimizer=optimizer, rng=seed, **options)
        return model.state_dict()

    one, two = trained(6, 1), trained(6, 2)
    trained(4, 2, tmp_path / "run")
    resumed = trained(6, 1, tmp_path / "run")
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value, err_msg=name)
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"form": "minimax"}, "form: got 'minimax'"),
        ({"latent": 0}, "latent: got 0"),
        ({"channels": ()}, r"channels: got \(\)"),
    ],
)
def test_settings_are_refused(settings, message, rng):
    with pytest.raises(ValueError, match=message):
        GAN(**settings, rng=rng)


@pytest.mark.parametrize("value", [-0.1, 1.1, 255.0])
def test_images_outside_the_generators_range_are_refused(value, rng):
    model = GAN((1, 4, 4), latent=2, channels=(3,), rng=rng)
    with pytest.raises(ValueError, match=r"images: values from .*, needs numbers in \[0, 1\]"):
        model.loss(np.full((2, 1, 4, 4), [[[[0.5]]], [[[value]]]]), rng)
