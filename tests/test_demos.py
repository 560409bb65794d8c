"""The demos, as their documentation calls them, with a tiny budget."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)


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


@pytest.mark.parametrize(
    "arguments, message", [(["--device", "cuda"], "tinygen[cuda13]"), (["--minutes", "-1"], "--minutes")]
)
def test_quickstart_refuses_in_one_sentence(arguments, message):
    try:
        import cupy  # noqa: F401
    except ImportError:
        done = run("demos/quickstart.py", *arguments)
        assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
