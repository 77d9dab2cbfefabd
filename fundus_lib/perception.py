"""The small generic model: it learns to see, and never reads the name of a disease.

It plays the generic multimodal model of the papers, both as base model A and as the finder of visual findings.
Vision comes first (which finding lies in which image token), then language (questions about what is there); end-to-end
training of a model this small does not learn to see.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from math import isqrt
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from fundus_lib import model as models
from fundus_lib import world
from fundus_lib.data.records import cache_folder
from fundus_lib.world.clinic import LESIONS, RULES

MODALITIES = tuple(world.FINDINGS)
POOL = ("CFP", "OCT", "UWF", "CFP", "OCT", "UWF", "CFP", "FFA")  # in turn: the more findings, the more images
MOST_ASKED = 12  # findings in one question
TARGETS = (*dict.fromkeys(lesion for names in LESIONS.values() for lesion in names), "optic disc")
DECISIVE = ("present", "absent", "Yes", "No", "Right", "Left")  # words of an answer that say what was seen
KNOWN = "findings.json"  # beside the small model: the findings whose names it was taught
RECORDED = Path(__file__).resolve().parents[1] / "papers_figs" / "recorded" / "base_model"

# What the small model can be asked. A model of this size knows no other wording, so these are the forms that voting
# and the questions use (a test holds them together). They are written here again on purpose: whoever edits a prompt of
# a later stage asks this model something new, and does not train another one.
ASK_FINDINGS = ("In this {modality} image, determine the presence of the following findings: {findings}. "
                "Answer with present or absent for each finding.")
ASK_CAPTION = "Describe the findings in this image."
ASK_OPTION = "{question} Options: {options}. Think in <think> </think>, then give one option in <answer> </answer>."


def token_targets(drawing: world.Drawing, rows: int, columns: int) -> np.ndarray:
    """Which finding lies in which image token. Returns float32 (rows * columns, len(TARGETS)).

    A token holds a finding when a lesion's centre falls into it (small lesions) or a quarter of it is covered.
    """
    grid = np.zeros((rows, columns, len(TARGETS)), np.float32)
    centres = dict(drawing.centres) | ({"optic disc": [drawing.disc]} if drawing.disc else {})
    for finding, points in centres.items():
        for x, y in points:
            row, column = min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
            grid[max(row, 0), max(column, 0), TARGETS.index(finding)] = 1
    for finding, mask in drawing.masks.items():
        if finding in TARGETS:
            covered = [[block.mean() >= 0.25 for block in np.array_split(band, columns, axis=1)]
                       for band in np.array_split(mask, rows, axis=0)]
            grid[..., TARGETS.index(finding)] = np.maximum(grid[..., TARGETS.index(finding)], covered)
    return grid.reshape(rows * columns, -1)


def draw_one(index: int, *, seed: int, processor, height: int = 192) -> dict:
    """One drawn image with random findings, already cut into patches. It has no label.

    Returns modality, findings (frozenset), laterality, pixels float16 (patches, 384) and grid (1, 3), or pixels
    (1, 3, height, width) alone for an InternVL3, and targets.
    """
    rng, modality = np.random.default_rng((seed, index)), POOL[index % len(POOL)]
    findings = world.random_findings(rng, modality)
    drawing = world.draw(rng, modality, findings, camera="any", height=height)
    patches = processor.image_processor(images=[drawing.image], return_tensors="np")
    if "image_grid_thw" in patches:
        rows, columns = (patches["image_grid_thw"][0, 1:] // processor.image_processor.merge_size).tolist()
        grid = {"grid": patches["image_grid_thw"]}
    else:  # InternVL3: any image is one square
        rows = columns = isqrt(processor.image_seq_length)
        grid = {}
    return {"modality": modality, "findings": findings, "laterality": drawing.laterality,
            "pixels": patches["pixel_values"].astype(np.float16), **grid,
            "targets": token_targets(drawing, rows, columns)}


def draw_pool(count: int, seed: int, processor, workers: int = 2) -> list[dict]:
    """`count` images of `draw_one`, drawn by `workers` processes; the same ones whatever their number."""
    draw, bar = partial(draw_one, seed=seed, processor=processor), {"desc": "draw without labels", "unit": "image"}
    if count < 500:  # starting processes would take longer than drawing
        items = [draw(i) for i in tqdm(range(count), **bar)]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            items = list(tqdm(pool.map(draw, range(count), chunksize=50), total=count, mininterval=1, **bar))
    return [{name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in item.items()}
            for item in items]


def fit(parameters: Sequence[torch.nn.Parameter], loss_of: Callable, pool: Sequence[dict], *, phase: str, steps: int,
        batch: int, peak: float, seed: int) -> pd.DataFrame:
    """AdamW on `loss_of(items)` over `steps` batches of the pool; warm-up, linear decay to a twentieth of the peak.

    Returns phase, step, loss.
    """
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.05)
    rng, losses = random.Random(seed), []
    for step in tqdm(range(steps), desc=phase, unit="step", mininterval=1):
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1, (step + 1) / 50) * max(0.05, 1 - step / steps)
        loss = loss_of(rng.choices(pool, k=batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return pd.DataFrame({"phase": phase, "step": range(steps), "loss": losses})


def image_tensors(batch: Sequence[dict], device) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches (all patches, 384) and grids (images, 3) of a batch, concatenated as Qwen2.5-VL wants them."""
    pixels = torch.cat([item["pixels"] for item in batch]).to(device=device, dtype=torch.float32)
    return pixels, torch.cat([item["grid"] for item in batch]).to(device)


