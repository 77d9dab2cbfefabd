"""Data sets that need code of their own: a function each, which `reader` of its entry names. First photographs by their
label files, then the OCT sets that must be unpacked: B-scans and masks become PNGs."""

import functools
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator
from itertools import compress
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from fundus_lib.data import records as disk
from fundus_lib.data.catalogue import DataSet
from fundus_lib.data.records import DataError, Problem, Record, child, folders, pictures, plain, read_table

# What one label file says: the file, {name: picture} of its folder, and what its rows are called in a problem; a row is
# the name of a picture with the fields of its Record, or with the Problem for which it does not count (None: of none).
Told = Iterator[tuple[Path, dict[str, Path], list[tuple[str | None, dict | Problem]], str]]


def listed(told: Callable[[DataSet, Path], Told]) -> Callable[[DataSet, Path], tuple[list[Record], list[Problem]]]:
    """A reader out of what tells of every label file: the pictures that rows name, and what lacks the other half."""
    @functools.wraps(told)
    def read(entry: DataSet, home: Path) -> tuple[list[Record], list[Problem]]:
        records, problems = [], []
        for file, images, rows, called in told(entry, home):
            names = [name for name, _ in rows if name is not None]
            usual = {"dataset": entry.name, "modality": entry.modality[0], "split": "train"}
            records += [Record(**{"id": f"{entry.name}-{name}", "path": images[name], **usual, **said})
                        for name, said in rows if isinstance(said, dict) and name in images]
            problems += [said for _, said in rows if isinstance(said, Problem)]
            for what, lost in ((f"{called} without their image", [name for name in names if name not in images]),
                               (f"images without {called}", sorted(set(images) - set(names)))):
                problems += [Problem(entry.name, file, None, f"{len(lost)} {what}, first: {lost[0]}")] if lost else []
        return records, problems
    return read


@listed
def stare(entry: DataSet, home: Path) -> Told:
    """Every image with its diagnoses. A line: im0001, tab, codes with blanks between, tabs, words.
    Code 14 is any other diagnosis: it gives way to what the words name."""
    file, rows = home / "all-mg-codes.txt", []
    images = {f.stem: f for folder in folders(home, 3) for f in sorted(folder.glob("im[0-9]*.ppm"))}
    words = {code: label for code, label in entry.labels.items() if not code.isdigit()}
    for row, line in enumerate(file.read_text("latin-1").splitlines(), 1):
        name, *cells = (cell.strip() for cell in line.split("\t"))
        if not name:
            continue
        codes = cells[0].split() if cells else []
        named = [label for word, label in words.items() if word in cells[-1].lower()] if "14" in codes else []
        labels = [entry.labels.get(code) for code in codes if code != "14" or not named] + named
        wrong = Problem(entry.name, file, row, f"{name}: codes {' '.join(codes)!r}")
        rows.append((name, wrong if not labels or None in labels else {"labels": tuple(dict.fromkeys(labels))}))
    yield file, images, rows, "rows"


@listed
def papila(entry: DataSet, home: Path) -> Told:
    """Every eye with a diagnosis, a workbook an eye. Below its header stand two rows of sub-headers: no patients."""
    images = pictures(child(home, "FundusImages"))
    for code, side in (("OD", "right"), ("OS", "left")):
        file, rows = child(home, "ClinicalData") / f"patient_data_{code.lower()}.xlsx", []
        try:
            table = read_table(file, ["Unnamed: 0", "Diagnosis"])[["Unnamed: 0", "Diagnosis"]]
        except DataError as error:
            yield file, {}, [(None, Problem(entry.name, file, None, str(error)))], "rows"
            continue
        for row, patient, diagnosis in table[table["Unnamed: 0"].str.startswith("#")].itertuples():
            name, known = f"RET{patient[1:]}{code}", entry.labels.get(diagnosis)
            wrong = Problem(entry.name, file, row, f"{name}: diagnosis {diagnosis!r}")
            rows.append((name, {"labels": (known,), "patient": patient[1:], "laterality": side} if known else wrong))
        yield file, {name: f for name, f in images.items() if name.upper().endswith(code)}, rows, "rows"


