"""A study as it stands: what was asked for, the runs that are done, their table, and what in it is
not comparable."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.errors import UserError
from experiments.matches import KINDS
from experiments.records import (
    FOREIGN,
    LVIS_FIGURES,
    MANIFEST,
    NOT_IDENTITY,
    load_foreign,
    load_study,
)

from . import bootstrap, reach
from .bootstrap import DELTA, Draws, Estimate
from .paper import published

FIGURES = tuple(figure.lower() for figure in LVIS_FIGURES)  # the first six are COCO's too
PAPER_SIZES = ("vit-b", "vit-l")
_COSTS = ("params", "macs", "activations", "encoder_params", "encoder_macs", "train_macs")
_MEASURED = ("train_seconds", "images_per_second", "peak_memory_mib")
# File and number of images of what the paper's AP are of.
PAPERS_DATA = {
    "coco": ("COCO val2017", "instances_val2017.json", 5000),
    "lvis": ("LVIS v1 val", "lvis_v1_val.json", 19809),
}
# Of a record, beside its config: what makes AP or costs another thing.
# Of a config: the data are known by what is in them, not by where it lies.
_NOT_RECIPE = ("train.seed", "dataloader.train.dataset", "dataloader.test.dataset")
SAME = ("precision", "device", "processes", "threads", "skipped", "memory_kind", "input_size")
_SHOWN = 6  # differences of a row that are named


@dataclass(frozen=True, eq=False)
class Results:
    """A study that was run in `folder`, runs/<scale>/<study>.

    Attributes:
        manifest: what was asked for, see `experiments.records.load_study`.
        records: one row per finished run and foreign result.
        table: one row per variant; unfinished ones are empty. AP is in 0..100, the mean over seeds.
            `_std` is the sample standard deviation over seeds (empty for one seed), `ap_<kind>_low`
            and `_high` are the 95 % interval of the mean, within 0..100. `ap_<kind>_diff` is the
            difference of the means to the base row, with its
            interval in `_diff_low` and `_diff_high` and what it says in `_verdict`
            (`analysis.bootstrap.Estimate`); so for every figure. `macs` are of the whole detector
            and one image. `paper_*` are the paper's, for its sizes, at COCO scale.
            Runs that did not learn the cue (`analysis.reach`) are in none of these but the costs:
            `seeds` are the others, `cue_not_learned` is their number, and `reach_<distance>` the
            mean share of the others' found objects whose cue is right. Studies without a reach lack
            these columns.
        delta: AP; smaller differences are of no interest.
        notes: what in the table is not comparable, or lacks intervals, a line each.
    """

    folder: Path
    manifest: dict
    records: pd.DataFrame
    table: pd.DataFrame
    delta: float
    notes: list[str]


def load(folder: str | Path, delta: float = DELTA, seeds: Collection[int] | None = None) -> Results:
    """The study that was run in `folder`.

    Args:
        seeds: of the runs that count; None: all.

    Raises:
        UserError: nothing was run there, or a file is broken or of another version.
    """
    manifest, records = load_study(folder)
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
    estimates = _Estimates(manifest, counted, draws, delta)
    rows = [
        _row(manifest, variant, records, counted, estimates) for variant in manifest["variants"]
    ]
    notes += reach.notes(records) + _differences(manifest, records)
    return Results(Path(folder), manifest, records, pd.DataFrame(rows), delta, notes)


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


class _Estimates:
    """Means and differences with their errors, where all runs of a row have draws."""

    def __init__(self, manifest: dict, records: pd.DataFrame, draws: dict, delta: float):
        self.base, self.draws, self.delta = manifest["base"], draws, delta
        self.records = records

    def of(self, variant: str, kind: str) -> dict[str, Any]:
        """Columns of `Results.table`."""
        ours, base = (_of(self.records, name) for name in (variant, self.base))
        row: dict[str, Any] = {}
        try:
            mean = self._estimates(kind, ours)["ap"]
            estimates = self._estimates(kind, ours, base)
        except UserError as error:
            raise UserError(f"{variant} and {self.base}: {error}") from error
        # An AP is in 0..100, however little two seeds say.
        bounds = np.clip(mean.interval() if mean else (nan, nan), 0, 100)
        row[f"ap_{kind}_low"], row[f"ap_{kind}_high"] = bounds
        for figure in FIGURES:
            column = f"{figure}_{kind}"
            if variant == self.base:
                ends = ("diff", "diff_low", "diff_high")
                row |= dict.fromkeys((f"{column}_{end}" for end in ends), nan)
                row[f"{column}_verdict"] = ""
            else:
                row |= self._difference(column, ours, base, estimates[figure])
        return row

    def _difference(
        self, column: str, ours: pd.DataFrame, base: pd.DataFrame, estimate: Estimate | None
    ) -> dict[str, Any]:
        known = column in ours and column in base
        row = {f"{column}_diff": ours[column].mean() - base[column].mean() if known else nan}
        row[f"{column}_diff_low"], row[f"{column}_diff_high"] = (
            estimate.interval() if estimate else (nan, nan)
        )
        verdict = estimate.verdict(self.delta) if estimate else ""
        # Of one seed it is about two trained detectors, which nobody asks about.
        alone = ", one seed" if estimate and estimate.std_seeds is None else ""
        return row | {f"{column}_verdict": verdict + alone}

    def _estimates(self, kind: str, *groups: pd.DataFrame) -> dict[str, Estimate | None]:
        """Of one group of runs, or of the difference of two, by column."""
        runs = [[self.draws.get((path, kind)) for path in group["path"]] for group in groups]
        if not all(group and all(group) for group in runs):
            return dict.fromkeys(FIGURES)
        estimate = bootstrap.bootstrap if len(runs) == 1 else bootstrap.paired
        found = {figure.lower(): value for figure, value in estimate(*runs).items()}
        return dict.fromkeys(FIGURES) | found


def _row(
    manifest: dict,
    variant: dict,
    records: pd.DataFrame,
    counted: pd.DataFrame,
    estimates: _Estimates,
) -> dict[str, Any]:
    name = variant["name"]
    finished, mine = _of(records, name), _of(counted, name)
    row = dict(variant=name, scale=manifest["scale"], size=variant["size"], seeds=len(mine))
    if names := reach.distances(records):
        row["cue_not_learned"] = len(finished) - len(mine)
        means = reach.shares(mine).mean().reindex(names)
        row |= {f"reach_{distance}": share for distance, share in means.items()}
    for kind in KINDS:
        for figure in FIGURES:
            values = mine.get(f"{figure}_{kind}", pd.Series(dtype=float)).astype(float)
            row[f"{figure}_{kind}"] = values.mean()
            row[f"{figure}_{kind}_std"] = values.std()
        row |= estimates.of(name, kind)
    for column in _COSTS:
        row[column] = finished[column].iloc[0] if len(finished) else None
    for column in _MEASURED:
        row[column] = finished[column].mean() if len(finished) else None
    for size in _paper_sizes(manifest):
        for kind in KINDS:
            where = variant["published"].get(size or variant["size"], "").split()
            value = published().at[where[0], f"ap_{kind}"] if where else None
            row[paper_column(kind, size)] = value
    return row


def _paper_sizes(manifest: dict) -> tuple[str, ...]:
    """Sizes that the paper's figures are shown for; "": of each row its own."""
    sizes = {variant["size"] for variant in manifest["variants"]} - {""}
    return PAPER_SIZES if len(sizes) == 1 and sizes <= {"vit-mini", *PAPER_SIZES} else ("",)


