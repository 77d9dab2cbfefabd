import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fundus_lib import generation
from fundus_lib import model as models
from tests.conftest import TEXTS

TOKENIZER = models.train_tokenizer(TEXTS * 3, vocabulary_size=400)


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_any_text_survives_the_small_tokenizer(text):
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_reasoning_tags_are_single_tokens_that_decoding_keeps():
    ids = TOKENIZER("<think> a </think> <answer> b </answer>" + models.TURN_END)["input_ids"]
    assert sum(i in TOKENIZER.convert_tokens_to_ids(list(models.REASONING_TAGS)) for i in ids) == 4
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "<think> a </think> <answer> b </answer>"


def test_each_image_becomes_one_token_per_16_pixels_and_is_really_seen(tiny_base):
    processor, model = models.load_processor(tiny_base), models.load_model(tiny_base)
    square, wide = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (96, 48), "blue")

    def logits(image):
        turn = generation.user_turn(image, "What is this?")
        inputs = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=True,
                                               processor_kwargs={"return_tensors": "pt"})
        return (inputs["input_ids"] == processor.image_token_id).sum().item(), model(**inputs).logits[0, -1]

    (tokens, red), (_, blue) = logits(square), logits(Image.new("RGB", (64, 64), "blue"))
    assert tokens == 4  # 32 x 32 pixels in patches of 8, merged two by two
    assert not torch.allclose(red, blue, atol=1e-4)  # another colour, other logits: the image arrives
    assert logits(wide)[0] == 2  # 48 x 16 pixels would be 3; the pixel budget rounds down to 32 x 16


def test_saved_and_loaded_weights_are_equal_and_only_safetensors(tiny_base, tmp_path):
    model = models.load_model(tiny_base)
    models.save(model, models.load_processor(tiny_base), tmp_path)
    again = models.load_model(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert {p.suffix for p in tmp_path.iterdir()} <= {".json", ".safetensors", ".jinja", ".md"}


def test_a_folder_without_an_image_processor_is_refused(tiny_base, tmp_path):
    models.load_processor(tiny_base).tokenizer.save_pretrained(tmp_path)
    with pytest.raises((RuntimeError, OSError, TypeError)):
        models.load_processor(tmp_path)


def test_the_model_never_samples_an_image_token(tiny_base):
    config = json.loads((tiny_base / "generation_config.json").read_text())
    processor = models.load_processor(tiny_base)
    assert processor.image_token_id in config["suppress_tokens"]
    assert processor.tokenizer.eos_token_id not in config["suppress_tokens"]
