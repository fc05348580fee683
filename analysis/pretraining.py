"""What the pre-trainings of a scale did: a table, learning curves, and what MAE fills in."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from detectron2.config import instantiate
from detectron2.utils.registry import locate
from rich.console import Console

from experiments.data.pretraining_images import Images
from experiments.errors import UserError
from experiments.recipe import config
from experiments.records import (
    LAST_WEIGHTS,
    PRETRAINED,
    PretrainingRecord,
    checkpoints,
    metrics,
    read,
)

from . import style
from .style import plt
from .text import print_table

_POINTS = 100  # of a learning curve
_LOSSES = {
    "loss_pixels": "mean squared error of hidden patches",
    "loss_cls": "cross entropy, nats",
}
_COLUMNS = ("image", "shown", "filled in")


def load(folder: Path) -> dict[Path, PretrainingRecord]:
    """The finished pre-trainings of a scale, by their folders.

    Args:
        folder: of a scale, e.g. runs/mini.

    Raises:
        UserError: nothing was pre-trained there, or a record is broken or of another version.
    """
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}: give that of a scale, e.g. runs/mini")
    paths = sorted((folder / PRETRAINED).glob(f"*/{PretrainingRecord.FILE}"))
    found = {path.parent: read(path, PretrainingRecord) for path in paths}
    if not found:
        raise UserError(
            f"nothing is pre-trained in {folder / PRETRAINED}: `make pretrain RECIPE=mae` does that"
        )
    return found


def table(runs: dict[Path, PretrainingRecord]) -> pd.DataFrame:
    """One row each; times and memory are as measured on its device."""
    return pd.DataFrame(
        {
            "recipe": run.recipe,
            "size": run.size,
            "seed": run.seed,
            "images": run.data["images"][0],
            "iterations": run.config["train"]["max_iter"],
            "validation": _figures(run) or "no images",
            "GMACs of training, one image": run.train_macs and run.train_macs / 1e9,
            "images/s": run.images_per_second,
            "peak MiB": run.peak_memory_mib,
            "device": f"{run.device}, threads: {run.threads}, memory: {run.memory_kind}",
        }
        for run in runs.values()
    )


def markdown(runs: dict[Path, PretrainingRecord]) -> str:
    """The table, and what its numbers come from."""
    shown = table(runs).round(2).to_markdown(index=False, disable_numparse=True)
    lines = [
        f"- {run.recipe} {run.size} seed {run.seed}: commit {run.git_commit}, finished "
        f"{run.finished}, " + ", ".join(f"{k} {v}" for k, v in run.versions.items())
        for run in runs.values()
    ]
    return "\n".join(["# Pre-trainings", "", shown, "", *lines, ""])


def show(folder: Path, runs: dict[Path, PretrainingRecord], console: Console) -> list[Path]:
    """Print the table of a scale's pre-trainings, and write it, learning curves, and what each MAE
    fills in.

    Args:
        folder: of the scale.

    Returns:
        The files written.
    """
    print_table(table(runs), "pre-training", console)
    place = folder / PRETRAINED
    (place / "table.md").write_text(markdown(runs))
    written = [place / "table.md", *learning_curves(runs, place / "learning-curves")]
    for of_run, run in runs.items():
        if not fills_in(run):
            continue
        path = of_run / "reconstructions.png"
        try:  # others may have theirs
            reconstructions(of_run, run, path)
        except (UserError, OSError) as error:
            console.print(f"no {path}: {error}", highlight=False)
        else:
            written.append(path)
    return written


def _figures(run: PretrainingRecord) -> str:
    """Those of the validation images, with their units."""
    parts = []
    for name, value in run.figures.items():
        if name == "accuracy":
            parts.append(f"accuracy {100 * value:.1f} %")
        elif name == "effective_rank":
            parts.append(f"effective rank {value:.1f}")
        else:
            parts.append(f"{_axis(name)} {value:.3f}")
    return "; ".join(parts)


def _axis(loss: str) -> str:
    return _LOSSES.get(loss, loss)


# ---- Learning curves ---------------------------------------------------------------------------


def learning_curves(runs: dict[Path, PretrainingRecord], path: Path) -> list[Path]:
    """Training loss over images seen, a line each, a panel for each kind of loss: those of
    different methods cannot be compared. A point is the mean over a hundredth of the run.

    Returns:
        The files written, see `style.save`; none if no run kept its losses.
    """
    names = _names(runs)
    parts = [_losses(folder, run).assign(run=names[folder]) for folder, run in runs.items()]
    curves = pd.concat(parts, ignore_index=True)
    if curves.empty:
        return []
    style.use()
    looks = style.looks(names.values())
    kinds = curves["kind"].unique()
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(4.5 * len(kinds) + 3, 4), squeeze=False, layout="constrained"
    )
    for axis, kind in zip(panels[0], kinds, strict=True):
        for name, curve in curves[curves["kind"] == kind].groupby("run", sort=False):
            some = dict(markersize=6, markevery=max(len(curve) // 8, 1))
            (line,) = axis.plot(curve["images"], curve["loss"], label=name, **looks[name], **some)
            style.tip(line, f"{name}\n{_axis(kind)}: {curve['loss'].iloc[-1]:.3f} at the end")
        axis.set_xlabel("images seen")
        axis.set_ylabel(_axis(kind))
    figure.suptitle("pre-training: learning curves", x=0.01, ha="left")
    figure.legend(loc="outside right upper", fontsize=10, frameon=False)
    return style.save(figure, path, curves[["run", "kind", "images", "loss"]])


def _names(runs: dict[Path, PretrainingRecord]) -> dict[Path, str]:
    """Recipe, size and seed; where several share these, with the fingerprint's beginning."""
    short = {folder: f"{run.recipe} {run.size} seed {run.seed}" for folder, run in runs.items()}
    times = Counter(short.values())
    return {
        folder: name if times[name] == 1 else f"{name} {runs[folder].fingerprint[:6]}"
        for folder, name in short.items()
    }


