"""Votes: what one answer says, what five say together, and how well."""

import numpy as np
import pandas as pd
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
    assert voting.parse_votes("", ASKED) == dict.fromkeys(ASKED, False)


@given(st.dictionaries(st.sampled_from(list(lexicon.findings())), st.booleans(), min_size=1, max_size=6))
def test_what_is_written_is_read_again(votes):
    assert voting.parse_votes(voting.format_votes(votes), votes) == votes


def test_three_of_five_keep_a_finding():
    rollouts = [{"drusen": i < 3, "microaneurysm": i < 2} for i in range(5)]
    assert voting.majority_vote(rollouts) == {"drusen"}
    assert voting.majority_vote(rollouts, min_votes=2) == {"drusen", "microaneurysm"}
    assert voting.majority_vote([]) == set()


def test_masks_decide_what_their_data_set_outlines():
    masks = [{"finding": "hard exudate", "path": "a.tif"}, {"finding": "optic disc", "path": "b.tif"}]
    assert voting.from_masks(masks, ["hard exudate", "microaneurysm"]) == {"hard exudate": True, "microaneurysm": False}
    assert voting.from_masks([], ["hard exudate"]) == {}


def test_s2_by_hand():
    findings = pd.DataFrame({"record_id": list("abcd") * 2, "finding": ["drusen"] * 4 + ["microaneurysm"] * 4,
                             "kept": [True, False, False, False, True, True, True, True]})
    truth = {"a": {"drusen"}, "b": {"drusen"}, "c": set(), "d": set()}
    table = voting.s2_table(findings, truth).set_index("finding")
    drusen = table.loc["drusen"]  # one of two found, none invented: 2 * .5 * 1 / 1.5
    assert (drusen.n_pos, drusen.n_neg, drusen.sensitivity, drusen.specificity) == (2, 2, 0.5, 1.0)
    assert np.isclose(drusen.s2, 2 / 3)
    assert table.loc["microaneurysm"].n_pos == 0
    assert np.isnan(table.loc["microaneurysm"].s2)  # never there: no sensitivity, no S2
    assert voting.s2_table(findings[4:].assign(kept=False), {"a": {"microaneurysm"}, "b": set()}).s2[0] == 0
