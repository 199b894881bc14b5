"""A values file of the matrix for each test that asks for ``case``."""

import pytest

from helm import chart


@pytest.fixture(params=chart.MATRIX, ids=lambda path: path.stem)
def case(request):
    """The values of one file of tests/helm/values."""
    return chart.matrix_values(request.param)
