"""tinygen.data: embedded digits, formats, lookup and download, binarization. The network is a server on 127.0.0.1."""

import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tinygen import data

MIRRORS = {"MNIST": data._MNIST_MIRRORS, "CIFAR-10": data._CIFAR_MIRRORS}
ALL_MIRRORS = [name for name in vars(data) if name.endswith("_MIRRORS")]
REAL = Path(os.environ.get("TINYGEN_DATA", "/nonexistent")).absolute()
HAS_MNIST = any((REAL / f"mnist/train-images-idx3-ubyte{ending}").is_file() for ending in ("", ".gz"))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Every test has an empty cache of its own, no TINYGEN_DATA, and no mirror but those it names."""
    for variable in ("TINYGEN_DATA", "XDG_CACHE_HOME", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    for mirrors in ALL_MIRRORS:
        monkeypatch.setattr(data, mirrors, ())
    return tmp_path / "home/.cache/tinygen"


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def idx(array):
    """The IDX bytes of a uint8 array."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- the embedded digits ------------------------------------------------------------------------------------------


def test_digits_are_a_stratified_split_without_overlap():
    d = data.digits()
    assert [array.shape for array in d] == [(4500, 1, 28, 28), (4500,), (500, 1, 28, 28), (500,)]
    assert all(array.dtype == np.uint8 for array in d)
    assert np.bincount(d.train_labels).tolist() == [450] * 10
    assert np.bincount(d.test_labels).tolist() == [50] * 10
    images = [image.tobytes() for part in (d.train_images, d.test_images) for image in part]
    assert len(set(images)) == 5000


def test_digits_never_change():
    # Numbers measured on the digits are only comparable while these are the same digits in the same order.
    content = hashlib.sha256(b"".join(array.tobytes() for array in data.digits()))
    assert content.hexdigest() == "2c9a658ebb03deaeda99c9f489f0d7ee6e327be932b6ceadb057ca385f86ea03"


def test_digits_can_be_written_to_without_changing_the_next_load():
    data.digits().train_images[:] = 1
    assert data.digits().train_images.max() == 255


def test_import_leaves_pooch_alone():
    code = "import sys; from tinygen import data; sys.exit(any(m in sys.modules for m in ('pooch', 'requests')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(data.__file__).parents[1]).returncode == 0


# --- IDX files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (4, 3, 2), (2, 1, 300, 1, 2), (0,), (3, 0, 2)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_read_idx_gives_back_what_was_written(tmp_path, rng, shape, pack):
    array = rng.integers(0, 256, shape, dtype=np.uint8)
    array = np.asarray(array, dtype=np.uint8)
    (tmp_path / "file").write_bytes(pack(idx(array)))
    got = data.read_idx(tmp_path / "file")
    assert got.shape == shape and got.dtype == np.uint8 and got.flags.writeable
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_read_idx_refuses_every_truncation_and_any_extra_byte(tmp_path, rng, pack):
    whole = idx(rng.integers(0, 256, (2, 3, 2), dtype=np.uint8))
    for wrong in [whole[:n] for n in range(len(whole))] + [whole + b"\0"]:
        (tmp_path / "file").write_bytes(pack(wrong))
        found = f"more than {len(whole)}" if len(wrong) > len(whole) else len(wrong)
        with pytest.raises(ValueError, match=rf"file: (has {found} bytes, needs|starts with)"):
            data.read_idx(tmp_path / "file")


@pytest.mark.parametrize("start", [b"\0\0\x09\1", b"\0\1\x08\1", b"\1\0\x08\1", b"\0\0\x0d\1"])
def test_read_idx_refuses_another_magic_number(tmp_path, start):
    (tmp_path / "file").write_bytes(start + b"\0\0\0\1\0")
    with pytest.raises(ValueError, match=rf"file: starts with bytes {start.hex(' ')}, needs 00 00 08"):
        data.read_idx(tmp_path / "file")


