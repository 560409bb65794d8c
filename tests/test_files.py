"""tinygen.files: files that are whole at any moment, and files that somebody else made."""

import errno
import io
import json
import os
import stat
import threading
import tracemalloc
import zipfile

import numpy as np
import pytest

from tinygen import weights
from tinygen.files import read_arrays, written
from tinygen.models import VAE, PixelCNN
from tinygen.nn import Linear, Module, Parameter


def put(path, content=b"new"):
    with written(path) as file:
        file.write(content)


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    put(tmp_path / "a" / "b" / "file")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for target in "old", "not yet there":
        link = tmp_path / f"link to {target}"
        link.symlink_to(tmp_path / "elsewhere" / target)
        put(link)
        assert link.is_symlink() and (tmp_path / "elsewhere" / target).read_bytes() == b"new"


def test_the_mode_is_kept(tmp_path):
    put(tmp_path / "file")
    (tmp_path / "plain").touch()
    assert os.stat(tmp_path / "file").st_mode == os.stat(tmp_path / "plain").st_mode  # what the user's umask says
    (tmp_path / "file").chmod(0o640)
    put(tmp_path / "file")
    assert stat.S_IMODE(os.stat(tmp_path / "file").st_mode) == 0o640


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in tmp_path, tmp_path / "pipe", "/dev/null":
        with pytest.raises(OSError, match=rf"folder or a device.*'{path}'"):
            put(path)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError("4 requested, 0 written")])
