"""A table of questions answered by any model: a folder or hub id (transformers, or vLLM on a GPU), or a server.

With a `progress` file each response is kept as it comes, and an interrupted evaluation asks only what is left."""

import base64
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import cache, lru_cache
from hashlib import sha256
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLForConditionalGeneration

from fundus_lib import model as models
from fundus_lib.client import Client, Request
from fundus_lib.extraction import image_file
from fundus_lib.generation import StopAtAnswer, generate, open_images, option_scores, user_turn
from fundus_lib.questions import option_texts
from fundus_lib.questions import prompt as ask
from fundus_lib.settings import nearest

AT_ONCE = 512  # questions that a server or vLLM gets at once: what an interruption may cost, and images held in memory


class ModelError(ValueError):
    """A model that cannot be used here; the message says what it needs."""


class Entry(NamedTuple):
    """A model of references/models.yaml."""
    name: str
    hub_id: str | None   # None: not verified
    source: str          # where the hub id was read
    prompt: str          # tags | letters | boxed: how its authors ask, a key of `conventions`
    loads: str           # transformers | remote code | own package
    needs: str           # what else; "" when nothing

    def loadable(self, remote_code: bool = False) -> str:
        """Its hub id. Raises ModelError when plain transformers (or allowed remote code) will not load it."""
        if self.hub_id and (self.loads == "transformers" or (self.loads == "remote code" and remote_code)):
            return self.hub_id
        why = f"it needs {self.loads}" if self.hub_id else f"its hub id is not known ({self.source})"
        allow = "set evaluation.remote_code: true, " if self.hub_id and self.loads == "remote code" else ""
        raise ModelError(f"{self.name} is not loaded by its name: {why}. {self.needs}\n  {allow}give a folder of it, "
                         "ask a server, or answer elsewhere: python -m fundus_lib.predictions reads the file")


@cache
def _listed() -> dict:
    import yaml
    return yaml.safe_load((Path(__file__).parent / "references" / "models.yaml").read_text("utf-8"))


def load_entry(name: str) -> Entry:
    """What is known of a model of Table 7, by its name there. ModelError names the nearest for an unknown one."""
    known = _listed()["models"]
    if name not in known:
        raise ModelError(f"there is no model {name!r}{nearest(name, list(known))}\n  models: {', '.join(known)}")
    return Entry(name, **known[name])


def prompts(questions: pd.DataFrame, convention: str = "tags") -> list[str]:
    """What the model reads for each question (columns question, options, kind), asked in the manner of its authors."""
    asked = [ask(*row) for row in zip(questions.question, questions.options, questions.kind, strict=True)]
    if convention == "tags":
        return asked
    ending = _listed()["conventions"][convention]
    return [f"{text.partition(' Think in <think>')[0]} {ending}" for text in asked]


@lru_cache(maxsize=1)
def placed(path: str | Path, remote_code: bool = False):
    """(model, processor) of a folder or hub id, on the accelerator when there is one; the last one stays loaded.
    Safetensors only. Raises ModelError for what transformers does not load, or not with images."""
    code, device = {"trust_remote_code": remote_code}, "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if AutoConfig.from_pretrained(path, **code).model_type in ("qwen2_5_vl", "internvl"):
            return models.load_model(path).to(device), models.load_processor(path)
        model = AutoModelForImageTextToText.from_pretrained(path, use_safetensors=True, **code).to(device)
        processor = AutoProcessor.from_pretrained(path, **code)
    except (ImportError, ValueError, KeyError) as error:
        raise ModelError(f"transformers does not load {path}: {error}\n  a processor that needs torchvision: pip "
                         "install it; else answer by a server or vLLM") from error
    if not hasattr(processor, "image_processor") or not processor.chat_template:
        raise ModelError(f"{path}: no image processor or chat template comes with it; images would be dropped")
    words = processor.tokenizer
    words.padding_side, words.pad_token = "left", words.pad_token or words.eos_token
    return model.eval(), processor


@torch.no_grad()
def respond(model, processor, images: Sequence, asked: Sequence[str], max_new_tokens: int) -> list[str]:
    """Greedy responses to a batch of (image or images, prompt), each ended at its </answer>; penalties and suppressed
    tokens are those of the model's generation config."""
    if isinstance(model, Qwen2_5_VLForConditionalGeneration):
        return [text for (text,) in generate(model, processor, images, asked, max_new_tokens=max_new_tokens,
                                             batch_size=len(asked), stop_at_answer=True)]
    inputs = processor.apply_chat_template(
        [user_turn(open_images(image), text) for image, text in zip(images, asked, strict=True)], tokenize=True,
        add_generation_prompt=True, return_dict=True, processor_kwargs={"padding": True, "return_tensors": "pt"},
    ).to(model.device, model.dtype)
    start = inputs["input_ids"].shape[1]
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens,
                            pad_token_id=processor.tokenizer.pad_token_id,
                            stopping_criteria=[StopAtAnswer(processor.tokenizer, start)])
    return processor.tokenizer.batch_decode(tokens[:, start:], skip_special_tokens=True)


