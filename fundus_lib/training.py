"""What SFT and GRPO share: arguments for this machine, logs, resuming from a checkpoint, one process per job."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch.distributed.elastic.multiprocessing.errors import record
from tqdm import tqdm
from transformers import TrainerCallback, set_seed

from fundus_lib import model as models
from fundus_lib import runs
from fundus_lib.torchrun import follow_parent
from fundus_lib.watching import progress

CHECKPOINTS = "checkpoints"
FINISHED = ".finished"  # written last into a run's folder


def machine_arguments(batch: int, micro_batch: int, zero_stage: int, group: int = 1) -> dict:
    """Training arguments that depend on the machine, not on the method.

    batch: sequences of an optimiser step; micro_batch: of one forward pass on one device; the rest is accumulated.
    group: sequences that stay on one device. zero_stage: DeepSpeed ZeRO where several devices share the work.
    Raises ValueError when the devices cannot share the batch equally, in whole groups.
    """
    gpu, devices = torch.cuda.is_available(), int(os.environ.get("WORLD_SIZE", 1))
    if batch % (micro_batch * devices) or batch % (group * devices):
        keys = f" in whole groups of {group}: change micro_batch, prompts_per_step or rollouts" if group > 1 else \
            ": change micro_batch or batch_size"
        raise ValueError(f"a step of {batch} sequences does not divide among {devices} device(s), {micro_batch} at a "
                         f"time{keys} in the profile")
    if (zero := zero_stage if devices > 1 else 0) and not gpu:
        import deepspeed.ops

        # gloo does; this one would be compiled first, for a minute, where there is a compiler
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # checkpoints hold whole weights under stage 3 too: start_model loads them
    shard = {"zero_optimization": {"stage": zero, "stage3_gather_16bit_weights_on_model_save": True},
             "bf16": {"enabled": "auto"}, "gradient_clipping": "auto",
             "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    return {"use_cpu": not gpu, "bf16": gpu, "gradient_checkpointing": gpu, "report_to": "none", "disable_tqdm": True,
            "dataloader_pin_memory": gpu, "logging_steps": 1, "save_total_limit": 1,
            "per_device_train_batch_size": micro_batch, "deepspeed": shard if zero else None,
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


@record  # torchrun tells what went wrong on which rank
def main(train: Callable) -> None:
    """`python -m <module> <folder>`, or the same under torchrun: train as <folder>/job.json says.

    RuntimeError where not as many processes run as the job asks for: `accelerate launch --cpu` silently runs one.
    """
    follow_parent()
    folder = Path(sys.argv[1])
    arguments = json.loads((folder / "job.json").read_text())
    asked, running = arguments.pop("processes", 1), int(os.environ.get("WORLD_SIZE", 1))
    if asked != running:
        raise RuntimeError(f'{folder}/job.json asks for {asked} process(es) ("processes"), {running} run(s). start it '
                           f"with  torchrun --nproc_per_node={asked} -m fundus_lib.{Path(sys.argv[0]).stem} {folder}")
    set_seed(arguments["seed"])  # new adapters start at random
    train(folder, **arguments)


def start_model(start: str | Path, folder: Path, *, lora_rank: int, train_vision: bool,
                train_language: bool = True):
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
    model.config._name_or_path = str(start)  # from there TRL loads the reference model, of a resumed run as well
    if lora_rank and checkpoint:
        return PeftModel.from_pretrained(model, checkpoint, is_trainable=True), checkpoint
    if lora_rank:
        targets = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
        config = LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules=targets, task_type="CAUSAL_LM")
        return get_peft_model(model, config), checkpoint
    for name, parameter in model.named_parameters():
        parameter.requires_grad = train_vision if models.SEES.search(name) else train_language
    return model, checkpoint


def finish(trainer, processor, folder: Path) -> None:
    """Save the trained model so that `from_pretrained(folder)` loads it (adapters merged), and drop checkpoints."""
    from trl.models.utils import unwrap_model_for_generation

    with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model:  # whole under ZeRO-3 too
        if trainer.is_world_process_zero():
            model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
            models.save(model, processor, folder)
            write_log(trainer.state.log_history, folder / "log.csv")
            (folder / FINISHED).touch()
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


@dataclass(eq=False)
class Job:
    """One training run in processes of its own: `python -m <module> <folder>` reads <folder>/job.json."""

    module: str  # fundus_lib.sft or fundus_lib.grpo
    folder: Path
    arguments: dict  # of the module's `train`, in JSON
    steps: int

    def start(self, processes: int = 1) -> subprocess.Popen:
        """Begin or resume the run in this many processes, one a device; their output goes to train.log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        python, arguments = [sys.executable, "-m"], self.arguments
        if processes > 1:
            python += ["fundus_lib.torchrun", "--standalone", f"--nproc_per_node={processes}", "-m"]
            arguments = {"processes": processes, **arguments}
        (self.folder / "job.json").write_text(json.dumps(arguments, indent=1))
        with open(self.folder / "train.log", "ab") as log:
            return subprocess.Popen(
                [*python, self.module, str(self.folder)], stdout=log, stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": "1"} | os.environ if not torch.cuda.is_available() else None)

    def logged_steps(self) -> int:
        """Steps in the run's log.csv so far."""
        log = self.folder / "log.csv"
        return len(log.read_text().splitlines()) - 1 if log.exists() else 0


def run_jobs(jobs: Sequence[Job], workers: int, processes: int | None = None) -> None:
    """Train `jobs`, `workers` at a time on CPU, one after the other over all GPUs; finished ones are skipped.

    processes: of each job; None: one a GPU, or one. Every job has processes of its own, so that two cores train two
    setups and a crash names the one that crashed: RuntimeError with the end of its log and its place.
    """
    gpus = torch.cuda.device_count()
    processes = processes or max(1, gpus)
    waiting = [job for job in jobs if not (job.folder / FINISHED).exists()]
    queue, running = list(waiting), []
    with tqdm(total=sum(job.steps for job in waiting), initial=sum(job.logged_steps() for job in waiting),
              desc=f"training {len(waiting)}", unit="step", disable=not waiting) as bar:
        try:
            while queue or running:
                while queue and len(running) < (1 if gpus else max(1, workers // processes)):
                    running.append((queue[0], queue.pop(0).start(processes)))
                time.sleep(0.5)
                if steps := sum(job.logged_steps() for job in waiting) - bar.n:
                    bar.set_postfix_str("; ".join(progress(job.folder) for job, _ in running), refresh=False)
                    bar.update(steps)
                for job, process in [pair for pair in running if pair[1].poll() is not None]:
                    running.remove((job, process))
                    if process.returncode:
                        tail = (job.folder / "train.log").read_text(errors="replace")[-4000:]
                        raise RuntimeError(f"training stopped in {job.folder}; run the same again to go on from its "
                                           f"last checkpoint. its train.log ends:\n{tail}")
        finally:  # Ctrl-C: the runs stop at once and resume from their last checkpoint the next time
            for _, process in running:
                process.terminate()
