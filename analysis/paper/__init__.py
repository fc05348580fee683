"""The figures of the ViTDet paper (arXiv:2203.16527v2) as data.

results.csv holds Tables 1 to 10, one row per printed row, with the source and how it was confirmed
in the columns `source`, `confirmed_by` and `verified`. Cells that the paper does not print are
empty. recipes.csv holds Table 11, the training recipe of each backbone. These are the paper's
figures, never this suite's.
"""

from functools import cache
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).with_name("results.csv")
RECIPES = Path(__file__).with_name("recipes.csv")


@cache
def published() -> pd.DataFrame:
    """All rows, indexed by "table:row", e.g. "T8a:1": ap_box, ap_mask, model, strategy, ..."""
    frame = pd.read_csv(RESULTS, dtype={"row": str})
    return frame.set_index(frame["table"] + ":" + frame["row"])
