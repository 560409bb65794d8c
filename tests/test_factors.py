"""Known factors: the sprites, the mutual information gap against entropies by hand, the TCVAE against enumeration."""

import re
import sys
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from tinygen import Tensor, grad
from tinygen.backend import to_device
from tinygen.distributions import Gaussian
from tinygen.factors import FACTORS, Sprites, entropies, mutual_information, mutual_information_gap
from tinygen.factors import sprites as make_sprites
from tinygen.models import TCVAE, VAE
from tinygen.optim import Adam
from tinygen.training import _batch, fit

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import factors as benchmark
import likelihood

SHAPE = (1, 4, 3)


# -- the sprites


@pytest.fixture(scope="module")
def sprites():
    return make_sprites()


@pytest.fixture(scope="module")
def grid(sprites):
    """(shape, scale, orientation, x, y, row, column)"""
    return sprites.images.reshape(*FACTORS.values(), 32, 32)


def test_sprites_are_a_grid_of_binary_images(sprites):
    assert sprites.images.shape == (61440, 1, 32, 32) and sprites.factors.shape == (61440, 5)
    assert sprites.images.dtype == sprites.factors.dtype == np.uint8 and sprites.images.max() == 1
    assert [tuple(row) for row in sprites.factors[::997]] == list(product(*map(range, FACTORS.values())))[::997]


def test_position_moves_the_shape_by_one_pixel(grid):
    grid = grid[:, ::3, ::7]
    np.testing.assert_array_equal(grid[:, :, :, 1:, ..., 1:], grid[:, :, :, :-1, ..., :-1])
    np.testing.assert_array_equal(grid[:, :, :, :, 1:, 1:], grid[:, :, :, :, :-1, :-1])
    one = grid[0, 1, 0]  # a square, on columns 3 .. 13 where x = 0
    columns = (one * np.arange(32)).sum((2, 3)) / one.sum((2, 3))
    np.testing.assert_allclose(columns, np.broadcast_to(8.0 + np.arange(16)[:, None], (16, 16)))
    centres = (grid * np.arange(32)[:, None]).sum((-1, -2)) / grid.sum((-1, -2))  # of all: y moves them alike
    np.testing.assert_allclose(np.diff(centres, axis=4), 1)
    np.testing.assert_allclose(centres[..., 0], 8, atol=0.35)


def test_no_shape_is_cut_off(grid):
    areas = grid.sum((-1, -2))
    assert (areas == areas[..., :1, :1]).all() and areas.min() > 20


def test_scale_changes_the_area(grid):
    areas = grid[:, :, :, 0, 0].sum((-1, -2)).astype(float)
    assert (np.diff(areas, axis=1) > 10).all()
    np.testing.assert_allclose(areas[:, 0] / areas[:, 3], 0.25, atol=0.06)
    np.testing.assert_allclose(areas[:, 3], 113, atol=9)  # so that the area does not tell the shape


def test_orientation_turns_the_long_axis_of_the_ellipse(grid):
    rows, columns = np.mgrid[:32, :32] - 8.0
    for k in range(20):
        p = grid[1, 3, k, 0, 0].astype(float)
        angle = 0.5 * np.arctan2(2 * (p * rows * columns).sum(), (p * (columns**2 - rows**2)).sum())
        away = (angle - k * np.pi / 10 + np.pi / 2) % np.pi - np.pi / 2
        assert abs(away) < 0.06, k


def test_images_are_unique_but_for_symmetries(grid):
    turned = grid[:, :, :, 7, 7].reshape(3, 4, 20, -1)
    np.testing.assert_array_equal(turned[0, :, :5], turned[0, :, 5:10])  # a square, by 90 degrees
    np.testing.assert_array_equal(turned[0, :, :10], turned[0, :, 10:])
    np.testing.assert_array_equal(turned[1, :, :10], turned[1, :, 10:])  # an ellipse, by 180
    assert len(np.unique(turned.reshape(240, -1), axis=0)) == 4 * (5 + 10 + 20)


# -- the gap


def test_information_by_hand():
    v = np.array([[0], [0], [1], [1], [2], [2], [2], [2]])
    z = np.array([[1.0, 5.0], [1.0, 6.0], [2.0, 5.0], [2.0, 6.0], [2.0, 5.0], [2.0, 6.0], [2.0, 5.0], [2.0, 6.0]])
    h = -0.25 * np.log(0.25) * 2 - 0.5 * np.log(0.5)
    np.testing.assert_allclose(entropies(v), [h])
    first = -0.25 * np.log(0.25) - 0.75 * np.log(0.75)  # z[0] says whether v is 0
    np.testing.assert_allclose(mutual_information(z, v, bins=8), [[first, 0]], atol=1e-12)
    np.testing.assert_allclose(mutual_information_gap(z, v, bins=8), [first / h])