def image_features(model, items: Sequence[dict]) -> torch.Tensor:
    """What the text model gets to read of each image, one after the other: (all image tokens, text width)."""
    if "grid" in items[0]:
        pixels, grids = image_tensors(items, model.device)
        return model.model.visual(pixels, grid_thw=grids).pooler_output
    pixels = torch.cat([item["pixels"] for item in items]).to(device=model.device, dtype=torch.float32)
    return model.model.get_image_features(pixels).pooler_output.flatten(0, 1)


def train_vision(model, pool: Sequence[dict], **schedule) -> pd.DataFrame:
    """Stage one: the vision tower learns which finding lies in which image token (the linear head is thrown away)."""
    tower, device = [p for name, p in model.named_parameters() if models.SEES.search(name)], model.device
    head = torch.nn.Linear(model.config.text_config.hidden_size, len(TARGETS)).to(device)

    def loss_of(items: Sequence[dict]) -> torch.Tensor:
        logits, targets = head(image_features(model, items)), torch.cat([i["targets"] for i in items])
        # Positives are rare (a lesion covers one token in ten): weigh them up. The second term asks the same of the
        # image as a whole, which is what a finder of findings is judged by.
        sizes, targets = [len(item["targets"]) for item in items], targets.to(device)
        whole, present = (torch.stack([part.amax(0) for part in t.split(sizes)]) for t in (logits, targets))
        dense = binary_cross_entropy_with_logits(logits, targets, pos_weight=torch.tensor(3.0, device=device))
        return dense + 0.3 * binary_cross_entropy_with_logits(whole, present)

    return fit([*tower, *head.parameters()], loss_of, pool, phase="vision", **schedule)


def caption(modality: str, findings: frozenset[str]) -> str:
    """What is there, in words: "This CFP image shows drusen, hard exudate."."""
    present = [finding for finding in world.FINDINGS[modality] if finding in findings]
    return f"This {modality} image shows {', '.join(present) if present else 'no finding'}."


def ask_option(question: str, options: Sequence[str]) -> str:
    """A single-choice question as every stage words it."""
    lettered = ", ".join(f"{letter}. {text}" for letter, text in zip("ABCDEFGHIJKLMNOP", options, strict=False))
    return ASK_OPTION.format(question=question, options=lettered)


def answer(thought: str, choice: str) -> str:
    """The response format of both papers."""
    return f"<think> {thought} </think> <answer> {choice} </answer>"


def perception_example(item: dict, rng: random.Random) -> tuple[str, str]:
    """One (prompt, answer) about what can be seen: findings, a caption, one finding, the modality, the side."""
    modality, findings, names = item["modality"], item["findings"], world.FINDINGS[item["modality"]]
    seen, kind = caption(modality, findings), rng.random()
    if kind < 0.42:
        asked = sorted(rng.sample(names, rng.randint(min(3, len(names)), min(MOST_ASKED, len(names))))
                       if rng.random() < 0.5 else some_of_both(findings, names, rng))
        votes = ", ".join(f"{f} {'present' if f in findings else 'absent'}" for f in asked) + "."
        return ASK_FINDINGS.format(modality=modality, findings=", ".join(asked)), votes
    if kind < 0.54:
        return ASK_CAPTION, seen
    if kind < 0.68:
        finding = rng.choice(names if rng.random() < 0.5 or not findings else sorted(findings))
        choices = rng.sample(["Yes", "No"], 2)
        verdict = "Yes" if finding in findings else "No"
        return ask_option(f"Does this image show {finding}?", choices), answer(seen, verdict)
    if kind < 0.74 or item["laterality"] is None:
        choices = rng.sample(MODALITIES, len(MODALITIES))
        return ask_option("Which imaging modality is this?", choices), answer(f"This is a {modality} image.", modality)
    choices = rng.sample(["Right eye", "Left eye"], 2)
    return (ask_option("Which eye is this?", choices),
            answer(f"This is a {modality} image.", f"{item['laterality'].capitalize()} eye"))


