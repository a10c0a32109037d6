"""``merge``: a whole checkpoint from one that holds adapters alone."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from wsi_ips.commands.options import Outcome, start
from wsi_ips.commands.recipe import Job
from wsi_ips.progress import Progress


class MergeJob(Job):
    """Add the adapters of a checkpoint up with the encoder's own weights, into a checkpoint that holds all."""

    command: Literal["merge"] = "merge"
    checkpoint: Path
    """The checkpoint of a training with ``model.encoder.lora``."""
    out: Path
    """The file to write, .safetensors."""
    weights: Path | None = None
    """File or folder of the encoder's own weights. None: where the training had them."""


def command(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint of a training with adapters.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The checkpoint to write, .safetensors.")],
    weights: Annotated[
        Path | None,
        typer.Option(
            help="File or folder of the encoder's own weights; default: where the training had them."
        ),
    ] = None,
) -> None:
    """Make a whole checkpoint of one that holds adapters alone; it needs no other weights then."""
    start("merge", {"checkpoint": checkpoint, "out": out, "weights": weights})


def merge(job: MergeJob, progress: Progress) -> Outcome:
    """Write the merged checkpoint, and say how far what it computes is from what the adapters computed.

    Beside it goes the model card of the training, if there is one.

    Raises:
        ConfigError: ``out`` is the checkpoint itself, or no .safetensors.
        CheckpointError: The checkpoint holds no adapters, its encoder's weights are missing or others, or the
            merged encoder computes something else.
    """
    from wsi_ips.errors import CheckpointError, ConfigError
    from wsi_ips.models.checkpoint import checkpoint_config, merge_checkpoint
    from wsi_ips.training.model_card import write_merged_card

    if job.out.suffix != ".safetensors":
        raise ConfigError(f"{job.out}: name a file that ends in .safetensors")
    if job.out.exists() and job.checkpoint.exists() and job.out.samefile(job.checkpoint):
        raise ConfigError(f"{job.out} is the checkpoint with the adapters; name another file with --out")
    if checkpoint_config(job.checkpoint).model.encoder.lora is None:
        raise CheckpointError(job.checkpoint, "holds no adapters", "it is a whole checkpoint as it is")
    if job.weights is not None and not job.weights.exists():
        raise CheckpointError(job.weights, "there is no such file or folder of weights", "see --weights")
    with progress("Merging", total=1) as advance:
        error = merge_checkpoint(job.checkpoint, job.out, base_weights=job.weights)
        card = write_merged_card(job.checkpoint, job.out)
        advance(str(job.out))
    sizes = [path.stat().st_size / 2**20 for path in (job.checkpoint, job.out)]
    said = f"features differ by {error:.1e} of their size; {sizes[0]:,.2f} MiB became {sizes[1]:,.2f} MiB"
    return Outcome([said, *([f"model card {card}"] if card else []), f"checkpoint {job.out}"])
