import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fundus_lib.uadt import UADTGRPOTrainer, mean_entropy, shape_advantages, update_threshold


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


def test_strength_zero_returns_the_same_tensor_and_zero_groups_stay_zero():
    advantages = torch.tensor([0.3, -0.3])
    assert shape_advantages(advantages, torch.ones(2), 0.5, strength=0) is advantages
    assert (shape_advantages(torch.zeros(4), torch.rand(4), 0.5) == 0).all()


def test_token_level_advantages_take_their_rollouts_factor():
    shaped = shape_advantages(torch.ones(1, 3), torch.tensor([1.0]), 0.5)
    assert torch.allclose(shaped, torch.full((1, 3), 1.3808), atol=5e-5)


def test_padding_does_not_change_the_uncertainty_and_no_gradient_flows():
    entropies = torch.tensor([[1.0, 3.0, 99.0], [2.0, 99.0, 99.0]], requires_grad=True)
    u = mean_entropy(entropies, torch.tensor([[1, 1, 0], [1, 0, 0]]))
    assert u.tolist() == [2.0, 2.0] and not u.requires_grad


def test_threshold_starts_at_the_first_batch_and_moves_slowly():
    assert update_threshold(None, 2.0) == 2.0
    assert update_threshold(2.0, 1.0, decay=0.9) == pytest.approx(1.9)


@pytest.mark.parametrize("arguments", [{"strength": 1.0}, {"strength": -0.1}, {"temperature": 0.0}])
def test_constants_outside_their_range_are_refused(arguments):
    with pytest.raises(ValueError, match="UADT needs"):
        shape_advantages(torch.ones(1), torch.ones(1), 0.5, **arguments)


def test_an_unknown_granularity_is_refused():
    with pytest.raises(ValueError, match="granularity"):
        UADTGRPOTrainer(granularity="token")
