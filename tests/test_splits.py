"""The leakage audit: hashes compared in blocks, benchmark images against records, thresholds on real photographs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fundus_lib.data import splits
from fundus_lib.data.records import fingerprint

REAL = Path(__file__).parents[2] / "shared" / "real"


def flipped(bits: int) -> str:
    """A 256-bit hash that differs from all zeros in `bits` bits."""
    return f"{(1 << bits) - 1:064x}"


@pytest.mark.parametrize("block", [1, 3, 4096])
def test_near_finds_what_comparing_bit_by_bit_finds(monkeypatch, block):
    monkeypatch.setattr(splits, "BLOCK", block)
    rng = np.random.default_rng(0)
    a = [f"{int.from_bytes(rng.bytes(32), 'big'):064x}" for _ in range(7)]
    b = [f"{int(h, 16) ^ int(flipped(k), 16):064x}" for k, h in enumerate(a)]  # k bits away from its original
    expected = {(i, j, d) for i, x in enumerate(a) for j, y in enumerate(b)
                if (d := (int(x, 16) ^ int(y, 16)).bit_count()) <= 4}
    assert {tuple(row) for row in splits.near(a, b, 4).to_numpy()} == expected == {(k, k, k) for k in range(5)}


def test_overlap_names_what_a_benchmark_shares_with_the_records():
    records = pd.DataFrame({"id": list("abcd"), "dataset": "X", "split": "train", "sha256": list("1234"),
                            "phash": [flipped(0), "f" * 64, "0f" * 32, "00ff" * 16]})
    images = pd.DataFrame({"benchmark": "FunBench", "path": list("pqrs"), "sha256": ["1", "9", "8", "7"],
                           "phash": [flipped(0), f"{(1 << 256) - 1 - 7:064x}",
                                     f"{int('0f' * 32, 16) ^ int(flipped(30), 16):064x}", "3333" * 16]})
    found = splits.overlap(records, images).set_index("id")
    assert found.kind.to_dict() == {"a": "file", "b": "photograph", "c": "eye"}
    assert found.distance.to_dict() == {"a": 0, "b": 3, "c": 30}
    assert splits.overlap(records, images.tail(1)).empty               # unrelated: 128 bits away or more


def test_threshold_table_counts_by_hand():
    table = splits.threshold_table([0, 5, 30, 8, 60], [True, True, True, False, False], limits=[4, 10, 40])
    assert table.found.to_list() == [1, 2, 3] and table.false.to_list() == [0, 1, 1]
    assert table.precision.round(2).to_list() == [1.0, 0.67, 0.75]
    assert table.recall.round(2).to_list() == [0.33, 0.67, 1.0]


@pytest.mark.skipif(not REAL.exists(), reason="needs the real photographs beside the checkout")
def test_real_photographs_are_told_apart():
    """All copies among 541 real photographs are found, and no pair of different ones is called the same."""
    files = [file for name in ("IDRiD", "HRF/images", "RFMiD", "CHASEDB1") for file in sorted((REAL / name).rglob("*"))
             if file.suffix.lower() in (".jpg", ".png") and "HO" not in file.name and "Groundtruth" not in str(file)]
    known = pd.read_csv(REAL / "IDRiD_overlap_A_to_B.csv")
    named = {frozenset(pair) for pair in zip(known.A_image, known.B_image, strict=True)}
    prints = [fingerprint(file) for file in files]
    pairs = splits.near([p for _, p in prints], [p for _, p in prints], splits.SAME_PHOTOGRAPH).query("a < b")
    listed, again = set(), {}
    for a, b in zip(pairs.a, pairs.b, strict=True):
        pair = frozenset((files[a].stem, files[b].stem))
        (listed.add(pair) if pair in named else again.setdefault(pair, (prints[a][0], prints[b][0])))
    assert len(listed) == 57                                           # of the 60 known, those that are in this sample
    identical = {pair for pair, (a, b) in again.items() if a == b}
    assert len(identical) == 5                                         # the same file twice in part B
    # The rest are copies of those twins: a third name of a photograph. A pair of other photographs would be false.
    third = {name for pair in identical for name in pair}
    false = [pair for pair in set(again) - identical if not pair & third]
    assert len(files) == 541 and not false
