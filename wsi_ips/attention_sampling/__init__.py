"""Attention sampling (Katharopoulos and Fleuret, ICML 2019, arXiv 1905.03711) as functions on tensors.

Knows nothing of networks, images or slides: see :mod:`wsi_ips.models.sampling_net` for the first.
"""
