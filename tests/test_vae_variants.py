"""VAEs with mixtures, categorical codes, classes, importance-weighted training, and KL warm-up.

Oracles: quadrature over one latent dimension, enumeration of all discrete codes, fixed noise.
"""

import itertools

import numpy as np
import pytest

from tinygen import Tensor, grad, gradcheck, ops, weights
from tinygen.distributions import Gaussian, GaussianMixture, OneHot
from tinygen.models import VAE, CategoricalVAE, MixturePosteriorVAE, MixturePriorVAE
from tinygen.optim import Adam
from tinygen.tensor import as_tensor
from tinygen.training import fit

SHAPE = (1, 2, 3)
Z, DZ = np.linspace(-12, 12, 1501, retstep=True)
DRAWS = 100_000
EVERY = np.array(list(itertools.product((0, 1), repeat=6))).reshape(64, *SHAPE)  # all images

BUILD = {
    "vae": lambda **s: VAE(SHAPE, **{"latent": 1, "channels": (4,), **s}),
    "gaussians": lambda **s: MixturePriorVAE(SHAPE, components=3, **{"latent": 1, "channels": (4,), **s}),
    "vamp": lambda **s: MixturePriorVAE(SHAPE, components=3, kind="vamp", **{"latent": 1, "channels": (4,), **s}),
    "posterior": lambda **s: MixturePosteriorVAE(SHAPE, components=3, **{"latent": 1, "channels": (4,), **s}),
    "categorical": lambda **s: CategoricalVAE(SHAPE, variables=2, values=3, **{"channels": (4,), **s}),
}
CONTINUOUS = [name for name in BUILD if name != "categorical"]


def build(name, rng, **settings):
    """A model in float64 with all parameters drawn anew, whose decoder depends strongly on z."""
    model = BUILD[name](**settings, rng=rng)
    for p in model.parameters():
        p.data = rng.standard_normal(p.shape) * min(1, 1.5 / np.sqrt(max(1, p.size / len(p.data))))
    model.decoder.into.weight.data *= 2
    for p in (*model.encoder.out.parameters(), getattr(model, "log_vars", model.encoder.out.bias)):
        p.data = 0.4 * p.data  # or q is so far from p(z|x) that no number of draws tells its mean weight
    return model


def images(n, rng):
    return rng.integers(0, 2, (n, *SHAPE))


def log_p_given(model, x, z, labels=None):
    """log p(x|z) of one image at each z, from the decoder's output."""
    y = model.likelihood(Tensor(z), labels).logits.data
    return np.where(x == 1, -np.log1p(np.exp(-y)), -np.log1p(np.exp(y))).sum((1, 2, 3))


def log_normal(z, mean, log_var):
    return -0.5 * ((z - mean) ** 2 / np.exp(log_var) + log_var + np.log(2 * np.pi))


def log_mixture(z, distribution, i=slice(None)):
    """log density at z (n,) of a Gaussian or a mixture over one dimension, by its formula."""
    if isinstance(distribution, Gaussian):
        return log_normal(z, distribution.mean.data[i].ravel(), distribution.log_var.data[i].ravel())
    logits, c = distribution.logits.data[i].ravel(), distribution.components
    w = np.exp(logits) / np.exp(logits).sum()
    p = np.exp(log_normal(z[:, None], c.mean.data[i].ravel(), c.log_var.data[i].ravel()))
    return np.log((w * p).sum(1) + 1e-300)


def exact(model, x, labels=None):
    """log p(x), the ELBO and KL(q || p) of one image, by quadrature over one dimension or by enumeration."""
    q = model.encode(x[None], labels)
    if isinstance(model, CategoricalVAE):
        codes = np.eye(3)[list(itertools.product(range(3), repeat=2))]  # (9, 2, 3)
        log_prior, log_q, step = np.full(9, -2 * np.log(3)), (codes * np.log(softmax(q.logits.data))).sum((1, 2)), 1.0
        z = codes
    else:
        z, step = Z[:, None], DZ
        log_prior, log_q = log_mixture(Z, model.prior()), log_mixture(Z, q, 0)
    log_joint = log_p_given(model, x, z, None if labels is None else np.repeat(labels, len(z))) + log_prior
    q = np.exp(log_q) * step
    np.testing.assert_allclose([q.sum(), (np.exp(log_prior) * step).sum()], 1, rtol=1e-6)
    return np.log((np.exp(log_joint) * step).sum()), (q * (log_joint - log_q)).sum(), (q * (log_q - log_prior)).sum()


