"""Which images show the same photograph, eye or patient, and splits that none of them crosses.

Distances of perceptual hashes (256 bits), measured on IDRiD: the 57 photographs that parts A and B share differ in at
most 10 bits, two repeat shots of one eye in 22 and 38, all other pairs of its 479 images in 48 or more."""

import random
from collections.abc import Sequence

import numpy as np
import pandas as pd

SAME_PHOTOGRAPH = 20  # bits
SAME_EYE = 40
BLOCK = 4096  # hashes compared at once: 64 MiB of distances
SPLITS = ("train", "val", "test")


def near(a: Sequence[str], b: Sequence[str], limit: int) -> pd.DataFrame:
    """Pairs of hashes (hex) that differ in at most `limit` bits: positions a, b, distance.
    With bits as +1 and -1 it is (bits - dot product) / 2: a matrix product compares BLOCK x BLOCK pairs, 11 ns each."""
    if not (len(a) and len(b)):
        return pd.DataFrame(columns=["a", "b", "distance"], dtype=int)
    signs = [np.unpackbits(np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8)).reshape(len(hashes), -1)
             .astype(np.float32) * 2 - 1 for hashes in (a, b)]
    found = [np.empty((0, 3), int)]
    for i in range(0, len(a), BLOCK):
        for j in range(0, len(b), BLOCK):
            product = signs[0][i:i + BLOCK] @ signs[1][j:j + BLOCK].T
            bits = signs[0].shape[1]
            x, y = np.nonzero(product >= bits - 2 * limit)
            found.append(np.stack([x + i, y + j, ((bits - product[x, y]) / 2).astype(int)], axis=1))
    return pd.DataFrame(np.concatenate(found), columns=["a", "b", "distance"])


