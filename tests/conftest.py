"""Fixtures shared by the tests that need a model: a real Qwen2.5-VL, randomly initialised, 0.1 M parameters."""

import json
from pathlib import Path

import pytest

TEXTS = [
    "In this CFP image, determine the presence of the following findings: microaneurysm, hard exudate.",
    "Which diagnosis fits this image? Options: A. No DR, B. Mild NPDR, C. Moderate NPDR",
    "<think> This CFP image shows microaneurysm and hard exudate. </think> <answer> Moderate NPDR </answer>",
    "<think> This OCT image shows drusen. </think> <answer> Drusen </answer>",
]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Folder of a saved model and processor; images are seen at 32 x 32 pixels."""
    import torch

    from fundus_lib import model as models

    torch.manual_seed(0)
    tokenizer = models.train_tokenizer(TEXTS * 3, vocabulary_size=400)
    model = models.small_model(tokenizer, text_hidden=48, text_layers=1, vision_hidden=32, vision_depth=1)
    folder = tmp_path_factory.mktemp("tiny_base")
    models.save(model, models.small_processor(tokenizer, 32 * 32), folder)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Paths of eight images in two aspect ratios, each of one colour."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    paths = []
    for i in range(8):
        paths.append(folder / f"{i}.png")
        Image.new("RGB", (48, 48) if i % 2 else (72, 48), (30 * i, 120, 255 - 30 * i)).save(paths[-1])
    return paths


@pytest.fixture(scope="session")
def trace_cases():
    """(case, label, modality and findings of its checks) of the public traces that a reference page covers."""
    from fundus_lib import knowledge

    file = Path(__file__).parents[2] / "shared" / "clinical" / "trace_cases_public.json"
    if not file.exists():
        pytest.skip("the public trace cases are not beside this checkout")
    cases = [case for case in json.loads(file.read_text())["cases"]
             if (case["label"], case["modality"]) in knowledge.pairs()]
    assert len(cases) >= 75  # of 79: a page that is lost must not make the rate look better
    return [(case, {"label": case["label"], "modality": case["modality"], "findings": case["V_I"]}) for case in cases]
