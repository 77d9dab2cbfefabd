"""Batched sampling and greedy decoding from a vision-language model: an image is looked at once for all its rollouts.

Its rollouts stand side by side in one sequence behind the prompt, hidden from each other by the attention mask: the
image is encoded, the prompt read and both stored once."""

import re
from collections.abc import Callable, Sequence
from copy import copy
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import Cache, StoppingCriteria
from transformers.generation import logits_process


def open_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """An RGB image from a path, encoded bytes (benchmarks that carry base64) or an image already open."""
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
        return image.convert("RGB")


def open_images(source) -> list[Image.Image]:
    """The images of one question: `source` is one of them (see open_image) or a list of several."""
    return [open_image(image) for image in (source if isinstance(source, list | tuple | np.ndarray) else [source])]


def user_turn(images: Image.Image | Sequence[Image.Image], text: str) -> list[dict]:
    """One user message holding the image or images, then the text: the prompt of every stage."""
    shown = [{"type": "image", "image": x} for x in ([images] if isinstance(images, Image.Image) else images)]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def has_answered(text: str) -> bool:
    """Has a response, written so far, closed an <answer> that holds something, outside its reasoning?"""
    reasoning, _, said = text.rpartition("</think>")
    return "<think>" not in said and re.search(r"<answer>\s*[^\s<][^<]*</answer>", said) is not None


class StopAtAnswer(StoppingCriteria):
    """Ends a response at its </answer>: what would follow is no part of it, unless it were a second answer.
    Text is read only when a token closes a tag. start: tokens of the prompt, which names the tags itself."""

    def __init__(self, tokenizer, start: int):
        closing = {i for token, i in tokenizer.get_vocab().items() if ">" in token} - {*tokenizer.all_special_ids}
        self.tokenizer, self.start, self.closing = tokenizer, start, torch.tensor([*closing])

    def __call__(self, input_ids: torch.Tensor, scores=None, **kwargs) -> torch.Tensor:
        """Which rows of (rows, tokens) end with their last token."""
        ends = torch.isin(input_ids[:, -1], self.closing.to(input_ids.device))
        for row in ends.nonzero().flatten().tolist():
            ends[row] = has_answered(self.tokenizer.decode(input_ids[row, self.start:], skip_special_tokens=True))
        return ends


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


def prefill(model, processor, pairs: Sequence[tuple[Image.Image | Sequence[Image.Image], str]]) -> Prefilled:
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


def noise(seed: int, images, prompt: str, rollouts: int, length: int) -> np.ndarray:
    """Uniform numbers (rollouts, length), one a token: a rollout's depend on the seed, the image or images, the prompt
    and the rollout's number, and on nothing that is sampled beside it."""
    pixels = b"".join(image.tobytes() for image in open_images(images))
    content = int.from_bytes(sha256(prompt.encode() + b"\0" + pixels).digest())
    return np.stack([np.random.default_rng([seed, rollout, content]).random(length) for rollout in range(rollouts)])


def decode(model, start: Prefilled, draws: torch.Tensor, temperature: float, stop: StopAtAnswer | None = None,
           config=None) -> torch.Tensor:
    """Continue every pair by several rollouts at once. draws: uniform numbers (B, rollouts, most tokens).
    temperature 0 decodes greedily, else each number picks its token from the distribution without top-k or top-p.
    Ends when all have ended their turn, or by `stop`; a batch of which half are done goes on without them. config: a
    GenerationConfig with suppressed tokens, penalty, end and padding; None for the model's own. Returns token ids
    (B, rollouts, tokens), and leaves `start` as it was."""
    batch, rollouts, longest = draws.shape
    config, device = config or model.generation_config, draws.device
    ended_by, rules = torch.tensor(config.eos_token_id, device=device), logits_process.LogitsProcessorList()
    if config.repetition_penalty not in (None, 1.0):
        rules.append(logits_process.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.suppress_tokens:
        rules.append(logits_process.SuppressTokensLogitsProcessor(config.suppress_tokens, device=device))
    logits = start.logits.repeat_interleave(rollouts, 0)
    pairs, cache, position = torch.arange(batch, device=device), start.cache, start.position
    ids = start.ids.repeat_interleave(rollouts, 0)
    out = torch.full(draws.shape, config.pad_token_id, device=device)
    mask = start.mask[:, None, None].expand(-1, 1, rollouts, -1)
    itself = torch.eye(rollouts, dtype=torch.bool, device=device).expand(batch, 1, -1, -1)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=device)
    for step in range(longest):
        scores = rules(ids, logits)
        if temperature:  # summed in double: a token without probability is never drawn
            total = (scores / temperature).softmax(-1).cumsum(-1, dtype=torch.float64)
            below = draws[pairs, :, step].flatten()[:, None] * total[:, -1:]
            chosen = torch.searchsorted(total, below, right=True)[:, 0]
        else:
            chosen = scores.argmax(-1)
        chosen = torch.where(ended, config.pad_token_id, chosen)
        out[pairs, :, step] = chosen.view(-1, rollouts)
        ids, ended = torch.cat([ids, chosen[:, None]], 1), ended | torch.isin(chosen, ended_by)
        ended |= stop(ids) if stop else False
        if ended.all() or step == longest - 1:
            break
        mask = torch.cat([mask, itself], -1)  # a rollout sees the prompt and its own tokens
        busy = ~ended.view(-1, rollouts).all(1)
        if 2 * busy.sum() <= len(busy):
            layers, cache = [copy(layer) for layer in cache.layers], copy(cache)  # that of `start` stays whole
            cache.layers = layers
            cache.batch_select_indices(busy.nonzero()[:, 0])
            pairs, position = pairs[busy], position[:, busy]
            mask, itself, rows = mask[busy], itself[busy], busy.repeat_interleave(rollouts)
            ids, ended, chosen = ids[rows], ended[rows], chosen[rows]
        logits = model(input_ids=chosen.view(-1, rollouts), attention_mask=mask, past_key_values=cache,
                       position_ids=position.expand(-1, -1, rollouts) + step).logits.float().flatten(0, 1)
    start.cache.crop(start.ids.shape[1] - start.cache.get_seq_length())
    return out[:, :, :step + 1]


