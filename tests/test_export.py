"""A small run, exported: read back by what it is for, nothing of this machine in it, refused where it has to be."""

import io
import json
import os
import re
import shutil
from collections import Counter

import datasets
import pandas as pd
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from fundus_lib import export, runs
from fundus_lib import settings as profiles

OPTIONS = [{"letter": "A", "text": "Mild NPDR"}, {"letter": "B", "text": "Moderate NPDR"}]
SCORES = pd.DataFrame([("avg", 35.75, 32.65, 40.48, 755, "A", 1), ("avg", 64.2, 60.6, 67.7, 755, "G", 1),
                       ("avg", 61.3, 58.1, 65.2, 755, "F", 1)], columns="column score low high n setup seeds".split())
DIAGNOSIS = pd.DataFrame([("best constant", "clinic", 13.5, 10.0, 17.9, 289), ("G", "clinic", 79.6, 74.6, 83.8, 289),
                          ("A", "clinic", 0.0, 0.0, 1.3, 289)], columns="setup source score low high n".split())


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_base):
    """A finished smoke run: three questions (the last is open, its image was unpacked), two kept traces, E and G."""
    root = tmp_path_factory.mktemp("laboratory")
    os.environ["FUNDUS_CACHE"] = str(root / "cache")
    stages, settings = runs.STAGES["08_paper_figures"], profiles.load("smoke").model_dump(mode="json")
    for name in stages:
        runs.write(root / "runs/smoke" / name / "manifest.json", {
            "content": name, "read": {before: before for before in runs.STAGES[name]}, "settings": settings,
            "data": "", "seeds": [0], "seconds": 90, "peak_memory_gib": 1.5, "device": "cpu, 2 cores",
            "commit": "c0ffee" * 6 + "0000"})
    run = root / "runs/smoke"
    paths = ["clinic/A set/1.png", "clinic/A set/2.png", str(root / "cache/OIMHS-0/3.png")]
    for number, path in enumerate(paths):
        file = run / "01_data/downloads" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 48), (40, 90 * number, 10)).save(file)
    questions = pd.DataFrame({
        "id": ["one", "two", "three"], "task": "DD", "record_id": ["r1", "r2", "r3"], "path": paths, "split": "train",
        "modality": "CFP", "dataset": ["IDRiD", "IDRiD", "OIMHS"], "kind": ["single", "single", "open"],
        "question": ['What is "seen" here?', "Which grade?", "What is it?"], "options": [OPTIONS, OPTIONS, None],
        "answer": ["B", "A", "Macular hole"], "label": ["Moderate NPDR", "Mild NPDR", None]})
    runs.write(run / "01_data/records.parquet", questions[["path"]])
    runs.write(run / "01_data/questions.parquet", questions)
    runs.write(run / "03_vf_voting/findings.parquet", pd.DataFrame({
        "record_id": ["r1", "r1", "r1"], "finding": ["microaneurysm", "retinal hemorrhage", "drusen"],
        "kept": [True, True, False]}))
    runs.write(run / "04_trace_qc/traces.parquet", pd.DataFrame({
        "question_id": ["one", "two", "three"], "kept": [True, False, True],
        "text": [f"<think> seen </think> <answer> {x} </answer>" for x in ("Moderate NPDR", "x", "Macular hole")]}))
    for place in ("base_model/model", "05_sft/E/seed0", "06_grpo/G/seed0"):
        shutil.copytree(tiny_base, run / place)
        runs.write(run / place / "job.json", {"start": str(root)})
    runs.write(run / "07_evaluation/scores.csv", SCORES)
    runs.write(run / "07_evaluation/diagnosis.csv", DIAGNOSIS)
    yield root
    del os.environ["FUNDUS_CACHE"]


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """Setup G of that run, exported."""
    out = tmp_path_factory.mktemp("exported") / "G"
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*")}
    assert export.main(["--profile", "smoke", "--setup", "G", "--out", str(out)], root) == 0
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*")} == before, "it writes nothing but its folder"
    return out


