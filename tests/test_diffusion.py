"""Denoising diffusion: the bound's terms against Ho et al.'s formulas and quadrature, schedules, sampling, guidance."""

import functools

import numpy as np
import pytest

from tinygen import Tensor, grad, no_grad
from tinygen.models import Diffusion
from tinygen.models.explicit.approximate import diffusion
from tinygen.optim import Adam
from tinygen.training import fit

SCHEDULES = ["log-snr", "cosine", "linear"]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def build(shape, rng, by=0.3, dtype=np.float64, channels=(4, 6), **settings):
    """A small model, no parameter of which has its special first value."""
    model = Diffusion(shape, channels=channels, rng=rng, **settings)
    for p in model.parameters():
        p.data = (p.data + by * rng.standard_normal(p.shape) / np.sqrt(max(1, p.size / len(p.data)))).astype(dtype)
    return model


def abar_of(model):
    """abar_0 .. abar_T"""
    return 1 / (1 + np.exp(-model.log_snr))


def posterior(abar, s, t, z, x):
    """Mean and variance of q(z_s | z_t, x), s < t: Ho et al. 2020, equations 6 and 7, with beta of the step s to t."""
    alpha, before = abar[t] / abar[s], abar[s]
    beta = 1 - alpha
    mean = np.sqrt(before) * beta / (1 - abar[t]) * x + np.sqrt(alpha) * (1 - before) / (1 - abar[t]) * z
    return mean, (1 - before) / (1 - abar[t]) * beta


def guess(model, monkeypatch, function):
    """Let the network's estimate of the noise be ``function(z, sqrt(1 - abar))``."""
    monkeypatch.setattr(model, "eps", lambda z, at, labels=None: function(z, at.noise))


# -- schedules and noise


@every_schedule
def test_noise_of_single_steps_adds_up(schedule, rng):
    """Iterating q(z_t | z_t-1) gives q(z_t | x), for every t, whose draws have these moments."""
    model = build((1, 1, 1), rng, schedule=schedule, steps=50)
    abar, x, n = abar_of(model), 0.7, 20_000
    mean, variance = np.sqrt(abar[0]) * x, 1 - abar[0]
    for t in range(51):
        if t:
            beta = 1 - abar[t] / abar[t - 1]
            assert 0 <= beta <= 0.9991
            mean, variance = np.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        at = model.at(np.full(1, t))
        np.testing.assert_allclose(at.signal.data.item() * x, mean, rtol=1e-9)
        np.testing.assert_allclose(at.noise.data.item() ** 2, variance, rtol=1e-6)
        if t in (0, 1, 25, 50):
            z, eps = model.noised(Tensor(np.full((n, 1, 1, 1), x)), model.at(np.full(n, t)), rng)
            np.testing.assert_allclose(z.data.mean(), mean, atol=5 * np.sqrt(variance / n))
            np.testing.assert_allclose(z.data.var(), variance, rtol=5 * np.sqrt(2 / n))
            np.testing.assert_allclose(z.data, mean + np.sqrt(variance) * eps.data)


