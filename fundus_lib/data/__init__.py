"""Fundus public data sets as one table: what lies on disk after unpacking is read, problems keep their reasons."""

import difflib
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from tqdm import tqdm

from fundus_lib.data.catalogue import DataSet, catalogue, table2
from fundus_lib.data.readers import Inside, find, read
from fundus_lib.data.records import DataError, Problem, Record, check_whole, fingerprint, image_path, read_mask
from fundus_lib.data.splits import SAME_PHOTOGRAPH, close_pairs, drop_conflicts, duplicates, groups, hold_out, leakage

if TYPE_CHECKING:
    import datasets

__all__ = ["ANNOTATED", "CAMERAS", "DataError", "catalogue", "download_root", "drop_conflicts",
           "duplicates", "fingerprint", "hold_out", "image_path", "leakage", "load_dataset", "read_downloads",
           "read_mask", "status", "table2"]

# The lesions that annotators drew wherever an image of the set has masks.
ANNOTATED = {name: tuple(entry.annotated) for name, entry in catalogue().items() if entry.annotated}
CAMERAS = ("clinic", "screening")
FEW = 1000  # images that one process hashes about as soon as others have started


def load_dataset(name: str, root: str | Path) -> "datasets.Dataset":
    """Every readable labelled image of one data set; `root` is the unpacked download or a folder that holds it.
    Columns: id, image, modality, dataset, labels, split, patient, masks (finding, path). Images are checked by their
    first and last bytes; what is broken is left out with a warning. Raises ValueError for an unknown name,
    FileNotFoundError when nothing is there, DataError when it is there twice or not as published."""
    import datasets
    if name not in catalogue():
        near = difflib.get_close_matches(name, catalogue(), n=1, cutoff=0.4)
        raise ValueError(f"no data set {name!r} in the catalogue{f'; did you mean {near[0]!r}?' if near else ''}\n"
                         f"  there are: {', '.join(catalogue())}")
    entry = catalogue()[name]
    if entry.reader == "files" and not entry.images:
        raise DataError(f"{name} cannot be read: {entry.note}.\n  write `home`, `images` and `masks` of its entry in "
                        "fundus_lib/references/catalogue")
    homes = find(entry, Inside(root))
    if not homes:
        inside = ", ".join(sorted(item.name for item in Path(root).iterdir())[:8]) or "nothing"
        raise FileNotFoundError(f"no {name} in {root}; looked for: {entry.layout}\n  found: {inside}\n"
                                f"  unpack the official download of {name} there, folder names unchanged: {entry.url}")
    if len(homes) > 1:
        raise DataError(f"{name} lies at {' and at '.join(map(str, homes))}.\n  give one of them")
    records, problems = whole(entry, homes[0])
    if not records:
        raise FileNotFoundError(f"no image of {name} in {homes[0]} is readable and labelled: {problems[0].reason}\n"
                                f"  {problems[0].file}\n  unpack the whole official download of {name} there")
    if problems:
        warnings.warn(f"{name}: {len(problems)} problems, first: {problems[0].file}: {problems[0].reason}\n"
                      f"  list them:  fundus_lib.data.read_downloads({str(root)!r})[1]", stacklevel=2)
    text = datasets.Value("string")
    features = datasets.Features({
        "id": text, "image": datasets.Image(), "modality": text, "dataset": text, "labels": datasets.List(text),
        "split": text, "patient": text, "masks": datasets.List({"finding": text, "path": text})})
    rows = [placed(record, None, None) | {"image": {"path": str(record.path)}} for record in records]
    table = datasets.table.InMemoryTable.from_pylist(rows, schema=features.arrow_schema)  # encodes nothing: fast
    return datasets.Dataset(table)


def whole(entry: DataSet, home: Path) -> tuple[list[Record], list[Problem]]:
    """The records of a data set whose ids differ and whose files look whole, undecoded; and its problems."""
    records, problems = read(entry, home)
    kept: dict[str, Record] = {}
    for record in records:
        try:
            if record.id in kept:
                raise DataError(f"{record.id} is listed again, as {', '.join(record.labels)}: the first row counts")
            check_whole(record.path)
        except DataError as error:
            problems.append(Problem(entry.name, record.path, None, str(error)))
            continue
        kept[record.id] = record
    if not kept and not problems:
        problems = [Problem(entry.name, home, None, f"no picture as in {entry.layout}: half unpacked?")]
    return list(kept.values()), problems


def everything(inside: Inside) -> Iterator[tuple[str, Path, str | None, list[Record], list[Problem]]]:
    """(name, home, camera, records, problems) of what lies at most three folders below a root, no picture decoded.
    The camera, clinic or screening, is the first folder below the root in the embedded world."""
    seen = set()
    for name, home in [(name, home) for name, entry in catalogue().items() for home in find(entry, inside)]:
        camera = next((part for part in home.relative_to(inside.root).parts[:1] if part in CAMERAS), None)
        try:
            if (name, camera) in seen:
                raise DataError("a second copy of the data set: not read")
            yield name, home, camera, *whole(catalogue()[name], home)
        except (DataError, OSError) as error:
            yield name, home, camera, [], [Problem(name, home, None, str(error))]
        seen.add((name, camera))


