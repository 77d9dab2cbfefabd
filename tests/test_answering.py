import inspect
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TEXTS
from faulty_server import FaultyServer
from PIL import Image

from fundus_lib import answering, client, world
from fundus_lib import model as models
from fundus_lib.answers import extract_answer
from fundus_lib.generation import StopAtAnswer, has_answered
from fundus_lib.perception import MODALITIES, RECORDED, ask_option
from fundus_lib.questions import as_options
from fundus_lib.settings import load

SETTINGS = load("smoke").evaluation.model_copy(update={"max_new_tokens": 12, "batch_size": 2})
OPTIONS = as_options(["No DR", "Drusen"])


@pytest.fixture
def asked(images):
    """Six questions of three lengths about images of two shapes; the last shows three of them."""
    shown = [str(images[0]), images[1].read_bytes(), Image.open(images[2]), str(images[3]), str(images[4]),
             [str(image) for image in images[5:8]]]
    texts = ["Diagnosis?", "What is the diagnosis of this eye?", "?"] * 2
    return pd.DataFrame({"id": list("abcdef"), "question": texts, "kind": "single", "options": [OPTIONS] * 6,
                         "image": shown})


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """Folder of a tiny LLaVA with random weights: another class, tokenizer template and image processor."""
    from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    torch.manual_seed(0)
    tokenizer = models.train_tokenizer(TEXTS * 3, 400)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    end, pad, image = tokenizer.convert_tokens_to_ids([models.TURN_END, models.PAD, "<image>"])
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    text = {"model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 48, "intermediate_size": 96,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": end,
            "pad_token_id": pad, "bos_token_id": None}
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=image,
                                                      vision_feature_layer=-1))
    model.generation_config.update(eos_token_id=end, pad_token_id=pad, suppress_tokens=[image])
    eyes = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    template = models.CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    LlavaProcessor(eyes, tokenizer, patch_size=8, vision_feature_select_strategy="default", chat_template=template,
                   num_additional_image_tokens=1).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("which", ["tiny_base", "llava"])
def test_batches_say_what_one_by_one_says_and_one_image_may_be_several(which, asked, request):
    folder = request.getfixturevalue(which)
    one, many = (answering.answer_questions(folder, asked, SETTINGS.model_copy(update={"batch_size": size}))
                 for size in (1, 4))
    assert one == many == answering.answer_questions(folder, asked[::-1], SETTINGS)[::-1]
    assert all(one) and len(set(one)) > 1
    first = asked.assign(image=[[x[0]] if isinstance(x, list) else [x] for x in asked.image])
    alone = answering.answer_questions(folder, first, SETTINGS)  # a list of one image is that image
    assert alone[:5] == one[:5] and alone[5] != one[5]


@pytest.mark.parametrize(("text", "ends"), [
    ("<answer> A </answer>", True), ("<think> x </think> <answer>B, C</answer>", True), ("The answer is A.", False),
    ("<answer> </answer>", False), ("<think> I shall use <answer> A </answer>", False), ("<answer> A", False),
    ("<think> in <answer> </answer> tags </think>", False), ("<think>a</think><answer>A</answer> <answer>B", True),
])
def test_a_response_has_ended_when_an_answer_is_closed_outside_of_the_reasoning(text, ends):
    assert has_answered(text) is ends
    if ends:  # what follows is not the answer
        options = {"A": "No DR", "B": "Drusen", "C": "Cataract"}
        kind = "multi" if "," in text else "single"
        cut = text[:text.rindex("</answer>") + 9]
        assert extract_answer(cut, options, kind) == extract_answer(cut + " as B is wrong.", options, kind)


def test_the_stop_looks_at_the_response_and_not_at_the_prompt(tiny_base):
    tokenizer = models.load_processor(tiny_base).tokenizer
    prompt, said = "Give <answer> it </answer>.", "<think> x </think> <answer> A </answer> and more"
    start = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor([tokenizer(prompt + said)["input_ids"]] * 2)
    stop = StopAtAnswer(tokenizer, start)
    stops = [end for end in range(start + 1, ids.shape[1] + 1) if stop(ids[:, :end]).all()]
    assert [tokenizer.decode(ids[0, start:end]) for end in stops] == ["<think> x </think> <answer> A </answer>"]
    assert not stop(ids).any()


def test_both_ways_to_decode_end_at_the_answer(monkeypatch):
    """The small base model, first as it is, then when its turn is not allowed to end by itself."""
    model, processor = answering.placed(RECORDED)
    rng, asked = np.random.default_rng(3), ask_option("Which imaging modality is this?", MODALITIES)
    names = ("CFP", "OCT", "CFP")
    drawn = [world.draw(rng, name, (), camera="any", height=height).image
             for name, height in zip(names, (96, 160, 200), strict=True)]

    def without_stop():
        return [text for (text,) in answering.generate(model, processor, drawn, [asked] * 3, max_new_tokens=40,
                                                       batch_size=3)]

    said = answering.respond(model, processor, drawn, [asked] * 3, 40)
    assert said == without_stop() == [f"<think> This is a {name} image. </think> <answer> {name} </answer>"
                                      for name in names]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [0])
    assert all(len(long) > len(text) and long.startswith(text) for long, text in zip(without_stop(), said, strict=True))
    assert answering.respond(model, processor, drawn, [asked] * 3, 40) == said
    monkeypatch.setattr(answering, "Qwen2_5_VLForConditionalGeneration", type(None))  # as for any other class
    assert answering.respond(model, processor, drawn, [asked] * 3, 40) == said


