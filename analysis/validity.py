"""What a cheap scale is worth: pairs of rows that the paper separates, and whether its runs put
them in the same order.

A pair is two rows of one printed table whose box AP differ by `SEPARATED` or more for ViT-B or
ViT-L. What is the same row at the scale is one row, whatever studies and tables have it: the
window-only row of Tables 2a to 2d is one, and its pair with the global one is counted once. If
ViT-B and ViT-L are separated in opposite directions, the paper has no answer and the pair does not
count.
"""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from experiments import records
from experiments.costs import environment
from experiments.errors import UserError
from experiments.scales import SCALES

from . import bootstrap, provenance, reach, tables
from .bootstrap import Draws
from .estimates import Estimate
from .paper_pairs import SEPARATED, Pair, Row, pairs, rows
from .results import PAPER_SIZES
from .text import interval

OF = ("mini", "small")  # scales
COMPARED = ("agree", "contradict", "undecided")
# Words of a command that make its runs other ones than the study's.
_ALTERED = ("--dataset", "--val", "--images", "--sweep")


@dataclass(frozen=True, eq=False)
class Validity:
    """A scale's verdicts on the paper's.

    Attributes:
        scale, size: of the runs.
        table: a line per pair, the row that the paper has ahead as `better`: study, better, worse,
            tables, `paper_diff_<size>` (the paper's difference in box AP, where the pair is printed
            for that size), `<scale>_diff`, `<scale>_low`, `<scale>_high` (ours in box AP, with its
            95 % interval over images and seeds; better minus worse), `seeds_better`,
            `seeds_worse`, `verdict`: one of `COMPARED`, or why there is none.
        tau: `tau` of the pairs that were compared: value, low, high.
        records: the runs that it is of, one row each.
        notes: what was left out, a line each.
    """

    scale: str
    size: str
    table: pd.DataFrame
    tau: tuple[float, float, float]
    records: pd.DataFrame
    notes: list[str]


def load(runs: Path, scale: str = "mini", size: str = "") -> Validity:
    """Compare what was run in `runs`.

    Args:
        scale: one of `OF`.
        size: of the model; "": the scale's default.

    Raises:
        UserError: no study was run that has a part in it, or a file is broken.
    """
    if scale not in OF:
        raise UserError(f"there is no validity of scale {scale!r}: of {' and '.join(OF)} only")
    size = size or SCALES[scale].size
    known = rows(scale, size)
    found, notes = _runs(known, runs / scale, size)
    entered, more = eligible(found)
    draws, unread = _draws(entered)
    entered = entered[entered["path"].isin(draws)]
    by_seed = {
        setting: {int(seed): draws[path] for seed, path in zip(of["seed"], of["path"], strict=True)}
        for setting, of in entered.groupby("setting")
    }
    members = {row.study: [r.setting for r in known if r.study == row.study] for row in known}

    @cache
    def against(study: str, base: str) -> dict[str, Estimate]:
        """Of the study's other rows, as its own table has them but each by itself."""
        runs = {setting: by_seed[setting] for setting in members[study] if setting in by_seed}
        found = bootstrap.against(base, runs)
        return {setting: of["AP"].by_itself() for setting, of in found.items()}

    lines, estimates = [], []
    for pair in pairs(known):
        better, worse = pair.settings
        seeds = [len(by_seed.get(setting, ())) for setting in pair.settings]
        estimate = against(pair.study, worse)[better] if all(seeds) else None
        there = [len(_of(found, setting)) for setting in pair.settings]
        verdict = _verdict(pair, estimate, all(there))
        if verdict in COMPARED:
            estimates.append(estimate)
        low, high = estimate.interval() if estimate else (None, None)
        lines.append(
            dict(
                study=pair.study,
                better=pair.names[0],
                worse=pair.names[1],
                tables=pair.tables,
                **{_column(size): pair.paper.get(size) for size in PAPER_SIZES},
                **{
                    f"{scale}_diff": estimate.value if estimate else None,
                    f"{scale}_low": low,
                    f"{scale}_high": high,
                },
                seeds_better=seeds[0],
                seeds_worse=seeds[1],
                verdict=verdict,
            )
        )
    return Validity(
        scale, size, pd.DataFrame(lines), tau(estimates), entered, notes + more + unread
    )


