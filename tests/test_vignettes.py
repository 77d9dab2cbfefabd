"""Complex cases: the history and the images, each alone, leave the answer open; together they settle it."""

import json
import re
from collections import defaultdict

import pytest
from PIL import Image

from fundus_lib import lexicon
from fundus_lib.answers import extract_answer
from fundus_lib.knowledge import vocabulary
from fundus_lib.world import vignettes

CASES = vignettes.complex_cases(seed=3, count=10 * len(vignettes.CELLS))


def answers(of):
    found = defaultdict(set)
    for case in CASES:
        found[of(case)].add(case.answer)
    return list(found.values())


def seen(case):
    return tuple((i.modality, i.findings, i.role) for i in case.images)


@pytest.mark.parametrize("alone", [
    seen,                                                                   # all findings of all images
    lambda case: tuple(image.name for image in case.images),                # the very same pictures
    lambda case: case.told,                                                 # the kind of history
    lambda case: case.history,                                              # the very same words
], ids=["findings", "pictures", "kind of history", "words"])
def test_images_alone_and_history_alone_leave_every_answer_open(alone):
    assert all(len(labels) >= 2 for labels in answers(alone))


def test_together_they_settle_the_answer():
    assert all(len(labels) == 1 for labels in answers(lambda case: (seen(case), case.told)))
    assert len({seen(case) for case in CASES}) == len(vignettes.PAIRS) >= 6
    assert {case.told for case in CASES} == set(vignettes.HISTORIES)


def test_no_history_names_an_answer():
    words = {word for label in vignettes.LABELS for word in re.findall(r"[a-z]{3,}", label.lower())}
    for case in CASES:
        assert not words & set(re.findall(r"[a-z]+", case.history.lower())), case.history
        assert {mention.finding for mention in lexicon.find_labels(case.history)} <= {"Diabetes mellitus"}
        assert "{" not in case.history and case.images[0].eye in case.history.lower()


def test_answers_are_canonical_and_the_images_do_not_contradict_them():
    for case in CASES[: len(vignettes.CELLS)]:
        assert lexicon.canonical_label(case.answer) == case.answer
        for image in case.images:
            try:
                known = vocabulary(case.answer, image.modality)
            except KeyError:
                continue  # no description of this label in this modality
            assert known.all_of <= set(image.findings) and not known.excluded & set(image.findings)


def test_cases_repeat_by_seed_and_vary_within_it():
    assert vignettes.complex_cases(3, len(CASES)) == CASES
    other = vignettes.complex_cases(4, len(CASES))
    assert not {case.history for case in other} & {case.history for case in CASES}
    per_kind = defaultdict(set)
    for case in CASES:
        per_kind[case.told].add(case.history)
    assert all(len(texts) == 10 for texts in per_kind.values())             # ten turns, ten wordings


def test_a_set_of_images_is_of_one_camera_and_training_of_the_clinics_alone(tmp_path):
    cameras = defaultdict(set)
    for case in CASES[: 2 * len(vignettes.CELLS)]:
        cameras[case.images[0].name].add(case.away)
    assert all(len(cameras_of) == 1 for cameras_of in cameras.values())
    assert sum(map(sum, cameras.values())) == len(vignettes.PAIRS)  # of two turns each pair is away once
    file = vignettes.write_cases(tmp_path, CASES[:4], camera="clinic", height=32, split="train")
    assert {record["domain"] for record in json.loads(file.read_text())} == {"in-domain"}
    assert any(case.away for case in CASES[:4])


def test_records(tmp_path):
    cases = CASES[: len(vignettes.CELLS)]
    file = vignettes.write_cases(tmp_path, cases, camera="clinic", height=32, split="test")
    records = json.loads(file.read_text())
    assert file.name == "complex_reason_test.json" and len(records) == len(cases)
    for case, record in zip(cases, records, strict=True):
        assert set(record) == {"image", "conversations", "reason", "title", "caption", "pmcid", "dataset", "domain"}
        assert record["domain"] == ("out-of-domain" if case.away else "in-domain") and case.answer in record["reason"]
        assert {finding for image in case.images for finding in image.findings if not finding.startswith(
            ("normal", "intact"))} <= {m.finding for m in lexicon.find_mentions(record["reason"])}
        assert all(Image.open(tmp_path / path).size[1] == 32 for path in record["image"]) and len(record["image"]) <= 3
        human, gpt = record["conversations"]
        assert human["value"].startswith(case.history) and case.answer not in human["value"] + record["title"]
        assert extract_answer(gpt["value"], kind="open").value == case.answer
    pictures = {path for record in records for path in record["image"]}
    assert len(pictures) == len(list((tmp_path / "images/test").iterdir()))
    before = {path: (tmp_path / path).read_bytes() for path in pictures}
    vignettes.write_cases(tmp_path, cases, camera="clinic", height=32, split="test")
    assert before == {path: (tmp_path / path).read_bytes() for path in pictures}
