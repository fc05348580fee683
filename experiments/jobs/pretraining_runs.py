"""Pre-training runs: a recipe at one model size on some images, and where it lies."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from backbones import SIZES

from ..data.pretraining_images import Images
from ..errors import UserError, unknown
from ..recipe import checks, config, resolved
from ..recipe.words import check_overrides, set_words
from ..records import LAST_WEIGHTS, PRETRAINED, PretrainingRecord
from ..studies import Words
from .planned import Run

FILES = "files.json"  # names of the images
ENCODER = "encoder.pth"  # what a detector starts from: the encoder's own keys
# Words of a detection config's backbone that its encoder must be pre-trained with.
# Their values where neither says one.
_SHARED = dict(stem="patchify", block_norm="layer", activation="gelu", registers=0, pre_norm=False)


@dataclass(frozen=True, kw_only=True)
class PretrainingRun(Run):
    """One recipe at one model size."""

    KIND, LEAVES = PretrainingRecord, (ENCODER, LAST_WEIGHTS)
    JOB = "experiments.jobs.pretraining.Pretraining"

    recipe: str


def recipes(size: str = "") -> dict[str, Path]:
    """Recipe -> its config's file; those for a model size, or all, as <recipe>-<size>."""
    files = {f.stem.replace("_", "-"): f for f in sorted(config.PRETRAINING.glob("[!_]*.py"))}
    suffix = f"-{size}"
    if not size:
        return files
    return {n.removesuffix(suffix): f for n, f in files.items() if n.endswith(suffix)}


def resolve(
    recipe: str,
    size: str,
    overrides: Words,
    backbone: DictConfig | None = None,
) -> DictConfig:
    """The config of a recipe: its file, then the words that a detector's encoder shares with it,
    then the user's.

    Args:
        backbone: of the detector that starts from it, if one does.

    Raises:
        UserError: no such recipe for that size; a key that it has not; what does not fit.
    """
    known = recipes(size)
    if recipe not in known:
        if not known:
            sizes = sorted({name.partition("-vit")[2] for name in recipes()})
            raise unknown("size", size, [f"vit{s}" for s in sizes], " of configs/pretraining")
        raise unknown("recipe", recipe, known, f" of pre-training for {size}")
    cfg = config.load(known[recipe], config.PRETRAINING_PARTS)
    where = f"recipe {recipe!r}"
    encoder = cfg.model.encoder
    for word, usual in _SHARED.items():
        usual = SIZES.get(size, {}).get(word, usual)
        own = encoder.get(word, usual)
        wanted = own if backbone is None else backbone.get(word, own)
        if own not in (usual, wanted):
            raise UserError(
                f"{where} is for model.backbone.{word}={own}, the detector has "
                f"{wanted}: set it, or take another recipe"
            )
        encoder[word] = wanted  # also where it is the usual one: the same network is the same run
    if backbone is not None and backbone.get("positions", "learned") != "learned":
        encoder.positions = backbone.positions
    check_overrides(overrides)
    if overrides.get("train.init_weights", "none") != "none":
        raise UserError(
            f"{where}: train.init_weights={overrides['train.init_weights']} does not fit: what a "
            "recipe starts from is said in its file; none is the only other word"
        )
    set_words(cfg, overrides, where)
    _check_sizes(cfg, where)
    if cfg.train.parallel == "fsdp":
        # Blocks are run part by part (backbones.pretraining.blocks), which FSDP's gathering of
        # weights does not see.
        raise UserError(f"{where}: train.parallel=fsdp does not fit pre-training: ddp does")
    resolved.write_out_count(cfg.model.encoder, checks.check_training(cfg, where).encoder)
    return cfg


def _check_sizes(cfg: DictConfig, where: str) -> None:
    side = cfg.dataloader.image_size
    if side != cfg.model.encoder.img_size:
        raise UserError(
            f"{where}: dataloader.image_size={side} does not fit model.encoder.img_size="
            f"{cfg.model.encoder.img_size}: set both, and pretrain_img_size if it is there"
        )
    for i, transform in enumerate(cfg.dataloader.test.mapper.transforms):
        if isinstance(transform.get("size"), int) and transform.size < side:
            raise UserError(
                f"{where}: dataloader.test.mapper.transforms.{i}.size={transform.size} is less "
                f"than dataloader.image_size={side}: crops would have black borders"
            )


