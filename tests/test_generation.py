import numpy as np
import pytest
import torch
from PIL import Image

from fundus_lib import generation
from fundus_lib import model as models

PROMPTS = ["What is this?", "Which diagnosis fits this image?", "Drusen?", "Describe the findings."]


@pytest.fixture(scope="module")
def loaded(tiny_base):
    return models.load_model(tiny_base), models.load_processor(tiny_base)


def test_greedy_answers_do_not_depend_on_the_batch(loaded, images):
    one, many = (generation.generate(*loaded, images[:4], PROMPTS, max_new_tokens=8, batch_size=size)
                 for size in (1, 4))
    assert one == many  # padding and neighbours change nothing, and the order given comes back
    assert all(len(texts) == 1 for texts in one)


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_tokens_are_those_of_transformers(loaded, images, monkeypatch, penalty):
    model, processor = loaded
    monkeypatch.setattr(model.generation_config, "repetition_penalty", penalty)  # the hub's Qwen2.5-VL comes with one
    pairs = [(generation.open_image(image), prompt) for image, prompt in zip(images, PROMPTS, strict=False)]
    inputs = processor.apply_chat_template(
        [generation.user_turn(*pair) for pair in pairs], add_generation_prompt=True, tokenize=True, return_dict=True,
        processor_kwargs={"padding": True, "return_tensors": "pt"})
    assert (inputs["attention_mask"] == 0).any() and len(inputs["image_grid_thw"].unique(dim=0)) == 2  # ragged, mixed
    theirs = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1]:]
    with torch.no_grad():
        start = generation.prefill(model, processor, pairs)
        for _ in range(2):  # decoding leaves the prefilled state as it was
            ours = generation.decode(model, start, torch.zeros(4, 3, 8), temperature=0.0)
            assert (ours == theirs[:, None]).all()


def sample(loaded, images, prompts, **changed):
    chosen = {"max_new_tokens": 8, "batch_size": 4, "temperature": 1.0, "rollouts": 5, "seed": 0} | changed
    return generation.generate(*loaded, images, prompts, **chosen)


def test_rollouts_are_sampled_anew_and_repeat_with_the_seed(loaded, images):
    first = sample(loaded, images[:2], PROMPTS[:2])
    assert first == sample(loaded, images[:2], PROMPTS[:2]) != sample(loaded, images[:2], PROMPTS[:2], seed=1)
    assert len(set(first[0])) > 1


def test_a_rollout_depends_on_its_pair_its_number_and_the_seed_alone(loaded, images):
    together = sample(loaded, images[:4], PROMPTS)
    alone = [sample(loaded, [image], [prompt], rollouts=3, max_new_tokens=9)[0]
             for image, prompt in zip(images, PROMPTS, strict=False)]
    assert all(long.startswith(short) for many, few in zip(together, alone, strict=True)
               for short, long in zip(many, few, strict=False))
    again = sample(loaded, [images[0], images[2], images[0]], [PROMPTS[0]] * 3)
    assert again[0] == again[2] == together[0] and again[1] != again[0]  # the same question about another image


def test_a_token_is_where_its_number_falls_and_rollouts_do_not_see_each_other(loaded, images):
    model, processor = loaded
    pair, temperature, sizes = (generation.open_image(images[0]), PROMPTS[0]), 0.7, (3, 4)
    draws = torch.from_numpy(generation.noise(5, *pair, *sizes))
    assert draws.shape == sizes and draws.min() >= 0 and draws.max() < 1
    for other in ((6, *pair), (5, generation.open_image(images[2]), pair[1]), (5, pair[0], PROMPTS[1])):
        assert (generation.noise(*other, *sizes) != draws.numpy()).all()
    with torch.no_grad():
        ours = generation.decode(model, generation.prefill(model, processor, [pair]), draws[None], temperature)[0]
        for tokens, numbers in zip(ours, draws, strict=True):  # by hand: one rollout, without a cache
            inputs = processor.apply_chat_template(
                [generation.user_turn(*pair)], add_generation_prompt=True, tokenize=True, return_dict=True,
                processor_kwargs={"return_tensors": "pt"})
            for token, number in zip(tokens, numbers, strict=True):
                logits = model(**inputs).logits[0, -1]
                logits[model.generation_config.suppress_tokens] = -torch.inf
                below = (logits.double() / temperature).softmax(-1).cumsum(-1)
                assert below[token - 1] - 1e-6 <= number < below[token] + 1e-6
                inputs["input_ids"] = torch.cat([inputs["input_ids"], token.view(1, 1)], 1)
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
                inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros(1, 1).long()], 1)