def test_read_idx_refuses_a_corrupt_or_truncated_gzip(tmp_path, rng):
    whole = gzip.compress(idx(rng.integers(0, 4, (20, 5), dtype=np.uint8)))
    # Bytes 0 to 9 are gzip's header (date, system: without meaning here), then come compressed data, check sum, size.
    flipped = [whole[:n] + bytes([whole[n] ^ 0x55]) + whole[n + 1 :] for n in range(10, len(whole))]
    cut = [*(whole[:n] for n in range(2, len(whole))), whole + b"junk"]
    # A flipped byte may also unpack to more bytes or another header; the check sum at the end is not read then.
    for wrong, also in [*((wrong, "|has more than|starts with") for wrong in flipped), *((wrong, "") for wrong in cut)]:
        (tmp_path / "file.gz").write_bytes(wrong)
        with pytest.raises(ValueError, match=rf"file\.gz: (got a corrupt or truncated gzip{also})"):
            data.read_idx(tmp_path / "file.gz")


@pytest.fixture
def peak():
    """A function that returns the most bytes that were in use at one time since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize("shape", [(2, 3, 2), (2**31, 2**31)])
def test_a_gzip_that_unpacks_to_far_more_than_an_array_takes_no_memory(tmp_path, peak, shape):
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    with gzip.open(tmp_path / "bomb.gz", "wb", compresslevel=1) as file:
        file.write(header)
        for _ in range(100):
            file.write(bytes(2**20))
    with pytest.raises(ValueError, match=r"bomb\.gz: (has more than 28 bytes|shape .* has 4611686018427387916 bytes)"):
        data.read_idx(tmp_path / "bomb.gz")
    assert peak() < 10 * 2**20


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_read_idx_reads_as_many_bytes_as_are_allowed(tmp_path, rng, pack):
    array = rng.integers(0, 256, (2, 3, 2), dtype=np.uint8)
    (tmp_path / "file").write_bytes(pack(idx(array)))
    np.testing.assert_array_equal(data.read_idx(tmp_path / "file", largest=28), array)
    with pytest.raises(ValueError, match=r"file: shape \(2, 3, 2\) has 28 bytes"):
        data.read_idx(tmp_path / "file", largest=27)


# --- MNIST: lookup, verification ----------------------------------------------------------------------------------


@pytest.fixture
def small_mnist(monkeypatch, rng):
    """Four small arrays under MNIST's names, their hashes in the place of MNIST's. Returns name -> array."""
    shapes = [(6, 28, 28), (6,), (3, 28, 28), (3,)]
    arrays = {name: rng.integers(0, 10, shape, dtype=np.uint8) for name, shape in zip(data._MNIST, shapes)}
    monkeypatch.setattr(data, "_MNIST", {name: hashlib.sha256(idx(a)).hexdigest() for name, a in arrays.items()})
    return arrays


def put_mnist(folder, arrays, pack=gzip.compress, ending=".gz"):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        (folder / (name + ending)).write_bytes(pack(idx(array)))


def assert_is(dataset, arrays):
    for got, want in zip(dataset, arrays.values()):
        np.testing.assert_array_equal(got, want[:, None] if want.ndim == 3 else want)


@pytest.mark.parametrize("subfolder", ["mnist", "."])
@pytest.mark.parametrize("pack, ending", [(gzip.compress, ".gz"), (bytes, ""), (lambda b: gzip.compress(b, 1), ".gz")])
@pytest.mark.parametrize("where", ["TINYGEN_DATA", "XDG_CACHE_HOME", "home"])
def test_mnist_is_found(monkeypatch, tmp_path, cache, small_mnist, subfolder, pack, ending, where):
    folder = {"TINYGEN_DATA": tmp_path / "given", "XDG_CACHE_HOME": tmp_path / "xdg/tinygen", "home": cache}[where]
    put_mnist(folder / subfolder, small_mnist, pack, ending)
    if where != "home":
        monkeypatch.setenv(where, str(tmp_path / {"TINYGEN_DATA": "given", "XDG_CACHE_HOME": "xdg"}[where]))
    got = data.mnist()
    assert got.train_images.shape == (6, 1, 28, 28) and got.test_labels.shape == (3,)
    assert_is(got, small_mnist)


def test_tinygen_data_comes_before_the_cache(monkeypatch, tmp_path, cache, small_mnist):
    put_mnist(cache / "mnist", {name: array + 1 for name, array in small_mnist.items()})
    with pytest.raises(ValueError, match="sha256"):
        data.mnist()
    put_mnist(tmp_path / "given/mnist", small_mnist)
    monkeypatch.setenv("TINYGEN_DATA", str(tmp_path / "given"))
    assert_is(data.mnist(), small_mnist)


@pytest.mark.parametrize("name", list(data._MNIST))
def test_one_changed_byte_in_any_mnist_file_is_refused(cache, small_mnist, name):
    put_mnist(cache / "mnist", small_mnist)
    wrong = small_mnist[name].copy()
    wrong.flat[-1] ^= 1
    put_mnist(cache / "mnist", {name: wrong})
    found, needed = hashlib.sha256(idx(wrong)).hexdigest(), data._MNIST[name]
    with pytest.raises(ValueError, match=rf"{name}\.gz: sha256 of the content is {found}, needs {needed}"):
        data.mnist()


def test_more_images_than_mnist_has_are_not_read(cache, peak):
    header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (60001, 28, 28))
    (cache / "mnist").mkdir(parents=True)
    (cache / "mnist/train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(60001 * 28 * 28), 1))
    tracemalloc.reset_peak()
    with pytest.raises(ValueError, match=r"shape \(60001, 28, 28\) has 47040800 bytes"):
        data.mnist()
    assert peak() < 2**20


@pytest.mark.skipif(not HAS_MNIST, reason="TINYGEN_DATA names no folder with mnist/")
def test_full_mnist(monkeypatch):
    monkeypatch.setenv("TINYGEN_DATA", str(REAL))
    full = data.mnist()
    assert [array.shape for array in full] == [(60000, 1, 28, 28), (60000,), (10000, 1, 28, 28), (10000,)]
    assert all(array.dtype == np.uint8 for array in full)
    assert full.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert round(full.train_images.mean() / 255, 4) == 0.1307  # the mean everybody normalizes with
    # What assets/DIGITS.md says of the embedded digits: all in MNIST's training set, none in its test set.
    train = {image.tobytes(): label for image, label in zip(full.train_images, full.train_labels)}
    test = {image.tobytes() for image in full.test_images}
    d = data.digits()
    for image, label in [*zip(d.train_images, d.train_labels), *zip(d.test_images, d.test_labels)]:
        assert train[image.tobytes()] == label and image.tobytes() not in test


# --- downloading --------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path/www on 127.0.0.1. Returns (folder, address, list of paths asked for)."""
    pytest.importorskip("pooch")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path.startswith("/cut/"):  # promises 1,000 bytes, sends 10 and hangs up
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"\x1f\x8b" * 5)
            else:
                super().do_GET()

        def log_message(self, *_):
            pass

    folder = tmp_path / "www"
    folder.mkdir()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield folder, f"http://127.0.0.1:{httpd.server_port}/", asked
    httpd.shutdown()
    httpd.server_close()