def some_of_both(findings: frozenset[str], names: Sequence[str], rng: random.Random) -> list[str]:
    """Up to half of MOST_ASKED findings that are there, and as many that are not."""
    absent = [name for name in names if name not in findings]
    present = rng.sample(sorted(findings), min(len(findings), MOST_ASKED // 2))
    return present + rng.sample(absent, min(len(absent), len(present) + 1))


def tokenizer_texts(count: int = 2000) -> list[str]:
    """Texts from which the tokenizer takes its pieces: perception examples, and lists of the labels' names.

    The names only become short token sequences here; the model itself is never trained on a text that holds one.
    """
    rng, texts = random.Random(0), []
    for i in range(count):
        modality = POOL[i % len(POOL)]
        item = {"modality": modality, "findings": world.random_findings(np.random.default_rng(i), modality),
                "laterality": None if modality == "OCT" else rng.choice(["left", "right"])}
        texts += perception_example(item, rng)
        texts.append(ask_option("What is the diagnosis?", rng.sample(sorted(RULES[modality]), len(RULES[modality]))))
        texts.append(answer("without, or, and, indicates", rng.choice(sorted(RULES[modality]))))
    return texts


def encode(processor, items: Sequence[dict], texts: Sequence[tuple[str, str]], device) -> dict[str, torch.Tensor]:
    """Model inputs of (prompt, answer) pairs; the loss counts the answer's tokens only. Padding on the right."""
    tokenizer, rows = processor.tokenizer, []
    for item, (prompt, completion) in zip(items, texts, strict=True):
        turn = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}],
            add_generation_prompt=True, tokenize=False,
        ).replace(models.IMAGE, models.IMAGE * len(item["targets"]))
        rows.append([torch.tensor(tokenizer(text)["input_ids"]) for text in (turn, completion + models.TURN_END)])
    whole = [torch.cat(row) for row in rows]
    ids = pad_sequence(whole, batch_first=True, padding_value=tokenizer.pad_token_id)
    labels = [torch.cat([torch.full_like(head, -100), tail]) for head, tail in rows]
    ones = [torch.ones_like(row) for row in whole]
    inputs = {"input_ids": ids, "attention_mask": pad_sequence(ones, batch_first=True),
              "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
              "mm_token_type_ids": (ids == processor.image_token_id).long()}
    return {name: tensor.to(device) for name, tensor in inputs.items()}


@torch.no_grad()
def look(model, pool: Sequence[dict], batch: int = 128) -> None:
    """Add to every image what the vision tower makes of it: `features` (tokens, text width)."""
    for start in tqdm(range(0, len(pool), batch), desc="encode images", unit="batch"):
        items = pool[start:start + batch]
        features = image_features(model, items)
        for item, part in zip(items, features.split([len(item["targets"]) for item in items]), strict=True):
            item["features"] = part.clone()


