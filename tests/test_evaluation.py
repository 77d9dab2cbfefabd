"""Scores: FunBench's F1 by hand and against an implementation on scikit-learn, chance, constants, intervals."""

import hashlib
import json
import random
from statistics import fmean

import pandas as pd
import pytest
from sklearn.metrics import recall_score

from fundus_lib import evaluation
from fundus_lib.evaluation import Judged, subtask_score
from fundus_lib.questions import as_options

GRADES = ("No DR", "Mild NPDR", "Moderate NPDR", "Severe NPDR", "PDR")


def judged(truth, answers, offered):
    return [Judged("L4c", {t}, {a} - {None}, set(offered)) for t, a in zip(truth, answers, strict=True)]


def reference(truth, answers):
    """F1 of single-answer questions that all offer every category: recalls of scikit-learn, combined."""
    names = sorted(set(truth))
    names = ["Yes"] if names == ["No", "Yes"] else names[:1] if len(names) == 2 else names
    scores = []
    for name in names:
        is_, said = [t == name for t in truth], [a == name for a in answers]
        sens, spec = (recall_score(is_, said, pos_label=side, zero_division=0) for side in (True, False))
        scores.append(2 * sens * spec / (sens + spec) if sens + spec else 0.0)
    return fmean(scores)


def write_tree(folder, files):
    """files: {name: [(image, gt text or texts, options, response)]}; returns (questions, predictions) folders."""
    for name, rows in files.items():
        for part in ("questions", "predictions"):
            (folder / part / name).parent.mkdir(parents=True, exist_ok=True)
        data = {image: {"gt": "?", "raw_data": {"gt": gt, "options": options}, "E-mode2": None, "E-mode3": "?"}
                for image, gt, options, _ in rows}
        (folder / "questions" / name).write_text(json.dumps({"info": {}, "data": data}))
        (folder / "predictions" / name).write_text(json.dumps({image: said for image, _, _, said in rows}))
    return folder / "questions", folder / "predictions"


def test_f1_of_two_categories_by_hand():
    truth = ["Yes"] * 4 + ["No"] * 4
    said = ["Yes", "Yes", "No", None] + ["No", "No", "No", "Yes"]  # finds 2 of 4, right about 3 of 4 without
    assert subtask_score(judged(truth, said, ("No", "Yes"))) == pytest.approx(2 * 0.5 * 0.75 / 1.25)  # 0.6


def test_only_the_first_of_two_categories_counts():
    truth, said = ["Left eye", "Right eye", "Right eye"], ["Left eye", None, "Right eye"]
    assert subtask_score(judged(truth, said, ("Left eye", "Right eye"))) == 1  # no answer is not a wrong "Left eye"
    assert subtask_score(judged(["Yes", "No"], [None, "No"], ("Yes", "No"))) == 0  # Yes comes first, and was not found


def test_a_category_is_judged_where_it_was_offered():
    questions = [Judged("L4b", {"a"}, {"a"}, {"a", "b"}), Judged("L4b", {"b"}, {"b"}, {"a", "b"}),
                 Judged("L4b", {"c"}, {"d"}, {"c", "d"})]
    assert subtask_score(questions) == pytest.approx(2 / 3)  # a and b: 1; c: 0/0 specificity and no hit: 0


def test_l1a_and_a_single_category_score_their_sensitivity():
    assert subtask_score(judged(["CFP"] * 4, ["CFP"] * 3 + ["OCT"], ("CFP", "OCT"))) == 0.75
    truth = ["CFP", "CFP", "OCT", "UWF"]
    assert subtask_score(judged(truth, ["CFP"] * 4, ("CFP", "OCT", "UWF")),
    sensitivity_only=True) == pytest.approx(1 / 3)


@pytest.mark.parametrize("names", [GRADES, ("Yes", "No"), ("CNV", "DME", "Drusen", "Normal")])
def test_agrees_with_scikit_learn(names):
    rng = random.Random(0)
    for _ in range(20):
        truth = [rng.choice(names) for _ in range(30)] + list(names)
        said = [t if rng.random() < 0.6 else rng.choice(names) for t in truth]
        assert subtask_score(judged(truth, said, names)) == pytest.approx(reference(truth, said))


@pytest.mark.parametrize(("count", "expected"), [(2, 0.5), (4, 0.375), (5, 0.32), (6, 0.278)])
def test_chance_and_constant_answers(count, expected):
    names, rng = [f"label {i}" for i in range(count)], random.Random(1)
    truth = names * 100
    shuffled = [subtask_score(judged(truth, rng.sample(truth, len(truth)), names)) for _ in range(20)]
    assert fmean(shuffled) == pytest.approx(expected, abs=0.02)
    assert all(subtask_score(judged(truth, [name] * len(truth), names)) == 0 for name in names)


def test_funbench_scores_of_folders(tmp_path):
    yes_no, eyes = ["No", "Yes"], ["Left eye", "Right eye"]
    questions, predictions = write_tree(tmp_path, {
        "L2-anatomy/L2b-laterality.json": [("1.png", "Left eye", eyes, "<answer>A</answer>"),
                                           ("2.png", "Right eye", eyes[::-1], "<answer>Right eye</answer>")],
        "L3-lesions/L3a-lesion_recognition/L3a1-Haemorrhage.json": [("1.png", "Yes", yes_no, "<answer>B</answer>"),
                                                                    ("2.png", "No", yes_no, "no")],
        "L3-lesions/L3a-lesion_recognition/L3a2-Hard_exudate.json": [("1.png", "Yes", yes_no, "No"),
                                                                     ("2.png", "No", yes_no, "No")],
        "L4-diagnosis/L4b-conditions.json": [("1.png", ["x", "y"], ["x", "y", "z"], "<answer>A, B</answer>"),
                                             ("2.png", ["z"], ["z", "x", "y"], "<answer>A</answer>")]})
    scores = evaluation.funbench_scores(questions, predictions)
    assert scores["tasks"] == {"L2b": 1.0, "L3a": 0.5, "L4b": 1.0}  # L3a: one file right, one answered with a constant
    assert scores["levels"] == {"L2": 1.0, "L3": 0.5, "L4": 1.0}
    assert scores["overall"] == pytest.approx(2.5 / 3)


