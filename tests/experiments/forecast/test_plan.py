"""Plans: published times and memory are met, what fits fits, shared trainings count once."""

import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from analysis import paper
from experiments import studies
from experiments.costs import devices
from experiments.costs.training_cost import Step, training_step
from experiments.errors import UserError
from experiments.forecast import budget, plan, plan_text
from experiments.forecast.request import Request
from experiments.forecast.seeds import Limits
from experiments.jobs import runs, sweep
from experiments.recipe import config
from tests.conftest import ROOT

A100 = devices.GPUS["a100-40gb"]
DETECTORS = {"Mask R-CNN": "mask_rcnn", "Cascade Mask R-CNN": "cascade_mask_rcnn"}


def released():
    """(dataset, path of our config, published row) of models trained without checkpointing."""
    for _, row in paper.load("released_models").iterrows():
        size = row["name"].replace("ViTDet, ", "").lower().replace("-", "_")
        if row.act_checkpoint == "no":
            quick = row.dataset == "COCO" and row.detector[:7] == "Cascade" and "-B" in row["name"]
            yield pytest.param(
                row.dataset,
                f"{row.dataset.lower()}/{DETECTORS[row.detector]}_{size}",
                row,
                id=f"{row.dataset}-{DETECTORS[row.detector]}-{size}",
                marks=[] if quick else [pytest.mark.slow],  # quick: each encoder once
            )


@pytest.mark.parametrize(("dataset", "path", "row"), released())
def test_published_times_and_memory(dataset, path, row):
    """Of detectron2's releases, on A100s with one image each and attention as written: time within
    11 %. Memory, with the second copy of the gradients that data parallelism holds, is less than
    published, by no more than a plan keeps free."""
    model = config.load(ROOT / "configs" / f"{path}.py").model
    params = sum(p.numel() for p in config.build_on_meta(model).parameters())
    step = training_step(model, 1, (1024, 1024), amp=True, textbook=True)
    assert budget.seconds_on(A100, step) == pytest.approx(row.train_time_s_per_im, rel=0.11)
    counted = (20 * params + step.peak_bytes) / 2**30
    assert 0 < row.train_mem_gb - counted < plan.RESERVE[dataset.lower()]


def test_published_memory_of_propagation():
    """Table 3: ratios to windows only, of ViT-L with attention as written; 49 GB is the paper's
    estimate."""
    gib = {}
    for row in rows("practical-cost", scale="coco", size="vit-l"):
        step = training_step(row.cfg.model, 1, (1024, 1024), True, False, textbook=True)
        gib[row.variant.name] = (20 * 331e6 + step.peak_bytes) / 2**30
    assert gib["none"] == pytest.approx(14.6, rel=0.08)
    for name, ratio in (("conv", 1.05), ("global", 1.39), ("all", 3.34)):
        assert gib[name] / gib["none"] == pytest.approx(ratio, rel=0.06)


def rows(study, scale="mini", size="", overrides=None, variants=()):
    return runs.rows(studies.find(study), scale, size, overrides or {}, variants)


def estimates(study, device="a100-40gb", gpus=0, scale="mini", overrides=None, **words):
    found = rows(study, scale, overrides=overrides, **words)
    where = plan.target(found, device, gpus)
    return plan.estimate(studies.find(study), found, where, val_images=300)


def test_trainings_that_are_shared_count_once():
    hard, soft, multi = estimates("system-level")
    assert [e.same_training for e in (hard, soft, multi)] == ["", "hard-nms", "hard-nms"]
    assert hard.hours > 0 == soft.hours == multi.hours
    assert soft.disk_bytes < hard.disk_bytes - 3 * 12 * hard.params
    assert soft.memory == hard.memory


