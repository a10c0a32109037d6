"""The next slide's patches, found while this one's are encoded; by a process of its own.

Where a network works on a GPU, the CPU has time to open the next slide and to look for its tissue. A damaged slide
may crash native code meanwhile, and that must not cost the slide that is being encoded. What the process needs is
imported from here, and PyTorch is not: it starts in a second.
"""

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from wsi_ips.inference.alone import Died, NotStarted, alone
from wsi_ips.location import Location
from wsi_ips.slides.registry import open_slide
from wsi_ips.tiling.find_patches import FindPatches
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.units import Mpp

if TYPE_CHECKING:
    from wsi_ips.inference.predict import PreparedSlide
    from wsi_ips.inference.slide_work import SlideJob, SlideWork

Prepare = Callable[[], "PreparedSlide"]
_Task = tuple[FindPatches, Location, str, Mpp | None]
_Found = tuple[PatchCoords, float]


def looked_ahead(
    jobs: "Sequence[SlideJob]", work: "SlideWork"
) -> "Generator[tuple[SlideJob, Prepare | Died | None], None, None]":
    """Each job with a call that gives its slide, or raises why there is none; while the caller has one, the next
    one's patches are looked for.

    None: nobody has looked ahead, as for the first. :class:`Died`: the process that did so died. Whether it was
    the slide's fault, or memory was short, can only be told when nothing else is going on.
    """
    coming: Future[_Found] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="wsi_ips-ahead") as pool:
        for number, job in enumerate(jobs):
            current, coming = coming, None
            prepare = None if current is None else _outcome(current, job, work)
            if number + 1 < len(jobs):
                following = jobs[number + 1]
                task: _Task = (work.predictor.find_patches, following.path, following.slide_id, following.mpp)
                coming = pool.submit(alone, _find, task)
            yield job, prepare


def _find(task: _Task) -> _Found:
    """A slide's patches, and the seconds that it took to find them."""
    find_patches, location, slide_id, mpp = task
    started = time.perf_counter()
    with open_slide(location) as slide:
        return find_patches(slide, slide_id=slide_id, mpp=mpp), time.perf_counter() - started


def _outcome(found: "Future[_Found]", job: "SlideJob", work: "SlideWork") -> Prepare | Died | None:
    try:
        coords, seconds = found.result()
    except Died as death:
        return death
    except NotStarted:
        return None
    except Exception as error:  # noqa: BLE001 - whatever a decoder may raise is this slide's failure
        return _raising(error)
    return lambda: work.predictor.opened(job.path, coords, seconds=seconds)


def _raising(error: Exception) -> Prepare:
    def prepare() -> "PreparedSlide":
        raise error

    return prepare
