"""benchmarks/likelihood.py with a small budget: every row is trained, trained further, evaluated and written."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tinygen import data, models, weights
from tinygen.factors import Sprites

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import likelihood

SMALL = {  # instead of the rows' own
    "Autoencoder": {"code": 3, "channels": (2, 2)},
    "VAE": {"latent": 2, "channels": (2, 2)},
    "Diffusion": {"steps": 3, "channels": (2, 2)},
    "MixturePriorVAE": {"latent": 2, "channels": (2, 2), "components": 2},
    "CategoricalVAE": {"variables": 2, "values": 2, "channels": (2, 2)},
    "TCVAE": {"latent": 2, "channels": (2, 2)},
    "PixelCNN": {"channels": 3, "blocks": 1},
    "PixelCNNpp": {"channels": (2, 2), "blocks": 1, "components": 2},
    "PixelRNN": {"channels": 2, "layers": 1},
    "GatedPixelCNN": {"channels": 2, "layers": 1},
    "PixelTransformer": {"channels": 2, "blocks": 1},
    "FVSBN": {},
    "NADE": {"hidden": 2},
    "MADE": {"hidden": (3,)},
    "BernoulliMixture": {"components": 3},
    "RBM": {"hidden": 13},
    "NICE": {"couplings": 2, "hidden": 2, "layers": 1},
    "RealNVP": {"scales": 1, "couplings": 1, "hidden": 2},
    "Glow": {"scales": 1, "steps": 1, "hidden": 2},
    "GAN": {"latent": 2, "channels": (2, 2)},
    "GSN": {"hidden": (3,)},
}

SHIPPED = [path.stem for path in weights.FOLDER.glob("*.npz")]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Small models, the digits that ship in place of MNIST, and folders of their own."""
    monkeypatch.setattr(data, "mnist", data.digits)
    drawn = data.binarize_static(data.digits().test_images, seed=5)
    monkeypatch.setattr(data, "binarized_mnist", lambda: data.BinarizedMNIST(drawn[:300], drawn[300:], drawn))
    monkeypatch.setattr(likelihood, "LEARNED", 4400)
    made = np.random.default_rng(6).integers(0, 2, (5400, 1, 32, 32), np.uint8)
    monkeypatch.setattr(likelihood, "sprites", lambda: Sprites(made, made[:, 0, 0, :5]))
    emoji = data.emoji()
    monkeypatch.setattr(data, "emoji", lambda: emoji._replace(images=emoji.images[:, :, 8:16, 12:20]))
    for name, row in list(models.RECIPES.items()):
        settings = {**row.settings, **SMALL[row.model.__name__]}
        if row.protocol == "emoji":
            settings["image_shape"] = (3, 8, 8)
        if row.start:
            base = {key: value for key, value in settings.items() if key != "classes"}
            base_model = row.model(**base, rng=np.random.default_rng(7))
            for p in base_model.parameters():  # as built, every model says the same of an image
                p.data = p.data + np.float32(0.1)
            weights.save(tmp_path / f"{row.start}.npz", base_model, {"settings": base})
        monkeypatch.setitem(models.RECIPES, name, dataclasses.replace(row, settings=settings, steps=(2,)))
    for name, value in {
        "FOLDER": tmp_path,
        "PICTURES": tmp_path,
        "CHECKPOINTS": tmp_path / "out",
        "SAMPLES": 3,
        "SOME": 80,
        "ANNEALING": (5, 10),
        "DRAWN": 50,
        "TUNED": 10,
    }.items():
        monkeypatch.setattr(likelihood, name, value)
    monkeypatch.setattr(sys.modules["report"], "RESULTS", tmp_path / "RESULTS.md")
    return tmp_path


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["likelihood.py", *arguments])
    likelihood.main()
    return capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("name", models.RECIPES)
