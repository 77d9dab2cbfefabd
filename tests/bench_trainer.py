"""What a GRPO step costs here and in TRL (P1, P2, P4-P6, P10): the functions `make bench` calls.

The step is that of the cpu profile: its questions, its model after supervised training and its rewards, read from a
finished run. Both trainers learn nothing here (the first step of a warm-up has rate 0), so every pair starts alike.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback

from fundus_lib.runs import ROOT

RUN = ROOT / "runs" / "cpu"
KINDS = {"TRL": {}, "all off": {"share": False, "strength": 0.0}, "shared": {"strength": 0.0},
         "shared, UADT": {"strength": 0.5}, "UADT by a forward pass": {"share": False, "strength": 0.5},
         "drawn alike": {"strength": 0.0, "candidates": 1}, "chosen of three": {"strength": 0.0, "candidates": 3}}


class Clock(TrainerCallback):
    """Processor seconds of the steps so far, from loading to the optimiser: others on the machine do not count."""

    def __init__(self):
        self.taken = []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.started = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.taken.append(time.process_time() - self.started)


def trainer_of(kind: str, folder: str, prompts: int, pixels: int | None = None, train_vision: bool = False,
               steps: int = 1):
    """A trainer of the cpu profile's setup G, of one step; pixels: of an image, None for the model's own."""
    from trl import GRPOConfig, GRPOTrainer

    from fundus_lib import grpo, training
    from fundus_lib import model as models
    from fundus_lib.sft import as_dataset
    from fundus_lib.uadt import UADTGRPOTrainer

    job, start = json.loads((RUN / "06_grpo" / "G" / "seed0" / "job.json").read_text()), RUN / "05_sft" / "E" / "seed0"
    model, _ = training.start_model(start, Path(folder), lora_rank=0, train_vision=train_vision)
    processor = models.load_processor(start)
    if pixels:
        processor.image_processor.size = {"shortest_edge": pixels, "longest_edge": pixels}
    batch = prompts * job["rollouts"]
    arguments = GRPOConfig(
        output_dir=folder, max_steps=steps, num_generations=job["rollouts"], beta=0.0, temperature=1.0, top_k=0,
        max_completion_length=job["max_new_tokens"], learning_rate=1e-4, warmup_steps=10, seed=0, save_strategy="no",
        generation_kwargs={"suppress_tokens": model.generation_config.suppress_tokens},
        **training.machine_arguments(batch, batch, 0))
    trainer = (GRPOTrainer if kind == "TRL" else UADTGRPOTrainer)(
        model, grpo.rewards_of("G", job["levels"]), arguments, **KINDS[kind],
        train_dataset=as_dataset(pd.read_parquet(RUN / "06_grpo" / "rows.parquet")), processing_class=processor,
        callbacks=[clock := Clock()])
    trainer.remove_callback(PrinterCallback)
    trainer.clock = clock
    return trainer


def grpo_steps(against: str, kinds: dict[str, str], prompts: int, pixels: int | None = None,
               pairs: int = 15) -> list[dict]:
    """Steps of each kind of trainer (its target beside it) against those of `against`, interleaved: median ratios."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows, taken, lot = [], {}, random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {kind: trainer_of(kind, folder, prompts, pixels) for kind in [against, *kinds]}
        for k in tqdm(range(pairs + 1), desc="GRPO steps", unit="pair"):
            for kind in lot.sample(list(trainers), len(trainers)):
                trainer = trainers[kind]
                trainer.train_dataset = trainer.train_dataset.shuffle(seed=k)
                torch.manual_seed(k)
                trainer.train()
    torch.set_num_threads(threads)
    taken = {kind: np.array(trainer.clock.taken[1:]) for kind, trainer in trainers.items()}  # the first warms up
    shape = f"{prompts} prompts x 8, {'cpu profile' if pixels is None else f'{round(pixels ** 0.5)} px'}"
    for kind, target in kinds.items():
        ratios = taken[kind] / taken[against]
        resampled = np.median(np.random.default_rng(0).choice(ratios, (2000, pairs)), axis=1)
        low, high = np.percentile(resampled, [2.5, 97.5])
        rows.append({"what": f"GRPO step, {kind} / {against}, {shape}", "value": median(ratios), "low": low,
                     "high": high, "unit": "ratio", "target": target, "n": pairs})
    return [*rows, *({"what": f"GRPO step, {kind}, {shape}", "value": median(times), "unit": "s", "n": pairs}
                     for kind, times in taken.items())]


def counts(kind: str, prompts: int = 4, train_vision: bool = False) -> Counter:
    """Image-processor passes and tower encodes per distinct image of one GRPO step."""
    seen, pixels = Counter(), set()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(kind, folder, prompts, train_vision=train_vision)
        process = type(trainer.processing_class.image_processor)
        plain = process._preprocess if hasattr(process, "_preprocess") else process.preprocess

        def counted(self, images, *args, **kwargs):
            seen["processed"] += len(images)
            pixels.update(np.asarray(image).tobytes() for image in images)
            return plain(self, images, *args, **kwargs)

        def encoded(module, args, kwargs):
            seen["encoded"] += len(kwargs["grid_thw"])

        trainer.model.model.visual.register_forward_pre_hook(encoded, with_kwargs=True)
        setattr(process, plain.__name__, counted)
        try:
            trainer.train()
        finally:
            setattr(process, plain.__name__, plain)
    return Counter({name: count / len(pixels) for name, count in seen.items()})


