"""The row about rewards: their level, spread and drift."""

from __future__ import annotations

from .grafana import Panel, Query, Row
from .promql import mean, quantile, share, total

THE_REWARD = 'dimension=""'
DIMENSIONS = 'dimension!=""'


def _mean_reward(matcher: str) -> str:
    positive, negative = (
        total("jrm_reward_magnitude_total", matcher, f'sign="{sign}"', by="model, dimension")
        for sign in ("positive", "negative")
    )
    return share(f"({positive} - {negative})", total("jrm_reward_count", matcher, by="model, dimension"))


def _std_reward(matcher: str) -> str:
    squares = share(
        total("jrm_reward_squares_total", matcher, by="model, dimension"),
        total("jrm_reward_count", matcher, by="model, dimension"),
    )
    return f"sqrt(clamp_min({squares} - ({_mean_reward(matcher)}) ^ 2, 0))"


REWARD = Row(
    "Reward",
    [
        Panel(
            "Mean reward",
            "Mean over all candidates that got a score, of the reward and of each dimension. Training should raise it "
            "slowly; a jump means another task, another checkpoint, or an exploited weakness.",
            "none",
            [
                Query(_mean_reward(THE_REWARD), "{{model}} reward"),
                Query(_mean_reward(DIMENSIONS), "{{model}} {{dimension}}"),
            ],
            lowest=None,
        ),
        Panel(
            "Standard deviation",
            "Standard deviation of the same values, between prompts and within groups together.",
            "none",
            [
                Query(_std_reward(THE_REWARD), "{{model}} reward"),
                Query(_std_reward(DIMENSIONS), "{{model}} {{dimension}}"),
            ],
        ),
        Panel(
            "Quantiles",
            "The shape of the reward's distribution, as precise as its buckets: 1, 2, 5 of each decade.",
            "none",
            [
                Query(quantile(q, "jrm_reward", THE_REWARD), f"{{{{model}}}} p{100 * q:g}")
                for q in (0.05, 0.25, 0.5, 0.75, 0.95)
            ],
            lowest=None,
        ),
        Panel(
            "Drift since yesterday",
            "Mean of the last hour minus that of the same hour a day before, in standard deviations of that hour, by "
            "checkpoint. Beyond 2 in either direction: look at the images. Needs the recording rules.",
            "none",
            [
                Query(
                    "job_fingerprint_dimension:jrm_reward:drift1d"
                    f'{{namespace=~"$namespace",job=~"$job",model=~"$model",{matcher}}}',
                    f"{{{{model}}}} {name}",
                )
                for matcher, name in ((THE_REWARD, "reward"), (DIMENSIONS, "{{dimension}}"))
            ],
            lowest=None,
            steps=[(2, "red")],
        ),
        Panel(
            "Spread within groups",
            "Standard deviation of the rewards within a group: mean and 10th percentile. It is what GRPO learns from. "
            "Falling while the mean reward climbs: the edits become alike.",
            "none",
            [
                Query(mean("jrm_group_reward_std"), "{{model}} mean"),
                Query(quantile(0.1, "jrm_group_reward_std"), "{{model}} p10"),
            ],
        ),
        Panel(
            "Groups without spread",
            "Share of the groups in which all rewards are equal: wasted, since GRPO gets no advantage from them. Equal "
            "rewards mean equal images.",
            "percentunit",
            [Query(share(total("jrm_groups_total", 'spread="zero"'), total("jrm_groups_total")), "{{model}}")],
            highest=1,
            steps=[(0.2, "red")],
        ),
    ],
)
