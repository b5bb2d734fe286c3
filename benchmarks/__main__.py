"""All of them, one after the other: `python -m benchmarks`."""

from __future__ import annotations

from benchmarks import latency, line, lineage, proof, publish, serialize

BENCHMARKS = (serialize, line, proof, publish, lineage, latency)

if __name__ == "__main__":
    for benchmark in BENCHMARKS:
        benchmark.main()
