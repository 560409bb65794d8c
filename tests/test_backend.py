"""tinygen.backend: an array's module, moving it between devices, and error messages for missing libraries."""

import subprocess
import sys
import types

import numpy as np
import pytest

from tinygen.backend import device_of, to_device, to_host, xp


def test_xp_on_the_host():
    assert xp(np.zeros(3)) is np
    assert xp(np.zeros(3), np.float32(1)) is np
    assert xp(np.float64(1)) is np
    assert device_of(np.zeros(())) == "cpu"


def test_xp_on_the_device(strict):
    x = strict.cupy.zeros(3)
    assert xp(x) is strict.cupy
    assert xp(np.float32(2), x) is strict.cupy  # a NumPy scalar goes with either
    assert device_of(x) == "cuda"
    assert not strict.count


@pytest.mark.parametrize("order", [1, -1])
def test_host_and_device_do_not_mix(order, strict):
    arrays = [np.zeros(3), strict.cupy.zeros(3)][::order]
    with pytest.raises(ValueError, match=r"one array is on the cpu, another on cuda: .*\.to\(device\)"):
        xp(*arrays)


def test_there_and_back(device, rng):
    x = rng.standard_normal((2, 3)).astype(np.float32)
    y = to_device(x, device)
    assert device_of(y) == device and y.dtype == np.float32
    back = to_host(y)
    assert type(back) is np.ndarray
    np.testing.assert_array_equal(back, x)
    np.testing.assert_array_equal(to_device(y, "cpu"), x)
    assert to_device(y, device) is y


def test_moves_are_counted_once(strict):
    x = to_device(np.zeros(3), "cuda")
    assert dict(strict.count) == {"h2d": 1}
    to_device(x, "cuda")
    assert dict(strict.count) == {"h2d": 1}
    to_device(x, "cpu")
    assert dict(strict.count) == {"h2d": 1, "d2h": 1}


def test_host_array_is_not_copied():
    x = np.zeros(3)
    assert to_device(x, "cpu") is x and to_host(x) is x


@pytest.mark.parametrize("name", ["gpu", "cuda:0", "", None])
def test_unknown_device(name):
    with pytest.raises(ValueError, match=r"device: got"):
        to_device(np.zeros(1), name)


def test_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # import cupy raises ImportError
    with pytest.raises(RuntimeError) as error:
        to_device(np.zeros(1), "cuda")
    assert "tinygen[cuda12]" in str(error.value) and "tinygen[cuda13]" in str(error.value)
    assert "\n" not in str(error.value) and error.value.__suppress_context__


def test_cupy_without_a_device(strict, monkeypatch):
    monkeypatch.setattr(strict.cupy, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"finds no CUDA device.*or use device='cpu'"):
        to_device(np.zeros(1), "cuda")


def test_import_needs_numpy_alone():
    """Neither the package nor any of its modules imports what only figures, progress bars or devices need."""
    code = """
import pkgutil, sys
import tinygen
print(*sys.modules)
for module in pkgutil.walk_packages(tinygen.__path__, "tinygen."):
    if "assets" not in module.name:
        __import__(module.name)
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    alone, everything = (set(line.split()) for line in done.stdout.splitlines())
    unwanted = {"matplotlib", "cupy", "tqdm", "threadpoolctl", "torch", "mpi4py", "pooch", "PIL", "scipy"}
    assert "numpy" in alone and not alone & unwanted
    assert "tinygen.training" in everything and not everything & unwanted


def test_each_rank_has_a_device_of_its_own(strict, monkeypatch):
    used = []
    device = lambda i: types.SimpleNamespace(use=lambda: used.append(i))  # noqa: E731
    runtime = types.SimpleNamespace(getDeviceCount=lambda: 2)
    monkeypatch.setattr(strict.cupy, "cuda", types.SimpleNamespace(Device=device, runtime=runtime), raising=False)
    monkeypatch.setattr("tinygen.backend.ranks_on_this_machine", lambda: (3, 4))
    monkeypatch.setitem(
        sys.modules,
        "mpi4py",
        types.SimpleNamespace(MPI=types.SimpleNamespace(COMM_WORLD=types.SimpleNamespace(size=8))),
    )
    to_device(np.zeros(1), "cuda")
    assert used == [1]
