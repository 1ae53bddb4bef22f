"""What Prometheus reads at /metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter(
            "ovbridge_requests_total", "Answered requests.", ("method", "route", "status"), registry=self._registry
        )
        self.request_seconds = Histogram(
            "ovbridge_request_seconds", "From the request line to the last byte of the answer.", ("route",),
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.under_way = Gauge("ovbridge_requests_under_way", "Requests not answered yet.", registry=self._registry)
        self.waiting = Gauge("ovbridge_pictures_waiting", "Pictures in the queue.", registry=self._registry)
        self.model_seconds = Histogram(
            "ovbridge_model_seconds", "One pass of the model.", buckets=_SECONDS, registry=self._registry
        )
        self.batch_size = Histogram(
            "ovbridge_batch_size", "Pictures in one pass.", buckets=(1, 2, 3, 4, 6, 8, 12, 16, 32),
            registry=self._registry,
        )  # fmt: skip
        self.detections = Counter("ovbridge_detections_total", "Boxes given out.", registry=self._registry)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)
