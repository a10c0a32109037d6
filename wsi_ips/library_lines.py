"""Lines that libraries write about odd files, which nobody asked for: kept for ``--verbose``.

What of it matters is said by the readers, in one error that names the file.
"""

import logging
import warnings

LOGGERS = (
    "tifffile",
    "tiffslide",
    "fsspec",
    "fsspec.http",
    "PIL.Image",
    "PIL.PngImagePlugin",
    "PIL.TiffImagePlugin",
)
MODULES = r"(PIL|tifffile|tiffslide|fsspec|zarr|numcodecs|imagecodecs|openslide)(\.|$)"


class OnlyIfVerbose(logging.Filter):
    """Lets lines through where the program logs what happens, whatever process this is."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See :meth:`logging.Filter.filter`."""
        return logging.getLogger().isEnabledFor(logging.INFO)


def silence_libraries() -> None:
    """Log lines and warnings of the libraries that read files are shown with ``--verbose`` only."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, OnlyIfVerbose) for one in logger.filters):
            logger.addFilter(OnlyIfVerbose())
    warnings.filterwarnings("ignore", module=MODULES)
