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
from typing import NamedTuple

import downloads
import miniatures
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_benchmarks import LEVELS, gmai_row, omni_row
from test_mm_retinal_reason import published

from fundus_lib import benchmarks, data, mm_retinal_reason, runs, vlmevalkit
from fundus_lib.benchmarks import write_json

# Ways to damage a folder: each returns what changes the one file of that name (or path from the folder on).


def at(root: Path, name: str) -> Path:
    """The one file or folder of that name, or at that path."""
    return root / name if "/" in name else next(iter(root.rglob(name)))


def put(name: str, content: bytes | str) -> Callable:
    """Write a file, also one that is not there."""
    def change(root: Path) -> None:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    return change


def edit(name: str, old: str, new: str, encoding: str = "utf-8", times: int = 1) -> Callable:
    """Replace a text in a file, and write it in another encoding."""
    def change(root: Path) -> None:
        content = (file := at(root, name)).read_bytes().decode("utf-8")
        assert old in content, content
        file.write_bytes(content.replace(old, new, times).encode(encoding))
    return change


def cut(name: str, size: int | None = None) -> Callable:
    """Keep the first bytes, or all but the last twelve."""
    return lambda root: (file := at(root, name)).write_bytes(file.read_bytes()[:-12 if size is None else size])


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
    def change(root: Path) -> None:
        file = root / name
        file.unlink(missing_ok=True)
        file.symlink_to(to)
    return change


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


def put_in(name: str, content: str) -> Callable:
    """Write a file of that name, wherever it lies."""
    return lambda root: at(root, name).write_text(content)


def header(**fields: str) -> Callable:
    """Write TRAIN001's scan with other lines in its header."""
    return lambda root: miniatures.metaimage(at(root, "TRAIN001") / "oct.mhd", SCAN, **fields)


def png(width: int, height: int) -> bytes:
    """A PNG that has all its parts and no pixels, whatever size it says."""
    parts = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(text)) + name + text + struct.pack(
        ">I", zlib.crc32(name + text)) for name, text in parts)


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


def load(name: str) -> Callable:
    def read(root: Path) -> tuple[set[str], str]:
        return set(data.load_dataset(name, root)["id"]), ""
    return read


def read_benchmarks(root: Path) -> tuple[set[str], str]:
    questions, _, problems = benchmarks.read_official(root)
    return set(questions.benchmark + " " + questions.id), "\n".join(f"{p.file}: {p.reason}" for p in problems)


def read_reason(root: Path) -> tuple[set[str], str]:
    return set(mm_retinal_reason.read_mm_retinal_reason(root / "set").id), ""


def read_predictions(root: Path) -> tuple[set[str], str]:
    return set(vlmevalkit.read_vlmevalkit(root / "set/model.tsv").id), ""


class Case(NamedTuple):
    """`lost` is a pattern of the ids that are read from the whole folder and not from the damaged one."""
    write: Callable
    damage: Callable
    said: str
    lost: str = ""
    read: Callable = read_sets


LABELS = "B. Disease Grading/2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv"
TRAIN, B1, B2 = Path(LABELS).name, "IDRiD-B-train-IDRiD_001", "IDRiD-B-train-IDRiD_002"
PHOTO = "B. Disease Grading/1. Original Images/a. Training Set/IDRiD_001.jpg"
OUTLINE = "A. Segmentation/2. All Segmentation Groundtruths/a. Training Set/1. Microaneurysms/IDRiD_01_MA.tif"
PNG, CNV, SCANS = "Test_Set/Test/1.png", "OCT2017 /train/CNV/CNV-1-1.jpeg", "OCT2017 /train"
FULL, REGULAR, BOOK = "full_df.csv", "regular-fundus-training.csv", "VF and clinical information.xlsx"
CHALLENGE = "regular_fundus_images/Online-Challenge1&2-Evaluation/Challenge1_labels.xlsx"
OCTDL, RFMID, OLD = "OCTDL_labels.csv", "RFMiD_Testing_Labels.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
VOLUME, RAW, SCANNED = "RETOUCH-Cirrus-TRAIN001-00.", "RETOUCH-TrainingSet-Cirrus/TRAIN001/oct.raw", "TRAIN001: "
L3C, L3C_ID = "L3c-lesion_size-hard_exudate.json", "FunBench .*/L3c-lesion_size-hard_exudate::a.png"
CHOICES = "single_choice_test_data_CFP.json"
NOTHING = r"^(.*: same photograph as .*\n?)*$"  # the miniatures' pictures are of one colour
UNREADABLE = "not a readable image: "


