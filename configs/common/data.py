"""COCO with large-scale jitter (scale 0.1 to 2.0, 1024 px crop) and a horizontal flip.

`experiments.data` turns this into loaders: it adds the order of images, drawn from train.seed.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from experiments.data.mapper import Mapper

dataloader = dict(
    image_size=1024,  # pixels, of the training crop's side and of the longest side at test time
    train=dict(
        dataset="coco_2017_train",
        total_batch_size=64,  # images of one optimizer step, on any number of devices
        loss_batch_size=1,  # images that losses are averaged over, with random numbers of their own
        micro_batch_size=1,  # images of one pass: as many of the above as a device holds
        num_workers=4,
        views=0,  # of each image, fixed for all runs; 0: another augmentation each time
        repeat_threshold=0.0,  # repeat-factor sampling (arXiv:1908.03195); 0: each image once
        mapper=L(Mapper)(
            is_train=True,
            augmentations=[
                L(T.RandomFlip)(horizontal=True),
                L(T.ResizeScale)(
                    min_scale=0.1,
                    max_scale=2.0,
                    target_height="${dataloader.image_size}",
                    target_width="${dataloader.image_size}",
                ),
                L(T.FixedSizeCrop)(
                    crop_size=("${dataloader.image_size}", "${dataloader.image_size}"), pad=False
                ),
            ],
            image_format="RGB",
            use_instance_mask=True,
            recompute_boxes=True,
        ),
    ),
    test=dict(
        dataset="coco_2017_val",
        batch_size=1,
        num_workers=4,
        mapper=L(Mapper)(
            is_train=False,
            augmentations=[
                L(T.ResizeShortestEdge)(
                    short_edge_length="${dataloader.image_size}",
                    max_size="${dataloader.image_size}",
                )
            ],
            image_format="RGB",
        ),
    ),
)
