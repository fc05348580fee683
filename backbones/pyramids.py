"""Necks: from the encoder's maps of one scale to the levels a detector reads.

The designs that Table 1 of arXiv:2203.16527 compares (section 4.1, Figure 2), and the average
pooling of that section's text.
"""

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from .arguments import whole_number
from .norms import norm_layer
from .registries import PYRAMIDS, choose


class FeaturePyramid(Backbone):
    """What the necks share: constructor words, the levels' names, padding and top block. A neck
    overrides `add_layers` and `pyramid`.

    `size_divisibility` tells detectron2 what the levels need (its own neck on a ViT does not, its
    issue 4676), and an image that does not fit is padded with zeros here, so that levels always
    align.

    Args:
        net: encoder.
        in_feature: name of the encoder's last map.
        out_channels: channels of every level.
        scale_factors: level size over map size, large to small, of 4, 2, 1 and 0.5.
        top_block: adds levels on top, e.g. detectron2's `LastLevelMaxPool`; or None.
        norm: detectron2's word for a norm; with "" the convs have a bias instead.
        square_pad: if > 0, detectron2 pads training and test images to this square.

    Raises:
        ValueError: for a map that the encoder does not have, a scale factor outside those, strides
            that are not consecutive, or a top block that does not read the last level.
    """

    # True: one level from each of the encoder's maps up to `in_feature`, early ones for large
    # levels. False: all levels from `in_feature`.
    reads_stages = False

    def __init__(
        self,
        net: Backbone,
        in_feature: str,
        out_channels: int,
        scale_factors: Sequence[float],
        top_block: nn.Module | None = None,
        norm: str = "LN",
        square_pad: int = 0,
    ):
        super().__init__()
        maps = net.output_shape()
        choose("in_feature", in_feature, maps)
        whole_number("out_channels", out_channels, least=1)
        self._in_features = [in_feature] * len(scale_factors)
        if self.reads_stages:
            self._in_features = list(maps)[: list(maps).index(in_feature) + 1]
            if len(self._in_features) != len(scale_factors):
                raise ValueError(
                    f"scale_factors={tuple(scale_factors)} do not fit an encoder of "
                    f"stages={len(self._in_features)}: build it with stages={len(scale_factors)}"
                )
        source = maps[in_feature]
        strides = [int(source.stride / scale) for scale in scale_factors]
        if not strides or any(b != 2 * a for a, b in itertools.pairwise(strides)):
            raise ValueError(
                f"scale_factors={tuple(scale_factors)} do not fit: each must be half the one before"
            )
        self.net = net
        self.in_feature = in_feature
        self.top_block = top_block
        self.square_pad = square_pad
        self._numbers = [int(math.log2(stride)) for stride in strides]
        self._levels = [f"p{number}" for number in self._numbers]
        self.add_layers(source.channels, out_channels, scale_factors, norm)
        if top_block is not None and top_block.in_feature not in (*maps, self._levels[-1]):
            raise ValueError(
                f"top_block={type(top_block).__name__} does not fit: it reads "
                f"{top_block.in_feature}, the last level is {self._levels[-1]}; "
                "leave it out (top_block='none' of build_backbone)"
            )

        self._out_feature_strides = dict(zip(self._levels, strides, strict=True))
        for _ in range(top_block.num_levels if top_block is not None else 0):
            stride = 2 * max(self._out_feature_strides.values())
            self._out_feature_strides[f"p{int(math.log2(stride))}"] = stride
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = max(source.stride, *strides)

    @abstractmethod
    def add_layers(
        self, dim: int, out_channels: int, scale_factors: Sequence[float], norm: str
    ) -> None:
        """Add this neck's modules, for maps of `dim` channels; other words as of the class."""

    @abstractmethod
    def pyramid(self, maps: list[Tensor]) -> list[Tensor]:
        """The map that each level is made from, (B, dim, h, w), to the levels, large to small."""

    @property
    def size_divisibility(self) -> int:
        """Pixels that image height and width must be a multiple of for levels to align."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """How detectron2 pads a batch of images."""
        return {"size_divisibility": self._size_divisibility, "square_size": self.square_pad}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images to levels.

        Args:
            x: (B, 3, H, W).

        Returns:
            {"p2": (B, out_channels, H' / 4, W' / 4), ...}, large to small; H' and W' are H and W
            rounded up to `size_divisibility`.
        """
        H, W = x.shape[-2:]
        if H % self._size_divisibility or W % self._size_divisibility:
            x = F.pad(x, (0, -W % self._size_divisibility, 0, -H % self._size_divisibility))
        features = self.net(x)
        pyramid = self.pyramid([features[f] for f in self._in_features])
        levels = dict(zip(self._levels, pyramid, strict=True))
        if self.top_block is not None:
            source = (features | levels)[self.top_block.in_feature]
            extra = self._out_features[len(levels) :]
            levels |= zip(extra, self.top_block(source), strict=True)
        return levels


@PYRAMIDS.register("simple")
class SimpleFeaturePyramid(FeaturePyramid):
    """Every level from the encoder's last map alone (section 3, Figure 2c, appendix A.2).

    Constructor words, state-dict keys and outputs are those of detectron2's class of this name.

    Args, Raises: as of `FeaturePyramid`.
    """

    def add_layers(
        self, dim: int, out_channels: int, scale_factors: Sequence[float], norm: str
    ) -> None:
        for number, scale in zip(self._numbers, scale_factors, strict=True):
            resize, channels = _resize(dim, scale, norm)
            project = _project(channels, out_channels, norm)
            self.add_module(f"simfp_{number}", nn.Sequential(*resize, *project))

    def pyramid(self, maps: list[Tensor]) -> list[Tensor]:
        return [
            self.get_submodule(f"simfp_{number}")(x)
            for number, x in zip(self._numbers, maps, strict=True)
        ]


