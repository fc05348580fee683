"""Attention distance: how far the heads of each block look, in pixels.

As in arXiv:2010.11929, appendix D.7: the distance between query and key, weighted by the attention
probability, mean over query tokens and validation images. Padding tokens, which fill up the last
windows, have no place in the image: they are left out as queries and as keys, and the weights of a
query's other keys are scaled to a sum of 1. Padding of the image itself, up to the size that the
encoder takes, is tokens like others.
"""

import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from backbones import Encoder
from backbones.attention import Attention
from backbones.positions import relative_position_bias
from backbones.sequence import TokenSequence
from experiments.evaluation.kept import kept

from . import style
from .results import Results
from .style import plt
from .trained_encoders import IMAGES, digest, encoder_and_images, folders

_VERSION = 1  # of the file; raise it when what is computed changes


@dataclass(frozen=True, eq=False)
class AttentionDistance:
    """Of one trained plain ViT of L blocks with M heads each; L is 0 for another encoder."""

    pixels: np.ndarray  # (L, M)
    uniform: np.ndarray  # (L,) what equal weights on all tokens that a token may see would give
    plan: np.ndarray  # (L,) what each block does, see `Encoder.plan`


def of_run(folder: str | Path, images: int = IMAGES) -> AttentionDistance:
    """Of the finished run in `folder`, on its own validation images, kept there.

    Raises:
        UserError: its weights, its config or its images are not there or do not fit.
    """
    folder = Path(folder)
    return AttentionDistance(
        **kept(
            folder / "attention_distance.npz",
            f"{_VERSION} {digest(folder, images)}",
            lambda: asdict(compute(*encoder_and_images(folder, images))),
        )
    )


@torch.no_grad()
def compute(encoder: nn.Module, images_BCHW: Tensor) -> AttentionDistance:
    """See the module's text.

    Args:
        encoder: any; of a plain ViT there is something to find.
        images_BCHW: as the encoder gets them.
    """
    if not isinstance(encoder, Encoder):
        return AttentionDistance(np.zeros((0, 0)), np.zeros(0), np.zeros(0, "U1"))
    found: list[tuple[Tensor, Tensor]] = []
    hooks = [
        block.attn.register_forward_pre_hook(
            lambda attention, args: found.append(of_block(attention, _map(*args)))
        )
        for block in encoder.blocks
    ]
    try:
        for image_CHW in images_BCHW:
            encoder(image_CHW[None])
    finally:
        for hook in hooks:
            hook.remove()
    stride = encoder.patch_embed.patch_size
    heads, uniform = (
        stride
        * np.stack([part.double().cpu().numpy() for part in parts])
        .reshape(len(images_BCHW), len(encoder.blocks), -1)
        .mean(0)
        for parts in zip(*found, strict=True)
    )
    return AttentionDistance(heads, uniform[:, 0], np.array(encoder.plan))


def _map(x_BHWC: Tensor, sequence: TokenSequence | None = None, *_: object) -> Tensor:
    """What attention reads, as a map: without registers, which have no place."""
    return x_BHWC if sequence is None else sequence.to_map(x_BHWC)


