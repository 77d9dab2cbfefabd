"""Answers: every way to state one is read, and none is invented."""

import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundus_lib.answers import extract_answer, parse_strict

PUBLIC = Path(__file__).parents[2] / "shared" / "clinical" / "answer_cases_public.json"


def letters(*texts):
    return dict(zip(string.ascii_uppercase, texts, strict=False))


DR = letters("No DR", "Mild NPDR", "Moderate NPDR", "Severe NPDR", "PDR")
SHUFFLED = letters("PDR", "Severe NPDR", "No DR", "Moderate NPDR", "Mild NPDR")
OCT = letters("CNV", "DME", "Drusen", "Normal")
AMD = letters("Normal", "Dry AMD", "PCV", "Wet AMD")
DISEASE = letters("Glaucoma", "Retinal vein occlusion", "Macular hole", "Retinitis pigmentosa", "None of the above")
VEIN = letters("Retinal vein occlusion", "Branch retinal vein occlusion", "Central retinal vein occlusion")
GRADES = letters("Grade 0", "Grade 1", "Grade 2", "Grade 3", "Grade 4")
ROMAN = letters("Grade I", "Grade II", "Grade III", "Grade IV")
NESTED = letters("NPDR", "Mild NPDR", "PDR", "No DR")
NORMAL = letters("Normal", "Abnormal")
EDEMA = letters("Macular edema", "Diabetic macular edema", "Cystoid macular edema", "No macular edema")
MODALITY = letters("OCT", "Color fundus photography", "Ultra-widefield imaging", "Fluorescein angiography")
LESIONS = letters("Microaneurysm", "Hard exudate", "Cotton-wool spot", "Neovascularization", "None")
NINE = letters("Age-related macular degeneration", "Retinal vein occlusion", "Glaucoma", "Macular hole",
               "Diabetic retinopathy", "Retinal detachment", "Retinitis pigmentosa", "Retinal artery occlusion",
               "Normal")
MYOPIA = letters("Macular atrophy", "Tessellated fundus", "No myopic retinal lesion", "Patchy chorioretinal atrophy")
STAGES = letters("Stage 1", "Stage 2", "Stage 3", "Stage 4")
ALL = letters("Glaucoma", "Cataract", "Retinal vein occlusion", "Macular hole", "Retinitis pigmentosa", "Coloboma",
              "Epiretinal membrane", "Drusen", "Tilted disc", "Asteroid hyalosis", "Choroidal folds", "Laser scars",
              "Optic disc pallor", "Optic disc edema", "Media haze", "Retinal detachment", "Vitreous hemorrhage",
              "Myelinated nerve fiber", "Tessellated fundus", "Macular scar", "Retinal vasculitis", "Normal",
              "Hypertensive retinopathy", "Retinal artery occlusion", "Diabetic retinopathy", "Retinal plaque")
YES_NO, NO_YES = letters("Yes", "No"), letters("No", "Yes")


def tagged(text):
    return f"<think> There are cysts. </think> <answer> {text} </answer>"


