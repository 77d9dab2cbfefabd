"""Knowledge pages, retrieval, and the vocabularies read out of them."""

import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from fundus_lib import knowledge, lexicon, world

CLINICAL = Path(__file__).parents[2] / "shared" / "clinical"
DRAWN = [(label, modality) for modality, rules in world.clinic.RULES.items() for label in rules
         if modality != "FFA"]  # angiograms are asked for no diagnosis


@pytest.mark.parametrize("pair", DRAWN, ids=" on ".join)
def test_every_drawn_pair_has_knowledge_with_its_sources(pair):
    known = knowledge.acquire(*pair)
    assert known.query == f"What are the key {pair[1]} findings for diagnosing {pair[0]}?"
    assert all(source["cites"] for source in known.sources)
    kept = {source["source"].split("#")[1] for source in known.sources}
    assert any(section.startswith("Diagnostic criteria") for section in kept)
    assert not any(section.startswith(("Background", "Next steps")) for section in kept)


@pytest.mark.parametrize("pair", sorted(knowledge.pairs()), ids=" on ".join)
def test_vocabulary_is_disjoint_and_shown_by_the_modality(pair):
    words = knowledge.vocabulary(*pair)
    assert words.required or pair == ("Diabetes mellitus", "UWF")  # which no image proves
    assert words.required == words.all_of.union(*words.any_of)
    assert not words.required & words.supportive | words.supportive & words.excluded | words.required & words.excluded
    assert words.definitional <= words.excluded
    for finding in words.required | words.supportive | words.excluded:
        assert pair[1] in lexicon.findings()[finding]["shown_by"]


def test_vocabularies_agree_with_the_given_examples():
    if not CLINICAL.exists():
        pytest.skip("the clinical reference is not beside this checkout")
    examples = json.loads((CLINICAL / "vocabulary_examples.json").read_text())["pairs"]
    checked = 0
    for example in examples:
        if (example["label"], example["modality"]) in knowledge.pairs():
            words, logic = knowledge.vocabulary(example["label"], example["modality"]), example["required_logic"]
            assert words.all_of == set(logic["all_of"])
            assert set(words.any_of) == {frozenset(group) for group in logic["any_of"]}
            assert words.supportive == set(example["supportive"])
            assert words.excluded == set(example["excluded"])
            assert words.definitional == {f for f, s in example["excluded_strength"].items() if s == "definitional"}
            checked += 1
    assert checked == 15


@pytest.mark.parametrize(("label", "modality"), DRAWN, ids=lambda value: value)
def test_drawn_eyes_meet_the_criteria_of_their_label(label, modality):
    import numpy as np

    words, rng = knowledge.vocabulary(label, modality), np.random.default_rng(0)
    for _ in range(20):
        assert words.satisfied_by(world.sample_findings(rng, label, modality) & (words.required | words.supportive))


def test_the_rule_of_one_pair_by_hand():
    words = knowledge.vocabulary("choroidal neovascularisation", "OCT")  # any case, any spelling
    assert not words.satisfied_by({"pigment epithelial detachment"})  # a structure without exudation
    assert words.satisfied_by({"fibrovascular PED", "subretinal fluid"})
    assert not words.satisfied_by({"fibrovascular PED", "subretinal fluid", "normal foveal contour"})


@pytest.mark.parametrize(("label", "modality", "near"), [
    ("Moderate NPDR", "FFA", "Moderate NPDR on CFP"), ("Glaucoma", "OCT", "Glaucoma on"),
    ("glaucom", "CFP", "Glaucoma on CFP")])
def test_an_unknown_pair_names_the_nearest(label, modality, near):
    with pytest.raises(KeyError, match=near):
        knowledge.vocabulary(label, modality)


def test_retrieval_ranks_every_passage_and_prefers_the_page_asked_for():
    hits = knowledge.embedded().retrieve(knowledge.query("Retinitis pigmentosa", "UWF"))
    assert len(hits) == len({passage.source for passage, _ in hits})
    assert hits[0][0].label == "Retinitis pigmentosa"
    assert [score for _, score in hits] == sorted((score for _, score in hits), reverse=True)


def test_build_is_what_the_files_hold():
    rows, table = knowledge.build([("DME", "OCT"), ("normal", "UWF")])
    assert [(row["label"], row["modality"]) for row in rows] == [("DME", "OCT"), ("Normal", "UWF")]
    assert table["DME|OCT"]["required"] == ["intraretinal fluid"]
    assert json.loads(json.dumps([rows, table])) == [rows, table]
    assert all(row["findings"] and row["refused"] == [] for row in rows)


def test_every_sentence_and_every_finding_has_its_source():
    for pair in sorted(knowledge.pairs()):
        known = knowledge.acquire(*pair)
        (record,) = knowledge.extract_by_rules([(*pair, known)])
        assert "\n\n".join(known.text[s["start"]:s["end"]] for s in known.sources) == known.text
        for place in (s["start"] for s in known.sources):
            assert known.text[place:].startswith(knowledge.source_of(known, place)["source"].partition("#")[2])
        for item in record.findings:  # the page itself says it
            page, _, section = knowledge.source_of(known, item.evidence)["source"].partition("#")
            told = (lexicon.REFERENCES / page).read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
            assert item.evidence in " ".join(told.split())
            unmarked = re.sub(r" \[\d+\]", "", item.evidence)
            assert knowledge.source_of(known, unmarked) == knowledge.source_of(known, item.evidence)
    for place in ("Aliens did it.", len(known.text), -1):
        with pytest.raises(KeyError, match="does not say"):
            knowledge.source_of(known, place)