def _runs(known: Sequence[Row], folder: Path, size: str) -> tuple[pd.DataFrame, list[str]]:
    """Finished runs of the rows, each once, with its row's setting and its study's command."""
    parts, notes, scale = [], [], folder.name
    names = list(dict.fromkeys(row.study for row in known))
    for name in names:
        if not (folder / name / records.MANIFEST).is_file():
            continue
        manifest, done = records.load_study(folder / name)
        command = manifest["command"]
        sizes = {variant["size"] for variant in manifest["variants"]}
        if altered := set(shlex.split(command)) & _altered(scale):
            notes.append(f"{name} is left out: it was run with {', '.join(sorted(altered))}")
        elif sizes != {size}:
            notes.append(f"{name} is left out: it was run with {', '.join(sorted(sizes))}")
        elif len(done):
            settings = {row.name: row.setting for row in known if row.study == name}
            done["setting"] = done["variant"].map(settings)
            done = done.dropna(subset="setting")
            parts.append(done.assign(command=command, study_run=name))
    if not parts:
        left_out = "".join(f"; {note}" for note in notes)
        raise UserError(
            f"no run to compare with the paper in {folder}{left_out}: run "
            f"{', '.join(names)} first, each with make ablation-<study>"
            + f" SCALE={scale}"
            * (scale != "mini")
        )
    runs, of_words = _of_like_words(pd.concat(parts, ignore_index=True))
    notes += of_words
    runs["path"] = [str(Path(path).resolve()) for path in runs["path"]]
    # Studies share runs.
    return runs.drop_duplicates("path").sort_values("finished").reset_index(drop=True), notes


def _altered(scale: str) -> set[str]:
    """At mini scale any other recipe is another question; at small scale each has its share, its
    length and its machine, and what is compared has the same (`_of_like_words`)."""
    return {*_ALTERED, "--overrides"} if SCALES[scale].embedded else set(_ALTERED)


def _of_like_words(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The runs of studies whose OVERRIDES= are those of the last run, and a note on others."""
    words = runs["command"].map(_overrides)
    last = words[runs["finished"].sort_values(kind="stable").index[-1]]
    notes = [
        f"{study} is left out: its OVERRIDES are not those of the last run"
        for study in runs.loc[words != last, "study_run"].unique()
    ]
    return runs[words == last].drop(columns="study_run"), notes


def _overrides(command: str) -> tuple[str, ...]:
    """What a command of a study sets, in one order."""
    words = shlex.split(command)
    said = words[words.index("--overrides") + 1] if "--overrides" in words else ""
    return tuple(sorted(shlex.split(said)))


def eligible(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The runs that may enter a verdict, and a note on those that may not."""
    newest = runs["data"].iloc[-1]["digest"]
    same = runs["data"].map(lambda data: data["digest"] == newest)
    other = (~same).sum()
    notes = [f"{other} runs are left out: they are on other data than the last"] if other else []
    # One row may have run twice on a seed, e.g. by two versions of the suite.
    runs = runs[same].drop_duplicates(["setting", "seed"], keep="last")
    marked = reach.not_learned(runs)
    notes += [f"{marked.sum()} runs are left out: {reach.MARK}"] * bool(marked.any())
    return runs[~marked], notes


def _draws(runs: pd.DataFrame) -> tuple[dict[str, Draws], list[str]]:
    found, notes = {}, []
    for path in runs["path"]:
        try:
            found[path] = bootstrap.of_run(Path(path).parent)
        except UserError as error:
            notes.append(f"{Path(path).parent.name} is left out: {error}")
    return found, notes


def _column(size: str) -> str:
    return f"paper_diff_{size.replace('-', '')}"


def _of(runs: pd.DataFrame, setting: str) -> pd.DataFrame:
    return runs[runs["setting"] == setting]


def _verdict(pair: Pair, estimate: Estimate | None, run: bool) -> str:
    if min(pair.separating) < 0:
        return "paper differs"
    if estimate is None:
        return "left out" if run else "not run"
    if estimate.std_seeds is None:
        return "one seed"  # about two trained detectors, not about rows
    low, high = estimate.interval()
    return "agree" if low > 0 else "contradict" if high < 0 else "undecided"


def tau(estimates: Iterable[Estimate]) -> tuple[float, float, float]:
    """Kendall's tau of the paper's order and ours over pairs: the share in the same order less that
    in the opposite one.

    Args:
        estimates: our differences of the pairs, the paper's better row minus its worse.

    Returns:
        The value, of our means, and the ends of an interval that holds tau of the true differences
        with 95 % or more: each pair gets an interval so wide that all hold at once with 95 %
        (Bonferroni); what includes 0 then counts against the paper at the low end, and for it at
        the high one. A bootstrap of tau would not do: noise takes any order nearer to 0, so its
        intervals are off the true one. NaN without pairs.
    """
    estimates = list(estimates)
    if not estimates:
        return (np.nan,) * 3
    level = 1 - 0.05 / len(estimates)
    ends = np.array([estimate.interval(level) for estimate in estimates])
    value = np.sign([estimate.value for estimate in estimates]).mean()
    low, high = np.where(ends[:, 0] > 0, 1, -1).mean(), np.where(ends[:, 1] < 0, -1, 1).mean()
    return float(value), float(low), float(high)


# ---- As text ------------------------------------------------------------------------------------


def cells(validity: Validity) -> pd.DataFrame:
    """The table as text cells; the paper's figures and ours in columns that say whose they are."""
    lines, scale = [], validity.scale
    for _, r in validity.table.iterrows():
        line = {"box AP of": f"{r['better']} - {r['worse']}", "tables": r["tables"]}
        for size in PAPER_SIZES:
            value = r[_column(size)]
            line[f"paper {size[-1].upper()}"] = "" if pd.isna(value) else f"{value:+.1f}"
        ours = interval(*(r[f"{scale}_{end}"] for end in ("diff", "low", "high")), "+z.1f")
        lines.append(line | {f"ours, {scale} (95 %)": ours, "verdict": r["verdict"]})
    return pd.DataFrame(lines)


def totals(validity: Validity) -> list[str]:
    """Counts and tau, a line each."""
    counts = validity.table["verdict"].value_counts().to_dict()
    compared = sum(counts.get(verdict, 0) for verdict in COMPARED)
    lines = [
        f"{len(validity.table)} pairs, {compared} compared: "
        + ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in COMPARED)
    ]
    if compared:
        decided = compared - counts.get("undecided", 0)
        value, low, high = validity.tau
        lines += [
            f"decided: {decided} of {compared} ({100 * decided / compared:.0f} %)",
            f"Kendall's tau: {value:+.2f} (at least 95 %: {low:+.2f} .. {high:+.2f})",
        ]
    if others := {verdict: n for verdict, n in counts.items() if verdict not in COMPARED}:
        lines.append(
            "not compared: " + ", ".join(f"{n} {verdict}" for verdict, n in others.items())
        )
    return lines


