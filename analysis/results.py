"""A study as it stands: what was asked for, the runs that are done, their table, and what in it is
not comparable."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from experiments.errors import UserError
from experiments.evaluation.matches import KINDS
from experiments.records import (
    FOREIGN,
    LVIS_FIGURES,
    MANIFEST,
    NOT_IDENTITY,
    load_foreign,
    load_study,
)
from experiments.scales import SCALES

from . import bootstrap, comparable, looks, reach, sweeps
from .bootstrap import Draws, delta_of
from .comparable import flat_config, of_row
from .estimates import Estimate
from .looks import Look
from .paper import known

FIGURES = tuple(figure.lower() for figure in LVIS_FIGURES)  # the first six are COCO's too
PAPER_SIZES = ("vit-b", "vit-l")
_COSTS = ("params", "macs", "activations", "encoder_params", "encoder_macs", "train_macs")
_MEASURED = ("train_seconds", "images_per_second", "peak_memory_mib")
# File and number of images of what the paper's AP are of.
PAPERS_DATA = {
    "coco": ("COCO val2017", "instances_val2017.json", 5000),
    "lvis": ("LVIS v1 val", "lvis_v1_val.json", 19809),
}
SEEDS_TO_BEAT = 5  # fewer say nothing of a share
ONE_SEED = "one seed"  # in place of a verdict


@dataclass(frozen=True, eq=False)
class Results:
    """A study that was run in `folder`, runs/<scale>/<study>.

    Attributes:
        manifest: what was asked for, see `experiments.records.load_study`.
        records: one row per finished run and foreign result.
        table: one row per variant; unfinished ones are empty. AP is in 0..100, the mean over seeds.
            `_std` is the sample standard deviation over seeds (empty for one seed), `ap_<kind>_low`
            and `_high` are the 95 % interval of the mean, within 0..100. `ap_<kind>_diff` is the
            difference to the base row: its mean over the seeds that both have, or else of the
            means. Its 95 % interval, of all rows at once, is in `_diff_low` and `_diff_high`, whose
            seeds it is of in `_spread`, and what it says in `_verdict`
            (`analysis.bootstrap.Estimate`); so for every figure. A row of one seed gets no verdict,
            one whose runs, or the base's, are not all done no interval either. `look` counts the
            numbers of seeds that the row had a verdict from, which share 5 % of error
            (`analysis.looks`). Of a sweep `factor` is what was chosen of each row
            (`analysis.sweeps`).
            `macs` are of the whole detector and one image. `paper_*` are the paper's, for its
            sizes, at COCO scale.
            `ap_<kind>_beats` is the share of seeds whose run of the row has a higher AP than the
            base's, with its interval in `_beats_low` and `_beats_high`, from `SEEDS_TO_BEAT` on.
            Runs that did not learn the cue (`analysis.reach`) are in none of these but the costs:
            `seeds` are the others, `cue_not_learned` is their number, and `reach_<distance>` the
            mean share of the others' found objects whose cue is right; `cue_learned` is the share
            of runs that did, with its interval. Studies without a reach lack these columns.
        delta: AP; smaller differences are of no interest.
        notes: what in the table is not comparable, or lacks intervals, a line each.
    """

    folder: Path
    manifest: dict
    records: pd.DataFrame
    table: pd.DataFrame
    delta: float
    notes: list[str]


def load(
    folder: str | Path, delta: float | None = None, seeds: Collection[int] | None = None
) -> Results:
    """The study that was run in `folder`; verdicts from new runs are noted there as a look.

    Args:
        delta: AP; smaller differences are of no interest. None: the scale's.
        seeds: of the runs that count, as if there were no others and nobody had looked; None: all.

    Raises:
        UserError: nothing was run there, or a file is broken or of another version.
    """
    manifest, records = load_study(folder)
    delta = delta_of(manifest["scale"]) if delta is None else delta
    if seeds is not None:
        records = records[records["seed"].isin(seeds)].reset_index(drop=True)
    draws, notes = _draws(records)
    foreign, of_foreign, more = _foreign(folder, {d.truth for d in draws.values()})
    if len(foreign):
        records = pd.concat([records, foreign], ignore_index=True)
        rows = [dict(name=name, size="", words={}, published={}) for name in foreign["variant"]]
        manifest = {**manifest, "variants": [*manifest["variants"], *rows]}
    draws, notes = draws | of_foreign, notes + more
    counted = records[~reach.not_learned(records)]
    runs = looks.runs_of(counted)
    seen = looks.number(looks.read(Path(folder)) if seeds is None else [], manifest["base"], runs)
    unfinished = _unfinished(manifest, records, seeds)
    estimates = Estimates(manifest, counted, draws, delta, seen, unfinished)
    rows = [
        _row(manifest, variant, records, counted, estimates) for variant in manifest["variants"]
    ]
    table = pd.DataFrame(rows).astype({"look": "Int64"})
    said = estimates.said(table)
    if seeds is None:
        looks.keep(Path(folder), delta, said)
    notes += reach.notes(records) + comparable.spreads(estimates, table) + looks.notes(said)
    notes += comparable.withheld(estimates) + sweeps.notes(Path(folder), manifest)
    notes += comparable.differences(manifest, records)
    return Results(Path(folder), manifest, records, table, delta, notes)


def folders(chosen: Sequence[Path] | None, runs: Path) -> list[Path]:
    """The folders of studies that were chosen, or else all in `runs`.

    Raises:
        UserError: there is none.
    """
    found = list(chosen or sorted(path.parent for path in runs.glob(f"*/*/{MANIFEST}")))
    if not found:
        raise UserError(f"no study was run in {runs}: run one, e.g. make ablation-count")
    return found


def _draws(records: pd.DataFrame) -> tuple[dict[tuple[str, str], Draws], list[str]]:
    """Of each record's path and kind, and why there are none of some."""
    found, notes = {}, []
    for path in records.get("path", ()):
        folder = Path(path).parent
        for kind in KINDS:
            try:
                found[path, kind] = bootstrap.of_run(folder, kind)
            except UserError as error:
                row = records[records["path"] == path].iloc[0]
                if not pd.isna(row.get(f"ap_{kind}")):
                    notes.append(f"{row['variant']}: no interval of {kind} AP: {error}")
    return found, notes


