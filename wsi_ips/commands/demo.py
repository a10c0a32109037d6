"""``demo``: everything, on slides that it draws."""

from wsi_ips.commands.outcome import Outcome
from wsi_ips.drawn.demo import run_demo
from wsi_ips.progress import Progress
from wsi_ips.recipe import DemoJob
from wsi_ips.streaming.device import pick_device
from wsi_ips.training.run_state import training_folder


def demo(job: DemoJob, progress: Progress) -> Outcome:
    """Run the demo and print its score."""
    with training_folder(job.out):
        score = run_demo(job, job.out, device=pick_device(job.device), progress=progress)
    return Outcome(
        [
            f"slide AUC {score.slide_auc:.3f} on {score.slides} held-out slides",
            f"patch AUC {score.patch_auc:.3f}: attention of lesions against normal tissue, by the outlines",
            f"{score.seconds:.0f} s; prediction {score.patches_per_second:.0f} patches/s",
            f"look at {job.out / 'predictions' / 'overlays'}",
        ]
    )
