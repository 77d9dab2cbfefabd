"""One table worked through in shards: an interruption loses the shard in hand, and machines share the work.

A row's shard follows from its own id. Its result is one file, written whole or not at all, and not computed again."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from fundus_lib import runs


def shard_of(identity: str, count: int) -> int:
    """Which of `count` shards an id belongs to; the same on every machine."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") % count


def map_shards(function: Callable[[pd.DataFrame], pd.DataFrame], table: pd.DataFrame, folder: Path, settings,
               by: str = "id") -> pd.DataFrame:
    """function(part) of every shard of `table`, joined. settings: the section `shards`; by: the column of ids.
    Parts keep the order of the table. With the engine "local" this process takes one shard after the other; with "ray"
    Ray Data runs the same function wherever the cluster has room (`pip install -e .[ray]`; `folder` must be shared)."""
    if table.empty:
        return function(table)
    numbers = table[by].map(lambda identity: shard_of(identity, settings.count))
    parts = {folder / f"{number:05d}.parquet": part for number, part in table.groupby(numbers)}
    todo = [{"file": file, "part": part} for file, part in parts.items() if not file.exists()]

    def work(row: dict) -> dict:
        runs.write(row["file"], function(row["part"]))
        return {"file": str(row["file"])}

    if settings.engine == "ray" and todo:
        import ray.data  # an extra: a laptop does without
        ray.data.from_items(todo, override_num_blocks=len(todo)).map(work, num_gpus=settings.gpus_each).materialize()
    else:
        for row in tqdm(todo, desc=folder.name, unit="shard", initial=len(parts) - len(todo), total=len(parts)):
            work(row)
    return pd.concat([runs.read(file) for file in parts], ignore_index=True)
