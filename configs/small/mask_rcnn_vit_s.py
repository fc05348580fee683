"""Mask R-CNN, ViT-S, 512 px, a tenth of COCO, 12 epochs of it: one GPU, some hours.

The paper's recipe (arXiv:2203.16527, Table 11, ViT-B: layer-wise decay 0.7, weight decay 0.1, drop
path 0.1, large-scale jitter) but for what follows. No AP is known for it; docs/small.md.
"""

from ..common.data import dataloader
from ..common.model import model
from ..common.optim import optimizer, param_groups
from ..common.schedule import step as schedule
from ..common.test import test
from ..common.train import iterations, train

# Half the paper's side, and windows of as large a part of the map: 7 of 32 tokens, as 14 of 64.
model.backbone.update(size="vit-s", img_size=512, window_size=7)
dataloader.image_size = 512
# Of an image, a quarter of 512: as many as Fast R-CNN has of a batch (arXiv:1504.08083, 2.3).
model.roi_heads.batch_size_per_image = 128

# Which part of the set: docs/small.md. 1, 5 and 10 % are those of arXiv:2005.04757.
dataloader.share_seed = 0
dataloader.train.share = 0.1
dataloader.test.share = 1.0

# 16 images a step at 1e-4: Swin's on COCO (arXiv:2103.14030, 4.2), and DeiT-S's under ViT-Adapter
# (arXiv:2205.08534; its public config).
dataloader.train.update(total_batch_size=16, micro_batch_size=4)
optimizer.lr = 1e-4

# 12 epochs, "1x", of the share, whatever it is: `experiments.recipe.config.set_length` puts the
# iterations of a run's own images in place of these.
train.update(epochs=12.0, max_iter=iterations(12, images=11_829, batch=16))
train.init_weights = "sup_in1k"  # DeiT-S; MAE released none of this size