def test_two_models_in_processes_of_their_own_say_what_they_say_alone(tiny_base, asked, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    part, who = asked[:2], {("E", 0): tiny_base, ("F", 1): tiny_base}
    alone = answering.answer_questions(tiny_base, part, SETTINGS)
    assert answering.answer_all(who, part, SETTINGS, tmp_path, workers=2) == dict.fromkeys(who, alone)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["E-0.jsonl", "F-1.jsonl"]
    assert answering.answer_all({("E", 0): tiny_base}, part, SETTINGS, tmp_path, workers=2) == {("E", 0): alone}


def test_what_was_answered_before_an_interruption_is_not_asked_again(tiny_base, asked, tmp_path, monkeypatch):
    whole, file, seen = answering.answer_questions(tiny_base, asked, SETTINGS), tmp_path / "progress.jsonl", []
    respond = answering.respond

    def interrupted(model, processor, images, prompts, most):
        if len(seen) >= 4:
            raise KeyboardInterrupt
        seen.extend(prompts)
        return respond(model, processor, images, prompts, most)

    monkeypatch.setattr(answering, "respond", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answering.answer_questions(tiny_base, asked, SETTINGS, file)
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == len(seen) == 4
    file.write_text("".join(lines[:3]) + lines[3][:20])  # killed in the midst of a line
    seen.clear()
    assert answering.answer_questions(tiny_base, asked, SETTINGS, file) == whole and len(seen) == 3
    assert [json.loads(line) for line in lines[:3]] == [json.loads(line) for line in file.read_text().splitlines()[:3]]
    assert sorted(json.loads(line)["question_id"] for line in file.read_text().splitlines()) == list("abcdef")
    seen.clear()
    assert answering.answer_questions(tiny_base, asked[::-1], SETTINGS, file) == whole[::-1] and not seen
    Image.new("RGB", (48, 48), "white").save(other := tmp_path / "other.png")  # another image, prompt or length
    changed = asked.assign(image=[str(other), *asked.image[1:]], question=[*asked.question[:5], "New?"])
    answering.answer_questions(tiny_base, changed, SETTINGS, file)
    assert len(seen) == 2
    file.write_text("{broken}\n" + file.read_text())
    with pytest.raises(ValueError, match="line 1 is damaged\n  delete it"):
        answering.read_progress(file)


def test_what_two_benchmarks_ask_about_one_image_is_answered_once(tiny_base, asked, monkeypatch):
    seen, respond = [], answering.respond
    monkeypatch.setattr(answering, "respond", lambda *args: seen.extend(args[3]) or respond(*args))
    twice = pd.concat([asked, asked.assign(id="again " + asked.id)])
    said = answering.answer_questions(tiny_base, twice, SETTINGS)
    assert said[:len(asked)] == said[len(asked):] and len(seen) == len(asked)


def test_a_batch_that_does_not_fit_is_halved_and_none_is_lost(tiny_base, asked, monkeypatch):
    sizes, respond = [], answering.respond

    def small(model, processor, images, prompts, most):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return respond(model, processor, images, prompts, most)

    expected = answering.answer_questions(tiny_base, asked, SETTINGS)
    monkeypatch.setattr(answering, "respond", small)
    assert answering.answer_questions(tiny_base, asked, SETTINGS.model_copy(update={"batch_size": 5})) == expected
    assert sizes == [5, 2, 2, 2]
    with pytest.raises(torch.OutOfMemoryError) as error:
        list(answering.in_batches([1], 8, lambda batch: small(None, None, [], [0] * 3, 0)))
    assert "one question alone does not fit" in error.value.__notes__[0]


def test_like_is_batched_with_like(tiny_base, images):
    _, processor = answering.placed(tiny_base)
    wide = SimpleNamespace(image_processor=SimpleNamespace(merge_size=2, patch_size=14, size={
        "shortest_edge": 56 * 56, "longest_edge": 280 * 280}))
    big, small = Image.new("RGB", (2000, 1000)), Image.new("RGB", (140, 140))
    assert answering.expected_tokens(wide, [big], "x" * 40) == 10 + 100  # shrunk to 280 x 280 pixels
    assert answering.expected_tokens(wide, [small, small], "") == 25 + 25
    assert answering.expected_tokens(processor, [images[0]], "x" * 4) == answering.expected_tokens(
        processor, [images[1]], "x" * 4)  # the small model sees every image at one size


def test_a_server_answers_the_same_questions_with_all_their_images(asked, tmp_path):
    def fault(body, call):
        return "400" if len(body["messages"][0]["content"]) == 4 and refuse else ""

    refuse, file = True, tmp_path / "progress.jsonl"
    with FaultyServer(fault) as server:
        section = load("cpu").server.model_copy(update={"url": server.url})
        asker = client.Client(section, "model", tmp_path / "cache.sqlite")
        with pytest.warns(UserWarning, match="1 of 6 questions got no response"):
            said = answering.answer_questions(asker, asked, SETTINGS, file)
        assert said[5] == "" and len(file.read_text().splitlines()) == 5
        refuse, before = False, len(server.bodies)
        said = answering.answer_questions(asker, asked, SETTINGS, file)
        assert len(server.bodies) == before + 1  # only what has no answer is asked again
        shown = [part for part in server.bodies[-1]["messages"][0]["content"] if part["type"] == "image_url"]
    assert len(shown) == 3 and all(text.startswith(f"{question} Options: A. No DR, B. Drusen.")
                                   for text, question in zip(said, asked.question, strict=True))


def test_vllm_gets_greedy_settings_and_every_image(asked, monkeypatch):
    """A stand-in, for the calls that are made; its own signature is checked below where vLLM is installed."""
    made = {}

    class LLM:
        def __init__(self, **how):
            made["engine"] = how

        def get_default_sampling_params(self):
            return SimpleNamespace(repetition_penalty=1.05)

        def chat(self, turns, sampling, use_tqdm):
            made["sampling"] = sampling
            return [SimpleNamespace(outputs=[SimpleNamespace(text=f"{len(turn[0]['content']) - 1} images")])
                    for turn in turns]

    monkeypatch.setitem(__import__("sys").modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=dict))
    settings = SETTINGS.model_copy(update={"max_new_tokens": 9, "engine": "vllm"})
    assert answering.answer_questions("folder", asked, settings) == ["1 images"] * 5 + ["3 images"]
    assert made["engine"] == {"model": "folder", "trust_remote_code": False, "seed": 0,
                              "limit_mm_per_prompt": {"image": 3}}
    assert made["sampling"] == {"temperature": 0.0, "max_tokens": 9, "repetition_penalty": 1.05}


def test_vllm_has_the_arguments_that_are_used():
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed: its arguments are not checked")
    inspect.signature(vllm.LLM.chat).bind(None, [], None, use_tqdm=False)
    vllm.SamplingParams(temperature=0.0, max_tokens=9, repetition_penalty=1.05)
    assert hasattr(vllm.LLM, "get_default_sampling_params")


def test_the_fourteen_models_of_table_7_and_what_they_need():
    published = pd.read_csv(RECORDED.parents[1] / "published" / "fundus_r1_table7.csv").model
    entries = [answering.load_entry(name) for name in published]
    assert len(entries) == 14 and set(answering._listed()["models"]) == set(published)
    for entry in entries:
        assert entry.prompt in answering._listed()["conventions"]
        assert entry.loads in ("transformers", "remote code", "own package")
        if entry.loads != "transformers" or entry.hub_id is None:
            assert entry.needs
            with pytest.raises(answering.ModelError, match="python -m fundus_lib.predictions"):
                entry.loadable()
        else:
            assert entry.loadable().count("/") == 1
    with pytest.raises(answering.ModelError, match="HealthGPT-M3-7B .* it needs own package"):
        answering.answer_questions("HealthGPT-M3-7B", pd.DataFrame(), SETTINGS)
    with pytest.raises(answering.ModelError, match="remote_code: true"):
        answering.load_entry("InternVL2.5-8B").loadable()
    assert answering.load_entry("InternVL2.5-8B").loadable(remote_code=True) == "OpenGVLab/InternVL2_5-8B"
    with pytest.raises(answering.ModelError, match="did you mean Lingshu-7B"):
        answering.load_entry("Lingshu7B")


def test_each_convention_asks_for_its_own_form(asked):
    tags, letters, boxed = (answering.prompts(asked[:1], name)[0] for name in ("tags", "letters", "boxed"))
    head = "Diagnosis? Options: A. No DR, B. Drusen."
    assert tags == f"{head} Think in <think> </think>, then give one option in <answer> </answer>."
    assert letters.startswith(f"{head} Answer with the letter") and "<answer>" not in letters
    assert boxed.startswith(head) and boxed.endswith("\\boxed{}.")


def test_a_folder_that_holds_no_model_that_sees_is_refused(tiny_base, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(answering.ModelError, match="transformers does not load"):
        answering.placed(tmp_path)


def test_options_come_with_probabilities(tiny_base, asked):
    letters, probabilities = answering.likeliest_options(tiny_base, asked)
    assert letters == ["AB"[p[1] > p[0]] for p in probabilities] and len({p[0] for p in probabilities}) > 1
    assert np.allclose(np.sum(probabilities, axis=1), 1, atol=1e-12)  # double precision
    model, processor = answering.placed(tiny_base)
    scores = answering.option_scores(model, processor, asked.image[0], answering.prompts(asked[:1])[0],
                                     ["<answer> No DR </answer>", "<answer> Drusen </answer>"])
    assert probabilities[0][0] == pytest.approx(1 / (1 + np.exp(scores[1] - scores[0])), abs=1e-6)  # float32 scores
