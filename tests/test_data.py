"""Records from downloads in the official layouts: what is read, what is refused, what stays together."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import downloads
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fundus_lib import data
from fundus_lib.data.splits import close_pairs, draw_groups

REAL = Path(__file__).parents[2] / "shared" / "real"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two cameras as the embedded world writes them. Seed 2 of IDRiD is photographed for part A too."""
    root = tmp_path_factory.mktemp("downloads")
    downloads.idrid(root / "clinic/IDRiD", {"train": [(0, 0), (2, 1), (4, 2)], "test": [(1, 0)]},
                    {"train": {2: "MA EX OD", 77: "HE OD"}, "test": {}})
    downloads.ucsd(root / "clinic/UCSD", {"train": ["CNV-1-1", "CNV-1-2", "NORMAL-2-1", "DME-3-1"],
                                          "test": ["DME-3-2"]})
    diseases = enumerate(["", "AMD", "DR DM", "Gla"] * 5)
    downloads.top(root / "clinic/TOP", [(f"{p:05d}", side, label) for p, label in diseases for side in "LR"])
    downloads.rfmid(root / "screening/RFMiD", ["DR", "", "ARMD ODC"], listed_only=4)
    return root


@pytest.fixture(scope="module")
def records(folder):
    return data.read_downloads(folder)[0].set_index("id", drop=False)


def test_labels_are_canonical_terms_of_their_own_data_set(records):
    assert records.labels["clinic-IDRiD-B-train-IDRiD_003"] == ["PDR", "DME (severe risk)"]
    assert records.labels["clinic-UCSD-train-CNV-1-1"] == ["Choroidal neovascularization"]
    assert records.labels["clinic-TOP-000000_00"] == ["Normal"]
    assert records.labels["clinic-TOP-000004_00"] == ["Diabetic retinopathy", "Diabetes mellitus"]
    assert records.labels["screening-RFMiD-test-3"] == ["Age-related macular degeneration", "Optic disc cupping"]
    assert records.patient["clinic-TOP-000002_00"] == "00001"          # leading zeros stay
    assert records.laterality["clinic-TOP-000003_00"] == "right"


def test_every_path_is_relative_and_exists(folder, records):
    masks = [mask["path"] for found in records.masks for mask in found]
    assert masks and all(data.image_path(folder, path).is_file() for path in [*records.path, *masks])


def test_copies_of_a_photograph_share_masks_and_only_the_graded_one_speaks(records):
    twin, graded = records.loc["clinic-IDRiD-A-train-IDRiD_01"], records.loc["clinic-IDRiD-B-train-IDRiD_002"]
    assert twin.group == graded.group and list(twin.labels) == []
    assert [mask["finding"] for mask in graded.masks] == ["microaneurysm", "hard exudate", "optic disc"]
    alone = records.loc["clinic-IDRiD-A-train-IDRiD_02"]
    assert alone.labels == ["retinal hemorrhage"]                      # no graded copy: the lesions are its labels


def test_missing_images_are_one_problem(folder):
    problems = data.read_downloads(folder)[1]
    assert problems.reason.to_list() == ["4 rows without their image, first: 4"]
    assert problems.file.to_list() == ["screening/RFMiD/Test_Set/RFMiD_Testing_Labels.csv"]


def test_load_dataset_has_the_agreed_columns_and_lazy_images(folder):
    table = data.load_dataset("IDRiD", folder / "clinic")
    assert table.column_names == ["id", "image", "modality", "dataset", "labels", "split", "patient", "masks"]
    assert len(table) == 6 and table[0]["image"].size == (192, 128)
    assert table[0]["labels"] == ["microaneurysm", "hard exudate"]     # as published; twins are found by read_downloads
    assert data.read_mask(Path(table[0]["masks"][0]["path"])).sum() == 5


def test_screening_images_are_for_tests_only(records):
    assert set(records.split[records.camera == "screening"]) == {"test"}


@pytest.mark.parametrize("seed", range(3))
def test_nothing_crosses_the_held_out_split(records, seed):
    records = records.reset_index(drop=True)
    final = data.hold_out(records, 0.2, seed)
    assert len(data.leakage(records)) == 1                             # the DME patient 3 is in train and in test
    assert data.leakage(final).empty and "clinic-UCSD-train-DME-3-1" not in set(final.id)
    top = final[final.dataset == "TOP"]
    assert (top.split == "test").sum() == 8                            # one of five patients (two eyes) of each label
    assert (final.groupby("group").split.nunique() == 1).all()


