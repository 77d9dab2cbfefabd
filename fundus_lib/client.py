"""Questions to any OpenAI-compatible server, images included; what was answered once is never asked again.

Every completion is a row of a sqlite file, committed as it arrives: a killed run loses only what is in flight; several
processes may share the file (on a local disk). Key: a hash of prompt, images' bytes, model, temperature, max_tokens,
JSON schema and the sample's seed. Seeds: sample i has `seed + i`. Samples missing in a row go out as one request with n
and the first of their seeds; choice i is kept as sample i (vLLM gives it the seed + i). A server that gives fewer
choices is asked for one sample at a time from then on. An unusable answer is asked for again, the seed moved by RESEED.
Money: the budget is for all that a cache file ever cost. The most that a request can cost is booked before it is sent
and corrected by the server's `usage`; without one, or after a time-out, a cut answer or a killed run, it stays booked.
"""

import asyncio
import base64
import hashlib
import json
import os
import random
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import cache
from io import BytesIO
from math import ceil, inf
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel
from tqdm import tqdm

from fundus_lib.settings import Server

TEMPORARY, AT_FAULT = (408, 409, 429, 500, 502, 503, 504), (400, 413, 422)  # HTTP: try again; the request's fault
TRIES, UNUSABLE, PAUSE, LONGEST_WAIT = 7, 3, 0.25, 60.0  # tries; unusable answers; seconds before the 2nd try; at most
ROUNDS, RESEED = 6, 1_000_003  # rounds of failures, one for each request in flight, until the server counts as down
TABLES = """PRAGMA journal_mode=WAL; PRAGMA synchronous=1; CREATE TABLE IF NOT EXISTS answers (key PRIMARY KEY, value);
CREATE TABLE IF NOT EXISTS spent (one PRIMARY KEY, cost); INSERT OR IGNORE INTO spent VALUES (1, 0.0);"""


class ServerError(RuntimeError):
    """The server cannot be used, or not within the budget; the message says what to do. Answers that came are kept."""


class Request(NamedTuple):
    prompt: str
    images: tuple[bytes, ...] = ()          # PNG or JPEG files, sent before the text
    schema: type[BaseModel] | None = None   # asks for JSON that fits it
    samples: int = 1                        # completions wanted
    seed: int = 0
    temperature: float = 0.0


class Reply(NamedTuple):
    texts: tuple[str, ...]                  # one a sample; reasoning in front as <think>..</think>
    values: tuple[BaseModel, ...]           # one a sample when the request has a schema
    error: str = ""                         # why there is no answer: then texts and values are empty


class Estimate(NamedTuple):
    requests: int
    distinct: int                           # completions
    cached: int                             # of these; the next three are for the others
    tokens_in: int                          # a guess: 3 bytes of text (English: 4), 28 x 28 pixels; n counted n times
    tokens_out: int                         # at most
    cost: float                             # at most
    spent: float                            # by this cache until now


@cache
def _format(schema: type[BaseModel]) -> dict:
    """Its response_format; strict: every field required, no others."""
    import openai
    tool = openai.pydantic_function_tool(schema)["function"]
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": tool.pop("parameters"), **tool}}}


def sample_keys(request: Request, model: str, max_tokens: int) -> dict[int, str]:
    """Seed -> key in the cache, of each sample."""
    images, seeds = map(hashlib.sha256, request.images), range(request.seed, request.seed + request.samples)
    common = json.dumps([request.prompt, [image.hexdigest() for image in images], model, float(request.temperature),
                         max_tokens, request.schema and _format(request.schema)])
    return {seed: hashlib.sha256(f"{common}{seed}".encode()).hexdigest() for seed in seeds}


