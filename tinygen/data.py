"""Real images as uint8 arrays (N, C, H, W), and three ways to make grey pixels binary.

Digits and emoji ship with the package. Other sets are read from the folder that the environment variable TINYGEN_DATA
names, or from the cache (``$XDG_CACHE_HOME/tinygen`` or ``~/.cache/tinygen``). If they are in neither, they are
downloaded into the cache (needs ``pip install 'tinygen[data]'``). Nothing is unpickled.
"""

import gzip
import hashlib
import io
import math
import os
import re
import tarfile
import tempfile
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinygen import check
from tinygen.files import read_arrays, written

# sha256 of the uncompressed content: gzip files differ from mirror to mirror, their content does not.
_MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_MNIST_LARGEST = 16 + 60_000 * 28 * 28  # bytes of the training images, unzipped
_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

_CIFAR_ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # published on the data set's page
_CIFAR_BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
_CIFAR_RECORDS = 10_000  # in a batch; each is 1 byte of label, then 3 * 32 * 32 bytes of pixels
_CIFAR_MIRRORS = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")

# sha256 of the pixels, one byte each. The sizes are those of Larochelle and Murray (2011).
_BINARIZED_MNIST = {
    "train": "43490d4d6ac9002727af4426d8748609fdb7e4094fa65ad8d681ea60082a7a5a",
    "valid": "069b4f0beb389b776478c3e872b4df71c95ac4be64d7cbe6d32e24ebac8e6d5e",
    "test": "ca0294c3b8d984c7a1dc891015a8eea6f37bae59a34e35ea0fc8c47110a8dd86",
}
_BINARIZED_MNIST_MIRRORS = ("http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",)

_FREY_SHA256 = "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78"  # of the pixels in order, a byte each
_FREY_MIRRORS = ("https://cs.nyu.edu/~roweis/data/",)

_LFW_IMAGES = 13_233
_LFW_MIRRORS = ("http://conradsanderson.id.au/lfwcrop/",)


class Dataset(NamedTuple):
    """Images uint8 (N, C, H, W), values 0..255; labels uint8 (N,), values 0..9."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def __repr__(self):
        return "Dataset(" + ", ".join(f"{name} {a.shape} {a.dtype}" for name, a in self._asdict().items()) + ")"


class BinarizedMNIST(NamedTuple):
    """Images uint8 (N, 1, 28, 28), values 0 and 1: 50,000, 10,000 and 10,000."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


class Emoji(NamedTuple):
    """Images uint8 (1911, 3, 32, 32) on white, their names and category numbers, and the names of the categories."""

    images: np.ndarray
    names: np.ndarray
    category: np.ndarray
    categories: np.ndarray


def digits() -> Dataset:
    """4,500 + 500 MNIST digits (N, 1, 28, 28) that ship with tinygen, 450 + 50 per class (see assets/DIGITS.md).

    Both parts are from MNIST's training set. Use them to try things out, not for results to compare with papers.
    """
    with np.load(Path(__file__).parent / "assets" / "digits.npz") as arrays:
        return Dataset(*(arrays[field] for field in Dataset._fields))


def mnist() -> Dataset:
    """MNIST (LeCun, Cortes & Burges): 60,000 + 10,000 grey images (N, 1, 28, 28), from its IDX files, gzip or not.

    Raises FileNotFoundError if a file is neither found nor downloaded, ValueError if its content is not MNIST's.
    """
    arrays = []
    for name, sha256 in _MNIST.items():
        places = [f"mnist/{name}.gz", f"mnist/{name}", f"{name}.gz", name]
        arrays.append(_load(places, _MNIST_MIRRORS, partial(read_idx, sha256=sha256, largest=_MNIST_LARGEST)))
    train_images, train_labels, test_images, test_labels = arrays
    return Dataset(train_images[:, None], train_labels, test_images[:, None], test_labels)


