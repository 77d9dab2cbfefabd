"""Questions: answers that the labels and masks prove, shares, options, and draws that do not depend on other images."""

import time
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fundus_lib import questions
from fundus_lib.data import DataError
from fundus_lib.data.catalogue import catalogue
from fundus_lib.lexicon import reference
from fundus_lib.questions import GRADES

SHARES = ("modality_share", "laterality_share", "lesion_share", "mask_share", "open_share")
EVERY, NONE = SimpleNamespace(**dict.fromkeys(SHARES, 1.0)), SimpleNamespace(**dict.fromkeys(SHARES, 0.0))
ALL = SimpleNamespace(**vars(EVERY) | {"open_share": 0.0})  # for the benchmarks, which hold no open question
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
    record("top-2", "TOP", "UWF", ["Macular hole", "Glaucoma"], laterality="right"),
    record("top-3", "TOP", "UWF", ["Diabetes mellitus"]), record("top-4", "TOP", "UWF", ["Normal"]),
    record("deep-1", "DeepDRiD", "UWF", ["PDR"]), record("deep-2", "DeepDRiD", "UWF", ["No DR"], split="test"),
    record("mmc-1", "MMC-AMD", "OCT", ["Wet AMD"]), record("mmc-2", "MMC-AMD", "OCT", ["Dry AMD"]),
    record("mmc-3", "MMC-AMD", "OCT", ["Polypoidal choroidal vasculopathy"]),
    record("mmc-4", "MMC-AMD", "OCT", ["Normal"], split="test"), record("mmc-5", "MMC-AMD", "CFP", ["Dry AMD"]),
    record("fluid-1", "RETOUCH", "OCT", ["intraretinal fluid", "subretinal fluid"], split="test"),
    record("ffa-1", "Angiographic", "FFA", ["microaneurysm"], laterality="left", masks=MASKS[:1]),
    record("ffa-2", "Angiographic", "FFA", ["Normal"], split="test"),
    record("ffa-3", "Angiographic", "FFA", ["Moderate NPDR"]),
    record("ffa-4", "Angiographic", "FFA", ["Diabetic retinopathy", "neovascularization"], split="test"),
    record("grape-1", "GRAPE", "CFP", ["Glaucoma"]),
])


@pytest.fixture(scope="module")
def asked():
    return questions.make_questions(RECORDS, EVERY, seed=0, wordings=1)


def one(asked, name, level, kind=None):
    found = asked[(asked.record_id == name) & (asked.level == level) & (asked.kind == (kind or asked.kind))]
    assert len(found) == 1
    return found.iloc[0]


def offered(row) -> set[str]:
    return set(questions.option_texts(row.options).values())


def test_every_letter_gives_its_text(asked):
    for row in asked.itertuples():
        texts = questions.option_texts(row.options)
        letters = row.answer.split(",")
        assert letters == sorted(letters) and (len(letters) == 1 or row.kind == "multi")
        assert ", ".join(texts[letter] for letter in letters) == row.answer_text if texts else \
            row.kind == "open" and row.answer == row.answer_text == row.label
    assert asked.id.is_unique and list(asked.columns) == questions.COLUMNS
    assert set(asked.kind) == {"single", "multi", "yesno", "open"}


def test_options_are_labels_of_the_data_set_and_modality(asked):
    grade, scan = one(asked, "idrid-1", "L4c", "single"), one(asked, "ucsd-1", "L4b", "single")
    assert offered(grade) == set(GRADES) == offered(one(asked, "deep-2", "L4c", "single"))
    assert grade.answer_text == grade.label == "Moderate NPDR" and offered(scan) == {"DME", "Normal"}
    assert one(asked, "top-1", "L4b", "single").label == "Diabetic retinopathy"    # diabetes itself is not in the image
    assert offered(one(asked, "mmc-1", "L4d", "single")) == {"Wet AMD", "Dry AMD", "Normal",
                                                             "Polypoidal choroidal vasculopathy"}
    assert "L4d" not in set(asked[asked.record_id == "mmc-5"].level)               # the only CFP: nothing to tell apart


def test_a_grade_stands_on_its_scale_only():
    graded = pd.DataFrame([record(f"s{i}", "SUSTech-SYSU", "CFP", labels) for i, labels in enumerate(
        [["No DR"], ["PDR", "Laser scars"]])])
    pooled = pd.DataFrame([record(f"j{i}", "JSIEC", "CFP", [label]) for i, label in enumerate(
        ["Normal", "Mild NPDR", "Severe NPDR or PDR"])])
    asked = questions.make_questions(pd.concat([graded, pooled]), NONE, seed=0).set_index("record_id")
    assert asked.level.to_list() == ["L4c"] * 2 + ["L4b"] * 3 and asked.answer_text["s1"] == "PDR"
    assert offered(asked.loc["j1"]) == {"Normal", "Mild NPDR", "Severe NPDR or PDR"}


