"""The trainer that looks once, against TRL's: the same pixels, losses, gradients and distributions for less work."""

import inspect
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from scipy.stats import chisquare
from test_grpo import rows, trainer_of  # noqa: F401   a fixture
from transformers.image_utils import make_flat_list_of_images
from trl import GRPOTrainer

from fundus_lib import model as models
from fundus_lib import training
from fundus_lib.sft import as_dataset
from fundus_lib.shared_vision import SharedVisionGRPOTrainer
from fundus_lib.uadt import UADTGRPOTrainer

ACCUMULATED = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 2}
CASES = {  # and how often an image is encoded: where the policy and its adapters differ, once each
    "frozen tower, accumulated": ({"vision": False, "arguments": ACCUMULATED}, 1),
    "trained tower, accumulated": ({"vision": True, "arguments": ACCUMULATED}, 1),
    "reference model, two images": ({"vision": True, "images": 2, "arguments": {"beta": 0.1}}, 2),
    "LoRA in the tower, reference": ({"lora": r".*(q_proj|v_proj|qkv)", "arguments": {"beta": 0.1}}, 2),
}


def told(trainer, completions=None):
    """Counts what is processed and encoded; with completions, they take the place of sampling. Gradients come back."""
    counts, grads = Counter(), {}
    process, take = type(trainer.processing_class.image_processor), trainer._generate_single_turn
    plain = process.__call__

    def counted(self, images, *args, **kwargs):
        counts["processed"] += len(make_flat_list_of_images(images))
        return plain(self, images, *args, **kwargs)

    def encoded(module, args, kwargs):
        counts["encoded"] += len(kwargs["grid_thw"])

    for each in filter(None, (trainer.model, trainer.ref_model)):
        for module in each.modules():
            if "visual" in module._modules:
                module.visual.register_forward_pre_hook(encoded, with_kwargs=True)
    trainer._generate_single_turn = lambda prompt_ids, *rest: (
        (completions, None) if completions else take(prompt_ids, *rest))

    class Keep(training.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            grads.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})

    trainer.add_callback(Keep())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "__call__", counted)
        trainer.train()
    return counts, grads, next(row["loss"] for row in trainer.state.log_history if "loss" in row)


def case(tiny_base, rows, folder, kind, *, vision=True, lora=None, images=1, arguments=None):  # noqa: F811
    torch.manual_seed(1)
    model = models.load_model(tiny_base)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = vision or ".visual." not in name
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=lora, init_lora_weights=False))
    data = as_dataset(rows)
    if images > 1:
        data = datasets.Dataset.from_pandas(rows.assign(
            prompt=[[{"role": "user", "content": text}] for text in rows.prompt],
            images=[[a, b] for a, b in zip(rows.image, reversed(rows.image), strict=True)],
        ).drop(columns="image"), preserve_index=False).cast_column("images", datasets.List(datasets.Image(mode="RGB")))
    return trainer_of(kind, tiny_base, data, folder, 1, model=model, arguments=arguments or {})


COMPLETIONS = [[5 + i, 40 + i, 100, 7 * i + 20][:1 + i % 4] + [386] for i in range(8)]


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_trls(name, tiny_base, rows, tmp_path):  # noqa: F811
    how, encoded = CASES[name]
    images = 2 * how.get("images", 1)
    theirs, expected, loss = told(case(tiny_base, rows, tmp_path, GRPOTrainer, **how), COMPLETIONS)
    ours, got, same = told(case(tiny_base, rows, tmp_path, SharedVisionGRPOTrainer, **how), COMPLETIONS)
    assert theirs == {"processed": 8 * images, "encoded": 4 * images * encoded}  # 4 rollouts
    assert ours == {"processed": images, "encoded": images * encoded}
    assert abs(loss - same) < 1e-5 and expected.keys() == got.keys() and max(map(torch.norm, got.values())) > 1e-3
    for parameter, gradient in expected.items():
        assert torch.allclose(gradient, got[parameter], atol=1e-5), parameter


def ending_early(model):
    model.generation_config.eos_token_id = [*range(250, 350), 386]
    return model


