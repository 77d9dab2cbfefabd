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
    item, letters = json.loads(file.read_text())["data"]["clinic-0.png"], {"A": 0, "B": 1}
    assert item["raw_data"]["gt"] == "Yes" == item["raw_data"]["options"][letters[item["gt"]]]
    assert item["E-mode2"] is None and "The question is: " in item["E-mode3"] and "hard exudate" in item["E-mode3"]
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
    ({"question_type": None}, "row 2: no question_type"), ({"option_A": None}, "row 2: no option_A"),
])
def test_a_bad_omni_row_is_named(tmp_path, changes, reason):
    with pytest.raises(data.DataError, match=rf"JSIEC.json, {reason}"):
        read_omni(tmp_path, [omni_row(), omni_row(**changes)])


@pytest.mark.parametrize("content", ["", "[1, 2", "[]", '{"data": []}'])
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
    (folder / "GMAI_VAL.tsv").write_text(text, encoding="utf-8-sig")
    return benchmarks.read_gmai(folder)


def gmai_row(index="7", image=PNG, e="None", answer="B", department="Ophthalmology"):
    return [index, image, "What?", "x", "y", "z", "nan", e, answer, "y", "Disease Diagnosis", department]


def test_gmai_with_bom_empty_options_and_other_departments(tmp_path):
    read = read_gmai(tmp_path, [gmai_row(), gmai_row("8", "7", e="w"), gmai_row("9", department="Urology")])
    assert read.id.to_list() == ["GMAI/7", "GMAI/8"] and read.task.to_list() == ["DD", "DD"]
    assert [len(options) for options in read.options] == [3, 4] and read.image[1] == base64.b64decode(PNG)


@pytest.mark.parametrize(("row", "reason"), [
    (gmai_row(answer="E"), "index 7: answer 'E' is none"), (gmai_row(image="!?"), "index 7: the image is not base64"),
    (gmai_row(image="12"), "index 7: image 12 is the index of no row")])
def test_a_bad_gmai_row_is_named(tmp_path, row, reason):
    with pytest.raises(data.DataError, match=reason):
        read_gmai(tmp_path, [row])


def test_absent_benchmarks_read_as_no_rows(tmp_path):
    read = benchmarks.read_all(tmp_path, tmp_path)
    assert read.empty and {"benchmark", "task", "image"} <= set(read.columns)


def question(path, level, options="xyz", answer="A", **more):
    chosen = [options["ABCDEF".index(letter)] for letter in answer.split(",")]
    return dict.fromkeys(questions.COLUMNS) | {
        "id": f"{path}/{level}", "path": path, "split": "test", "modality": "CFP", "dataset": "IDRiD", "level": level,
        "task": level, "kind": "multi" if "," in answer else "single", "question": f"Where, {level}?",
        "options": questions.as_options(options), "answer": answer, "answer_text": ", ".join(chosen)} | more


LEVELS = pd.DataFrame([
    question("a.png", "L2a", finding="optic disc"), question("a.png", "L2a", finding="fovea", answer="C"),
    question("a.png", "L3b", finding="cotton-wool spot", answer="A,C"),
    question("a.png", "L3b", finding="hard exudate", kind="multi", answer="B"),
    question("a.png", "L3c", finding="hard exudate"), question("b.png", "L3d", finding="sharply peaked PED"),
    question("b.png", "L3a", "YN", finding="optic disc edema"), question("b.png", "L4b", answer="B,C"),
    question("b.png", "L4d", "uvwxyz", answer="F")])


def test_every_level_of_funbench_comes_back(tmp_path):
    benchmarks.write_funbench(tmp_path, LEVELS)
    columns = ["path", "level", "finding", "kind", "question", "answer", "answer_text"]
    read = benchmarks.read_funbench(tmp_path, tmp_path)
    both = [frame[columns].fillna("").sort_values(columns).to_numpy().tolist() for frame in (read, LEVELS)]
    assert both[0] == both[1]
    (file,) = tmp_path.rglob("L3b-lesion_localization-hard_exudate.json")
    raw = json.loads(file.read_text())["data"]["a.png"]
    assert raw["gt"] == "B" and raw["raw_data"]["gt"] == ["y"]          # a list marks a several-answer question
    with pytest.raises(data.DataError, match="a.png/L3c is the second question about a.png"):
        benchmarks.write_funbench(tmp_path, pd.concat([LEVELS, LEVELS[LEVELS.level == "L3c"]]))


