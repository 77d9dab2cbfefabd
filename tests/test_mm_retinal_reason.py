"""MM-Retinal-Reason: the basic part is written in the published form, split by data set."""

import base64
import json

import pytest
from test_questions import EVERY, RECORDS

from fundus_lib import data, mm_retinal_reason, questions
from fundus_lib.data.catalogue import catalogue

ROLES = {"UCSD": "in-domain", "TOP": "in-domain", "IDRiD": "out-of-domain", "RETOUCH": None}


@pytest.fixture(scope="module")
def basic(tmp_path_factory):
    """(folder, the questions, where they went)."""
    folder = tmp_path_factory.mktemp("basic")
    asked = questions.make_questions(RECORDS, EVERY, seed=0)
    return folder, asked, mm_retinal_reason.write_basic(folder, asked, ROLES)


def test_one_file_a_kind_split_and_modality(basic):
    assert {file.stem for file in basic[0].iterdir()} == {
        f"{kind}_{split}_data_{modality}" for kind, split, modality in [
            *((kind, "train", "OCT") for kind in ("single_choice", "true_false", "open_ended")),
            *((kind, "test", "OCT") for kind in ("single_choice", "true_false", "open_ended")),
            *((kind, "train", "UWF") for kind in ("single_choice", "true_false", "open_ended", "multi_choice")),
            *((kind, "test", "UWF") for kind in ("single_choice", "true_false", "open_ended")),
            *((kind, "test", "CFP") for kind in ("single_choice", "true_false", "open_ended"))]}


def test_records_have_the_published_form(basic):
    folder, asked, _ = basic
    several = json.loads((folder / "multi_choice_train_data_UWF.json").read_text())
    row = asked.set_index("id").loc["top-2/L4b"]
    assert several == [{
        "image": ["top-2.png"], "reason": "", "dataset": "TOP", "domain": "in-domain", "conversations": [
            {"from": "human", "value": questions.prompt(row.question, row.options, "multi")},
            {"from": "gpt", "value": f"<answer> {row.answer} </answer>"}]}]
    opened = json.loads((folder / "open_ended_test_data_CFP.json").read_text())
    assert [turn["value"] for turn in opened[0]["conversations"]][1] == "<answer> No DR </answer>"


def test_out_of_domain_sets_are_only_tested(basic):
    folder, asked, went = basic
    content = [(file.stem, item) for file in folder.iterdir() for item in json.loads(file.read_text())]
    assert {(item["dataset"], item["domain"]) for name, item in content if "_train_" in name} == {
        ("UCSD", "in-domain"), ("TOP", "in-domain")}
    assert {item["image"][0] for _, item in content if item["domain"] == "out-of-domain"} == {"idrid-2.png"}
    assert went.questions.sum() == len(asked) and went[went.written].questions.sum() == len(content)
    assert not went[went.dataset.isin(["RETOUCH", "GRAPE"])].written.any()         # no part of MM-Retinal-Reason


def test_roles_come_from_the_catalogue(basic, tmp_path):
    went = mm_retinal_reason.write_basic(tmp_path, basic[1])
    roles = {name: entry.roles.get("ophthareason") for name, entry in catalogue().items()}
    assert {(name, domain) for name, domain in zip(went.dataset, went.domain, strict=True) if isinstance(domain, str)} \
        == {(name, roles[name]) for name in set(went.dataset) if roles[name]}


def test_what_is_written_is_read(basic):
    folder, asked, went = basic
    read = mm_retinal_reason.read_mm_retinal_reason(folder)
    columns = ["path", "split", "dataset", "kind", "question", "answer", "answer_text", "options", "modality"]
    wanted = asked[asked.dataset.map(ROLES).eq("in-domain") | asked.split.eq("test") & asked.dataset.eq("IDRiD")]
    both = [sorted(frame.assign(options=[[*questions.option_texts(cell).items()] for cell in frame.options])[columns]
                   .astype(str).to_numpy().tolist()) for frame in (read, wanted)]
    assert both[0] == both[1] and len(read) == went[went.written].questions.sum()
    assert set(read.task) == {"basic"} and set(read.domain) == {"in-domain", "out-of-domain"}


