"""The joint objective of section 3.2: ranking loss (Eq. 4, 5), language loss (Eq. 6) and their sum (Eq. 7)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

Preference = Literal["first", "second", "tie"]

IGNORED = -100
"""A target token of this id is no part of the critique and does not count in ``language_loss``."""

_CHUNK = 1024  # tokens
_TARGETS: dict[Preference, float] = {"first": 1.0, "second": 0.0, "tie": 0.5}
_SQRT_2 = math.sqrt(2.0)
_SQRT_2_PI = math.sqrt(2.0 * math.pi)


def _weights(terms: int) -> tuple[float, ...]:
    """w_1 … w_n with 1 / (1 + q) = w_1 + w_2 q + … + w_n q^(n-1) on 0 <= q <= 1, to a relative error of 2 / 5.83^n.

    It is Chebyshev's polynomial T_n(1 - 2q) / T_n(3), the smallest there is on [0, 1] among those that are 1 at q = -1,
    taken from 1 and divided by 1 + q. The recurrence is that of Cohen, Rodriguez Villegas and Zagier for alternating
    series; no weight is larger than 1, so that nothing is lost to rounding when the terms cancel.
    """
    largest = math.cosh(terms * math.acosh(3.0))
    step, weight = -1.0, -largest
    weights = []
    for k in range(terms):
        weight = step - weight
        weights.append(weight / largest)
        step *= (k + terms) * (k - terms) / ((k + 0.5) * (k + 1))
    return tuple(weights)


_WEIGHTS = _weights(24)

# A std below this moves P by less than 1e-16. It keeps u / s finite where s = 0.
_SMALLEST_STD = 1e-8
# From here on R(a) - R(b) is taken from R(y) = 1/y - 1/y³ + …, whose second term is below 1e-8 of the first: the
# difference of two nearly equal R would be rounding noise, which s, as large, would lift into the gradient.
_FAR = 1e4


class _LogWinProbability(torch.autograd.Function):
    """log E[sigmoid(m + s Z)] in closed form, with its own gradients; float64 tensors of one shape [P].

    With u = |m|, all follows from Q = E[sigmoid(X)] for X ~ N(-u, s²), the chance of the weaker side. On either side
    of zero the sigmoid is a sum of exponentials, sigmoid(-x) = sum_k w_k exp(-k x) for x >= 0, with a relative error
    that is the same for every x. Gaussian integrals of exponentials are known:

        near_k = E[exp(-k X) 1{X > 0}],  X ~ N(u, s²)  = φ(b) R(k s - b)  = exp(k² s² / 2 - k u) Φ(b - k s)
        far_k  = the same for X ~ N(-u, s²)            = φ(b) R(k s + b)
        Q      = Φ(-b) + sum_k w_k (near_k - far_k)
        -dQ/du = sum_k k w_k (near_k + far_k)
        dQ/ds  = s sum_k k² w_k (near_k - far_k)        (the heat equation)

    where b = u / s and R(y) = Φ(-y) / φ(y), Mills' ratio. So Q has that relative error too, however small it is and
    whatever s is, which no quadrature with fixed nodes has. All are scaled by exp(-scale), about their largest term.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, std: Tensor) -> Tensor:
        s = std.clamp(min=_SMALLEST_STD).unsqueeze(-1)
        u = mean.abs().unsqueeze(-1)
        b = u / s
        k = torch.arange(1, len(_WEIGHTS) + 1, dtype=torch.float64, device=mean.device)
        w = torch.tensor(_WEIGHTS, dtype=torch.float64, device=mean.device)

        scale = torch.where(b > s, s**2 / 2 - u, -(b**2) / 2)
        density = torch.exp(-((b - s).clamp(min=0) ** 2) / 2) / _SQRT_2_PI
        below, above = k * s - b, k * s + b
        exponential = torch.exp((k - 1) * ((k + 1) * s**2 / 2 - u))  # at most 1 where below < 0
        near = torch.where(below < 0, exponential * torch.special.ndtr(-below), density * _mills(below))
        far = density * _mills(above)
        gap = torch.where(below > _FAR, density * (2 * b / below / above), near - far)

        q = (density * _mills(b)).squeeze(-1) + (w * gap).sum(-1)
        slope = (k * w * (near + far)).sum(-1) / q  # -d log Q / du
        bend = std * (k**2 * w * gap).sum(-1) / q  # d log Q / ds
        log_q = scale.squeeze(-1) + torch.log(q)
        log_rest = torch.log1p(-torch.exp(log_q))
        odds = torch.exp(log_q - log_rest)
        ahead = mean > 0
        ctx.save_for_backward(slope * torch.where(ahead, odds, 1.0), bend * torch.where(ahead, -odds, 1.0))
        return torch.where(ahead, log_rest, log_q)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        by_mean, by_std = ctx.saved_tensors
        return grad * by_mean, grad * by_std


