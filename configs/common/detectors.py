"""From Mask R-CNN to the other detectors of the paper, keeping backbone, RPN and kind of heads.

`experiments.recipe.config.load` makes a config of the name of another detector, as
configs/coco/retinanet_vit_b.py, by the function of that name from Mask R-CNN's, mask_rcnn_vit_b.py;
where a folder has a `_detectors.py`, by that of the folder.
"""

import copy
import math
from collections.abc import Sequence

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.roi_heads import CascadeROIHeads
from omegaconf import DictConfig

from backbones import LayerNorm2d, build_backbone


def cascade_mask_rcnn(model: DictConfig, dataloader: DictConfig) -> DictConfig:
    """Three box heads in a row, each on the boxes of the one before (arXiv:1712.00726).

    IoU thresholds, box weights and class-agnostic boxes as in the released Cascade configs.
    """
    heads = model.roi_heads
    box_head, predictor = heads.pop("box_head"), heads.pop("box_predictor")
    heads.pop("proposal_matcher")
    predictor.update(cls_agnostic_bbox_reg=True, num_classes="${...num_classes}")
    heads.update(
        _target_=CascadeROIHeads,
        box_heads=[copy.deepcopy(box_head) for _ in range(3)],
        box_predictors=[copy.deepcopy(predictor) for _ in range(3)],
        proposal_matchers=[
            L(Matcher)(thresholds=[iou], labels=[0, 1], allow_low_quality_matches=False)
            for iou in (0.5, 0.6, 0.7)
        ],
    )
    for stage, (xy, wh) in enumerate([(10, 5), (20, 10), (30, 15)]):
        heads.box_predictors[stage].box2box_transform = L(Box2BoxTransform)(
            weights=(xy, xy, wh, wh)
        )
    return model


def probe(model: DictConfig, dataloader: DictConfig) -> DictConfig:
    """Faster R-CNN (arXiv:1506.01497) with little behind the encoder, to try frozen ones: a few
    hundred images at 512 px train it in minutes on a CPU, from kept features.

    This suite's own: levels p3 to p5 of 64 channels, 64 boxes of an image, one linear layer for
    each, no masks. Large-scale jitter is 0.5 to 1.5, as of each image few views are seen.

    Args:
        dataloader: changed to load no masks, and to that jitter.
    """
    if model.backbone._target_ is not build_backbone:
        raise ValueError("the detector probe is for a plain ViT")
    channels, levels = 64, ["p3", "p4", "p5"]
    mapper = dataloader.train.mapper
    mapper.update(use_instance_mask=False, recompute_boxes=False)
    for augmentation in mapper.augmentations:
        if "min_scale" in augmentation:
            augmentation.update(min_scale=0.5, max_scale=1.5)
    model.backbone.update(out_channels=channels, scale_factors=(2.0, 1.0, 0.5), top_block="none")
    rpn, heads = model.proposal_generator, model.roi_heads
    rpn.update(
        in_features=levels,
        batch_size_per_image=64,
        pre_nms_topk=(400, 200),
        post_nms_topk=(200, 100),
    )
    rpn.head.update(in_channels=channels, conv_dims=[-1])
    # Half of what they are at 1024 px.
    rpn.anchor_generator.update(sizes=[[32], [80], [200]], strides=[8, 16, 32])
    heads.update(box_in_features=levels, batch_size_per_image=64)
    heads.box_pooler.update(
        scales=(1 / 8, 1 / 16, 1 / 32), sampling_ratio=2, canonical_box_size=112
    )
    heads.box_head.update(conv_dims=[], fc_dims=[256])
    heads.box_head.input_shape.channels = channels
    heads.box_predictor.input_shape.channels = 256
    for part in ("mask_in_features", "mask_pooler", "mask_head"):
        heads.pop(part)
    return model


def retinanet(
    model: DictConfig,
    dataloader: DictConfig,
    strides: Sequence[int] = (8, 16, 32, 64, 128),
    sizes: Sequence[Sequence[float]] | None = None,
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> DictConfig:
    """RetinaNet (arXiv:1708.02002) on the backbone of `model`, for Figure 5.

    The paper says no more of it than that; so this is detectron2's, with LayerNorm in the head as
    in the paper's other heads. It has no masks, and no level of stride 4.

    Args:
        dataloader: changed to load no masks.
        strides: of the levels that the head reads; above 32 they are made by stride-2 convs.
        sizes: sides of each level's anchors in pixels; None: three per octave, from 4 x stride.
        aspect_ratios: of the anchors.
    """
    if model.roi_heads.box_predictor.get("use_fed_loss"):
        raise ValueError("RetinaNet has no federated loss: LVIS is for Mask R-CNN and its cascade")
    sizes = sizes or [[4 * stride * 2 ** (i / 3) for i in range(3)] for stride in strides]
    backbone, channels = model.backbone, model.proposal_generator.head.in_channels
    dataloader.train.mapper.update(use_instance_mask=False, recompute_boxes=False)
    if max(strides) > 32:
        _from_p3_to_p7(backbone, channels)
    return L(RetinaNet)(
        backbone=backbone,
        head=L(RetinaNetHead)(
            input_shape=[L(ShapeSpec)(channels=channels) for _ in strides],
            num_classes="${..num_classes}",
            num_anchors=len(sizes[0]) * len(aspect_ratios),
            conv_dims=[channels] * 4,
            norm=LayerNorm2d,
        ),
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=sizes, aspect_ratios=list(aspect_ratios), strides=list(strides), offset=0.0
        ),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        anchor_matcher=L(Matcher)(
            thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        num_classes=model.roi_heads.num_classes,
        head_in_features=[f"p{int(math.log2(stride))}" for stride in strides],
        focal_loss_alpha=0.25,
        focal_loss_gamma=2.0,
        test_score_thresh=0.05,
        test_nms_thresh=0.5,
        max_detections_per_image=100,
        pixel_mean=model.pixel_mean,
        pixel_std=model.pixel_std,
        input_format=model.input_format,
    )


def _from_p3_to_p7(backbone: DictConfig, channels: int) -> None:
    """Leave out p2, and add p6 and p7 by stride-2 convs."""
    if backbone._target_ is build_backbone:
        backbone.update(scale_factors=(2.0, 1.0, 0.5), top_block="p6p7")
        return
    backbone.in_features = backbone.in_features[1:]
    backbone.top_block = L(LastLevelP6P7)(
        in_channels=channels, out_channels=channels, in_feature="p5"
    )
    if "out_features" in backbone.bottom_up:  # MViT
        backbone.bottom_up.out_features = backbone.in_features
    else:
        backbone.bottom_up.out_indices = [1, 2, 3]