def answer_logits(model, inputs: dict[str, torch.Tensor], items: Sequence[dict]) -> torch.Tensor:
    """Logits (tokens that have a label, vocabulary), each before its token, from image features already computed: the
    model's forward minus its vision tower and the five tokens in six that nobody asks about."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    seen = inputs["mm_token_type_ids"].bool()
    embeddings = model.get_input_embeddings()(ids)
    features = torch.cat([item["features"] for item in items]).to(embeddings.dtype)
    positions = None  # InternVL3 counts tokens
    if "grid" in items[0]:
        positions, _ = model.model.get_rope_index(
            ids, mm_token_type_ids=inputs["mm_token_type_ids"], attention_mask=mask,
            image_grid_thw=torch.cat([item["grid"] for item in items]).to(ids.device))
    hidden = model.model(inputs_embeds=embeddings.masked_scatter(seen[..., None], features), attention_mask=mask,
                         position_ids=positions, use_cache=False).last_hidden_state
    return model.lm_head(hidden[:, :-1][inputs["labels"][:, 1:] != -100])


def train_language(model, processor, pool: Sequence[dict], *, seed: int, **schedule) -> pd.DataFrame:
    """Stage two: the language part learns to say what the vision tower sees. The tower is frozen, so every image of
    the pool is encoded once and not once a step.
    """
    look(model, pool)
    rng = random.Random(seed + 1)
    decisive = torch.tensor([processor.tokenizer(f" {word}")["input_ids"][0] for word in DECISIVE]).to(model.device)

    def loss_of(items: Sequence[dict]) -> torch.Tensor:
        inputs = encode(processor, items, [perception_example(item, rng) for item in items], model.device)
        labels = inputs["labels"][:, 1:]
        losses = cross_entropy(answer_logits(model, inputs, items), labels := labels[labels != -100], reduction="none")
        # Nine tokens in ten only spell names that the prompt gave; what was seen is in the tenth. It counts as much.
        return losses.mean() + losses[torch.isin(labels, decisive)].mean()

    parameters = [p for name, p in model.named_parameters() if not models.SEES.search(name)]
    return fit(parameters, loss_of, pool, phase="language", seed=seed, **schedule)


def train_base(folder: Path, settings, seed: int) -> None:
    """Build the small model from nothing into `folder`: tokenizer, drawn images, vision, language. Resumes by phase."""
    if not (folder / "vision.csv").exists():
        torch.manual_seed(seed)
        tokenizer, kind = models.train_tokenizer(tokenizer_texts()), settings.architecture
        processor = models.small_processor(tokenizer, settings.image_pixels, kind)
        model = models.small_model(
            tokenizer, text_hidden=settings.text_hidden, text_layers=settings.text_layers,
            vision_hidden=settings.vision_hidden, vision_depth=settings.vision_depth, architecture=kind,
            image_pixels=settings.image_pixels)
        pool = draw_pool(settings.pool_images, seed, processor)
        torch.set_num_threads(min(2, os.cpu_count() or 1))  # nothing runs beside it, and more do not help this size
        log = train_vision(model, pool, steps=settings.vision_steps, batch=settings.vision_batch,
                           peak=settings.vision_learning_rate, seed=seed)
        models.save(model, processor, folder / "vision")
        log.to_csv(folder / "vision.csv", index=False)  # last: this phase is over
    else:
        model, processor = models.load_model(folder / "vision"), models.load_processor(folder / "vision")
        pool = draw_pool(settings.pool_images, seed, processor)
    log = train_language(model, processor, pool, steps=settings.language_steps, batch=settings.language_batch,
                         peak=settings.language_learning_rate, seed=seed)
    pd.concat([pd.read_csv(folder / "vision.csv"), log]).to_csv(folder / "log.csv", index=False)
    (folder / KNOWN).write_text(json.dumps(world.FINDINGS, indent=1))
    models.save(model, processor, folder)
    shutil.rmtree(folder / "vision")
    (folder / "vision.csv").unlink()


def build_base(folder: Path, settings, seed: int) -> None:
    """The generic model of a run in `folder`: trained here, copied from the recorded result, or a hub id resolved.

    Raises:
        FileNotFoundError: the recorded model is missing from the checkout.
        ValueError: the recorded model is not of the architecture that is asked for.
    """
    if settings.source == "train":
        train_base(folder, settings, seed)
    elif settings.source == "recorded":
        if settings.architecture != "qwen2_5_vl":
            raise ValueError(f"the recorded model is a Qwen2.5-VL and no {settings.architecture}\n  train one: "
                             "base_model.source: train, with the steps and widths of the profile cpu")
        if not (RECORDED / "config.json").exists():
            raise FileNotFoundError(f"{RECORDED} holds no model.\n  train one:  make base_model PROFILE=cpu")
        shutil.copytree(RECORDED, folder, dirs_exist_ok=True)
    else:
        from huggingface_hub import model_info

        sha = model_info(settings.hub_id).sha
        hub = {"id": settings.hub_id, "revision": sha, "image_pixels": settings.image_pixels}
        (folder / "hub.json").write_text(json.dumps(hub))


def base_path(folder: Path) -> str:
    """What `from_pretrained` takes for the base in `folder`: the folder itself, or one with links to the resolved hub
    snapshot, whose processor shows the run's `image_pixels` of an image (Qwen2.5-VL's own: up to 16,384 tokens)."""
    if not (folder / "hub.json").exists():
        return str(folder)
    from huggingface_hub import snapshot_download

    hub = json.loads((folder / "hub.json").read_text())
    files = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    snapshot = Path(snapshot_download(hub["id"], revision=hub["revision"], allow_patterns=files))
    seen = cache_folder() / f"{hub['id'].replace('/', '--')}-{hub['revision'][:12]}-{hub['image_pixels']}"
    processor = models.load_processor(snapshot)
    least = min(processor.image_processor.size["shortest_edge"], hub["image_pixels"])
    processor.image_processor.size = {"shortest_edge": least, "longest_edge": hub["image_pixels"]}
    processor.save_pretrained(seen)
    for file in [snapshot / "config.json", snapshot / "generation_config.json", *snapshot.glob("*.safetensors*")]:
        if not (seen / file.name).exists():
            (seen / file.name).symlink_to(file.resolve())
    return str(seen)


def known_findings(folder: Path) -> dict[str, list[str]] | None:
    """Modality -> findings that the base in `folder` was taught; None for a hub model, which may be asked anything."""
    file = folder / KNOWN
    return json.loads(file.read_text()) if file.exists() else None
