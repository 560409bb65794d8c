"""The demos, as their documentation calls them, with a tiny budget."""

import argparse
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image  # matplotlib needs it

from tinygen import ops
from tinygen.models import GSN, RBM, VAE, GatedPixelCNN, PixelCNN, RealNVP
from tinygen.weights import FOLDER, load

ROOT = Path(__file__).parent.parent
HAS_CUPY = importlib.util.find_spec("cupy") is not None


SMALL = {  # the tiny budget of each demo, and a figure with its unit that it prints
    "01_density": ("--steps 20 --draws 300", r"KL\(true \|\| learned\) = \d+\.\d+ .* nats"),
    "02_kmeans_pca": ("--clusters 10 --iterations 3", r"squared error \d+\.\d per image, purity [4-8]\d %"),
    "03_belief_networks": ("--images 2", r"nats per image(.*\n)+nade +\d+\.\d"),
    "04_pixelrnn": ("--frames 3 --images 4", r"\d+\.\d nats per image, on some of its own training digits"),
    "05_pixelcnn": ("--images 8 --steps 1", r"\d+\.\d nats per image"),
    "06_sampling": ("--side 8", r"Row LSTM +64( +\d+\.\d+){2} +\d+ "),
    "07_gated": ("--layers 2", r"right class of ([6-9]\d|100) % of 50 digits"),
    "08_flow": (
        "--steps 2 --frames 1 --train 1",
        r"score \d+\.\d+ nats(.*\n)+halfway, averages: \d+\.\d+.* bits per dim",
    ),
    "09_ffjord": ("--steps 2 --hidden 4 --points 100", r"checkerboard +2\.079 +\d\.\d+ +\d\.\d+ \+- \d\.\d+"),
    "10_autoencoder": ("--steps 2", r"squared error per image +\d+\.\d+"),
    "11_few_labels": ("--pretraining 2 --steps 2 --seeds 1", r"accuracy in percent(.*\n){2}frozen +\d+\.\d"),
    "12_intractable": ("--draws 100 --digits 2", r"estimate is still \d+ nats lower"),
    "13_reparameterization": ("--draws 20", r"needs \d+ times as many draws"),
    "14_vae": ("--steps 20", r"at the end: ELBO -[1-4]\d\d\.\d = .* nats per image"),
    "15_manifold": ("--size 4", r"same class for \d+ % of 500 digits"),
    "16_beta": ("--steps 2 --latent 2", r"nats per image, .*\n +0.1 +\d+\.\d"),
    "17_vae_questions": ("--steps 2", r"nats per image(.*\n)+ +32-d z, with warm-up +-\d+\.\d, \d+ active dimensions"),
    "21_inside": ("--order 2", r"by hand (-?\d+\.\d+), by the engine \1"),
    "18_boltzmann": ("--steps 10 --runs 2 --rounds 3 --train 1", r"an estimate of \d+\.\d+ nats per test image"),
    "taxonomy": ("", r"PixelCNN +80\.9 nats(.*\n)+Real NVP +≤ 1\.14 bits/dim"),
    "19_gan": ("--steps 3 --alone 2", r"2 steps alone +mean distance between two images +\d+\.\d"),
    "20_gsn": ("--steps 2 --hidden 9 --chain 3", r"nats per image.*\n.*(\n.*walkback.* +\d+\.\d +\d+\.\d){2}"),
}


def run(*arguments, timeout=300):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def is_a_picture(path):
    with Image.open(path) as file:
        file.seek(getattr(file, "n_frames", 1) - 1)  # the last of an animation
        picture = np.asarray(file.convert("L")) / 255
    return min(picture.shape) > 300 and picture.std() > 0.1


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "taxonomy" else name for name in SMALL]
)
def test_demo(name, tmp_path):
    """With a tiny budget it prints figures with their units and leaves its picture."""
    budget, figure = SMALL[name]
    done = run(f"demos/{name}.py", "--out", str(tmp_path), "--seed", "1", *budget.split())
    assert done.returncode == 0, done.stderr
    assert re.search(figure, done.stdout), done.stdout
    pictures = [path for path in tmp_path.iterdir() if path.suffix in (".png", ".gif")]
    assert pictures
    for picture in pictures:
        assert f"picture: {tmp_path / name}{picture.suffix}" in done.stdout
        assert is_a_picture(picture)
    assert "--seed" in run(f"demos/{name}.py", "--help").stdout


