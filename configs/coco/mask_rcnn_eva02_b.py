"""EVA-02-B, COCO, EVA-02's weights of IN-21K, 60,000 iterations of 128 images: by the config that
EVA-02's authors released for Cascade Mask R-CNN (baaivision/EVA, EVA-02/det, commit 006ca79,
eva2_coco_cascade_mask_rcnn_vitdet_b_4attn_1024_lrd0p7.py).

Published of configs/coco/cascade_mask_rcnn_eva02_b.py: 55.5 box AP / 47.1 mask AP. Weight decay is
inherited there from a file that we have not seen; 0.1 is ViTDet's.
"""

from .mask_rcnn_vit_b import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone.update(
    size="eva02-b",
    window_size=16,
    # Absolute positions of 14 x 14 as in the file, rotary ones scaled to 16 tokens.
    pretrain_img_size=224,
    positions="learned+rope(unit=token,coordinates=window,length=16)",
    use_rel_pos=False,
)
dataloader.train.total_batch_size = 128
optimizer.lr = 5e-5
param_groups.no_weight_decay = []
schedule.warmup_iters = 1000
schedule.decay.update(milestones=[8, 9], num_updates=10)
train.update(max_iter=60_000, init_weights="eva02_in21k")
