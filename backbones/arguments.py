"""Checks of constructor arguments: a wrong one is named, with its value and what is allowed."""

import math
from typing import Any


def whole_number(argument: str, value: Any, least: int) -> int:
    """Return `value` if it is an int of at least `least`.

    Raises:
        ValueError: otherwise.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{argument}={value!r} does not fit: a whole number of at least {least} does"
        )
    return value


def number(argument: str, value: Any, least: float, below: float = math.inf) -> float:
    """Return `value` if it is a number of at least `least` and below `below`.

    Raises:
        ValueError: otherwise.
    """
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not least <= value < below:
        limit = "" if math.isinf(below) else f" and below {below}"
        raise ValueError(
            f"{argument}={value!r} does not fit: a number of at least {least}{limit} does"
        )
    return value


def builder(argument: str, value: Any) -> Any:
    """Return `value` if it can be called to build a module, as a class or a function can.

    Raises:
        ValueError: otherwise, also for a module that is already built.
    """
    if not callable(value) or (hasattr(value, "state_dict") and not isinstance(value, type)):
        raise ValueError(f"{argument}={value!r} does not fit: a class or function does")
    return value