@listed
def mmc_amd(entry: DataSet, home: Path) -> Told:
    """CFP and OCT of the same eyes, every listed image, in the split by patient where it is there, else by eye: its
    2,381 - 211 test images are Fundus-R1's 2,170. The lists do not tell whose eye it is, so `patient` is the eye."""
    way = next(way for way in ("mmc-amd-splitAP", "mmc-amd-splitA") if child(home, f"{way}-train"))
    data = child(home, "mmc-amd", "ImageData") or child(home, "ImageData")
    classes = ("normal", "dryamd", "pcv", "wetamd")  # 0 to 3 in the lists; h, d, p, w in an image's name: f-w-1544817_2
    pattern = re.compile(r"[fo]-(?:(?P<letter>[hdpw])-)?(?P<eye>[^_.]+)(?:_[^.]*)?")
    known = {code: at for at, name in enumerate(classes) for code in (str(at), name)}
    for modality, place in (("CFP", "cfp-clahe-448x448"), ("OCT", "oct-median3x3-448x448")):  # only these are published
        rows = []
        lists = [(s, home / f"{way}-{s}/annotations/{modality.lower()}.txt") for s in ("train", "val", "test")]
        for split, file in filter(lambda part: part[1].is_file(), lists):
            for row, (name, code) in read_table(file, ["0", "1"], " ", header=None)[["0", "1"]].iterrows():
                name = name.removesuffix(".jpg")
                match, at = pattern.fullmatch(name), known.get(code.lower())
                if not match or at is None or match["letter"] not in (None, "hdpw"[at]):
                    reason = f"{name!r} has class {code!r}: not 0 to 3, or not that of the letter in the name"
                    rows.append((name, Problem(entry.name, file, row, reason)))
                else:
                    rows.append((name, {"modality": modality, "labels": (entry.labels[classes[at]],), "split": split,
                                        "patient": match["eye"]}))
        yield home / f"{way}-*" / "annotations", pictures(data and child(data, place)), rows, f"{modality} rows"


@listed
def deepdrid(entry: DataSet, home: Path) -> Told:
    """Every graded image. The grade is in the column that is filled, the side in the file's name, even of 56_r3 (graded
    as left) and 56_l3 (as right). `patient` names the part: whether both number the same patients nobody says."""
    for rule in entry.tables:
        part, place, table = rule.file.split("/")
        if not child(home, part):
            continue
        modality, folder = "UWF" if "wide" in part else "CFP", child(home, part, place) or home / part / place
        if not (file := folder / table).is_file():
            problem = Problem(entry.name, file, None, "no such label file: half unpacked?")
            yield file, {}, [(None, problem)], "rows"
            continue
        rows = []
        images = {stem: f for d in folders(child(folder, "Images") or folder, 1) for stem, f in pictures(d).items()}
        for row, cells in read_table(file, [rule.name, *rule.code]).iterrows():
            grades = [cells[column].removesuffix(".0") for column in rule.code if cells[column]]
            match = re.fullmatch(r"(?P<patient>\d+)_(?P<side>[lr])\d+", name := cells[rule.name])
            if not match or len(grades) != 1 or grades[0] not in tuple("01234"):
                reason = "not one of 0 to 4 (5 = ungradable)" if match else "but this is no name like 12_l1"
                reason = f"{name!r} has the grades {grades}, {reason}"
                rows.append((name, Problem(entry.name, file, row, reason)))
            else:
                rows.append((name, {
                    "id": f"{entry.name}-{modality}-{rule.split}-{name}", "modality": modality, "split": rule.split,
                    "labels": (entry.labels[grades[0]],), "patient": f"{modality}-{match['patient']}",
                    "laterality": {"l": "left", "r": "right"}[match["side"]]}))
        yield file, images, rows, "rows"


