"""Prometheus metrics of one gateway: requests, events, click stages, cache hits, queues, leases."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_MS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1000, 2000, 5000, 20000)


class Metrics:
    """The gateway's metrics in a registry of their own, so that several gateways live in one process (tests)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "clickloop_http_requests", "HTTP requests", ["method", "route", "status"], registry=self.registry
        )
        self.request_ms = Histogram(
            "clickloop_http_request_ms", "HTTP request time", ["route"], buckets=_MS, registry=self.registry
        )
        self.events = Counter("clickloop_events", "Events acknowledged", ["kind"], registry=self.registry)
        self.refused = Counter("clickloop_refused", "Events refused, by error code", ["code"], registry=self.registry)
        self.stage_ms = Histogram(
            "clickloop_click_stage_ms", "Click time by stage", ["stage"], buckets=_MS, registry=self.registry
        )
        self.cache = Counter(
            "clickloop_refine_cache", "Refines: memo, memory, store or encoded", ["where"], registry=self.registry
        )
        self.refine_errors = Counter(
            "clickloop_refine_errors", "Refines that failed, by code", ["code"], registry=self.registry
        )
        self.refining = Gauge("clickloop_refines_in_flight", "Refines waiting or running", registry=self.registry)
        self.writer_queue = Gauge("clickloop_writer_queue", "Writes waiting for a commit", registry=self.registry)
        self.live_sessions = Gauge("clickloop_live_sessions", "Sessions held in memory", registry=self.registry)
        self.sockets = Gauge("clickloop_sockets", "Open WebSockets", registry=self.registry)
        self.leases_expired = Gauge("clickloop_leases_expired", "Leases past their time now", registry=self.registry)
        self.leases_lost = Counter("clickloop_leases_lost", "Events refused: lease lost", registry=self.registry)

    def observe_stages(self, stages: Mapping[str, float]) -> None:
        """Count one click's milliseconds by stage."""
        for stage, value in stages.items():
            self.stage_ms.labels(stage).observe(value)

    def refusal(self, code: str) -> None:
        """Count an event that was not acknowledged."""
        self.refused.labels(code).inc()
        if code == "lease_lost":
            self.leases_lost.inc()

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
