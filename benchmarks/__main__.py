"""All of them, one after the other: `python -m benchmarks`."""

from __future__ import annotations

from benchmarks import latency, line, proof, publish, serialize

BENCHMARKS = (serialize, line, proof, publish, latency)

if __name__ == "__main__":
    for benchmark in BENCHMARKS:
        benchmark.main()
