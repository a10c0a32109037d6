"""``finetune``: a checkpoint from a manifest."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import typer
from pydantic import Field, model_validator

from wsi_ips.commands.options import (
    Coords,
    Device,
    EncoderName,
    EncoderWeights,
    FromCoords,
    MppCsv,
    Out,
    Outcome,
    Profile,
    Recipe,
    Set,
    SlideMppOption,
    start,
)
from wsi_ips.commands.recipe import Job
from wsi_ips.commands.slides import PatchesOfJob, Resolution, given_mpp
from wsi_ips.config import FinetuneConfig
from wsi_ips.errors import count
from wsi_ips.progress import Progress

if TYPE_CHECKING:
    from wsi_ips.datasets.manifest import Manifest
    from wsi_ips.tiling.patches import FindPatches
    from wsi_ips.training.run_state import FinetuneReport


class FinetuneJob(FinetuneConfig, PatchesOfJob, Resolution, Job):
    """Learn from the slide labels of a manifest. Without ``coords`` coordinates are kept in ``out``."""

    command: Literal["finetune"] = "finetune"
    """What the recipe is for."""
    manifest: Path
    """The table of slides: a CSV with the columns slide_id, case_id (the patient), split (train, val or test),
    path, and the labels.
    """
    slides_root: Path | None = None
    """Folder that the manifest's paths are below, CAMELYON's in either layout; none: the manifest's own."""
    features: Path | None = None
    """Folder of stored features (CLAM's, TRIDENT's or STAMP's), to learn from instead of the slides."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validate by case with this many folds of the train and val slides; none: train once."""
    inner_val: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """With ``folds``: each fold sets aside this share of its training cases and chooses its epoch on them, so that
    the epoch is not chosen on the cases that the fold is measured on; 0: it is chosen by the training loss."""
    out: Path
    """Folder of the run."""
    device: str = "auto"
    """Where the network runs: auto (a GPU if there is one), cpu, cuda, cuda:1 or mps."""
    restart: bool = False
    """Begin anew where ``out`` holds a run, instead of going on with it."""
    profile: bool = False
    """Print where the time went, and write ``timeline.json``."""

    @model_validator(mode="after")
    def _features_are_read_by_their_encoder(self) -> Self:
        if (self.features is not None) != (self.model.encoder.name == "features"):
            raise ValueError(
                "features: DIR and model.encoder {name: features, features: <width>} go together; "
                "see pipelines/finetune_features.yaml"
            )
        if self.features is not None and (self.from_coords or self.coords):
            raise ValueError("features have their own coordinates: from_coords and coords go with slides")
        return self


def command(
    manifest: Annotated[Path, typer.Argument(help="CSV: slide_id,case_id,label,split,path.")],
    out: Out,
    slides_root: Annotated[
        Path | None, typer.Option("--slides", help="Folder that the manifest's paths are below.")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Folder of features stored by CLAM, TRIDENT or STAMP, instead of slides."),
    ] = None,
    from_coords: FromCoords = None,
    coords: Coords = None,
    encoder: EncoderName = None,
    weights: EncoderWeights = None,
    folds: Annotated[int | None, typer.Option(help="Cross-validate by case, with so many folds.")] = None,
    restarts: Annotated[
        int | None,
        typer.Option(help="Beginnings of the head start or on --features; the best one goes on (default 1)."),
    ] = None,
    recipe: Recipe = None,
    set_: Set = None,
    restart: Annotated[
        bool | None, typer.Option("--restart", help="Begin anew where OUT holds a run, not go on with it.")
    ] = None,
    profile: Profile = None,
    device: Device = None,
    slide_mpp: SlideMppOption = None,
    mpp_csv: MppCsv = None,
) -> None:
    """Fine-tune encoder, selection and attention from slide labels; goes on where a killed run was."""
    flags = {"manifest": manifest, "out": out, "slides_root": slides_root, "features": features,
             "from_coords": from_coords, "coords": coords, "folds": folds, "restart": restart,
             "profile": profile, "device": device,
             "slide_mpp": slide_mpp, "mpp_csv": mpp_csv}  # fmt: skip
    chosen = [] if restarts is None else [f"training.restarts={restarts}"]
    sections = {"model.encoder": {"name": encoder, "weights": weights}}
    start("finetune", flags, recipe=recipe, overrides=[*(set_ or []), *chosen], sections=sections)


def finetune_manifest(job: FinetuneJob, progress: Progress) -> Outcome:
    """Fine-tune, and say which epoch was best and which slides were left out; or cross-validate.

    A listed encoder's own patch size and resolution count where the job sets none. Raises
    :class:`wsi_ips.errors.ResultsError` while another run trains in the same folder.
    """
    from wsi_ips.datasets.manifest import read_manifest
    from wsi_ips.models.encoders.fitting import fitting_tiling
    from wsi_ips.timeline import recording
    from wsi_ips.training.processes import is_first_process
    from wsi_ips.training.run_state import training_folder

    job = job.model_copy(update={"tiling": fitting_tiling(job.tiling, job.model.encoder)})
    manifest = read_manifest(
        job.manifest, tasks=job.model.tasks, root=job.slides_root, need_slides=job.features is None
    )
    with (
        training_folder(job.out),
        recording(job.out, command="finetune", on=job.profile, joins=is_first_process()) as recorded,
    ):
        folds = job.folds
        outcome = _once(manifest, job, progress) if folds is None else _folds(manifest, job, folds, progress)
    return replace(outcome, lines=[*recorded.table(), *outcome.lines])


