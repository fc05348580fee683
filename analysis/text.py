"""Numbers and tables as text; what is not known is empty."""

import pandas as pd
from rich.console import Console
from tabulate import tabulate


def number(value: float | None, form: str = ".1f", unit: float = 1) -> str:
    """ "51.2" """
    return "" if value is None or pd.isna(value) else f"{value / unit:{form}}"


def spread(mean: float | None, std: float | None) -> str:
    """ "51.2 ± 0.4"; without the spread of a single seed."""
    return " ± ".join(filter(None, (number(mean), number(mean) and number(std))))


def around(low: float | None, high: float | None, form: str = ".1f") -> str:
    """ "+0.4 .. +4.2" """
    return " .. ".join(filter(None, (number(low, form), number(high, form))))


def interval(value: float | None, low: float | None, high: float | None, form: str) -> str:
    """ "+2.3 (+0.4 .. +4.2)"; without an interval where there is none."""
    ends = around(low, high, form)
    return number(value, form) + f" ({ends})" * bool(ends)


def grid(cells: pd.DataFrame, form: str = "simple") -> str:
    """Text cells as a table in one of tabulate's formats."""
    return tabulate(cells, "keys", form, showindex=False, disable_numparse=True)


def with_interval(table: pd.DataFrame, sign: str = "+") -> pd.DataFrame:
    """A table's low and high as one column of text."""
    bounds = zip(table["low"], table["high"], strict=True)
    text = [around(low, high, f"{sign}.2f") for low, high in bounds]
    return table.drop(columns=["low", "high"]).assign(**{"95 % interval": text})


def print_table(table: pd.DataFrame, title: str, console: Console) -> None:
    """Print a table of numbers and words under its title."""
    known = table.astype(object).where(table.notna(), None)
    text = tabulate(known, headers="keys", showindex=False, floatfmt=".2f", missingval="")
    console.print(f"\n{title}\n{text}", highlight=False)
