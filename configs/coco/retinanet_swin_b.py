"""RetinaNet, Swin-B, COCO; recipe of mask_rcnn_swin_b.py.

The paper plots its AP in Figure 5 and prints none.
"""

from ..common.detectors import retinanet
from .mask_rcnn_swin_b import dataloader, model, optimizer, param_groups, schedule, test, train

model = retinanet(model, dataloader)
