"""Small scale: its recipe beside the paper's, its length in epochs of its share, its rows."""

import pytest
import torch

from backbones.weights import catalog as weights
from experiments import studies
from experiments.data import catalog
from experiments.data.subsets import Shares
from experiments.errors import UserError
from experiments.jobs import runs
from experiments.recipe import config, identity, own_data, resolved

NAMES = list(studies.files())
OF_MODELS = ("plain-vs-hierarchical", "one-pretraining")  # rows have sizes of their own


def rows(study="global-vs-conv", size="", variants=(), **overrides):
    words = {key.replace("__", "."): value for key, value in overrides.items()}
    return runs.rows(studies.find(study), "small", size, words, variants)


def one(**overrides):
    (row,) = rows(variants=["global"], **overrides)
    return row.cfg


class TestRecipe:
    def test_differs_from_the_papers_as_its_file_says(self):
        small, paper = (
            identity.plain_config(config.load(config.base_path(scale, "vit-b")))
            for scale in ("small", "coco")
        )
        flat = [dict(_flat(cfg)) for cfg in (small, paper)]
        differences = {key for key in flat[0] | flat[1] if flat[0].get(key) != flat[1].get(key)}
        assert differences - {key for key in differences if "augmentations" in key} == {
            "model.backbone.img_size",
            "model.backbone.square_pad",
            "model.backbone.window_size",
            "model.roi_heads.batch_size_per_image",
            "dataloader.image_size",
            "dataloader.share_seed",
            "dataloader.train.share",
            "dataloader.test.share",
            "dataloader.train.total_batch_size",
            "dataloader.train.micro_batch_size",
            "train.max_iter",
            "train.epochs",
        }

    def test_windows_are_the_papers_part_of_the_map(self):
        cfg = one()
        encoder = config.build_on_meta(cfg.model).backbone.net
        side = cfg.dataloader.image_size // 16
        assert (side, cfg.model.backbone.window_size) == (32, 7)
        assert encoder.plan.count("global") == 4
        with torch.device("meta"):
            assert encoder(torch.zeros(1, 3, 512, 512))["last_feat"].shape == (1, 384, 32, 32)

    def test_lengths_are_epochs_of_the_share(self):
        """Of train2017's 118,287 images, in steps of 16."""
        for share, epochs, iterations in ((0.1, 12, 8872), (0.01, 12, 887), (0.1, 1, 739)):
            words = dict(dataloader__train__share=share, train__epochs=epochs)
            assert one(**words).train.max_iter == iterations
        assert one(dataloader__train__total_batch_size=64).train.max_iter == 2218
        said = one(train__max_iter=7, train__epochs=3)
        assert (said.train.max_iter, said.train.epochs) == (7, 0)

    def test_and_of_the_data_that_there_are(self, small_set):
        shares = Shares(0.5)
        data = catalog.prepare("small", small_set["dataset"], small_set["val"], shares=shares)
        words = dict(dataloader__train__share=0.5, dataloader__train__total_batch_size=4)
        assert own_data.fitted(one(**words), data).train.max_iter == 12 * 12 // 4
        assert own_data.fitted(one(**words, train__max_iter=7), data).train.max_iter == 7

    def test_a_whole_number_is_the_same_run(self):
        marks = {identity.fingerprint(one(train__epochs=n), "") for n in (12, 12.0)}
        assert marks == {identity.fingerprint(one(), "")}
        other = one(dataloader__share_seed=1)
        assert identity.fingerprint(other, "") not in marks

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (
                dict(dataloader__train__share=1.01),
                r"train\.share=1\.01 is no share of a set: above",
            ),
            (dict(dataloader__test__share=0), r"test\.share=0 is no share of a set: above 0"),
            (dict(train__epochs=-1), r"train\.epochs=-1 is too small: at least 0"),
            (dict(dataloader__train__total_batch_size=0), "total_batch_size=0 is too small"),
            (dict(dataloader__train__share="a"), "'a': it takes a number"),
        ],
    )
    def test_what_does_not_fit_is_said(self, words, message):
        with pytest.raises(UserError, match=message):
            one(**words)

    def test_a_study_is_on_one_set_of_data(self):
        two = [one(), one(dataloader__train__share=0.05)]
        assert runs.shares(two[:1]) == Shares(0.1, 1.0, 0)
        with pytest.raises(UserError, match=r"rows differ in dataloader\.train\.share"):
            runs.shares(two)


def _flat(node, prefix=""):
    if not isinstance(node, dict):
        return [(prefix, node)]
    return [
        pair for key, part in node.items() for pair in _flat(part, f"{prefix}.{key}".strip("."))
    ]


class TestRows:
    @pytest.mark.parametrize("size", ["vit-s", "vit-b"])
    @pytest.mark.parametrize("name", NAMES)
    def test_every_study_has_rows_that_build_and_start(self, name, size):
        """From weights that are known for their sizes; no two are one run."""
        found = rows(name, "" if name in OF_MODELS else size)
        assert len(found) >= 2
        assert runs.alike(found) == []
        for row in found:
            weights.source(row.cfg.train.init_weights, config.encoder_size(row.cfg))
            if name != "frozen-probe":  # it has a recipe of its own
                assert row.cfg.train.epochs > 0
                assert row.cfg.dataloader.train.total_batch_size == 16
            assert row.cfg.dataloader.image_size == (640 if name == "system-level" else 512)
        assert len({row.cfg.dataloader.train.share for row in found}) == 1

    def test_pretrainings_have_the_proportions_of_table_11(self):
        small = {row.variant.name: row.cfg for row in rows("pretraining", "vit-b")}
        study = studies.find("pretraining")
        for name in ("none", "sup-in1k", "sup-in21k", "mae-in1k"):
            paper = resolved.resolve(study, study.variant(name, "coco"), "coco", "vit-b", {})
            assert small[name].optimizer == paper.optimizer
            assert small[name].param_groups == paper.param_groups
            assert small[name].train.epochs == 12 * round(paper.train.max_iter / 184375, 2)

    def test_the_default_is_vit_s(self):
        for name in NAMES:
            if name not in OF_MODELS:
                assert {row.size for row in rows(name)} == {"vit-s"}, name
