"""Scores: FunBench's F1 by hand and against other implementations, chance, constants, the papers' averages."""

import hashlib
import json
import random
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score
from sklearn.preprocessing import MultiLabelBinarizer

from fundus_lib import evaluation
from fundus_lib.evaluation import Judged, subtask_score
from fundus_lib.questions import as_options

GRADES = ("No DR", "Mild NPDR", "Moderate NPDR", "Severe NPDR", "PDR")


def judged(truth, answers, offered, file="L4c"):
    return [Judged(file, {t}, {a} - {None}, set(offered)) for t, a in zip(truth, answers, strict=True)]


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
    assert subtask_score(judged(truth, ["CFP"] * 4, ("CFP", "OCT", "UWF"), "L1-x/L1a-y")) == pytest.approx(1 / 3)


@pytest.mark.parametrize("names", [GRADES, ("Yes", "No"), ("CNV", "DME", "Drusen", "Normal")])
def test_agrees_with_scikit_learn(names):
    rng = random.Random(0)
    for _ in range(5):
        truth = [rng.choice(names) for _ in range(30)] + list(names)
        said = [t if rng.random() < 0.6 else rng.choice(names) for t in truth]
        assert subtask_score(judged(truth, said, names)) == pytest.approx(reference(truth, said))


@np.errstate(divide="ignore")
def by_definition(questions):
    """FunBench's metric again, on boolean matrices (questions x options): method of its evaluator, with 0/0 = 0."""
    names, files = sorted(set().union(*(q.offered for q in questions))), sorted({q.file for q in questions})
    truth, said, offered = (np.array([[name in getattr(q, side) for name in names] for q in questions])
                            for side in ("truth", "answer", "offered"))
    of_file, tasks, levels = np.array([files.index(q.file) for q in questions]), {}, {}
    for number, file in enumerate(files):
        here, task = (of_file == number)[:, None] & offered, file.rsplit("/", 1)[-1][:3]
        sides = ((here & truth & said, here & truth), (here & ~truth & ~said, here & ~truth))
        sens, spec = (np.divide(top.sum(0), all_.sum(0), where=all_.any(0), out=np.zeros(len(names)))
                      for top, all_ in sides)
        where = np.flatnonzero((here & truth).any(0))
        f1 = sens if len(where) == 1 or task == "L1a" else np.nan_to_num(2 / (1 / sens + 1 / spec))
        if len(where) == 2:
            where = where[[1]] if [names[i] for i in where] == ["No", "Yes"] else where[[0]]
        tasks.setdefault(task, []).append(f1[where].mean())
    tasks = {task: np.mean(scores) for task, scores in tasks.items()}
    for task, score in tasks.items():
        levels.setdefault(task[:2], []).append(score)
    levels = {level: np.mean(scores) for level, scores in levels.items()}
    return {"overall": np.mean(list(levels.values())), "levels": levels, "tasks": tasks}


def random_tree(rng, answer):
    """Questions of a few random files, some with several answers; answer(file, truth, offered) -> set of texts."""
    questions, vocabularies = [], (["No", "Yes"], GRADES, list("abcdefgh"), ["left", "right"], ["only"])
    for file in rng.sample(["L1-m/L1a-coarse", "L1-m/L1b-fine", "L2-a/L2b-eye", "L3-l/L3a-r/L3a1-MA", "L4-d/L4b-many",
                            "L3-l/L3a-r/L3a2-HE", "L4-d/L4c-grade"], rng.randint(1, 5)):
        words, several = rng.choice(vocabularies), rng.random() < 0.3
        for _ in range(rng.randint(1, 12)):
            offered = rng.sample(words, rng.randint(min(2, len(words)), min(6, len(words))))
            truth = set(rng.sample(offered, rng.randint(1, len(offered)) if several else 1))
            questions.append(Judged(file, truth, answer(file, truth, offered), set(offered)))
    return questions


def test_equals_an_independent_implementation_on_random_predictions():
    rng, values = random.Random(0), []
    for _ in range(1000):
        tree = random_tree(rng, lambda file, truth, offered: truth if rng.random() < 0.4 else set(
            rng.sample(offered, rng.randint(0, min(2, len(offered))))))
        ours, theirs = evaluation.tree_scores(tree), by_definition(tree)
        ours, theirs = ({"overall": scores["overall"], **scores["levels"], **scores["tasks"]}
                        for scores in (ours, theirs))
        assert ours.keys() == theirs.keys()
        assert max(abs(ours[name] - theirs[name]) for name in ours) < 1e-9  # False for NaN
        values.append(ours["overall"])
    assert np.isfinite(values).all() and min(values) == 0 and 0.2 < fmean(values) < 0.8  # all kinds were drawn