def test_several_diagnoses_are_asked_for_together(asked):
    row = one(asked, "top-2", "L4b")
    assert row.kind == "multi" and set(row.answer_text.split(", ")) == {"Macular hole", "Glaucoma"}
    assert pd.isna(row.label) and offered(row) == {"Macular hole", "Glaucoma", "Diabetic retinopathy", "Normal"}
    assert questions.diagnoses("ODIR", ["Diabetic retinopathy", "PDR", "Other diseases"]) == ["PDR"]
    assert questions.diagnoses("MESSIDOR", ["Mild NPDR", "DME"]) == ["Mild NPDR"]  # edema is a second axis there
    assert questions.diagnoses("DR1-2", ["red lesion", "Drusen"]) == ["Drusen"]
    assert questions.diagnoses("OCTDL", ["Age-related macular degeneration", "Drusen"]) == [
        "Age-related macular degeneration"]                                        # the condition column


def test_what_no_label_proves_is_not_asked(asked):
    diagnosed = set(asked[asked.level.isin(["L4a", "L4b", "L4c", "L4d"])].record_id)
    assert diagnosed == {"idrid-1", "idrid-2", "ucsd-1", "ucsd-2", "top-1", "top-2", "top-4", "deep-1", "deep-2",
                         "mmc-1", "mmc-2", "mmc-3", "mmc-4"}
    assert "idrid-twin" not in set(asked.record_id)                                # its graded copy is asked instead
    assert set(asked[asked.record_id == "idrid-a"].level) == {"L1a", "L3a"}
    assert set(asked[asked.record_id == "ffa-1"].level) == {"L1a", "L2b", "L3a"}
    assert set(asked[asked.record_id == "ffa-3"].level) == {"L1a"}                 # a grade says nothing of one lesion


def test_presence_is_read_from_masks_and_labels(asked):
    lesions = asked[asked.level == "L3a"].set_index(["record_id", "finding"]).answer_text
    assert lesions["idrid-2"].to_dict() == dict.fromkeys(
        ["microaneurysm", "retinal hemorrhage", "hard exudate", "cotton-wool spot"], "No")
    finding, answer = next(iter(lesions["idrid-1"].items()))                       # one of the four when training
    assert answer == ("Yes" if finding == "microaneurysm" else "No") and len(lesions["idrid-1"]) == 1
    assert lesions["fluid-1"]["subretinal fluid"] == "Yes" and "optic disc" not in lesions.index.levels[1]
    assert lesions["fluid-1"]["pigment epithelial detachment"] == "No"             # looked for, not found
    assert lesions["ffa-2"].to_dict() == {"microaneurysm": "No", "neovascularization": "No"}
    assert lesions["ffa-4"].to_dict() == {"microaneurysm": "No", "neovascularization": "Yes"}
    assert len(lesions["ffa-1"]) == 1


def test_binary_and_side(asked):
    binary = asked[asked.level == "L4a"].set_index("record_id")
    assert binary.answer_text[["idrid-1", "idrid-2", "deep-1", "ucsd-1", "ucsd-2"]].to_list() == [
        "Yes", "No", "Yes", "Yes", "No"]
    assert binary.question["deep-1"] == "Does this image show diabetic retinopathy?"       # PDR is a case of it
    assert binary.question["ucsd-2"] == "Does this image show DME?"
    both = {"Does this image show age-related macular degeneration?",
            "Does this image show polypoidal choroidal vasculopathy?"}
    assert set(binary.question[["mmc-1", "mmc-2", "mmc-4"]]) <= both
    assert binary.question["mmc-3"].endswith("vasculopathy?")                      # whether that is AMD is disputed
    assert one(asked, "top-1", "L2b").answer_text == "Left eye"
    assert one(asked, "top-2", "L2b").answer_text == "Right eye"


def test_shares_of_zero_leave_diagnoses_and_the_lesions_of_test_images(tmp_path):
    rows = questions.make_questions(RECORDS, NONE, seed=0, root=tmp_path)          # no mask is opened: there is none
    assert rows.groupby("level").size().to_dict() == {"L3a": 4 + 3 + 2 + 2, "L4b": 5, "L4c": 4, "L4d": 4}
    assert set(rows.kind) == {"yesno", "single", "multi"}


def test_one_image_more_changes_no_other_question(asked):
    more = pd.concat([RECORDS, pd.DataFrame([record("ucsd-0", "UCSD", "OCT", ["Normal"])])])[::-1]
    again = questions.make_questions(more, EVERY, seed=0, wordings=1).set_index("id").loc[asked.id].reset_index()
    pd.testing.assert_frame_equal(again[questions.COLUMNS], asked)
    other = questions.make_questions(RECORDS, EVERY, seed=1, wordings=1)
    assert other.options.to_list() != asked.options.to_list()