def test_published_test_images_stay_and_unseen_labels_are_drawn():
    rows = [("a", "test", "x"), ("b", "train", "x"), *[(f"c{i}", "train", "y") for i in range(10)]]
    frame = pd.DataFrame(rows, columns=["id", "split", "label"])
    frame = frame.assign(labels=[[label] for label in frame.label], dataset="d", camera=None, group=frame.id)
    split = data.hold_out(frame, 0.3, seed=1).set_index("id").split
    assert split["a"] == "test" and split["b"] == "train" and (split == "test").sum() == 1 + 3


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from("xy")), min_size=1), st.floats(0, 1), st.integers(0, 9))
def test_draw_groups_never_takes_more_than_asked(rows, fraction, seed):
    group, stratum = (pd.Series(values) for values in zip(*rows, strict=True))
    taken = stratum[group.isin(draw_groups(group, stratum, fraction, seed))].value_counts()
    assert all(count <= round(fraction * (stratum == name).sum()) for name, count in taken.items())


def test_conflicting_copies_are_reported_and_dropped(tmp_path):
    downloads.idrid(tmp_path, {"train": [(0, 0), (3, 1), (2, 2)]}, {})
    images = tmp_path / "B. Disease Grading/1. Original Images/a. Training Set"
    shutil.copy(images / "IDRiD_001.jpg", images / "IDRiD_002.jpg")
    records, problems = data.read_downloads(tmp_path)
    assert problems.reason.str.contains("same photograph as .*IDRiD_002.jpg: labels").tolist() == [True]
    assert data.drop_conflicts(records).id.to_list() == ["IDRiD-B-train-IDRiD_003"]


@pytest.mark.parametrize(("damage", "reason"), [
    (lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]), "truncated"),
    (lambda f: f.write_bytes(b""), "cannot identify"),
    (lambda f: f.write_bytes(b"<html>404</html>"), "cannot identify"),
])
def test_an_unreadable_image_is_left_out_with_its_reason(tmp_path, damage, reason):
    downloads.ucsd(tmp_path, {"train": ["CNV-1-1", "DME-2-1"]})
    damage(tmp_path / "OCT2017 /train/CNV/CNV-1-1.jpeg")
    records, problems = data.read_downloads(tmp_path)
    assert records.id.to_list() == ["UCSD-train-DME-2-1"] and reason in problems.reason[0]
    with pytest.warns(UserWarning, match="UCSD: 1 problems"):
        assert len(data.load_dataset("UCSD", tmp_path)) == 1


@pytest.mark.parametrize(("old", "new", "reason"), [
    ("IDRiD_001,1,0", "IDRiD_001,7,0", "row 2: .*grade is '7'"),
    ("IDRiD_001,1,0", "IDRiD_001,,0", "row 2: .*grade is ''"),
    ("IDRiD_001,1,0", "IDRiD_001,nan,0", "row 2: .*grade is 'nan'"),
    ("IDRiD_001,1,0", "IDRiD_002,1,0", "row 3: IDRiD_002: listed again"),
    ("IDRiD_001,1,0", "IDRiD_777,1,0", "row <NA>: 1 rows without their image, first: IDRiD_777"),
    ("Retinopathy grade", "DR", "no column 'Retinopathy grade'; it has Image name, DR"),
])
def test_a_damaged_label_file_says_what_is_wrong_and_where(tmp_path, old, new, reason):
    downloads.ucsd(tmp_path / "UCSD", {"train": ["CNV-1-1"]})
    downloads.idrid(tmp_path / "IDRiD", {"train": [(1, 0), (2, 0)]}, {})
    file = next(tmp_path.rglob("*Labels.csv"))
    file.write_text(file.read_text().replace(old, new))
    records, problems = data.read_downloads(tmp_path)
    said = "\n".join(f"{p.file} row {p.row}: {p.reason}" for p in problems.itertuples())
    assert pd.Series([said]).str.contains(reason).all(), said
    assert "UCSD-train-CNV-1-1" in set(records.id)                     # nothing else is lost
    if "no column" in reason:
        with pytest.raises(data.DataError, match="official download"):
            data.load_dataset("IDRiD", tmp_path)


def test_bom_blanks_and_empty_rows_do_not_matter(tmp_path):
    downloads.idrid(tmp_path, {"train": [(1, 0)]}, {})
    file = next(tmp_path.rglob("*Labels.csv"))
    file.write_text("\ufeff" + file.read_text().replace("IDRiD_001,1,0", "\n IDRiD_001 , 1,0 "))
    assert len(data.load_dataset("IDRiD", tmp_path)) == 1


