"""What studies found, on one page: report.html, one file that needs nothing else, and report.md.

The pictures are drawn by the other modules of this room. In the HTML file their SVG is in the page
itself, in its colors, so that it is light or dark with it and shows the row under the pointer; the
Markdown file shows the PNG files, which lie beside it.
"""

import datetime
import html
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from experiments.data.annotations import study_folder
from experiments.errors import UserError
from experiments.records import FOREIGN

from . import (
    attention_distance,
    error_types,
    plots,
    prediction_sheet,
    provenance,
    receptive_field,
    report_words,
    results,
    tables,
)
from .inline import inline
from .results import Results


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
    findings = [report_words.finding(row, found) for _, row in found.table.iterrows()]
    ends = found.table[["ap_box_diff", "ap_box_diff_low", "ap_box_diff_high"]].abs().max().max()
    base = records[records["variant"] == manifest["base"]] if len(records) else records
    config = next(iter([*base.get("config", ()), *records.get("config", ())]), {})
    lines = [line.split(": ", 1) for line in provenance.of_study(found)]
    return _Study(
        id=re.sub(
            r"[^\w-]+",
            "-",
            f"{manifest['scale']}-{study_folder(manifest['study'], manifest.get('own_set', ''))}",
        ),
        title=tables.title(found),
        results=found,
        overview=report_words.overview(found),
        unfinished=[f"{name}, seed {seed}" for name, seed in asked if (name, seed) not in done],
        findings=findings,
        reach=float(ends) if ends > 0 else 1.0,
        recipe=report_words.recipe(config),
        config=yaml.safe_dump(config, sort_keys=False, default_flow_style=None) if config else "",
        words=[
            (variant["name"], report_words.of_variant(variant)) for variant in manifest["variants"]
        ],
        environment=[(name, value) for name, value in lines if name != "command"],
        commands=report_words.commands(manifest),
        records=[
            (run["variant"], f"{run['seed']:g}", os.path.relpath(run["path"], out))
            for _, run in records.iterrows()
        ],
    )


def _plain(text: Any) -> str:
    """Text that Markdown takes as it is."""
    return re.sub(r"([\\|*_`\[\]#])", r"\\\1", html.escape(str(text), quote=False))


def _code(text: str) -> Markup:
    """Text for HTML, with what is between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


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
                        inline(by_kind, label, f"{study.id}-{picture.name}"),
                        {kind: os.path.relpath(path, out) for kind, path in by_kind.items()},
                    )
                )
