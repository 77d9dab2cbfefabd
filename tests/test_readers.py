"""The shared readers on small entries written here: rules, tables, masks, and what they report."""

import downloads
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fundus_lib import data
from fundus_lib.data import records as disk
from fundus_lib.data.catalogue import DataSet
from fundus_lib.data.readers import Inside, find, read


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Unpacked pictures stay in the test's folder."""
    monkeypatch.setenv("FUNDUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entry(**more) -> DataSet:
    """A data set of photographs in img, called as numbers."""
    return DataSet.model_validate({
        "name": "X", "modality": ["CFP"], "task": "t", "licence": "l", "access": "open", "url": "u", "citation": "c",
        "confidence": "code", "layout": "img/<number>.jpg", "home": {"has": ["img"]},
        "codes": {"0": "No DR", "A": "PDR", "MA": "microaneurysm", "risk=0": "Normal"}, "annotated": ["microaneurysm"],
        "images": [{"path": r"img/(?P<name>\d+)\.jpg"}]} | more)


def labelled(tmp_path, table: str, rule: dict | None = None, **more):
    """{name: record}, reasons with their rows: two pictures and a label table `name,code`."""
    downloads.files(tmp_path / "home", ["img/1.jpg", "img/2.jpg"], {"t.csv": table})
    tables = [{"file": "t.csv", "name": "name", "code": "code"} | (rule or {})]
    records, problems = read(entry(tables=tables, **more), tmp_path / "home")
    return ({r.id.removeprefix("X-"): r for r in records},
            [f"{p.row}: {p.reason}" if p.row else p.reason for p in problems])


@pytest.mark.parametrize(("table", "rule", "labels", "problems"), [
    ("name,code\n1,0\n2.jpg,a\n", {}, {"1": "No DR", "2": "PDR"}, []),                # codes in any case
    ("name,code\n1,0\n2,7\n", {}, {"1": "No DR"}, ["3: 2: code is '7', none of 0, a"]),
    ("name,code\n1,0\n2,\n", {}, {"1": "No DR"}, ["3: 2: code is '', none of 0, a"]),
    ("name,code\n1,0\n2,nan\n", {}, {"1": "No DR"}, ["3: 2: code is 'nan', none of 0, a"]),
    ("name,code\n1,0\n", {}, {"1": "No DR"}, ["1 images without a label, first: 2"]),
    ("name,code\n1,0\n2,0\n3,0\n", {}, {"1": "No DR", "2": "No DR"}, ["1 rows without their image, first: 3"]),
    ("name,code\n1,0\n2,0\n1,A\n", {}, {"1": "No DR", "2": "No DR"}, ["4: 1: listed again: the first row counts"]),
    ("name,code,ok\n1,0,1\n2,0,0\n", {"must": {"ok": "1"}}, {"1": "No DR"}, ["3: 2: ok is '0', not '1'"]),
    ("name,0,A\n1,1,0\n2,0,0\n", {"code": [], "one_hot": ["0", "A"]}, {"1": "No DR"},
     ["3: 2: nothing in its row labels it"]),
    ("name,0,A\n1,1,1\n2,2,0\n", {"code": [], "one_hot": ["0", "A"]}, {"1": "No DR PDR"},
     ["3: 2: 0 is '2', neither 0 nor 1"]),
    ("name,A,risk\n1,0,0\n2,0,1\n", {"code": [], "one_hot": ["A"], "none": "risk=0"}, {"1": "Normal"},
     ["3: 2: risk contradicts the other columns"]),
    ("1,0\n2,A\n", {"header": None, "name": "0", "code": "1"}, {"1": "No DR", "2": "PDR"}, []),
    ("name,code\n\\a\\1.jpg,0\n../2.jpg,A\n", {}, {"1": "No DR", "2": "PDR"}, []),   # folders of the cell do not count
    ("name,code\nx1,0\n?,A\n", {"name_pattern": r"x(?P<name>\d)"}, {"1": "No DR"},
     ["3: ?: name '?' does not name", "1 rows without their image, first: ?", "1 images without a label, first: 2"]),
])
def test_label_tables(tmp_path, table, rule, labels, problems):
    records, said = labelled(tmp_path, table, rule)
    assert {name: " ".join(record.labels) for name, record in records.items()} == labels
    assert len(said) == len(problems)
    assert all(reason.startswith(start) for reason, start in zip(said, problems, strict=True))


def test_patient_side_and_split_come_from_the_table(tmp_path):
    table = "name,code,p,q,eye,set\n1,0,007,a,OD,Validation\n2,A,,,links,test\n"
    rule = {"patient": ["p", "q"], "eye": "eye", "split_column": "set"}
    records, said = labelled(tmp_path, table, rule)
    assert (records["1"].patient, records["1"].laterality, records["1"].split) == ("007-a", "right", "val")
    assert (records["2"].patient, records["2"].laterality, records["2"].split) == (None, None, "test")
    assert said[0] == "3: 2: no patient" and said[1].startswith("3: 2: eye is 'links', none of l, left")
    assert labelled(tmp_path, table, rule, eyes={"links": "left"})[0]["2"].laterality == "left"


def test_an_excel_table_says_which_library_is_missing(tmp_path):
    file = tmp_path / "t.xlsx"
    try:
        pd.DataFrame({"name": ["1"], "code": [0]}).to_excel(file, index=False)
    except ImportError:
        file.write_bytes(b"")
        with pytest.raises(data.DataError, match="t.xlsx needs a library: .*openpyxl"):
            disk.read_table(file, ["name"])
    else:
        assert disk.read_table(file, ["name", "code"]).iloc[0].to_list() == ["1", "0"]


def test_empty_class_folders_are_half_unpacked(tmp_path):
    (tmp_path / "OCT2017/train/CNV").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="(?s)no image of UCSD.*half unpacked.*unpack the whole"):
        data.load_dataset("UCSD", tmp_path)


