"""Section 4.3: how many directions the hidden states **h** use, and how they look in three of them (figure 6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """How N hidden states spread around their mean; no field changes when they are shifted, scaled or rotated.

    There are R = min(N - 1, H) directions: centring takes one away. Compare sets of the same N and H only.
    """

    singular_values: Array
    """float64 [R], descending, of the centred states; divided by the largest, so that the first is 1."""

    spectral_entropy: float
    """Shannon entropy, in nats, of the singular values divided by their sum; 0 to log R."""

    effective_rank: float
    """exp(spectral_entropy), 1 to R: Roy and Vetterli's effective rank. They weigh directions by the singular values
    s_k, not by the energies s_k², and the paper, which gives no formula, uses their name; so do we."""

    isotropy: float
    """How evenly the energies e_k = s_k², the covariance's eigenvalues, share the R directions:
    (sum e)² / (R sum e²), the part of them that takes part. 1 where all energies are equal, 1/R where one holds
    everything. The paper speaks of the "uniformity of energy distribution across different directions". The ratio of
    geometric to arithmetic mean would measure that too, but is 0 as soon as one direction of R is empty."""


def spectrum(h: npt.ArrayLike) -> Spectrum:
    """Spectrum of hidden states ``h`` [N, H], any real dtype, computed in float64.

    Raises ValueError where ``h`` is not [N >= 2, H >= 1], is not finite, or is one point N times, which has none.
    """
    states = _states(h)
    count, width = states.shape
    centred = states - states.mean(axis=0)
    values = np.linalg.svd(centred, compute_uv=False)[: min(count - 1, width)]
    # What is left of equal rows after centring is the rounding of their mean.
    if values[0] <= np.finfo(np.float64).eps * max(count, width) * np.abs(states).max():
        raise ValueError(f"all {count} hidden states are equal: there is no spectrum")
    values = values / values[0]
    share = values / values.sum()
    used = share[share > 0]
    entropy = max(0.0, -float(used @ np.log(used)))
    energy = values**2
    isotropy = float(energy.sum() ** 2 / (energy.size * (energy @ energy)))
    return Spectrum(values, entropy, float(np.exp(entropy)), isotropy)


def principal_components(h: npt.ArrayLike, count: int = 3) -> Array:
    """Coordinates of ``h`` [N, H], centred, along its ``count`` directions of most variance: float64 [N, count].

    A direction's sign is arbitrary; here its largest entry is positive, so that equal states give equal plots. Raises
    ValueError as ``spectrum`` does for what is not finite or not [N, H], and for a count outside 1 to min(N, H).
    """
    states = _states(h)
    if not 1 <= count <= min(states.shape):
        raise ValueError(f"{count} components of hidden states {list(states.shape)}: must be 1 to {min(states.shape)}")
    centred = states - states.mean(axis=0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:count]
    largest = np.abs(directions).argmax(axis=1)
    signs = np.where(directions[np.arange(count), largest] < 0, -1.0, 1.0)
    coordinates: Array = centred @ (directions * signs[:, None]).T
    return coordinates


def procrustes(points: npt.ArrayLike, onto: npt.ArrayLike) -> Array:
    """``points`` [N, D] shifted and turned to lie as near as they can to ``onto`` [N, D], row to row; float64 [N, D].

    A turn may be a reflection. There is no scaling: how far each set spreads is what figure 6 compares. Raises
    ValueError where the shapes differ, or as ``principal_components`` does.
    """
    moved, fixed = _states(points), _states(onto)
    if moved.shape != fixed.shape:
        raise ValueError(f"points {list(moved.shape)} onto {list(fixed.shape)}: the shapes must be equal")
    centre = fixed.mean(axis=0)
    centred = moved - moved.mean(axis=0)
    left, _, right = np.linalg.svd(centred.T @ (fixed - centre))
    aligned: Array = centred @ (left @ right) + centre
    return aligned


def _states(h: npt.ArrayLike) -> Array:
    states = np.asarray(h, dtype=np.float64)
    if states.ndim != 2 or states.shape[0] < 2 or states.shape[1] < 1:
        raise ValueError(f"hidden states {list(states.shape)}: must be [N, H] with N >= 2 and H >= 1")
    if not np.isfinite(states).all():
        raise ValueError("hidden states: some are not finite")
    return states
