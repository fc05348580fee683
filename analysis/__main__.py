"""Tables and plots from records: `python -m analysis --help`."""

import shutil
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


@app.command()
def study(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a study, e.g. runs/mini/global-vs-conv.")
    ],
    keep: Annotated[bool, typer.Option("--keep", help="Copy them to results/ as well.")] = False,
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
    if keep:
        tables.check_publishable(manifest, table)
        kept = Path("results") / manifest["scale"] / manifest["study"]
        kept.mkdir(parents=True, exist_ok=True)
        written += [Path(shutil.copy(path, kept)) for path in written]
    console.print("written: " + "  ".join(str(path) for path in written))


@app.command()
def compare(
    ours: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    base: Annotated[Path, typer.Argument(help="The run that it is compared with.")],
    delta: Annotated[float, typer.Option(help="AP; smaller differences are of no interest.")] = 0.5,
) -> None:
    """The difference of two runs: what changed, AP with 95 % intervals over images, costs."""
    from experiments import records

    from . import compare as tables

    runs = [records.read(folder / records.RECORD) for folder in (ours, base)]
    for line in tables.changes(*runs):
        console.print(line, highlight=False)
    table = tables.ap_table(ours, base, delta)
    bounds = zip(table.pop("low"), table.pop("high"), strict=True)
    table["95 % interval"] = [f"{low:+.2f} .. {high:+.2f}" for low, high in bounds]
    for shown in (table, tables.cost_table(*runs)):
        text = tabulate(shown, headers="keys", showindex=False, floatfmt=".2f")
        console.print("\n" + text, highlight=False)
    console.print(
        "\nThe intervals are over images: they are about these two trained detectors. What another "
        "seed would change is not in them.",
        highlight=False,
    )


@app.command("paper-tables")
def paper_tables(
    runs: Annotated[Path, typer.Option(help="Folder that runs are kept in.")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("results/paper"),
) -> None:
    """Every table of the paper: published figures, and ours beside them, counted and trained."""
    from . import figures
    from . import paper_tables as tables

    rows = tables.Rows(runs=runs)
    table = tables.paper_tables(rows)
    written = tables.write(table, out)
    ours = tables.points(rows)
    for number, draw in ((3, figures.figure3), (4, figures.figure4), (5, figures.figure5)):
        written += draw(ours, out / f"figure-{number}")
    for name, title in tables.TITLES.items():
        part = table[table["table"] == name]
        shown = tabulate(tables.cells(part), headers="keys", showindex=False, disable_numparse=True)
        console.print(f"{title}: {tables.caption(part)}\n{shown}\n", highlight=False)
    console.print("written: " + "  ".join(str(path) for path in written))


@app.command()
def cost(
    sizes: Annotated[
        list[str] | None, typer.Argument(help="Model sizes; default: vit-b, vit-l and vit-h.")
    ] = None,
) -> None:
    """Closed formulas for parameters and MACs, module by module: the tables of docs/cost.md."""
    from . import formulas

    for table in (formulas.encoder_table, formulas.propagation_table, formulas.per_head_table):
        console.print(formulas.markdown(table(sizes or formulas.PAPER_SIZES)) + "\n")


if __name__ == "__main__":
    sys.exit(commands.run(app, console))