def in_batches(items: Sequence, size: int, work: Callable[[Sequence], list]) -> Iterator[tuple]:
    """(item, result) of work(batch) over batches of `items`. A batch that does not fit into the accelerator's memory is
    halved, and those after it are no larger; OutOfMemoryError when a single item does not fit."""
    start = 0
    while start < len(items):
        batch, results = items[start:start + size], None
        try:
            results = work(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                error.add_note("one question alone does not fit: lower evaluation.max_new_tokens or the image's pixels")
                raise
            size = len(batch) // 2
        if results is None:  # outside of `except`, where the traceback still holds the tensors
            torch.cuda.empty_cache()
            continue
        yield from zip(batch, results, strict=True)
        start += len(batch)


def expected_tokens(processor, images: Sequence, asked: str) -> float:
    """About how long a prompt gets, from the sizes of its images and its letters: like is batched with like."""
    eyes, total = processor.image_processor, len(asked) / 4
    if not hasattr(eyes, "merge_size"):  # all but the Qwen family: taken as one length an image
        return total + 600 * len(images)
    for source in images:  # of a file only the header is read
        file = BytesIO(source) if isinstance(source, bytes) else source
        with nullcontext(source) if isinstance(source, Image.Image) else Image.open(file) as image:
            pixels = np.clip(image.width * image.height, eyes.size["shortest_edge"], eyes.size["longest_edge"])
        total += pixels / (eyes.patch_size * eyes.merge_size) ** 2
    return total


def _local(path: str | Path, items: Sequence[tuple], settings, remote_code: bool) -> Iterator[tuple[int, str]]:
    model, processor = placed(path, remote_code)
    order = sorted(range(len(items)), key=lambda i: expected_tokens(processor, *items[i]))
    return in_batches(order, settings.batch_size, lambda batch: respond(
        model, processor, *zip(*(items[i] for i in batch), strict=True), settings.max_new_tokens))


def _vllm(path: str | Path, items: Sequence[tuple], settings, remote_code: bool) -> Iterator[tuple[int, str]]:
    import vllm
    engine = vllm.LLM(model=str(path), trust_remote_code=remote_code, seed=0,
                      limit_mm_per_prompt={"image": max(len(images) for images, _ in items)})
    penalty = engine.get_default_sampling_params().repetition_penalty  # of the generation config, as transformers does
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=settings.max_new_tokens, repetition_penalty=penalty)
    for start in range(0, len(items), AT_ONCE):
        turns = [[{"role": "user", "content": [*({"type": "image_url", "image_url": {
            "url": f"data:image/png;base64,{base64.b64encode(image_file(image)).decode()}"}} for image in images),
            {"type": "text", "text": asked}]}] for images, asked in items[start:start + AT_ONCE]]
        replies = engine.chat(turns, sampling, use_tqdm=False)
        yield from enumerate((reply.outputs[0].text for reply in replies), start)


def _served(client: Client, items: Sequence[tuple]) -> Iterator[tuple[int, str | None]]:
    for start in range(0, len(items), AT_ONCE):
        replies = client.ask([Request(asked, tuple(map(image_file, images)))
                              for images, asked in items[start:start + AT_ONCE]], "answer")
        yield from enumerate((reply.texts[0] if reply.texts else None for reply in replies), start)


def _keys(model: str | Path | Client, items: Sequence[tuple], most: int) -> list[str]:
    """What a response depends on, hashed: the model (its files' sizes and times, for a folder), the prompt, the images'
    content and the most new tokens."""
    if isinstance(model, Client):
        who = [model.server.url, model.model, model.server.max_tokens]
    else:
        files = sorted(Path(model).glob("*.safetensors"))
        who = [str(model), *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)]

    @cache
    def content(source: bytes | str | Path) -> str:
        return sha256(source if isinstance(source, bytes) else Path(source).read_bytes()).hexdigest()

    seen = [[content(image_file(x) if isinstance(x, Image.Image) else x) for x in images] for images, _ in items]
    return [sha256(json.dumps([who, asked, shown, most]).encode()).hexdigest()
            for (_, asked), shown in zip(items, seen, strict=True)]


