"""One stored tile's bytes to pixels: a file per family of codecs. Nothing here knows of files or levels."""
