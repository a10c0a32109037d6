"""Several beginnings of one training: what validation prefers goes on.

Where the labels say little of where to look, the random weights of the beginning decide whether attention finds
it. On stored features a beginning costs seconds, so that several can be tried, and how many of them learned says
how far the result can be trusted.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from wsi_ips.config import FinetuneConfig
from wsi_ips.files import whole_file, whole_table
from wsi_ips.training.processes import is_first_process
from wsi_ips.training.record import BEST_NAME, LAST_NAME, FinetuneReport, merit
from wsi_ips.training.run_state import STARTS

TABLE = "starts.csv"
SEED_STEP = 10_007
"""Between the seeds of two beginnings: users number theirs 0, 1, 2."""


def best_start(
    config: FinetuneConfig, out: Path, train: Callable[[FinetuneConfig, Path], FinetuneReport]
) -> FinetuneReport:
    """Train ``config.training.restarts`` times, each below ``out/starts``, and put the best one's files into
    ``out``.

    train: what trains one beginning into a folder, or says how it ended there where it did already. The best is
    the one whose best epoch ``training.monitor`` prefers, of equals the first. Writes ``starts.csv``, a line a
    beginning.
    """
    reports = []
    for number in range(config.training.restarts):
        training = config.training.model_copy(
            update={"restarts": 1, "seed": config.training.seed + number * SEED_STEP}
        )
        reports.append(train(config.model_copy(update={"training": training}), out / STARTS / str(number)))
    monitor = config.training.monitor
    best = max(range(len(reports)), key=lambda number: merit(best_row(reports[number]), monitor))
    if is_first_process():
        for name in (BEST_NAME, LAST_NAME, "history.csv", "run.json"):
            with whole_file(out / name) as partial:
                shutil.copyfile(out / STARTS / str(best) / name, partial)
        _write_table(out / TABLE, reports, chosen=best)
    return FinetuneReport(
        out / BEST_NAME,
        reports[best].best_epoch,
        reports[best].history,
        {bag_id: why for report in reports for bag_id, why in report.bad.items()},
        reports[best].doubts,
    )


def best_row(report: FinetuneReport) -> Mapping[str, float]:
    """The best epoch's line of the history."""
    return report.history[report.best_epoch]


def _write_table(path: Path, reports: list[FinetuneReport], *, chosen: int) -> None:
    names = list(dict.fromkeys(name for report in reports for name in best_row(report)))
    with whole_table(path) as writer:
        writer.writerow(["start", "chosen", *names])
        for number, report in enumerate(reports):
            row = best_row(report)
            figures = [f"{row[name]:.6g}" if name in row else "" for name in names]
            writer.writerow([number, "yes" if number == chosen else "no", *figures])
