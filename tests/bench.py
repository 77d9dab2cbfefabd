"""What things cost, measured on this machine: `make bench`   (papers_figs/recorded/bench.csv)

Absolute figures depend on the machine and its load, which is why they are measured here and never asserted in a test.
"""

import io
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from bench_trainer import BENCH
from PIL import Image
from pydantic import BaseModel
from tqdm import tqdm

from fundus_lib.runs import ROOT

RECORD = ROOT / "papers_figs" / "recorded" / "bench.csv"
LOAD = """
import resource, sys, time
from fundus_lib.data import load_dataset
started = time.perf_counter()
assert len(load_dataset("UCSD", sys.argv[1])) == int(sys.argv[2])
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def python(*arguments: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def seconds(code: str) -> float:
    """Time of a fresh interpreter that executes `code`."""
    started = time.perf_counter()
    python("-c", code)
    return time.perf_counter() - started


def class_folders(root: Path, count: int) -> None:
    """A UCSD download of `count` B-scans: one small picture again and again, so that files and not pixels count."""
    picture = io.BytesIO()
    Image.new("L", (64, 48), 90).save(picture, "JPEG")
    for name in ("CNV", "DME", "DRUSEN", "NORMAL"):
        (root / "OCT2017" / "train" / name).mkdir(parents=True)
        for i in range(count // 4):
            file = root / "OCT2017" / "train" / name / f"{name}-{i // 20}-{i % 20}.jpeg"
            file.write_bytes(picture.getvalue())


def imports(pairs: int = 15) -> dict:
    """P13: importing fundus_lib.data against importing torch, interleaved; median ratio with a bootstrap interval."""
    ratios = np.array([seconds("import fundus_lib.data") / seconds("import torch")
                       for _ in tqdm(range(pairs), desc="imports", unit="pair")])
    resampled = np.median(np.random.default_rng(0).choice(ratios, (2000, pairs)), axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"what": "import fundus_lib.data / import torch", "value": median(ratios), "low": low, "high": high,
            "unit": "ratio", "target": "<= 1.15", "n": pairs}


def loading(count: int = 100_000) -> list[dict]:
    """load_dataset over class folders: seconds and peak memory of a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        class_folders(Path(folder), count)
        taken, peak = map(float, python("-c", LOAD, folder, str(count)).split())
    return [{"what": "load_dataset, class folders", "value": taken, "unit": "s", "target": "< 10", "n": count},
            {"what": "its peak memory", "value": peak, "unit": "MiB", "target": "< 1024", "n": count}]


def leakage(count: int = 20_000, pictures: int = 200) -> list[dict]:
    """Cost of the leakage audit: of a pair of hashes, and of decoding and hashing a 2 megapixel photograph."""
    from fundus_lib.data import fingerprint
    from fundus_lib.data.splits import near
    from fundus_lib.world import draw

    rng = np.random.default_rng(0)
    hashes = [rng.bytes(32).hex() for _ in range(count)]
    started = time.perf_counter()
    near(hashes, hashes, 40)
    pair = (time.perf_counter() - started) / count**2
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "eye.jpg"
        draw(rng, "CFP", (), camera="screening", height=1200).image.save(file, quality=92)
        started = time.perf_counter()
        for _ in range(pictures):
            fingerprint(file)
        image = (time.perf_counter() - started) / pictures
    return [{"what": "compare two hashes", "value": 1e9 * pair, "unit": "ns", "n": count**2},
            {"what": "170,000 x 100,000 hashes at that rate", "value": 1.7e10 * pair / 60, "unit": "min", "n": 0},
            {"what": "decode and hash a photograph", "value": 1000 * image, "unit": "ms", "n": pictures}]


