"""Rollouts behind one prompt: who sees whom, at which positions, and where each token's number comes back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fundus_lib.packing import pack, sequences


def test_rows_of_a_prompt_share_a_sequence_until_it_is_full():
    assert sequences("abab", [10] * 4, [5] * 4) == [[0, 2], [1, 3]]
    assert sequences("aaa", [10] * 3, [5] * 3, longest=20) == [[0, 1], [2]]  # 10 + 5 + 5 = 20; a third would make 25
    assert sequences("aa", [10] * 2, [50] * 2, longest=20) == [[0], [1]]  # longer than that: alone, never dropped


def test_two_rollouts_of_a_padded_prompt_by_hand():
    prompt = torch.tensor([[0, 7, 8, 9], [0, 7, 8, 9]])  # one token of padding on the left
    completion = torch.tensor([[1, 2, 3], [4, 0, 0]])
    positions = torch.tensor([0, 0, 1, 2]).expand(3, 1, 4)
    packed = pack([[0, 1]], prompt, (prompt > 0).int(), positions, completion, (completion > 0).int())
    # 7 8 | 9 1 2 | 9     the last prompt token opens each rollout and predicts its first token
    assert packed.ids.tolist() == [[7, 8, 9, 1, 2, 9]]
    assert packed.labels.tolist() == [[-100, -100, 1, 2, 3, 4]]
    assert packed.positions[0].tolist() == [[0, 1, 2, 3, 4, 2]]  # both rollouts go on from the prompt's end
    assert packed.where.tolist() == [[2, 3, 4], [5, 6, 6]]  # 6 = S * L: no token
    sees = [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0],
            [1, 1, 0, 0, 0, 1]]  # the second rollout sees the prompt and itself, not its neighbour
    assert packed.mask[0, 0].int().tolist() == sees


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=8),
       st.integers(8, 30))
def test_every_token_is_scored_once_and_nothing_else(shape, longest):
    rows = [(prompt + 2 * key, said, key) for prompt, said, key in shape]
    prompts = {key: next(p for p, _, k in rows if k == key) for _, _, key in rows}
    width, longest_said = max(prompts.values()), max(1, *(said for _, said, _ in rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    completion = torch.zeros(len(rows), longest_said, dtype=torch.long)
    for i, (_, said, key) in enumerate(rows):
        ids[i, width - prompts[key]:] = 10 * key + torch.arange(1, prompts[key] + 1)
        completion[i, :said] = 100 * (i + 1) + torch.arange(said)
    together = sequences([key for *_, key in rows], [prompts[key] for *_, key in rows],
                         [said for _, said, _ in rows], longest)
    positions = (ids > 0).cumsum(1)[[members[0] for members in together]].expand(3, -1, -1)
    packed = pack(together, ids, (ids > 0).int(), positions, completion, (completion > 0).int())
    back = torch.cat([packed.labels.flatten(), torch.zeros(1, dtype=torch.long)])[packed.where]
    assert torch.equal(back, completion)  # what is scored at a token's place is the token itself
    assert (packed.labels >= 0).sum() == (completion > 0).sum()
    assert packed.mask.any(-1).all()  # nobody attends to nothing: its softmax would be NaN


def test_padding_of_the_shorter_sequence_sees_and_is_seen_by_padding_only():
    ids = torch.tensor([[7, 8], [5, 6]])
    completion = torch.tensor([[1, 2, 3], [4, 0, 0]])
    packed = pack([[0], [1]], ids, torch.ones(2, 2), torch.arange(2).expand(3, 2, 2), completion, completion > 0)
    assert packed.ids.tolist() == [[7, 8, 1, 2], [5, 6, 0, 0]]
    assert packed.mask[1, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]


@pytest.mark.parametrize("empty", [0, 1])
def test_a_rollout_that_does_not_count_has_no_place(empty):
    ids, completion = torch.tensor([[7, 8], [7, 8]]), torch.tensor([[1, 2], [3, 4]])
    mask = torch.ones(2, 2, dtype=torch.long)
    mask[empty] = 0  # truncated completions may be masked out
    packed = pack([[0, 1]], ids, torch.ones(2, 2), torch.arange(2).expand(3, 1, 2), completion, mask)
    assert packed.where[empty].tolist() == [packed.labels.numel()] * 2
    assert packed.ids.shape == (1, 3)
