"""A study's tables as text: mean and spread over seeds, differences to the base row with their
intervals and what they say, costs; the paper's figures in a table of their own."""

import html
import textwrap
from collections.abc import Iterable

import pandas as pd
from rich.console import Console
from tabulate import tabulate

from experiments.errors import unknown
from experiments.evaluation.reach import FOUND, LEARNED
from experiments.scales import SCALES

from . import categories, provenance, reach
from .results import FIGURES, KINDS, ONE_SEED, PAPER_SIZES, Results, paper_column, paper_data
from .text import interval, number, spread

WIDTH = 110  # letters of a line, in a terminal and in Markdown
OWN = "†"  # behind an interval that is not of all rows' seeds

# How a table may be written, and what tabulate calls that.
FORMATS = {
    "md": "pipe",
    "latex": "latex_booktabs",
    "html": "html",
    "csv": "",
    "text": "simple",
}


def _known(table: pd.DataFrame, column: str) -> bool:
    """Whether any row has it: tables of earlier commits lack columns."""
    return column in table and table[column].notna().any()


def summary(table: pd.DataFrame, base: str | None = None) -> pd.DataFrame:
    """Box AP, its difference and what that says, MACs and relative time, as text cells.

    Args:
        base: the row that time is relative to; None: the first.
    """
    digits = ".1f" if table["macs"].max() > 1e10 else ".3f"
    several = len(set(table["size"]) - {""}) > 1
    names = table["variant"].tolist()
    seconds = table["train_seconds"].astype(float) / float(
        table["train_seconds"].iloc[names.index(base) if base in names else 0] or "nan"
    )
    rows = []
    for (i, r), runs in zip(table.iterrows(), reach.finished(table), strict=True):
        left_out = f" of {runs}" * bool(runs > r["seeds"])
        cells = {"variant": r["variant"], "seeds": f"{r['seeds']}{left_out}"}
        if several:
            cells["size"] = r["size"]
        cells |= _compared(table, r, "ap", "box")
        if left_out and not r["seeds"]:
            cells["verdict"] = _NOT_LEARNED
        cells["GMACs"] = number(r["macs"], digits, 1e9)
        cells["time"] = number(seconds[i], ".2f")
        rows.append(cells)
    return pd.DataFrame(rows)


_NOT_LEARNED = reach.MARK.partition(":")[0]


def _compared(table: pd.DataFrame, row: pd.Series, figure: str, kind: str) -> dict[str, str]:
    """A figure of a row, its difference to the base and what that says."""
    column = f"{figure}_{kind}"
    low, high = row[f"{column}_diff_low"], row[f"{column}_diff_high"]
    several = (table["seeds"] > 0).sum() > 2
    own = row.get(f"{column}_spread") in ("own", "unpaired")
    verdict = row[f"{column}_verdict"]
    return {
        f"{kind} AP{figure.removeprefix('ap')}": spread(row[column], row[f"{column}_std"]),
        "diff (95 %)": interval(row[f"{column}_diff"], low, high, "+z.1f")
        + OWN * bool(own and several),
        # The caption says within what.
        "verdict": "" if pd.isna(verdict) else verdict.partition(" within")[0],
    }


def reaches(table: pd.DataFrame) -> pd.DataFrame:
    """Share of the right colour by distance, as text cells; empty without a cue."""
    columns = [column for column in table if column.startswith("reach_")]
    rows = []
    for _, r in table.iterrows() if columns else ():
        shares = ["-" if pd.isna(v) else f"{v:.2f}" for v in r[columns]]
        shares = shares if r[columns].notna().any() else [""] * len(columns)
        heads = [reach.words(column.removeprefix("reach_")) for column in columns]
        cells = {"variant": r["variant"]} | dict(zip(heads, shares, strict=True))
        if "cue_learned" in table:
            cells["runs that learned it (95 %)"] = _share(r, "cue_learned")
        rows.append(cells)
    return pd.DataFrame(rows)


def beats(table: pd.DataFrame) -> pd.DataFrame:
    """Share of seeds whose run beats the base's, as text cells; empty for few seeds."""
    kinds = [kind for kind in KINDS if _known(table, f"ap_{kind}_beats")]
    rows = [
        {"variant": r["variant"]} | {f"{k} AP (95 %)": _share(r, f"ap_{k}_beats") for k in kinds}
        for _, r in table.iterrows()
        if any(pd.notna(r[f"ap_{kind}_beats"]) for kind in kinds)
    ]
    return pd.DataFrame(rows)


def _share(row: pd.Series, column: str) -> str:
    return interval(*(row[f"{column}{end}"] for end in ("", "_low", "_high")), ".2f")


def published(table: pd.DataFrame) -> pd.DataFrame:
    """The paper's AP of the rows that it has, as text cells; empty if it has none."""
    sizes = [s for s in ("", *PAPER_SIZES) if _known(table, paper_column("box", s))]
    rows = []
    for _, r in table.iterrows() if sizes else ():
        cells = {"variant": r["variant"]}
        for size in sizes:
            for kind in KINDS:
                if _known(table, column := paper_column(kind, size)):
                    cells[f"{size} {kind} AP".strip()] = number(r[column])
        rows.append(cells)
    return pd.DataFrame(rows)


