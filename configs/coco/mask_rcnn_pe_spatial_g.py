"""Mask R-CNN, Perception Encoder's spatial G, COCO, 36 epochs: as mask_rcnn_pe_core_g.py
(mask_rcnn_PEspatial_G_coco36ep.py).

Published: 57.8 box AP / 50.3 mask AP.
"""

from .mask_rcnn_pe_core_g import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone.size = "pe-spatial-g"
train.update(max_iter=184_375 * 36 // 100, init_weights="pe_spatial")
