"""The row at the top: whether the fleet scores, how fast, and with which checkpoint."""

from __future__ import annotations

from .grafana import Panel, Query, Row
from .promql import metric, rate, share, total

SCORES = 'part="score"'
MODEL = 'model=~"$model"'
OK = 'outcome="ok"'
NOT_OK = 'outcome!~"ok|cancelled"'
_COLUMNS = ("job", "instance", "model", "fingerprint", "device", "dtype", "engine", "version", "torch", "transformers")

OVERVIEW = Row(
    "Overview",
    [
        Panel(
            "Replicas that score",
            "Replicas that accept requests for scores now. 0: trainers wait until their timeouts. Fewer than there "
            "should be: one is loading, draining or broken; its /health/ready says which.",
            "none",
            [Query(f"sum({metric('jrm_ready', SCORES)})")],
            kind="stat",
            width=4,
            height=4,
            base="red",
            steps=[(1, "green")],
        ),
        Panel(
            "Workers alive",
            "Share of the workers, one per device, that accept work. Below 100%: a device hung or was lost. Its "
            "replica's log says which; restart that replica.",
            "percentunit",
            [Query(share(f"sum({metric('jrm_workers_alive')})", f"sum({metric('jrm_workers')})"))],
            kind="stat",
            width=4,
            height=4,
            highest=1,
            base="red",
            steps=[(0.5, "yellow"), (1, "green")],
        ),
        Panel(
            "Scores per second",
            "Candidates that got a score, cached ones included. A step of 24 prompts with 12 edits is 288.",
            "cps",
            [Query(f"sum({rate('jrm_candidates_total', OK)})")],
            kind="stat",
            width=4,
            height=4,
        ),
        Panel(
            "Without a score",
            "Share of the candidates that ended in an error. 'Errors by outcome' shows in which.",
            "percentunit",
            [
                Query(
                    share(f"sum({rate('jrm_candidates_total', NOT_OK)})", f"sum({rate('jrm_candidates_total')})"),
                )
            ],
            kind="stat",
            width=4,
            height=4,
            steps=[(0.001, "yellow"), (0.01, "red")],
        ),
        Panel(
            "Group completion, p95",
            "How long a trainer waits for the rewards of a group: 95% of them were complete within this time.",
            "s",
            [Query(f"histogram_quantile(0.95, sum by (le) ({rate('jrm_group_completion_seconds_bucket')}))")],
            kind="stat",
            width=4,
            height=4,
            steps=[(10, "yellow"), (30, "red")],
        ),
        Panel(
            "Checkpoints",
            "Different fingerprints among the chosen replicas. More than 1 in one fleet: a rollout is under way, or "
            "stuck, and trainers that are pinned stop.",
            "none",
            [Query(f"count(count by (fingerprint) ({metric('jrm_model_info', MODEL)}))")],
            kind="stat",
            width=4,
            height=4,
            steps=[(2, "yellow")],
        ),
        Panel(
            "Scores",
            "Candidates that got a score, per second. A trainer's steps show as spikes.",
            "cps",
            [Query(total("jrm_candidates_total", OK), "{{model}}")],
        ),
        Panel(
            "Groups",
            "Groups completed with at least one score, per second.",
            "cps",
            [Query(total("jrm_group_completion_seconds_count"), "{{model}}")],
        ),
        Panel(
            "Errors by outcome",
            "Share of all candidates that ended in each error. invalid_image and the like: a trainer's bug. "
            "deadline_exceeded: too much load. internal, non_finite_score: see the server's log.",
            "percentunit",
            [
                Query(
                    f"{total('jrm_candidates_total', NOT_OK, by='model, outcome')}"
                    f" / on (model) group_left () ({total('jrm_candidates_total')} > 0)",
                    "{{model}} {{outcome}}",
                )
            ],
            stacked=True,
        ),
        Panel(
            "What runs",
            "Each replica with its checkpoint, device and versions. In one fleet all fingerprints should be equal, and "
            "so should the versions, or scores differ by rounding.",
            "none",
            [
                Query(
                    f"sum by ({', '.join(_COLUMNS)}) ({metric('jrm_model_info', MODEL)}"
                    " * on (namespace, job, instance) group_left (version, torch, transformers)"
                    f" {metric('jrm_build_info')})"
                )
            ],
            kind="table",
            width=24,
            height=6,
            columns=_COLUMNS,
        ),
    ],
)