def closed_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}/"


@pytest.mark.parametrize("first", ["unreachable", "404", "cut", "wrong content", "not gzip"])
def test_a_failing_mirror_is_followed_by_the_next(monkeypatch, cache, small_mnist, server, first):
    www, address, asked = server
    put_mnist(www / "good", small_mnist)
    put_mnist(www / "wrong", {name: array + 1 for name, array in small_mnist.items()})
    put_mnist(www / "html", small_mnist, pack=lambda _: b"<html>please log in</html>")
    bad = {"unreachable": closed_port(), "404": address + "none/", "cut": address + "cut/"}
    bad |= {"wrong content": address + "wrong/", "not gzip": address + "html/"}
    monkeypatch.setattr(data, "_MNIST_MIRRORS", (bad[first], address + "good/"))
    assert_is(data.mnist(), small_mnist)
    assert files_under(cache) == sorted(f"mnist/{name}.gz" for name in small_mnist)
    asked.clear()
    assert_is(data.mnist(), small_mnist)  # now from the cache
    assert asked == []


@pytest.mark.parametrize("mirror", ["none/", "cut/", "wrong/"])
def test_nothing_stays_of_a_download_that_fails(monkeypatch, cache, small_mnist, server, mirror):
    www, address, _ = server
    put_mnist(www / "wrong", {name: array + 1 for name, array in small_mnist.items()})
    monkeypatch.setattr(data, "_MNIST_MIRRORS", (address + mirror,))
    with pytest.raises(FileNotFoundError, match=f"{address}{mirror}: .+{cache}"):
        data.mnist()
    assert files_under(cache) == []