def _losses(folder: Path, run: PretrainingRecord) -> pd.DataFrame:
    """Kind, images seen and loss; the later ones of what was repeated."""
    found = {
        (name, entry["iteration"]): loss
        for entry in metrics(folder)
        for name, loss in entry.items()
        if name.startswith("loss_")
    }
    rows = [(kind, iteration, loss) for (kind, iteration), loss in sorted(found.items())]
    losses = pd.DataFrame(rows, columns=["kind", "iteration", "loss"])
    part = losses["iteration"] * _POINTS // run.config["train"]["max_iter"]
    curve = losses.groupby(["kind", part.rename("part")]).mean().reset_index()
    batch = run.config["dataloader"]["train"]["total_batch_size"]
    return curve.assign(images=(curve["iteration"] + 1) * batch)


# ---- What MAE fills in -------------------------------------------------------------------------


def fills_in(run: PretrainingRecord) -> bool:
    """Whether its model is one that `reconstructions` is about."""
    return hasattr(locate(run.config["model"]["_target_"]), "reconstruct")


@torch.no_grad()
def reconstructions(folder: Path, run: PretrainingRecord, path: Path, count: int = 8) -> None:
    """Draw images evenly spread over the validation set, or the training set if there is none:
    whole, as the model was shown them, and as it filled them in. The hidden patches are the same in
    each call. Where a recipe predicts normalised pixels, a filled patch has its true mean and
    standard deviation.

    Args:
        path: of the .png.

    Raises:
        UserError: images, config or weights are not there, or are broken.
    """
    cfg = config.load(folder / "config.yaml", config.PRETRAINING_PARTS)
    images = _images(run, instantiate(cfg.dataloader.test.mapper), count)
    weights = folder / LAST_WEIGHTS
    if not weights.is_file():
        raise UserError(f"no checkpoint at {weights}")
    if problem := checkpoints.wrong(weights):
        raise UserError(f"checkpoint {weights} is broken: {problem}")
    model = instantiate(cfg.model)
    model.load_state_dict(checkpoints.read(weights)["model"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    noise = torch.rand(
        len(images),
        (images.shape[-1] // model.patch_size) ** 2,
        generator=torch.Generator().manual_seed(0),
    )
    made = model.reconstruct(images.to(device), noise.to(device))
    _draw(_names({folder: run})[folder], [images, made.shown.cpu(), made.filled.cpu()], path)


def _images(run: PretrainingRecord, mapper, count: int) -> torch.Tensor:
    """(B, 3, H, W) in 0..255, as `validate` reads them."""
    data = run.data
    split = "val" if data["val"] else "train"
    listed = Images(data["train"], data["val"], tuple(data["images"]), (), data["digest"])
    entries = listed.entries(split)
    if not entries:
        raise UserError(f"no images in {data[split]} any more")
    places = np.linspace(0, len(entries) - 1, min(count, len(entries))).round().astype(int)
    return torch.stack([mapper(entries[place])["image"] for place in places]).float()


def _draw(name: str, pictures: list[torch.Tensor], path: Path) -> None:
    """Two images a row, each in three columns."""
    style.use()
    count, side = len(pictures[0]), 1.5  # inches of a picture
    rows = (count + 1) // 2
    figure, axes = plt.subplots(
        rows, 6, figsize=(6 * side, rows * side + 0.6), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for number in range(count):
        row, left = divmod(number, 2)
        for column, (title, images) in enumerate(zip(_COLUMNS, pictures, strict=True)):
            axis = axes[row, 3 * left + column]
            axis.imshow(images[number].round().byte().permute(1, 2, 0).numpy())
            if row == 0:
                axis.set_title(title, fontsize=9)
    figure.suptitle(f"pre-training: {name}", fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=130)
    plt.close(figure)
