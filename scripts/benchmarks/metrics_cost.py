"""What metrics cost: setting them after a chunk of steps, and answering a scrape.

Run it by itself: `PYTHONPATH=. .venv/bin/python scripts/benchmarks/metrics_cost.py`.
"""

import time
import timeit

from job.observe import exposition
from job.observe.metrics import Metrics
from job.observe.phases import Phases
from job.observe.termination import Status
from job.runs.goodput import Ledger

_CHUNKS, _SCRAPES = 20_000, 500


def main() -> None:
    """Print microseconds per chunk and milliseconds per scrape."""
    phases = Phases()
    metrics = Metrics(status=Status(), phases=phases)
    ledger = Ledger(phases=phases, attempt="a", num_attempts=1, computed_on={}, first_started_seconds=time.time())
    counters = {"steps": 67, "examples": 8576, "epochs": 0, "attempts": 1, "interruptions": 0}

    def set_after_chunk() -> None:
        metrics.add_steps(67, seconds=0.28)
        metrics.set(loss=0.5, accuracy=0.5, examples_per_second=1e5, eta_seconds=3.0)
        metrics.count(counters)
        metrics.set(progress_ratio=0.5)
        metrics.set_goodput(ledger.goodput())

    chunk_seconds = timeit.timeit(set_after_chunk, number=_CHUNKS) / _CHUNKS
    scrape_seconds = timeit.timeit(lambda: exposition.to_text(metrics.running), number=_SCRAPES) / _SCRAPES
    print(f"set after a chunk: {chunk_seconds * 1e6:.1f} us; a scrape: {scrape_seconds * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