def test_nothing_stays_of_an_interrupted_download(monkeypatch, cache, small_mnist):
    pooch = pytest.importorskip("pooch")

    def interrupted(self, url, output_file, _):
        Path(output_file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", interrupted)
    monkeypatch.setattr(data, "_MNIST_MIRRORS", ("http://127.0.0.1/",))
    with pytest.raises(KeyboardInterrupt):
        data.mnist()
    assert files_under(cache) == []


@pytest.mark.parametrize(
    "load, name",
    [
        (data.mnist, "mnist/train-images-idx3-ubyte.gz"),
        (data.cifar10, "cifar-10-binary.tar.gz"),
        (data.binarized_mnist, "binarized_mnist_train.amat"),
        (data.frey_faces, "frey_rawface.mat"),
        (data.lfw, "lfwcrop_color.zip"),
    ],
)
@pytest.mark.parametrize("pooch", ["missing", "offline"])
def test_absent_and_not_downloadable_is_one_sentence(monkeypatch, tmp_path, cache, load, name, pooch):
    given = tmp_path / "given"
    monkeypatch.setenv("TINYGEN_DATA", str(given))
    if pooch == "missing":
        monkeypatch.setitem(sys.modules, "pooch", None)
    else:
        pytest.importorskip("pooch")
    for mirrors in ALL_MIRRORS:
        monkeypatch.setattr(data, mirrors, (closed_port(),))
    with pytest.raises(FileNotFoundError) as error:
        load()
    message = str(error.value)
    assert "\n" not in message
    for part in (Path(name).name, str(given), str(cache / name), "TINYGEN_DATA"):
        assert part in message
    assert ("pip install 'tinygen[data]'" in message) == (pooch == "missing")


@pytest.mark.parametrize("name", list(MIRRORS))
def test_more_than_one_mirror_is_published(name):
    assert len(set(MIRRORS[name])) >= 2
    assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in MIRRORS[name])


# --- CIFAR-10 -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_cifar(monkeypatch, rng):
    """Six batches of 4 records. Returns name -> (images (4, 3, 32, 32), labels (4,), bytes)."""
    monkeypatch.setattr(data, "_CIFAR_RECORDS", 4)
    batches = {}
    for part in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]:
        images = rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
        labels = rng.integers(0, 10, 4, dtype=np.uint8)
        # Written out as the format's page says it: the label, then red, green, blue, each row by row.
        content = b"".join(
            bytes([k]) + b"".join(channel.tobytes() for channel in image) for k, image in zip(labels, images)
        )
        batches[f"{part}.bin"] = images, labels, content
    return batches


def put_cifar(folder, batches):
    folder.mkdir(parents=True, exist_ok=True)
    for name, (_, _, content) in batches.items():
        (folder / name).write_bytes(content)


