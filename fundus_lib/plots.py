"""Figures in one style. Colours mean something and are told apart by colour-blind readers; numbers lie beside figures.

Every function takes tables or images and returns a matplotlib Figure; `save` writes it as .png and .pdf with its .csv.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import ImageOps

GREY = "#999999"
SETUP_COLOURS = {"A": "#777777", "B": "#56B4E9", "C": "#8C6D31", "D": "#332288", "E": "#0072B2", "F": "#E69F00",
                 "G": "#009E73", "H": "#AA4499", "I": "#117733", "J": "#882255", "F_uadt": "#D55E00",
                 "G_uadt": "#CC79A7", "best constant": "#000000", "A, choosing": "#B0A080"}
MODALITY_COLOURS = {"CFP": "#D55E00", "OCT": "#0072B2", "UWF": "#009E73", "FFA": GREY}
METHOD_COLOURS = {"published": "#BBBBBB", "free-form": "#E69F00", "one rollout": "#56B4E9", "vote": "#0072B2",
                  "ours": "#0072B2"}
FINDING_COLOURS = {"microaneurysm": "#56B4E9", "retinal hemorrhage": "#0072B2", "hard exudate": "#F0E442",
                   "cotton-wool spot": "#FFFFFF", "neovascularization": "#CC79A7", "drusen": "#E69F00",
                   "optic disc": "#009E73", "intraretinal fluid": "#56B4E9", "subretinal fluid": "#009E73",
                   "pigment epithelial detachment": "#D55E00", "epiretinal membrane": "#CC79A7"}
SPLIT_SHADES = {"train": 1.0, "val": 0.65, "test": 0.35}  # how strong the colour is


def panels(count: int, title: str, size: tuple[float, float], columns: int = 4, **more) -> tuple[Figure, list]:
    """A Figure and its `count` axes in the house style; size: one panel's, in inches."""
    sns.set_theme("notebook", "whitegrid", font_scale=0.85, rc={"legend.frameon": False, "axes.spines.top": False,
                                                                "axes.spines.right": False})
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size[0], rows * size[1] + 0.4), squeeze=False,
                                layout="constrained", **more)
    plt.close(figure)  # a notebook shows what a cell returns; left open, it would be shown twice
    figure.suptitle(title)
    for spare in axes.flat[count:]:
        spare.set_axis_off()
    return figure, list(axes.flat[:count])


def save(figure: Figure, name: str, folder: Path, data: pd.DataFrame | None) -> None:
    """<folder>/<name>.png, .pdf and .csv (the numbers shown; none for a picture). Same figure, same bytes: no dates.
    The PNG carries the title, which INDEX.md shows."""
    folder.mkdir(parents=True, exist_ok=True)
    title = {"Title": figure.get_suptitle()}
    dpi = 100 if any(ax.images for ax in figure.axes) else 150  # a sheet of photographs has megabytes otherwise
    figure.savefig(folder / f"{name}.png", dpi=dpi, metadata=title | {"Software": None})
    figure.savefig(folder / f"{name}.pdf", metadata=title | {"CreationDate": None, "Creator": None, "Producer": None})
    if data is not None:
        data.to_csv(folder / f"{name}.csv", index=False)


def contact_sheet(images: Sequence, titles: Sequence[str], columns: int = 4, title: str = "") -> Figure:
    """PIL images in a grid, no larger than they are shown, each with its title."""
    figure, axes = panels(len(images), title, (2.6, 2.6), columns)
    for ax, image, text in zip(axes, images, titles, strict=True):
        ax.imshow(ImageOps.contain(image, (260, 260)))
        ax.set_title(text, fontsize="small", wrap=True)
        ax.set_axis_off()
    return figure


def leakage_pairs(pairs: Iterable[tuple], title: str = "The same content in two splits") -> Figure:
    """Pairs (image, its title, other image, its title), a row each."""
    images, titles = ([item for pair in pairs for item in pair[start::2]] for start in (0, 1))
    return contact_sheet(images, titles, columns=2, title=title)


