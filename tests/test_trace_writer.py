"""The writers of traces: every wording of the grammar passes every check, models are asked the paper's way."""

import re
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fundus_lib import knowledge, lexicon, trace_writer, traces, world
from fundus_lib.client import Reply
from fundus_lib.trace_writer import build, compose, leaks_answer, write_simple_trace, write_trace

DRAWN = [(label, modality) for modality, rules in world.clinic.RULES.items() for label in rules if modality != "FFA"]
PAIRS, SEEN = sorted(knowledge.pairs()), ["microaneurysm", "retinal hemorrhage", "hard exudate"]
OPTIONS = [{"letter": "A", "text": "PDR"}, {"letter": "B", "text": "Moderate NPDR"}]
GRAMMAR, LLM = (SimpleNamespace(writer=writer, wordings=1, max_words=60) for writer in ("grammar", "llm"))
GOOD = "<think> Microaneurysms are seen, so moderate NPDR. </think> <answer> Moderate NPDR </answer>"


def report(text, label, modality, seen):
    return traces.check_trace(text, label=label, modality=modality, findings=seen)


def test_wording_zero_is_the_small_models():
    assert write_trace("Moderate NPDR", "CFP", SEEN, OPTIONS) == (
        "<think> This CFP image shows microaneurysm, retinal hemorrhage, hard exudate. microaneurysm, retinal "
        "hemorrhage without extensive four-quadrant hemorrhage or neovascularization indicates Moderate NPDR. </think> "
        "<answer> Moderate NPDR </answer>")
    assert write_simple_trace("OCT", "OCT") == "<think> This is a OCT image. </think> <answer> OCT </answer>"
    assert "<think> This CFP image shows no finding. </think>" in write_simple_trace("CFP", "No", [])


def test_what_the_small_model_learns_passes_the_checks():
    rng = np.random.default_rng(0)
    for label, modality in DRAWN * 3:
        words = knowledge.vocabulary(label, modality)
        seen = world.sample_findings(rng, label, modality) & (words.required | words.supportive)
        text = write_trace(label, modality, seen, {"A": label, "B": "Coloboma"})
        assert report(text, label, modality, seen).problems == set(), text
        assert len(text.split()) <= 60


@pytest.mark.parametrize("pair", PAIRS, ids="|".join)
@settings(max_examples=3, deadline=None)
@given(st.data(), st.integers(0, 40))
def test_no_wording_of_any_pair_fails_a_check_or_goes_beyond_the_image(pair, data, wording):
    known = knowledge.vocabulary(*pair)
    seen = known.all_of.union(*(data.draw(st.sets(st.sampled_from(sorted(g)), min_size=1)) for g in known.any_of))
    seen |= data.draw(st.sets(st.sampled_from(sorted(known.supportive) or sorted(seen)), max_size=4))
    text = write_trace(*pair, seen, {"A": "Coloboma", "B": pair[0]}, wording=wording)
    checked = report(text, *pair, seen)
    assert checked.problems == set(), text
    assert not leaks_answer(text, pair[0], pair[0]), text
    thought = text.partition("</think>")[0].rpartition(pair[0])[0]  # the label itself may be a finding's name
    for mention in lexicon.find_mentions(thought):
        excluded = mention.status == "negated" and mention.finding in known.excluded
        assert excluded or mention.finding in lexicon.family(*seen), (mention, text)
    assert seen & (known.required | known.supportive) <= lexicon.family(*checked.asserted), text
    assert write_trace(*pair, sorted(seen), {"A": "Coloboma", "B": pair[0]}, wording=wording) == text  # not by order


@pytest.mark.parametrize("wording", range(8))
def test_what_does_not_meet_the_criteria_is_told_and_dropped(wording):
    text = write_trace("Severe NPDR", "CFP", ["microaneurysm"], wording=wording)
    assert report(text, "Severe NPDR", "CFP", ["microaneurysm"]).problems == {
        "missing_required_vf", "knowledge_missing_or_mismatch"}
    assert "microaneurysm" in text and ("not" in text and "criteria" in text or wording == 0)
    against = write_trace("Moderate NPDR", "CFP", [*SEEN, "neovascularization"], wording=wording)
    assert "neovascularization" not in against  # what contradicts the label is there: neither told nor denied


