"""The commands of ``wsi-ips``, one file each: its job (what it needs, as data), its face (arguments and options),
and what it does.

``application.py`` lists the commands and finds each when it is called; those of a wing lie in the wing.
``recipe.py`` makes a job of a YAML file or of a command line, and runs it. Nothing that takes long to import is
imported at the top of a command's file: ``--help`` answers at once.
"""