def test_schedules_by_hand(rng):
    of = {s: abar_of(Diffusion((1, 1, 1), schedule=s, channels=(2,), rng=rng)) for s in SCHEDULES}
    for abar in of.values():
        assert len(abar) == 1001 and (np.diff(abar) < 0).all()
        np.testing.assert_allclose(np.sqrt((1 - abar[0]) * 128**2), 1 / 6)  # the noise, in grey levels
    np.testing.assert_allclose(1 - of["linear"][1], 1e-4)
    np.testing.assert_allclose(of["linear"][2], (1 - 1e-4) * (1 - 1e-4 - 0.0199 / 999))
    np.testing.assert_allclose(of["linear"][-1], 4.04e-5, rtol=0.01)
    f = np.cos((np.array([0, 1, 500, 990]) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(of["cosine"][[1, 500, 990]], f[1:] / f[0], rtol=1e-9)
    np.testing.assert_allclose(of["cosine"][-1], 0.001 * of["cosine"][-2])  # beta is at most 0.999
    snr = np.log(of["log-snr"] / (1 - of["log-snr"]))
    np.testing.assert_allclose(np.diff(snr), np.diff(snr).mean(), rtol=1e-6)
    np.testing.assert_allclose(snr[[0, -1]], [np.log((6 * 128) ** 2 - 1), -7])


@pytest.mark.parametrize("n", [1, 4, 64])
def test_each_image_has_any_step_and_together_they_are_spread(n, rng):
    model = build((1, 1, 1), rng, steps=8)
    t = np.stack([model._times(n, rng) for _ in range(4000)])
    assert t.min() == 1 and t.max() == 8
    for i in (0, n - 1):
        np.testing.assert_allclose(np.bincount(t[:, i], minlength=9)[1:] / 4000, 1 / 8, atol=0.025)
    counts = np.stack([(t == k).sum(1) for k in range(1, 9)])
    assert counts.max() - counts.min() <= (1 if n < 8 else 0 if n % 8 == 0 else 1)


# -- the loss and the bound


def test_a_network_that_predicts_nothing_has_a_loss_of_one_a_dimension(rng, monkeypatch):
    model = build((3, 4, 5), rng)
    guess(model, monkeypatch, lambda z, noise: z * 0)
    x = rng.integers(0, 256, (4000, 3, 4, 5))
    np.testing.assert_allclose(model.loss(x, rng).item() / 60, 1, atol=5 * np.sqrt(2 / x.size))


def test_the_loss_by_hand(rng):
    model = build((1, 3, 3), rng, steps=10)
    x, seeded = rng.integers(0, 256, (4, 1, 3, 3)), np.random.default_rng(5)
    t = 1 + ((seeded.random() + np.arange(4) / 4) % 1 * 10).astype(int)
    eps = seeded.standard_normal(x.shape)
    abar = abar_of(model)[t].reshape(-1, 1, 1, 1)
    z = np.sqrt(abar) * ((x + 0.5) / 128 - 1) + np.sqrt(1 - abar) * eps
    expected = ((eps - model.eps(Tensor(z), model.at(t)).data) ** 2).sum() / 4
    np.testing.assert_allclose(model.loss(x, np.random.default_rng(5)).item(), expected, rtol=1e-10)


@every_schedule
def test_the_loss_is_the_bounds_sum_but_for_its_weights(schedule, rng, monkeypatch):
    """KL_t = (SNR_t-1 / SNR_t - 1) |eps - eps_theta|^2 / 2 if no x is clipped; for log-snr all weights agree."""
    model, n = build((1, 1, 2), rng, schedule=schedule, steps=6, levels=16), 5
    guess(model, monkeypatch, lambda z, noise: z * noise)  # it does not use the edge
    x, snr = rng.integers(4, 12, (n, 1, 1, 2)), np.exp(model.log_snr)
    monkeypatch.setattr(model, "edge", 1e9)
    for t in range(1, 7):
        monkeypatch.setattr(model, "_times", lambda n, rng, t=t: np.full(n, t))
        loss = model.loss(x, np.random.default_rng(3)).item()
        kl = model.kl(x, np.full(n, t), np.random.default_rng(3)).data
        weight = (snr[t - 1] / snr[t] - 1) / 2
        np.testing.assert_allclose(kl.mean(), weight * loss, rtol=1e-8)
        if schedule == "log-snr":
            np.testing.assert_allclose(weight, (snr[0] / snr[1] - 1) / 2)


@every_schedule
def test_kl_is_that_of_the_two_gaussians(schedule, rng):
    """Ho et al. 2020, equations 6 to 8, from z_t, for each t."""
    model = build((2, 2, 3), rng, schedule=schedule, steps=7, levels=16)
    x, abar = rng.integers(0, 16, (3, 2, 2, 3)), abar_of(model)
    scaled = (2 * x + 1) / 16 - 1
    for t in range(1, 8):
        at = model.at(np.full(3, t))
        z, _ = model.noised(Tensor(scaled), at, np.random.default_rng(5))
        true, variance = posterior(abar, t - 1, t, z.data, scaled)
        learned, _ = posterior(abar, t - 1, t, z.data, model.denoised(z, at).data)
        kl = model.kl(x, [t] * 3, np.random.default_rng(5)).data
        expected = ((true - learned) ** 2).sum((1, 2, 3)) / (2 * variance) if variance > 1e-12 else 0
        np.testing.assert_allclose(kl, expected, rtol=1e-6, atol=1e-9)
        assert abs(model.denoised(z, at).data).max() <= 15 / 16


def test_prior_and_decoder_of_one_pixel_by_quadrature(rng):
    model = build((1, 1, 1), rng, steps=4, levels=5)
    abar, n = abar_of(model), 20_000
    grid, step = np.linspace(-9, 9, 20_001, retstep=True)

    def normal(z, mean, variance):
        return np.exp(-0.5 * (z - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)

    levels = (2 * np.arange(5) + 1) / 5 - 1
    for x in range(5):
        q = normal(grid, np.sqrt(abar[-1]) * levels[x], 1 - abar[-1])
        prior = (q * np.log(q / normal(grid, 0, 1)) * step).sum()
        q = normal(grid, np.sqrt(abar[0]) * levels[x], 1 - abar[0])
        likelihoods = [normal(grid, np.sqrt(abar[0]) * level, 1 - abar[0]) + 1e-300 for level in levels]
        decoder = -(q * np.log(likelihoods[x] / sum(likelihoods)) * step).sum()
        terms = model.bound(np.full((n, 1, 1, 1), x), rng)
        np.testing.assert_allclose(terms.prior.data, prior, rtol=1e-6)
        draws = terms.decoder.data
        np.testing.assert_allclose(draws.mean(), decoder, atol=5 * draws.std() / n**0.5)
        assert 0 < decoder < 0.02


@pytest.mark.parametrize("levels", [2, 3, 256])
def test_the_decoder_sums_to_one(levels, rng):
    model = build((1, 2, 2), rng, levels=levels)
    z = np.concatenate([rng.uniform(-1.1, 1.1, 12), [-1, 1, -3, 3]]).reshape(4, 1, 2, 2)
    p = [np.exp(model.decoder(Tensor(z)).log_prob(np.full((4, 1, 2, 2), k)).data) for k in range(levels)]
    np.testing.assert_allclose(np.sum(p, 0), 1, rtol=1e-9)
    np.testing.assert_array_equal(np.argmax(p, 0), np.clip(np.floor((z + 1) * levels / 2), 0, levels - 1))


def chain_by_quadrature(model, edge=6, n=1201):
    """Of one pixel: a grid, log p(z_t) on it for t = 0 .. T, and p(x) for each x."""
    grid, step = np.linspace(-edge, edge, n, retstep=True)
    abar, z = abar_of(model), grid.reshape(-1, 1, 1, 1)
    p = [np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)]
    for t in range(model.steps, 0, -1):
        denoised = model.denoised(Tensor(z), model.at(np.full(n, t))).data.reshape(n, 1)
        mean, variance = posterior(abar, t - 1, t, grid[:, None], denoised)
        transition = np.exp(-0.5 * (grid - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
        p.insert(0, (p[0] * step) @ transition)
    of_x = [np.exp(model.decoder(Tensor(z)).log_prob(np.full(z.shape, k)).data).ravel() for k in range(model.levels)]
    return grid, p, np.array([(p[0] * q * step).sum() for q in of_x])


@every_schedule
def test_the_bound_is_one_and_samples_are_draws(schedule, rng):
    """One pixel of 3 levels and 3 steps, p(x) by quadrature; the bound by its mean, over t drawn and over all t."""
    model, n = build((1, 1, 1), rng, by=0.15, schedule=schedule, steps=3, levels=3), 3000
    with no_grad():
        p = chain_by_quadrature(model)[2]
        np.testing.assert_allclose(p.sum(), 1, atol=1e-4)
        assert p.max() - p.min() > 0.05
        for x in range(3):
            images = np.full((n, 1, 1, 1), x)
            terms = model.bound(images, rng)
            draws = -terms.total.data
            error = draws.std() / n**0.5
            assert draws.mean() > -np.log(p[x]) - 4 * error
            exact = [model.kl(images, np.full(n, t), rng).data.mean() for t in (1, 2, 3)]
            np.testing.assert_allclose(terms.steps.data.mean(), sum(exact), atol=7 * error)
            assert draws.mean() < -np.log(p[x]) + 20  # or it says nothing
        x = model.sample(10_000, rng).ravel()
        np.testing.assert_allclose(np.bincount(x, minlength=3) / len(x), p, atol=0.02)


@every_schedule
def test_the_bound_is_tight_for_the_right_denoiser(schedule, rng, monkeypatch):
    """Of a pixel that is 0 or 2 E[x | z] is known, and with many steps the bound comes close to log 1/2."""
    model, n = build((1, 1, 1), rng, schedule=schedule, steps=300, levels=3), 20_000

    def noise(z, at, labels=None):
        a, s = at.signal.data, at.noise.data
        x = 2 / 3 * np.tanh(2 / 3 * a * z.data / s**2)
        return Tensor((z.data - a * x) / s)

    monkeypatch.setattr(model, "eps", noise)
    with no_grad():
        for x in (0, 2):
            score = model.score(np.full((n, 1, 1, 1), x), rng).data
            np.testing.assert_allclose(score.mean(), np.log(2), atol=0.03 + 4 * score.std() / n**0.5)


def test_float32_has_enough_digits(rng):
    model = build((1, 3, 4), rng, by=0.2)
    x = rng.integers(0, 256, (64, 1, 3, 4))
    t = np.linspace(1, 1000, 64).astype(int)
    fine = model.kl(x, t, np.random.default_rng(5)).data
    for p in model.parameters():
        p.data = p.data.astype(np.float32)
    model._normal = lambda shape, rng: Tensor(rng.standard_normal(shape).astype(np.float32))
    np.testing.assert_allclose(model.kl(x, t, np.random.default_rng(5)).data, fine, rtol=0.02, atol=0.02)


# -- the network


@pytest.mark.parametrize("classes", [0, 3])
def test_time_and_label_reach_every_block(classes, rng):
    model = build((1, 6, 6), rng, classes=classes, channels=(3, 4, 5))
    blocks = [*model.network.down, *model.network.up]
    assert len(blocks) == 6
    z = Tensor(rng.standard_normal((1, 1, 6, 6)))
    for block in blocks:  # only this one is told anything
        others = [b for b in blocks if b is not block]
        kept = [b.affine.weight.data for b in others]
        for b in others:
            b.affine.weight.data = np.zeros_like(b.affine.weight.data)

        def out(t, label, known=True):
            at = model.at(np.full(1, t), known)._replace(signal=Tensor(np.full((1, 1, 1, 1), 0.6)))
            at = at._replace(noise=Tensor(np.full((1, 1, 1, 1), 0.8)))
            return model.eps(z, at, [label] if classes else None).data

        outs = [out(t, 0) for t in (1, 2, 500, 501, 999, 1000)]
        outs += [out(1, 1), out(1, 2), out(1, 0, known=False)] if classes else []
        for i, a in enumerate(outs):
            assert all(abs(a - b).max() > 1e-6 for b in outs[:i])
        for b, weight in zip(others, kept):
            b.affine.weight.data = weight


def test_every_pixel_sees_every_other_at_the_coarsest_scale(rng):
    model = build((1, 9, 11), rng, channels=(3, 4, 5), levels=4)
    z = Tensor(rng.standard_normal((1, 1, 9, 11)), requires_grad=True)
    for at in ((0, 0), (8, 10), (4, 5)):
        (g,) = grad(model.eps(z, model.at(np.full(1, 500)))[(0, 0, *at)], z)
        assert (g.data != 0).all()


def test_the_network_starts_as_the_guess_of_gaussian_pixels(rng):
    model = Diffusion((3, 5, 7), classes=2, rng=rng)
    z, at = Tensor(rng.standard_normal((4, 3, 5, 7)).astype(np.float32)), model.at(np.array([0, 1, 500, 1000]))
    np.testing.assert_allclose(model.eps(z, at, [0, 1, 0, 1]).data, at.noise.data * z.data)


@every_schedule
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 7), (3, 4, 4), (2, 1, 9), (1, 28, 28)])
def test_any_image_size(shape, schedule, rng):
    model = build(shape, rng, schedule=schedule, channels=(3, 4, 5), steps=6, levels=300, dtype=np.float32)
    x = rng.integers(0, 300, (2, *shape))
    terms = model.bound(x, rng)
    assert all(term.shape == (2,) and np.isfinite(term.data).all() and (term.data >= 0).all() for term in terms)
    assert model.loss(x, rng).dtype == terms.total.dtype == np.float32
    drawn = model.sample(2, rng)
    assert drawn.shape == (2, *shape) and drawn.dtype == np.int64 and drawn.min() >= 0 and drawn.max() < 300
    assert build(shape, rng, channels=(2,), steps=2).sample(1, rng, steps=1).dtype == np.uint8


# -- sampling


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_ancestral_draws_have_the_posteriors_moments(steps, rng, monkeypatch):
    """With eta 1 z_s given z_t is N(posterior mean, beta-tilde), also where steps are skipped."""
    model, n = build((1, 1, 1), rng, steps=6, levels=4), 20_000
    guess(model, monkeypatch, lambda z, noise: 0.8 * z * noise)
    abar, times = abar_of(model), np.linspace(6, 0, steps + 1).astype(int)
    states = list(model.chain(n, rng, steps=steps))
    assert len(states) == steps + 1
    np.testing.assert_allclose([states[0].mean(), states[0].std()], [0, 1], atol=0.02)
    for t, s, z, after in zip(times, times[1:], states, states[1:]):
        x = model.denoised(Tensor(z), model.at(np.full(n, t))).data
        mean, variance = posterior(abar, s, t, z, x)
        new = (after - mean) / np.sqrt(variance)
        np.testing.assert_allclose([new.mean(), new.var(), (new * z).mean()], [0, 1, 0], atol=0.04)


def test_without_eta_only_the_start_is_drawn(rng):
    model = build((1, 2, 2), rng, steps=20)
    seeded, started = np.random.default_rng(5), np.random.default_rng(5)
    states = list(model.chain(3, seeded, eta=0))
    np.testing.assert_array_equal(states[0], started.standard_normal((3, 1, 2, 2)))
    assert seeded.bit_generator.state == started.bit_generator.state
    abar = abar_of(model)
    for t, z, after in zip(range(20, 0, -1), states, states[1:]):  # Song et al. 2021, equation 12 with sigma = 0
        x = model.denoised(Tensor(z), model.at(np.full(3, t))).data
        eps = (z - np.sqrt(abar[t]) * x) / np.sqrt(1 - abar[t])
        np.testing.assert_allclose(after, np.sqrt(abar[t - 1]) * x + np.sqrt(1 - abar[t - 1]) * eps, rtol=1e-8)


def test_eta_between_has_its_variance(rng, monkeypatch):
    """Song et al. 2021, equations 12 and 16."""
    model, n, eta = build((1, 1, 1), rng, steps=1, levels=4), 40_000, 0.6
    guess(model, monkeypatch, lambda z, noise: 0.8 * z * noise)
    abar = abar_of(model)
    z, after = model.chain(n, rng, eta=eta)
    sigma = eta * np.sqrt((1 - abar[0]) / (1 - abar[1]) * (1 - abar[1] / abar[0]))
    x = model.denoised(Tensor(z), model.at(np.ones(n, int))).data
    eps = (z - np.sqrt(abar[1]) * x) / np.sqrt(1 - abar[1])
    new = (after - np.sqrt(abar[0]) * x - np.sqrt(1 - abar[0] - sigma**2) * eps) / sigma
    np.testing.assert_allclose([new.mean(), new.var(), (new * z).mean()], [0, 1, 0], atol=0.04)


def test_samples_are_the_chains_end_rounded(rng):
    model = build((1, 4, 4), rng, steps=10)
    *_, z = model.chain(3, np.random.default_rng(5), steps=4, eta=0.5)
    x = np.clip(np.floor((z / np.sqrt(abar_of(model)[0]) + 1) * 128), 0, 255)
    np.testing.assert_array_equal(model.sample(3, np.random.default_rng(5), steps=4, eta=0.5), x)
    assert not (x == model.sample(3, np.random.default_rng(5))).all()


def test_sampling_records_nothing_while_its_caller_may(rng):
    model, seen = build((1, 2, 2), rng, steps=3), []
    denoised = model.denoised
    model.denoised = lambda *a: seen.append(denoised(*a)) or seen[-1]
    for _ in model.chain(2, rng):
        assert model.loss(np.zeros((1, 1, 2, 2)), rng).requires_grad
    assert len(seen) == 3 and not any(x.requires_grad for x in seen)


# -- labels and guidance


def test_guidance(rng):
    model = build((1, 4, 4), rng, classes=3, steps=5)
    z, at, labels = Tensor(rng.standard_normal((3, 1, 4, 4))), model.at(np.array([2, 3, 4])), np.array([0, 1, 2])
    told, untold = model.eps(z, at, labels), model.eps(z, at._replace(known=Tensor(np.zeros((3, 1)))), labels)
    assert abs(told.data - untold.data).max() > 1e-3
    for guidance in (0.0, 1.0, 2.5):
        eps = untold.data + guidance * (told.data - untold.data)
        right = np.clip((z.data - at.noise.data * eps) / at.signal.data, -model.edge, model.edge)
        np.testing.assert_allclose(model.denoised(z, at, labels, guidance).data, right, rtol=1e-9)

    def draw(labels, **how):
        return np.stack(list(model.chain(3, np.random.default_rng(5), labels, **how)))

    np.testing.assert_array_equal(draw(labels, guidance=1), draw(labels))
    np.testing.assert_array_equal(draw(labels, guidance=0), draw(labels[::-1], guidance=0))
    assert abs(draw(labels) - draw(labels[::-1])).max() > 1e-3 < abs(draw(labels) - draw(labels, guidance=2)).max()


def test_a_tenth_of_the_labels_is_hidden_in_training_alone(rng, monkeypatch):
    model, seen = build((1, 2, 2), rng, classes=3), []
    at = model.at
    monkeypatch.setattr(model, "at", lambda t, known=True: seen.append(at(t, known)) or seen[-1])
    x, labels = rng.integers(0, 256, (5000, 1, 2, 2)), rng.integers(0, 3, 5000)
    loss = model.loss(x, np.random.default_rng(5), labels)
    (known,) = [step.known.data for step in seen]
    assert set(np.unique(known)) == {0, 1} and abs(known.mean() - 0.9) < 0.02
    assert loss.item() == model.loss(x, np.random.default_rng(5), labels).item()
    other = np.where(known[:, 0] == 1, labels, 2 - labels)  # of hidden labels nothing is learned
    assert loss.item() == model.loss(x, np.random.default_rng(5), other).item()
    assert loss.item() != model.loss(x, np.random.default_rng(5), 2 - labels).item()
    seen.clear()
    given = model.score(x[:9], np.random.default_rng(5), labels[:9]).data
    assert all((step.known.data == 1).all() for step in seen)
    np.testing.assert_array_equal(given, -model.bound(x[:9], np.random.default_rng(5), labels[:9]).total.data)
    assert (given != model.score(x[:9], np.random.default_rng(5), (labels[:9] + 1) % 3).data).any()


# -- training, devices, errors


@pytest.mark.parametrize("classes", [0, 3])
def test_training_has_the_same_bits_for_any_workers_and_after_a_resume(classes, rng, tmp_path, monkeypatch):
    monkeypatch.setattr("tinygen.parallel.shard_size", lambda *_: 16)
    x, labels = rng.integers(0, 256, (80, 1, 4, 4)).astype(np.uint8), rng.integers(0, 3, 80)

    def trained(steps, workers, checkpoint=None):
        model = Diffusion((1, 4, 4), channels=(3, 4), classes=classes, rng=np.random.default_rng(3))
        optimizer, seed = Adam(model.parameters(), 0.01), np.random.default_rng(0)
        fit(model, x, steps=steps, optimizer=optimizer, rng=seed, batch_size=32, workers=workers, progress=False,
            labels=labels if classes else None, validation=x[:16], validation_labels=labels[:16] if classes else None,
            averaging=0.9, checkpoint=checkpoint)  # fmt: skip
        return model.state_dict()

    right = trained(6, 1)
    trained(3, 1, tmp_path / "c.npz")
    for other in (trained(6, 2), trained(6, 4), trained(6, 1, tmp_path / "c.npz")):
        for name, value in right.items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)