def test_the_same_text_everywhere_scores_0():
    """With two categories or more; in L1a its sensitivity: 1 in its own category, 0 in the others."""
    rng, seen = random.Random(0), set()
    for _ in range(300):
        texts = {}  # the constant answer of each file
        tree = random_tree(rng, lambda file, truth, offered, texts=texts: {
            texts.setdefault(file, rng.choice(offered))} & set(offered))
        for file, text in texts.items():
            questions = [question for question in tree if question.file == file]
            found = sorted(set().union(*(question.truth for question in questions)))
            counted = found if len(found) != 2 else ["Yes"] if "Yes" in found else found[:1]
            expected = (text in counted) / len(counted) if "L1a" in file or len(found) == 1 else 0
            assert subtask_score(questions) == pytest.approx(expected)
            seen.add(("L1a" in file, min(len(found), 3), expected > 0))
    assert len(seen) == 10  # all that there are: L1a or another; 1, 2, 3 or more categories; something right or nothing


@pytest.mark.parametrize(("count", "expected"), [(2, 0.5), (4, 0.375), (5, 0.32), (6, 0.278)])
def test_random_answers_and_always_a(count, expected):
    """Of k options a random answer has sensitivity 1/k and specificity (k-1)/k: F1 = 2 (k-1) / k^2. So has the letter A
    when every text stands there equally often. 40 times 100 questions a category: standard error of the mean 0.006 for
    two options, of which one counts, less for more; curvature costs 0.003. Tolerance: 3 standard errors."""
    names, rng = [f"label {i}" for i in range(count)], random.Random(1)
    assert 2 * (count - 1) / count**2 == pytest.approx(expected, abs=5e-4)
    truth = names * 100
    said = [subtask_score(judged(truth, rng.choices(names, k=len(truth)), names)) for _ in range(40)]
    assert fmean(said) == pytest.approx(expected, abs=0.018)
    turned = [names[turn:] + names[:turn] for turn in range(count)]
    rows = [(f"L4-x/L4c-y::{i}", as_options(options), "ABCDEF"[options.index(name)], name)
            for i, (options, name) in enumerate(product(turned, names))]
    questions = pd.DataFrame(rows, columns=["id", "options", "answer", "answer_text"]).assign(
        benchmark="FunBench", task="L4c", kind="single")
    asked = pd.concat([questions, questions.assign(benchmark="Omni-Fundus", task="LG")], ignore_index=True)
    row = evaluation.table_scores(asked, evaluation.score_predictions(asked, ["<answer> A </answer>"] * len(asked)))
    assert row["L4"] == pytest.approx(100 * 2 * (count - 1) / count**2, abs=1e-9)
    assert row["LG"] == pytest.approx(100 / count, abs=1e-9)


def test_always_a_on_shuffled_options_has_its_closed_form():
    """Sensitivity: how often a category stands at A where it is right; specificity: how rarely where it is not."""
    rng = random.Random(2)
    asked = [(rng.sample(GRADES, 5), rng.choice(GRADES)) for _ in range(200)]
    expected = fmean(evaluation.harmonic_mean(
        fmean(options[0] == name for options, truth in asked if truth == name),
        fmean(options[0] != name for options, truth in asked if truth != name)) for name in GRADES)
    assert subtask_score([Judged("L4c", {truth}, {options[0]}, set(options)) for options, truth in asked]) \
        == pytest.approx(expected, abs=1e-12)


PARTS = {"funbench": ["L1", "L2", "L3", "L4"], "omni": ["MR", "AI", "LG", "DDo"],
         "gmai": ["AR", "NT", "BVR", "DDg", "SG"], "avg": ["funbench", "omni", "gmai"]}


def test_published_averages_come_out_of_the_published_cells():
    """Plain means within 0.05, half a unit of the last printed digit (plus a float's error), with four exceptions."""
    published, odd = Path(evaluation.__file__).parents[1] / "papers_figs/published", []
    for number, name, averages in ((5, "setup", PARTS), (7, "model", {"avg": PARTS["avg"]})):
        table = pd.read_csv(published / f"fundus_r1_table{number}.csv").set_index(name)
        for column, cells in averages.items():
            off = (table[cells].mean(axis=1) - table[column]).abs()
            odd += [(number, column, row) for row in off.index[off > 0.05 + 1e-9]]
            assert off.max() < 0.067
    assert odd == [(5, "avg", "G"), (7, "avg", "MedVLM-R1"), (7, "avg", "Med-R1-fundus"), (7, "avg", "Fundus-R1-3B")]


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


