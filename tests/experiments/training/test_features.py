"""Features that are kept are those that the encoder gives, and are computed once."""

import os
import threading
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts
from torch import nn

from backbones.weights import encoder_of
from experiments import records, studies
from experiments.data import catalog
from experiments.data.mapper import Mapper
from experiments.errors import UserError
from experiments.jobs import detection
from experiments.recipe import resolved
from experiments.training import features
from tests.experiments.training.test_distributed import planned, trained
from tests.experiments.training.test_tuning import ALIKE, losses

VIEWS, IMAGES = 2, 24
STUDY = "plain-vs-hierarchical"
WORDS = {"train.tuning": "frozen", "dataloader.train.views": VIEWS, "train.max_iter": 4}


class Set:
    """A detector, and its training images as it is to see them."""

    def __init__(self, small_set, root: Path, row: str = "vit", **words):
        found = studies.find(STUDY)
        words = {key.replace("__", "."): value for key, value in words.items()}
        self.cfg = resolved.resolve(found, found.variant(row, "mini"), "mini", "", WORDS | words)
        torch.manual_seed(0)
        self.detector = instantiate(self.cfg.model)
        self.split = catalog.prepare("mini", small_set["dataset"], small_set["val"]).train
        self.dicts = get_detection_dataset_dicts(self.split.register())
        self.root = root
        self.calls = 0
        encoder_of(self.detector)[1].register_forward_hook(self._count)

    def _count(self, *_) -> None:
        self.calls += 1

    def kept(self) -> features.Kept:
        return features.kept(self.detector, self.cfg, "train", self.split, self.dicts, self.root)


def test_losses_are_those_of_recomputed_features(small_set, tmp_path, monkeypatch):
    """Of an encoder that trains with learning rate 0, on the same views: as if its output were
    rounded to float16, and within that where the heads do not choose among boxes by it."""
    words = ALIKE | WORDS | {"train.clip_grad_norm": None}
    still = words | {"train.tuning": "full", "param_groups.layer_decay": 0.0}

    def fit(cfg, folder, model, encoder, *others):
        def rounded(module, inputs, maps):
            return {name: x.half().float() for name, x in maps.items()}

        if "rounded" in folder.parts:
            encoder.register_forward_hook(rounded)
        original(cfg, folder, model, encoder, *others)

    original = detection.fit
    monkeypatch.setattr(detection, "fit", fit)
    curves = {}
    for name, chosen in (("still", still), ("rounded", still), ("kept", words)):
        run = planned(small_set, tmp_path / name, "global-vs-conv", "global", chosen)
        Path(run.folder).mkdir(parents=True)
        detection.fit_run(run.cfg, run)
        curves[name] = losses(trained(tmp_path / name)[1])
        assert (tmp_path / name / "mini" / features.FOLDER).exists() is (name == "kept")
    for i, line in enumerate(curves["kept"]):
        assert line == pytest.approx(curves["rounded"][i], rel=1e-4)
        for loss in ("loss_rpn_cls", "loss_rpn_loc"):
            assert line[loss] == pytest.approx(curves["still"][i][loss], rel=3e-3)
    assert curves["kept"] != curves["still"]


@pytest.mark.parametrize("row", ["vit", "swin", "vit-retinanet"])
def test_a_row_is_what_the_encoder_gives(small_set, tmp_path, row):
    found = Set(small_set, tmp_path, row)
    kept = found.kept()
    assert len(kept) == IMAGES * VIEWS
    _, encoder = encoder_of(found.detector)
    mapper = instantiate(found.cfg.dataloader.train.mapper)
    real = features.Views(found.dicts, mapper, VIEWS)
    numbers = (0, 1, 7)
    assert not torch.equal(real[0]["image"], real[1]["image"])
    found.detector.eval()
    with torch.no_grad():
        batch = [real[number] for number in numbers]
        expected = encoder(found.detector.preprocess_image(batch).tensor)
        features.feed(found.detector)
        levels = found.detector.backbone(found.detector.preprocess_image(batch).tensor)
        calls, seen = found.calls, []
        found.detector.backbone.register_forward_hook(lambda *args: seen.append(args[2]))
        found.detector([kept[number] for number in numbers])
    assert found.calls == calls + 1  # called, and not computed: what comes is what was kept
    for name, maps in expected.items():
        for place, number in enumerate(numbers):
            own = kept[number]["features"][name].permute(2, 0, 1).float()
            torch.testing.assert_close(own, maps[place].half().float(), rtol=2e-3, atol=1e-4)
    for name, level in levels.items():
        torch.testing.assert_close(seen[0][name], level, rtol=0.02, atol=0.02)


