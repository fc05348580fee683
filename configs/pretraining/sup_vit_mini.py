"""Supervised classification at mini scale: this suite's own recipe, found by trying."""

from detectron2.config import LazyCall as L

from backbones.pretraining.classifier import Classifier

from ._mini import dataloader, encoder, optimizer, param_groups, schedule, train

model = L(Classifier)(encoder=encoder, num_classes=4, pool="mean", label_smoothing=0.1)
train.max_iter = 450
