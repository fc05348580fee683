"""What studies found, on one page: report.html, one file that needs nothing else, and report.md.

The pictures are drawn by the other modules of this room. In the HTML file their SVG is in the page
itself, in its colors, so that it is light or dark with it and shows the row under the pointer; the
Markdown file shows the PNG files, which lie beside it.
"""

import base64
import datetime
import html
import io
import itertools
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from experiments.data.annotations import study_folder
from experiments.errors import UserError
from experiments.records import FOREIGN

from . import (
    attention_distance,
    error_types,
    plots,
    prediction_sheet,
    reach,
    receptive_field,
    results,
    tables,
)
from .results import KINDS, Results
from .text import around


@dataclass(frozen=True)
class Picture:
    """What draws one, and what stands above and below it."""

    name: str  # of its files
    title: str
    reading: str  # how to read it, one line
    draw: Callable[[Results, Path], list[Path]]


# Group by group, as the report shows them.
PICTURES = {
    "What rows do to AP": (
        Picture(
            "forest",
            "Differences to the base",
            "Right of 0 is better; filled squares are decided; grey: too little to be of interest.",
            plots.forest,
        ),
        Picture(
            "seeds",
            "AP of each seed",
            "A line is a seed; lines side by side mean that seeds move all rows alike.",
            plots.seeds,
        ),
    ),
    "What AP costs": (
        Picture(
            "ap_vs_macs",
            "AP against MACs",
            "Up is better, left is cheaper; ringed rows surely beat all that cost no more.",
            plots.ap_vs_macs,
        ),
        Picture(
            "ap_vs_params",
            "AP against parameters",
            "Up is better, left is smaller; ringed rows surely beat all that are no larger.",
            plots.ap_vs_params,
        ),
        Picture(
            "ap_vs_time",
            "AP against training time",
            "Measured on the machine below; other work on it makes it longer.",
            plots.ap_vs_time,
        ),
        Picture(
            "ap_vs_memory",
            "AP against peak memory",
            "The highest up to the end of training, on the machine below.",
            plots.ap_vs_memory,
        ),
    ),
    "How far information travels": (
        Picture(
            "reach_curve",
            "Reach",
            "Of found objects the share whose colour is right, by windows to where it is shown; "
            "whiskers are the lowest and highest seed.",
            plots.reach_curve,
        ),
    ),
    "AP by object size, and learning": (
        Picture(
            "ap_by_size",
            "AP by object size",
            "COCO's sizes; bars are the mean over seeds, whiskers its standard deviation.",
            plots.ap_by_size,
        ),
        Picture(
            "learning_curves",
            "Learning curves",
            "Training loss, smoothed; a band is from the lowest to the highest seed.",
            plots.learning_curves,
        ),
    ),
    "How cost grows": (
        Picture(
            "cost_vs_input_size",
            "Encoder MACs against input size",
            "Counted by formula, no run needed; the steeper, the costlier large images are.",
            plots.cost_vs_input_size,
        ),
        Picture(
            "cost_vs_count",
            "Time and memory by number of global blocks",
            "Measured in training on the machine below.",
            plots.cost_vs_count,
        ),
    ),
    "Why rows differ": (
        Picture(
            "error_types",
            "Error types",
            "AP50 that correcting all errors of one type would give (TIDE's types).",
            error_types.picture,
        ),
        Picture(
            "receptive_field",
            "Effective receptive field",
            "How strongly each pixel moves the encoder's output at the centre, after training.",
            receptive_field.picture,
        ),
        Picture(
            "attention_distance",
            "Attention distance",
            "How far each block's heads look, in pixels of the input.",
            attention_distance.picture,
        ),
        Picture(
            "prediction_sheet",
            "The same images, every row's predictions",
            "Images on which the rows differ most, of each row its first finished seed.",
            prediction_sheet.picture,
        ),
    ),
}

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

