"""Whether sigma means something: scores of the synthetic world's edits beside people who disagree about them.

==========================  ====  ====================================================================================
figure                      unit  what it is
==========================  ====  ====================================================================================
``std_rank_correlation``    edit  Spearman's, between an edit's std and the spread of what annotators read
``vote_calibration_error``  vote  expected calibration error of Eq. 4 over the annotators' votes, 10 bins
``vote_loss``               vote  -log P of Eq. 4 for what was voted, nats
``saved_by_std``            vote  what that saves over the best constant std for these very votes, nats
==========================  ====  ====================================================================================

A vote is one annotator's preference between two edits of a group. A dimension without a std has no figures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from jrm_training.bootstrap import Array, CalibrationError, Mean, RankCorrelation, Tally, ranks
from jrm_training.evaluate import ScoredGroup, rated
from jrm_training.losses import log_win_probability
from jrm_training.metrics import calibration_sums

_CONSTANTS = np.concatenate([[0.0], np.geomspace(0.02, 50.0, 80)])


def annotator_tallies(scored: Sequence[ScoredGroup], readings: Sequence[Array], dimension: str) -> dict[str, Tally]:
    """The figures above for one dimension, as sums over groups.

    ``readings``: for each group what annotators read of its edits, float64 [annotators, edits]; two that read an edit
    differently disagree.
    """
    groups = [rated(group, dimension) for group in scored]
    if any(np.isnan(group.stds[np.isfinite(group.means)]).any() for group in groups):
        return {}
    stds, spreads, of_edit, differences, of_pair, votes, calibration = [], [], [], [], [], [], []
    for number, (group, read) in enumerate(zip(groups, readings, strict=True)):
        known = np.isfinite(group.means)
        means, std, read = group.means[known], group.stds[known], read[:, known]
        first, second = np.triu_indices(len(means), k=1)
        vote = (read[:, first] > read[:, second]).mean(axis=0) + (read[:, first] == read[:, second]).mean(axis=0) / 2
        stds.append(std)
        spreads.append(read.std(axis=0, ddof=1))
        of_edit.append(np.full(len(std), number))
        differences.append(np.stack([means[first] - means[second], np.hypot(std[first], std[second])]))
        of_pair.append(np.full(len(first), number))
        votes.append(vote)
        win = np.exp(_log_win(*differences[-1]))
        calibration.append(calibration_sums(np.concatenate([win, 1 - win]), np.concatenate([vote, 1 - vote])))
    edit, pair, voted = np.concatenate(of_edit), np.concatenate(of_pair), np.concatenate(votes)
    mean, spread = np.concatenate(differences, axis=1)
    loss = _loss(mean, spread, voted)
    constant = min((_loss(mean, np.full_like(mean, std), voted) for std in _CONSTANTS), key=np.sum)
    count = len(groups)
    return {
        "std_rank_correlation": RankCorrelation.of(
            ranks(np.concatenate(stds)), ranks(np.concatenate(spreads)), edit, count
        ),
        "vote_calibration_error": CalibrationError(np.array(calibration)),
        "vote_loss": Mean.of(loss, pair, count),
        "saved_by_std": Mean.of(constant - loss, pair, count),
    }


def _log_win(mean: Array, std: Array) -> Array:
    """Log P(i > j), Eq. 4, [P]."""
    result: Array = log_win_probability(torch.from_numpy(mean), torch.from_numpy(std)).numpy()
    return result


def _loss(mean: Array, std: Array, vote: Array) -> Array:
    """Eq. 5 of each pair [P], ``vote`` the share that prefers the first."""
    return -(vote * _log_win(mean, std) + (1 - vote) * _log_win(-mean, std))
