"""The selectors that read all patches closely are under contract; the others are in test_from_afar.py."""

from wsi_ips.testing.selectors import SelectorContract


class TestIps(SelectorContract):
    name = "ips"


class TestIpsByTheGlobalRule(SelectorContract):
    name = "ips"
    settings = {"rule": "global"}  # noqa: RUF012


class TestAll(SelectorContract):
    name = "all"
    keeps_all = True


class TestRandom(SelectorContract):
    name = "random"
    torn_at = 1
