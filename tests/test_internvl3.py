"""The same code on a tiny InternVL3: built, taught to see, fine-tuned, rewarded and asked, by one setting."""

import pandas as pd
import pytest
import torch
from PIL import Image

from fundus_lib import answering, perception, training
from fundus_lib import model as models
from fundus_lib.settings import load
from fundus_lib.sft import as_dataset
from fundus_lib.sft import train as sft_train
from fundus_lib.uadt import UADTGRPOTrainer
from tests.conftest import TEXTS

SIZES = {"text_hidden": 48, "text_layers": 1, "vision_hidden": 32, "vision_depth": 1, "image_pixels": 32 * 32}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = models.train_tokenizer(TEXTS * 3, vocabulary_size=400)
    model = models.small_model(tokenizer, **SIZES, architecture="internvl3")
    folder = tmp_path_factory.mktemp("internvl3")
    models.save(model, models.small_processor(tokenizer, SIZES["image_pixels"], "internvl3"), folder)
    return folder


@pytest.fixture(scope="module")
def rows(images):
    options = [{"letter": "A", "text": "No DR"}, {"letter": "B", "text": "PDR"}]
    return pd.DataFrame({
        "image": [str(path) for path in images], "question": "Which diagnosis fits this image?", "kind": "single",
        "options": [options] * 8, "prompt": "Which diagnosis fits this image? Options: A. No DR, B. PDR"})


def test_it_is_the_same_size_and_sees_where_a_colour_is(base):
    processor, model = models.load_processor(base), models.load_model(base)
    full = models.small_model(processor.tokenizer, text_hidden=96, text_layers=2, vision_hidden=64, vision_depth=2,
                              image_pixels=96 * 96, architecture="internvl3")
    assert 3e5 < sum(p.numel() for p in full.parameters()) < 7e5
    text = f"<|im_start|>user\n{models.IMAGE}?"
    red, blue = (processor(images=[Image.new("RGB", (64, 48), colour)], text=[text], return_tensors="pt")
                 for colour in ("red", "blue"))
    assert (red["input_ids"] == processor.image_token_id).sum() == 4 == processor.image_seq_length
    assert not torch.allclose(model(**red).logits[0, -1], model(**blue).logits[0, -1], atol=1e-4)
    # tokens run along the rows, as `token_targets` counts them: the upper right corner is the second of four
    patches = model.model.vision_tower.embeddings.patch_embeddings
    seen = patches(red["pixel_values"]), patches(torch.where(
        torch.arange(1024).view(1, 1, 32, 32) % 32 < 16, red["pixel_values"], blue["pixel_values"]))
    changed = (seen[0] != seen[1]).any(-1).view(4, 4)
    assert changed[:, 2:].all() and not changed[:, :2].any()


def test_it_answers_the_same_in_a_batch_and_alone(base, rows):
    settings = load("smoke").evaluation.model_copy(update={"max_new_tokens": 8})
    together = answering.answer_questions(str(base), rows, settings)
    alone = answering.answer_questions(str(base), rows, settings.model_copy(update={"batch_size": 1}))
    assert together == alone and len(set(together)) > 1  # the images differ


def test_sft_lowers_its_loss_and_grpo_takes_a_step_from_there(base, rows, images, tmp_path):
    from trl import GRPOConfig

    traces, folder = tmp_path / "traces.parquet", tmp_path / "E"
    folder.mkdir()
    rows[["image", "prompt"]].assign(completion="<think> drusen </think> <answer> B </answer>").to_parquet(traces)
    sft_train(folder, start=str(base), rows=str(traces), epochs=4, learning_rate=1e-2, batch_size=4, micro_batch=2,
              lora_rank=0, train_vision=True, zero_stage=0, seed=0)
    log = pd.read_csv(folder / "log.csv")
    assert len(log) == 8 and log.loss.iloc[-1] < log.loss.iloc[0] - 1

    def even_length(prompts, completions, **_):
        return [float(len(c[0]["content"]) % 2 == 0) for c in completions]

    model = models.load_model(folder)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    arguments = GRPOConfig(
        output_dir=str(tmp_path / "G"), max_steps=2, num_generations=4, max_completion_length=8, learning_rate=1e-3,
        beta=0.01, temperature=2.0, save_strategy="no", steps_per_generation=2, seed=0,
        generation_kwargs={"suppress_tokens": model.generation_config.suppress_tokens},
        **training.machine_arguments(8, 4, 0))
    trainer = UADTGRPOTrainer(model, even_length, arguments, train_dataset=as_dataset(rows[["image", "prompt"]]),
                              processing_class=models.load_processor(folder), share=False, strength=0.5)
    trainer.train()
    kl = [row["kl"] for row in trainer.state.log_history if "kl" in row]
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert len(kl) == 2 and kl[1] > kl[0] >= 0 and trainer.threshold > 0
    assert any(models.SEES.search(name) for name in moved) and any("language_model" in name for name in moved)


def test_a_base_learns_where_findings_are_and_to_speak_of_them(tmp_path):
    settings = load("cpu").base_model.model_copy(update=SIZES | {
        "architecture": "internvl3", "source": "train", "pool_images": 12, "image_pixels": 48 * 48,
        "vision_steps": 8, "vision_batch": 4, "language_steps": 8, "language_batch": 4, "language_learning_rate": 0.05})
    perception.build_base(tmp_path, settings, seed=0)
    log = pd.read_csv(tmp_path / "log.csv")
    fell = log.groupby("phase").loss.apply(lambda x: x.head(3).mean() - x.tail(3).mean())
    assert len(log) == 16 and (fell > 0).all()
    assert models.load_model(tmp_path).config.model_type == "internvl"
    with pytest.raises(ValueError, match="source: train"):
        perception.build_base(tmp_path, settings.model_copy(update={"source": "recorded"}), seed=0)