@pytest.mark.parametrize("name", ["07_gated", "13_reparameterization"])  # with labels and without
def test_train_replaces_the_model_that_ships(name, tmp_path):
    def figures(*more):
        done = run(f"demos/{name}.py", "--out", str(tmp_path), *SMALL[name][0].split(), *more)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if "nats" in line or "%" in line or "times" in line]

    shipped = figures()
    assert shipped == figures("--train", "0") != figures("--train", "1")


def test_every_demo_is_tested():
    assert [*(path.stem for path in sorted((ROOT / "demos").glob("[0-9]*.py"))), "taxonomy"] == sorted(SMALL)


def test_quickstart_prints_its_table_and_saves_its_figure(tmp_path):
    done = run("demos/quickstart.py", "--minutes", "0.02", "--out", str(tmp_path / "new" / "folder"))
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.splitlines()]
    for model in ("Autoencoder", "VAE", "PixelCNN", "PixelRNN"):
        row = next(words for words in table if words and words[0] == model)
        assert float(row[4]) > 0, row  # the test figure
    assert is_a_picture(tmp_path / "new" / "folder" / "quickstart.png")


@pytest.mark.slow  # three minutes
def test_quickstart_reaches_the_figures_of_the_gallery(tmp_path):
    done = run("demos/quickstart.py", "--out", str(tmp_path), timeout=1200)
    assert done.returncode == 0, done.stderr
    figures = {words[0]: words[4] for words in map(str.split, done.stdout.splitlines()) if len(words) > 5}
    row = r"^\| (\w+) \| [\d,]+ \| \d+ \| \S+ \| ([\d.]+) "
    readme = re.findall(row, (ROOT / "demos" / "README.md").read_text(), re.MULTILINE)
    assert len(readme) == 4
    for model, figure in readme:
        assert float(figures[model]) == pytest.approx(float(figure), rel=0.02), model


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--minutes", "-1"], "--minutes: got -1.0"),
        pytest.param(["--device", "cuda"], "tinygen[cuda13]", marks=pytest.mark.skipif(HAS_CUPY, reason="has CuPy")),
    ],
)
def test_quickstart_refuses_in_one_sentence(arguments, message):
    done = run("demos/quickstart.py", *arguments)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


# -- what they compute, on cases that can be worked out


@pytest.fixture
def demo(monkeypatch):
    """A demo's module by name, which begins with a digit, so that no import statement names it."""
    monkeypatch.syspath_prepend(ROOT / "demos")
    return importlib.import_module


def test_options(demo, monkeypatch, tmp_path, capsys):
    def given(*arguments):
        monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(tmp_path), *arguments])
        return common.options("A demo.", {"steps": (3, "of it"), "size": (1, "of it", 0, 5), **common.TRAIN})

    common = demo("common")
    assert given().train == 0 and given("--train").train == 500 and given("--train", "30").train == 30
    assert given("--size", "0").size == 0 and given("--size", "5").size == 5
    for arguments, message in (
        (["--size", "6"], "--size: got 6"),
        (["--steps", "0"], "--steps: got 0"),
        (["--seed", "-1"], "--seed: got -1"),
        (["--out", __file__], f"--out: {__file__} is no folder for the picture"),
    ):
        with pytest.raises(SystemExit):
            given(*arguments)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gated-pixelcnn-classes", "vae"])  # with labels and without
def test_trained_anew(name, demo):
    shipped, anew = (
        demo("common").trained(name, argparse.Namespace(train=steps, seed=3, device="cpu")) for steps in (0, 1)
    )
    assert [p.shape for p in shipped.parameters()] == [p.shape for p in anew.parameters()]
    kept, about = load(FOLDER / f"{name}.npz")
    assert all((p.data == q.data).all() for p, q in zip(shipped.parameters(), kept.parameters()))
    untrained = type(kept)(**about["settings"], rng=np.random.default_rng(3))
    assert any((p.data != q.data).any() for p, q in zip(anew.parameters(), untrained.parameters()))


