"""Pre-trained weights by word and model size: public files, where they are published and where they
are looked for, and those that come with the suite. Nothing is downloaded."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..registries import choose
from .contents import WeightsError

RANDOM = "none"  # the word for weights that are not pre-trained
FOLDER = "weights"  # in the working directory
VARIABLE = "DETECTRON2_WEIGHTS"  # another folder
SHIPPED = Path(__file__).with_name("shipped")  # files that come with the suite

_MAE = "https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_{}.pth"
_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/{}"
_DEIT = "https://dl.fbaipublicfiles.com/deit/deit_{}.pth"
_TORCHVISION = "https://download.pytorch.org/models/vit_{}.pth"
_GOOGLE = "https://huggingface.co/google/vit-{}-224-in21k/resolve/main/pytorch_model.bin"
_SWIN = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_{}.pth"
_MVIT = _DETECTRON2.format("mvitv2/MViTv2_{}.pyth")
_MVIT_L_IN1K = "https://dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_L_in1k.pyth"
_SAM = "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_{}.pth"
_DINOV2 = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vit{0}14/dinov2_vit{0}14_{1}.pth"
_DINOV3 = "https://huggingface.co/facebook/dinov3-vit{}16-pretrain-lvd1689m"
_DINOV3_CONVNEXT = "https://huggingface.co/facebook/dinov3-convnext-{}-pretrain-lvd1689m"
_EVA02 = "https://huggingface.co/Yuxin-CV/EVA-02/resolve/main/eva02/pt/eva02_{}_p14to16.pt"
_PE = "https://huggingface.co/facebook/{0}/resolve/main/{0}.pt"
_SAM3 = "https://huggingface.co/facebook/sam3/resolve/main/sam3.pt"
_LAION = "https://huggingface.co/laion/CLIP-ViT-{}/resolve/main/open_clip_pytorch_model.bin"

# Config keys for what the weights expect: a norm before the blocks; pixels by another mean and
# deviation than ImageNet's.
_REL_POS = "with `model.backbone.use_rel_pos=true`; positions are resized to 14 x 14"
_NORM = "`model.backbone.pre_norm=true`"
_UNIT = "`model.pixel_mean=[127.5,127.5,127.5]` `model.pixel_std=[127.5,127.5,127.5]`"
_OPENAI = "`model.pixel_mean=[122.77,116.75,104.09]` `model.pixel_std=[68.50,66.63,70.32]`"
_OTHER_MVIT = "of another network than detectron2's MViT, and refused"


@dataclass(frozen=True)
class Source:
    """A file of weights.

    Args:
        word: the pre-training: its method and its data.
        size: model size, as configs and `build_encoder` name it.
        address: where the authors of the weights publish it; "": in `SHIPPED`.
        format: word of `FORMATS`.
        note: what the words do not say, e.g. config keys that the weights want.
        saved_as: name to keep it under, where the address ends in one that says nothing.
    """

    word: str
    size: str
    address: str
    format: str
    note: str = ""
    saved_as: str = ""

    @property
    def file(self) -> str:
        """The name that it is looked for under."""
        return self.saved_as or self.address.rpartition("/")[2]


SOURCES = (
    Source("mae_in1k", "vit-b", _MAE.format("base"), "timm"),
    Source("mae_in1k", "vit-l", _MAE.format("large"), "timm"),
    Source(
        "mae_in1k",
        "vit-h",
        _DETECTRON2.format("MAE/mae_pretrain_vit_huge_p14to16.pth"),
        "timm",
        note="14 px patches resized by detectron2's authors; MAE's own, "
        f"{_MAE.format('huge')}, loads as a path and is resized here",
    ),
    Source("sup_in1k", "vit-ti", _DEIT.format("tiny_patch16_224-a1311bcf"), "timm"),
    Source("sup_in1k", "vit-s", _DEIT.format("small_patch16_224-cd65a155"), "timm"),
    Source("sup_in1k", "vit-b", _TORCHVISION.format("b_16-c867db91"), "torchvision"),
    Source("sup_in1k", "vit-l", _TORCHVISION.format("l_16-852ce7e3"), "torchvision"),
    Source("sup_in1k", "swin-b", _SWIN.format("base_patch4_window7_224"), "swin"),
    Source("sup_in1k", "mvitv2-b", _MVIT.format("B_in1k"), "mvitv2"),
    Source("sup_in1k", "mvitv2-l", _MVIT_L_IN1K, "mvitv2", note=_OTHER_MVIT),
    *(
        Source(
            "sup_in21k",
            size,
            _GOOGLE.format(name),
            "hf-vit",
            saved_as=f"vit-{name}-224-in21k.bin",
            note=f"with {_UNIT}",
        )
        for size, name in (
            ("vit-b", "base-patch16"),
            ("vit-l", "large-patch16"),
            ("vit-h", "huge-patch14"),
        )
    ),
    Source("sup_in21k", "swin-b", _SWIN.format("base_patch4_window7_224_22k"), "swin"),
    Source("sup_in21k", "swin-l", _SWIN.format("large_patch4_window7_224_22k"), "swin"),
    Source("sup_in21k", "mvitv2-b", _MVIT.format("B_in21k"), "mvitv2"),
    Source(
        "sup_in21k",
        "mvitv2-l",
        _MVIT.format("L_in21k"),
        "mvitv2",
        note="named by detectron2's released config; facebookresearch/mvit's own of this name is "
        + _OTHER_MVIT,
    ),
    Source("sup_in21k", "mvitv2-h", _MVIT.format("H_in21k"), "mvitv2"),
    *(
        Source("sam_sa1b", f"{family}-{letter}", _SAM.format(file), "sam", note=note)
        for family, note in (("sam-vit", ""), ("vit", _REL_POS))
        for letter, file in (("b", "b_01ec64"), ("l", "l_0b3195"), ("h", "h_4b8939"))
    ),
    *(
        Source(word, f"{family}-{letter}", _DINOV2.format(letter, file), "timm")
        for word, file in (("dinov2_lvd142m", "pretrain"), ("dinov2reg_lvd142m", "reg4_pretrain"))
        for family, letters in (("vit", "sbl"), ("dinov2", "sblg"))
        for letter in letters
    ),
    *(
        Source(
            "dinov3_lvd1689m",
            f"dinov3-{size}",
            f"{_DINOV3.format(name)}/resolve/main/model.safetensors",
            "hf-dinov3",
            saved_as=f"dinov3-vit{name}16.safetensors",
            note="behind its authors' form",
        )
        for size, name in (("s", "s"), ("s+", "splus"), ("b", "b"), ("l", "l"), ("h+", "hplus"))
    ),
    *(
        Source(
            "dinov3_lvd1689m",
            f"convnext-{name[0]}",
            f"{_DINOV3_CONVNEXT.format(name)}/resolve/main/model.safetensors",
            "convnext",
            saved_as=f"dinov3-convnext-{name}.safetensors",
            note="behind its authors' form",
        )
        for name in ("tiny", "small", "base", "large")
    ),
    Source("eva02_in21k", "eva02-b", _EVA02.format("B_pt_in21k"), "eva02"),
    Source("eva02_in21k", "eva02-l", _EVA02.format("L_pt_in21k"), "eva02"),
    Source("eva02_m38m", "eva02-l", _EVA02.format("L_pt_m38m"), "eva02"),
    *(
        Source(f"pe_{kind.lower()}", f"pe-{kind.lower()}-{size}", _PE.format(name), "pe")
        for kind, size, name in (
            ("Core", "ti", "PE-Core-T16-384"),
            ("Core", "s", "PE-Core-S16-384"),
            ("Core", "b", "PE-Core-B16-224"),
            ("Core", "l", "PE-Core-L14-336"),
            ("Core", "g", "PE-Core-G14-448"),
            ("Spatial", "ti", "PE-Spatial-T16-512"),
            ("Spatial", "s", "PE-Spatial-S16-512"),
            ("Spatial", "b", "PE-Spatial-B16-512"),
            ("Spatial", "l", "PE-Spatial-L14-448"),
            ("Spatial", "g", "PE-Spatial-G14-448"),
        )
    ),
    Source("sam3_saco", "sam3", _SAM3, "sam3", note=f"behind its authors' form; with {_UNIT}"),
    *(
        Source(
            "clip_laion2b",
            size,
            _LAION.format(name),
            "openclip",
            saved_as=f"CLIP-ViT-{name}.bin",
            note=f"with {_NORM} {pixels}",
        )
        for size, name, pixels in (
            ("vit-b", "B-16-laion2B-s34B-b88K", _OPENAI),
            ("vit-l", "L-14-laion2B-s32B-b82K", _UNIT),
            ("vit-h", "H-14-laion2B-s32B-b79K", _OPENAI),
        )
    ),
    Source(
        "windows_mini",
        "vit-mini",
        "",
        "detectron2",
        saved_as="vit-mini_windows.safetensors",
        note="comes with the suite, `make mini-weights` makes it again ([mini.md](mini.md))",
    ),
)


def source(word: str, size: str) -> Source | None:
    """What a word means for a model size; None for `RANDOM` and for paths.

    Args:
        word: of `SOURCES`, or `RANDOM`; or a path, which has a "/" or a "." or exists.
        size: of `SOURCES`; not read with a path.

    Raises:
        WeightsError: an unknown word, or one without weights of that size.
    """
    sizes = {s.size: s for s in SOURCES if s.word == word}
    if word == RANDOM or (not sizes and _is_path(word)):
        return None
    if not word:
        raise WeightsError(f"'' names no weights: {RANDOM!r} is the word for random ones")
    if not sizes:
        try:
            choose("weights", word, [RANDOM, *dict.fromkeys(s.word for s in SOURCES)])
        except ValueError as error:
            raise WeightsError(f"{error}, or the path of a file") from None
    if size not in sizes:
        others = ", ".join(s.word for s in SOURCES if s.size == size)
        raise WeightsError(
            f"no weights {word!r} are known for {size or 'a model of this size'}, only for "
            f"{', '.join(sizes)}" + (f"; for {size} there are {others}" if others else "")
        )
    return sizes[size]


def find(word: str, size: str = "") -> Path | None:
    """The file of a word, in `weights/` or `$DETECTRON2_WEIGHTS`, or at a path; None for `RANDOM`.

    Args:
        word, size: as of `source`.

    Raises:
        WeightsError: as of `source`.
        FileNotFoundError: it is not there; says what to download and where to put it.
    """
    known = source(word, size)
    if word == RANDOM:
        return None
    here, elsewhere = Path(FOLDER), os.environ.get(VARIABLE)
    name = known.file if known else word
    folders = [Path()] if known is None else []
    if known and not known.address:
        folders = [SHIPPED]
    elif Path(name).name == name:
        folders += [here, Path(elsewhere)] if elsewhere else [here]
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    if known is None:
        raise FileNotFoundError(f"no weights at {Path(word).absolute()}")
    if not known.address:
        raise FileNotFoundError(f"no {name} in {SHIPPED}, with which it comes: {known.note}")
    raise FileNotFoundError(
        f"no weights {word} of {size}: save {known.address} as {(here / name).absolute()}, "
        f"or in ${VARIABLE} ({elsewhere or 'not set'})" + f"; {known.note}" * bool(known.note)
    )


def _is_path(word: str) -> bool:
    return bool(word) and ("/" in word or "." in word or Path(word).exists())


def table() -> str:
    """`SOURCES` as a table in Markdown."""
    lines = ["| word | size | file | format | note |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| `{s.word}` | {s.size} | {_link(s)} | {s.format} | {s.note} |" for s in SOURCES]
    return "\n".join(lines) + "\n"


def _link(source: Source) -> str:
    return f"[{source.file}]({source.address})" if source.address else source.file
