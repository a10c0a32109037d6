"""Whether one slide goes by two ids: by its place in the file system, and by its contents."""

import filecmp
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

from wsi_ips.fingerprint import fingerprint


def same_slides(slides: Mapping[str, Path]) -> Iterator[tuple[str, str, str]]:
    """(id, id, how that is known) of slides that are the same, in the order of ``slides``.

    Links are followed. Of files of the same length the samples of a fingerprint are compared, and where these are
    the same, all bytes. Of folders (Zarr, DICOM) the place alone is compared: their files' names and headers say
    too little.
    """
    first_at: dict[Path, str] = {}
    by_length: dict[int, list[str]] = {}
    for slide_id, path in slides.items():
        place = path.resolve()
        if place in first_at:
            yield first_at[place], slide_id, f"both are {place}"
            continue
        first_at[place] = slide_id
        if place.is_file() and (length := place.stat().st_size):
            by_length.setdefault(length, []).append(slide_id)
    for ids in by_length.values():
        known = {slide_id: fingerprint([slides[slide_id]]) for slide_id in ids} if len(ids) > 1 else {}
        for one, other in combinations(known, 2):
            if known[one] == known[other] and filecmp.cmp(slides[one], slides[other], shallow=False):
                yield one, other, f"{slides[one]} and {slides[other]} have the same contents"
