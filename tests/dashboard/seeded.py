"""An index as some weeks of nights leave it: versions of several families, places, aliases, refusals and failures."""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from adapterline.lineage import Index
from adapterline.values import (
    WEIGHT_NAME,
    BaseSummary,
    Bundle,
    Check,
    ComponentSummary,
    ExportedFile,
    FlowRun,
    LineageRecord,
    LoadCall,
    Manifest,
    PackagedFile,
    Promotion,
    Publication,
    Receipt,
    RenderedImage,
    SourceSummary,
    SweepRecord,
    TrainingRun,
    Transform,
    ValidationReport,
)
from adapterline.values.drift import ComponentDrift, DriftFromLatest, ModuleDrift
from tests.lineage.recorded import DAY, record_of

#: name, family, base, pipeline, components: name -> ranks
NAMES: tuple[tuple[str, str, str, str, dict[str, int | list[int]]], ...] = (
    ("anime-lines", "sdxl", "stabilityai/stable-diffusion-xl-base-1.0", "StableDiffusionXLPipeline", {"unet": 16}),
    ("brick-toys", "flux", "black-forest-labs/FLUX.1-dev", "FluxPipeline", {"transformer": [4, 8, 16, 64]}),
    (
        "studio-portrait",
        "sd15",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "StableDiffusionPipeline",
        {"unet": [8, 32], "text_encoder": 8},
    ),
    ("team-a-watercolour", "wan", "Wan-AI/Wan2.2-T2V-A14B-Diffusers", "WanPipeline", {"transformer": 32}),
    ("team-b-product", "flux", "unknown", "FluxPipeline", {"transformer": 128}),
    ("zen-garden", "sd3", "stabilityai/stable-diffusion-3.5-medium", "StableDiffusion3Pipeline", {"transformer": 4}),
)
NIGHTS = 10
REFUSALS = (
    ("refused", "CheckpointError", 3, "step-900.bin is a pickle with os.system in it. Expected tensors alone."),
    ("refused", "FamilyError", 3, "The checkpoint was trained on SDXL, and --base is sd15. Expected the same family."),
    ("failed", "PublishError", 5, "Writing s3://adapters/loras: the server answered SlowDown. Try again later."),
    ("failed", "MachineError", 6, "Writing the adapter: No space left on device. Expected free space."),
)


@dataclass(frozen=True)
class Seeded:
    """What there is: `shown` has images, a graph with everything, and lies in the folder `root`."""

    index: Index
    root: Path
    shown: LineageRecord

    @property
    def path(self) -> str:
        """The page of `shown`."""
        assert self.shown.manifest
        return f"/adapters/{self.shown.manifest.name}/{self.shown.manifest.digest[:12]}"


def seed(url: str, root: Path) -> Seeded:
    """Sixty versions over ten nights, published below `root` and at a bucket and a Hub that nobody asks."""
    index, last = Index(url), {}
    number = 0
    for night in range(NIGHTS):
        for name, family, base, pipeline, ranks in NAMES:
            number += 1
            before = last.get(name)
            parents = (before.digest,) if before and night % 3 == 2 else ()
            manifest = manifest_of(number, name, family, base, pipeline, ranks, parents)
            places = (str(root), f"s3://adapters/loras-{family}", "hf://acme")[: 1 + night % 3]
            published = () if (number % 17) == 0 else tuple(publication_of(manifest, place) for place in places)
            add(index, manifest, published, number, night)
            last[name] = manifest
        outcome, kind, code, why = REFUSALS[night % len(REFUSALS)]
        index.add(
            record_of(
                None,
                day=night + 1,
                id=f"{0xE000 + night:012x}",
                outcome=outcome,
                name=f"broken-{night % 3}",
                error=why,
                error_type=kind,
                exit_code=code,
            )
        )
        index.add_sweep(sweep_of(number, night))
    shown = _shown(index, root, last["studio-portrait"], number + 1)
    for alias, manifest in (("production", last["anime-lines"]), ("staging", last["brick-toys"])):
        move = {"destination": str(root), "previous": None, "outcome": "moved"}
        index.add_promotion(
            Promotion.model_validate(
                {"name": manifest.name, "digest": manifest.digest, "alias": alias, "moves": [move]}
            )
        )
    return Seeded(index, root, shown)


