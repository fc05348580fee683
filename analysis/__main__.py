"""Tables and plots from records: `python -m analysis --help`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments import commands

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__
)
console = Console(soft_wrap=True, markup=False)


Folders = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="STUDY...", help="Folders of studies, e.g. runs/mini/count; default: all."
    ),
]
Runs = Annotated[Path, typer.Option(help="Folder that runs are kept in.")]
Delta = Annotated[
    float | None,
    typer.Option(help="AP; smaller differences are of no interest. Default: the scale's.", min=0),
]
Wide = Annotated[bool, typer.Option("--wide", help="Masks, IoUs and object sizes, and costs, too.")]


@app.command()
def study(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a study, e.g. runs/mini/global-vs-conv.")
    ],
    dataset: Annotated[str, typer.Option(help="As of the run, with --val: on your own set.")] = "",
    val: Annotated[str, typer.Option(help="As of the run.")] = "",
    delta: Delta = None,
    keep: Annotated[bool, typer.Option("--keep", help="Copy them to results/ as well.")] = False,
    wide: Wide = False,
) -> None:
    """Write the tables and plots of a study that was run, and print its table: table.csv and
    table.md, runs.csv, categories.csv, the differences, AP against MACs, and, where the data have a
    cue, reach.csv and its curve."""
    with commands.importing():
        from experiments.data.annotations import set_name, study_folder

        from . import provenance, results, study_files, tables

    if dataset and val:
        folder = folder.with_name(study_folder(folder.name, set_name(dataset, val)))
    found = results.load(folder, delta)
    written = study_files.write(found, wide)
    tables.show(found, wide, console)
    if keep:
        provenance.check_publishable(found)
        written += study_files.keep(written, found.manifest["scale"], found.manifest["study"])
    _say(written)


def _say(written: list[Path]) -> None:
    console.print("written: " + "  ".join(map(str, written)), highlight=False)


@app.command()
def verdicts(
    folder: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study.")],
    delta: Delta = None,
) -> None:
    """Print each row's verdict on box AP, as JSON for programs. It is a look at them, as a table is
    (docs/analysis.md)."""
    with commands.importing():
        from . import looks, results

    found = results.load(folder, delta)
    looks.check(found.manifest)
    print(json.dumps(found.table.set_index("variant")["ap_box_verdict"].to_dict()))


@app.command("tables")
def print_tables(
    folders: Folders = None,
    form: Annotated[str, typer.Option("--format", help="md, latex, html, csv or text.")] = "md",
    delta: Delta = None,
    runs: Runs = Path("runs"),
    wide: Wide = False,
) -> None:
    """Print the tables of studies: AP with intervals, verdicts, costs, the paper's figures."""
    from . import results, tables

    tables.check_format(form)
    found = [results.load(folder, delta) for folder in results.folders(folders, runs)]
    if form == "csv":
        print(tables.csv(found), end="")
    else:
        print("\n".join(tables.whole(study, form, wide) for study in found))


@app.command("plots")
def write_plots(folders: Folders = None, delta: Delta = None, runs: Runs = Path("runs")) -> None:
    """Write the plots of studies: PNG, SVG and the CSV behind each, into <study>/plots/."""
    from . import plots, results

    for folder in results.folders(folders, runs):
        out = folder / "plots"
        out.mkdir(exist_ok=True)
        found = results.load(folder, delta)
        for name, draw in plots.ALL.items():
            for path in draw(found, out / name):
                console.print(str(path), highlight=False)


@app.command("report")
def write_report(
    folders: Folders = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; default: in runs.")] = None,
    delta: Delta = None,
    runs: Runs = Path("runs"),
) -> None:
    """Write report.html, one file that needs no network, and the same as report.md."""
    from . import report, results

    written = report.write(results.folders(folders, runs), out or runs / "report", delta)
    _say(written)


