"""Mask R-CNN, ViT-S, COCO: ViT-B's recipe (arXiv:2203.16527, Table 11) on DeiT-S.

Not in the paper, not tuned: for encoders of this size, as the vit-s recipes of configs/pretraining.
"""

from ..common.data import dataloader
from ..common.model import model
from ..common.optim import optimizer, param_groups
from ..common.schedule import step as schedule
from ..common.test import test
from ..common.train import train

model.backbone.size = "vit-s"
train.init_weights = "sup_in1k"