@listed
def grape(entry: DataSet, home: Path) -> Told:
    """Every photograph that a visit names; some are named on both sheets. All eyes have glaucoma. A second label says
    whether the eye gets worse by any of three criteria over all visits, which one photograph cannot prove."""
    file, folder, sides = home / "VF and clinical information.xlsx", child(home, "CFPs"), {"OD": "right", "OS": "left"}
    eyes, course, rows = {}, {}, []
    for sheet, criteria in (("Follow-up", ()), ("Baseline", ("PLR2", "PLR3", "MD"))):
        columns = ["Subject Number", "Laterality", "Corresponding CFP", *(f"Progression Status/{c}" for c in criteria)]
        for row, (number, side, photograph, *told) in read_sheet(file, sheet, columns).iterrows():
            eye, name = f"{number.removesuffix('.0')}_{side}", Path(photograph).stem  # "/" = no photograph
            told = {cell.removesuffix(".0") for cell in told}
            if side not in sides or told - {"0", "1", "/", ""} or (name or f"{eye}_").rpartition("_")[0] != eye:
                reason = f"{sheet}: eye {eye}, photograph {photograph!r}, progression {sorted(told)} do not fit"
                rows.append((None, Problem(entry.name, file, row, reason)))
            elif name:
                eyes[name] = eye
            if told and told <= {"0", "1"}:
                course[eye] = ("Visual field progression" if "1" in told else "No visual field progression",)
    rows += [(name, {"labels": ("Glaucoma", *course.get(eye, ())), "patient": eye[:-3], "laterality": sides[eye[-2:]]})
             for name, eye in eyes.items()]
    yield file, pictures(child(folder, "CFPs") or folder), rows, "rows"


def read_sheet(file: Path, sheet: str, columns: list[str]) -> pd.DataFrame:
    """`columns` of a sheet as text; its two header rows are joined: "Progression Status/PLR2", "Laterality"."""
    table = read_table(file, ["0"], header=None, sheet=sheet)
    above = table.iloc[0].where(table.iloc[0].ne("")).ffill().fillna("")
    names = [f"{top}/{name}" if name else top for top, name in zip(above, table.iloc[:2].iloc[-1], strict=True)]
    if missing := [name for name in columns if names.count(name) != 1]:
        raise DataError(f"{file}, sheet {sheet}: no {', '.join(missing)} in its two header rows; take the official one")
    return table.iloc[2:].set_axis(names, axis=1)[columns]


# ODIR: Kaggle's table, the competition's, the repository's three (both sets beside its training set are tests).
ODIR_TABLE = re.compile(r"full_df\.csv|ODIR-5K_Training_Annotations.*V2\.xlsx|(training|o(ff|n)-site test) annotation "
                        r"\(English\)\.xlsx", re.IGNORECASE)
# On all 3,358 patients of full_df.csv these give the published letters; a disease that fits none is O, drusen too.
ODIR_DISEASES = {"N": "^normal fundus$", "D": "diabetic|proliferative", "G": "glaucoma", "C": "cataract",
                 "A": "age-related macular", "H": "hypertensive", "M": "myopi",
                 "": "^$|lens dust|image|photographically invisible"}  # low image quality, no fundus image...


def letters_of(keywords: str) -> set[str]:
    """The categories of one eye: N only without any disease, none where all that is named is the picture's quality."""
    said = re.split("[\uff0c?,]", keywords.lower())  # a full-width comma; "?" in a copy that lost it; plain ones twice
    found = {letter for word in said
             for letter in [c for c, term in ODIR_DISEASES.items() if re.search(term, word.strip())] or "O"}
    return found - {"N", ""} or found & {"N"}


