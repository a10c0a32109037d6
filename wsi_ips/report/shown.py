"""Which slides of a large run its report shows, and what it says of that.

:func:`shown_slides` chooses the rows of the table, :func:`with_room` those of them that have a card. A page of
100,000 rows is 100 MB, which no mail takes and no browser opens in reasonable time. The figures at the top of a
report are those of all slides; the tables in the run's folder hold every one of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from wsi_ips.report.cards import Line
from wsi_ips.report.pictures import share_of_a_slide
from wsi_ips.report.stored_run import Judged, StoredSlide

MOST_ROWS = 1000
"""The most slides in the table of a report."""
MOST_CARDS = 400
"""The most slides with a card, where there is no room for the pictures of all."""


def shown_slides(
    slides: Sequence[StoredSlide], judged: Mapping[str, Mapping[str, Judged]]
) -> Sequence[StoredSlide]:
    """The slides of the table, in the run's order: all, or of more than 1,000 those that matter most.

    These are the slides that failed, then those that were called wrong, then the others in the run's order.
    ``judged`` maps slide ids to {task: verdict}.
    """
    if len(slides) <= MOST_ROWS:
        return slides
    chosen = sorted(slides, key=lambda slide: _rank(slide, judged.get(slide.slide_id, {})))[:MOST_ROWS]
    return sorted(chosen, key=lambda slide: slide.number)


def with_room(lines: Sequence[Line]) -> Sequence[Line]:
    """The same lines, of which no more have a card than there is room for pictures."""
    with_card = [line for line in lines if line.has_card]
    if share_of_a_slide(len(with_card)):
        return lines
    verdicts = {id(line): {one.task: one.judged for one in line.answers if one.judged} for line in with_card}
    first = sorted(with_card, key=lambda line: _rank(line.slide, verdicts[id(line)]))[:MOST_CARDS]
    kept = {line.slide.number for line in first}
    return [replace(line, has_card=line.slide.number in kept) for line in lines]


def left_out(slides: int, lines: Sequence[Line]) -> list[str]:
    """What the report says of the slides that it does not show. ``slides``: how many the run has."""
    order = "first those that failed, then those that were called wrong, then others in the run's order"
    cards = sum(line.has_card for line in lines)
    if len(lines) < slides:
        return [
            f"The table shows {len(lines):,} of {slides:,} slides, and pictures of {cards:,}: {order}. All slides "
            "are in predictions.csv and slides.csv of the run, and in wsi-ips view. The figures are of all slides."
        ]
    with_card = sum(line.slide.status != "unfinished" for line in lines)
    return (
        [f"There is room for pictures of {cards:,} of {slides:,} slides: {order}."]
        if cards < with_card
        else []
    )


def _rank(slide: StoredSlide, verdicts: Mapping[str, Judged]) -> int:
    if slide.status == "failed":
        return 0
    if any(verdict.correct is False for verdict in verdicts.values()):
        return 1
    return 2 if slide.status == "ok" else 3