def mask_overlay(image, masks: Mapping[str, np.ndarray], title: str = "The image, and where its lesions are") -> Figure:
    """An image alone and with its masks outlined. masks: {finding: bool (height, width)}; empty ones are left out."""
    figure, axes = panels(2, title, (4.2, 4.2 * image.height / image.width + 0.6))
    shown = {finding: FINDING_COLOURS.get(finding, GREY) for finding, mask in masks.items() if np.any(mask)}
    for ax in axes:
        ax.imshow(image)
        ax.set_axis_off()
    for finding, colour in shown.items():
        axes[1].contour(masks[finding], levels=[0.5], colors=[colour], linewidths=1.2)
    legend = [Patch(facecolor=colour, edgecolor="black", label=finding) for finding, colour in shown.items()]
    figure.legend(handles=legend, loc="outside lower center", ncols=3)
    return figure


def label_counts(records: pd.DataFrame, title: str = "Images by label") -> Figure:
    """How many images carry each label, by modality and split. records: modality, labels (list), split."""
    rows = records.explode("labels").dropna(subset="labels")
    shown = [(name, rows[rows["modality"] == name]) for name in MODALITY_COLOURS if name in set(rows["modality"])]
    tallest = max(part["labels"].nunique() for _, part in shown)
    figure, axes = panels(len(shown), title, (4.2, 0.8 + 0.25 * tallest))
    for ax, (modality, part) in zip(axes, shown, strict=True):
        counts = pd.crosstab(part["labels"], part["split"]).reindex(columns=list(SPLIT_SHADES), fill_value=0)
        counts, left = counts.loc[counts.sum(axis=1).sort_values().index], 0
        for split, shade in SPLIT_SHADES.items():
            colour = sns.blend_palette(["white", MODALITY_COLOURS[modality]], 101)[int(100 * shade)]
            ax.barh(counts.index, counts[split], left=left, color=colour)
            left = left + counts[split]
        top = len(counts) - 0.5
        ax.set(title=modality, xlabel="images", ylim=(top - tallest, top))  # bars of all panels have the same height
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.legend(handles=[Patch(facecolor=str(1 - shade), label=split) for split, shade in SPLIT_SHADES.items()],
                  loc="outside lower center", ncols=3)
    return figure


def s2_bars(table6: pd.DataFrame, published: pd.DataFrame | None = None) -> Figure:
    """S2 of each finding, 0..1. table6: finding, method (free-form, one rollout, vote), s2; published: finding, s2."""
    theirs = [] if published is None else [published.assign(method="published")]
    rows = pd.concat([table6, *theirs]).dropna(subset="s2")
    order = rows.groupby("finding")["s2"].mean().sort_values(ascending=False).index
    title = "Findings: harmonic mean of sensitivity and specificity (S2)"
    figure, (ax,) = panels(1, title, (7, 0.8 + 0.4 * len(order)))
    hues = [method for method in METHOD_COLOURS if method in set(rows["method"])]
    sns.barplot(rows, y="finding", x="s2", hue="method", order=order, hue_order=hues, palette=METHOD_COLOURS, ax=ax,
                errorbar=None, saturation=1)
    ax.set(xlim=(0, 1), xlabel="S2", ylabel="")
    sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), title=None)
    return figure


def votes_picture(image, votes: pd.DataFrame, title: str = "Votes") -> Figure:
    """An image beside its votes. votes: a row a rollout, a column a finding, True for present."""
    grid = votes.astype(float).T
    figure, (left, right) = panels(2, title, (4.6, max(3.0, 0.3 * len(grid) + 0.8)))
    left.imshow(image)
    left.set_axis_off()
    sns.heatmap(grid, ax=right, cmap=["#EEEEEE", METHOD_COLOURS["vote"]], vmin=0, vmax=1, cbar=False, linewidths=2,
                linecolor="white", yticklabels=True, xticklabels=range(1, len(votes) + 1))
    for row, count in enumerate(grid.sum(axis=1)):
        right.text(len(votes) + 0.15, row + 0.5, f"{count:.0f}", va="center")
    right.set(xlabel="rollout (right: votes for present)", ylabel="")
    return figure


