"""The demos, as their documentation calls them, with a tiny budget."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image  # matplotlib needs it

ROOT = Path(__file__).parent.parent
HAS_CUPY = importlib.util.find_spec("cupy") is not None


SMALL = {  # the tiny budget of each demo, and a figure with its unit that it prints
    "01_density": ("--steps 20 --draws 300", r"KL\(true \|\| learned\) = \d+\.\d+ .* nats"),
    "02_kmeans_pca": ("--clusters 10 --iterations 3", r"squared error +\d+\.\d per image"),
    "03_pixelrnn": ("--steps 2 --frames 3 --images 4", r"\d+\.\d nats per image, on seen digits"),
    "04_pixelcnn": ("--images 8 --steps 1", r"\d+\.\d nats per image"),
    "05_gated": ("--layers 2", r"right class of \d+ % of 50 digits"),
    "06_autoencoder": ("--steps 2", r"squared error per image +\d+\.\d+"),
    "07_few_labels": ("--pretraining 2 --steps 2 --seeds 1", r"accuracy in percent(.*\n){2}frozen +\d+\.\d"),
    "08_intractable": ("--draws 100 --digits 2", r"estimate is still \d+ nats lower"),
    "09_reparameterization": ("--draws 20", r"needs \d+ times as many draws"),
    "10_vae": ("--steps 5", r"ELBO -\d+\.\d = .* nats per image"),
    "11_manifold": ("--size 4", r"same class for \d+ % of 500 digits"),
    "12_beta": ("--steps 2 --latent 2", r"nats per image, .*\n +0.1 +\d+\.\d"),
    "13_inside": ("--order 2", r"by hand (-?\d+\.\d+), by the engine \1"),
}


def run(*arguments, timeout=300):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def is_a_picture(path):
    with Image.open(path) as file:
        file.seek(getattr(file, "n_frames", 1) - 1)  # the last of an animation
        picture = np.asarray(file.convert("L")) / 255
    return min(picture.shape) > 300 and picture.std() > 0.1


@pytest.mark.parametrize("name", SMALL)
def test_demo(name, tmp_path):
    """With a tiny budget it prints figures with their units and leaves its picture."""
    budget, figure = SMALL[name]
    done = run(f"demos/{name}.py", "--out", str(tmp_path), "--seed", "1", *budget.split())
    assert done.returncode == 0, done.stderr
    (picture,) = [path for path in tmp_path.iterdir() if path.suffix in (".png", ".gif")]
    assert re.search(figure, done.stdout), done.stdout
    assert f"picture: {tmp_path / name}{picture.suffix}" in done.stdout
    assert is_a_picture(picture)
    assert "--seed" in run(f"demos/{name}.py", "--help").stdout


@pytest.mark.parametrize("name", ["05_gated", "09_reparameterization"])  # with labels and without
def test_train_replaces_the_model_that_ships(name, tmp_path):
    def figures(*more):
        done = run(f"demos/{name}.py", "--out", str(tmp_path), *SMALL[name][0].split(), *more)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if "nats" in line or "%" in line or "times" in line]

    shipped = figures()
    assert shipped == figures("--train", "0") != figures("--train", "1")


def test_every_demo_is_tested():
    assert [path.stem for path in sorted((ROOT / "demos").glob("[0-9]*.py"))] == sorted(SMALL)


def test_quickstart_prints_its_table_and_saves_its_figure(tmp_path):
    done = run("demos/quickstart.py", "--minutes", "0.02", "--out", str(tmp_path / "new" / "folder"))
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.splitlines()]
    for model in ("Autoencoder", "VAE", "PixelCNN", "PixelRNN"):
        row = next(words for words in table if words and words[0] == model)
        assert float(row[4]) > 0, row  # the test figure
    assert is_a_picture(tmp_path / "new" / "folder" / "quickstart.png")


@pytest.mark.slow  # three minutes
def test_quickstart_reaches_the_figures_of_the_readme(tmp_path):
    done = run("demos/quickstart.py", "--out", str(tmp_path), timeout=1200)
    assert done.returncode == 0, done.stderr
    figures = {words[0]: words[4] for words in map(str.split, done.stdout.splitlines()) if len(words) > 5}
    row = r"^\| (\w+) \| [\d,]+ \| \d+ \| \S+ \| ([\d.]+) "
    readme = re.findall(row, (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(readme) == 4
    for model, figure in readme:
        assert float(figures[model]) == pytest.approx(float(figure), rel=0.02), model


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--minutes", "-1"], "--minutes: got -1.0, needs a positive number"),
        pytest.param(["--device", "cuda"], "tinygen[cuda13]", marks=pytest.mark.skipif(HAS_CUPY, reason="has CuPy")),
    ],
)
def test_quickstart_refuses_in_one_sentence(arguments, message):
    done = run("demos/quickstart.py", *arguments)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


def test_train_alone_means_500_steps(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "demos")
    import common

    for given, steps in (([], 0), (["--train"], 500), (["--train", "30"], 30)):
        monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(tmp_path), *given])
        assert common.options("A demo.", common.TRAIN).train == steps
