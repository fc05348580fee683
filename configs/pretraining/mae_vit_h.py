"""MAE's ViT-H: `_mae` says where each number is from. The paper's has 14 px patches; ViTDet's
detector, which this encoder is for, has 16 px (arXiv:2203.16527, A.2), and so has this: 196 tokens
an image, not 256.
"""

from ._mae import dataloader, model, optimizer, param_groups, schedule, train

model.encoder.update(size="vit-h", count=32)
