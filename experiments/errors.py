"""A user's mistake, told in one line."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What is wrong, where, and what to do; the commands print it and exit with code 2."""


def unknown(what: str, name: str, allowed: Iterable[str], where: str = "") -> UserError:
    """An error for a name that is not one of `allowed`, with the nearest one."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    shown = ", ".join(allowed[:12]) + (", ..." if len(allowed) > 12 else "")
    return UserError(f"unknown {what} {name!r}{where}: {hint}known are {shown}")
