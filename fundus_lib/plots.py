"""Figures in one style. Colours mean something and are told apart by colour-blind readers; numbers lie beside figures.

Every function takes tables or images and returns a matplotlib Figure; `save` writes it as .png and .pdf with its .csv.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill

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
                 "G_uadt": "#CC79A7", "best constant": "#000000", "A, choosing": "#B0A080",
                 "ophthareason_sft": "#4B3F72", "ophthareason_rl": "#1F9E89", "ophthareason_uadt": "#B5367A",
                 "alignment": "#999933"}
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


def outline(ax, masks: Mapping[str, np.ndarray]) -> list[Patch]:
    """Draw masks ({finding: bool (height, width)}) as outlines, empty ones left out; returns the legend's entries."""
    shown = {finding: FINDING_COLOURS.get(finding, GREY) for finding, mask in masks.items() if np.any(mask)}
    for finding, colour in shown.items():
        ax.contour(masks[finding], levels=[0.5], colors=[colour], linewidths=1.2)
    return [Patch(facecolor=colour, edgecolor="black", label=finding) for finding, colour in shown.items()]


def mask_overlay(image, masks: Mapping[str, np.ndarray], title: str = "The image, and where its lesions are") -> Figure:
    """An image alone and with its masks outlined. masks: {finding: bool (height, width)}."""
    figure, axes = panels(2, title, (4.2, 4.2 * image.height / image.width + 0.6))
    for ax in axes:
        ax.imshow(image)
        ax.set_axis_off()
    figure.legend(handles=outline(axes[1], masks), loc="outside lower center", ncols=3)
    return figure


def case_reading(image, heat: np.ndarray, masks: Mapping[str, np.ndarray], title: str) -> Figure:
    """An image with its masks outlined, and over it what each part means for the answer.

    heat: (rows, columns) of reading.occlusion_map, in nats; orange where the image speaks for the answer."""
    figure, (left, right) = panels(2, title, (5, 4.2 * image.height / image.width + 0.9))
    most = float(np.abs(heat).max()) or 1.0
    for ax, picture in ((left, image), (right, image.convert("L"))):
        ax.imshow(picture, cmap="gray")
        legend = outline(ax, masks)
        ax.set_axis_off()
    shown = right.imshow(heat, cmap="PuOr_r", vmin=-most, vmax=most, alpha=0.8 * abs(heat) / most,
                         extent=(-0.5, image.width - 0.5, image.height - 0.5, -0.5))
    figure.colorbar(shown, ax=right, label="loss of ln p when hidden (nats)", shrink=0.8)
    if legend:
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


def reward_hacking(rollouts: pd.DataFrame, title: str) -> Figure:
    """Do traces get better while answers get worse? Left: both rewards by step; right: how many rollouts the judge
    objects to, by its five commonest criteria. rollouts: those with a process reward, and their objections."""
    figure, (left, right) = panels(2, title, (5.4, 3))
    steps = rollouts.groupby("step", as_index=False)[["answer_reward", "process_reward"]].mean()
    for name, colour in (("answer_reward", SETUP_COLOURS["F"]), ("process_reward", SETUP_COLOURS["G"])):
        curve(left, steps, name, colour, name.replace("_", " "))
    faults = rollouts["objections"].str.get_dummies(", ").drop(columns="", errors="ignore")
    faults = faults.groupby(rollouts["step"]).mean()
    for name, colour in zip(faults.mean().nlargest(5).index, sns.color_palette("colorblind"), strict=False):
        curve(right, faults[name].reset_index(), name, colour, name.replace("_", " "))
    for ax, what in ((left, "mean over the rollouts"), (right, "share of the rollouts")):
        ax.set(xlabel="step", ylabel=what, ylim=(0, None))
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
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


