"""Malformed downloads, one kind a case: each is refused or left out with its reason, and nothing else is lost."""

import base64
import functools
import json
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import downloads
import miniatures
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_benchmarks import LEVELS, gmai_row, omni_row
from test_mm_retinal_reason import published

from fundus_lib import benchmarks, data, mm_retinal_reason, runs
from fundus_lib.benchmarks import write_json

# Ways to damage a folder: each returns what changes the one file of that name (or path from the folder on).


def at(root: Path, name: str) -> Path:
    """The one file or folder of that name, or at that path."""
    return root / name if "/" in name else next(root.rglob(name), root / name)


def put(name: str, content: bytes | str) -> Callable:
    """Write a file, also one that is not there."""
    def change(root: Path) -> None:
        (file := at(root, name)).parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    return change


def edit(name: str, old: str, new: str, encoding: str = "utf-8", times: int = 1) -> Callable:
    """Replace a text in a file, and write it in another encoding."""
    def change(root: Path) -> None:
        content = (file := at(root, name)).read_bytes().decode("utf-8")
        assert old in content, content
        file.write_bytes(content.replace(old, new, times).encode(encoding))
    return change


def cut(name: str, size: int) -> Callable:
    """Keep the first bytes, or all but the last ones."""
    return lambda root: (file := at(root, name)).write_bytes(file.read_bytes()[:size])


def drop(name: str) -> Callable:
    def change(root: Path) -> None:
        (shutil.rmtree if (gone := at(root, name)).is_dir() else os.remove)(gone)
    return change


def move(name: str, new: str) -> Callable:
    """Rename a file or folder; `new` is a path from its own folder on."""
    def change(root: Path) -> None:
        target = (file := at(root, name)).parent / new
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    return change


def copy(name: str, new: str) -> Callable:
    """Copy a file or folder to a path from the root on."""
    def change(root: Path) -> None:
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (known := at(root, name)).is_dir() else shutil.copy)(known, root / new)
    return change


def link(name: str, to: str) -> Callable:
    """Put a symbolic link there, in place of what is there."""
    return lambda root: ((root / name).unlink(missing_ok=True), (root / name).symlink_to(to))


def saved(name: str, image: Image.Image, **how) -> Callable:
    """Save a picture there."""
    return lambda root: image.save(at(root, name), **how)


def marked(shape: tuple[int, int]) -> Image.Image:
    """A mask whose first two rows are marked."""
    values = np.zeros(shape, np.uint8)
    values[:2] = 255
    return Image.fromarray(values)


def workbook(name: str, **tables: list[list]) -> Callable:
    """Write a workbook with other sheets."""
    return lambda root: miniatures.sheets(at(root, name), tables)


def header(**fields: str) -> Callable:
    """Write TRAIN001's scan with other lines in its header."""
    return lambda root: miniatures.metaimage(at(root, "TRAIN001") / "oct.mhd", SCAN, **fields)


def png(width: int, height: int) -> bytes:
    """A PNG that has all its parts and no pixels, whatever size it says."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((name, text, zlib.crc32(name + text)) for name, text in [
        (b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(text)) + name + text + struct.pack(">I", check) for name, text, check in parts)


def pictures_of(name: str) -> Callable:
    """Take the pictures of a folder away, not the folder."""
    return lambda root: [file.unlink() for file in at(root, name).rglob("*.*")]


def broken_sheets(root: Path) -> None:
    """A whole archive whose sheets end in the middle."""
    with zipfile.ZipFile(at(root, BOOK)) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    with zipfile.ZipFile(at(root, BOOK), "w") as book:
        for name, content in parts.items():
            book.writestr(name, content[:len(content) // 2] if "sheets/" in name else content)


def omni(row) -> Callable:
    """Write OmniMedVQA's list with another second row."""
    return lambda root: write_json(at(root, "J.json"), [omni_row(question_id="q1"), row])


def fun(change: Callable) -> Callable:
    """Change FunBench's questions on the size of hard exudates: {"a.png": question}."""
    def changed(root: Path) -> None:
        content = json.loads((file := at(root, SIZE)).read_text())
        change(content["data"])
        write_json(file, content)
    return changed


def renamed(path: str) -> Callable:
    """The question about a.png is about another path."""
    return fun(lambda items: items.update({path: items.pop("a.png")}))


def gmai(column: str, value: str) -> Callable:
    """Write another value into GMAI-MMBench's second row."""
    def change(root: Path) -> None:
        table = pd.read_csv(file := at(root, "GMAI_VAL.tsv"), sep="\t", dtype=str, keep_default_na=False)
        table.loc[1, column] = value
        table.to_csv(file, sep="\t", index=False)
    return change


def tell(**changes) -> Callable:
    """Change the second record of MM-Retinal-Reason."""
    return lambda root: write_json(root / CHOICES, [published(), published(**changes)])


