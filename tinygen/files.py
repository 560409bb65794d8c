"""Atomic writing of files, and safe reading of arrays from files that others may have made."""

import contextlib
import errno
import glob
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np


@contextlib.contextmanager
def written(path):
    """``with written(path) as file:`` opens a binary file that becomes ``path`` when the block ends.

    Whatever happens, ``path`` is the old file or the complete new one. Missing folders are made, symbolic links are
    followed, and the file mode is kept. Raises OSError, with the path, if the file cannot be written, or if ``path`` is
    a folder or a device.
    """
    target = Path(os.path.realpath(path))
    # Each writer has a temporary file of its own, so that none renames the unfinished file of another
    temporary = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        if target.exists() and not target.is_file():
            raise OSError(errno.EINVAL, "it is a folder or a device, needs a file")
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f"{glob.escape(target.name)}.*.part"):  # from killed processes
            if left == temporary or left.lstat().st_mtime < time.time() - 86_400:
                left.unlink(missing_ok=True)
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno or errno.EIO, f"cannot be written ({reason})", str(path)) from error


def read_arrays(path) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name. Nothing is unpickled.

    Raises OSError for a file that cannot be read, ValueError for one that is damaged, is not an npz file, or unpacks to
    more than 64 MiB plus 20 times its size.
    """
    with open(path, "rb") as opened:
        try:
            with np.load(opened, allow_pickle=False) as file:
                size, unpacked = os.fstat(opened.fileno()).st_size, sum(m.file_size for m in file.zip.infolist())
                if unpacked > (64 << 20) + 20 * size:
                    raise ValueError(f"its {size:,} bytes unpack to {unpacked:,}")
                return {name: file[name] for name in file.files}
        except Exception as error:  # a damaged file may fail anywhere in zipfile and numpy
            raise ValueError(f"{path}: damaged, or no npz file ({error})") from error
