"""A run whose head tells what patches contribute, as a page."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.report.reported_run import Slide, result_of, stored
from wsi_ips.heatmaps.display_scale import colour_table
from wsi_ips.heatmaps.maps import choose_heat
from wsi_ips.inference.results import SlideResult, write_result
from wsi_ips.report.cards import gradient, line_of, make_card
from wsi_ips.report.pictures import top_places


def telling(slide: Slide) -> SlideResult:
    result = result_of(slide, "")
    told = np.array([[-0.5, 0.5], [0.25, -0.25]], np.float32)
    return replace(result, kept_ids_M=result.coords.ids_N[[5, 9]], kept_contributions_MK=told)


def test_a_card_shows_contributions_and_says_so(tmp_path: Path) -> None:
    slide = Slide("a")
    run = stored(tmp_path, [slide])
    write_result(run.folder.attention("a"), telling(slide))
    card = make_card(run, line_of(run, run.slides[0], {}), elsewhere=None, top=3, share=200_000)
    assert card.legend is not None
    assert card.legend.kind == "contribution"
    assert card.legend.shown.startswith("Contribution to tumor, task label; 2 patches of 176 kept, 1 add 0.5")
    assert card.legend.ticks == ["−1", "−0.0704", "0", "+0.0704", "+1"]
    assert card.legend.most == "Add most to tumor, in logits"
    middle = "#{:02x}{:02x}{:02x}".format(*colour_table("blue_red")[round(255 / 2)])
    assert card.legend.gradient.split(", ")[6] == middle
    assert card.legend.gradient == gradient(colour_table("blue_red"))
    assert len(card.rings) == 0, "the slide is gone, so no patch is shown"


def test_patches_that_take_or_add_nothing_are_not_shown_as_those_that_add_most() -> None:
    places = top_places(choose_heat(telling(Slide("a"))), 9)
    assert [(place.rank, place.value) for place in places] == [(1, 0.5)]