def test_an_estimate_is_the_sum_of_its_parts():
    (found,) = estimates("global-vs-conv", variants=["conv"])
    (row,) = rows("global-vs-conv", variants=["conv"])
    params = sum(p.numel() for p in config.build_on_meta(row.cfg.model).parameters())
    assert found.params == params
    step = training_step(row.cfg.model, 1, (128, 128), False, False, textbook=True)
    assert found.hours == pytest.approx(budget.seconds_on(A100, step) * 8 * 320 / 3600)
    one, two = (training_step(row.cfg.model, n, (128, 128), False, False) for n in (1, 2))
    assert found.memory.of(2) - found.memory.of(1) == two.peak_bytes - one.peak_bytes
    assert found.memory.of(1) == 16 * params + one.peak_bytes
    assert found.checkpointed.of(8) < found.memory.of(8)
    assert 1.1 < found.slowdown < 1.5


def test_checkpointing_in_the_config_is_in_the_hours():
    words = {"model.backbone.use_act_checkpoint": True}
    (off,) = estimates("global-vs-conv", variants=["none"])
    (on,) = estimates("global-vs-conv", variants=["none"], overrides=words)
    assert on.hours == pytest.approx(off.hours * off.slowdown)
    assert (on.memory, on.checkpointed) == (off.memory, off.checkpointed)


def test_a_frozen_encoder_is_planned_as_it_trains():
    """Without its gradients and averages, and, where its features are kept, without its step."""
    freezing = {"train.tuning": "frozen"}
    keeping = freezing | {"dataloader.train.views": 2}
    words = ({}, freezing, keeping)
    said = [" ".join(f"{key}={value}" for key, value in w.items()) for w in words]
    found = [estimates("global-vs-conv", variants=["global"], overrides=w)[0] for w in words]
    full, frozen, kept = found
    assert full.hours > frozen.hours > kept.hours
    assert full.memory.of(8) > frozen.memory.of(8) >= kept.memory.of(8)
    assert full.macs == frozen.macs == kept.macs
    assert "features" not in printed("global-vs-conv", "mini", "h100", 1, said[1], "global")
    text = printed("global-vs-conv", "mini", "h100", 1, said[2], "global")
    # 2,700 views of 16 x 16 x 64 numbers of two bytes.
    assert "features: 0.1 GB for an encoder, computed once for all runs behind it" in text
    (row,) = rows("global-vs-conv", overrides=keeping, variants=["global"])
    assert budget.features_bytes(row.cfg, 1200, 300) == 2700 * 32768
    assert budget.measured_seconds(row.cfg) > 0


def test_a_named_gpu_has_bfloat16_whatever_this_machine_has(monkeypatch):
    monkeypatch.setattr(devices, "computes_bfloat16", lambda: False)
    (row,) = rows("global-vs-conv", variants=["none"], overrides={"train.amp": True})
    assert not plan.target([row], "", 0).low_precision
    for words, amp in (({"train.amp": True}, True), ({}, False)):
        (found,) = estimates("global-vs-conv", variants=["none"], overrides=words)
        expected = budget.memory(row.cfg.model, found.params, (128, 128), amp, False)
        assert found.memory == expected


def test_encoders_without_checkpointing():
    found = {e.variant: e for e in estimates("plain-vs-hierarchical", variants=["vit", "swin"])}
    assert found["vit"].checkpointed
    assert not found["swin"].checkpointed
    assert found["swin"].slowdown == 1


def test_the_largest_batch_divides_the_recipes():
    memory = budget.Memory(fixed=10, per_image=5, least=0)
    assert memory.largest_batch(10 + 5 * 64, 64) == 64
    assert memory.largest_batch(10 + 5 * 63, 64) == 32
    assert memory.largest_batch(10 + 5 * 3, 64) == 2
    assert memory.largest_batch(14, 64) == 0
    assert budget.Memory(10, 5, least=40).largest_batch(39, 64) == 0


def test_products_are_faster_on_a_faster_gpu_and_kernels_are_not():
    products, kernels = Step(10**12, 0, 0, 0), Step(0, 10**3, 0, 0)
    seconds = {name: budget.seconds_on(gpu, products) for name, gpu in devices.GPUS.items()}
    assert seconds["rtx-4090"] > seconds["a100-40gb"] > seconds["l40s"] > seconds["h100"]
    assert len({budget.seconds_on(gpu, kernels) for gpu in devices.GPUS.values()}) == 1
    assert all("NVIDIA" in gpu.source for gpu in devices.GPUS.values())