def pictures_of(name: str) -> Callable:
    """Take the pictures of a folder away, not the folder."""
    return lambda root: [file.unlink() for file in at(root, name).rglob("*.*")]


def ask(**changes) -> Callable:
    """Change the second question of OmniMedVQA."""
    return lambda root: write_json(at(root, "J.json"), [omni_row(question_id="q1"), omni_row(question_id="q2", **changes)])


def funbench(change: Callable) -> Callable:
    """Change the question about a.png in the file on the size of hard exudates."""
    def changed(root: Path) -> None:
        content = json.loads((file := at(root, L3C)).read_text())
        change(content["data"])
        write_json(file, content)
    return changed


def gmai(**changes) -> Callable:
    """Write GMAI-MMBench's second row otherwise; a column of None is left out."""
    def change(root: Path) -> None:
        table = pd.read_csv(file := at(root, "GMAI_VAL.tsv"), sep="\t", dtype=str, keep_default_na=False)
        for column, value in changes.items():
            table = table.drop(columns=column) if value is None else table
            if value is not None:
                table.loc[1, column] = value
        table.to_csv(file, sep="\t", index=False)
    return change


def tell(**changes) -> Callable:
    """Change the second record of MM-Retinal-Reason."""
    return lambda root: write_json(root / CHOICES, [published(), published(**changes)])