def read_progress(file: Path) -> dict[str, str]:
    """{key: response} of a progress file; a torn last line is cut off, ValueError names another that is damaged."""
    content = file.read_bytes() if file.exists() else b""
    if len(whole := content[:content.rfind(b"\n") + 1]) < len(content):
        os.truncate(file, len(whole))
    said = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            said[row["key"]] = row["response"]
        except (ValueError, LookupError, TypeError):
            raise ValueError(f"{file}, line {number} is damaged\n  delete it: its question is asked again") from None
    return said


def answer_questions(model: str | Path | Client, questions: pd.DataFrame, settings,
                     progress: Path | None = None) -> list[str]:
    """Greedy responses to questions (columns question, options, kind, image; id when there is one), in their order.
    model: a folder, a hub id, a name of Table 7 (asked as its authors ask), or a client of a server, whose own
    max_tokens counts. image: a path, encoded bytes or an open image, or a list of several. settings: the section
    `evaluation`. progress: a file of JSON lines, made when missing, from which an interrupted call goes on."""
    convention, remote_code = "tags", False
    if isinstance(model, str) and model in _listed()["models"]:
        model = (entry := load_entry(model)).loadable(allowed := settings.remote_code)
        convention, remote_code = entry.prompt, allowed and entry.loads == "remote code"
    shown = [list(x) if isinstance(x, list | tuple | np.ndarray) else [x] for x in questions.image]
    items = list(zip(shown, prompts(questions, convention), strict=True))
    ids = questions.get("id", questions.index.to_series()).astype(str).to_list()
    keys = _keys(model, items, settings.max_new_tokens)  # what is asked twice about an image is answered once
    said = read_progress(progress) if progress else {}
    todo = list({key: i for i, key in enumerate(keys) if key not in said}.values())
    left = [items[i] for i in todo]
    here = _vllm if settings.engine == "vllm" else _local
    replies = iter(()) if not left else _served(model, left) if isinstance(model, Client) else \
        here(model, left, settings, remote_code)
    with open(progress or os.devnull, "a", buffering=1, encoding="utf-8") as lines:
        for k, response in tqdm(replies, total=len(left), desc="answer", unit="question", disable=len(left) < 2):
            if response is not None:
                said[keys[todo[k]]] = response
                row = {"key": keys[todo[k]], "question_id": ids[todo[k]], "response": response}
                lines.write(json.dumps(row) + "\n")
    if lost := sum(key not in said for key in keys):
        warnings.warn(f"{lost} of {len(keys)} questions got no response and count as not answered", stacklevel=2)
    return [said.get(key, "") for key in keys]


def _quiet() -> None:
    """Before a process answers beside others: their progress bars would write into each other."""
    plain = tqdm.__init__
    tqdm.__init__ = lambda self, *args, **settings: plain(self, *args, **settings | {"disable": True})


def answer_all(who: Mapping[tuple[str, int], str | Path | Client], questions: pd.DataFrame, settings, folder: Path,
               workers: int) -> dict[tuple[str, int], list[str]]:
    """`answer_questions` of the model of each (setup, seed), with a progress file in `folder`. Without a GPU `workers`
    models answer at a time, each in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = {key: (model, questions, settings, folder / "{}-{}.jsonl".format(*key)) for key, model in who.items()}
    if torch.cuda.is_available() or min(workers, len(who)) < 2 or any(isinstance(x, Client) for x in who.values()):
        return {key: answer_questions(*arguments) for key, arguments in asked.items()}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_quiet) as pool:
        running = {key: pool.submit(answer_questions, *arguments) for key, arguments in asked.items()}
        return {key: run.result() for key, run in tqdm(running.items(), "models answer", unit="model")}


def likeliest_options(path: str | Path, questions: pd.DataFrame) -> tuple[list[str], list[list[float]]]:
    """(letters, probabilities of the options): what the model would answer if it had to choose, and how surely.
    A model that was never taught a label's name seldom says one; this asks what it makes of the options (columns
    question, options, image). Probabilities: the softmax of the options' mean log-probabilities a token."""
    model, processor = placed(path)
    letters, probabilities = [], []
    for row in tqdm(questions.itertuples(), total=len(questions), desc="weigh options", unit="question"):
        options = option_texts(row.options)
        scores = torch.tensor(option_scores(model, processor, row.image, ask(row.question, row.options),
                                            [f"<answer> {text} </answer>" for text in options.values()]))
        letters.append(list(options)[int(scores.argmax())])
        probabilities.append(scores.double().softmax(0).tolist())
    return letters, probabilities
