"""``finetune``: a checkpoint from a manifest."""

from wsi_ips.commands.inputs import given_mpp
from wsi_ips.commands.outcome import Outcome
from wsi_ips.datasets.manifest import read_manifest
from wsi_ips.progress import Progress
from wsi_ips.recipe import FinetuneJob
from wsi_ips.streaming.device import pick_device
from wsi_ips.training.finetune import finetune


def finetune_manifest(job: FinetuneJob, progress: Progress) -> Outcome:
    """Fine-tune, and say which epoch was best."""
    manifest = read_manifest(job.manifest, tasks=job.model.tasks, root=job.slides_root)
    report = finetune(
        manifest,
        job,
        job.out,
        device=pick_device(job.device),
        slide_mpp=given_mpp(job.slide_mpp, job.mpp_csv),
        progress=progress,
    )
    best = report.history[report.best_epoch]
    figures = ", ".join(f"{name} {value:.4f}" for name, value in best.items() if name != "epoch")
    return Outcome([f"best epoch {report.best_epoch + 1}: {figures}", f"checkpoint {report.checkpoint}"])
