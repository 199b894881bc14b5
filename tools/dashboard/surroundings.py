"""The rows about what surrounds scoring: the cache and Redis, critiques, and the process itself."""

from __future__ import annotations

from .grafana import Panel, Query, Row
from .promql import gauge, metric, of_model, quantile, rate, share, total

CACHE = Row(
    "Cache and Redis",
    [
        Panel(
            "Scores found",
            "Share of cache lookups that found a score: in memory, or in Redis if memory had none.",
            "percentunit",
            [
                Query(
                    share(
                        total("jrm_cache_hits_total", by="model, tier"),
                        f"({total('jrm_cache_hits_total', by='model, tier')}"
                        f" + {total('jrm_cache_misses_total', by='model, tier')})",
                    ),
                    "{{model}} {{tier}}",
                )
            ],
            highest=1,
        ),
        Panel(
            "Scores not computed",
            "Scores per second that needed no device: cached, or shared with an identical candidate in progress.",
            "cps",
            [
                Query(total("jrm_cache_hits_total", by="tier"), "found in {{tier}}"),
                Query(f"sum({rate('jrm_cache_shared_total')})", "shared"),
            ],
            stacked=True,
        ),
        Panel(
            "Scores kept",
            "Scores in the memory of each replica, at most cache_entries.",
            "none",
            [Query(gauge("jrm_cache_entries"), "{{instance}}")],
        ),
        Panel(
            "Cache errors",
            "Scores that could not be read or written, per second. invalid: something else writes under the server's "
            "keys, which must not happen. dropped: scores come faster than Redis stores them.",
            "cps",
            [Query(total("jrm_cache_errors_total", by="tier, reason"), "{{tier}} {{reason}}")],
        ),
        Panel(
            "Calls to Redis",
            "Calls per second, by outcome. skipped: not sent, because Redis did not answer before. No request fails.",
            "cps",
            [Query(total("jrm_redis_calls_total", by="operation, outcome"), "{{operation}} {{outcome}}")],
        ),
        Panel(
            "Circuit to Redis",
            "Open: Redis is not called, and scores and quotas are not shared. Half open: the next call tests it.",
            "none",
            [Query(gauge("jrm_redis_breaker_state"), "{{instance}}")],
            highest=2,
            steps=[(1, "yellow"), (2, "red")],
            values={0: "closed", 1: "half open", 2: "open"},
        ),
    ],
)

EXPLAIN = Row(
    "Explain",
    [
        Panel(
            "Critiques",
            "Critiques per second, by outcome. truncated: cut off by max_tokens. invalid_critique: the checkpoint's "
            "text could not be parsed. explain_unavailable: the engine is not running.",
            "cps",
            [Query(total("jrm_explanations_total", by="model, outcome"), "{{model}} {{outcome}}")],
            stacked=True,
        ),
        Panel(
            "Time of a critique",
            "From its prompt until it is complete, including the wait for the engine.",
            "s",
            [Query(quantile(q, "jrm_explain_duration_seconds"), f"{{{{model}}}} p{100 * q:g}") for q in (0.5, 0.95)],
        ),
        Panel(
            "Tokens of the language head",
            "Tokens read and written, per second. Many read for few written: prompts dominate; ask for one dimension.",
            "cps",
            [Query(total("jrm_explain_tokens_total", by="model, kind"), "{{model}} {{kind}}")],
        ),
        Panel(
            "Critiques in progress",
            "Critiques being written or waiting in the engine. Above explain_concurrency: some wait.",
            "none",
            [Query(gauge("jrm_explain_running"), "{{instance}}")],
        ),
        Panel(
            "Engine up",
            "Whether the engine responds, for each replica that writes critiques. 0: its log says why.",
            "none",
            [Query(metric("jrm_explain_engine_up"), "{{instance}}")],
            highest=1,
            values={0: "down", 1: "up"},
        ),
        Panel(
            "Engine restarts",
            "Times in the last hour that an engine died and was restarted. If any: check memory first.",
            "none",
            [Query(of_model(f"increase({metric('jrm_explain_engine_restarts_total')}[1h])"), "{{instance}}")],
            steps=[(3, "red")],
        ),
    ],
    folded=True,
)

PROCESS = Row(
    "Process",
    [
        Panel(
            "Resident memory",
            "Memory of each replica: uploads, decoded pixels, cached scores and, on a CPU, the weights.",
            "bytes",
            [Query(gauge("process_resident_memory_bytes"), "{{instance}}")],
        ),
        Panel(
            "CPU",
            "CPUs that each replica uses. At its limit, preprocessing is slow: give it more CPUs.",
            "none",
            [Query(rate("process_cpu_seconds_total"), "{{instance}}")],
        ),
        Panel(
            "File descriptors",
            "Share of each replica's limit in use; a connection takes one.",
            "percentunit",
            [Query(of_model(f"{metric('process_open_fds')} / {metric('process_max_fds')}"), "{{instance}}")],
            highest=1,
            steps=[(0.9, "red")],
        ),
        Panel(
            "Uptime",
            "Time since the process started. A sawtooth: it keeps restarting; the end of the last log says why.",
            "s",
            [Query(f"time() - {metric('process_start_time_seconds')}", "{{instance}}")],
        ),
        Panel(
            "Traces",
            "Spans per second that reached the collector, and spans that were lost.",
            "cps",
            [Query(total("jrm_trace_spans_total", by="outcome"), "{{outcome}}")],
        ),
    ],
    folded=True,
)