def test_wordings_differ_in_order_depth_and_sources():
    told = [compose("Wet AMD", "OCT", ["drusen", "intraretinal fluid", "fibrovascular PED"], wording=n)
            for n in range(1, 8)]
    assert all(trace.text.index("drusen") > trace.text.index("fibro") for trace in told[1::2])  # the rule first
    # Findings, rule, conclusion; the signs that contradict it are normal ones here and not denied; look-alike; fact.
    assert [trace.text.count(". ") for trace in told] == [3, 3, 3, 4, 4, 5, 5]
    assert told[0].sources == ["pages/wet_amd.md#Diagnostic criteria on OCT"]
    assert told[-1].sources == [*told[0].sources, "pages/wet_amd.md#Diagnostic criteria in general"]
    assert "neovascularization" in write_trace("Moderate NPDR", "CFP", SEEN, wording=3)  # denied from depth 1 on
    assert "neovascularization" not in write_trace("Moderate NPDR", "CFP", SEEN, wording=1)


def test_a_child_meets_its_parents_criterion():
    text = write_trace("Moderate NPDR", "CFP", ["flame-shaped hemorrhage"], wording=2)
    assert not report(text, "Moderate NPDR", "CFP", ["flame-shaped hemorrhage"]).problems


def test_a_quotation_is_in_its_source():
    bare = {p.source: re.sub(r" ?\[\d+\]", "", " ".join(p.text.split())) for p in knowledge.embedded_pages()}
    quoted = [(quote, known) for pair in PAIRS for known in [knowledge.vocabulary(*pair)]
              for quote in trace_writer._quotes(*pair, known)]
    assert len(quoted) > 4 * len(PAIRS)
    assert all(quote.text in bare[quote.source] and quote.denied <= known.excluded for quote, known in quoted)


def test_depth_gives_way_to_max_words():
    whole = compose("Moderate NPDR", "CFP", SEEN, wording=7)
    short = compose("Moderate NPDR", "CFP", SEEN, wording=7, max_words=len(whole.text.split()) - 1)
    least = compose("Moderate NPDR", "CFP", SEEN, wording=7, max_words=1)
    assert len(whole.text) > len(short.text) > len(least.text)


def test_nouns_still_name_their_finding():
    for name in lexicon.findings():
        for bare in (False, True):
            said = f"The image shows {trace_writer._noun(name, bare)}."
            assert [m.finding for m in lexicon.find_mentions(said)] == [name], said
    assert trace_writer._listed(["drusen", "macular star", "laser scar"]) == "drusen, a macular star and laser scars"


@pytest.mark.parametrize(("thought", "leaks"), [
    ("This is moderate NPDR. Microaneurysms are seen.", True),
    ("The answer is B. Microaneurysms are seen.", True),
    ("The answer is A. Microaneurysms are seen.", False),  # another fault, and another check's
    ("Nothing is shown, so moderate NPDR.", True),
    ("Microaneurysms are seen. So it is moderate NPDR.", False),
    ("Microaneurysms are seen, hence moderate NPDR.", False),
])
def test_an_answer_before_its_reason_is_a_leak(thought, leaks):
    assert leaks_answer(f"<think>{thought}</think>", "Moderate NPDR", "Moderate NPDR", OPTIONS) == leaks


def test_a_finding_with_the_labels_name_is_no_leak():
    assert not leaks_answer("<think> Drusen are seen, so drusen. </think>", "Drusen", "Drusen")
    assert leaks_answer("<think> Diabetic macular edema is here. Cysts are seen. </think>", "DME", "DME")


@pytest.fixture
def tables():
    rows = [("1/L4c", OPTIONS, "Moderate NPDR", "Moderate NPDR", None), ("2/L4c", OPTIONS, "PDR", "PDR", None),
            ("1/L3a", [], "Yes", None, "drusen"), ("3/L4b", [], "Retinitis", "Retinitis", None),
            ("4/L4a", [], "Yes", None, None), ("1/L3c", [], "0.5 to 2 %", None, "drusen")]
    questions = pd.DataFrame(rows, columns=["id", "options", "answer_text", "label", "finding"])
    questions = questions.assign(split="train", modality="CFP", question="What is the grade?", path="1.png")
    test = questions[:1].assign(id="4/L4c", split="test")
    questions = pd.concat([questions, test], ignore_index=True)
    questions[["record_id", "level"]] = questions.id.str.split("/", expand=True)
    seen = [("1", "microaneurysm", True), ("2", "neovascularization", False), ("2", "normal retinal vasculature", True)]
    return questions, pd.DataFrame(seen, columns=["record_id", "finding", "kept"])