def test_a_row(name, small, monkeypatch, capsys):
    trained = json.loads(call(monkeypatch, capsys, name, "--json"))
    assert set(trained) >= {"name", "stderr", "images", "protocol", "parameters"}
    tested = 191 if trained["protocol"] == "emoji" else 500
    assert trained["name"] == name and trained["images"] == tested
    assert trained.get("images_with_all_samples") == (80 if "vae" in name else None)
    assert json.loads(call(monkeypatch, capsys, name, "--evaluate", "--json")) == trained
    model, about = weights.load(small / f"{name}.npz")
    assert about["result"] == trained and model.num_parameters() == trained["parameters"]
    if "bits_per_dim" in trained:
        figure = f"{trained['bits_per_dim']:.3f} bits/dim ± {trained['stderr']:.3f}"
    elif "parzen" in trained:
        figure = f"Parzen {trained['parzen']:.2f} ± {trained['stderr']:.2f}"
    else:
        figure = f"{trained['squared_error' if name == 'autoencoder' else 'nats']:.2f} ± {trained['stderr']:.2f}"
    cells = [figure, models.RECIPES[name].published, f"{trained['images']:,}"]
    if name == "autoencoder":
        cells[1] = f"PCA: {trained['pca_squared_error']:.2f}"
    cells += [trained["protocol"], f"{trained['parameters']:,}", f"{about['epochs']:.1f}", "0"]
    lines = (small / "RESULTS.md").read_text().splitlines()
    tables = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith(f"| {name} |")]
    assert any(set(cells) <= set(written) for written in tables), cells
    row = models.RECIPES[name]
    options = ", ".join(f"{key}={list(v) if isinstance(v, tuple) else v}" for key, v in row.options.items())
    recipe = ["EM"]
    if row.optimizer:
        optimizer = row.optimizer.__name__ + (f" ({options})" if options else "")
        recipe = [optimizer, str(row.batch_size), f"{row.lr:g}", f"{row.weight_decay:g}", f"{row.averaging}"]
    (written,) = [written for written in tables if f"`{row.model.__name__}(" in " ".join(written)]
    assert set(recipe) <= set(written)
    assert (small / f"{name}.png").exists() and (small / "learning_curves.png").exists()
    assert call(monkeypatch, capsys, name, "--evaluate", "--images", "5").startswith(f"name {name}")
    monkeypatch.setattr(sys, "argv", ["likelihood.py", name])
    likelihood.main()
    if row.optimizer is None:  # it is done in one go
        return
    assert "going on from" in (err := capsys.readouterr().err) and "step 2 of 2" in err


def test_a_run_goes_on_from_its_own_recipe_alone(small, monkeypatch):
    name = "gated-pixelcnn-classes"
    row, path = models.RECIPES[name], likelihood.checkpoint(name)
    assert path.parent == small / "out" and path.name.startswith(f"{name}-")
    changes = [{"protocol": "dynamic"}, {"lr": 0.1}, {"steps": (1, 1)}, {"settings": {**row.settings, "channels": 4}}]
    for change in changes:
        monkeypatch.setitem(models.RECIPES, name, dataclasses.replace(row, **change))
        assert likelihood.checkpoint(name) != path, change
    monkeypatch.setitem(models.RECIPES, name, dataclasses.replace(row, published="1.00"))
    assert likelihood.checkpoint(name) == path  # said beside the row only
    with monkeypatch.context() as other:
        other.setattr(likelihood, "SEED", 1)
        assert likelihood.checkpoint(name) != path
    model, about = weights.load(small / "gated-pixelcnn.npz")
    model.last.bias.data += 1
    weights.save(small / "gated-pixelcnn.npz", model, about)
    assert likelihood.checkpoint(name) != path


@pytest.mark.parametrize("name", SHIPPED)
def test_the_weights_that_ship_are_of_the_row(name):
    row, (_, about) = models.RECIPES[name], weights.load(weights.FOLDER / f"{name}.npz")
    for key in ("settings", "protocol", "steps", "batch_size", "lr", "weight_decay", "averaging"):
        right = json.loads(json.dumps(getattr(row, key)))
        assert about[key] == right, f"{name}: {key} is {right}, the weights have {about[key]}"
    assert about.get("options", {}) == json.loads(json.dumps(row.options))
    learned = 1529 if row.protocol == "emoji" else likelihood.LEARNED
    epochs = sum(row.steps) * (row.batch_size / learned if row.optimizer else 1)
    assert about["epochs"] == round(epochs, 1) and about["seed"] == likelihood.SEED
    assert (likelihood.LEARNED, likelihood.VALIDATION) == (50_000, 2000)  # as the texts say