def test_wordings_are_drawn_by_the_item(asked):
    drawn, again = (questions.make_questions(RECORDS, EVERY, seed=0) for _ in range(2))
    assert drawn.question.to_list() == again.question.to_list() and drawn.id.to_list() == asked.id.to_list()
    assert drawn.options.to_list() == asked.options.to_list() and len(set(drawn[drawn.level == "L1a"].question)) == 3
    wordings = questions.TEMPLATES["wordings"]
    assert {row.question for row in asked.itertuples() if row.level == "L1a"} == {wordings["L1a"][0]}
    assert all(len(set(texts)) == 3 and len({text.count("{}") for text in texts}) == 1 for texts in wordings.values())


def test_at_most_six_options():
    labels = ["Drusen", "Normal", "Macular hole", "Retinitis", "Coloboma", "Tilted disc", "Macular scar", "Laser scars"]
    asked = questions.make_questions(pd.DataFrame([
        *(record(f"r{i}", "RFMiD", "CFP", [label]) for i, label in enumerate(labels)),
        record("five", "RFMiD", "CFP", labels[2:7]), record("six", "RFMiD", "CFP", labels[2:])]), NONE, seed=0)
    assert all(len(options) == 6 for options in asked.options) and asked.answer_text.to_list()[:8] == labels
    assert asked.record_id.to_list()[8:] == ["five"]  # six right answers leave no wrong one


LABELS = {name: sorted(set(entry.labels.values())) for name, entry in catalogue().items()}
ROWS = [row for entry in reference("labels.json")["datasets"] for row in entry["labels"] if row["kind"] != "lesion"]


@pytest.mark.parametrize("dataset", [name for name, labels in LABELS.items() if labels])
def test_no_wrong_option_is_right(dataset):
    names = LABELS[dataset]
    synonyms = {name: {text.lower() for row in ROWS if row["canonical"] == name
                       for text in (name, *row["synonyms"])} for name in (*names, *GRADES)}
    labels = [[name] for name in names] + [list(pair) for pair in combinations(names, 2)][::5]
    rows = pd.DataFrame([record(f"{i}", dataset, "CFP", found) for i, found in enumerate(labels)])
    for row in questions.make_questions(rows, NONE, seed=0).itertuples():
        right = set(row.answer_text.split(", "))
        for wrong, own in ((wrong, own) for wrong in offered(row) - right for own in right):
            assert not questions.related(wrong, own) and synonyms[wrong].isdisjoint(synonyms[own]), (wrong, own)
            assert wrong not in questions.lineage(own) and own not in questions.lineage(wrong)


@pytest.mark.parametrize("a, b, near", [
    ("PDR", "Diabetic retinopathy", True), ("Severe NPDR", "Severe NPDR or PDR", True), ("PDR", "Severe NPDR", False),
    ("Wet AMD", "Age-related macular degeneration", True), ("Wet AMD", "Choroidal neovascularization", True),
    ("Wet AMD", "Polypoidal choroidal vasculopathy", False), ("Wet AMD", "Dry AMD", False),
    ("Central retinal vein occlusion", "Retinal vein occlusion", True),
    ("Central retinal vein occlusion", "Branch retinal vein occlusion", False), ("Drusen", "Wet AMD", False),
    ("DME", "Diabetic retinopathy", True),
    ("Vessel tortuosity", "Tortuous vessels", True), ("Optic atrophy", "Optic disc pallor", True),
    ("No DR", "Normal", True), ("No DR", "Glaucoma", True), ("No DR", "PDR", False),
    ("No glaucoma", "Possible glaucoma", False), ("No AMD", "Drusen", False), ("No AMD", "Glaucoma", True),
    ("Normal", "Glaucoma", False)])
def test_families_of_labels(a, b, near):
    assert questions.related(a, b) is questions.related(b, a) is near


def test_every_label_of_the_families_is_a_label():
    known = {label for labels in LABELS.values() for label in labels} | {
        "Vitreomacular traction", "Geographic atrophy"}                            # pages know them, no data set yet
    tables = [questions.TEMPLATES["narrower"], questions.TEMPLATES["overlap"]]
    assert {name for table in tables for wide, names in table.items() for name in (wide, *names)} <= known
    assert set(questions.TEMPLATES["unproven"]) <= known
    children = [name for names in tables[0].values() for name in names]
    assert len(children) == len(set(children))


