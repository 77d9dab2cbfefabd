"""Batched sampling and greedy decoding from a vision-language model."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from fundus_lib import model as models
from fundus_lib.questions import option_texts
from fundus_lib.questions import prompt as ask


def open_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """An RGB image from a path, encoded bytes (benchmarks that carry base64) or an image already open."""
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
        return image.convert("RGB")


def user_turn(image: Image.Image, text: str) -> list[dict]:
    """One user message holding the image, then the text: the prompt of every stage."""
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]


@torch.no_grad()
def generate(
    model,
    processor,
    images: Sequence,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    rollouts: int = 1,
    seed: int = 0,
    desc: str = "generate",
) -> list[list[str]]:
    """Completions of each (image, prompt): a list of `rollouts` texts per pair, in the order given.

    temperature 0 decodes greedily. Pairs are batched by prompt length, which keeps the padding short; the random
    state is set per batch, so a batch's samples do not depend on what ran before it.
    """
    model.eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts: list[list[str]] = [[] for _ in prompts]
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {
        "do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    for start in tqdm(range(0, len(order), batch_size), desc=desc, unit="batch", disable=len(order) <= batch_size):
        batch = order[start:start + batch_size]
        inputs = processor.apply_chat_template(
            [user_turn(open_image(images[i]), prompts[i]) for i in batch],
            add_generation_prompt=True, tokenize=True, return_dict=True,
            processor_kwargs={"padding": True, "return_tensors": "pt"},
        ).to(model.device)
        torch.manual_seed(seed + start)
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, num_return_sequences=rollouts, **sampling)
        completions = processor.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
        for row, i in enumerate(batch):
            texts[i] = completions[row * rollouts:(row + 1) * rollouts]
    return texts


@torch.no_grad()
def option_scores(model, processor, image, prompt: str, answers: Sequence[str]) -> list[float]:
    """Mean log-probability a token of each answer text after (image, prompt); a long name is not punished."""
    image = open_image(image)
    prefix = processor.apply_chat_template(user_turn(image, prompt), add_generation_prompt=True, tokenize=False)
    inputs = processor(
        images=[[image]] * len(answers), text=[prefix + answer for answer in answers],
        padding=True, padding_side="right", return_tensors="pt",
    ).to(model.device)
    length = len(processor(images=[image], text=[prefix])["input_ids"][0])
    ids, mask = inputs["input_ids"][:, length:], inputs["attention_mask"][:, length:]
    logits = model(**inputs).logits[:, length - 1:-1].float()
    tokens = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return ((tokens * mask).sum(1) / mask.sum(1)).tolist()


def placed(path: str | Path):
    """(model, processor) of a folder, on the accelerator when there is one."""
    return models.load_model(path).to("cuda" if torch.cuda.is_available() else "cpu"), models.load_processor(path)


def answer_questions(path: str | Path, questions: pd.DataFrame, settings) -> list[str]:
    """Greedy responses of the model at `path` to questions (columns question, options, kind, image), in order.

    settings: the section `evaluation`.
    """
    prompts = [ask(*row) for row in zip(questions.question, questions.options, questions.kind, strict=True)]
    texts = generate(*placed(path), list(questions.image), prompts, max_new_tokens=settings.max_new_tokens,
                     batch_size=settings.batch_size, desc="answer")
    return [text for (text,) in texts]


def likeliest_options(path: str | Path, questions: pd.DataFrame) -> list[str]:
    """The letter whose option the model finds likeliest: what it would answer if it had to choose.

    A model that was never taught a label's name seldom says one; this asks what it makes of the list of options.
    """
    model, processor = placed(path)
    letters = []
    for row in tqdm(questions.itertuples(), total=len(questions), desc="weigh options", unit="question"):
        options = option_texts(row.options)
        scores = option_scores(model, processor, row.image, ask(row.question, row.options),
                               [f"<answer> {text} </answer>" for text in options.values()])
        letters.append(list(options)[scores.index(max(scores))])
    return letters
