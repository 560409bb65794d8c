"""tinygen.distributions: densities that sum to one, moments of draws, divergences against Monte Carlo."""

import numpy as np
import pytest

from tinygen import Tensor, grad, gradcheck
from tinygen.distributions import Bernoulli, Categorical, Gaussian

DRAWS = 100_000


def gaussian(mean, log_var):
    return Gaussian(Tensor(np.asarray(mean, np.float64)), Tensor(np.asarray(log_var, np.float64)))


# --- Gaussian


def test_kl_by_hand():
    assert gaussian(np.ones((1, 3)), np.zeros((1, 3))).kl().data.sum() == 1.5  # 3 (1 + 1 - 1 - 0) / 2
    assert gaussian(0, 0).kl().data == 0
    np.testing.assert_allclose(gaussian(0, np.log(4)).kl().data, (4 - 1 - np.log(4)) / 2)
    # KL(N(1, 4) || N(3, 9)) = log(3 / 2) + (4 + (1 - 3)^2) / (2 * 9) - 1 / 2
    kl = gaussian(1, np.log(4)).kl(gaussian(3, np.log(9)))
    np.testing.assert_allclose(kl.data, np.log(1.5) + 8 / 18 - 0.5)


def test_kl_to_another_gaussian(rng):
    p, q = (gaussian(*rng.standard_normal((2, 5))) for _ in range(2))
    assert (p.kl(q).data > 0).all()
    np.testing.assert_allclose(p.kl(p).data, 0, atol=1e-15)
    np.testing.assert_allclose(p.kl(gaussian(0, 0)).data, p.kl().data, atol=1e-15)


@pytest.mark.parametrize("mean,log_var,other", [(0.7, -1.0, (0, 0)), (-1.0, 1.2, (0, 0)), (0.5, -0.4, (-0.3, 0.8))])
def test_kl_is_the_mean_of_log_q_minus_log_p(mean, log_var, other, rng):
    q, p = gaussian(np.full(DRAWS, mean), log_var), gaussian(*other)
    z = q.rsample(rng)
    ratio = q.log_prob(z).data - p.log_prob(z).data
    closed = gaussian(mean, log_var).kl(None if other == (0, 0) else p).item()
    assert abs(ratio.mean() - closed) < 4 * ratio.std() / np.sqrt(DRAWS)


def test_moments_of_draws(rng):
    mean, variance = 1.5, 4.0  # of which std and variance differ
    z = gaussian(np.full(DRAWS, mean), np.log(variance)).rsample(rng).data
    assert abs(z.mean() - mean) < 4 * np.sqrt(variance / DRAWS)
    assert abs(z.var() - variance) < 4 * variance * np.sqrt(2 / DRAWS)


@pytest.mark.parametrize("mean,log_var", [(0.0, 0.0), (1.0, -2.0), (-3.0, 1.5)])
def test_gaussian_density_integrates_to_one(mean, log_var):
    x = np.linspace(mean - 30, mean + 30, 60_001)
    p = np.exp(gaussian(mean, log_var).log_prob(x).data) * 0.001  # the steps of x
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-9)
    np.testing.assert_allclose((p * (x - mean) ** 2).sum(), np.exp(log_var), rtol=1e-9)


