"""The VAE: bounds against the integral over z, terms by hand, and importance weighting against its formula."""

import numpy as np
import pytest

from tinygen import Tensor, grad
from tinygen.distributions import Gaussian
from tinygen.models import VAE
from tinygen.models.explicit.approximate import vae

Z, DZ = np.linspace(-9, 9, 3001, retstep=True)


def build(shape, latent, rng, likelihood="bernoulli", **kwargs):
    """A VAE in float64, whose decoder depends strongly on z."""
    model = VAE(shape, latent, likelihood=likelihood, rng=rng, **kwargs)
    for p in model.parameters():
        p.data = p.data.astype(np.float64) + 0.1 * rng.standard_normal(p.shape)
    model.decoder.into.weight.data *= 2
    return model


def images(shape, n, likelihood, rng):
    return rng.integers(0, 2, (n, *shape)) if likelihood == "bernoulli" else rng.standard_normal((n, *shape))


def log_p_given(model, x, z):
    """log p(x|z) of one image at each z, computed from the decoder's output."""
    y = model.decoder(Tensor(z.reshape(-1, model.latent))).data
    if model.log_var is None:
        return np.where(x == 1, -np.log1p(np.exp(-y)), -np.log1p(np.exp(y))).sum((1, 2, 3))
    variance = np.exp(model.log_var.data)
    return -0.5 * ((x - y) ** 2 / variance + np.log(2 * np.pi * variance)).sum((1, 2, 3))


def log_normal(z, mean=0.0, log_var=0.0):
    return -0.5 * ((z - mean) ** 2 / np.exp(log_var) + log_var + np.log(2 * np.pi))


def exact(model, x):
    """log p(x) and the ELBO of one image, both by quadrature over the one latent dimension."""
    joint = log_p_given(model, x, Z) + log_normal(Z)
    q = model.encode(x[None])
    log_q = log_normal(Z, q.mean.data[0], q.log_var.data[0])
    return np.log((np.exp(joint) * DZ).sum()), (np.exp(log_q) * (joint - log_q) * DZ).sum()


both = pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])


@both
def test_elbo_and_log_likelihood_against_quadrature(likelihood, rng):
    shape = (1, 2, 3)
    model = build(shape, 1, rng, likelihood)
    x = images(shape, 1, likelihood, rng)[0]
    log_p, bound = exact(model, x)
    assert bound < log_p - 0.01  # the bound is one, and not the likelihood itself
    terms = model.bound(np.tile(x, (8000, 1, 1, 1)), rng)
    draws = terms.reconstruction.data - terms.kl.data
    assert abs(draws.mean() - bound) < 4 * draws.std() / np.sqrt(len(draws))
    weighted = model.log_likelihood(np.tile(x, (4, 1, 1, 1)), rng, samples=5000)
    np.testing.assert_allclose(weighted, log_p, atol=0.05)
    few = model.log_likelihood(np.tile(x, (4000, 1, 1, 1)), rng, samples=1)
    np.testing.assert_allclose(few.mean(), bound, atol=5 * draws.std() / np.sqrt(4000))  # K = 1 is the ELBO
    some = model.log_likelihood(np.tile(x, (4000, 1, 1, 1)), rng, samples=5)
    assert bound < some.mean() < log_p + 0.01  # tighter with more


@both
def test_log_likelihood_is_its_formula(likelihood, rng):
    model, samples = build((1, 3, 2), 2, rng, likelihood), 40
    x = images((1, 3, 2), 3, likelihood, rng)
    q = model.encode(x)
    eps = np.random.default_rng(5).standard_normal((samples, 3, 2))
    z = q.mean.data + np.exp(q.log_var.data / 2) * eps
    log_w = (log_normal(z) - log_normal(z, q.mean.data, q.log_var.data)).sum(2)
    log_w += np.stack([log_p_given(model, x[i], z[:, i]) for i in range(3)], 1)
    expected = np.log(np.exp(log_w).mean(0))
    np.testing.assert_allclose(model.log_likelihood(x, np.random.default_rng(5), samples), expected, rtol=1e-10)