def looked_at() -> list[dict]:
    """P1 and P2, ours and TRL's."""
    return [{"what": f"{name} per image, {kind}{', trained tower' if vision else ''}", "value": got[name], "unit": "",
             "target": {"processed": "<= 1", "encoded": "<= 2"}[name] if kind != "TRL" else ""}
            for kind, vision in (("TRL", False), ("shared, UADT", False), ("shared, UADT", True))
            for got in [counts(kind, train_vision=vision)] for name in ("processed", "encoded")]


def same_numbers(prompts: int = 6) -> list[dict]:
    """P2: largest difference of loss and of a gradient to TRL's on the same completions, tower trained."""
    said, found = [], {}
    for kind in ("TRL", "shared"):
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            trainer = trainer_of(kind, folder, prompts, train_vision=True)
            sample = trainer._generate_single_turn
            trainer._generate_single_turn = lambda *args, take=sample: (said or said.extend(take(*args)[0]) or said,
                                                                        None)
            batch = [trainer.train_dataset[i // 8] for i in range(8 * prompts)]
            trainer.model.train()
            trainer.current_gradient_accumulation_steps = 1
            torch.manual_seed(0)
            loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
            loss.backward()
            found[kind] = loss.item(), [p.grad for p in trainer.model.parameters()]
    (loss, grads), (same, ours) = found.values()
    furthest = max((a - b).abs().max().item() for a, b in zip(grads, ours, strict=True))
    return [{"what": "loss, difference to TRL's", "value": abs(loss - same), "unit": "", "target": "<= 1e-5", "n": 1},
            {"what": "gradient, largest difference", "value": furthest, "unit": "", "target": "<= 1e-5",
             "n": sum(p.numel() for p in grads)}]


def informative(steps: int = 40, prompts: int = 24) -> list[dict]:
    """P10: groups whose rollouts earn differently, for 1,000 generated tokens, over the first steps of real training:
    questions drawn alike, as TRL draws them, against those a `Curriculum` chooses. Steps are drawn anew for the
    interval."""
    found = {}
    for kind in ("drawn alike", "chosen of three"):
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_of(kind, folder, prompts, steps=steps)
            trainer.train()
            log = pd.DataFrame([row for row in trainer.state.log_history if "frac_reward_zero_std" in row])
        found[kind] = np.stack([prompts * (1 - log.frac_reward_zero_std),
                                prompts * 8 * log["completions/mean_length"] / 1000])
    rng = np.random.default_rng(0)
    drawn = {kind: table[:, rng.integers(steps, size=(2000, steps))].sum(-1) for kind, table in found.items()}
    (plain, chosen), (few, many) = ([groups / tokens for groups, tokens in values] for values in (
        [table.sum(-1) for table in found.values()], drawn.values()))
    low, high = np.percentile(many / few, [2.5, 97.5])
    return [{"what": "informative groups a 1,000 tokens, chosen of three / drawn alike", "value": chosen / plain,
             "low": low, "high": high, "unit": "ratio", "target": ">= 1.5", "n": steps},
            {"what": "informative groups a 1,000 tokens, drawn alike", "value": plain, "unit": "groups", "n": steps}]


MEMORY = """
import re, sys, tempfile, torch
from pathlib import Path
sys.path.insert(0, "tests")
from bench_trainer import trainer_of


def most():  # of this process alone: getrusage would begin with the peak of the one that started it
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024


torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    trainer = trainer_of(sys.argv[1], folder, int(sys.argv[2]))
    Path("/proc/self/clear_refs").write_text("5")
    before = most()
    torch.manual_seed(0)
    trainer.train()
    print()
    print(before, most())
"""


def memory(prompts: int = 24) -> list[dict]:
    """P4: peak memory of a process that takes one GRPO step, and what of it the step added."""
    rows = []
    for kind in ("TRL", "shared", "shared, UADT"):
        out = subprocess.run([sys.executable, "-c", MEMORY, kind, str(prompts)], capture_output=True, text=True,
                             check=True, cwd=ROOT).stdout
        before, peak = map(float, out.split("\n")[-2].split())
        rows += [{"what": f"peak memory of a GRPO step, {kind}", "value": peak, "unit": "MiB", "n": 1},
                 {"what": f"what the step added, {kind}", "value": peak - before, "unit": "MiB", "n": 1}]
    return rows


BENCH = {
    "P1, P2": looked_at, "P2": same_numbers, "P4, memory": lambda: memory(12),
    "P4": lambda: grpo_steps("TRL", {"shared": "", "shared, UADT": "<= 1.05"}, 12),
    "P5": lambda: grpo_steps("TRL", {"all off": "<= 1.01"}, 4),
    "P6": lambda: grpo_steps("TRL", {"shared, UADT": "<= 0.70"}, 6, 224 * 224), "P10": informative,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCH:
        print(pd.DataFrame(BENCH[name]()).to_string(), flush=True)