def qc_bars(traces: pd.DataFrame) -> Figure:
    """How many traces each check rejects. traces: one boolean column a check (True: passed), and kept."""
    failed = ~traces.select_dtypes(bool).drop(columns="kept")
    failed = failed[failed.sum().sort_values().index]
    failed.columns = [name.removeprefix("no_").replace("_", " ") for name in failed]
    alone = failed[failed.sum(axis=1) == 1]
    kept = f"{traces['kept'].sum():,} of {len(traces):,} traces kept ({traces['kept'].mean():.1%})"
    figure, (ax,) = panels(1, kept, (7, 1.0 + 0.32 * failed.shape[1]))
    for rows, colour, label in ((failed, "one rollout", "rejected"), (alone, "vote", "by this check alone")):
        ax.barh(failed.columns, rows.sum(), color=METHOD_COLOURS[colour], label=label)
    ax.set(xlabel="traces", xlim=(0, max(1, failed.sum().max())))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def vocabulary_map(vocabularies: Mapping[str, Mapping], modality: str) -> Figure:
    """What each label requires, supports and excludes in one modality. vocabularies: vocabulary.json of stage 02."""
    shades = {"": "#FFFFFF", "excluded": "#D55E00", "supportive": "#A6CEE3", "required": "#0072B2"}
    words = {name.partition("|")[0]: roles for name, roles in vocabularies.items() if name.endswith(f"|{modality}")}
    levels = {label: {finding: level for level, role in enumerate(shades) for finding in roles.get(role, ())}
              for label, roles in words.items()}
    grid = pd.DataFrame(levels).fillna(0)
    grid = grid.loc[grid.eq(3).sum(axis=1).sort_values(ascending=False, kind="stable").index]
    size = (3 + 0.5 * grid.shape[1], 0.22 * len(grid) + 1.5)
    figure, (ax,) = panels(1, f"{modality}: what speaks for a label, and what against it", size)
    sns.heatmap(grid, ax=ax, cmap=list(shades.values()), vmin=0, vmax=3, cbar=False, linewidths=1, yticklabels=True)
    legend = [Patch(color=shades[role], label=role) for role in ("required", "supportive", "excluded")]
    figure.legend(handles=legend, loc="outside lower center", ncols=3)
    return figure