# (options, what stands in the answer tag, the letter or None)
IN_THE_TAG = [
    (OCT, "A", "A"), (OCT, "D.", "D"), (OCT, "(d)", "D"), (OCT, "option b", "B"), (OCT, "**B**", "B"),
    (OCT, '"C".', "C"),
    (OCT, "Ｄ．", "D"), (OCT, "<b>C</b>", "C"), (OCT, "\u200bB\ufeff", "B"), (OCT, "$\\boxed{\\text{B}}$", "B"),
    (OCT, "选B", "B"),
    (DR, "B: Mild NPDR", "B"), (DR, "(A) No DR", "A"), (DR, "B, Mild NPDR", "B"), (DR, "The answer is C", "C"),
    (DR, "B. PDR", None), (DR, "Grade 3 (PDR)", None),                        # letter or grade and text disagree
    (SHUFFLED, "Mild NPDR", "E"), (SHUFFLED, "no dr", "C"), (OCT, "normal", "D"),
    (AMD, "Exudative AMD", "D"), (OCT, "Diabetic macular oedema", "B"), (OCT, "Choroidal neovascularisation", "A"),
    (VEIN, "BRVO", "B"), (VEIN, "Retinal vein occlusion", "A"), (NESTED, "PDR", "C"), (NESTED, "Severe NPDR", None),
    (NORMAL, "Abnormal", "B"), (NORMAL, "not abnormal", "A"), (EDEMA, "No macular edema", "D"),
    (EDEMA, "macular edema", "A"),
    (DR, "Moderate nonproliferative diabetic retinopathy", "C"), (DR, "重度非增殖性糖尿病视网膜病变", "D"),
    (DR, "level 3", "D"), (DR, "DR2", "C"), (SHUFFLED, "grade 0", "C"), (GRADES, "3", "D"),
    (GRADES, "Grade three", "D"),
    (ROMAN, "Grade 3", "C"), (ROMAN, "IV", "D"), (ROMAN, "2", "B"),
    (MODALITY, "CFP", "B"), (MODALITY, "optical coherence tomography", "A"), (MODALITY, "UWF", "C"),
    (DISEASE, "none of these", "E"), (DISEASE, "A macular hole", "C"), (OCT, "not CNV but DME", "B"),
    (DR, "Probably C", "C"), (DR, "It is B because there are microaneurysms and no hemorrhage as in PDR", "B"),
    (OCT, "A or B", None), (OCT, "either CNV or drusen", None), (OCT, "CNV DME Drusen Normal", None),
    (OCT, "A, B, C, D", None),
    (OCT, "A and C", None), (OCT, "E", None), (OCT, "Glaucoma", None), (OCT, "the correct option", None),
    (OCT, "", None),
    (OCT, "I cannot determine this.", None), (OCT, "same as the reference", None),
    (MYOPIA, "Category 3", "D"), (MYOPIA, "0", "C"), (NINE, "grade 2", None),            # a number only on its scale
    (NINE, "stage 3 macular hole", "D"), (STAGES, "stage 2-3", None), (STAGES, "Stage I or II", None),
    (AMD, "wet or dry AMD", None), (AMD, "wet AMD versus PCV", None), (DR, "moderate/severe NPDR", None),
    (letters("PDR", "No DR"), "non-proliferative diabetic retinopathy", None), (AMD, "not wet but dry AMD", "B"),
    (letters("NPDR", "PDR", "No DR"), "Severe NPDR", "A"), (NINE, "central retinal vein occlusion", "B"),
    (VEIN, "central or branch retinal vein occlusion", None), (NINE, "H or I", None), (NINE, "A to I", None),
    (NINE, "H, not F", "H"), (NINE, "i", "I"), (NINE, "Lamellar macular hole", None),
    (letters("Yes", "No", "Uncertain"), "no", "B"), (letters("1", "2", "3"), "2", "B"),
]
# (options, a response without a tag, the letter or None)
IN_PROSE = [
    (OCT, "Therefore, the correct option is (B).", "B"), (OCT, "d", "D"), (OCT, "Hence option (D) is correct.", "D"),
    (OCT, "This B-scan shows dome-shaped drusen.", "C"), (OCT, "A scan of the macula with drusen.", "C"),
    (AMD, "Vitamin A and hepatitis B are irrelevant; this is PCV.", "C"), (OCT, "It is not drusen but CNV.", "A"),
    (DR, "Severe NPDR rather than PDR.", "D"), (OCT, "Not A, not B, not C. Hence D.", "D"),
    (OCT, "Options: A. CNV B. DME C. Drusen D. Normal. Answer: B", "B"),
    (OCT, "Answer: A. Wait, no. Final answer: C.", "C"),
    (DR, "Between B and C; hemorrhages are present, so I choose C.", "C"), (DR, "It is between B and C.", None),
    (DR, "I am sorry, I cannot tell whether this is mild NPDR or PDR.", None),
    (GRADES, "I count 4 dots, so grade 2.", "C"),
    (NORMAL, "No abnormality is seen, it is normal.", "A"), (NORMAL, "This is not a normal eye.", "B"),
    (OCT, "Neither CNV nor DME is seen. The scan is normal.", "D"), (OCT, "No fluid, no hemorrhage, drusen.", "C"),
    (DISEASE, "No sign of glaucoma or vein occlusion; bone spicules mean retinitis pigmentosa.", "D"),
    (OCT, '```json\n{"reason": "A or C", "answer": "D. Normal"}\n```', "D"), (OCT, "\\boxed{B}", "B"),
    (NINE, "I, on balance, favor C.", "C"), (NINE, "I would say G.", "G"), (NINE, "I, too, see it.", None),
    (NINE, "The C/D ratio is 0.9.", None), (NINE, "C:D ratio 0.8", None), (NINE, "Vitamins A and E.", None),
    (NINE, "Is it glaucoma?", None), (NINE, "Glaucoma would show a large cup.", None), (NINE, "H&E stain", None),
    (NINE, "If the cup were large, it would be glaucoma.", None), (NINE, "The risk of glaucoma is increased.", None),
    (NINE, "Ask your doctor about macular hole.", None), (NINE, "Look for signs of macular hole.", None),
    (NINE, "The answer is G. On second thought, the answer is F.", "F"), (NINE, "Answer: G. Correction: F.", "F"),
    (NINE, "Answer: B. The disc is normal.", "B"), (NINE, "Answer: D. This is glaucoma.", None),
    (NINE, "The optic disc is normal and the veins are dilated: RVO.", "B"), (NINE, "C would be the best choice.", "C"),
    (NINE, "Retinitis pigmentosa is present; glaucoma is not.", "G"), (NINE, "=> G", "G"),
    (NINE, "I see a detached retina in a large area: retinal detachment.", "F"), (NINE, "I see a specialist.", None),
    (NINE, "E and G both come to mind; I lean toward neither.", None), (AMD, "Both B and D fit, but D fits best.", "D"),
    (NINE, "I first thought the answer is E, but on reflection the answer is B.", "B"),
    (NINE, "At first glance this looks like B, but it could also be H.", None),
    (NINE, "The answer is C. On second thought, it could be C or G.", None),
    (OCT, "The options are:\nA. CNV\nB. DME\nC. Drusen\nD. Normal\n\nI would go with B.", "B"),
    (OCT, "A. CNV\nB. DME\nC. Drusen\nD. Normal", None), (letters("VKH disease", "PDR"), "VKH syndrome", "A"),
    (letters("QXZ", "Normal"), "quiet xanthic zone", "A"), (letters("Quiet xanthic zone", "Normal"), "QXZ", "A"),
    (letters("Diabetic retinopathy", "Normal"), "detached retina", None),
    (OCT, "答案:糖尿病性黄斑水肿(B)", "B"), (OCT, "The answer is not B.", None), (OCT, "", None),
]
# (a whole response about OCT, the letter or None)
TAGS = [
    ("<THINK>x</THINK> <ANSWER>C</ANSWER>", "C"), ("<think>x</think> <answer>B. DME", "B"),
    ("<think>x</think> <anser>C</anser>", "C"),
    ("<think>x</think>[ANSWER] C [/ANSWER]", "C"),
    ("<think>Maybe <answer>C</answer>? No.</think> <answer>B</answer>", "B"),
    ("<answer>DME</answer> again <answer>B</answer>", "B"), ("<answer>A</answer> <answer>B</answer>", None),
    ("<think>The answer is CNV.</think>", "A"), ("<think>x <answer>C</answer></think>", "C"),
    ("<think>C</think><answer></answer>", None),
    ("<think>A and D have to be compared because the", None),
    ("<think>x</think> <answer>C</answer> See options A-D.", "C"),
]


