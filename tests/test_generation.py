import pandas as pd
import pytest
import torch
from PIL import Image

from fundus_lib import generation
from fundus_lib import model as models
from fundus_lib.questions import prompt
from fundus_lib.settings import load

PROMPTS = ["What is this?", "Which diagnosis fits this image?", "Drusen?", "Describe the findings."]


@pytest.fixture(scope="module")
def loaded(tiny_base):
    return models.load_model(tiny_base), models.load_processor(tiny_base)


def test_greedy_answers_do_not_depend_on_the_batch(loaded, images):
    one, many = (generation.generate(*loaded, images[:4], PROMPTS, max_new_tokens=8, batch_size=size)
                 for size in (1, 4))
    assert one == many  # padding and neighbours change nothing, and the order given comes back
    assert all(len(texts) == 1 for texts in one)


def test_rollouts_are_sampled_anew_and_repeat_with_the_seed(loaded, images):
    def sample(seed):
        return generation.generate(*loaded, images[:2], PROMPTS[:2], max_new_tokens=8, batch_size=2, temperature=1.0,
                                   rollouts=5, seed=seed)

    assert sample(0) == sample(0) != sample(1)
    assert len(set(sample(0)[0])) > 1


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


def test_questions_are_answered_in_their_order_and_weighed_by_likelihood(loaded, tiny_base, images):
    questions = pd.DataFrame({"question": ["What is the diagnosis?"] * 3, "kind": "single", "image": images[:3],
                              "options": [[{"letter": "A", "text": "No DR"}, {"letter": "B", "text": "Drusen"}]] * 3})
    said = generation.answer_questions(tiny_base, questions, load("smoke").evaluation)
    backwards = generation.answer_questions(tiny_base, questions[::-1], load("smoke").evaluation)
    assert len(said) == 3 and said == backwards[::-1]
    scores = generation.option_scores(*loaded, images[0], prompt("What is the diagnosis?", questions.options[0]),
                                      ["<answer> No DR </answer>", "<answer> Drusen </answer>"])
    assert generation.likeliest_options(tiny_base, questions)[0] == "AB"[scores[1] > scores[0]]