def test_names_that_restart_in_every_split_stay_apart(tmp_path):
    downloads.files(tmp_path, ["a/1.jpg", "b/1.jpg"], {"a.csv": "name,code\n1,0\n", "b.csv": "name,code\n1,A\n"})
    tables = [{"file": f"{own}.csv", "name": "name", "code": "code", "split": split}
              for own, split in (("a", "train"), ("b", "test"))]
    records, problems = read(entry(images=[{"path": r"(?P<split>[ab])/(?P<name>\d+)\.jpg"}], tables=tables,
                                   splits={"a": "train", "b": "test"}, per_split=True), tmp_path)
    assert [(r.id, r.labels) for r in records] == [("X-train-1", ("No DR",)), ("X-test-1", ("PDR",))] and not problems


def test_pictures_that_fit_no_rule_or_are_there_twice_are_reported(tmp_path):
    downloads.files(tmp_path, ["img/1.jpg", "img/one.jpg", "img/maps/1.jpg", "img/x/1.jpg", "other/9.jpg"])
    records, problems = read(entry(images=[{"path": r"img/(?:x/)?(?P<name>\d+)\.jpg", "code": "0"}],
                                   ignore=[r"img/maps/.*"]), tmp_path)
    assert [r.id for r in records] == ["X-1"]
    assert [p.reason.split(":")[0] for p in problems] == [
        "a second 1", "1 pictures that do not lie or are not called as in"]


@pytest.mark.parametrize(("value", "pixels"), [("nonzero", 3), ("zero", 96 * 64 - 3), (255, 1), (127, 2)])
def test_which_value_of_a_mask_is_the_lesion(tmp_path, value, pixels):
    downloads.files(tmp_path, ["img/1.jpg"])
    downloads.gray_mask(tmp_path / "m/1_MA.png", [255, 127, 127])
    masks = [{"path": r"m/(?P<name>\d+)_(?P<code>[A-Z]+)\.png", "value": value}]
    [record], problems = read(entry(masks=masks), tmp_path)
    assert record.labels == ("microaneurysm",) and not problems
    assert data.read_mask(record.masks[0][1]).sum() == pixels


