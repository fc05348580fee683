"""The trained encoders of a study's runs, and images of their validation sets to try them on."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from detectron2.config import instantiate
from torch import Tensor, nn

from backbones.weights import WeightsError, encoder_of, load_detector
from experiments import studies
from experiments.data import catalog
from experiments.errors import UserError
from experiments.recipe import checks, config
from experiments.records import FOREIGN, LAST_WEIGHTS

from .results import Results

IMAGES = 16  # of the validation set, evenly spread over its ids
_THREADS = torch.get_num_threads()


def folders(results: Results) -> Iterator[tuple[str, int, Path]]:
    """Variant, seed and folder of each finished run of a study, in the table's order of rows."""
    if results.records.empty:
        return
    if results.manifest.get("source", "").endswith(".py"):
        studies.find(results.manifest["source"])  # registers variants that are not the suite's
    own = results.records[results.records["fingerprint"] != FOREIGN]
    for variant in results.table["variant"]:
        runs = own[own["variant"] == variant]
        for seed, path in zip(runs["seed"], runs["path"], strict=True):
            yield variant, int(seed), Path(path).parent


def digest(folder: Path, images: int) -> str:
    """Of what `encoder_and_images` would read; errors as there.

    Weights are known by size and time: reading gigabytes would take as long as what this is to
    save.
    """
    weights = folder / LAST_WEIGHTS
    if not weights.is_file():
        raise UserError(
            f"no checkpoint at {weights}: the trained encoder is looked at, put it back or "
            "move the run away and run it again"
        )
    state = weights.stat()
    mark = hashlib.sha256(f"{images} {state.st_size} {state.st_mtime_ns}".encode())
    try:
        mark.update((folder / "config.yaml").read_bytes())
    except OSError as error:
        raise UserError(f"no config at {folder / 'config.yaml'}: {error.strerror}") from error
    return mark.hexdigest()


def encoder_and_images(folder: Path, images: int) -> tuple[nn.Module, Tensor]:
    """A run's trained encoder, not to be trained any more, and images of its validation set.

    Args:
        folder: of a finished run.
        images: how many, of fewer all.

    Returns:
        The encoder, and (B, 3, H, W) as it gets them: resized, normalised, padded as at test time,
        all to one size.

    Raises:
        UserError: weights, config or images are not there or do not fit.
    """
    cfg = config.load(folder / "config.yaml")
    checks.check(cfg, str(folder / "config.yaml"))
    # As many as it was trained with: on a busy machine small images take 25 times as long on two.
    torch.set_num_threads(cfg.train.threads or _THREADS)
    model = instantiate(cfg.model).to("cuda" if torch.cuda.is_available() else "cpu")
    try:
        load_detector(model, folder / LAST_WEIGHTS, show=lambda account: None)
    except (WeightsError, OSError) as error:
        raise UserError(str(error)) from error
    split = catalog.test_split(cfg.dataloader.test.dataset)
    mapper = instantiate(cfg.dataloader.test.mapper)
    try:
        listed = split.read()["images"]
        listed.sort(key=lambda image: image["id"])
        images = min(images, len(listed))
        chosen = [listed[i * len(listed) // images] for i in range(images)]
        inputs = [
            mapper(
                dict(
                    file_name=str(Path(split.image_root) / split.image_file(image)),
                    image_id=image["id"],
                    height=image["height"],
                    width=image["width"],
                )
            )
            for image in chosen
        ]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read the validation images of {folder}: {error}") from error
    model.eval().requires_grad_(False)
    return encoder_of(model)[1], model.preprocess_image(inputs).tensor