def test_tasks_weigh_the_same_and_accuracy_is_that_of_scikit_learn():
    frame = pd.DataFrame({"task": ["MR"] * 9 + ["DD"], "hit": [True] * 9 + [False]})
    assert evaluation.accuracy_scores(frame) == {"overall": 0.5, "tasks": {"DD": 0.0, "MR": 1.0}}
    rng = np.random.default_rng(0)
    drawn = pd.DataFrame({"task": rng.choice(["MR", "AI", "DD"], 300), "truth": rng.choice(list("ABCD"), 300),
                          "said": rng.choice(list("ABCD"), 300)})
    scores = evaluation.accuracy_scores(drawn.assign(hit=drawn.truth == drawn.said))
    assert scores["tasks"] == pytest.approx({task: accuracy_score(part.truth, part.said)
                                             for task, part in drawn.groupby("task")})


def test_ophthareason_by_hand():
    options = as_options(["a", "b", "c"])
    rows = [("single_choice_test_data_CFP::1", "single", "IDRiD", "out-of-domain", "A", "<answer> A </answer>"),
            ("single_choice_test_data_CFP::2", "single", "IDRiD", "out-of-domain", "B", "<answer> A </answer>"),
            ("single_choice_test_data_CFP::3", "single", "RFMiD", "out-of-domain", "B", "<answer> B </answer>"),
            ("single_choice_test_data_OCT::1", "single", "UCSD", "in-domain", "C", "no idea"),
            ("multi_choice_test_data_CFP::1", "multi", "IDRiD", "out-of-domain", "A,B", "<answer> A,B </answer>"),
            ("multi_choice_test_data_CFP::2", "multi", "IDRiD", "out-of-domain", "A,B", "<answer> B, C </answer>"),
            ("complex_reason::1", "open", None, None, "Age-related macular degeneration", "<answer> AMD </answer>"),
            ("complex_reason::2", "open", None, None, "The choroidal osteoma", "<answer> Choroidal osteoma. </answer>"),
            ("complex_reason::3", "open", None, None, "Coats disease", "<answer> Stargardt disease </answer>"),
            ("complex_reason::4", "open", None, None, "Coats disease", None)]
    questions = pd.DataFrame(rows, columns=["id", "kind", "dataset", "domain", "answer", "said"])
    questions["options"] = [options if kind != "open" else [] for kind in questions.kind]
    predictions = evaluation.score_predictions(questions, [row[-1] for row in rows])
    table = evaluation.ophthareason_scores(questions, predictions)
    assert table.columns.tolist() == ["kind", "dataset", "domain", "metric", "score", "low", "high", "n"]
    got = {tuple(row[:4]): (row.score, row.n) for row in table.itertuples(index=False)}
    ends = {tuple(row[:4]): (row.low, row.high) for row in table.itertuples(index=False)}
    assert ends["single", "UCSD", "in-domain", "accuracy"] == pytest.approx((0, 79.3), abs=0.1)  # Wilson, 0 of 1
    # macro of 50 [9.5, 90.5] and 100 [20.7, 100]: 75 - sqrt(40.5^2 + 79.3^2) / 2, 75 + sqrt(40.5^2 + 0) / 2
    assert ends["single", "macro", "out-of-domain", "accuracy"] == pytest.approx((30.5, 95.3), abs=0.1)
    assert all(low <= table.score[i] <= high for i, (low, high) in enumerate(zip(table.low, table.high, strict=True)))
    outside, unsaid = "out-of-domain", "not stated"
    assert got["single", "IDRiD", outside, "accuracy"] == (50, 2)
    assert got["single", "UCSD", "in-domain", "accuracy"] == got["single", "macro", "in-domain", "accuracy"] == (0, 1)
    assert got["single", "macro", outside, "accuracy"] == (75, 3)  # of 50 and 100, not 2 of 3
    assert got["multi", "IDRiD", outside, "exact match"] == (50, 2)
    assert got["multi", "IDRiD", outside, "set F1"] == (75, 2)     # 1, and 2 * 1 / 4
    assert got["open", "complex_reason", unsaid, "exact match"] == (50, 4)  # by synonym; without article and dot
    assert got["open", "complex_reason", unsaid, "token F1"] == (62.5, 4)   # 1, 1, "disease" of two words: 1/2, 0
    assert len(got) == 5 + 4 + 4  # single: three data sets and two domains; multi, open: one of each, two metrics


def test_two_answers_to_an_open_question_are_none():
    hedge = "<answer> DME </answer> or <answer> Glaucoma </answer>"
    asked = pd.DataFrame([{"id": "o::1", "kind": "open", "options": None, "answer": "DME"}])
    assert not evaluation.score_predictions(asked, [hedge])["hit"].any()


def test_set_f1_is_that_of_scikit_learn():
    rng = random.Random(0)
    truth, said = ([rng.sample("ABCDE", rng.randint(1, 4)) for _ in range(50)] for _ in range(2))
    shape = MultiLabelBinarizer(classes=list("ABCDE"))
    theirs = f1_score(shape.fit_transform(truth), shape.fit_transform(said), average="samples")
    assert fmean(map(evaluation.set_f1, said, truth)) == pytest.approx(theirs)


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