def voting_speed(images: int, pairs: int = 15) -> list[dict]:
    """P3: five rollouts a drawn image in batches of `images`, against five calls for one each and against
    transformers' num_return_sequences=5, interleaved; median ratios with a bootstrap interval. One thread."""
    from fundus_lib import extraction, generation, perception, voting, world
    from fundus_lib import model as models

    model, processor = models.load_model(perception.RECORDED).eval(), models.load_processor(perception.RECORDED)
    rng, lot, shown, prompts, longest = np.random.default_rng(0), random.Random(0), [], [], 0
    for i in range(images * pairs):
        modality = perception.POOL[i % len(perception.POOL)]
        shown.append(world.draw(rng, modality, world.random_findings(rng, modality), camera="clinic").image)
        known = world.FINDINGS[modality]
        names = lot.sample(known, min(len(known), extraction.MOST_ASKED))
        prompts.append(voting.prompt(modality, names))
        longest = max(longest, len(processor.tokenizer(voting.format_votes(dict.fromkeys(names, True)))["input_ids"]))
    how = {"max_new_tokens": longest + 8, "batch_size": images, "temperature": 1.0}

    def ours(part: slice, rollouts: int, seed: int = 0) -> None:
        generation.generate(model, processor, shown[part], prompts[part], rollouts=rollouts, seed=seed, **how)

    @torch.no_grad()
    def theirs(part: slice, rollouts: int, seed: int = 0) -> None:
        turns = [generation.user_turn(generation.open_image(image), prompt)
                 for image, prompt in zip(shown[part], prompts[part], strict=True)]
        inputs = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True,
                                               processor_kwargs={"padding": True, "return_tensors": "pt"})
        torch.manual_seed(seed)
        out = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                             num_return_sequences=rollouts, max_new_tokens=how["max_new_tokens"])
        processor.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)

    ways = {"five votes at once": lambda part: ours(part, 5),
            "five calls": lambda part: [ours(part, 1, seed) for seed in range(5)],
            "five calls of transformers' generate": lambda part: [theirs(part, 1, seed) for seed in range(5)],
            "num_return_sequences=5": lambda part: theirs(part, 5)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    taken = {name: [] for name in ways}
    ours(slice(0, images), 5), theirs(slice(0, images), 1)  # warm
    for k in tqdm(range(pairs), desc=f"votes, {images} at once", unit="pair"):
        part = slice(k * images, (k + 1) * images)
        for name in lot.sample(list(ways), len(ways)):  # in a new order each time
            started = time.perf_counter()
            ways[name](part)
            taken[name].append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    once, rows = np.array(taken.pop("five votes at once")), []
    for (name, times), target in zip(taken.items(), (">= 3.5", ">= 3.5", ">= 1.3"), strict=True):
        ratios = np.array(times) / once
        resampled = np.median(np.random.default_rng(0).choice(ratios, (2000, pairs)), axis=1)
        low, high = np.percentile(resampled, [2.5, 97.5])
        rows.append({"what": f"{name} / five votes at once, batch {images}", "value": median(ratios), "low": low,
                     "high": high, "unit": "ratio", "target": target, "n": pairs})
    return [*rows, {"what": f"five votes at once, batch {images}", "value": 1000 * median(once) / images,
                    "unit": "ms/image", "n": pairs}]


FILLER = ("The image quality is fair and the field is centered on the posterior pole.", "The media are clear enough.",
          "No {b} is seen in quadrant {n}.", "Neither {a} nor {b} is found on view {n}.", "A {b} is expected in {o}.",
          "Possible {a} cannot be excluded near {n} o'clock.", "Unlike {o}, which shows {b}, this eye is different.",
          "About {n} small areas were weighed against the criteria before the decision.")


def distinct_traces(n: int, seed: int = 0) -> list[tuple[str, dict]]:
    """(trace of 40-80 words, its label, modality and findings), no two alike: written from K, then filled with negated,
    hedged and other-disease sentences; every fourth names another answer."""
    from fundus_lib import trace_writer
    from fundus_lib.knowledge import pairs, vocabulary
    from fundus_lib.lexicon import findings

    rng, names, table = np.random.default_rng(seed), list(findings()), sorted(pairs())
    made: dict[str, dict] = {}
    while len(made) < n:
        label, modality = table[rng.integers(len(table))]
        known = vocabulary(label, modality)
        pool = sorted(known.required | known.supportive) or names
        seen = [str(name) for name in rng.choice(pool, min(len(pool), int(rng.integers(1, 5))), replace=False)]
        text, more, goal = trace_writer.write_trace(label, modality, seen), [], rng.integers(40, 80)
        words = {"a": names[rng.integers(127)], "b": names[rng.integers(127)], "o": table[rng.integers(len(table))][0]}
        while len(f"{text} {' '.join(more)}".split()) < goal:
            more.append(FILLER[rng.integers(len(FILLER))].format(n=int(rng.integers(2, 1000)), **words))
        text = text.replace("</think>", " ".join(more) + " </think>")
        if rng.random() < 0.25:
            text = text.replace(f"<answer> {label}", f"<answer> {table[rng.integers(len(table))][0]}")
        made[text] = {"label": label, "modality": modality, "findings": seen}
    return list(made.items())


def judging(n: int = 2500) -> list[dict]:
    """P7: the rule judge on n distinct traces, one thread; its tables are loaded by 400 others."""
    from fundus_lib import rewards

    traces = distinct_traces(n + 400)
    for text, about in traces[n:]:
        rewards.judge_by_rules(text, **about)
    started = time.perf_counter()
    for text, about in traces[:n]:
        rewards.judge_by_rules(text, **about)
    rate = n / (time.perf_counter() - started)
    return [{"what": "rule judge, distinct traces", "value": rate, "unit": "traces/s", "target": ">= 2000", "n": n}]


def served_judging(requests: int = 1000, in_flight: int = 32, seconds: float = 0.2) -> list[dict]:
    """P8: the client and a server in its own process that takes `seconds` an answer, says 429 to 5 % and breaks the
    schema in 2 %; against a loop that asks one by one, measured on 50 requests."""
    from fundus_lib import settings
    from fundus_lib.client import Client, Request

    class Judgement(BaseModel):
        word: str
        number: int

    def timed(client: Client, asked: list[Request]) -> tuple[float, list]:
        started = time.perf_counter()
        replies = client.ask(asked, "judge")
        return time.perf_counter() - started, replies

    server = subprocess.Popen([sys.executable, str(ROOT / "tests/faulty_server.py"), "--delay", str(seconds),
                               "--faults", '{"429": 0.05, "schema": 0.02}'], stdout=subprocess.PIPE, text=True)
    try:
        section = settings.load("cpu").server.model_copy(update={"url": server.stdout.readline().strip()})
        with tempfile.TemporaryDirectory() as folder:
            one = Client(section.model_copy(update={"in_flight": 1}), "model", Path(folder) / "one.sqlite")
            many = Client(section.model_copy(update={"in_flight": in_flight}), "model", Path(folder) / "many.sqlite")
            single, _ = timed(one, [Request(f"JSON one {i}", schema=Judgement) for i in range(50)])
            asked = [Request(f"JSON {i}", schema=Judgement) for i in range(requests)]
            taken, replies = timed(many, asked)
            again, same = timed(many, asked)
    finally:
        server.kill()
        server.wait()
    wrong = sum([value.word for value in reply.values] != [request.prompt]
                for request, reply in zip(asked, replies, strict=True)) + (same != replies)
    return [{"what": "one by one / client with 32 in flight", "value": single * requests / 50 / taken, "unit": "ratio",
             "target": ">= 20", "n": requests},
            {"what": "share of the ideal rate", "value": requests * seconds / in_flight / taken, "unit": "ratio",
             "target": ">= 0.85", "n": requests},
            {"what": "wrong rows", "value": wrong, "unit": "rows", "target": "0", "n": requests},
            {"what": "asked again, all from the cache", "value": again / taken, "unit": "ratio", "target": "<= 0.02",
             "n": requests}]


def answering_speed(pairs: int = 6, batch: int = 64, setup: str = "G") -> list[dict]:
    """P11: the cpu run's model answers its own test questions one by one and in batches, interleaved; median ratio of
    processor time (one thread) with a bootstrap interval, and how many answers differ. Prompts are ragged, of all three
    benchmarks; two in three images are copies at another size or shape."""
    from fundus_lib import answering, benchmarks, data, evaluation, settings
    from fundus_lib.generation import open_image

    run, lot, section = ROOT / "runs" / "cpu", random.Random(0), settings.load("cpu").evaluation
    root, folder = run / "01_data" / "downloads", run / "06_grpo" / setup / "seed0"
    asked = benchmarks.read_all(run / "01_data" / "benchmarks", root).sample(pairs * batch, random_state=0)
    ratios, once, wrong = [], [], 0

    def timed(part: pd.DataFrame, size: int) -> tuple[float, pd.DataFrame]:
        started = time.process_time()
        said = answering.answer_questions(folder, part, section.model_copy(update={"batch_size": size}))
        return time.process_time() - started, evaluation.score_predictions(part, said)

    with tempfile.TemporaryDirectory() as copies:
        files = []
        for i, row in enumerate(asked.itertuples()):
            image = open_image(row.image if isinstance(row.image, bytes) else data.image_path(root, row.path))
            wide, high = lot.choice([(1, 1), (0.6, 0.6), (1.5, 0.9)])
            files.append(str(Path(copies) / f"{i}.png"))
            image.resize((round(image.width * wide), round(image.height * high))).save(files[-1])
        asked, threads = asked.assign(image=files), torch.get_num_threads()
        torch.set_num_threads(1)
        timed(asked[:2], 2)  # load and warm
        for k in tqdm(range(pairs), desc="answers, one by one and in batches", unit="pair"):
            part = asked[k * batch:(k + 1) * batch]
            found = {size: timed(part, size) for size in lot.sample([1, batch], 2)}  # in a new order each time
            ratios.append(found[1][0] / found[batch][0])
            once.append(found[batch][0])
            one, many = (found[size][1][["extracted", "status", "hit"]].fillna("") for size in (1, batch))
            wrong += int((one != many).any(axis=1).sum())
        torch.set_num_threads(threads)
    resampled = np.median(np.random.default_rng(0).choice(ratios, (2000, pairs)), axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return [{"what": f"one by one / batches of {batch}", "value": median(ratios), "low": low, "high": high,
             "unit": "ratio", "target": ">= 3", "n": pairs},
            {"what": f"answers in batches of {batch}", "value": len(asked) / sum(once), "unit": "questions/s",
             "n": len(asked)},
            {"what": "changed scores", "value": wrong, "unit": "answers", "target": "0", "n": len(asked)}]


if __name__ == "__main__":
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout
    table = pd.DataFrame([*loading(), imports(), *leakage(), *voting_speed(1), *voting_speed(32, 5), *judging(),
                          *served_judging(), *answering_speed(), *(row for make in BENCH.values() for row in make())])
    table = table.assign(machine=f"{os.cpu_count()} cores, {platform.machine()}", commit=commit.strip())
    table.to_csv(RECORD, index=False)
    print(table.drop(columns=["machine", "commit"]).round(2).to_string(index=False), f"\n-> {RECORD}")
