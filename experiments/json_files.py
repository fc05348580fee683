"""JSON files that are there whole or not at all."""

import json
import os
import platform
from pathlib import Path
from typing import Any


def write_json(path: Path, content: dict, **form: Any) -> None:
    """Write a file that is there whole or not at all; `form` as of `json.dumps`.

    Raises:
        OSError: with the file's name.
    """
    scratch = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")
    try:
        with open(scratch, "w") as file:
            file.write(json.dumps(content, **{"indent": 1} | form))
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
