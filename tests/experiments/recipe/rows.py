"""Rows of a study as configs, with the user's words."""

from experiments import studies
from experiments.recipe import resolved

STUDY = studies.find("global-vs-conv")


def resolve(variant="none", scale="mini", size="vit-mini", seed=0, **overrides):
    words = {key.replace("__", "."): value for key, value in overrides.items()}
    row = next(v for v in STUDY.variants if v.name == variant)
    cfg = resolved.resolve(STUDY, row, scale, size, words)
    cfg.train.seed = seed
    return cfg