@app.command("export")
def send_to_tracker(
    folders: Folders = None,
    to: Annotated[str, typer.Option(help="csv, mlflow, trackio or wandb.")] = "csv",
    out: Annotated[Path | None, typer.Option(help="Folder for files; default: in runs.")] = None,
    project: Annotated[str, typer.Option(help="As the tracker calls it.")] = "backbone-ablations",
    offline: Annotated[
        bool, typer.Option("--offline", help="Into files of the tracker's.")
    ] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Send finished runs to an experiment tracker: config, figures, curves, tables, pictures."""
    from . import export, results

    export.check(to)
    out = out or runs / "export" / to
    chosen = results.folders(folders, runs)
    console.print(export.export(chosen, to, out, project=project, offline=offline), highlight=False)


@app.command("bundle")
def write_bundle(
    folder: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write to; default: in runs.")] = None,
    delta: Delta = None,
    runs: Runs = Path("runs"),
) -> None:
    """Put a study into one archive: records, configs, predictions, tables, report, commands."""
    from . import bundle, results, study_files

    found = results.load(folder, delta)
    study_files.write(found, wide=True)
    _say([bundle.write(found, out or runs / "bundles")])


@app.command("validity")
def write_validity(
    runs: Runs = Path("runs"),
    scale: Annotated[str, typer.Option(help="mini or small.")] = "mini",
    size: Annotated[str, typer.Option(help="Model size; default: the scale's.")] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Copy it to results/ as well.")] = False,
) -> None:
    """Whether a cheap scale orders rows as the paper does, pair by pair; validity.md and .csv."""
    with commands.importing():
        from . import tables, validity

    found = validity.load(runs, scale, size)
    console.print(tables.render(validity.cells(found), "text") + "\n", highlight=False)
    for line in (*validity.totals(found), *found.notes):
        console.print(line, highlight=False)
    written = validity.write(found, runs / scale)
    if keep:
        validity.check_publishable(found)
        written += validity.write(found, Path("results") / scale)
    _say(written)


@app.command("coverage")
def write_coverage(
    draws: Annotated[
        int | None, typer.Option(help="Studies of each case and figure.", min=1)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("results/coverage"),
) -> None:
    """Whether intervals and verdicts hold what they say, in simulated studies whose true
    differences are known, also where seeds are added until verdicts are decided; writes coverage
    and looks, .md and .csv."""
    from . import coverage, coverage_of_looks

    written = []
    for suite in (coverage, coverage_of_looks):
        written += suite.write(suite.run(suite.cases(), draws or suite.DRAWS), out)
        console.print(written[-2].read_text(), highlight=False)
    _say(written)


@app.command("repeats")
def write_repeats(
    folder: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study.")],
    size: Annotated[int, typer.Option(help="Seeds of a set.")] = 3,
    delta: Delta = None,
    keep: Annotated[bool, typer.Option("--keep", help="Copy it to results/ as well.")] = False,
) -> None:
    """Would another set of seeds say the same: the verdicts of disjoint sets of a study's seeds,
    box AP; writes repeats.csv."""
    with commands.importing():
        from . import repeats
        from .text import print_table

    found = repeats.load(folder, size, delta)
    shown = found.drop(columns=["command", "device", "git_commit"])
    title = f"box AP, differences to the base from sets of {size} seeds"
    print_table(shown, title, console)
    for line in repeats.totals(found):
        console.print(line, highlight=False)
    written = [folder / "repeats.csv"]
    found.to_csv(written[0], index=False)
    if keep:
        from . import study_files

        written += study_files.keep(written, folder.parent.name, folder.name)
    _say(written)


@app.command()
def add(
    folder: Annotated[
        Path, typer.Argument(metavar="STUDY", help="Folder of a study that was run.")
    ],
    predictions: Annotated[Path, typer.Option(help="File in COCO's result format.")],
    name: Annotated[str, typer.Option(help="How the row is called.")],
    macs: Annotated[float | None, typer.Option(help="Of the detector, one image.")] = None,
    params: Annotated[float | None, typer.Option(help="Of the detector.")] = None,
) -> None:
    """Put the results of any detector into a study's table, plots, report and comparisons."""
    from . import foreign

    path = foreign.add(folder, predictions, name, macs, params)
    console.print(f"added: {path}\ntable: python -m analysis study {folder}", highlight=False)


@app.command()
def compare(
    ours: Annotated[Path, typer.Argument(help="Folder of a finished run, or of what `add` added.")],
    base: Annotated[Path, typer.Argument(help="The run that it is compared with.")],
    delta: Delta = None,
    top: Annotated[int, typer.Option(help="Categories and images to show of each.", min=0)] = 5,
) -> None:
    """The difference of two runs: what changed, AP with 95 % intervals over images, the categories
    and images that moved most, costs."""
    from . import compare as two_runs

    two_runs.show(ours, base, delta, top, console)


@app.command()
def score(
    truth: Annotated[Path, typer.Argument(help="Annotation file, COCO's format or LVIS's.")],
    results: Annotated[Path, typer.Argument(help="Detections, COCO's result format.")],
    base: Annotated[
        Path | None,
        typer.Argument(metavar="RESULTS2", help="Others that they are compared with."),
    ] = None,
    delta: Annotated[
        float, typer.Option(help="AP; smaller differences are of no interest.", min=0)
    ] = 0.5,
    top: Annotated[int, typer.Option(help="Categories to show of each; 0: all.", min=0)] = 20,
) -> None:
    """Score detections of any detector, without a run or images: figures with 95 % intervals over
    images, AP by category; of two files their difference."""
    with commands.importing():
        from . import score as scores

    scores.show(truth, results, base, delta, top, console)


@app.command("reach")
def print_reach(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|TRUTH", help="A run's folder, or an annotation file.")
    ],
    predictions: Annotated[
        Path | None, typer.Argument(help="With TRUTH: a file in COCO's result format.")
    ] = None,
) -> None:
    """Count reach anew: of objects at each distance, in windows, from the nearest that shows the
    cue, those that are annotated, found, and found with the right cue."""
    from . import reach

    reach.show(source, predictions, console)


