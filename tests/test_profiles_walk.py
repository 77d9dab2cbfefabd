"""The training of the GPU profiles, executed: the true architecture in few layers, every setting that is not a size."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from faulty_server import FaultyServer
from PIL import Image, ImageDraw
from transformers import modeling_utils

from fundus_lib import generation, grpo, knowledge, perception, sft, shared_vision, training
from fundus_lib import model as models
from fundus_lib.settings import load
from tests.conftest import TEXTS

# All that is cut; what is not named here is the profile's own, or the architecture's. Of the true 36 and 32 layers one
# and two are left: one that attends to windows of 112 pixels, as most do, and one that attends to the whole image, as
# the 7th, 15th, 23rd and 31st. What needs GPUs is not walked (bfloat16, ZeRO, vLLM), nor is the real tokenizer.
CUT_TEXT = {"num_hidden_layers": 1, "intermediate_size": 11008 // 4, "vocab_size": 1024}
CUT_VISION = {"depth": 2, "fullatt_block_indexes": [1], "intermediate_size": 3420 // 4}
CUT = {"base_model": {"image_pixels": 224 * 112}, "sft": {"epochs": 1, "batch_size": 4},
       "grpo": {"prompts_per_step": 4, "steps": 2, "max_new_tokens": 40}}
# Qwen/Qwen2.5-VL-3B-Instruct, config.json and generation_config.json
TEXT = {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 2,
        "max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "use_sliding_window": False, "max_window_layers": 70,
        "tie_word_embeddings": True, "initializer_range": 0.02,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]}}
VISION = {"hidden_size": 1280, "num_heads": 16, "out_hidden_size": 2048, "patch_size": 14,
          "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "hidden_act": "silu"}
GENERATION = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 1e-6}
TRACE = "<think> This CFP image shows neovascularization. </think> <answer> PDR </answer>"
OPTIONS = [{"letter": "A", "text": "No DR"}, {"letter": "B", "text": "PDR"}]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder like the hub's, with random weights."""
    folder = tmp_path_factory.mktemp("hub")
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = models.train_tokenizer(TEXTS * 3, vocabulary_size=400)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in models.SPECIAL_TOKENS}
    ends = {"eos_token_id": ids[models.TURN_END], "bos_token_id": ids[models.PAD]}
    config = Qwen2_5_VLConfig(
        text_config=TEXT | CUT_TEXT | ends, vision_config=VISION | CUT_VISION, tie_word_embeddings=True,
        image_token_id=ids[models.IMAGE], video_token_id=ids[models.VIDEO],
        vision_start_token_id=ids[models.VISION_START], vision_end_token_id=ids[models.VISION_END])
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration._from_config(config)
    model.generation_config = GenerationConfig(**GENERATION, pad_token_id=ids[models.PAD], eos_token_id=[
        ids[models.TURN_END], ids[models.PAD]])
    eyes = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=12845056)  # the hub's own: 16,384 tokens
    models.save(model, models.ImageTextProcessor(eyes, tokenizer, chat_template=models.CHAT_TEMPLATE), folder)
    return folder


def examples(folder):
    """Eight questions about four images and a vocabulary, in the layouts of the stages before."""
    for i in range(4):
        image = Image.new("RGB", (512, 256) if i % 2 else (384, 384), (150, 60 + 40 * i, 30))
        ImageDraw.Draw(image).ellipse((100, 60, 160 + 20 * i, 140), fill=(250, 220, 150))
        image.save(folder / f"{i}.png")
    table = pd.DataFrame({
        "question_id": [f"q{i}" for i in range(8)], "image": [str(folder / f"{i % 4}.png") for i in range(8)],
        "prompt": [f"Which diagnosis fits this image{' best' * (i // 4)}? Options: A. No DR, B. PDR" for i in range(8)],
        "answer": ["A", "B"] * 4, "options": [OPTIONS] * 8, "kind": "single", "label": ["No DR", "PDR"] * 4,
        "modality": "CFP", "topic": "diagnosis", "findings": [["normal macula"], ["neovascularization"]] * 4})
    table.to_parquet(folder / "questions.parquet")
    none = dict.fromkeys(("required", "supportive", "excluded", "all_of", "any_of", "definitional"), [])
    words = {"No DR|CFP": none, "PDR|CFP": none | {"required": ["neovascularization"]}}
    (folder / "vocabulary.json").write_text(json.dumps(words))
    table.head(4)[["image", "prompt"]].assign(completion=TRACE).to_parquet(folder / "traces.parquet")


