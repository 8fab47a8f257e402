"""What is counted and timed, as Prometheus metrics. The one home of `prometheus_client`.

Each open store has a registry of its own. Labels are words of ours, never a text of a user's.
"""

from collections.abc import Callable, Iterable
from typing import Any

from centroidkv.errors import ConfigError, MissingExtra
from centroidkv.observers.health import StoreParts
from centroidkv.observers.metric_families import Reading, readings
from centroidkv.observing import RequestSeen, RouteSeen
from centroidkv.types import Usage

try:
    from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.exposition import start_http_server
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingExtra("prometheus-client", command="pip install 'centroidkv[metrics]'") from error

ADDRESS = "127.0.0.1"
# From a stored prefix in memory to a long prompt on a slow CPU.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

__all__ = ["Metrics", "open_metrics"]


class Metrics:
    """The metrics of one open store, and the server that shows them, if there is one."""

    def __init__(self, parts: StoreParts) -> None:
        self.registry = CollectorRegistry()
        self.before_reading: Callable[[], None] = lambda: None
        self._close_server: Callable[[], None] = lambda: None
        # First, as it tells of what waits before the others are read.
        self.registry.register(_StoreCollector(parts, self))
        self._requests = self._counter("requests", "ended", "outcome", "reason")
        self._routes = self._counter("routes", "index", "admitted")
        self._prompt_tokens = self._counter("prompt_tokens", "source")
        self._completion_tokens = self._counter("completion_tokens", "source")
        self._stored_tokens = self._counter("stored_tokens")
        self._loaded_bytes = self._counter("loaded_bytes")
        self._ttft = self._histogram("ttft_seconds", "outcome")
        self._request_s = self._histogram("request_seconds", "outcome")
        self._stage_s = self._histogram("stage_seconds", "stage")

    def _counter(self, name: str, *labels: str) -> Counter:
        return Counter(f"centroidkv_{name}", MEANINGS[name], labels, registry=self.registry)

    def _histogram(self, name: str, *labels: str) -> Histogram:
        return Histogram(
            f"centroidkv_{name}", MEANINGS[name], labels, registry=self.registry, buckets=SECONDS
        )

    def began(self) -> None:
        """Do nothing: requests under way are read off the queue."""

    def routed(self, seen: RouteSeen) -> None:
        self._routes.labels(seen.index, "yes" if seen.is_admitted else "no").inc()
        self._stage_s.labels("embed").observe(seen.embed_s)
        self._stage_s.labels("route").observe(seen.route_s)

    def answered(self, seen: RequestSeen) -> None:
        self._requests.labels(seen.ended, seen.outcome, seen.reason).inc()
        self._request_s.labels(seen.outcome).observe(seen.seconds)
        if seen.usage is not None:
            self._measured(seen.usage)

    def _measured(self, usage: Usage) -> None:
        blended = usage.blended_tokens - usage.recomputed_tokens
        self._prompt_tokens.labels("reused").inc(usage.reused_tokens)
        self._prompt_tokens.labels("blended").inc(blended)
        self._prompt_tokens.labels("computed").inc(usage.computed_tokens)
        self._completion_tokens.labels("drafted").inc(usage.drafted_tokens)
        self._completion_tokens.labels("decoded").inc(
            usage.completion_tokens - usage.drafted_tokens
        )
        self._stored_tokens.inc(usage.stored_tokens)
        self._loaded_bytes.inc(usage.loaded_bytes)
        for stage in ("load", "prefill", "decode"):
            self._stage_s.labels(stage).observe(getattr(usage, f"{stage}_s"))
        if usage.ttft_s:
            self._ttft.labels(usage.outcome).observe(usage.ttft_s)

    def text(self) -> str:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry).decode()

    def serve(self, port: int) -> None:
        """Show the metrics to this machine at `http://127.0.0.1:PORT/metrics`.

        Raises:
            ConfigError: The port is taken, or not for us.
        """
        try:
            server, thread = start_http_server(port, addr=ADDRESS, registry=self.registry)
        except OSError as error:
            raise ConfigError(
                f"metrics cannot be served on {ADDRESS}:{port} ({error.strerror}); "
                "choose another port"
            ) from error

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._close_server = close

    def close(self) -> None:
        self._close_server()


class _StoreCollector(Collector):
    """Reads the state of a store's parts whenever somebody looks."""

    def __init__(self, parts: StoreParts, metrics: Metrics) -> None:
        self._parts = parts
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return ()  # asked when it is registered, before there is anything to read

    def collect(self) -> Iterable[Metric]:
        self._metrics.before_reading()
        return [_family(reading) for reading in readings(self._parts)]


def _family(reading: Reading) -> Metric:
    kind: Any = CounterMetricFamily if reading.is_counter else GaugeMetricFamily
    name, label = f"centroidkv_{reading.name}", reading.label
    family: Metric = kind(name, reading.meaning, labels=[label] if label else [])
    for value_of_label, value in reading.values.items():
        family.add_metric([value_of_label] if label else [], value)  # type: ignore[attr-defined]
    return family


def open_metrics(parts: StoreParts, *, port: int | None) -> Metrics:
    """Make the metrics of a store, and serve them if there is a port.

    Raises:
        ConfigError: The port cannot be had.
    """
    metrics = Metrics(parts)
    if port is not None:
        metrics.serve(port)
    return metrics


MEANINGS = {
    "requests": "Requests by how they ended, what was reused, and why not more.",
    "routes": "Questions routed, by the index that found the centroid and by admission.",
    "prompt_tokens": "Prompt tokens by where their KV came from.",
    "completion_tokens": "Tokens of answers, decoded or guessed right.",
    "stored_tokens": "Tokens whose KV was handed to the store.",
    "loaded_bytes": "Bytes of KV loaded from disk or a remote.",
    "ttft_seconds": "From the beginning of a request to its first token.",
    "request_seconds": "From the beginning of a request to its end.",
    "stage_seconds": "What each stage of a request took.",
}