def blocks(folder):
    """The Python of the card: how to load the model, the reward for verl."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_snippet_of_the_card_loads_the_trained_weights_and_gets_their_answer(folder, tiny_base, monkeypatch):
    monkeypatch.chdir(folder)
    here, there = {}, {}
    exec(blocks(folder)[0], here)
    exec(blocks(folder)[0].replace('pretrained(".")', f"pretrained({str(tiny_base)!r})"), there)
    assert here["answer"] == there["answer"] != "" and here["question"].startswith('What is "seen" here? Options: A. ')
    ours, theirs = load_file(folder / "model.safetensors"), load_file(tiny_base / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)
    assert (folder / "chat_template.jinja").read_bytes() == (tiny_base / "chat_template.jinja").read_bytes()


def test_llama_factory_finds_messages_images_and_their_names(folder, tmp_path):
    home = folder / "llama_factory"
    (info,) = json.loads((home / "dataset_info.json").read_text()).values()
    rows = datasets.load_dataset("json", data_files=str(home / info["file_name"]), cache_dir=str(tmp_path))["train"]
    columns, tags = info["columns"], info["tags"]
    assert set(rows.column_names) == {columns["messages"], columns["images"]} and info["formatting"] == "sharegpt"
    for row in rows:
        turns = row[columns["messages"]]
        assert [turn[tags["role_tag"]] for turn in turns] == [tags["user_tag"], tags["assistant_tag"]]
        assert sum(turn[tags["content_tag"]].count("<image>") for turn in turns) == len(row["images"]) == 1
    assert [row["images"] for row in rows] == [["images/clinic/A set/1.png"], ["images/OIMHS-0/3.png"]]
    pixels = [Image.open(home / row["images"][0]).getpixel((0, 0)) for row in rows]
    assert pixels == [(40, 0, 10), (40, 180, 10)]
    assert rows[1]["messages"][1]["content"] == "<think> seen </think> <answer> Macular hole </answer>"


def test_verl_finds_prompts_images_and_what_the_rewards_read(folder, tmp_path):
    rows = datasets.load_dataset("parquet", data_files=str(folder / "verl/train.parquet"),
                                 cache_dir=str(tmp_path))["train"].to_list()
    for index, row in enumerate(rows):
        (turn,) = row["prompt"]
        assert turn["role"] == "user" and turn["content"].count("<image>") == len(row["images"]) == 1
        assert Image.open(io.BytesIO(row["images"][0]["bytes"])).getpixel((0, 0)) == (40, 90 * index, 10)
        assert row["extra_info"]["index"] == index and row["reward_model"]["style"] == "rule"
    assert [row["reward_model"]["ground_truth"] for row in rows] == ["B", "A", "Macular hole"]
    first, last = rows[0]["extra_info"], rows[2]["extra_info"]
    assert first["options"] == OPTIONS and first["findings"] == ["microaneurysm", "retinal hemorrhage"]
    assert (last["question_id"], last["kind"], last["label"], last["options"]) == ("three", "open", None, None)

    exec(blocks(folder)[1], reward := {})
    trace = ("<think> This CFP image shows microaneurysm, retinal hemorrhage. microaneurysm or retinal hemorrhage "
             "without neovascularization indicates Moderate NPDR. </think> <answer> {} </answer>")
    scores = [reward["compute_score"]("fundus_lab", text, "B", first) for text in (
        trace.format("Moderate NPDR"), trace.format("Mild NPDR"), "Moderate NPDR")]
    assert scores[0] == 3 and 1 <= scores[1] < 2 and scores[2] == 0  # answer + format + process; format; nothing
    assert reward["compute_score"]("fundus_lab", "<think> x </think> <answer> macular hole </answer>", "Macular hole",
                                   last) >= 1  # no process reward where no label is


def test_the_card_says_what_was_measured_and_what_is_a_guess(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["license"], front["pipeline_tag"]) == ("apache-2.0", "image-text-to-text")
    assert "base_model" not in front
    assert "| avg | 35.8 [32.6, 40.5], n=755 | 64.2 [60.6, 67.7], n=755 |" in text and "61.3" not in text
    assert "| clinic | 13.5 [10.0, 17.9], n=289 | 79.6 [74.6, 83.8], n=289 | 0.0 [0.0, 1.3], n=289 |" in text
    assert "| all | 3 | 3 | 2 |" in text and "| IDRiD | 2 | 2 | 1 |" in text and "made by A -> E -> G" in text
    rate = profiles.load("smoke").grpo.learning_rate
    assert f"| grpo.learning_rate | {rate} | not in the paper |" in text and "| grpo.rollouts | " in text
    assert "| 06_grpo | 1.5 | 1.5 | cpu, 2 cores | c0ffeec0ffee |" in text and "NOT FOR CLINICAL USE" in text
    assert "Mild NPDR, Moderate NPDR." in text and "drew every image" in text and "$" not in text
    assert not re.search(r"^(drawn|real|own|hub): |Publish neither", text, re.MULTILINE)


def test_ophthareason_comes_from_its_own_stages(root):
    stage = runs.Stage("08_paper_figures", "smoke", root=root)
    facts = {name: stage.of(name).manifest for name in runs.STAGES["08_paper_figures"]}
    asked = stage.read("01_data", "questions.parquet").assign(traced=False)
    text = export.card(stage, "ophthareason_uadt", facts, asked, image="", question="", parameters="", kind="")
    assert "A -> ophthareason_sft -> ophthareason_uadt" in text and "| ophthareason.rl_steps |" in text


def test_nothing_in_the_folder_names_a_place_on_this_machine(folder, root, tiny_base):
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert Counter(file.suffix for file in files)[".png"] == 2 and not any(file.is_symlink() for file in files)
    assert not {"job.json", "log.csv", ".finished"} & {file.name for file in files}
    for file in files:
        for place in (root, folder, tiny_base, runs.ROOT):
            assert str(place).encode() not in file.read_bytes(), f"{file} names {place}"


def test_real_images_and_a_published_base_carry_their_licences_into_the_card(root):
    stage = runs.Stage("08_paper_figures", "smoke", root=root)
    facts = {name: json.loads(json.dumps(stage.of(name).manifest)) for name in runs.STAGES["08_paper_figures"]}
    facts["07_evaluation"]["data"] = "/home/somebody/downloads"
    facts["07_evaluation"]["settings"]["base_model"]["hub_id"] = "Qwen/Qwen2.5-VL-3B-Instruct"
    asked = stage.read("01_data", "questions.parquet").assign(traced=True)
    text = export.card(stage, "A", facts, asked, image="'x'", question="'y'", parameters="7", kind="x")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "other" and front["base_model"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert "Publish neither folder" in text and "drawn" not in text.split("## Settings")[0].split("## Data")[1]
    assert "somebody" not in text and "sft." not in text and "grpo." not in text, "no place; nothing trained A"


@pytest.mark.parametrize("setup, seed, broken, says", [
    ("G", "0", "07_evaluation/manifest.json", r"is not finished.\n.*make 07_evaluation PROFILE=smoke"),
    ("G", "3", "", r"has no G/seed3.\n.*make 06_grpo PROFILE=smoke"),
    ("G_uad", "0", "", r"no setup G_uad .*did you mean G_uadt\?\n.*'A', "),
    ("G", "0", "06_grpo/manifest.json stale", r"06_grpo was made from another 05_sft.\n.*make 06_grpo PROFILE=smoke"),
    ("G", "0", "out", "is not empty.\n  remove it")])
def test_it_refuses_with_the_next_command_and_writes_nothing(root, tmp_path, capsys, setup, seed, broken, says):
    out, file = tmp_path / "out", root / "runs/smoke" / broken.split(" ")[0]
    if broken == "out":
        out.mkdir()
        (out / "mine.txt").write_text("keep")
    before = file.read_bytes() if file.is_file() else None
    try:
        if broken.endswith("stale"):
            runs.write(file, json.loads(before) | {"read": {"05_sft": "earlier"}})
        elif before:
            file.unlink()
        arguments = ["--profile", "smoke", "--setup", setup, "--seed", seed, "--out", str(out)]
        assert export.main(arguments, root) == 1
    finally:
        if before:
            file.write_bytes(before)
    assert re.search(says, capsys.readouterr().err)
    assert [file.name for file in out.glob("*")] == ["mine.txt"] * (broken == "out")
