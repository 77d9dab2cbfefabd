"""Other projects' readings: what their own functions returned, executed at the commits named; a table done by hand."""

import random

import pandas as pd
import pytest

from fundus_lib.answers import Answer
from fundus_lib.emulations import SPLIT, disagreement, examples, medevalkit, vlmevalkit
from fundus_lib.evaluation import score_predictions
from fundus_lib.questions import as_options

GRADES = dict(zip("ABCDE", ("No DR", "Mild NPDR", "Moderate NPDR", "Severe NPDR", "PDR"), strict=True))
DISEASES = dict(zip("ABCD", ("Normal", "Glaucoma", "Cataract", "Diabetic retinopathy"), strict=True))
YES_NO = {"A": "Yes", "B": "No"}
LONG = "Then a lot more words follow here"
CHOICES = [  # response, options, VLMEvalKit (None: not read), MedEvalKit
    ("B", GRADES, "B", "B"), ("<answer>B</answer>", GRADES, None, "B"), ("<answer> B </answer>", GRADES, "B", "B"),
    ("The answer is diabetic retinopathy", GRADES, "D", "D"), ("The answer is a normal fundus", GRADES, "A", "A"),
    ("", DISEASES, None, "A"), ("I cannot tell", DISEASES, None, "C"), ("I cannot tell", GRADES, None, "A"),
    ("It is not glaucoma", DISEASES, "B", "B"), ("Cannot determine the answer", DISEASES, "Z", "D"),
    (f"<think> {LONG} and some more to make it longer </think> <answer> glaucoma </answer>", DISEASES, None, "B"),
    (f"The correct answer is **C**. {LONG}", GRADES, "C", "C"),
    (f"The correct answer is **C**. {LONG}", DISEASES, "C", "D"),
    (f"The correct answer is **E**. {LONG}", GRADES, None, "A"), ("The answer is (E)", GRADES, "E", "E"),
    ("B or C", GRADES, None, "A"), ("Option: C", GRADES, "C", "E"), ("Z", GRADES, "Z", "A"),
    (r"\boxed{D}", GRADES, "D", "D"), (r"\boxed{D", GRADES, "D", "A"), ("d\n\nbecause of spots", GRADES, None, "D"),
    ("Either is possible, **Answer**: B. Mild", GRADES, "B", "B")]
JUDGEMENTS = [  # response, VLMEvalKit, MedEvalKit
    ("Yes", "A", "A"), ("No, there is none", "B", "B"), ("yes and no", None, None), ("B", None, None),
    ("<answer>yes</answer>", "A", "A"), ("<think> x </think> <answer>yes</answer>", None, "A"),
    ("<think> x </think> <answer> yes </answer>", "A", "A"), ("Yes, not normal", "A", None),
    ("The fundus is normal", None, "B"), ("1,000 drusen; yes", "A", "A"), (r"\boxed{no}", "B", "B"),
    (". " * 40 + "yes.", None, "A")]  # the 41st full stop stays: "yes." is no word


@pytest.mark.parametrize(("response", "options", "theirs", "medical"), CHOICES)
def test_choices_are_read_as_their_own_functions_do(response, options, theirs, medical):
    status = {None: "random", "Z": "refused"}.get(theirs, "ok")
    assert vlmevalkit(response, options) == Answer(theirs if status == "ok" else None, status)
    assert medevalkit(response, options) == Answer(medical, "ok")


@pytest.mark.parametrize(("response", "theirs", "medical"), JUDGEMENTS)
def test_yes_or_no_is_read_as_their_own_functions_do(response, theirs, medical):
    assert vlmevalkit(response, YES_NO, "yesno") == Answer(theirs, "ok" if theirs else "missing")
    assert medevalkit(response, YES_NO, "yesno") == Answer(medical, "ok" if medical else "missing")


