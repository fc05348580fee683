"""A study's table as text: mean and spread over seeds, differences to the base row with their
intervals and what they say, costs, the paper's figures."""

import html
import shlex
from collections.abc import Iterable

import pandas as pd
from tabulate import tabulate

from experiments.errors import UserError, unknown
from experiments.reach import FOUND, LEARNED

from . import categories, reach
from .results import FIGURES, KINDS, PAPER_SIZES, Results, paper_column, paper_data

# How a table may be written, and what tabulate calls that.
FORMATS = {
    "md": "pipe",
    "latex": "latex_booktabs",
    "html": "html",
    "csv": "",
    "text": "simple",
}


def check_publishable(results: Results) -> None:
    """Tables in results/ are of whole studies, with their own settings and data.

    Raises:
        UserError: it is not of that kind.
    """
    if (results.table["size"] == "").any():
        raise UserError(
            "results/ keeps what its command makes: it has foreign results, move its foreign/ away"
        )
    words = shlex.split(results.manifest["command"])
    for option in ("--overrides", "--dataset", "--val", "--variants"):
        if option in words:
            raise UserError(f"results/ keeps studies as they are: run it without {option}")
    if (finished(results.table) == 0).any():
        raise UserError("results/ keeps finished studies: some rows of this one are not done")


def provenance(results: Results) -> list[str]:
    """What the table's numbers come from, one line each: command, device, versions, dates."""
    records = results.records
    lines = [f"command: `{results.manifest['command']}`"]
    return lines if records.empty else lines + measured(records)


def measured(records: pd.DataFrame) -> list[str]:
    """What runs and foreign results were made with, one line each."""
    lines = []
    own = records.dropna(subset="device")
    versions = own["versions"].map(lambda v: ", ".join(f"{k} {n}" for k, n in v.items()))
    processes = own["processes"].map(lambda n: f"{n:g} x " if n > 1 else "")
    for name, values in (
        ("device", processes + own["device"] + ", threads " + own["threads"].map("{:g}".format)),
        ("precision", own["precision"]),
        ("peak memory is", own["memory_kind"]),
        ("MACs are for one image of", own["input_size"].map(lambda s: f"{s[0]} x {s[1]}")),
        ("versions", versions),
        ("commit", own["git_commit"]),
        ("finished", records["finished"].str[:10]),
    ):
        lines.append(f"{name}: {'; '.join(sorted(set(values)))}")
    return lines


def _spread(mean: float, std: float, digits: int = 1, sign: str = "") -> str:
    """ "51.2 ± 0.4"; without the spread of a single seed; empty where there is nothing."""
    if pd.isna(mean):
        return ""
    text = f"{mean:{sign}.{digits}f}"
    return text if pd.isna(std) else f"{text} ± {std:.{digits}f}"


def _amount(value: float, unit: float, digits: int) -> str:
    return "" if value is None or pd.isna(value) else f"{value / unit:.{digits}f}"


def interval(value: float, low: float, high: float) -> str:
    """ "+2.3 (+0.4 .. +4.2)"; without an interval where there is none."""
    if pd.isna(value):
        return ""
    return f"{value:+z.1f}" + ("" if pd.isna(low) else f" ({low:+z.1f} .. {high:+z.1f})")


def finished(table: pd.DataFrame) -> pd.Series:
    """How many runs of each row are finished, those that did not learn the cue among them."""
    return table["seeds"] + table.get("cue_not_learned", 0)


def _known(table: pd.DataFrame, column: str) -> bool:
    """Whether any row has it: tables of earlier commits lack columns."""
    return column in table and table[column].notna().any()


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """AP, differences, costs and the paper's AP as text cells, units in the headers."""
    digits = 1 if table["macs"].max() > 1e10 else 3
    kinds = [k for k in KINDS if k == "box" or table[f"ap_{k}"].notna().any()]
    several = len(set(table["size"]) - {""}) > 1
    reaches = [column for column in table if column.startswith("reach_")]
    right = [reach.words(column.removeprefix("reach_")) for column in reaches]
    rows = []
    for (_, r), runs in zip(table.iterrows(), finished(table), strict=True):
        left_out = f" of {runs}" * bool(runs > r["seeds"])
        cells = {"variant": r["variant"], "seeds": f"{r['seeds']}{left_out}"}
        if several:
            cells["size"] = r["size"]
        for kind in kinds:
            ap = f"ap_{kind}"
            cells[f"{kind} AP"] = _spread(r[ap], r[f"{ap}_std"])
            bounds = (r[f"{ap}_diff_low"], r[f"{ap}_diff_high"])
            cells[f"diff {kind} (95 %)"] = interval(r[f"{ap}_diff"], *bounds)
            cells[f"{kind} verdict"] = "" if pd.isna(r[f"{ap}_verdict"]) else r[f"{ap}_verdict"]
        if reaches:
            shares = ["-" if pd.isna(v) else f"{v:.2f}" for v in r[reaches]]
            known = " / ".join(shares) if r[reaches].notna().any() else ""
            marked = left_out and not r["seeds"]
            cells[f"colour right: {' / '.join(right)}"] = reach.MARK if marked else known
        cells["params M"] = _amount(r["params"], 1e6, 2)
        cells["GMACs"] = _amount(r["macs"], 1e9, digits)
        if _known(table, "train_macs"):
            cells["train GMACs"] = _amount(r["train_macs"], 1e9, digits)
        cells["train s"] = _amount(r["train_seconds"], 1, 0)
        cells["peak MiB"] = _amount(r["peak_memory_mib"], 1, 0)
        for size in ("", *PAPER_SIZES):
            if table.get(paper_column("box", size), pd.Series(dtype=float)).notna().any():
                aps = [_amount(r[paper_column(kind, size)], 1, 1) for kind in KINDS]
                cells[f"paper {size}".strip()] = " / ".join(filter(None, aps))
        rows.append(cells)
    return pd.DataFrame(rows)


