"""`helm lint`, for the defaults and for every values file."""

import helm_python

from helm.chart import CHART, every_case

WARNING = 2


@every_case
def test_helm_finds_nothing_to_warn_of(case):
    report = helm_python.lint(CHART, case, strict=True)
    assert report["total_charts_linted"] == 1
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] >= WARNING] == []