def test_too_many_options_keep_every_right_one():
    row = next(LEVELS[LEVELS.level == "L4d"].itertuples())
    options, letters = benchmarks.narrowed(row, 3)
    assert [option["text"] for option in options] == ["u", "v", "z"] and letters == "C"


@pytest.fixture
def official(tmp_path):
    """Miniature of the three official downloads, with what is known to be odd in them."""
    omni = [omni_row(image_path=f"Images/{i}.png", **changes) for i, changes in enumerate([
        {}, {"gt_answer": "Retina"}, {"question_type": "Other Biological Attributes"}, {"dataset": "BreakHis"},
        {"dataset": "OCT & X-Ray 2017", "modality_type": "X-Ray"},
        {"dataset": "OCT & X-Ray 2017", "modality_type": None, "modality": "OCT (Optical Coherence Tomography"},
        {"dataset": "OLIVES", "modality_type": "OCT (Optical Coherence Tomography)", "option_C": float("nan")}])]
    home = tmp_path / "OmniMedVQA"
    benchmarks.write_json(home / "QA_information/Open-access/x.json", [*omni, "no object"])
    benchmarks.write_json(home / "QA_information/Restricted-access/y.json", omni)
    benchmarks.write_funbench(tmp_path / "FunBench", LEVELS)
    item = {"gt": "A", "raw_data": {"gt": "y", "options": ["x", "y"]}, "E-mode3": "The question is: Q?"}
    benchmarks.write_json(tmp_path / "FunBench/L1-perception/L1a-x.json", {"data": {"c.png": item, "d.png": 1}})
    head = ["INDEX", "image", "Question", *"abcde", "answer", "category", "Clinical VQA task", "department", "modality"]
    rows = [[*gmai_row(index), modality] for index, modality in (("1", "Fundus photography"), ("2", "Slit lamp"))]
    rows += [[*gmai_row("3", "1", answer="E"), "OCT"], [*gmai_row("4", "1", department="Urology"), "CT"]]
    (tmp_path / "GMAI-MMBench").mkdir()
    for name in ("VAL", "TEST_part_1"):
        (tmp_path / f"GMAI-MMBench/GMAI-MMBench_{name}.tsv").write_text("\n".join("\t".join(x) for x in [head, *rows]))
    return tmp_path


def test_official_downloads(official):
    read, selections, problems = benchmarks.read_official(official)
    assert read.groupby("benchmark").size().to_dict() == {"FunBench": 9, "GMAI-Fundus": 1, "Omni-Fundus": 3}
    assert read[read.benchmark == "Omni-Fundus"].modality.to_list() == ["CFP", "OCT", "OCT"]
    counts = selections["Omni-Fundus"].counts
    assert counts.loc["JSIEC"].dropna().to_dict() == {"DD": 1, "Other Biological Attributes": 1, "kept": 1,
                                                      "published": 220}
    assert counts.kept.sum() == 3 and counts.DD["not of the eye"] == 2
    assert sum(benchmarks.OMNI["datasets"].values()) == 10_044
    assert selections["GMAI-Fundus"].counts.kept.sum() == 1 and "Ophthalmology" in selections["GMAI-Fundus"].rule
    reasons = [problem.reason for problem in problems]
    for wanted in ("c.png: gt 'A' means ['x'], raw_data.gt is 'y'", "d.png: no E-mode3, gt, raw_data",
                   "row 2: answer 'Retina' is none of", "row 8: no gt_answer", "index 3: answer 'E' is none of",
                   "2 images are missing, first: a.png", "3 images are missing, first: Images/0.png"):
        assert sum(wanted in reason for reason in reasons) == 1, wanted
    assert len(reasons) == 7


