"""Scores of a model's answers: FunBench's F1, accuracy by task for the other two benchmarks, intervals, baselines."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import pandas as pd

from fundus_lib.answers import VERSION, extract_answer
from fundus_lib.questions import YES_NO, option_texts

COLUMNS = {"FunBench": "funbench", "Omni-Fundus": "omni", "GMAI-Fundus": "gmai"}  # benchmark -> column of Table 5
TASK_COLUMNS = {("Omni-Fundus", "DD"): "DDo", ("GMAI-Fundus", "DD"): "DDg"}  # both benchmarks call theirs DD


class Judged(NamedTuple):
    """One FunBench question with its answer, as texts: options are shuffled per image, so letters mean nothing."""

    file: str  # in FunBench's tree, without suffix
    truth: set[str]
    answer: set[str]
    offered: set[str]


def share(flags: Iterable[bool]) -> float:
    """Share of True; 0 of nothing (FunBench's own script divides by zero there)."""
    flags = list(flags)
    return fmean(flags) if flags else 0.0


def harmonic_mean(sensitivity: float, specificity: float) -> float:
    """FunBench's "F1", the S2 of Fundus-R1's Tab. 6; 0 when both are 0."""
    return 2 * sensitivity * specificity / ((sensitivity + specificity) or 1)


def subtask_score(questions: Sequence[Judged], *, sensitivity_only: bool = False) -> float:
    """F1 of one FunBench file, 0..1: the mean over its categories, each judged where it was offered.

    Of two categories only the first counts (Yes before No, else alphabetical), so that a constant answer scores 0. Task
    L1a, and a file with a single category, score the sensitivity.
    """
    categories = sorted(set().union(*(question.truth for question in questions)))
    counted = categories if len(categories) != 2 else ["Yes"] if categories == ["No", "Yes"] else categories[:1]
    scores = []
    for category in counted:
        asked = [question for question in questions if category in question.offered]
        sensitivity = share(category in q.answer for q in asked if category in q.truth)
        specificity = share(category not in q.answer for q in asked if category not in q.truth)
        alone = sensitivity_only or len(categories) == 1
        scores.append(sensitivity if alone else harmonic_mean(sensitivity, specificity))
    return fmean(scores)


def tree_scores(questions: Iterable[Judged]) -> dict:
    """{"overall", "levels": {"L1"..}, "tasks": {"L1a"..}}, 0..1: plain means of subtasks, then tasks, then levels."""
    files: dict[str, list[Judged]] = {}
    for question in questions:
        files.setdefault(question.file, []).append(question)
    tasks: dict[str, list[float]] = {}
    for file, judged in sorted(files.items()):
        task = Path(file).name[:3]
        tasks.setdefault(task, []).append(subtask_score(judged, sensitivity_only=task == "L1a"))
    means = {task: fmean(scores) for task, scores in tasks.items()}
    levels = {level: fmean(score for task, score in means.items() if task[:2] == level)
              for level in sorted({task[:2] for task in means})}
    return {"overall": fmean(levels.values()) if levels else 0.0, "levels": levels, "tasks": means}


def funbench_scores(questions: str | Path, predictions: str | Path) -> dict:
    """`tree_scores` of two folders with FunBench's tree: questions, and {image path: raw response} files of equal name.

    A question without a response counts as not answered; FileNotFoundError names a file without its counterpart.
    """
    judged = []
    for file in sorted(Path(questions).rglob("L*.json")):
        name = file.relative_to(questions)
        if not (Path(predictions) / name).exists():
            raise FileNotFoundError(f"{Path(predictions) / name} is missing.\n"
                                    f"  it should hold the responses to {file}: {{image path: text}}")
        responses = json.loads((Path(predictions) / name).read_text(encoding="utf-8"))
        for image, item in json.loads(file.read_text(encoding="utf-8"))["data"].items():
            truth, texts = item["raw_data"]["gt"], item["raw_data"]["options"]
            kind = "multi" if isinstance(truth, list) else "yesno" if set(texts) == set(YES_NO) else "single"
            options = {chr(ord("A") + i): text for i, text in enumerate(texts)}
            value = extract_answer(responses.get(image), options, kind).value
            judged.append(Judged(name.with_suffix("").as_posix(), set(truth) if kind == "multi" else {truth},
                                 {options[letter] for letter in value or ()}, set(texts)))
    return tree_scores(judged)


def score_predictions(questions: pd.DataFrame, responses: Sequence[str]) -> pd.DataFrame:
    """One row a question: question_id, response, extracted ("A", "A,C" or text; None: nothing), status, hit, extractor.

    questions: columns id, options, kind, answer. A several-answer question is hit by the exact set.
    """
    rows = []
    for question, response in zip(questions.itertuples(), responses, strict=True):
        value, status = extract_answer(response, option_texts(question.options), question.kind)
        extracted = ",".join(value) if isinstance(value, list) else value
        rows.append((question.id, response, extracted, status, status == "ok" and extracted == question.answer,
                     VERSION))
    return pd.DataFrame(rows, columns=["question_id", "response", "extracted", "status", "hit", "extractor"])


def accuracy_scores(frame: pd.DataFrame) -> dict:
    """{"overall", "tasks"}, 0..1, from columns task and hit: every task weighs the same, as in Fundus-R1's Tab. 5."""
    tasks = frame.groupby("task")["hit"].mean().to_dict()
    return {"overall": fmean(tasks.values()) if tasks else 0.0, "tasks": tasks}


def table_scores(questions: pd.DataFrame, predictions: pd.DataFrame) -> dict[str, float]:
    """One run's row of Table 5 in percent: {"avg", "funbench", ..., "L1", ..., "SG"}; what was not asked is absent.

    questions: all three benchmarks (benchmarks.read_all); predictions: `score_predictions` of them, in the same order.
    """
    frame = questions.assign(extracted=predictions["extracted"].to_numpy(), hit=predictions["hit"].to_numpy())
    row = {}
    for benchmark, part in frame.groupby("benchmark"):
        if benchmark == "FunBench":
            scores = tree_scores(map(judged, part.itertuples()))
            row |= scores["levels"]
        else:
            scores = accuracy_scores(part)
            row |= {TASK_COLUMNS.get((benchmark, task), task): score for task, score in scores["tasks"].items()}
        row[COLUMNS[benchmark]] = scores["overall"]
    if set(COLUMNS.values()) <= set(row):
        row["avg"] = fmean(row[column] for column in COLUMNS.values())
    return {name: 100 * score for name, score in row.items()}


def judged(question) -> Judged:
    """A row of questions with `extracted` letters, as texts."""
    options = option_texts(question.options)
    letters = question.extracted.split(",") if isinstance(question.extracted, str) else []
    return Judged(question.id.partition("::")[0], {options[letter] for letter in question.answer.split(",")},
                  {options[letter] for letter in letters}, set(options.values()))


def constant_baseline(questions: pd.DataFrame) -> pd.Series:
    """What the best constant answer of each benchmark's task would say to each question: a letter, or "" where that
    answer is not among the options. The text is constant, not the letter: options are shuffled per image."""
    best = {key: Counter(part["answer_text"]).most_common(1)[0][0]
            for key, part in questions.groupby(["benchmark", "task"])}
    return pd.Series([next((letter for letter, text in option_texts(question.options).items()
                            if text == best[question.benchmark, question.task]), "")
                      for question in questions.itertuples()], index=questions.index, dtype=object)


def image_keys(questions: pd.DataFrame) -> list[str]:
    """How records.parquet knows each question's image: by path, or by content where the benchmark carries the bytes."""
    return [question.path if isinstance(question.path, str) else hashlib.sha256(question.image).hexdigest()
            for question in questions.itertuples()]


def image_content(questions: pd.DataFrame, records: pd.DataFrame) -> pd.Series:
    """sha256 of each question's image. One photograph asked about in two benchmarks is one observation."""
    content = {key: row.sha256 for row in records.itertuples() for key in (row.path, row.sha256)}
    return pd.Series([content[key] for key in image_keys(questions)], index=questions.index, dtype=object)


def image_source(questions: pd.DataFrame, records: pd.DataFrame) -> pd.Series:
    """Where each question's image comes from: "clinic" (the camera of the training images), "screening" (another one),
    "transfer" (no training image of its modality carries its label) or "held out" (real images)."""
    train = records[records["split"] == "train"]
    trained = {(label, row.modality) for row in train.itertuples() for label in row.labels}
    sources = {}
    for row in records.itertuples():
        seen = any((label, row.modality) in trained for label in row.labels)
        sources[row.path] = sources[row.sha256] = "transfer" if not seen else \
            row.camera if isinstance(row.camera, str) else "held out"
    return pd.Series([sources[key] for key in image_keys(questions)], index=questions.index, dtype=object)


def wilson_interval(hits: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean share (Wilson): also sensible at 0 %, at 100 % and for few images. hits: 0..1 each."""
    from scipy.stats import binomtest

    interval = binomtest(round(float(np.sum(hits))), len(hits)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def paired_interval(a: Sequence[float], b: Sequence[float], n: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of a - b with its 95 % percentile bootstrap interval over the images, both in the same order.

    Hits of several questions about an image, or training runs, are averaged beforehand: the interval is about images.
    """
    from scipy.stats import bootstrap

    gain = np.subtract(a, b, dtype=float)
    if not gain.any() or len(gain) < 2:
        return float(gain.mean()), float(gain.mean()), float(gain.mean())
    low, high = bootstrap((gain,), np.mean, n_resamples=n, method="percentile", rng=seed).confidence_interval
    return float(gain.mean()), float(low), float(high)