_CAPTION = """\
All pairs of rows of Tables 1, 2, 4 and 8 (arXiv:2203.16527v2) that exist at {scale} scale and whose
published box AP differ by {separated:g} or more for ViT-B or ViT-L; each pair of {scale} rows once,
in whatever tables it is. A number as a row is the count of global blocks. "paper B" and "paper L"
are the paper's differences on COCO val2017, "ours, {scale}" is this suite's on {data}, of
means over seeds, with its 95 % interval over images and seeds as the study's own table has it, but
by itself and for a number of seeds that was chosen before, not by looks: only their signs can be
compared. agree, contradict: that interval is on the paper's side of 0, or on the other; undecided:
0 is in it; not corrected for the number of pairs. Not compared: "paper differs", ViT-B and ViT-L
are separated in opposite directions; "one seed", two trained detectors say nothing of seeds; "left
out", no run of a row may be used; "not run". Kendall's tau is the share of compared pairs that our
means have in the paper's order, less the share in the opposite one; its interval counts each pair
that is undecided, with all intervals widened to hold at once (Bonferroni), for and against. It is
about other seeds and images, not about other rows.
"""


def caption(validity: Validity) -> str:
    """How to read the table."""
    embedded = SCALES[validity.scale].embedded
    data = "the embedded set" if embedded else f"COCO with {validity.size} (docs/small.md)"
    return _CAPTION.format(scale=validity.scale, separated=SEPARATED, data=data)


def _command(validity: Validity) -> str:
    if validity.scale == "mini":
        return "make validity"
    return f"make validity SCALE={validity.scale} SIZE={validity.size}"


def markdown(validity: Validity) -> str:
    """Table, totals, how to read them, and where the numbers come from."""
    seeds = validity.records.groupby("setting").size()
    lines = [
        f"# Validity of the {validity.scale} scale",
        "",
        tables.render(cells(validity)),
        "",
        *(f"- {line}" for line in totals(validity)),
        "",
        caption(validity),
        *(f"- {note}" for note in validity.notes),
        *[""] * bool(validity.notes),
        f"- command: `{_command(validity)}`",
        *(f"- of: `{command}`" for command in sorted(set(validity.records["command"]))),
        f"- seeds: {seeds.min()} to {seeds.max()} of a row",
        *(f"- {line}" for line in provenance.measured(validity.records)),
        f"- compared by commit: {environment.git_commit()}",
        "",
    ]
    return "\n".join(lines)


def write(validity: Validity, folder: Path) -> list[Path]:
    """validity.md and validity.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"validity.{suffix}" for suffix in ("md", "csv")]
    files[0].write_text(markdown(validity))
    validity.table.to_csv(files[1], index=False)
    return files


def check_publishable(validity: Validity) -> None:
    """results/ keeps the comparison when all rows were run.

    Raises:
        UserError: some were not.
    """
    missing = validity.table.loc[validity.table["verdict"] == "not run", "study"]
    if len(missing):
        raise UserError(
            "results/ keeps the whole comparison: not all rows were run, see "
            f"{', '.join(dict.fromkeys(missing))}"
        )
