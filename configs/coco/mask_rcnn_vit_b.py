"""Mask R-CNN, ViT-B, COCO, IN-1K MAE, 100 epochs (arXiv:2203.16527, Table 11).

Published: 51.2 box AP / 45.5 mask AP without relative positions (Table 8), 51.6 / 45.9 with them
(Table 5; the released model of this recipe). 64 GPUs, one image each.
"""

from ..common.data import dataloader
from ..common.model import model
from ..common.optim import optimizer, param_groups
from ..common.schedule import step as schedule
from ..common.test import test
from ..common.train import train

train.init_weights = "mae_in1k"