def _once(manifest: "Manifest", job: FinetuneJob, progress: Progress) -> Outcome:
    from wsi_ips.training.processes import is_first_process
    from wsi_ips.training.run_state import forget_run

    if job.restart and is_first_process():
        forget_run(job.out)
    report = _train(manifest, job, job.out, progress)
    if not is_first_process():
        return Outcome([])
    best = report.history[report.best_epoch]
    # Adding 0 makes -0.0, to which a small negative number is rounded, 0.0.
    figures = ", ".join(
        f"{name} {round(value, 4) + 0:.4f}" for name, value in best.items() if name != "epoch"
    )
    failures = [f"{slide_id}: {reason}" for slide_id, reason in report.bad.items()]
    place = f"{report.best_epoch + 1} of {len(report.history)} (epoch {best['epoch']:g} in history.csv)"
    best_epoch = f"best epoch {place}: {figures}"
    doubts = [f"warning: {doubt}" for doubt in report.doubts]
    return Outcome.of_slides(failures, f"checkpoint {report.checkpoint}", details=[best_epoch, *doubts])


def _folds(manifest: "Manifest", job: FinetuneJob, k: int, progress: Progress) -> Outcome:
    """Say how the folds did, which slides they left out, and where each slide's own prediction is."""
    from wsi_ips.inference.held_out import HELD_OUT, measure, predict_held_out
    from wsi_ips.slides.base import named
    from wsi_ips.tiling.kept_coords import given_coords
    from wsi_ips.training.cross_validation import cross_validate, forget_folds, mean_and_sd, write_figures
    from wsi_ips.training.learned_from import LearnedFrom
    from wsi_ips.training.model_card import write_folds_card
    from wsi_ips.training.processes import is_first_process

    if job.restart and is_first_process():
        forget_folds(job.out)
    find = _find_patches(job)
    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv, [record.slide_id for record in manifest.records])
    read = manifest.split("train+val")
    folds = cross_validate(
        manifest,
        job,
        job.out,
        k=k,
        inner_val=job.inner_val,
        train=lambda divided, out: _train(divided, job, out, progress),
        coords=given_coords(find, [record.slide_id for record in read]),
        learned_from=LearnedFrom.now(read, job, features=job.features, slide_mpp=slide_mpp),
    )
    if not is_first_process():
        return Outcome([])
    lines = [f"fold {fold.number} was complete already" for fold in folds if fold.skipped]
    bad = {slide_id: reason for fold in folds for slide_id, reason in fold.bad.items()}
    rows = predict_held_out(
        manifest, job, folds, out=job.out, features=job.features, device=job.device, slide_mpp=slide_mpp,
        find_patches=find, progress=progress,
    )  # fmt: skip
    folds = tuple(replace(fold, measured=measure(fold, rows, manifest, job.model.tasks)) for fold in folds)
    write_figures(job.out / "cv.csv", folds)
    figures = mean_and_sd([fold.measured for fold in folds])
    write_folds_card(job.out, manifest, job, figures, k=k)
    lines += [f"held_out_{name} {mean:.4f} ± {sd:.4f}" for name, (mean, sd) in figures.items()]
    bad |= {row.slide_id: row.error for row in rows if row.error and row.slide_id not in bad}
    failures = [named(slide_id, reason) for slide_id, reason in bad.items()]
    lines.append(f"each slide by the model that has not seen it: {job.out / HELD_OUT}")
    return Outcome.of_slides(failures, f"{count(k, 'fold')} in {job.out / 'cv.csv'}", details=lines)


def _train(manifest: "Manifest", job: FinetuneJob, out: Path, progress: Progress) -> "FinetuneReport":
    from wsi_ips.streaming.device import pick_device
    from wsi_ips.training.feature_bags import finetune_features
    from wsi_ips.training.fit import finetune

    device = pick_device(job.device)
    if job.features is not None:
        return finetune_features(manifest, job, job.features, out, device=device, progress=progress)
    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv, [record.slide_id for record in manifest.records])
    return finetune(
        manifest,
        job,
        out,
        device=device,
        slide_mpp=slide_mpp,
        find_patches=_find_patches(job),
        progress=progress,
    )


def _find_patches(job: FinetuneJob) -> "FindPatches":
    """Coordinates are kept in the folder of the run (with ``folds``: of all folds), so that a later start, other
    processes and folds find them."""
    from wsi_ips.tiling.kept_coords import COORDS, patches_from

    raster = job.model.attention.positions == "raster"
    kept = job.coords or (None if job.from_coords else job.out / COORDS)
    return patches_from(job.tiling, coords=kept, from_coords=job.from_coords, raster=raster)
