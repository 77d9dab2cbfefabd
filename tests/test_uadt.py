import inspect
import json
import math
import os
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from test_grpo import rows, trainer_of  # noqa: F401   a fixture
from test_shared_vision import COMPLETIONS, told
from trl import GRPOTrainer

from fundus_lib.uadt import (
    RELATIVES,
    UADTGRPOTrainer,
    doubt_of,
    rollout_mean,
    semantic_entropy,
    shape,
    shape_advantages,
    update_threshold,
)

FORMS = ["uadt", *RELATIVES]


@pytest.mark.parametrize("entropy, advantage, expected", [
    (1.0, 1.0, 1.3808),    # uncertain and right: explore more     omega = tanh(1) = .7616
    (1.0, -1.0, -0.6192),  # uncertain and wrong: softer
    (0.1, 1.0, 0.6680),    # certain and right: little to learn    omega = tanh(-.8) = -.6640
    (0.1, -1.0, -1.3320),  # certain and wrong: harder
])
def test_check_values(entropy, advantage, expected):
    shaped = shape_advantages(torch.tensor([advantage]), torch.tensor([entropy]), 0.5, strength=0.5, temperature=0.5)
    assert shaped.item() == pytest.approx(expected, abs=5e-5)  # the values are given to four digits


ADVANTAGES = st.lists(st.integers(-5000, 5000).map(lambda thousandths: thousandths / 1000), min_size=1, max_size=8)


@given(ADVANTAGES, st.floats(0, 8), st.floats(0, 8), st.floats(0, 0.99))
def test_the_sign_stays_and_the_factor_is_bounded(advantages, entropy, threshold, strength):
    plain = torch.tensor(advantages, dtype=torch.float64)
    shaped = shape_advantages(plain, torch.full((len(plain),), entropy), threshold, strength=strength)
    assert (shaped.sign() == plain.sign()).all()
    factor = (shaped / plain)[plain.abs() > 1e-6]
    assert ((factor >= 1 - strength - 1e-6) & (factor <= 1 + strength + 1e-6)).all()


def test_token_level_advantages_take_their_rollouts_factor():
    shaped = shape_advantages(torch.ones(1, 3), torch.tensor([1.0]), 0.5)
    assert torch.allclose(shaped, torch.full((1, 3), 1.3808), atol=5e-5)


def test_threshold_starts_at_the_first_batch_and_moves_slowly():
    assert update_threshold(None, 2.0) == 2.0
    assert update_threshold(2.0, 1.0, decay=0.9) == pytest.approx(1.9)


@pytest.mark.parametrize("arguments", [{"strength": 1.0}, {"strength": -0.1}, {"temperature": 0.0}])
def test_constants_outside_their_range_are_refused(arguments):
    with pytest.raises(ValueError, match="UADT needs"):
        shape_advantages(torch.ones(1), torch.ones(1), 0.5, **arguments)


@pytest.mark.parametrize("arguments, name", [
    ({"granularity": "token"}, "granularity"), ({"form": "grpo"}, "form"), ({"update": "never"}, "update")])
def test_an_unknown_word_is_refused(arguments, name):
    with pytest.raises(ValueError, match=f"UADT's {name} is one of .*, not '{list(arguments.values())[0]}'"):
        UADTGRPOTrainer(**arguments)


def doubt(*tokens, mask=None, answers="abcd", rollouts=2, **kwargs):
    """Doubt of one rollout for each list of token entropies."""
    tokens = torch.tensor(tokens, **kwargs)
    mask = torch.ones(tokens.shape) if mask is None else torch.tensor(mask)
    return doubt_of(tokens, mask, list(answers)[:len(tokens)], rollouts)


