"""The README is up to date: its code runs, its files and pictures exist."""

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
OF_NO_STEP = {"__init__.py", "pixel_network.py"}
README = (ROOT / "README.md").read_text()


def test_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = []
    for block in blocks:  # each runs by itself
        names.append({})
        few = block.replace("steps=100", "steps=2").replace("steps=2000", "steps=2")
        exec(compile(few, "README.md", "exec"), names[-1])
    first, own, vae, training = names
    assert first["h"].numpy().tolist() == [6, 12, 18] and first["x"].grad.numpy().tolist() == [3, 12, 27]
    assert own["softsign"](-1.0).item() == -0.5
    assert training["images"].shape == (16, 1, 28, 28) and (tmp_path / "out" / "pixelcnn.npz").exists()
    assert (training["halves"] == training["binary"][:8])[:, :, :14].all()
    assert vae["samples"].shape == (16, 1, 28, 28) and np.isfinite(vae["samples"]).all()


def test_files_of_the_gallery_exist():
    gallery = ROOT / "demos"
    for path in re.findall(r"\]\(([^)#:]+)\)|`(\w+\.py)`", (gallery / "README.md").read_text()):
        assert (gallery / "".join(path)).exists(), path


def test_each_file_of_the_package_and_each_demo_is_where_the_table_says():
    named = {name for name in re.findall(r"`([\w/]+\.py)`", README)}
    files = [
        path.relative_to(ROOT)
        for folder in ("tinygen", "demos", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert not [name for name in named if not any(path.match(name) for path in files)]
    for path in [*(ROOT / "demos").glob("[0-9]*.py"), *(ROOT / "tinygen/models").glob("*plicit/**/*.py")]:
        assert path.name in {Path(name).name for name in named} or path.name in OF_NO_STEP, path


def test_files_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)|`((?:tinygen|demos|benchmarks|tests)/[\w/.]+)`", README):
        assert (ROOT / "".join(path)).exists(), path
