import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jrm_client.probability import win_probability
from jrm_training.losses import (
    IGNORED,
    Pairs,
    _weights,
    joint_loss,
    language_loss,
    log_win_probability,
    pairs_from,
    pairs_of,
    ranking_loss,
)

MEANS = [-1000.0, -399.0, -30.0, -7.3, -1.0, -1e-3, 0.0, 0.3, 3.0, 25.0, 100.0]
STDS = [0.0, 1e-9, 1e-7, 1e-3, 0.3, 1.0, 2.5, 10.0, 20.0, 50.0, 1e3]


def integrals(mean: float, std: float) -> tuple[float, float, float]:
    """log P for P = E[sigmoid(mean + std Z)], and its derivatives by mean and std, each by its own integral.

    A trapezoidal rule as dense as the std asks for, in logarithms relative to the integrand's peak: P may be 1e-400.
    """
    low, high = 0.0, std
    for _ in range(60):
        peak = (low + high) / 2
        low, high = (peak, high) if std / (1 + np.exp(min(mean + std * peak, 700.0))) > peak else (low, peak)
    step = 0.5 / max(std, 4.0)
    z = peak + step * np.arange(-round(11 / step), round(11 / step) + 1)
    log_win, log_loss = -np.logaddexp(0, -mean - std * z), -np.logaddexp(0, mean + std * z)
    log_density = log_win - z**2 / 2
    top = log_density.max()
    density, loss = np.exp(log_density - top), np.exp(log_loss)
    total = density.sum()
    log_p = top + math.log(total * step / math.sqrt(2 * math.pi))
    slope = density * loss / total
    return log_p, slope.sum(), std * (slope * (loss - np.exp(log_win))).sum()


def float64(*values: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]


@pytest.mark.parametrize("terms", [1, 3, 8, 24])
def test_the_sigmoid_is_a_sum_of_exponentials_to_the_error_that_is_promised(terms):
    weights = np.array(_weights(terms))
    assert weights.shape == (terms,)
    assert np.abs(weights).max() <= 1
    q = np.linspace(0, 1, 1001)
    error = np.abs((1 + q) * (q[:, None] ** np.arange(terms) @ weights) - 1)
    assert error.max() == pytest.approx(1 / math.cosh(terms * math.acosh(3)), rel=0.01, abs=1e-14)


@pytest.mark.parametrize(
    ("mean", "std"), [(-1e-3, 1e-9), (-0.3, 0.2), (3.0, 1.0), (-7.3, 5.0), (1.0, 20.0), (-150.0, 20.0), (-25.0, 50.0)]
)
def test_probability_against_high_precision_integration(mean, std):
    with mpmath.workdps(20):
        integrand = lambda z: mpmath.npdf(z) / (1 + mpmath.exp(-mean - std * z))  # noqa: E731
        bends = [(x - mean) / std for x in (-40, -10, -3, 0, 3, 10, 40)]
        expected = mpmath.quad(integrand, sorted([-11, -5, -1, 0, 1, 5, 11, *(z for z in bends if abs(z) < 11)]))
    assert log_win_probability(*float64(mean, std)).exp().item() == pytest.approx(float(expected), abs=1e-14)


@pytest.mark.parametrize("std", STDS)
def test_log_probability_and_gradients_against_dense_integration(std):
    for number in MEANS:
        mean, deviation = float64(number, std)
        log_p = log_win_probability(mean, deviation)
        log_p.backward()
        expected, by_mean, by_std = integrals(number, std)
        assert log_p.item() == pytest.approx(expected, rel=1e-12, abs=1e-15)
        assert mean.grad.item() == pytest.approx(by_mean, rel=1e-12)
        assert deviation.grad.item() == pytest.approx(by_std, rel=1e-7, abs=1e-12)


def test_gradients_against_finite_differences():
    values = torch.tensor(list(itertools.product([-40.0, -2.0, 0.5, 9.0], [0.2, 1.0, 4.0, 30.0])), dtype=torch.float64)
    mean, std = (column.contiguous().requires_grad_() for column in values.unbind(dim=1))
    assert torch.autograd.gradcheck(log_win_probability, (mean, std))


@given(st.floats(-1e3, 1e3), st.floats(0, 100))
def test_the_sdk_reports_the_probability_that_is_trained(mean, std):
    trained = log_win_probability(*float64(mean, std)).exp().item()
    assert trained == pytest.approx(win_probability(mean, std, 0.0, 0.0), abs=1e-9)


