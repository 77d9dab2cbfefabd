"""Notebooks 02-04 against a real server: transformers' own, serving the small model. Slow: `make test` runs it last."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from fundus_lib import perception
from fundus_lib.serving import serve

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A copy of the project whose smoke profile asks the server; runs a stage there, returns its folder."""
    if not (ROOT / "runs/smoke/base_model/manifest.json").exists():
        pytest.skip("needs the smoke run's data and base:  make reproduce PROFILE=smoke")
    root = tmp_path_factory.mktemp("served")
    for name in ("fundus_lib", "notebooks", "papers_figs", "runs/smoke/01_data", "runs/smoke/base_model"):
        shutil.copytree(ROOT / name, root / name)
    with serve(perception.RECORDED) as url:
        file = root / "fundus_lib/profiles/smoke.yaml"
        profile = yaml.safe_load(file.read_text())
        profile["server"] |= {"url": url, "vision_model": "base_model", "text_model": "base_model", "max_tokens": 96}
        profile["voting"]["finder"], profile["traces"]["writer"] = "served", "llm"
        file.write_text(yaml.safe_dump(profile))

        def stage(name):
            subprocess.run([sys.executable, "-m", "fundus_lib.runs", "stage", name, "--profile", "smoke"], cwd=root,
                           check=True, env={**os.environ, "FUNDUS_CACHE": str(root / "cache"), "PYTHONPATH": str(root)})
            return root / "runs/smoke" / name
        yield stage


def test_votes_and_traces_come_from_the_server_and_the_image_arrives(run):
    """A finder that does not see the image is right no more often than a coin: S2 0.5 at best, and 0 if constant."""
    folder = run("04_trace_qc").parent
    votes = pd.read_parquet(folder / "03_vf_voting/findings.parquet")
    table6 = pd.read_csv(folder / "03_vf_voting/table6.csv")
    assert (votes.asked.dropna() == 5).all() and votes.malformed.sum() < 0.05 * votes.asked.sum()
    assert table6[table6.method == "vote"].s2.mean() > 0.7
    traces = pd.read_parquet(folder / "04_trace_qc/traces.parquet")
    free = pd.read_parquet(folder / "04_trace_qc/free_form.parquet")
    assert {"llm", "grammar"} == set(traces.writer) and traces.written.all() and free.written.all()
    assert not traces[(traces.writer == "llm") & traces.kept].text.str.len().eq(0).any()