def test_a_mask_in_words():
    mask = np.zeros((10, 20), bool)
    mask[0, 0] = mask[9, 19] = True                                                # two corners: two regions, 2 of 200
    assert questions.outline(mask) == (["Upper left", "Lower right"], 0.01, 2, 0.5)
    mask[1, 1] = True                                                              # touches the first at its corner
    assert questions.outline(mask).regions == 2 and questions.outline(mask).share == 0.015
    bar = np.zeros((10, 20), bool)
    bar[2, 0:11] = True                                                            # 10 pixels left, 1 right: a sliver
    assert questions.outline(bar).quadrants == ["Upper left"] and questions.outline(bar).centre == pytest.approx(0.275)
    bar[2, 11] = True                                                              # 2 of 12 are more than a tenth
    assert questions.outline(bar).quadrants == ["Upper left", "Upper right"]
    assert [questions.binned(n, questions.COUNTS)[1] for n in (1, 2, 5, 6, 50, 51)] == [
        ["1"], ["2 to 5"], ["2 to 5"], ["6 to 20"], ["21 to 50"], ["More than 50"]]
    assert [questions.binned(x, questions.SIZES)[1][0] for x in (0.0005, 0.001, 0.02, 1.0)] == [
        "Less than 0.1 %", "0.1 to 0.5 %", "2 % or more", "2 % or more"]


def masked(root, disc_at: int) -> pd.DataFrame:
    """One record of 10 x 20 pixels: three microaneurysms in two quadrants, a disc at column `disc_at`."""
    spots, disc = np.zeros((2, 10, 20), np.uint8)
    spots[1, 1] = spots[1, 4] = spots[8, 2] = 1
    disc[5, disc_at] = 1
    Image.fromarray(spots).save(root / "m.tif")
    Image.fromarray(disc).save(root / "o.tif")
    return pd.DataFrame([record("x", "IDRiD", "CFP", ["Mild NPDR"], masks=MASKS)])


def test_mask_questions(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(questions, "read_mask", lambda f, read=questions.read_mask: opened.append(f.name) or read(f))
    asked = questions.make_questions(masked(tmp_path, disc_at=15), EVERY, seed=0, root=tmp_path, wordings=1)
    by_level = asked[asked.level.isin(["L2a", "L3b", "L3c", "L3d"])].set_index("level")
    assert by_level.answer_text.drop("L3b").to_dict() == {
        "L2a": "Right half", "L3c": "0.5 to 2 %", "L3d": "2 to 5"}                 # 3 of 200 pixels are 1.5 %
    assert set(by_level.answer_text["L3b"].split(", ")) == {"Upper left", "Lower left"}
    assert by_level.kind["L3b"] == "multi" and by_level.finding["L3d"] == "microaneurysm"
    assert sorted(opened) == ["m.tif", "o.tif"]                                    # each once
    angiogram = masked(tmp_path, disc_at=15).assign(modality="FFA", labels=[["microaneurysm"]])
    levels = set(questions.make_questions(angiogram, EVERY, seed=0, root=tmp_path).level)
    assert levels == {"L1a", "L2a", "L3a"}                                         # modality, anatomy, presence only
    middle = questions.make_questions(masked(tmp_path, disc_at=10), EVERY, seed=0, root=tmp_path)
    assert "L2a" not in set(middle.level)                                          # 10.5 / 20 is on neither side
    assert not {"L2a", "L3b"} & set(questions.make_questions(RECORDS, EVERY, seed=0).level)  # no root
    broken = masked(tmp_path, disc_at=15)
    (tmp_path / "m.tif").write_bytes(b"cut")
    with pytest.raises(DataError, match="m.tif is not a readable mask"):
        questions.make_questions(broken, EVERY, seed=0, root=tmp_path)


def test_large_masks_are_pooled_and_quick():
    mask = np.zeros((2848, 4288), bool)
    mask[::200, ::200] = True                                                      # 15 rows of 22 single pixels
    start = time.perf_counter()
    seen = questions.outline(mask)
    assert seen.regions == 330 and seen.share == 330 / mask.size and seen.quadrants == list(questions.QUADRANTS)
    assert time.perf_counter() - start < 2


def test_prompt_is_short_and_survives_parquet(asked, tmp_path):
    asked.to_parquet(tmp_path / "questions.parquet")
    read = pd.read_parquet(tmp_path / "questions.parquet").set_index("id")
    prompts = {name: questions.prompt(read.question[name], read.options[name], read.kind[name]) for name in read.index}
    first, second = offered(read.loc["top-1/L2b"])
    assert prompts["top-1/L2b"] in [
        f"Which eye is this? Options: A. {a}, B. {b}. Think in <think> </think>, then give one option in "
        "<answer> </answer>." for a, b in ((first, second), (second, first))]
    assert "then give every right option in <answer>" in prompts["top-2/L4b"]
    assert prompts["deep-1/L4c-open"] == ("What is the grade of diabetic retinopathy? Think in <think> </think>, then "
                                          "give the answer in <answer> </answer>.")