def masks(table: pd.DataFrame) -> pd.DataFrame:
    """As the summary of mask AP; empty for detectors of boxes."""
    rows = [
        {"variant": r["variant"]} | _compared(table, r, "ap", "mask") for _, r in table.iterrows()
    ]
    return pd.DataFrame(rows if _known(table, "ap_mask") else [])


def by_size(table: pd.DataFrame) -> pd.DataFrame:
    """AP at single IoUs and by COCO's object sizes, figure by figure, as text cells."""
    rows = []
    for kind in KINDS:
        for figure in FIGURES[1:]:
            for _, r in table.iterrows() if _known(table, f"{figure}_{kind}") else ():
                cells = _compared(table, r, figure, kind)
                name, (first, *rest) = next(iter(cells)), cells.values()
                cells = dict(zip(("AP", "diff (95 %)", "verdict"), (first, *rest), strict=True))
                rows.append({"figure": name, "variant": r["variant"]} | cells)
    return pd.DataFrame(rows)


def costs(table: pd.DataFrame) -> pd.DataFrame:
    """Size, work, time and memory, as text cells."""
    digits = ".1f" if table["macs"].max() > 1e10 else ".3f"
    rows = []
    for _, r in table.iterrows():
        cells = {"variant": r["variant"], "params M": number(r["params"], ".2f", 1e6)}
        cells["GMACs"] = number(r["macs"], digits, 1e9)
        if _known(table, "train_macs"):
            cells["train GMACs"] = number(r["train_macs"], digits, 1e9)
        cells["train s"] = number(r["train_seconds"], ".0f")
        cells["peak MiB"] = number(r["peak_memory_mib"], ".0f")
        rows.append(cells)
    return pd.DataFrame(rows)


def parts(results: Results, wide: bool = False) -> list[tuple[str, pd.DataFrame]]:
    """The tables of a study with their titles, the first without one.

    Args:
        wide: masks, IoUs and object sizes, costs, and categories, too.
    """
    table = results.table
    name, same = paper_data(results)
    other = "" if same else "; another set than that of the rows above"
    printed = " ".join(w for v in results.manifest["variants"] for w in v["published"].values())
    whose = "by their authors" if "today:" in printed else "arXiv:2203.16527v2"
    if SCALES[results.manifest["scale"]].shortened:
        other = ", whole recipe: compare the order only"
    found = [
        ("", summary(table, results.manifest["base"])),
        ("Colour right, by windows to the nearest object that shows it", reaches(table)),
        ("Share of seeds whose run beats the base's", beats(table)),
        (f"Published ({whose}), on {name}{other}", published(table)),
    ]
    if wide:
        found += [
            ("Mask AP", masks(table)),
            ("AP by IoU and object size", by_size(table)),
            ("Costs", costs(table)),
            *categories.texts(results),
        ]
    return [part for part in found if len(part[1])]


def render(text: pd.DataFrame, form: str = "md") -> str:
    """Text cells in one of `FORMATS`, but csv; long names are cut to fit `WIDTH` letters."""
    words = dict(headers="keys", showindex=False, disable_numparse=True)
    align = ("left", *["right"] * (len(text.columns) - 1))
    rendered = tabulate(text, tablefmt=FORMATS[form], colalign=align, **words)
    excess = len(rendered.partition("\n")[0]) - WIDTH
    if form not in ("md", "text") or excess <= 0:
        return rendered
    name = "variant" if "variant" in text else text.columns[0]
    fits = max(text[name].str.len().max() - excess, 8)
    cut = [n if len(n) <= fits else n[: fits - 1] + "…" for n in text[name]]
    return tabulate(text.assign(**{name: cut}), tablefmt=FORMATS[form], colalign=align, **words)


def show(results: Results, wide: bool, console: Console) -> None:
    """Print a study's tables, and what is to be said of them."""
    for name, text in parts(results, wide):
        console.print(f"{name}:\n" * bool(name) + render(text, "text"), highlight=False)
        console.print()
    for note in results.notes:
        console.print(wrapped(note, "  "), highlight=False)


def wrapped(line: str, indent: str = "") -> str:
    """A line as lines of `WIDTH` letters, all but the first indented."""
    words = dict(break_long_words=False, break_on_hyphens=False)
    return textwrap.fill(line, WIDTH, subsequent_indent=indent, **words)


def check_format(form: str) -> None:
    """Raises UserError for an unknown format."""
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)


def csv(studies: Iterable[Results]) -> str:
    """All numbers of all studies in one table."""
    parts = [
        results.table.assign(study=results.manifest["study"], delta=results.delta)
        for results in studies
    ]
    table = pd.concat(parts, ignore_index=True)
    return table[["study", *table.columns.drop(["study", "delta"]), "delta"]].to_csv(index=False)