def test_half_unpacked_and_missing_sets_name_place_and_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)no IDRiD in .*A. Segmentation.*unpack the official download"):
        data.load_dataset("IDRiD", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"(?s)not a folder.*unpacked downloads"):
        data.read_downloads(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="did you mean 'UCSD'"):
        data.load_dataset("USCD", tmp_path)
    downloads.idrid(tmp_path, {"train": [(1, 0)]}, {})
    next(tmp_path.rglob("*Labels.csv")).unlink()
    with pytest.raises(FileNotFoundError, match="half unpacked"):
        data.read_downloads(tmp_path)


def test_two_copies_of_a_data_set_are_not_mixed(tmp_path):
    for name in "ab":
        downloads.ucsd(tmp_path / name, {"train": ["CNV-1-1"]})
    with pytest.raises(data.DataError, match="give one of them"):
        data.load_dataset("UCSD", tmp_path)
    records, problems = data.read_downloads(tmp_path)
    assert len(records) == 1 and "second copy" in problems.reason[0]


def test_folder_names_as_archives_spell_them(tmp_path):
    downloads.idrid(tmp_path / "plain", {"train": [(1, 0)]}, {"train": {9: "MA OD"}})
    for part in ("A. Segmentation", "B. Disease Grading"):
        (tmp_path / "zips" / part.replace(" ", "%20")).mkdir(parents=True)
        (tmp_path / "plain" / part).rename(tmp_path / "zips" / part.replace(" ", "%20") / part)
    assert len(data.load_dataset("IDRiD", tmp_path)) == 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_masks_of_another_shape_cut_or_of_no_known_lesion_are_left_out(tmp_path):
    downloads.idrid(tmp_path, {}, {"train": {1: "MA HE EX SE OD"}})
    files = {file.stem[-2:]: file for file in tmp_path.rglob("*.tif")}
    downloads.mask(files["MA"], size=(50, 50))
    files["HE"].write_bytes(files["HE"].read_bytes()[:40])
    files["EX"].rename(files["EX"].with_name("IDRiD_01_XX.tif"))
    downloads.mask(files["SE"], pixels=0, size=(192, 128))
    records, problems = data.read_downloads(tmp_path)
    assert [mask["finding"] for mask in records.masks[0]] == ["optic disc"]        # an empty mask: no lesion, no fault
    said = problems.set_index(problems.file.str[-6:-4]).reason
    assert set(said.index) == {"MA", "HE", "XX"}
    assert "50 x 50 pixels does not fit" in said["MA"] and "not a readable mask" in said["HE"]
    assert "its code is 'XX', none of" in said["XX"]


def test_b_scan_in_the_wrong_class_folder_has_no_label(tmp_path):
    downloads.ucsd(tmp_path, {"train": ["CNV-1-1", "DME-2-1"]})
    folder = tmp_path / "OCT2017 /train"
    (folder / "CNV/CNV-1-1.jpeg").rename(folder / "DME/CNV-1-1.jpeg")
    records, problems = data.read_downloads(tmp_path)
    assert len(records) == 1 and problems.reason[0].startswith("1 pictures that do not lie or are not called as")


def test_rfmid_in_the_layout_of_ieee_dataport(tmp_path):
    downloads.rfmid(tmp_path / "old", ["DR"])
    home = tmp_path / "new"
    (home / "2. Groundtruths").mkdir(parents=True)
    (home / "1. Original Images").mkdir()
    (tmp_path / "old/Test_Set/Test").rename(home / "1. Original Images/c. Testing Set")
    (tmp_path / "old/Test_Set/RFMiD_Testing_Labels.csv").rename(home / "2. Groundtruths/c. RFMiD_Testing_Labels.csv")
    assert data.load_dataset("RFMiD", home)["labels"][:] == [["Diabetic retinopathy"]]


@pytest.mark.parametrize("mode", ["P", "L", "1", "RGB", "RGBA", "LA"])
def test_masks_read_alike_in_every_mode(tmp_path, mode):
    values = np.zeros((8, 12), bool)
    values[2, 3:6] = True
    file = tmp_path / ("mask.png" if mode == "LA" else "mask.tif")
    Image.fromarray((values * 255).astype(np.uint8)).convert(mode).save(file)
    assert (data.read_mask(file) == values).all()


