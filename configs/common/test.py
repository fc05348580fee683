"""What is done at test time beside one pass over each image, see `experiments.recipe.test_time`."""

test = dict(
    soft_nms="none",  # or "linear", "gaussian" (arXiv:1704.04503, whose values the next two are)
    soft_nms_iou=0.3,  # linear: overlap from which on scores fall
    soft_nms_sigma=0.5,  # gaussian
    soft_nms_min_score=0.001,  # boxes below are dropped (the authors' code)
    tta_sizes=[],  # short edges of multi-scale testing, pixels; none: one pass
    tta_max_size=1024,  # longest edge of it, pixels
    tta_flip=True,
)
