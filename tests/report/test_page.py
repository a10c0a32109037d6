"""The page asks nothing of anyone, believes no text, and is written slide by slide."""

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from tests.report.reported_run import Slide, stored
from wsi_ips.config import TaskConfig
from wsi_ips.errors import ResultsError
from wsi_ips.heatmaps.display_scale import colour_table
from wsi_ips.report.cards import Card, gradient, line_of, make_card
from wsi_ips.report.page import Page, settings_text, write_page
from wsi_ips.report.stored_run import Judged, StoredRun
from wsi_ips.report.summary import summarise

EVIL = "<script>alert('x')<script> & <img src=x onerror=alert(1)> \"' {{ 7 * 7 }}"
VOID = {"meta", "img", "br", "input", "rect", "link"}


class Read(HTMLParser):
    """Elements with their attributes and text; tags that do not match are an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.elements if name in attrs]


def page_of(run: StoredRun, **more: object) -> Page:
    lines = [line_of(run, slide, {}) for slide in run.slides]
    cards = (make_card(run, line, elsewhere=None, top=2, share=50_000) for line in lines if line.has_card)
    return replace(Page(run=run, summary=summarise(run), lines=lines, cards=cards), **more)  # type: ignore[arg-type]


def read(path: Path) -> Read:
    return Read(path.read_text(encoding="utf-8"))


@pytest.fixture
def evil(tmp_path: Path) -> Read:
    """Every text that a file may hold, made to break out."""
    tasks = (TaskConfig(name="<b>task</b>", classes=("<i>a</i>", "</style><script>b")),)
    run = stored(
        tmp_path,
        [
            Slide("<script>", probabilities={"<b>task</b>": {"<i>a</i>": 0.1, "</style><script>b": 0.9}},
                  error=EVIL),
            Slide(EVIL.replace("/", ""), status="failed", error=EVIL),
        ],
        tasks,
    )  # fmt: skip
    description = {**run.description, "host": EVIL, "checkpoint": {"path": EVIL, "sha256": "<" * 64},
                   "versions": {EVIL: EVIL}, "started": EVIL, "config": {EVIL: [EVIL]},
                   "checkpoints": [{"path": EVIL}, {"path": EVIL}, EVIL],
                   "calibration": {"slides": [EVIL], "split": EVIL, "risk": EVIL, "tasks": {EVIL: 1}}}  # fmt: skip
    page = page_of(replace(run, description=description), notes=[EVIL])
    judged = {"<b>task</b>": Judged(EVIL, False)}
    page = replace(page, lines=[line_of(run, run.slides[0], judged), *page.lines[1:]])
    write_page(tmp_path / "r.html", page)
    return read(tmp_path / "r.html")


def test_several_checkpoints_and_a_calibration_are_told(tmp_path: Path) -> None:
    run = stored(tmp_path, [Slide("a")])
    told = {
        "checkpoints": [{"path": "runs/a.safetensors"}, {"path": "runs/b.safetensors"}],
        "calibration": {"slides": ["x", "y"], "split": "val", "risk": 0.1, "tasks": {"label": {}}},
    }
    write_page(tmp_path / "plain.html", page_of(run))
    write_page(tmp_path / "r.html", page_of(replace(run, description={**run.description, **told})))
    assert "Probabilities are" not in read(tmp_path / "plain.html").text
    text = read(tmp_path / "r.html").text
    assert "Probabilities are its mean with runs/b.safetensors; attention is its own." in text
    assert "Probabilities are calibrated: label: on 2 slides of split val, at a risk of 0.1." in text


def test_no_text_of_a_file_becomes_markup(evil: Read) -> None:
    assert [tag for tag, _ in evil.elements].count("script") == 1
    assert not [attrs for _, attrs in evil.elements for name in attrs if name.startswith("on")]
    assert {tag for tag, _ in evil.elements}.isdisjoint(
        {"i onerror", "b2", "iframe", "object", "link", "base"}
    )
    assert "<script>" in evil.text
    assert "{{ 7 * 7 }}" in evil.text
    assert EVIL.replace('"', '"') in evil.text


def test_the_page_loads_nothing_and_runs_only_its_own_script(evil: Read, tmp_path: Path) -> None:
    for source in [*evil.attributes("src"), *evil.attributes("href")]:
        assert source.startswith(("data:image/", "#")), source
    html = (tmp_path / "r.html").read_text()
    style = html.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    script = html.rsplit("<script>", 1)[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (attrs["content"] for tag, attrs in evil.elements if attrs.get("http-equiv"))
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "http" not in re.sub(r"data:[^\"]*", "", html).replace("http-equiv", "")


def test_every_link_within_the_page_leads_somewhere(tmp_path: Path) -> None:
    run = stored(tmp_path, [Slide("a"), Slide("b", status="failed", error="x"), Slide("c", status="waiting")])
    write_page(tmp_path / "r.html", page_of(run))
    found = read(tmp_path / "r.html")
    ids = found.attributes("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in found.attributes("href")} <= set(ids)
    assert {"s1", "s2"} <= set(ids)
    assert "s3" not in ids  # an unfinished slide has a row, no card


def test_slides_are_written_one_after_the_other(tmp_path: Path) -> None:
    """What is said of a slide is in the file before the next is drawn: many slides need one's memory."""
    run = stored(tmp_path, [Slide(f"s{place}") for place in range(4)])
    page = page_of(run)
    sizes: list[int] = []

    def cards() -> Iterator[Card]:
        for line in page.lines:
            sizes.extend(path.stat().st_size for path in tmp_path.glob(".r.*.partial.html"))
            yield replace(Card(line, facts=["x" * 200_000]))

    write_page(tmp_path / "r.html", replace(page, cards=cards()))
    assert len(sizes) == 4
    assert all(later - earlier >= 150_000 for earlier, later in pairwise(sizes))


def test_a_failure_while_drawing_leaves_nothing(tmp_path: Path) -> None:
    run = stored(tmp_path, [Slide("a")])
    (tmp_path / "r.html").write_text("the report of yesterday")

    def cards() -> Iterator[Card]:
        yield make_card(run, page.lines[0], elsewhere=None, top=1, share=1000)
        raise OSError(28, "No space left on device")

    page = page_of(run)
    with pytest.raises(ResultsError, match=r"r\.html: cannot be written \(No space left"):
        write_page(tmp_path / "r.html", replace(page, cards=cards()))
    assert (tmp_path / "r.html").read_text() == "the report of yesterday"
    assert not list(tmp_path.glob(".*partial*"))


def test_a_name_that_is_no_text_costs_no_report(tmp_path: Path) -> None:
    """A file name that is not UTF-8 comes with surrogates."""
    run = stored(tmp_path, [Slide("a")])
    run = replace(
        run, slides=[replace(run.slides[0], slide_id="a\udcff\x00\u202eb", status="failed", error="x")]
    )
    write_page(tmp_path / "r.html", page_of(run))
    assert "a\\udcff" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_settings_are_a_recipe_and_colours_go_from_low_to_high() -> None:
    assert (
        settings_text({"tiling": {"patch_px": 256, "patch_mpp": 0.5}})
        == "tiling:\n  patch_px: 256\n  patch_mpp: 0.5\n"
    )
    assert len(settings_text({"a": "x" * 10**6})) < 100_000
    stops = gradient(colour_table("blue_yellow")).split(", ")
    assert len(stops) == 13
    brightness = [sum(int(stop[at : at + 2], 16) for at in (1, 3, 5)) for stop in stops]
    assert brightness == sorted(brightness)