def _foreign(
    folder: str | Path, truths: set[str]
) -> tuple[pd.DataFrame, dict[tuple[str, str], Draws], list[str]]:
    """Foreign results of the study in `folder` with their draws; and a note on each that was scored
    on something else than the study's runs, which is left out."""
    foreign = load_foreign(folder)
    if foreign.empty:
        return foreign, {}, []
    draws, notes = _draws(foreign)
    stale = {path for (path, _), drawn in draws.items() if truths and drawn.truth not in truths}
    for path in sorted(stale):
        name = Path(path).parent.name
        notes.append(
            f"{name} was scored on other images or objects than the runs and is left out: add it "
            f"again, or remove {Path(path).parent}"
        )
    kept = foreign[~foreign["path"].isin(stale)]
    return kept, {key: drawn for key, drawn in draws.items() if key[0] not in stale}, notes


def _unfinished(
    manifest: dict, records: pd.DataFrame, seeds: Collection[int] | None
) -> dict[str, tuple[int, int]]:
    """Of rows that lack some of these seeds, how many of their runs are done, and how many were
    asked for."""
    runs = [run for run in manifest["runs"] if seeds is None or run["seed"] in seeds]
    asked = Counter(run["variant"] for run in runs)
    done = Counter(records.get("variant", ()))
    return {row: (done[row], count) for row, count in asked.items() if done[row] < count}


