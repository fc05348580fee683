"""ImageNet's usual crops for pre-training; `experiments.jobs` turns this into loaders."""

from detectron2.config import LazyCall as L
from torchvision.transforms import v2

from experiments.data.pretraining_images import ImageMapper

_BICUBIC = 3  # as torchvision numbers it

dataloader = dict(
    image_size=224,  # pixels, of the crop's side
    train=dict(
        total_batch_size=4096,  # images of one optimizer step, on any number of devices
        loss_batch_size=64,  # images that share random numbers
        micro_batch_size=64,  # images of one pass; gradients accumulate to `total_batch_size`
        num_workers=8,
        mapper=L(ImageMapper)(
            transforms=[
                L(v2.RandomResizedCrop)(
                    size="${dataloader.image_size}", scale=(0.2, 1.0), interpolation=_BICUBIC
                ),
                L(v2.RandomHorizontalFlip)(p=0.5),
            ]
        ),
    ),
    test=dict(
        batch_size=64,
        num_workers=4,
        mapper=L(ImageMapper)(
            transforms=[
                L(v2.Resize)(size=256, interpolation=_BICUBIC),
                L(v2.CenterCrop)(size="${dataloader.image_size}"),
            ]
        ),
    ),
)