@listed
def odir(entry: DataSet, home: Path) -> Told:
    """Every eye whose keywords name a category, where both eyes together give the patient's columns: the eight
    categories are the patient's, an eye's own come from its keywords."""
    columns = ["ID", "Left-Fundus", "Right-Fundus", "Left-Diagnostic Keywords", "Right-Diagnostic Keywords"]
    for file in [f / name for f in folders(home, 3) for name in os.listdir(f) if ODIR_TABLE.fullmatch(name)]:
        beside = child(file.parents[1], "Images") if plain(file.parent.name) == "Annotation" else None
        images = pictures(beside or next((f for f in folders(home, 3) if plain(f.name) == "Training Images"), None))
        table = read_table(file, columns).drop_duplicates(columns)  # Kaggle repeats the patient for the second eye
        given = table.iloc[:, table.columns.get_loc(columns[-1]) + 1:].eq("1").to_numpy()  # N to O, by place
        rows = []
        for row, (patient, *files, left, right), flags in zip(
                table.index, table[columns].to_numpy(), given, strict=True):
            told, both = set(compress("NDGCAHMO", flags)), letters_of(f"{left},{right}") or {"N"}
            for photo, side, words in zip(files, ("left", "right"), (left, right), strict=True):
                name, letters = Path(photo).stem, letters_of(words)
                split = "test" if "site test" in file.name.lower() else "train"
                said = {"id": f"{entry.name}-{split}-{name}", "split": split, "patient": patient, "laterality": side,
                        "labels": tuple(entry.labels[c.lower()] for c in "NDGCAHMO" if c in letters)}
                if told != both or not letters:
                    why = "no category" if told == both else f"the eyes mean {sorted(both)}, the columns {sorted(told)}"
                    said = Problem(entry.name, file, row, f"{name}, {words!r}: {why}")
                rows.append((name, said))
        yield file, images, rows, "rows"


COLORS = {"full-thickness foveal defect": (255, 0, 0), "intraretinal fluid": (0, 0, 255)}  # yellow: choroid
SET = "RETOUCH-TrainingSet-"  # the test sets have no reference
FLUIDS = {"intraretinal fluid": 1, "subretinal fluid": 2, "pigment epithelial detachment": 3}
TYPES = {"MET_UCHAR": "u1", "MET_USHORT": "u2", "MET_SHORT": "i2", "MET_INT": "i4", "MET_FLOAT": "f4"}


def oimhs(entry: DataSet, home: Path) -> tuple[list[Record], list[Problem]]:
    """Every B-scan, unpacked once: the left half of a picture, whose right half are its areas in colours. Only a scan
    that cuts the hole has the label. `patient` is the eye: the names do not tell which of 119 patients gave both."""
    cache, records, problems = disk.unpacked(entry.name, home), [], []
    files = sorted(home.glob("Images/[0-9]*/[0-9]*.png"))
    for file in tqdm(files, desc=entry.name, unit="image", leave=False, mininterval=2):
        eye, scan = file.parent.name, cache / file.parent.name / f"{file.stem}-{stamp(file)}.png"
        try:
            if not scan.is_file():
                with Image.open(file) as image:
                    left, right = image.crop((0, 0, 512, 512)), np.asarray(image.convert("RGB"))[:, 512:]
                if image.size != (1024, 512) or not (right == (0, 255, 0)).all(axis=-1).any():
                    raise DataError(f"{image.size} pixels, not (1024, 512), or no retina (pure green) on the right")
                write(scan, left, {name: (right == color).all(axis=-1) for name, color in COLORS.items()})
        except disk.UNREADABLE as error:
            problems.append(Problem(entry.name, file, None, f"not readable: {error}"))
            continue
        masks = tuple((name, mask) for name, mask in mask_files(scan, COLORS).items() if mask.is_file())
        labels = tuple("Macular hole" if name == "full-thickness foveal defect" else name for name, _ in masks)
        records.append(Record(f"{entry.name}-{eye}-{file.stem}", scan, entry.name, "OCT", labels, "train", eye, masks))
    return records, problems


def retouch(entry: DataSet, home: Path) -> tuple[list[Record], list[Problem]]:
    """Every B-scan of every volume, unpacked once. Labels are the fluids outlined on it. A B-scan without fluid has no
    label, its eye is not normal; it is kept because Fundus-R1 counts it (5,697 images, 2,742 of them outlined)."""
    cache, records, problems = disk.unpacked(entry.name, home), [], []
    volumes = [volume for f in folders(home, 1) if plain(f.name).startswith(SET) for volume in folders(f, 1)[1:]]
    for volume in tqdm(volumes, desc=entry.name, unit="volume", leave=False, mininterval=2):
        device = plain(volume.parent.name).removeprefix(SET)
        try:
            for scan in unpack(volume, cache):
                masks = tuple((name, mask) for name, mask in mask_files(scan, FLUIDS).items() if mask.is_file())
                records.append(Record(f"{entry.name}-{device}-{volume.name}-{scan.stem}", scan, entry.name, "OCT",
                                      tuple(name for name, _ in masks), "train", volume.name, masks))
        except (DataError, OSError) as error:
            problems.append(Problem(entry.name, volume, None, str(error)))
    return records, problems