def test_a_missing_prediction_is_a_miss_and_a_missing_file_is_named(tmp_path):
    questions, predictions = write_tree(tmp_path, {"L1-modality/L1a-coarse.json": [("1.png", "OCT", ["OCT", "CFP"],
    "OCT"),
                                                                                   ("2.png", "OCT", ["OCT", "CFP"],
                                                                                   "OCT")]})
    file = predictions / "L1-modality/L1a-coarse.json"
    file.write_text(json.dumps({"1.png": "OCT"}))
    assert evaluation.funbench_scores(questions, predictions)["overall"] == 0.5
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"L1a-coarse\.json is missing"):
        evaluation.funbench_scores(questions, predictions)


@pytest.fixture
def questions():
    """Two diagnosis questions with shuffled options in each benchmark."""
    rows = []
    for benchmark, task, name in (("FunBench", "L4b", "L4-x/L4b-y"), ("Omni-Fundus", "DD", "o"),
    ("GMAI-Fundus", "DD", "g")):
        for i, truth in enumerate(("Drusen", "Normal", "Normal")):
            options = as_options(("Normal", "DME", "Drusen") if i % 2 else ("Drusen", "Normal", "DME"))
            rows.append({"id": f"{name}::{i}", "benchmark": benchmark, "task": task, "kind": "single",
            "options": options,
                         "answer": next(o["letter"] for o in options if o["text"] == truth), "answer_text": truth})
    return pd.DataFrame(rows)


def test_predictions_and_the_row_of_table_5(questions):
    said = ["<answer>Drusen</answer>", "<answer> A </answer>", "I do not know"] * 3
    scored = evaluation.score_predictions(questions, said)
    assert scored.columns.tolist() == ["question_id", "response", "extracted", "status", "hit", "extractor"]
    assert scored["hit"].tolist() == [True, True, False] * 3 and scored["status"].tolist()[2] == "refused"
    row = evaluation.table_scores(questions, scored)
    assert row["omni"] == row["DDo"] == row["gmai"] == row["DDg"] == pytest.approx(200 / 3)
    assert row["funbench"] == row["L4"] == 100  # two categories, the first is Drusen: found, never wrongly claimed
    assert row["avg"] == pytest.approx((100 + 400 / 3) / 3)
    only = questions["benchmark"] == "Omni-Fundus"
    assert "avg" not in evaluation.table_scores(questions[only], scored[only])  # no average of fewer benchmarks


def test_tasks_weigh_the_same():
    frame = pd.DataFrame({"task": ["MR"] * 9 + ["DD"], "hit": [True] * 9 + [False]})
    assert evaluation.accuracy_scores(frame) == {"overall": 0.5, "tasks": {"DD": 0.0, "MR": 1.0}}


def test_the_constant_answer_follows_the_text_not_the_letter(questions):
    constant = evaluation.constant_baseline(questions)
    assert constant.tolist() == ["B", "A", "B"] * 3  # Normal, wherever it stands
    assert (constant == questions["answer"]).tolist() == [False, True, True] * 3


def test_image_source_knows_camera_and_transfer():
    records = pd.DataFrame({
        "path": ["train", "clinic", "screen", "other", "real"], "sha256": ["0", "1", "2",
        hashlib.sha256(b"3").hexdigest(), "4"],
        "split": ["train"] + ["test"] * 4, "modality": ["CFP"] * 3 + ["UWF", "CFP"], "labels": [["PDR"]] * 5,
        "camera": ["clinic", "clinic", "screening", "screening", None]})
    asked = pd.DataFrame({"path": ["clinic", "screen", None, "real"], "image": [None, None, b"3", None]})
    assert evaluation.image_source(asked, records).tolist() == ["clinic", "screening", "transfer", "held out"]


def test_a_photograph_in_two_benchmarks_is_one_observation():
    content = hashlib.sha256(b"3").hexdigest()
    records = pd.DataFrame({"path": ["a", "b"], "sha256": [content, "1"]})
    asked = pd.DataFrame({"path": ["a", None, "b"], "image": [None, b"3", None]})  # the second carries a's bytes
    assert evaluation.image_content(asked, records).tolist() == [content, content, "1"]


def test_intervals():
    low, high = evaluation.wilson_interval([True] * 5 + [False] * 5)
    assert (low, high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert evaluation.wilson_interval([True] * 10)[1] == 1
    gain, low, high = evaluation.paired_interval([1] * 30 + [0] * 70, [0] * 100)
    assert gain == pytest.approx(0.3) and 0.2 < low < 0.25 and 0.35 < high < 0.4
    assert evaluation.paired_interval([1, 0], [1, 0]) == (0, 0, 0)
    a, b = [1, 0] * 50, [0, 1] * 50
    assert evaluation.paired_interval(a, b)[1] < 0 < evaluation.paired_interval(a, b)[2]
    assert evaluation.paired_interval(a, b) == evaluation.paired_interval(a, b)  # seeded