def cifar10() -> Dataset:
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour images (N, 3, 32, 32), from its binary version.

    Reads ``cifar-10-binary.tar.gz`` or the folder ``cifar-10-batches-bin`` inside it, never the pickled version.
    Raises FileNotFoundError if they are neither found nor downloaded, ValueError if the content is not CIFAR-10's (the
    archive is checked by its published md5, the files of the folder, which have none, by their sizes and labels).
    """
    places = ["cifar-10-binary.tar.gz", "cifar-10-batches-bin/data_batch_1.bin", "data_batch_1.bin"]
    images, labels = zip(*_load(places, _CIFAR_MIRRORS, _read_cifar))
    return Dataset(np.concatenate(images[:5]), np.concatenate(labels[:5]), images[5], labels[5])


def binarized_mnist() -> BinarizedMNIST:
    """The published static binarization of MNIST, on which the likelihoods of the literature are measured.

    Source: Larochelle and Murray 2011, after Salakhutdinov and Murray 2008. The order of the images is not MNIST's.
    Reads ``binarized_mnist.npz`` (each image packed into 98 bytes) or the published text files
    ``binarized_mnist_train.amat`` and so on. Raises FileNotFoundError if they are neither found nor downloaded,
    ValueError if the pixels differ.
    """
    parts = []
    for part in _BINARIZED_MNIST:
        places = [f"binarized_mnist_{part}.amat", "binarized_mnist.npz"]
        parts.append(_load(places, _BINARIZED_MNIST_MIRRORS, partial(_read_binarized, part=part)))
    return BinarizedMNIST(*parts)


def emoji() -> Emoji:
    """1,911 colour images of Google's Noto Emoji that ship with tinygen (Apache-2.0, see assets/EMOJI.md)."""
    with np.load(Path(__file__).parent / "assets" / "emoji.npz") as arrays:
        images, *others = (arrays[field] for field in Emoji._fields)
    return Emoji(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), *others)


def frey_faces() -> np.ndarray:
    """(1965, 1, 28, 20): the frames of a film of one face (Roweis), in order, so that neighbours are similar.

    Reads ``frey_rawface.mat`` (needs SciPy) or ``frey_faces.npz``, an array ``images`` (1965, 28, 20) of the same
    pixels. Raises FileNotFoundError where they are neither found nor downloaded, ValueError where the pixels differ.
    """
    return _load(["frey_rawface.mat", "frey_faces.npz"], _FREY_MIRRORS, _read_frey)[:, None]


def lfw() -> np.ndarray:
    """(13233, 3, 32, 32): faces of Labeled Faces in the Wild (Huang et al. 2007), cropped (Sanderson and Lovell 2009).

    Reads ``lfwcrop_color.zip``, where each 2 x 2 pixels become their rounded mean, or ``lfwcrop_32.npz``, an array
    ``images`` (13233, 32, 32, 3). Raises FileNotFoundError where they are neither found nor downloaded, ValueError
    where number or size of the images differ; their pixels are not checked, as no hash of them is published. The
    archive's images are in the order of their names; that an npz has this order and this mean is not checked.
    """
    return _load(["lfwcrop_color.zip", "lfwcrop_32.npz"], _LFW_MIRRORS, _read_lfw)


