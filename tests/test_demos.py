"""The demos, as their documentation calls them, with a tiny budget."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*arguments, timeout=300):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def test_quickstart_prints_its_table_and_saves_its_figure(tmp_path):
    from matplotlib.image import imread

    done = run("demos/quickstart.py", "--minutes", "0.02", "--out", str(tmp_path / "new" / "folder"))
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.splitlines()]
    for model in ("Autoencoder", "VAE", "PixelCNN", "PixelRNN"):
        row = next(words for words in table if words and words[0] == model)
        assert float(row[4]) > 0, row  # the test figure
    path = done.stdout.split("figure: ")[1].strip()
    picture = imread(path)
    assert picture.shape[0] > 500 and picture.std() > 0.1


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
    "arguments, message", [(["--device", "cuda"], "tinygen[cuda13]"), (["--minutes", "-1"], "--minutes")]
)
def test_quickstart_refuses_in_one_sentence(arguments, message):
    try:
        import cupy  # noqa: F401
    except ImportError:
        done = run("demos/quickstart.py", *arguments)
        assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
