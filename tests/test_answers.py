"""Answers: every way to state one is read, and none is invented."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundus_lib.answers import extract_answer, parse_strict

PUBLIC = Path(__file__).parents[2] / "shared" / "clinical" / "answer_cases_public.json"


def letters(*texts):
    return dict(zip("ABCDEF", texts, strict=False))


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
    (None, "True", "A"), (YES_NO, "I cannot tell", None),
])
def test_yes_and_no(options, text, expected):
    assert extract_answer(tagged(text), options, "yesno").value == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("A, C", "AC"), ("B and D", "BD"), ("[A][B]", "AB"), ("ABD", "ABD"), ("C; A; C", "AC"),
    ("A and B, but not D", "AB"),
    ("A, not B, and C", "AC"), ("hard exudates; soft exudates", "BC"), ("A. Microaneurysm, B. Hard exudate", "AB"),
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


@given(st.text(max_size=60) | st.lists(st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "A", "(C)", " not ", " or ", "\\boxed{", "}", '"answer": "',
    "yes", "no", ". ",
     "Moderate NPDR", "drusen", "&lt;", "选", "the answer is ", "‹C›"]), max_size=12).map("".join),
    st.sampled_from(["single", "multi", "yesno", "open"]))
def test_whatever_is_written_the_answer_is_an_option_or_nothing(text, kind):
    options = YES_NO if kind == "yesno" else DR
    for read in (extract_answer, parse_strict):
        value, status = read(text, options, kind)
        assert status in ("ok", "ambiguous", "missing", "refused")
        if kind == "multi":
            assert value is None or (value and value == sorted(set(value)) and set(value) <= set(options))
        elif kind != "open":
            assert (value is None) == (status != "ok") and value in (None, *options)


@given(st.sampled_from("ABCDE"), st.sampled_from(["{}", "{}.", "({})", " {}\n", "**{}**", "Option {}", "{})"]),
       st.text(alphabet="abc .,", max_size=30))
def test_a_letter_in_tags_comes_back(letter, form, thought):
    response = f"<think>{thought}</think><answer>{form.format(letter)}</answer>"
    assert extract_answer(response, DR) == parse_strict(response, DR) == (letter, "ok")


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