def read_idx(path, sha256: str | None = None, largest: int = 2**30) -> np.ndarray:
    """The uint8 array, of any shape, in an IDX file of unsigned bytes, gzip or not.

    Layout: bytes 0, 0, 8 (the type), number of dimensions, each dimension as a big-endian uint32, then the values.
    No more bytes are read than the shape needs, since a gzip file of 3 MB can unpack to 3 GB. If the shape needs more
    than ``largest`` bytes, by default 1 GiB (MNIST's largest file has 47 million), none are read.
    Raises ValueError for a corrupt gzip, another ``sha256`` (unzipped), another magic number, missing or extra bytes,
    or more than ``largest``.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            return _read_idx(gzip.GzipFile(fileobj=file) if zipped else file, path, sha256, largest)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: got a corrupt or truncated gzip file ({error}), needs a whole one") from None


def _read_idx(file, path, sha256, largest):
    content = bytearray(file.read(4))  # mutable, so that the array can be written to
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: starts with bytes {content.hex(' ')}, needs 00 00 08 (IDX of unsigned bytes)")
    header = 4 + 4 * content[3]
    content += file.read(header - 4)
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4))
    size = header + math.prod(shape)
    if size > largest:
        raise ValueError(f"{path}: shape {shape} has {size} bytes, needs at most {largest} (largest)")
    content += file.read(size + 1 - len(content))  # one byte more, to detect extra bytes
    if len(content) != size:
        found = len(content) if len(content) < size else f"more than {size}"
        raise ValueError(f"{path}: has {found} bytes, needs {size} for shape {shape}")
    if sha256:
        _check_hash(content, "sha256", sha256, path)
    return np.frombuffer(content, np.uint8)[header:].reshape(shape)


def binarize_static(images, seed: int) -> np.ndarray:
    """Draw each pixel once, 1 with probability grey / 255: a fixed binary data set. uint8, any shape, to uint8 {0, 1}.

    The same seed and images give the same pixels. This is the protocol of Larochelle & Murray (2011), after
    Salakhutdinov & Murray (2008); their published file is another draw, so likelihoods are comparable but not equal.
    Raises TypeError if ``images`` is not uint8, ValueError if ``seed`` is not a whole number of at least 0.
    """
    seed = check.count("binarize_static: seed", seed, 0)  # None would give other pixels in each call
    return _draw(_grey(images, "binarize_static"), np.random.default_rng(seed))


def binarize_dynamic(images, rng: np.random.Generator) -> np.ndarray:
    """Like ``binarize_static``, but drawn anew at every call, for each epoch or batch (Salakhutdinov & Murray 2008)."""
    return _draw(_grey(images, "binarize_dynamic"), rng)


def binarize_threshold(images, threshold: float = 0.5) -> np.ndarray:
    """1 where grey / 255 > threshold, else 0; uint8, any shape. Likelihoods differ from those of drawn pixels.

    Raises TypeError if ``images`` is not uint8, ValueError for a threshold outside 0..1.
    """
    threshold = check.number("binarize_threshold: threshold", threshold, "[0, 1]")  # a fraction of full grey 255
    return (np.arange(256) / 255 > threshold).astype(np.uint8)[_grey(images, "binarize_threshold")]


def _grey(images, function):
    found = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
    if found != np.uint8:
        raise TypeError(f"{function}: images is {found}, needs a uint8 array of grey values 0..255")
    return images


def _draw(images, rng):
    # An integer uniform on 0..254 lies below a grey value v with probability v / 255 exactly, 0 and 255 included.
    return (check.generator(rng).integers(0, 255, size=images.shape, dtype=np.uint8) < images).astype(np.uint8)


def _load(places, mirrors, read):
    """Call ``read`` on the first of ``places`` that exists, else on ``places[0]``, downloaded into the cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinygen"
    given = os.environ.get("TINYGEN_DATA")
    folders = [Path(given).expanduser(), cache] if given else [cache]
    for path in (folder / place for folder in folders for place in places):
        if path.is_file():
            return read(path)
    target, failures = cache / places[0], []
    try:
        import pooch
    except ImportError:
        mirrors, failures = (), ["pooch is missing: pip install 'tinygen[data]'"]
    for mirror in mirrors:
        try:
            with tempfile.TemporaryDirectory() as temporary:
                part = Path(temporary) / target.name
                pooch.HTTPDownloader(progressbar=True)(mirror + target.name, str(part), None)
                result = read(part)  # raises where the content is wrong: only a good file is kept
                with written(target) as file:
                    file.write(part.read_bytes())
                return result
        except (OSError, ValueError) as error:
            failures.append(f"{mirror}: {error}")
    raise FileNotFoundError(
        f"{target.name} is neither in {' nor in '.join(map(str, folders))}, nor could it be downloaded "
        f"({'; '.join(failures)}): put it at {target}, or in the folder that TINYGEN_DATA names"
    )


