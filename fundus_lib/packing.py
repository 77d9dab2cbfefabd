"""The rollouts of a prompt side by side behind it, in one sequence: a loss that reads each prompt once.

TRL scores every rollout with a prompt of its own. Here the rollouts of a prompt stand one after the other behind one
copy of it; the attention mask hides them from each other and every rollout's positions go on from the prompt's end, so
each token is predicted from the same numbers. The last token of the prompt, which predicts the first of the rollout,
opens every rollout.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LONGEST = 4096  # tokens of a packed sequence: beyond, attention over neighbours would cost more than a prompt saves


class Packed(NamedTuple):
    """S sequences of up to L tokens, padded on the right."""
    ids: Tensor        # (S, L)
    mask: Tensor       # (S, 1, L, L) of bool: may the token of the third axis see that of the fourth?
    positions: Tensor  # (3, S, L) time, height, width
    labels: Tensor     # (S, L) the token that follows in the rollout; -100: none is scored here
    where: Tensor      # (B, T) place of each completion token in the flattened labels; S * L where it does not count


def sequences(keys: Sequence, prompts: Sequence[int], completions: Sequence[int],
              longest: int = LONGEST) -> list[list[int]]:
    """Which rows go into one sequence: those of equal key, as many as fit into `longest` tokens, in their order.

    keys: of each row, what its prompt is; prompts, completions: their lengths in tokens.
    """
    open_now: dict = {}
    made: list[list[int]] = []
    for row, key in enumerate(keys):
        if key not in open_now or open_now[key][1] + completions[row] > longest:
            made.append([])
            open_now[key] = [made[-1], prompts[row]]
        open_now[key][0].append(row)
        open_now[key][1] += completions[row]
    return made


def pack(rows: Sequence[Sequence[int]], prompt_ids: Tensor, prompt_mask: Tensor, prompt_positions: Tensor,
         completion_ids: Tensor, completion_mask: Tensor) -> Packed:
    """Put the rollouts of each of `rows` behind one copy of their prompt.

    prompt_ids, prompt_mask: (B, P), padded on the left; prompt_positions: (3, S, P) of each sequence's first row;
    completion_ids, completion_mask: (B, T), padded on the right.
    """
    device, lengths = prompt_ids.device, completion_mask.sum(1).tolist()
    parts, where = [], torch.full(completion_ids.shape, -1, device=device)
    for s, members in enumerate(rows):
        keep = prompt_mask[members[0]].bool()
        head, place = prompt_ids[members[0], keep], prompt_positions[:, s, keep]
        at = len(head) - 1
        ids, position, label = [head[:-1]], [place[:, :-1]], [head.new_full((at,), -100)]
        owner = [head.new_zeros(at)]
        for k, row in enumerate(members, 1):
            length = lengths[row]
            said = completion_ids[row, :length]
            ids.append(torch.cat([head[-1:], said])[:length])
            position.append(place[:, -1:] + torch.arange(length, device=device))
            label.append(said)
            owner.append(head.new_full((length,), k))
            where[row, :length] = torch.arange(at, at + length, device=device)
            at += length
        parts.append((torch.cat(ids), torch.cat(position, 1), torch.cat(label), torch.cat(owner)))
    width = max(len(part[0]) for part in parts)

    def right(index: int, value: int) -> Tensor:
        return torch.stack([torch.nn.functional.pad(part[index], (0, width - part[index].shape[-1]), value=value)
                            for part in parts], dim=-2)

    owner = right(3, -1)
    mask = (owner[:, None, :] == owner[:, :, None]) | (owner[:, None, :] == 0)
    mask &= torch.ones(width, width, dtype=torch.bool, device=device).tril()
    start = torch.empty(len(where), 1, dtype=torch.long, device=device)
    for s, members in enumerate(rows):
        start[list(members)] = s * width
    where = torch.where(where < 0, len(rows) * width, where + start)
    return Packed(right(0, 0), mask[:, None], right(1, 0), right(2, -100), where)
