"""What to run, and running it: `python -m experiments --help`."""

import logging
import os
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import commands
from .errors import UserError
from .scales import SCALES

# Of what the libraries under detectron2 call in each other: nothing that a user can change.
warnings.simplefilter("ignore", FutureWarning)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__
)
# Of the processes that torchrun starts together, one speaks.
console = Console(soft_wrap=True, markup=False, quiet=os.environ.get("RANK", "0") != "0")

StudyWord = Annotated[str, typer.Argument(help="Name of a study, or a .py file that defines one.")]
Scale = Annotated[str, typer.Option(help="mini, small or coco.")]
ScaleArgument = Annotated[str, typer.Argument(help="mini, small or coco.")]
Kind = Annotated[str, typer.Option(help="coco or lvis.")]
Size = Annotated[str, typer.Option(help="Model size; default: the study's.")]
Variants = Annotated[str, typer.Option(help="Some rows only, comma-separated.")]
Overrides = Annotated[str, typer.Option(help='Config keys to set: "a.b=c d.e=f".')]
Dataset = Annotated[
    str, typer.Option("--dataset", help="Train on your own: annotations.json,images/ (with --val).")
]
Val = Annotated[str, typer.Option("--val", help="Evaluate on your own: annotations.json,images/.")]
Images = Annotated[
    str, typer.Option("--images", help="Pre-train on your own: a folder, in ImageNet's layout.")
]
Gpus = Annotated[
    int,
    typer.Option(help="Devices of one run; without a GPU, processes on the CPU.", min=1),
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that runs are kept in.")]
Seeds = Annotated[
    str,
    typer.Option(help="Number of seeds; 0: the study's; auto: until every verdict is decided."),
]
SweepWord = Annotated[
    str,
    typer.Option(
        "--sweep",
        help="Each row at its best of several values: a config key and factors on the row's own, "
        "optimizer.lr=0.5,1,2.",
    ),
]
Jobs = Annotated[
    int,
    typer.Option(help="Runs side by side; 0: one per GPU or core, or as slurm.toml says.", min=0),
]
LauncherWord = Annotated[str, typer.Option("--launcher", help="local, or slurm (docs/cluster.md).")]
Yes = Annotated[bool, typer.Option("--yes", help="Train for days on a CPU if need be.")]
MaxSeeds = Annotated[int | None, typer.Option(help="With --seeds auto: at most; default: 17.")]


@app.command()
def run(
    study: StudyWord,
    scale: Scale = "mini",
    size: Size = "",
    seeds: Seeds = "0",
    max_seeds: MaxSeeds = None,
    budget: Annotated[
        str, typer.Option(help="With --seeds auto: time of all runs, 90m, 2h or 1.5d.")
    ] = "",
    delta: Annotated[
        float | None,
        typer.Option(help="With --seeds auto: AP of no interest; default: the scale's.", min=0),
    ] = None,
    sweep: SweepWord = "",
    variants: Variants = "",
    jobs: Jobs = 0,
    gpus: Gpus = 1,
    launcher: LauncherWord = "local",
    overrides: Overrides = "",
    dataset: Dataset = "",
    val: Val = "",
    images: Images = "",
    yes: Yes = False,
    runs: Runs = Path("runs"),
) -> None:
    """Train and evaluate what is not done yet of a study."""
    from . import studies

    found = studies.find(study)  # before the imports that take seconds

    with commands.importing():
        from .forecast import seeds as adding
        from .forecast.request import Request
        from .forecast.rounds import Rounds
        from .jobs import sweep as sweeping
        from .launching import launcher as launching

    wanted = adding.parse(seeds, max_seeds, budget)
    by = launching(launcher, jobs, gpus)
    request = Request(
        study=found, source=study, scale=scale, size=size, seeds=wanted,
        sweep=sweeping.parse(sweep), variants=variants, overrides=overrides, dataset=dataset,
        val=val, images=images, runs=runs, command=_command(), delta=delta, yes=yes,
    )  # fmt: skip
    raise typer.Exit(by.launch(Rounds(request, by, console), console))


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, see configs/pretraining.")],
    scale: Scale = "mini",
    size: Annotated[str, typer.Option(help="Model size; default: the scale's.")] = "",
    seeds: Annotated[int, typer.Option(help="Number of seeds; 0: one.", min=0)] = 0,
    jobs: Jobs = 0,
    gpus: Gpus = 1,
    launcher: LauncherWord = "local",
    overrides: Overrides = "",
    images: Images = "",
    yes: Yes = False,
    runs: Runs = Path("runs"),
) -> None:
    """Pre-train an encoder, without a detector behind it."""
    from .forecast import rounds
    from .launching import launcher as launching
    from .recipe import config

    config.check_scale(scale)
    size = size or SCALES[scale].size
    by = launching(launcher, jobs, gpus)
    plan = rounds.of_recipe(recipe, scale, size, seeds, overrides, images, runs, yes, by, console)
    raise typer.Exit(by.launch(plan, console))


