"""Votes: what one answer says, what five say together, and how well."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundus_lib import lexicon, voting

ASKED = ["microaneurysm", "retinal hemorrhage", "drusen"]


def test_the_prompt_is_the_papers():
    assert voting.prompt("CFP", ASKED) == (
        "In this CFP image, determine the presence of the following findings: microaneurysm, retinal hemorrhage, "
        "drusen. Answer with present or absent for each finding.")


def test_votes_by_hand():
    read = voting.parse_votes("microaneurysm: present, drusen: absent.", ASKED)
    assert read == {"microaneurysm": True, "retinal hemorrhage": False, "drusen": False}
    assert voting.parse_votes("There are drusen, no microaneurysms.", ASKED)["drusen"]
    assert voting.parse_votes("sectoral hemorrhage: present", ASKED)["retinal hemorrhage"]  # child for parent


def test_a_cut_or_contradictory_answer_votes_for_nothing():
    assert voting.parse_votes("drusen: absent, microaneurysm", ASKED) == dict.fromkeys(ASKED, False)
    assert not voting.parse_votes("drusen: present, drusen: absent", ASKED)["drusen"]


@pytest.mark.parametrize("text", [
    "- **Drusen**: Present\n- **Microaneurysms**: Absent\n", '{"drusen": "present", "microaneurysm": "absent"}',
    "| Drusen | present |\n| MA | absent |", "Drusen: Yes\nMicroaneurysm: No", "1. Drusen - present\n2. MA - absent",
    "Present: drusen. Absent: microaneurysm", "Present:\n- drusen\nAbsent:\n- microaneurysm", "Drusen are present.",
    "The image shows drusen. Microaneurysms are absent.", "<think> drusen absent? </think> drusen present.",
])
def test_the_ways_in_which_models_write_a_verdict(text):
    assert voting.parse_votes(text, ASKED) == {"microaneurysm": False, "retinal hemorrhage": False, "drusen": True}


@pytest.mark.parametrize("text", [
    "", "I cannot read images.", "microaneurysm, retinal hemorrhage and drusen", voting.prompt("CFP", ASKED),
    "optic disc present", "<think> drusen present, microaneurysm", "Drusen may be present.",
])
def test_an_answer_without_a_verdict_is_no_vote_of_absent(text):
    assert voting.parse_votes(text, ASKED) == {}


@given(st.dictionaries(st.sampled_from(list(lexicon.findings())), st.booleans(), min_size=1, max_size=6))
def test_what_is_written_is_read_again(votes):
    assert voting.parse_votes(voting.format_votes(votes), votes) == votes


def test_three_of_five_keep_a_finding():
    rollouts = [{"drusen": i < 3, "microaneurysm": i < 2} for i in range(5)]
    assert voting.majority_vote(rollouts) == {"drusen"}
    assert voting.majority_vote(rollouts, min_votes=2) == {"drusen", "microaneurysm"}
    assert voting.majority_vote([]) == set()


@pytest.mark.parametrize(("present", "absent", "malformed", "decided"), [
    (3, 0, 0, True), (0, 3, 0, False), (2, 0, 0, None), (2, 2, 0, None),  # the first rollouts, more to come
    (3, 2, 0, True), (2, 3, 0, False), (3, 0, 2, True), (1, 3, 1, False),
    (2, 2, 1, None), (2, 0, 3, None), (0, 2, 3, None), (2, 1, 2, None), (0, 0, 5, None),  # the unread could turn it
])
def test_a_vote_is_decided_when_no_other_rollout_could_turn_it(present, absent, malformed, decided):
    rollouts = [{"drusen": True}] * present + [{"drusen": False}] * absent + [{}] * malformed
    assert voting.verdict(rollouts, "drusen", 5, 3) is decided
    assert (decided is True) == ("drusen" in voting.majority_vote(rollouts))


def test_masks_decide_what_their_data_set_outlines():
    masks = [{"finding": "hard exudate", "path": "a.tif"}, {"finding": "optic disc", "path": "b.tif"}]
    assert voting.from_masks(masks, ["hard exudate", "microaneurysm"]) == {"hard exudate": True, "microaneurysm": False}
    assert voting.from_masks([], ["hard exudate"]) == {}


def test_s2_by_hand():
    said = pd.DataFrame({"record_id": list("abcd") * 3, "finding": ["drusen"] * 4 + ["cyst"] * 4 + ["scar"] * 4,
                         "present": [True, True, False, False] + [False] * 4 + [True, True, False, False],
                         "vote": [True, False, False, False] + [True] * 8})
    counted = voting.s2_scores(said, "vote", np.array([[1, 1, 1, 1], [3, 1, 0, 0]]))
    assert counted.shape == (3, 2, 3)
    drusen, cyst, scar = counted[:, 0].T  # one of two found, none invented: 2 * .5 * 1 / 1.5
    assert np.allclose(drusen, [0.5, 1, 2 / 3])
    assert np.isnan(cyst[[0, 2]]).all() and cyst[1] == 0  # never there: no sensitivity, no S2
    assert scar.tolist() == [1, 0, 0]  # a finder that always says present is worth nothing
    assert counted[0, 1, 0] == 0.75 and np.isnan(counted[1, 1, 0])  # the first image three times, the last two never
