"""Mask R-CNN, Perception Encoder's core G, COCO, 75 epochs: by the config that its authors released
(facebookresearch/perception_models, apps/detection @3e352cc, mask_rcnn_PEcore_G_coco75ep.py).

Published: 57.0 box AP / 49.8 mask AP. 64 GPUs, one image each. Weight decay is detectron2's for
ViTDet, 0.1.
"""

from .mask_rcnn_vit_h import dataloader, model, optimizer, param_groups, schedule, test, train

_GLOBAL = (12, 24, 36, 49)
model.backbone.update(
    size="pe-core-g",
    propagation=None,
    window_block_indexes=[i for i in range(50) if i not in _GLOBAL],
    window_size=32,
    positions="learned+rope(unit=token,coordinates=window,axes=xy)",
    positions_resize="tile",
    use_rel_pos=False,
    pre_norm=True,
    block_norm="layer(eps=1e-5)",
)
model.update(pixel_mean=[127.0] * 3, pixel_std=[127.0] * 3)
optimizer.lr = 5e-5
train.update(max_iter=184_375 * 75 // 100, init_weights="pe_core")