def sweep_of(number: int, night: int) -> SweepRecord:
    """What that night's sweep came to."""
    begun = DAY + timedelta(days=night, hours=1)
    return SweepRecord(
        id=f"{0xA000 + night:012x}",
        started_at=begun,
        ended_at=begun + timedelta(minutes=31),
        roots=("s3://runs",),
        to=("s3://adapters/loras",),
        steps="final",
        found=number + 3,
        exported=len(NAMES),
        skipped=number - len(NAMES),
        unfinished=1,
        refused=1,
        told=0,
        failed=1,
    )


def _shown(index: Index, root: Path, before: Manifest, number: int) -> LineageRecord:
    """With everything that a page can show, its images in the folder."""
    name, family, base, pipeline, ranks = NAMES[2]
    made = manifest_of(number, name, family, base, pipeline, ranks, (before.digest,))
    folder = root / made.name / made.digest[:12]
    images = (draw(folder, 0, "a photo of sks dog"), draw(folder, 1, "sks dog in the snow, red scarf"))
    places = (str(root), "s3://adapters/loras-sd15", "hf://acme")
    published = tuple(publication_of(made, place, images) for place in places)
    flow = FlowRun(id="4f1c", name="wise-otter", url="http://prefect.example/runs/flow-run/4f1c")
    report = made.validation.model_copy(
        update={"not_run": {"forward": "no base weights", "render: cosine": "no GPU"}, "checks": made.validation.checks}
    )
    return add(index, made, published, number, NIGHTS, images=images, flow_run=flow, report=report)


def add(
    index: Index, manifest: Manifest, published: tuple[Publication, ...], number: int, night: int, **more: Any
) -> LineageRecord:
    """A run that made this version."""
    before = index.previous(manifest.name, manifest.digest)
    begun = DAY + timedelta(days=night, minutes=4 * number)
    record = record_of(None, day=1, **more).model_copy(
        update={
            "id": f"{number:012x}",
            "key": f"{number:064x}",
            "outcome": "exported" if published else "validated",
            "started_at": begun,
            "ended_at": begun + timedelta(seconds=20 + number),
            "checkpoint": f"s3://runs/{manifest.name}/checkpoint-{manifest.source.step}",
            "name": manifest.name,
            "to": tuple(each.receipt.destination for each in published),
            "run": manifest.training_run,
            "manifest": manifest,
            "publications": published,
            "previous": before,
            "drift": drift_of(manifest, before, number) if before and published else None,
        }
    )
    record = LineageRecord.model_validate(record.model_dump())
    index.add(record)
    return record


def drift_of(manifest: Manifest, before: str, number: int) -> DriftFromLatest:
    """From the version before: every tenth export turned far."""
    components = {}
    for place, component in enumerate(sorted(manifest.components)):
        cosine = 0.12 if number % 10 == 0 else 0.9 + 0.09 * math.sin(number) - 0.2 * place
        norm = 4 + 2 * math.sin(number / 5) - 1.5 * place
        layers = {
            f"blocks.{n}.attn.to_q": ModuleDrift(norm=norm / 4, before=norm / 5, cosine=cosine - n / 50)
            for n in range(5)
        }
        components[component] = ComponentDrift(norm=norm, before=norm * 0.9, cosine=cosine, modules=layers)
    return DriftFromLatest(
        components=components,
        before=before,
        destination="s3://adapters/loras",
        beyond=("unet: cosine 0.120, expected 0.5 or more",) if number % 10 == 0 else (),
    )