def test_the_tables_are_of_the_weights_that_ship(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["report"], "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(likelihood, "PICTURES", tmp_path)
    likelihood.write_tables()
    written, root = (tmp_path / "RESULTS.md").read_text(), Path(__file__).parent.parent
    assert written.removeprefix("# Results").strip() in (root / "benchmarks" / "RESULTS.md").read_text()
    readme = (root / "README.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)`.*? \| ([\d.]+) .*\| (?:(\d+) \+ )?(\d+) \|$", readme, re.MULTILINE)
    abouts = {name: weights.load(weights.FOLDER / f"{name}.npz")[1] for name in SHIPPED}
    minutes = {name: f"{about['minutes'][-1]:.0f}" for name, about in abouts.items()}
    assert {name for name, *_ in rows} == set(abouts)
    for name, figure, before, own in rows:
        result = abouts[name]["result"]
        found = next(result[key] for key in ("nats", "bits_per_dim", "squared_error", "parzen") if key in result)
        assert figure in (f"{found:.3f}", f"{found:.2f}", f"{found:.1f}"), name
        assert (before, own) == (minutes.get(models.RECIPES[name].start, ""), minutes[name]), name


@pytest.mark.parametrize("name", ["gated-pixelcnn", "gated-pixelcnn-classes"])
def test_figures_are_means_over_images_with_their_standard_error(name, small, rng):
    row = models.RECIPES[name]
    model = row.model(**row.settings, rng=rng)
    for p in model.parameters():
        p.data = rng.standard_normal(p.shape, np.float32)
    weights.save(small / "a.npz", model, {"settings": row.settings, "protocol": row.protocol})
    result = likelihood.evaluate(name, small / "a.npz", 50)
    digits = data.digits()
    tested = data.binarize_static(digits.test_images, seed=1) if model.classes else data.binarized_mnist().test
    tested = tested[::10]
    given = digits.test_labels[::10] if model.classes else None
    nats = -weights.load(small / "a.npz")[0].log_prob(tested, given).data.astype(float)
    np.testing.assert_allclose(result["nats"], nats.mean(), atol=1e-3)
    np.testing.assert_allclose(result["stderr"], nats.std(ddof=1) / 50**0.5, atol=1e-3)


def test_pca_learns_from_the_training_images_alone(small, rng):
    settings, digits = models.RECIPES["autoencoder"].settings, data.digits()
    weights.save(
        small / "a.npz", likelihood.models.Autoencoder(**settings, rng=rng), {"settings": settings, "protocol": "grey"}
    )
    found = likelihood.evaluate("autoencoder", small / "a.npz", 50)["pca_squared_error"]
    tested = digits.test_images[::10] / 255
    linear = likelihood.models.PCA(digits.train_images[:4400] / 255, 3).reconstruct(tested)
    np.testing.assert_allclose(found, ((linear - tested) ** 2).sum() / 50, rtol=1e-3)


def test_a_row_is_trained_as_it_says(small, monkeypatch):
    """Check the arguments of fit, and what is written about the run."""
    name, digits, seen = "gated-pixelcnn-classes", data.digits(), {}
    monkeypatch.setattr(likelihood, "LEARNED", 2200)

    def fit(model, images, **given):
        seen.update(given, images=images)
        return [{"seconds": 90, "train": 3.0, "validation": 2.0}]

    monkeypatch.setattr(likelihood, "fit", fit)
    row = models.RECIPES[name]
    row = dataclasses.replace(row, weight_decay=0.07, steps=(40,))
    monkeypatch.setitem(models.RECIPES, name, row)
    _, about = weights.load(likelihood.train(name))
    binary = data.binarize_static(digits.train_images, seed=0)
    assert seen["prepare"] is None and seen["checkpoint"] == likelihood.checkpoint(name)
    for key, right in {
        "images": binary[:2200],
        "labels": digits.train_labels[:2200],
        "validation": binary[2200 : 2200 + likelihood.VALIDATION],
        "validation_labels": digits.train_labels[2200 : 2200 + likelihood.VALIDATION],
    }.items():
        np.testing.assert_array_equal(seen[key], right, err_msg=key)
    assert seen["schedule"](0.7) == likelihood.schedule((40,))(0.7) and seen["averaging"] == row.averaging
    assert seen["optimizer"].lr == row.lr and seen["steps"] == 40 and seen["batch_size"] == row.batch_size
    assert seen["validate_every"] == 2
    assert seen["optimizer"].weight_decay == about["weight_decay"] == row.weight_decay == 0.07
    assert about["train"] == [3.0] and about["validation"] == [2.0]
    assert about["seed"] == likelihood.SEED == seen["rng"].bit_generator.seed_seq.entropy
    assert about["minutes"] == [1.5] and about["epochs"] == round(40 * row.batch_size / 2200, 1)


@pytest.mark.parametrize("name", ["vae", "autoencoder"])
def test_the_figures_of_models_with_a_code(name, small, rng):
    """Nats are positive like the loss; squared errors equal the loss."""
    row, images = models.RECIPES[name], likelihood.sets(models.RECIPES[name].protocol)[2][:40]
    model = row.model(**row.settings, rng=rng)
    figures = likelihood.test(model, images, None, 0 if name == "autoencoder" else 3)
    assert figures.shape == (40,)
    if name == "autoencoder":
        np.testing.assert_allclose(figures.mean(), model.loss(images).item(), rtol=1e-5)
    else:
        assert 0 < figures.mean() < model.loss(images, rng).item()  # the weighted samples' bound is the tighter one


def test_an_rbm_has_its_log_z_counted_once_and_its_error(small, monkeypatch, rng):
    settings, row = {"hidden": 8, "chains": 0}, models.RECIPES["rbm"]
    model = likelihood.models.RBM(**settings, rng=rng)
    for p in model.parameters():
        p.data = 0.1 * rng.standard_normal(p.shape, np.float32)
    weights.save(small / "a.npz", model, {"settings": settings, "protocol": row.protocol})
    monkeypatch.setattr(likelihood, "ANNEALING", (200, 100))
    result, model = likelihood.evaluate("rbm", small / "a.npz"), weights.load(small / "a.npz")[0]
    nats, exact = -model.log_prob(data.binarized_mnist().test).data.astype(float), model.exact_log_z().item()
    error = result["log_z_stderr"]
    assert 0 < error < 0.2 and abs(result["nats"] - nats.mean()) < 4 * error + 1e-3
    np.testing.assert_allclose(result["stderr"], np.hypot(error, nats.std(ddof=1) / 500**0.5), atol=2e-3)
    assert abs(result["log_z"] - exact) < 4 * error and abs(result["log_z_from_samples"] - exact) < 0.5


def test_parzen_windows_by_hand(monkeypatch):
    """With the sigma that is best on the validation images, and the samples' means where a model has them."""

    class Sampler:
        def sample_means(self, n, rng):
            return np.arange(n).reshape(n, 1, 1, 1) / 10

        def sample(self, n, rng):
            raise AssertionError("draws in place of means")

    monkeypatch.setattr(likelihood, "DRAWN", 2)  # 0 and 0.1
    validation, tested = np.full((1000, 1, 1, 1), 0.1 + 0.3), np.array([0.0, 0.1, 0.3]).reshape(3, 1, 1, 1)
    found = likelihood.parzen_windows(Sampler(), validation, tested)
    density = {
        s: np.exp(-(np.subtract.outer([0.4, 0.0, 0.1, 0.3], [0, 0.1]) ** 2) / (2 * s * s)).mean(1)
        / (2 * np.pi) ** 0.5
        / s
        for s in np.geomspace(0.1, 1, 10)
    }
    best = max(density, key=lambda s: density[s][0])
    log_p = np.log(density[best][1:])
    assert 0.1 < best < 1 and found["sigma"] == round(best, 3)
    assert found["parzen"] == pytest.approx(log_p.mean(), abs=1e-3)
    assert found["stderr"] == pytest.approx(log_p.std(ddof=1) / 3**0.5, abs=1e-3)


def test_few_images_with_many_samples_tell_the_bound_of_all(small, monkeypatch, rng):
    """The gain from more samples, on images spread evenly, is added to the rough bound of all images."""
    settings = {**models.RECIPES["vae"].settings, "blocks": 0}
    model = likelihood.models.VAE(**settings, rng=rng)
    for p in model.parameters():  # so that images differ
        p.data = 0.5 * rng.standard_normal(p.shape, np.float32)
    weights.save(small / "a.npz", model, {"settings": settings, "protocol": "dynamic"})
    monkeypatch.setattr(likelihood, "ROUGH", 1)
    monkeypatch.setattr(likelihood, "SAMPLES", 200)
    result = likelihood.evaluate("vae", small / "a.npz", 100)
    assert result["images"] == 500 and result["images_with_all_samples"] == 100
    tested = data.binarize_static(data.digits().test_images, seed=1)
    model = weights.load(small / "a.npz")[0]
    rough, fine = likelihood.test(model, tested, None, 1), likelihood.test(model, tested[::5], None, 200)
    gain = fine - rough[::5]
    assert gain.mean() < -1 and rough[::5].mean() != pytest.approx(rough[:100].mean(), rel=0.01)  # or it says nothing
    np.testing.assert_allclose(result["nats"], rough.mean() + gain.mean(), atol=1e-3)
    error = (rough.var(ddof=1) / 500 + gain.var(ddof=1) / 100) ** 0.5
    np.testing.assert_allclose(result["stderr"], error, atol=1e-3)


def test_a_row_begins_with_the_weights_of_its_start(small, monkeypatch):
    seen = []
    monkeypatch.setattr(likelihood, "fit", lambda model, *_, **__: seen.append(model) or [])
    likelihood.train("gated-pixelcnn-classes")
    x = data.binarize_static(data.digits().test_images[:3], 0)
    base = weights.load(small / "gated-pixelcnn.npz")[0].log_prob(x).data
    assert abs(base + 784 * np.log(2)).min() > 1  # or every start would do
    for k in (0, 9):  # no class says anything yet
        np.testing.assert_allclose(seen[0].log_prob(x, [k] * 3).data, base, rtol=1e-6)


@pytest.mark.parametrize("name", ["pixelcnn", "vae"])
def test_completions_keep_the_upper_half(name, small, rng):
    row = models.RECIPES[name]
    model, x = (
        row.model(**row.settings, rng=rng),
        data.binarize_static(data.digits().test_images[:3], 0),
    )
    completed = likelihood.completions(model, x, rng)
    np.testing.assert_array_equal(completed[:, :, :14], x[:, :, :14])
    assert (completed[:, :, 14:] != x[:, :, 14:]).mean() > 0.2


def test_sets(small):
    digits = data.mnist()
    for given, found in zip(data.binarized_mnist(), likelihood.sets("published"), strict=True):
        np.testing.assert_array_equal(given, found)
    np.testing.assert_array_equal(likelihood.sets("static")[2], data.binarized_mnist().test)
    with_labels = data.binarize_static(digits.test_images, 1)
    np.testing.assert_array_equal(likelihood.sets("static", classes=10)[2], with_labels)
    parts = likelihood.sets("sprites")
    assert [len(part) for part in parts] == [4400, 500, 500]
    emoji = likelihood.sets("emoji")
    assert [len(part) for part in emoji] == [1529, 191, 191]
    assert (np.sort(np.concatenate(emoji), axis=0) == np.sort(data.emoji().images, axis=0)).all()
    together, made = (
        np.sort(images.reshape(5400, -1).view("V1024")[:, 0].tolist())
        for images in (np.concatenate(parts), likelihood.sprites().images)
    )
    assert (together == made).all() and (parts[0] != likelihood.sprites().images[:4400]).any()
    for protocol in ("static", "dynamic", "grey"):
        learned, validation, tested = likelihood.sets(protocol)
        assert len(learned) == 4400 and len(validation) == 100 and len(tested) == 500
        if protocol == "grey":
            np.testing.assert_array_equal(np.rint(255 * learned), digits.train_images[:4400])
            np.testing.assert_array_equal(np.rint(255 * tested), digits.test_images)
        else:
            assert set(np.unique(tested)) == {0, 1} and abs(tested.mean() - digits.test_images.mean() / 255) < 0.01
            parts = np.concatenate([learned, validation])
            if protocol == "static":
                assert set(np.unique(parts)) == {0, 1} and abs(parts.mean() - digits.train_images.mean() / 255) < 0.01
            else:
                np.testing.assert_array_equal(parts, digits.train_images)


def test_the_schedule_of_a_longer_run_begins_as_a_shorter_ones():
    rate = likelihood.schedule((100,))
    np.testing.assert_allclose([rate(done) for done in (0, 0.2, 0.4, 0.7, 1)], [1, 1, 1, 0.5, 0])
    longer = likelihood.schedule((100, 300))
    np.testing.assert_allclose([longer(step / 400) for step in range(100)], [rate(step / 100) for step in range(100)])
    np.testing.assert_allclose([longer(step / 400) for step in (100, 250, 400)], [0.4, 0.2, 0])
    longest = likelihood.schedule((100, 300, 100))
    np.testing.assert_allclose([longest(step / 500) for step in (250, 400, 450, 500)], [0.2, 0.4, 0.2, 0], atol=1e-9)


@pytest.mark.parametrize(
    "arguments, message",
    [(["--images", "5"], "--images: needs --evaluate"), (["--evaluate", "--images", "1"], "--images: got 1")],
)
def test_images_is_for_evaluation(arguments, message, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, capsys, "pixelcnn", *arguments)
    assert message in capsys.readouterr().err


def test_without_mnist_it_says_what_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TINYGEN_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data, "_MNIST_MIRRORS", ())
    with pytest.raises(SystemExit):
        call(monkeypatch, capsys, "gated-pixelcnn")
    assert "put it at" in capsys.readouterr().err
