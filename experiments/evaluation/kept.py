"""Arrays that take long to compute, kept in a file beside what they were computed from."""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np


def kept(
    path: Path, digest: str, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays in the file at `path`; made, and written there, if it is not of that digest.

    A folder that cannot be written to costs the time of making them again, nothing else.

    Args:
        path: ends in .npz.
        digest: of all that they depend on.
    """
    try:
        with np.load(path) as content:
            if str(content["digest"]) == digest:
                return {name: content[name] for name in content.files if name != "digest"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        pass  # there is none, or it is broken
    arrays = make()
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        with scratch.open("wb") as file:
            np.savez_compressed(file, digest=digest, **arrays)
        os.replace(scratch, path)
    return arrays
