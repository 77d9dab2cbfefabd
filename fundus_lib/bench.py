"""What the data layer costs, measured on this machine: python -m fundus_lib.bench   (papers_figs/recorded/bench.csv)

Absolute figures depend on the machine and its load, which is why they are measured here and never asserted in a test.
"""

import io
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from PIL import Image
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


if __name__ == "__main__":
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout
    table = pd.DataFrame([*loading(), imports(), *leakage()])
    table = table.assign(machine=f"{os.cpu_count()} cores, {platform.machine()}", commit=commit.strip())
    table.to_csv(RECORD, index=False)
    print(table.drop(columns=["machine", "commit"]).round(2).to_string(index=False), f"\n-> {RECORD}")