def of_block(attention: Attention, x_1HWC: Tensor) -> tuple[Tensor, Tensor]:
    """Mean distance between query and key of each head, in tokens, on the map of one image.

    Returns:
        (M,), and () for equal weights on all tokens that a token may see.
    """
    H, W = x_1HWC.shape[1:3]
    partition, device = attention.partition, x_1HWC.device
    padded = partition.padded_size(H, W)
    size = partition.group_size(*padded)
    index_GN = partition.index(H, W, device)
    if index_GN is None:
        index_GN = torch.arange(H * W, device=device)[None]
    real_GN = index_GN >= 0
    hidden_GNN = ~real_GN[:, None, :].expand(-1, real_GN.shape[1], -1)
    mask_GNN = partition.mask(*padded, device)
    if mask_GNN is not None:
        hidden_GNN = hidden_GNN | ~mask_GNN
    y_GN, x_GN = index_GN // W, index_GN % W
    down_GNN, right_GNN = y_GN[:, :, None] - y_GN[:, None, :], x_GN[:, :, None] - x_GN[:, None, :]
    apart_GNN = torch.hypot(down_GNN.to(x_1HWC), right_GNN.to(x_1HWC))

    def mean_distance(scores_GNN: Tensor) -> Tensor:
        weights_GNN = scores_GNN.masked_fill(hidden_GNN, float("-inf")).softmax(-1)
        return (weights_GNN * apart_GNN).sum(-1)[real_GN].mean()

    q_GMND, k_GMND, _ = attention.in_groups(x_1HWC)
    heads = []
    for head in range(attention.num_heads):  # one at a time: N is all tokens in a global block
        q_GND, k_GND = q_GMND[:, head], k_GMND[:, head]
        scores_GNN = q_GND @ k_GND.mT * q_GND.shape[-1] ** -0.5
        if attention.use_rel_pos:
            tables = attention.rel_pos_h, attention.rel_pos_w
            scores_GNN += relative_position_bias(q_GND[:, None], *tables, size)[:, 0]
        heads.append(mean_distance(scores_GNN))
    return torch.stack(heads), mean_distance(torch.zeros_like(apart_GNN))


def picture(results: Results, path: Path) -> list[Path]:
    """Attention distance by block, a panel for each variant: heads as dots, their mean as a line.

    Variants whose encoder is no plain ViT are left out, and named in the title.

    Args:
        path: without suffix; .png, .svg, and .csv with a row for each head are written.

    Returns:
        The files written; none if no plain ViT has finished.

    Raises:
        UserError: as of `of_run`.
    """
    parts, others = [], []
    for variant, seed, folder in folders(results):
        found = of_run(folder)
        for block, (kind, heads) in enumerate(zip(found.plan, found.pixels, strict=True)):
            parts += [
                dict(
                    variant=variant,
                    seed=seed,
                    block=block,
                    kind=str(kind),
                    head=head,
                    distance_px=distance,
                    uniform_px=found.uniform[block],
                )
                for head, distance in enumerate(heads)
            ]
        if not len(found.plan) and variant not in others:
            others.append(variant)
    if not parts:
        return []
    table = pd.DataFrame(parts)
    variants = list(dict.fromkeys(table["variant"]))
    looks = style.looks(dict.fromkeys(["window", *table["kind"]]))
    style.use()
    columns = min(4, len(variants))
    lines = -(-len(variants) // columns)
    width = max(5.5, 3.2 * columns + 0.6)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(width, 3.2 * lines + 1.2),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    handles = {}
    for axis in axes.flat[len(variants) :]:
        axis.set_axis_off()
    for axis, variant in zip(axes.flat, variants, strict=False):
        rows = table[table["variant"] == variant]
        by_block = rows.groupby("block")
        mean = by_block["distance_px"].mean()
        (handles["mean of heads"],) = axis.plot(mean.index, mean, color="black", linewidth=1.2)
        uniform = by_block["uniform_px"].mean()
        handles["equal weights"] = axis.hlines(
            uniform, uniform.index - 0.35, uniform.index + 0.35, color=style.GREY, linestyle=":"
        )
        for kind, dots in rows.groupby("kind"):
            look = looks[kind]
            (handles[f"heads, {kind}"],) = axis.plot(
                dots["block"],
                dots["distance_px"],
                linestyle="none",
                marker=look["marker"],
                color=look["color"],
                markersize=5,
                alpha=0.7,
            )
        axis.set_title(variant)
        axis.set_xlabel("block")
        axis.xaxis.get_major_locator().set_params(integer=True)
        numbers = "\n".join(f"block {b}: {distance:.0f} px" for b, distance in mean.items())
        style.tip(axis, f"{variant}\n{numbers}")
    axes[0][0].set_ylim(bottom=0)
    for axis in axes[:, 0]:
        axis.set_ylabel("attention distance, px")
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=2 if columns < 3 else 4
    )
    title = f"{results.manifest['study']}: attention distance of each head"
    if others:
        title += f"; left out, no plain ViT: {', '.join(others)}"
    figure.suptitle(textwrap.fill(title, int(9.5 * width)), fontsize=13)
    return style.save(figure, path, table)