def trained(before, after, lora_rank, train_vision):
    """The result loads; what the settings train has moved, and nothing else has."""
    old, new = dict(models.load_model(before).named_parameters()), models.load_model(after).named_parameters()
    moved = {name for name, values in new if not torch.equal(values, old[name])}
    adapted = {name for name in old if "language_model.layers" in name and name.endswith("proj.weight")}
    assert moved == (adapted if lora_rank else {name for name in old if train_vision or ".visual." not in name})


@pytest.fixture
def checkpointed(monkeypatch):
    """Kinds of layers that run under gradient checkpointing, which only a GPU would turn on."""
    plain, recompute, kinds = training.machine_arguments, modeling_utils.checkpoint, set()

    def spied(function, *args, **kwargs):
        out = recompute(function, *args, **kwargs)
        if out.requires_grad:
            kinds.add(type(function.func.__self__).__name__)
        return out

    monkeypatch.setattr(modeling_utils, "checkpoint", spied)
    monkeypatch.setattr(training, "machine_arguments", lambda *a, **k: plain(*a, **k) | {
        "gradient_checkpointing": True})
    yield kinds
    knowledge.adopt({})  # which a run of its own process would not leave behind


@pytest.fixture
def written(monkeypatch):
    """The first rollout of every group is a trace: random weights earn nothing, and equals teach nothing."""
    def decode(model, start, draws, *settings, **more):
        tokens = generation.decode(model, start, draws, *settings, **more)
        tokens[:, 0] = model.generation_config.pad_token_id
        tokens[:, 0, :len(written)] = torch.tensor(written)
        return tokens

    written = []
    monkeypatch.setattr(shared_vision, "decode", decode)
    return written


@pytest.mark.parametrize("profile", ["paper", "single_gpu"])
def test_sft_and_grpo_run_as_the_profile_says(profile, hub, tmp_path, monkeypatch, checkpointed, written):
    settings = load(profile)
    base, tune, learn = (getattr(settings, name).model_copy(update=part) for name, part in CUT.items())
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(hub))
    monkeypatch.setattr("huggingface_hub.model_info", lambda name: SimpleNamespace(sha="0"))
    monkeypatch.setenv("FUNDUS_CACHE", str(tmp_path / "cache"))
    examples(tmp_path)
    layers = {"Qwen2_5_VLDecoderLayer", *(["Qwen2_5_VLVisionBlock"] if tune.train_vision else [])}
    verdict = json.dumps({"reason": "as the image shows", "verdict": "plausible"})
    with FaultyServer(says=lambda prompt, seed: verdict) as server:
        cut = {"base_model": base, "sft": tune, "grpo": learn,
               "server": settings.server.model_copy(update={"url": server.url})}
        stage = SimpleNamespace(settings=settings.model_copy(update=cut), path=lambda stage, file: tmp_path / file)
        (tmp_path / "model").mkdir()
        perception.build_base(tmp_path / "model", base, 0)
        (first,) = sft.jobs(stage, tmp_path, {"E": tmp_path / "traces.parquet"}, [0]).values()
        (then,) = grpo.jobs(stage, tmp_path, tmp_path / "questions.parquet", tmp_path, settings.setups[-1:],
                            [0]).values()
        processor = models.load_processor(first.arguments["start"])
        assert processor.image_processor.size["longest_edge"] == base.image_pixels
        written[:] = processor.tokenizer(TRACE + models.TURN_END)["input_ids"]
        for job, kind, part in (first, sft, tune), (then, grpo, learn):
            job.folder.mkdir(parents=True)
            kind.train(job.folder, **json.loads(json.dumps(job.arguments)))
            assert checkpointed >= layers
            checkpointed.clear()
            trained(job.arguments["start"], job.folder, part.lora_rank, tune.train_vision)
    assert bool(server.bodies) == (settings.rewards.judge == "llm")
    log, rollouts = pd.read_csv(then.folder / "log.csv"), pd.read_parquet(then.folder / "rollouts.parquet")
    assert len(log) == learn.steps and log.loss.notna().all() and learn.kl_beta > 0
    assert log.kl[0] == 0 and (learn.lora_rank or log.kl[1] > 0)  # from the reference, which the first step still is
    assert (rollouts.groupby(["step", "question_id"]).size() % learn.rollouts == 0).all()
    assert rollouts.process_reward.max() > 0
