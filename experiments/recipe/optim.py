"""Optimizer groups: layer-wise learning-rate decay and exceptions from weight decay.

Both are read off the modules, not off parameter names, so that a wrapped model (DDP, FSDP2,
`torch.compile`) keeps its groups.
"""

from collections.abc import Iterator, Sequence

from detectron2.modeling.backbone.swin import WindowAttention
from torch import nn

from backbones import Encoder
from backbones.block import LayerScale

NO_DECAY_KINDS = ("norm", "pos_embed", "relative_position_bias")
# As in detectron2's optimizer, and so in the released recipe: torch's norms. Channel-first
# LayerNorms, of neck and heads, are decayed.
_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    LayerScale,  # a factor for each channel, as theirs
)


def layers(encoder: Encoder) -> list[list[nn.Module | nn.Parameter]]:
    """Parts of each layer, from the image on: patch embedding, positions, registers and CLIP's norm
    behind them are layer 0, block i is layer i + 1. What comes behind the blocks is in none."""
    below = (encoder.patch_embed, encoder.pos_embed, encoder.registers)
    first = [part for part in (*below, getattr(encoder, "norm_pre", None)) if part is not None]
    return [first, *([block] for block in encoder.blocks)]


def lr_factors(encoder: Encoder, layer_decay: float) -> dict[nn.Parameter, float]:
    """Learning-rate factor of each encoder parameter (BEiT, arXiv:2106.08254).

    A factor of `layer_decay` per layer below the head, see `layers`. Residual conv blocks are new,
    not pre-trained, and keep factor 1, as in detectron2; so does SAM's neck.
    """
    depth = len(encoder.blocks)
    factors: dict[nn.Parameter, float] = {}
    for i, layer in enumerate(layers(encoder)):
        for part in layer:
            own = [part] if isinstance(part, nn.Parameter) else part.parameters()
            factors |= dict.fromkeys(own, layer_decay ** (depth + 1 - i))
    for block in encoder.blocks:
        if hasattr(block, "residual"):
            factors |= dict.fromkeys(block.residual.parameters(), 1.0)
    return factors


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    no_weight_decay: Sequence[str] = ("norm", "pos_embed"),
) -> list[dict]:
    """Groups of parameters with their own `lr` and `weight_decay`, for a torch optimizer.

    Args:
        model: detector with any number of encoders in it.
        layer_decay: see `lr_factors`; parameters outside encoders keep `lr`.
        no_weight_decay: kinds of parameter without weight decay, of `NO_DECAY_KINDS`;
            "relative_position_bias" is Swin's table.

    Raises:
        ValueError: an unknown kind, or `layer_decay` for a model that has no `Encoder`.
    """
    unknown = set(no_weight_decay) - set(NO_DECAY_KINDS)
    if unknown:
        raise ValueError(
            f"no_weight_decay={sorted(unknown)} is unknown: allowed are {', '.join(NO_DECAY_KINDS)}"
        )
    if layer_decay != 1.0 and not any(isinstance(m, Encoder) for m in model.modules()):
        raise ValueError(
            f"layer_decay={layer_decay} has no effect: the model has no ViT, 1.0 is for others"
        )
    factors: dict[nn.Parameter, float] = {}
    without_decay: set[nn.Parameter] = set()
    for module in model.modules():
        if isinstance(module, Encoder):
            factors |= lr_factors(module, layer_decay)
            if "pos_embed" in no_weight_decay and module.pos_embed is not None:
                without_decay.add(module.pos_embed)
        if isinstance(module, WindowAttention) and "relative_position_bias" in no_weight_decay:
            without_decay.add(module.relative_position_bias_table)
        if isinstance(module, _NORMS) and "norm" in no_weight_decay:
            without_decay |= set(module.parameters(recurse=False))

    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in _trainable(model):
        decay = 0.0 if parameter in without_decay else weight_decay
        groups.setdefault((lr * factors.get(parameter, 1.0), decay), []).append(parameter)
    return [
        dict(params=params, lr=group_lr, weight_decay=decay)
        for (group_lr, decay), params in groups.items()
    ]


def _trainable(model: nn.Module) -> Iterator[nn.Parameter]:
    return (p for p in model.parameters() if p.requires_grad)