def whole(results: Results, form: str, wide: bool = False) -> str:
    """The tables with question, caption and provenance in one of `FORMATS`, but csv."""
    if form == "md":
        return markdown(results, wide)
    lines = [title(results), results.manifest["question"]]
    below = [caption(results), *results.notes, *provenance.of_study(results)]
    if form == "latex":
        lines, below = ([f"% {line}" for line in part] for part in (lines, below))
    if form == "html":
        lines = [f"<h2>{html.escape(lines[0])}</h2>", f"<p>{html.escape(lines[1])}</p>"]
        below = [f"<p>{html.escape(line)}</p>" for line in below]
    if form == "text":
        lines, below = ([wrapped(line) for line in part] for part in (lines, below))
    for name, text in parts(results, wide):
        if name:
            lines.append(
                {"latex": f"% {name}", "html": f"<h3>{html.escape(name)}</h3>"}.get(form, name)
            )
        lines.append(render(text, form))
    return "\n".join([*lines, *below, ""])


def caption(results: Results) -> str:
    """How the tables are to be read."""
    base = f"`{results.manifest['base']}`"
    text = (
        f"AP: mean ± standard deviation over seeds. diff: to {base}, over the seeds that both have,"
        " with its 95 % interval over images and seeds; those of all rows hold at once, figure by"
        " figure, and at all looks after which seeds are added; of one seed each it is over images"
        f" alone, and by itself. {OWN}: not of all rows'"
        " seeds, the notes say of which. Verdict: equal if two one-sided"
        f" tests, which may err as the interval may, find it within ±{results.delta:g} AP, else"
        " better or worse if the interval"
        f' leaves out 0, else undecided; "{ONE_SEED}" is none. MACs are multiply-accumulates of the'
        f" whole detector on one image, attention counted; time is of training by the clock, {base}"
        " is 1, with whatever else ran on the machine."
    )
    if initial_weights(results):
        text += (
            " Rows start from weights that were trained before: what another such training would"
            " change is not in the intervals."
        )
    if "reach_self" in results.table:
        text += (
            f" Colour right: of found objects (box IoU {FOUND:g} or more) the share whose colour is"
            " right, by windows to the nearest object that shows it (self: the object does; same"
            " window; convs: another, so near that convs read it; beyond these 1: the next, ...);"
            f" chance is {reach.CHANCE:g}. A run with less than"
            f' {LEARNED:g} at self is marked "{reach.MARK}" and left out of mean, interval and'
            ' verdict: seeds are then "2 of 3".'
        )
    return text


def initial_weights(results: Results) -> set[str]:
    """What the study's own runs start from, but for random weights."""
    configs = results.records.get("config", ())
    found = {str(c["train"].get("init_weights", "")) for c in configs if "train" in c}
    return found - {"", "none"}


def title(results: Results) -> str:
    """Study, scale, sizes, and a set of the user's own."""
    manifest = results.manifest
    sizes = dict.fromkeys(variant["size"] for variant in manifest["variants"] if variant["size"])
    own = f", on {manifest['own_set']}" if manifest.get("own_set") else ""
    return f"{manifest['study']}, {manifest['scale']} scale, {', '.join(sizes)}{own}"


def _escaped(text: pd.DataFrame) -> pd.DataFrame:
    """For Markdown, where a bar ends a cell."""
    return text.map(lambda cell: cell.replace("|", "\\|"))


def markdown(results: Results, wide: bool = False) -> str:
    """The tables as Markdown, with their question and where their numbers come from."""
    tables = []
    for name, text in parts(results, wide):
        tables += [wrapped(f"{name}:"), ""] if name else []
        tables += [render(_escaped(text)), ""]
    below = [*results.notes, *[""] * bool(results.notes), *provenance.of_study(results)]
    lines = [
        f"# {title(results)}",
        "",
        wrapped(results.manifest["question"]),
        "",
        *tables,
        wrapped(caption(results)),
        "",
        *(wrapped(f"- {line}", "  ") if line else "" for line in below),
        "",
    ]
    return "\n".join(lines)


def runs(results: Results) -> pd.DataFrame:
    """A row per finished run, by variant and seed: AP, reach, seconds, where and when it ran."""
    records = in_order(results)
    table = records[["variant", "seed"]].copy()
    for column in ("ap_box", "ap_mask"):
        table[column] = records.get(column)
    if names := reach.distances(records):
        table = table.join(reach.shares(records).rename(columns={n: f"reach_{n}" for n in names}))
        table["cue_learned"] = ~reach.not_learned(records)
    for column in (
        *("train_seconds", "evaluate_seconds", "precision", "device", "machine"),
        *("git_commit", "finished"),
    ):
        if column in records:
            table[column] = records[column]
    if "machine" in table:
        table["machine"] = table["machine"].map(_words, na_action="ignore")
    return table


def _words(parts: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in parts.items())


def in_order(results: Results) -> pd.DataFrame:
    """The study's records by its rows, then by seed."""
    records = results.records
    if records.empty:
        return records.reindex(columns=["variant", "seed"])
    place = {variant["name"]: i for i, variant in enumerate(results.manifest["variants"])}
    return records.sort_values(
        ["variant", "seed"], key=lambda c: c.map(place) if c.name == "variant" else c
    )
