"""Supervised fine-tuning on reasoning traces (setup E), or on their answers alone (B), with TRL's SFTTrainer."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import datasets
import pandas as pd

from fundus_lib import model as models
from fundus_lib import perception, training
from fundus_lib.questions import prompt

# Which setup's GRPO starts from which setup (Fundus-R1, Tab. 5).
STARTS = {"C": "A", "D": "B"} | dict.fromkeys(["F", "G", "H", "I", "J", "F_uadt", "G_uadt"], "E")


def trace_rows(questions: pd.DataFrame, traces: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Kept training traces with their image and prompt: columns image (path), prompt, completion."""
    kept = traces[traces.kept].merge(questions, left_on="question_id", right_on="id", validate="one_to_one")
    kept = kept[kept.split == "train"]
    return pd.DataFrame({
        "image": [str(root / path) for path in kept.path],
        "prompt": [prompt(q, o, k) for q, o, k in zip(kept.question, kept.options, kept.kind, strict=True)],
        "completion": kept.text.to_list()})


def answers_alone(rows: pd.DataFrame) -> pd.DataFrame:
    """The same rows without their reasoning (setup B): what they gain less than E is what the traces teach."""
    return rows.assign(completion=rows.completion.str.extract(r"(<answer>[^<]*</answer>)\s*$", expand=False))


def as_dataset(rows: pd.DataFrame) -> datasets.Dataset:
    """The rows as TRL wants them: messages, and images that load when asked for."""
    rows = rows.assign(prompt=[[{"role": "user", "content": text}] for text in rows.prompt])
    if "completion" in rows:
        rows = rows.assign(completion=[[{"role": "assistant", "content": text}] for text in rows.completion])
    data, image = datasets.Dataset.from_pandas(rows, preserve_index=False), datasets.Image(mode="RGB")
    return data.cast_column("images", datasets.List(image)) if "images" in rows else data.cast_column("image", image)


def steps(row_count: int, epochs: float, batch_size: int) -> int:
    """Optimiser steps of a run; the last, smaller batch of an epoch counts."""
    return int(epochs * -(-row_count // batch_size))


def train(folder: Path, *, start: str, rows: str, epochs: float, learning_rate: float, batch_size: int,
          micro_batch: int, lora_rank: int, train_vision: bool, zero_stage: int, seed: int,
          train_language: bool = True) -> None:
    """Fine-tune the model at `start` on the traces in `rows` (parquet of `trace_rows`) into `folder`; resumes."""
    from trl import SFTConfig, SFTTrainer

    data = as_dataset(pd.read_parquet(rows))
    processor = models.load_processor(start)
    model, checkpoint = training.start_model(start, folder, lora_rank=lora_rank, train_vision=train_vision,
                                             train_language=train_language)
    arguments = SFTConfig(
        output_dir=str(folder / training.CHECKPOINTS), num_train_epochs=epochs, learning_rate=learning_rate, seed=seed,
        lr_scheduler_type="linear", warmup_steps=min(20, steps(len(data), epochs, batch_size) // 10),
        max_length=None,  # truncation would cut image tokens
        save_strategy="epoch", **training.machine_arguments(batch_size, micro_batch, zero_stage))
    trainer = SFTTrainer(model, arguments, train_dataset=data, processing_class=processor,
                         callbacks=[training.LogWriter(folder / "log.csv")])
    trainer.train(resume_from_checkpoint=checkpoint)
    training.finish(trainer, processor, folder)


def jobs(stage, folder: Path, files: Mapping[str, Path], seeds: Iterable[int]) -> dict[tuple[str, int], training.Job]:
    """{(setup, seed): its run, in `folder`}, from the base model. files: setup -> parquet of its rows.

    stage: one that may read base_model, with the settings."""
    base, s = perception.base_path(stage.path("base_model", "model")), stage.settings.sft
    return {(setup, seed): training.Job("fundus_lib.sft", folder / setup / f"seed{seed}", {
        "start": base, "rows": str(file), "seed": seed, "zero_stage": stage.settings.zero_stage, **s.model_dump()},
        steps=steps(len(pd.read_parquet(file)), s.epochs, s.batch_size))
        for setup, file in files.items() for seed in seeds}


if __name__ == "__main__":
    training.main(train)