def put_cifar_archive(monkeypatch, folder, batches):
    """The archive in ``folder``, its md5 in the place of CIFAR-10's."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name, (_, _, content) in reversed(batches.items()):  # in the real one they are not sorted either
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    md5 = hashlib.md5((folder / "cifar-10-binary.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(data, "_CIFAR_ARCHIVE_MD5", md5)


def assert_is_cifar(got, batches):
    *train, test = batches.values()
    np.testing.assert_array_equal(got.train_images, np.concatenate([images for images, _, _ in train]))
    np.testing.assert_array_equal(got.train_labels, np.concatenate([labels for _, labels, _ in train]))
    np.testing.assert_array_equal(got.test_images, test[0])
    np.testing.assert_array_equal(got.test_labels, test[1])
    assert all(array.dtype == np.uint8 and array.flags.writeable and array.flags.c_contiguous for array in got)


@pytest.mark.parametrize("subfolder", ["cifar-10-batches-bin", "."])
@pytest.mark.parametrize("given", [True, False])
def test_cifar10_from_a_folder(monkeypatch, tmp_path, cache, small_cifar, subfolder, given):
    if given:
        monkeypatch.setenv("TINYGEN_DATA", str(tmp_path / "given"))
    put_cifar((tmp_path / "given" if given else cache) / subfolder, small_cifar)
    assert_is_cifar(data.cifar10(), small_cifar)


@pytest.mark.parametrize("given", [True, False])
def test_cifar10_from_the_archive(monkeypatch, tmp_path, cache, small_cifar, given):
    if given:
        monkeypatch.setenv("TINYGEN_DATA", str(tmp_path / "given"))
    put_cifar_archive(monkeypatch, tmp_path / "given" if given else cache, small_cifar)
    assert_is_cifar(data.cifar10(), small_cifar)


def test_cifar10_is_downloaded(monkeypatch, cache, small_cifar, server):
    www, address, _ = server
    put_cifar_archive(monkeypatch, www / "good", small_cifar)
    (www / "cut short").mkdir()
    whole = (www / "good/cifar-10-binary.tar.gz").read_bytes()
    (www / "cut short/cifar-10-binary.tar.gz").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(data, "_CIFAR_MIRRORS", (address + "cut short/", address + "good/"))
    assert_is_cifar(data.cifar10(), small_cifar)
    assert files_under(cache) == ["cifar-10-binary.tar.gz"]
    assert_is_cifar(data.cifar10(), small_cifar)


def test_a_corrupt_cifar10_archive_is_refused(cache, monkeypatch, small_cifar):
    put_cifar_archive(monkeypatch, cache, small_cifar)
    path = cache / "cifar-10-binary.tar.gz"
    path.write_bytes(path.read_bytes()[:-1])
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=rf"{path}: md5 of the content is {found}, needs {data._CIFAR_ARCHIVE_MD5}"):
        data.cifar10()


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"\0", lambda c: b"", lambda c: c + c])
@pytest.mark.parametrize("name", ["data_batch_1.bin", "data_batch_4.bin", "test_batch.bin"])
def test_a_cifar10_file_of_another_size_is_refused(cache, small_cifar, name, change):
    put_cifar(cache, small_cifar)
    wrong = change(small_cifar[name][2])
    (cache / name).write_bytes(wrong)
    with pytest.raises(ValueError, match=rf"{name}: has {len(wrong)} bytes"):
        data.cifar10()


def test_a_cifar10_file_with_another_label_is_refused(cache, small_cifar):
    put_cifar(cache, small_cifar)
    (cache / "data_batch_3.bin").write_bytes(bytes([10]) + small_cifar["data_batch_3.bin"][2][1:])
    with pytest.raises(ValueError, match=r"data_batch_3\.bin: has label 10, needs labels 0\.\.9"):
        data.cifar10()


def test_a_missing_cifar10_file_is_named(cache, small_cifar):
    put_cifar(cache, small_cifar)
    (cache / "data_batch_2.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_2\.bin"):
        data.cifar10()


# --- binarization -------------------------------------------------------------------------------------------------

DRAWN = [
    lambda images: data.binarize_static(images, 3),
    lambda images: data.binarize_dynamic(images, np.random.default_rng(4)),
]
ALL = [*DRAWN, data.binarize_threshold]


@pytest.mark.parametrize("binarize", DRAWN)
def test_drawn_pixels_are_one_with_probability_grey_over_255(binarize):
    draws = 1 << 15
    grey = np.tile(np.arange(256, dtype=np.uint8), (draws, 1))
    p = np.arange(256) / 255
    mean, sigma = binarize(grey).mean(0), np.sqrt(p * (1 - p) / draws)
    assert (np.abs(mean - p) <= 4 * sigma).all()  # at 0 and 255 sigma is 0: never and always
    z = (mean - p)[1:-1] / sigma[1:-1]
    assert np.square(z).sum() < 254 + 4 * np.sqrt(2 * 254)  # chi squared: a bias far below one sigma a value shows here


@pytest.mark.parametrize("binarize", DRAWN)
def test_drawn_pixels_are_independent(binarize):
    drawn = binarize(np.full((1 << 14, 8), 128, np.uint8)).astype(float)
    correlation = np.corrcoef(drawn, rowvar=False) - np.eye(8)
    assert np.abs(correlation).max() < 4 / np.sqrt(1 << 14)


@pytest.mark.parametrize("binarize", ALL)
@pytest.mark.parametrize("shape", [(), (7,), (3, 1, 28, 28), (2, 3, 4, 5), (0, 1, 28, 28)])
def test_binarized_is_uint8_zero_or_one_of_the_same_shape(binarize, rng, shape):
    images = np.asarray(rng.integers(0, 256, shape, dtype=np.uint8), dtype=np.uint8)
    before = images.copy()
    got = binarize(images)
    assert got.shape == shape and got.dtype == np.uint8 and set(np.unique(got)) <= {0, 1}
    np.testing.assert_array_equal(images, before)


def test_static_is_fixed_by_its_seed():
    images = data.digits().test_images
    first = data.binarize_static(images, 0)
    np.testing.assert_array_equal(first, data.binarize_static(images, 0))
    assert (first != data.binarize_static(images, 1)).any()
    content = hashlib.sha256(first.tobytes())
    assert content.hexdigest() == "8929e9e698577c2e5a36dc1e8dce056037e48f5ebed0b3b3aa71359872345909"


@pytest.mark.parametrize("seed", [None, 0.5, np.random.default_rng(0)])
def test_static_refuses_a_seed_that_would_not_fix_it(seed):
    with pytest.raises(ValueError, match="binarize_static: seed: got"):
        data.binarize_static(np.zeros((1, 1, 2, 2), np.uint8), seed)


def test_dynamic_differs_from_epoch_to_epoch_and_repeats_from_the_same_rng():
    images = data.digits().test_images
    rng = np.random.default_rng(5)
    epochs = [data.binarize_dynamic(images, rng) for _ in range(2)]
    assert (epochs[0] != epochs[1]).any()
    rng = np.random.default_rng(5)
    for epoch in epochs:
        np.testing.assert_array_equal(epoch, data.binarize_dynamic(images, rng))


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 1 / 3, 128 / 255, 1.0])
def test_threshold_is_strictly_above(threshold):
    grey = np.arange(256, dtype=np.uint8)
    want = [1 if value / 255 > threshold else 0 for value in range(256)]
    assert data.binarize_threshold(grey, threshold).tolist() == want


def test_threshold_by_hand():
    assert data.binarize_threshold(np.array([0, 127, 128, 255], np.uint8)).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("threshold", [127, -0.1, float("nan")])
def test_threshold_refuses_grey_units(threshold):
    with pytest.raises(ValueError, match=f"binarize_threshold: threshold: got {threshold}"):
        data.binarize_threshold(np.zeros(3, np.uint8), threshold)


@pytest.mark.parametrize("binarize", ALL)
@pytest.mark.parametrize(
    "images", [np.zeros(3), np.zeros(3, np.float32), np.zeros(3, np.int64), np.zeros(3, bool), [0, 255]]
)
def test_binarizing_anything_but_uint8_is_refused(binarize, images):
    found = getattr(images, "dtype", "list")
    with pytest.raises(TypeError, match=rf"binarize_\w+: images is {found}"):
        binarize(images)


# -- other sets


def test_emoji():
    emoji = data.emoji()
    assert emoji.images.shape == (1911, 3, 32, 32) and emoji.images.dtype == np.uint8
    last_first = np.ascontiguousarray(emoji.images.transpose(0, 2, 3, 1))
    assert hashlib.sha256(last_first.tobytes()).hexdigest().startswith("d8aae92219490a38")
    assert len(emoji.names) == len(emoji.category) == 1911 and emoji.category.max() < len(emoji.categories)
    assert emoji.categories[emoji.category[emoji.names.tolist().index("grinning")]] == "Smileys & Emotion"


@pytest.mark.parametrize("kind", ["amat", "npz"])
def test_binarized_mnist_in_both_forms(kind, tmp_path, monkeypatch, rng):
    monkeypatch.setenv("TINYGEN_DATA", str(tmp_path))
    parts = {part: rng.integers(0, 2, (n, 784), np.uint8) for part, n in (("train", 5), ("valid", 3), ("test", 2))}
    monkeypatch.setattr(
        data, "_BINARIZED_MNIST", {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in parts.items()}
    )
    if kind == "npz":
        np.savez(tmp_path / "binarized_mnist.npz", **{k: np.packbits(v, axis=1) for k, v in parts.items()})
    for part, pixels in parts.items() if kind == "amat" else ():
        lines = [" ".join(map(str, row)) + "\n" for row in pixels]
        (tmp_path / f"binarized_mnist_{part}.amat").write_text("".join(lines))
    for found, expected in zip(data.binarized_mnist(), parts.values(), strict=True):
        assert found.shape == (len(expected), 1, 28, 28) and (found.reshape(-1, 784) == expected).all()
    monkeypatch.setitem(data._BINARIZED_MNIST, "test", "0" * 64)
    with pytest.raises(ValueError, match=r"sha256 of the content is .*, needs 000"):
        data.binarized_mnist()


@pytest.mark.skipif(not (REAL / "binarized_mnist.npz").exists(), reason="the published binarization is not there")
def test_the_published_sets_where_they_are(monkeypatch):
    monkeypatch.setenv("TINYGEN_DATA", str(REAL))
    train, valid, test = data.binarized_mnist()
    assert [len(part) for part in (train, valid, test)] == [50_000, 10_000, 10_000] and train.max() == 1
    if (REAL / "frey_faces.npz").exists():
        assert data.frey_faces().shape == (1965, 1, 28, 20)
    if (REAL / "lfwcrop_32.npz").exists():
        assert data.lfw().shape == (13233, 3, 32, 32)


@pytest.fixture
def small_frey(monkeypatch, rng):
    """Five frames (5, 28, 20), their hash in the place of the real one's."""
    frames = rng.integers(0, 256, (5, 28, 20), np.uint8)
    monkeypatch.setattr(data, "_FREY_SHA256", hashlib.sha256(frames.tobytes()).hexdigest())
    return frames