def _mills(y: Tensor) -> Tensor:
    """Φ(-y) / φ(y) for y >= 0; a negative y, for which the caller has another form, counts as 0."""
    ratio: Tensor = torch.special.erfcx(y.clamp(min=0) / _SQRT_2) * (_SQRT_2_PI / 2)
    return ratio


def log_win_probability(mean: Tensor, std: Tensor | None) -> Tensor:
    """log P(i > j), Eq. 4: log E[sigmoid(D)] for D = r_i - r_j ~ N(mean, std²).

    ``mean`` is mu_i - mu_j and ``std`` is sqrt(sigma_i² + sigma_j²), float tensors of shapes that broadcast; std None
    stands for rewards without uncertainty, std 0: log sigmoid(mean). Deterministic: the two Gaussians of the double
    integral are one in the difference, and that has a closed form. Computed in float64, returned in mean's dtype.

    In float64, log P and its gradient by the mean, which is in [0, 1], are right to a relative error of 1e-12, and its
    gradient by the std to a relative 1e-7 or an absolute 1e-12, for every finite mean and every finite std >= 0, 0
    included: log P does not underflow where P does. What is not finite, or a negative std, gives NaN. First
    derivatives only.
    """
    std = torch.zeros_like(mean) if std is None else std
    std = std.double().where(torch.isfinite(std) & (std >= 0), math.nan)
    # torch gives these two functions no types
    both = torch.broadcast_tensors(mean.double(), std)  # type: ignore[no-untyped-call]
    log_p: Tensor = _LogWinProbability.apply(*both)  # type: ignore[no-untyped-call]
    return log_p.to(mean.dtype)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Which candidates of a batch are compared, and what the annotators said, P pairs as flat tensors.

    ``first``, ``second``: int64 [P], positions in the batch. ``target``: float32 [P], the share of votes for the first:
    1 where it is preferred, 0 where the second is, 1/2 for a tie.
    """

    first: Tensor
    second: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def to(self, device: torch.device | str) -> Pairs:
        """The same on a device."""
        return Pairs(self.first.to(device), self.second.to(device), self.target.to(device))


def pairs_of(labels: Tensor, groups: Tensor, *, ties: bool = True) -> Pairs:
    """All pairs that the labels of one dimension make inside the groups of a batch, the preferred one first.

    ``labels``: float [N], higher is better, NaN where there is none: such a candidate is in no pair. ``groups``:
    integer [N]; candidates are compared where their group is the same. Equal labels are a tie, which ``ties=False``
    leaves out. Each pair comes once. Memory grows with N². Raises ValueError for other shapes.
    """
    if labels.ndim != 1 or labels.shape != groups.shape:
        raise ValueError(f"labels {list(labels.shape)} and groups {list(groups.shape)}: both must be [N]")
    one, other = labels.unsqueeze(1), labels.unsqueeze(0)
    together = groups.unsqueeze(1) == groups.unsqueeze(0)
    paired = together & (one > other)
    if ties:
        paired = paired | (together & (one == other)).triu(diagonal=1)
    first, second = paired.nonzero(as_tuple=True)
    target = torch.where(labels[first] == labels[second], 0.5, 1.0)
    return Pairs(first, second, target.float())


def pairs_from(preferences: Iterable[tuple[int, int, Preference]], device: torch.device | str = "cpu") -> Pairs:
    """Explicit judgements: positions of two candidates in the batch and which one is preferred.

    Raises ValueError for another word than "first", "second" or "tie", and for a candidate compared with itself.
    """
    rows = list(preferences)
    for first, second, choice in rows:
        if choice not in _TARGETS:
            raise ValueError(f"preference '{choice}': must be one of {', '.join(_TARGETS)}")
        if first == second:
            raise ValueError(f"candidate {first} is compared with itself")
    return Pairs(
        torch.tensor([row[0] for row in rows], dtype=torch.int64, device=device),
        torch.tensor([row[1] for row in rows], dtype=torch.int64, device=device),
        torch.tensor([_TARGETS[row[2]] for row in rows], dtype=torch.float32, device=device),
    )


class RankingLoss(NamedTuple):
    """A sum over pairs and their number, so that dimensions and micro-batches add up before they are averaged."""

    total: Tensor
    pairs: int

    @property
    def mean(self) -> Tensor:
        """Eq. 5's expectation over pairs; 0, with gradients of 0, where there are none."""
        return self.total / max(self.pairs, 1)


