"""A table of today's encoders, which the paper has not: what they cost, as printed and here."""

from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from backbones import SIZES, build_encoder
from backbones.meta import on_meta
from experiments.costs.detector_cost import Cost, count

from . import paper
from .paper_tables import provenance
from .text import grid, number

_SIDE = 1024  # pixels
_NOTE = """\
Encoders of docs/encoder.md, counted on one image of 1024 x 1024 px (docs/cost.md), patches of 16
px: with windows of their size and 4 global blocks evenly, as in ViTDet, and with all blocks
global. "as printed" are the parameters that their authors print, of the encoder with its class
token and the norm behind the last block, PE's with attention pooling, DINOv2's without positions;
"ours" is how far this suite's encoder, which has none of these, is from that, where more than one
digit is printed. The last column are the best published box / mask AP on COCO val2017 at 1024 px,
of a detector of their authors.
"""


def table() -> pd.DataFrame:
    """One line per named size of an encoder of today, and ViTDet's to compare with: size, params,
    macs (windows), macs_global (all blocks global), params_as_printed, ratio, ap_box, ap_mask and
    their sources."""
    printed = paper.load("todays_encoders").set_index("size")
    models = paper.load("todays_models").query("dataset == 'COCO' and image_size == 1024")
    best = models.sort_values("ap_box").groupby("encoder").last()
    lines = []
    for size in ("vit-b", "vit-l", "vit-h", *(s for s in SIZES if "vit-" not in s)):
        costs = [_encoder_cost(size, **words) for words in ({}, _all_global(size))]
        line = dict(size=size, params=costs[0].params, macs=costs[0].macs)
        line |= dict(macs_global=costs[1].macs)
        if size in printed.index:
            millions = printed.at[size, "params_m"]
            line |= dict(params_as_printed=millions * 1e6, source=printed.at[size, "source"])
            if len(f"{millions:.0f}".rstrip("0")) > 1:  # of one digit it says nothing
                line["ratio"] = line["params"] / line["params_as_printed"]
        if size in best.index:
            line |= best.loc[size, ["ap_box", "ap_mask"]].to_dict()
            line["ap_source"] = f"{best.at[size, 'name']}, {best.at[size, 'source']}"
        lines.append(line)
    return pd.DataFrame(lines)


def _all_global(size: str) -> dict:
    """Rotary positions of windows are the map's where there are no windows."""
    words = SIZES[size].get("positions", "learned")
    return dict(count="all", positions=words.replace("coordinates=window", "coordinates=map"))


def _encoder_cost(size: str, **words) -> Cost:
    with on_meta():
        encoder = build_encoder(size, img_size=_SIDE, **words)
    return count(encoder, torch.zeros(1, 3, _SIDE, _SIDE, device="meta"))[""]


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text cells, units in the headers."""
    return pd.DataFrame(
        {
            "size": r["size"],
            "params M": number(r["params"], ",.2f", 1e6),
            "as printed": number(r["params_as_printed"], ",.0f", 1e6),
            "ours": number(r["ratio"] - 1, "+.1%"),
            "GMACs, windows": number(r["macs"], ",.1f", 1e9),
            "GMACs, all global": number(r["macs_global"], ",.1f", 1e9),
            "AP of its detector": " / ".join(
                f"{r[k]:.1f}" for k in ("ap_box", "ap_mask") if not pd.isna(r[k])
            ),
        }
        for _, r in table.iterrows()
    )


def write(table: pd.DataFrame, folder: Path) -> list[Path]:
    """todays-encoders.csv (everything, tidy) and todays-encoders.md."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"todays-encoders.{suffix}" for suffix in ("csv", "md")]
    table.to_csv(files[0], index=False)
    sources = dict.fromkeys([*table["source"].dropna(), *table["ap_source"].dropna()])
    lines = [
        "# Encoders of today",
        "",
        _NOTE,
        grid(cells(table), "pipe"),
    ]
    lines += ["", *(f"- {source}" for source in sources), *(f"- {p}" for p in provenance()), ""]
    files[1].write_text("\n".join(lines))
    return files


def show(table: pd.DataFrame, console: Console) -> None:
    """Print the table."""
    console.print(f"Encoders of today\n{grid(cells(table))}\n", highlight=False)