def paper_column(kind: str, size: str) -> str:
    """Where the table has the paper's AP of a size; "": of each row's own."""
    return f"paper_ap_{kind}" + f"_{size.replace('-', '')}" * bool(size)


def _of(records: pd.DataFrame, variant: str) -> pd.DataFrame:
    """A variant's records by seed."""
    if records.empty:
        return pd.DataFrame(columns=["path", "fingerprint"])
    return records[records["variant"] == variant].set_index("seed").sort_index()


# ---- What is not comparable --------------------------------------------------------------------


def _differences(manifest: dict, records: pd.DataFrame) -> list[str]:
    """What rows differ in from the base, or the first that is done, beside their networks."""
    lines, first = [], None
    names = [manifest["base"], *(v["name"] for v in manifest["variants"])]
    for name in dict.fromkeys(names):
        runs = _of(records, name)
        if runs.empty:
            continue
        if FOREIGN in set(runs["fingerprint"]):
            lines.append(f"{name} is a foreign result: how it was trained is not known")
            continue
        if first is None:
            first = name, runs.iloc[0]
        differences = [_recipe_differences(run, first[1]) for _, run in runs.iterrows()]
        if found := list(dict.fromkeys(itertools.chain.from_iterable(differences))):
            more = [f"and {len(found) - _SHOWN} more"] * (len(found) > _SHOWN)
            shown = "; ".join([*found[:_SHOWN], *more])
            lines.append(f"{name} differs from {first[0]} in {shown}")
    return lines


def paper_data(results: Results) -> tuple[str, bool]:
    """Which data set the paper's AP are of, and whether the study's are of the same."""
    runs = results.records
    own = list(runs.loc[runs["fingerprint"] != FOREIGN, "data"]) if len(runs) else []
    kinds = {data.get("kind", "coco") for data in own}
    name, file, images = PAPERS_DATA["lvis" if "lvis" in kinds else "coco"]
    sets = {(Path(data["val"]).name, data.get("images", [0])[-1]) for data in own}
    return name, sets == {(file, images)}


def _recipe_differences(ours: pd.Series, base: pd.Series) -> list[str]:
    def recipe(run: pd.Series) -> dict[str, Any]:
        flat = flat_config(run["config"])
        # Runs of before there was this word averaged over a pass.
        passes = flat.get("dataloader.train.micro_batch_size")
        flat.setdefault("dataloader.train.loss_batch_size", passes)
        flat = {k: v for k, v in flat.items() if not k.startswith("model.")}
        flat |= {"data": run["data"]["digest"]} | {key: run[key] for key in SAME}
        return {k: v for k, v in flat.items() if k not in (*_NOT_RECIPE, *NOT_IDENTITY)}

    return changes(recipe(ours), recipe(base))


def changes(ours: dict[str, Any], base: dict[str, Any]) -> list[str]:
    """What differs between two flat configs, as "key: base's -> ours"."""
    keys = [k for k in dict.fromkeys([*base, *ours]) if base.get(k) != ours.get(k)]
    return [f"{key}: {base.get(key)} -> {ours.get(key)}" for key in keys]


def flat_config(node: Any, prefix: str = "") -> dict[str, Any]:
    """A nested config by dotted keys."""
    if not isinstance(node, dict):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, part in node.items():
        flat |= flat_config(part, f"{prefix}.{key}".lstrip("."))
    return flat
