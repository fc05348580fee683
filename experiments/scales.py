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
        shortened: whether runs see a share of the paper's images for fewer epochs: of its AP only
            the order compares.
        gpus, budget: that a study is planned for where nothing else is said; 0: what the machine
            has; "": no budget.
    """

    size: str
    seeds: int
    images: dict[str, tuple[int, int]]
    embedded: bool = False
    shortened: bool = False
    gpus: int = 0
    budget: str = ""


SCALES = {
    "mini": Scale("vit-mini", 3, dict(coco=_MINI, lvis=_MINI), embedded=True),
    "small": Scale("vit-s", 3, dict(coco=_COCO, lvis=_LVIS), shortened=True, gpus=1, budget="24h"),
    "coco": Scale("vit-b", 1, dict(coco=_COCO, lvis=_LVIS)),
}
