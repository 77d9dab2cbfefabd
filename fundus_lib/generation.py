"""Batched sampling and greedy decoding from a vision-language model: an image is looked at once for all its rollouts.

The rollouts of an image do not get a copy of its cache each. They stand side by side in one sequence behind the prompt,
and the attention mask hides them from each other, so the image is encoded, the prompt read and both stored once.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm
from transformers import Cache, LogitsProcessorList, RepetitionPenaltyLogitsProcessor, SuppressTokensLogitsProcessor

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


class Prefilled(NamedTuple):
    """A batch of B pairs whose images are encoded and whose prompts of up to P tokens are read, padded on the left."""
    ids: torch.Tensor        # (B, P)
    mask: torch.Tensor       # (B, P), False: padding
    position: torch.Tensor   # (3, B, 1) of the first token to come: time, height, width
    logits: torch.Tensor     # (B, vocabulary) of that token
    cache: Cache

    def select(self, rows: Sequence[int]) -> "Prefilled":
        """Only these rows of the batch (the cache is cut in place)."""
        self.cache.batch_select_indices(torch.tensor(rows, device=self.ids.device))
        return Prefilled(self.ids[rows], self.mask[rows], self.position[:, rows], self.logits[rows], self.cache)


def prefill(model, processor, pairs: Sequence[tuple[Image.Image, str]]) -> Prefilled:
    """Encode the images and read the prompts of a batch, once."""
    inputs = processor.apply_chat_template(
        [user_turn(*pair) for pair in pairs], add_generation_prompt=True, tokenize=True, return_dict=True,
        processor_kwargs={"padding": True, "return_tensors": "pt"},
    ).to(model.device)
    places = {name: inputs[name] for name in ("mm_token_type_ids", "image_grid_thw", "attention_mask")}
    positions, _ = model.model.get_rope_index(inputs["input_ids"], **places)
    out = model(**inputs, position_ids=positions, use_cache=True, logits_to_keep=1)
    return Prefilled(inputs["input_ids"], inputs["attention_mask"].bool(), positions[:, :, -1:] + 1,
                     out.logits[:, -1].float(), out.past_key_values)


def noise(seed: int, image: Image.Image, prompt: str, rollouts: int, length: int) -> np.ndarray:
    """Uniform numbers (rollouts, length), one a token: a rollout's depend on the seed, the image, the prompt and the
    rollout's number, and on nothing that is sampled beside it."""
    content = int.from_bytes(sha256(prompt.encode() + b"\0" + image.tobytes()).digest())
    return np.stack([np.random.default_rng([seed, rollout, content]).random(length) for rollout in range(rollouts)])


def decode(model, start: Prefilled, draws: torch.Tensor, temperature: float) -> torch.Tensor:
    """Continue every pair by several rollouts at once. draws: uniform numbers (B, rollouts, most tokens).

    temperature 0 decodes greedily, else each number picks its token from the distribution without top-k or top-p.
    Stops when all have ended their turn. Returns token ids (B, rollouts, tokens) and leaves `start` as it was.
    """
    batch, rollouts, longest = draws.shape
    config, device = model.generation_config, draws.device
    ended_by, rules = torch.tensor(config.eos_token_id, device=device), LogitsProcessorList()
    if config.repetition_penalty not in (None, 1.0):
        rules.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.suppress_tokens:
        rules.append(SuppressTokensLogitsProcessor(config.suppress_tokens, device=device))
    logits = start.logits.repeat_interleave(rollouts, 0)
    ids = start.ids.repeat_interleave(rollouts, 0)
    mask = start.mask[:, None, None].expand(-1, 1, rollouts, -1)
    itself = torch.eye(rollouts, dtype=torch.bool, device=device).expand(batch, 1, -1, -1)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=device)
    for step in range(longest):
        scores = rules(ids, logits)
        if temperature:  # summed in double: a token without probability is never drawn
            total = (scores / temperature).softmax(-1).cumsum(-1, dtype=torch.float64)
            below = draws.flatten(0, 1)[:, step, None] * total[:, -1:]
            chosen = torch.searchsorted(total, below, right=True)[:, 0]
        else:
            chosen = scores.argmax(-1)
        chosen = torch.where(ended, config.pad_token_id, chosen)
        ids, ended = torch.cat([ids, chosen[:, None]], 1), ended | torch.isin(chosen, ended_by)
        if ended.all() or step == longest - 1:
            break
        mask = torch.cat([mask, itself], -1)  # a rollout sees the prompt and its own tokens
        logits = model(input_ids=chosen.view(batch, rollouts), attention_mask=mask, past_key_values=start.cache,
                       position_ids=start.position.expand(-1, -1, rollouts) + step).logits.float().flatten(0, 1)
    start.cache.crop(start.ids.shape[1] - start.cache.get_seq_length())
    return ids[:, start.ids.shape[1]:].view(batch, rollouts, -1)


@torch.no_grad()
def generate(model, processor, images: Sequence, prompts: Sequence[str], *, max_new_tokens: int, batch_size: int,
             temperature: float = 0.0, rollouts: int = 1, seed: int = 0, first: int = 0,
             enough: Callable[[int, list[str]], bool] | None = None, desc: str = "generate") -> list[list[str]]:
    """Completions of each (image, prompt): a list of `rollouts` texts per pair, in the order given.

    temperature 0 decodes greedily. Pairs are batched by prompt length, which keeps the padding short. A rollout depends
    on the seed, its pair and its number alone (other neighbours change the last digit of a sum, as they do in any
    batch). With `enough(index of the pair, its texts)`, the `first` rollouts are sampled, then the others of those
    pairs only that have not enough.
    """
    model.eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts: list[list[str]] = [[] for _ in prompts]
    sizes = [first, rollouts - first] if 0 < first < rollouts else [rollouts]
    for start in tqdm(range(0, len(order), batch_size), desc=desc, unit="batch", disable=len(order) <= batch_size):
        batch = order[start:start + batch_size]
        pairs = [(open_image(images[i]), prompts[i]) for i in batch]
        state, rows = prefill(model, processor, pairs), list(range(len(batch)))
        draws = torch.zeros(len(batch), rollouts, max_new_tokens, dtype=torch.float64)
        if temperature:
            draws = torch.from_numpy(np.stack([noise(seed, *pair, rollouts, max_new_tokens) for pair in pairs]))
        for part in draws.to(model.device).split(sizes, dim=1):
            tokens = decode(model, state, part[rows], temperature)
            for row, said in zip(rows, tokens, strict=True):
                texts[batch[row]] += processor.tokenizer.batch_decode(said, skip_special_tokens=True)
            short = [k for k, row in enumerate(rows) if enough and not enough(batch[row], texts[batch[row]])]
            if not short:
                break
            state, rows = state.select(short), [rows[k] for k in short]
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


@lru_cache(maxsize=1)
def placed(path: str | Path):
    """(model, processor) of a folder, on the accelerator when there is one; the last one stays loaded."""
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
