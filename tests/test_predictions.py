import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fundus_lib import benchmarks, predictions
from fundus_lib.data import DataError
from fundus_lib.mm_retinal_reason import read_mm_retinal_reason
from fundus_lib.questions import as_options, prompt

SAID = ["<answer> A </answer>", "<answer> B </answer>", "The answer is B.", None]


@pytest.fixture
def questions(tmp_path):
    """Four questions with the right letters A, B, A, B; their pictures lie below tmp_path."""
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    return pd.DataFrame({
        "id": [f"q{i}" for i in range(4)], "benchmark": "Omni-Fundus", "task": ["MR", "MR", "DD", "DD"],
        "kind": "single", "question": [f"Question {i}?" for i in range(4)], "path": [f"{i}.png" for i in range(4)],
        "options": [as_options(["CFP", "OCT"])] * 4, "answer": list("ABAB"), "answer_text": ["CFP", "OCT"] * 2})


def vlm(tmp_path, questions, suffix):
    """What VLMEvalKit makes of our table: it repeats the columns without the image and adds its prediction."""
    benchmarks.write_vlmevalkit(tmp_path / "ours.tsv", questions, tmp_path)
    table = pd.read_csv(tmp_path / "ours.tsv", sep="\t", dtype=str).drop(columns="image").assign(prediction=SAID)
    file = tmp_path / f"model_ours{suffix}"
    table.to_csv(file, sep="\t", index=False) if suffix == ".tsv" else table.to_excel(file, index=False)
    return file


