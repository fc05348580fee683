"""What a study found, and how it was made, in words for the report."""

import itertools
import re
import shlex
from typing import Any

import pandas as pd

from . import reach
from .comparable import flat_config
from .results import KINDS, Results
from .text import around

# Config keys that say the most about a recipe, under the names that papers use.
_RECIPE = {
    "initial weights": "train.init_weights",
    "image side, px": "dataloader.image_size",
    "iterations": "train.max_iter",
    "batch": "dataloader.train.total_batch_size",
    "optimizer": "optimizer._target_",
    "learning rate": "optimizer.lr",
    "weight decay": "optimizer.weight_decay",
    "layer-wise lr decay": "param_groups.layer_decay",
    "schedule": "schedule.decay._target_",
    "warm-up iterations": "schedule.warmup_iters",
    "gradient clipping (norm)": "train.clip_grad_norm",
    "mixed precision": "train.amp",
    "encoder": "model.backbone.size",
    "propagation": "model.backbone.propagation",
    "propagation blocks": "model.backbone.count",
    "window, tokens": "model.backbone.window_size",
    "relative positions": "model.backbone.use_rel_pos",
    "drop path": "model.backbone.drop_path_rate",
    "pyramid": "model.backbone.pyramid",
    "detector": "model._target_",
    "training images": "dataloader.train.dataset",
    "augmentations": "dataloader.train.mapper.augmentations",
    "evaluated on": "dataloader.test.dataset",
}


def finding(row: pd.Series, found: Results) -> dict[str, Any]:
    """What a row's numbers say: words, and the box AP's difference for the bar beside them."""
    base = found.table.set_index("variant").loc[found.manifest["base"]]
    finding = dict(variant=row["variant"], verdict="", value=None, low=None, high=None)
    left_out = int(row.get("cue_not_learned", 0))
    mark = f"{reach.MARK} ({left_out} of {row['seeds'] + left_out} seeds)"
    if not row["seeds"] and left_out:
        return finding | dict(text=f"{mark}.")
    if not row["seeds"]:
        return finding | dict(text="no run of it is finished.")
    if row["variant"] == found.manifest["base"]:
        parts = [
            _interval(f"{row[f'ap_{k}']:z.1f} {k} AP", row, f"ap_{k}", "") for k in _kinds(row)
        ]
        alone = ", over images alone" * bool(row["seeds"] == 1)
        parts[-1] += alone
        parts += [f"left out: {mark}"] * bool(left_out)
        return finding | dict(text=f"the base: {'; '.join(parts)}.", verdict="base")
    parts = []
    for kind in _kinds(row):
        ap = f"ap_{kind}"
        if pd.isna(row[f"{ap}_diff"]):
            parts.append(f"{row[ap]:.1f} {kind} AP, nothing to compare it with")
            continue
        words = _interval(f"{row[f'{ap}_diff']:+z.1f} {kind} AP", row, f"{ap}_diff", "+")
        parts.append(f"{words}: {row[f'{ap}_verdict'] or 'no verdict'}")
    ratios = []
    for column, name in (
        ("macs", "MACs"),
        ("params", "parameters"),
        ("peak_memory_mib", "peak memory"),
    ):
        if base["seeds"] and row[column] and not pd.isna(row[column] / base[column]):
            ratios.append(f"{row[column] / base[column]:.2f} x the {name}")
    if ratios:
        parts.append(f"{', '.join(ratios)} of {base.name}")
    parts += [f"left out: {mark}"] * bool(left_out)
    bounds = [row[f"ap_box_diff{end}"] for end in ("", "_low", "_high")]
    value, low, high = (None if pd.isna(v) else float(v) for v in bounds)
    word = re.match(r"\w*", row["ap_box_verdict"] or "")[0]
    bar = dict(verdict=word, value=value, low=low, high=high)
    return finding | bar | dict(text="; ".join(parts) + ".")


def _kinds(row: pd.Series) -> list[str]:
    return [kind for kind in KINDS if not pd.isna(row[f"ap_{kind}"])]


def _interval(text: str, row: pd.Series, column: str, sign: str) -> str:
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    ends = around(low, high, f"{sign}z.1f")
    return text + f" (95 %: {ends})" * bool(ends)


def overview(found: Results) -> str:
    """Which rows are better, worse, ... in box AP than the base."""
    rows = found.table[found.table["variant"] != found.manifest["base"]]
    verdicts: dict[str, list[str]] = {}
    for name, seeds, runs, verdict in zip(
        rows["variant"], rows["seeds"], reach.finished(rows), rows["ap_box_verdict"], strict=True
    ):
        none = reach.MARK if runs else "not finished"
        verdicts.setdefault((verdict or "no verdict") if seeds else none, []).append(name)
    return "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in verdicts.items())


def of_variant(variant: dict) -> str:
    if not variant["size"]:
        return "a foreign result: how it was trained is not known"
    words = (f"{key}={value}" for key, value in variant["words"].items())
    return " ".join(words) or "as the study's base config"


def recipe(config: dict) -> dict[str, str]:
    flat = flat_config(config)
    return {name: _shown(flat[key]) for name, key in _RECIPE.items() if key in flat}


def _shown(value: Any) -> str:
    """A config's value for readers: classes by their last name, "" as none."""
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, dict):
        name = value.get("_target_", "")
        words = ", ".join(f"{k}={v}" for k, v in value.items() if k != "_target_")
        return f"{name.rpartition('.')[2]}({words})"
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w]*(\.\w+)+", value):
        return value.rpartition(".")[2]
    return "none" if value in ("", None) else str(value)


def commands(manifest: dict) -> list[tuple[str, str]]:
    """What for, and the command: of the whole study, and of each row with the base."""
    words = shlex.split(manifest["command"])
    commands = [("all rows", f".venv/bin/{manifest['command']}")]
    if words[:4] != ["python", "-m", "experiments", "run"]:
        return commands
    source, options = words[4], words[5:]
    given = {
        name.removeprefix("--").replace("-", "_").upper(): "1" if value.startswith("--") else value
        for name, value in itertools.pairwise([*options, "--"])
        if name.startswith("--") and name != "--runs"
    }
    given = {k: v for k, v in given.items() if v and (k, v) not in (("SEEDS", "0"), ("JOBS", "0"))}

    def make(**words: str) -> str:
        words = {**given, **words}
        set_words = (f"{name}={shlex.quote(value)}" for name, value in words.items())
        return " ".join([f"make ablation-{source}", *set_words])

    if source.endswith(".py"):  # make knows the suite's own studies
        return commands
    commands.insert(0, ("all rows", make()))
    for variant in manifest["variants"]:
        name = variant["name"]
        if variant["size"]:  # not foreign
            rows = dict.fromkeys([manifest["base"], name])
            commands.append((name, make(VARIANTS=",".join(rows))))
    return commands
