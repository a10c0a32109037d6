"""TIFF and the slide containers that are built on it: a file per container, asked in the order of
:mod:`wsi_ips.slides.tiff.layout`."""
