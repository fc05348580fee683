"""What kinds of errors cost a detector AP, by TIDE's rules (Bolya et al., TIDE: A General Toolbox
for Identifying Object Detection Errors, arXiv:2008.08115; its public code is the package tidecv).

Every wrong detection has one type, and so has every object that no correction would find. What a
type costs is dAP50: AP50 with its errors corrected, and nothing else, less AP50 as it is. The
types' dAP50 do not add up to what is missing: errors hide behind each other.

AP50 as it is is that of the tables. So this keeps to COCO's evaluation where tidecv (1.0.1) does
not: 100 detections count of each category in an image, not of all together; categories without
objects are left out of the mean, where tidecv has them at 0; a detection in a crowd region, being
neither right nor wrong, is no error; recalls are pycocotools' floats. All else is as in tidecv.
"""

import hashlib
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pycocotools import mask as masks

from experiments import records
from experiments.data import annotations
from experiments.evaluation import matches
from experiments.evaluation.average_precision import figures
from experiments.evaluation.detections import DETECTIONS, read_results, run_lengths
from experiments.evaluation.kept import kept

from . import style
from .results import Results

# In the paper's order.
TYPES = {
    "cls": "classification",
    "loc": "localisation",
    "both": "both of them",
    "dupe": "duplicate",
    "bkg": "background",
    "miss": "missed",
}
FOREGROUND, BACKGROUND = 0.5, 0.1  # the paper's t_f and t_b: IoU from which, to which
_VERSION = 1  # of what is kept; raise it when the rules change
_HATCHES = ("", "////", "\\\\\\\\", "xxxx", "----", "||||", "++++", "//", "\\\\", "xx")


def of_run(folder: str | Path, kind: str = "box") -> pd.DataFrame | None:
    """Error types of the finished run in `folder`, kept beside its record.

    Returns:
        As of `compute`; None for a run that has no AP of this kind, or is scored as LVIS, whose
        images are not searched for every category: what is wrong there is not known.

    Raises:
        UserError: as of `experiments.evaluation.matches.of_run`.
    """
    folder = Path(folder)
    record = records.read(folder / records.RECORD)
    if record.data.get("kind", "coco") != "coco" or not getattr(record, kind):
        return None
    matches.of_run(folder, kind)  # refuses what is no detection of this set
    files = Path(record.data["val"]), folder / record.predictions
    digest = hashlib.sha256(f"{_VERSION} {kind}".encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())

    def make() -> dict[str, np.ndarray]:
        found = compute(annotations.read(files[0]), read_results(files[1]), kind)
        return {column: found[column].to_numpy() for column in found}

    arrays = kept(folder / f"errors_{kind}.npz", digest.hexdigest(), make)
    return pd.DataFrame(arrays, index=list(TYPES))


def compute(truth: dict, predictions: list[dict], kind: str = "box") -> pd.DataFrame:
    """Error types of detections.

    Args:
        truth: what an annotation file in COCO's format holds.
        predictions: detections in COCO's result format, as of
            `experiments.evaluation.matches.compute`.
        kind: "box" or "mask".

    Returns:
        A row for each of `TYPES`: count, and dap50 in 0..100, NaN if no object is left to find.
    """
    number = {c["id"]: i for i, c in enumerate(truth["categories"])}
    images = by_image(truth, predictions)
    columns = [
        _of_image(detections, objects, overlaps(detections, objects, kind, size), number)
        for size, detections, objects in images
    ]
    score, category, error, target, missed = (np.concatenate(c) for c in zip(*columns, strict=True))
    objects = [o for _, _, of_image in images for o in of_image if not o.get("iscrowd")]
    there = np.bincount([number[o["category_id"]] for o in objects], minlength=len(number))
    ap50 = _ap50(score, category, error == "", there)
    rows = {}
    for name in TYPES:
        wrong = error == name
        right = (error == "") | (wrong & (target >= 0))
        keep = right | ~wrong
        of = np.where(wrong, target, category)
        left = there - np.bincount(missed, minlength=len(number)) * (name == "miss")
        fixed = _ap50(score[keep], of[keep], right[keep], left)
        count = len(missed) if name == "miss" else np.count_nonzero(wrong)
        rows[name] = dict(count=count, dap50=fixed - ap50)
    return pd.DataFrame.from_dict(rows, orient="index")


