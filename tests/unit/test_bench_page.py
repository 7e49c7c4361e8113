"""What a run of the benchmarks leaves behind: a page with tables, and a picture."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

from bench.plot import draw
from bench.render import render
from bench.row import Row
from setup.checkout import ROOT

GROWING = partial(Row.of_series, axis="groups")
ROWS = [
    asdict(row)
    for row in (
        Row.against("4 KiB writes", 50_000, "nbdkit", 100_000, "writes/s", least=1.0),
        Row.against("creating", 3.0, "1,000 no-op resources", 2.5, "s", most=1.5),
        Row.alone("mount", 0.5, "s", most=1.0),
        GROWING("groups: memory", 60, "MiB", at=1),
        GROWING("groups: memory", 150, "MiB", at=100, most=300),
        GROWING("groups: memory", 900, "MiB", at=1000),
    )
]


def test_a_figure_is_judged_by_its_goal() -> None:
    """At least, at most, alone, or not at all."""
    assert [row["met"] for row in ROWS] == [False, True, True, None, True, None]


def test_the_page_has_a_line_for_each_comparison_and_a_table_for_each_series() -> None:
    """A series' sizes are columns."""
    page = render(ROWS, "python -m bench").splitlines()
    assert "| 4 KiB writes | 50,000 writes/s | nbdkit 100,000 writes/s | 0.50 | >= 1.0 | no |" in page
    assert "| mount | 0.50 s | - | - | <= 1.0 s | yes |" in page
    assert "| groups | 1 | 100 | 1,000 | goal | met |" in page
    assert "| groups: memory | 60 MiB | 150 MiB | 900 MiB | <= 300 MiB at 100 | yes |" in page
    assert sum(line.startswith("| groups: memory") for line in page) == 1


def test_the_picture_shows_ratios_with_their_goals_and_series(tmp_path: Path) -> None:
    """The same results make the same file, so that a picture changes only when they do."""
    for name in ("one.svg", "two.svg"):
        draw(ROWS, tmp_path / name)
    told = (tmp_path / "one.svg").read_text()
    for text in ("4 KiB writes / nbdkit", "&gt;= 1.0", "groups: memory", "creating"):
        assert text in told, text
    assert told == (tmp_path / "two.svg").read_text()


def test_a_run_of_one_part_is_drawn_too(tmp_path: Path) -> None:
    """Without ratios, without series."""
    draw(ROWS[:2], tmp_path / "ratios.svg")
    draw(ROWS[3:], tmp_path / "series.svg")
    assert "nbdkit" not in (tmp_path / "series.svg").read_text()


def test_the_page_says_how_it_is_made() -> None:
    """The command is in it, and so is the picture."""
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert "make bench" in page
    assert "benchmarks.svg" in page
    assert (ROOT / "docs" / "benchmarks.svg").exists()