@app.command()
def evaluation(
    folder: Annotated[
        Path, typer.Argument(help="What `python -m experiments evaluate` wrote; default: the last.")
    ] = Path("runs/evaluations/last"),
) -> None:
    """What a checkpoint scored, boxes and masks, beside what is published for it."""
    from . import evaluation as evaluations
    from .text import grid

    table = evaluations.table(folder)
    if len(table):
        console.print(f"{grid(table)}\n", highlight=False)
    for note in evaluations.notes(folder):
        console.print(note, highlight=False)


@app.command()
def pretraining(
    folder: Annotated[Path, typer.Argument(help="Folder of a scale, e.g. runs/mini.")],
) -> None:
    """Show what pre-training did: a table, learning curves, and what each MAE fills in."""
    from . import pretraining

    runs = pretraining.load(folder)
    written = pretraining.show(folder, runs, console)
    console.print("\nruns: " + "  ".join(map(str, runs)), highlight=False)
    _say(written)


@app.command("paper-tables")
def paper_tables(
    runs: Runs = Path("runs"),
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("results/paper"),
) -> None:
    """Every table of the paper: published figures, and ours beside them, counted and trained."""
    from . import figures, todays_encoders
    from . import paper_tables as tables

    rows = tables.Rows(runs=runs)
    table, todays = tables.paper_tables(rows), todays_encoders.table()
    written = tables.write(table, out) + todays_encoders.write(todays, out)
    written += figures.write(tables.points(rows), out)
    tables.show(table, console)
    todays_encoders.show(todays, console)
    _say(written)


@app.command()
def cost(
    sizes: Annotated[
        list[str] | None, typer.Argument(help="Model sizes; default: vit-b, vit-l and vit-h.")
    ] = None,
) -> None:
    """Closed formulas for parameters and MACs, module by module: the tables of docs/cost.md."""
    from . import formula_tables as tables

    for table in (tables.encoder_table, tables.propagation_table, tables.per_head_table):
        console.print(tables.markdown(table(sizes or tables.PAPER_SIZES)) + "\n")


def main() -> None:
    """Run a command; a user's mistake ends in one line and exit code 2."""
    sys.exit(commands.run(app, console))


if __name__ == "__main__":
    main()
