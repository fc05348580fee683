"""What in a study is not comparable, in lines for its tables; and how two configs differ."""

import itertools
from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments.evaluation.matches import KINDS
from experiments.records import FOREIGN, NOT_IDENTITY, SINCE

if TYPE_CHECKING:
    from .results import Estimates

# Of a record, beside its config: what makes AP or costs another thing.
# Of a config: the data are known by what is in them, not by where it lies.
_NOT_RECIPE = ("train.seed", "dataloader.train.dataset", "dataloader.test.dataset")
SAME = ("precision", "device", "processes", "threads", "skipped", "memory_kind", "input_size")
# Why an interval is not of all rows' seeds.
_ONE_RUN = "one run: its interval takes its seeds to spread as the base's do; no verdict"
_FEW_SHARED = "fewer than two seeds shared with the base: not paired by seed"
_SAME_TRAININGS = "the base's trainings, tested otherwise: paired by them"
_TOO_FEW = "two seeds say nothing of a row's spread: interval of its own pairs"
_UNLIKE = "seeds, its own or the base's, spread unlike the others': interval of its own pairs"
_SHOWN = 6  # differences of a row that are named


def of_row(records: pd.DataFrame, variant: str) -> pd.DataFrame:
    """A variant's records by seed."""
    if records.empty:
        return pd.DataFrame(columns=["path", "fingerprint"])
    return records[records["variant"] == variant].set_index("seed").sort_index()


def spreads(estimates: "Estimates", table: pd.DataFrame) -> list[str]:
    """Which rows' intervals are not of all rows' seeds, and why."""
    groups: dict[str, list[str]] = {}
    base, several = estimates.base, (table["seeds"] > 0).sum() > 2
    seeds_of_base = of_row(estimates.records, base).index
    for _, row in table.iterrows():
        name = row["variant"]
        seeds = of_row(estimates.records, name).index
        shared = len(seeds.intersection(seeds_of_base))
        kinds = {kind: row[f"ap_{kind}_spread"] for kind in KINDS}
        own = [kind for kind in KINDS if kinds[kind] == "own"]
        why = []
        if "unpaired" in kinds.values():
            why.append(_ONE_RUN if len(seeds) == 1 else _FEW_SHARED)
        elif own and estimates.trained_as.get(name) == base:
            why.append(_SAME_TRAININGS)
        elif own and several:
            why.append(_TOO_FEW if shared < 3 else f"{_UNLIKE} ({' and '.join(own)} AP)")
        if any(kinds.values()) and 1 < shared < max(len(seeds), len(seeds_of_base)):
            why.append(f"difference over the {shared} seeds that it shares with {base}")
        for reason in why:
            groups.setdefault(reason, []).append(name)
    return [f"{', '.join(names)}: {reason}" for reason, names in groups.items()]


def withheld(estimates: "Estimates") -> list[str]:
    """Which rows get no verdict yet."""
    rows = [row for row in estimates.seen if estimates.withheld(row)]
    lacking = [f"{row} {done} of {asked}" for row, (done, asked) in estimates.unfinished.items()]
    return [f"{', '.join(rows)}: no verdict yet, runs done: {', '.join(lacking)}"] if rows else []


def differences(manifest: dict, records: pd.DataFrame) -> list[str]:
    """What rows differ in from the base, or the first that is done, beside their networks."""
    lines, first = [], None
    names = [manifest["base"], *(v["name"] for v in manifest["variants"])]
    for name in dict.fromkeys(names):
        runs = of_row(records, name)
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


def _recipe_differences(ours: pd.Series, base: pd.Series) -> list[str]:
    def recipe(run: pd.Series) -> dict[str, Any]:
        flat = flat_config(run["config"])
        flat = {k: v for k, v in flat.items() if not k.startswith("model.")}
        flat |= {"data": run["data"]["digest"]} | {key: run[key] for key in SAME}
        return {k: v for k, v in flat.items() if k not in (*_NOT_RECIPE, *NOT_IDENTITY)}

    return changes(recipe(ours), recipe(base))


def changes(ours: dict[str, Any], base: dict[str, Any]) -> list[str]:
    """What differs between two flat configs, as "key: base's -> ours"."""
    keys = [k for k in dict.fromkeys([*base, *ours]) if base.get(k) != ours.get(k)]
    return [f"{key}: {base.get(key)} -> {ours.get(key)}" for key in keys]


def flat_config(config: dict) -> dict[str, Any]:
    """A run's config by dotted keys, the words that came later among them."""
    flat = _flat(config)
    if passes := flat.get("dataloader.train.micro_batch_size"):  # averaged over a pass, before
        flat = SINCE | {"dataloader.train.loss_batch_size": passes} | flat
    return flat


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, part in node.items():
        flat |= _flat(part, f"{prefix}.{key}".lstrip("."))
    return flat