def by_image(truth: dict, predictions: list[dict]) -> list[tuple[tuple, list[dict], list[dict]]]:
    """Each image's size (height, width), its detections that count by falling score, and its
    objects; by image id, as COCO's evaluation goes through them."""
    images = {i["id"]: ((i["height"], i["width"]), [], []) for i in truth["images"]}
    for annotation in truth["annotations"]:
        if annotation["image_id"] in images:
            images[annotation["image_id"]][2].append(annotation)
    seen = Counter()
    for found in sorted(predictions, key=lambda p: -p["score"]):
        here = found["image_id"], found["category_id"]
        if seen[here] < DETECTIONS:
            images[found["image_id"]][1].append(found)
        seen[here] += 1
    return [images[key] for key in sorted(images)]


def overlaps(
    detections: list[dict], objects: list[dict], kind: str, size: tuple[int, int]
) -> np.ndarray:
    """(D, O) IoU; with a crowd: the share of the detection that is in it."""
    crowd = [bool(o.get("iscrowd")) for o in objects]
    if not detections or not objects:
        return np.zeros((len(detections), len(objects)))
    if kind == "box":
        shapes = [np.array([s["bbox"] for s in side], float) for side in (detections, objects)]
    else:
        shapes = [[run_lengths(s, size) for s in side] for side in (detections, objects)]
    return masks.iou(*shapes, crowd)


