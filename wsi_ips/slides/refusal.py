"""The refusal that ends the search for a reader."""

from wsi_ips.errors import UnsupportedSlide


class DamagedSlide(UnsupportedSlide):
    """A format that is known, in a file that is cut short or contradicts itself.

    No other reader is asked: OpenSlide opens a truncated file without a word and fails hours later.
    """