# Colors of the plots' style, as those of the page.
_COLORS = {
    "#000000": "currentColor",
    "#262626": "currentColor",
    "#595959": "var(--muted)",
    "#cccccc": "var(--line)",
    "#e6e6e6": "var(--line)",
    "#ffffff": "var(--page)",
}
_RASTER = 400_000  # bytes: above, an SVG goes into the page as a picture of pixels
_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class _Drawn:
    picture: Picture
    inline: Markup  # <svg> or <img>
    files: dict[str, str]  # "png", "svg", "csv" -> address relative to the report


@dataclass
class _Study:
    """One study as the templates take it."""

    id: str
    title: str
    results: Results
    overview: str
    unfinished: list[str]
    findings: list[dict[str, Any]]
    reach: float  # AP from the middle of a finding's bar to its end
    recipe: dict[str, str]
    config: str
    words: list[tuple[str, str]]
    environment: list[tuple[str, str]]
    commands: list[tuple[str, str]]
    records: list[tuple[str, str, str]]  # row, seed, address relative to the report
    drawn: dict[str, list[_Drawn]] = field(default_factory=dict)  # by group
    missing: list[str] = field(default_factory=list)


def write(folders: Sequence[Path], out: Path, delta: float | None = None) -> list[Path]:
    """Write the report of studies that were run.

    Args:
        folders: runs/<scale>/<study>, in the order in which they are shown.
        out: gets report.html, report.md, and a folder of pictures per study.
        delta: AP; smaller differences are of no interest. None: of each study's scale.

    Returns:
        report.html and report.md.

    Raises:
        UserError: nothing was run in a folder, two of them hold the same study, or a file is
            broken.
    """
    studies: dict[str, _Study] = {}
    for folder in folders:
        study = _study(results.load(folder, delta), out)
        if study.id in studies:
            there = studies[study.id].results.folder
            raise UserError(f"{there} and {folder} hold the same study: report one of them")
        studies[study.id] = study
        _draw(study, out)
    words = dict(
        studies=list(studies.values()),
        runs=len({path for study in studies.values() for path in _paths(study.results)}),
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        tables=tables,
        plain=_plain,
    )
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"plain": _plain, "code": _code}
    written = []
    for name in ("report.html", "report.md"):
        path = out / name
        path.write_text(templates.get_template(f"{name}.j2").render(words), encoding="utf-8")
        written.append(path)
    return written


def _paths(found: Results) -> set[Path]:
    """Of the runs' records: studies may share runs."""
    if found.records.empty:
        return set()
    own = found.records[found.records["fingerprint"] != FOREIGN]
    return {Path(path).resolve() for path in own["path"]}


def _study(found: Results, out: Path) -> _Study:
    manifest, records = found.manifest, found.records
    done = set(zip(records.get("variant", ()), records.get("seed", ()), strict=True))
    asked = [(run["variant"], run["seed"]) for run in manifest["runs"]]
    findings = [_finding(row, found) for _, row in found.table.iterrows()]
    ends = found.table[["ap_box_diff", "ap_box_diff_low", "ap_box_diff_high"]].abs().max().max()
    base = records[records["variant"] == manifest["base"]] if len(records) else records
    config = next(iter([*base.get("config", ()), *records.get("config", ())]), {})
    lines = [line.split(": ", 1) for line in tables.provenance(found)]
    return _Study(
        id=re.sub(
            r"[^\w-]+",
            "-",
            f"{manifest['scale']}-{study_folder(manifest['study'], manifest.get('own_set', ''))}",
        ),
        title=tables.title(found),
        results=found,
        overview=_overview(found),
        unfinished=[f"{name}, seed {seed}" for name, seed in asked if (name, seed) not in done],
        findings=findings,
        reach=float(ends) if ends > 0 else 1.0,
        recipe=_recipe(config),
        config=yaml.safe_dump(config, sort_keys=False, default_flow_style=None) if config else "",
        words=[(variant["name"], _words(variant)) for variant in manifest["variants"]],
        environment=[(name, value) for name, value in lines if name != "command"],
        commands=commands(manifest),
        records=[
            (run["variant"], f"{run['seed']:g}", os.path.relpath(run["path"], out))
            for _, run in records.iterrows()
        ],
    )