def manifest_of(
    number: int,
    name: str,
    family: str,
    base: str,
    pipeline: str,
    ranks: dict[str, int | list[int]],
    parents: tuple[str, ...] = (),
) -> Manifest:
    """Of a version with plausible values. Another number gives another version."""
    digests = [hashlib.sha256(f"{what} {number}".encode()).hexdigest() for what in ("file", "tensors", "source")]
    weights = ExportedFile(
        role="weights",
        layout="diffusers",
        path=WEIGHT_NAME,
        size=1_000_000 * (1 + number * 7 % 61),
        sha256=digests[0],
        tensors_sha256=digests[1],
    )
    run = TrainingRun(
        run_id=f"{name}-{number:03}",
        finished_at=DAY + timedelta(days=(number - 1) // 6, minutes=4 * number - 150),  # before it was exported
        step=100 * number,
        base_model=None if base == "unknown" else base,
        dataset=f"s3://datasets/{name}/v{number % 4}",
        code="https://git.example/acme/train@4f1c2d",
        trainer="sd-scripts 0.9.1",
        parents=parents,
    )
    digest = Bundle.digest_of((weights,))
    return Manifest(
        name=name,
        digest=digest,
        family=family,
        source=SourceSummary(
            name=f"checkpoint-{100 * number}",
            digest=digests[2],
            container="safetensors",
            dialect="kohya",
            step=100 * number,
        ),
        training_run=run,
        base=BaseSummary(architecture=hashlib.sha256(base.encode()).hexdigest(), pipeline=pipeline, model=base),
        trigger=("sks dog",),
        files=(weights,),
        components={
            component: ComponentSummary(
                rank=rank,
                alpha=4.0,
                modules=128 if component != "text_encoder" else 24,
                adapter_type="lora",
                dtype="float32",
                parameters=797_184,
            )
            for component, rank in ranks.items()
        },
        transforms=(
            Transform(kind="fold-scale", detail="alpha/rank 0.5 into the factors"),
            Transform(kind="store-fp32", detail="3 modules", component=next(iter(ranks)), modules=("a", "b", "c")),
        ),
        left_out=("text_encoder_2",) if family == "sdxl" else (),
        validation=ValidationReport(bundle_digest=digest, checks=tuple(_checks(ranks))),
        loads=(LoadCall(pipeline=pipeline, method="load_lora_weights", weight_name=WEIGHT_NAME),),
        consumers={WEIGHT_NAME: ("diffusers", "diffusers==0.35.2")},
        tools={"adapterline": "0.1.0", "diffusers": "0.42.1"},
    )


def _checks(ranks: dict[str, int | list[int]]) -> list[Check]:
    found = [Check(name="loads", consumer="diffusers", observed="no exception", limit="no exception", passed=True)]
    for component in ranks:
        found.append(
            Check(
                name="effect (relative change of the weight)",
                consumer="diffusers",
                component=component,
                observed=3.1e-7,
                limit=5e-4,
                passed=True,
                detail="the worst of all modules",
            )
        )
    return found


def publication_of(manifest: Manifest, place: str, images: tuple[RenderedImage, ...] = ()) -> Publication:
    """As a destination tells it."""
    sha12, name = manifest.digest[:12], manifest.name
    location, url, load, revision = f"{place}/{name}/{sha12}", f"{place}/{name}/{sha12}", f"{place}/{name}/{sha12}", ""
    if place.startswith("hf://"):
        repository = f"{place.removeprefix('hf://')}/{name}"
        location, load, revision = f"hf://{repository}@sha-{sha12}", repository, f"sha-{sha12}"
        url = f"https://huggingface.co/{repository}/tree/sha-{sha12}"
    elif not place.startswith("s3://"):
        url = Path(location).absolute().as_uri()
    receipt = Receipt(
        destination=place,
        name=name,
        digest=manifest.digest,
        location=location,
        manifest_sha256=hashlib.sha256(manifest.to_bytes()).hexdigest(),
        files=tuple(PackagedFile(**file.model_dump(include={"path", "size", "sha256"})) for file in images),
        published=False,
    )
    return Publication(receipt=receipt, latest="moved", url=url, load=load, revision=revision)


def draw(folder: Path, seed: int, prompt: str) -> RenderedImage:
    """A picture of both halves, in the folder of a version."""
    picture = Image.new("RGB", (512, 256), (236, 232, 224))
    brush = ImageDraw.Draw(picture)
    for left, shade in ((0, (150, 160, 170)), (256, (60 + 90 * seed, 110, 170 - 90 * seed))):
        brush.ellipse((left + 60, 50, left + 200, 190), fill=shade)
        brush.rectangle((left + 110, 170, left + 150, 240), fill=shade)
    data = io.BytesIO()
    picture.save(data, "PNG")
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    path = f"images/{digest[:16]}.png"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(data.getvalue())
    return RenderedImage(
        path=path, size=len(data.getvalue()), sha256=digest, width=512, height=256, prompt=prompt, seed=seed
    )


def every_page(seeded: Seeded) -> dict[str, str]:
    """Name -> path of each page."""
    manifest = seeded.shown.manifest
    assert manifest
    return {
        "adapters": "/adapters",
        "adapter": f"/adapters/{manifest.name}",
        "version": seeded.path,
        "lineage": f"{seeded.path}/lineage",
        "runs": "/runs",
        "run": f"/runs/{seeded.shown.id}",
        "refused": f"/runs/{0xE000:012x}",
        "failures": "/failures",
        "which": f"/which?digest={manifest.files[0].sha256}",
        "health": f"/health?days=14&until={DAY + timedelta(days=NIGHTS):%Y-%m-%d}",
        "api": "/api",
        "problem": "/adapters/nobody",
    }
