"""Hidden states as the reference implementation has them, and runs turned onto one another."""

import numpy as np
import pytest
from studies.representation import WHOLE, hidden_states, represent

from jrm_service.model.checkpoint import open_checkpoint
from jrm_training.data import Edit, Group
from support import checkpoints
from support.pictures import photo
from support.reference import Reference

GROUPS = [Group(photo(seed=n), f"edit {n}", tuple(Edit(photo(seed=10 * n + k)) for k in (1, 2))) for n in range(2)]


def cloud(seed, count=50, width=6):
    return np.random.default_rng(seed).normal(size=(count, width)) * np.geomspace(9, 1, width)


def test_h_is_the_reference_implementations(tmp_path):
    path = checkpoints.write(tmp_path / "two", checkpoints.two_passes())
    reference = Reference(path)
    counted = []
    states = hidden_states(open_checkpoint(path), GROUPS, advance=lambda *of: counted.append(of))
    edits = [
        ({"source": group.source, "edited": edit.image}, group.instruction) for group in GROUPS for edit in group.edits
    ]
    passes = [[reference.hidden_state(one, *edit) for edit in edits] for one in reference.manifest["passes"]]
    assert list(states) == ["instruction_following", "visual_quality", WHOLE]
    for found, expected in zip(states.values(), [*passes, np.concatenate(passes, axis=1)], strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert counted == [(0, 2), (1, 2), (2, 2)]


def test_one_pass_is_named_by_what_is_read_from_it(tmp_path):
    path = checkpoints.write(tmp_path / "one", checkpoints.one_pass())
    assert list(hidden_states(open_checkpoint(path), GROUPS[:1])) == ["instruction_following + visual_quality"]


def test_a_turned_and_shifted_copy_lies_on_the_first_run():
    h = cloud(0)
    turn = np.linalg.qr(cloud(1, 6))[0]
    (first,), (second,) = ([run["a"]] for run in represent([{"a": h}, {"a": h @ turn + 5}], points=10))
    np.testing.assert_allclose(second["points"], first["points"], atol=1e-9)
    assert np.shape(first["points"]) == (10, 3)
    assert second["effective_rank"] == pytest.approx(first["effective_rank"])
    assert (first["states"], first["width"], first["singular_values"][0]) == (50, 6, 1.0)


def test_a_wider_cloud_stays_wider():
    h = cloud(0)
    near, far = represent([{"a": h}, {"a": 3 * h}])
    np.testing.assert_allclose(np.ptp(far["a"]["points"], axis=0), 3 * np.ptp(near["a"]["points"], axis=0))


def test_runs_of_other_edits_do_not_compare():
    with pytest.raises(ValueError, match="do not compare"):
        represent([{"a": cloud(0)}, {"a": cloud(0, count=49)}])
