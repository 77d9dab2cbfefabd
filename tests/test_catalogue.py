"""The catalogue's entries: each ordinary layout in miniature, real label files row by row, status, Table 2."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import downloads
import pandas as pd
import pytest
import yaml

from fundus_lib import data
from fundus_lib.data.catalogue import DataSet, catalogue
from fundus_lib.data.readers import Inside, find, read

SHARED = Path(__file__).parents[2] / "shared"
LABELS = SHARED / "labels"
module = importlib.import_module("fundus_lib.data.catalogue")  # data.catalogue is the function


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Unpacked pictures stay in the test's folder."""
    monkeypatch.setenv("FUNDUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rows_of(name: str, root: Path) -> tuple[list[tuple], list[str]]:
    """(id without the set's name, labels, split, patient, side, findings of masks) and reasons of the problems."""
    [home] = find(catalogue()[name], Inside(root))
    records, problems = read(catalogue()[name], home)
    assert all(record.path.is_file() and record.dataset == name for record in records)
    return ([(r.id.removeprefix(f"{name}-"), "; ".join(r.labels), r.split, r.patient, r.laterality,
              " ".join(finding for finding, _ in r.masks)) for r in records], [p.reason for p in problems])


AMD = "Age-related macular degeneration"
LAYOUTS = {
    "FGADR": (downloads.fgadr, [("0001_1", "Moderate NPDR", "train", None, None, "microaneurysm"),
                                ("0002_1", "No DR", "train", None, None, "")], []),
    "JSIEC": (downloads.jsiec, [("0.0.Normal-a", "Normal", "train", None, None, ""),
                                ("0.3.DR1-b", "Mild NPDR", "train", None, None, ""),
                                ("1.1.DR3-a", "Severe NPDR or PDR", "train", None, None, "")], []),
    "Retinal-Lesions": (downloads.retinal_lesions, [
        ("18059_left", "Severe NPDR", "train", "18059", "left", "hard exudate")], []),
    "DDR": (downloads.ddr, [("train-007-1", "No DR", "train", None, None, ""),
                            ("val-007-3", "PDR", "val", None, None, "retinal hemorrhage"),
                            ("train-007-9", "hard exudate", "train", None, None, "hard exudate")],
            ["007-2: 1 is '5': ungradable"]),
    "OCTID": (downloads.octid, [("AMRD1", AMD, "train", None, None, ""),
                                ("CSR2", "Central serous chorioretinopathy", "train", None, None, ""),
                                ("DR3", "Diabetic retinopathy", "train", None, None, ""),
                                ("MH4", "Macular hole", "train", None, None, ""),
                                ("NORMAL67", "Normal", "train", None, None, "")], []),
    "OCTDL": (downloads.octdl, [("amd_1_1", f"{AMD}; Early AMD", "train", "1", None, ""),
                                ("amd_1_2", f"{AMD}; Late AMD", "train", "1", None, ""),
                                ("rvo_2_1", "Retinal vein occlusion", "train", "2", "right", "")], []),
    "NEH": (downloads.neh, [
        ("CNV-1-OD-001_CNV", "Choroidal neovascularization", "train", "CNV/1", "right", ""),
        ("CNV-1-OD-002_Drusen", "Drusen", "train", "CNV/1", "right", ""),
        ("NORMAL-1-001_Normal", "Normal", "train", "NORMAL/1", "left", "")], []),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_official_layout_in_miniature(tmp_path, name):
    write, expected, problems = LAYOUTS[name]
    write(tmp_path / "downloads")
    assert rows_of(name, tmp_path / "downloads") == (expected, problems)
    found = data.status(tmp_path / "downloads").query("found")
    assert found.dataset.to_list() == [name] and found.images.to_list() == [len(expected)]  # no other set claims it


def test_a_mask_with_values_to_leave_out_is_unpacked_once(tmp_path, cache):
    downloads.retinal_lesions(tmp_path)
    for _ in range(2):
        [record], _ = read(catalogue()["Retinal-Lesions"], tmp_path)
        [(_, file)] = record.masks
        assert data.read_mask(file).sum() == 1 and cache in file.parents   # 255 counts, 127 does not
    records, _ = data.read_downloads(tmp_path)
    assert data.image_path(tmp_path, records.masks[0][0]["path"]) == file


def test_a_set_whose_layout_is_not_public_says_what_to_write_where(tmp_path):
    with pytest.raises(data.DataError, match=r"(?s)FGADR-143-9 cannot be read: the layout.*not public.*write `home`"):
        data.load_dataset("FGADR-143-9", tmp_path)
    downloads.files(tmp_path, ["images/1.png"])
    downloads.mask(tmp_path / "masks/NV/1.png")
    entry = catalogue()["FGADR-143-9"].model_dump() | {
        "home": {"has": ["images", "masks/NV"]}, "images": [{"path": r"images/(?P<name>[^/]+)\.png"}],
        "masks": [{"path": r"masks/(?P<code>[^/]+)/(?P<name>[^/]+)\.png"}]}
    entry = DataSet.model_validate(entry)
    [record], problems = read(entry, *find(entry, Inside(tmp_path)))
    assert record.labels == ("neovascularization",) and not problems


@pytest.mark.parametrize("classes", ["AMD CNV DME DRUSEN NORMAL", "CNV DRUSEN NORMAL"])
def test_sets_that_look_alike_are_told_apart(tmp_path, classes):
    """OCT-C8 has more classes than UCSD; NEH has the same ones without split folders."""
    for code in classes.split():
        place = f"train/{code}/{code}-1-1.jpeg" if "AMD" in classes else f"{code}/1/001.jpeg"
        downloads.files(tmp_path, [place])
    assert not find(catalogue()["UCSD"], Inside(tmp_path))


def fake(home: Path, paths: list[str]) -> Path:
    """The same tiny picture at every path."""
    source = downloads.picture(home.parent / "one.jpg", 1, (8, 8))
    for folder in {str(Path(path).parent) for path in paths}:
        (home / folder).mkdir(parents=True, exist_ok=True)
    for path in paths:
        os.link(source, home / path)
    return home


B = "B. Disease Grading/"
REAL = [  # set, real label file, where it lies in the download, where its images lie, rows, labels
    ("OCTDL", "OCTDL/OCTDL_labels.csv", "OCTDL_labels.csv", "OCTDL/{disease}/{file_name}.jpg", 2064, 10),
    ("RFMiD", "RFMiD/RFMiD_Training_Labels.csv", "Training_Set/RFMiD_Training_Labels.csv",
     "Training_Set/Training/{ID}.png", 1920, 44),
    ("IDRiD", "IDRiD/a. IDRiD_Disease Grading_Training Labels.csv",
     f"{B}2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv",
     B + "1. Original Images/a. Training Set/{Image name}.jpg", 413, 8),
    ("IDRiD", "IDRiD/b. IDRiD_Disease Grading_Testing Labels.csv",
     f"{B}2. Groundtruths/b. IDRiD_Disease Grading_Testing Labels.csv",
     B + "1. Original Images/b. Testing Set/{Image name}.jpg", 103, 8),
    ("TOP", "TOP/data.head.csv", "data.csv", "img/{filename}", None, None)]


@pytest.mark.parametrize(("name", "file", "place", "image", "rows", "labels"), REAL)
def test_real_label_files_parse_row_by_row(tmp_path, name, file, place, image, rows, labels):
    if not LABELS.exists():
        pytest.skip("the real label files are not on this machine")
    table = pd.read_csv(LABELS / file, dtype=str, encoding="utf-8-sig")
    home = fake(tmp_path / "home", [image.format(**row) for row in table.to_dict("records")])
    (home / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(LABELS / file, home / place)
    records, problems = read(catalogue()[name], home)
    assert problems == [] and len(records) == len(table) == (rows or len(table))
    assert labels in (None, len({label for record in records for label in record.labels}))


def test_every_entry_uses_canonical_terms():
    """Labels of the sets of Table 2; what masks show in every set, anatomy aside. Mask rules say what they show."""
    table, lexicon = (json.loads((module.FOLDER.parent / name).read_text())
                      for name in ("labels.json", "findings_lexicon.json"))
    labels = {label["canonical"] for entry in table["datasets"] for label in entry["labels"]}
    findings = labels | {finding["canonical"] for finding in lexicon["findings"]}
    for entry in catalogue().values():
        assert set(entry.annotated) <= findings, entry.name
        assert all(rule.finding or "(?P<code>" in rule.path for rule in entry.masks), entry.name
        if "fundus_r1" in entry.roles or entry.name == "FGADR":
            cells = {label for rule in entry.tables for known in rule.codes.values() for label in known.values()}
            assert {*entry.codes.values(), *cells} - {None} <= findings, entry.name


def test_table_2_of_the_paper_is_the_published_one():
    published = SHARED / "published/fundus_r1_table2.csv"
    if not published.exists():
        pytest.skip("the published table is not on this machine")
    here = [("+".join(entry.modality), name, entry.counts.table2.images, entry.counts.table2.pixel_labelled, entry.task)
            for name, entry in catalogue().items() if entry.counts.table2]
    assert sorted(here) == sorted(pd.read_csv(published).itertuples(index=False, name=None))


def test_table_2_counts_what_was_read_by_the_stated_rule(tmp_path):
    downloads.idrid(tmp_path, {"train": [(0, 0), (2, 1), (4, 2)], "test": [(1, 0)]},
                    {"train": {2: "MA EX OD", 77: "HE OD", 78: "OD"}, "test": {79: "MA"}})
    downloads.octid(tmp_path / "OCTID")
    table = data.table2(data.read_downloads(tmp_path)[0]).set_index("dataset")
    assert table.loc["IDRiD", ["samples", "pixel_labelled"]].to_list() == [3, 2]  # the twin's masks count once
    assert table.samples["OCTID"] == 4 and table.published_samples["OCTID"] == 458  # 80 % of five


@pytest.mark.parametrize(("change", "message"), [
    ({"acces": "open"}, "acces: Extra inputs"), ({"access": "free"}, "access: Input should be 'open'"),
    ({"codes": {"a": 1}}, "codes.a: Input should be a valid string"), ({"url": None}, "url: Input should be"),
    ({"images": [{"path": "("}]}, "images.0.path: .*is no regular expression"),
    ({"images": [{"path": "(?P<id>x)"}]}, "images.0.path: .*no such group: id")])
def test_a_malformed_entry_names_file_set_and_key(tmp_path, monkeypatch, change, message):
    entry = catalogue()["UCSD"].model_dump(exclude_defaults=True) | change
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump([entry]))
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    with pytest.raises(data.DataError, match=f"(?s)mine.yaml: UCSD: {message}"):
        catalogue.__wrapped__()


def test_status_lists_every_set_and_how_to_get_it(tmp_path):
    downloads.idrid(tmp_path / "a", {"train": [(0, 0)]}, {"train": {5: "MA OD"}})
    (next((tmp_path / "a").rglob("*_OD.tif"))).write_bytes(b"no mask")
    table = data.status(tmp_path).set_index("dataset")
    assert table.loc["IDRiD"].to_list() == [True, 2, 2, 1, 1, "a"] and len(table) == len(catalogue())
    assert "looked for {train,val,test}/" in table["where"]["UCSD"] and "https://" in table["where"]["UCSD"]
    run = [sys.executable, "-m", "fundus_lib.data", "status"]
    shown = subprocess.run([*run, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert "UCSD: not found; looked for" in shown
    assert "which folder?" in subprocess.run([*run, ""], capture_output=True, text=True).stderr
