"""How a folder of slides is shared out."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from wsi_ips.config.section import Section


class BatchConfig(Section):
    """Where slides are worked on. None of it changes a result, but for ``threads``: sums of floats have an order,
    so that another number of threads may change a last bit."""

    workers: PositiveInt | None = None
    """Processes that work on a slide each; none: one per GPU where there are several, else this process alone."""
    threads: PositiveInt | None = None
    """CPU threads of a worker, to compute and to decode; none: workers of our own share out the cores, and any
    other process does as it is used to."""
    scheduler: str | None = None
    """Address of a running dask scheduler (``tcp://host:8786``) whose workers do it; none: workers of our own."""
    retries: NonNegativeInt = 2
    """How often a slide is given to another worker after the one that had it died."""
    on_error: Literal["report", "stop"] = "report"
    """``report``: a slide that fails becomes a row, the others finish. ``stop``: end with the first failure, once
    the slides that others work on are done."""
    shard_patches: PositiveInt | None = None
    """Slides of more patches are scored in parts by several workers (``selection.rule: global`` only); none:
    never."""