def json_value(text: str, schema: type[BaseModel]) -> BaseModel:
    """The last JSON object behind the reasoning; prose and fences may surround it. ValueError if it does not fit."""
    body, start, found = text.rpartition("</think>")[2], 0, ""
    while (start := body.find("{", start)) >= 0:
        try:
            start, found = (end := json.JSONDecoder().raw_decode(body, start)[1]), body[start:end]
        except (ValueError, RecursionError):
            start += 1
    return schema.model_validate_json(found)


def _read(choice: dict, schema: type[BaseModel] | None) -> str:
    """Its text. Raises ValueError for an answer that is empty, filtered, or JSON that is cut or does not fit."""
    message, end = choice["message"], choice.get("finish_reason")
    text, reasoning = message.get("content") or "", message.get("reasoning_content") or message.get("reasoning")
    if not (text or reasoning) or end in ("content_filter", "abort") or (end == "length" and schema):
        raise ValueError(f"no whole answer: finish_reason {end!r} ('length': server.max_tokens is too small)")
    if reasoning and "<think>" not in text:
        text = f"<think>{reasoning}{'' if end == 'length' and not text else '</think>'}{text}"
    _ = schema and json_value(text, schema)
    return text


def _picture(image: bytes) -> tuple[str, int]:
    """(data URL, tokens by guess). Raises ValueError for what is neither PNG nor JPEG."""
    from PIL import Image
    with suppress(OSError), Image.open(BytesIO(image), formats=("PNG", "JPEG")) as picture:
        url = f"data:{picture.get_format_mimetype()};base64,{base64.b64encode(image).decode()}"
        return url, ceil(picture.width / 28) * ceil(picture.height / 28)
    raise ValueError(f"an image is neither PNG nor JPEG, it starts with {image[:12]!r}; pass the bytes of such a file")