def uadt_lines(ax, settings, threshold: float) -> None:
    """The factor that UADT puts on an advantage, by uncertainty, on an axis. settings: strength and temperature."""
    import torch

    from fundus_lib.uadt import shape_advantages

    doubt = torch.linspace(0, 2 * threshold, 101)
    for sign, label, colour in ((1.0, "right (advantage +1)", "#009E73"), (-1.0, "wrong (advantage -1)", "#D55E00")):
        ax.plot(doubt, shape_advantages(torch.full_like(doubt, sign), doubt, threshold, strength=settings.strength,
                                        temperature=settings.temperature) / sign, color=colour, label=label)
    ax.axvline(threshold, color=GREY, linestyle=":")
    ax.set(xlabel="uncertainty of the rollout (nats; dotted: threshold)", ylabel="factor")
    ax.legend()


def advantage_bars(cases: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str) -> Figure:
    """Advantages of a group before (black line) and after shaping (bar). cases: {name: (before, after)}."""
    colours = {"made larger": "#D55E00", "as before": GREY, "made smaller": "#56B4E9"}
    figure, axes = panels(len(cases), title, (2.5, 2.6), columns=5, sharey=True)
    for ax, (name, values) in zip(axes, cases.items(), strict=True):
        before, after = np.array(values, dtype=float)
        shade, x = 1 - np.sign(np.round(np.abs(after) - np.abs(before), 6)).astype(int), np.arange(len(after)) + 1
        ax.bar(x, after, color=np.array(list(colours.values()))[shade])
        ax.hlines(before, x - 0.45, x + 0.45, color="black")
        ax.set(title=name, xlabel="rollout", xticks=x)
    figure.legend(handles=[Patch(color=colour, label=name) for name, colour in colours.items()], ncols=3,
                  loc="outside lower center", title="bar: advantage after shaping, black line: before")
    return figure


def uadt_history(logs: pd.DataFrame) -> Figure:
    """What UADT did at each step, a colour a setup. logs: setup, seed, step and the columns uadt/*."""
    titles = {"uncertainty": "uncertainty (nats; dotted: threshold)", "omega": "omega", "amplified": "share amplified"}
    figure, axes = panels(3, "UADT while training: a colour a setup, raw values faint", (4, 2.8))
    for (setup, seed), rows in logs.groupby(["setup", "seed"]):
        for ax, name in zip(axes, titles, strict=True):
            curve(ax, rows, f"uadt/{name}", SETUP_COLOURS[setup], setup if seed == logs["seed"].min() else "_")
            ax.set(xlabel="step", title=titles[name])
        axes[0].plot(rows["step"], rows["uadt/threshold"], ":", color=SETUP_COLOURS[setup])
    axes[0].legend()
    return figure