def _read_frey(path):
    if path.suffix == ".npz":
        images = _bytes(path, "images")
    else:
        try:
            from scipy.io import loadmat
        except ImportError as error:
            raise ImportError(f"{path}: to read it, SciPy is missing: pip install 'tinygen[data]'") from error
        try:
            images = np.ascontiguousarray(loadmat(path)["ff"].T)  # (560, 1965): a column is a frame, row by row
        except Exception as error:  # a damaged file may fail anywhere in scipy
            raise ValueError(f"{path}: damaged, or no MATLAB file with a matrix ff ({error})") from error
    _check_hash(images.tobytes(), "sha256", _FREY_SHA256, path)
    return images.reshape(-1, 28, 20)


def _read_lfw(path):
    """From (N, 32, 32, 3) in an npz, or from the PPM images 64 x 64 x 3 of the archive."""
    if path.suffix == ".npz":
        images = _bytes(path, "images")
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(name for name in archive.namelist() if name.endswith(".ppm"))
                if len(names) != _LFW_IMAGES:
                    raise ValueError(f"it has {len(names)} images, needs {_LFW_IMAGES}")
                images = np.stack([_halved(archive, name) for name in names])
        except Exception as error:  # a damaged file may fail anywhere in zipfile
            raise ValueError(f"{path}: damaged, or not the archive of LFWcrop ({error})") from error
    if images.shape != (_LFW_IMAGES, 32, 32, 3):
        raise ValueError(f"{path}: images has shape {images.shape}, needs {(_LFW_IMAGES, 32, 32, 3)}")
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _halved(archive, name):
    size = 64 * 64 * 3
    with archive.open(name) as file:
        content = file.read(size + 100)  # no more: a small archive can unpack to a huge file
    header = re.match(rb"P6\s+64\s+64\s+255\s", content)
    if not header or len(content) != header.end() + size:
        raise ValueError(f"{name} is no binary PPM of 64 x 64 pixels")
    pixels = np.frombuffer(content, np.uint8)[header.end() :].reshape(32, 2, 32, 2, 3)
    return ((pixels.sum((1, 3), dtype=np.uint16) + 2) // 4).astype(np.uint8)


def _bytes(path, name):
    array = read_arrays(path).get(name)
    if array is None or array.dtype != np.uint8 or array.ndim < 2:
        raise ValueError(f"{path}: has no array {name} of uint8, two-dimensional at least")
    return array


def _read_binarized(path, part):
    if path.suffix == ".npz":
        pixels = np.unpackbits(_bytes(path, part), axis=1)
    else:  # 784 numbers 0 or 1 a line, with spaces between them
        text = np.frombuffer(path.read_bytes(), np.uint8)
        pixels = text[(text == ord("0")) | (text == ord("1"))] - ord("0")
    _check_hash(pixels.tobytes(), "sha256", _BINARIZED_MNIST[part], path)
    return pixels.reshape(-1, 1, 28, 28)


def _check_hash(content, algorithm, expected, path):
    found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise ValueError(f"{path}: {algorithm} of the content is {found}, needs {expected}; delete or replace the file")


def _read_cifar(path):
    """Six pairs (images, labels), from the archive or from the folder of the first batch."""
    if path.name == "data_batch_1.bin":
        return [_cifar_batch((path.parent / name).read_bytes(), path.parent / name) for name in _CIFAR_BATCHES]
    content = path.read_bytes()
    _check_hash(content, "md5", _CIFAR_ARCHIVE_MD5, path)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [f"cifar-10-batches-bin/{name}" for name in _CIFAR_BATCHES]
        return [_cifar_batch(archive.extractfile(member).read(), path / member) for member in members]


def _cifar_batch(content, path):
    if len(content) != _CIFAR_RECORDS * 3073:
        raise ValueError(f"{path}: has {len(content)} bytes, needs {_CIFAR_RECORDS * 3073}")
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    labels = records[:, 0].copy()
    if labels.max() > 9:
        raise ValueError(f"{path}: has label {labels.max()}, needs labels 0..9")
    return records[:, 1:].reshape(-1, 3, 32, 32).copy(), labels