PNG = base64.b64encode(b"\x89PNG one").decode()


def published(human="<image>What is it?\nA) Normal, B) Drusen, C) Glaucoma", gpt="<answer> B </answer>", **changes):
    return {"image": ["a/1.jpg"], "reason": "r", "conversations": [
        {"from": "human", "value": human}, {"from": "gpt", "value": gpt}]} | changes


def read_one(folder, record, name="single_choice_test_data_CFP"):
    (folder / f"{name}.json").write_text(json.dumps([record]))
    return mm_retinal_reason.read_mm_retinal_reason(folder).iloc[0]


def test_three_ways_to_hold_images(tmp_path):
    assert read_one(tmp_path, published()).images == ["a/1.jpg"]
    assert read_one(tmp_path, published(image=[f"data:image/png;base64,{PNG}", PNG])).images == [b"\x89PNG one"] * 2
    (tmp_path / "single_choice_test_data_CFP.csv").write_text(f"index,base64\na/1.jpg,{PNG}\n")
    read = read_one(tmp_path, published())
    assert read.images == [b"\x89PNG one"] == [read.image] and read.path is None


@pytest.mark.parametrize(("human", "gpt", "name", "wanted"), [
    ("Q?\nOptions:\nA. Normal\nB. Drusen\nAnswer with a letter", "<answer>B</answer>", "single", "single B Drusen"),
    ("Q? (A) Normal (B) Drusen", "Drusen", "single", "single B Drusen"),
    ("Q? Options: A. x, B. y, C. z.", "<think>t</think><answer> A, C </answer>", "single", "multi A,C x, z"),
    ("Q? Options: A. x, B. y", "<answer>A</answer>", "multi_choice", "multi A x"),
    ("Q? Options: A. Yes, B. No", "<answer>B</answer>", "true_false", "yesno B No"),
    ("A 60-year-old man. Q?", "<answer>DME, mild</answer>", "complex", "open DME, mild DME, mild")])
def test_kind_from_answer_and_file_name(tmp_path, human, gpt, name, wanted):
    read = read_one(tmp_path, published(human, gpt, pmcid="PMC1", title="t", caption="c"), f"{name}_test")
    assert f"{read.kind} {read.answer} {read.answer_text}" == wanted
    assert [read.pmcid, read.title, read.caption, read.task] == ["PMC1", "t", "c", "complex"]
    assert read.question in ("Q?", "A 60-year-old man. Q?")


@pytest.mark.parametrize(("record", "reason"), [
    (published(image=[]), "0 images; a record has 1 to 6"), (published(image=["a.jpg"] * 7), "7 images"),
    (published(image=["../a.jpg"]), "leaves the folder"), (published(image=["%%"]), "'%%' is no path, no base64"),
    (published(conversations=[]), "a human and a gpt turn"), (published(image=3), "a list of images"),
    (published(gpt="<answer> D </answer>"), "answer 'D' is none of the options"),
    (published(human="What?"), "answer 'B', but no options are listed"), ({"image": []}, "no conversations"),
    ("text", "no conversations, image")])
def test_a_malformed_record_is_named(tmp_path, record, reason):
    with pytest.raises(data.DataError, match=f"single_choice_test_data_CFP.json, row 1: .*{reason}"):
        read_one(tmp_path, record)


@pytest.mark.parametrize("name, split", [("complex_reason_train", "train"), ("complex_reason", "test"),
                                         ("single_choice_val_data_UWF", "val")])
def test_the_file_name_says_the_split(tmp_path, name, split):
    """A training case that reads as a test case would be scored, and was trained on."""
    (tmp_path / f"{name}.json").write_text(json.dumps([{"image": ["a.jpg"], "conversations": [
        {"from": "human", "value": "Which diagnosis?"}, {"from": "gpt", "value": "<answer> AMD </answer>"}]}]))
    assert mm_retinal_reason.read_mm_retinal_reason(tmp_path).split.to_list() == [split]
