"""Fixtures that every test file may ask for."""

import sys

import numpy as np
import pytest
import strict_cupy


def _has_gpu():
    try:
        import cupy
    except ImportError:
        return False
    return cupy.is_available()


DEVICES = {"numpy": "cpu", "strict": "cuda"} | ({"cupy": "cuda"} if _has_gpu() else {})


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def strict(monkeypatch):
    """The stand-in, imported in place of CuPy; ``strict.count`` stays empty while nothing is copied or waited for."""
    monkeypatch.setitem(sys.modules, "cupy", strict_cupy.cupy)
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", strict_cupy.special)
    strict_cupy.count.clear()
    return strict_cupy


@pytest.fixture(params=DEVICES)
def device(request):
    """The device's name for ``to_device``: a test runs on NumPy, on the stand-in and, where there is a GPU, on CuPy."""
    if request.param == "strict":
        request.getfixturevalue("strict")
    return DEVICES[request.param]
