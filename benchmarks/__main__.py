"""All of them, one after the other: `python -m benchmarks`."""

from __future__ import annotations

from benchmarks import line, proof, publish, serialize

BENCHMARKS = (serialize, line, proof, publish)

if __name__ == "__main__":
    for benchmark in BENCHMARKS:
        benchmark.main()
