"""Soft-NMS and multi-scale testing, against the paper's formulas and detectron2 without them."""

import itertools
import math
from contextlib import contextmanager, nullcontext

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetMapper
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.evaluation import inference_context
from detectron2.modeling.meta_arch import dense_detector, rcnn, retinanet
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, fast_rcnn
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from torchvision.ops import batched_nms

from experiments.data.mini import detection as mini
from experiments.errors import UserError
from experiments.recipe import config, test_time
from experiments.recipe.test_time import applied, gaussian, linear, soft_nms
from tests.conftest import ROOT

# Written down from arXiv:1704.04503, section 4, and its figure 2.
FACTORS = {
    "linear": lambda iou: 1.0 if iou < 0.3 else 1.0 - iou,
    "gaussian": lambda iou: math.exp(-iou * iou / 0.5),
}


def words(**changes):
    published = dict(
        soft_nms="none",
        soft_nms_iou=0.3,
        soft_nms_sigma=0.5,
        soft_nms_min_score=0.001,
        tta_sizes=[],
        tta_max_size=512,
        tta_flip=True,
    )
    return OmegaConf.create(published | changes)


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / either if either else 0.0


def textbook(boxes, scores, classes, kind, min_score=0.001):
    """One box and one class at a time: [(score, index)], best first."""
    boxes, scores, classes = boxes.tolist(), scores.tolist(), classes.tolist()
    kept = []
    for wanted in set(classes):
        left = [i for i, c in enumerate(classes) if c == wanted]
        while left:
            best = max(left, key=lambda i: scores[i])  # the first of equals
            left.remove(best)
            if scores[best] >= min_score:
                kept.append((scores[best], best))
            for i in left:
                scores[i] *= FACTORS[kind](iou(boxes[best], boxes[i]))
    return sorted(kept, key=lambda x: (-x[0], x[1]))


def random_boxes(count, side=100):
    corner = torch.rand(count, 2) * side
    return torch.cat([corner, corner + 5 + torch.rand(count, 2) * side], 1)


@pytest.mark.parametrize("kind", ["linear", "gaussian"])
@pytest.mark.parametrize("count", [1, 2, 60])
def test_soft_nms_is_the_textbooks(kind, count):
    torch.manual_seed(count)
    boxes, scores = random_boxes(count), torch.rand(count)
    classes = torch.randint(0, 4, (count,)) * 3  # not 0, 1, 2, ...
    new_scores, keep = soft_nms(boxes, scores, classes, getattr(test_time, kind), 0.05)
    expected = textbook(boxes, scores, classes, kind, 0.05)
    assert keep.tolist() == [i for _, i in expected]
    torch.testing.assert_close(new_scores[keep], torch.tensor([s for s, _ in expected]))


@pytest.mark.parametrize("kind", ["linear", "gaussian"])
def test_ties_go_to_the_first(kind):
    torch.manual_seed(0)
    boxes = random_boxes(30)
    scores, classes = torch.full((30,), 0.5), torch.arange(30) % 2
    new_scores, keep = soft_nms(boxes, scores, classes, getattr(test_time, kind))
    expected = textbook(boxes, scores, classes, kind)
    assert keep.tolist() == [i for _, i in expected]
    assert keep[:2].tolist() == [0, 1]
    torch.testing.assert_close(new_scores[keep], torch.tensor([s for s, _ in expected]))


@pytest.mark.parametrize("factor", [linear, gaussian])
def test_apart_or_of_another_class_boxes_keep_their_scores(factor):
    here, there = [0.0, 0, 10, 10], [20.0, 0, 30, 10]
    boxes, scores = torch.tensor([here, there, here]), torch.tensor([0.3, 0.9, 0.8])
    new_scores, keep = soft_nms(boxes, scores, torch.tensor([0, 0, 1]), factor)
    assert new_scores.tolist() == scores.tolist()
    assert keep.tolist() == [1, 2, 0]