class Watched(UADTGRPOTrainer):
    """Keeps the first scored batch, the entropies heard while sampling and those of a forward pass, which looks too."""

    def scored(self, batch):
        self.seen = batch, self.heard.tokens(), self.forward_entropy(batch), self.pictures[True]
        super().scored(batch)


@pytest.mark.parametrize("vision, encoded", [(False, 1), (True, 2)])
def test_a_step_looks_once_and_hears_the_entropy_of_the_loss(vision, encoded, tiny_base, rows, tmp_path):  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:  # a quarter of the tokens end a turn: groups end at different times
        load = models.load_model
        patch.setattr(models, "load_model", lambda path: ending_early(load(path)))
        trainer = case(tiny_base, rows, tmp_path, Watched, vision=vision, arguments={"temperature": 0.7})
    counts, _, _ = told(trainer)
    assert counts == {"processed": 2, "encoded": 2 * (encoded + vision)}  # a trained tower: once more, for the check
    batch, heard, forward, pictures = trainer.seen
    mask = batch["completion_mask"].bool()
    assert len(set(mask.view(2, 4, -1).any(1).sum(1).tolist())) == 2
    assert heard.shape == mask.shape and torch.allclose(heard[mask], forward[mask], atol=1e-4)
    process = models.load_processor(tiny_base).image_processor
    for image, pixels in zip(dict.fromkeys(map(id, pictures.objects)), pictures.pixels, strict=True):
        image = next(each for each in pictures.objects if id(each) == image)
        assert torch.equal(process([image], return_tensors="pt")["pixel_values"], pixels)


def test_first_tokens_fall_as_the_models_probabilities_say(tiny_base, rows, tmp_path):  # noqa: F811
    count = 3000
    trainer = case(tiny_base, rows, tmp_path, SharedVisionGRPOTrainer, arguments={
        "temperature": 0.15, "max_completion_length": 1, "num_generations": count,
        "per_device_train_batch_size": count})
    row = rows.iloc[0]
    with Image.open(row.image) as image:
        prompt = [{"role": "user", "content": [{"type": "image", "image": image.convert("RGB")},
                                               {"type": "text", "text": row.prompt}]}]
    inputs = models.load_processor(tiny_base).apply_chat_template(
        [prompt], add_generation_prompt=True, tokenize=True, return_dict=True,
        processor_kwargs={"return_tensors": "pt"})
    with torch.no_grad():
        logits = models.load_model(tiny_base)(**inputs).logits[0, -1]
    logits[trainer.model.generation_config.suppress_tokens] = -torch.inf
    expected = count * (logits / 0.15).softmax(-1).numpy()
    with trainer._one_pass():
        ids, images, fields = trainer._tokenize_prompts([prompt] * count)
        sampled, _ = trainer._generate_single_turn(ids, images, fields, count)
    observed = np.bincount([token for token, in sampled], minlength=len(expected))
    likely = expected >= 10
    assert likely.sum() >= 10 and observed[expected == 0].sum() == 0
    observed, expected = ([*counts[likely], counts[~likely].sum()] for counts in (observed, expected))
    assert chisquare(observed, expected, sum_check=False).pvalue > 1e-3  # one seed in a thousand fails; this is fixed


