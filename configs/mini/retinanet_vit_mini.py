"""RetinaNet, vit-mini, the embedded set; recipe of mask_rcnn_vit_mini.py."""

from ..common.detectors import retinanet
from .mask_rcnn_vit_mini import dataloader, model, optimizer, param_groups, schedule, test, train

# The levels and anchors of the mini RPN.
model = retinanet(model, dataloader, (4, 8), [[12, 20, 32], [48, 72, 104]], [1.0])