class Client:
    """One model behind a server, and its cache; the server's key is read here, from settings.key_variable."""

    def __init__(self, server: Server, model: str, cache: Path):
        import openai  # noqa: F401  takes a second: here, not in the first request
        if not (server.url or "").startswith(("http://", "https://")):
            raise ServerError(f"server.url is {server.url!r}, no http://.../v1: there is no model\n  start one: vllm "
                              "serve <model>, or python -m fundus_lib.serving <folder>; put its url in the profile")
        self.server, self.model, self.cache, self.does_n = server, model, Path(cache), True
        self._hide = (key, "***") if (key := os.environ.get(server.key_variable, "").strip()) else ("", "")
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        self._open().close()

    def _open(self) -> sqlite3.Connection:
        base = sqlite3.connect(self.cache, timeout=60, check_same_thread=False, isolation_level=None)
        return base.executescript(TABLES).connection

    def _most(self, request: Request, samples: int) -> tuple[int, int, float]:
        """Tokens in, tokens out and cost at most; see Estimate for the guess."""
        text = request.prompt + (json.dumps(_format(request.schema)) if request.schema else "")
        tokens = ceil(len(text.encode()) / 3) + sum(_picture(image)[1] for image in request.images) + 16  # template
        tokens_in, tokens_out = tokens * samples, self.server.max_tokens * samples
        return tokens_in, tokens_out, (tokens_in * self.server.price_in + tokens_out * self.server.price_out) / 1e6

    def _find(self, base: sqlite3.Connection, requests: Sequence[Request]) -> tuple[list[dict[int, str]], dict, list]:
        """Keys of each request; {key: (text, value, prompt tokens)} if cached, else [(request, keys)], once."""
        plan, known, jobs, seen = [], {}, [], set()
        for request in requests:
            [_picture(image) for image in request.images]
            plan.append(keys := sample_keys(request, self.model, self.server.max_tokens))
            for key in keys.values():
                for value, in base.execute("SELECT value FROM answers WHERE key = ?", (key,)):
                    with suppress(ValueError):  # of a validator that was changed since: ask again
                        text, tokens = json.loads(value)
                        known[key] = text, request.schema and json_value(text, request.schema), tokens
            new = {seed: key for seed, key in keys.items() if key not in seen and key not in known}
            seen.update(new.values())
            jobs += [(request, new)] if new else []
        return plan, known, jobs

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """What `ask` would send, and the most that it would cost."""
        with closing(self._open()) as base:
            plan, known, jobs = self._find(base, requests)
            spent = base.execute("SELECT cost FROM spent").fetchone()[0]
        most = [(0, 0, 0.0), *(self._most(request, len(keys)) for request, keys in jobs)]
        totals, distinct = map(sum, zip(*most, strict=True)), {key for keys in plan for key in keys.values()}
        return Estimate(len(plan), len(distinct), len(known), *totals, spent)

    def ask(self, requests: Sequence[Request], desc: str) -> list[Reply]:
        """The replies, in order; only what the cache lacks is asked, each distinct sample once.
        A request that fails for good gets a Reply with an error, and is tried again by the next call. Raises
        ServerError when the server is down or the budget used up, ValueError for what is no image."""
        with closing(self._open()) as base, ThreadPoolExecutor(1) as pool:  # notebooks run a loop
            run, jobs = _Run(self, base), self._find(base, requests)[2]
            future = pool.submit(asyncio.run, run.work(jobs, desc)) if jobs else pool.submit(int)
            try:
                future.result()
            finally:
                with suppress(RuntimeError, AttributeError):  # after Ctrl-C; else it has ended or there was none
                    run.loop.call_soon_threadsafe(run.task.cancel)
            plan, known, left = self._find(base, requests)
        if run.stop:
            cost = sum(self._most(request, len(keys))[2] for request, keys in left)
            raise ServerError(f"{run.stop}\n  {len(left)} requests are left, at most {cost:g} to pay; run the same "
                              f"command (make ...) again: {self.cache} keeps what is answered".replace(*self._hide))
        errors = [next((run.failed[key] for key in keys.values() if key not in known), "") for keys in plan]
        found = [[known[key] for key in keys.values() if not error] for keys, error in zip(plan, errors, strict=True)]
        return [Reply(tuple(row[0] for row in rows), tuple(row[1] for row in rows if row[1] is not None), error)
                for rows, error in zip(found, errors, strict=True)]

    def check_image_arrives(self) -> None:
        """Asks, past the cache, one question with and without a red square. Raises ServerError when that adds no tokens
        to the prompt or, without `usage`, changes no answer: transformers drops images if it finds but a tokenizer."""
        from PIL import Image
        Image.new("RGB", (224, 224), (200, 0, 0)).save(file := BytesIO(), "png")
        request = Request("Is the image red, green or blue?", seed=random.randrange(2 ** 31))
        pair = [request, request._replace(images=(file.getvalue(),))]
        error = next((reply.error for reply in self.ask(pair, "check the image") if reply.error), "")
        with closing(self._open()) as base:
            seen = list(self._find(base, pair)[1].values())
        what = 2 if all(tokens for _, _, tokens in seen) else 0
        if error or seen[0][what] == seen[1][what]:
            raise ServerError(f"{self.server.url} shows {self.model} no images: {error or 'same without'}\n  does "
                              "its folder have a preprocessor_config.json?".replace(*self._hide))


