"""Public fundus data sets as one table: adapters read what lies on disk after unpacking, problems keep their reasons.

    load_dataset("IDRiD", folder)   one data set as datasets.Dataset
    read_downloads(folder)          every known data set below a folder: records, problems
"""

import difflib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from tqdm import tqdm

from fundus_lib.data import idrid, rfmid, top, ucsd
from fundus_lib.data.records import DataError, Problem, fingerprint, image_path, read_mask
from fundus_lib.data.splits import SAME_PHOTOGRAPH, close_pairs, drop_conflicts, duplicates, groups, hold_out, leakage

if TYPE_CHECKING:
    import datasets

__all__ = ["ADAPTERS", "ANNOTATED", "CAMERAS", "DataError", "download_root", "drop_conflicts", "duplicates",
           "fingerprint", "hold_out", "image_path", "leakage", "load_dataset", "read_downloads", "read_mask"]

ADAPTERS = {"IDRiD": idrid, "UCSD": ucsd, "RFMiD": rfmid, "TOP": top}
ANNOTATED = {"IDRiD": tuple(idrid.LESIONS.values())}  # what annotators drew wherever an image has masks
CAMERAS = ("clinic", "screening")


def load_dataset(name: str, root: str | Path) -> "datasets.Dataset":
    """Every readable labelled image of one data set; `root` is the unpacked download or a folder that holds it.

    Columns: id, image, modality, dataset, labels, split, patient, masks (finding, path); images load when asked for.
    What is broken is left out with a warning. Raises ValueError for an unknown name, FileNotFoundError when nothing of
    the data set is there, DataError when it is there twice or its label file is not the official one.
    """
    import datasets

    if name not in ADAPTERS:
        near = difflib.get_close_matches(name, ADAPTERS, n=1, cutoff=0.4)
        raise ValueError(f"no adapter for {name!r}{f'; did you mean {near[0]!r}?' if near else ''}\n"
                         f"  there are: {', '.join(ADAPTERS)}")
    homes = ADAPTERS[name].find(existing(root))
    if not homes:
        inside = ", ".join(sorted(entry.name for entry in Path(root).iterdir())[:8]) or "nothing"
        raise FileNotFoundError(f"no {name} in {root}; looked for: {ADAPTERS[name].find.__doc__}\n  found: {inside}\n"
                                f"  unpack the official download of {name} there, folder names unchanged")
    if len(homes) > 1:
        raise DataError(f"{name} lies at {' and at '.join(map(str, homes))}.\n  give one of them")
    rows, problems = read(name, homes[0])
    if not rows:
        raise FileNotFoundError(f"no image of {name} in {homes[0]} is readable and labelled: {problems[0].reason}\n"
                                f"  {problems[0].file}\n  unpack the whole official download of {name} there")
    if problems:
        warnings.warn(f"{name}: {len(problems)} problems, first: {problems[0].file}: {problems[0].reason}\n"
                      f"  list them:  fundus_lib.data.read_downloads({str(root)!r})[1]", stacklevel=2)
    text = datasets.Value("string")
    features = datasets.Features({
        "id": text, "image": datasets.Image(), "modality": text, "dataset": text, "labels": datasets.List(text),
        "split": text, "patient": text, "masks": datasets.List({"finding": text, "path": text})})
    table = [{key: row["path" if key == "image" else key] for key in features} for row in rows]
    return datasets.Dataset.from_list(table, features=features)


def existing(root: str | Path) -> Path:
    """The folder as an absolute path. Raises FileNotFoundError when it is none."""
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root} is not a folder.\n  give the folder that holds the unpacked downloads")
    return Path(root).absolute()


def read(name: str, home: Path) -> tuple[list[dict], list[Problem]]:
    """The readable images of the data set at `home` as rows with sha256 and phash, and its problems."""
    records, problems = ADAPTERS[name].read(home)
    rows: dict[str, dict] = {}
    for record in tqdm(records, desc=name, unit="image", leave=False, mininterval=2):
        try:
            if record.id in rows:
                raise DataError(f"{record.id} is listed again, as {', '.join(record.labels)}: the first row counts")
            sha256, phash = fingerprint(record.path)
        except DataError as error:
            problems.append(Problem(name, record.path, None, str(error)))
            continue
        masks = [{"finding": finding, "path": str(path)} for finding, path in record.masks]
        rows[record.id] = {**record._asdict(), "path": str(record.path), "labels": list(record.labels), "masks": masks,
                           "sha256": sha256, "phash": phash}
    return list(rows.values()), problems


def read_downloads(root: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every known data set at most three folders below `root` as (records, problems).

    records: id, path, dataset, modality, labels, split, patient, masks, laterality, sha256, phash, camera, group; paths
    are relative to `root`. Copies of one photograph share their masks; where only some of them carry a diagnosis, the
    others' labels are empty. problems: dataset, file, row, reason. Raises FileNotFoundError when nothing is there.
    """
    root, rows, problems, seen = existing(root), [], [], set()
    for name, home in [(name, home) for name, adapter in ADAPTERS.items() for home in adapter.find(root)]:
        camera = next((part for part in home.relative_to(root).parts[:1] if part in CAMERAS), None)
        try:
            if (name, camera) in seen:
                raise DataError("a second copy of the data set: not read")
            found, wrong = read(name, home)
        except DataError as error:
            found, wrong = [], [Problem(name, home, None, str(error))]
        seen.add((name, camera))
        problems += wrong
        rows += [placed(row, root, camera) for row in found]
    if not rows:
        reasons = "".join(f"\n  {problem.file}: {problem.reason}" for problem in problems)
        raise FileNotFoundError(f"no readable image of {', '.join(ADAPTERS)} in {root}{reasons}\n"
                                "  unpack an official download there, folder names unchanged")
    records = share(pd.DataFrame(rows))
    known = records.set_index("id")
    for a, b, agree in duplicates(records).itertuples(index=False):
        verdict = "same labels" if agree else f"labels {known.labels[a]} here, {known.labels[b]} there"
        reason = f"same photograph as {known.path[b]}: {verdict}"
        problems.append(Problem(known.dataset[a], known.path[a], None, reason))
    table = pd.DataFrame(problems, columns=Problem._fields).astype({"file": str, "row": "Int64"})
    return records, table.assign(file=table["file"].str.removeprefix(f"{root}/"))


def placed(row: dict, root: Path, camera: str | None) -> dict:
    """The row with paths relative to `root` and its camera; the screening camera only takes test images."""
    masks = [{**mask, "path": Path(mask["path"]).relative_to(root).as_posix()} for mask in row["masks"]]
    return {**row, "id": f"{camera}-{row['id']}" if camera else row["id"], "masks": masks, "camera": camera,
            "path": Path(row["path"]).relative_to(root).as_posix(),
            "split": "test" if camera == "screening" else row["split"]}


def share(records: pd.DataFrame) -> pd.DataFrame:
    """Add `group`; copies of one photograph get its masks, and copies without a diagnosis lose their labels."""
    masks, labels = records["masks"].to_list(), records["labels"].to_list()
    diagnosed = [not set(row.labels) <= set(ANNOTATED.get(row.dataset, ())) for row in records.itertuples()]
    for a, b, _ in close_pairs(records, SAME_PHOTOGRAPH).itertuples(index=False):
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
