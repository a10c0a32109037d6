"""Where a run folder says that a slide is, and whether that may be opened.

A run folder may come from somebody else. What it names on this machine is read, as far as the user may read it; a
URL is not opened unless the user allows it: the request alone would tell its host who looks at the run, and
from where, and it could be sent to any service inside the user's network.
"""

from wsi_ips.errors import ResultsError
from wsi_ips.location import Location, Url, locate


def stored_location(text: str, *, open_urls: bool) -> Location:
    """``text``, as ``predict`` stored it, as a path or, with ``open_urls``, as a URL.

    Raises :class:`ResultsError` for a URL otherwise.
    """
    location = locate(text)
    if isinstance(location, Url) and not open_urls:
        raise ResultsError(
            location,
            "is a URL that the run folder names, and those are not opened unasked",
            "give --open-urls if you trust the run, or name the slides with --slides",
        )
    return location