def test_which_device():
    found = rows("count")
    assert plan.target(found, "h100", 8) == plan.Target(devices.GPUS["h100"], 8, 80e9)
    assert plan.target(found, "h100", 0).devices == 1
    with pytest.raises(UserError, match="unknown device 'h10': did you mean 'h100'"):
        plan.target(found, "h10", 0)
    if not torch.cuda.is_available():
        assert plan.target(found, "", 8) == plan.Target(A100, 8, 40e9)
        here = plan.target(found, "", 0)
        assert here.gpu is None
        assert here.devices >= 1


def test_runs_side_by_side():
    assert plan.hours_side_by_side([3, 2, 2, 1], 2) == 4
    assert plan.hours_side_by_side([3, 2, 2, 1], 1) == 8
    assert plan.hours_side_by_side([3, 2], 8) == 3
    assert plan.hours_side_by_side([], 2) == 0


def test_a_run_on_several_devices():
    """Each takes whole passes: the device with most of them is waited for."""
    assert plan.hours_spread(12, passes=8, devices=1) == 12
    assert plan.hours_spread(12, passes=8, devices=4) == 3
    assert plan.hours_spread(12, passes=8, devices=5) == 3
    assert plan.hours_spread(12, passes=8, devices=8) == 1.5
    assert math.isnan(plan.hours_spread(12, passes=8, devices=9))


def printed(
    study, scale, device, gpus, overrides="", variants="", seeds=0, of="", budget_words="", **own
):
    console = Console(record=True, width=250)
    request = Request(
        study=studies.find(study), source=study, scale=scale, size="", seeds=seeds,
        sweep=sweep.parse(of), variants=variants, overrides=overrides,
        **{"dataset": "", "val": "", **own},
    )  # fmt: skip
    plan_text.show(request, device, gpus, console, budget_words)
    return console.export_text()


def test_a_printed_plan():
    text = printed("system-level", "mini", "h100", 8, seeds=3)
    assert "for 8 x NVIDIA H100 SXM" in text
    assert "- of hours / 8: a step has fewer passes than 8" in text
    assert "study: 3 trainings" in text
    assert "one after the other" not in text
    assert "same: trained by another row: soft-nms (hard-nms), multi-scale (hard-nms)" in text
    assert "NVIDIA H100 datasheet" in text
    assert "nothing was measured on it" in text


def test_a_printed_plan_of_runs_on_several_devices():
    """Both ways to use four GPUs, for two runs of eight passes a step."""
    words = {"dataloader.train.micro_batch_size": 1, "train.max_iter": 10**7}
    overrides = " ".join(f"{key}={value}" for key, value in words.items())
    text = printed("count", "mini", "h100", 4, overrides, "none", seeds=2)
    (single,) = estimates("count", "h100", 4, overrides=words, variants=["none"])
    assert single.spread_hours == single.hours / 4
    one, two = (budget.duration(n * single.hours) for n in (1, 2))
    half = budget.duration(single.hours / 2)
    assert (
        f"study: 2 trainings, {two} on one device; {one} on 4, side by side, one each (JOBS=4); "
        f"{half} one after the other, each on all 4 (GPUS=4 JOBS=1)"
    ) in text
    assert "hours / 4: one run on 4 (GPUS=4)" in text
    assert "fewer passes" not in text


def test_images_of_a_set_of_ones_own(small_set, monkeypatch):
    monkeypatch.setattr(budget, "_BYTES_PER_DETECTION", 10**9)
    text = printed("count", "mini", "h100", 1, variants="none", seeds=1, **small_set)
    assert "images of 128 px a side are as they are" in text
    assert "epochs of 24 images: 106.7" in text
    assert "disk: 1000." in text  # of 100 detections on each of its 10 to validate on


def test_real_iterations_on_this_cpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    threads = torch.get_num_threads()
    text = printed("global-vs-conv", "mini", "", 0, variants="none")
    assert "time: real iterations of each row on this machine" in text
    assert "study: 3 trainings" in text
    assert torch.get_num_threads() == threads