def test_information_of_gaussians(rng):
    """I(z; sign v) of z = v + noise against the integral."""
    sign = rng.integers(0, 2, 100_000)
    z = 2.0 * sign - 1 + rng.standard_normal(100_000)
    line = np.linspace(-8, 8, 4001)
    p = np.exp(-0.5 * (line - np.array([[-1], [1]])) ** 2) / np.sqrt(2 * np.pi)
    exact = (0.5 * p * np.log(p / p.mean(0))).sum() * (line[1] - line[0])
    np.testing.assert_allclose(mutual_information(z[:, None], sign[:, None]), exact, atol=0.005)


def test_gap_of_factors_noise_and_mixtures(rng, sprites):
    known = sprites.factors[rng.permutation(len(sprites.factors))[:20_000]]
    z = known + 0.1 * rng.standard_normal(known.shape)
    np.testing.assert_allclose(mutual_information_gap(known, known), 1, atol=0.01)
    assert mutual_information_gap(z, known).min() > 0.9
    noise = rng.standard_normal(known.shape)
    assert mutual_information_gap(noise, known).max() < 0.03
    z = (z - z.mean(0)) / z.std(0)
    rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    assert 0.005 < mutual_information_gap(z @ rotation, known).mean() < 0.3
    half = z.copy()  # x and y turned by 45 degrees alone
    half[:, 3], half[:, 4] = z[:, 3] + z[:, 4], z[:, 3] - z[:, 4]
    gaps = mutual_information_gap(half, known)
    assert gaps[:3].min() > 0.9 and gaps[3:].max() < 0.02
    twice = np.concatenate([z, z[:, :1]], 1)
    gaps = mutual_information_gap(twice, known)
    assert gaps[0] == 0 and gaps[1:].min() > 0.9


def test_gap_does_not_depend_on_order_scale_or_device(rng, sprites, device):
    known = sprites.factors[rng.permutation(len(sprites.factors))[:3000]]
    z = known @ rng.standard_normal((5, 6)) + rng.standard_normal((3000, 6))
    gaps = mutual_information_gap(z, known)
    images = rng.permutation(3000)
    np.testing.assert_allclose(mutual_information_gap(z[images], known[images]), gaps)
    np.testing.assert_allclose(mutual_information_gap(z[:, ::-1], known), gaps)
    np.testing.assert_allclose(mutual_information_gap(np.exp(z / 8) * 100 - 7, known), gaps, atol=0.002)
    np.testing.assert_allclose(mutual_information_gap(z, known[:, ::-1]), gaps[::-1])
    np.testing.assert_allclose(mutual_information_gap(to_device(z, device), to_device(known, device)), gaps)
    information = mutual_information(z, known)
    assert information.shape == (5, 6) and (information < entropies(known)[:, None]).all()


@pytest.mark.parametrize(
    "codes, known, message",
    [
        (np.zeros((4, 1)), np.zeros((4, 2), int), "codes: have 1 dimension, need at least 2"),
        (np.zeros((3, 2)), np.zeros((4, 2), int), r"codes: got shape \(3, 2\), needs finite numbers of shape \(4, D\)"),
        (np.full((4, 2), np.nan), np.zeros((4, 2), int), "codes: got shape"),
        (np.zeros((4, 2)), np.zeros((4, 2)), r"factors: got shape \(4, 2\), dtype float64, needs whole numbers"),
        (np.zeros((4, 2)), np.full((4, 2), -1), "factors: got shape"),
        (np.zeros((4, 2)), np.zeros(4, int), r"factors: got shape \(4,\)"),
        (np.zeros((4, 2)), np.zeros((4, 2), int), "factors: number 0 has one value only"),
    ],
)
def test_codes_and_factors_that_do_not_fit_are_refused(codes, known, message):
    with pytest.raises(ValueError, match=message):
        mutual_information_gap(codes, known)


# -- the TCVAE


def with_posterior(mean, log_var, rng, **settings):
    """A TCVAE in float64 of which q(z|x_n) is given: row n of ``mean`` and ``log_var`` (N, D)."""
    model = TCVAE(SHAPE, latent=mean.shape[1], channels=(2,), rng=rng, **{"images": len(mean), **settings})
    for p in model.parameters():
        p.data = p.data.astype(np.float64)
    model.encode = lambda x: Gaussian(Tensor(mean), Tensor(log_var))
    return model, rng.integers(0, 2, (len(mean), *SHAPE))


