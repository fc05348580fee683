"""ConvNeXt (arXiv:2201.03545) as a detection backbone: torchvision's network, a map of each
stage."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.convnext import ConvNeXt as Network

from .arguments import number, whole_number
from .norms import LayerNorm2d


class ConvNeXt(Backbone):
    """Maps p0, p1, ... of strides 4, 8, ... behind the stages, each normed as those of detectron2's
    Swin are.

    Args:
        embed_dim: channels of the first stage; each other one has twice those of the one before.
        depths: blocks of each stage.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        layer_scale: value that the learned factor of each channel of a block starts from.
        out_indices: stages whose maps are put out; None: all.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """

    def __init__(
        self,
        embed_dim: int = 96,
        depths: Sequence[int] = (3, 3, 9, 3),
        drop_path_rate: float = 0.0,
        layer_scale: float = 1e-6,
        out_indices: Sequence[int] | None = None,
    ):
        super().__init__()
        whole_number("embed_dim", embed_dim, least=1)
        for blocks in depths:
            whole_number("depths", blocks, least=1)
        if sum(depths) < 2:
            raise ValueError(f"depths={tuple(depths)} do not fit: two blocks or more do")
        number("drop_path_rate", drop_path_rate, least=0, below=1)
        number("layer_scale", layer_scale, least=0)
        self._out_indices = list(range(len(depths)) if out_indices is None else out_indices)
        if not self._out_indices or not set(self._out_indices) <= set(range(len(depths))):
            raise ValueError(
                f"out_indices={out_indices!r} do not fit: some of 0..{len(depths) - 1} do"
            )
        dims = [embed_dim * 2**stage for stage in range(len(depths))]
        stages = [
            CNBlockConfig(dim, following, blocks)
            for dim, following, blocks in zip(dims, [*dims[1:], None], depths, strict=True)
        ]
        self.features = Network(stages, drop_path_rate, layer_scale, num_classes=1).features
        self._out_features = [f"p{stage}" for stage in self._out_indices]
        self._out_feature_channels = {f"p{stage}": dims[stage] for stage in self._out_indices}
        self._out_feature_strides = {f"p{stage}": 4 * 2**stage for stage in self._out_indices}
        for stage in self._out_indices:
            self.add_module(f"norm{stage}", LayerNorm2d(dims[stage]))

    @property
    def size_divisibility(self) -> int:
        return 4 * 2 ** max(self._out_indices)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {"p0": (B, embed_dim, H / 4, W / 4), "p1": ..., ...}."""
        maps = {}
        for stage in range(len(self.features) // 2):
            # The stem, or a reduction; then the stage's blocks.
            x = self.features[2 * stage + 1](self.features[2 * stage](x))
            if stage in self._out_indices:
                maps[f"p{stage}"] = getattr(self, f"norm{stage}")(x)
        return maps


@BACKBONE_REGISTRY.register()
def build_convnext_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ConvNeXt:
    """Of `cfg.MODEL.CONVNEXT`, EMBED_DIM, DEPTHS, ..., as far as that is there."""
    if input_shape.channels != 3:
        raise ValueError(f"{input_shape.channels} image channels do not fit: torchvision's has 3")
    return ConvNeXt(**{k.lower(): v for k, v in cfg.MODEL.get("CONVNEXT", {}).items()})