@pytest.mark.parametrize(("options", "text", "expected"), IN_THE_TAG)
def test_tagged_answers(options, text, expected):
    assert extract_answer(tagged(text), options).value == expected
    assert parse_strict(tagged(text), options).value == expected


@pytest.mark.parametrize(("options", "text", "expected"), IN_PROSE)
def test_answers_without_tags_are_for_the_lenient_reader_only(options, text, expected):
    assert extract_answer(text, options).value == expected
    assert parse_strict(text, options) == (None, "missing")


@pytest.mark.parametrize(("response", "expected"), TAGS)
def test_broken_tags_are_read_but_not_rewarded(response, expected):
    assert extract_answer(response, OCT).value == expected
    assert parse_strict(response, OCT) == (None, "missing")


@pytest.mark.parametrize(("options", "text", "expected"), [
    (YES_NO, "yes", "A"), (NO_YES, "Yes.", "B"), (YES_NO, "(B) No", "B"), (YES_NO, "(A) No", None), (YES_NO, "B", "B"),
    (YES_NO, "No, there is no fluid.", "B"), (YES_NO, "Yes, there is no fluid", "A"),
    (YES_NO, "Drusen are absent", "B"),
    (YES_NO, "The image is not of adequate quality.", "B"), (YES_NO, "Yes and no", None), (YES_NO, "maybe", None),
    (None, "True", "A"), (YES_NO, "I cannot tell", None), (YES_NO, "Yes/No", None), (YES_NO, "No (A)", None),
    (YES_NO, "Yes, option B", None), (YES_NO, "No, wait, yes", None), (YES_NO, "Drusen cannot be seen.", "B"),
    (YES_NO, "There are no drusen.", "B"), (NO_YES, "Yes. No fluid.", "B"),
])
def test_yes_and_no(options, text, expected):
    assert extract_answer(tagged(text), options, "yesno").value == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("A, C", "AC"), ("B and D", "BD"), ("[A][B]", "AB"), ("ABD", "ABD"), ("C; A; C", "AC"),
    ("A and B, but not D", "AB"),
    ("A, not B, and C", "AC"), ("hard exudates; soft exudates", "BC"), ("A. Microaneurysm, B. Hard exudate", "AB"),
    ("a, c", "AC"), ("A: yes, B: no, C: yes", "AC"), ("microaneurysms and soft exudates; B absent", "AC"),
    ("neither A nor B, only C", "C"), ("A and C are present; D is absent", "AC"),
    ("The correct options are A and C.", "AC"),
    ("none of them", "E"), ("A or B", None), ("A. Hard exudate", None), ("B, F", None), ("all fine", None),
])
def test_several_answers(text, expected):
    assert extract_answer(tagged(text), LESIONS, "multi").value == (expected and list(expected))


