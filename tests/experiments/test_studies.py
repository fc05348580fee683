"""The studies: every row of every table is one that runs, with the figures that it says."""

import contextlib
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts
from detectron2.utils.events import EventStorage

from analysis.paper import known, published
from analysis.paper_tables import settings
from experiments import studies
from experiments.data import catalog
from experiments.data.stream import Stream, training_loader
from experiments.errors import UserError
from experiments.evaluation.evaluate import set_num_classes
from experiments.jobs import runs
from experiments.jobs.detection import set_federated_loss
from experiments.recipe import config, resolved
from experiments.scales import SCALES
from tests.conftest import ROOT

NAMES = list(studies.files())
# The paper copies these from other works, with detectors of their own.
QUOTED = {f"T6:{row}{mode}" for row in (0, 3, 4) for mode in "sm"}
QUOTED |= {"T6:5s", "T6:6s"} | {f"T7:{row}" for row in range(4)}


def test_every_table_has_its_study():
    assert set(NAMES) == {
        "conv-block",
        "count",
        "encoder-recipe",
        "feature-pyramid",
        "frozen-probe",
        "global-vs-conv",
        "lvis",
        "modern-encoders",
        "one-pretraining",
        "placement",
        "plain-vs-hierarchical",
        "positions",
        "practical-cost",
        "pretraining",
        "system-level",
        "tuning",
        "window-layout",
    }


def test_every_row_of_every_table_has_a_setting():
    assert set(settings()) == set(published().index) - QUOTED
    for where, setting in settings().items():
        model = published().at[where, "model"].removeprefix("ViTDet, ")
        assert model.lower() == setting.size


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_prints_the_published_figures(name):
    text = studies.files()[name].read_text().split('"""')[1]
    study = studies.find(name)
    first = {where for where, setting in settings().items() if setting.study.name == name}
    said = {w for v in study.variants for rows in v.published.values() for w in rows.split()}
    for where in first | {where for where in said if where.startswith("today:")}:
        row = known().loc[where]
        aps = [row[k] for k in ("ap_box", "ap_mask", "ap_mask_rare") if not np.isnan(row[k])]
        if where.startswith("T3"):
            aps = aps[:1]
        assert " / ".join(f"{ap:.1f}" for ap in aps) in text, where
    assert first or said <= set(known().index[len(published()) :])
    assert f"make ablation-{name} " in text
    assert "Hardware of the paper" in text


def _models():
    """Model sizes that each study's rows are published for."""
    for name in NAMES:
        study = studies.find(name)
        for size in sorted({s for v in study.variants for s in v.published}):
            yield name, size


@pytest.mark.parametrize(("name", "size"), _models())
def test_every_row_builds_at_full_scale(name, size):
    """On the meta device; relative positions as the paper says: off in Tables 1-4 and 8."""
    study = studies.find(name)
    for variant in study.variants:
        if size not in variant.published:
            continue
        cfg = resolved.resolve(study, variant, "coco", size, {})
        config.build_on_meta(cfg.model)
        if variant.published[size].startswith("today:"):
            assert cfg.model.backbone.size == known().at[variant.published[size], "encoder"]
            continue
        tables = {where.split(":")[0].rstrip("abcd") for where in variant.published[size].split()}
        if "use_rel_pos" in cfg.model.backbone:
            assert cfg.model.backbone.use_rel_pos == (not tables & {"T1", "T2", "T3", "T4", "T8"})
        assert cfg.dataloader.train.total_batch_size == 64
        assert cfg.dataloader.image_size == (1280 if tables & {"T6", "T7"} else 1024)


@pytest.mark.parametrize("name", NAMES)
def test_every_row_takes_a_step_at_mini_scale(name):
    """One batch forward and backward, one image detected on."""
    study = studies.find(name)
    data = catalog.prepare("mini", dataset=study.dataset)
    dicts = get_detection_dataset_dicts(data.train.register())[:4]
    for row in runs.rows(study, "mini", "", {}):
        torch.manual_seed(0)
        set_num_classes(row.cfg, len(data.categories))
        model = instantiate(row.cfg.model)
        set_federated_loss(model, data.image_counts)
        mapper = instantiate(row.cfg.dataloader.train.mapper)
        loader = training_loader(Stream(dicts, mapper, seed=0), start=0, batch_size=2)
        with EventStorage():
            losses = model(next(iter(loader)))
        total = sum(losses.values())
        assert torch.isfinite(total), row.variant.name
        total.backward()
        unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not unused, (row.variant.name, unused)
        model.eval()
        with torch.no_grad():
            found = model([instantiate(row.cfg.dataloader.test.mapper)(dicts[0])])
        assert "instances" in found[0]


def offered(study, scale: str) -> list[str]:
    """Sizes of plain encoders that a study has base configs for."""
    folder, prefix = study.dataset, "mask_rcnn"
    if scale != "coco":
        folder, prefix = scale, prefix if study.dataset == "coco" else f"lvis_{prefix}"
    files = sorted((ROOT / "configs" / folder).glob(f"{prefix}_vit_*.py"))
    return [file.stem.removeprefix(f"{prefix}_").replace("_", "-") for file in files]


def _offers():
    for name in NAMES:
        for scale in SCALES:
            own = name in ("plain-vs-hierarchical", "one-pretraining")
            sizes = [""] if own else offered(studies.find(name), scale)
            for size in sizes:
                quick = scale == "mini" or size == "vit-s"
                yield pytest.param(name, scale, size, marks=[] if quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "scale", "size"), _offers())
