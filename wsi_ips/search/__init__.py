"""Search for scale-permuted networks (Du et al. 2020, section 3.4). Nothing that reads slides imports it.

``space.py`` says what can be chosen, ``strategy.py`` who chooses, ``proxy.py`` on which task candidates are
scored, and ``run.py`` runs a search.
"""