def test_a_pair_that_has_enough_gets_no_more_rollouts(loaded, images):
    everything, asked = sample(loaded, images[:4], PROMPTS), []

    def enough(i, texts):
        asked.append((i, len(texts)))
        return i in (0, 3)

    few = sample(loaded, images[:4], PROMPTS, first=2, enough=enough)
    assert [len(texts) for texts in few] == [2, 5, 5, 2]
    assert [texts[:len(said)] for texts, said in zip(everything, few, strict=True)] == few  # the same as without
    assert sorted(asked[:4]) == [(i, 2) for i in range(4)]


def test_decoding_stops_when_every_rollout_has_ended(loaded, images, monkeypatch):
    model, processor = loaded
    start = generation.prefill(model, processor, [(generation.open_image(images[0]), PROMPTS[0])])
    monkeypatch.setattr(model.generation_config, "eos_token_id", [start.logits.argmax().item(), 0])
    with torch.no_grad():
        assert generation.decode(model, start, torch.zeros(1, 2, 50), temperature=0.0).shape == (1, 2, 1)


@pytest.mark.parametrize(("temperature", "rollouts"), [(0.0, 1), (1.0, 3)])
def test_pairs_that_have_ended_leave_the_batch_and_nothing_changes_for_the_others(loaded, images, monkeypatch,
                                                                                temperature, rollouts):
    model, processor = loaded
    pairs = [(generation.open_image(image), prompt) for image, prompt in zip(images, PROMPTS, strict=False)]
    draws = torch.from_numpy(np.stack([generation.noise(1, *pair, rollouts, 8) for pair in pairs]))
    with torch.no_grad():
        start = generation.prefill(model, processor, pairs)
        whole = generation.decode(model, start, draws, temperature)
        ends = {whole[0, 0, 1].item(), *whole[1, :, 2].tolist(), *whole[2, :, 4].tolist()}
        monkeypatch.setattr(model.generation_config, "eos_token_id", sorted(ends))
        sizes, forward = [], model.forward
        monkeypatch.setattr(model, "forward", lambda **how: sizes.append(len(how["input_ids"])) or forward(**how))
        for _ in range(2):  # and the prefilled state stays as it was
            ours = generation.decode(model, start, draws, temperature)
            for said, full in zip(ours.flatten(0, 1).tolist(), whole.flatten(0, 1).tolist(), strict=True):
                length = next((i + 1 for i, token in enumerate(full) if token in ends), 8)
                assert said == (full[:length] + [model.generation_config.pad_token_id] * 8)[:len(said)]
    assert sizes[0] == 4 and min(sizes) <= 2


def test_option_scores_are_the_models_log_probabilities(loaded, images):
    model, processor = loaded
    scores = generation.option_scores(model, processor, images[0], "Diagnosis?", ["No DR", "Moderate NPDR"])
    inputs = processor.apply_chat_template(
        generation.user_turn(generation.open_image(images[0]), "Diagnosis?"), add_generation_prompt=True,
        tokenize=True, return_dict=True, processor_kwargs={"return_tensors": "pt"})
    expected, ids = 0.0, processor.tokenizer("No DR")["input_ids"]
    for token in ids:  # by hand: one token at a time
        with torch.no_grad():
            expected += model(**inputs).logits[0, -1].log_softmax(-1)[token].item()
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros(1, 1, dtype=torch.long)], 1)
    assert scores[0] == pytest.approx(expected / len(ids), abs=1e-4)  # float32 sums in another order
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)


def test_images_open_from_paths_bytes_and_images(images):
    from_path = generation.open_image(images[1])
    assert from_path.tobytes() == generation.open_image(images[1].read_bytes()).tobytes()
    assert generation.open_image(Image.new("L", (2, 2))).mode == "RGB"
    assert [image.size for image in generation.open_images(list(images[:2]))] == [(72, 48), (48, 48)]
    assert len(generation.open_images(images[0])) == 1