@given(st.floats(-1e3, 1e3), st.floats(0, 1e6))
def test_the_two_sides_add_up_to_one(mean, std):
    sides = log_win_probability(torch.tensor([mean, -mean], dtype=torch.float64), torch.tensor(std)).exp()
    assert sides.sum().item() == pytest.approx(1.0, abs=1e-14)


@given(st.floats(-1e4, 1e4), st.floats(0, 1e8))
def test_more_is_better_at_a_bounded_rate(mean, std):
    m, s = float64(mean, std)
    log_p = log_win_probability(m, s)
    log_p.backward()
    assert log_p.item() <= 0
    assert 0 <= m.grad.item() <= 1 + 1e-9


def test_equal_in_expectation_to_the_sampled_estimate():
    """Published code draws 1,000 rewards on each side and averages the sigmoid of their differences."""
    draws = torch.Generator().manual_seed(4)
    for (mean_i, std_i), (mean_j, std_j) in [((1.0, 0.5), (0.2, 0.8)), ((-2.0, 4.0), (1.0, 3.0)), ((3.0, 0.1), (0, 9))]:
        r_i, r_j = (
            mean + std * torch.randn(1000, 1000, generator=draws, dtype=torch.float64)
            for mean, std in ((mean_i, std_i), (mean_j, std_j))
        )
        estimates = torch.sigmoid(r_i - r_j).mean(dim=1)
        error = estimates.std().item() / math.sqrt(len(estimates))
        exact = log_win_probability(*float64(mean_i - mean_j, math.hypot(std_i, std_j))).exp().item()
        assert exact == pytest.approx(estimates.mean().item(), abs=4 * error)


def test_without_a_std_it_is_the_sigmoid():
    mean = torch.tensor([-200.0, 0.4, 30.0])
    torch.testing.assert_close(log_win_probability(mean, None), torch.nn.functional.logsigmoid(mean))
    torch.testing.assert_close(log_win_probability(mean, torch.zeros(3)), log_win_probability(mean, None))


def test_float32_loses_nothing_but_the_rounding_of_its_result():
    mean, std = torch.tensor([-300.0, -0.1, 12.0]), torch.tensor([7.0, 20.0, 1e-6])
    exact = log_win_probability(mean.double(), std.double())
    assert torch.equal(log_win_probability(mean, std), exact.float())


def test_a_probability_is_computed_where_its_rewards_are():
    for std in (torch.ones(3, device="meta"), None):
        mean = torch.zeros(3, device="meta", requires_grad=True)
        log_p = log_win_probability(mean, std)
        log_p.sum().backward()
        assert (log_p.device.type, log_p.dtype, mean.grad.device.type) == ("meta", torch.float32, "meta")


def test_far_behind_without_uncertainty_the_gradient_is_one():
    mean, std = float64(-1e4, 1e-12)
    log_p = log_win_probability(mean, std)
    log_p.backward()
    assert log_p.item() == pytest.approx(-1e4)
    assert mean.grad.item() == pytest.approx(1.0)


@pytest.mark.parametrize("std", [1e6, 1e9, 1e20])
def test_a_huge_std_has_a_small_gradient_and_not_rounding_noise(std):
    """On that scale the sigmoid is a step: P = Φ(mean / std), whose gradient by log std is φ(b) b / Φ(-b)."""
    mean, log_std = float64(-3.0, math.log(std))
    log_win_probability(mean, log_std.exp()).backward()
    b = 3.0 / std
    density = math.exp(-(b**2) / 2) / math.sqrt(2 * math.pi)
    assert log_std.grad.item() == pytest.approx(density * b / (math.erfc(b / math.sqrt(2)) / 2), rel=1e-6, abs=0)


@pytest.mark.parametrize("std", [torch.tensor(1.0), None])
@pytest.mark.parametrize("mean", [math.nan, math.inf, -math.inf])
def test_a_mean_that_is_no_number_has_no_loss(mean, std):
    assert log_win_probability(torch.tensor(mean), std).isnan()


@pytest.mark.parametrize("std", [math.nan, math.inf, -1.0])
def test_a_std_that_is_none_has_no_loss(std):
    assert log_win_probability(torch.tensor(-1.0), torch.tensor(std)).isnan()


def as_set(pairs: Pairs) -> set[tuple[int, int, float]]:
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.target.tolist(), strict=True))