class _Run:
    """One `ask`: a task for each job; in_flight of them hold a slot, none while it waits to try again."""

    def __init__(self, client: Client, base: sqlite3.Connection):
        self.client, self.server, self.base, self.failed, self.stop = client, client.server, base, {}, ""
        self.flying, self.streak, self.tokens, self.resume_at = 0, 0, 0, 0.0

    async def work(self, jobs: list[tuple[Request, dict[int, str]]], desc: str) -> None:
        import openai
        self.loop, self.task, self.hide = asyncio.get_running_loop(), asyncio.current_task(), self.client._hide
        self.slots = asyncio.Semaphore(self.server.in_flight)
        api = openai.AsyncOpenAI(api_key=self.hide[0] or "unset", base_url=self.server.url, max_retries=0, timeout=None)
        try:
            with tqdm(total=sum(len(keys) for _, keys in jobs), desc=desc, unit="answer") as self.bar:
                async with api as self.api, asyncio.TaskGroup() as self.group:
                    for job in jobs:
                        async with self.slots:  # first come, first served: who tries again goes before the rest
                            self.group.create_task(self.settle(*job))
                            await asyncio.sleep(0)
        except* ServerError as errors:
            self.stop = str(errors.exceptions[0])

    def alone(self, request: Request, keys: dict[int, str], unusable: int) -> None:
        [self.group.create_task(self.settle(request, {seed: key}, unusable)) for seed, key in keys.items()]

    async def settle(self, request: Request, keys: dict[int, str], unusable: int = 0) -> None:
        """Samples {seed: key}, to answers or failures, after so many unusable answers. ServerError stops all others."""
        several, limit = len(keys) > 1, inf if self.server.budget is None else self.server.budget
        cost = self.client._most(request, len(keys))[2]
        for tries in range(1, TRIES + 1):
            async with self.slots:
                await asyncio.sleep(self.resume_at - self.loop.time())
                if several and not (self.client.does_n and max(keys) - min(keys) < len(keys)):
                    return self.alone(request, keys, unusable)
                while not self.spend(cost, limit):
                    if not self.flying:  # what is in flight may cost less than is booked for it
                        raise ServerError(f"server.budget ({limit:g}) has no room for a request of {cost:g}: raise it")
                    await asyncio.sleep(0.05)
                self.flying += 1
                choices, used, (reason, status, wait) = await self.send(request, keys, unusable)
                self.flying -= 1
                if used:
                    self.spend((used[0] * self.server.price_in + used[1] * self.server.price_out) / 1e6 - cost)
                if choices:
                    return self.arrived(request, keys, unusable, choices, *used or (None, 0))
                if status in AT_FAULT and several:
                    return self.alone(request, keys, unusable)  # perhaps it is n that the server refuses
                self.streak += status not in AT_FAULT
                rounds, rest = divmod(self.streak, max(self.server.in_flight, 4))
                if rounds == ROUNDS:
                    raise ServerError(f"{self.server.url} does not answer, {self.streak} times: {reason}; start it: "
                                      f"vllm serve {self.client.model}, or python -m fundus_lib.serving <folder>")
                if rest == 0 < rounds:  # every request in flight failed in turn: all wait
                    self.resume_at = self.loop.time() + min(LONGEST_WAIT, PAUSE * 2 ** (rounds - 1))
                if tries == TRIES or (status and status not in TEMPORARY):
                    return self.give_up(keys, reason)
            await asyncio.sleep(min(LONGEST_WAIT, wait or PAUSE * 2 ** (tries - 1) * random.uniform(0.5, 1)))

    async def send(self, request: Request, keys: dict, unusable: int) -> tuple[list[dict], tuple | None, tuple]:
        """One try: choices, tokens in and out (None: unknown), or else a reason, HTTP status and seconds to wait."""
        import openai
        (prompt, images, schema, *_, temperature), text = request, ""
        content = [{"type": "image_url", "image_url": {"url": _picture(image)[0]}} for image in images]
        body = {"model": self.client.model, "max_tokens": self.server.max_tokens, "temperature": temperature,
                "messages": [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}],
                "seed": min(keys) + RESEED * unusable, **({"n": len(keys)} if len(keys) > 1 else {}),
                **(_format(schema) if schema else {})}
        try:
            async with asyncio.timeout(self.server.timeout_seconds):  # of the whole, however slowly it trickles in
                # not chat.completions.create: walking through the types of the body took a third of the client's time
                text = await self.api.post("/chat/completions", cast_to=str, body=body)
            reply = json.loads(text := text.replace(*self.hide))
            choices, usage = sorted(reply["choices"], key=lambda choice: choice.get("index", 0)), reply.get("usage")
            [(choice["message"].get("content") or "") + "" for choice in choices or [{}]]  # or one of the last errors
            return choices, usage and (int(usage["prompt_tokens"]), int(usage["completion_tokens"])), ("", 0, 0)
        except openai.APIStatusError as error:
            reply, code = error.response, error.status_code
            said, wait = reply.text.replace(*self.hide)[:200], reply.headers.get("Retry-After", "")
            return [], (0, 0), (f"HTTP {code} {said!r}", code, float(wait) if wait.replace(".", "", 1).isdigit() else 0)
        except (openai.APIConnectionError, TimeoutError) as error:
            reason = type(error.__cause__ or error).__name__  # its message may hold the whole request
            return [], (0, 0) if reason.startswith("Connect") else None, (reason, 0, 0)
        except (ValueError, LookupError, TypeError, AttributeError):
            return [], None, (f"HTTP 200 without a completion: {text[:200]!r}", 0, 0)

    def arrived(self, request, keys, unusable, choices: list[dict], tokens_in: int | None, tokens_out: int) -> None:
        """Keep what can be used, ask again for the rest."""
        self.streak, self.tokens = 0, self.tokens + tokens_out
        if rest := dict(list(keys.items())[len(choices):]):  # fewer than n
            self.client.does_n = False
            self.alone(request, rest, unusable)
        for (seed, key), choice in zip(keys.items(), choices, strict=False):
            try:
                value = json.dumps([_read(choice, request.schema), tokens_in])
                self.base.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, value))
                self.bar.update()
            except ValueError as error:
                more, one = unusable + 1 < UNUSABLE, {seed: key}
                self.alone(request, one, unusable + 1) if more else self.give_up(one, str(error))
        self.bar.set_postfix_str(f"{self.tokens / (self.bar.format_dict['elapsed'] or 1):.0f} tokens/s", refresh=False)

    def spend(self, cost: float, limit: float = inf) -> bool:
        """Book a cost unless it exceeds the limit: one statement, since other processes book in the same row."""
        update = "UPDATE spent SET cost = cost + ?1 WHERE cost + ?1 <= ?2"
        return self.base.execute(update, (cost, limit + 1e-9)).rowcount == 1

    def give_up(self, keys: dict[int, str], reason: str) -> None:
        self.failed |= dict.fromkeys(keys.values(), " ".join(reason.split())[:300])