def close_pairs(records: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Pairs of rows of one modality whose hashes differ in at most `limit` bits: positions a < b, distance."""
    found = []
    for position in records.groupby("modality").indices.values():
        hashes = records["phash"].iloc[position].to_list()
        pairs = near(hashes, hashes, limit).query("a < b")
        found.append(pairs.assign(a=position[pairs["a"]], b=position[pairs["b"]]))
    return pd.concat(found, ignore_index=True).sort_values(["a", "b"], ignore_index=True)


def groups(records: pd.DataFrame) -> np.ndarray:
    """A number per row; rows chained by the same photograph, eye or patient have the same one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    pairs = close_pairs(records, SAME_EYE)
    known = np.flatnonzero(records["patient"].notna())
    patient = records.groupby(["dataset", "camera", "patient"], dropna=False).ngroup().to_numpy()[known]
    # An image is linked to the images close to it, and to its patient (a node of its own behind the images).
    ends = np.concatenate([pairs["a"], known]), np.concatenate([pairs["b"], patient + len(records)])
    size = 2 * len(records)
    return connected_components(coo_array((np.ones(len(ends[0])), ends), shape=(size, size)))[1][: len(records)]


def duplicates(records: pd.DataFrame) -> pd.DataFrame:
    """Pairs of labelled copies of one photograph: id_a, id_b, agree (whether their labels do)."""
    labels, ids = records["labels"].map(frozenset).to_numpy(), records["id"].to_numpy()
    pairs = [(ids[a], ids[b], labels[a] == labels[b])
             for a, b, _ in close_pairs(records, SAME_PHOTOGRAPH).itertuples(index=False) if labels[a] and labels[b]]
    return pd.DataFrame(pairs, columns=["id_a", "id_b", "agree"]).astype({"agree": bool})


def drop_conflicts(records: pd.DataFrame) -> pd.DataFrame:
    """The records without the copies of one photograph that contradict each other: which label is right is unknown."""
    clash = duplicates(records).query("not agree")
    return records[~records["id"].isin([*clash["id_a"], *clash["id_b"]])].reset_index(drop=True)


def leakage(records: pd.DataFrame) -> pd.DataFrame:
    """Groups that lie in two splits, one row each: group, id_a, id_b, split_a, split_b, kind, distance (bits).
    a and b are the group's first images in either split; kind is what they share: file | photograph | eye | patient."""
    first = records.drop_duplicates(["group", "split"])[["group", "id", "split", "sha256", "phash"]]
    pairs = first.merge(first, on="group", suffixes=("_a", "_b"))
    pairs = pairs[pairs["split_a"] < pairs["split_b"]].reset_index(drop=True)
    pairs["distance"] = [(int(pair.phash_a, 16) ^ int(pair.phash_b, 16)).bit_count() for pair in pairs.itertuples()]
    pairs["kind"] = np.select([pairs["sha256_a"] == pairs["sha256_b"], pairs["distance"] <= SAME_PHOTOGRAPH,
                               pairs["distance"] <= SAME_EYE], ["file", "photograph", "eye"], "patient")
    return pairs[["group", "id_a", "id_b", "split_a", "split_b", "kind", "distance"]]


def overlap(records: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Records that a benchmark shows, too: id, dataset, split, benchmark, path, kind, distance in bits.
    images: one row a benchmark image: benchmark, path, sha256, phash. kind: they share file | photograph | eye."""
    pairs = near(records["phash"].to_list(), images["phash"].to_list(), SAME_EYE)
    ours, theirs = records.iloc[pairs["a"]], images.iloc[pairs["b"]]
    same = ours["sha256"].to_numpy() == theirs["sha256"].to_numpy()
    kind = np.select([same, pairs["distance"] <= SAME_PHOTOGRAPH], ["file", "photograph"], "eye")
    return pd.DataFrame({
        **{name: ours[name].to_numpy() for name in ("id", "dataset", "split")},
        **{name: theirs[name].to_numpy() for name in ("benchmark", "path")},
        "kind": kind, "distance": pairs["distance"]})


def threshold_table(distances: Sequence[int], copies: Sequence[bool], limits: Sequence[int]) -> pd.DataFrame:
    """What calling every pair within a limit "the same" would find: limit, found, false, precision, recall; of
    distances (bits) of pairs that are known to be copies or not."""
    distances, copies = np.asarray(distances), np.asarray(copies, bool)
    rows = [(limit, int((near := distances <= limit)[copies].sum()), int(near[~copies].sum())) for limit in limits]
    table = pd.DataFrame(rows, columns=["limit", "found", "false"])
    called = (table["found"] + table["false"]).clip(lower=1)
    return table.assign(precision=table["found"] / called, recall=table["found"] / max(1, copies.sum()))


def hold_out(records: pd.DataFrame, fraction: float, seed: int) -> pd.DataFrame:
    """The records with final splits: no group (photograph, eye, patient) on two sides.
    Labels without published test images give `fraction` of theirs, by whole groups drawn with `seed`; published test
    images stay, and what shares a group with one is dropped. A copy without labels goes where its labelled twin is."""
    labelled = records["labels"].map(len) > 0
    rank = records["split"].map(SPLITS.index).where(labelled, -1)
    stratum = records["dataset"] + "/" + records["camera"].fillna("") + "/" + records["labels"].str[0].fillna("")
    untested = labelled & (rank.groupby(stratum).transform("max") < 2)
    blocked = records["group"].isin(records["group"][rank == 2])
    drawn = draw_groups(records["group"][untested & ~blocked], stratum, fraction, seed)
    rank = rank.mask(records["group"].isin(drawn) & labelled, 2)
    final = rank.groupby(records["group"]).transform("max").clip(lower=0)
    return records.assign(split=[SPLITS[r] for r in final])[(rank == final) | ~labelled].reset_index(drop=True)


def draw_groups(group: pd.Series, stratum: pd.Series, fraction: float, seed: int) -> set:
    """Whole groups for the test set, about `fraction` of the images of every stratum. Both series share their index."""
    counts = stratum[group.index].groupby(group).value_counts()
    wanted = (counts.groupby(level=1).sum() * fraction).round()
    drawn, names = set(), sorted(group.unique())
    random.Random(seed).shuffle(names)
    for name in names:
        rest = wanted[counts[name].index] - counts[name]
        if (rest >= 0).all():
            drawn.add(name)
            wanted.update(rest)
    return drawn
