"""The viewer: a run's slides and maps in a browser, from a read-only server on this machine.

The server reads the slides and what ``predict`` stored, and loads no model. Start with
:func:`wsi_ips.viewer.app.create_app`. ``page/`` is built from ``viewer_page/`` (``make page``) and committed, so
that an installed package needs no node.
"""