@pytest.mark.parametrize(("text", "expected"), [
    ("Severe NPDR", "Severe NPDR"), ("proliferative diabetic retinopathy", "PDR"), ("Coats disease", "Coats disease"),
    ("Findings favor age-related macular degeneration", "Age-related macular degeneration"),
    ("grade 2", "Moderate NPDR"),
])
def test_open_answers_are_canonical_labels_where_they_name_one(text, expected):
    assert extract_answer(tagged(text), kind="open") == (expected, "ok")


def test_the_status_says_why_there_is_no_answer():
    texts = {"A or B": "ambiguous", "Glaucoma": "missing", "I am not able to answer this.": "refused"}
    assert {text: extract_answer(tagged(text), OCT).status for text in texts} == texts


PIECES = st.text(max_size=60) | st.lists(st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "A", "(C)", " not ", " or ", "\\boxed{", "}", "yes",
     '"answer": "', "no", ". ", "Moderate NPDR", "drusen", "&lt;", "选", "the answer is ", "‹C›", "\n"]),
    max_size=12).map("".join)


@given(PIECES, st.sampled_from(["single", "multi", "yesno", "open"]), st.lists(st.text(max_size=9), max_size=26))
def test_whatever_is_written_the_answer_is_an_option_or_nothing(text, kind, texts):
    for options in ((YES_NO,) if kind == "yesno" else (DR, letters(*texts))):
        for read in (extract_answer, parse_strict):
            value, status = read(text, options, kind)
            assert status in ("ok", "ambiguous", "missing", "refused")
            if kind == "multi":
                assert value is None or (value and value == sorted(set(value)))
            elif kind != "open":
                assert (value is None) == (status != "ok")
            if kind != "open" and options and value:
                assert set(value) <= set(options)