def unpack(volume: Path, cache: Path) -> list[Path]:
    """The B-scans of a folder as 8-bit PNG files with masks; wider values are scaled to the volume's brightest one."""
    image, reference = (open_volume(volume / name) for name in ("oct.mhd", "reference.mhd"))
    folder = cache / f"{volume.name}-{stamp(*sorted(volume.iterdir()))}"
    scans = [folder / f"{k:03d}.png" for k in range(len(image))]
    if not all(scan.is_file() for scan in scans):
        if image.shape != reference.shape or not set(np.unique(reference).tolist()) <= {0, *FLUIDS.values()}:
            raise DataError(f"reference {reference.shape} does not outline oct {image.shape} with the values 0 to 3")
        scale = 1 if image.dtype == np.uint8 else 255 / max(image.max(), 1)
        for scan, values, fluid in zip(scans, image, reference, strict=True):
            gray = Image.fromarray((values.clip(0) * scale).round().astype(np.uint8))
            write(scan, gray, {name: fluid == value for name, value in FLUIDS.items()})
    return scans


def open_volume(header: Path) -> np.memmap:
    """A MetaImage volume (B-scans, rows, columns); the last line of its header names the data file, or is LOCAL.
    Raises DataError for compressed or other data, for a file in another folder or of another size."""
    fields = {}
    with header.open("rb") as file:
        while "ElementDataFile" not in fields and (line := file.readline(1000)):
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip()], start = value.strip(), file.tell()
    kind, name = TYPES.get(fields.get("ElementType")), fields.get("ElementDataFile", "")
    sizes = re.fullmatch(r"(\d+)\s+(\d+)\s+(\d+)", fields.get("DimSize", ""))
    other = fields.get("CompressedData", "").lower() == "true" or fields.get("BinaryData", "").lower() == "false"
    if other or not kind or not sizes or not name or name != os.path.basename(name.replace("\\", "/")):
        raise DataError(f"{header.name}: no uncompressed gray values in a file of the same folder: {str(fields)[:600]}")
    kind = np.dtype((">" if fields.get("BinaryDataByteOrderMSB", "").lower() == "true" else "<") + kind)
    data, start = (header, start) if name == "LOCAL" else (header.parent / name, 0)
    shape = tuple(map(int, sizes.groups()[::-1]))
    size, asked = data.stat().st_size - start, math.prod(shape) * kind.itemsize
    if size != asked or not size:
        raise DataError(f"{data.name} holds {size:,} bytes, {header.name} asks for {asked:,}: unpack the volume again")
    return np.memmap(data, kind, "r", start, shape)


def stamp(*files: str | Path) -> str:
    """A part of a name that is another one once a file has another size or time."""
    return hashlib.sha256(repr([(os.stat(f).st_size, os.stat(f).st_mtime_ns) for f in files]).encode()).hexdigest()[:12]


def mask_files(scan: Path, findings: dict) -> dict[str, Path]:
    """Where the masks of an unpacked B-scan lie; only what it shows has one."""
    return {name: scan.with_name(f"{scan.stem}-{name.replace(' ', '-')}.png") for name in findings}


def write(scan: Path, image: Image.Image, masks: dict[str, np.ndarray]) -> None:
    """Write the masks that are not empty beside `scan`, then `scan`: where it is there, all of it is."""
    scan.parent.mkdir(parents=True, exist_ok=True)
    shown = {file: Image.fromarray(masks[name]) for name, file in mask_files(scan, masks).items() if masks[name].any()}
    for file, picture in {**shown, scan: image}.items():
        part = file.with_suffix(f".{os.getpid()}.part")
        picture.save(part, "PNG", compress_level=1)
        os.replace(part, file)