# ---- In words ----------------------------------------------------------------------------------


def _finding(row: pd.Series, found: Results) -> dict[str, Any]:
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


def _overview(found: Results) -> str:
    """Which rows are better, worse, ... in box AP than the base."""
    rows = found.table[found.table["variant"] != found.manifest["base"]]
    verdicts: dict[str, list[str]] = {}
    for name, seeds, runs, verdict in zip(
        rows["variant"], rows["seeds"], tables.finished(rows), rows["ap_box_verdict"], strict=True
    ):
        none = reach.MARK if runs else "not finished"
        verdicts.setdefault((verdict or "no verdict") if seeds else none, []).append(name)
    return "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in verdicts.items())


def _words(variant: dict) -> str:
    if not variant["size"]:
        return "a foreign result: how it was trained is not known"
    words = (f"{key}={value}" for key, value in variant["words"].items())
    return " ".join(words) or "as the study's base config"


def _recipe(config: dict) -> dict[str, str]:
    flat = results.flat_config(config)
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


def _plain(text: Any) -> str:
    """Text that Markdown takes as it is."""
    return re.sub(r"([\\|*_`\[\]#])", r"\\\1", html.escape(str(text), quote=False))


def _code(text: str) -> Markup:
    """Text for HTML, with what is between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


# ---- Pictures ----------------------------------------------------------------------------------


def _draw(study: _Study, out: Path) -> None:
    folder = out / study.id
    folder.mkdir(parents=True, exist_ok=True)
    for group, pictures in PICTURES.items():
        study.drawn[group] = []
        for picture in pictures:
            try:
                files = picture.draw(study.results, folder / picture.name)
            except UserError as error:
                study.missing.append(f"{picture.title}: {error}")
                continue
            if files:
                by_kind = {path.suffix[1:]: path for path in files}
                label = f"{picture.title}, {study.title}"
                study.drawn[group].append(
                    _Drawn(
                        picture,
                        _inline(by_kind, label, f"{study.id}-{picture.name}"),
                        {kind: os.path.relpath(path, out) for kind, path in by_kind.items()},
                    )
                )


def _inline(files: dict[str, Path], label: str, unique: str) -> Markup:
    """A picture as part of the page."""
    text = files["svg"].read_text()
    width = re.search(r'<svg\b[^>]*\bwidth="([\d.]+)pt"', text)[1]
    style = f"--width: {float(width) * 4 / 3:.0f}px"
    if "<image" not in text and len(text) <= _RASTER:
        return _inline_svg(text, label, style, unique)
    webp = io.BytesIO()
    with Image.open(files["png"]) as image:
        image.convert("RGB").save(webp, "webp", quality=75)
    data = base64.b64encode(webp.getvalue()).decode()
    return Markup('<img alt="{}" style="{}" src="data:image/webp;base64,{}">').format(
        label, style, data
    )


def _inline_svg(text: str, label: str, style: str, unique: str) -> Markup:
    """An SVG file of `style.save` as an element of the page.

    Args:
        unique: put in front of its ids, which the page has from every plot.
    """
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    used = set(re.findall(r"""(?:url\(|href=")#([^)"]+)""", text))
    for element in root.iter():
        attributes = element.attrib
        name = attributes.pop("id", None)
        if name in used:
            attributes["id"] = f"{unique}-{name}"
        if _HREF in attributes:
            attributes["href"] = f"#{unique}-{attributes.pop(_HREF)[1:]}"
        for key, value in attributes.items():
            value = value.replace("url(#", f"url(#{unique}-")
            if key == "style":
                for color, variable in _COLORS.items():
                    value = value.replace(color, variable)
            elif key in ("d", "x", "y"):
                value = re.sub(r"(\.\d\d)\d+", r"\1", value)
            attributes[key] = value
        for part in ("text", "tail"):
            if not (getattr(element, part) or "").strip():
                setattr(element, part, None)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "group", "aria-label": label, "style": style}
    return Markup(ElementTree.tostring(root, encoding="unicode"))
