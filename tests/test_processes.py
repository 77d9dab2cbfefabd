"""The same training in two processes: DDP, ZeRO-2 and ZeRO-3 on CPU (gloo) learn what one process learns, and end
together. Slow, each run starts a new Python twice: `make test` runs it last."""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image

from fundus_lib import grpo, perception, sft, training
from fundus_lib import model as models

# The sums of two halves are other sums: float32 losses differ by 1e-7, and what they were learned with by little more.
NEAR = 1e-5
STEPS = 5
OPTIONS = [{"letter": "A", "text": "No DR"}, {"letter": "B", "text": "Moderate NPDR"}]
SFT = {"epochs": 4, "learning_rate": 2e-3, "batch_size": 4, "micro_batch": 1, "lora_rank": 0, "train_vision": False,
       "zero_stage": 0, "seed": 0}
GRPO = {"setup": "G_uadt", "prompts_per_step": 4, "rollouts": 4, "steps": STEPS, "candidates": 2,
        "learning_rate": 2e-4, "warmup_steps": 0, "kl_beta": 0.0, "temperature": 1.2, "max_new_tokens": 24,
        "micro_batch": 4, "zero_stage": 0, "lora_rank": 0, "train_vision": True, "seed": 0,
        "judge": None, "vocabulary": None,
        "levels": {"right_tenuous": 0.5, "wrong_plausible": 0.5, "answer_weight": 1.0, "format_weight": 1.0,
                   "process_weight": 1.0},
        "uadt": {"strength": 0.5, "temperature": 0.5, "decay": 0.9, "granularity": "rollout"}}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Folder with E and G as one process trains them, one after the other, from the recorded base; sft and grpo
    arguments beside them."""
    folder, rng = tmp_path_factory.mktemp("one"), np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).resize((64, 64)).save(folder / f"{i}.png")
    rows = pd.DataFrame({
        "question_id": [f"q{i}" for i in range(12)], "image": [str(folder / f"{i}.png") for i in range(12)],
        "prompt": "Which diagnosis fits this image? Options: A. No DR, B. Moderate NPDR", "answer": ["A", "B"] * 6,
        "options": [OPTIONS] * 12, "kind": "single", "label": ["No DR", "Moderate NPDR"] * 6, "modality": "CFP",
        "topic": ["No DR", "NPDR"] * 6, "findings": [["normal retinal vasculature"], ["microaneurysm"]] * 6})
    rows.to_parquet(folder / "rows.parquet")
    words = ["hard exudate", "microaneurysm", "drusen"] * 4
    rows.assign(completion=[f"<think> This CFP image shows {word}. </think> <answer> {label} </answer>"
                            for word, label in zip(words, rows.label, strict=True)]).to_parquet(folder / "sft.parquet")
    jobs = {"E": SFT | {"start": str(perception.RECORDED), "rows": str(folder / "sft.parquet")},
            "G": GRPO | {"start": str(folder / "E"), "rows": str(folder / "rows.parquet")}}
    for name, train in (("E", sft.train), ("G", grpo.train)):
        (folder / name).mkdir()
        train(folder / name, **jobs[name])
    return folder, jobs


def same(ours: Path, theirs: Path) -> float:
    """The largest difference of a loss; the model and the rollouts that come with it are as near."""
    got, expected = (pd.read_csv(folder / "log.csv") for folder in (ours, theirs))
    assert got.step.tolist() == expected.step.tolist() and (expected.loss.abs() > 1e-3).sum() >= 3
    for a, b in zip(models.load_model(ours).parameters(), models.load_model(theirs).parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)  # a step of Adam is the learning rate however small the gradient is
    if (theirs / "rollouts.parquet").exists():
        spoken, told = (pd.read_parquet(folder / "rollouts.parquet") for folder in (ours, theirs))
        assert [m[0]["content"] for m in spoken.completion] == [m[0]["content"] for m in told.completion]
        assert spoken.question_id.tolist() == told.question_id.tolist() and len(told) == STEPS * 16
        assert np.allclose(got["uadt/threshold"], expected["uadt/threshold"], atol=NEAR)
    return (got.loss - expected.loss).abs().max()


@pytest.mark.parametrize("name, module, zero", [("E", "sft", 0), ("G", "grpo", 0), ("G", "grpo", 2)])
def test_two_processes_learn_what_one_does(name, module, zero, one, tmp_path):
    folder, jobs = one
    job = training.Job(f"fundus_lib.{module}", tmp_path / name, jobs[name] | {"zero_stage": zero}, STEPS)
    training.run_jobs([job], workers=1, processes=2)
    assert same(job.folder, folder / name) < NEAR
    log = (job.folder / "train.log").read_text(errors="replace")
    assert ("DeepSpeed" in log or "deepspeed" in log) == bool(zero)


def ranks(folder: Path) -> dict[str, psutil.Process]:
    """Rank -> the process that trains into the folder."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            if str(folder) in process.cmdline() and "RANK" in process.environ():
                found[process.environ()["RANK"]] = process
        except psutil.Error:  # it has just ended
            continue
    return found