def med(tmp_path, questions, suffix, **changed):
    rows = [{"dataset": "x", "question_id": row.id, "question": row.question, "option_A": "CFP", "option_B": "OCT",
             "image_path": f"datas/OmniMedVQA/{row.path}", "choices": ["A. CFP", "B. OCT"], "answer": row.answer,
             "correct": True, "response": said} | changed
            for row, said in zip(questions.itertuples(), SAID, strict=True) if said]
    file = tmp_path / f"results{suffix}"
    file.write_text(json.dumps(rows) if suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return file


def parquet(tmp_path, questions, suffix):
    table = pd.DataFrame({"question_id": questions["id"], "response": SAID, "hit": True})
    table.dropna().to_parquet(tmp_path / "seed0.parquet")
    return tmp_path / "seed0.parquet"


@pytest.mark.parametrize(("write", "suffix"), [(vlm, ".tsv"), (vlm, ".xlsx"), (med, ".json"), (med, ".jsonl"),
                                               (parquet, ".parquet")])
def test_every_format_gives_each_question_its_response(tmp_path, questions, write, suffix):
    found, left = predictions.read_predictions(write(tmp_path, questions, suffix))
    said, problems = predictions.joined(questions[::-1], found)
    assert said == SAID[::-1] and left == []
    assert problems[["what", "question_id"]].to_numpy().tolist() == [["has no prediction", "q3"]]


def test_a_question_is_found_by_text_and_image_where_there_is_no_id(tmp_path, questions):
    twins = questions.assign(question="Which modality?")
    rows = med(tmp_path, twins, ".json", question_id=None)
    assert predictions.joined(twins, predictions.read_predictions(rows)[0])[0] == SAID
    _, problems = predictions.joined(twins.assign(path="same.png"), predictions.read_predictions(rows)[0])
    assert set(problems.what) == {"fits no question", "has no prediction"}


def test_what_does_not_fit_is_listed_and_never_guessed(questions):
    def found(name, response, **more):
        return predictions.Found(f"place {name}", response, name, **more)

    said, problems = predictions.joined(questions, [
        found("q0", "A"), found("q0", "A"), found("q1", "A"), found("q1", "B"), found("q9", "A"), found("q2", 3),
        found("q2", "B", question="Another question?"), found("q3", "B", options={"A": "OCT", "B": "CFP"})])
    assert said == ["A", None, None, None]
    assert sorted(problems.what + " " + problems.question_id) == [
        "contradicts another: none counts q1", "fits no question q9", "has no prediction q2", "has no prediction q3",
        "is no text q2", "is there twice q0", "was asked something else q2", "was asked something else q3"]
    doubled = pd.concat([questions, questions[:1]])
    assert predictions.joined(doubled, [found("q0", "A")])[1].what[0] == "fits several questions"
    gmai = questions.assign(id=[f"GMAI/{i}" for i in range(4)])
    assert predictions.joined(gmai, [found("2", "A")])[0] == [None, None, "A", None]


def test_a_folder_is_read_whole_and_what_is_no_prediction_is_named(tmp_path, questions):
    folder = tmp_path / "run"
    folder.mkdir()
    med(folder, questions, ".json")
    parquet(folder, questions, "")
    (folder / "metrics.json").write_text('{"total metrics": {"acc": 0.5}}')
    found, left = predictions.read_predictions(folder)
    said, problems = predictions.joined(questions, found)
    assert said == SAID and (problems.what == "is there twice").sum() == 3
    assert len(left) == 1 and "metrics.json holds no predictions" in left[0]
    for name, content in {"a.json": "{broken", "b.txt": "", "c.tsv": "index\tquestion\tanswer\n1\tq\ta\n"}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=name):
            predictions.read_predictions(tmp_path / name)
    (tmp_path / "one.jsonl").write_text('{"question_id": "q1", "response": "B\u2028"}\n\n')  # as a progress file
    assert [one[1:3] for one in predictions.read_predictions(tmp_path / "one.jsonl")[0]] == [("B\u2028", "q1")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no predictions"):
        predictions.read_predictions(tmp_path / "empty")


@pytest.fixture
def retinal(tmp_path):
    """Three questions of MM-Retinal-Reason and the prompts that OphthaReason's script repeats in its pickle."""
    folder = tmp_path / "mm"
    folder.mkdir()
    prompts = [prompt(f"Question {i}?", as_options(["CFP", "OCT"])) for i in range(3)]
    rows = [{"image": [f"{i}.png"], "reason": "", "conversations": [
        {"from": "human", "value": text}, {"from": "gpt", "value": "<answer> A </answer>"}]}
        for i, text in enumerate(prompts)]
    (folder / "single_choice_test_data_CFP.json").write_text(json.dumps(rows))
    return read_mm_retinal_reason(folder), prompts


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_ophthareasons_pickle_is_read_row_by_row(tmp_path, retinal, protocol):
    questions, prompts = retinal
    rows = [[f"<answer> {letter} </answer>", text, "A", ["x.png"]] for letter, text in zip("ABA", prompts, strict=True)]
    file = tmp_path / "OphthaReason-Qwen_single_choice_test_data_CFP.pkl"
    file.write_bytes(pickle.dumps(rows, protocol))
    said, problems = predictions.joined(questions, predictions.read_predictions(file)[0])
    assert said == [row[0] for row in rows] and problems.empty
    table = predictions.scores(questions, predictions.score_predictions(questions, said))
    assert table.score.round(1).to_list() == [66.7, 66.7] and table.n.to_list() == [3, 3]
    file.write_bytes(pickle.dumps(rows[::-1], protocol))  # another order: the prompts betray it
    _, problems = predictions.joined(questions, predictions.read_predictions(file)[0])
    assert problems.what.value_counts().to_dict() == {"was asked something else": 2, "has no prediction": 2}


class Hostile:
    """Would write a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("make", [
    lambda target: pickle.dumps([[Hostile(target), "Q", "A", []]]),                      # STACK_GLOBAL, REDUCE
    lambda target: pickle.dumps([[Hostile(target), "Q", "A", []]], 0),                   # GLOBAL
    lambda target: b"(S'touch " + str(target).encode() + b"'\nios\nsystem\n.",           # INST
    lambda target: b"cbuiltins\nexec\n(S'open(\"" + str(target).encode() + b"\", \"w\")'\ntR.",
    lambda target: pickle.dumps([["text", "Q", "A", np.array([1])]]), lambda target: b"\x82\x01.",  # numpy; EXT1
    lambda target: b"Psomewhere\n.", lambda target: b"]", lambda target: b"", lambda target: pickle.dumps({"a": 1}),
], ids=["reduce", "protocol 0", "inst", "exec", "numpy", "extension", "persistent", "cut", "empty", "no rows"])
def test_a_hostile_or_broken_pickle_is_refused_and_executes_nothing(tmp_path, make):
    target, file = tmp_path / "executed", tmp_path / "model_x.pkl"
    file.write_bytes(make(target))
    with pytest.raises(DataError, match="model_x.pkl is refused"):
        predictions.read_predictions(file)
    assert not target.exists()
    if b"system" in file.read_bytes():  # and it is hostile: an ordinary reader would run it
        pickle.loads(file.read_bytes())
        assert target.exists()


def test_the_command_prints_scores_with_n_and_what_did_not_fit(tmp_path, questions):
    file = vlm(tmp_path, questions, ".tsv")
    asked = pd.read_csv(file, sep="\t", dtype=str).drop(columns=["benchmark", "id"])  # a table of somebody else
    asked.drop(columns="prediction").to_csv(tmp_path / "asked.tsv", sep="\t", index=False)
    asked.to_csv(file, sep="\t", index=False)
    out = subprocess.run([sys.executable, "-m", "fundus_lib.predictions", tmp_path / "asked.tsv", file],
                         capture_output=True, text=True, check=True).stdout.splitlines()
    assert out[0].split() == ["benchmark", "task", "score", "low", "high", "n"]
    assert [line.split()[:3] + line.split()[-1:] for line in out[1:3]] == [
        ["VLMEvalKit", "DD", "0.0", "2"], ["VLMEvalKit", "MR", "100.0", "2"]]
    assert out[4] == "3 predictions, 4 questions; read as {'ok': 3, 'missing': 1}"
    assert out[5] == "1 x has no prediction: 3"
    table5 = predictions.scores(questions, predictions.score_predictions(questions, SAID)).set_index("column")
    assert table5.score.to_dict() == {"omni": 50, "DDo": 0, "MR": 100} and table5.n["omni"] == 4
