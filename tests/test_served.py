"""Notebooks 02-04 against servers that listen: transformers' own, serving the small model, for images and traces; for
vocabularies, which need a model that writes JSON, one that reads the pages by rules. Slow: `make test` runs it last."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from faulty_server import FaultyServer

from fundus_lib import knowledge, perception
from fundus_lib.serving import serve

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path):
    """run(stage, changes of the smoke profile) in a copy of the project; returns the copy's runs/smoke."""
    if not (ROOT / "runs/smoke/base_model/manifest.json").exists():
        pytest.skip("needs the smoke run's data and base:  make reproduce PROFILE=smoke")
    for name in ("fundus_lib", "notebooks", "papers_figs", "runs/smoke/01_data", "runs/smoke/base_model"):
        shutil.copytree(ROOT / name, tmp_path / name)

    def stage(name, **changes):
        file = tmp_path / "fundus_lib/profiles/smoke.yaml"
        profile = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump(profile | {part: profile[part] | keys for part, keys in changes.items()}))
        places = {"FUNDUS_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
        subprocess.run([sys.executable, "-m", "fundus_lib.runs", "stage", name, "--profile", "smoke"], cwd=tmp_path,
                       check=True, env=os.environ | places)
        return tmp_path / "runs/smoke"
    return stage


def test_votes_and_traces_come_from_the_server_and_the_image_arrives(run):
    """A finder that does not see the image is right no more often than a coin: S2 0.5 at best, and 0 if constant."""
    with serve(perception.RECORDED) as url:
        folder = run("04_trace_qc", voting={"finder": "served"}, traces={"writer": "llm"}, server={
            "url": url, "vision_model": "base_model", "text_model": "base_model", "max_tokens": 96})
    votes = pd.read_parquet(folder / "03_vf_voting/findings.parquet")
    table6 = pd.read_csv(folder / "03_vf_voting/table6.csv")
    assert (votes.asked.dropna() == 5).all() and votes.malformed.sum() < 0.05 * votes.asked.sum()
    assert table6[table6.method == "vote"].s2.mean() > 0.7
    traces = pd.read_parquet(folder / "04_trace_qc/traces.parquet")
    free = pd.read_parquet(folder / "04_trace_qc/free_form.parquet")
    assert {"llm", "grammar"} == set(traces.writer) and traces.written.all() and free.written.all()
    assert not traces[(traces.writer == "llm") & traces.kept].text.str.len().eq(0).any()


def record_of(prompt: str, seed: int) -> str:
    """What a careful model would read out of the prompt's K, and one finding made up, in no word of K."""
    head, _, text = prompt.partition("\n\n")
    label, modality = head.partition(" about ")[2].partition(" images.")[0].split(" as seen in ")
    known = knowledge.Knowledge(knowledge.query(label, modality), text, [{"start": 0, "end": len(text)}])
    record = knowledge.extract_by_rules([(label, modality, known)])[0].model_dump()
    made_up = {"finding": "drusen", "role": "required", "group": 0, "evidence": "Drusen prove it, says the oracle."}
    return json.dumps({"findings": [*record["findings"], made_up]})


def test_vocabularies_come_from_the_server_and_what_is_made_up_is_refused(run):
    """The same lists as the rules' own, whatever the model adds to them."""
    with FaultyServer(says=record_of) as server:
        folder = run("02_knowledge_rag", knowledge={"extractor": "llm"},
                     server={"url": server.url, "text_model": "reader", "max_tokens": 4000}) / "02_knowledge_rag"
    rows = [json.loads(line) for line in (folder / "knowledge.jsonl").read_text().splitlines()]
    expected = knowledge.build([(row["label"], row["modality"]) for row in rows])[1]
    assert json.loads((folder / "vocabulary.json").read_text()) == expected and len(server.bodies) == len(rows)
    assert all(any("drusen" in refused for refused in row["refused"]) for row in rows)
    schema = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert set(schema["properties"]) == {"findings"}