@pytest.mark.parametrize("block", [1, 7, 64, 100_000])
def test_log_likelihood_does_not_depend_on_the_block(block, rng, monkeypatch):
    model, x = build((1, 3, 2), 2, rng), images((1, 3, 2), 3, "bernoulli", rng)
    expected = model.log_likelihood(x, np.random.default_rng(5), 50)
    monkeypatch.setattr(vae, "DECODED", block)
    np.testing.assert_allclose(model.log_likelihood(x, np.random.default_rng(5), 50), expected, rtol=1e-12)


def test_log_likelihood_of_many_images_takes_each_with_its_own_posterior(rng):
    model = build((1, 3, 2), 2, rng)
    x = images((1, 3, 2), 150, "bernoulli", rng)  # more than are taken at once
    p = model.log_likelihood(x, rng, samples=200)
    assert p.shape == (150,) and p.dtype == np.float64
    twice = model.log_likelihood(x[::-1], rng, samples=200)[::-1]
    assert np.abs(p - twice).max() < 0.5 < np.abs(p - twice[::-1]).max()


@both
def test_terms_by_hand(likelihood, rng):
    model = build((3, 2, 2), 4, rng, likelihood, beta=0.25)
    x = images((3, 2, 2), 5, likelihood, rng)
    terms = model.bound(x, np.random.default_rng(5))
    q = model.encode(x)
    mean, log_var = q.mean.data, q.log_var.data
    kl = -0.5 * (1 + log_var - mean**2 - np.exp(log_var)).sum(1)
    z = mean + np.exp(log_var / 2) * np.random.default_rng(5).standard_normal((5, 4))
    reconstruction = [log_p_given(model, x[i], z[i])[0] for i in range(5)]
    np.testing.assert_allclose(terms.kl.data, kl)
    np.testing.assert_allclose(terms.reconstruction.data, reconstruction)
    loss = model.loss(x, np.random.default_rng(5)).item()
    np.testing.assert_allclose(loss, np.mean(0.25 * kl - reconstruction))


def test_nothing_is_averaged_that_should_be_summed(rng):
    model = VAE((1, 28, 28), 3, rng=rng)
    for p in (*model.decoder.parameters(), *model.encoder.parameters()):
        p.data[:] = 0
    model.encoder.out.bias.data[:3] = 1  # q = N(1, 1) in each of 3 dimensions; p(x|z) = 1/2 for each pixel
    for n in (1, 2, 8):
        x = rng.integers(0, 2, (n, 1, 28, 28))
        terms = model.bound(x, rng)
        np.testing.assert_array_equal(terms.kl.data, np.full(n, 1.5))
        np.testing.assert_allclose(-terms.reconstruction.data, 543.43, atol=0.005)  # 784 ln 2
        np.testing.assert_allclose(model.loss(x, rng).item(), 784 * np.log(2) + 1.5, rtol=1e-6)


def test_gradients_pass_through_the_draw(rng):
    """d/dmean and d/dlog_var of E_q[log p(x|z)], averaged over draws, against quadrature."""
    model, draws = build((1, 2, 2), 1, rng), 5000
    x = rng.integers(0, 2, (1, 1, 2, 2)).astype(float)
    at = np.array([-1.5, -0.2])
    mean, log_var = (Tensor(np.full((draws, 1), value), requires_grad=True) for value in at)
    log_p = model.likelihood(Gaussian(mean, log_var).rsample(rng)).log_prob(Tensor(x)).sum()
    drawn = np.concatenate([g.data for g in grad(log_p, [mean, log_var])], 1)

    def expectation(mean, log_var):
        return (np.exp(log_normal(Z, mean, log_var)) * log_p_given(model, x[0], Z) * DZ).sum()

    numeric = np.array([expectation(*(at + h)) - expectation(*(at - h)) for h in 1e-4 * np.eye(2)]) / 2e-4
    error = drawn.std(0) / np.sqrt(draws)
    assert (np.abs(drawn.mean(0) - numeric) < 4 * error).all()
    assert (np.abs(numeric) > 8 * error).all()  # the test has power