def status(root: str | Path) -> pd.DataFrame:
    """One row a data set of the catalogue: dataset, found, images, labelled, masks, problems, where.
    where: its folders; or what was looked for and how to get it. Raises FileNotFoundError when `root` is no folder."""
    inside, found = Inside(root), {}
    for name, home, _, records, problems in everything(inside):
        numbers = [len(records), sum(bool(record.labels) for record in records),
                   sum(len(record.masks) for record in records), len(problems)]
        found.setdefault(name, []).append((home.relative_to(inside.root).as_posix(), *numbers))
    rows = [(name, name in found, *(sum(here[i] for here in found.get(name, ())) for i in range(1, 5)),
             ", ".join(here[0] for here in found.get(name, ()))
             or f"looked for {entry.layout}; get it ({entry.access}): {entry.url}{entry.note and f' ({entry.note})'}")
            for name, entry in catalogue().items()]
    return pd.DataFrame(rows, columns="dataset found images labelled masks problems where".split())


def prints(file: Path) -> tuple[str, str] | str:
    """fingerprint, or why there is none: an error of another process comes back as text."""
    try:
        return fingerprint(file)
    except DataError as error:
        return str(error)


def hashed(files: list[Path], workers: int | None) -> list[tuple[str, str] | str]:
    """`prints` of every file, decoded once, by `workers` processes (None: one for every core)."""
    bar = {"total": len(files), "desc": "decoding and hashing", "unit": "image", "leave": False, "mininterval": 2}
    if workers == 1 or len(files) < FEW:
        return list(tqdm(map(prints, files), **bar))
    with ProcessPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(prints, files, chunksize=32), **bar))


def read_downloads(root: str | Path, workers: int | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every known data set at most three folders below `root` as (records, problems: dataset, file, row, reason).
    records: id, path, dataset, modality, labels, split, patient, masks, laterality, sha256, phash, camera, group; paths
    are relative to `root`, of unpacked slices absolute. For copies see `share`. FileNotFoundError: nothing is there."""
    inside, problems, found, rows = Inside(root), [], [], []
    root = inside.root
    for _, _, camera, records, wrong in everything(inside):
        problems += wrong
        found += [(record, camera) for record in records]
    for (record, camera), known_by in zip(found, hashed([record.path for record, _ in found], workers), strict=True):
        if isinstance(known_by, str):
            problems.append(Problem(record.dataset, record.path, None, known_by))
        else:
            rows.append(placed(record, root, camera) | dict(zip(("sha256", "phash"), known_by, strict=True)))
    if not rows:
        reasons = "".join(f"\n  {problem.file}: {problem.reason}" for problem in problems)
        raise FileNotFoundError(f"no readable image of {', '.join(catalogue())} in {root}{reasons}\n"
                                "  unpack an official download there, folder names unchanged")
    records = share(pd.DataFrame(rows))
    by_id = records.set_index("id")
    for a, b, agree in duplicates(records).itertuples(index=False):
        verdict = "same labels" if agree else f"labels {by_id.labels[a]} here, {by_id.labels[b]} there"
        reason = f"same photograph as {by_id.path[b]}: {verdict}"
        problems.append(Problem(by_id.dataset[a], by_id.path[a], None, reason))
    said = [[str(cell).encode("utf-8", "backslashreplace").decode() for cell in (p.file, p.reason)] for p in problems]
    table = pd.DataFrame([(p.dataset, file.removeprefix(f"{root}/"), p.row, reason)
                          for p, (file, reason) in zip(problems, said, strict=True)], columns=Problem._fields)
    return records, table.astype({"row": "Int64"})


def placed(record: Record, root: Path | None, camera: str | None) -> dict:
    """The record as a row, its paths relative to `root` if given; the screening camera only takes test images."""
    start = f"{root}/" if root else ""
    return {**record._asdict(), "id": f"{camera}-{record.id}" if camera else record.id, "labels": list(record.labels),
            "masks": [{"finding": f, "path": str(path).removeprefix(start)} for f, path in record.masks],
            "path": str(record.path).removeprefix(start), "camera": camera,
            "split": "test" if camera == "screening" else record.split}


def share(records: pd.DataFrame) -> pd.DataFrame:
    """Add `group`; copies of one photograph get its masks, and copies without a diagnosis lose their labels.
    Neighbouring B-scans of a patient look alike: they are no copies."""
    masks, labels = records["masks"].to_list(), records["labels"].to_list()
    diagnosed = [not set(row.labels) <= set(ANNOTATED.get(row.dataset, ())) for row in records.itertuples()]
    patients = records["dataset"].where(records["patient"].notna()).str.cat(records["patient"]).to_numpy()
    for a, b, _ in close_pairs(records, SAME_PHOTOGRAPH).itertuples(index=False):
        if isinstance(patients[a], str) and patients[a] == patients[b]:
            continue
        masks[a] = masks[b] = masks[a] or masks[b]
        if diagnosed[a] != diagnosed[b]:
            labels[b if diagnosed[a] else a] = []
    return records.assign(masks=masks, labels=labels, group=groups(records))


def download_root(stage) -> Path:
    """The folder that the paths in 01_data's records start from: DATA, or the embedded world that 01_data drew."""
    if stage.data_root is not None:
        return stage.data_root
    own = stage.name == "01_data"
    return (stage.folder if own else stage.path("01_data", "records.parquet").parent) / "downloads"
