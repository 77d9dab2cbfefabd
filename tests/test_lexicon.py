"""The lexicon: names, and what a sentence says of what it mentions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fundus_lib import assertion, lexicon

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
    # other diseases, other labels, other grammar
    ("Unlike macular holes, drusen are seen.", {("drusen", "asserted")}),
    ("Without drusen, subretinal fluid is seen.", {("drusen", "negated"), ("subretinal fluid", "asserted")}),
    ("Without drusen, IRF or SRF, an ERM is seen.", {("drusen", "negated"), ("intraretinal fluid", "negated"),
                                                    ("subretinal fluid", "negated"), ("epiretinal membrane",
                                                     "asserted")}),
    ("A PED is seen, but no drusen or SRF.", {("pigment epithelial detachment", "asserted"), ("drusen", "negated"),
                                             ("subretinal fluid", "negated")}),
    ("PED: present\nSRF: none\nERM: absent", {("pigment epithelial detachment", "asserted"),
                                              ("subretinal fluid", "negated"), ("epiretinal membrane", "negated")}),
    ("The macula is not free of drusen.", {("drusen", "asserted")}),
    ("There is no question that a lacquer crack runs below.", {("lacquer crack", "asserted")}),
    ("Staphyloma is by no means absent.", {("posterior staphyloma", "asserted")}),
    ("It is not true that drusen are present.", {("drusen", "negated")}),
    ("Could these be drusen?", {("drusen", "hypothetical")}),
    ("A disc hemorrhage should be considered.", {("optic disc hemorrhage", "hedged")}),
    ("It is uncertain whether an operculum is there.", {("operculum", "hedged")}),
    ("An operculum may be present.", {("operculum", "hedged")}),
    ("Evidence of lattice degeneration is lacking.", {("lattice degeneration", "negated")}),
    ("The scan does not show an operculum.", {("operculum", "negated")}),
    ("There isn't a coloboma.", {("coloboma", "negated")}),
    ("History of vitreous hemorrhage.", {("vitreous hemorrhage", "hypothetical")}),
    ("The cup-to-disc ratio is not increased.", {("increased cup-to-disc ratio", "negated")}),
    ("The disc is pale and the arterioles are narrowed.", {("optic disc pallor", "asserted"),
                                                         ("arteriolar narrowing", "asserted")}),
    ("The retina is attached.", {("retinal detachment", "negated")}),
    ("An operculum was sought but not found.", {("operculum", "negated")}),
    ("I looked for drusen and found none.", {("drusen", "negated")}),
    ("CWS (+), NVD (-).", {("cotton-wool spot", "asserted"), ("neovascularization of the disc", "negated")}),
    ("Negative for drusen, positive for a coloboma.", {("drusen", "negated"), ("coloboma", "asserted")}),
    ("One cannot claim that drusen are absent.", {("drusen", "asserted")}),
    ("The normal foveal depression has been lost.", {("foveal contour loss", "asserted")}),
    ("The disc, macula and vessels are normal.", {("normal optic disc", "asserted"), ("normal macula", "asserted"),
                                                ("normal retinal vasculature", "asserted")}),
    ("no fluid: drusen raise the RPE", {("intraretinal fluid", "negated"), ("subretinal fluid", "negated"),
                                        ("drusen", "asserted")}),
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


NAMES = st.sampled_from(sorted(lexicon.findings()))


@pytest.mark.parametrize(("frame", "status"), [
    ("There is {}.", "asserted"), ("{} is seen.", "asserted"), ("The image shows {} nasally.", "asserted"),
    ("There is no {}.", "negated"), ("{} is not seen.", "negated"), ("Without {}.", "negated"),
    ("No evidence of {} is found.", "negated"), ("{}: absent", "negated"), ("{} has been ruled out.", "negated"),
    ("Neither {} nor a laser scar is present.", "negated"), ("{} is not absent.", "asserted"),
    ("There is no doubt that {} is seen.", "asserted"), ("Possible {}.", "hedged"), ("{} cannot be excluded.",
     "hedged"),
    ("If {} were seen, it would matter.", "hypothetical"), ("One would expect {}.", "hypothetical")])
def test_a_frame_gives_every_finding_its_status(frame, status):
    for name in lexicon.findings():
        assert (name, status) in said(frame.format(name)), name


@settings(max_examples=60, deadline=None)
@given(NAMES, NAMES, st.sampled_from(["No {}.", "There may be {}.", "{} is seen."]))
def test_case_spelling_and_neighbours_do_not_matter(one, other, frame):
    text, british = frame.format(one), {"hemorrhag": "haemorrhag", "edema": "oedema", "fiber": "fibre", "gray": "grey"}
    spelt = text
    for american, word in british.items():
        spelt = spelt.replace(american, word)
    assert said(spelt) == said(text) == said(text[0].lower() + text[1:]) == said(text.replace(one, one.capitalize()))
    assert said(f"{text} There is {other}.") == said(text) | said(f"There is {other}.")
    cut = text.replace(" ", "\n").replace("e", "e\u200b")
    for mention in lexicon.find_mentions(cut):
        assert lexicon.find_mentions(cut[mention.start:mention.end])[0].finding == mention.finding


def test_looking_a_cue_up_by_its_first_word_finds_what_trying_every_cue_finds():
    cues, text = assertion._assertion_cues(), " . ".join(
        phrase for kind in lexicon.reference("assertion_cues.json")["cues"].values()
        for phrase in kind if "(" not in phrase)
    read = lexicon.reading(text + " . cannot be entirely excluded. Not a single one. The nearest is nowhere to be "
    "seen.")
    every = {(phrase, kind) for tried in cues.tried.values() for _, phrase, kind in tried}
    tried = [(start, hit.end(), kind) for start, _ in read.words for phrase, kind in every
             if (hit := phrase.match(read.lower, start))]
    assert len(tried) > 100 and sorted(cues.find(read)) == sorted(tried)


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
