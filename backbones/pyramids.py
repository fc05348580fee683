"""Necks: from the encoder's one map to the levels a detector reads."""

import itertools
import math
from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from .norms import norm_layer
from .registries import PYRAMIDS


@PYRAMIDS.register("simple")
class SimpleFeaturePyramid(Backbone):
    """Every level from the encoder's last map alone (arXiv:2203.16527, section 3, Figure 2c).

    Constructor words, state-dict keys and outputs are those of detectron2's class of this name.
    Unlike there, `size_divisibility` tells detectron2 what the levels need (its issue 4676), and
    an image that does not fit is padded with zeros here, so that levels always align.

    Args:
        net: encoder.
        in_feature: name of the encoder's map.
        out_channels: channels of every level.
        scale_factors: level size over map size, large to small, of 4, 2, 1 and 0.5.
        top_block: adds levels on top, e.g. detectron2's `LastLevelMaxPool`; or None.
        norm: detectron2's word for a norm; with "" the convs have a bias instead.
        square_pad: if > 0, detectron2 pads training and test images to this square.

    Raises:
        ValueError: for a scale factor outside those, or strides that are not consecutive.
    """

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
        source = net.output_shape()[in_feature]
        strides = [int(source.stride / scale) for scale in scale_factors]
        if any(b != 2 * a for a, b in itertools.pairwise(strides)):
            raise ValueError(
                f"scale_factors={tuple(scale_factors)} do not fit: each must be half the one before"
            )
        self.net = net
        self.in_feature = in_feature
        self.top_block = top_block
        self.square_pad = square_pad
        self._levels = {f"p{int(math.log2(s))}": f"simfp_{int(math.log2(s))}" for s in strides}
        for stage, scale in zip(self._levels.values(), scale_factors, strict=True):
            self.add_module(stage, _simple_level(source.channels, scale, out_channels, norm))

        self._out_feature_strides = dict(zip(self._levels, strides, strict=True))
        for _ in range(top_block.num_levels if top_block is not None else 0):
            stride = 2 * max(self._out_feature_strides.values())
            self._out_feature_strides[f"p{int(math.log2(stride))}"] = stride
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = max(source.stride, *strides)

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
        levels = {
            p: self.get_submodule(s)(features[self.in_feature]) for p, s in self._levels.items()
        }
        if self.top_block is not None:
            source = (features | levels)[self.top_block.in_feature]
            extra = self._out_features[len(levels) :]
            levels |= zip(extra, self.top_block(source), strict=True)
        return levels


def _simple_level(dim: int, scale: float, out_channels: int, norm: str) -> nn.Sequential:
    """One level of the simple pyramid (appendix A.2)."""
    if scale == 4.0:
        resize = [
            nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2),
            norm_layer(norm, dim // 2) or nn.Identity(),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, kernel_size=2, stride=2),
        ]
        dim = dim // 4
    elif scale == 2.0:
        resize = [nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2)]
        dim = dim // 2
    elif scale == 1.0:
        resize = []
    elif scale == 0.5:
        resize = [nn.MaxPool2d(kernel_size=2, stride=2)]
    else:
        raise ValueError(f"scale_factors: {scale} is unknown, allowed are 4.0, 2.0, 1.0, 0.5")
    bias = norm == ""
    return nn.Sequential(
        *resize,
        Conv2d(dim, out_channels, 1, bias=bias, norm=norm_layer(norm, out_channels)),
        Conv2d(
            out_channels, out_channels, 3, padding=1, bias=bias, norm=norm_layer(norm, out_channels)
        ),
    )