def test_the_headings_that_are_kept():
    kept = ["Symptoms", "Signs on CFP", "Clinical Features", "Diagnosis > Imaging", "Physical examination", "OCT",
            "Optical coherence tomography", "Grading", "What are the symptoms of Glaucoma ?"]
    lost = ["Background", "Next steps", "Treatment", "References", "Epidemiology", "Designation", "Doctors"]
    assert [bool(knowledge.KEPT.search(heading)) for heading in kept + lost] == [True] * 9 + [False] * 7


SAYS = """The hallmark is any one of four-quadrant hemorrhages, venous beading or IRMA.
Microaneurysms and hard exudates are often seen. New vessels are never
found, and drusen point elsewhere. There is no vitreous hemorrhage. Cotton-wool spots vary."""
KNOWN = knowledge.Knowledge("q", SAYS, [{"source": "a", "start": 0, "end": len(SAYS)}])
FIRST, SECOND, THIRD, FOURTH = (part + "." for part in " ".join(SAYS.split()).split(".")[:4])


class Model:
    """A client whose model gives the same items (finding, role, group, evidence) for every pair, or no answer."""

    def __init__(self, *items):
        self.items, self.asked = items, []

    def ask(self, requests, desc):
        self.asked += requests
        given = [knowledge.FindingRole(finding=f, role=r, group=g, evidence=e) for f, r, g, e in self.items]
        values = (knowledge.KnowledgeRecord(findings=given),) if given else ()
        return [SimpleNamespace(texts=(), values=values, error="" if values else "timed out") for _ in requests]


def test_what_a_model_reads_is_held_against_k():
    client = Model(("4-quadrant hemorrhages", "required_one_of", 1, FIRST),
                   ("new vessels", "excluded_definitional", 0, THIRD), ("beaded veins", "required_one_of", 1, FIRST),
                   ("IRMA", "required_one_of", 1, FIRST + THIRD),
                   ("microaneurysm", "supportive", 0, SECOND.strip()), ("rubeosis", "supportive", 0, SECOND),
                   ("hard exudates", "supportive", 0, "Hard exudates are always seen."),
                   ("vitreous hemorrhage", "supportive", 0, FOURTH), ("drusen", "supportive", 0, THIRD),
                   ("drusen", "excluded_differential", 0, THIRD), ("drusen", "required_one_of", 2, THIRD))
    (record,) = knowledge.extract_by_llm(client, [("Severe NPDR", "CFP", KNOWN)])
    assert SAYS in client.asked[0].prompt and client.asked[0].schema is knowledge.KnowledgeRecord
    words, refused = knowledge.to_vocabulary(record, KNOWN, "CFP")
    hallmark = frozenset({"extensive four-quadrant hemorrhage", "venous beading"})
    assert (words.all_of, words.any_of, words.required) == (frozenset(), (hallmark,), hallmark)
    assert words.supportive == {"microaneurysm"} and words.excluded == words.definitional == {"neovascularization"}
    assert refused == [
        "required_one_of 'IRMA': no sentence of K", "supportive 'rubeosis': not seen on CFP",
        "supportive 'hard exudates': no sentence of K",
        "supportive 'vitreous hemorrhage': not said there", "'drusen': given different roles"]


@pytest.mark.parametrize(("items", "reason"), [((), "no record")] + [(it, "none of its criteria is left") for it in [
    [("IRMA", "supportive", 0, "No.")], [("venous beading", "required", 0, "It is.")],
    [("IRMA", "required", 0, FIRST), ("IRMA", "supportive", 0, FIRST)]]])
def test_a_pair_that_fails_is_listed_and_has_no_vocabulary(items, reason):
    rows, table = knowledge.build([("DME", "OCT")] * 2, extract=partial(knowledge.extract_by_llm, Model(*items)))
    assert table == {} and [row["refused"][-1] for row in rows] == [reason] * 2


def test_an_adopted_table_answers_alone():
    (_, table), before = knowledge.build([("DME", "OCT"), ("Severe NPDR", "CFP")]), knowledge.vocabulary("DME", "OCT")
    table["DME|OCT"]["supportive"] = ["drusen"]
    try:
        knowledge.adopt(json.loads(json.dumps(table)))
        assert knowledge.pairs() == {("DME", "OCT"), ("Severe NPDR", "CFP")}
        assert knowledge.vocabulary("dme", "OCT") == before._replace(supportive=frozenset({"drusen"}))
        with pytest.raises(KeyError, match="Glaucoma"):
            knowledge.vocabulary("Glaucoma", "CFP")
    finally:
        knowledge.adopt({})
    assert knowledge.vocabulary("DME", "OCT") == before and len(knowledge.pairs()) > 80


def test_a_malformed_page_is_named(tmp_path, monkeypatch):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "odd.md").write_text("# Not a label\nmodalities: CFP\n")
    monkeypatch.setattr(lexicon, "REFERENCES", tmp_path)
    lexicon.canonical_label("")  # the labels are read before the folder is gone
    with pytest.raises(ValueError, match=r"odd\.md"):
        knowledge.embedded_pages()
