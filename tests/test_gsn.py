"""The GSN: its chain leaves a known distribution invariant; walkback by hand; what it learns of one pixel."""

import itertools

import numpy as np
import pytest

from tinygen import Tensor, no_grad
from tinygen.backend import to_device, to_host
from tinygen.models import GSN
from tinygen.optim import Adam
from tinygen.training import fit

STATES = np.array(list(itertools.product([0.0, 1.0], repeat=2)))  # of an image of two pixels
P = np.array([0.4, 0.1, 0.2, 0.3])  # their probabilities
DRAWS = 20_000  # from each state


def corruption(states, noise):
    """(K, K): C(x~|x), the product over pixels of 1 - noise / 2 where they agree and noise / 2 where they do not."""
    differ = (states[:, None] != states[None]).sum(2)
    return (noise / 2) ** differ * (1 - noise / 2) ** (states.shape[1] - differ)


def index(x):
    """(N, 1, 1, 2) -> (N,): which state each image is in."""
    return np.rint(x.reshape(-1, 2) @ [2, 1]).astype(int)


class Table:
    """The exact posterior P(x|x~) as what a network would make of x~."""

    def __init__(self, p):
        self.p = p  # (N, 4)
        self.mean = Tensor((p @ STATES).reshape(-1, 1, 1, 2))

    def sample(self, rng):
        drawn = (self.p.cumsum(1) < rng.random((len(self.p), 1))).sum(1)
        return STATES[drawn].reshape(-1, 1, 1, 2)


@pytest.fixture
def exact(rng):
    """A GSN on two pixels with the exact posterior, and the matrix of that posterior (x~, x)."""
    model = GSN((1, 1, 2), (2,), noise=0.6, rng=rng)
    for p in model.parameters():
        p.data = p.data.astype(np.float64)
    posterior = P[None] * corruption(STATES, 0.6).T  # (x~, x)
    posterior /= posterior.sum(1, keepdims=True)
    model.posterior = lambda corrupted: Table(posterior[index(corrupted.data)])
    return model, posterior


def test_with_the_exact_posterior_the_chain_leaves_the_distribution_invariant(exact, rng):
    """The chain moves as C P says, and C P has the images' distribution as its stationary one."""
    model, posterior = exact
    moves = corruption(STATES, 0.6) @ posterior  # (x, x')
    np.testing.assert_allclose(P @ moves, P, rtol=1e-12)
    start = np.repeat(STATES, DRAWS, axis=0).reshape(-1, 1, 1, 2)
    ((corrupted, x, mean),) = model.chain(start, rng, steps=1)
    for found, expected in ((corrupted, corruption(STATES, 0.6)), (x, moves)):
        counts = np.stack([np.bincount(part, minlength=4) for part in index(found).reshape(4, DRAWS)])
        error = (counts / DRAWS - expected) / np.sqrt(expected * (1 - expected) / DRAWS)
        assert np.abs(error).max() < 4.5
    np.testing.assert_allclose(mean, (posterior[index(corrupted)] @ STATES).reshape(mean.shape))


def test_samples_are_of_that_distribution(exact, rng):
    model, posterior = exact
    for drawn in (model.sample(DRAWS, rng, steps=12), model.complete(np.zeros((DRAWS, 1, 1, 2)), rng, False, 12)):
        share = np.bincount(index(np.rint(drawn)), minlength=4) / DRAWS
        if (drawn == np.rint(drawn)).all():  # complete gives means
            assert np.abs((share - P) / np.sqrt(P * (1 - P) / DRAWS)).max() < 4.5
        np.testing.assert_allclose(drawn.mean(0).ravel(), P @ STATES, atol=0.015)
    # With the first pixel kept at 1, the second moves from 0 and from 1 to 1 with the probabilities ``to_one``
    mask = np.array([[[True, False]]])
    completed = model.complete(np.ones((DRAWS, 1, 1, 2)), rng, mask, 12)
    assert (completed[..., 0] == 1).all()
    to_one = (corruption(STATES, 0.6) @ posterior @ STATES[:, 1])[2:]
    error = 0.5 / DRAWS**0.5
    assert abs(completed[..., 1].mean() - to_one[0] / (to_one[0] + 1 - to_one[1])) < 4.5 * error


def test_corruption_replaces_pixels_by_salt_and_pepper(rng):
    model, grey = GSN((1, 40, 50), (2,), noise=0.3, rng=rng), 0.5
    found = model.corrupt(np.full((50, 1, 40, 50), grey), rng).data
    shares = [(found == value).mean() for value in (0, 1, grey)]
    np.testing.assert_allclose(shares, [0.15, 0.15, 0.7], atol=4.5 * 0.5 / 100_000**0.5)


@pytest.mark.parametrize("walkback", [1, 3])
def test_walkback_by_hand(walkback, rng):
    """The chain goes on from its own draws, and each of its steps is to lead back to the first image."""
    model = GSN((1, 3, 4), (5, 6), noise=0.4, walkback=walkback, rng=rng)
    for p in model.parameters():
        p.data = rng.standard_normal(p.shape)
    x, noise = rng.random((4, 1, 3, 4)), np.random.default_rng(1)
    state, expected = x, 0.0
    for _ in range(walkback):
        u = noise.random(x.shape)
        h = 2 * np.where(u < 0.2, 0, np.where(u < 0.4, 1, state)).reshape(4, 12) - 1
        for layer in model.layers:
            h = np.maximum(h @ layer.weight.data.T + layer.bias.data, 0)
        p = 1 / (1 + np.exp(-(h @ model.out.weight.data.T + model.out.bias.data)))
        expected = expected - (x.reshape(4, 12) * np.log(p) + (1 - x.reshape(4, 12)) * np.log(1 - p)).sum(1) / walkback
        state = (noise.random(x.shape) < p.reshape(x.shape)) * 1.0 if _ < walkback - 1 else None
    scores = model.score(x, np.random.default_rng(1))
    np.testing.assert_allclose(scores.data, expected, rtol=1e-9)
    assert model.loss(x, np.random.default_rng(1)).item() == pytest.approx(expected.mean())


