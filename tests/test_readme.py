"""The README says what is: its code runs, its line counts are right, its files and pictures exist."""

import math
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = []
    for block in blocks:  # each runs by itself
        names.append({})
        few = block.replace("steps=100", "steps=2").replace("range(2000)", "range(2)")
        exec(compile(few, "README.md", "exec"), names[-1])
    first, training, vae, shipped = names
    assert first["h"].numpy().tolist() == [6, 12, 18] and first["x"].grad.numpy().tolist() == [3, 12, 27]
    assert training["images"].shape == (16, 1, 28, 28) and (tmp_path / "out" / "pixelcnn.npz").exists()
    assert (tmp_path / "halves.png").exists() and (shipped["halves"] == shipped["digits"])[:, :, :14].all()
    assert vae["samples"].shape == (16, 1, 28, 28) and math.isfinite(vae["loss"].item())


def test_line_counts():
    rows = re.findall(r"^\| (`tinygen.*?) \| ([\d,]+) \|", README, re.MULTILINE)
    assert len(rows) > 10
    for files, count in rows:
        paths = [ROOT / name for name in re.findall(r"`(.*?)`", files)]
        paths = [path if path.exists() else paths[0].parent / path.name for path in paths]  # `tinygen/a.py`, `b.py`
        paths = [p for path in paths for p in (sorted(path.glob("*.py")) if path.is_dir() else [path])]
        lines = sum(len(path.read_text().splitlines()) for path in paths)
        assert abs(lines - int(count)) <= 0.05 * lines, f"{files}: {lines} lines, the README says {count}"


def test_files_of_the_gallery_exist():
    gallery = ROOT / "demos"
    for path in re.findall(r"\]\(([^)#:]+)\)|`(\w+\.py)`", (gallery / "README.md").read_text()):
        assert (gallery / "".join(path)).exists(), path


def test_files_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)|`((?:tinygen|demos|benchmarks|tests)/[\w/.]+)`", README):
        assert (ROOT / "".join(path)).exists(), path