def marginals(model, label=None):
    """p(x) of all 64 images, by quadrature or enumeration as in ``exact``."""
    if isinstance(model, CategoricalVAE):
        z, p = np.eye(3)[list(itertools.product(range(3), repeat=2))], np.full(9, 1 / 9)
    else:
        z, p = Z[:, None], np.exp(log_mixture(Z, model.prior())) * DZ
    y = model.likelihood(Tensor(z), None if label is None else np.full(len(z), label)).logits.data.reshape(len(z), 6)
    return p @ np.exp(y @ EVERY.reshape(64, 6).T - np.log1p(np.exp(y)).sum(1)[:, None])


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def close_in_the_mean(draws, expected, errors=4):
    error = draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - expected) < errors * error + 1e-9).all(), (draws.mean(0), expected, error)


# --- bounds


@pytest.mark.parametrize("name", BUILD)
def test_bounds_against_quadrature_or_enumeration(name, rng):
    model, x = build(name, rng), images(1, rng)[0]
    log_p, elbo, kl = exact(model, x)
    assert elbo < log_p - 0.01 and kl > 0.002
    terms = model.bound(np.tile(x, (8000, 1, 1, 1)), rng)
    close_in_the_mean(terms.total.data, elbo)
    if name in ("vae", "categorical"):
        np.testing.assert_allclose(terms.kl.data, kl, rtol=1e-6)
    else:
        close_in_the_mean(terms.kl.data, kl)
    some = model.log_likelihood(np.tile(x, (2000, 1, 1, 1)), rng, samples=5)
    assert elbo < some.mean() < log_p + 0.01
    weighted = model.log_likelihood(np.tile(x, (50, 1, 1, 1)), rng, 400)
    close_in_the_mean(np.exp(weighted - log_p), 1)  # the mean weight has no bias
    assert weighted.std() < 0.7


@pytest.mark.parametrize("name", BUILD)
def test_x_sums_to_one(name, rng):
    """sum over all x of p(x) = 1: decoder, prior and posterior fit together."""
    model = build(name, rng)
    p = marginals(model)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(np.log(p[37]), exact(model, EVERY[37])[0])
    drawn = model.sample(4000, rng).reshape(-1, 6)
    counts = np.bincount((drawn @ (2 ** np.arange(5, -1, -1))).astype(int), minlength=64)
    assert ((counts - 4000 * p) ** 2 / (4000 * p)).sum() < 63 + 5 * np.sqrt(126)  # chi-square with 63 degrees


# --- mixtures


