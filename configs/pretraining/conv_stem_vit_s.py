"""A conv stem trained with labels, as "Early Convolutions Help Transformers See Better"
(arXiv:2106.14881) does, at ViT-S.

From it are the stem, 400 epochs (section 4, its longest) and the kinds of augmentation:
AutoAugment, mixup, CutMix, label smoothing. All else, also learning rate and weight decay, which it
tunes, is `_sup`'s. Its models have one block fewer, for the stem's cost; this one has all twelve,
as the detector's encoder.
"""

from detectron2.config import LazyCall as L
from torchvision.transforms import v2

from ._imagenet import iterations
from ._sup import dataloader, model, optimizer, param_groups, schedule, train

model.encoder.update(size="vit-s", stem="conv")
dataloader.train.mapper.transforms[-1] = L(v2.AutoAugment)()
train.max_iter = iterations(400, dataloader.train.total_batch_size)
