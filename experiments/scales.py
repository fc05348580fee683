"""The scales, and what is the same there for all studies: one table, which every room reads."""

from dataclasses import dataclass

# Images to train on and to validate on. Facts of the sets, so that planning needs none of them.
_MINI, _COCO, _LVIS = (1_200, 300), (118_287, 5_000), (100_170, 19_809)


@dataclass(frozen=True)
class Scale:
    """Where a study runs.

    Args:
        size: default model size.
        seeds: default number of seeds.
        images: of its sets "coco" and "lvis", to train on and to validate on; of `small` those
            that it takes a share of.
        embedded: whether the suite makes its images, and minutes on a CPU are enough.
    """

    size: str
    seeds: int
    images: dict[str, tuple[int, int]]
    embedded: bool = False


SCALES = {
    "mini": Scale("vit-mini", 3, dict(coco=_MINI, lvis=_MINI), embedded=True),
    "small": Scale("vit-s", 3, dict(coco=_COCO, lvis=_LVIS)),
    "coco": Scale("vit-b", 1, dict(coco=_COCO, lvis=_LVIS)),
}