@app.command()
def plan(
    study: StudyWord,
    scale: Scale = "mini",
    size: Size = "",
    seeds: Seeds = "0",
    max_seeds: MaxSeeds = None,
    sweep: SweepWord = "",
    variants: Variants = "",
    overrides: Overrides = "",
    gpus: Annotated[
        int, typer.Option(help="GPUs, of one run or of runs side by side; 0: what there is.", min=0)
    ] = 0,
    device: Annotated[str, typer.Option(help="A GPU by name; default: this machine.")] = "",
    budget: Annotated[
        str, typer.Option(help="Time, 90m, 2h or 1.5d: what it buys; at small scale: 24h.")
    ] = "",
    dataset: Dataset = "",
    val: Val = "",
) -> None:
    """Say what a study will take before it runs: hours, memory, disk, row by row."""
    from . import studies

    found = studies.find(study)

    from .forecast import plan_text
    from .forecast import seeds as adding
    from .forecast.request import Request
    from .jobs import sweep as sweeping

    request = Request(
        study=found, source=study, scale=scale, size=size,
        seeds=adding.parse(seeds, max_seeds, ""), sweep=sweeping.parse(sweep), variants=variants,
        overrides=overrides, dataset=dataset, val=val,
    )  # fmt: skip
    plan_text.show(request, device, gpus, console, budget)


@app.command()
def studies(runs: Runs = Path("runs")) -> None:
    """List the studies: question, rows, and how many of the runs last asked for are done."""
    from . import studies as package
    from .records import progress

    for name in package.files():
        study = package.find(name)
        console.print(f"{name}  {study.question}")
        rows = {scale: ", ".join(v.name for v in study.rows(scale)) for scale in SCALES}
        console.print(f"  rows: {rows.pop('coco')}")
        for scale, names in rows.items():
            if names != ", ".join(v.name for v in study.variants):
                console.print(f"  rows at {scale} scale: {names}")
        console.print(f"  done: {progress.of_study(runs, name)}")


@app.command()
def data(
    scale: ScaleArgument = "mini",
    show: Annotated[
        bool, typer.Option("--show", help="Write a sheet of annotated images.")
    ] = False,
    kind: Kind = "coco",
    dataset: Dataset = "",
    val: Val = "",
    overrides: Overrides = "",
    runs: Runs = Path("runs"),
) -> None:
    """Make or find the data of a scale, and say what it is."""
    from .data import catalog, sheet, subsets
    from .recipe import checks, resolved

    shares = resolved.data_shares(scale, kind, overrides)
    found = catalog.prepare(scale, dataset or None, val or None, kind, shares)
    for name, split in (("train", found.train), ("val", found.val)):
        console.print(f"{name}: {split.json_file}\n  images in {split.image_root}")
        for line in (*subsets.told(split), *sheet.summary(split)):
            console.print("  " + line)
    console.print(f"digest of both annotation files, as records have it: {found.digest}")
    if show:
        path = runs / scale / "data.png"
        checks.check_writable(path.parent)
        sheet.write(found.train, path)
        console.print(f"picture sheet: {path}")


@app.command("check-data")
def check_data(
    scale: ScaleArgument = "mini",
    kind: Kind = "coco",
    dataset: Dataset = "",
    val: Val = "",
    jobs: Annotated[int, typer.Option(help="Processes that read; 0: all cores.", min=0)] = 0,
    overrides: Overrides = "",
    runs: Runs = Path("runs"),
) -> None:
    """Read a data set once, every image, and list what is wrong with it."""
    from .data import catalog, check
    from .data.defects import DefectError
    from .recipe import checks, resolved

    shares = resolved.data_shares(scale, kind, overrides)
    checks.check_writable(runs / scale)
    try:
        found = catalog.find(scale, dataset, val, kind, shares)
    except DefectError:  # of which there is no share before it is mended
        found = catalog.find(scale, dataset, val, kind)
    splits = dict(zip(("train", "val"), found, strict=True))
    raise typer.Exit(check.check_data(splits, runs / scale / "data-defects.csv", console, jobs))