def plan(
    word: str,
    scale: str,
    size: str,
    data: Images,
    runs_root: Path,
    overrides: Words,
    backbone: DictConfig | None = None,
    seed: int = 0,
) -> list[PretrainingRun]:
    """The pre-training that a word of `train.init_weights` asks for, behind those that it starts
    from.

    Args:
        word: "recipe:<recipe>".
        backbone: as of `resolve`.
    """
    recipe = word.removeprefix(config.RECIPE)
    cfg = resolve(recipe, size, overrides, backbone)
    before: list[PretrainingRun] = []
    if config.is_recipe(cfg.train.init_weights):
        word = cfg.train.init_weights
        before = plan(word, scale, size, data, runs_root, overrides, backbone, seed)
        cfg.train.init_weights = word_of(before[-1])
    cfg.train.seed = seed
    needs_labels = "num_classes" in cfg.model
    if needs_labels and not data.categories:
        raise UserError(
            f"recipe {recipe!r} needs labels: each image of {data.train} in a folder by category, "
            "train/<category>/*.jpg, and two categories at least"
        )
    words = dict(study=PRETRAINED, home=PRETRAINED, variant=f"{recipe} (pre-training)", scale=scale)
    run = PretrainingRun.planned(runs_root, recipe, cfg, data, recipe=recipe, size=size, **words)
    return [*before, run]


def word_of(run: PretrainingRun) -> str:
    """What `train.init_weights` says of a planned pre-training: it names that very run."""
    return config.RECIPE + Path(run.folder).name


def weights(root: Path, word: str) -> Path:
    """The encoder that a word as of `word_of` names.

    Args:
        root: of the runs of a scale.

    Raises:
        UserError: it is not there.
    """
    path = root / PRETRAINED / word.removeprefix(config.RECIPE) / ENCODER
    if not path.is_file():
        raise UserError(f"no pre-trained encoder at {path}: run the study again, it comes first")
    return path


def plan_for(
    cfgs: Iterable[DictConfig],
    scale: str,
    prepare_images: Callable[[], Images],
    runs_root: Path,
    overrides: Words,
) -> list[PretrainingRun]:
    """The pre-trainings that detection configs start from, each once, in an order that works;
    the configs then name them (`word_of`).

    Args:
        prepare_images: called only if a config asks for a recipe: it takes minutes for ImageNet.
    """
    cfgs = [cfg for cfg in cfgs if config.is_recipe(cfg.train.init_weights)]
    images = prepare_images() if cfgs else None
    planned: dict[str, PretrainingRun] = {}
    for cfg in cfgs:
        chain = plan(
            cfg.train.init_weights,
            scale,
            config.encoder_size(cfg),
            images,
            runs_root,
            overrides,
            cfg.model.backbone,
        )
        planned |= {run.folder: run for run in chain}
        cfg.train.init_weights = word_of(chain[-1])
    return list(planned.values())


def needed(runs: Iterable[PretrainingRun], words: Iterable[str]) -> list[PretrainingRun]:
    """Those that are not done and that one of the words (`word_of`) names, or another of them
    starts from.

    Args:
        runs: as planned, in an order that works; the result keeps it.
    """
    words = set(words)
    found: list[PretrainingRun] = []
    for run in reversed(list(runs)):
        if word_of(run) in words and not run.done:
            found.append(run)
            words.add(run.cfg.train.init_weights)
    return found[::-1]


def by_depth(runs: Iterable[PretrainingRun]) -> list[list[PretrainingRun]]:
    """Runs that may go side by side, those that start from others behind them."""
    levels: list[list[PretrainingRun]] = []
    depths: dict[str, int] = {}
    for run in runs:
        depth = depths.get(run.cfg.train.init_weights, -1) + 1
        depths[word_of(run)] = depth
        if depth == len(levels):
            levels.append([])
        levels[depth].append(run)
    return levels


def copied(run: PretrainingRun) -> DictConfig:
    """Its config with what its data say: the number of categories."""
    cfg = copy.deepcopy(run.cfg)
    if "num_classes" in cfg.model:
        cfg.model.num_classes = len(run.data.categories)
    return cfg