def test_a_full_disk_leaves_the_old_file_and_one_sentence(error, tmp_path):
    put(tmp_path / "file", b"old")
    with pytest.raises(OSError, match=rf"cannot be written \({error.strerror or error}\): '.*file'"):
        with written(tmp_path / "file") as file:
            file.write(b"ne")
            raise error
    assert (tmp_path / "file").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_there(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot be written \(.*\): '.*below'"):
        put(tmp_path / "file" / "below")


def test_what_a_killed_process_left_goes_after_a_day(tmp_path):
    young, old, other = (tmp_path / name for name in ("file.1-1.part", "file.2-2.part", "other.2-2.part"))
    for path in young, old, other:
        path.touch()
    for path in old, other:
        os.utime(path, (0, 0))
    put(tmp_path / "file")
    assert {p.name for p in tmp_path.iterdir()} == {"file", young.name, other.name}


def test_a_link_in_the_temporary_files_place_is_not_followed(tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    trap = tmp_path / f"file.{os.getpid()}-{threading.get_ident()}.part"
    trap.symlink_to(tmp_path / "precious")
    put(tmp_path / "file")
    assert (tmp_path / "precious").read_bytes() == b"precious" and not (tmp_path / "file").is_symlink()


def test_two_writers_at_once(tmp_path):
    """Each file is complete, and the last one stays; with one temporary name a writer would rename another's file."""
    begun = threading.Barrier(2)

    def work(letter):
        for _ in range(20):
            with written(tmp_path / "file") as file:
                begun.wait()
                file.write(letter * 1000)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() in (b"a" * 1000, b"b" * 1000)
    assert len(list(tmp_path.iterdir())) == 1


# -- files of others


def bomb(path, megabytes, name="weight"):
    """An npz file that unpacks to ``megabytes`` of zeros, and is about a thousandth as large."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (megabytes << 20,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(f"{name}.npy", "w") as file:
        file.write(header.getvalue())
        for _ in range(megabytes):
            file.write(bytes(1 << 20))


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    bomb(tmp_path / "bomb.npz", 200)
    bomb(tmp_path / "small.npz", 2)
    assert read_arrays(tmp_path / "small.npz")["weight"].size == 2 << 20
    tracemalloc.start()
    model = Linear(2, 2, rng=np.random.default_rng(0))
    for read in read_arrays, weights.load, model.load_state_dict:
        with pytest.raises(ValueError, match=r"bomb.npz: .* unpack to 209,715,"):
            read(tmp_path / "bomb.npz")
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "name, settings",
    [
        ("PixelCNN", {"blocks": 10**8}),
        ("PixelCNN", {"channels": 10**6}),
        ("FVSBN", {"image_shape": (1, 1, 10**5)}),
        ("FVSBN", {"image_shape": (1, 1, 2), "levels": 10**9}),
        ("MADE", {"image_shape": (1, 1, 10**5)}),
        ("MADE", {"image_shape": (1, 1, 2), "hidden": (10**9,)}),
        ("MADE", {"image_shape": (1, 1, 2), "hidden": (2,), "orders": 10**9}),
        ("NICE", {"image_shape": (1, 1, 10**8)}),
        ("NICE", {"image_shape": (1, 1, 2), "couplings": 10**9}),
        ("PixelCNN", {"kernel": 10**5 + 1}),
        ("PixelCNN", {"levels": 10**9}),
        ("PixelRNN", {"layers": 10**8}),
        ("GatedPixelCNN", {"classes": 10**9}),
        ("VAE", {"image_shape": [1, 10**5, 10**5]}),
        ("VAE", {"image_shape": (1, 4, 4), "latent": 1, "channels": (1,), "classes": 10**9}),
        ("MixturePriorVAE", {"image_shape": (1, 4, 4), "latent": 1, "channels": (1,), "components": 10**9}),
        ("MixturePosteriorVAE", {"image_shape": (1, 4, 4), "latent": 1, "channels": (1,), "components": 10**9}),
        ("CategoricalVAE", {"variables": 10**9}),
        ("Autoencoder", {"code": 10**9}),
    ],
)
def test_a_file_whose_settings_are_of_a_giant_is_refused_before_it_is_built(name, settings, tmp_path):
    about = {"model": name, "settings": settings}
    np.savez(tmp_path / "a.npz", about=np.array(json.dumps(about)), weight=np.zeros(1000))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a.npz: damaged.* larger"):
        weights.load(tmp_path / "a.npz")
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "about",
    ["[]", "3", "{}", '{"model": "PCA", "settings": {}}', '{"model": "VAE"}', "[" * 9999],
)
def test_malformed_descriptions_are_damage(about, tmp_path):
    np.savez(tmp_path / "a.npz", about=np.array(about), weight=np.zeros(3))
    with pytest.raises(ValueError, match=r"a.npz: damaged"):
        weights.load(tmp_path / "a.npz")


# -- modules of one's own


class Own(Module):
    def __init__(self, seed):
        self.layer = Linear(3, 2, rng=np.random.default_rng(seed))
        self.scale = Parameter(np.full(2, 1e-9, np.float64))


def test_a_module_of_ones_own_is_saved_and_loaded(tmp_path):
    model, path = Own(0), tmp_path / "own.npz"
    weights.save(path, model, {"note": "mine"}, half=False)
    loaded, about = weights.load(path, Own(1))
    assert about == {"note": "mine", "model": "Own"}
    other = Own(2)
    other.load_state_dict(path)
    for taken in loaded.state_dict(), other.state_dict():
        assert all(taken[name].tobytes() == value.tobytes() for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"own.npz: is of the class Own"):
        weights.load(path)
    with pytest.raises(ValueError, match=r"own.npz: is of another model .*missing weight"):
        weights.load(path, Linear(3, 2, rng=np.random.default_rng(0)))
    weights.save(path, model)
    assert weights.load(path, Own(1))[0].layer.weight.data[0, 0] == np.float16(model.layer.weight.data[0, 0])


def test_full_precision_of_the_models_that_ship(tmp_path, rng):
    for kind, settings in ((PixelCNN, {"channels": 2, "blocks": 0}), (VAE, {"latent": 2, "channels": [2, 2]})):
        model = kind((1, 4, 4), **settings, rng=rng)
        weights.save(tmp_path / "a.npz", model, {"settings": {"image_shape": (1, 4, 4), **settings}}, half=False)
        loaded = weights.load(tmp_path / "a.npz")[0].state_dict()
        assert all(loaded[name].tobytes() == value.tobytes() for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "state, message",
    [
        ({"weight": np.ones((1, 1), complex), "bias": np.zeros(1)}, "weight has dtype complex128"),
        ({"weight": np.array([[None]]), "bias": np.zeros(1)}, "weight has dtype object"),
        ({"weight": np.array([["1"]]), "bias": np.zeros(1)}, "weight has dtype <U1"),
        ([np.zeros((1, 1)), np.zeros(1)], "got list"),
    ],
)
def test_a_state_of_no_numbers_is_refused(state, message, rng):
    layer = Linear(1, 1, rng=rng)
    before = layer.state_dict()
    with pytest.raises(ValueError, match=message):
        layer.load_state_dict(state)
    assert all((layer.state_dict()[name] == value).all() for name, value in before.items())