class Estimates:
    """Means and differences with their errors, where all runs of a row have draws.

    Args:
        seen: of each row, which look at it this is; it is set among the runs of then.
        unfinished: as of `_unfinished`.
    """

    def __init__(
        self,
        manifest: dict,
        records: pd.DataFrame,
        draws: dict,
        delta: float,
        seen: Mapping[str, Look],
        unfinished: Mapping[str, tuple[int, int]],
    ):
        self.base, self.draws, self.delta = manifest["base"], draws, delta
        self.records, self.seen, self.unfinished = records, seen, unfinished
        self.names = [variant["name"] for variant in manifest["variants"]]
        self.trained_as = _trained_as(records, [self.base, *self.names])

    @cached_property
    def differences(self) -> dict[str, dict[str, dict[str, Estimate | None]]]:
        """Kind -> row -> figure -> difference, of the rows that have draws."""
        found: dict[str, dict[str, dict[str, Estimate | None]]] = {kind: {} for kind in KINDS}
        contexts: dict[tuple, list[str]] = {}
        for row, look in self.seen.items():
            contexts.setdefault(tuple(sorted(look.runs.items())), []).append(row)
        for runs, rows in contexts.items():
            then = looks.among(self.records, dict(runs))
            for kind in KINDS:
                of_all = self._differences(kind, then)
                found[kind] |= {row: of_all[row] for row in rows if row in of_all}
        return found

    def of(self, variant: str, kind: str) -> dict[str, Any]:
        """Columns of `Results.table`."""
        drawn = self._drawn(self.records, variant, kind)
        mean = bootstrap.bootstrap(list(drawn.values()))["AP"] if drawn else None
        # An AP is in 0..100, however little two seeds say.
        bounds = np.clip(mean.interval() if mean else (nan, nan), 0, 100)
        row: dict[str, Any] = {f"ap_{kind}_low": bounds[0], f"ap_{kind}_high": bounds[1]}
        estimates = {
            figure.lower(): found
            for figure, found in self.differences[kind].get(variant, {}).items()
        }
        for figure in FIGURES:
            row |= self._difference(f"{figure}_{kind}", variant, estimates.get(figure))
        return row

    def said(self, table: pd.DataFrame) -> dict[str, tuple[Look, Estimate, str]]:
        """Of rows with a verdict on box AP: the look, the difference, the verdict."""
        verdicts = table.set_index("variant")["ap_box_verdict"]
        found = self.differences["box"]
        return {
            row: (look, found[row]["AP"], verdicts[row])
            for row, look in self.seen.items()
            if verdicts[row] not in ("", ONE_SEED)
        }

    def withheld(self, row: str) -> bool:
        """Whether it gets no verdict yet: it, or the base, lacks runs that were asked for."""
        lacking = bool({row, self.base} & self.unfinished.keys())
        return lacking and row in self.seen and self.seen[row].new

    def _difference(self, column: str, variant: str, estimate: Estimate | None) -> dict[str, Any]:
        ours, base = (of_row(self.records, name) for name in (variant, self.base))
        row = dict.fromkeys((f"{column}_{end}" for end in ("diff", "diff_low", "diff_high")), nan)
        row |= {f"{column}_spread": "", f"{column}_verdict": ""}
        if variant == self.base:
            return row
        if estimate is None:
            if column in ours and column in base:
                row[f"{column}_diff"] = ours[column].mean() - base[column].mean()
            return row
        row |= {f"{column}_diff": estimate.value, f"{column}_spread": estimate.spread}
        if self.withheld(variant) and len(ours) > 1:
            return row  # an interval would say what the verdict does
        low, high = estimate.interval()
        row |= {f"{column}_diff_low": low, f"{column}_diff_high": high}
        # Of one seed it is about a trained detector, which nobody asks about.
        verdict = ONE_SEED if len(ours) == 1 else estimate.verdict(self.delta)
        return row | {f"{column}_verdict": verdict}

    def _differences(
        self, kind: str, records: pd.DataFrame
    ) -> dict[str, dict[str, Estimate | None]]:
        """Row -> figure -> difference, of the rows that have draws; among these records."""
        runs = {name: drawn for name in self.names if (drawn := self._drawn(records, name, kind))}
        if self.base not in runs or len(runs) < 2:
            return {}
        foreign = set(self.records.loc[self.records["fingerprint"] == FOREIGN, "variant"])
        found = bootstrap.against(self.base, runs, foreign & set(runs), self.trained_as)
        return {
            row: {figure: self._at_look(row, estimate) for figure, estimate in of_row.items()}
            for row, of_row in found.items()
        }

    def _at_look(self, row: str, estimate: Estimate | None) -> Estimate | None:
        """With the error of the row's look, and as one of the rows that tables have had by now."""
        if estimate is None or not estimate.spread:
            return estimate
        count = self.records["variant"].value_counts()
        told = sum(count[self.base] + count[name] > 2 for name in self.seen)
        look = self.seen[row]
        return replace(estimate, error=look.error, rows=max(estimate.rows, told) + look.gone)

    def _drawn(self, records: pd.DataFrame, variant: str, kind: str) -> dict[int, Draws]:
        """Of its runs by seed, if all have some."""
        paths = of_row(records, variant)["path"]
        found = {seed: self.draws.get((path, kind)) for seed, path in paths.items()}
        return found if all(found.values()) else {}


def _trained_as(records: pd.DataFrame, names: Sequence[str]) -> dict[str, str]:
    """Of each row the first of `names` that has its trainings: it differs at test time alone."""
    first: dict[str, str] = {}
    found = {}
    for name in dict.fromkeys(names):
        runs = of_row(records, name)
        if runs.empty or FOREIGN in set(runs["fingerprint"]):
            continue
        trainings = [_training(run) for _, run in runs.iterrows()]
        found[name] = next((first[key] for key in trainings if key in first), name)
        first |= dict.fromkeys(trainings, found[name])
    return found


