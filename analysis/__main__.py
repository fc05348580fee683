"""Tables and plots from records: `python -m analysis --help`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tabulate import tabulate

from experiments import commands

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__
)
console = Console(soft_wrap=True, markup=False)


@app.callback()
def _commands() -> None:
    pass


@app.command()
def study(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a study, e.g. runs/mini/global-vs-conv.")
    ],
) -> None:
    """Write table.csv, table.md and the plot of a study that was run, and print the table."""
    from . import plots, tables

    manifest, table = tables.study_table(folder)
    table.to_csv(folder / "table.csv", index=False)
    text = tables.markdown(manifest, table, tables.provenance(folder))
    (folder / "table.md").write_text(text)
    written = [folder / "table.csv", folder / "table.md"]
    written += plots.ap_vs_macs(manifest, table, folder / "ap_vs_macs")

    for text in (tables.summary(table), tables.details(table)):
        shown = tabulate(text, headers="keys", showindex=False, disable_numparse=True)
        console.print(shown + "\n", highlight=False)
    console.print("written: " + "  ".join(str(path) for path in written))


if __name__ == "__main__":
    sys.exit(commands.run(app, console))
