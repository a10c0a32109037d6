"""What every reader, encoder, aggregator, selector, exporter and tissue segmenter must do, as classes for pytest.

A package that adds one of them subclasses its contract in a test, says in a fixture or an attribute which one is
meant, and pytest runs everything that wsi_ips relies on:

==================================  ==================================================
module                              contract
==================================  ==================================================
:mod:`wsi_ips.testing.readers`      ``ReaderContract``, ``OneLevelContract``
:mod:`wsi_ips.testing.encoders`     ``EncoderContract``
:mod:`wsi_ips.testing.aggregators`  ``AggregatorContract``
:mod:`wsi_ips.testing.selectors`    ``SelectorContract``
:mod:`wsi_ips.testing.exporters`    ``ExporterContract``
:mod:`wsi_ips.testing.segmenters`   ``SegmenterContract``
==================================  ==================================================

``docs/extending.md`` has an example of each. Needs pytest (``pip install pytest``), which nothing else in wsi_ips
imports; and nothing else in wsi_ips imports this package.
"""

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{name}"
        for name in (
            "aggregators",
            "encoders",
            "exporters",
            "own_names",
            "readers",
            "segmenters",
            "selectors",
        )
    )
)
