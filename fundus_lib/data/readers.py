"""Readers that the catalogue's ordinary data sets share: pictures by their paths, label tables, mask files beside."""

import fnmatch
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from fundus_lib.data import records as disk
from fundus_lib.data import special
from fundus_lib.data.catalogue import DataSet, LabelTable, Masks
from fundus_lib.data.records import DataError, Problem, Record, plain

SUFFIX = re.compile(r"(\.+(jpe?g|png|tiff?|bmp|ppm|gif))+$", re.I)  # JSIEC's files end in "..JPG"
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
          "testing": "test"}
EYES = {**dict.fromkeys(("l", "left", "os", "le"), "left"), **dict.fromkeys(("r", "right", "od", "re"), "right"),
        "": None}
Key = tuple[str, str]  # split ("" where names do not restart in every split) and name of a picture


class Inside(dict):
    """Folder -> {plain lower-case name of what is in it: its path}, each listed once. folders: the possible homes.
    Raises FileNotFoundError when `root` is no folder."""

    def __init__(self, root: str | Path):
        if not Path(root).is_dir():
            raise FileNotFoundError(f"{root} is not a folder.\n  give the folder that holds the unpacked downloads")
        self.root = Path(root).absolute()
        self.folders = disk.folders(self.root, 3)

    def __missing__(self, folder: str) -> dict[str, str]:
        with os.scandir(folder) as entries:
            self[folder] = {plain(e.name).lower(): e.path for e in entries if not e.name.startswith(disk.HIDDEN)}
        return self[folder]

    def all(self, folder: str, wanted: str) -> list[str]:
        """What lies in `folder` at the path 'a/b*', or at one of 'a|b/c'; '.' is the folder itself."""
        if "|" in wanted or wanted == ".":
            return [folder] if wanted == "." else [path for one in wanted.split("|") for path in self.all(folder, one)]
        first, _, rest = wanted.lower().partition("/")
        here = self[folder]
        names = fnmatch.filter(here, first) if re.search(r"[*?[]", first) else {first} & here.keys()
        paths = [here[name] for name in names]
        return [found for path in paths if os.path.isdir(path) for found in self.all(path, rest)] if rest else paths


def find(entry: DataSet, inside: Inside) -> list[Path]:
    """The folders at most three below the root that hold a data set."""
    def fits(folder: str) -> bool:
        return (all(inside.all(folder, path) for path in entry.home.has)
                and not any(inside.all(folder, path) for path in entry.home.lacks)
                and all(name in entry.labels for within in inside.all(folder, entry.home.only)
                        for name, path in inside[within].items() if os.path.isdir(path)))

    found = [folder for folder in inside.folders if entry.home and fits(str(folder))]
    return [home for home in found if not set(found) & set(home.parents)]  # archives repeat a folder's name inside it


def walk(folder: str, start: str = "") -> Iterator[tuple[str, str]]:
    """(path from the first folder on, as the archive meant it; the path on disk) of every file, in order.
    A link to a folder above is not followed: what lies there is read anyway."""
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        loop = entry.is_symlink() and f"{os.path.realpath(folder)}/".startswith(f"{os.path.realpath(entry.path)}/")
        if entry.name.startswith(disk.HIDDEN) or loop:
            continue
        if entry.is_dir():
            yield from walk(entry.path, f"{start}{plain(entry.name)}/")
        else:
            yield start + entry.name, entry.path


def meaning(word: str, known: dict, where: str, leave_out: dict[str, str] | tuple = ()) -> str | None:
    """What a data set's own word means; "*" is any other. Raises DataError for an unknown word or one to leave out."""
    key = next((key for key in (word, word.lower(), "*") if key in known), None)
    if word in leave_out:
        raise DataError(f"{where} is {word!r}: {leave_out[word]}")
    if key is None:
        raise DataError(f"{where} is {word!r}, none of {', '.join(filter(None, known))}"[:300])
    return known[key]


def several(entry: DataSet, file: str | Path, what: str, keys: set[Key]) -> list[Problem]:
    """One problem for all of them, however many."""
    return [Problem(entry.name, file, None, f"{len(keys)} {what}, first: {min(keys)[1]}")] if keys else []


