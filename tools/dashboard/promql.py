"""Builds the panels' PromQL, limited to the fleets, replicas and models that are chosen in Grafana."""

from __future__ import annotations

_CHOSEN = 'namespace=~"$namespace",job=~"$job",instance=~"$instance"'


def metric(name: str, *matchers: str) -> str:
    """Return the selector of a metric for the chosen replicas, including those still loading."""
    return f"{name}{{{','.join((_CHOSEN, *matchers))}}}"


def of_model(series: str) -> str:
    """Add the label ``model`` to a series, and keep replicas that serve a chosen model: only jrm_model_info has it."""
    chosen = metric("jrm_model_info", 'model=~"$model"')
    return f"{series} * on (namespace, job, instance) group_left (model) {chosen}"


def gauge(name: str, *matchers: str) -> str:
    """Return a gauge, by replica."""
    return of_model(metric(name, *matchers))


def rate(name: str, *matchers: str) -> str:
    """Return the rate per second, by replica and all other labels."""
    return of_model(f"rate({metric(name, *matchers)}[$__rate_interval])")


def total(name: str, *matchers: str, by: str = "model") -> str:
    """Return the rate per second, summed over replicas."""
    return f"sum by ({by}) ({rate(name, *matchers)})"


def share(part: str, whole: str) -> str:
    """Return a share from 0 to 1, with no value where the whole is 0."""
    return f"{part} / ({whole} > 0)"


def mean(histogram: str, by: str = "model") -> str:
    """Return the mean of a histogram's observations."""
    return share(total(f"{histogram}_sum", by=by), total(f"{histogram}_count", by=by))


def quantile(q: float, histogram: str, *matchers: str, by: str = "model") -> str:
    """Return a quantile over all chosen replicas."""
    return f"histogram_quantile({q:g}, {total(f'{histogram}_bucket', *matchers, by=f'{by}, le')})"