@given(st.text())
def test_image_paths_never_leave_the_root(text):
    try:
        target = data.image_path(Path("/data/images"), text)
    except data.DataError:
        return
    assert target.is_relative_to("/data/images") and ".." not in target.parts


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../b.png", r"..\b.png", "", "."])
def test_paths_that_escape_are_refused(path):
    with pytest.raises(data.DataError, match="leaves the folder"):
        data.image_path(Path("root"), path)


def test_the_root_of_a_run_is_data_or_what_01_data_drew(tmp_path):
    own = SimpleNamespace(name="01_data", data_root=None, folder=tmp_path / "01_data")
    later = SimpleNamespace(name="03", data_root=None, path=lambda stage, file: tmp_path / stage / file)
    assert data.download_root(own) == data.download_root(later) == tmp_path / "01_data/downloads"
    assert data.download_root(SimpleNamespace(data_root=tmp_path)) == tmp_path


def test_hash_knows_a_photograph_at_another_size_and_quality(tmp_path):
    files = [downloads.picture(tmp_path / f"{i}.png", seed, size) for i, (seed, size) in
             enumerate([(1, (96, 64)), (1, (300, 200)), (2, (96, 64))])]
    Image.open(files[1]).save(tmp_path / "1.jpg", quality=60)
    prints = [data.fingerprint(file) for file in (files[0], tmp_path / "1.jpg", files[2])]
    frame = pd.DataFrame(prints, columns=["sha256", "phash"]).assign(modality="CFP")
    assert close_pairs(frame, 40)[["a", "b"]].to_numpy().tolist() == [[0, 1]]


@pytest.fixture(scope="module")
def read():
    """The real downloads, once."""
    if not REAL.exists():
        pytest.skip("the real photographs are not on this machine")
    return data.read_downloads(REAL)


class TestRealDownloads:
    """413 graded IDRiD photographs, 66 of part A, seven UCSD B-scans, ten RFMiD images of 1,920 rows."""

    def test_counts(self, read):
        records, problems = read
        assert records.groupby("dataset").size()[["IDRiD", "RFMiD", "UCSD"]].to_list() == [479, 10, 7]
        masks = records[records.dataset == "IDRiD"].masks
        assert (masks.map(len) > 0).sum() == 66 + 57 + 2               # part A, its copies in B, copies of these
        drawn = [mask for found in masks for mask in found]
        assert len({mask["path"] for mask in drawn}) == 227 + 66       # lesions and optic discs
        assert "optic disc" not in {label for found in records.labels for label in found}
        assert problems.reason.str.startswith("1910 rows without their image").sum() == 1
        assert problems.reason.str.startswith("same photograph").sum() == 5

    def test_every_known_pair_of_parts_a_and_b_is_found(self, read):
        records = read[0].set_index(read[0].id.str.replace(r"-(train|test)-", "-", regex=True))
        pairs = pd.read_csv(REAL / "IDRiD_overlap_A_to_B.csv")
        here = [(f"IDRiD-A-{p.A_image}", f"IDRiD-B-{p.B_image}") for p in pairs.itertuples()
                if p.B_split == "train" and f"IDRiD-A-{p.A_image}" in records.index]
        assert len(here) == 57 and all(records.group[a] == records.group[b] for a, b in here)
        assert records.group.value_counts().max() == 3                 # nothing is chained together that differs

    def test_held_out_photographs_are_not_in_training(self, read):
        final = data.hold_out(data.drop_conflicts(read[0]), 0.2, seed=0)
        graded = final[final.id.str.contains("IDRiD-B")]
        assert data.leakage(final).empty and 0.18 < (graded.split == "test").mean() < 0.22

    def test_a_color_mask_and_a_palette_mask_agree(self, read):
        mask = data.read_mask(next(REAL.rglob("IDRiD_81_EX.tif")))     # RGBA in the original release
        assert mask.shape == (425, 640) and mask.sum() == 9328


def test_a_half_unpacked_download_is_refused_with_what_is_missing(tmp_path):
    """Images without the folder of their labels: nothing can be loaded, and the message says which folder."""
    folder = tmp_path / "IDRiD" / "B. Disease Grading" / "1. Original Images" / "a. Training Set"
    folder.mkdir(parents=True)
    Image.new("RGB", (12, 8)).save(folder / "IDRiD_001.jpg")
    with pytest.raises(FileNotFoundError, match="(?s)no image of IDRiD.*B. Disease Grading.*unpack the whole"):
        data.load_dataset("IDRiD", tmp_path / "IDRiD")