@pytest.mark.parametrize("name", ["gaussians", "vamp"])
def test_the_prior_is_normalized_and_its_draws_are_of_it(name, rng):
    model = build(name, rng)
    p = np.exp(model.prior().log_prob(Z[:, None]).data)
    np.testing.assert_allclose(p, np.exp(log_mixture(Z, model.prior())), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(p.sum() * DZ, 1, rtol=1e-6)
    z = model.prior().sample(rng, (DRAWS,))[:, 0]
    for power in (1, 2):
        close_in_the_mean(z**power, (p * Z**power).sum() * DZ)


def test_a_mixture_by_hand():
    """w = (1/4, 3/4), N(0, 1) and N(1, 4) at z = 1, in two dimensions."""
    q = GaussianMixture(
        Tensor(np.log([1.0, 3.0])), Gaussian(Tensor(np.array([[0.0, 0], [1, 1]])), Tensor(np.log([[1.0, 1], [4, 4]])))
    )
    expected = np.log((0.25 * np.exp(-1) + 0.75 / 4) / (2 * np.pi))
    np.testing.assert_allclose(q.log_prob(np.ones((5, 2))).data, expected)
    np.testing.assert_allclose(q.weights.data, [0.25, 0.75])
    np.testing.assert_array_equal(q.mode.data, [1, 1])


def test_the_vamp_prior_is_the_mean_posterior_of_its_inputs(rng):
    model = build("vamp", rng, latent=2)
    y = model.encoder(1 / (1 + np.exp(-model.inputs.data))).data
    z = rng.standard_normal((4, 2))
    parts = [np.exp(log_normal(z, y[k, :2], y[k, 2:]).sum(1)) for k in range(3)]
    np.testing.assert_allclose(np.exp(model.prior().log_prob(z).data), np.mean(parts, 0))
    gradient = grad(model.prior().log_prob(z).sum(), model.inputs)[0]
    assert (gradient.data != 0).any((1, 2, 3)).all()


@pytest.mark.parametrize("name", ["vae", "gaussians", "posterior"])
def test_gradients_of_the_bound_are_those_of_its_expectation(name, rng):
    """In what the encoder says, weights of the mixture included: averaged over draws, against quadrature."""
    model, x = build(name, rng), images(1, rng)
    model.encoder.out.weight.data[:] = 0  # the bias alone says what q is
    bias, draws = model.encoder.out.bias, 4000
    bias.data *= 3  # components far apart
    many = np.tile(x, (draws, 1, 1, 1))

    class PerDraw:  # the encoder's output of each image by itself, so that each draw has its gradient
        def __init__(self):
            self.out = model.encoder.out
            self.values = Tensor(np.tile(bias.data, (draws, 1)), requires_grad=True)

        def __call__(self, x):
            return self.values if len(x.data) == draws else Tensor(np.tile(bias.data, (len(x.data), 1)))

    encoder = model.encoder
    model.encoder = per_draw = PerDraw()
    drawn = grad(model.bound(many, rng).total.sum(), per_draw.values)[0].data
    model.encoder = encoder

    def elbo(shift):
        bias.data = bias.data + shift
        value = exact(model, x[0])[1]
        bias.data = bias.data - shift
        return value

    numeric = np.array([elbo(h) - elbo(-h) for h in 1e-4 * np.eye(len(bias.data))]) / 2e-4
    close_in_the_mean(drawn, numeric, 4.5)
    seen = np.abs(numeric) > 8 * drawn.std(0) / draws**0.5
    assert seen.any() and (name != "posterior" or seen[::3].any())  # the test has power, in the weights too


def test_a_mixture_of_one_component_is_the_plain_posterior(rng):
    one = MixturePosteriorVAE(SHAPE, components=1, latent=2, channels=(4,), rng=rng)
    plain = VAE(SHAPE, latent=2, channels=(4,), rng=rng)
    state = one.state_dict()
    plain.load_state_dict({**state, **{f"encoder.out.{k}": state[f"encoder.out.{k}"][1:] for k in ("weight", "bias")}})
    x = images(4, rng)
    for model in (one, plain):
        assert model.encode(x).mode.shape == (4, 2)
    a, b = (m.bound(x, np.random.default_rng(1)).reconstruction.data for m in (one, plain))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(one.encode(x).mode.data, plain.encode(x).mean.data, rtol=1e-5)


# --- discrete codes


@pytest.mark.parametrize("straight_through", [False, True])
def test_gumbel_draws_have_the_softmax_probabilities(straight_through, rng):
    logits = np.array([0.3, -1.0, 1.2, 0.0])
    q = OneHot(Tensor(np.tile(logits, (DRAWS, 1))))
    for z in (q.sample(rng), q.rsample(rng, 0.5, straight_through).data):
        counts = np.bincount(z.argmax(1), minlength=4)
        expected = DRAWS * softmax(logits)
        assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-square with 3 degrees: 1 in 1000


def test_a_relaxed_draw_becomes_the_discrete_one_or_uniform(rng):
    q = OneHot(Tensor(rng.standard_normal((50, 6))))
    discrete = q.sample(np.random.default_rng(1))
    assert set(np.unique(discrete)) == {0, 1} and (discrete.sum(-1) == 1).all()
    cold, warm, hot = (q.rsample(np.random.default_rng(1), t).data for t in (1e-4, 1.0, 1e4))
    np.testing.assert_allclose(cold, discrete, atol=1e-6)
    np.testing.assert_allclose(hot, 1 / 6, atol=2e-3)
    np.testing.assert_allclose(warm.sum(-1), 1)
    assert (warm.argmax(-1) == discrete.argmax(-1)).all() and 0.2 < warm.max(-1).mean() < 0.95


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_straight_through_is_one_hot_with_the_relaxed_gradient(dtype, rng):
    logits, v = (rng.standard_normal((2000, 12)).astype(dtype) for _ in range(2))
    results = []
    for straight_through in (True, False):
        x = Tensor(logits, requires_grad=True)
        z = OneHot(x).rsample(np.random.default_rng(1), 0.7, straight_through)
        results.append((z.data, grad((z * v).sum(), x)[0].data))
    (hard, g_hard), (soft, g_soft) = results
    np.testing.assert_array_equal(hard, OneHot(logits).sample(np.random.default_rng(1)))  # exactly 0 and 1
    assert hard.dtype == dtype and (soft != hard).any()
    np.testing.assert_array_equal(g_hard, g_soft)
    assert (g_hard != 0).any(-1).all()


def test_gumbel_softmax_differentiates_twice(rng):
    gradcheck(lambda x: OneHot(x).rsample(np.random.default_rng(1), 0.7), (rng.standard_normal((3, 4)),))
    gradcheck(lambda x: (OneHot(x).kl(), OneHot(x).log_prob(np.eye(4)[:3])), (rng.standard_normal((3, 4)),))


def test_one_hot_log_prob_and_kl_by_hand():
    q = OneHot(Tensor(np.log([0.5, 0.25, 0.25])))
    np.testing.assert_allclose(q.log_prob(np.eye(3)).data, np.log([0.5, 0.25, 0.25]))
    np.testing.assert_allclose(q.kl().data, 0.5 * np.log(1.5) + 0.5 * np.log(0.75))
    assert OneHot(Tensor(np.zeros(7))).kl().data == pytest.approx(0, abs=1e-12)


def test_what_is_reported_is_the_discrete_model(rng):
    """score does not know the temperature; the loss does, and with straight-through it is the score's mean."""
    model, x = build("categorical", rng), images(5, rng)
    score = model.score(x, np.random.default_rng(1)).data
    relaxed = [model.loss(x, np.random.default_rng(1)).item()]
    model.temperature = 0.3
    np.testing.assert_array_equal(model.score(x, np.random.default_rng(1)).data, score)
    relaxed.append(model.loss(x, np.random.default_rng(1)).item())
    assert len({*np.round(relaxed, 6), round(score.mean(), 6)}) == 3
    model.straight_through = True
    np.testing.assert_allclose(model.loss(x, np.random.default_rng(1)).item(), score.mean(), rtol=1e-12)
    assert (grad(model.loss(x, rng), model.encoder.out.weight)[0].data != 0).any()


# --- importance-weighted training


@pytest.mark.parametrize("name", ["vae", "gaussians", "vamp"])
def test_the_importance_weighted_loss_is_its_formula_and_falls_with_samples(name, rng):
    model, x = build(name, rng), images(1, rng)
    log_p, elbo, _ = exact(model, x[0])
    many, losses = np.tile(x, (4000, 1, 1, 1)), []
    for samples in (1, 2, 8, 64):
        model.samples = samples
        losses.append(model.loss(many[: 8000 // samples], rng).item())
    assert abs(losses[0] + elbo) < 0.1
    assert -log_p - 0.02 < losses[3] < losses[2] < losses[1] < losses[0]
    model.samples, model.beta = 3, 0.5
    q, eps = model.encode(x), np.random.default_rng(5).standard_normal((3, 1, 1))
    z = q.mean.data + np.exp(q.log_var.data / 2) * eps
    log_w = log_p_given(model, x[0], z[:, 0])
    log_w += 0.5 * (log_mixture(z.ravel(), model.prior()) - log_mixture(z.ravel(), q, 0))
    np.testing.assert_allclose(model.loss(x, np.random.default_rng(5)).item(), -np.log(np.exp(log_w).mean()))


def test_one_weighted_sample_is_the_elbo(rng):
    """The loss with one sample has the exact KL; its mean is that of log p(x, z) - log q(z|x)."""
    model, x = build("vae", rng), np.tile(images(1, rng), (4000, 1, 1, 1))
    q = model.encode(x)
    log_p, log_ratio = model.log_weights(Tensor(x), q, model.draw(q, rng, (1,)))
    close_in_the_mean((log_p + log_ratio).data[0], exact(model, x[0])[1])
    assert model.loss(x, np.random.default_rng(1)).item() == model.score(x, np.random.default_rng(1)).data.mean()


@pytest.mark.parametrize("name, samples", [*((name, 1) for name in BUILD), *((name, 3) for name in CONTINUOUS[:3])])
def test_gradients_with_fixed_noise(name, samples, rng, monkeypatch):
    monkeypatch.setattr(ops, "relu", ops.softplus)
    model, x = build(name, rng, latent=2) if name != "categorical" else build(name, rng), images(2, rng)
    model.samples, model.beta = samples, 0.7
    gradcheck(lambda: model.loss(x, np.random.default_rng(1)), (), parameters=model)


# --- classes


@pytest.mark.parametrize("name", BUILD)
def test_classes(name, rng):
    model, x = build(name, rng, classes=3), images(4, rng)
    labels = np.array([2, 0, 1, 2])
    calls = {
        "encode": lambda labels: model.encode(x, labels).mode,
        "reconstruct": lambda labels: model.reconstruct(x, labels),
        "bound": lambda labels: model.bound(x, np.random.default_rng(1), labels).total,
        "score": lambda labels: model.score(x, np.random.default_rng(1), labels),
        "loss": lambda labels: model.loss(x, np.random.default_rng(1), labels),
        "log_likelihood": lambda labels: model.log_likelihood(x, np.random.default_rng(1), 7, labels),
        "sample": lambda labels: model.sample(4, np.random.default_rng(1), labels),
        "sample_means": lambda labels: model.sample_means(4, np.random.default_rng(1), labels),
        "complete": lambda labels: model.complete(x, np.random.default_rng(1), x[0] > 0, labels, rounds=1),
    }
    for what, call in calls.items():
        result, other = (as_tensor(y, what).numpy() for y in (call(labels), call((labels + 1) % 3)))
        if (what, name) not in [("encode", "categorical"), ("sample", name)]:  # which are coarse
            assert (result != other).any(), what
        for wrong in (None, labels[:3], labels + 1):
            with pytest.raises(ValueError, match="labels: got"):
                call(wrong)
    for label in (0, 1):
        np.testing.assert_allclose(marginals(model, label).sum(), 1, rtol=1e-6)
    log_p = [exact(model, image, [label])[0] for image, label in zip(x, labels)]
    np.testing.assert_allclose(model.log_likelihood(x, rng, 5000, labels), log_p, atol=0.15)


def test_classes_are_learned(rng):
    """Images whose class decides the left half: given another class, they are less probable."""
    labels = rng.integers(0, 2, 128)
    x = (rng.random((128, 1, 4, 4)) < 0.5).astype(np.uint8)
    x[:, 0, :, :2] = labels[:, None, None]
    model = VAE((1, 4, 4), latent=2, channels=(8,), classes=2, rng=rng)
    fit(model, x, labels=labels, steps=60, optimizer=Adam(model.parameters(), 0.03), rng=rng, workers=1, progress=False)
    drawn = model.sample_means(50, rng, np.arange(50) % 2)
    assert drawn[1::2, 0, :, :2].mean() > 0.9 and drawn[::2, 0, :, :2].mean() < 0.1
    right, wrong = (model.score(x, rng, given).data.mean() for given in (labels, 1 - labels))
    assert right + 5 < wrong


# --- training


@pytest.mark.parametrize("name", BUILD)
def test_workers_and_resuming_change_nothing(name, rng, tmp_path):
    x, labels = rng.integers(0, 2, (80, *SHAPE)).astype(np.uint8), np.arange(80) % 2

    def trained(workers, interrupted=False):
        model = BUILD[name](classes=2, rng=np.random.default_rng(1))
        if name in CONTINUOUS[:3]:
            model.samples = 2
        anneal = {"beta": lambda done: min(1.0, 2 * done)}
        if name == "categorical":
            anneal["temperature"] = lambda done: 1 - 0.5 * done

        def interrupt(row):
            if row["step"] == 3:
                raise RuntimeError("after three steps")

        fit(
            model,
            x,
            labels=labels,
            steps=6,
            optimizer=Adam(model.parameters(), 0.01),
            rng=np.random.default_rng(2),
            batch_size=40,
            validate_every=3,
            anneal=anneal,
            callback=interrupt if interrupted else None,
            checkpoint=tmp_path / f"{workers}.npz",
            workers=workers,
            progress=False,
        )
        return model.state_dict()

    with pytest.raises(RuntimeError, match="after three steps"):
        trained(1, interrupted=True)
    resumed, of_two = trained(1), trained(2)
    for key, value in of_two.items():
        np.testing.assert_array_equal(value, resumed[key], err_msg=key)


def test_kl_warm_up(rng):
    """beta rises from 0 to 1 as told, validation has beta = 1, and it is 1 in the end."""
    x, seen = rng.integers(0, 2, (64, *SHAPE)).astype(np.uint8), []

    class Watched(VAE):
        def loss(self, *arguments):
            seen.append(self.beta)
            return super().loss(*arguments)

        def score(self, *arguments):
            assert self.beta == 1
            return super().score(*arguments)

    model = Watched(SHAPE, latent=2, channels=(4,), rng=rng)
    warm_up = {"beta": lambda done: min(1.0, done / 0.5)}
    fit(model, x, steps=8, batch_size=16, optimizer=Adam(model.parameters(), 0.01), rng=rng, anneal=warm_up,
        validation=x[:16], workers=1, progress=False)  # fmt: skip
    np.testing.assert_allclose(seen[-8:], [0.125, 0.375, 0.625, 0.875, 1, 1, 1, 1])
    assert model.beta == 1


# --- files, devices, arguments


@pytest.mark.parametrize(
    "model, settings",
    [
        (VAE, {"classes": 2}),
        (MixturePriorVAE, {"components": 2, "latent": 1}),
        (MixturePriorVAE, {"components": 2, "kind": "vamp", "classes": 2}),
        (MixturePosteriorVAE, {"components": 2, "latent": 1}),
        (CategoricalVAE, {"variables": 2, "values": 2, "straight_through": True}),
    ],
)
def test_saved_and_loaded(model, settings, rng, tmp_path):
    settings = {"image_shape": SHAPE, "channels": (2,), **settings}
    saved, x = model(**settings, rng=rng), images(2, rng)
    weights.save(tmp_path / "a.npz", saved, {"settings": settings}, half=False)
    labels = [0, 1] if saved.classes else None
    a, b = (
        m.log_likelihood(x, np.random.default_rng(1), 3, labels) for m in (saved, weights.load(tmp_path / "a.npz")[0])
    )
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", BUILD)
def test_the_same_on_every_device(name, rng, device):
    model, x = build(name, rng, classes=2), images(3, rng)
    labels = np.array([0, 1, 1])

    def results():
        given = Tensor(x).to(model.device).data
        seeded = [np.random.default_rng(5) for _ in range(4)]
        yield model.log_likelihood(given, seeded[0], 20, Tensor(labels).to(model.device).data)
        yield model.sample_means(3, seeded[1], Tensor(labels).to(model.device).data)
        yield model.loss(given, seeded[2], Tensor(labels).to(model.device).data).data
        yield model.reconstruct(given, Tensor(labels).to(model.device).data).data

    host = [Tensor(y).numpy() for y in results()]
    model.to(device)
    for here, there in zip(host, results()):
        np.testing.assert_allclose(Tensor(there).numpy(), here, rtol=1e-10)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda rng: MixturePriorVAE(SHAPE, kind="flow", rng=rng), "kind: got 'flow'"),
        (lambda rng: MixturePriorVAE(SHAPE, components=0, rng=rng), "components: got 0"),
        (lambda rng: MixturePosteriorVAE(SHAPE, components=0, rng=rng), "components: got 0"),
        (lambda rng: MixturePosteriorVAE(SHAPE, samples=2, rng=rng), "samples: got 2, needs 1"),
        (lambda rng: CategoricalVAE(SHAPE, samples=2, rng=rng), "samples: got 2, needs 1"),
        (lambda rng: CategoricalVAE(SHAPE, values=1, rng=rng), "values: got 1"),
        (lambda rng: CategoricalVAE(SHAPE, variables=0, rng=rng), "variables: got 0"),
        (lambda rng: CategoricalVAE(SHAPE, temperature=0, rng=rng), "temperature: got 0"),
        (lambda rng: VAE(SHAPE, samples=0, rng=rng), "samples: got 0"),
        (lambda rng: VAE(SHAPE, classes=-1, rng=rng), "classes: got -1"),
        (lambda rng: OneHot(np.zeros(3)).rsample(rng, 0), "temperature: got 0"),
        (lambda rng: OneHot(np.full(3, np.nan)).sample(rng), "logits: some are nan"),
    ],
)
def test_refused(call, message, rng):
    with pytest.raises(ValueError, match=message):
        call(rng)


def test_a_mixture_needs_gaussians(rng):
    with pytest.raises(TypeError, match="components: got"):
        GaussianMixture(np.zeros(3), np.zeros((3, 2)))