def test_missing_weights_are_named(demo):
    with pytest.raises(SystemExit, match="is missing"):
        demo("common").trained("unheard", argparse.Namespace(train=0))


def test_surprises_sum_to_the_likelihood(demo, rng):
    model = PixelCNN(channels=2, blocks=1, rng=rng)
    model.last.weight.data = rng.standard_normal(model.last.weight.shape, np.float32)
    x = rng.integers(0, 2, (3, 1, 28, 28))
    nats = demo("05_pixelcnn").surprise(model, x)
    assert nats.shape == x.shape
    np.testing.assert_allclose(nats.sum((1, 2, 3)), -model.log_prob(x).numpy(), rtol=1e-5)


def test_completions_keep_the_upper_half(demo, rng):
    module, digits = demo("06_sampling"), rng.integers(0, 2, (2, 1, 28, 28))
    model = PixelCNN(channels=2, blocks=1, rng=rng)
    rows = module.complete(model, digits, 3, rng).reshape(2, 5, 28, 28)
    assert (rows[:, :, :14] == digits[:, :, :14]).all() and (rows[:, 4] == digits[:, 0]).all()
    grown = module.growing(model, 3, rng).reshape(-1, 3, 28, 28)
    for rows, images in zip(module.ROWS, grown):
        assert (images[:, :rows] == grown[-1, :, :rows]).all() and (images[:, rows:] == module.UNKNOWN).all()


def test_contexts_differ_by_the_blind_spot(demo, rng):
    """Two layers after the first reach 5 rows up, and the plain ones no further to the right than up."""
    context = demo("07_gated").context
    plain = context(PixelCNN(channels=4, blocks=2, rng=rng))
    gated = context(GatedPixelCNN(channels=4, layers=2, rng=rng))
    assert (gated | ~plain).all() and not gated[15:].any() and not gated[14, 14:].any()
    missed = np.argwhere(gated & ~plain)
    assert len(missed) and (missed[:, 0] < 14).all() and (missed[:, 1] > 14).all()


def test_the_flow_leads_from_noise_to_data_as_the_titles_say(demo, rng):
    module, flow = demo("08_flow"), RealNVP((1, 1, 2), levels=None, couplings=2, hidden=4, rng=rng)
    for p in flow.parameters():
        p.data = 0.3 * rng.standard_normal(p.shape, np.float32)
    z = rng.standard_normal((5, 2), np.float32)
    passed = module.stations(flow, z)
    np.testing.assert_allclose(passed[-1], flow.decode(z).numpy().reshape(5, 2), rtol=1e-5)
    moved = (passed[1:-1] != passed[:-2]).any(1)
    assert (moved.sum(1) == 1).all()  # by each coupling
    assert [f"x{axis + 1}" in title for axis, title in zip(moved.argmax(1), module.names(flow)[1:-1])] == [True] * 4


def test_digits_turn_into_each_other(demo, rng):
    module, model = demo("08_flow"), RealNVP((1, 4, 4), couplings=1, hidden=4, rng=rng)
    a, b = rng.integers(0, 256, (2, 1, 4, 4))
    for row in (module.between(model, a, b), module.averages(a, b)):
        np.testing.assert_allclose(row[[0, -1]], np.stack([a, b]) + 0.5, atol=0.01)


@pytest.mark.parametrize("encoder", [True, False])
def test_both_estimates_of_the_likelihood_are_right_in_the_mean(encoder, demo, rng):
    module, x = demo("12_intractable"), rng.integers(0, 2, (1, 1, 4, 4)).astype(np.float32)
    vae = VAE((1, 4, 4), latent=1, channels=(3,), rng=rng)
    z = np.linspace(-8, 8, 4001, dtype=np.float32)[:, None]
    p = vae.likelihood(z).log_prob(np.repeat(x, len(z), axis=0)).numpy().sum((1, 2, 3))
    exact = np.log((np.exp(p - z[:, 0] ** 2 / 2) / np.sqrt(2 * np.pi)).sum() * (z[1, 0] - z[0, 0]))
    log_w = module.log_weights(vae, x, 20_000, rng, encoder)
    np.testing.assert_allclose(module.estimates(log_w, 20_000), [exact], atol=0.05)
    groups = module.estimates(log_w[:7], 2)
    np.testing.assert_allclose(groups, np.log(np.exp(log_w[:6]).reshape(3, 2).mean(1)), rtol=1e-5)


