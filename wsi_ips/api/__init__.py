"""What ``import wsi_ips as wi`` offers, one file for each subject. The names are listed in
``wsi_ips/__init__.py``.

Everything here is thin: it opens slides, calls what the commands call, and gives the answer plain names.
"""