def test_a_broken_benchmark_leaves_the_others(official):
    (official / "OmniMedVQA/QA_information/Open-access/x.json").write_text("[1, 2")
    (official / "GMAI-MMBench/GMAI-MMBench_VAL.tsv").write_text("index\tquestion\tanswer\n1\tq\tA\n1\tq\tA\n")
    read, selections, problems = benchmarks.read_official(official)
    assert set(read.benchmark) == {"FunBench"} and not selections
    whole = sorted(p.dataset for p in problems if "JSON" in p.reason or "no column" in p.reason)
    assert whole == ["GMAI-Fundus", "Omni-Fundus"]


def test_table4_hashes_what_is_asked_in_any_order(written):
    folder, root, _ = written
    read = benchmarks.read_all(folder, root)
    table = benchmarks.table4(read).set_index(["benchmark", "task"])
    assert table.loc[("GMAI-Fundus", "all"), ["questions", "images"]].to_list() == [14, 7]
    again = benchmarks.table4(read.sample(frac=1, random_state=0)).set_index(["benchmark", "task"])
    assert again.sha256.to_dict() == table.sha256.to_dict()
    read.loc[0, "answer_text"] = "other"
    assert (benchmarks.table4(read).sha256.to_numpy() != table.sha256.to_numpy()).sum() == 2     # its task and "all"


def test_vlmevalkit_and_its_predictions(written, tmp_path):
    folder, root, _ = written
    asked = benchmarks.read_all(folder, root)
    benchmarks.write_vlmevalkit(tmp_path / "ours.tsv", asked, root)
    table = pd.read_csv(tmp_path / "ours.tsv", sep="\t", dtype=str)
    assert list(table)[:3] == ["index", "image", "question"] and {"A", "category", "l2-category", "split"} <= set(table)
    assert (table.image.str.len() > 64).sum() == 5 + 7 + 5 and table["index"].is_unique
    read = benchmarks.read_vlmevalkit(tmp_path / "ours.tsv")
    for column in ("id", "path", "benchmark", "task", "kind", "question", "options", "answer", "answer_text"):
        assert read[column].fillna("").to_list() == asked[column].fillna("").to_list(), column
    assert read.image[0] == (root / asked.path[0]).read_bytes()
    answers = table.drop(columns="image").assign(prediction="<answer> A </answer>")
    answers.to_csv(tmp_path / "model.tsv", sep="\t", index=False)
    predicted = benchmarks.read_vlmevalkit(tmp_path / "model.tsv")
    assert predicted.id.to_list() == asked.id.to_list() and set(predicted.prediction) == {"<answer> A </answer>"}
    pytest.importorskip("openpyxl", reason="xlsx needs openpyxl")
    answers.assign(prediction=["x" * 32_767, *answers.prediction[1:]]).to_excel(tmp_path / "model.xlsx", index=False)
    with pytest.warns(UserWarning, match="1 predictions fill their cell"):
        assert benchmarks.read_vlmevalkit(tmp_path / "model.xlsx").id.to_list() == asked.id.to_list()


def test_a_foreign_vlmevalkit_table(tmp_path):
    (tmp_path / "t.tsv").write_text("index\timage_path\tquestion\tA\tB\tanswer\tcategory\n"
                                    "5\tx.png\tQ?\tu\tv\tb\tcoarse\n6\ty.png\tName it\t\t\tdrusen\tfine\n")
    read = benchmarks.read_vlmevalkit(tmp_path / "t.tsv")
    assert read[["id", "path", "kind", "answer", "answer_text", "task"]].to_numpy().tolist() == [
        ["5", "x.png", "single", "B", "v", "coarse"], ["6", "y.png", "open", "drusen", "drusen", "fine"]]
    (tmp_path / "t.xlsx").write_bytes(b"PK broken")
    with pytest.raises(data.DataError, match="t.xlsx is not a readable table"):
        benchmarks.read_vlmevalkit(tmp_path / "t.xlsx")
    (tmp_path / "t.tsv").write_text("index\tquestion\tanswer\n5\tQ\tx\n5\tQ\tx\n")
    with pytest.raises(data.DataError, match="has the index 5 twice"):
        benchmarks.read_vlmevalkit(tmp_path / "t.tsv")