def test_no_two_rows_are_one_run(name, scale, size):
    rows = []
    with contextlib.suppress(UserError):  # no row is for that size, which is said
        rows = runs.rows(studies.find(name), scale, size, {})
    assert runs.alike(rows) == []
    if name in ("count", "practical-cost"):
        encoder = config.build_on_meta(rows[-1].cfg.model).backbone.net
        assert set(encoder.plan) == {"global"}


def test_rows_that_are_one_run_are_named():
    rows = runs.rows(studies.find("count"), "mini", "", {}, ["1", "3"])
    rows[1].cfg.model.backbone.count = 1
    assert runs.alike(rows) == ["rows 1, 3 are the same run: nothing in them differs"]


class TestSizes:
    def test_numbers_of_one_batch_are_for_the_sizes_that_have_it(self):
        """A learning rate or a length of a row's own, where sizes have recipes of their own."""
        numbers = {"optimizer.lr", "train.max_iter", "schedule.warmup_iters"}
        for name in NAMES:
            study = studies.find(name)
            for variant in study.variants:
                words = {**study.words, **variant.words}
                for size in offered(study, "coco"):
                    own = numbers & {**words, **variant.words_of_size.get(size, {})}.keys()
                    if own and not variant.size:
                        assert variant.only, (name, variant.name, own)

    def test_a_recipe_of_one_batch_is_refused_for_another(self):
        """It used to train vit-ti, whose batch is 8, at the learning rate of 64."""
        study = studies.find("encoder-recipe")
        with pytest.raises(UserError, match="'base' is for sizes vit-b, vit-l, not 'vit-ti'"):
            runs.rows(study, "coco", "vit-ti", {})
        for size in ("vit-b", "vit-l"):
            assert len(runs.rows(study, "coco", size, {}, ["base"])) == 1

    def test_a_study_without_a_row_for_the_size_says_so(self):
        with pytest.raises(UserError, match="'single-scale' is for sizes vit-b"):
            runs.rows(studies.find("system-level"), "coco", "swin-b", {})

    def test_rows_for_some_sizes_are_left_out_for_others(self):
        study = studies.find("pretraining")
        rows = runs.rows(study, "coco", "vit-h", {})
        assert [row.variant.name for row in rows] == ["mae-in1k"]
        with pytest.raises(UserError, match=r"'none' is for sizes vit-b, vit-l, not 'vit-h'"):
            runs.rows(study, "coco", "vit-h", {}, ["none"])

    def test_a_study_of_models_takes_no_size(self):
        with pytest.raises(UserError, match="have sizes of their own: leave out SIZE=vit-b"):
            runs.rows(studies.find("plain-vs-hierarchical"), "coco", "vit-b", {})

    def test_rows_keep_their_own_size(self):
        study = studies.find("plain-vs-hierarchical")
        rows = runs.rows(study, "coco", "", {}, ["vit-b", "swin-b"])
        assert [row.size for row in rows] == ["vit-b", "swin-b"]


class TestSystemLevel:
    study = studies.find("system-level")

    def test_sizes_of_the_table_only(self):
        with pytest.raises(UserError, match="'single-scale' is for sizes vit-b, vit-l, vit-h, mvi"):
            runs.rows(self.study, "coco", "swin-b", {}, ["single-scale"])

    def test_images_that_do_not_fit_the_square_are_refused(self):
        words = {"dataloader.image_size": 1536}
        with pytest.raises(UserError, match=r"image_size=1536 do not fit .*square_pad=1280"):
            runs.rows(self.study, "coco", "mvitv2-l", words, ["single-scale"])

    def test_every_scale_of_the_multi_scale_test_is_another(self):
        """Of images of COCO's usual shapes, for which the longest edge is limited."""
        (row,) = runs.rows(self.study, "coco", "vit-b", {}, ["multi-scale"])
        for height, width in ((480, 640), (427, 640), (640, 480), (640, 640)):
            sizes = {
                T.ResizeShortestEdge(size, row.cfg.test.tta_max_size)
                .get_transform(np.zeros((height, width, 3)))
                .new_w
                for size in row.cfg.test.tta_sizes
            }
            assert len(sizes) == len(row.cfg.test.tta_sizes)

    def test_evaluations_wait_until_others_train(self):
        data = catalog.prepare("mini")
        rows = runs.rows(self.study, "mini", "", {})
        planned = runs.plan(self.study, "system-level", "mini", rows, 2, data, Path("nowhere"))
        order = [(run.variant, run.seed) for run in runs.trainings_first(planned)]
        assert order[:2] == [("hard-nms", 0), ("hard-nms", 1)]
        assert len(order) == 6


def test_retinanet_has_no_level_that_its_head_does_not_read():
    for size in ("vit-b", "swin-b", "mvitv2-b"):
        cfg = config.load(config.base_path("coco", size, "retinanet"))
        model = config.build_on_meta(cfg.model)
        with torch.device("meta"):
            levels = model.backbone(torch.zeros(1, 3, 1024, 1024))
            outputs = model.head([levels[f] for f in model.head_in_features])
        sum(x.sum() for xs in outputs for x in xs).backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None]
        assert list(levels) == list(model.head_in_features)