@both
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 7), (3, 4, 4), (1, 28, 28), (3, 1, 9)])
def test_any_image_size(shape, likelihood, rng):
    model = VAE(shape, latent=3, likelihood=likelihood, rng=rng)
    x = images(shape, 2, likelihood, rng)
    q = model.encode(x)
    assert q.mean.shape == q.log_var.shape == (2, 3)
    assert model.decode(q.mean).shape == model.reconstruct(x).shape == model.sample(2, rng).shape == (2, *shape)
    np.testing.assert_array_equal(model.reconstruct(x).data, model.decode(q.mean.data).data)
    assert model.loss(x, rng).dtype == model.sample(1, rng).dtype == np.float32
    assert model.log_likelihood(x, rng, samples=3).shape == (2,)
    if likelihood == "bernoulli":
        means = model.sample_means(2, rng)
        assert ((means > 0) & (means < 1)).all() and set(np.unique(model.sample(2, rng))) <= {0, 1}


def test_samples_are_means_of_p_given_z_of_the_prior(rng):
    model = build((1, 2, 2), 1, rng)
    z = np.random.default_rng(5).standard_normal((4, 1))
    expected = 1 / (1 + np.exp(-model.decoder(Tensor(z)).data))
    np.testing.assert_allclose(model.sample_means(4, np.random.default_rng(5)), expected)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_samples_are_draws_from_p_given_z(likelihood, rng):
    """The moments of many draws: E x = E m(z), and var x = E var(x|z) + var m(z)."""
    model, n = VAE((1, 2, 2), latent=1, likelihood=likelihood, rng=rng), 20_000
    x, m = model.sample(n, rng).astype(float), model.sample_means(n, rng).astype(float)
    noise = m * (1 - m) if likelihood == "bernoulli" else np.exp(model.log_var.numpy())
    assert x.shape == (n, 1, 2, 2) and abs(x.mean(0) - m.mean(0)).max() < 6 * x.std(0).max() / n**0.5
    np.testing.assert_allclose(x.var(0), (noise + (m - m.mean(0)) ** 2).mean(0), rtol=0.1)


@pytest.mark.parametrize("what", ["log_likelihood", "sample", "sample_means", "reconstruct"])
def test_the_same_on_every_device(what, rng, device):
    model, x = build((1, 3, 2), 2, rng), images((1, 3, 2), 3, "bernoulli", rng)

    def result():
        seeded = np.random.default_rng(5)
        if what == "reconstruct":
            return model.reconstruct(Tensor(x).to(device) if model.device == "cuda" else x).numpy()
        given = Tensor(x).to(model.device).data
        y = getattr(model, what)(3, seeded) if "sample" in what else model.log_likelihood(given, seeded, 20)
        return Tensor(y).numpy()

    host = result()
    model.to(device)
    np.testing.assert_allclose(result(), host, rtol=1e-10)


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda m, rng: m.loss(np.full((1, 1, 2, 2), 0.5), rng), "values from 0.5 to 0.5, needs whole numbers 0 .. 1"),
        (lambda m, rng: m.encode(np.full((1, 1, 2, 2), 2)), "values from 2 to 2, needs whole numbers 0 .. 1"),
        (lambda m, rng: m.log_likelihood(-np.ones((1, 1, 2, 2)), rng), "values from -1.0 to -1.0, needs whole numbers"),
        (
            lambda m, rng: m.log_likelihood(np.ones((1, 1, 2, 2)), rng, 0),
            "samples: got 0",
        ),
        (lambda m, rng: m.sample(0, rng), "n: got 0"),
        (lambda m, rng: VAE(likelihood="laplace", rng=rng), "likelihood: got 'laplace'"),
    ],
)
def test_refused(call, message, rng):
    with pytest.raises(ValueError, match=message):
        call(VAE((1, 2, 2), 1, rng=rng), rng)