@app.command()
def evaluate(
    config_file: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="configs/*.py or a run's config.yaml; '': the config.yaml beside the weights.",
        ),
    ],
    weights: Annotated[Path, typer.Argument(help="Checkpoint of the whole detector.")],
    split: Annotated[
        str,
        typer.Option(help="val2017, train2017, test-dev2017, lvis_v1_val; default: the config's."),
    ] = "",
    val: Val = "",
    gpus: Gpus = 1,
    overrides: Overrides = "",
    runs: Runs = Path("runs"),
) -> None:
    """Evaluate a checkpoint: box and mask AP on COCO val2017, or on another split."""
    if split and val:
        raise UserError(f"--split {split} and --val {val} say the same thing: give one of them")
    from .training import distributed

    if gpus > 1 and not distributed.started_by_torchrun():
        from .launching import local, torchrun

        local.check_gpus(gpus)
        words = ["-m", "experiments", *sys.argv[1:]]
        raise typer.Exit(torchrun.in_processes(gpus, words))
    from .jobs import evaluate_checkpoint

    try:
        with distributed.process_group():
            evaluate_checkpoint.evaluate_checkpoint(
                Path(config_file) if config_file else None,
                weights,
                overrides,
                split or val,
                runs / "evaluations",
                console,
            )
    except KeyboardInterrupt:
        console.print("stopped: the same command goes on with the images that are missing")
        raise typer.Exit(130) from None


@app.command()
def weights(
    file: Annotated[Path, typer.Argument(help="Weights of any known format, see docs/weights.md.")],
    out: Annotated[Path | None, typer.Argument(help="With --to: what to write.")] = None,
    to: Annotated[str, typer.Option(help="Convert: sam, hf, detectron2 or safetensors.")] = "",
) -> None:
    """Show what a file of weights holds; with --to and OUT, convert it."""
    if bool(to) != bool(out):
        raise UserError("converting needs a format and a name: weights FILE --to detectron2 OUT")
    from .jobs import show_weights as files

    if to:
        files.write(file, to, out, console)
    else:
        files.show(file, console)


@app.command("show-optim")
def show_optim(
    what: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG_OR_STUDY", help="configs/*.py, a run's config.yaml, or a study's name."
        ),
    ],
    scale: Annotated[str, typer.Option(help="Of a study: mini, small or coco.")] = "mini",
    size: Annotated[str, typer.Option(help="Of a study: model size.")] = "",
    variants: Annotated[str, typer.Option(help="Of a study: some rows only.")] = "",
    overrides: Overrides = "",
) -> None:
    """Show the learning rate and weight decay of every layer."""
    from . import studies
    from .jobs import runs as planning
    from .recipe import config
    from .recipe import show_optim as table
    from .recipe.words import parse_overrides, set_words

    words = parse_overrides(overrides)
    if Path(what).suffix not in (".py", ".yaml"):
        chosen = [name.strip() for name in variants.split(",") if name.strip()]
        for row in planning.rows(studies.find(what), scale, size, words, chosen):
            table.show(row.cfg, f"{row.variant.name} {row.size}", console)
    else:
        cfg = config.load(what)
        set_words(cfg, words, "OVERRIDES")
        table.show(cfg, what, console)


@app.command("keep-mini-weights")
def keep_mini_weights(runs: Runs = Path("runs")) -> None:
    """Make the encoder of `make mini-weights` the one that runs at mini scale start from."""
    from .jobs import mini_weights

    path = mini_weights.keep(runs / "mini" / "windows-mini")
    console.print(f"{path}: runs at mini scale start from it now, and so are other runs")


def _command() -> str:
    """What was typed, without the options that the Makefile passes on empty."""
    words = sys.argv[1:]
    given = [
        word
        for i, word in enumerate(words)
        if word and not (word.startswith("--") and words[i + 1 : i + 2] == [""])
    ]
    return shlex.join(["python", "-m", "experiments", *given])


def main() -> None:
    """Run a command; a user's mistake ends in one line and exit code 2."""
    # A background job of a shell starts with SIGINT ignored, and clusters end jobs with SIGTERM.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # Processes of runs take their memory in large pages (docs/speed.md), where glibc knows how.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    sys.exit(commands.run(app, console))


if __name__ == "__main__":
    main()
