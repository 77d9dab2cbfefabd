"""`make drills`: work is killed (SIGKILL) at 50 random moments and must end complete, with nothing asked twice but what
was in hand at a kill. Writes papers_figs/recorded/drills.csv."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import tqdm

from fundus_lib import settings
from fundus_lib.runs import ROOT

RECORD = ROOT / "papers_figs/recorded/drills.csv"
KILLS, LONGEST = 50, 0.3      # seconds from the first call of a life to its end, at most
ASKS = """
import sys, json
from fundus_lib.client import Client, Request
from fundus_lib.settings import Server
client = Client(Server(**json.loads(sys.argv[1])), "model", sys.argv[2])
client.ask([Request(f"question {i}") for i in range(int(sys.argv[3]))], "ask")
"""


def forked(work: Callable[[], None]) -> int:
    """The process id of a child that does the work: torch and the model are loaded once, by the parent."""
    if child := os.fork():
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    work()
    os._exit(0)


def lives(start: Callable[[], int], calls: Callable[[], int], desc: str) -> None:
    """Start a child `KILLS` times and kill it after its first calls, then once more and let it end."""
    lot = random.Random(0)
    for life in tqdm.tqdm(range(KILLS + 1), desc=desc, unit="life"):
        before, child, ended = calls(), start(), (0, 0)
        if life < KILLS:
            while calls() == before and ended == (0, 0):
                time.sleep(0.002)
                ended = os.waitpid(child, os.WNOHANG)
            if ended == (0, 0):
                time.sleep(lot.uniform(0, LONGEST))
                os.kill(child, signal.SIGKILL)
        if ended == (0, 0):
            ended = os.waitpid(child, 0)
    if ended[1]:
        raise RuntimeError(f"{desc}: the last life ended with status {ended[1]}")


def sharded(function: Callable, table: pd.DataFrame, by: str, desc: str) -> dict:
    """`function` over the shards of `table`, against the same in one go; in hand at a kill is one shard."""
    from fundus_lib.shards import map_shards, shard_of

    cut = settings.load("cpu").shards.model_copy(update={"count": len(table)})
    largest = table[by].map(lambda name: shard_of(name, len(table))).value_counts().max()
    with tempfile.TemporaryDirectory() as folder:
        log, shards = Path(folder) / "log", Path(folder) / "shards"
        log.touch()

        def logged(part: pd.DataFrame) -> pd.DataFrame:
            with log.open("a") as file:
                file.write("".join(f"{name}\n" for name in part[by]))
            return function(part)

        lives(lambda: forked(lambda: map_shards(logged, table, shards, cut, by)), lambda: log.stat().st_size, desc)
        calls = log.read_text().count("\n")
        done = map_shards(logged, table, shards, cut, by)
        function(table).to_parquet(f"{folder}/whole.parquet")  # as the shards are written and read
        whole, order = pd.read_parquet(f"{folder}/whole.parquet"), list(done.columns[:2])
    done, whole = (rows.sort_values(order, ignore_index=True).astype(str) for rows in (done, whole))
    return {"what": desc, "kills": KILLS, "items": len(table), "repeated": calls - len(table),
            "in hand at the kills, at most": KILLS * int(largest), "rows lost": len(whole) - len(done),
            "rows wrong": int((done != whole).any(axis=1).sum()) if len(done) == len(whole) else len(done)}


def client(questions: int = 2000, in_flight: int = 8) -> dict:
    """The client against a server that says 429 to 5 %: what a killed life had in flight is asked again."""
    from faulty_server import FaultyServer

    from fundus_lib.client import Client, Request

    with tempfile.TemporaryDirectory() as folder, FaultyServer(delay=0.02) as server:
        section = settings.load("cpu").server.model_copy(update={"url": server.url, "in_flight": in_flight})
        order = [sys.executable, "-c", ASKS, section.model_dump_json(), f"{folder}/answers.sqlite", str(questions)]
        lives(lambda: subprocess.Popen(order, stderr=subprocess.DEVNULL, cwd=ROOT).pid, lambda: len(server.bodies),
              "client")
        calls = len(server.bodies)
        replies = Client(section, "model", Path(folder) / "answers.sqlite").ask(
            [Request(f"question {i}") for i in range(questions)], "read back")
        asked_again = len(server.bodies) - calls
    return {"what": "client", "kills": KILLS, "items": questions, "repeated": calls - questions,
            "in hand at the kills, at most": KILLS * in_flight, "rows lost": asked_again,
            "rows wrong": sum(reply.texts != (f"question {i} #0",) for i, reply in enumerate(replies))}


def voting(images: int = 150) -> dict:
    """The vote of notebook 03 by the recorded small model on drawn images."""
    from fundus_lib import answering, extraction, knowledge, perception, world

    section = settings.load("cpu").voting.model_copy(update={"batch_size": 4})
    _, words = knowledge.build([("Moderate NPDR", "CFP")])
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(images):
            drawing = world.draw(rng, "CFP", world.random_findings(rng, "CFP"), camera="clinic", height=192)
            drawing.image.save(Path(folder) / f"{i}.png")
        records = pd.DataFrame([{"id": f"eye {i}", "path": f"{i}.png", "split": "train", "labels": ["Moderate NPDR"],
                                 "modality": "CFP", "masks": [], "dataset": "drawn"} for i in range(images)])
        seer, finder = answering.placed(perception.RECORDED), perception.known_findings(perception.RECORDED)
        return sharded(lambda part: extraction.find_findings(*seer, part, words, finder, Path(folder), section, 0),
                       records, "id", "voting")


def traces(repeats: int = 12) -> dict:
    """Writing and checking the traces of notebook 04, for every pair that has a page."""
    from fundus_lib import knowledge, trace_writer

    rows, seen = [], []
    for number, (label, modality) in enumerate(sorted(knowledge.pairs()) * repeats):
        rows.append({"id": f"{number}/L4b", "record_id": f"{number}", "split": "train", "level": "L4b", "label": label,
                     "modality": modality, "options": [], "answer_text": label, "finding": None, "question": "Which?",
                     "path": ""})
        seen += [{"record_id": f"{number}", "finding": name, "kept": True}
                 for name in knowledge.vocabulary(label, modality).required]
    found, section = pd.DataFrame(seen), settings.load("paper").traces.model_copy(update={"writer": "grammar"})
    return sharded(lambda part: trace_writer.build(part, found, section), pd.DataFrame(rows), "id", "traces")


if __name__ == "__main__":
    tqdm.tqdm.monitor_interval = 0  # its thread would not survive a fork
    import torch

    torch.set_num_threads(1)
    table = pd.DataFrame([client(), voting(), traces()])
    table.to_csv(RECORD, index=False)
    print(table.to_string(index=False), f"\n-> {RECORD}")
