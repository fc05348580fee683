"""What a plain-ViT detector costs, in closed form: parameters and MACs, nothing built or computed.

MACs are multiply-accumulates of one image, of convs, linear layers and attention's products in
their textbook form, as `experiments.costs.detector_cost` counts them; biases, norms, activation
functions and resizing count none. docs/cost.md writes the formulas out. The words are those of
`backbones`. Letters:
    E channels of a token, T tokens of the image, P tokens padded to whole windows, h x w = N tokens
    of a group (a window, or the map), D channels of a head, C channels of a pyramid level.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from backbones import MLPS
from backbones.registries import name_of, read_word


@dataclass(frozen=True)
class Amount:
    """Parameters and MACs of a part."""

    params: int = 0
    macs: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.params + other.params, self.macs + other.macs)

    def __mul__(self, times: int) -> "Amount":
        return Amount(self.params * times, self.macs * times)


def total(parts: Iterable[Amount]) -> Amount:
    return sum(parts, Amount())


def linear(dim_in: int, dim_out: int, tokens: int, bias: bool = True) -> Amount:
    """A linear layer on each of `tokens`, or a 1x1 conv."""
    return Amount(dim_in * dim_out + bias * dim_out, dim_in * dim_out * tokens)


def conv(dim_in: int, dim_out: int, kernel: int, positions: int, bias: bool = False) -> Amount:
    """A kernel x kernel conv with `positions` outputs; a deconv of stride `kernel` with as many
    inputs."""
    weights = dim_in * dim_out * kernel**2
    return Amount(weights + bias * dim_out, weights * positions)


def norm(dim: int) -> Amount:
    """Weight and bias of a layer or batch norm."""
    return Amount(2 * dim)


# ---- Encoder -----------------------------------------------------------------------------------


def patch_embedding(dim: int, patch_size: int, tokens: int, in_chans: int = 3) -> Amount:
    """One conv whose kernel is the patch."""
    return conv(in_chans, dim, patch_size, tokens, bias=True)


def conv_stem(dim: int, patch_size: int, tokens: int, in_chans: int = 3) -> Amount:
    """Stride-2 3x3 convs with batch norm down to `tokens`, then a 1x1 conv."""
    steps = patch_size.bit_length() - 1
    parts, width_in = [], in_chans
    for later in reversed(range(steps)):
        width = dim // 2**later
        parts += [conv(width_in, width, 3, tokens * 4**later), norm(width)]
        width_in = width
    return total([*parts, linear(dim, dim, tokens)])


def normed_patch_embedding(dim: int, patch_size: int, tokens: int, in_chans: int = 3) -> Amount:
    """With a norm of the patch's values, and one of the token."""
    embedding = patch_embedding(dim, patch_size, tokens, in_chans)
    return norm(in_chans * patch_size**2) + embedding + norm(dim)


_STEMS = {
    "patchify": patch_embedding,
    "conv": conv_stem,
    "patchify_norm": normed_patch_embedding,
}


def sam_neck(dim: int, out_chans: int, tokens: int) -> Amount:
    """A 1x1 and a 3x3 conv, each with a norm."""
    convs = conv(dim, out_chans, 1, tokens) + conv(out_chans, out_chans, 3, tokens)
    return convs + norm(out_chans) * 2


def absolute_positions(dim: int, positions: int) -> Amount:
    return Amount(dim * positions)


def attention_linear(dim: int, tokens: int, qkv_bias: bool | str = True) -> Amount:
    """q, k, v and the projection: 4 E^2 + 4 E and 4 E^2 P. All heads together."""
    biases = {True: 3, "qv": 2, False: 0}[qkv_bias] * dim
    qkv = linear(dim, 3 * dim, tokens, bias=False) + Amount(biases)
    return qkv + linear(dim, dim, tokens)


def attention_products(dim: int, tokens: int, group: tuple[int, int]) -> Amount:
    """q k and attention v, of each token with the N of its group: 2 N E P. All heads together."""
    return Amount(macs=2 * math.prod(group) * dim * tokens)


