"""Scores of a model's answers: FunBench's F1, accuracy by task, OphthaReason's three kinds of question; baselines."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import pandas as pd

from fundus_lib.answers import VERSION, extract_answer
from fundus_lib.lexicon import canonical_label
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


def counted_categories(questions: Sequence[Judged]) -> tuple[list[str], bool]:
    """(The categories that a FunBench file is judged by, is it by their sensitivity alone): what its truths hold.

    Of two only the first counts (Yes before No, else alphabetical), so that a constant answer scores 0. A single
    category has no specificity, and task L1a does without.
    """
    found = sorted(set().union(*(question.truth for question in questions)))
    alone = len(found) == 1 or Path(questions[0].file).name.startswith("L1a")
    return found if len(found) != 2 else ["Yes"] if found == ["No", "Yes"] else found[:1], alone


def subtask_score(questions: Sequence[Judged]) -> float:
    """F1 of one FunBench file, 0..1: the mean over the categories that count, each judged where it was offered."""
    categories, alone = counted_categories(questions)
    scores = []
    for category in categories:
        asked = [question for question in questions if category in question.offered]
        sensitivity = share(category in q.answer for q in asked if category in q.truth)
        specificity = share(category not in q.answer for q in asked if category not in q.truth)
        scores.append(sensitivity if alone else harmonic_mean(sensitivity, specificity))
    return fmean(scores)


def tree_scores(questions: Iterable[Judged]) -> dict:
    """{"overall", "levels": {"L1"..}, "tasks": {"L1a"..}}, 0..1: plain means of subtasks, then tasks, then levels."""
    files: dict[str, list[Judged]] = {}
    for question in questions:
        files.setdefault(question.file, []).append(question)
    tasks: dict[str, list[float]] = {}
    for file, judged in sorted(files.items()):
        tasks.setdefault(Path(file).name[:3], []).append(subtask_score(judged))
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

    questions: columns id, options, kind, answer. Several answers are hit by the exact set, an open one by any name.
    """
    rows = []
    for question, response in zip(questions.itertuples(), responses, strict=True):
        value, status = extract_answer(response, option_texts(question.options), question.kind)
        extracted = ",".join(value) if isinstance(value, list) else value
        hit = status == "ok" and extracted == question.answer
        if question.kind == "open":
            hit = open_scores(response, extracted, question.answer)[0] == 1
        rows.append((question.id, response, extracted, status, hit, VERSION))
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


def set_f1(said: Iterable[str], truth: Iterable[str]) -> float:
    """2 |both| / (|said| + |truth|), repeats counted; of option letters, or of words (as in SQuAD). 0 of nothing."""
    said, truth = Counter(said), Counter(truth)
    return 2 * (said & truth).total() / ((said.total() + truth.total()) or 1)


def open_scores(response: str | None, extracted: str | None, answer: str) -> tuple[float, float]:
    """(exact match, token F1) of a name, 0..1, without case, punctuation and articles (SQuAD; Rajpurkar 2016): the best
    of what was extracted and what stands between the answer tags, held against the truth and its canonical label."""
    tagged = response.split("<answer>")[1:] if isinstance(response, str) else []
    stated = tagged[0].partition("</answer>")[0] if len(tagged) == 1 else None  # of two answers neither
    said, truth = ([re.sub(r"\b(?:an?|the)\b|[\W_]", " ", name.lower()).split() for name in names if name]
                   for names in ((stated, extracted), (answer, canonical_label(answer))))
    return float(any(words in truth for words in said if words)), max(
        (set_f1(words, name) for words in said for name in truth), default=0.0)


def ophthareason_scores(questions: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """MM-Retinal-Reason's scores: kind, dataset, domain, metric, score, low, high (percent), n (questions).

    One right option: accuracy. Several: exact set, mean F1 of the sets. Open: exact match by any name, token F1. It
    ships no scorer, the metrics are ours. `macro` is the plain mean over a domain's data sets, by file where unnamed.
    low, high: `intervals.interval_by_image`; of macro, those of its data sets put together (Zou and Donner 2008).
    questions: read_mm_retinal_reason; predictions: `score_predictions` of them, in the same order.
    """
    from fundus_lib.intervals import interval_by_image

    rows = []
    for question, said in zip(questions.itertuples(), predictions.itertuples(), strict=True):
        extracted = said.extracted if isinstance(said.extracted, str) else ""
        scores = {"exact match" if question.kind in ("multi", "open") else "accuracy": float(said.hit)}
        if question.kind == "multi":
            scores["set F1"] = set_f1(extracted.split(","), question.answer.split(","))
        elif question.kind == "open":
            scores["token F1"] = open_scores(said.response, extracted, question.answer)[1]
        dataset = question.dataset if isinstance(question.dataset, str) else question.id.partition("::")[0]
        domain = question.domain if isinstance(question.domain, str) else "not stated"
        shown = str(list(question.images)) if "images" in questions else question.id
        rows += [(question.kind, dataset, domain, metric, shown, score) for metric, score in scores.items()]
    columns, bounds = ["kind", "dataset", "domain", "metric"], ["score", "low", "high"]
    each = pd.DataFrame([(*key, part[5].mean(), *interval_by_image(part[5], part[4]), len(part))
                         for key, part in pd.DataFrame(rows).groupby([0, 1, 2, 3])], columns=[*columns, *bounds, "n"])
    reach = each.assign(low=(each.score - each.low) ** 2, high=(each.high - each.score) ** 2)
    macro = reach.groupby(["kind", "domain", "metric"], as_index=False).agg(
        score=("score", "mean"), low=("low", "sum"), high=("high", "sum"), n=("n", "sum"), sets=("n", "size"))
    macro["low"], macro["high"] = (macro.score + sign * macro[end] ** 0.5 / macro.sets
                                   for sign, end in ((-1, "low"), (1, "high")))
    table = pd.concat([each, macro.drop(columns="sets").assign(dataset="macro")], ignore_index=True)
    return table.assign(**{name: 100 * table[name].clip(0, 1) for name in bounds})


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