def details(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """AP at single IoUs and by COCO's object sizes, and their differences, as text cells."""
    rows = []
    for _, r in table.iterrows():
        cells = {"variant": r["variant"]}
        for figure in FIGURES[1:]:
            column = f"{figure}_{kind}"
            if table[column].notna().any():
                name = f"{kind} AP{figure.removeprefix('ap')}"
                cells[name] = _amount(r[column], 1, 1)
                bounds = (r[f"{column}_diff_low"], r[f"{column}_diff_high"])
                cells[f"diff AP{figure.removeprefix('ap')}"] = interval(
                    r[f"{column}_diff"], *bounds
                )
        rows.append(cells)
    return pd.DataFrame(rows)


def all_details(table: pd.DataFrame) -> list[pd.DataFrame]:
    """`details` of boxes, and of masks where there are any."""
    return [details(table, kind) for kind in KINDS if table[f"ap50_{kind}"].notna().any()]


def render(text: pd.DataFrame, form: str = "md") -> str:
    """Text cells in one of `FORMATS`, but csv."""
    words = dict(headers="keys", showindex=False, disable_numparse=True)
    align = ("left", *["right"] * (len(text.columns) - 1))
    return tabulate(text, tablefmt=FORMATS[form], colalign=align, **words)


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


def whole(results: Results, form: str) -> str:
    """The table with its question, caption and provenance in one of `FORMATS`, but csv."""
    if form == "md":
        return markdown(results)
    texts = [summary(results.table), *all_details(results.table), *categories.texts(results)]
    rendered = [render(text, form) for text in texts]
    lines = [title(results), results.manifest["question"]]
    below = [caption(results), *results.notes, *provenance(results)]
    if form == "latex":
        lines, below = ([f"% {line}" for line in part] for part in (lines, below))
    if form == "html":
        lines = [f"<h2>{html.escape(lines[0])}</h2>", f"<p>{html.escape(lines[1])}</p>"]
        below = [f"<p>{html.escape(line)}</p>" for line in below]
    return "\n".join([*lines, *rendered, *below, ""])


def caption(results: Results) -> str:
    """How the table is to be read."""
    text = (
        f"Mean ± standard deviation over seeds. diff: to `{results.manifest['base']}`, with its"
        ' 95 % interval over images and seeds; "one seed": over images alone, about these two'
        " trained detectors, another seed may change more. Verdict: equal if two one-sided tests"
        f" at 5 % find it within ±{results.delta:g} AP, else better or worse if the interval"
        " leaves out 0, else undecided; not corrected for the number of rows. MACs are"
        " multiply-accumulates of the whole detector, attention counted."
    )
    if _known(results.table, "train_macs"):
        text += (
            " GMACs are of one image's detection, train GMACs of its forward and backward pass in"
            " training."
        )
    if "reach_self" in results.table:
        text += (
            f" colour right: of found objects (box IoU {FOUND:g} or more) the share whose colour is"
            " right, by windows to the nearest object that shows it (self: the object does; same"
            " window; convs: another, so near that convs read it; beyond these 1: the next, ...);"
            f" chance is {reach.CHANCE:g}. A run with less than"
            f' {LEARNED:g} at self is marked "{reach.MARK}" and left out of mean, interval and'
            ' verdict: seeds are then "2 of 3".'
        )
    shown = (results.table.get(paper_column("box", size)) for size in ("", *PAPER_SIZES))
    if any(column is not None and column.notna().any() for column in shown):
        name, same = paper_data(results)
        text += f" Paper: box / mask AP of arXiv:2203.16527v2 on {name}"
        text += "." if same else "; these rows are of another set and never comparable with them."
    return text


def title(results: Results) -> str:
    """Study, scale, sizes, and a set of the user's own."""
    manifest = results.manifest
    sizes = dict.fromkeys(variant["size"] for variant in manifest["variants"] if variant["size"])
    own = f", on {manifest['own_set']}" if manifest.get("own_set") else ""
    return f"{manifest['study']}, {manifest['scale']} scale, {', '.join(sizes)}{own}"


def _escaped(text: pd.DataFrame) -> pd.DataFrame:
    """For Markdown, where a bar ends a cell."""
    return text.map(lambda cell: cell.replace("|", "\\|"))


def markdown(results: Results) -> str:
    """The table as Markdown, with its question and where its numbers come from."""
    lines = [
        f"# {title(results)}",
        "",
        results.manifest["question"],
        "",
        render(_escaped(summary(results.table))),
        "",
        caption(results),
        "",
        *(f"- {note}" for note in results.notes),
        *[""] * bool(results.notes),
        *(
            line
            for text in (*all_details(results.table), *categories.texts(results))
            for line in (render(_escaped(text)), "")
        ),
        *(f"- {line}" for line in provenance(results)),
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
