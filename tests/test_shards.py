"""Shards: the same rows whatever happens in between, each worked on once."""

import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from fundus_lib import settings
from fundus_lib.shards import map_shards, shard_of

CUT = settings.load("smoke").shards.model_copy(update={"count": 20})
TABLE = pd.DataFrame({"id": [f"eye {n}" for n in range(100)], "number": range(100)})
CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests")
from test_shards import CUT, TABLE, map_shards

def work(part):
    with open(sys.argv[2], "a") as log:
        log.write(part.id.str.cat(sep="\\n") + "\\n")
    time.sleep(0.02)
    return part.assign(square=part.number ** 2)

map_shards(work, TABLE, Path(sys.argv[1]), CUT)
"""


def squares(part):
    return part.assign(square=part.number ** 2)


def test_a_row_keeps_its_shard_when_others_come():
    assert all(0 <= shard_of(name, 20) < 20 for name in TABLE.id)
    assert shard_of("eye 7", 20) == shard_of("eye 7", 20) and len({shard_of(name, 20) for name in TABLE.id}) > 15


def test_all_rows_come_back_once(tmp_path):
    done = map_shards(squares, TABLE, tmp_path, CUT)
    assert done.set_index("id").square.sort_values().to_list() == [n ** 2 for n in range(100)]


def test_what_is_there_is_not_computed_again(tmp_path):
    first = map_shards(squares, TABLE, tmp_path, CUT)
    next(tmp_path.glob("*.parquet")).unlink()
    seen = []
    again = map_shards(lambda part: seen.append(len(part)) or squares(part), TABLE, tmp_path, CUT)
    pd.testing.assert_frame_equal(first, again)
    assert len(seen) == 1 and seen[0] < 20


def test_an_empty_table_has_the_columns(tmp_path):
    assert list(map_shards(squares, TABLE[:0], tmp_path, CUT)) == ["id", "number", "square"]


def test_killed_at_random_moments_nothing_is_lost_and_one_shard_repeated(tmp_path):
    """Each kill may repeat the one shard in hand: with 3 kills at most 3 times the rows of the largest shard."""
    lot, log = random.Random(0), tmp_path / "calls"
    log.touch()
    started = [sys.executable, "-c", CHILD, str(tmp_path / "shards"), str(log)]
    for _ in range(3):
        before = log.stat().st_size
        child = subprocess.Popen(started, stderr=subprocess.DEVNULL)
        while log.stat().st_size == before and child.poll() is None:  # importing takes longer than the work
            time.sleep(0.01)
        time.sleep(lot.uniform(0, 0.15))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    subprocess.run(started, check=True, stderr=subprocess.DEVNULL)
    done = map_shards(squares, TABLE, tmp_path / "shards", CUT)
    assert done.set_index("id").square.sort_values().to_list() == [n ** 2 for n in range(100)]
    calls = pd.Series(log.read_text().split("\n")[:-1])
    assert calls.nunique() == 100
    assert len(calls) - 100 <= 3 * pd.Series([shard_of(n, 20) for n in TABLE.id]).value_counts().max()


def test_ray_gives_the_same_rows(tmp_path):
    pytest.importorskip("ray.data", reason="an extra: pip install -e .[ray]")

    def work(part):  # local, so that it travels by value, as a function of a notebook does
        return part.assign(square=part.number ** 2)

    cut = CUT.model_copy(update={"count": 3})
    there = map_shards(work, TABLE, tmp_path / "cluster", cut.model_copy(update={"engine": "ray"}))
    pd.testing.assert_frame_equal(there, map_shards(work, TABLE, tmp_path / "here", cut))
