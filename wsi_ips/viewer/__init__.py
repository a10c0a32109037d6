"""What a run saw, in a browser: a read-only server on this machine, and the page that it serves.

The server reads what ``predict`` stored, and the slides, and loads no model. ``page/`` is built from
``viewer_page/`` (``make page``) and committed, so that an installed package needs no node.
"""