def scores_with_intervals(scores: pd.DataFrame, title: str = "Diagnosis: accuracy with 95 % intervals") -> Figure:
    """A point and its interval per setup, in groups by source. scores: setup, source, score, low, high (percent), n."""
    sources, setups = list(scores["source"].unique()), list(scores["setup"].unique())
    figure, (ax,) = panels(1, title, (1.6 + 1.9 * len(sources), max(3.2, 0.26 * len(setups))))  # all of the legend
    for i, setup in enumerate(setups):
        rows = scores[scores["setup"] == setup].set_index("source").reindex(sources)
        reach = np.abs(rows[["low", "high"]].to_numpy().T - rows["score"].to_numpy())
        ax.errorbar(np.arange(len(sources)) + 0.8 * ((i + 0.5) / len(setups) - 0.5), rows["score"], yerr=reach, fmt="o",
                    color=SETUP_COLOURS.get(setup, GREY), label=setup, capsize=2)
    counts = scores.groupby("source")["n"].max()
    ax.set_xticks(range(len(sources)), [f"{source}\nn = {counts[source]:,}" for source in sources])
    ax.set(ylabel="percent", ylim=(-3, 103), xlim=(-0.5, len(sources) - 0.5))
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def table5_picture(rows: pd.DataFrame) -> Figure:
    """Ours, with its interval, beside the published average and benchmarks of every setup; no point where one is
    missing. rows: of tables.comparison, of item Table 5."""
    names = {"avg": "average", "funbench": "FunBench", "omni": "Omni-Fundus", "gmai": "GMAI-Fundus"}
    setups = list(rows["row"].unique())[::-1]
    how = "95 % intervals" if rows["low"].notna().any() else "no intervals: this run has no scores.csv"
    figure, axes = panels(4, f"Table 5: ours (other images, other model size; {how}) beside the paper's", (2.6, 4.2),
                          sharey=True)
    for ax, (column, name) in zip(axes, names.items(), strict=True):
        part = rows[rows["column"] == column]
        height = part["row"].map(setups.index)
        ax.scatter(part["published"], height, color=METHOD_COLOURS["published"], marker="D", label="published")
        ax.errorbar(part["ours"], height, xerr=(part["ours"] - part["low"], part["high"] - part["ours"]), fmt="o",
                    color=METHOD_COLOURS["ours"], label="ours", capsize=2, zorder=3)
        count = "" if part["n"].isna().all() else f"\n{part['n'].max():,} images"
        ax.set(title=name + count, xlabel="percent", xlim=(-4, 104), yticks=range(len(setups)), yticklabels=setups,
               ylim=(-0.6, len(setups) - 0.4))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def score_map(scores: pd.DataFrame, title: str) -> Figure:
    """Scores with their intervals, a row a group (data set, finding ...). scores: group, setup, score, low, high
    (percent), n."""
    setups, counts = list(scores["setup"].unique()), scores.groupby("group", sort=False)["n"].max()
    grid = scores.pivot(index="group", columns="setup", values="score").reindex(counts.index)[setups]
    said = scores.assign(said=[f"{s:.0f}\n{low:.0f} to {high:.0f}" for s, low, high in
                               scores[["score", "low", "high"]].itertuples(index=False)])
    said = said.pivot(index="group", columns="setup", values="said").reindex(counts.index)[setups].fillna("")
    figure, (ax,) = panels(1, title, (3 + 0.95 * len(setups), 0.8 + 0.46 * len(grid)))
    sns.heatmap(grid, ax=ax, annot=said, fmt="", cmap="viridis", vmin=0, vmax=100, linewidths=1, cbar=False,
                annot_kws={"size": 8}, yticklabels=[f"{group} (n = {n:,})" for group, n in counts.items()])
    ax.set(xlabel="setup (percent, 95 % interval)", ylabel="")
    ax.tick_params(axis="x", rotation=0)
    return figure