def test_several_answers_and_open_ones():
    assert vlmevalkit("A,C", DISEASES, "multi") == Answer(None, "random")
    assert vlmevalkit("C", DISEASES, "multi") == Answer(["C"], "ok")
    assert [medevalkit(said, DISEASES, "multi").value for said in ("A,C", "A, C", "C,A")] == [["A", "C"], ["A"], ["C"]]
    assert medevalkit("<answer>Wet\nAMD.</answer>", {}, "open") == Answer("wetamd", "ok")
    assert medevalkit(r"\boxed{Wet AMD", {}, "open") == Answer(None, "missing")


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_options_move_a_text_and_not_a_guess(seed):
    texts = random.Random(seed).sample(list(DISEASES.values()), 4)
    shuffled = dict(zip("ABCD", texts, strict=True))
    for said in ("It is glaucoma", "Diabetic retinopathy"):
        right = next(letter for letter, text in shuffled.items() if text.lower() in said.lower())
        assert vlmevalkit(said, shuffled).value == medevalkit(said, shuffled).value == right
    assert vlmevalkit("C", shuffled).value == medevalkit("C", shuffled).value == "C"
    assert medevalkit("", shuffled).value == "A" and vlmevalkit("", shuffled).value is None


@pytest.fixture
def asked():
    """(Two questions a benchmark, of Drusen (A) and Normal (B); their predictions as evaluation reads them)."""
    said = {"FunBench": ("<answer>A</answer>", "<answer>Normal</answer>"), "Omni-Fundus": ("", ""),
            "GMAI-Fundus": ("<think> yellow spots below </think> <answer>Drusen</answer>", "B")}
    questions = pd.DataFrame([{"id": f"L4-x/L4b-{benchmark}::{letter}", "benchmark": benchmark, "kind": "single",
                               "task": "L4b" if benchmark == "FunBench" else "DD", "answer": letter,
                               "options": as_options(("Drusen", "Normal"))} for benchmark in said for letter in "AB"])
    frame = score_predictions(questions, [text for texts in said.values() for text in texts])
    return questions.iloc[::-1], frame  # the questions may come in any order


def test_the_table_has_the_numbers_done_by_hand(asked):
    table = disagreement(asked[0], {"E": asked[1], "F": asked[1].iloc[:2]}).set_index(
        ["setup", "metric", "benchmark", "task"]).sort_index()
    readers = ["ours", "VLMEvalKit", "MedEvalKit", SPLIT]
    accuracy = table.loc["E", "accuracy"]
    assert accuracy["n"].to_dict() == {("FunBench", "L4b"): 2, ("FunBench", "all"): 2, ("GMAI-Fundus", "DD"): 2,
                                       ("GMAI-Fundus", "all"): 2, ("Omni-Fundus", "DD"): 2, ("Omni-Fundus", "all"): 2,
                                       ("all", "all"): 6}
    assert accuracy.loc[("FunBench", "L4b"), readers].tolist() == pytest.approx([100, 50, 100, 50])
    assert accuracy.loc[("Omni-Fundus", "DD"), readers].tolist() == pytest.approx([0, 0, 50, 0])
    assert accuracy.loc[("GMAI-Fundus", "DD"), readers].tolist() == pytest.approx([100, 50, 100, 100])
    whole = accuracy.loc[("all", "all"), readers]
    assert whole.tolist() == pytest.approx([400 / 6, 200 / 6, 500 / 6, 50])
    pairs = ["ours | VLMEvalKit", "ours | MedEvalKit", "VLMEvalKit | MedEvalKit"]
    shares = accuracy.loc[("all", "all"), ["differ", *pairs]]  # of six questions four, two, two and four
    assert shares.tolist() == pytest.approx([400 / 6, 200 / 6, 200 / 6, 400 / 6])
    table5 = table.loc["E", "Table 5"]  # FunBench: Drusen is missed where "<answer>A</answer>" is not read
    assert table5.loc[("FunBench", "all"), readers].tolist() == [100, 0, 100, 0]
    assert table5.loc[("all", "all"), readers].tolist() == pytest.approx([200 / 3, 50 / 3, 250 / 3, 100 / 3])
    assert table.loc["F", "Table 5"].index.tolist() == [("FunBench", "all")]  # no average of fewer benchmarks


def test_examples_show_who_is_right(asked):
    shown = examples(*asked, each=1)
    assert shown[["truth", "response", "ours", "VLMEvalKit", "MedEvalKit"]].to_numpy().tolist() == [
        ["A", "<answer>A</answer>", "A", "", "A"],  # only VLMEvalKit is wrong
        ["A", "", "", "", "A"],                     # a lucky guess of MedEvalKit's
        ["B", "", "", "", "A"]]                     # and an unlucky one
