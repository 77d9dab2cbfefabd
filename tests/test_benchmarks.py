"""FunBench, OmniMedVQA and GMAI-MMBench: written and read back; published oddities; bad rows are named."""

import base64
import json

import downloads
import pandas as pd
import pytest
from test_questions import ALL, record

from fundus_lib import benchmarks, data, questions

PNG = base64.b64encode(b"\x89PNG not really").decode()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(folder, image root, questions): a clinic and a screening camera, and RFMiD for transfer."""
    root = tmp_path_factory.mktemp("images")
    grades = ["No DR", "Mild NPDR", "Moderate NPDR", "Severe NPDR", "PDR"]
    mask = [{"finding": "hard exudate", "path": "x.tif"}]
    rows = [{**record(f"{camera}-{i}", "IDRiD", "CFP", [grade, "No DME"], "test", mask if camera == "clinic" else ()),
             "camera": camera} for camera in ("clinic", "screening") for i, grade in enumerate(grades)]
    rows += [{**record(f"rfmid-{i}", "RFMiD", "CFP", [label], "test"), "camera": "screening"}
             for i, label in enumerate(["Normal", "Drusen"])]
    rows += [record("train-0", "UCSD", "OCT", ["Normal"])]
    for i, row in enumerate(rows):
        downloads.picture(root / row["path"], i)
    asked = questions.make_questions(pd.DataFrame(rows), ALL, seed=0)
    folder = tmp_path_factory.mktemp("benchmarks")
    benchmarks.write_all(folder, asked, root)
    return folder, root, asked


def test_tasks_and_cameras(written):
    folder, root, _ = written
    read = benchmarks.read_all(folder, root)
    assert read.groupby(["benchmark", "task"]).size().to_dict() == {
        ("FunBench", "L1a"): 5, ("FunBench", "L3a"): 20, ("FunBench", "L4a"): 5, ("FunBench", "L4c"): 5,
        ("GMAI-Fundus", "AR"): 7, ("GMAI-Fundus", "DD"): 2, ("GMAI-Fundus", "SG"): 5,
        ("Omni-Fundus", "LG"): 5, ("Omni-Fundus", "MR"): 5}
    assert set(read[read.benchmark == "FunBench"].path.str.split("-").str[0]) == {"clinic"}


def test_questions_come_back_as_they_were_asked(written):
    folder, root, asked = written
    clinic = asked[asked.camera == "clinic"].set_index(["path", "question"]).sort_index()
    read = benchmarks.read_funbench(folder / "funbench", root).set_index(["path", "question"]).sort_index()
    for column in ("options", "answer", "answer_text", "kind", "level"):
        assert read[column].to_list() == clinic[column].to_list(), column
    assert read.finding.dropna().to_list() == clinic.finding.dropna().to_list()


def test_published_tree_of_funbench(written):
    tree = written[0] / "funbench"
    file = tree / "L3-lesion_analysis/L3a-lesion_recognition/L3a2-lesion_recognition-Hard_exudate.json"
    item = json.loads(file.read_text())["data"]["clinic-0.png"]
    assert item["gt"] == "A" and item["raw_data"] == {"gt": "Yes", "options": ["Yes", "No"]}
    assert item["E-mode2"] is None and item["E-mode3"].endswith("The question is: Does this image show hard exudate?")
    assert not (tree / "L2-anatomy_perception").exists()               # no question, no file


def test_fewer_options_keep_the_answer(written):
    folder, root, asked = written
    truth = asked[(asked.camera == "screening") & (asked.level == "L4c")].answer_text.to_list()
    omni, gmai = benchmarks.read_omni(folder / "omni_fundus", root), benchmarks.read_gmai(folder / "gmai_fundus")
    for read, most in ((omni[omni.task == "LG"], 4), (gmai[gmai.task == "SG"], 5)):
        assert [len(options) for options in read.options] == [most] * 5 and read.answer_text.to_list() == truth


def test_gmai_carries_the_image_file_once(written):
    folder, root, _ = written
    table = pd.read_csv(folder / "gmai_fundus/GMAI-Fundus_VAL.tsv", sep="\t", dtype=str)
    assert (table.image.str.len() > 64).sum() == 7 and len(table) == 14
    read = benchmarks.read_gmai(folder / "gmai_fundus")
    assert set(read.image) == {file.read_bytes() for file in [*root.glob("screening*"), *root.glob("rfmid*")]}


def omni_row(**changes) -> dict:
    row = {"dataset": "JSIEC", "question_id": "q1", "question_type": "Disease Diagnosis", "question": "What is it?",
           "gt_answer": "Drusen", "image_path": "Images/JSIEC/a.JPG", "option_A": "Normal", "option_B": "Drusen",
           "modality_type": "Fundus Photography"}
    return {key: value for key, value in (row | changes).items() if value is not None}


def read_omni(folder, rows, encoding="utf-8"):
    (folder / "JSIEC.json").write_text(json.dumps(rows), encoding=encoding)
    return benchmarks.read_omni(folder, folder)


def test_omni_with_bom_and_the_odd_modality_key(tmp_path):
    odd = omni_row(modality_type=None, modality="OCT (Optical Coherence Tomography", option_C="")
    read = read_omni(tmp_path, [omni_row(), odd], encoding="utf-8-sig")
    assert read.answer.to_list() == ["B", "B"] and read.modality.to_list() == ["CFP", "OCT"]
    assert [len(options) for options in read.options] == [2, 2]


@pytest.mark.parametrize(("changes", "reason"), [
    ({"image_path": "../../etc/passwd"}, "row 2: image path .* leaves"),
    ({"image_path": "/etc/passwd"}, "row 2: image path .* leaves"),
    ({"gt_answer": "A B"}, "row 2: answer 'A B' is none of the options"),
    ({"question_type": None}, "row 2: no question_type"),
])
def test_a_bad_omni_row_is_named(tmp_path, changes, reason):
    with pytest.raises(data.DataError, match=rf"JSIEC.json, {reason}"):
        read_omni(tmp_path, [omni_row(), omni_row(**changes)])


@pytest.mark.parametrize("content", ["", "[1, 2", "[]"])
def test_a_broken_funbench_file_is_named(tmp_path, content):
    (tmp_path / "L1a.json").write_text(content)
    with pytest.raises(data.DataError, match=r"L1a\.json"):
        benchmarks.read_funbench(tmp_path, tmp_path)


def test_funbench_with_several_answers_and_an_escaping_path(tmp_path):
    item = {"gt": "A,C", "raw_data": {"gt": ["x", "z"], "options": ["x", "y", "z"]}, "E-mode2": None, "E-mode3": "Q?"}
    file = tmp_path / "L4-disease_diagnosis/L4b-multi_condition_diagnosis.json"
    benchmarks.write_json(file, {"data": {"a.png": item}})
    read = benchmarks.read_funbench(tmp_path, tmp_path)
    columns = ["kind", "answer", "answer_text", "level", "question"]
    assert read.loc[0, columns].to_list() == ["multi", "A,C", "x, z", "L4b", "Q?"]
    benchmarks.write_json(file, {"data": {"../a.png": item}})
    with pytest.raises(data.DataError, match=r"L4b-multi.*leaves the folder"):
        benchmarks.read_funbench(tmp_path, tmp_path)


def read_gmai(folder, rows):
    head = ["index", "image", "question", *"ABCDE", "answer", "category", "clinical VQA task", "department"]
    text = "\n".join("\t".join(row) for row in [head, *rows])
    (folder / "GMAI.tsv").write_text(text, encoding="utf-8-sig")
    return benchmarks.read_gmai(folder)


def gmai_row(index="7", image=PNG, e="None", answer="B", department="Ophthalmology"):
    return [index, image, "What?", "x", "y", "z", "nan", e, answer, "y", "Disease Diagnosis", department]


def test_gmai_with_bom_empty_options_and_other_departments(tmp_path):
    read = read_gmai(tmp_path, [gmai_row(), gmai_row("8", "7", e="w"), gmai_row("9", department="Urology")])
    assert read.id.to_list() == ["GMAI/7", "GMAI/8"] and read.task.to_list() == ["DD", "DD"]
    assert [len(options) for options in read.options] == [3, 4] and read.image[1] == base64.b64decode(PNG)


@pytest.mark.parametrize(("row", "reason"), [
    (gmai_row(answer="E"), "index 7: answer 'E' is none"), (gmai_row(image="!?"), "index 7: the image is not base64")])
def test_a_bad_gmai_row_is_named(tmp_path, row, reason):
    with pytest.raises(data.DataError, match=reason):
        read_gmai(tmp_path, [row])


def test_absent_benchmarks_read_as_no_rows(tmp_path):
    read = benchmarks.read_all(tmp_path, tmp_path)
    assert read.empty and {"benchmark", "task", "image"} <= set(read.columns)
