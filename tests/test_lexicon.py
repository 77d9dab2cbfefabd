"""The lexicon: names, and what a sentence says of what it mentions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundus_lib import lexicon

MA, RH, HE, NV = "microaneurysm", "retinal hemorrhage", "hard exudate", "neovascularization"


def said(text, modality=None):
    return {(m.finding, m.status) for m in lexicon.find_mentions(text, modality)}


@pytest.mark.parametrize(("text", "expected"), [
    ("Microaneurysms are seen.", {(MA, "asserted")}),
    ("No hemorrhages, exudates or new vessels are seen, but microaneurysms are.",
     {(RH, "negated"), (HE, "negated"), (NV, "negated"), (MA, "asserted")}),
    ("Neither new vessels nor microaneurysms are present.", {(NV, "negated"), (MA, "negated")}),
    ("without hemorrhages, without exudates", {(RH, "negated"), (HE, "negated")}),
    ("The absence of drusen is noted.", {("drusen", "negated")}),
    ("Drusen are absent and microaneurysms are present.", {("drusen", "negated"), (MA, "asserted")}),
    ("Drusen have been ruled out.", {("drusen", "negated")}),
    ("It is unlikely that drusen are present.", {("drusen", "negated")}),
    ("Neither intraretinal nor subretinal fluid is seen.",
     {("intraretinal fluid", "negated"), ("subretinal fluid", "negated")}),
    ("If new vessels were present, it would be PDR.", {(NV, "hypothetical")}),
    ("No drusen, and microaneurysms are present.", {("drusen", "negated"), (MA, "asserted")}),
    ("Hemorrhages are not absent.", {(RH, "asserted")}),
    ("There is no doubt that microaneurysms are present.", {(MA, "asserted")}),
    ("Not only microaneurysms but also hemorrhages are seen.", {(MA, "asserted"), (RH, "asserted")}),
    ("No exudate is found and microaneurysms are scattered.", {(HE, "negated"), (MA, "asserted")}),
    ("There is no exudate, however drusen are visible.", {(HE, "negated"), ("drusen", "asserted")}),
    ("Possible venous beading cannot be excluded.", {("venous beading", "hedged")}),
    ("In AMD one would expect drusen.", {("drusen", "hypothetical")}),
    ("Microaneurysms rather than drusen are seen.", {(MA, "asserted"), ("drusen", "hypothetical")}),
    ("microaneurysm: present, drusen: absent", {(MA, "asserted"), ("drusen", "negated")}),
    ("There is no fluid.", {("intraretinal fluid", "negated"), ("subretinal fluid", "negated")}),
    ("There is fluid.", set()),
])
def test_status_of_each_mention(text, expected):
    assert said(text) == expected


@pytest.mark.parametrize(("text", "finding"), [
    ("dot-blot haemorrhages", RH), ("Micro\u200baneurysms", MA), ("micro-aneurysms", MA),
    ("soft exudates", "cotton-wool spot"),
    ("preretinal hemorrhage", "preretinal hemorrhage"), ("optic disc oedema", "optic disc edema"),
    ("hemorrhages in all four quadrants", "extensive four-quadrant hemorrhage"),
    ("hemorrhages are confined to one sector", "sectoral hemorrhage"), ("PEDs", "pigment epithelial detachment"),
    ("the veins are dilated and tortuous", "venous dilation and tortuosity"),
])
def test_longest_term_wins_whatever_its_spelling(text, finding):
    assert {m.finding for m in lexicon.find_mentions(text)} == {finding}


def test_abbreviations_are_case_sensitive():
    assert said("MA and HE") == {(MA, "asserted"), (HE, "asserted")}
    assert said("he said ma") == set()


def test_two_adjectives_share_a_noun():
    assert said("intraretinal and subretinal fluid") == {("intraretinal fluid", "asserted"),
                                                         ("subretinal fluid", "asserted")}
    assert said("no vitreous or preretinal hemorrhage") == {("vitreous hemorrhage", "negated"),
                                                            ("preretinal hemorrhage", "negated")}


def test_modality_keeps_what_it_can_show():
    text = "drusen with ellipsoid zone disruption"
    assert said(text, "CFP") == {("drusen", "asserted")}
    assert said(text) == said(text, "OCT") == {("drusen", "asserted"), ("ellipsoid zone disruption", "asserted")}


def test_places_refer_to_the_text_as_given():
    text = "Some  micro\u200baneurysms,\n\thard  exudates"
    assert [text[m.start:m.end] for m in lexicon.find_mentions(text)] == ["micro\u200baneurysms", "hard  exudates"]


def test_a_child_counts_for_its_parent_and_not_the_reverse():
    assert RH in lexicon.family("flame-shaped hemorrhage")
    assert "flame-shaped hemorrhage" not in lexicon.family(RH)


@pytest.mark.parametrize(("text", "label"), [
    ("moderate npdr", "Moderate NPDR"), ("Severe non proliferative diabetic retinopathy", "Severe NPDR"),
    ("Exudative AMD", "Wet AMD"), ("Diabetic macular oedema", "DME"), ("CNV", "Choroidal neovascularization"),
    ("drusen", "Drusen"), ("No DR", "No DR"),
    ("MH", None),  # media haze in RFMiD, macular hole elsewhere
    ("HE", None), ("NO", None), ("NPDR", None), ("nonsense", None), ("", None),
])
def test_canonical_label(text, label):
    assert lexicon.canonical_label(text) == label


def test_labels_inside_a_text_are_the_longest_ones():
    found = lexicon.find_labels("Not PDR but severe NPDR or PDR; in wet AMD one would expect fluid.")
    assert [(m.finding, m.status) for m in found] == [
        ("PDR", "negated"), ("Severe NPDR or PDR", "asserted"), ("Wet AMD", "hypothetical")]


def test_every_term_of_the_lexicon_is_found_again():
    for name, row in lexicon.findings().items():
        for term in (name, *row["synonyms"], *row["lexical_variants"]):
            assert name in {m.finding for m in lexicon.find_mentions(term)}, term


@given(st.text(alphabet="aMA no.,;:-\u200b\u00e9\ufb01\n drusenISP", max_size=60) | st.text(max_size=60))
def test_any_text_is_read_without_failing(text):
    for mention in [*lexicon.find_mentions(text), *lexicon.find_labels(text)]:
        assert 0 <= mention.start < mention.end <= len(text)