@pytest.mark.parametrize("what", ["bound", "kl", "sample", "guided"])
def test_the_same_on_every_device(what, rng, device):
    model = build((3, 3, 2), rng, classes=2, steps=5, levels=8, by=0.1)
    x, labels, t = rng.integers(0, 8, (3, 3, 3, 2)), np.array([0, 1, 1]), np.array([1, 3, 5])

    def result():
        seeded = np.random.default_rng(5)
        images, given = (Tensor(a).to(model.device).data for a in (x, labels))
        if "bound" in what:
            return [term.numpy() for term in model.bound(images, seeded, given)]
        if what == "kl":
            return model.kl(images, t, seeded, given).numpy()
        draw = functools.partial(model.sample, guidance=3) if what == "guided" else model.sample
        return Tensor(draw(3, seeded, given)).numpy()

    host = result()
    model.to(device)
    np.testing.assert_allclose(result(), host, rtol=1e-8)


def test_new_noise_in_each_place(rng):
    """Nothing shares its noise: neither images nor pixels, nor z_0 and z_t."""
    model, drawn = build((1, 2, 2), rng), []
    normal = model._normal
    model._normal = lambda *a: drawn.append(normal(*a)) or drawn[-1]
    model.bound(rng.integers(0, 256, (5, 1, 2, 2)), rng)
    values = np.concatenate([d.data.ravel() for d in drawn])
    assert len(values) == len(np.unique(values)) == 40


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda m, rng: m.loss(np.full((1, 1, 2, 2), 256), rng),
            "values from 256 to 256, needs whole",
        ),
        (lambda m, rng: m.bound(np.full((1, 1, 2, 2), 0.5), rng), "values from 0.5 to 0.5, needs whole numbers"),
        (lambda m, rng: m.kl(np.zeros((1, 1, 2, 2)), [0], rng), "t: got 0, needs whole numbers from 1"),
        (lambda m, rng: m.kl(np.zeros((1, 1, 2, 2)), [6], rng), "t: got 6 to 6, needs whole numbers 0 .. 5"),
        (lambda m, rng: m.sample(2, rng, steps=6), "steps: got 6, needs at most 5"),
        (lambda m, rng: m.sample(2, rng, eta=1.5), r"eta: got 1.5, needs a number in \[0, 1\]"),
        (lambda m, rng: m.sample(2, rng, guidance=2), "guidance: the model was built without classes"),
        (lambda m, rng: m.sample(0, rng), "n: got 0"),
        (lambda m, rng: m.score(np.zeros((1, 1, 2, 2)), rng, [0]), "labels: the model was built without classes"),
        (lambda m, rng: Diffusion(schedule="sqrt", rng=rng), "schedule: got 'sqrt', needs 'log-snr', 'cosine' or 'lin"),
        (lambda m, rng: Diffusion(classes=2, rng=rng).sample(2, rng), "labels: got none, needs whole numbers 0 .. 1"),
    ],
)
def test_refused(call, message, rng):
    with pytest.raises(ValueError, match=message):
        call(Diffusion((1, 2, 2), steps=5, channels=(2,), rng=rng), rng)


def test_constants_are_those_of_the_texts():
    assert (diffusion.FIRST, diffusion.LAST, diffusion.HIDDEN) == (1 / 6, -7, 0.1)