# Whole folders, written and read once, then copied for each case.

SCAN = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
FLUID = np.zeros_like(SCAN)
FLUID[1, 0] = 1


def idrid(root: Path) -> None:
    downloads.idrid(root, {"train": [(0, 0), (2, 1), (4, 2)], "test": [(1, 0)]}, {"train": {11: "MA EX"}})


def ucsd(root: Path) -> None:
    downloads.ucsd(root, {"train": ["CNV-1-1", "DME-2-1", "NORMAL-3-1"]})


def rfmid(root: Path) -> None:
    downloads.rfmid(root, ["DR", "", "ARMD ODC"])


jsiec, ddr, octdl, fgadr, neh = downloads.jsiec, downloads.ddr, downloads.octdl, downloads.fgadr, downloads.neh


def refuge(root: Path) -> None:
    downloads.files(root / "REFUGE-Training400", ["Glaucoma/g0001.jpg", "Non-Glaucoma/n0001.jpg"])


def duke(root: Path) -> None:
    downloads.files(root, [f"{name}1/TIFFs/8bitTIFFs/00{i}.tif" for name in ("AMD", "NORMAL") for i in (1, 2)])


def odir(root: Path) -> None:
    miniatures.odir(root, [(1, "cataract", "glaucoma", "CG"), (2, "glaucoma", "normal fundus", "G")])


def deepdrid(root: Path) -> None:
    miniatures.deepdrid(root, ["1_l1 0 -", "2_l1 2 -"], ["1_r1 0"], [("347_l1", 1)])


def mmc_amd(root: Path) -> None:
    miniatures.mmc_amd(root, {"train/cfp": ["f-w-1 3", "f-h-2 0"], "train/oct": ["o-w-1 3"]})


def oimhs(root: Path) -> None:
    miniatures.oimhs(root, {"1/1": [miniatures.GREEN, miniatures.RED], "2/1": [miniatures.GREEN]})


def retouch(root: Path) -> None:
    miniatures.retouch(root, {"Cirrus/TRAIN001": (SCAN, FLUID), "Cirrus/TRAIN002": (SCAN[::-1].copy(), FLUID)})


def grape(root: Path) -> None:
    miniatures.grape(root, [[1, "OD", 0, 1, 0, "1_OD_1.jpg"], [2, "OS", 0, 0, 0, "2_OS_1.jpg"]], [])


def papila(root: Path) -> None:
    downloads.files(root, [f"PapilaDB/FundusImages/RET00{i}{eye}.jpg" for i in (2, 4) for eye in ("OD", "OS")])
    for eye in ("od", "os"):
        miniatures.sheets(root / f"PapilaDB/ClinicalData/patient_data_{eye}.xlsx", {"Sheet1": [
            [None, "Age", "Diagnosis"], ["ID", None, None], ["#002", 47, 0], ["#004", 50, 1]]})


def stare(root: Path) -> None:
    downloads.files(root, ["all-images/im0001.ppm", "all-images/im0002.ppm"],
                    {"all-mg-codes.txt": "im0001\t13\tcnv\nim0002\t0\tNormal\n"})


def official(root: Path) -> None:
    """The three benchmarks as downloaded."""
    write_json(root / "Omni/QA_information/Open-access/J.json", [omni_row(question_id=f"q{i}") for i in (1, 2)])
    benchmarks.write_funbench(root / "FunBench", LEVELS)
    head = ["index", "image", "question", *"ABCDE", "answer", "category", "clinical VQA task", "department"]
    rows = [gmai_row("1"), gmai_row("2", "1")]
    put("GMAI/GMAI_VAL.tsv", "\n".join("\t".join(row) for row in [head, *rows]))(root)


def reason(root: Path) -> None:
    """Two files of MM-Retinal-Reason, one of them with its images in a table."""
    write_json(root / "single_choice_test_data_CFP.json", [published(), published()])
    write_json(root / "complex_test_data.json", [published(image=["b.jpg"])])
    put("complex_test_data.csv", f"key,base64\nb.jpg,{base64.b64encode(b'picture').decode()}\n")(root)


def predictions(root: Path) -> None:
    put("model.tsv", "index\tquestion\tA\tB\tanswer\tprediction\n1\tQ?\tu\tv\tA\tB\n2\tR?\tu\tv\tB\tB\n")(root)


# Readers: (what was read, everything that was said).


def read_sets(root: Path) -> tuple[set[str], str]:
    records, problems = data.read_downloads(root)
    assert all(data.image_path(root, path) for path in records.path)
    rows = ["" if pd.isna(row) else f", row {row}" for row in problems.row]
    said = [f"{file}{row}: {why}" for file, row, why in zip(problems.file, rows, problems.reason, strict=True)]
    return set(records.id), "\n".join(said)


