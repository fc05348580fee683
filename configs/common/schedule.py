"""Learning rate over training, as a factor of the optimizer's; `where` runs from 0 to 1."""

from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler

# x 0.1 at 8/9 and x 0.01 at 26/27 of training (released configs; the paper says "step-wise").
step = dict(
    decay=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[24, 26], num_updates=27),
    warmup_iters=250,
    warmup_factor=0.001,
)
cosine = dict(
    decay=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_iters=250,
    warmup_factor=0.001,
)
