"""``search``: scale-permuted networks by trial, candidates of every strategy trained on the proxy one by one."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from wsi_ips.commands.options import Device, Outcome, Set, start
from wsi_ips.commands.recipe import Job
from wsi_ips.errors import ConfigError
from wsi_ips.progress import Progress
from wsi_ips.search.config import SearchConfig


class SearchJob(SearchConfig, Job):
    """Search for a scale-permuted network by a proxy task."""

    command: Literal["search"] = "search"
    out: Path
    device: str = "auto"


def command(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="A YAML recipe, such as pipelines/spinenet_search.yaml, which comes with wsi_ips."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write to; default: the recipe's.")
    ] = None,
    candidates: Annotated[int | None, typer.Option(help="Of each strategy, in all.")] = None,
    device: Device = None,
    set_: Set = None,
) -> None:
    """Search for a SpineNet by a proxy task; goes on where a killed search was."""
    flags = {"out": out, "candidates": candidates, "device": device}
    start("search", flags, recipe=recipe, overrides=set_)


def search_networks(job: SearchJob, progress: Progress) -> Outcome:
    """Leave in ``out`` a file a candidate, ``history.csv``, ``history.png`` and ``best.yaml``.

    Raises :class:`DatasetError`, :class:`ManifestError` or :class:`AnnotationError` for the proxy's data,
    :class:`ConfigError` for a folder that holds another search, :class:`ResultsError` for a broken record or a
    folder in use, and :class:`TrainingError` if no candidate succeeded.
    """
    from wsi_ips.evaluation.plots import check_can_plot
    from wsi_ips.search import space as counting
    from wsi_ips.search.candidate import ProxyTask
    from wsi_ips.search.proxy import digest, prepare, write_arrays
    from wsi_ips.search.run import best_of, claimed, draw_search, search
    from wsi_ips.search.strategy import build_strategy
    from wsi_ips.streaming.device import pick_device

    device = str(pick_device(job.device))
    for name in job.strategies:  # which says at once what is not installed
        build_strategy(name, job)
    arrays = prepare(job.proxy)
    data = job.out / "proxy.npz"
    with claimed(job.out, job, data=digest(arrays), device=device):
        write_arrays(data, arrays)
        found = search(job, job.out, ProxyTask(job.proxy, data, device, job.timeout_s), progress)
        notes = []
        try:
            check_can_plot()
            draw_search(job.out / "history.png", found, title="Best network so far on the proxy task")
        except ConfigError as error:
            notes.append(f"no history.png: {error}")
    lines = [f"{counting.size(job.space):.1e} sequences of choices"]
    for name, its in found.items():
        best, failed = best_of(its), sum(one.score is None for one in its)
        score = "none" if best is None else f"{best.score:.4f} (candidate {best.number})"
        lines.append(f"{name}: best of {len(its)} candidates {score}, {failed} failed")
    return Outcome([*lines, *notes, f"the best of all: {job.out / 'best.yaml'}"])
