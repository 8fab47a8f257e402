"""OpenTelemetry spans of routes and requests. The one home of `opentelemetry`.

Spans are made when all is over, from the times that were measured, so that nothing runs inside a
request. Their attributes are numbers and words of ours. Who exports them is the user's business.
"""

from typing import Any

from centroidkv.errors import MissingExtra
from centroidkv.observing import RequestSeen, RouteSeen
from centroidkv.types import Usage

try:
    from opentelemetry import trace
    from opentelemetry.trace import Span, Status, StatusCode, Tracer
except ImportError as error:
    raise MissingExtra("opentelemetry-api", command="pip install 'centroidkv[tracing]'") from error

__all__ = ["ATTRIBUTES", "SPANS", "Traces"]

SPANS = {
    "centroidkv.route": ("embed", "search"),
    "centroidkv.request": ("load", "prefill", "decode"),
}
_MEASURED = (
    "prompt_tokens", "reused_tokens", "blended_tokens", "recomputed_tokens", "computed_tokens",
    "unloaded_tokens", "completion_tokens", "drafted_tokens", "stored_tokens", "loaded_bytes",
    "tier", "kv_precision", "approximate", "ttft_s",
)  # fmt: skip
ATTRIBUTES = ("request_id", "ended", "outcome", "reason", *_MEASURED, "index", "is_admitted")


class Traces:
    """Makes a span for each route and each request, as children of the caller's span."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @classmethod
    def of(cls, provider: Any) -> "Traces":
        """Take the global tracer provider for True, else the one that is given."""
        chosen = trace.get_tracer_provider() if provider is True else provider
        return cls(chosen.get_tracer("centroidkv"))

    def began(self) -> None:
        """Do nothing: spans are made when all is over."""

    def routed(self, seen: RouteSeen) -> None:
        found = {"index": seen.index, "is_admitted": seen.is_admitted}
        stages = {"embed": seen.embed_s, "search": seen.route_s}
        span = seen.context.run(self._begun, "centroidkv.route", seen.began_ns, found)
        ended_ns = self._stages(span, stages, seen.began_ns)
        span.end(ended_ns)

    def answered(self, seen: RequestSeen) -> None:
        found = {"request_id": seen.id, "ended": seen.ended}
        found |= {"outcome": seen.outcome, "reason": seen.reason}
        span = seen.context.run(
            self._begun, "centroidkv.request", seen.began_ns, found | _measured(seen.usage)
        )
        if seen.usage is not None:
            stages, lead_s = _timed(seen.usage)
            self._stages(span, stages, seen.began_ns + int(lead_s * 1e9))
        if seen.ended == "failed":
            span.set_status(Status(StatusCode.ERROR))  # errors' texts may name paths
        span.end(seen.ended_ns)

    def _begun(self, name: str, began_ns: int, found: dict[str, Any]) -> Span:
        attributes = {f"centroidkv.{key}": value for key, value in found.items()}
        return self._tracer.start_span(name, start_time=began_ns, attributes=attributes)

    def _stages(self, span: Span, stages: dict[str, float], began_ns: int) -> int:
        """Make the children of a span, one behind the other; return when the last one ended."""
        inside = trace.set_span_in_context(span)
        for name, seconds in stages.items():
            child = self._tracer.start_span(
                f"centroidkv.{name}", context=inside, start_time=began_ns
            )
            began_ns += int(seconds * 1e9)
            child.end(began_ns)
        return began_ns

    def close(self) -> None:
        """Do nothing: exporters are flushed by whoever set them up."""


def _measured(usage: Usage | None) -> dict[str, Any]:
    return {name: getattr(usage, name) for name in _MEASURED} if usage is not None else {}


def _timed(usage: Usage) -> tuple[dict[str, float], float]:
    """Return the stages of a request, and how long after its beginning the first one began.

    What comes before is rendering and waiting for a place.
    """
    stages = {"load": usage.load_s, "prefill": usage.prefill_s, "decode": usage.decode_s}
    return stages, max(0.0, usage.total_s - sum(stages.values()))