def test_what_takes_too_long_on_a_cpu_is_not_measured(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(plan, "_MEASURING", 0)
    (found,) = estimates("global-vs-conv", "", variants=["none"])
    assert not found.measured
    assert found.hours > 0


@pytest.mark.parametrize("name", ["mask_rcnn_vit_mini", "retinanet_swin_mini"])
def test_disk(name):
    """Detections of every validation image, three checkpoints, logs."""
    cfg = config.load(ROOT / "configs" / "mini" / f"{name}.py")
    evaluated = budget.disk_bytes(cfg, 10**6, 300, trains=False)
    assert evaluated == 300 * 100 * 500
    logs = cfg.train.max_iter // 20 * 1000
    assert budget.disk_bytes(cfg, 10**6, 300) == evaluated + 3 * 12 * 10**6 + logs


def test_a_sweep_takes_a_run_more_at_each_value():
    found = rows("system-level", overrides={"train.max_iter": 8})
    study = studies.find("system-level")
    at = sweep.rows_of(sweep.parse("train.max_iter=0.5,1,2"), study, "mini", found, {})
    estimates = plan.estimate(study, found, plan.target(found, "a100-40gb", 1), 300)
    hours = plan.hours_choosing(found, at, estimates)
    one = estimates[0].hours
    assert hours == pytest.approx([0.5 * one, one, 2 * one])  # others share these trainings
    words = ("system-level", "mini", "a100-40gb", 1, "train.max_iter=8")
    text = printed(*words, seeds=3, of="train.max_iter=0.5,1,2")
    assert "study: 6 trainings" in text
    assert "sweep: 3 of them choose" in text


def test_a_plan_of_seeds_until_verdicts_and_of_what_it_does_not_count():
    words = ("pretraining", "mini", "h100", 1, "", "none,mae")
    text = printed(*words, seeds=Limits(5, ""))
    assert "study: 10 trainings" in text
    assert "that is with 5 seeds, the most there may be; verdicts are looked at from 3 on" in text
    assert "Not counted: the pre-training that comes first (recipe:mae)" in text


class TestSmallScale:
    def test_a_run_fits_a_night_on_an_a100(self):
        """The bar of its recipe: vit-s, a tenth of COCO, 12 epochs, at most eight hours."""
        found = estimates("global-vs-conv", scale="small", variants=["conv"])  # the longest
        assert all(3 <= e.hours <= 8 for e in found), [e.hours for e in found]

    def test_what_is_printed(self):
        text = printed("global-vs-conv", "small", "", 0, variants="global")
        if not torch.cuda.is_available():
            assert "scale small, for 1 x NVIDIA A100 40 GB" in text
        assert "study: 3 trainings" in text
        assert "epochs of 11,829 images: 12.0" in text
        assert "0.92 to 1.11 of 20 published times" in text
        assert "BUDGET=24h buys " in text

    @pytest.mark.parametrize(
        ("hours", "budget_", "said"),
        [
            ([2.0, 2.0], "24h", "buys 6 seeds of each row on one device"),
            ([2.0, 3.0], "24h", "buys 4 seeds of each row on one device, and 1 trainings more"),
            ([9.0, 9.0, 9.0], "1d", "buys 2 of the 3 trainings that one seed of each row is"),
            ([9.0, math.nan], "1d", ": not all rows have hours"),
        ],
    )
    def test_what_a_budget_buys(self, hours, budget_, said):
        (one,) = estimates("global-vs-conv", variants=["none"])
        found = [replace(one, hours=h) for h in hours]
        shared = replace(one, hours=0.0, same_training="none")
        text = plan_text._bought(Limits(17, budget_), [*found, shared], 0.0)
        assert text.startswith(f"BUDGET={budget_}")
        assert said in text

    def test_of_a_share_and_a_budget_that_were_asked_for(self):
        words = "dataloader.train.share=0.05"
        text = printed("count", "small", "", 1, words, "none", 1, budget_words="90m")
        assert "epochs of 5,914 images: 12.0" in text
        assert "BUDGET=90m buys " in text