def test_the_same_box_again_loses_all_or_most():
    boxes, scores = torch.tensor([[0.0, 0, 10, 10]] * 2), torch.tensor([0.8, 0.9])
    classes = torch.tensor([2, 2])
    assert soft_nms(boxes, scores, classes, linear)[1].tolist() == [1]
    new_scores, keep = soft_nms(boxes, scores, classes, gaussian)
    assert keep.tolist() == [1, 0]
    assert new_scores[0] == pytest.approx(0.8 * math.exp(-2))


def test_no_box_and_empty_boxes():
    nothing = torch.zeros(0, dtype=torch.int64)
    assert soft_nms(torch.zeros(0, 4), torch.zeros(0), nothing, linear)[1].tolist() == []
    clipped = torch.tensor([[5.0, 5, 5, 9]] * 2)
    new_scores, keep = soft_nms(clipped, torch.tensor([0.2, 0.4]), torch.tensor([1, 1]), gaussian)
    assert keep.tolist() == [1, 0]
    assert new_scores.tolist() == pytest.approx([0.2, 0.4])


def detector(kind="standard", **backbone):
    """The mini detector, with weights that give different scores to boxes that overlap."""
    name = {"standard": "mask_rcnn", "cascade": "cascade_mask_rcnn"}.get(kind, kind)
    model = config.load(ROOT / f"configs/mini/{name}_vit_mini.py").model
    model.backbone.update(backbone)
    if kind == "retinanet":
        model.update(test_score_thresh=0.3, test_topk_candidates=60)
    torch.manual_seed(1)
    model = instantiate(model).eval()
    for predictor in predictors(model):
        nn.init.normal_(predictor.cls_score.weight, std=0.5)
        nn.init.normal_(predictor.bbox_pred.weight, std=0.1)
        predictor.test_score_thresh = 0.2
    if kind == "retinanet":
        nn.init.normal_(model.head.cls_score.weight, std=0.02)
        nn.init.zeros_(model.head.cls_score.bias)
    last = model.head if kind == "retinanet" else predictors(model)[-1]
    *_, height_weight = (model if kind == "retinanet" else last).box2box_transform.weights
    with torch.no_grad():  # three times as high and wide
        last.bbox_pred.bias.view(-1, 4)[:, 2:] = height_weight * math.log(3)
    return model


def predictors(model):
    return [m for m in model.modules() if isinstance(m, FastRCNNOutputLayers)]


@contextmanager
def every_candidate(model):
    """No suppression and no limit: what NMS would choose from."""
    if predictors(model):
        *_, last = predictors(model)
        keys = dict(test_nms_thresh=1.0, test_topk_per_image=-1)
    else:
        last, keys = model, dict(test_nms_thresh=1.0, max_detections_per_image=10**6)
    old = {key: getattr(last, key) for key in keys}
    vars(last).update(keys)
    yield
    vars(last).update(old)


def limit(model, count):
    if predictors(model):
        predictors(model)[-1].test_topk_per_image = count
    else:
        model.max_detections_per_image = count


@torch.no_grad()
def detect(model, inputs):
    return [output["instances"] for output in model(inputs)]