def only_set(root: Path) -> tuple[set[str], str]:
    return read_sets(root / "set")


def load_ucsd(root: Path) -> tuple[set[str], str]:
    return set(data.load_dataset("UCSD", root)["id"]), ""


def data_of_a_run(root: Path) -> tuple[set[str], str]:
    return {str(runs.Stage("01_data", "smoke", str(root / "set")).data_root)}, ""


def read_benchmarks(root: Path) -> tuple[set[str], str]:
    questions, _, problems = benchmarks.read_official(root)
    return set(questions.benchmark + " " + questions.id), "\n".join(f"{p.file}: {p.reason}" for p in problems)


def read_reason(root: Path) -> tuple[set[str], str]:
    return set(mm_retinal_reason.read_mm_retinal_reason(root / "set").id), ""


def read_predictions(root: Path) -> tuple[set[str], str]:
    return set(benchmarks.read_vlmevalkit(root / "set/model.tsv").id), ""


READERS = {official: read_benchmarks, reason: read_reason, predictions: read_predictions}  # others: read_sets

LABELS = "B. Disease Grading/2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv"
TRAIN, B1, B2 = Path(LABELS).name, "IDRiD-B-train-IDRiD_001", "IDRiD-B-train-IDRiD_002"
PHOTO = "B. Disease Grading/1. Original Images/a. Training Set/IDRiD_001.jpg"
OUTLINE = "A. Segmentation/2. All Segmentation Groundtruths/a. Training Set/1. Microaneurysms/IDRiD_01_MA.tif"
PNG, CNV, SCANS = "Test_Set/Test/1.png", "OCT2017 /train/CNV/CNV-1-1.jpeg", "OCT2017 /train"
FULL, REGULAR, BOOK = "full_df.csv", "regular-fundus-training.csv", "VF and clinical information.xlsx"
OCTDL, RFMID, SHEET = "OCTDL_labels.csv", "RFMiD_Testing_Labels.csv", "patient_data_od.xlsx"
OLD_BOOK = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
RAW, VOLUME = "RETOUCH-TrainingSet-Cirrus/TRAIN001/oct.raw", "RETOUCH-Cirrus-TRAIN001-00."
SIZE, A_PNG = "L3c-lesion_size-hard_exudate.json", "FunBench .*/L3c-[^/]*::a.png"
CHOICES = "single_choice_test_data_CFP.json"
NOTHING = r"^(.*: same photograph as .*\n?)*$"  # the miniatures' pictures are of one colour
UNREADABLE, NO_TABLE = "not a readable image: ", "is not a readable table: "
STRAY = "1 pictures that do not lie or are not called as in: "
NO_GRAY = "TRAIN001: oct.mhd: no uncompressed gray values in a file of the same folder: "

