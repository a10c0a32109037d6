"""Search for scale-permuted networks (Du et al. 2020, section 3.4). Nothing that reads slides imports it."""
