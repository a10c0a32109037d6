"""``data nodes``: composite lymph nodes out of real patches."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wsi_ips.commands.outcome import Outcome
from wsi_ips.datasets.manifest import SPLITS, read_manifest
from wsi_ips.drawn.lymph_nodes import LymphNodesConfig, make_lymph_nodes, tiling_of
from wsi_ips.errors import ConfigError, DatasetError
from wsi_ips.progress import Progress
from wsi_ips.storage.held_folder import held


def compose_nodes(
    out: Path,
    settings: Mapping[str, Any],
    progress: Progress,
    *,
    patches: Path,
    outlines: Path,
    processes: int = 2,
) -> Outcome:
    """Compose the slides into ``out``, and say how many there are and how to read them.

    ``settings``: of :class:`LymphNodesConfig`. Raises :class:`ConfigError` for settings that cannot be,
    :class:`DatasetError` for a folder that is not there, :class:`ResultsError` while another process writes into
    ``out``, and what :func:`make_lymph_nodes` raises.
    """
    try:
        config = LymphNodesConfig.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{first['loc'][0]}: " if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"wsi-ips data nodes: {where}{message}") from None
    if processes < 1:
        raise ConfigError(f"--processes {processes}: one at least")
    for folder in (patches, outlines):
        if not folder.is_dir():
            raise DatasetError(folder, "no such folder", "check the path")
    parts = [out / "images", out / "annotations", out / "cells"]
    with held(out, below=parts, undo=[out / "lymph_nodes.json"], results="images/*.tif"):
        manifest = make_lymph_nodes(
            out, config, patches=patches, outlines=outlines, processes=processes, progress=progress
        )
    records = read_manifest(manifest, tasks=()).records
    counts = Counter(record.split for record in records)
    splits = ", ".join(f"{split} {counts[split]}" for split in SPLITS if counts[split])
    tiling = tiling_of(config)
    return Outcome(
        [
            f"{len(records)} slides in {manifest} ({splits})",
            f"read them with --set tiling.patch_px={tiling.patch_px} --set tiling.patch_mpp={tiling.patch_mpp:g} "
            f"--set tiling.min_tissue={tiling.min_tissue:g}: each patch is a real one",
        ]
    )
