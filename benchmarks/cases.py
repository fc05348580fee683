"""What is measured: cases, and suites of them."""

from dataclasses import dataclass, replace

from backbones import SIZES

# Blocks that propagate, by the words of `build_encoder`.
BLOCKS = {
    "window only": dict(propagation="none"),
    "4 global": dict(propagation="global", count=4),
    "4 conv": dict(propagation="conv", count=4),
    "all global": dict(propagation="global", count="all"),
}
OURS = ("fused", "reference", "compiled")
# On a GPU only: on a CPU "triton" is what "fused" is.
OURS_ON_GPU = ("triton", "blocks compiled")
PEERS = ("detectron2", "transformers", "timm", "segment-anything")


@dataclass(frozen=True)
class Case:
    """One input to one network, computed by several implementations."""

    # "encoder"; "neck", on an encoder's map; "linear", the first layer of an MLP; "detector", a
    # Mask R-CNN.
    module: str = "encoder"
    size: str = "vit-b"
    blocks: str = "4 global"
    tokens: int = 64  # along a side of the map; images are 16 times larger
    dtype: str = "float32"  # or "bfloat16", by autocast
    mode: str = "forward"  # or "train": forward and backward, no optimizer
    rel_pos: bool = True
    implementations: tuple[str, ...] = ("fused", "detectron2")
    rounds: int = 3
    batch: int = 1  # images; `suite` gives a GPU more

    @property
    def warm_up(self) -> bool:
        """Whether each row runs once before it counts. On a CPU the long ones of large inputs do
        not: all rows alike begin cold, and what that costs is small beside them."""
        return self.module in ("neck", "linear") or self.tokens <= 32

    def key(self) -> dict[str, str | int | bool]:
        """What tells this case from another one in a table."""
        names = ("module", "size", "blocks", "tokens", "dtype", "mode", "rel_pos", "batch")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        what = "" if self.module == "encoder" else f" {self.module}"
        positions = "" if self.rel_pos else ", no relative positions"
        return (
            f"{self.size}{what}, {self.blocks}{positions}, {self.tokens} x {self.tokens} tokens, "
            f"{self.dtype}, {self.mode}{f', {self.batch} images' if self.batch > 1 else ''}"
        )

    def words(self) -> dict:
        """`build_encoder`'s words for this case."""
        words = dict(size=self.size, img_size=16 * self.tokens, use_rel_pos=self.rel_pos)
        if self.blocks == "all global" and "rope" in SIZES[self.size].get("positions", ""):
            words["positions"] = "learned+rope(unit=token)"  # not in windows
        return words | BLOCKS[self.blocks]

    def macs(self) -> int | None:
        """The least multiply-accumulates of all images that the function needs, if known.

        Linear layers on real tokens, attention of real tokens to the keys they see, padding among
        them; backward twice the forward. Relative positions (about 0.5 %) and what an
        implementation computes on top do not count.
        """
        dim, depth = SIZES[self.size]["embed_dim"], SIZES[self.size]["depth"]
        tokens = self.tokens**2
        if self.module == "linear":
            return self.batch * tokens * 4 * dim**2 * (3 if self.mode == "train" else 1)
        if self.module != "encoder":
            return None
        propagating = {"window only": 0, "all global": depth}.get(self.blocks, 4)
        globals_ = 0 if self.blocks == "4 conv" else propagating
        keys = globals_ * tokens + (depth - globals_) * 14**2
        macs = 3 * 16**2 * dim * tokens + depth * 12 * dim**2 * tokens + 2 * tokens * keys * dim
        if self.blocks == "4 conv":  # 1x1, 3x3 and 1x1 at half the channels
            macs += 4 * tokens * (dim**2 // 2 + 9 * dim**2 // 4 + dim**2 // 2)
        return self.batch * (3 * macs if self.mode == "train" else macs)


GPU_BATCH = 8
_B = Case()

# Within 15 minutes on 2 CPU cores. Larger inputs and slower peers: `full`.
DEFAULT_CPU = (
    replace(_B, implementations=("fused", *PEERS)),
    replace(_B, tokens=32, implementations=OURS + PEERS),
    replace(_B, tokens=32, mode="train", implementations=("fused", "detectron2", "timm")),
    replace(_B, mode="train", rounds=2),
    replace(_B, dtype="bfloat16"),
    replace(_B, dtype="bfloat16", mode="train", rounds=2),
    replace(_B, blocks="all global", tokens=32),
    replace(_B, blocks="all global", rounds=1),
    replace(_B, blocks="all global", tokens=128, implementations=("fused",), rounds=1),
    replace(_B, module="neck"),
    replace(_B, module="neck", mode="train"),
    replace(_B, module="linear"),
    replace(_B, module="linear", dtype="bfloat16"),
)

DEFAULT_GPU = tuple(
    replace(_B, size=size, mode=mode, dtype=dtype, implementations=implementations, rounds=5)
    for size in ("vit-b", "vit-l", "vit-h")
    for dtype, mode, implementations in (
        ("bfloat16", "forward", OURS + PEERS if size == "vit-b" else (*OURS, "detectron2")),
        ("bfloat16", "train", OURS + PEERS if size == "vit-b" else (*OURS, "detectron2")),
        ("float32", "forward", ("fused", "detectron2")),
    )
) + tuple(
    replace(_B, blocks="all global", tokens=tokens, dtype="bfloat16", mode=mode, rounds=5)
    for tokens in (32, 64, 96, 128)
    for mode in ("forward", "train")
)

# How time and memory grow with the tokens.
GROWTH = tuple(
    replace(_B, blocks=blocks, tokens=tokens, mode=mode, rounds=1)
    for blocks in ("window only", "4 global", "all global")
    for tokens in (32, 64, 96, 128)
    for mode in ("forward", "train")
)

# Table 3 of the paper: ViT-L, no relative positions, training memory and test time.
TABLE_3 = tuple(
    Case("detector", "vit-l", blocks, dtype="bfloat16", mode=mode, rel_pos=False, rounds=1)
    for blocks in ("window only", "4 conv", "4 global", "all global")
    for mode in ("train", "forward")
)

FULL = tuple(
    Case(
        size=size,
        blocks=blocks,
        tokens=tokens,
        dtype=dtype,
        mode=mode,
        implementations=OURS + PEERS,
    )
    for size in ("vit-b", "vit-l")
    for blocks in ("window only", "4 global", "all global")
    for tokens in (32, 64, 96, 128)
    for dtype in ("float32", "bfloat16")
    for mode in ("forward", "train")
)

SUITES = {
    "default": {"cpu": DEFAULT_CPU, "cuda": DEFAULT_GPU},
    "growth": GROWTH,
    "table-3": TABLE_3,
    "full": FULL,
}


def suite(name: str, device: str) -> tuple[Case, ...]:
    """The cases of a suite on "cpu" or "cuda"; on a GPU with a batch that hides launches."""
    cases = SUITES[name]
    cases = cases[device] if isinstance(cases, dict) else cases
    batch = GPU_BATCH if device == "cuda" else 1
    return tuple(replace(case, batch=batch) for case in cases)
