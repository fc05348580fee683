"""Plots from a study's table."""

from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import seaborn as sns

_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "d"]


def ap_vs_macs(manifest: dict, table: pd.DataFrame, path: Path) -> list[Path]:
    """Box and mask AP against MACs; bars are one standard deviation over seeds.

    Args:
        path: without suffix; .png and .svg are written.

    Returns:
        The files written; none if no row has a result yet.
    """
    table = table.dropna(subset=["ap_box", "macs"])
    if table.empty:
        return []
    kinds = [kind for kind in ("box", "mask") if table[f"ap_{kind}"].notna().any()]
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")
    plt.rcParams["svg.fonttype"] = "none"  # text stays text: small, and it can be searched
    figure, axes = plt.subplots(
        1,
        len(kinds),
        figsize=(4.6 * len(kinds) + 2, 4.2),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, kind in zip(axes[0], kinds, strict=True):
        colors = sns.color_palette(n_colors=len(table))
        for i, (_, row) in enumerate(table.iterrows()):
            x, y = row["macs"] / 1e9, row[f"ap_{kind}"]
            if pd.isna(y):
                continue
            axis.errorbar(
                x,
                y,
                yerr=None if pd.isna(row[f"ap_{kind}_std"]) else row[f"ap_{kind}_std"],
                marker=_MARKERS[i % len(_MARKERS)],
                markersize=8,
                capsize=4,
                color=colors[i],
                linestyle="none",
                label=row["variant"],
            )
        axis.set_xlabel("GMACs of the detector, one image")
        axis.set_ylabel(f"{kind} AP")
        axis.margins(x=0.15, y=0.15)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center")
    seeds = sorted(set(table["seeds"]))
    figure.suptitle(
        f"{manifest['study']}: {', '.join(table['size'].unique())}, {manifest['scale']} scale, "
        f"{'-'.join(str(s) for s in seeds)} seed{'s (bars: ± 1 std)' if seeds != [1] else ''}"
    )
    written = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for file in written:
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)
    return written