def test_a_killed_rank_ends_the_others_and_the_same_command_goes_on_under_zero_3(one, tmp_path):
    folder, jobs = one
    job = training.Job("fundus_lib.grpo", tmp_path / "G", jobs["G"] | {"zero_stage": 3}, STEPS)
    killed = {}

    def kill():
        while job.logged_steps() < 3:
            time.sleep(0.05)
        killed.update(ranks(job.folder), at=time.time())
        killed["1"].kill()

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(RuntimeError, match="run the same again") as error:
        training.run_jobs([job], workers=1, processes=2)
    assert time.time() - killed["at"] < 30  # an idle machine takes 2 s
    message = str(error.value)
    assert str(job.folder) in message and "(local_rank: 1)" in message and "SIGKILL" in message
    assert not killed["0"].is_running() and not (job.folder / training.FINISHED).exists()
    before = len((job.folder / "train.log").read_bytes())

    training.run_jobs([job], workers=1, processes=2)
    assert same(job.folder, folder / "G") < NEAR
    again = (job.folder / "train.log").read_bytes()[before:].count(b"'loss'")
    assert 1 <= again < STEPS  # not from the start


def begin(folder: Path):
    training.Job("sleeper", folder, {}, 1).start(2).wait()


def test_a_killed_notebook_leaves_no_rank_behind(tmp_path, monkeypatch):
    (tmp_path / "sleeper.py").write_text(
        "import time\nfrom fundus_lib.torchrun import follow_parent\nfollow_parent()\ntime.sleep(300)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(training.__file__).parents[1])]))
    notebook = multiprocessing.get_context("fork").Process(target=begin, args=[tmp_path / "run"])
    notebook.start()
    deadline = time.time() + 60
    while len(started := ranks(tmp_path / "run")) < 2 and time.time() < deadline:
        time.sleep(0.1)
    assert set(started) == {"0", "1"} and json.loads((tmp_path / "run/job.json").read_text()) == {"processes": 2}
    everyone = psutil.Process(notebook.pid).children(recursive=True)
    assert len(everyone) >= 3  # torchrun and its ranks
    os.kill(notebook.pid, signal.SIGKILL)
    assert psutil.wait_procs(everyone, timeout=30)[1] == []


@pytest.mark.parametrize("asked, running", [(2, 1), (1, 2)])
def test_another_number_of_processes_than_asked_for_is_refused(asked, running, tmp_path, monkeypatch):
    (tmp_path / "job.json").write_text(json.dumps({"processes": asked} if asked > 1 else {}))
    monkeypatch.setattr(sys, "argv", ["/somewhere/grpo.py", str(tmp_path)])
    monkeypatch.setenv("WORLD_SIZE", str(running))
    monkeypatch.setattr(training, "follow_parent", lambda: None)
    with pytest.raises(RuntimeError, match=rf"asks for {asked} .*, {running} run.*\n?torchrun --nproc_per_node={asked} "
                                           r"-m fundus_lib\.grpo"):
        training.main(lambda *_, **__: pytest.fail("it trained"))


def test_a_job_of_one_seed_starts_with_the_same_numbers(tmp_path, monkeypatch):
    """New adapters are drawn from them, before any trainer sets its own seed."""
    (tmp_path / "job.json").write_text('{"seed": 3}')
    monkeypatch.setattr(sys, "argv", ["grpo.py", str(tmp_path)])
    monkeypatch.setattr(training, "follow_parent", lambda: None)
    drawn = []
    for _ in range(2):
        training.main(lambda folder, seed: drawn.append(torch.rand(3)))
    assert torch.equal(*drawn)


def test_a_group_that_processes_would_divide_is_refused(one, tmp_path, monkeypatch):
    folder, jobs = one
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="whole groups of 4: change micro_batch, prompts_per_step or rollouts"):
        grpo.train(tmp_path, **jobs["G"] | {"prompts_per_step": 3, "micro_batch": 2})
    assert training.machine_arguments(16, 4, 3, group=4)["gradient_accumulation_steps"] == 2