def relative_positions(
    dim: int, num_heads: int, tokens: int, group: tuple[int, int], table: tuple[int, int]
) -> Amount:
    """Decomposed relative positions: (2 h' - 1 + 2 w' - 1) D and (h + w) E P.

    Args:
        group: (h, w), rows and columns of a group.
        table: (h', w'), those that the tables are for.
    """
    rows = sum(2 * length - 1 for length in table)
    return Amount(rows * (dim // num_heads), sum(group) * dim * tokens)


def mlp(dim: int, tokens: int, mlp_ratio: float = 4.0) -> Amount:
    """With ratio 4: 8 E^2 + 5 E and 8 E^2 T."""
    return _mlp("mlp", dim, tokens, mlp_ratio)


def swiglu(dim: int, tokens: int, hidden: int, inner_norm: bool = False) -> Amount:
    """Two maps to the gate and one back: 3 E hidden + 2 hidden + E, and 3 E hidden T."""
    layers = linear(dim, hidden, tokens) * 2 + linear(hidden, dim, tokens)
    return layers + norm(hidden) if inner_norm else layers


def _mlp(word: str, dim: int, tokens: int, mlp_ratio: float) -> Amount:
    """By its word. Raises KeyError for one of the user's own."""
    _, own = read_word(MLPS, "mlp", word)
    hidden = own.get("hidden", int(dim * mlp_ratio))
    if {"mlp": False, "swiglu": True}[name_of(word)]:
        return swiglu(dim, tokens, hidden, own.get("norm", False))
    return linear(dim, hidden, tokens) + linear(hidden, dim, tokens)


def residual_conv_block(kind: str, dim: int, tokens: int) -> Amount:
    """A residual conv block, by its word: weights are also the MACs of each token."""
    half = dim // 2
    weights, norms = {
        "naive": (9 * dim**2, norm(dim)),
        "basic": (18 * dim**2, norm(dim) * 2),
        "bottleneck": (2 * dim * half + 9 * half**2, norm(half) * 2 + norm(dim)),
    }[kind]
    return Amount(weights, weights * tokens) + norms


def encoder(
    embed_dim: int,
    depth: int,
    num_heads: int,
    *,
    propagation: str = "global",
    count: int | str | None = None,
    conv_block: str = "bottleneck",
    use_rel_pos: bool = False,
    patch_size: int = 16,
    window_size: int = 14,
    img_size: int = 1024,
    mlp_ratio: float = 4.0,
    pretrain_img_size: int = 224,
    pretrain_use_cls_token: bool = True,
    stem: str = "patchify",
    pre_norm: bool = False,
    out_chans: int | None = None,
    positions: str = "learned",
    positions_resize: str = "bicubic",
    mlp: str = "mlp",
    qkv_bias: bool | str = True,
    qk_norm: bool = False,
    layer_scale: float | None = None,
    registers: int = 0,
    block_norm: str = "layer",
    size: tuple[int, int] | None = None,
) -> dict[str, Amount]:
    """Parts of a plain ViT, blocks of a kind together: `total(encoder(...).values())` is its cost.

    Args:
        size: height and width of the image in pixels; None: a square of `img_size`.
        ...: as of `backbones.ViT`; the words of `backbones.SIZES` fit.
    """
    E = embed_dim
    rows, columns = grid(size or (img_size, img_size), patch_size)
    T = rows * columns
    padded = [-(-length // window_size) * window_size for length in (rows, columns)]
    own = {"none": 0, "shifted": depth // 2}.get(propagation, min(4, depth // 2))
    count = {None: own, "all": depth}.get(count, count)
    n_global = count if propagation == "global" else 0
    parts = {"patch embedding": _STEMS[stem](E, patch_size, T)}
    if {"learned", "sincos2d"} & {name_of(word) for word in positions.split("+")}:
        places = (pretrain_img_size // patch_size) ** 2 + pretrain_use_cls_token
        parts["absolute positions"] = absolute_positions(E, places)
    if registers:
        parts["registers"] = Amount(registers * E)
    if pre_norm:
        parts["norm before the blocks"] = norm(E)
    window, img_grid = (window_size, window_size), grid((img_size, img_size), patch_size)
    R = registers  # in windows they see each other alone
    for name, n, tokens, group, table, among in (
        ("window blocks", depth - n_global, math.prod(padded), window, window, R * R),
        ("global blocks", n_global, T, (rows, columns), img_grid, R * (2 * T + R)),
    ):
        block = {
            "norms": norm(E) * 2,
            "attention's linear layers": attention_linear(E, tokens + R, qkv_bias),
            "attention's products": attention_products(E, tokens, group) + Amount(0, 2 * E * among),
            "relative positions": relative_positions(E, num_heads, tokens, group, table),
            "MLP": _mlp(mlp, E, T + R, mlp_ratio),
            "norms of q and k": norm(E // num_heads) * 2,
            "LayerScale": Amount(2 * E),
        }
        if not qk_norm:
            block.pop("norms of q and k")
        if layer_scale is None:
            block.pop("LayerScale")
        if not use_rel_pos:
            block.pop("relative positions")
        parts |= {f"{name}: {part}": amount * n for part, amount in block.items() if n}
    if propagation == "conv":
        parts["conv blocks"] = residual_conv_block(conv_block, E, T) * count
    if out_chans is not None:
        parts["SAM's neck"] = sam_neck(E, out_chans, T)
    return parts


def grid(size: tuple[int, int], patch_size: int = 16) -> tuple[int, int]:
    """Rows and columns of tokens of an image (height, width)."""
    return -(-size[0] // patch_size), -(-size[1] // patch_size)


def sam_params(embed_dim: int, depth: int) -> int:
    """Parameters of SAM's encoder without relative positions and neck: per block 12 E^2 + 13 E;
    4,096 absolute positions, and 3 x 16 x 16 weights and a bias to embed patches, for each of E."""
    return (12 * embed_dim**2 + 13 * embed_dim) * depth + (4096 + 768 + 1) * embed_dim


# ---- Neck and heads ----------------------------------------------------------------------------


def simple_pyramid(
    dim: int,
    grid: tuple[int, int],
    channels: int = 256,
    scale_factors: Sequence[float] = (4.0, 2.0, 1.0, 0.5),
) -> Amount:
    """Deconvs to each level's size, then 1x1 and 3x3 convs, with norms.

    Args:
        dim, grid: channels, rows and columns of the encoder's map.
    """
    T = math.prod(grid)
    parts = []
    for scale in scale_factors:
        width = dim
        if scale == 4.0:
            parts += [conv(dim, dim // 2, 2, T, bias=True), norm(dim // 2)]
            parts += [conv(dim // 2, dim // 4, 2, 4 * T, bias=True)]
            width = dim // 4
        elif scale == 2.0:
            parts += [conv(dim, dim // 2, 2, T, bias=True)]
            width = dim // 2
        positions = math.prod(int(length * scale) for length in grid)
        parts += [conv(width, channels, 1, positions), norm(channels)]
        parts += [conv(channels, channels, 3, positions), norm(channels)]
    return total(parts)


def rpn(positions: int, channels: int = 256, convs: int = 2, anchors: int = 3) -> Amount:
    """3x3 convs, then an objectness and 4 box numbers per anchor, shared by all levels.

    Args:
        positions: of all levels together.
    """
    hidden = conv(channels, channels, 3, positions, bias=True) * convs
    return hidden + linear(channels, 5 * anchors, positions)


def box_head(
    boxes: int = 1000,
    channels: int = 256,
    side: int = 7,
    convs: int = 4,
    hidden: int = 1024,
    classes: int = 80,
    class_agnostic: bool = False,
) -> Amount:
    """3x3 convs with norms on side x side, a linear layer, then classes and boxes. A cascade has
    three, class-agnostic, of all boxes each."""
    positions = boxes * side**2
    convolutions = (conv(channels, channels, 3, positions) + norm(channels)) * convs
    flat = linear(channels * side**2, hidden, boxes)
    scores_and_boxes = classes + 1 + 4 * (1 if class_agnostic else classes)
    return convolutions + flat + linear(hidden, scores_and_boxes, boxes)


def mask_head(
    masks: int = 100, channels: int = 256, side: int = 14, convs: int = 4, classes: int = 80
) -> Amount:
    """3x3 convs with norms on side x side, a deconv to twice that, and a mask per class."""
    positions = masks * side**2
    convolutions = (conv(channels, channels, 3, positions) + norm(channels)) * convs
    deconv = conv(channels, channels, 2, positions, bias=True)
    return convolutions + deconv + linear(channels, classes, 4 * positions)


def mask_rcnn(
    embed_dim: int,
    depth: int,
    num_heads: int,
    *,
    size: tuple[int, int] = (1024, 1024),
    cascade: bool = False,
    patch_size: int = 16,
    **words,
) -> dict[str, Amount]:
    """Parts of the paper's Mask R-CNN or Cascade Mask R-CNN: simple pyramid of p2 to p6, 1,000
    proposals, 100 masks, 80 classes.

    Args:
        size: height and width of the image, multiples of 32 pixels.
        ...: as of `encoder`.
    """
    words = dict(words, patch_size=patch_size, size=size)
    rows, columns = grid(size, patch_size)
    scales = (4, 2, 1, 1 / 2)
    levels = [math.prod(int(length * scale) for length in (rows, columns)) for scale in scales]
    top = -(-rows // 4) * -(-columns // 4)
    return {
        "encoder": total(encoder(embed_dim, depth, num_heads, **words).values()),
        "pyramid": simple_pyramid(embed_dim, (rows, columns), scale_factors=scales),
        "RPN": rpn(sum(levels) + top),
        "box heads": box_head(class_agnostic=True) * 3 if cascade else box_head(),
        "mask head": mask_head(),
    }
