"""tinygen.weights: files of trained models, and those that ship with tinygen."""

import json

import numpy as np
import pytest

import tinygen
from tinygen import data, weights
from tinygen.models import VAE, PixelCNN, PixelRNN
from tinygen.training import evaluate

SHIPPED = sorted(path.stem for path in weights.FOLDER.glob("*.npz"))


@pytest.mark.parametrize(
    "constructor,settings",
    [
        (PixelCNN, {"image_shape": [1, 4, 5], "channels": 2, "blocks": 1}),
        (PixelRNN, {"kind": "diagonal", "image_shape": [3, 4, 5], "levels": 4, "channels": 3, "layers": 1}),
        (VAE, {"image_shape": [1, 4, 5], "latent": 2, "beta": 0.5}),
    ],
)
def test_saved_and_loaded(constructor, settings, tmp_path, rng):
    settings["image_shape"] = tuple(settings["image_shape"])
    model = constructor(**settings, rng=rng)
    for p in model.parameters():
        p.data = rng.standard_normal(p.shape, np.float32)
    weights.save(tmp_path / "new" / "a.npz", model, {"settings": settings, "seed": 3})
    loaded, about = weights.load(tmp_path / "new" / "a.npz")
    assert type(loaded) is constructor and about["seed"] == 3
    for (name, p), (other, q) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other and q.dtype == np.float32
        np.testing.assert_array_equal(q.data, p.data.astype(np.float16))
    x = rng.integers(0, 2, (3, *settings["image_shape"]))
    assert np.isfinite(loaded.loss(x, rng).item())
    weights.save(tmp_path / "again.npz", loaded, about)  # half precision loses nothing the second time
    assert all(
        (p.data == q.data).all()
        for p, q in zip(weights.load(tmp_path / "again.npz")[0].parameters(), loaded.parameters())
    )


def test_a_failed_save_leaves_the_old_file(tmp_path, rng):
    model, settings = (
        PixelCNN((1, 2, 2), channels=2, blocks=0, rng=rng),
        {"image_shape": (1, 2, 2), "channels": 2, "blocks": 0},
    )
    weights.save(tmp_path / "a.npz", model, {"settings": settings})
    before = (tmp_path / "a.npz").read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        weights.save(tmp_path / "a.npz", model, {"settings": settings, "array": np.zeros(2)})
    assert (tmp_path / "a.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_while_it_is_written_the_old_file_is_whole(tmp_path, rng, monkeypatch):
    settings = {"image_shape": (1, 2, 2), "channels": 2, "blocks": 0}
    weights.save(tmp_path / "a.npz", PixelCNN(**settings, rng=rng), {"settings": settings, "seed": 1})

    def look(file, **arrays):
        assert weights.load(tmp_path / "a.npz")[1]["seed"] == 1
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", look)
    with pytest.raises(OSError, match="no space left"):
        weights.save(tmp_path / "a.npz", PixelCNN(**settings, rng=rng), {"settings": settings, "seed": 2})
    assert weights.load(tmp_path / "a.npz")[1]["seed"] == 1 and len(list(tmp_path.iterdir())) == 1


def test_a_model_that_could_not_be_loaded_again_is_not_saved(tmp_path, rng):
    path = tmp_path / "a.npz"
    for settings in ({}, {"channels": 2}):
        with pytest.raises(ValueError, match="no model that was saved here"):
            weights.save(path, PixelCNN((1, 2, 2), channels=2, blocks=0, rng=rng), {"settings": settings})
    assert not list(tmp_path.iterdir())


def test_nan_is_refused(tmp_path, rng):
    model, settings = (
        PixelCNN((1, 2, 2), channels=2, blocks=0, rng=rng),
        {"image_shape": (1, 2, 2), "channels": 2, "blocks": 0},
    )
    model.parameters()[0].data[:] = np.nan
    with pytest.raises(ValueError, match="do not fit into half precision, or are not finite"):
        weights.save(tmp_path / "a.npz", model, {"settings": settings})


def test_what_save_and_load_need_is_said(tmp_path, rng):
    model = PixelCNN((1, 2, 2), channels=2, blocks=0, rng=rng)
    with pytest.raises(ValueError, match="about: needs 'settings'"):
        weights.save(tmp_path / "a.npz", model)
    for call in (lambda: weights.save(model, "a.npz"), lambda: weights.load("a.npz", PixelCNN)):
        with pytest.raises(ValueError, match=r"model: got"):
            call()


def test_what_does_not_fit_into_half_precision_is_refused(tmp_path, rng):
    model = PixelCNN((1, 2, 2), channels=2, blocks=0, rng=rng)
    model.last.bias.data[0] = 1e5
    with pytest.raises(ValueError, match=r"last\.bias do not fit into half precision"):
        weights.save(tmp_path / "a.npz", model, {"settings": {}})
    assert not list(tmp_path.iterdir())


def test_files_that_are_something_else_are_refused(tmp_path, rng):
    path = tmp_path / "a.npz"
    with pytest.raises(FileNotFoundError):
        weights.load(path)
    settings = {"image_shape": (1, 2, 2), "channels": 2, "blocks": 0}
    weights.save(path, PixelCNN(**settings, rng=rng), {"settings": settings})
    for content in (b"", b"no npz", path.read_bytes()[:-40]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.npz: damaged"):
            weights.load(path)
    np.savez(path, about=np.array(json.dumps({"model": "os", "settings": {}})))
    with pytest.raises(ValueError, match=r"is of the class os, not one of tinygen.models"):
        weights.load(path)
    np.savez(path, about=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        weights.load(path)


def test_unknown_name():
    with pytest.raises(ValueError, match="pretrained: got 'pixelcnm'"):
        tinygen.pretrained("pixelcnm")
    with pytest.raises(AttributeError, match="module 'tinygen' has no attribute 'pretrainde'"):
        tinygen.pretrainde  # noqa: B018


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped(name, rng):
    """The file is small and complete, and its model scores the shipped digits as well as its validation images."""
    assert (weights.FOLDER / f"{name}.npz").stat().st_size < 2e6
    model, (_, about) = tinygen.pretrained(name), weights.load(weights.FOLDER / f"{name}.npz")
    grey = data.digits().test_images[:100]
    labels = {"labels": data.digits().test_labels[:100]} if getattr(model, "classes", 0) else {}
    images = {"grey": grey / np.float32(255), "8-bit": grey}.get(about["protocol"], data.binarize_static(grey, 0))
    figure = evaluate(model, images, rng, **labels)
    assert 0.85 * about["validation"][-1] < figure < 1.15 * about["validation"][-1]
