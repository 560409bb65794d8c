"""The README says what is: its code runs, its files and pictures exist."""

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = []
    for block in blocks:  # each runs by itself
        names.append({})
        few = block.replace("steps=100", "steps=2").replace("steps=2000", "steps=2")
        exec(compile(few, "README.md", "exec"), names[-1])
    first, higher, own, training, vae, shipped = names
    assert first["h"].numpy().tolist() == [6, 12, 18] and first["x"].grad.numpy().tolist() == [3, 12, 27]
    x = higher["x"].numpy()
    hessian = np.diag(2 * np.cos(x) - x * np.sin(x))
    np.testing.assert_allclose(higher["hessian"], hessian, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(higher["hv"].numpy(), hessian @ higher["v"], rtol=1e-5, atol=1e-6)
    assert own["softsign"](-1.0).item() == -0.5
    assert training["images"].shape == (16, 1, 28, 28) and (tmp_path / "out" / "pixelcnn.npz").exists()
    assert (tmp_path / "halves.png").exists() and (shipped["halves"] == shipped["digits"])[:, :, :14].all()
    assert vae["samples"].shape == (16, 1, 28, 28) and np.isfinite(vae["samples"]).all()


def test_files_of_the_gallery_exist():
    gallery = ROOT / "demos"
    for path in re.findall(r"\]\(([^)#:]+)\)|`(\w+\.py)`", (gallery / "README.md").read_text()):
        assert (gallery / "".join(path)).exists(), path


def test_files_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)|`((?:tinygen|demos|benchmarks|tests)/[\w/.]+)`", README):
        assert (ROOT / "".join(path)).exists(), path