def test_gaussian_gradients(rng):
    eps = np.random.default_rng(3)

    def everything(mean, log_var, other_mean, other_log_var, x):
        p, q = Gaussian(mean, log_var), Gaussian(other_mean, other_log_var)
        return p.rsample(np.random.default_rng(3)), p.log_prob(x), p.kl(), p.kl(q)

    gradcheck(everything, tuple(rng.standard_normal((5, 3))))
    # dz / dmean = 1 and dz / dlog_var = std eps / 2: gradients pass through the draw
    mean, log_var = (Tensor(np.array([v]), requires_grad=True) for v in (0.3, np.log(9)))
    g_mean, g_log_var = grad(Gaussian(mean, log_var).rsample(np.random.default_rng(3)).sum(), [mean, log_var])
    assert g_mean.item() == 1
    np.testing.assert_allclose(g_log_var.item(), 3 * eps.standard_normal() / 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("log_var", [-100, -41, -39, 0, 39, 41, 100])
def test_log_var_is_limited_and_its_gradient_vanishes_only_beyond(log_var, dtype, rng):
    mean, raw = (Tensor(np.array([v], dtype), requires_grad=True) for v in (0.5, log_var))
    q = Gaussian(mean, raw)
    assert q.log_var.item() == np.clip(log_var, -40, 40)
    for value in (q.rsample(rng).sum(), q.log_prob(Tensor(np.array([0.1], dtype))).sum(), q.kl().sum()):
        assert value.dtype == dtype
        assert np.isfinite(value.item())
        gradients = [g.item() for g in grad(value, [mean, raw])]
        assert np.isfinite(gradients).all()
        if abs(log_var) > 40:
            assert gradients[1] == 0
    assert (gradients[1] == 0) == (abs(log_var) > 40 or log_var == 0)  # the KL's: (exp(log_var) - 1) / 2


def test_gaussian_broadcasts_one_variance_over_all_draws(rng):
    q = Gaussian(Tensor(np.zeros((4, 3), np.float32)), Tensor(np.zeros(1, np.float32)))
    z = q.rsample(rng)
    assert z.shape == (4, 3) and z.dtype == np.float32
    assert len(np.unique(z.data)) == 12
    assert q.log_prob(z).shape == (4, 3)


# --- Bernoulli


def test_bernoulli_probabilities_sum_to_one(rng):
    p = Bernoulli(Tensor(3 * rng.standard_normal(50)))
    one, zero = (np.exp(p.log_prob(Tensor(np.full(50, v))).data) for v in (1.0, 0.0))
    np.testing.assert_allclose(one + zero, 1, atol=1e-15)
    np.testing.assert_allclose(one, 1 / (1 + np.exp(-p.logits.data)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bernoulli_at_large_logits_is_neither_clipped_nor_infinite(dtype):
    logits = Tensor(np.array([-1000, -50, 50, 1000], dtype), requires_grad=True)
    for target in (0.0, 1.0):
        log_p = Bernoulli(logits).log_prob(Tensor(np.full(4, target, dtype)))
        wrong = (logits.data > 0) != target
        np.testing.assert_allclose(log_p.data[wrong], -np.abs(logits.data[wrong]), rtol=1e-6)
        assert (np.abs(log_p.data[~wrong]) < 1e-20).all()
        np.testing.assert_allclose(grad(log_p.sum(), logits)[0].data, target - (logits.data > 0), atol=1e-20)


def test_bernoulli_draws(rng):
    p = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    logits = np.array([-1000, np.log(0.1 / 0.9), 0, np.log(9), 1000])
    x = Bernoulli(Tensor(np.tile(logits, (DRAWS, 1)).astype(np.float32))).sample(rng)
    assert x.dtype == np.float32 and set(np.unique(x)) == {0, 1}
    assert (np.abs(x.mean(0) - p) <= 4 * np.sqrt(p * (1 - p) / DRAWS)).all()
    edges = Bernoulli(Tensor(np.zeros(3))).at(np.array([0, np.nextafter(0.5, 0), 0.5]))
    np.testing.assert_array_equal(edges, [1, 1, 0])


# --- Categorical


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_categorical_probabilities_sum_to_one(axis, rng):
    logits = 3 * rng.standard_normal((4, 5, 3))
    p = Categorical(Tensor(logits), axis)
    classes = logits.shape[axis]
    rest = np.delete(logits.shape, axis)
    probabilities = [np.exp(p.log_prob(np.full(rest, k)).data) for k in range(classes)]
    np.testing.assert_allclose(sum(probabilities), 1, atol=1e-14)
    softmax = np.exp(logits) / np.exp(logits).sum(axis, keepdims=True)
    np.testing.assert_allclose(np.stack(probabilities, axis), softmax, atol=1e-14)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_categorical_draws(axis, rng):
    p = np.array([0.5, 0.3, 0.0, 0.2])
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(p), -1000)
    shape = [DRAWS, DRAWS]
    shape[axis] = 4
    x = Categorical(Tensor(np.broadcast_to(np.expand_dims(logits, 1 - axis % 2), shape)), axis).sample(rng)
    assert x.shape == (DRAWS,) and x.dtype == np.int64
    frequency = np.bincount(x, minlength=4) / DRAWS
    assert (np.abs(frequency - p) <= 4 * np.sqrt(p * (1 - p) / DRAWS)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_categorical_at_the_edges(dtype):
    def at(p, *u):
        logits = np.log(np.maximum(np.array(p, dtype), np.finfo(dtype).tiny)) + np.where(np.array(p) == 0, -1000, 0)
        logits = np.broadcast_to(logits.astype(dtype), (len(u), len(p)))
        return list(Categorical(Tensor(logits)).at(np.array(u)))

    almost = np.nextafter(1.0, 0)
    assert at([0.25, 0.25, 0.5], 0, 0.2499, 0.2501, 0.4999, 0.5001, almost) == [0, 0, 1, 1, 2, 2]
    assert at([0, 1, 0], 0, 0.5, almost) == [1, 1, 1]  # never a class of probability zero
    # The rounded probabilities add up to less than 1 for some of these: what then?
    for k in range(2, 60):
        assert at([1.0] * k + [0, 0], 0, almost) == [0, k - 1]


def test_float16_draws_all_classes_and_takes_noise(rng):
    drawn = Categorical(Tensor(np.zeros((2000, 4096), np.float16))).sample(rng)
    assert abs(drawn.mean() - 2047.5) < 150  # 6 standard errors are 159
    z = Gaussian(Tensor(np.zeros(1000, np.float16)), Tensor(np.zeros(1000, np.float16))).rsample(rng)
    assert z.dtype == np.float16 and abs(z.numpy().std() - 1) < 0.15
