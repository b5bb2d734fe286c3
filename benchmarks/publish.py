"""Publishing to S3, against boto3's own upload with the same settings: `python -m benchmarks.publish`.

A package with one file of 2 GB goes to SeaweedFS on this machine. Each way of sending it gets a process and a server of
its own, and none is always the first of a round. Before each turn the page cache is full, as on a machine that has been
up for a while. A speed is the ratio of two medians. `upload_file` reads nothing back: what is staged, and proven by the
server's checksum, compares with that; with every byte read back it compares with both done by boto3 alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from adapterline.destinations.s3 import S3Destination
from adapterline.destinations.s3_objects import MULTIPART_THRESHOLD, Content, Objects, Storage
from adapterline.s3 import make_client
from adapterline.seaweedfs import Volumes, run_seaweedfs
from adapterline.values import Package, PackagedFile
from benchmarks.serialize import anonymous_bytes

ROUNDS = 5
SIZE = 2 * 10**9  # bytes
BUCKET = "bench"
#: SeaweedFS's own number of volumes that are written to at the same time. In one, all connections wait for each other.
VOLUMES = Volumes(size=1024, most=40, grown=7)
NAME = "weights"


def write_file(path: Path) -> None:
    block = os.urandom(1 << 24)
    with path.open("wb") as file:
        for start in range(0, SIZE, len(block)):
            file.write(block[: SIZE - start])
        os.fsync(file.fileno())


# --- the ways ---------------------------------------------------------------------------------------------------------


def plain(folder: Path) -> None:
    import boto3
    from boto3.s3.transfer import TransferConfig

    config = TransferConfig(
        multipart_threshold=MULTIPART_THRESHOLD, multipart_chunksize=MULTIPART_THRESHOLD, max_concurrency=4
    )
    boto3.session.Session().client("s3").upload_file(
        str(folder / NAME), BUCKET, "plain", ExtraArgs={"ChecksumAlgorithm": "SHA256"}, Config=config
    )


def plain_and_read(folder: Path) -> None:
    import boto3

    plain(folder)
    answer = boto3.session.Session().client("s3").get_object(Bucket=BUCKET, Key="plain")
    digest = hashlib.sha256()
    for chunk in answer["Body"].iter_chunks(1 << 20):
        digest.update(chunk)
    assert digest.hexdigest() == (folder / "digest").read_text()


def sent(folder: Path) -> None:
    Objects(make_client(), BUCKET, Storage()).upload(
        "sent", folder / NAME, Content("application/octet-stream", {}, {"name": "bench"}, large=True)
    )


def staged(folder: Path) -> None:
    receipt = S3Destination(f"s3://{BUCKET}", "bench").stage(_package(folder))
    assert receipt.read_back == "checksum"


def staged_and_read(folder: Path) -> None:
    S3Destination(f"s3://{BUCKET}", "bench", read_back="bytes").stage(_package(folder))


def read_back(folder: Path) -> None:
    found = Objects(make_client(), BUCKET, Storage()).measure("sent")
    assert found is not None
    assert found.size == SIZE


WAYS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "plain": ("boto3: upload_file, the same settings", plain),
    "plain_and_read": ("boto3: upload_file, get_object and SHA256", plain_and_read),
    "sent": ("adapterline: what it sends", sent),
    "read_back": ("adapterline: what it reads back, and hashes", read_back),
    "staged": ("adapterline: staged, proven by the checksum", staged),
    "staged_and_read": ("adapterline: staged, every byte read back", staged_and_read),
}
#: What is read back is what was sent just before.
TURNS = (("plain",), ("sent", "read_back"), ("plain_and_read",), ("staged",), ("staged_and_read",))


def _package(folder: Path) -> Package:
    from adapterline.values import Bundle, ExportedFile
    from adapterline.values.manifest import Manifest

    digest = (folder / "digest").read_text()
    file = ExportedFile(role="weights", layout="diffusers", path=NAME, size=SIZE, sha256=digest, tensors_sha256=digest)
    # Staging looks at the name, the digest and the files alone.
    manifest = Manifest.model_construct(
        name="bench", family="sd15", digest=Bundle.digest_of((file,)), files=(file,), training_run=None
    )
    return Package(manifest, b"{}", folder, (PackagedFile(path=NAME, size=SIZE, sha256=digest),))


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(way: str, folder: Path) -> dict[str, float]:
    """Seconds, and the bytes of anonymous memory that the imports had taken before."""
    import boto3.s3.transfer  # noqa: F401

    before = anonymous_bytes(os.getpid())
    start = time.perf_counter()
    WAYS[way][1](folder)
    return {"seconds": time.perf_counter() - start, "before": before}


def in_a_process(way: str, folder: Path) -> dict[str, float]:
    """Seconds, and the peaks of anonymous memory: over what the imports had taken, and in all."""
    os.sync()
    peak = 0
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.publish", way, str(folder)], stdout=subprocess.PIPE
    ) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.02)
        assert process.stdout is not None
        found: dict[str, float] = json.loads(process.stdout.read())
    return {"seconds": found["seconds"], "peak": peak - found["before"], "all": peak}


def fill_page_cache(file: BinaryIO) -> None:
    """Reads on in a sparse file until no more memory is taken.

    What the server writes next then gets pages that this file had. A page that was free has to be found by the host of
    a virtual machine first, which took between 0.2 and 9 seconds for 2 GB.
    """
    block = bytearray(1 << 20)
    free = _free_memory()
    while file.readinto(block):
        if file.tell() % (1 << 30) == 0:
            before, free = free, _free_memory()
            if before - free < 1 << 28:
                return


def _free_memory() -> int:
    """In bytes, without what the page cache could give back."""
    found = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemFree:"))
    return int(found.split()[1]) << 10


@contextmanager
def new_server(folder: Path) -> Iterator[None]:
    """In an empty folder, with an empty bucket: nothing of what one turn left slows down or helps the next."""
    with run_seaweedfs(folder, volumes=VOLUMES) as server:
        os.environ |= {**server.environment(), "AWS_CONFIG_FILE": os.devnull}
        make_client().create_bucket(Bucket=BUCKET)
        yield
    shutil.rmtree(folder)


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="adapterline-bench-") as name,
        Path(name, "sparse").open("w+b") as sparse,
    ):
        folder = Path(name)
        sparse.truncate(1 << 40)
        write_file(folder / NAME)
        with (folder / NAME).open("rb") as file:
            (folder / "digest").write_text(hashlib.file_digest(file, "sha256").hexdigest())
        runs = []
        for start in range(ROUNDS):
            run = {}
            for turn in range(start, start + len(TURNS)):
                fill_page_cache(sparse)
                with new_server(folder / "s3"):
                    run |= {way: in_a_process(way, folder) for way in TURNS[turn % len(TURNS)]}
            runs.append(run)
            print(f"round {start + 1}:", *(f"{way} {run[way]['seconds']:.2f}" for way in WAYS), file=sys.stderr)
    _print(runs)


def _print(runs: list[dict[str, dict[str, float]]]) -> None:
    print(f"publish: {SIZE / 1e9:.0f} GB to SeaweedFS on this machine; medians of {len(runs)} rounds")
    heads = ("seconds", "from", "to", "MB/s", "of upload_file", "of both", "anonymous MB", "with imports")
    print(f"{'':44}", *(f"{head:>{max(len(head), 6)}}" for head in heads))
    medians = {way: statistics.median(run[way]["seconds"] for run in runs) for way in WAYS}
    for way, (title, _) in WAYS.items():
        every = [run[way]["seconds"] for run in runs]
        of_upload, of_both = (medians[other] / medians[way] for other in ("plain", "plain_and_read"))
        peak, everything = (max(run[way][key] for run in runs) / 1e6 for key in ("peak", "all"))
        print(
            f"{title:44} {medians[way]:7.2f} {min(every):6.2f} {max(every):6.2f} {SIZE / medians[way] / 1e6:6.0f} "
            f"{of_upload:14.2f} {of_both:7.2f} {peak:12.0f} {everything:12.0f}"
        )
    print("of: speed against upload_file, and against upload_file with a reading back of every byte")


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
    else:
        main()
