"""The tables of docs/cost.md, from the closed formulas."""

from collections.abc import Sequence

import pandas as pd
from tabulate import tabulate

from backbones import SIZES
from experiments.errors import unknown

from .formulas import absolute_positions, encoder, total

PAPER_SIZES = ("vit-b", "vit-l", "vit-h")


def encoder_table(sizes: Sequence[str] = PAPER_SIZES, **words) -> pd.DataFrame:
    """Parts of encoders of named sizes as text cells, with the totals of ViTDet's and of SAM's.

    SAM (arXiv:2304.02643) has 64 x 64 absolute positions and no cls token's; its neck is left out.

    Args:
        sizes: of `backbones.SIZES`.
        **words: of `encoder`, over those of the sizes.

    Raises:
        UserError: an unknown size.
    """
    columns = {}
    for size in sizes:
        if size not in SIZES:
            raise unknown("size", size, SIZES)
        rotary = "rope" in SIZES[size].get("positions", "")
        parts = encoder(**SIZES[size] | dict(use_rel_pos=not rotary) | words)
        sam = parts | {"absolute positions": absolute_positions(SIZES[size]["embed_dim"], 64 * 64)}
        rows = parts | {"encoder": total(parts.values()), "SAM's encoder": total(sam.values())}
        columns[f"{size} params"] = {k: f"{amount.params:,}" for k, amount in rows.items()}
        columns[f"{size} GMACs"] = {k: f"{amount.macs / 1e9:,.3f}" for k, amount in rows.items()}
    return pd.DataFrame(columns).rename_axis("part").reset_index()


def propagation_table(sizes: Sequence[str] = PAPER_SIZES) -> pd.DataFrame:
    """Encoders by their propagation, at their `img_size`, without relative positions, as text
    cells; and what a counter finds that does not know the operator of attention's products."""
    rows = []
    for name, words in (
        ("none", dict(propagation="none")),
        ("4 global", dict(propagation="global", count=4)),
        ("all global", dict(propagation="global")),
        ("4 conv, naive", dict(propagation="conv", count=4, conv_block="naive")),
        ("4 conv, basic", dict(propagation="conv", count=4, conv_block="basic")),
        ("4 conv, bottleneck", dict(propagation="conv", count=4, conv_block="bottleneck")),
        ("shifted", dict(propagation="shifted")),
    ):
        row = {"propagation": name}
        for size in sizes:
            if name == "all global":
                words["count"] = SIZES[size]["depth"]
            parts = encoder(**SIZES[size] | words)
            found = total(parts.values())
            known = total(v for part, v in parts.items() if not part.endswith("products"))
            row[f"{size} params M"] = f"{found.params / 1e6:.1f}"
            row[f"{size} TMACs"] = f"{found.macs / 1e12:.3f}"
            row[f"{size} products unknown"] = f"{known.macs / 1e12:.3f}"
        rows.append(row)
    return pd.DataFrame(rows)


def per_head_table(sizes: Sequence[str] = PAPER_SIZES, num_heads: int = 16) -> pd.DataFrame:
    """What comes out when the blocks' products are counted once for each of `num_heads`, though a
    head has only its share of the channels, and each MAC as 2 FLOPs; beside the encoder's MACs.
    Text cells."""
    rows = []
    for size in sizes:
        parts = encoder(**SIZES[size], use_rel_pos=True)
        layers, products = (
            total(v for part, v in parts.items() if part.endswith(kinds)).macs / 1e12
            for kinds in (("linear layers", "MLP"), "products")
        )
        row = {"size": size, "linear layers, TMACs": f"{layers:.4f}"}
        row["products, TMACs"] = f"{products:.4f}"
        row[f"both x {num_heads} x 2, T"] = f"{(layers + products) * num_heads * 2:.1f}"
        row["encoder, TMACs"] = f"{total(parts.values()).macs / 1e12:.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """A table of text cells, numbers to the right."""
    align = ("left", *["right"] * (table.shape[1] - 1))
    words = dict(tablefmt="pipe", showindex=False, disable_numparse=True, colalign=align)
    return tabulate(table, headers="keys", **words)
