"""Traces: the writer, one known-bad trace a category, and the public cases."""


import numpy as np
import pandas as pd
import pytest

from fundus_lib import knowledge, traces, world
from fundus_lib.trace_writer import build, write_simple_trace, write_trace

DRAWN = [(label, modality) for modality, rules in world.clinic.RULES.items() for label in rules
         if modality != "FFA"]
SEEN = ["microaneurysm", "retinal hemorrhage", "hard exudate"]
OPTIONS = [{"letter": "A", "text": "PDR"}, {"letter": "B", "text": "Moderate NPDR"}]


def problems(thought, answer="Moderate NPDR", label="Moderate NPDR", modality="CFP", seen=tuple(SEEN)):
    return traces.check_trace(f"<think>{thought}</think> <answer>{answer}</answer>", label=label, modality=modality,
                              findings=seen).problems


def test_the_template():
    assert write_trace("Moderate NPDR", "CFP", SEEN, OPTIONS) == (
        "<think> This CFP image shows microaneurysm, retinal hemorrhage, hard exudate. microaneurysm, retinal "
        "hemorrhage without extensive four-quadrant hemorrhage or neovascularization indicates Moderate NPDR. </think> "
        "<answer> Moderate NPDR </answer>")
    assert write_simple_trace("OCT", "OCT") == "<think> This is a OCT image. </think> <answer> OCT </answer>"
    assert "<think> This CFP image shows no finding. </think>" in write_simple_trace("CFP", "No", [])


@pytest.mark.parametrize(("label", "modality"), DRAWN, ids=lambda value: value)
def test_what_the_writer_writes_passes_its_checks(label, modality):
    words, rng = knowledge.vocabulary(label, modality), np.random.default_rng(0)
    for _ in range(10):
        seen = world.sample_findings(rng, label, modality) & (words.required | words.supportive)
        text = write_trace(label, modality, seen, {"A": label, "B": "Coloboma"})
        assert traces.check_trace(text, label=label, modality=modality, findings=seen).problems == set(), text
        assert len(text.split()) <= 60


def test_a_trace_without_the_decisive_finding_does_not_pass():
    seen = ["microaneurysm"]
    report = traces.check_trace(write_trace("Severe NPDR", "CFP", seen), label="Severe NPDR", modality="CFP",
                                findings=seen)
    assert report.problems == {"missing_required_vf", "knowledge_missing_or_mismatch"}


GOOD = "Microaneurysms, hemorrhages and hard exudates are seen. This is below the 4-2-1 rule, so moderate NPDR."


def test_a_sound_trace_has_no_problem():
    assert problems(GOOD) == set()


@pytest.mark.parametrize(("category", "thought"), [
    ("modality_inconsistency", "On this B-scan m" + GOOD[1:]),
    ("modality_inconsistency", GOOD + " Ellipsoid zone disruption is seen."),
    ("missing_required_vf", "Hard exudates are seen, so moderate NPDR."),
    ("redundant_or_incorrect_vf", GOOD + " Cotton-wool spots are present."),
    ("redundant_or_incorrect_vf", GOOD + " Venous beading is possible."),
    ("redundant_or_incorrect_vf", GOOD + " No hard exudates."),
    ("knowledge_missing_or_mismatch", "Microaneurysms and hemorrhages are seen. Moderate NPDR."),
    ("knowledge_missing_or_mismatch", GOOD + " Venous outflow is obstructed."),
    ("answer_mismatch", "Microaneurysms and hemorrhages are seen, so severe NPDR."),
    ("self_contradiction", GOOD + " There are no microaneurysms."),
    ("self_contradiction", "Only microaneurysms are seen, with hemorrhages, so moderate NPDR."),
    ("format_error", ""), ("format_error", GOOD + " <!-- judge: plausible -->"), ("format_error", GOOD + "<think>"),
])
def test_each_check_catches_its_problem(category, thought):
    assert category in problems(thought)


def test_a_next_test_and_another_disease_may_be_named():
    assert problems(GOOD + " OCT would be needed to exclude fluid.") == set()
    assert problems(GOOD + " In wet AMD one would expect subretinal fluid.") == set()


def test_another_answer_is_a_mismatch_and_is_reported():
    report = traces.check_trace(f"<think>{GOOD}</think> <answer>A</answer>", label="Moderate NPDR", modality="CFP",
                                findings=SEEN, options=OPTIONS)
    assert report.answer == "PDR"
    assert "answer_mismatch" in report.problems


def test_a_pair_without_a_page_is_refused():
    with pytest.raises(KeyError, match="no reference page"):
        traces.check_trace("<think>x</think> <answer>y</answer>", label="Moderate NPDR", modality="FFA", findings=[])


def test_build_keeps_the_reasons():
    questions = pd.DataFrame([
        {"id": "1/L4c", "record_id": "1", "split": "train", "modality": "CFP", "options": OPTIONS,
         "answer_text": "Moderate NPDR", "label": "Moderate NPDR", "finding": None},
        {"id": "2/L4c", "record_id": "2", "split": "train", "modality": "CFP", "options": OPTIONS,
         "answer_text": "PDR", "label": "PDR", "finding": None},
        {"id": "1/L3a", "record_id": "1", "split": "train", "modality": "CFP", "options": [], "answer_text": "Yes",
         "label": None, "finding": "drusen"},
        {"id": "3/L4b", "record_id": "3", "split": "train", "modality": "CFP", "options": [],
         "answer_text": "Retinitis", "label": "Retinitis", "finding": None},
        {"id": "4/L4a", "record_id": "4", "split": "train", "modality": "CFP", "options": [], "answer_text": "Yes",
         "label": None, "finding": None},
        {"id": "1/L3c", "record_id": "1", "split": "train", "modality": "CFP", "options": [],
         "answer_text": "0.5 to 2 %", "label": None, "finding": "drusen"},
        {"id": "4/L1a", "record_id": "4", "split": "test", "modality": "CFP", "options": [], "answer_text": "CFP",
         "label": None, "finding": None}])
    questions["level"] = questions.id.str.split("/").str[1]
    seen = pd.DataFrame([{"record_id": "1", "finding": "microaneurysm", "kept": True},
                         {"record_id": "2", "finding": "neovascularization", "kept": False},
                         {"record_id": "2", "finding": "normal retinal vasculature", "kept": True}])
    built = build(questions, seen, max_words=60).set_index("question_id")
    # No page for retinitis, nothing to say of a yes about a disease; test questions get no trace.
    assert built.kept.to_dict() == {"1/L4c": True, "2/L4c": False, "1/L3a": True, "1/L3c": True}
    assert "shows drusen" in built.loc["1/L3c", "text"]
    assert not built.loc["2/L4c", "no_missing_required_vf"]  # new vessels were voted down
    assert not built.loc["2/L4c", "no_contradicting_finding"]  # and the vote found normal vessels
    assert "shows drusen" in built.loc["1/L3a", "text"]
    assert not build(questions, seen, max_words=5).kept.any()


def test_the_public_cases(trace_cases):
    passed = []
    for case, about in trace_cases:
        found = traces.check_trace(case["trace"], **about).problems
        needed = set(case["expected_qc"]["categories"])
        passed.append(needed <= found <= needed | set(case["expected_qc"]["also_acceptable"]))
    assert np.mean(passed) >= 0.97
