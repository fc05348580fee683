"""FLIP's point (arXiv:2212.00794) without its text: classification from a random half of the
patches, else as `sup_vit_b`.

FLIP itself trains CLIP, images against captions, on LAION. From it are the share of hidden patches,
half (Table 1a), and that no patch is reconstructed (Table 1f).
"""

from ._sup import dataloader, model, optimizer, param_groups, schedule, train

model.mask_ratio = 0.5