# Kind: folder, damage, pattern of what is said, of the ids lost by it, and what reads the folder (else READERS).
CASES = {
    # pictures
    "JPEG cut": (idrid, cut(PHOTO, 900), f"IDRiD_001.jpg: {UNREADABLE}.*truncated", B1),
    "JPEG without its end": (ucsd, cut(CNV, -12), f"CNV-1-1.jpeg: {UNREADABLE}.*truncated", ".*CNV-1-1"),
    "PNG cut": (rfmid, cut(PNG, 900), f"1.png: {UNREADABLE}", "RFMiD-test-1"),
    "PNG without pixels": (rfmid, put(PNG, png(8, 8)), f"1.png: {UNREADABLE}", "RFMiD-test-1"),
    "PNG of no width": (rfmid, put(PNG, png(0, 8)), f"1.png: {UNREADABLE}", "RFMiD-test-1"),
    "TIFF cut": (duke, cut("AMD1/TIFFs/8bitTIFFs/001.tif", 3000), f"001.tif: {UNREADABLE}", "DUKE_DME-AMD1.*001"),
    "picture empty": (ucsd, put(CNV, b""), f"CNV-1-1.jpeg: {UNREADABLE}", ".*CNV-1-1"),
    "text called jpg": (ucsd, put(CNV, "CNV"), f"CNV-1-1.jpeg: {UNREADABLE}cannot identify", ".*CNV-1-1"),
    "HTML saved as jpg": (idrid, put(PHOTO, "<!DOCTYPE html><title>404"), f"{UNREADABLE}cannot identify", B1),
    "decompression bomb": (rfmid, put(PNG, png(60_000, 60_000)), f"1.png: {UNREADABLE}.*bomb", "RFMiD-test-1"),
    "16-bit picture": (rfmid, saved(PNG, Image.new("I;16", (32, 32), 999)),
                       f"1.png: {UNREADABLE}gray values of 16 bits or more; save it with 8 bits", "RFMiD-test-1"),
    "CMYK picture": (ucsd, saved(CNV, Image.new("CMYK", (32, 32), (9, 99, 9, 9))), NOTHING),
    "1-bit picture": (rfmid, saved(PNG, Image.new("1", (32, 32), 1)), NOTHING),
    "animated picture": (rfmid, saved(PNG, Image.new("RGB", (32, 32), "red"), save_all=True, append_images=[
        Image.new("RGB", (32, 32), "blue")]), NOTHING),
    "folder called as a picture": (ucsd, lambda root: (drop(CNV)(root), put(f"{CNV}/CNV-1-1.jpeg", b"")(root)),
                                   f"CNV-1-1.jpeg: {STRAY}", ".*CNV-1-1"),
    "link to nothing": (ucsd, link(CNV, "gone.jpeg"), f"CNV-1-1.jpeg: {UNREADABLE}.*No such file", ".*CNV-1-1"),
    "link out of the folder": (ucsd, link(CNV, "/etc/passwd"), f"CNV-1-1.jpeg: {UNREADABLE}cannot", ".*CNV-1-1"),
    "link to a folder above": (idrid, link("B. Disease Grading/again", ".."), NOTHING),

    # names of files
    "line break in a name": (ucsd, move(CNV, "CNV-1\n-1.jpeg"), STRAY, ".*CNV-1-1"),
    "name that is no UTF-8": (jsiec, move("b.JPG", os.fsdecode(b"\xd1\xdb.JPG")),
                              r"\\udcd1\\udcdb.JPG: its name is no UTF-8: rename it", "JSIEC-0.3.DR1-b"),
    "letters composed otherwise": (
        octdl, lambda root: (edit(OCTDL, "amd_1_1", "\u00e4_1")(root), move("amd_1_1.jpg", "a\u0308_1.jpg")(root)),
        "1 rows without their image, first: \u00e4_1(.|\n)*1 images without a label, first: a\u0308_1", ".*amd_1_1"),
    "another class folder": (ucsd, move(CNV, "../DME/CNV-1-1.jpeg"), f"DME/CNV-1-1.jpeg: {STRAY}", ".*CNV-1-1"),
    "picture twice": (ucsd, copy(CNV, f"{SCANS}/CNV/CNV-1-1.jpg"), "CNV-1-1.jpe?g: a second CNV-1-1: .* counts"),
    "copy with another label": (idrid, copy(PHOTO, PHOTO.replace("001", "002")), "001.jpg: same photograph as .*"
                                "002.jpg: labels .*'No DR'.* here, .*'Moderate NPDR'.* there"),

    # folders
    "pictures missing": (idrid, drop("B. Disease Grading/1. Original Images"),
                         f"{TRAIN}: 3 rows without their image, first: IDRiD_001", "IDRiD-B-.*"),
    "label file missing": (idrid, drop(LABELS), "3 images, but no label file .*csv: half unpacked", "IDRiD-B-train.*"),
    "class folders empty": (ucsd, pictures_of(SCANS), "OCT2017 : no picture as in .*: half unpacked", "UCSD-.*"),
    "second copy": (ucsd, copy("OCT2017 /", "z/OCT2017"), "z/OCT2017: a second copy of the data set: not read"),
    "second copy to load": (ucsd, copy("OCT2017 /", "z/OCT2017"), "UCSD lies at .* and at .*\n  give one of them", ".*",
                            load_ucsd),
    "set not there": (ucsd, drop("OCT2017 /"), "no UCSD in .*looked for: .*\n  found: .*\n  unpack the official", ".*",
                      load_ucsd),
    "folder not there": (ucsd, shutil.rmtree, "set is not a folder.\n  give the folder that holds", ".*", only_set),
    "file for the folder": (ucsd, lambda root: (shutil.rmtree(root), root.write_text("x")),
                            "set is not a folder.\n  give the folder that holds", ".*", only_set),
    "DATA is a file": (ucsd, lambda root: (shutil.rmtree(root), root.write_text("x")),
                       "DATA=.*set is not a folder.\n  give the folder", ".*", data_of_a_run),
    "folder empty": (ucsd, drop("OCT2017 /"), "(?s)no readable image of .*unpack an official", ".*", only_set),
    "folder without rights": (ucsd, lambda root: (root / SCANS).chmod(0), "may not be read.\n  chmod -R", ".*"),
    "part missing": (deepdrid, drop("Online-Challenge1&2-Evaluation"), "Challenge1_labels.xlsx: no such label file: "
                     "half unpacked", "DeepDRiD-CFP-test-347_l1"),
    "eye missing": (odir, drop("2_right.jpg"), f"{FULL}: 1 rows without their image, first: 2_right", ".*-2_right"),
    "workbook missing": (papila, drop(SHEET), f"{SHEET} {NO_TABLE}", "PAPILA-.*OD"),

    # label tables
    "column renamed": (idrid, edit(TRAIN, "Retinopathy grade", "DR"), f"{TRAIN} has no column 'Retinopathy grade'; it "
                       "has Image name, DR, .*\n  take the label file from the official download", "IDRiD-.*"),
    "column twice": (octdl, edit(OCTDL, "condition", "disease"), f"{OCTDL} has the column 'disease' twice", "OCTDL-.*"),
    "header missing": (idrid, edit(TRAIN, "Image name,Retinopathy grade,Risk of macular edema ,,,,,,,,,\r\n", ""),
                       f"{TRAIN} has no column 'Image name'", "IDRiD-.*"),
    "header where none belongs": (fgadr, edit("DR_Seg_Grading_Label.csv", "0001_1", "image,grade\n0001_1"),
                                  "DR_Seg_Grading_Label.csv, row 1: image: 1 is 'grade', none of"),
    "table empty": (idrid, put(LABELS, b""), f"{TRAIN} {NO_TABLE}No columns", "IDRiD-.*"),
    "HTML for a table": (idrid, put(LABELS, "<html>Log in"), f"{TRAIN} has no column .*; it has <html>", "IDRiD-.*"),
    "semicolons": (octdl, edit(OCTDL, ",", ";", times=-1), f"{OCTDL} has no column .*; it has file_name;", "OCTDL-.*"),
    "BOM": (idrid, edit(TRAIN, "Image name", "\ufeffImage name"), NOTHING),
    "UTF-16": (idrid, edit(TRAIN, "", "", "utf-16"), f"{TRAIN} {NO_TABLE}.*\n  .*save it as UTF-8", "IDRiD-.*"),
    "Latin-1": (octdl, edit(OCTDL, "drusen", "\xfc", "latin-1"), f"{OCTDL} {NO_TABLE}'utf-8' codec", "OCTDL-.*"),
    "CRLF, commas at the end, blanks": (idrid, edit(TRAIN, "IDRiD_001,0,0", "\r\n IDRiD_001 , 0,0 "), NOTHING),
    "quote not closed": (idrid, edit(TRAIN, "IDRiD_002,2", '"IDRiD_002,2'), f"{TRAIN} {NO_TABLE}.*EOF inside string "
                         "starting at row 2", "IDRiD-.*"),
    "comma too many": (octdl, edit(OCTDL, "early,", "early,soft,"), f"{OCTDL} {NO_TABLE}Length of header", "OCTDL-.*"),
    "row too short": (octdl, edit(OCTDL, ",late,MNV,1,0,0,0,9,9", ""), f"{OCTDL}, row 3: amd_1_2: no patient"),
    "zero byte": (idrid, edit(TRAIN, "IDRiD_002,2", "IDRiD\0_002,2"), "1 rows without their image", B2),
    "workbook that is text": (deepdrid, put("Challenge1_labels.xlsx", "image_id,DR_Levels\n347_l1,1\n"),
                              f"Challenge1_labels.xlsx {NO_TABLE}", "DeepDRiD-.*"),
    "workbook cut": (grape, cut(BOOK, -12), f"{BOOK} {NO_TABLE}File is not a zip", "GRAPE-.*"),
    "workbook of broken sheets": (grape, broken_sheets, f"{BOOK} {NO_TABLE}unclosed token", "GRAPE-.*"),
    "workbook of old": (grape, put(BOOK, OLD_BOOK), f"{BOOK} needs a library: (.|\n)*save an old workbook", "GRAPE-.*"),
    "sheet missing": (grape, workbook(BOOK, Baseline=[["Subject Number"], [None], [1]]),
                      f"{BOOK} {NO_TABLE}Worksheet named 'Follow-up' not found", "GRAPE-.*"),

    # rows
    "row twice": (idrid, edit(TRAIN, "IDRiD_002,2", "IDRiD_001,1,0,,,,,,,,,\r\nIDRiD_002,2"),
                  f"{TRAIN}, row 3: IDRiD_001: listed again: the first row counts"),
    "eye twice": (deepdrid, edit(REGULAR, "2,2_l1,", "1,1_l1,x,1,3,,4,8,8,0\n2,2_l1,"), "1_l1 is listed again, as Sev"),
    "row without picture": (idrid, edit(TRAIN, "IDRiD_002,2", "IDRiD_777,2"), f"{TRAIN}: 1 rows without their image, "
                            "first: IDRiD_777(.|\n)*1 images without a label, first: IDRiD_002", B2),
    "picture without row": (idrid, edit(TRAIN, "IDRiD_002,2,1,,,,,,,,,\r\n", ""),
                            "set: 1 images without a label, first: IDRiD_002", B2),
    "picture not named": (octdl, edit(OCTDL, "amd_1_2,", ","), "1 images without a label, first: amd_1_2", ".*amd_1_2"),
    **{f"grade {text!r}": (idrid, edit(TRAIN, "IDRiD_002,2", f"IDRiD_002,{text}"), f"{TRAIN}, row 3: IDRiD_002: "
                           f"Retinopathy grade is '{text}', none of", B2) for text in ("NaN", "", "-1", "7", "2.5")},
    "ungradable": (ddr, edit("train.txt", "1.jpg 0", "1.jpg 5"), "train.txt, row 1: .* '5': ungradable", ".*007-1"),
    "code of another set": (octdl, edit(OCTDL, "2_1,RVO", "2_1,BRVO"), f"{OCTDL}, row 4: rvo_2_1: disease is 'BRVO', "
                            "none of", ".*rvo_2_1"),
    "folder of another set": (jsiec, move("0.3.DR1", "0.3.CNV"), "b.JPG: its code is '0.3.CNV', none of", ".*DR1-b"),
    "flag of 2": (rfmid, edit(RFMID, "1,1,1", "1,1,2"), f"{RFMID}, row 2: 1: DR is '2', neither 0 nor 1", ".*test-1"),
    "flags that contradict": (rfmid, edit(RFMID, "1,1,1", "1,0,1"), f"{RFMID}, row 2: 1: Disease_Risk contradicts the "
                              "other columns", ".*test-1"),
    "both eyes filled": (deepdrid, edit(REGULAR, "1,0,,", "1,0,3,"), f"{REGULAR}, row 2: '1_l1' has the grades "
                         r"\['0', '3'\], not one of 0 to 4", ".*CFP-train-1_l1"),
    "both eyes empty": (deepdrid, edit(REGULAR, "1,0,,", "1,,,"), rf"{REGULAR}, row 2: '1_l1' has the grades \[\], not "
                        "one of 0 to 4", ".*CFP-train-1_l1"),
    "name of no eye": (deepdrid, edit(REGULAR, "1,1_l1", "1,1_x1"), f"{REGULAR}, row 2: '1_x1' .*no name like 12_l1",
                       ".*CFP-train-1_l1"),
    "keyword unknown": (odir, edit(FULL, "cataract", "katarakt"), f"{FULL}, row 2: 1_left, 'katarakt': the eyes mean "
                        r"\['G', 'O'\], the columns \['C', 'G'\]", ".*-1_(left|right)"),
    "keywords without commas": (odir, edit(FULL, "cataract", "cataract?lens dust"), NOTHING),
    "keywords empty": (odir, edit(FULL, "normal fundus", ""), f"{FULL}, row 3: 2_right, '': no category", ".*-2_right"),
    "class unknown": (mmc_amd, edit("cfp.txt", "w-1 3", "w-1 4"), "cfp.txt, row 1: .*class '4': not 0 to 3", ".*f-w-1"),
    "class against the name": (mmc_amd, edit("cfp.txt", "f-w-1 3", "f-w-1 0"), "cfp.txt, row 1: 'f-w-1' has class '0': "
                               ".*not that of the letter in the name", ".*f-w-1"),
    "course unknown": (grape, lambda root: miniatures.grape(root, [[1, "OD", 0, 7, 0, "1_OD_1.jpg"], [
        2, "OS", 0, 0, 0, "2_OS_1.jpg"]], []), f"{BOOK}, row 3: Baseline: eye 1_OD.*'7'. do not fit", "GRAPE-1_OD_1"),
    "diagnosis unknown": (papila, workbook(SHEET, S=[[None, "Diagnosis"], ["ID", None], ["#002", 9], ["#004", 1]]),
                          f"{SHEET}, row 3: RET002OD: diagnosis '9'", "PAPILA-RET002OD"),
    "number unknown": (stare, edit("all-mg-codes.txt", "im0001\t13", "im0001\t99"),
                       "all-mg-codes.txt, row 1: im0001: codes '99'", "STARE-im0001"),

    # paths in label files
    "separators in front": (neh, edit("data_information.csv", "\\CNV", "\\\\/CNV"), NOTHING),
    **{f"path {path}": (idrid, edit(TRAIN, "IDRiD_002,2", f"{path},2"), f"{TRAIN}: 1 rows without their image, first: "
                        "passwd", B2) for path in ("../../etc/passwd", "/etc/passwd", "..\\..\\passwd", "C:\\passwd")},
    "directory leaves the folder": (neh, edit("data_information.csv", "\\CNV\\1\\OD\\002_Drusen", "../../etc/2"),
                                    "data_information.csv, row 3: .*does not name a picture as in", ".*002_Drusen"),

    # masks
    "mask of another size": (idrid, saved(OUTLINE, marked((50, 50))), "_MA.tif: a mask of 50 x 50 pixels does not fit "
                             "IDRiD_01.jpg"),
    "mask cut": (idrid, cut(OUTLINE, 60), "_MA.tif is not a readable mask: "),
    "mask as a bomb": (fgadr, put("Seg-set/Microaneurysms_Masks/0001_1.png", png(60_000, 60_000)),
                       "0001_1.png is not a readable mask: .*bomb"),
    "mask of an unknown lesion": (idrid, move(OUTLINE, "IDRiD_01_XX.tif"), "_XX.tif: its code is 'XX', none of"),
    "mask in an unknown folder": (fgadr, move("Microaneurysms_Masks", "MA_Masks"), "0001_1.png: its code is 'MA', non"),
    "mask of no picture": (idrid, move(OUTLINE, "IDRiD_09_MA.tif"), "1 masked images without their picture, first: ID"),
    "mask inverted": (idrid, saved(OUTLINE, Image.eval(marked((128, 192)), lambda value: 255 - value)),
                      "_MA.tif: 98% of the picture is marked: inverted, or no mask"),
    "mask empty": (fgadr, saved("Seg-set/Microaneurysms_Masks/0001_1.png", Image.new("L", (96, 64))), NOTHING),
    "mask of 16 bits": (idrid, saved(OUTLINE, marked((128, 192)).convert("I;16")), NOTHING),

    # volumes, and pictures in halves
    "raw data missing": (retouch, drop(RAW), "TRAIN001: .*No such file.*oct.raw", VOLUME),
    "raw data short": (retouch, cut(RAW, 20), "TRAIN001: oct.raw holds 20 bytes, oct.mhd asks for 24: unpack", VOLUME),
    "volume of terabytes": (retouch, header(DimSize="9999 9999 30000"), "TRAIN001: oct.raw holds 24 bytes, .*", VOLUME),
    **{f"volume with {key} {text}": (retouch, header(**{key: text}), f"{NO_GRAY}.*'{key}'", VOLUME) for key, text in [
        ("ElementType", "MET_LONG"), ("CompressedData", "True"), ("ElementDataFile", "../TRAIN002/oct.raw"),
        ("DimSize", "4 3")]},
    "volume without DimSize": (retouch, header(DimSize=None), NO_GRAY, VOLUME),
    "outlines of another size": (retouch, header(DimSize="3 4 2"), "TRAIN001: reference .* does not outline", VOLUME),
    "outlines of an unknown fluid": (retouch, put(RAW.replace("oct", "reference"), SCAN.tobytes()),
                                     "TRAIN001: .*with the values 0 to 3", VOLUME),
    "halves of another width": (oimhs, saved("Images/1/1.png", Image.new("RGB", (512, 512), miniatures.GREEN)),
                                r"1.png: not readable: \(512, 512\) pixels, not \(1024, 512\)", "OIMHS-1-1"),
    "halves of unknown colors": (oimhs, saved("Images/1/1.png", Image.new("RGB", (1024, 512), "gray")),
                                 r"1.png: not readable: .*no retina \(pure green\)", "OIMHS-1-1"),

    # FunBench, OmniMedVQA, GMAI-MMBench
    "FunBench: no JSON": (official, cut(SIZE, 30), f"{SIZE} is not readable JSON: ", "FunBench .*"),
    "FunBench: nested endlessly": (official, put(SIZE, "[" * 100_000), f"{SIZE} is not readable JSON", "FunBench .*"),
    "FunBench: a list": (official, put(SIZE, "[]"), f"{SIZE} should hold a dict, not a list", "FunBench .*"),
    "FunBench: no data": (official, put(SIZE, '{"data": []}'), f"{SIZE} has no object `data`", "FunBench .*"),
    "FunBench: image twice": (official, put(SIZE, '{"data": {"a.png": {}, "a.png": {}}}'),
                              f"{SIZE} is not readable JSON: 'a.png' is there twice", "FunBench .*"),
    "FunBench: gt no option": (official, fun(lambda items: items["a.png"].update(gt="Z")),
                               f"{SIZE}: a.png: answer 'Z' is none of the options", A_PNG),
    "FunBench: gt against raw_data": (official, fun(lambda items: items["a.png"].update(gt="B")),
                                      f"{SIZE}: a.png: gt 'B' means", A_PNG),
    "FunBench: no raw_data": (official, fun(lambda items: items["a.png"].pop("raw_data")),
                              f"{SIZE}: a.png: no raw_data", A_PNG),
    **{f"FunBench: image {path}": (official, renamed(path), f"{SIZE}: .*leaves the folder", A_PNG)
       for path in ("../../etc/passwd", "/etc/passwd", "..\\..\\x.png")},
    **{f"FunBench: image {path!r}": (official, renamed(path), "3 images are missing, first: ", A_PNG)
       for path in ("C:\\x.png", "x\0b.png")},
    "OmniMedVQA: an object": (official, put("J.json", "{}"), "J.json should hold a list, not a dict", "Omni.*"),
    "OmniMedVQA: no option": (official, omni(omni_row(option_A=None)), "J.json: row 2: no option_A", "Omni.* q2"),
    "OmniMedVQA: answer no option": (official, omni(omni_row(gt_answer="Retina")),
                                     "J.json: row 2: answer 'Retina' is none of", "Omni.* q2"),
    "OmniMedVQA: text for a row": (official, omni("q2"), "J.json: row 2: no gt_answer", "Omni.* q2"),
    "GMAI: no base64": (official, gmai("image", "!?"), "GMAI_VAL.tsv: index 2: the image is not base64", "GMAI.*2"),
    "GMAI: image of no row": (official, gmai("image", "12"), "index 2: image 12 is the index of no row", "GMAI.*2"),
    "GMAI: no image": (official, gmai("image", ""), "GMAI_VAL.tsv: index 2: no image", "GMAI.*2"),
    "GMAI: index twice": (official, gmai("index", "1"), "GMAI_VAL.tsv has the index 1 twice", "GMAI.*"),
    "GMAI: answer empty": (official, gmai("answer", "E"), "index 2: answer 'E' is none of the options", "GMAI.*2"),
    "GMAI: column missing": (official, edit("GMAI_VAL.tsv", "question", "prompt"),
                             "GMAI_VAL.tsv has no column question; it has index, image,", "GMAI.*"),

    # MM-Retinal-Reason, VLMEvalKit
    "record without image": (reason, tell(image=[]), f"{CHOICES}, row 2: 0 images; a record has 1 to 6", ".*"),
    "record with a number": (reason, tell(image=[3]), f"{CHOICES}, row 2: image 3 is no path", ".*"),
    "record with empty text": (reason, tell(image=[""]), f"{CHOICES}, row 2: image '' is no path", ".*"),
    "record with bad base64": (reason, tell(image=["%%"]), f"{CHOICES}, row 2: image '%%' is no path, no base64", ".*"),
    "record that leaves the folder": (reason, tell(image=["../a.jpg"]), f"{CHOICES}, row 2: .*leaves the folder", ".*"),
    "record without answer": (reason, tell(gpt=None), f"{CHOICES}, row 2: .*a human and a gpt turn", ".*"),
    "record's image in no table": (reason, edit("complex_test_data.csv", "b.jpg", "c.jpg"),
                                   "complex_test_data.json, row 1: image 'b.jpg' is .*not in the .csv", ".*"),
    "predictions without question": (predictions, edit("model.tsv", "question", "prompt"),
                                     "model.tsv has no column question; it has index, prompt", ".*"),
    "predictions twice": (predictions, edit("model.tsv", "2\tR?", "1\tR?"), "model.tsv has the index 1 twice", ".*"),
    "predictions missing": (predictions, drop("model.tsv"), f"model.tsv {NO_TABLE}.*No such file", ".*"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What is unpacked here stays here."""
    monkeypatch.setenv("FUNDUS_CACHE", str(tmp_path / "cache"))


@functools.cache
def whole(write: Callable, read: Callable, folder: Path) -> tuple[Path, set[str]]:
    """A folder with the set and another one beside it, and the ids that are read from it."""
    root = folder / write.__name__
    if not root.exists():
        write(root / "set")
        downloads.picture(root / "neighbour/AMRD/AMRD1.jpeg", 7000)
        (root / "neighbour/NORMAL").mkdir()
    return root, read(root)[0]


def check(root: Path, copies: Path, write: Callable, damage: Callable, read=None) -> tuple[str, set[str], set[str]]:
    """Damage a copy of the set at `root` and read it: what is said, the ids that were there before, and after."""
    read = read or READERS.get(write, read_sets)
    folder, before = whole(write, read, copies)
    shutil.copytree(folder, root)
    damage(root / "set")
    try:
        after, said = read(root)
    except (data.DataError, FileNotFoundError, runs.RunError) as error:
        after, said = set(), str(error)
    return said, before, after


@pytest.mark.filterwarnings("ignore:.* problems, first", "ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", CASES)
def test_malformed_input_is_named_and_nothing_else_is_lost(tmp_path, tmp_path_factory, kind):
    if kind == "folder without rights" and os.geteuid() == 0:
        pytest.skip("root may read every folder")
    write, damage, wanted, *more = CASES[kind]
    lost, read = [*more, "", None][:2] if len(more) != 1 else (more[0], None)
    said, before, after = check(tmp_path / "data", tmp_path_factory.getbasetemp() / "whole", write, damage, read)
    assert re.search(wanted, said), said
    assert before - after == {name for name in before if re.fullmatch(lost, name)}, said


def test_there_are_sixty_kinds():
    assert sum(wanted != NOTHING for _, _, wanted, *_ in CASES.values()) >= 60