def test_masks_that_cannot_be_used_and_anatomy(tmp_path):
    """A disc is never a finding; an empty mask is no lesion; the photograph stays as long as something labels it."""
    downloads.files(tmp_path, ["img/1.jpg", "img/2.jpg"])
    for file, values in {"1_MA": [], "1_OD": [255], "1_XX": [255], "2_MA": [], "3_MA": [255]}.items():
        downloads.gray_mask(tmp_path / f"m/{file}.png", values)
    downloads.gray_mask(tmp_path / "n/1.png", [255], size=(50, 50))
    rules = [{"path": r"m/(?P<name>\d+)_OD\.png", "finding": "optic disc"},
             {"path": r"m/(?P<name>\d+)_(?P<code>[A-Z]+)\.png"}, {"path": r"n/(?P<name>\d+)\.png", "finding": "drusen"}]
    records, problems = read(entry(masks=rules), tmp_path)
    assert [(r.id, r.labels, [finding for finding, _ in r.masks]) for r in records] == [("X-1", (), ["optic disc"])]
    said = " | ".join(p.reason for p in problems)
    for reason in ("its code is 'XX', none of", "50 x 50 pixels does not fit 1.jpg",
                   "1 images without a label, first: 2", "1 masked images without their picture, first: 3"):
        assert reason in said


def test_homes_by_what_they_hold(tmp_path):
    downloads.files(tmp_path / "deep/deeper", ["My%20Set /IMG /1.jpg"])
    home = tmp_path / "deep/deeper"
    for rule, there in [({"has": ["my set/img"]}, True), ({"has": ["my s*/img|nothing"]}, True),
                        ({"has": ["my set"], "lacks": ["my set/i?g"]}, False), ({"has": ["my set", "img"]}, False),
                        ({"has": ["my set"], "only": "."}, False)]:
        assert find(entry(home=rule), Inside(tmp_path)) == [home] * there, rule


@pytest.mark.parametrize(("suffix", "damage", "whole"), [
    ("jpg", lambda content: content, True), ("png", lambda content: content, True),
    ("jpg", lambda content: content + b"trailing bytes", True),      # decoded, as the end marker is not at the end
    ("jpg", lambda content: content[:-200], False), ("png", lambda content: content[:-200], False),
    ("jpg", lambda content: b"", False), ("png", lambda content: b"<html>404</html>", False)])
def test_a_cut_file_is_seen_without_decoding_whole_ones(tmp_path, suffix, damage, whole):
    file = downloads.picture(tmp_path / f"a.{suffix}", 1)
    file.write_bytes(damage(file.read_bytes()))
    if whole:
        disk.check_whole(file)
    else:
        with pytest.raises(data.DataError, match="not a readable image"):
            disk.check_whole(file)


def test_paths_may_lie_below_the_root_or_in_the_cache_only(tmp_path, cache):
    inside = disk.unpacked("X", tmp_path) / "a.png"
    assert data.image_path(tmp_path / "root", str(inside)) == inside and cache in inside.parents
    for path in (str(cache), str(cache / "../x.png"), str(tmp_path / "rootless/x.png"), "/etc/passwd"):
        with pytest.raises(data.DataError, match="leaves the folder"):
            data.image_path(tmp_path / "root", path)


def test_several_processes_hash_alike(tmp_path, monkeypatch):
    downloads.octid(tmp_path)
    alone = data.read_downloads(tmp_path, workers=1)[0]
    monkeypatch.setattr(data, "FEW", 1)
    assert data.read_downloads(tmp_path, workers=2)[0].equals(alone)


def test_a_palette_mask_with_a_value_reads_by_its_gray(tmp_path):
    downloads.files(tmp_path, ["img/1.jpg"])
    (tmp_path / "m").mkdir()
    image = Image.fromarray(np.eye(64, 96, dtype=np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(tmp_path / "m/1.png")
    masks = [{"path": r"m/(?P<name>\d+)\.png", "finding": "microaneurysm", "value": 255}]
    [record], _ = read(entry(masks=masks), tmp_path)
    assert data.read_mask(record.masks[0][1]).sum() == 64
