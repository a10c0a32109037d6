"""From the stored bytes of one tile to pixels, with one file for each family of codecs.

Nothing here knows of files or levels. Start with the protocols in :mod:`wsi_ips.slides.codecs.base`.
"""
