"""TIFF and the slide formats that are built on it, with one file for each format.

:mod:`wsi_ips.slides.tiff.layout` tells which format a file is, and holds the reader.
"""