def test_labels_pair_within_groups_the_better_one_first():
    labels, groups = torch.tensor([1.0, 4.0, 2.0, 3.0]), torch.tensor([0, 0, 7, 7])
    assert as_set(pairs_of(labels, groups)) == {(1, 0, 1.0), (3, 2, 1.0)}


def test_equal_labels_are_a_tie_once():
    labels, groups = torch.tensor([2.0, 3.0, 2.0]), torch.zeros(3)
    assert as_set(pairs_of(labels, groups)) == {(1, 0, 1.0), (1, 2, 1.0), (0, 2, 0.5)}
    assert as_set(pairs_of(labels, groups, ties=False)) == {(1, 0, 1.0), (1, 2, 1.0)}


def test_what_is_not_labelled_is_in_no_pair():
    labels = torch.tensor([math.nan, 1.0, math.nan, 2.0])
    assert as_set(pairs_of(labels, torch.zeros(4))) == {(3, 1, 1.0)}


@given(st.lists(st.tuples(st.sampled_from([1.0, 2.0, 3.0, math.nan]), st.integers(0, 2)), max_size=8))
def test_every_comparable_pair_comes_exactly_once(candidates):
    labels = torch.tensor([label for label, _ in candidates])
    pairs = pairs_of(labels, torch.tensor([group for _, group in candidates]))
    numbered = [(n, group) for n, (label, group) in enumerate(candidates) if not math.isnan(label)]
    expected = [{i, j} for (i, one), (j, other) in itertools.combinations(numbered, 2) if one == other]
    found = [{i, j} for i, j in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))


def test_labels_and_groups_must_match():
    with pytest.raises(ValueError, match=r"labels \[3\] and groups \[2\]"):
        pairs_of(torch.zeros(3), torch.zeros(2))


def test_explicit_preferences():
    pairs = pairs_from([(0, 1, "first"), (2, 1, "second"), (0, 2, "tie")])
    assert as_set(pairs) == {(0, 1, 1.0), (2, 1, 0.0), (0, 2, 0.5)}


def test_pairs_are_where_they_are_asked_for():
    for pairs in (pairs_from([(0, 1, "tie")], "meta"), pairs_from([(0, 1, "tie")]).to("meta")):
        tensors = (pairs.first, pairs.second, pairs.target)
        assert [tensor.device.type for tensor in tensors] == ["meta"] * 3
        assert [tensor.dtype for tensor in tensors] == [torch.int64, torch.int64, torch.float32]


def test_pairs_that_move_stay_the_same():
    pairs = pairs_from([(0, 1, "first"), (2, 1, "second")])
    assert as_set(pairs.to("cpu")) == as_set(pairs)


@pytest.mark.parametrize(
    ("row", "message"), [((0, 1, "left"), "'left': must be one of first, second, tie$"), ((2, 2, "tie"), "candidate 2")]
)
def test_a_preference_without_meaning_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        pairs_from([row])


def test_the_loss_adds_up_over_pairs():
    mean, log_std = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([0.1, -0.7, 1.2])
    pairs = pairs_from([(0, 1, "first"), (1, 2, "second")])
    loss = ranking_loss(mean, log_std, pairs)
    std = log_std.exp().tolist()
    wins = [win_probability(0.3, std[0], -1.0, std[1]), win_probability(2.0, std[2], -1.0, std[1])]
    assert loss.pairs == 2
    assert loss.total.item() == pytest.approx(-sum(map(math.log, wins)), rel=1e-6)
    assert loss.mean.item() == pytest.approx(loss.total.item() / 2)


def test_a_tie_is_half_a_vote_for_either_side():
    mean, log_std = torch.tensor([1.0, -0.5]), torch.tensor([0.2, 0.4])
    one_way, other_way, tie = (
        ranking_loss(mean, log_std, pairs_from([(0, 1, choice)])).total for choice in ("first", "second", "tie")
    )
    torch.testing.assert_close(tie, (one_way + other_way) / 2)


def test_a_tie_pulls_the_means_together():
    mean = torch.tensor([1.0, -0.5], requires_grad=True)
    ranking_loss(mean, torch.zeros(2), pairs_from([(0, 1, "tie")])).total.backward()
    assert mean.grad[0] > 0 > mean.grad[1]