def test_a_run_cut_inside_a_generation_window_resumes_bit_for_bit(tiny_base, rows, tmp_path):  # noqa: F811
    """Four optimiser steps learn from one generation batch; the checkpoint falls behind the second."""
    def run(folder, checkpoint=None, scored=None):
        model = models.load_model(checkpoint or tiny_base)
        trainer = trainer_of(UADTGRPOTrainer, tiny_base, rows, folder, 8, model=model, arguments={
            "per_device_train_batch_size": 2, "steps_per_generation": 4, "save_strategy": "steps", "save_steps": 1,
            "save_total_limit": None})
        score = trainer._calculate_rewards
        trainer._calculate_rewards = lambda *args: scored.append(1) or score(*args)
        trainer.train(resume_from_checkpoint=checkpoint)
        return [row["loss"] for row in trainer.state.log_history if "loss" in row], trainer

    whole, first = [], []
    expected, trainer = run(tmp_path, scored=whole)
    got, resumed = run(tmp_path, str(tmp_path / "checkpoint-2"), scored=first)
    assert expected == got and len(got) == 8 and len(set(got)) == 8
    assert len(whole) == 2 and len(first) == 1  # only the window after the cut is scored again
    assert trainer.threshold == resumed.threshold
    assert all(map(torch.equal, trainer.model.parameters(), resumed.model.parameters()))
    (tmp_path / "checkpoint-2" / "rollouts_0.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="delete .* to start it again"):
        run(tmp_path, str(tmp_path / "checkpoint-2"))


def test_what_all_rollouts_agree_about_is_left_out_and_resumed_so(tiny_base, rows, tmp_path):  # noqa: F811
    """A reward that every rollout to an odd question earns: its groups have no advantage."""
    def agree(prompts, completions, question_id, **_):
        return [float(len(c[0]["content"]) % 2) if int(q[1:]) % 2 == 0 else 1.0
                for c, q in zip(completions, question_id, strict=True)]

    data = as_dataset(rows.assign(topic=rows.label))  # the even questions have one label, the odd ones the other
    told = []

    class Told(SharedVisionGRPOTrainer):
        def scored(self, batch):
            told.append(batch["advantages"].view(-1, 4).any(1).float().mean().item())

    def run(folder, checkpoint=None, candidates=2):
        trainer = trainer_of(Told, tiny_base, data, folder, 8, model=models.load_model(checkpoint or tiny_base),
                             candidates=candidates, arguments={
                                 "save_strategy": "steps", "save_steps": 4, "save_total_limit": None})
        trainer.reward_funcs = [agree]
        trainer.train(resume_from_checkpoint=checkpoint)
        return [row["loss"] for row in trainer.state.log_history if "loss" in row], trainer

    expected, trainer = run(tmp_path)
    assert np.mean(told[2:]) > 0.9  # two of two groups disagree once the other topic is known; half of them at random
    even = trainer.lessons.asked[::2].sum()
    assert even > 2 * trainer.lessons.asked[1::2].sum()
    got, resumed = run(tmp_path, str(tmp_path / "checkpoint-4"))
    assert expected == got and np.array_equal(trainer.lessons.asked, resumed.lessons.asked)
    told.clear()
    run(tmp_path / "uniform", candidates=1)
    assert np.mean(told) < 0.8


@pytest.mark.parametrize("method, expected", [
    ("_generate_and_score_completions", "self, inputs"),
    ("_generate_single_turn", "self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images"),
    ("_prepare_inputs", "self, generation_batch"),
    ("_save_checkpoint", "self, model, trial"),
    ("_load_optimizer_and_scheduler", "self, checkpoint"),
    ("_get_per_token_logps_and_entropies",
     "self, model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss, "
     "pixel_values, image_grid_thw, num_images, pixel_attention_mask, spatial_shapes, num_tiles, image_sizes, "
     "token_type_ids, mm_token_type_ids, image_position_ids"),
])
def test_the_private_interface_of_trl_is_where_it_was(method, expected):
    assert method in vars(GRPOTrainer), f"TRL moved {method}: look at fundus_lib/shared_vision.py"
    assert ", ".join(inspect.signature(getattr(GRPOTrainer, method)).parameters) == expected


@pytest.mark.parametrize("method, line", [
    ("_generate_and_score_completions", '"advantages": advantages'),
    ("_generate_and_score_completions", "self.processing_class(images=images, text=prompts_text"),
    ("_tokenize_prompts", "self.processing_class.apply_chat_template("),
    ("_prepare_inputs", "self._buffered_inputs[self._step % self.args.steps_per_generation]"),
    ("_get_per_token_logps_and_entropies", 'model_inputs["pixel_values"] = pixel_values[row_start:row_end]'),
    ("__init__", "self.generation_kwargs = generation_kwargs"),
])
def test_trl_still_does_what_is_leaned_on(method, line):
    assert line in inspect.getsource(inspect.unwrap(getattr(GRPOTrainer, method))), f"look at {method}"


def test_a_sampling_setting_that_decode_lacks_is_refused(tiny_base, rows, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="top_k=0"):
        trainer_of(SharedVisionGRPOTrainer, tiny_base, rows, tmp_path, 1, arguments={"top_k": 5})