def broken_sheets(root: Path) -> None:
    """A whole archive whose sheets end in the middle."""
    with zipfile.ZipFile(at(root, BOOK)) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    with zipfile.ZipFile(at(root, BOOK), "w") as book:
        for name, content in parts.items():
            book.writestr(name, content[:len(content) // 2] if "sheets/" in name else content)


CASES = {
    # pictures
    "JPEG cut": Case(idrid, cut(PHOTO, 900), f"IDRiD_001.jpg: {UNREADABLE}.*truncated", B1),
    "JPEG without its last bytes": Case(ucsd, cut(CNV), f"CNV-1-1.jpeg: {UNREADABLE}.*truncated", ".*CNV-1-1"),
    "PNG cut": Case(rfmid, cut(PNG), f"1.png: {UNREADABLE}", "RFMiD-test-1"),
    "PNG without pixels": Case(rfmid, put(PNG, png(8, 8)), f"1.png: {UNREADABLE}", "RFMiD-test-1"),
    "PNG of no width": Case(rfmid, put(PNG, png(0, 8)), f"1.png: {UNREADABLE}", "RFMiD-test-1"),
    "TIFF cut": Case(duke, cut("AMD1/TIFFs/8bitTIFFs/001.tif", 3000), f"001.tif: {UNREADABLE}", "DUKE_DME-AMD1.*001"),
    "empty picture": Case(ucsd, put(CNV, b""), f"CNV-1-1.jpeg: {UNREADABLE}", ".*CNV-1-1"),
    "text called jpg": Case(ucsd, put(CNV, "CNV"), f"CNV-1-1.jpeg: {UNREADABLE}cannot identify", ".*CNV-1-1"),
    "HTML saved as jpg": Case(idrid, put(PHOTO, "<!DOCTYPE html><title>404"), f"{UNREADABLE}cannot identify", B1),
    "decompression bomb": Case(rfmid, put(PNG, png(60_000, 60_000)), f"1.png: {UNREADABLE}.*decompression bomb", ".*test-1"),
    "16-bit gray picture": Case(rfmid, saved(PNG, Image.fromarray(np.arange(96, dtype=np.uint16).reshape(8, 12) * 600)),
                                f"1.png: {UNREADABLE}.*16 bits", "RFMiD-test-1"),
    "CMYK picture": Case(ucsd, saved(CNV, Image.new("CMYK", (32, 32), (9, 99, 9, 9))), NOTHING),
    "1-bit picture": Case(rfmid, saved(PNG, Image.new("1", (32, 32), 1)), NOTHING),
    "animated picture": Case(rfmid, saved(PNG, Image.new("RGB", (32, 32), "red"), save_all=True, append_images=[
        Image.new("RGB", (32, 32), "blue")]), NOTHING),
    "folder called as a picture": Case(
        ucsd, lambda root: ((root / CNV).unlink(), put(f"{CNV}/CNV-1-1.jpeg", b"")(root)),
        "CNV-1-1.jpeg: 1 pictures that do not lie or are not called as in: {train,val,test}", ".*CNV-1-1"),
    "link to nothing": Case(ucsd, link(CNV, "gone.jpeg"), f"CNV-1-1.jpeg: {UNREADABLE}.*No such file", ".*CNV-1-1"),
    "link out of the folder": Case(ucsd, link(CNV, "/etc/passwd"), f"CNV-1-1.jpeg: {UNREADABLE}cannot", ".*CNV-1-1"),
    "link to a folder above": Case(idrid, link("B. Disease Grading/again", ".."), "a link to a folder above it: delete it"),

    # names of files
    "line break in a name": Case(ucsd, move(CNV, "CNV-1\n-1.jpeg"), "1 pictures that do not lie or", ".*CNV-1-1"),
    "name that is no UTF-8": Case(jsiec, move("b.JPG", os.fsdecode(b"\xd1\xdb.JPG")),
                                  r"\\udcd1\\udcdb.JPG: .*its name is no UTF-8: rename it", "JSIEC-0.3.DR1-b"),
    "letters composed otherwise": Case(
        octdl, lambda root: (edit(OCTDL, "amd_1_1", "\u00e4md_1_1")(root), move("amd_1_1.jpg", "a\u0308md_1_1.jpg")(root)),
        "1 rows without their image, first: \u00e4md_1_1(.|\n)*1 images without a label, first: a\u0308md_1_1", ".*amd_1_1"),
    "picture in another class folder": Case(ucsd, move(CNV, "../DME/CNV-1-1.jpeg"),
                                            "DME/CNV-1-1.jpeg: 1 pictures that do not lie", ".*CNV-1-1"),
    "picture twice": Case(ucsd, copy(CNV, f"{SCANS}/CNV/CNV-1-1.jpg"), "CNV-1-1.jpg: a second CNV-1-1: .* counts|CNV-1-1.jpeg: a second CNV-1-1: .*"),
    "copy with another label": Case(idrid, copy(PHOTO, PHOTO.replace("001", "002")),
                                    "001.jpg: same photograph as .*002.jpg: labels .*'No DR'.* here, .*'Moderate NPDR'.* there"),

    # folders
    "pictures missing": Case(idrid, drop("B. Disease Grading/1. Original Images"),
                             f"{TRAIN}: 3 rows without their image, first: IDRiD_001", "IDRiD-B-.*"),
    "label file missing": Case(idrid, drop(LABELS), "3 images, but no label file .*Training Labels.csv: half unpacked",
                               "IDRiD-B-train.*"),
    "class folders empty": Case(ucsd, pictures_of(SCANS), "OCT2017 : no picture as in .*: half unpacked", "UCSD-.*"),
    "second copy of a set": Case(ucsd, copy("OCT2017 /", "z/OCT2017"), "z/OCT2017: a second copy of the data set: not read"),
    "second copy to load": Case(ucsd, copy("OCT2017 /", "z/OCT2017"), "UCSD lies at .* and at .*\n  give one", ".*", load("UCSD")),
    "set not there": Case(ucsd, drop("OCT2017 /"), "no UCSD in .*looked for: .*\n  found: .*\n  unpack the official download",
                          ".*", load("UCSD")),
    "no folder": Case(ucsd, shutil.rmtree, "set is not a folder.\n  give the folder that holds", ".*", only_set),
    "file in place of the folder": Case(ucsd, lambda root: (shutil.rmtree(root), root.write_text("x")),
                                        "set is not a folder.\n  give the folder that holds", ".*", only_set),
    "nothing in the folder": Case(ucsd, drop("OCT2017 /"), "(?s)no readable image of .*unpack an official", ".*", only_set),
    "part missing": Case(deepdrid, drop("Online-Challenge1&2-Evaluation"), "Challenge1_labels.xlsx: no such label file: half",
                         "DeepDRiD-CFP-test-347_l1"),
    "one eye missing": Case(odir, drop("2_right.jpg"), f"{FULL}: 1 rows without their image, first: 2_right", ".*-2_right"),
    "one sheet missing": Case(papila, drop("patient_data_od.xlsx"), "patient_data_od.xlsx.* is not a readable table",
                              "PAPILA-.*OD"),

    # label tables
    "column renamed": Case(idrid, edit(TRAIN, "Retinopathy grade", "DR"), f"{TRAIN} has no column 'Retinopathy grade'; it "
                           "has Image name, DR, .*\n  take the label file from the official download", "IDRiD-.*"),
    "header missing": Case(idrid, edit(TRAIN, "Image name,Retinopathy grade,Risk of macular edema ,,,,,,,,,\r\n", ""),
                           f"{TRAIN} has no column 'Image name'", "IDRiD-.*"),
    "header where none belongs": Case(fgadr, edit("DR_Seg_Grading_Label.csv", "0001_1", "image,grade\n0001_1"),
                                      "DR_Seg_Grading_Label.csv, row 1: image: 1 is 'grade', none of"),
    "column twice": Case(octdl, edit(OCTDL, "condition", "disease"), f"{OCTDL} has the column 'disease' twice", "OCTDL-.*"),
    "empty label file": Case(idrid, put(LABELS, b""), f"{TRAIN} is not a readable table: No columns", "IDRiD-.*"),
    "HTML for a table": Case(idrid, put(LABELS, "<html><body>Log in"), "no column 'Image name', .*; it has <html>", "IDRiD-.*"),
    "semicolons": Case(octdl, edit(OCTDL, ",", ";", times=-1), f"{OCTDL} has no column 'file_name', .*; it has file_name;",
                       "OCTDL-.*"),
    "BOM": Case(idrid, edit(TRAIN, "Image name", "\ufeffImage name"), NOTHING),
    "UTF-16": Case(idrid, edit(TRAIN, "", "", "utf-16"), f"{TRAIN} is not a readable table: .*codec.*\n  ", "IDRiD-.*"),
    "Latin-1": Case(octdl, edit(OCTDL, "drusen", "Dr\xfcsen", "latin-1"), f"{OCTDL} is not a readable table: 'utf-8' codec",
                    "OCTDL-.*"),
    "CRLF, trailing commas, blanks": Case(idrid, edit(TRAIN, "IDRiD_001,0,0", "\r\n IDRiD_001 , 0,0 "), NOTHING),
    "quote not closed": Case(idrid, edit(TRAIN, "IDRiD_002,2", '"IDRiD_002,2'), f"{TRAIN} is not a readable table: .*EOF inside "
                             "string starting at row 2", "IDRiD-.*"),
    "a comma too many": Case(octdl, edit(OCTDL, "early,drusen", "early,soft,drusen"), f"{OCTDL} is not a readable table: ",
                             "OCTDL-.*"),
    "row too short": Case(octdl, edit(OCTDL, ",late,MNV,1,0,0,0,9,9", ""), f"{OCTDL}, row 3: amd_1_2: no patient"),
    "zero bytes in a table": Case(idrid, edit(TRAIN, "IDRiD_002,2", "IDRiD\0_002,2"), "1 rows without their image", B2),
    "workbook that is text": Case(deepdrid, put(CHALLENGE, "image_id,DR_Levels\n347_l1,1\n"),
                                  "Challenge1_labels.xlsx is not a readable table: ", "DeepDRiD-.*"),
    "workbook cut": Case(grape, cut(BOOK), f"{BOOK} is not a readable table: File is not a zip", "GRAPE-.*"),
    "workbook with broken sheets": Case(grape, broken_sheets, f"{BOOK} is not a readable table: unclosed token", "GRAPE-.*"),
    "old workbook, new name": Case(grape, put(BOOK, OLD), f"{BOOK} .*", "GRAPE-.*"),
    "sheet missing": Case(grape, workbook(BOOK, Baseline=[["Subject Number"], [None], [1]]),
                          f"{BOOK} is not a readable table: Worksheet named 'Follow-up' not found", "GRAPE-.*"),

    # rows
    "row twice": Case(idrid, edit(TRAIN, "IDRiD_002,2", "IDRiD_001,1,0,,,,,,,,,\r\nIDRiD_002,2"),
                      f"{TRAIN}, row 3: IDRiD_001: listed again: the first row counts"),
    "eye twice": Case(deepdrid, edit(REGULAR, "2,2_l1,", "1,1_l1,x,1,3,,4,8,8,0\n2,2_l1,"), "1_l1 is listed again, as Severe"),
    "row without picture": Case(idrid, edit(TRAIN, "IDRiD_002,2", "IDRiD_777,2"), f"{TRAIN}: 1 rows without their image, "
                                "first: IDRiD_777(.|\n)*1 images without a label, first: IDRiD_002", B2),
    "picture without row": Case(idrid, edit(TRAIN, "IDRiD_002,2,1,,,,,,,,,\r\n", ""), "1 images without a label, first: "
                                "IDRiD_002", B2),
    **{f"grade {text!r}": Case(idrid, edit(TRAIN, "IDRiD_002,2", f"IDRiD_002,{text}"), f"{TRAIN}, row 3: IDRiD_002: "
                               f"Retinopathy grade is '{text}', none of 0, 1", B2) for text in ("NaN", "", "-1", "7", "2.5")},
    "ungradable": Case(ddr, edit("train.txt", "007-1.jpg 0", "007-1.jpg 5"), "train.txt, row 1: 007-1: 1 is '5': ungradable",
                       "DDR-.*007-1"),
    "code of another set": Case(octdl, edit(OCTDL, "rvo_2_1,RVO", "rvo_2_1,BRVO"), f"{OCTDL}, row 4: rvo_2_1: disease is "
                                "'BRVO', none of", "OCTDL-rvo_2_1"),
    "class folder of another set": Case(jsiec, move("0.3.DR1", "0.3.CNV"), "b.JPG: its code is '0.3.CNV', none of",
                                        "JSIEC-0.3.DR1-b"),
    "flag neither 0 nor 1": Case(rfmid, edit(RFMID, "1,1,1", "1,1,2"), f"{RFMID}, row 2: 1: DR is '2', neither 0 nor 1",
                                 "RFMiD-test-1"),
    "flags that contradict": Case(rfmid, edit(RFMID, "1,1,1", "1,0,1"), f"{RFMID}, row 2: 1: Disease_Risk contradicts the "
                                  "other columns", "RFMiD-test-1"),
    "both eye columns filled": Case(deepdrid, edit(REGULAR, "1,0,,", "1,0,3,"), f"{REGULAR}, row 2: '1_l1' has the grades "
                                    ".'0', '3'., not one of 0 to 4", ".*CFP-train-1_l1"),
    "both eye columns empty": Case(deepdrid, edit(REGULAR, "1,0,,", "1,,,"), f"{REGULAR}, row 2: '1_l1' has the grades .., not "
                                   "one of 0 to 4", ".*CFP-train-1_l1"),
    "name of no eye": Case(deepdrid, edit(REGULAR, "1,1_l1", "1,1_x1"), f"{REGULAR}, row 2: '1_x1' .*no name like 12_l1",
                           ".*CFP-train-1_l1"),
    "keywords unknown": Case(odir, edit(FULL, "cataract", "katarakt"), f"{FULL}, row 2: 1_left, 'katarakt': the eyes mean "
                             r"\['G', 'O'\], the columns \['C', 'G'\]", ".*-1_(left|right)"),
    "keywords without commas": Case(odir, edit(FULL, "cataract", "cataract?lens dust"), NOTHING),
    "keywords empty": Case(odir, edit(FULL, "normal fundus", ""), f"{FULL}, row 3: 2_right, '': no category", ".*-2_right"),
    "class unknown": Case(mmc_amd, edit("cfp.txt", "f-w-1 3", "f-w-1 4"), "cfp.txt, row 1: 'f-w-1' has class '4': not 0 to 3",
                          "MMC-AMD-f-w-1"),
    "class against the name": Case(mmc_amd, edit("cfp.txt", "f-w-1 3", "f-w-1 0"), "cfp.txt, row 1: 'f-w-1' has class '0': .*"
                                   "not that of the letter in the name", "MMC-AMD-f-w-1"),
    "course unknown": Case(grape, lambda root: miniatures.grape(root, [[1, "OD", 0, 7, 0, "1_OD_1.jpg"], [
        2, "OS", 0, 0, 0, "2_OS_1.jpg"]], []), f"{BOOK}, row 3: Baseline: eye 1_OD.*'7'. do not fit", "GRAPE-1_OD_1"),
    "diagnosis unknown": Case(papila, workbook("patient_data_od.xlsx", S=[[None, "Age", "Diagnosis"], ["ID", None, None], [
        "#002", 47, 9], ["#004", 5, 1]]), "patient_data_od.xlsx, row 3: RET002OD: diagnosis '9'", "PAPILA-RET002OD"),
    "number unknown": Case(stare, edit("all-mg-codes.txt", "im0001\t13", "im0001\t99"), "all-mg-codes.txt, row 1: im0001: "
                           "codes '99'", "STARE-im0001"),
    "picture not named": Case(octdl, edit(OCTDL, "amd_1_2,AMD", ",AMD"), "1 images without a label, first: amd_1_2", ".*amd_1_2"),
    "separators in front": Case(neh, edit("data_information.csv", "\\CNV", "\\\\/CNV"), NOTHING),

    # paths in label files
    **{f"path {path} in a label file": Case(idrid, edit(TRAIN, "IDRiD_002,2", f"{path},2"), f"{TRAIN}: 1 rows without their "
                                            "image, first: passwd", B2)
       for path in ("../../../etc/passwd", "/etc/passwd", "..\\..\\etc\\passwd", "C:\\etc\\passwd")},
    "directory out of the folder": Case(neh, edit("data_information.csv", "\\CNV\\1\\OD\\002_Drusen.jpg", "../../etc/2.jpg"),
                                        "data_information.csv, row 3: .*does not name a picture as in", ".*002_Drusen"),
    "photograph in another folder": Case(odir, edit(FULL, "1_left.jpg", "../../1_up.jpg"), f"{FULL}: 1 rows without their "
                                         "image, first: 1_up", ".*-1_left"),

    # masks
    "mask of another size": Case(idrid, saved(OUTLINE, marked((50, 50))), "_MA.tif: a mask of 50 x 50 pixels does not fit "
                                 "IDRiD_01.jpg"),
    "mask cut": Case(idrid, cut(OUTLINE, 60), "_MA.tif: .*_MA.tif is not a readable mask"),
    "mask that is a bomb": Case(fgadr, put("Seg-set/Microaneurysms_Masks/0001_1.png", png(60_000, 60_000)),
                                "0001_1.png is not a readable mask: .*decompression bomb"),
    "mask of an unknown lesion": Case(idrid, move(OUTLINE, "IDRiD_01_XX.tif"), "_XX.tif: its code is 'XX', none of"),
    "mask of no picture": Case(idrid, move(OUTLINE, "IDRiD_09_MA.tif"), "1 masked images without their picture, first: IDRiD_09"),
    "mask inverted": Case(idrid, saved(OUTLINE, Image.eval(marked((128, 192)), lambda v: 255 - v)),
                          "_MA.tif: .* of the picture is marked: inverted"),
    "mask empty": Case(fgadr, saved("Seg-set/Microaneurysms_Masks/0001_1.png", Image.new("L", (96, 64))), NOTHING),
    **{f"mask as {mode}": Case(idrid, saved(OUTLINE, marked((128, 192)).convert(mode)), NOTHING)
       for mode in ("RGBA", "P", "I;16", "1")},
    "folder of masks unknown": Case(fgadr, move("Microaneurysms_Masks", "MA_Masks"), "0001_1.png: its code is 'MA', none of"),

    # volumes and pictures in halves
    "raw data missing": Case(retouch, drop(RAW), f"{SCANNED}.*No such file.*oct.raw", VOLUME),
    "raw data short": Case(retouch, cut(RAW, 20), f"{SCANNED}oct.raw holds 20 bytes, oct.mhd asks for 24: unpack", VOLUME),
    "raw data empty": Case(retouch, cut(RAW, 0), f"{SCANNED}oct.raw holds 0 bytes, oct.mhd asks for 24: unpack", VOLUME),
    "volume of three terabytes": Case(retouch, header(DimSize="9999 9999 30000"), f"{SCANNED}oct.raw holds 24 bytes", VOLUME),
    **{f"volume with {key} {text}": Case(retouch, header(**{key: text}), f"{SCANNED}oct.mhd: no uncompressed gray values in a "
                                         f"file of the same folder: .*'{key}'", VOLUME)
       for key, text in [("ElementType", "MET_LONG"), ("CompressedData", "True"), ("ElementDataFile", "../TRAIN002/oct.raw"),
                         ("ElementDataFile", "/etc/passwd"), ("ElementDataFile", "..\\x.raw"), ("DimSize", "4 3"),
                         ("DimSize", "4 3 -2")]},
    "volume without DimSize": Case(retouch, header(DimSize=None), f"{SCANNED}oct.mhd: no uncompressed gray values", VOLUME),
    "volume and outlines of two sizes": Case(retouch, header(DimSize="3 4 2"), f"{SCANNED}reference .* does not outline", VOLUME),
    "outlines of an unknown fluid": Case(
        retouch, lambda root: put(RAW.replace("oct", "reference"), SCAN.tobytes())(root), f"{SCANNED}.*with the values 0 to 3", VOLUME),
    "halves of another width": Case(oimhs, saved("Images/1/1.png", Image.new("RGB", (512, 512), miniatures.GREEN)),
                                    r"1.png: not readable: \(512, 512\) pixels, not \(1024, 512\)", "OIMHS-1-1"),
    "halves without known colors": Case(oimhs, saved("Images/1/1.png", Image.new("RGB", (1024, 512), "gray")),
                                        r"1.png: not readable: .*no retina \(pure green\)", "OIMHS-1-1"),

    # FunBench, OmniMedVQA, GMAI-MMBench
    "FunBench: no JSON": Case(official, cut(L3C, 30), f"{L3C} is not readable JSON: ", "FunBench .*", read_benchmarks),
    "FunBench: a list": Case(official, put_in(L3C, "[]"), f"{L3C} should hold a dict, not a list", "FunBench .*", read_benchmarks),
    "FunBench: nested without end": Case(official, put_in(L3C, "[" * 100_000), f"{L3C} is not readable JSON", "FunBench .*",
                                         read_benchmarks),
    "FunBench: no data": Case(official, put_in(L3C, '{"data": []}'), f"{L3C} has no object `data`", "FunBench .*", read_benchmarks),
    "FunBench: image twice": Case(official, put_in(L3C, '{"data": {"a.png": {}, "a.png": {}}}'), f"{L3C} .*'a.png' .*twice",
                                  "FunBench .*", read_benchmarks),
    "FunBench: gt not an option": Case(official, funbench(lambda d: d["a.png"].update(gt="Z")), f"{L3C}: a.png: answer 'Z' is none "
                                       "of the options", L3C_ID, read_benchmarks),
    "FunBench: gt against raw_data": Case(official, funbench(lambda d: d["a.png"].update(gt="B")), f"{L3C}: a.png: gt 'B' means",
                                          L3C_ID, read_benchmarks),
    "FunBench: no raw_data": Case(official, funbench(lambda d: d["a.png"].pop("raw_data")), f"{L3C}: a.png: no raw_data", L3C_ID,
                                  read_benchmarks),
    **{f"FunBench: image {path!r}": Case(official, funbench(lambda d, path=path: d.update({path: d.pop("a.png")})), f"{L3C}: .*"
                                         "leaves the folder", L3C_ID, read_benchmarks)
       for path in ("../../etc/passwd", "/etc/passwd", "..\\..\\x.png")},
    **{f"FunBench: image {path!r}": Case(official, funbench(lambda d, path=path: d.update({path: d.pop("a.png")})),
                                         "images are missing, first: ", L3C_ID, read_benchmarks)
       for path in ("C:\\x.png", "a\0b.png")},
    "OmniMedVQA: an object": Case(official, put_in("J.json", "{}"), "J.json should hold a list, not a dict", "Omni.*", read_benchmarks),
    "OmniMedVQA: no option": Case(official, ask(option_A=None), "J.json: row 2: no option_A", "Omni-Fundus q2", read_benchmarks),
    "OmniMedVQA: answer no option": Case(official, ask(gt_answer="Retina"), "J.json: row 2: answer 'Retina' is none of",
                                         "Omni-Fundus q2", read_benchmarks),
    "OmniMedVQA: text for a row": Case(official, lambda root: write_json(at(root, "J.json"), [omni_row(question_id="q1"), "q2"]),
                                       "J.json: row 2: no gt_answer", "Omni-Fundus q2", read_benchmarks),
    "GMAI: no base64": Case(official, gmai(image="!?"), "GMAI_VAL.tsv: index 2: the image is not base64", "GMAI.*2", read_benchmarks),
    "GMAI: image of no row": Case(official, gmai(image="12"), "index 2: image 12 is the index of no row", "GMAI.*2", read_benchmarks),
    "GMAI: no image": Case(official, gmai(image=""), "GMAI_VAL.tsv: index 2: no image", "GMAI.*2", read_benchmarks),
    "GMAI: index twice": Case(official, gmai(index="1"), "GMAI_VAL.tsv has the index 1 twice", "GMAI.*", read_benchmarks),
    "GMAI: answer empty": Case(official, gmai(answer="E"), "index 2: answer 'E' is none of the options", "GMAI.*2", read_benchmarks),
    "GMAI: column missing": Case(official, gmai(question=None), "GMAI_VAL.tsv has no column question; it has index, image,",
                                 "GMAI.*", read_benchmarks),

    # MM-Retinal-Reason and VLMEvalKit's predictions
    "record without image": Case(reason, tell(image=[]), f"{CHOICES}, row 2: 0 images; a record has 1 to 6", ".*", read_reason),
    "record with a number": Case(reason, tell(image=[3]), f"{CHOICES}, row 2: image 3 is no path", ".*", read_reason),
    "record with an empty image": Case(reason, tell(image=[""]), f"{CHOICES}, row 2: image '' is no path", ".*", read_reason),
    "record with bad base64": Case(reason, tell(image=["%%"]), f"{CHOICES}, row 2: image '%%' is no path, no base64", ".*", read_reason),
    "record that leaves the folder": Case(reason, tell(image=["../a.jpg"]), f"{CHOICES}, row 2: .*leaves the folder", ".*", read_reason),
    "record without answer": Case(reason, tell(gpt=None), f"{CHOICES}, row 2: .*a human and a gpt turn", ".*", read_reason),
    "record's image not in the table": Case(reason, edit("complex_test_data.csv", "b.jpg", "c.jpg"), "complex_test_data.json, row "
                                            "1: image 'b.jpg' is .*not in the .csv", ".*", read_reason),
    "predictions without question": Case(predictions, edit("model.tsv", "question", "prompt"), "model.tsv has no column question; "
                                         "it has index, prompt", ".*", read_predictions),
    "predictions without index": Case(predictions, edit("model.tsv", "index", "id"), "model.tsv has no column index", ".*",
                                      read_predictions),
    "predictions without prediction": Case(predictions, edit("model.tsv", "prediction", "answer_2"), "model.tsv has no column prediction", ".*",
                                           read_predictions),
    "predictions missing": Case(predictions, drop("model.tsv"), "model.tsv is not a readable table: .*No such file", ".*", read_predictions),
    "DATA is a file": Case(ucsd, lambda root: (shutil.rmtree(root), root.write_text("x")), "DATA=.*set is not a folder.\n  give the "
                           "folder", ".*", lambda root: ({str(runs.Stage("01_data", "smoke", str(root / "set")).data_root)}, "")),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What is unpacked here stays here."""
    monkeypatch.setenv("FUNDUS_CACHE", str(tmp_path / "cache"))


@functools.cache
def whole(write: Callable, read: Callable, folder: Path) -> tuple[Path, set[str]]:
    """A folder with the set and another one beside it, and the ids that are read from it."""
    root = folder / f"{write.__name__}"
    if not root.exists():
        write(root / "set")
        for seed, name in enumerate(("NORMAL/NORMAL67.jpeg", "AMRD/AMRD1.jpeg"), start=7000):
            downloads.picture(root / "neighbour" / name, seed)
    return root, read(root)[0]


@pytest.mark.filterwarnings("ignore:.* problems, first")
@pytest.mark.parametrize("kind", CASES)
def test_malformed_input_is_named_and_nothing_else_is_lost(tmp_path, tmp_path_factory, kind):
    case = CASES[kind]
    folder, before = whole(case.write, case.read, tmp_path_factory.getbasetemp() / "whole")
    root = tmp_path / "data"
    shutil.copytree(folder, root)
    case.damage(root / "set")
    try:
        after, said = case.read(root)
    except (data.DataError, FileNotFoundError, runs.RunError) as error:
        after, said = set(), str(error)
    assert re.search(case.said, said), said
    assert {name for name in before if re.fullmatch(case.lost, name, re.DOTALL)} == before - after, said


def test_there_are_sixty_kinds():
    assert len(CASES) >= 60
    assert sum(case.said != NOTHING for case in CASES.values()) >= 60
