"""The hub's client does not log its retries into our messages."""

import logging

import pytest

from wsi_ips.progress import quiet_hub


def test_retries_of_the_hub_are_not_logged_and_the_level_is_put_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = logging.getLogger("huggingface_hub.utils._http")
    before = logging.getLogger("huggingface_hub").level
    with quiet_hub():
        client.warning("Retrying in 1s [Retry 1/5].")
    assert not caplog.messages
    assert logging.getLogger("huggingface_hub").level == before
    with caplog.at_level(logging.INFO), quiet_hub():
        assert client.getEffectiveLevel() <= logging.WARNING  # with --verbose they are shown
