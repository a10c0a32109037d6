"""``finetune``: a checkpoint from a manifest."""

from dataclasses import replace
from pathlib import Path

from wsi_ips.commands.held_out import HELD_OUT, measure, predict_held_out
from wsi_ips.commands.inputs import given_mpp
from wsi_ips.commands.outcome import Outcome
from wsi_ips.datasets.manifest import Manifest, read_manifest
from wsi_ips.models.encoders.fitting import fitting_tiling
from wsi_ips.progress import Progress
from wsi_ips.recipe import FinetuneJob
from wsi_ips.slides.base import named
from wsi_ips.streaming.device import pick_device
from wsi_ips.training.cross_validation import cross_validate, forget_folds, mean_and_sd, write_figures
from wsi_ips.training.feature_bags import finetune_features
from wsi_ips.training.fit import finetune
from wsi_ips.training.processes import is_first_process
from wsi_ips.training.run_state import FinetuneReport, forget_run, training_folder


def finetune_manifest(job: FinetuneJob, progress: Progress) -> Outcome:
    """Fine-tune, and say which epoch was best and which slides were left out; or cross-validate.

    A listed encoder's own patch size and resolution count where the job sets none. Raises
    :class:`wsi_ips.errors.ResultsError` while another run trains in the same folder.
    """
    job = job.model_copy(update={"tiling": fitting_tiling(job.tiling, job.model.encoder)})
    manifest = read_manifest(
        job.manifest, tasks=job.model.tasks, root=job.slides_root, need_slides=job.features is None
    )
    with training_folder(job.out):
        if job.folds is not None:
            return _folds(manifest, job, job.folds, progress)
        return _once(manifest, job, progress)


def _once(manifest: Manifest, job: FinetuneJob, progress: Progress) -> Outcome:
    if job.restart and is_first_process():
        forget_run(job.out)
    report = _train(manifest, job, job.out, progress)
    if not is_first_process():
        return Outcome([])
    best = report.history[report.best_epoch]
    figures = ", ".join(f"{name} {value:.4f}" for name, value in best.items() if name != "epoch")
    failures = [f"{slide_id}: {reason}" for slide_id, reason in report.bad.items()]
    best_epoch = f"best epoch {report.best_epoch + 1}: {figures}"
    doubts = [f"warning: {doubt}" for doubt in report.doubts]
    return Outcome.of_slides(failures, f"checkpoint {report.checkpoint}", details=[best_epoch, *doubts])


def _folds(manifest: Manifest, job: FinetuneJob, k: int, progress: Progress) -> Outcome:
    """Say how the folds did, which slides they left out, and where each slide's own prediction is."""
    if job.restart and is_first_process():
        forget_folds(job.out)
    folds = cross_validate(
        manifest,
        job,
        job.out,
        k=k,
        inner_val=job.inner_val,
        train=lambda divided, out: _train(divided, job, out, progress),
    )
    if not is_first_process():
        return Outcome([])
    lines = [f"fold {fold.number} was complete already" for fold in folds if fold.skipped]
    bad = {slide_id: reason for fold in folds for slide_id, reason in fold.bad.items()}
    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv, [record.slide_id for record in manifest.records])
    rows = predict_held_out(manifest, job, folds, slide_mpp=slide_mpp, progress=progress)
    folds = tuple(replace(fold, measured=measure(fold, rows, manifest, job.model.tasks)) for fold in folds)
    write_figures(job.out / "cv.csv", folds)
    figures = mean_and_sd([fold.measured for fold in folds])
    lines += [f"held_out_{name} {mean:.4f} ± {sd:.4f}" for name, (mean, sd) in figures.items()]
    bad |= {row.slide_id: row.error for row in rows if row.error and row.slide_id not in bad}
    failures = [named(slide_id, reason) for slide_id, reason in bad.items()]
    lines.append(f"each slide by the model that has not seen it: {job.out / HELD_OUT}")
    return Outcome.of_slides(failures, f"{k} folds in {job.out / 'cv.csv'}", details=lines)


def _train(manifest: Manifest, job: FinetuneJob, out: Path, progress: Progress) -> FinetuneReport:
    device = pick_device(job.device)
    if job.features is not None:
        return finetune_features(manifest, job, job.features, out, device=device, progress=progress)
    slide_mpp = given_mpp(job.slide_mpp, job.mpp_csv, [record.slide_id for record in manifest.records])
    return finetune(manifest, job, out, device=device, slide_mpp=slide_mpp, progress=progress)