@pytest.mark.parametrize("walkback", [1, 3])
def test_of_one_pixel_it_learns_the_distribution(walkback, rng):
    """Without walkback the network becomes the exact posterior; with it the chain has the same stationary distribution
    (Bengio et al. 2013)."""
    p, noise = 0.3, 0.4
    images = np.repeat([1.0, 0.0], [30, 70]).reshape(-1, 1, 1, 1).astype(np.float32)
    model = GSN((1, 1, 1), (4,), noise, walkback, rng=np.random.default_rng(0))
    x, optimizer = np.repeat(images, 40, axis=0), Adam(model.parameters(), 0.03)
    for step in range(300):
        optimizer.lr = 0.03 * (1 - step / 300)
        optimizer.zero_grad()
        model.loss(x, rng).backward()
        optimizer.step()
    with no_grad():
        found = model.posterior(np.array([0.0, 1.0]).reshape(2, 1, 1, 1)).mean.data.ravel().astype(float)
    agree, differ = 1 - noise / 2, noise / 2
    if walkback == 1:
        exact = [p * differ / (p * differ + (1 - p) * agree), p * agree / (p * agree + (1 - p) * differ)]
        np.testing.assert_allclose(found, exact, atol=0.01)
    to_one = [agree * found[0] + differ * found[1], differ * found[0] + agree * found[1]]  # from 0, from 1
    stationary = to_one[0] / (to_one[0] + 1 - to_one[1])
    assert stationary == pytest.approx(p, abs=0.02)


def test_chains_samples_and_completions(rng):
    model = GSN((3, 2, 3), (7,), rng=rng)
    for p in model.parameters():
        p.data = rng.standard_normal(p.shape, np.float32)
    x = rng.random((2, 3, 2, 3), np.float32)
    passed = list(model.chain(x, np.random.default_rng(1), steps=4))
    assert len(passed) == 4 and all(a.shape == x.shape and a.dtype == np.float32 for state in passed for a in state)
    assert {tuple(np.unique(state[1])) for state in passed} <= {(0,), (1,), (0, 1)}
    with no_grad():
        for (_, _, mean), (corrupted, _, _) in zip(passed, passed):
            np.testing.assert_allclose(model.posterior(corrupted).mean.data, mean, rtol=1e-5)
    drawn, means = (f(5, np.random.default_rng(2), steps=3) for f in (model.sample, model.sample_means))
    assert set(np.unique(drawn)) == {0, 1} and ((means >= 0) & (means <= 1)).all()
    np.testing.assert_array_equal(model.sample(5, np.random.default_rng(2), steps=3), drawn)
    mask = np.arange(3) < 2
    assert all((state[i][..., :2] == x[..., :2]).all() for state in model.chain(x, rng, 3, mask) for i in (1, 2))
    completed = model.complete(x, rng, mask, 3)
    assert (completed[..., :2] == x[..., :2]).all() and (completed[..., 2] != x[..., 2]).all()
    model.sample(1, rng, steps=1), next(iter(model.chain(x, rng)))
    assert model.loss(x, rng).requires_grad  # recording is on again, in the midst of a chain too


def test_chains_are_the_same_on_every_device(rng, device):
    model, x = GSN((1, 3, 2), (7,), rng=rng), rng.random((4, 1, 3, 2))
    for p in model.parameters():
        p.data = rng.standard_normal(p.shape)
    mask = rng.random((3, 2)) < 0.5
    results = []
    for where in ("cpu", device):
        model.to(where)
        given, noise = to_device(x, where), np.random.default_rng(1)
        drawn = model.sample(3, noise, steps=2), model.complete(given, noise, mask, 2), *model.chain(given, noise, 2)
        results.append([to_host(a) for part in drawn for a in (part if isinstance(part, tuple) else [part])])
    for here, there in zip(*results, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-9)


def test_training_has_the_same_bits_for_any_workers_and_after_a_resume(rng, tmp_path, monkeypatch):
    monkeypatch.setattr("tinygen.parallel.shard_size", lambda *_: 16)
    x = rng.random((80, 1, 4, 4)).astype(np.float32)

    def trained(steps, workers, checkpoint=None):
        model = GSN((1, 4, 4), (5,), walkback=2, rng=np.random.default_rng(3))
        optimizer, seed = Adam(model.parameters(), 0.01), np.random.default_rng(0)
        options = {"batch_size": 48, "workers": workers, "progress": False, "checkpoint": checkpoint}
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
        ({"noise": 0}, "noise: got 0"),
        ({"noise": 1.5}, "noise: got 1.5"),
        ({"walkback": 0}, "walkback: got 0"),
        ({"hidden": ()}, r"hidden: got \(\)"),
    ],
)
def test_settings_are_refused(settings, message, rng):
    with pytest.raises(ValueError, match=message):
        GSN(**settings, rng=rng)


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_images_that_are_no_probabilities_are_refused(value, rng):
    with pytest.raises(ValueError, match=r"images: values from .*, needs numbers in \[0, 1\]"):
        GSN((1, 2, 2), (2,), rng=rng).loss(np.full((1, 1, 2, 2), value), rng)
