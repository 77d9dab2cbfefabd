import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fundus_lib import lexicon, perception, voting, world
from fundus_lib import model as models
from fundus_lib.settings import load


def examples(count):
    """(prompt, answer) pairs of the base model's training, over random findings."""
    rng = random.Random(0)
    for i in range(count):
        modality = perception.MODALITIES[i % 3]
        findings = world.random_findings(np.random.default_rng(i), modality)
        side = None if modality == "OCT" else rng.choice(["left", "right"])
        yield perception.perception_example({"modality": modality, "findings": findings, "laterality": side}, rng)


def test_the_base_is_never_shown_the_name_of_a_disease():
    """Names of findings are what it is taught; a label's name that is no finding's name must not occur."""
    labels = json.loads((Path(lexicon.__file__).parent / "references" / "labels.json").read_text())
    names = {text.lower() for d in labels["datasets"] for label in d["labels"] if label["kind"] != "lesion"
             for text in (label["canonical"], *label["synonyms"])}
    findings = {f for listed in world.FINDINGS.values() for f in listed}
    diseases = {name for name in names if len(name) > 3 and not any(name.rstrip("s") in f for f in findings)}
    assert {"moderate npdr", "glaucoma", "retinitis pigmentosa"} <= diseases
    text = " ".join(" ".join(pair) for pair in examples(600)).lower()
    assert not [name for name in diseases if re.search(rf"\b{re.escape(name)}\b", text)]
    assert not re.search(r"\b(npdr|pdr|amd|dme|cnv|retinopathy|glaucoma)\b", text)


def test_it_is_asked_in_the_words_of_the_later_stages():
    from fundus_lib import questions

    asked = voting.prompt("CFP", ["drusen", "hard exudate"])
    assert asked == perception.ASK_FINDINGS.format(modality="CFP", findings="drusen, hard exudate")
    options = [{"letter": "A", "text": "Yes"}, {"letter": "B", "text": "No"}]
    question = questions.lesion_question("drusen")
    assert questions.prompt(question, options) == perception.ask_option(question, ["Yes", "No"])


def test_a_lesion_marks_the_token_that_holds_it():
    """A 2 x 2 grid: a dot in the upper right, a stain over the whole lower half."""
    stain = np.zeros((40, 40), bool)
    stain[20:] = True
    drawing = world.Drawing(image=None, masks={"drusen": stain}, centres={"microaneurysm": [(0.75, 0.25)]},
                            laterality="left", disc=(0.1, 0.1), fovea=(0.5, 0.5), pixel_mm=0.1)
    grid = perception.token_targets(drawing, 2, 2)
    micro, drusen, disc = (grid[:, perception.TARGETS.index(t)] for t in ("microaneurysm", "drusen", "optic disc"))
    assert micro.tolist() == [0, 1, 0, 0] and drusen.tolist() == [0, 0, 1, 1] and disc.tolist() == [1, 0, 0, 0]


def test_frozen_features_give_the_logits_of_the_whole_model(tiny_base):
    model, processor = models.load_model(tiny_base), models.load_processor(tiny_base)
    items = [as_tensors(perception.draw_one(i, seed=0, processor=processor, height=96)) for i in range(3)]
    inputs = perception.encode(processor, items, [("What is this?", "drusen"), ("Is it?", "no"), ("a", "b")], "cpu")
    pixels, grids = perception.image_tensors(items, "cpu")
    text = {name: tensor for name, tensor in inputs.items() if name != "labels"}
    whole = model(**text, pixel_values=pixels, image_grid_thw=grids).logits
    perception.look(model, items)
    split = perception.answer_logits(model, inputs, items)
    before = inputs["labels"][:, 1:] != -100
    assert torch.allclose(whole[:, :-1][before], split, atol=1e-4)  # float32, another order of sums


def as_tensors(item):
    return item | {name: torch.from_numpy(item[name]) for name in ("pixels", "grid", "targets")}


def test_a_base_is_built_from_nothing_and_resumes_after_its_vision_phase(tmp_path):
    settings = load("cpu").base_model.model_copy(update={
        "pool_images": 12, "vision_steps": 3, "vision_batch": 4, "language_steps": 3, "language_batch": 4,
        "text_hidden": 48, "text_layers": 1, "vision_hidden": 32, "vision_depth": 1, "image_pixels": 48 * 48})
    perception.build_base(tmp_path, settings, seed=0)
    first = models.load_model(tmp_path).lm_head.weight
    assert models.load_processor(tmp_path).image_processor.size["longest_edge"] == 48 * 48
    again = tmp_path / "again"
    again.mkdir()
    perception.build_base(again, settings, seed=0)
    assert torch.equal(first, models.load_model(again).lm_head.weight)  # same seed, same model


def test_a_missing_recorded_model_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(perception, "RECORDED", tmp_path / "nothing")
    settings = load("smoke").base_model
    with pytest.raises(FileNotFoundError, match="make base_model PROFILE=cpu"):
        perception.build_base(tmp_path, settings.model_copy(update={"source": "recorded"}), seed=0)