@PYRAMIDS.register("none")
class NoPyramid(SimpleFeaturePyramid):
    """One level, the encoder's last map at its own scale ("no feature pyramid" in Table 1).

    RPN and RoI heads read the same level (section 4.1). The paper does not say how the map gets the
    heads' channels: here as a level of the simple pyramid does, by its 1x1 and 3x3 convs.

    Args:
        net, in_feature, out_channels, **words: as of `FeaturePyramid`.
        scale_factors: says nothing here.

    Raises:
        ValueError: as of `FeaturePyramid`.
    """

    def __init__(
        self,
        net: Backbone,
        in_feature: str,
        out_channels: int,
        scale_factors: Sequence[float] = (1.0,),
        **words: Any,
    ):
        super().__init__(net, in_feature, out_channels, (1.0,), **words)


@PYRAMIDS.register("avg_pool")
class AvgPoolPyramid(FeaturePyramid):
    """The finest level's map by deconvolutions, the others by strided average pooling of it, with
    "no unshared, per-scale parameters" (section 4.1, text).

    The paper leaves open where the 1x1 and 3x3 convs stand and how large the pooling window is.
    Here the deconvolutions are those of the simple pyramid's finest level; the window is the
    stride, 2, 4 and 8; and each level, pooled, goes through the same convs with the same weights.

    Args, Raises: as of `FeaturePyramid`.
    """

    def add_layers(
        self, dim: int, out_channels: int, scale_factors: Sequence[float], norm: str
    ) -> None:
        resize, channels = _resize(dim, scale_factors[0], norm)
        self.finest = nn.Sequential(*resize)
        self.project = nn.Sequential(*_project(channels, out_channels, norm))

    def pyramid(self, maps: list[Tensor]) -> list[Tensor]:
        finest = self.finest(maps[0])
        coarser = [F.avg_pool2d(finest, 2**i) for i in range(1, len(maps))]
        return [self.project(x) for x in (finest, *coarser)]


@PYRAMIDS.register("fpn_last_map")
class LastMapFPN(FeaturePyramid):
    """FPN (arXiv:1612.03144) on maps of all scales made from the encoder's last (Figure 2b).

    The scales come about as in the simple pyramid, then follow FPN's lateral 1x1 convs, top-down
    additions of nearest neighbors and 3x3 output convs, named and initialized as in detectron2's
    `FPN`. The paper says only that "strided convolutions/deconvolutions are used whenever the scale
    changes", and does not give the channels of the resized maps: those of the simple pyramid here.

    Args, Raises: as of `FeaturePyramid`.
    """

    def add_layers(
        self, dim: int, out_channels: int, scale_factors: Sequence[float], norm: str
    ) -> None:
        for number, scale in zip(self._numbers, scale_factors, strict=True):
            resize, channels = _resize(dim, scale, norm)
            lateral, output = _project(channels, out_channels, norm)
            weight_init.c2_xavier_fill(lateral)
            weight_init.c2_xavier_fill(output)
            self.add_module(f"fpn_resize{number}", nn.Sequential(*resize))
            self.add_module(f"fpn_lateral{number}", lateral)
            self.add_module(f"fpn_output{number}", output)

    def pyramid(self, maps: list[Tensor]) -> list[Tensor]:
        levels = []
        merged = None
        for number, x in zip(reversed(self._numbers), reversed(maps), strict=True):
            x = self.get_submodule(f"fpn_resize{number}")(x)
            x = self.get_submodule(f"fpn_lateral{number}")(x)
            if merged is not None:
                x = x + F.interpolate(merged, scale_factor=2.0, mode="nearest")
            merged = x
            levels.append(self.get_submodule(f"fpn_output{number}")(merged))
        return levels[::-1]


@PYRAMIDS.register("fpn_4stage")
class StageFPN(LastMapFPN):
    """FPN on the maps at the ends of the encoder's stages, early ones for fine levels (Figure 2a).

    As many stages as levels, four in the paper: the encoder is built with
    ``stages=len(scale_factors)``.

    Args, Raises: as of `LastMapFPN`.
    """

    reads_stages = True


def _resize(dim: int, scale: float, norm: str) -> tuple[list[nn.Module], int]:
    """Layers that change the scale of a map of `dim` channels (appendix A.2), and the channels that
    they leave."""
    if scale == 4.0:
        layers = [
            nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2),
            norm_layer(norm, dim // 2) or nn.Identity(),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, kernel_size=2, stride=2),
        ]
        return layers, dim // 4
    if scale == 2.0:
        return [nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2)], dim // 2
    if scale == 1.0:
        return [], dim
    if scale == 0.5:
        return [nn.MaxPool2d(kernel_size=2, stride=2)], dim
    raise ValueError(f"scale_factors: {scale} is unknown, allowed are 4.0, 2.0, 1.0, 0.5")


def _project(dim: int, out_channels: int, norm: str) -> tuple[Conv2d, Conv2d]:
    """1x1 conv to a level's channels, 3x3 conv, each with its norm (appendix A.2)."""
    bias = norm == ""
    return (
        Conv2d(dim, out_channels, 1, bias=bias, norm=norm_layer(norm, out_channels)),
        Conv2d(
            out_channels, out_channels, 3, padding=1, bias=bias, norm=norm_layer(norm, out_channels)
        ),
    )
