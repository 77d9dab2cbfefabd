"""What SFT and GRPO share: arguments for this machine, logs, resuming from a checkpoint, one process per job."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm
from transformers import TrainerCallback

from fundus_lib import model as models
from fundus_lib import runs

CHECKPOINTS = "checkpoints"
FINISHED = ".finished"  # written last into a run's folder


def machine_arguments(batch: int, micro_batch: int, zero_stage: int) -> dict:
    """Training arguments that depend on the machine, not on the method.

    batch: sequences of an optimiser step; micro_batch: of one forward pass on one device; the rest is accumulated.
    zero_stage: DeepSpeed ZeRO on GPUs, 0 for none. Raises ValueError when the devices cannot share the batch equally.
    """
    gpu, devices = torch.cuda.is_available(), int(os.environ.get("WORLD_SIZE", 1))
    if batch % (micro_batch * devices):
        raise ValueError(f"a batch of {batch} sequences is no multiple of {micro_batch} on {devices} device(s): "
                         "change micro_batch in the profile")
    shard = {"zero_optimization": {"stage": zero_stage}, "bf16": {"enabled": "auto"}, "gradient_clipping": "auto",
             "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    return {"use_cpu": not gpu, "bf16": gpu, "gradient_checkpointing": gpu, "report_to": "none", "disable_tqdm": True,
            "dataloader_pin_memory": gpu, "logging_steps": 1, "save_total_limit": 1,
            "per_device_train_batch_size": micro_batch, "deepspeed": shard if gpu and zero_stage else None,
            "gradient_accumulation_steps": batch // (micro_batch * devices)}


class LogWriter(TrainerCallback):
    """Writes the trainer's history to log.csv at every step: step, loss, rewards, entropy, length..."""

    def __init__(self, path: Path):
        self.path = path

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write_log(state.log_history, self.path)


def write_log(history: Sequence[dict], path: Path) -> None:
    """The history of a Trainer as a table, one row a step, in plain column names."""
    log = pd.DataFrame([row for row in history if "loss" in row])
    log.columns = [c.removeprefix("rewards/").removesuffix("/mean").replace("completions/mean_length", "length")
                   for c in log.columns]
    runs.write(path, log)


def follow_parent() -> None:
    """End this process when the one that started it is gone: a killed notebook must not leave training behind."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def start_model(start: str | Path, folder: Path, *, lora_rank: int, train_vision: bool):
    """(model, checkpoint or None): the start model, or the last checkpoint of an interrupted run.

    `Trainer.train(resume_from_checkpoint=...)` alone silently keeps the start's weights for Qwen2.5-VL (key names
    differ), so the weights are loaded from the checkpoint first.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    checkpoints = folder / CHECKPOINTS
    whole = [file.parent for file in checkpoints.glob("checkpoint-*/trainer_state.json")]  # the file is written last
    checkpoint = str(max(whole, key=lambda part: int(part.name.rpartition("-")[2]))) if whole else None
    # float32 weights under bf16 autocast: an update of 1e-6 would be rounded away in bfloat16
    model = models.load_model(start if lora_rank or checkpoint is None else checkpoint, dtype=torch.float32)
    if lora_rank and checkpoint:
        return PeftModel.from_pretrained(model, checkpoint, is_trainable=True), checkpoint
    if lora_rank:
        targets = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
        config = LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules=targets, task_type="CAUSAL_LM")
        return get_peft_model(model, config), checkpoint
    for name, parameter in model.named_parameters():
        parameter.requires_grad = train_vision or ".visual." not in name
    return model, checkpoint


def finish(trainer, processor, folder: Path) -> None:
    """Save the trained model so that `from_pretrained(folder)` loads it (adapters merged), and drop checkpoints."""
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        models.save(model, processor, folder)
        write_log(trainer.state.log_history, folder / "log.csv")
        (folder / FINISHED).touch()
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


@dataclass(eq=False)
class Job:
    """One training run in processes of its own: `python -m <module> <folder>` reads <folder>/job.json."""

    module: str  # fundus_lib.sft or fundus_lib.grpo
    folder: Path
    arguments: dict  # of the module's `train`, in JSON
    steps: int

    def start(self, gpus: int) -> subprocess.Popen:
        """Begin or resume the run; its output goes to train.log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "job.json").write_text(json.dumps(self.arguments, indent=1))
        python = [sys.executable, "-m"]
        if gpus > 1:  # `accelerate launch --cpu` would silently run one process; torchrun does not
            python += ["torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}", "-m"]
        with open(self.folder / "train.log", "ab") as log:
            return subprocess.Popen([*python, self.module, str(self.folder)], stdout=log, stderr=subprocess.STDOUT,
                                    env={"OMP_NUM_THREADS": "1"} | os.environ if not gpus else None)

    def logged_steps(self) -> int:
        """Steps in the run's log.csv so far."""
        log = self.folder / "log.csv"
        return len(log.read_text().splitlines()) - 1 if log.exists() else 0


def run_jobs(jobs: Sequence[Job], workers: int) -> None:
    """Train `jobs`, `workers` at a time on CPU, one after the other over all GPUs; finished ones are skipped.

    Every job has a process of its own, so that two cores train two setups and a crash names the one that crashed:
    RuntimeError with the end of its log and its place.
    """
    gpus = torch.cuda.device_count()
    waiting = [job for job in jobs if not (job.folder / FINISHED).exists()]
    queue, running = list(waiting), []
    title = ", ".join(f"{job.folder.parent.name}/{job.folder.name}" for job in waiting)
    with tqdm(total=sum(job.steps for job in waiting), desc=title, unit="step", disable=not waiting) as bar:
        try:
            while queue or running:
                while queue and len(running) < (1 if gpus else workers):
                    running.append((queue[0], queue.pop(0).start(gpus)))
                time.sleep(0.5)
                bar.update(sum(job.logged_steps() for job in waiting) - bar.n)
                for job, process in [pair for pair in running if pair[1].poll() is not None]:
                    running.remove((job, process))
                    if process.returncode:
                        tail = (job.folder / "train.log").read_text(errors="replace")[-2000:]
                        raise RuntimeError(f"training stopped in {job.folder}; its train.log ends:\n{tail}")
        finally:  # Ctrl-C: the runs stop at once and resume from their last checkpoint the next time
            for _, process in running:
                process.terminate()
