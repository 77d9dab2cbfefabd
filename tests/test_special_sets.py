"""Sets with a layout of their own, as miniatures of the exact layout: known values, and what is refused and why."""

import shutil
from itertools import compress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from miniatures import BLUE, GREEN, RED, YELLOW, deepdrid, grape, metaimage, mmc_amd, odir, oimhs, retouch, sheets, text
from PIL import Image

from fundus_lib import data, lexicon
from fundus_lib.data import catalogue, readers, special
from fundus_lib.data.records import DataError, codes, read_mask

ODIR, DEEPDRID, MMC, OIMHS, RETOUCH, GRAPE = "OIA-ODIR", "DeepDRiD", "MMC-AMD", "OIMHS", "RETOUCH", "GRAPE"

LABELS = Path(__file__).parents[2] / "shared" / "labels"
PROGRESSION, STABLE = "Visual field progression", "No visual field progression"
SCAN = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)  # two B-scans of three rows and four columns
FLUID = np.zeros_like(SCAN)
FLUID[1, 0], FLUID[1, 2, :2] = 1, 3
MHD = "RETOUCH-TrainingSet-Cirrus/TRAIN001/oct.mhd"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What is unpacked here stays here."""
    monkeypatch.setenv("FUNDUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read(name: str, root: Path):
    """({id: record}, [reason]) of the one home that is found."""
    [home] = readers.find(catalogue()[name], readers.Inside(root))
    records, problems = readers.read(catalogue()[name], home)
    assert len({record.id for record in records}) == len(records)
    assert all(record.path.is_file() for record in records)
    return {record.id: record for record in records}, [problem.reason for problem in problems]


@pytest.mark.parametrize("table", ["full_df.csv", "ODIR-5K_Training_Annotations(Updated)_V2.xlsx",
                                   "Training Set/Annotation/training annotation (English).xlsx"])
def test_odir_an_eye_has_the_labels_of_its_own_keywords(tmp_path, table):
    rows = [(7, "cataract", "normal fundus", "C"), (7, "cataract", "normal fundus", "C"),
            (8, "lens dust，normal fundus", "drusen?mild nonproliferative retinopathy", "DO"),
            (9, "suspected glaucoma，wet age-related macular degeneration",
             "myopic maculopathy,hypertensive retinopathy", "GAHM"),
            (10, "low image quality", "laser spot", "O"), (11, "glaucoma", "normal fundus", "C")]
    records, problems = read(ODIR, odir(tmp_path / "a/b", rows, table))
    assert {key.removeprefix("OIA-ODIR-train-"): record.labels for key, record in records.items()} == {
        "7_left": ("Cataract",), "7_right": ("Normal",), "8_left": ("Normal",),
        "8_right": ("Diabetic retinopathy", "Other diseases"),
        "9_left": ("Glaucoma", "Age-related macular degeneration"),
        "9_right": ("Hypertensive retinopathy", "Pathological myopia"), "10_right": ("Other diseases",)}
    eye = records["OIA-ODIR-train-7_left"]
    assert (eye.patient, eye.laterality, eye.modality, eye.split) == ("7", "left", "CFP", "train")
    assert [reason.split(": ")[0] for reason in problems] == ["10_left, 'low image quality'", "11_left, 'glaucoma'",
                                                            "11_right, 'normal fundus'"]
    assert problems[0].endswith("no category") and problems[2].endswith("the eyes mean ['G'], the columns ['C']")


@pytest.mark.parametrize("name", ["full_df.csv", "MinsuChae_full_df_renamed_columns.csv", "DiscardedImages.xlsx"])
def test_odir_every_row_of_the_real_tables_is_a_record_or_a_problem(tmp_path, name, monkeypatch):
    file = LABELS / "ODIR-5K" / name
    if not file.exists():
        pytest.skip("the real label files are not beside this checkout")
    kind = pd.read_excel if name.endswith("xlsx") else pd.read_csv
    table = kind(file, dtype=str)
    sheet = "full_df.csv" if name.endswith("csv") else "ODIR-5K_Training_Annotations(Updated)_V2.xlsx"
    (tmp_path / "Training Images").mkdir()
    shutil.copy(file, tmp_path / sheet)
    eyes = {Path(eye).stem: Path(eye) for eye in [*table["Left-Fundus"], *table["Right-Fundus"]]}
    monkeypatch.setattr(special, "pictures", lambda folder: eyes)
    records, problems = readers.read(catalogue()[ODIR], tmp_path)
    assert len(table) == (302 if name.endswith("xlsx") else 6392)
    assert len(records) + len(problems) == len(eyes) == 2 * table["ID"].nunique()
    assert all(problem.reason.endswith("no category") for problem in problems)  # no contradiction
    if name.endswith("csv"):
        assert (len(records), len(problems)) == (6690, 26)


def test_odir_test_sets_of_the_repository_are_tests(tmp_path):
    for name in ("Training", "Off-site Test", "On-site Test"):
        sheet = f"{name} Set/Annotation/{name.lower()} annotation (English).xlsx"
        odir(tmp_path / "OIA-ODIR", [(len(name), "cataract", "normal fundus", "C")], sheet)
    records, problems = read(ODIR, tmp_path)
    assert not problems and sorted(key.removeprefix("OIA-ODIR-") for key in records if "left" in key) == [
        "test-12_left", "test-13_left", "train-8_left"]


def test_odir_agrees_with_a_table_that_others_labelled_by_eye():
    """6,448 of the 6,449 eyes that both know; the other one has a plain comma between two diseases."""
    if not (LABELS / "ODIR-5K").exists():
        pytest.skip("the real label files are not beside this checkout")
    table = pd.read_csv(LABELS / "ODIR-5K/full_df.csv", dtype=str)
    words = {row[f"{side}-Fundus"]: row[f"{side}-Diagnostic Keywords"]
             for row in table.to_dict("records") for side in ("Left", "Right")}
    others = pd.read_csv(LABELS / "ODIR-5K/JordiCorbilla_odir.csv").set_index("ID")
    same = [set(compress("NDGCAHMO", row[:8])) == special.letters_of(words[eye])
            for eye, row in zip(others.index, others.to_numpy(), strict=True) if eye in words]
    assert (sum(same), len(same)) == (6448, 6449)


def test_deepdrid_grades_the_filled_column_and_takes_the_side_from_the_name(tmp_path):
    root = deepdrid(tmp_path / "DeepDRiD", ["56_l1 1 -", "56_r3 1 -", "56_l3 - 0", "57_l1 - -", "57_l2 1 2"],
                    ["1_r1 4", "128_r2 5"], [("347_l1", 3)])
    (root / "regular_fundus_images/Online-Challenge1&2-Evaluation").rename(
        root / "regular_fundus_images/Online-Challenge1%262-Evaluation")  # as some archives spell it
    records, problems = read(DEEPDRID, tmp_path)
    assert {key: (r.labels[0], r.laterality, r.patient, r.split, r.modality) for key, r in records.items()} == {
        "DeepDRiD-CFP-train-56_l1": ("Mild NPDR", "left", "CFP-56", "train", "CFP"),
        "DeepDRiD-CFP-train-56_r3": ("Mild NPDR", "right", "CFP-56", "train", "CFP"),
        "DeepDRiD-CFP-train-56_l3": ("No DR", "left", "CFP-56", "train", "CFP"),
        "DeepDRiD-CFP-test-347_l1": ("Severe NPDR", "left", "CFP-347", "test", "CFP"),
        "DeepDRiD-UWF-train-1_r1": ("PDR", "right", "UWF-1", "train", "UWF")}
    assert [reason.split(",")[0] for reason in problems] == [
        "'57_l1' has the grades []", "'57_l2' has the grades ['1'", "'128_r2' has the grades ['5']"]


@pytest.mark.parametrize(("part", "left_out", "rows"), [("regular-fundus", 0, 20), ("ultra-widefield", 4, 22)])
def test_deepdrid_real_rows(tmp_path, part, left_out, rows, monkeypatch):
    file = LABELS / "DeepDRiD" / f"{part}-training.head.csv"
    if not file.exists():
        pytest.skip("the real label files are not beside this checkout")
    folder = tmp_path / f"{part}_images".replace("regular-", "regular_") / f"{part}-training"
    (folder / "Images").mkdir(parents=True)
    shutil.copy(file, folder / f"{part}-training.csv")
    names = pd.read_csv(file)["image_id"]
    monkeypatch.setattr(special, "pictures", lambda folder: {name: Path(name) for name in names})
    records, problems = readers.read(catalogue()[DEEPDRID], tmp_path)
    assert len(records) == rows - left_out
    assert sum("5 = ungradable" in problem.reason for problem in problems) == left_out
    assert len(problems) == left_out + 2  # the two other splits are not there


def test_mmc_amd_takes_the_split_by_patient_and_checks_the_letter(tmp_path):
    root = tmp_path / "MMC-AMD"
    mmc_amd(root, {"train/cfp": ["f-w-1544817 3"], "test/oct": ["o-w-1544817_2 3"]})
    records, problems = read(MMC, root)
    assert not problems and records["MMC-AMD-f-w-1544817"].patient == records["MMC-AMD-o-w-1544817_2"].patient
    mmc_amd(root, {"train/cfp": ["f-w-1544817 3", "f-h-12 0", "f-5-1 pcv", "f-d-9 2", ""],
                   "val/oct": ["o-w-1544817_2 3"], "test/oct": ["o-p-77 2"]},
            "mmc-amd-splitAP")
    records, problems = read(MMC, tmp_path)
    assert {key[8:]: (r.labels[0], r.split, r.modality, r.patient) for key, r in records.items()} == {
        "f-w-1544817": ("Wet AMD", "train", "CFP", "1544817"), "f-h-12": ("Normal", "train", "CFP", "12"),
        "f-5-1": ("Polypoidal choroidal vasculopathy", "train", "CFP", "5-1"),
        "o-w-1544817_2": ("Wet AMD", "val", "OCT", "1544817"),
        "o-p-77": ("Polypoidal choroidal vasculopathy", "test", "OCT", "77")}
    assert problems == ["'f-d-9' has class '2': not 0 to 3, or not that of the letter in the name"]


def test_oimhs_halves_are_unpacked_once_and_again_when_the_picture_changed(tmp_path, cache):
    root = oimhs(tmp_path / "OIMHS", {"7/3": [GREEN, RED, YELLOW], "7/12": [GREEN, BLUE, RED], "10/1": [GREEN, YELLOW]})
    records, problems = read(OIMHS, tmp_path)
    assert not problems and list(records) == ["OIMHS-10-1", "OIMHS-7-12", "OIMHS-7-3"]
    assert [record.labels for record in records.values()] == [
        (), ("Macular hole", "intraretinal fluid"), ("Macular hole",)]
    both = records["OIMHS-7-12"]
    assert both.patient == "7" and [finding for finding, _ in both.masks] == list(special.COLORS)
    hole = read_mask(both.masks[0][1])
    assert hole.shape == (512, 512) and hole.sum() == 100 and hole[100:110, 40:50].all()  # the third square
    assert Image.open(both.path).size == (512, 512) and both.path.is_relative_to(cache)
    before = {file: file.stat().st_mtime_ns for file in cache.rglob("*")}
    assert read(OIMHS, tmp_path)[0] == records and {f: f.stat().st_mtime_ns for f in cache.rglob("*")} == before
    oimhs(root, {"7/12": [GREEN]})
    assert read(OIMHS, tmp_path)[0]["OIMHS-7-12"].labels == ()
    assert not list(cache.rglob("*.part"))


def test_retouch_slices_are_eight_bit_and_carry_their_fluids(tmp_path, cache):
    wide = np.array([[[0, 32768]], [[65535, 257]]], np.uint16)
    retouch(tmp_path, {"Cirrus/TRAIN001": (SCAN, FLUID), "Spectralis/TRAIN025": (wide, np.zeros_like(wide))})
    records, problems = read(RETOUCH, tmp_path)
    assert not problems and list(records) == ["RETOUCH-Cirrus-TRAIN001-000", "RETOUCH-Cirrus-TRAIN001-001",
                                              "RETOUCH-Spectralis-TRAIN025-000", "RETOUCH-Spectralis-TRAIN025-001"]
    empty, fluid, dark, bright = records.values()
    assert (empty.labels, empty.masks) == ((), ())  # no fluid is not a normal eye
    assert fluid.labels == ("intraretinal fluid", "pigment epithelial detachment") and fluid.patient == "TRAIN001"
    assert np.array_equal(Image.open(fluid.path), SCAN[1])
    assert np.array_equal(read_mask(fluid.masks[1][1]), FLUID[1] == 3)
    assert np.asarray(Image.open(dark.path)).tolist() == [[0, 128]]
    assert np.asarray(Image.open(bright.path)).tolist() == [[255, 1]]
    before = {file: file.stat().st_mtime_ns for file in cache.rglob("*")}
    assert read(RETOUCH, tmp_path)[0] == records and {f: f.stat().st_mtime_ns for f in cache.rglob("*")} == before


def test_metaimage_local_data_and_the_other_byte_order(tmp_path):
    values = np.arange(6, dtype=np.uint16).reshape(1, 2, 3)
    assert np.array_equal(special.open_volume(metaimage(tmp_path / "a.mha", values, local=True)), values)
    swapped = metaimage(tmp_path / "b.mhd", values, BinaryDataByteOrderMSB="True")
    assert special.open_volume(swapped)[0, 0].tolist() == [0, 256, 512]


def test_grape_photographs_of_both_sheets_once(tmp_path):
    root = grape(tmp_path / "GRAPE", [[1, "OD", 0, 1, 0, "1_OD_1.jpg"], [1, "OS", 0, 0, 0, "/"],
                                      [2, "OD", "/", 0, 0, "2_OD_1.jpg"]],
                 [[1, "OD", 1, "1_OD_1.jpg"], [1, "OD", 2, "/"], [1, "OS", 3, "1_OS_3.jpg"]])
    records, problems = read(GRAPE, tmp_path)
    assert not problems
    assert {key: (r.labels, r.patient, r.laterality, r.split) for key, r in records.items()} == {
        "GRAPE-1_OD_1": (("Glaucoma", PROGRESSION), "1", "right", "train"),
        "GRAPE-1_OS_3": (("Glaucoma", STABLE), "1", "left", "train"),
        "GRAPE-2_OD_1": (("Glaucoma",), "2", "right", "train")}
    (root / "CFPs").rename(root / "inner")  # some archives hold the folder twice
    (root / "CFPs").mkdir()
    (root / "inner").rename(root / "CFPs/CFPs")
    assert list(read(GRAPE, tmp_path)[0]) == list(records)


@pytest.mark.parametrize("name", [ODIR, DEEPDRID, MMC, OIMHS, RETOUCH, GRAPE])
def test_load_dataset_reads_them_in_canonical_words(tmp_path, name):
    """Labels as labels.json has them, findings as the lexicon has them; nothing there names what was looked for."""
    with pytest.raises(FileNotFoundError, match="looked for"):
        data.load_dataset(name, tmp_path)
    rows = data.load_dataset(name, WRITERS[name](tmp_path / name))
    assert {label for labels in rows["labels"] for label in labels} <= set(codes(name).values())
    assert {mask["finding"] for masks in rows["masks"] for mask in masks} <= set(lexicon.findings())
    assert all(image.size[0] for image in rows["image"])


WRITERS = {
    ODIR: lambda root: odir(root, [(1, "cataract", "glaucoma", "CG"), (2, "glaucoma", "normal fundus", "G")]),
    DEEPDRID: lambda root: deepdrid(root, ["1_l1 0 -", "2_l1 2 -"], ["1_r1 0"], [("347_l1", 1)]),
    MMC: lambda root: mmc_amd(root, {"train/cfp": ["f-w-1 3", "f-h-2 0"], "train/oct": ["o-w-1 3"]}),
    OIMHS: lambda root: oimhs(root, {"1/1": [GREEN, RED], "2/1": [GREEN]}),
    RETOUCH: lambda root: retouch(root, {"Cirrus/TRAIN001": (SCAN, FLUID), "Cirrus/TRAIN002": (SCAN, FLUID)}),
    GRAPE: lambda root: grape(root, [[1, "OD", 0, 1, 0, "1_OD_1.jpg"], [2, "OS", 0, 0, 0, "2_OS_1.jpg"]], []),
}
REGULAR = "regular_fundus_images/regular-fundus-training/regular-fundus-training.csv"
CHALLENGE = "regular_fundus_images/Online-Challenge1&2-Evaluation/Challenge1_labels.xlsx"
CLINICAL, MMC_LIST = "VF and clinical information.xlsx", "mmc-amd-splitA-train/annotations/cfp.txt"


def edit(file: str, old: str, new: str):
    """Replace text in a file of the miniature."""
    def change(root: Path) -> None:
        content = (root / file).read_bytes()
        assert old.encode() in content
        (root / file).write_bytes(content.replace(old.encode(), new.encode(), 1))
    return change


def header(**fields):
    """Write the header of TRAIN001 with other fields."""
    return lambda root: metaimage(root / MHD, SCAN, **fields)


def drop(file: str):
    """Take a file away."""
    return lambda root: (root / file).unlink()


def cut(file: str, size: int):
    """Keep only the first bytes of a file."""
    return lambda root: (root / file).write_bytes((root / file).read_bytes()[:size])


@pytest.mark.parametrize(("name", "damage", "message"), [
    (ODIR, edit("full_df.csv", "cataract", ""), "1_left, '': the eyes mean ['G'], the columns ['C', 'G']"),
    (ODIR, edit("full_df.csv", "1_left.jpg", "3_left.jpg"), "1 rows without their image, first: 3_left"),
    (ODIR, edit("full_df.csv", "1_left.jpg", "../../1_up.jpg"), "1 rows without their image, first: 1_up"),
    (ODIR, drop("ODIR-5K/Training Images/2_right.jpg"), "1 rows without their image, first: 2_right"),
    (ODIR, edit("full_df.csv", "Left-Fundus", "Left"), DataError("has no column 'Left-Fundus'")),
    (ODIR, edit("full_df.csv", "normal fundus", "no fundus image"),
     "2_right, 'no fundus image': no category"),
    (DEEPDRID, edit(REGULAR, "1,0,,", "1,NaN,,"), "'1_l1' has the grades ['NaN'], not one of 0 to 4"),
    (DEEPDRID, edit(REGULAR, "1,0,,", "1,-1,,"), "'1_l1' has the grades ['-1'], not one of 0 to 4"),
    (DEEPDRID, edit(REGULAR, "1,1_l1", "1,1_x1"), "'1_x1' has the grades ['0'], but this is no name like 12_l1"),
    (DEEPDRID, edit(REGULAR, "left_eye_DR_Level", "left"), DataError("has no column 'left_eye_DR_Level'")),
    (DEEPDRID, drop(REGULAR), "no such label file: half unpacked?"),
    (DEEPDRID, lambda root: text(root / CHALLENGE, ["image_id,DR_Levels"]), DataError("is not a readable table")),
    (MMC, edit(MMC_LIST, "f-w-1 3", "f-w-1 4"), "'f-w-1' has class '4': not 0 to 3"),
    (MMC, edit(MMC_LIST, "f-h-2 0", "f-h-2"), "'f-h-2' has class '': not 0 to 3"),
    (MMC, edit(MMC_LIST, "f-w-1 3", "../w-1 3"), "'../w-1' has class '3': not 0 to 3"),
    (MMC, edit(MMC_LIST, "f-w-1 3", "f-p-1 3"), "'f-p-1' has class '3': not 0 to 3, or not that of the letter"),
    (MMC, drop(MMC_LIST), "2 images without CFP rows, first: f-h-2"),
    (OIMHS, cut("Images/1/1.png", 900), "not readable: "),
    (OIMHS, lambda root: Image.new("RGB", (512, 512), GREEN).save(root / "Images/1/1.png"),
     "(512, 512) pixels, not (1024, 512)"),
    (OIMHS, lambda root: Image.new("L", (1024, 512), 90).save(root / "Images/1/1.png"), "no retina (pure green)"),
    (OIMHS, lambda root: text(root / "Images/1/1.png", ["<html>404"]), "cannot identify image file"),
    (RETOUCH, header(CompressedData="True"), "oct.mhd: no uncompressed gray values in a file of the same folder: "),
    (RETOUCH, header(BinaryData="False"), "'BinaryData': 'False'"),
    (RETOUCH, header(ElementType="MET_LONG_DOUBLE"), "'ElementType': 'MET_LONG_DOUBLE'"),
    (RETOUCH, header(ElementDataFile="../TRAIN002/oct.raw"), "'ElementDataFile': '../TRAIN002/oct.raw'"),
    (RETOUCH, header(ElementDataFile="..\\TRAIN002\\oct.raw"), "gray values in a file of the same folder"),
    (RETOUCH, header(ElementDataFile="/etc/passwd"), "'ElementDataFile': '/etc/passwd'"),
    (RETOUCH, header(ElementDataFile="LIST"), "No such file or directory"),
    (RETOUCH, header(ElementDataFile=None), "no uncompressed gray values"),
    (RETOUCH, header(DimSize="4 3"), "'DimSize': '4 3'"),
    (RETOUCH, header(DimSize="4 3 -2"), "'DimSize': '4 3 -2'"),
    (RETOUCH, header(DimSize="4 3 99999999999"), "oct.raw holds 24 bytes, oct.mhd asks for 1,199,999,999,988"),
    (RETOUCH, header(DimSize="4 3 1"), "oct.raw holds 24 bytes, oct.mhd asks for 12: unpack the volume again"),
    (RETOUCH, header(DimSize="3 4 2"), "reference (2, 3, 4) does not outline oct (2, 4, 3)"),
    (RETOUCH, cut(MHD.replace("mhd", "raw"), 20), "oct.raw holds 20 bytes, oct.mhd asks for 24"),
    (RETOUCH, cut(MHD.replace("mhd", "raw"), 0), "oct.raw holds 0 bytes, oct.mhd asks for 24"),
    (RETOUCH, drop(MHD.replace("mhd", "raw")), "No such file or directory"),
    (RETOUCH, drop(MHD.replace("oct", "reference")), "No such file or directory"),
    (RETOUCH, lambda root: metaimage((root / MHD).with_name("reference.mhd"), SCAN), "with the values 0 to 3"),
    (RETOUCH, lambda root: (root / MHD).write_bytes(bytes(range(256)) * 40), "no uncompressed gray values"),
    (GRAPE, lambda root: grape(root, [[1, "OD", 0, 1, 0, "2_OD_1.jpg"], [2, "OS", 0, 0, 0, "2_OS_1.jpg"]], []),
     "Baseline: eye 1_OD, photograph '2_OD_1.jpg', progression ['0', '1'] do not fit"),
    (GRAPE, lambda root: grape(root, [[1, "XX", 0, 1, 0, "/"], [2, "OS", 0, 0, 0, "2_OS_1.jpg"]], []), "eye 1_XX"),
    (GRAPE, lambda root: grape(root, [[1, "OD", 0, 7, 0, "1_OD_1.jpg"], [2, "OS", 0, 0, 0, "2_OS_1.jpg"]], []),
     "progression ['0', '7'] do not fit"),
    (GRAPE, drop("CFPs/1_OD_1.jpg"), "1 rows without their image, first: 1_OD_1"),
    (GRAPE, lambda root: sheets(root / CLINICAL, {"Baseline": [["Subject Number"], [None], [1]]}),
     DataError("Worksheet named 'Follow-up' not found")),
    (GRAPE, lambda root: sheets(root / CLINICAL, {"Follow-up": [["Subject", "Laterality"], [None, 0], [1, "OD"]]}),
     DataError("sheet Follow-up: no Subject Number, Laterality, Corresponding CFP in its two header rows")),
    (GRAPE, lambda root: sheets(root / CLINICAL, {"Follow-up": [["Subject"]]}), DataError("two header rows")),
    (GRAPE, lambda root: text(root / CLINICAL, ["not a workbook"]), DataError("is not a readable table")),
])
def test_damage_is_named_and_nothing_else_is_lost(tmp_path, name, damage, message):
    """A problem costs at most the damaged eye, volume or row's patient; a label file that is none stops the set."""
    root = WRITERS[name](tmp_path / "set")
    whole, problems = read(name, root)
    assert not problems
    damage(root)
    if isinstance(message, DataError):
        with pytest.raises(DataError) as error:
            read(name, root)
        assert str(message) in str(error.value) and str(root) in str(error.value)
        return
    left, problems = read(name, root)
    assert any(message in reason for reason in problems), problems
    assert 0 < len(left) < len(whole)