def log_normal(z, mean, log_var):
    return -0.5 * ((z - mean) ** 2 / np.exp(log_var) + log_var + np.log(2 * np.pi))


def integrated(mean, log_var):
    """The information, the total correlation and the dimensions' KL of two dimensions, by sums over a fine grid."""
    line, step = np.linspace(-7, 7, 561, retstep=True)
    p = np.exp(log_normal(line, mean[..., None], log_var[..., None]))  # (N, 2, grid): q(z_j|n)
    joint = p[:, 0, :, None] * p[:, 1, None, :]  # (N, grid, grid)
    q, (q0, q1) = joint.mean(0), p.mean(0)
    information = (joint * np.log(joint / q)).sum() / len(mean) * step**2
    total_correlation = (q * np.log(q / (q0[:, None] * q1))).sum() * step**2
    each = sum((m * (np.log(m) - log_normal(line, 0, 0))).sum() * step for m in (q0, q1))
    return information, total_correlation, each


def test_parts_against_integrals_if_the_minibatch_has_all_images(rng):
    mean, log_var = rng.standard_normal((5, 2)), rng.uniform(-2, 0, (5, 2))
    mean[:, 1] += mean[:, 0]  # correlated
    exact = integrated(mean, log_var)
    model, x = with_posterior(mean, log_var, rng)
    draws = np.array([[part.data.mean() for part in model.parts(x, rng)[1:]] for _ in range(1500)])
    error = draws.std(0) / len(draws) ** 0.5
    assert (np.abs(draws.mean(0) - exact) < 4 * error).all() and (8 * error < exact).all()
    kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum(1)
    np.testing.assert_allclose(sum(exact), kl.mean(), rtol=1e-6)
    parts = model.parts(x, rng)
    np.testing.assert_allclose(sum(part.data for part in parts[1:]), kl)


def test_densities_are_exact_if_the_minibatch_has_all_images(rng):
    mean, log_var = rng.standard_normal((6, 3)), rng.uniform(-2, 0, (6, 3))
    model, x = with_posterior(mean, log_var, rng)
    parts = model.parts(x, np.random.default_rng(5))
    z = mean + np.exp(log_var / 2) * np.random.default_rng(5).standard_normal((6, 3))
    for i in range(6):
        each = np.exp(log_normal(z[i], mean, log_var))  # (N, D)
        log_q, log_q_each = np.log(each.prod(1).mean()), np.log(each.mean(0)).sum()
        np.testing.assert_allclose(parts.total_correlation.data[i], log_q - log_q_each)
        np.testing.assert_allclose(parts.dimensions.data[i], log_q_each - log_normal(z[i], 0, 0).sum())


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_density_is_unbiased_over_minibatches(m, rng):
    """Averaged over the minibatches of m of 5 images that have image 0, the estimate of q(z_0) is exact."""
    mean, log_var = rng.standard_normal((5, 2)), rng.uniform(-1, 0, (5, 2))
    model, _ = with_posterior(mean, log_var, rng)
    z, estimates = rng.standard_normal((1, 2)), []
    for others in combinations(range(1, 5), m - 1):
        chosen = [0, *others]
        q = Gaussian(Tensor(mean[chosen]), Tensor(log_var[chosen]))
        log_q, _ = model._aggregate(q, Tensor(np.repeat(z, m, 0)))
        estimates.append(np.exp(log_q.data[0]))
    densities = np.exp(log_normal(z, mean, log_var).sum(1))
    expected = densities.mean() if m > 1 else densities[0]  # one image knows of no other
    np.testing.assert_allclose(np.mean(estimates), expected)


def test_no_total_correlation_if_the_dimensions_are_independent(rng):
    """q(z) = q(z_1) q(z_2) where the means are a grid; not if the grid is sheared."""
    a, b = np.array([-1.5, -0.5, 0.7, 1.6]), np.array([-1.0, 0.3, 1.2])
    mean = np.array(list(product(a, b)))
    log_var = np.array(list(product(rng.uniform(-2, 0, 4), rng.uniform(-2, 0, 3))))
    model, x = with_posterior(mean, log_var, rng)
    np.testing.assert_allclose(model.parts(x, rng).total_correlation.data, 0, atol=1e-12)
    mean[:, 1] += 2 * mean[:, 0]
    assert np.mean([model.parts(x, rng).total_correlation.data.mean() for _ in range(50)]) > 0.3