class StageClient(Client):
    """The client of a stage: says what it will ask before it does, and raises ServerError when more than one request in
    a hundred has no answer, for no result shall be built on what is left when a server fails."""

    def ask(self, requests: Sequence[Request], desc: str) -> list[Reply]:
        plan = self.estimate(requests)
        if plan.tokens_in:
            print(f"{desc}: {plan.distinct - plan.cached:,} answers to ask for ({plan.cached:,} are there): at most "
                  f"{plan.tokens_in:,} tokens in, {plan.tokens_out:,} out, cost {plan.cost:g} (spent {plan.spent:g})")
        replies = super().ask(requests, desc)
        failed = [reply.error for reply in replies if reply.error]
        if len(failed) > len(replies) / 100:
            raise ServerError(f"{desc}: {len(failed)} of {len(replies)} requests failed, the first with: {failed[0]}\n"
                              "  run the same command again: only these are asked")
        return replies


def connect(server: Server, model: str | None, *, sees: bool = False) -> StageClient:
    """The client of a run; all runs share one cache of answers, in FUNDUS_CACHE or ~/.cache/fundus_lab. sees: make sure
    that images arrive. ServerError when the profile names no server or model, or the server drops images."""
    from fundus_lib.data.records import cache_folder
    if not model:
        raise ServerError("the profile asks a model and names none\n  set server.text_model and server.vision_model")
    client = StageClient(server, model, cache_folder() / "answers.sqlite")
    if sees:
        client.check_image_arrives()
    return client