def test_build_keeps_the_reasons(tables):
    built = build(*tables, GRAMMAR).set_index("question_id")
    # No page for retinitis, nothing to say of a yes about a disease; test questions get no trace.
    assert built.kept.to_dict() == {"1/L4c": True, "2/L4c": False, "1/L3a": True, "1/L3c": True}
    assert not built.loc["2/L4c", "no_missing_required_vf"]  # new vessels were voted down
    assert not built.loc["2/L4c", "no_contradicting_finding"]  # and the vote found normal vessels
    assert built.loc[["1/L3a", "1/L3c"], "text"].str.contains("shows drusen").all()
    assert set(built.writer) == {"grammar"} and set(built.wording) == {0}
    assert not build(*tables, SimpleNamespace(writer="grammar", wordings=1, max_words=5)).kept.any()
    assert build(tables[0][-1:], tables[1], GRAMMAR).empty  # a shard of test questions
    assert build(*tables, SimpleNamespace(writer="grammar", wordings=8, max_words=60)).wording.nunique() > 1


class Fake(NamedTuple):
    """Answers by a part of the prompt."""
    replies: dict
    asked: list

    def ask(self, requests, desc):
        self.asked.extend(requests)
        return [next(reply for part, reply in self.replies.items() if part in request.prompt) for request in requests]


def test_a_language_model_writes_from_findings_and_knowledge(tables):
    thought = Reply((f"<think>the task is easy</think>\n{GOOD}",), ())
    client = Fake({"answer: Moderate": thought, "answer: PDR": Reply((), (), "timed out")}, [])
    built = build(*tables, LLM, client).set_index("question_id")
    prompt = client.asked[0].prompt
    assert len(client.asked) == 2 and not client.asked[0].images
    for part in ("others: microaneurysm.", "B. Moderate NPDR", "Look-alikes: hypertension", "at most 60 words"):
        assert part in prompt
    assert built.loc["1/L4c", "text"] == GOOD and built.loc["1/L4c", "sources"][0].startswith("pages/moderate_npdr")
    assert built.writer.to_dict() == {"1/L4c": "llm", "2/L4c": "llm", "1/L3a": "grammar", "1/L3c": "grammar"}
    failed = built.loc["2/L4c"]
    assert not failed.written and not failed.kept and failed.error == "timed out"
    assert failed.no_format_error  # a trace that was not written has no other fault
    other = {"label": "PDR", "modality": "CFP", "text": "From a guideline.", "sources": [{"source": "guide#1"}]}
    assert build(*tables, LLM, client, [other]).set_index("question_id").sources["2/L4c"] == ["guide#1"]
    assert other["text"] in client.asked[-1].prompt


def test_the_free_form_baseline_is_compared_on_the_same_questions(tables):
    leak = "<think> This is moderate NPDR, with drusen. </think> <answer> B </answer>"
    client = Fake({"answer: Moderate": Reply((leak,), ()), "answer: PDR": Reply((), (), "timed out")}, [])
    free = trace_writer.free_form(*tables, GRAMMAR, client, image=str.encode)
    assert client.asked[0].images == (b"1.png",)
    assert "microaneurysm" not in client.asked[0].prompt  # neither V(I) nor K
    table = trace_writer.compare_writers(pd.concat([build(*tables, GRAMMAR), free]))
    assert table.traces.to_dict() == {"grammar": 2, "free-form": 1}
    assert table.failed.to_dict() == {"grammar": 0, "free-form": 1}
    assert table.kept.to_dict() == {"grammar": 0.5, "free-form": 0.0}
    assert table.loc["free-form", "no_answer_leak"] == table.loc["free-form", "no_redundant_or_incorrect_vf"] == 0
    assert table.loc["grammar", "low"] == pytest.approx(0.0945, abs=1e-3)  # Wilson, 1 of 2