def test_doubt_by_hand():
    d = doubt([1.0, 3.0, 99.0], [6.0, 99.0, 99.0], [1.0, 1.0, 1.0], [1.0, 1.0, 99.0], answers="aaab",
              mask=[[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], requires_grad=True)
    assert d.rollout.tolist() == [2, 6, 1, 1] and d.batch == 2.5  # 99 is padding
    assert d.tokens[1].tolist() == [6, 0, 0]
    assert d.group.tolist() == [4, 4, 1, 1] and d.spread.tolist() == pytest.approx([8 ** 0.5, 8 ** 0.5, 0, 0])
    assert d.semantic.tolist() == [0, 0, 1, 1]  # a group that agrees, one that does not
    assert not any(value.requires_grad for value in vars(d).values() if isinstance(value, torch.Tensor))
    assert semantic_entropy([None, None, "a", "b"], 4).item() == pytest.approx(0.75)  # (ln 2) / 2 + (ln 4) / 2 of ln 4


@pytest.mark.parametrize("form, advantages, expected", [
    # u: 1, 3 | 2, 2; z of UCAS: (mean - u) / std = 1 / sqrt 2, -1 / sqrt 2 | 0, 0
    ("cheng", [1.0, -1.0, 0.1, 0.0], [[1.4, 1.4], [-0.5, -0.6], [0.15, 0.1], [0.0, 0.0]]),  # .4 H, but |A| / 2
    ("seed", [1.0, -1.0, 1.0, -1.0], [1.0, -1.0, 0.98, -0.98]),  # all agree | all differ: alpha = .02 less
    ("ucas", [1.0, -1.0, 1.0, -1.0], [math.exp(-0.25 / 2 ** 0.5), -math.exp(-0.35 / 2 ** 0.5), 1.0, -1.0]),
    ("edge", [1.0, -1.0, 1.0, -1.0], [2.0, -2 / 3, 1.0, -1.0]),  # mean 2 over 1, 2 over 3
    ("uadt", [1.0, -1.0, 1.0, -1.0], [1 - math.tanh(2) / 2, -1 + math.tanh(2) / 2, 1.0, -1.0]),  # tau 2, T 1/2
])
def test_the_forms_by_hand(form, advantages, expected):
    d = doubt([1.0, 1.0], [5.0, 1.0], [2.0, 0.0], [2.0, 2.0], mask=[[1, 1], [1, 1], [1, 0], [1, 1]], answers="aaab")
    shaped = shape(form, torch.tensor(advantages), d, 2.0)
    assert torch.allclose(shaped, torch.tensor(expected), atol=1e-4)  # 1e-4 in the denominator of z


def test_a_prompt_takes_the_mean_of_its_group():
    d = doubt([1.0], [3.0])
    assert shape("uadt", torch.ones(2), d, 2.0, granularity="prompt").tolist() == [1, 1]
    assert shape("uadt", torch.ones(2), d, 2.0)[0] < 1


@pytest.mark.parametrize("form", FORMS)
def test_what_must_hold_of_every_form(form):
    tokens = torch.rand(4, 3, requires_grad=True)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    plain = torch.tensor([1.0, -2.0, 0.5, 0.0])
    d = doubt_of(tokens, mask, "abbc", 4)
    shaped = shape(form, plain, d, 0.4)
    assert not shaped.requires_grad
    assert (shape(form, torch.zeros(4), d, 0.4) == 0).all()  # equal rewards: nothing to learn
    assert shape(form, plain, d, 0.4, strength=0) is plain  # plain GRPO
    assert (shaped.sign() == (plain[:, None] if shaped.dim() == 2 else plain).sign()).all()
    padded = doubt_of(torch.nn.functional.pad(tokens, (0, 2), value=9.0), torch.nn.functional.pad(mask, (0, 2)),
                      "abbc", 4)
    again = shape(form, plain, padded, 0.4)
    assert torch.equal(again[:, :3] if again.dim() == 2 else again, shaped)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("entropies, edged", [([0.0, 0.0], [1.0, -1.0]), ([0.0, 1.0], [10.0, -0.5])])
def test_no_entropy_at_all(form, entropies, edged):
    """EDGE divides by H_i: no entropy in the group changes nothing, none in one rollout at most tenfold."""
    shaped = shape(form, torch.tensor([1.0, -1.0]), doubt(*[[e] for e in entropies]), 0.0)
    assert shaped.isfinite().all()
    if form == "edge":
        assert shaped.tolist() == pytest.approx(edged)


def holding(threshold=None, rollouts=4, **settings):
    """A trainer without a model that scores batches whose entropies are given."""
    trainer = object.__new__(UADTGRPOTrainer)
    vars(trainer).update({"form": "uadt", "strength": 0.5, "uadt_temperature": 0.5, "decay": 0.9, "update": "before",
                          "granularity": "rollout"} | settings)
    trainer.threshold, trainer.num_generations, trainer.model = threshold, rollouts, SimpleNamespace(training=True)
    trainer.processing_class = SimpleNamespace(
        batch_decode=lambda ids, **_: [f"<answer> {x[0]} </answer>" for x in ids])
    trainer._metrics, trainer._logs = {"train": defaultdict(list)}, {"extra": defaultdict(list)}
    return trainer


def score(trainer, entropies, mask, advantages):
    trainer.heard = SimpleNamespace(tokens=lambda: entropies)
    batch = {"advantages": advantages, "completion_mask": mask, "completion_ids": (10 * entropies).int().tolist()}
    trainer.scored(batch)
    return batch["advantages"]


@pytest.mark.parametrize("update, expected", [("before", [1.0, 1.1]), ("after", [1.0, 1.0])])
def test_tau_moves_before_or_after_it_is_used_and_survives(update, expected):
    trainer = holding(update=update, rollouts=2)
    for entropy in (1.0, 2.0):
        score(trainer, torch.full((2, 1), entropy), torch.ones(2, 1), torch.tensor([1.0, -1.0]))
    assert trainer._metrics["train"]["uadt/threshold"] == pytest.approx(expected)
    assert trainer.extra_state() == {"threshold": pytest.approx(1.1)}
    resumed = holding(update=update)
    resumed.restore(trainer.extra_state())
    assert resumed.threshold == trainer.threshold


def test_what_is_logged_by_hand():
    trainer = holding(threshold=1.0, rollouts=4, decay=1.0, uadt_temperature=1.0)
    advantages = torch.tensor([1.0, 1.0, -1.0, 0.0])
    shaped = score(trainer, torch.tensor([[2.0], [0.0], [2.0], [1.0]]), torch.ones(4, 1), advantages)
    t = math.tanh(1)
    assert shaped.tolist() == pytest.approx([1 + t / 2, 1 - t / 2, -1 + t / 2, 0])
    logged = {name.removeprefix("uadt/"): values for name, values in trainer._metrics["train"].items()}
    assert logged == {"uncertainty": [1.25], "threshold": [1.0], "omega": [pytest.approx(t / 4)],
                      "amplified": [pytest.approx(1 / 3)]}  # of three that are not zero
    assert trainer._logs["extra"] == {"uncertainty": [2, 0, 2, 1], "omega": pytest.approx([t, -t, t, 0]),
                                      "shaped_advantage": shaped.tolist()}


N, TOKENS = 8, 6
TORCH = torch.Generator().manual_seed(0)
ENTROPIES = torch.rand(N, TOKENS, generator=TORCH)
MASK = (torch.arange(TOKENS) < torch.tensor([6, 2, 3, 1, 2, 4, 1, 3])[:, None]).int()
PLAIN = torch.randn(N, generator=TORCH)
RUNS = [("uadt", "rollout", 4), ("uadt", "prompt", 4), ("uadt", "prompt", 8),
        *((form, "rollout", 8) for form in RELATIVES)]


def scored_halves(rank, size, folder):
    """What rank `rank` of `size` makes of its share of the batch, step by step, for every run of RUNS."""
    if size > 1:
        AcceleratorState._reset_state(reset_partial_state=True)  # a fork inherits that of the one process
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
        torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=size)
        PartialState(cpu=True)
    mine, got = slice(rank * N // size, (rank + 1) * N // size), []
    for form, granularity, rollouts in RUNS:
        trainer = holding(form=form, granularity=granularity, rollouts=rollouts)
        for step in (1, 2):
            mask = MASK[mine]
            width = mask.sum(1).max()  # a process pads its completions to its own longest
            shaped = score(trainer, step * ENTROPIES[mine, :width], mask[:, :width], PLAIN[mine])
        shaped = rollout_mean(shaped, mask[:, :width]) if shaped.dim() == 2 else shaped
        got.append([shaped.tolist(), trainer.threshold, trainer._metrics["train"], trainer._logs["extra"]])
    (folder / f"{size}_{rank}.json").write_text(json.dumps(got))


def test_two_processes_are_one(tmp_path):
    """Halves of a batch on two ranks, a group of eight across both, against the whole batch on one."""
    from torch.multiprocessing import start_processes

    scored_halves(0, 1, tmp_path)
    start_processes(scored_halves, (2, tmp_path), nprocs=2, start_method="fork")
    whole, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1_0", "2_0", "2_1"))
    for run, one, a, b in zip(RUNS, whole, first, second, strict=True):
        assert a[0] + b[0] == pytest.approx(one[0], abs=1e-6), run
        assert a[1] == b[1] == pytest.approx(one[1]), run  # tau: one number
        for mine in (a, b):
            for logged, expected in zip(mine[2:], one[2:], strict=True):
                assert logged.keys() == expected.keys()
                assert all(logged[name] == pytest.approx(expected[name], abs=1e-6) for name in expected), run  # float32


@pytest.mark.parametrize("form", ["uadt", "cheng"])
def test_micro_batches_change_nothing_and_rollouts_carry_what_was_done(form, tiny_base, rows, tmp_path):  # noqa: F811
    """One batch of eight, or two of four accumulated, from the same completions: gradients, tau and the log."""
    seen = []
    for size in (8, 4):
        trainer = trainer_of(UADTGRPOTrainer, tiny_base, rows, tmp_path, 1, form=form, arguments={
            "per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size,
            "steps_per_generation": 8 // size})
        _, gradients, _ = told(trainer, COMPLETIONS)
        seen.append((trainer.threshold, dict(trainer._logs["extra"]), gradients, trainer._logs["advantages"]))
    (tau, logged, gradients, plain), (same, again, others, _) = seen
    assert tau == same and logged.keys() == {"uncertainty", "omega", "shaped_advantage"}
    assert all(list(logged[name]) == list(again[name]) and len(logged[name]) == 8 for name in logged)
    assert list(plain) != list(logged["shaped_advantage"])  # TRL's column stays unshaped
    assert max(map(torch.norm, gradients.values())) > 1e-3
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], atol=1e-5), name


def test_trl_logs_rollouts_where_ours_go():
    source = inspect.getsource(inspect.unwrap(GRPOTrainer._generate_and_score_completions))
    assert 'self._logs["extra"][column].extend(gather_object(values))' in source, "look at UADTGRPOTrainer.scored"
