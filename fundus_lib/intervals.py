"""How sure a score is: intervals by image, paired tests, seeds as a random effect, calibration and abstention."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from fundus_lib.evaluation import COLUMNS, TASK_COLUMNS, counted_categories, judged

FEWEST_SEEDS = 3  # below this the spread between runs is hardly measured


def wilson_interval(hits: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean share (Wilson 1927): sensible at 0 %, at 100 % and for few images. hits: 0..1 each."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(float(np.sum(hits)), len(hits), alpha=0.05, method="wilson")
    return float(low), float(high)


def interval_by_image(scores: Sequence[float], images: Sequence, n: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of scores (0..1 each), several about an image: equal `images` stand or fall together.

    Hits: Wilson's for as many observations as there are images. Shares (F1): Bayesian bootstrap over the images.
    """
    scores, unit = np.asarray(scores, float), pd.factorize(np.asarray(images))[0]
    if np.isin(scores, (0, 1)).all():
        return wilson_interval(np.full(unit.max() + 1, scores.mean()))
    weights = np.random.default_rng(seed).standard_exponential((n, unit.max() + 1))
    means = (weights @ np.bincount(unit, scores)) / (weights @ np.bincount(unit))
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def paired_interval(a: Sequence[float], b: Sequence[float], n: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of a - b with its 95 % percentile bootstrap interval over the images, both in the same order.

    Hits of several questions about an image, or training runs, are averaged beforehand: the interval is about images.
    """
    from scipy.stats import bootstrap

    gain = np.subtract(a, b, dtype=float)
    if not np.ptp(gain):
        return float(gain.mean()), float(gain.mean()), float(gain.mean())
    low, high = bootstrap((gain,), np.mean, n_resamples=n, method="percentile", rng=seed).confidence_interval
    return float(gain.mean()), float(low), float(high)


def judgements(questions: pd.DataFrame, predictions: pd.DataFrame) -> dict[tuple, list[tuple[int, bool, bool]]]:
    """What Table 5 counts: {cell: [(unit, there, right), ...]}, one entry a question and, in FunBench, a category that
    it offered. A cell is (benchmark, level: columns of Table 5; task, file, category, scored by its sensitivity alone).

    A unit, numbered, is an image or, where column patient (unique across data sets) knows it, a patient.
    """
    unit = questions["content"]
    unit = questions["patient"].fillna(unit) if "patient" in questions else unit
    frame = questions.assign(extracted=predictions["extracted"].to_numpy(), hit=predictions["hit"].to_numpy(bool))
    cells: dict[tuple, list] = {}
    others, files = {}, {}
    for number, row in zip(unit.factorize()[0], frame.itertuples(), strict=True):
        if row.benchmark == "FunBench":
            files.setdefault(row.id.partition("::")[0], []).append((number, judged(row)))
        else:
            task = TASK_COLUMNS.get((row.benchmark, row.task), row.task)
            others.setdefault((COLUMNS[row.benchmark], task, task, "", "", True), []).append((number, True, row.hit))
    for file, asked in files.items():
        categories, alone = counted_categories([question for _, question in asked])
        task = file.rpartition("/")[2][:3]
        for category in categories:
            cells["funbench", task[:2], task, file, category, alone] = [
                (number, category in one.truth, (category in one.answer) == (category in one.truth))
                for number, one in asked if category in one.offered]
    return cells | others


def table_columns(cells: Sequence[tuple]) -> tuple[list[str], np.ndarray]:
    """(The columns of Table 5, how much each cell weighs in each): plain means of means, as `evaluation.table_scores`.
    The weights are (cells, columns)."""
    parts = Counter(path[:-1] for depth in (2, 3, 4, 5) for path in {cell[:depth] for cell in cells})
    benchmarks = list(dict.fromkeys(cell[0] for cell in cells))
    names = [*benchmarks, *dict.fromkeys(cell[1] for cell in cells)]
    weights = np.zeros((len(cells), len(names)))
    for row, cell in zip(weights, cells, strict=True):
        row[names.index(cell[1])] = level = 1 / (parts[cell[:2]] * parts[cell[:3]] * parts[cell[:4]])
        row[names.index(cell[0])] = level / parts[cell[:1]]
    if len(benchmarks) == 3:
        return ["avg", *names], np.column_stack([weights[:, :3].mean(1), weights])
    return names, weights


def cell_scores(cells: dict[tuple, list[tuple[int, bool, bool]]], times: np.ndarray, prior=(0, 0, 0, 0)) -> np.ndarray:
    """Score (0..1) of each cell when unit u counts times[:, u] times: (resamples, cells). A side without a unit is 0.

    prior: added to right and wrong where the category is there, and where not: (4, resamples, cells)."""
    from scipy.sparse import coo_array

    entries = [(cell, *entry) for cell, judged in enumerate(cells.values()) for entry in judged]
    cell, unit, there, right = np.array(entries, dtype=int).T
    counts = [times @ coo_array((flags, (unit, cell)), (times.shape[1], len(cells))).tocsr().astype(float) for flags in
              (there * right, there * (1 - right), (1 - there) * right, (1 - there) * (1 - right))]
    sensitivity, specificity = (np.divide(
        counts[i] + prior[i], counts[i] + counts[i + 1] + prior[i] + prior[i + 1], out=np.zeros_like(counts[i]),
        where=counts[i] + counts[i + 1] > 0) for i in (0, 2))
    both, alone = sensitivity + specificity, np.array([cell[-1] for cell in cells])
    return np.where(alone, sensitivity, 2 * sensitivity * specificity / np.where(both, both, 1))


def score_intervals(questions: pd.DataFrame, predictions: Sequence[pd.DataFrame], resamples: int,
                    seed: int) -> pd.DataFrame:
    """Every column of Table 5 of one setup, in percent: column, score, low, high, n (images).

    predictions: one frame a run, each in the order of `questions`, which need column content (sha256 of the image). The
    score is the mean of the runs' `evaluation.table_scores`; the interval is about other images, not other runs.
    Bayesian bootstrap (Rubin 1981): each image, with all that is asked about it in any benchmark, gets an exponential
    weight, the same in every run; images of one patient count as one. A resample thus loses no category, which would
    make FunBench's F1 0/0. A category of two images, both found, would still look certain: half a right and half a
    wrong image are added to each side of each cell (Jeffreys' prior). That pulls towards 50 %, so each end is the
    further one of the percentile and of the score +- 1.96 standard deviations. Where many categories hold one or two
    images, the interval is still somewhat too narrow: no resampling knows the images that are not there.
    """
    runs, rng = [judgements(questions, run) for run in predictions], np.random.default_rng(seed)
    names, weights = table_columns(list(runs[0]))
    units = 1 + max(number for entries in runs[0].values() for number, *_ in entries)
    times, prior = rng.standard_exponential((resamples, units)), rng.standard_gamma(0.5, (4, resamples, len(weights)))
    score = 100 * np.mean([cell_scores(run, np.ones((1, units))) for run in runs], axis=0)[0] @ weights
    draws = 100 * np.mean([cell_scores(run, times, prior) for run in runs], axis=0) @ weights
    (low, high), spread = np.percentile(draws, (2.5, 97.5), axis=0), 1.96 * draws.std(axis=0)
    images = [len({number for entries, share in zip(runs[0].values(), shares, strict=True) if share
                   for number, *_ in entries}) for shares in weights.T]
    return pd.DataFrame({"column": names, "score": score, "low": np.minimum(low, score - spread).clip(0),
                         "high": np.maximum(high, score + spread).clip(max=100), "n": images})


def compare_pairs(per_image: pd.DataFrame, pairs: Sequence[tuple[str, str]], resamples: int,
                  seed: int) -> pd.DataFrame:
    """Paired differences between setups, in points: pair, gain, low, high, p, p_holm, detectable, n (images).

    per_image: a row an image, a column a setup, hits averaged to 0..1. low, high: bootstrap over the images. p: the
    differences' signs are flipped image by image, two-sided, never below 2 / (resamples + 1); p_holm: corrected for all
    pairs (Holm 1979). detectable: the smallest difference that as many images, as unlike as these, show at 5 %
    two-sided with 80 % power: 2.8 standard errors; missing where every image differs alike.
    """
    from scipy.stats import norm, permutation_test, sem
    from statsmodels.stats.multitest import multipletests

    errors, rows = norm.ppf(0.975) + norm.ppf(0.8), []
    for a, b in pairs:
        gain = 100 * (per_image[a] - per_image[b]).to_numpy(float)
        p = permutation_test((gain,), lambda x, axis: x.mean(axis), permutation_type="samples", vectorized=True,
                             n_resamples=resamples, rng=seed).pvalue
        rows.append((f"{a} - {b}", *paired_interval(gain, np.zeros(len(gain)), resamples, seed), p,
                     errors * sem(gain) or np.nan, len(gain)))
    table = pd.DataFrame(rows, columns=["pair", "gain", "low", "high", "p", "detectable", "n"])
    table.insert(5, "p_holm", multipletests(table["p"], method="holm")[1] if rows else [])
    return table


def seed_effect(long: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Paired differences that hold for other images and other training runs, in points: pair, gain, low, high, seeds,
    n (images), seed_sd (spread of the gain between runs), verdict.

    long: columns setup, seed, content, hit; every run answers the same questions, and seed k of both setups belong
    together (a model that is not trained is repeated under every seed). Seeds and images are crossed random effects.
    The design is balanced, so the REML fit has a closed form, the two-way analysis of variance of the differences, and
    Hillis (2007) gives its degrees of freedom: the method of multi-reader studies in radiology, with runs as readers.
    MixedLM gives the same standard error, but a normal interval, too narrow at 3 to 5 seeds, and may not converge
    where a component is 0; a two-way bootstrap of 3 runs is too narrow, too. ValueError: a run that lacks an image.
    """
    from scipy.stats import t

    hits, rows = long.pivot_table(index="content", columns=["setup", "seed"], values="hit"), []
    if hits.isna().any(axis=None):
        setup, seed = hits.columns[hits.isna().any()][0]
        raise ValueError(f"{setup}, seed {seed} lacks {hits[setup][seed].isna().sum()} of {len(hits)} images.\n"
                         "  compare runs that answered the same questions, or leave this one out")
    for a, b in pairs:
        seeds = sorted(set(hits[a]) & set(hits[b]))
        gain = 100 * (hits[a][seeds] - hits[b][seeds]).to_numpy().T
        runs, images = gain.shape
        if runs < FEWEST_SEEDS:
            verdict = f"no interval: {runs} seeds in common, {FEWEST_SEEDS} are needed"
            rows.append((f"{a} - {b}", gain.mean() if runs else np.nan, np.nan, np.nan, runs, images, np.nan, verdict))
            continue
        mean, of_seed, of_image = gain.mean(), gain.mean(1), gain.mean(0)
        rest = gain - of_seed[:, None] - of_image + mean
        ms_rest = (rest ** 2).sum() / ((runs - 1) * (images - 1))
        ms_seed = images * of_seed.var(ddof=1)
        spread = ms_seed + max(runs * of_image.var(ddof=1) - ms_rest, 0)  # of the mean, times runs and images
        freedom = (runs - 1) * (spread / ms_seed) ** 2 if ms_seed else np.inf
        half = t.ppf(0.975, freedom) * np.sqrt(spread / (runs * images))
        verdict = "differs" if abs(mean) > half else "no difference shown"
        rows.append((f"{a} - {b}", mean, mean - half, mean + half, runs, images,
                     np.sqrt(max(ms_seed - ms_rest, 0) / images), verdict))
    return pd.DataFrame(rows, columns=["pair", "gain", "low", "high", "seeds", "n", "seed_sd", "verdict"])


def checked(confidence: Sequence[float], hits: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays of one length; ValueError for a confidence that is no probability."""
    confidence, hits = np.asarray(confidence, float), np.asarray(hits, float)
    if len(confidence) != len(hits) or not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError(f"{len(confidence)} confidences for {len(hits)} hits, or one outside 0..1.\n"
                         "  leave out what was not answered: `abstention` counts it")
    return confidence, hits


def reliability(confidence: Sequence[float], hits: Sequence[float], bins: int = 10) -> pd.DataFrame:
    """Reliability diagram: bin (its upper end), n, mean confidence, accuracy, low, high (Wilson), all 0..1.

    Bins are equally wide, closed above; one that nobody falls into has no row.
    """
    confidence, hits = checked(confidence, hits)
    frame = pd.DataFrame({"bin": np.maximum(np.ceil(confidence * bins), 1) / bins, "confidence": confidence,
                          "accuracy": hits})
    table = frame.groupby("bin").agg(n=("accuracy", "size"), confidence=("confidence", "mean"),
                                     accuracy=("accuracy", "mean")).reset_index()
    table[["low", "high"]] = [wilson_interval(part) for _, part in frame.groupby("bin")["accuracy"]]
    return table


def calibration_error(confidence: Sequence[float], hits: Sequence[float], bins: int = 10) -> tuple[float, int]:
    """(Expected calibration error, n): mean distance of accuracy and confidence over the bins, weighted by their n
    (Guo et al. 2017). Above 0 even for a calibrated model when n is small."""
    table = reliability(confidence, hits, bins)
    return float(np.average((table["accuracy"] - table["confidence"]).abs(), weights=table["n"])), int(table["n"].sum())


def risk_coverage(confidence: Sequence[float], hits: Sequence[float]) -> pd.DataFrame:
    """Share of wrong answers when only those of at least `confidence` are given: confidence, coverage, risk, low, high
    (Wilson), n; one row a distinct confidence, from the surest on (Geifman and El-Yaniv 2017)."""
    confidence, hits = checked(confidence, hits)
    from statsmodels.stats.proportion import proportion_confint

    table = pd.DataFrame({"confidence": confidence, "wrong": 1 - hits}).groupby("confidence")["wrong"].agg(
        ["sum", "size"]).sort_index(ascending=False).cumsum()
    low, high = proportion_confint(table["sum"], table["size"], method="wilson")
    return table.assign(coverage=table["size"] / len(hits), risk=table["sum"] / table["size"], low=low, high=high,
                        n=table["size"]).drop(columns=["sum", "size"]).reset_index()


def abstention(statuses: Sequence[str]) -> tuple[float, float, float, int]:
    """(Share of responses without an answer that could be read: status not ok, low, high, n); Wilson."""
    without = [status != "ok" for status in statuses]
    return float(np.mean(without)), *wilson_interval(without), len(without)