@given(PIECES, PIECES, st.sampled_from(["{0}", "<think>{0}</think><answer>{1}</answer>", "<answer>{1}</answer>"]))
def test_what_is_rewarded_has_the_shape_and_reads_alike(thought, answer, form):
    response = form.format(thought, answer)
    if (strict := parse_strict(response, DR)).status == "ok":
        assert [response.count(tag) for tag in ("<think>", "</think>", "<answer>", "</answer>")] == [1] * 4
        assert response.split() and response.strip().startswith("<think>") and response.strip().endswith("</answer>")
        assert extract_answer(response, DR) == strict


@given(st.permutations(list(ALL.values())), st.integers(2, 26), st.integers(0, 25), st.sampled_from(
    ["<think>x</think> <answer> {}\n</answer>", "\\boxed{{{}}}", "$\\boxed{{\\text{{{}}}}}$", '{{"answer": "{}"}}',
     "The answer is ({}).", "The correct option is {}.", "**{}**", "Therefore, the answer is **{}**.", "({})", "{})",
     "Answer: {}", "Final answer: {}", "Hence {}.", "I choose {}.", "<think>x</think>\n\n{}", "{}"]))
def test_every_option_comes_back_in_every_dress_wherever_it_is_listed(texts, n, place, form):
    options = letters(*texts[:n])
    letter, text = list(options.items())[place % n]
    for said in (letter, text, f"{letter}. {text}", f"({letter}) {text}", f"{text} ({letter})"):
        assert extract_answer(form.format(said), options) == (letter, "ok")
    assert extract_answer(form.format(letter), options, "multi") == ([letter], "ok")


@given(st.lists(st.sampled_from(["the image", "retina", "is seen", "blurry", "with", "and", "a photograph", "shows",
                                 "many", "dots", "it is", "clear", ".", ",", "the answer is", "so", "not", "we"])))
def test_where_no_option_is_named_there_is_no_answer(words):
    text = " ".join(words)
    for response in (text, tagged(text), f"\\boxed{{{text}}}"):
        assert extract_answer(response, ALL).value is None and extract_answer(response, DR, "multi").value is None


def test_long_nonsense_is_read_in_linear_time():
    """An exponential pattern would never come back from these; what they say is no single option."""
    for text in ("A or " * 2000, "not " * 2000, "no drusen, " * 1000, "<think>" * 2000, "\\boxed{" * 2000):
        assert extract_answer(text, OCT).value in (None, "A")


@pytest.mark.skipif(not PUBLIC.exists(), reason="the public answer cases are not on this machine")
def test_public_cases():
    wrong = []
    for case in json.loads(PUBLIC.read_text(encoding="utf-8"))["cases"]:
        asked = case["output"], case["options"], case["type"]
        if extract_answer(*asked).value not in (case["expected"], *case["also_acceptable"]):
            wrong.append((case["id"], "lenient"))
        strict = (case["expected_strict"], *case["also_acceptable"])
        if case.get("strict_scored", True) and parse_strict(*asked).value not in strict:
            wrong.append((case["id"], "strict"))
    assert not wrong