def test_gradient_estimators_are_right_in_the_mean(demo, rng):
    """f(z) = -|z - 1|^2 / 2: its mean has the gradient 1 - m and, in the log-variance, -s^2 / 2."""
    mean, log_var = np.array([0.5, -1.0]), np.array([0.0, 0.6])
    module = demo("13_reparameterization")

    def estimates(draws):
        return module.gradients(lambda z: -0.5 * ((z - 1) ** 2).sum(1), mean, log_var, draws, rng)

    found = estimates(50_000)
    for name, g in found.items():
        error = (g.mean(0) - np.concatenate([1 - mean, -0.5 * np.exp(log_var)])) / (g.std(0) / 50_000**0.5)
        assert np.abs(error).max() < 4.5, name
    score, baseline, reparameterized = (g.var(0).sum() for g in found.values())
    assert reparameterized < 0.5 * baseline and baseline < 0.8 * score
    # of two draws each is the other's baseline: 1 - f2 / f1 and 1 - f1 / f2 times the gradients without
    score, baseline, _ = estimates(2).values()
    np.testing.assert_allclose((1 - baseline[0] / score[0]) * (1 - baseline[1] / score[1]), 1)


def test_exact_samples_and_chains_of_a_boltzmann_machine(demo, rng):
    module, model = demo("18_boltzmann"), RBM((1, 1, 3), 4, rng=rng)
    for p in model.parameters():
        p.data = rng.standard_normal(p.shape)
    states = (np.arange(8)[:, None] >> np.arange(3) & 1).reshape(8, 1, 1, 3)
    drawn = module.exact_samples(model, 20_000, rng).reshape(-1, 3).astype(int) @ (1, 2, 4)
    p = np.exp(model.log_prob(states).data)
    assert (np.abs(np.bincount(drawn, minlength=8) / 20_000 - p) < 5 * np.sqrt(p / 20_000)).all()
    seen = module.chains(model, states.astype(float), [0, 2], np.random.default_rng(5))
    v, again = states.reshape(8, 3).astype(float), np.random.default_rng(5)
    for _ in range(2):
        v = model.gibbs(v, again)
    np.testing.assert_array_equal(seen, np.stack([states, v.reshape(states.shape)]))


def test_nearest_class_share(demo):
    z = np.array([[0.0], [1.0], [10.0], [12.0], [13.0]])
    assert demo("15_manifold").nearest_class_share(z, np.array([0, 0, 1, 1, 2])) == 60  # 12 is nearest to 13


def test_the_plane_of_faces(demo, monkeypatch, rng):
    module, faces = demo("15_manifold"), rng.integers(0, 256, (1965, 1, 28, 20)).astype(np.uint8)
    monkeypatch.setattr(module.data, "frey_faces", lambda: faces)
    model = module.of_faces(argparse.Namespace(faces=2, seed=0, device="cpu"))
    assert module.draw_faces(1 - module.manifold(model, 3), 3).axes


def test_the_spread_of_images(demo):
    images = np.array([0.0, 3.0, 4.0]).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(demo("19_gan").spread(images), (3 + 4 + 1) / 3)


def test_errors_at_two_steps_of_the_chain(demo, rng):
    """Those at the last step are the sum over all steps less that over all but the last."""
    module, x = demo("20_gsn"), rng.random((3, 1, 4, 4))
    model = GSN((1, 4, 4), (5,), rng=rng)
    for p in model.parameters():
        p.data = rng.standard_normal(p.shape)
    first, last = module.errors(model, x, 7, 3)
    noise, state, found = np.random.default_rng(7), x, []
    for _ in range(3):
        p = model.posterior(model.corrupt(state, noise))
        found.append(ops.bce_with_logits(p.logits, x).data.sum((1, 2, 3)).mean())
        state = p.sample(noise)
    np.testing.assert_allclose([first, last], [found[0], found[2]])


def test_derivatives(demo):
    x = np.linspace(-1, 1, 5)
    for n, y in enumerate(demo("21_inside").derivatives(lambda x: ops.exp(2 * x), x, 4)):
        np.testing.assert_allclose(y, 2**n * np.exp(2 * x))