def ranking_loss(mean: Tensor, log_std: Tensor | None, pairs: Pairs) -> RankingLoss:
    """Eq. 5 on one dimension's head outputs for the N candidates of a batch: the sum of -log P over the pairs.

    ``mean``, ``log_std``: float [N], r ~ N(mean, exp(log_std)²), as the head gives them; log_std None is a mean-only
    head, P = sigmoid of the difference. A pair costs -(t log P(first > second) + (1 - t) log P(second > first)) with t
    its target: a tie is half a vote for either side. The total is a scalar of mean's dtype, computed in float64; it and
    its gradients are finite for any finite mean and log_std up to 700, beyond which exp overflows and the total is NaN.
    Raises ValueError where the shapes differ.
    """
    if mean.ndim != 1 or (log_std is not None and log_std.shape != mean.shape):
        shapes = [list(each.shape) for each in (mean, log_std) if each is not None]
        raise ValueError(f"head outputs {shapes}: mean and log_std must both be [N]")
    i, j = pairs.first, pairs.second
    wide = mean.double()
    difference = wide[i] - wide[j]
    std = None
    if log_std is not None:
        double_log = 2 * log_std.double()  # log of the variances, which add up
        std = torch.exp(torch.logaddexp(double_log[i], double_log[j]) / 2)
    wins, losses = log_win_probability(torch.stack((difference, -difference)), std)
    target = pairs.target.to(wins)
    total = -(target * wins + (1 - target) * losses).sum()
    return RankingLoss(total.to(mean.dtype), len(pairs))


def language_loss(logits: Tensor, targets: Tensor, *, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """Eq. 6, cross-entropy of the critique: ``logits[t]`` [T, V] predicts ``targets[t]`` [T], int64.

    The two are aligned by the caller: the logits of the position before a token belong to it. Targets of ``IGNORED``
    (prompt, padding) do not count. The paper writes the sum over tokens; the default is their mean, so that a long
    critique weighs no more than a short one and alpha keeps its meaning. Computed and returned in float32 (float64
    for float64 logits), whatever the backbone's dtype; 0, with gradients of 0, where no token counts.

    Beyond ``_CHUNK`` tokens it is computed in chunks and once more on the way back: with 151,936 words, the float32
    copies that a token needs take 1.8 MB.
    """
    if len(targets) <= _CHUNK:
        total = _cross_entropy(logits, targets)
    else:
        chunks = zip(torch.split(logits, _CHUNK), torch.split(targets, _CHUNK), strict=True)
        total = torch.stack(
            [checkpoint(_cross_entropy, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
        ).sum()
    if reduction == "sum":
        return total
    return total / (targets != IGNORED).sum().clamp(min=1)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, targets, ignore_index=IGNORED, reduction="sum")


def joint_loss(rank: Tensor, language: Tensor, alpha: float) -> Tensor:
    """Eq. 7: (1 - alpha) L_rank + alpha L_LM; the paper trains with alpha = 0.7. ValueError outside [0, 1]."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha {alpha}: must be within [0, 1]")
    return (1.0 - alpha) * rank + alpha * language