def read(entry: DataSet, home: Path) -> tuple[list[Record], list[Problem]]:
    """Every labelled picture of the data set at `home`, and what was left out and why; only masks are decoded.
    Raises DataError when a label file is not the official one."""
    if entry.reader != "files":
        return getattr(special, entry.reader)(entry, home)
    files = dict(walk(str(home)))
    images, found, problems = sort_files(entry, files)
    masks, wrong = read_masks(entry, home, found, images)
    problems += wrong + several(entry, home, "masked images without their picture", masks.keys() - images.keys())
    told, absent = set(), []  # pictures that a row labels, or says why not; rules without their file
    for rule in entry.tables:
        tables = [path for path in files if fnmatch.fnmatchcase(path.lower(), rule.file.lower())]
        absent += [] if tables else [rule]
        for path in tables:
            rows, wrong = read_rows(entry, rule, Path(files[path]))
            problems += wrong + several(entry, files[path], "rows without their image", rows.keys() - images.keys())
            told |= rows.keys() if rule.code or rule.one_hot else set()
            for key in rows.keys() & images.keys():
                image, row = images[key], rows[key]
                images[key] = image._replace(
                    labels=tuple(dict.fromkeys(image.labels + row.labels)), split=image.split or row.split,
                    patient=image.patient or row.patient, laterality=image.laterality or row.laterality)
    for key in masks.keys() & images.keys():
        shown = tuple(dict.fromkeys(finding for finding, _ in masks[key] if finding in entry.annotated))
        images[key] = images[key]._replace(masks=masks[key], labels=images[key].labels or shown)
    silent = {key for key, image in images.items() if not image.labels and not image.masks and key not in told}
    for rule in absent:
        lost = {key for key in silent if rule.split in (None, images[key].split)}
        problems += several(entry, home, f"images, but no label file {rule.file}: half unpacked?", lost)
        silent -= lost
    problems += several(entry, home, "images without a label", silent)
    records = [image for image in images.values() if image.labels or image.masks]
    return [record if record.split else record._replace(split="train") for record in records], problems


def sort_files(entry: DataSet, files: dict[str, str]) -> tuple[dict[Key, Record], list[tuple], list[Problem]]:
    """The pictures by their key; the mask files as (key, finding, file, value); which pictures fit no rule."""
    images, masks, problems, strays, used, rule_of = {}, [], [], {}, set(), {}
    ignored = [re.compile(path, re.I).fullmatch for path in entry.ignore]
    rules = [(rule, re.compile(rule.path, re.I).fullmatch) for rule in (*entry.masks, *entry.images)]
    eyes, splits = EYES | entry.eyes, SPLITS | entry.splits
    for path, file in files.items():
        if not SUFFIX.search(path) or any(fits(path) for fits in ignored):
            continue
        folder, _, last = path.rpartition("/")
        rule, match = next(((rule, match) for rule, fits in rules if (match := fits(path))), (None, None))
        if rule is None:
            strays.setdefault(folder, []).append(file)
            continue
        used.add(folder.partition("/")[0])
        group = match.groupdict()
        name, mask = group.get("name") or SUFFIX.sub("", last), isinstance(rule, Masks)
        code = group.get("code") or (None if mask else rule.code)
        try:
            split = meaning(group["split"], splits, "its split") if group.get("split") else None if mask else rule.split
            said = (mask and rule.finding) or (code and meaning(code, entry.labels, "its code", entry.leave_out))
            eye = meaning(group.get("eye") or "", eyes, "its eye")
        except DataError as error:
            problems.append(Problem(entry.name, file, None, str(error)))
            continue
        key = (split or "") if entry.per_split else "", name
        if mask:
            masks.append((key, said, Path(file), rule.value))
        elif rule_of.setdefault(key, rule) is rule and key in images:
            problems.append(Problem(entry.name, file, None, f"a second {name}: {images[key].path} counts"))
        elif key not in images:  # the same name under a later rule is the same picture in a second folder
            words = entry.name, group.get("part"), split, name.replace("/", "-")
            images[key] = Record("-".join(filter(None, words)), Path(file), entry.name,
                                 rule.modality or entry.modality[0], (said,) if said else (), split,
                                 group.get("patient"), laterality=eye)
        elif said:  # another folder of the same picture adds its label
            images[key] = images[key]._replace(labels=tuple(dict.fromkeys((*images[key].labels, said))))
    problems += [Problem(entry.name, lost[0], None, f"{len(lost)} pictures that do not lie or are not called as in: "
                 f"{entry.layout}") for folder, lost in strays.items() if folder.partition("/")[0] in used]
    return images, masks, problems