@torch.no_grad()
def generate(model, processor, images: Sequence, prompts: Sequence[str], *, max_new_tokens: int, batch_size: int,
             temperature: float = 0.0, rollouts: int = 1, seed: int = 0, first: int = 0,
             enough: Callable[[int, list[str]], bool] | None = None, stop_at_answer: bool = False,
             desc: str = "generate") -> list[list[str]]:
    """Completions of each (image or list of images, prompt): a list of `rollouts` texts per pair, in the order given.
    temperature 0 decodes greedily. A rollout depends on the seed, its pair and its number alone (neighbours change the
    last digit of a sum, as in any batch). With `enough(index of the pair, its texts)`, the `first` rollouts are
    sampled, then the others of those pairs only that have not enough."""
    model.eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts: list[list[str]] = [[] for _ in prompts]
    sizes = [first, rollouts - first] if 0 < first < rollouts else [rollouts]
    for start in tqdm(range(0, len(order), batch_size), desc=desc, unit="batch", disable=len(order) <= batch_size):
        batch = order[start:start + batch_size]
        pairs = [(open_images(images[i]), prompts[i]) for i in batch]
        state, rows = prefill(model, processor, pairs), list(range(len(batch)))
        stop = StopAtAnswer(processor.tokenizer, state.ids.shape[1]) if stop_at_answer else None
        draws = torch.zeros(len(batch), rollouts, max_new_tokens, dtype=torch.float64)
        if temperature:
            draws = torch.from_numpy(np.stack([noise(seed, *pair, rollouts, max_new_tokens) for pair in pairs]))
        for part in draws.to(model.device).split(sizes, dim=1):
            tokens = decode(model, state, part[rows], temperature, stop)
            for row, said in zip(rows, tokens, strict=True):
                texts[batch[row]] += processor.tokenizer.batch_decode(said, skip_special_tokens=True)
            short = [k for k, row in enumerate(rows) if enough and not enough(batch[row], texts[batch[row]])]
            if not short:
                break
            state, rows = state.select(short), [rows[k] for k in short]
    return texts


@torch.no_grad()
def log_probabilities(model, processor, shown: Sequence[Sequence[Image.Image]], prompt: str,
                      answers: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """(ln p, tokens) of each answer text after its images, equal in number and size for all, and the prompt: (n,)."""
    prefix = processor.apply_chat_template(user_turn(shown[0], prompt), add_generation_prompt=True, tokenize=False)
    inputs = processor(images=[*shown], text=[prefix + answer for answer in answers], padding=True,
                       padding_side="right", return_tensors="pt").to(model.device)
    length = len(processor(images=[shown[0]], text=[prefix])["input_ids"][0])
    ids, mask = inputs["input_ids"][:, length:], inputs["attention_mask"][:, length:]
    logits = model(**inputs, logits_to_keep=ids.shape[1] + 1).logits[:, :-1].float()
    tokens = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return (tokens * mask).sum(1), mask.sum(1)


def option_scores(model, processor, image, prompt: str, answers: Sequence[str]) -> list[float]:
    """Mean log-probability a token of each answer text after (image or images, prompt): a long name is not punished."""
    total, tokens = log_probabilities(model, processor, [open_images(image)] * len(answers), prompt, answers)
    return (total / tokens).tolist()