def match(
    detections: list[dict], objects: list[dict], iou: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What COCO's evaluation finds in one image at an IoU of 0.5.

    Args:
        detections: by falling score.
        iou: (D, O) their `overlaps`.

    Returns:
        Right (D,), ignored (D,), being in a crowd region, and found (O,).
    """
    same = _same(detections, objects) & (iou >= FOREGROUND)
    crowd = np.array([bool(o.get("iscrowd")) for o in objects], bool)
    right, found = np.zeros(len(detections), bool), np.zeros(len(objects), bool)
    for d in np.flatnonzero((same & ~crowd).any(1)):
        free = np.flatnonzero(same[d] & ~crowd & ~found)
        if len(free):
            best = free[::-1][iou[d, free[::-1]].argmax()]  # of equal ones pycocotools' is the last
            right[d] = found[best] = True
    return right, (same & crowd).any(1) & ~right, found


def _same(detections: list[dict], objects: list[dict]) -> np.ndarray:
    """(D, O) whether they are of the same category."""
    ours, theirs = (np.array([s["category_id"] for s in x], int) for x in (detections, objects))
    return ours[:, None] == theirs


def _of_image(
    detections: list[dict], objects: list[dict], iou: np.ndarray, number: dict
) -> tuple[np.ndarray, ...]:
    """Of the detections that are right or wrong: score, category, error ("": right), and the
    category of the object that correcting it finds (-1: it goes); the categories of missed objects.
    """
    right, ignored, found = match(detections, objects, iou)
    counts = ~ignored
    detections = [d for d, c in zip(detections, counts, strict=True) if c]
    plain = np.array([not o.get("iscrowd") for o in objects], bool)
    objects = [o for o, p in zip(objects, plain, strict=True) if p]
    right, found, iou = right[counts], found[plain], iou[counts][:, plain]
    same = _same(detections, objects)
    own, other = iou * same, iou * ~same
    most_own = own.max(1, initial=0)
    is_ = {
        "": right,
        "loc": (most_own >= BACKGROUND) & (most_own <= FOREGROUND),
        "cls": other.max(1, initial=0) >= FOREGROUND,
        "dupe": (own * found).max(1, initial=0) >= FOREGROUND,
        "bkg": iou.max(1, initial=0) <= BACKGROUND,
    }
    error = np.select(list(is_.values()), list(is_), "both")
    target = np.full(len(detections), -1)
    usable = found.copy()
    for d in np.flatnonzero((error == "loc") | (error == "cls")):
        of = (own if error[d] == "loc" else other)[d].argmax()
        if not usable[of]:  # the one of the highest score gets it, the others go
            usable[of] = True
            target[d] = number[objects[of]["category_id"]]
    score = np.array([d["score"] for d in detections], float)
    category = np.array([number[d["category_id"]] for d in detections], int)
    missed = [number[o["category_id"]] for o, u in zip(objects, usable, strict=True) if not u]
    return score, category, error, target, np.array(missed, int)


def _ap50(score: np.ndarray, category: np.ndarray, right: np.ndarray, there: np.ndarray) -> float:
    """AP, 0..100, over categories of which there are objects; NaN if there are none.

    Args:
        there: (K,) how many objects are to be found.
    """
    order = np.lexsort((-score, category))
    nothing = np.zeros(len(order), np.int32)
    one_image = matches.Matches(
        images=np.zeros(1, int),
        categories=np.arange(len(there)),
        start=np.searchsorted(category[order], np.arange(len(there) + 1)),
        image=nothing,
        rank=nothing,
        matched=np.tile(right[order].astype(np.uint16), (4, 1)),
        ignored=np.zeros((4, len(order)), np.uint16),
        objects=np.tile(there[None, :, None], (1, 1, 4)),
        frequency=np.array([], str),
    )
    return float(figures(one_image)[1])


# ---- Picture -----------------------------------------------------------------------------------


def picture(results: Results, path: Path) -> list[Path]:
    """What each type of error costs each variant: means over seeds, and their range.

    Returns:
        The files written, see `style.save`; none if no run has error types (see `of_run`).

    Raises:
        UserError: as of `of_run`.
    """
    table = _table(results)
    if table.empty:
        return []
    style.use()
    return style.save(_bars(table, results), path, table)


def _table(results: Results) -> pd.DataFrame:
    """A row per kind, variant and type: means over seeds, and the least and most dap50."""
    frames = []
    for _, run in results.records.iterrows():
        for kind in matches.KINDS:
            found = of_run(Path(run["path"]).parent, kind)
            if found is not None:
                found = found.rename_axis("type").reset_index()
                frames.append(found.assign(kind=kind, variant=run["variant"], seed=run["seed"]))
    if not frames:
        return pd.DataFrame()
    groups = pd.concat(frames).groupby(["kind", "variant", "type"], sort=False)
    return groups.agg(
        seeds=("seed", "count"),
        count=("count", "mean"),
        dap50=("dap50", "mean"),
        dap50_min=("dap50", "min"),
        dap50_max=("dap50", "max"),
    ).reset_index()


def _bars(table: pd.DataFrame, results: Results) -> Figure:
    kinds = [kind for kind in matches.KINDS if kind in set(table["kind"])]
    variants = [v for v in results.table["variant"] if v in set(table["variant"])]
    looks = style.looks(variants)
    figure, axes = plt.subplots(
        len(kinds), 1, figsize=(10, 0.8 + 3 * len(kinds)), squeeze=False, layout="constrained"
    )
    width = 0.84 / len(variants)
    for axis, kind in zip(axes[:, 0], kinds, strict=True):
        for i, variant in enumerate(variants):
            mine = table[(table["kind"] == kind) & (table["variant"] == variant)]
            mine = mine.set_index("type").reindex(list(TYPES))
            bars = axis.bar(
                np.arange(len(TYPES)) + (i - (len(variants) - 1) / 2) * width,
                mine["dap50"],
                width * 0.92,
                yerr=[mine["dap50"] - mine["dap50_min"], mine["dap50_max"] - mine["dap50"]],
                error_kw=dict(elinewidth=1, capsize=2, ecolor="0.2"),
                color=looks[variant]["color"],
                hatch=_HATCHES[i % len(_HATCHES)],
                edgecolor="0.2",
                linewidth=0.6,
                label=variant,
            )
            for bar, (name, row) in zip(bars, mine.iterrows(), strict=True):
                axis.annotate(
                    f"{row['dap50']:.1f}",
                    (bar.get_x() + bar.get_width() / 2, row["dap50_max"]),
                    (0, 4),
                    textcoords="offset points",
                    fontsize=7,
                    rotation=90,
                    in_layout=False,  # measuring it takes long
                    ha="center",
                )
                style.tip(
                    bar,
                    f"{variant}, {TYPES[name]}\n{row['dap50']:.2f} {kind} AP50 to gain "
                    f"({row['dap50_min']:.2f} to {row['dap50_max']:.2f} over seeds)\n"
                    f"{row['count']:.0f} errors",
                )
        axis.set_xticks(range(len(TYPES)), list(TYPES.values()))
        axis.set_ylabel(f"{kind} AP50 to gain")
        axis.grid(False, axis="x")
        axis.margins(y=0.15)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside right upper",
        title="mean over seeds,\nleast to most" if table["seeds"].max() > 1 else None,
    )
    figure.suptitle(f"{results.manifest['study']}: what each type of error costs")
    return figure