def curve(ax, rows: pd.DataFrame, y: str, colour: str, label: str) -> None:
    """One run's values by step, faint, under their moving mean over a tenth of the run."""
    smooth = rows[y].rolling(max(1, len(rows) // 10), min_periods=1, center=True).mean()
    ax.plot(rows["step"], rows[y], color=colour, alpha=0.25, linewidth=0.8)
    ax.plot(rows["step"], smooth, color=colour, label=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def training_curves(logs: pd.DataFrame) -> Figure:
    """Rewards, rollout length and entropy by step, in the manner of Fundus-R1's Fig. 4: a colour a setup, a line a run.

    logs: setup, seed, step and any of answer_reward, process_reward, length, entropy.
    """
    names = {"answer_reward": "answer reward", "process_reward": "process reward", "length": "rollout length (tokens)",
             "entropy": "token entropy (nats)"}
    shown = [name for name in names if name in logs and logs[name].notna().any()]
    figure, axes = panels(len(shown), "GRPO: a colour a setup, raw values faint", (4.6, 2.8), columns=2)
    for ax, name in zip(axes, shown, strict=True):
        for (setup, seed), rows in logs.dropna(subset=name).groupby(["setup", "seed"]):
            curve(ax, rows, name, SETUP_COLOURS[setup], setup if seed == logs["seed"].min() else "_")
        ax.set(xlabel="step", title=names[name])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def loss_curve(logs: pd.DataFrame) -> Figure:
    """Loss of supervised fine-tuning by step, a line a seed. logs: setup, seed, step, loss."""
    figure, (ax,) = panels(1, "Supervised fine-tuning: loss by step", (7, 3))
    for (setup, seed), rows in logs.groupby(["setup", "seed"]):
        curve(ax, rows, "loss", SETUP_COLOURS[setup], setup if seed == logs["seed"].min() else "_")
    ax.set(xlabel="step", ylabel="loss (nats a token)", yscale="log")
    ax.legend()
    return figure


def base_loss(log: pd.DataFrame) -> Figure:
    """The generic model's two losses. log: phase, step, loss."""
    phases = list(log["phase"].unique())
    figure, axes = panels(len(phases), "The generic model: vision first, then language", (4.6, 2.8))
    for ax, phase in zip(axes, phases, strict=True):
        curve(ax, log[log["phase"] == phase], "loss", METHOD_COLOURS["ours"], phase)
        ax.set(xlabel="step", ylabel="loss", title=phase, yscale="log")
    return figure


def uadt_curves(settings, threshold: float = 0.5) -> Figure:
    """The factor that UADT puts on an advantage, by uncertainty. settings: strength and temperature."""
    import torch

    from fundus_lib.uadt import shape_advantages

    doubt = torch.linspace(0, 2 * threshold, 101)
    figure, (ax,) = panels(1, f"UADT: factor on the advantage (threshold {threshold:g} nats)", (6, 3))
    for sign, label, colour in ((1.0, "right (advantage +1)", "#009E73"), (-1.0, "wrong (advantage -1)", "#D55E00")):
        plain = torch.full_like(doubt, sign)
        shaped = shape_advantages(plain, doubt, threshold, strength=settings.strength, temperature=settings.temperature)
        ax.plot(doubt, shaped / plain, color=colour, label=label)
    ax.set(xlabel="uncertainty of the rollout (nats)", ylabel="factor")
    ax.legend()
    return figure


def scores_with_intervals(scores: pd.DataFrame, title: str = "Diagnosis: accuracy with 95 % intervals") -> Figure:
    """A point and its interval per setup, in groups by source. scores: setup, source, score, low, high (percent), n."""
    sources, setups = list(scores["source"].unique()), list(scores["setup"].unique())
    figure, (ax,) = panels(1, title, (1.6 + 1.9 * len(sources), 3.2))
    for i, setup in enumerate(setups):
        rows = scores[scores["setup"] == setup].set_index("source").reindex(sources)
        reach = np.abs(rows[["low", "high"]].to_numpy().T - rows["score"].to_numpy())
        ax.errorbar(np.arange(len(sources)) + 0.8 * ((i + 0.5) / len(setups) - 0.5), rows["score"], yerr=reach, fmt="o",
                    color=SETUP_COLOURS[setup], label=setup, capsize=2)
    counts = scores.groupby("source")["n"].max()
    ax.set_xticks(range(len(sources)), [f"{source}\nn = {counts[source]:,}" for source in sources])
    ax.set(ylabel="percent", ylim=(-3, 103), xlim=(-0.5, len(sources) - 0.5))
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def table5_picture(table5: pd.DataFrame) -> Figure:
    """Ours beside the published scores: average and benchmarks of every setup; no point where a result is missing."""
    names = {"avg": "average", "funbench": "FunBench", "omni": "Omni-Fundus", "gmai": "GMAI-Fundus"}
    setups = list(table5["setup"].unique())[::-1]
    title = "Table 5: ours (other images, other model size) beside the paper's"
    figure, axes = panels(4, title, (2.6, 4.0), sharey=True)
    for ax, (column, name) in zip(axes, names.items(), strict=True):
        for source, marker in (("published", "D"), ("ours", "o")):
            rows = table5[table5["source"] == source]
            ax.scatter(pd.to_numeric(rows[column], errors="coerce"), [setups.index(setup) for setup in rows["setup"]],
                       color=METHOD_COLOURS[source], marker=marker, label=source, zorder=3)
        ax.set(title=name, xlabel="percent", xlim=(-4, 104), yticks=range(len(setups)), yticklabels=setups)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