def _training(run: pd.Series) -> str:
    """What a run's training was, but for the machine; see `identity.training_fingerprint`."""
    flat = flat_config(run["config"])
    at_test = ("test.", "dataloader.test.")
    kept = {k: v for k, v in flat.items() if not k.startswith(at_test) and k not in NOT_IDENTITY}
    return repr((sorted(kept.items()), run.name, run["data"].get("digest")))


def _row(
    manifest: dict,
    variant: dict,
    records: pd.DataFrame,
    counted: pd.DataFrame,
    estimates: Estimates,
) -> dict[str, Any]:
    name = variant["name"]
    finished, mine = of_row(records, name), of_row(counted, name)
    row = dict(variant=name, scale=manifest["scale"], size=variant["size"], seeds=len(mine))
    judged = name in estimates.seen and len(mine) > 1 and not estimates.withheld(name)
    row["look"] = estimates.seen[name].number if judged else None
    if best := sweeps.chosen(manifest):
        row["factor"] = best.get(name, nan)
    if names := reach.distances(records):
        row["cue_not_learned"] = len(finished) - len(mine)
        means = reach.shares(mine).mean().reindex(names)
        row |= {f"reach_{distance}": share for distance, share in means.items()}
        row |= share_of("cue_learned", len(mine), len(finished))
    for kind in KINDS:
        for figure in FIGURES:
            values = mine.get(f"{figure}_{kind}", pd.Series(dtype=float)).astype(float)
            row[f"{figure}_{kind}"] = values.mean()
            row[f"{figure}_{kind}_std"] = values.std()
        row |= estimates.of(name, kind)
        row |= _beats(manifest["base"], name, counted, kind)
    for column in _COSTS:
        row[column] = finished[column].iloc[0] if len(finished) else None
    for column in _MEASURED:
        row[column] = finished[column].mean() if len(finished) else None
    for size in _paper_sizes(manifest):
        for kind in KINDS:
            where = variant["published"].get(size or variant["size"], "").split()
            value = known().at[where[0], f"ap_{kind}"] if where else None
            row[paper_column(kind, size)] = value
    return row


def _beats(base: str, name: str, counted: pd.DataFrame, kind: str) -> dict[str, float]:
    """In how many seeds the row's run has the higher AP; NaN of few seeds and of other runs."""
    column = f"ap_{kind}"
    ours, theirs = of_row(counted, name), of_row(counted, base)
    known = column in ours and column in theirs
    if name == base or not known or FOREIGN in set(ours["fingerprint"]):
        return share_of(f"{column}_beats", 0, 0)
    pairs = pd.concat([ours[column], theirs[column]], axis=1, keys=["ours", "base"]).dropna()
    seeds = len(pairs) if len(pairs) >= SEEDS_TO_BEAT else 0
    return share_of(f"{column}_beats", int((pairs["ours"] > pairs["base"]).sum()), seeds)


def share_of(column: str, count: int, of: int) -> dict[str, float]:
    """A share and its 95 % interval by Wilson's score, as columns; NaN of nothing."""
    if not of:
        return dict.fromkeys((column, f"{column}_low", f"{column}_high"), nan)
    found = stats.binomtest(count, of).proportion_ci(0.95, method="wilson")
    return {column: count / of, f"{column}_low": found.low, f"{column}_high": found.high}


def _paper_sizes(manifest: dict) -> tuple[str, ...]:
    """Sizes that the paper's figures are shown for; "": of each row its own."""
    sizes = {variant["size"] for variant in manifest["variants"]} - {""}
    ours = {"vit-mini", "vit-s", *PAPER_SIZES}
    return PAPER_SIZES if len(sizes) == 1 and sizes <= ours else ("",)


def paper_column(kind: str, size: str) -> str:
    """Where the table has the paper's AP of a size; "": of each row's own."""
    return f"paper_ap_{kind}" + f"_{size.replace('-', '')}" * bool(size)


def paper_data(results: Results) -> tuple[str, bool]:
    """Which data set the paper's AP are of, and whether the study's are of the same, by a recipe of
    the same length."""
    runs = results.records
    own = list(runs.loc[runs["fingerprint"] != FOREIGN, "data"]) if len(runs) else []
    kinds = {data.get("kind", "coco") for data in own}
    name, file, images = PAPERS_DATA["lvis" if "lvis" in kinds else "coco"]
    sets = {(Path(data["val"]).name, data.get("images", [0])[-1]) for data in own}
    return name, sets == {(file, images)} and not SCALES[results.manifest["scale"]].shortened
