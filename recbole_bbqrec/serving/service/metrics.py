"""What the service counts, for Prometheus.

Where several workers run, each keeps its numbers in files of `PROMETHEUS_MULTIPROC_DIR`, which `server` makes before
this module is imported, and whichever is asked adds them up. What a worker has counted outlasts it.
"""

import os

import prometheus_client as prometheus
from prometheus_client import multiprocess

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one worker; `text` is of all."""

    def __init__(self) -> None:
        own = {"registry": prometheus.CollectorRegistry(), "namespace": "bbqrec"}
        self._registry = own["registry"]
        self.requests = prometheus.Counter(
            "requests", "Answers by route, method and status.", ["route", "method", "status"], **own
        )
        self.seconds = prometheus.Histogram(
            "request_seconds", "Time from a request's head to its answer.", ["route"], buckets=SECONDS, **own
        )
        self.together = prometheus.Histogram("batch_size", "Histories that were scored together.", buckets=SIZES, **own)
        self.unknown_items = prometheus.Counter("unknown_items", "Item tokens given that no item has.", **own)
        self.empty_histories = prometheus.Counter("empty_histories", "Histories without any known item.", **own)
        self.events = prometheus.Counter("events_stored", "Events acknowledged.", **own)
        self.generation = prometheus.Gauge(
            "generation", "Generation of the bundle, the oldest in use.", multiprocess_mode="livemin", **own
        )

    def text(self) -> bytes:
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return prometheus.generate_latest(self._registry)
        registry = prometheus.CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        return prometheus.generate_latest(registry)
