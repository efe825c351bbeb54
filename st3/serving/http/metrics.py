"""What a server counts, in Prometheus' format."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.responses import Response

from st3.serving.http.job import Done

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_EACH = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Of one server; nothing is shared with others of the process."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        ProcessCollector(registry=own)
        self.requests = Counter(
            "st3_requests", "Requests that ended, by status; gone: hung up.", ["status"],
            registry=own,
        )  # fmt: skip
        self.active = Gauge("st3_requests_active", "Requests that run or wait.", registry=own)
        self.ttft = Histogram(
            "st3_ttft_seconds", "From arrival to the first token.", buckets=_SECONDS, registry=own
        )
        self.tpot = Histogram(
            "st3_tpot_seconds", "Of each token after the first, mean of an answer.",
            buckets=_EACH, registry=own,
        )  # fmt: skip
        self.batch = Histogram(
            "st3_batch_requests", "Answered together with a request, itself included.",
            buckets=_ROWS, registry=own,
        )  # fmt: skip
        self.prompt = Counter("st3_prompt_tokens", "Of prompts, as sent.", registry=own)
        self.new = Counter("st3_generated_tokens", "Of answers.", registry=own)
        self.visual = Counter("st3_visual_tokens", "Of prompts, as sent.", registry=own)
        self.kept = Counter(
            "st3_visual_tokens_kept", "Of prompts, kept after prefill, mean over layers.",
            registry=own,
        )  # fmt: skip
        self.bytes = Counter("st3_kv_bytes", "Of KV caches after prefill.", registry=own)
        self.saved = Counter(
            "st3_kv_bytes_saved", "Of KV caches after prefill, by trimming.", registry=own
        )

    def answered(self, done: Done) -> None:
        """One more answer."""
        self.ttft.observe(done.ttft)
        tpot = done.timing["tpot_ms"]
        if tpot is not None:
            self.tpot.observe(tpot / 1000)
        self.batch.observe(done.batch)
        self.prompt.inc(done.prompt_tokens)
        self.new.inc(done.new_tokens)
        self.visual.inc(done.visual)
        self.kept.inc(done.kept_visual)
        self.bytes.inc(done.kv_bytes)
        self.saved.inc(max(0, done.untrimmed_kv_bytes - done.kv_bytes))

    def reply(self) -> Response:
        """All of it."""
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4")