def test_all_parts_vanish_if_every_posterior_is_the_prior(rng):
    for images in (7, 1000):  # the minibatch may be all of the images or few
        model, x = with_posterior(np.zeros((7, 3)), np.zeros((7, 3)), rng, images=images)
        for part in model.parts(x, rng)[1:]:
            np.testing.assert_allclose(part.data, 0, atol=1e-12)


def both(beta, rng):
    model = TCVAE(SHAPE, latent=3, beta=beta, images=100, channels=(3,), rng=rng)
    same = VAE(SHAPE, latent=3, channels=(3,), rng=rng)
    for p in model.parameters():
        p.data = (0.5 * rng.standard_normal(p.shape)).astype(np.float64)
    same.load_state_dict(model.state_dict())
    for p, q in zip(same.parameters(), model.parameters()):
        p.data = q.data
    return model, same, rng.integers(0, 2, (8, *SHAPE))


def test_beta_weighs_the_total_correlation_alone(rng):
    new = np.random.default_rng
    model, vae, x = both(1.0, rng)
    np.testing.assert_allclose(model.loss(x, new(1)).item(), vae.loss(x, new(1)).item())
    for ours, theirs in zip(
        grad(model.loss(x, new(1)), model.parameters()), grad(vae.loss(x, new(1)), vae.parameters())
    ):
        np.testing.assert_allclose(ours.data, theirs.data, rtol=1e-9, atol=1e-12)
    model.beta = 5.0
    parts = model.parts(x, new(1))
    np.testing.assert_allclose(parts.reconstruction.data, vae.bound(x, new(1)).reconstruction.data)
    more = model.loss(x, new(1)).item() - vae.loss(x, new(1)).item()
    np.testing.assert_allclose(more, 4 * parts.total_correlation.data.mean())
    assert abs(more) > 0.1
    np.testing.assert_array_equal(model.score(x, new(1)).data, vae.score(x, new(1)).data)
    for a, b in zip(model.bound(x, new(1)), vae.bound(x, new(1))):
        np.testing.assert_array_equal(a.data, b.data)


def test_images_of_the_minibatch_shape_the_loss(rng):
    """The estimate is of all images together: half of them give another, and so does another N."""
    model, _, x = both(6.0, rng)
    whole, half = (model.parts(x[:n], np.random.default_rng(1)).total_correlation.data[:4] for n in (8, 4))
    assert np.abs(whole - half).max() > 0.01
    model.images = 10**6
    assert np.abs(model.parts(x, np.random.default_rng(1)).total_correlation.data[:4] - whole).max() > 0.01


