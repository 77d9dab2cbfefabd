"""Questions: answers that the labels prove, shares, and draws that do not depend on the other images."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from fundus_lib import questions
from fundus_lib.data.idrid import GRADES

ALL = SimpleNamespace(modality_share=1.0, laterality_share=1.0, lesion_share=1.0)
NONE = SimpleNamespace(modality_share=0.0, laterality_share=0.0, lesion_share=0.0)
MASKS = [{"finding": "microaneurysm", "path": "m.tif"}, {"finding": "optic disc", "path": "o.tif"}]


def record(name: str, dataset: str, modality: str, labels: list[str], split="train", masks=(), laterality=None) -> dict:
    return {"id": name, "path": f"{name}.png", "dataset": dataset, "modality": modality, "labels": labels,
            "split": split, "masks": list(masks), "laterality": laterality, "camera": None}


RECORDS = pd.DataFrame([
    record("idrid-1", "IDRiD", "CFP", ["Moderate NPDR", "DME (mild risk)"], masks=MASKS),
    record("idrid-2", "IDRiD", "CFP", ["No DR", "No DME"], split="test", masks=MASKS[1:]),
    record("idrid-twin", "IDRiD", "CFP", [], masks=MASKS),
    record("idrid-a", "IDRiD", "CFP", ["microaneurysm"], masks=MASKS),
    record("ucsd-1", "UCSD", "OCT", ["DME"]), record("ucsd-2", "UCSD", "OCT", ["Normal"], split="test"),
    record("top-1", "TOP", "UWF", ["Diabetic retinopathy", "Diabetes mellitus"], split="test", laterality="left"),
    record("top-2", "TOP", "UWF", ["Glaucoma", "Macular hole"], laterality="right"),
    record("top-3", "TOP", "UWF", ["Diabetes mellitus"]), record("top-4", "TOP", "UWF", ["Normal"]),
])


@pytest.fixture(scope="module")
def asked():
    return questions.make_questions(RECORDS, ALL, seed=0)


def one(asked, name, level):
    found = asked[(asked.record_id == name) & (asked.level == level)]
    assert len(found) == 1
    return found.iloc[0]


def test_every_answer_is_among_its_options(asked):
    for row in asked.itertuples():
        assert questions.option_texts(row.options)[row.answer] == row.answer_text
    assert asked.id.is_unique and list(asked.columns) == questions.COLUMNS


def test_diagnosis_options_are_the_labels_of_the_data_set_that_occur(asked):
    grade, scan = one(asked, "idrid-1", "L4c"), one(asked, "ucsd-1", "L4b")
    assert set(questions.option_texts(grade.options).values()) == set(GRADES)
    assert grade.answer_text == grade.label == "Moderate NPDR"
    assert set(questions.option_texts(scan.options).values()) == {"DME", "Normal"}
    assert one(asked, "top-1", "L4b").answer_text == "Diabetic retinopathy"        # diabetes itself is not in the image


def test_what_no_single_label_proves_is_not_asked(asked):
    diagnosed = set(asked[asked.level.isin(["L4b", "L4c"])].record_id)
    assert diagnosed == {"idrid-1", "idrid-2", "ucsd-1", "ucsd-2", "top-1", "top-4"}
    assert "idrid-twin" not in set(asked.record_id)                                # its graded copy is asked instead
    assert set(asked[asked.record_id == "idrid-a"].level) == {"L1a", "L3a"}


def test_lesions_are_read_from_masks(asked):
    lesions = asked[asked.level == "L3a"].set_index(["record_id", "finding"]).answer_text
    assert lesions["idrid-2"].to_dict() == dict.fromkeys(
        ["microaneurysm", "retinal hemorrhage", "hard exudate", "cotton-wool spot"], "No")
    finding, answer = next(iter(lesions["idrid-1"].items()))                       # one of the four when training
    assert answer == ("Yes" if finding == "microaneurysm" else "No") and len(lesions["idrid-1"]) == 1


def test_binary_and_side(asked):
    binary = asked[asked.level == "L4a"].set_index("record_id").answer_text.to_dict()
    assert binary == {"idrid-2": "No", "top-1": "Yes"}                             # OCT2017 does not label retinopathy
    assert one(asked, "top-1", "L2b").answer_text == "Left eye" and one(asked, "top-2", "L2b").answer == "A"


def test_shares_of_zero_leave_diagnoses_and_the_lesions_of_test_images():
    levels = questions.make_questions(RECORDS, NONE, seed=0).groupby("level").size().to_dict()
    assert levels == {"L3a": 4, "L4b": 4, "L4c": 2}


def test_one_image_more_changes_no_other_question(asked):
    more = pd.concat([RECORDS, pd.DataFrame([record("ucsd-0", "UCSD", "OCT", ["Normal"])])])[::-1]
    again = questions.make_questions(more, ALL, seed=0).set_index("id").loc[asked.id].reset_index()
    pd.testing.assert_frame_equal(again[questions.COLUMNS], asked)
    other = questions.make_questions(RECORDS, ALL, seed=1)
    assert other.options.to_list() != asked.options.to_list()


def test_at_most_six_options():
    labels = ["Drusen", "Normal", "Macular hole", "Retinitis", "Coloboma", "Tilted disc", "Macular scar", "Laser scars"]
    asked = questions.make_questions(pd.DataFrame([record(f"r{i}", "RFMiD", "CFP", [x]) for i, x in enumerate(labels)]),
                                     NONE, seed=0)
    assert all(len(options) == 6 for options in asked.options) and asked.answer_text.to_list() == labels


def test_prompt_is_short_and_survives_parquet(asked, tmp_path):
    asked.to_parquet(tmp_path / "questions.parquet")
    row = pd.read_parquet(tmp_path / "questions.parquet").set_index("id").loc["top-1/L2b"]
    assert questions.prompt(row.question, row.options) == (
        "Which eye is this? Options: A. Right eye, B. Left eye. Think in <think> </think>, then give one option in "
        "<answer> </answer>.")


def test_reasoning_records_have_the_published_form(asked, tmp_path):
    questions.write_reasoning_records(tmp_path, asked[asked.split == "train"])
    assert {file.name for file in tmp_path.iterdir()} == {f"{kind}_train_data_{modality}.json" for kind, modality in [
        ("single_choice", "CFP"), ("true_false", "CFP"), ("single_choice", "OCT"), ("single_choice", "UWF")]}
    first = json.loads((tmp_path / "single_choice_train_data_OCT.json").read_text())[0]
    assert set(first) == {"image", "conversations", "reason"} and first["image"] == ["ucsd-1.png"]
    assert [turn["from"] for turn in first["conversations"]] == ["human", "gpt"]
