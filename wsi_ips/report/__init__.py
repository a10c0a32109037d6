"""The report: a run as one HTML file that can be mailed, with no file beside it and no request to anywhere.

``stored_run.py`` reads what the run's folder holds, ``summary.py`` sums it up, ``cards.py`` and ``pictures.py``
show it slide by slide, and ``page.py`` writes the file.
"""
