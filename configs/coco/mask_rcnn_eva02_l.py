"""EVA-02-L, COCO, EVA-02's weights of Merged-38M, 60,000 iterations of 144 images: as
mask_rcnn_eva02_b.py (eva2_coco_cascade_mask_rcnn_vitdet_l_4attn_1024_lrd0p8.py).

Published of configs/coco/cascade_mask_rcnn_eva02_l.py: 59.2 box AP / 50.8 mask AP.
"""

from .mask_rcnn_eva02_b import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone.update(size="eva02-l", drop_path_rate=0.4)
dataloader.train.total_batch_size = 144
optimizer.lr = 6e-5
param_groups.layer_decay = 0.8
train.init_weights = "eva02_m38m"