def test_who_has_the_same_encoder_reads_them(small_set, tmp_path):
    """Other seeds, necks and heads; not another encoder, other views, other images."""
    first = Set(small_set, tmp_path)
    folder = first.kept().folder
    assert first.calls == IMAGES * VIEWS // features._TOGETHER
    for words in (
        dict(model__backbone__pyramid="avg_pool"),
        dict(model__backbone__out_channels=32, train__max_iter=7),
        dict(row="vit-retinanet"),
        dict(dataloader__train__total_batch_size=4, dataloader__train__micro_batch_size=4),
    ):
        again = Set(small_set, tmp_path, **words)
        encoder_of(again.detector)[1].load_state_dict(encoder_of(first.detector)[1].state_dict())
        assert (again.kept().folder, again.calls) == (folder, 0)
    for words in (
        dict(dataloader__train__views=1),
        dict(model__pixel_mean=[0.0, 0.0, 0.0]),
        dict(model__backbone__positions_resize="tile"),
        dict(model__backbone__pyramid="fpn_4stage"),
    ):
        other = Set(small_set, tmp_path, **words)
        encoder_of(other.detector)[1].load_state_dict(
            encoder_of(first.detector)[1].state_dict(),
            strict=False,  # what no weight shows is another's
        )
        assert other.kept().folder != folder
    with torch.no_grad():
        encoder_of(first.detector)[1].pos_embed.add_(1)
    assert first.kept().folder != folder


@pytest.mark.parametrize(("left", "rows"), [(0, 0), (10, 0), (20 * 32768 + 10000, 20)])
def test_what_was_interrupted_goes_on(small_set, tmp_path, left, rows):
    found = Set(small_set, tmp_path)
    folder = found.kept().folder
    array, index = folder / "features.npy", folder / "index.json"
    whole = array.read_bytes()
    assert features.row_bytes(features.shapes_of(found.detector)) == 32768
    index.unlink()
    os.truncate(array, left)
    before = found.calls
    found.kept()
    assert array.read_bytes() == whole
    assert found.calls - before == -(-(IMAGES * VIEWS - rows) // features._TOGETHER)


def test_what_is_broken_is_made_again(small_set, tmp_path):
    found = Set(small_set, tmp_path)
    folder = found.kept().folder
    array, index = folder / "features.npy", folder / "index.json"
    whole, before = array.read_bytes(), found.calls
    for harm in (
        lambda: os.truncate(array, len(whole) - 1),
        array.unlink,
        lambda: index.write_text("{"),
        lambda: index.write_text("{}"),
        lambda: array.write_bytes(b"0" + whole[1:]),
    ):
        harm()
        assert found.kept()[3]["features"]
        assert array.read_bytes() == whole
    assert found.calls == 6 * before


def test_two_at_once_compute_once(small_set, tmp_path, capfd):
    sets = [Set(small_set, tmp_path) for _ in range(2)]
    threads = [threading.Thread(target=found.kept) for found in sets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found.calls for found in sets) == [0, IMAGES * VIEWS // features._TOGETHER]
    assert len(sets[0].kept()) == IMAGES * VIEWS


def test_a_run_from_plan_to_record(small_set, tmp_path, monkeypatch):
    run = planned(small_set, tmp_path, "global-vs-conv", "global", WORDS)
    assert run.cfg.train.init_weights == "windows_mini"
    run()
    folders = sorted((tmp_path / "mini" / "features").iterdir())
    assert len(folders) == 2  # of training and validation images
    record = records.read(Path(run.folder) / "record.json")
    assert record.train_macs < record.macs  # none of the encoder
    monkeypatch.setattr(features, "_compute", lambda *_: pytest.fail("computed again"))
    other = planned(small_set, tmp_path, "global-vs-conv", "global", WORDS | {"optimizer.lr": 1e-3})
    assert other.fingerprint != run.fingerprint
    other()
    assert sorted((tmp_path / "mini" / "features").iterdir()) == folders


class Own(Mapper):
    reads = property()


class TestMistakes:
    def test_views_below_none(self, small_set, tmp_path):
        with pytest.raises(UserError, match=r"dataloader\.train\.views=-1 is too small"):
            Set(small_set, tmp_path, dataloader__train__views=-1)

    def test_images_that_are_not_padded_alike(self, small_set, tmp_path):
        with pytest.raises(UserError, match=r"set model\.backbone\.square_pad"):
            Set(small_set, tmp_path, model__backbone__square_pad=0)

    def test_a_mapper_that_always_reads(self, small_set, tmp_path):
        found = Set(small_set, tmp_path)
        found.cfg.dataloader.train.mapper._target_ = f"{__name__}.Own"
        with pytest.raises(UserError, match=r"mapper=Own cannot be told not to read images"):
            found.kept()

    def test_beyond_float16(self, small_set, tmp_path):
        found = Set(small_set, tmp_path)
        nn.init.constant_(found.detector.backbone.net.blocks[-1].mlp.fc2.bias, 1e6)
        with pytest.raises(UserError, match=r"0\.bmp are beyond float16: set dataloader"):
            found.kept()
        assert not list(tmp_path.rglob("index.json"))
