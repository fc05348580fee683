"""Mask R-CNN, vit-mini, the embedded set in LVIS format; recipe of mask_rcnn_vit_mini.py.

Sampling and loss are LVIS's, to the size of the set: `experiments.data.mini.lvis` says how.
"""

from configs.common.lvis import lvis

from .mask_rcnn_vit_mini import dataloader, model, optimizer, param_groups, schedule, test, train

lvis(model, dataloader)
model.roi_heads.num_classes = 4
model.roi_heads.box_predictor.fed_loss_num_classes = 3
# LVIS's is the limit of its common categories, 100 of 100,000 images; here 100 of 1,200.
dataloader.train.update(dataset="mini_lvis_train", repeat_threshold=100 / 1200)
dataloader.test.dataset = "mini_lvis_val"
