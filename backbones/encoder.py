"""The encoder as a network of parts: stem, positions, blocks, and what stands around them.

State-dict keys are those of detectron2's `ViT` where it has them, so its checkpoints load strictly.
See partition.py for the shape letters.
"""

from collections.abc import Sequence

import torch
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from .block import Block
from .partition import Partition
from .positions import absolute_positions
from .propagation import EncoderSpec, propagation_blocks
from .recompute import recomputed
from .sequence import TokenSequence, draw_kept
from .unseen import Unseen


class Encoder(Backbone):
    """A plain encoder of built parts; `ViT` builds them from words.

    Args:
        spec: channels, blocks, heads and window that the parts have in common.
        img_size: image side in pixels that they were built for.
        stem: (B, C, H, W) -> (B, ceil(H / patch), ceil(W / patch), dim), with its `patch_size`.
        blocks: `Block`s on that map.
        pos_embed: absolute positions, (1, side * side, dim), one more in front with a cls token's.
        pretrain_use_cls_token: whether that one is there.
        positions_resize: how they fit another map, a word of `RESIZE`.
        norm_pre: a norm in front of the first block.
        neck: on (B, dim, h, w), behind the last block; its channels are `out_chans`.
        stages, out_feature, mask_ratio, registers, use_act_checkpoint: as of `ViT`.

    Raises:
        ValueError: other blocks than `spec` counts, or a neck and `out_chans` without each other.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        img_size: int,
        stem: nn.Module,
        blocks: Sequence[Block],
        pos_embed: nn.Parameter | None = None,
        pretrain_use_cls_token: bool = False,
        positions_resize: str = "bicubic",
        norm_pre: nn.Module | None = None,
        neck: nn.Module | None = None,
        out_chans: int | None = None,
        stages: int = 1,
        out_feature: str = "last_feat",
        mask_ratio: float = 0.0,
        registers: int = 0,
        use_act_checkpoint: bool = False,
    ):
        super().__init__()
        if len(blocks) != spec.depth:
            raise ValueError(f"{len(blocks)} blocks do not fit: spec.depth={spec.depth} of them do")
        if (neck is None) != (out_chans is None):
            raise ValueError(f"out_chans={out_chans} does not fit: it goes with a neck")
        self.spec, self.img_size = spec, img_size
        self.patch_embed, self.pos_embed = stem, pos_embed
        self.pretrain_use_cls_token = pretrain_use_cls_token
        self.positions_resize = positions_resize
        if norm_pre is not None:
            self.norm_pre = norm_pre
        self.blocks = nn.ModuleList(blocks)
        self.mask_ratio, self.registers, self.mask_token = mask_ratio, None, None
        if mask_ratio:
            self.mask_token = nn.Parameter(torch.empty(spec.dim))
            nn.init.normal_(self.mask_token, std=0.02)
        if registers:
            self.registers = nn.Parameter(torch.empty(1, registers, spec.dim))
            nn.init.normal_(self.registers, std=0.02)
        if self.blocks[0].attn.rope is not None or positions_resize != "bicubic":
            self.unseen = Unseen(self._unseen_words())
        self.use_act_checkpoint = use_act_checkpoint
        if neck is not None:
            self.neck = neck
        self._out_features = [*(f"stage{i}_feat" for i in range(1, stages)), out_feature]
        self._out_feature_channels = dict.fromkeys(self._out_features, spec.dim)
        self._out_feature_channels[out_feature] = out_chans or spec.dim
        self._out_feature_strides = dict.fromkeys(self._out_features, stem.patch_size)
        ends = propagation_blocks(spec.depth, stages, "even")
        self._feature_of_block = dict(zip(ends, self._out_features, strict=True))

    @property
    def plan(self) -> tuple[str, ...]:
        """What each block does, first to last, e.g. ("window", "global", ...)."""
        return tuple(block.word for block in self.blocks)

    def tokens(self, x: Tensor) -> Tensor:
        """What the first block reads: (B, 3, H, W) -> (B, ceil(H / patch), ceil(W / patch), C), the
        stem's tokens with their absolute positions."""
        x_BHWC = self.patch_embed(x)
        if self.pos_embed is not None:
            x_BHWC = x_BHWC + self.absolute_positions(tuple(x_BHWC.shape[1:3]))
        else:
            # What the blocks add to is as precise as with positions, under autocast too.
            x_BHWC = x_BHWC.to(self.blocks[0].attn.proj.weight.dtype)
        x_BHWC = x_BHWC.contiguous()  # stems put channels first in memory
        return self.norm_pre(x_BHWC) if hasattr(self, "norm_pre") else x_BHWC

    def absolute_positions(self, size: tuple[int, int]) -> Tensor:
        """`pos_embed` for a map of `size` rows and columns, (1, H, W, C)."""
        has_cls = self.pretrain_use_cls_token
        return absolute_positions(self.pos_embed, has_cls, size, self.positions_resize)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {"last_feat": (B, embed_dim, ceil(H / patch), ceil(W / patch))}, with
        `out_chans` channels behind SAM's neck; the maps of earlier `stages` come first."""
        x_BHWC = self.tokens(x)
        sequence = self._sequence(x_BHWC)
        if sequence:
            x_BHWC = sequence.from_map(x_BHWC, self.registers)
        turns: dict[Partition, tuple] = {}
        features = {}
        for i, block in enumerate(self.blocks):
            partition = block.attn.partition
            if partition not in turns:
                turns[partition] = block.attn.turns(x_BHWC, sequence)
            inputs = (x_BHWC, sequence, turns[partition])
            if self.use_act_checkpoint and self.training:
                x_BHWC = recomputed(block, *inputs, of=block)
            else:
                x_BHWC = block(*inputs)
            if i in self._feature_of_block:
                map_BHWC = sequence.to_map(x_BHWC, self.mask_token) if sequence else x_BHWC
                features[self._feature_of_block[i]] = map_BHWC.permute(0, 3, 1, 2)
        if hasattr(self, "neck"):
            features[self._out_features[-1]] = self.neck(features[self._out_features[-1]])
        return features

    def _sequence(self, x_BHWC: Tensor) -> TokenSequence | None:
        """How the blocks read the map, if not as it is."""
        masked = self.training and self.mask_ratio > 0
        if not masked and self.registers is None:
            return None
        size = tuple(x_BHWC.shape[1:3])
        kept_HW = draw_kept(size, self.spec.window_size, self.mask_ratio) if masked else None
        registers = 0 if self.registers is None else self.registers.shape[1]
        partitions = [block.attn.partition for block in self.blocks]
        return TokenSequence(size, partitions, registers, kept_HW, x_BHWC.device)

    def _unseen_words(self) -> dict:
        """Of positions that no weight shows: those, and what else it takes to tell."""
        attn = self.blocks[0].attn
        windows: dict[str, list[int]] = {}
        for i, block in enumerate(self.blocks):
            if not block.attn.partition.is_global:
                windows.setdefault(block.attn.partition.word, []).append(i)
        words = dict(
            rope=attn.rope and attn.rope.words,
            positions_resize=self.positions_resize,
            num_heads=attn.num_heads,
            norm_eps=getattr(self.blocks[0].norm1, "eps", None),
            window_size=self.spec.window_size,
            windows=windows,
        )
        return {k: v for k, v in words.items() if v is not None}