@torch.no_grad()
def selected(model, inputs):
    """What comes out of NMS, before detectron2 scales it to the original image."""
    if predictors(model):
        return model.inference(inputs, do_postprocess=False)
    images = model.preprocess_image(inputs)
    levels = [model.backbone(images.tensor)[name] for name in model.head_in_features]
    return model.forward_inference(images, levels, model.head(levels))


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A dataset dict of an image, 128 wide and 96 high."""
    path = tmp_path_factory.mktemp("photo") / "0.bmp"
    Image.fromarray(mini.draw(0, "val")[0][:96]).save(path)
    return dict(file_name=str(path), height=96, width=128, image_id=7)


def mapped(photo, short_edge=None, max_size=512):
    """The input that the data mapper makes of it."""
    resize = [ResizeShortestEdge(short_edge, max_size)] if short_edge else []
    return DatasetMapper(is_train=False, augmentations=resize, image_format="RGB")(photo)


def assert_same(found, expected):
    assert len(found) == len(expected) > 3
    torch.testing.assert_close(found.scores, expected.scores)
    assert found.pred_classes.tolist() == expected.pred_classes.tolist()
    torch.testing.assert_close(
        found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-2
    )
    if expected.has("pred_masks"):
        assert found.pred_masks.shape == expected.pred_masks.shape
        # Boxes went to the image's pixels and back: a pixel on a mask's edge may change sides.
        change = (found.pred_masks.float() - expected.pred_masks.float()).abs()
        assert change.mean() < 1e-3


@pytest.mark.parametrize("soft", ["linear", "gaussian"])
@pytest.mark.parametrize("kind", ["standard", "cascade", "retinanet"])
def test_detectors_select_by_soft_nms(kind, soft, photo):
    model, inputs = detector(kind), [mapped(photo)]
    with every_candidate(model):
        (candidates,) = selected(model, inputs)
    count = 40
    assert len(candidates) > count
    limit(model, count)
    (hard,) = selected(model, inputs)
    with applied(model, words(soft_nms=soft)) as same:
        assert same is model
        (found,) = selected(model, inputs)
    expected = textbook(
        candidates.pred_boxes.tensor, candidates.scores, candidates.pred_classes, soft
    )[:count]
    scores, indexes = (torch.tensor(x) for x in zip(*expected, strict=True))
    assert (candidates.scores[indexes] - scores).max() > 0.05
    candidates.scores[indexes] = scores
    assert_same(found, candidates[indexes])
    # Hard NMS says something else, and is back.
    assert not torch.equal(found.scores[: len(hard)], hard.scores)
    assert_same(selected(model, inputs)[0], hard)
    between = (scores[19] + scores[20]).item() / 2
    with applied(model, words(soft_nms=soft, soft_nms_min_score=between)):
        assert_same(selected(model, inputs)[0], found[:20])


@pytest.mark.parametrize("changes", [{}, dict(soft_nms="linear"), dict(tta_sizes=[64])])
def test_all_is_as_before(changes):
    def exchanged():
        return [
            *(module.batched_nms for module in (fast_rcnn, retinanet)),
            *(module.ImageList for module in (rcnn, dense_detector)),
        ]

    before, of_rpn = exchanged(), proposal_utils.batched_nms
    model = detector()
    for training in (True, False):
        model.train(training)
        with applied(model, words(**changes)) as inner, inference_context(inner):
            assert not model.training
            assert exchanged() != before
            assert proposal_utils.batched_nms is of_rpn
        assert exchanged() == before
        assert model.training == training
    context = applied(model, words(**changes))
    context.__enter__()
    context.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert exchanged() == before


def test_nothing_asked_nothing_changed(photo):
    model = detector()
    (plain,) = detect(model, [mapped(photo)])
    with applied(model, words()) as same:
        assert same is model
        assert_same(detect(same, [mapped(photo)])[0], plain)


@pytest.mark.parametrize("soft", ["none", "linear", "gaussian"])
@pytest.mark.parametrize("kind", ["standard", "cascade"])
def test_one_size_without_flip_is_one_pass(kind, soft, photo):
    model, inputs = detector(kind), [mapped(photo, short_edge=80)]
    with applied(model, words(soft_nms=soft)) as same:
        (plain,) = detect(same, inputs)
    with applied(model, words(soft_nms=soft, tta_sizes=[80], tta_flip=False)) as tta:
        (found,) = detect(tta, inputs)
    assert_same(found, plain)


def test_images_are_made_from_the_file(photo):
    """Not from what the data mapper has resized, here to almost nothing."""
    model = detector()
    (plain,) = detect(model, [mapped(photo)])
    with applied(model, words(tta_sizes=[96], tta_flip=False)) as tta:
        (found,) = detect(tta, [mapped(photo, short_edge=8)])
    assert_same(found, plain)


@pytest.mark.parametrize(
    ("kind", "tta_sizes"), [("standard", []), ("standard", [192]), ("retinanet", [])]
)
def test_images_larger_than_the_square_are_seen_whole(kind, tta_sizes, photo):
    inputs = [mapped(photo, short_edge=192)]  # 256 wide
    (expected,) = detect(detector(kind, square_pad=256), inputs)
    small = detector(kind, square_pad=128)
    with applied(small, words(tta_sizes=tta_sizes, tta_flip=False)) as inner:
        (found,) = detect(inner, inputs)
    assert_same(found, expected)


@pytest.mark.parametrize("soft", ["none", "gaussian"])
def test_sizes_and_flips_are_merged(soft, photo):
    model = detector()
    with applied(model, words(soft_nms=soft, tta_sizes=[64, 192], tta_max_size=200)) as tta:
        found, again = detect(tta, [mapped(photo), mapped(photo, short_edge=64)])
    assert_same(again, found)
    assert found.image_size == (96, 128)
    assert found.pred_masks.shape == (len(found), 96, 128)
    assert found.pred_masks.any()

    merged = []
    for size, flip in itertools.product((64, 192), (False, True)):
        inputs = mapped(photo, size, max_size=200)
        height, width = inputs["image"].shape[1:]
        alone = detector(square_pad=max(128, width))
        if flip:
            inputs["image"] = inputs["image"].flip(2)
        with every_candidate(alone) if soft == "gaussian" else nullcontext():
            (instances,) = selected(alone, [inputs])
        boxes = instances.pred_boxes.tensor
        if flip:
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        boxes *= torch.tensor([128 / width, 96 / height] * 2)
        merged.append((boxes, instances.scores, instances.pred_classes))
    boxes, scores, classes = (torch.cat(x) for x in zip(*merged, strict=True))
    if soft == "gaussian":
        expected = textbook(boxes, scores, classes, soft)[:100]
        scores, keep = (torch.tensor(x) for x in zip(*expected, strict=True))
    else:
        keep = batched_nms(boxes, scores, classes, 0.5)[:100]
        scores = scores[keep]
    torch.testing.assert_close(found.scores, scores, rtol=0, atol=1e-4)
    assert found.pred_classes.tolist() == classes[keep].tolist()
    torch.testing.assert_close(found.pred_boxes.tensor, boxes[keep], rtol=0, atol=1e-2)


def test_no_detection_at_any_size(photo):
    model = detector()
    for predictor in predictors(model):
        predictor.test_score_thresh = 1.0
    with applied(model, words(soft_nms="linear", tta_sizes=[64, 96])) as tta:
        (found,) = detect(tta, [mapped(photo)])
    assert len(found) == 0
    assert found.pred_masks.shape == (0, 96, 128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(soft_nms="gausian"), "did you mean 'gaussian'.*gaussian, linear, none"),
        (dict(soft_nms=None), "unknown test.soft_nms 'None'"),
        (dict(soft_nms="linear", soft_nms_iou=1.5), "test.soft_nms_iou=1.5 .* from 0 to 1"),
        (dict(soft_nms="linear", soft_nms_iou=None), "test.soft_nms_iou=None "),
        (dict(soft_nms="gaussian", soft_nms_sigma=0), "test.soft_nms_sigma=0 .* above 0"),
        (dict(soft_nms="gaussian", soft_nms_sigma=math.nan), "test.soft_nms_sigma=nan "),
        (dict(soft_nms="linear", soft_nms_min_score="a"), "test.soft_nms_min_score='a' "),
        (dict(tta_sizes=[64, 0]), r"test.tta_sizes=\[64, 0\] .* whole numbers"),
        (dict(tta_sizes=[64.5]), r"test.tta_sizes=\[64.5\] "),
        (dict(tta_sizes=64), "test.tta_sizes=64 .* a list"),
        (dict(tta_sizes=[True]), r"test.tta_sizes=\[True\] "),
        (dict(tta_max_size=0), "test.tta_max_size=0 "),
        (dict(tta_sizes=[600]), "raise test.tta_max_size=512"),
        (dict(tta_flip="yes"), "test.tta_flip='yes' .* True or False"),
    ],
)
def test_a_word_that_does_not_fit(changes, message):
    with pytest.raises(UserError, match=message) as error, applied(nn.Identity(), words(**changes)):
        pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (nn.Identity(), dict(soft_nms="linear")),
        (detector("retinanet"), dict(tta_sizes=[64])),
    ],
    ids=["soft_nms", "tta_sizes"],
)
def test_a_detector_that_cannot(model, changes):
    with (
        pytest.raises(UserError, match=f"not for {type(model).__name__}: set"),
        applied(model, words(**changes)),
    ):
        pass
