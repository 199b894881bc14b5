"""PromQL as the panels need it: of the chosen fleets and replicas, and of the chosen models."""

from __future__ import annotations

_CHOSEN = 'namespace=~"$namespace",job=~"$job",instance=~"$instance"'


def metric(name: str, *matchers: str) -> str:
    """The chosen replicas' series of a name, loading or not."""
    return f"{name}{{{','.join((_CHOSEN, *matchers))}}}"


def of_model(series: str) -> str:
    """The same with the label ``model``, of replicas that serve a chosen one: no other metric says what is served."""
    chosen = metric("jrm_model_info", 'model=~"$model"')
    return f"{series} * on (namespace, job, instance) group_left (model) {chosen}"


def gauge(name: str, *matchers: str) -> str:
    """A gauge, by replica."""
    return of_model(metric(name, *matchers))


def rate(name: str, *matchers: str) -> str:
    """Per second, by replica and all other labels."""
    return of_model(f"rate({metric(name, *matchers)}[$__rate_interval])")


def total(name: str, *matchers: str, by: str = "model") -> str:
    """Per second, summed over replicas."""
    return f"sum by ({by}) ({rate(name, *matchers)})"


def share(part: str, whole: str) -> str:
    """From 0 to 1; nothing where there is nothing to be a part of."""
    return f"{part} / ({whole} > 0)"


def mean(histogram: str, by: str = "model") -> str:
    """The mean of what a histogram observed."""
    return share(total(f"{histogram}_sum", by=by), total(f"{histogram}_count", by=by))


def quantile(q: float, histogram: str, *matchers: str, by: str = "model") -> str:
    """A quantile over all chosen replicas."""
    return f"histogram_quantile({q:g}, {total(f'{histogram}_bucket', *matchers, by=f'{by}, le')})"