def test_mean_only_heads_use_the_sigmoid_of_the_difference():
    loss = ranking_loss(torch.tensor([2.0, 0.5]), None, pairs_from([(0, 1, "first")]))
    assert loss.total.item() == pytest.approx(math.log1p(math.exp(-1.5)))


@pytest.mark.parametrize("log_std", [torch.zeros(3), None])
def test_no_pairs_no_loss_and_no_gradient(log_std):
    mean = torch.ones(3, requires_grad=True)
    loss = ranking_loss(mean, log_std, pairs_from([]))
    loss.mean.backward()
    assert (loss.total.item(), loss.pairs) == (0.0, 0)
    assert torch.equal(mean.grad, torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("choice", ["first", "second", "tie"])
def test_no_head_output_breaks_the_loss(choice, dtype):
    extremes = itertools.product([-1e4, -30.0, 0.0, 1e-6, 1e4], [-50.0, -10.0, 0.0, 3.0, 9.3, 20.0, 50.0])
    for number, spread in extremes:
        mean = torch.tensor([number, 0.0], dtype=dtype, requires_grad=True)
        log_std = torch.tensor([spread, -spread], dtype=dtype, requires_grad=True)
        loss = ranking_loss(mean, log_std, pairs_from([(0, 1, choice)])).total
        loss.backward()
        assert loss.dtype == dtype
        assert torch.cat((loss[None], mean.grad, log_std.grad)).isfinite().all()
        assert mean.grad.abs().max() <= 1 + 1e-6


def test_gradients_reach_the_head_outputs():
    outputs = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    pairs = pairs_of(torch.tensor([1.0, 2.0, 2.0, 4.0, 1.0]), torch.zeros(5))
    assert torch.autograd.gradcheck(lambda both: ranking_loss(both[0], both[1], pairs).total, outputs)


def test_head_outputs_must_match():
    with pytest.raises(ValueError, match=r"\[\[3\], \[2\]\]"):
        ranking_loss(torch.zeros(3), torch.zeros(2), pairs_from([]))


def test_language_loss_is_the_mean_of_minus_log_p():
    logits, targets = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]]), torch.tensor([0, 2])
    each = [math.log(math.exp(2) + 1 + math.exp(1)) - 2, math.log(2 + math.exp(3))]
    assert language_loss(logits, targets).item() == pytest.approx(sum(each) / 2)
    assert language_loss(logits, targets, reduction="sum").item() == pytest.approx(sum(each))
    assert language_loss(logits[:1], targets[:1]).item() == pytest.approx(each[0])


def test_tokens_outside_the_critique_do_not_count():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = language_loss(logits, torch.tensor([IGNORED, 2, IGNORED, 5]))
    loss.backward()
    torch.testing.assert_close(loss, language_loss(logits[[1, 3]], torch.tensor([2, 5])))
    assert torch.equal(logits.grad[[0, 2]], torch.zeros(2, 6))


@pytest.mark.parametrize("targets", [[], [IGNORED, IGNORED]])
def test_an_empty_critique_costs_nothing(targets):
    logits = torch.ones(len(targets), 6, requires_grad=True)
    loss = language_loss(logits, torch.tensor(targets, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_a_long_critique_is_summed_in_chunks_to_the_same_loss_and_gradients():
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2500, 7, generator=random, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 7, (2500,), generator=random)
    targets[::5] = IGNORED
    for reduction in ("sum", "mean"):
        ours = language_loss(logits, targets, reduction=reduction)
        theirs = torch.nn.functional.cross_entropy(logits, targets, reduction=reduction)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
        gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
        assert torch.allclose(*gradients, rtol=1e-12, atol=0)


def test_every_position_of_a_long_critique_has_a_target():
    with pytest.raises(ValueError, match="zip"):
        language_loss(torch.zeros(3 * 1024, 2), torch.zeros(2 * 1024, dtype=torch.int64))


def test_language_loss_is_not_rounded_to_the_backbones_dtype():
    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(2)).bfloat16()
    targets = torch.arange(50) % 40
    loss = language_loss(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, language_loss(logits.float(), targets))


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 2.0), (0.7, 4.1), (1.0, 5.0)])
def test_the_joint_loss_weighs_language_by_alpha(alpha, expected):
    assert joint_loss(torch.tensor(2.0), torch.tensor(5.0), alpha).item() == pytest.approx(expected)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_is_a_share(alpha):
    with pytest.raises(ValueError, match="alpha"):
        joint_loss(torch.tensor(2.0), torch.tensor(5.0), alpha)