def test_the_loss_of_a_step_is_the_mean_of_its_shards(rng, monkeypatch):
    monkeypatch.setattr("tinygen.parallel.shard_size", lambda *_: 16)
    model, _, _ = both(6.0, rng)
    for p in model.parameters():
        p.data = p.data.astype(np.float32)
    x = rng.integers(0, 2, (48, *SHAPE)).astype(np.float32)
    before = model.state_dict()
    (row,) = fit(model, x, steps=1, optimizer=Adam(model.parameters(), 0.01), rng=np.random.default_rng(3), workers=1)
    seed = int(np.random.default_rng(3).integers(2**63))
    model.load_state_dict(before)
    (shuffled,) = _batch((x,), 48, seed, 0)
    losses = [
        model.loss(shuffled[i : i + 16], np.random.default_rng([seed, 1, 0, i // 16])).item() for i in (0, 16, 32)
    ]
    np.testing.assert_allclose(row["train"], np.mean(losses), rtol=1e-5)
    assert abs(model.loss(shuffled, np.random.default_rng(1)).item() - row["train"]) > 0.05


def test_workers_and_resuming_change_no_bit(rng, tmp_path, monkeypatch):
    monkeypatch.setattr("tinygen.parallel.shard_size", lambda *_: 16)
    x = rng.integers(0, 2, (80, *SHAPE)).astype(np.uint8)

    def trained(steps, **options):
        model = TCVAE(SHAPE, latent=2, images=80, channels=(3,), rng=np.random.default_rng(1))
        optimizer = Adam(model.parameters(), 0.01)
        rng = np.random.default_rng(2)
        fit(model, x, steps=steps, optimizer=optimizer, rng=rng, batch_size=40, progress=False, **options)
        return b"".join(p.data.tobytes() for p in model.parameters())

    ends = {trained(4, workers=n) for n in (1, 2, 4)}
    trained(2, workers=1, checkpoint=tmp_path / "run.npz")
    ends.add(trained(4, workers=2, checkpoint=tmp_path / "run.npz"))
    assert len(ends) == 1


def test_training_takes_the_correlation_out(rng):
    """A large beta leaves the dimensions less correlated than a VAE's."""
    x = (rng.random((200, 2)) < 0.5).repeat(6, 1).reshape(200, *SHAPE).astype(np.uint8)
    found = []
    for beta in (1.0, 30.0):
        model = TCVAE(SHAPE, latent=2, beta=beta, images=200, channels=(6,), rng=np.random.default_rng(1))
        optimizer = Adam(model.parameters(), 0.01)
        fit(model, x, steps=150, optimizer=optimizer, rng=np.random.default_rng(2), workers=1, progress=False)
        parts = [model.parts(x, np.random.default_rng(i)) for i in range(10)]
        found.append(np.mean([part.total_correlation.data.mean() for part in parts]))
    assert found[1] < 0.5 * found[0]


@pytest.mark.parametrize("images", [1, 0, 2.5, "all", None])
def test_number_of_images_is_checked(images, rng):
    with pytest.raises(ValueError, match="images: got"):
        TCVAE(SHAPE, images=images, rng=rng)


# -- the benchmark


@pytest.fixture
def small(sprites, monkeypatch, tmp_path):
    """The benchmark with few sprites and a tiny network."""
    chosen = np.random.default_rng(4).permutation(len(sprites.images))[:600]
    few = Sprites(sprites.images[chosen], sprites.factors[chosen])
    for module in (benchmark, likelihood):
        monkeypatch.setattr(module, "sprites", lambda: few)
    monkeypatch.setattr(likelihood, "LEARNED", 400)
    monkeypatch.setattr(sys.modules["report"], "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(benchmark, "CHECKPOINTS", tmp_path)
    monkeypatch.setattr(benchmark, "RECIPE", replace(benchmark.RECIPE, steps=(2,)))
    monkeypatch.setattr(benchmark, "SHARED", {**benchmark.SHARED, "latent": 3, "channels": (2, 2)})
    return tmp_path


def test_benchmark_writes_means_and_spreads_over_seeds(small, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["factors.py", "--seeds", "2"])
    benchmark.main()
    assert not (small / "RESULTS.md").exists()  # the table needs all seeds
    capsys.readouterr()
    monkeypatch.setattr(benchmark, "SEEDS", 2)
    benchmark.main()
    written = (small / "RESULTS.md").read_text()
    rows = re.findall(r"^\| ([a-z-]+) \| ([\d.]+) \| 2 \| ([\d.]+) ± ([\d.]+) \|.*\| 0.0 \|$", written, re.MULTILINE)
    assert [row[:2] for row in rows] == [("vae", "1"), ("beta-vae", "4"), ("beta-tcvae", "6")]
    printed = re.findall(r"^([a-z-]+), seed (\d): MIG ([\d.]+)", capsys.readouterr().out, re.MULTILINE)
    for name, _, mean, spread in rows:
        migs = [float(mig) for found, _, mig in printed if found == name]
        assert len(migs) == 2 and migs[0] != migs[1]
        np.testing.assert_allclose([float(mean), float(spread)], [np.mean(migs), np.std(migs, ddof=1)], atol=0.0015)
    assert written.startswith("# Results") and "## Disentangling" in written and f"{400:,}" not in written


def test_contenders_differ_in_their_loss_alone(small, rng):
    built = {name: benchmark.build(name, 3) for name in benchmark.CONTENDERS}
    states = [model.state_dict() for model in built.values()]
    for state in states[1:]:
        assert all((state[name] == value).all() for name, value in states[0].items())
    x = likelihood.sets("sprites")[0][:16]
    losses = {name: model.loss(x, np.random.default_rng(0)).item() for name, model in built.items()}
    assert len(set(losses.values())) == 3
    found = benchmark.figures(built["vae"], x)
    assert found.shape == (8,) and found[0] == found[1:6].mean()
    terms = built["vae"].bound(x, np.random.default_rng(1))
    np.testing.assert_allclose(found[6:], [-terms.reconstruction.data.mean(), terms.kl.data.mean()], rtol=0.1)


def test_codes_are_draws_of_the_posterior(small, rng):
    model, x = benchmark.build("vae", 0), likelihood.sets("sprites")[0][:300]
    for p in model.parameters():
        p.data = 0.3 * rng.standard_normal(p.shape, np.float32)
    q, drawn = model.encode(x), likelihood.codes(model, x, rng)
    eps = (drawn - q.mean.data) / np.exp(q.log_var.data / 2)
    assert drawn.shape == (300, 3) and abs(eps.mean()) < 0.15 and abs(eps.std() - 1) < 0.1
