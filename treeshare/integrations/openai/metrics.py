"""What the server counts, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from treeshare.engine.async_llm import AsyncLLM
    from treeshare.integrations.openai.upload import Queue

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters of one server, in a registry of their own.

    Args:
        llm: Read when the metrics are asked for.
        queue: Likewise.
    """

    def __init__(self, llm: AsyncLLM, queue: Queue) -> None:
        self._llm, self._queue = llm, queue
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self.requests = Counter(
            "treeshare_requests", "Requests answered.", ["endpoint", "status"], registry=self._registry
        )
        self.prompt_tokens = Counter(
            "treeshare_prompt_tokens", "Prompt tokens of requests that ran.", registry=self._registry
        )
        self.first_token_s = Histogram(
            "treeshare_time_to_first_output_seconds",
            "From a whole request to its first token where it streams, else to its first completion.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.request_s = Histogram(
            "treeshare_request_seconds",
            "From a whole request to the end of its answer.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def text(self) -> bytes:
        """All of them in Prometheus' text form."""
        text: bytes = generate_latest(self._registry)
        return text

    def collect(self) -> Iterator[Any]:
        """What the engine knows, read at this moment; Prometheus' interface of a collector."""
        llm = self._llm
        held = self._queue.num_requests
        running = min(llm.num_running, llm.num_unfinished)
        gauges = {
            "treeshare_requests_in_flight": ("Requests held, from their head to their answer's end.", held),
            "treeshare_request_bytes": ("Bytes of their bodies.", self._queue.num_bytes),
            "treeshare_completions_running": ("Completions that decode.", running),
            "treeshare_completions_waiting": ("Completions that wait.", llm.num_unfinished - running),
            "treeshare_kv_bytes": ("KV bytes in use.", llm.kv_bytes_in_use),
            "treeshare_kv_budget_bytes": ("Maximum KV bytes held at once.", llm.kv_budget_bytes),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        counters = {
            "treeshare_generated_tokens": ("Tokens generated.", llm.num_tokens),
            "treeshare_prefilled_tokens": ("Prompt tokens computed.", llm.stats.prefilled_tokens),
            "treeshare_completions_finished": ("Completions that have ended.", llm.num_finished),
            "treeshare_preemptions": ("How often a sequence lost its KV.", llm.stats.num_preemptions),
        }
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(name, text, value=value)
