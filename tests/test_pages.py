"""The reference pages themselves: every pair is covered, every mark resolves, well-known criteria read right."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from fundus_lib import knowledge, lexicon

PAIRS = Path(__file__).parents[2] / "shared" / "clinical" / "pairs.json"
PAGES = sorted((lexicon.REFERENCES / "pages").glob("*.md"))
WANTED = sorted((lexicon.canonical_label(p["label"]) or p["label"], p["modality"]) for p in
                json.loads(PAIRS.read_text())["pairs"]) if PAIRS.exists() else sorted(knowledge.pairs())
PROLIFERATIVE = {"neovascularization", "neovascularization of the disc", "neovascularization elsewhere",
                 "preretinal hemorrhage", "vitreous hemorrhage"}
FOUR_TWO_ONE = {"extensive four-quadrant hemorrhage", "venous beading", "intraretinal microvascular abnormality"}
NAMED_LIKE_THE_LABEL = {  # one finding is the disease
    "Drusen": "drusen", "Macular scar": "subretinal fibrosis", "Large optic cup": "increased cup-to-disc ratio",
    "Optic atrophy": "optic disc pallor", "Optic disc edema": "optic disc edema", "Tilted disc": "tilted disc",
    "Myelinated nerve fiber": "myelinated nerve fiber", "Retinal macroaneurysm": "retinal macroaneurysm",
    "Tessellated fundus": "tessellated fundus", "Epiretinal membrane": "epiretinal membrane",
    "Macular hole": "full-thickness foveal defect", "Central serous chorioretinopathy": "subretinal fluid",
    "Rhegmatogenous retinal detachment": "retinal detachment", "Media haze": "media opacity",
    "Cataract": "media opacity", "Asteroid hyalosis": "asteroid bodies", "Vitreous hemorrhage": "vitreous hemorrhage",
    "Preretinal hemorrhage": "preretinal hemorrhage", "Cotton-wool spots": "cotton-wool spot",
    "Massive hard exudates": "massive hard exudate", "Laser scars": "laser scar", "Coloboma": "coloboma",
    "Fundus neoplasm": "choroidal mass", "Silicone oil in eye": "silicone oil reflex",
    "Branch retinal artery occlusion": "retinal whitening", "Bietti crystalline dystrophy": "retinal crystals",
}


def bullets(text: str) -> list[tuple[str, str]]:
    """(lead, body) of every bullet, a wrapped one in one line."""
    return re.findall(r"^- ([^:\n]+): (.+)$", text.replace("\n  ", " "), re.MULTILINE)


def test_every_pair_is_covered():
    assert len(WANTED) == 89
    assert not [pair for pair in WANTED if pair not in knowledge.pairs()]


@pytest.mark.parametrize("pair", WANTED, ids=" on ".join)
def test_knowledge_has_sources_and_a_disjoint_vocabulary(pair):
    known, words = knowledge.acquire(*pair), knowledge.vocabulary(*pair)
    sections = {source["source"].split("#")[1].split()[0] for source in known.sources}
    assert {"Symptoms", "Diagnostic", "Signs"} <= sections
    assert all(source["cites"] for source in known.sources)
    assert not words.required & words.supportive | words.supportive & words.excluded | words.required & words.excluded
    assert bool(words.required) == (pair[0] != "Diabetes mellitus")  # the one label that no image can prove
    assert {"Mechanism", "Look-alikes", "Confirmed by", "Limits"} <= {lead for lead, _ in bullets(known.text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_marks_resolve_and_lines_fit(page):
    text, _, references = page.read_text().partition("\n## References\n")
    listed = re.findall(r"^\[(\d+)\] ", references, re.MULTILINE)
    assert listed == [str(n + 1) for n in range(len(listed))]
    assert set(re.findall(r"\[(\d+)\]", text)) == set(listed)
    assert all(len(line) <= 120 for line in text.splitlines())


def test_no_bullet_names_what_its_modality_cannot_show():
    wrong = [(page.source, modality, m.finding) for page in knowledge.embedded_pages() for lead, body in
             bullets(page.text) if lead.lower() in knowledge._ROLES for m in lexicon.find_mentions(body)
             for modality in page.modalities if modality not in lexicon.findings()[m.finding]["shown_by"]]
    assert wrong == []


def test_no_sentence_stands_twice():
    """Criteria may repeat; prose and the other bullets are written for their page."""
    said: Counter[str] = Counter()
    for passage in knowledge.embedded_pages():
        lines = passage.text.replace("\n  ", " ").split("\n- ")
        kept = [line for line in lines if line.removeprefix("- ").partition(":")[0].lower() not in knowledge._ROLES]
        text = re.sub(r"\[\d+\]", "", " ".join(kept)).replace("\n", " ")
        said.update(key for s in re.split(r"(?<=[.:;])\s", text) if len(key := " ".join(lexicon.key(s))) > 40)
    assert [sentence for sentence, times in said.items() if times > 1] == []


@pytest.mark.parametrize("modality", ["CFP", "UWF"])
def test_the_grades_of_diabetic_retinopathy(modality):
    none, mild, moderate, severe, pdr = (knowledge.vocabulary(grade, modality) for grade in (
        "No DR", "Mild NPDR", "Moderate NPDR", "Severe NPDR", "PDR"))
    assert none.all_of == {"normal retinal vasculature"} and "microaneurysm" in none.definitional
    assert mild.all_of == {"microaneurysm"}
    assert mild.definitional >= FOUR_TWO_ONE | PROLIFERATIVE | {"retinal hemorrhage", "hard exudate"}
    assert moderate.any_of == (frozenset({"microaneurysm", "retinal hemorrhage"}),)
    assert severe.any_of == (frozenset(FOUR_TWO_ONE),) and severe.definitional >= PROLIFERATIVE
    assert pdr.any_of == (frozenset(PROLIFERATIVE),) and pdr.supportive >= {"laser scar", "venous beading"}
    assert severe.satisfied_by({"venous beading"})
    assert not severe.satisfied_by({"venous beading", "vitreous hemorrhage"})


def test_the_pooled_grade_is_the_union_of_its_two():
    assert knowledge.vocabulary("Severe NPDR or PDR", "CFP").any_of == (frozenset(FOUR_TWO_ONE | PROLIFERATIVE),)


@pytest.mark.parametrize(("label", "finding"), NAMED_LIKE_THE_LABEL.items())
def test_where_one_finding_is_the_label(label, finding):
    modalities = [modality for name, modality in knowledge.pairs() if name == label]
    assert modalities and all(knowledge.vocabulary(label, m).all_of == {finding} for m in modalities)


@pytest.mark.parametrize(("label", "modality", "enough", "too_little"), [
    ("Pathological myopia", "CFP", {"diffuse chorioretinal atrophy"}, {"tessellated fundus", "peripapillary atrophy"}),
    ("Hypertensive retinopathy", "CFP", {"arteriovenous crossing change"}, {"hard exudate"}),
    ("Severe hypertensive retinopathy", "CFP", {"optic disc edema"}, {"arteriolar narrowing"}),
    ("Vogt-Koyanagi-Harada disease", "CFP", {"sunset-glow fundus"}, {"subretinal fluid"}),
    ("Retinopathy of prematurity", "UWF", {"ROP ridge"}, {"plus disease"}),
    ("Vitreomacular interface disease", "OCT", {"vitreomacular traction"}, {"vitreomacular adhesion"}),
    ("Retinal artery occlusion", "OCT", {"inner retinal thinning"}, {"retinal thickening"}),
    ("Central retinal artery occlusion", "CFP", {"retinal whitening", "cherry-red spot"}, {"retinal whitening"}),
    ("Wet AMD", "CFP", {"subretinal hemorrhage", "drusen"}, {"drusen"}),
    ("Geographic atrophy", "OCT", {"geographic atrophy"}, {"geographic atrophy", "subretinal fluid"}),
    ("Pigment epithelial detachment", "OCT", {"serous PED"}, {"drusen"}),  # a kind of it counts for it
])
def test_what_meets_the_criteria(label, modality, enough, too_little):
    words = knowledge.vocabulary(label, modality)
    assert words.satisfied_by(enough) and not words.satisfied_by(too_little)


def test_the_same_scan_of_diabetes_and_of_vein_occlusion():
    """What one OCT cannot tell apart has one required finding."""
    assert knowledge.vocabulary("DME", "OCT").all_of == knowledge.vocabulary("Retinal vein occlusion", "OCT").all_of