def put_mat(path, frames, name="ff"):
    """The file as published: a column of 560 for each frame, its rows one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = np.stack([np.concatenate(list(frame)) for frame in frames], axis=1)
    pytest.importorskip("scipy.io").savemat(path, {name: columns}, do_compression=True)


def test_frey_faces_from_either_file(cache, small_frey):
    cache.mkdir(parents=True)
    np.savez(cache / "frey_faces.npz", images=small_frey)
    np.testing.assert_array_equal(data.frey_faces(), small_frey[:, None])
    (cache / "frey_faces.npz").unlink()
    put_mat(cache / "frey_rawface.mat", small_frey)
    got = data.frey_faces()
    np.testing.assert_array_equal(got, small_frey[:, None])
    assert got.dtype == np.uint8 and got.flags.c_contiguous and got.flags.writeable


def test_frey_faces_are_downloaded(monkeypatch, cache, small_frey, server):
    www, address, asked = server
    put_mat(www / "wrong/frey_rawface.mat", small_frey + 1)
    put_mat(www / "good/frey_rawface.mat", small_frey)
    monkeypatch.setattr(data, "_FREY_MIRRORS", (address + "wrong/", address + "good/"))
    np.testing.assert_array_equal(data.frey_faces(), small_frey[:, None])
    assert files_under(cache) == ["frey_rawface.mat"]
    asked.clear()
    np.testing.assert_array_equal(data.frey_faces(), small_frey[:, None])
    assert asked == []


@pytest.mark.parametrize("wrong", ["order", "type", "name", "cut", "pickle"])
def test_another_matrix_than_frey_faces_is_refused(cache, small_frey, wrong):
    path = cache / "frey_rawface.mat"
    frames = {"order": small_frey[::-1], "type": small_frey.astype(float)}.get(wrong, small_frey)
    put_mat(path, frames, "gg" if wrong == "name" else "ff")
    if wrong in ("cut", "pickle"):
        path.write_bytes(path.read_bytes()[:1000] if wrong == "cut" else pickle.dumps({"ff": small_frey}))
    with pytest.raises(ValueError, match=r"frey_rawface\.mat: (sha256|damaged)"):
        data.frey_faces()


def test_a_matlab_file_without_scipy_says_what_to_install(monkeypatch, cache, small_frey):
    put_mat(cache / "frey_rawface.mat", small_frey)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r"frey_rawface\.mat.*pip install 'tinygen\[data\]'"):
        data.frey_faces()


@pytest.fixture
def small_lfw(monkeypatch, rng):
    """Four images (4, 64, 64, 3) in the order of their names, and their number in the place of the real one's."""
    monkeypatch.setattr(data, "_LFW_IMAGES", 4)
    return rng.integers(0, 256, (4, 64, 64, 3), np.uint8)