def read_rows(entry: DataSet, rule: LabelTable, file: Path) -> tuple[dict[Key, Record], list[Problem]]:
    """The rows of one label file by the key of their picture; a row that is a problem has no label."""
    columns = [rule.name, *rule.one_hot, *rule.must, *rule.patient, *filter(None, (rule.eye, rule.split_column))]
    columns += [part for name in rule.code for part in name.split(" + ")]
    separator = {".tsv": "\t", ".txt": r"\s+"}.get(file.suffix.lower(), ",")
    table = disk.read_table(file, columns, separator, rule.header)
    rows, problems = {}, []
    for number, cells in zip(table.index, table.to_dict("records"), strict=True):
        cell, wrong, group = cells[rule.name].replace("\\", "/"), [], {}
        row = Record(SUFFIX.sub("", cell.rpartition("/")[2]), file, entry.name, "", (), rule.split)
        try:
            if rule.name_pattern:
                if not (match := re.fullmatch(rule.name_pattern, cell, re.I)):
                    raise DataError(f"{rule.name} {cell!r} does not name a picture as in: {entry.layout}")
                group = match.groupdict()
            patient = group.get("patient") or "-".join(filter(None, (cells[column] for column in rule.patient)))
            wrong += ["no patient"] if rule.patient and not patient else []
            row = row._replace(id=group.get("name") or row.id, patient=patient or None)
            if part := group.get("split") or cells.get(rule.split_column):
                row = row._replace(split=meaning(part, SPLITS | entry.splits, "split"))
            row = row._replace(labels=labels_of(entry, rule, cells))
            eye = group.get("eye") or cells.get(rule.eye, "")
            row = row._replace(laterality=meaning(eye, EYES | entry.eyes, rule.eye))
        except DataError as error:
            wrong.append(str(error))
        key = (row.split or "") if entry.per_split else "", row.id
        wrong += ["listed again: the first row counts"] if key in rows else []
        rows.setdefault(key, row)
        problems += [Problem(entry.name, file, number, f"{row.id}: {reason}") for reason in wrong]
    return rows, problems


def labels_of(entry: DataSet, rule: LabelTable, cells: dict[str, str]) -> tuple[str, ...]:
    """The labels that the cells of a row say. Raises DataError when a cell is none of the codes."""
    for column, cell in rule.must.items():
        if cells[column] != cell:
            raise DataError(f"{column} is {cells[column]!r}, not {cell!r}")
    labels = []
    for column in rule.code:
        text = "/".join(cells[part] for part in column.split(" + "))  # OCTDL's grade of AMD needs two columns
        labels.append(meaning(text, rule.codes.get(column, entry.labels), column, entry.leave_out))
    if wrong := [column for column in rule.one_hot if cells[column] not in ("0", "1")]:
        raise DataError(f"{wrong[0]} is {cells[wrong[0]]!r}, neither 0 nor 1")
    found = [code for code in rule.one_hot if cells[code] == "1"]
    column, equals, cell = (rule.none or "").partition("=")  # "Disease_Risk=0": 0 there says that no other column is 1
    if equals and (cells[column] == cell) == bool(found):
        raise DataError(f"{column} contradicts the other columns")
    labels += [meaning(code, entry.labels, code, entry.leave_out) for code in found or filter(None, [rule.none])]
    if not any(labels) and (rule.code or rule.one_hot):
        raise DataError("nothing in its row labels it")
    return tuple(filter(None, labels))


def read_masks(entry: DataSet, home: Path, masks: list[tuple], images: dict[Key, Record]) -> tuple[dict, list[Problem]]:
    """Key -> ((finding, file), ...) of the masks that are not empty, and which cannot be used. Threads decode them."""
    def usable(mask: tuple) -> tuple[Path | None, str]:
        key, _, file, value = mask
        try:
            file = file if value == "nonzero" else cleaned(entry, home, file, value)
            pixels = disk.read_mask(file)
            if key in images and not disk.same_shape(pixels, images[key].path):
                height, width = pixels.shape
                raise DataError(f"a mask of {width} x {height} pixels does not fit {images[key].path.name}")
            if value == "nonzero" and pixels.mean() > 0.9:
                raise DataError(f"{pixels.mean():.0%} of the picture is marked: inverted, or no mask?")
            return (file if pixels.any() else None), ""
        except DataError as error:
            return None, str(error)

    found, problems = {key: () for key, *_ in masks}, []
    with ThreadPoolExecutor(8) as pool:
        for (key, finding, file, _), (clean, wrong) in zip(masks, pool.map(usable, masks), strict=True):
            found[key] += ((finding, clean),) if clean else ()
            problems += [Problem(entry.name, file, None, wrong)] if wrong else []
    return found, problems


def cleaned(entry: DataSet, home: Path, file: Path, value: str | int) -> Path:
    """The mask in black and white where only `value` marks the lesion ("zero": 0 does), written into the cache once."""
    clean = disk.unpacked(entry.name, home) / file.relative_to(home).with_suffix(".png")
    if not clean.exists() or clean.stat().st_mtime < file.stat().st_mtime:
        try:
            with Image.open(file) as image:
                values = np.asarray(image.convert("L"))
        except disk.UNREADABLE as error:
            raise DataError(f"{file} is not a readable mask: {error}") from None
        special.write(clean, Image.fromarray(values == (0 if value == "zero" else value)), {})
    return clean
