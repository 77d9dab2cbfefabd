"""Knowledge pages, retrieval, and the vocabularies read out of them."""

import json
from pathlib import Path

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
    hits = knowledge.retrieve(knowledge.query("Retinitis pigmentosa", "UWF"))
    assert len(hits) == len({passage.source for passage, _ in hits})
    assert hits[0][0].label == "Retinitis pigmentosa"
    assert [score for _, score in hits] == sorted((score for _, score in hits), reverse=True)


def test_build_is_what_the_files_hold():
    rows, table = knowledge.build([("DME", "OCT"), ("normal", "UWF")])
    assert [(row["label"], row["modality"]) for row in rows] == [("DME", "OCT"), ("Normal", "UWF")]
    assert table["DME|OCT"]["required"] == ["intraretinal fluid"]
    assert json.loads(json.dumps([rows, table])) == [rows, table]


def test_a_malformed_page_is_named(tmp_path, monkeypatch):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "odd.md").write_text("# Not a label\nmodalities: CFP\n")
    monkeypatch.setattr(lexicon, "REFERENCES", tmp_path)
    lexicon.canonical_label("")  # the labels are read before the folder is gone
    with pytest.raises(ValueError, match=r"odd\.md"):
        knowledge.embedded_pages()
