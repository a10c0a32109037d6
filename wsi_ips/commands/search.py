"""``search``: candidates of every strategy, trained on the proxy one by one."""

from wsi_ips.commands.outcome import Outcome
from wsi_ips.errors import ConfigError
from wsi_ips.evaluation.plots import check_can_plot
from wsi_ips.progress import Progress
from wsi_ips.recipe import SearchJob
from wsi_ips.search import space as counting
from wsi_ips.search.candidate import ProxyTask
from wsi_ips.search.proxy import digest, prepare, write_arrays
from wsi_ips.search.record import best_of, draw_search
from wsi_ips.search.run import claimed, search
from wsi_ips.streaming.device import pick_device


def search_networks(job: SearchJob, progress: Progress) -> Outcome:
    """Leave in ``out`` a file a candidate, ``history.csv``, ``history.png`` and ``best.yaml``.

    Raises as :func:`wsi_ips.search.run.search`, :func:`wsi_ips.search.run.claimed` and
    :func:`wsi_ips.search.proxy.prepare` do.
    """
    device = str(pick_device(job.device))
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
