"""How every command ends: its exit code, and a mistake in one line."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from .errors import UserError


@contextmanager
def importing() -> Iterator[None]:
    """For imports that take seconds: what modules make stays, and looking for garbage in it, again
    and again, takes a fifth of that time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def run(app: typer.Typer, console: Console) -> int:
    """Run the command in `sys.argv`; returns the exit code.

    A user's mistake, or a file system that refuses, is one line and 2; `--debug` shows where it
    came from instead.
    """
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        return app(standalone_mode=False) or 0
    except (UserError, OSError) as error:
        if debug:
            raise
        message = str(error)
    except ModuleNotFoundError as error:
        ours = ("analysis", "backbones", "benchmarks", "experiments")
        if debug or not error.name or error.name.startswith(ours):
            raise
        message = f"{error.name} is not installed: README.md says what this suite needs"
    except Exception as error:
        # Wrong words of the command itself: click's own errors format themselves.
        if not hasattr(error, "format_message"):
            raise
        message = f"{error.format_message()} See --help"
    line = f"error: {' '.join(message.splitlines())}"
    if console.quiet:  # one of several processes, of which another one speaks; it may be well
        print(f"process {os.environ['RANK']}: {line}", file=sys.stderr)
    console.print(line, style="red", highlight=False)
    return 2