def confusion(answers: pd.DataFrame, title: str) -> Figure:
    """What is right by what was answered, percent of the row. answers: truth, answered (a text or "no answer")."""
    counts = pd.crosstab(answers["truth"], answers["answered"])
    others = sorted(set(counts) - set(counts.index) - {"no answer"})
    percent = counts.div(counts.sum(axis=1), axis=0).mul(100).reindex(columns=[*counts.index, *others, "no answer"],
                                                                      fill_value=0)
    size = (2.6 + 0.38 * percent.shape[1], 2.4 + 0.28 * len(percent))
    figure, (ax,) = panels(1, f"{title} (n = {len(answers):,})", size)
    said = percent.map(lambda value: f"{value:.0f}" if value else "")
    sns.heatmap(percent, ax=ax, annot=said, fmt="", cmap="Blues", vmin=0, vmax=100, cbar=False, linewidths=0.5,
                linecolor="#EEEEEE", annot_kws={"size": 7}, xticklabels=True,
                yticklabels=[f"{label} ({n})" for label, n in counts.sum(axis=1).items()])
    ax.set(xlabel="answered (percent of the row)", ylabel="right (questions)")
    ax.set_xticks(ax.get_xticks(), ax.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    return figure


def reliability(bins: pd.DataFrame, title: str) -> Figure:
    """How often answers of a confidence are right. bins: of intervals.reliability."""
    figure, (ax,) = panels(1, title, (4.6, 4.2))
    ax.plot((0, 1), (0, 1), color=GREY, linestyle=":", label="calibrated")
    reach = (bins["accuracy"] - bins["low"], bins["high"] - bins["accuracy"])
    ax.errorbar(bins["confidence"], bins["accuracy"], yerr=reach, fmt="o", color=METHOD_COLOURS["ours"], capsize=2,
                label="observed, 95 % interval")
    for place, (x, n) in enumerate(zip(bins["confidence"], bins["n"], strict=True)):  # two heights: bins lie close
        ax.text(x, 1.03 + 0.05 * (place % 2), f"{n:,}", ha="center", fontsize="x-small")
    ax.set(xlabel="confidence (top: answers)", ylabel="share right", xlim=(-0.03, 1.05), ylim=(-0.03, 1.14))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def risk_coverage(frame: pd.DataFrame) -> Figure:
    """Share of wrong answers when only the surest are given. frame: of intervals.risk_coverage, with setup."""
    figure, (ax,) = panels(1, "Abstaining: errors among the surest answers, with 95 % intervals", (6.4, 3.6))
    for setup, rows in frame.sort_values("coverage").groupby("setup", sort=False):
        colour = SETUP_COLOURS.get(setup, GREY)
        ax.plot(rows["coverage"], rows["risk"], color=colour, label=setup)
        ax.fill_between(rows["coverage"], rows["low"], rows["high"], color=colour, alpha=0.15, lw=0)
    ax.set(xlabel="share of questions answered", ylabel="share of these that is wrong", xlim=(0, 1.02), ylim=(0, 1.02))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def reader_disagreement(frame: pd.DataFrame) -> Figure:
    """One setup's responses as different extractors read them. frame: setup, and a column a reader (score, percent)."""
    readers = [name for name in frame if name != "setup"]
    figure, (ax,) = panels(1, "The same responses, read by different extractors", (2.4 + 1.6 * len(readers), 3.6))
    for row in frame.to_dict("records"):
        colour = SETUP_COLOURS.get(row["setup"], GREY)
        ax.plot(readers, [row[name] for name in readers], "o-", color=colour, label=row["setup"])
    ax.set(ylabel="percent", xlim=(-0.3, len(readers) - 0.7))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def diagram(ax, boxes: Mapping[str, tuple[float, float, str, str]], arrows: Iterable[tuple[str, str, str]]) -> None:
    """Boxes joined by arrows. boxes: name -> (x, y of the centre in 0..1, text, colour); arrows: (from, to, said)."""
    drawn = {name: ax.text(x, y, text, ha="center", va="center", fontsize="small",
                           bbox={"boxstyle": "round,pad=0.5", "facecolor": colour, "edgecolor": "#444444"})
             for name, (x, y, text, colour) in boxes.items()}
    for start, end, said in arrows:
        (x0, y0), (x1, y1) = (boxes[name][:2] for name in (start, end))
        ends = {f"patch{side}": drawn[name].get_bbox_patch() for side, name in (("A", start), ("B", end))}
        ax.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "-|>", "color": "#444444", "shrinkA": 0,
                                                        "shrinkB": 0, **ends})
        ax.text((x0 + x1) / 2, (y0 + y1) / 2, said, ha="center", va="center", fontsize="x-small",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_axis_off()


def example(image, votes: pd.Series, min_votes: int, said: Mapping[str, str], title: str) -> Figure:
    """One case on its way: the image, the votes for each finding, and what was said. votes: finding -> number."""
    figure, (left, middle, right) = panels(3, title, (4.4, 4.6), width_ratios=(1, 0.7, 1.4))
    left.imshow(image)
    kept = votes >= min_votes
    middle.barh(votes.index, votes, color=kept.map({True: METHOD_COLOURS["vote"], False: METHOD_COLOURS["published"]}))
    middle.axvline(min_votes - 0.5, color="black", linestyle=":")
    middle.set(xlabel=f"votes (kept from {min_votes} on)", xlim=(0, None))
    text = "\n\n".join(f"{name.upper()}\n{fill(words, 66)}" for name, words in said.items())
    right.text(0, 1, text, va="top", fontsize="small")
    for ax in (left, right):
        ax.set_axis_off()
    return figure
