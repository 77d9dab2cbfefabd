"""Asking what rollouts are expected to disagree about: chances by hand, and what it saves on a simulated policy."""

import numpy as np
import pytest

from fundus_lib.curriculum import FADING, Curriculum


def test_a_topic_speaks_for_questions_that_were_never_asked():
    lessons = Curriculum(["eye", "eye", "stage"], 1)
    assert lessons.chances().tolist() == [0.5, 0.5, 0.5]  # nothing is known
    lessons.note([0], [False])
    # the topic: (0 + 1/2) / (1 + 1) = 1/4. The question itself: (0 + 1/4) / (1 + 1) = 1/8
    assert lessons.chances().tolist() == [0.125, 0.25, 0.5]


def test_what_is_remembered_fades():
    lessons = Curriculum(["a", "b"], 1)
    lessons.note([0], [True])
    lessons.note([1], [True])
    assert lessons.asked.tolist() == [FADING, 1.0]


def test_the_likeliest_candidates_are_asked_and_each_once():
    lessons, rng = Curriculum(["a"] * 4 + ["b"] * 4, 2), np.random.default_rng(0)
    lessons.note([0, 4], [False, True])
    assert sorted(lessons.choose(4, rng)) == [4, 5, 6, 7]  # all eight are candidates; topic b disagreed
    assert len(set(lessons.choose(3, rng))) == 3
    assert sorted(Curriculum(["a"] * 5, 1).choose(5, rng)) == [0, 1, 2, 3, 4]
    same = [Curriculum(["a"] * 50, 3).choose(9, np.random.default_rng([7, 1])) for _ in range(2)]
    assert same[0] == same[1]


@pytest.mark.parametrize("candidates, least", [(1, 0), (3, 1.5)])
def test_more_groups_disagree_where_the_policy_is_of_two_minds_about_half_of_the_questions(candidates, least):
    """600 questions in 20 topics, half of which the policy gets right always; 24 a step, 8 rollouts each."""
    rng, topic = np.random.default_rng(0), np.arange(600) % 20
    right = np.where(topic % 2, 1.0, rng.uniform(0.2, 0.8, 600))
    lessons, told = Curriculum(topic, candidates), []
    for _ in range(60):
        asked = lessons.choose(24, rng)
        hits = rng.binomial(8, right[asked])
        lessons.note(asked, disagreed := (hits > 0) & (hits < 8))
        told.append(disagreed.mean())
    uniform = (1 - right**8 - (1 - right)**8).mean()
    assert np.mean(told) > least * uniform and abs(np.mean(told[:1]) - uniform) < 0.3
    if candidates == 1:
        assert np.mean(told) == pytest.approx(uniform, abs=0.05)  # 1,440 groups: a standard error of 0.013