def put_lfw(path, images, header=b"P6\n64 64\n255\n", end=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lfwcrop_color/README.txt", "faces")
        for i in reversed(range(len(images))):  # the archive's order is not that of the names
            archive.writestr(f"lfwcrop_color/faces/Name_{i:04}.ppm", header + images[i].tobytes() + end)


def halved(images):
    """The mean of each 2 x 2 pixels, a half rounded up."""
    corners = [images[:, i::2, j::2].astype(float) for i in (0, 1) for j in (0, 1)]
    return np.floor(sum(corners) / 4 + 0.5).transpose(0, 3, 1, 2)


def test_lfw_from_either_file(cache, small_lfw):
    put_lfw(cache / "lfwcrop_color.zip", small_lfw)
    got = data.lfw()
    np.testing.assert_array_equal(got, halved(small_lfw))
    assert got.dtype == np.uint8 and got.flags.c_contiguous and got.flags.writeable
    (cache / "lfwcrop_color.zip").unlink()
    np.savez(cache / "lfwcrop_32.npz", images=got.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(data.lfw(), got)


def test_lfw_is_downloaded(monkeypatch, cache, small_lfw, server):
    www, address, asked = server
    put_lfw(www / "few/lfwcrop_color.zip", small_lfw[:3])
    put_lfw(www / "good/lfwcrop_color.zip", small_lfw)
    monkeypatch.setattr(data, "_LFW_MIRRORS", (address + "few/", address + "good/"))
    np.testing.assert_array_equal(data.lfw(), halved(small_lfw))
    assert files_under(cache) == ["lfwcrop_color.zip"]
    asked.clear()
    np.testing.assert_array_equal(data.lfw(), halved(small_lfw))
    assert asked == []


@pytest.mark.parametrize("header", [b"P5\n64 64\n255\n", b"P6\n32 128\n255\n", b"P6\n64 64\n65535\n", b""])
def test_an_lfw_image_of_another_kind_is_refused(cache, small_lfw, header):
    put_lfw(cache / "lfwcrop_color.zip", small_lfw, header)
    with pytest.raises(ValueError, match=r"lfwcrop_color\.zip: .*Name_0000\.ppm"):
        data.lfw()


@pytest.mark.parametrize("wrong", ["few", "short", "long", "cut"])
def test_a_damaged_lfw_archive_is_refused(cache, small_lfw, wrong, peak):
    path = cache / "lfwcrop_color.zip"
    images = {"few": small_lfw[:3], "short": small_lfw[:, :63]}.get(wrong, small_lfw)
    put_lfw(path, images, end=bytes(30 << 20) if wrong == "long" else b"")
    if wrong == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    tracemalloc.reset_peak()
    with pytest.raises(ValueError, match=r"lfwcrop_color\.zip: damaged"):
        data.lfw()
    assert peak() < 10 << 20  # what unpacks to far more than an image is not read to its end


def test_npz_files_of_faces_with_other_images_are_refused(cache):
    cache.mkdir(parents=True)
    for load, name in ((data.frey_faces, "frey_faces.npz"), (data.lfw, "lfwcrop_32.npz")):
        np.savez(cache / name, images=np.zeros((3, 4), np.uint8))
        with pytest.raises(ValueError, match=name):
            load()
