"""Charts: the right marks in the right places, for any data, as well-formed SVG that stands alone."""

import itertools
import re
import time
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.reporting import Series, bar_chart, histogram_chart, line_chart, share_chart
from stablelm.reporting.charts import decimate

SVG = "{http://www.w3.org/2000/svg}"
NAN, INF = float("nan"), float("inf")


def chart(*series, **options):
    text = line_chart(series, **{"title": "T", "x_label": "step", "y_label": "loss", **options})
    return ElementTree.fromstring(text)


def texts(svg) -> list[str]:
    return ["".join(t for t in e.itertext()) for e in svg.iter(f"{SVG}text")]


def paths(svg) -> list[list[tuple[float, float]]]:
    """The points of every run of every data line."""
    data = [p.get("d") for p in svg.iter(f"{SVG}path") if "stroke-width:1.6" in p.get("style", "")]
    runs = [run for d in data for run in d.split("M") if run]
    return [[(float(x), float(y)) for x, y in re.findall(r"(\S+) (\S+)", run)] for run in runs]


def dots(svg) -> list[tuple[float, float]]:
    return [(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter(f"{SVG}circle") if c.get("r") != "4"]


def test_points_lie_in_proportion():
    (run,) = paths(chart(Series("a", [0, 50, 100], [1, 2, 3])))
    (x0, y0), (x1, y1), (x2, y2) = run
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert x0 < x1 < x2 < 720
    assert y0 > y1 > y2 > 0


def test_a_log_axis_puts_equal_ratios_at_equal_distances():
    (run,) = paths(chart(Series("a", [0, 1, 2], [1, 10, 100]), log_y=True))
    assert run[0][1] - run[1][1] == pytest.approx(run[1][1] - run[2][1], abs=0.11)


@pytest.mark.parametrize("hole", [NAN, INF, -INF])
def test_gaps_stay_gaps(hole):
    runs = paths(chart(Series("a", range(6), [1, 2, hole, hole, 3, 4])))
    assert [len(run) for run in runs] == [2, 2]


def test_zero_and_below_are_gaps_on_a_log_axis():
    assert [len(r) for r in paths(chart(Series("a", range(5), [1, 2, 0, 3, 4]), log_y=True))] == [2, 2]
    assert [len(r) for r in paths(chart(Series("a", range(5), [1, 2, 0, 3, 4])))] == [5]


def test_a_lonely_point_is_a_dot():
    svg = chart(Series("a", range(5), [1, NAN, 2, NAN, 3]))
    assert paths(svg) == []
    assert len(dots(svg)) == 3
    assert len(dots(chart(Series("a", [7], [7])))) == 1


@pytest.mark.parametrize(
    "series",
    [
        [],
        [Series("a", [], [])],
        [Series("a", [1, 2], [NAN, NAN])],
        [Series("a", [NAN], [1])],
        [Series("a", [1], [INF])],
    ],
)
@pytest.mark.parametrize("log_y", [False, True])
def test_nothing_to_show_says_so(series, log_y):
    svg = chart(*series, log_y=log_y)
    assert "no data" in texts(svg)
    assert svg.find(f"{SVG}desc").text == "no data"


def test_a_spike_of_one_step_in_a_million_is_drawn():
    y = np.sin(np.arange(1_000_000) / 1000)
    y[123_456], y[765_432] = 9.0, -9.0
    start = time.perf_counter()
    (run,) = paths(chart(Series("a", np.arange(1_000_000), y)))
    assert time.perf_counter() - start < 5
    heights = [point[1] for point in run]
    assert len(run) < 4 * 720
    assert min(heights) < sorted(heights)[1] - 50
    assert max(heights) > sorted(heights)[-2] + 50
    assert run[0][0] == min(x for x, _ in run)
    assert run[-1][0] == max(x for x, _ in run)


def test_a_million_points_with_holes_stay_small():
    y = np.where(np.arange(1_000_000) % 2, 1.0, NAN)
    y[500_000:600_000] = NAN
    text = line_chart([Series("a", np.arange(1_000_000), y)], title="T", x_label="x", y_label="y")
    assert len(text) < 200_000
    assert len(paths(ElementTree.fromstring(text))) == 2
    scattered = Series("b", np.arange(1_000_000), np.arange(1_000_000) % 7, "points")
    assert len(line_chart([scattered], title="T", x_label="x", y_label="y")) < 5_000_000


def test_decimation_keeps_first_lowest_highest_last_of_each_column():
    x = np.repeat([0.0, 1.0], 100) + np.tile(np.arange(100) / 200, 2)
    y = np.zeros(200)
    y[[3, 150]], y[[7, 160]] = -1, 1
    kept_x, kept_y = decimate(x, y)
    assert set(kept_x.tolist()) == set(x[[0, 3, 7, 99, 100, 150, 160, 199]].tolist())
    assert sorted(kept_y.tolist()) == [-1, -1, 0, 0, 0, 0, 1, 1]


def test_few_points_are_all_kept():
    x = np.arange(100.0)
    assert decimate(x, x)[0].tolist() == x.tolist()


def test_unordered_steps_are_drawn_in_order():
    """A resumed run may write its steps twice."""
    (run,) = paths(chart(Series("a", [0, 1, 2, 1, 2, 3], [5, 4, 3, 4, 3, 2])))
    xs = [x for x, _ in run]
    assert xs == sorted(xs)
    assert len(run) == 6


def test_points_and_their_legend():
    svg = chart(Series("held-out", [0, 1], [1, 2], "points"), Series("train", [0, 1], [1, 2]))
    assert len(dots(svg)) == 2
    assert {"held-out", "train", "loss", "step", "T"} <= set(texts(svg))
    assert len([c for c in svg.iter(f"{SVG}circle") if c.get("r") == "4"]) == 1


def test_many_series_look_different():
    svg = chart(*(Series(f"s{i}", [0, 1], [i, i]) for i in range(20)))
    styles = [p.get("style") for p in svg.iter(f"{SVG}path") if "stroke-width:1.6" in p.get("style", "")]
    assert len(set(styles)) == 20
    bottom = max(float(e.get("y")) for e in svg.iter(f"{SVG}text"))
    assert bottom <= float(svg.get("viewBox").split()[3])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="'a': 2 x values and 1 y values"):
        Series("a", [1, 2], [1])
    with pytest.raises(ValueError, match="'g': 1 values for 2 labels"):
        bar_chart(["a", "b"], {"g": [1]}, title="T", y_label="y")


EVIL = "</svg><script>alert(1)</script>\" onload='x' & \x00\ud800"


def test_nothing_in_a_name_gets_out():
    line = line_chart([Series(EVIL, [1, 2], [1, 2])], title=EVIL, x_label=EVIL, y_label=EVIL)
    bars = bar_chart([EVIL], {EVIL: [1.0], "other": [NAN]}, title=EVIL, y_label=EVIL)
    for text in (line, bars):
        svg = ElementTree.fromstring(text.encode("utf-8"))
        assert text.count("<svg") == text.count("</svg>") == 1
        assert not list(svg.iter(f"{SVG}script"))
        assert not [name for e in svg.iter() for name in e.attrib if name.startswith("on")]


def test_it_is_readable_without_eyes():
    text = line_chart(
        [Series("train", [1, 2, 3], [8.0, NAN, 2.5])], title="Loss", x_label="step", y_label="nats"
    )
    svg = ElementTree.fromstring(text)
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == svg.find(f"{SVG}title").text == "Loss"
    assert svg.find(f"{SVG}desc").text == "nats. train: 2 points, from 8 to 2.5, lowest 2.5, highest 8."


def bars_of(svg) -> list[tuple[float, float]]:
    """Top and height of every bar."""
    return [(float(r.get("y")), float(r.get("height"))) for r in svg.iter(f"{SVG}rect")]


def test_bars_are_as_tall_as_their_values():
    text = bar_chart(["a", "b"], {"ours": [1.0, 2.0], "xz": [NAN, -1.0]}, title="T", y_label="bits")
    svg = ElementTree.fromstring(text)
    (top_a, one), (top_b, two), (top_c, minus_one) = bars_of(svg)
    assert two == pytest.approx(2 * one, abs=0.2)
    assert minus_one == pytest.approx(one, abs=0.2)
    assert top_a + one == pytest.approx(top_b + two, abs=0.2)
    assert top_c == pytest.approx(top_a + one, abs=0.2)
    written = {part for element in svg.iter(f"{SVG}text") for part in element.itertext()}
    assert {"1", "2", "−1", "n/a", "a", "b", "ours", "xz"} <= written


@pytest.mark.parametrize(
    ("labels", "groups"), [([], {}), ([], {"a": []}), (["a"], {}), (["a"], {"g": [NAN]})]
)
def test_no_bars_at_all(labels, groups):
    svg = ElementTree.fromstring(bar_chart(labels, groups, title="T", y_label="y"))
    assert "no data" in texts(svg)
    assert bars_of(svg) == []


floats = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(floats, floats), max_size=30), st.booleans(), st.sampled_from(["line", "points"]))
def test_any_data_gives_a_chart_inside_its_frame(points, log_y, style):
    svg = chart(Series("a", [x for x, _ in points], [y for _, y in points], style), log_y=log_y)
    width, height = (float(v) for v in svg.get("viewBox").split()[2:])
    for x, y in [p for run in paths(svg) for p in run] + dots(svg):
        assert 0 <= x <= width
        assert 0 <= y <= height
    assert "nan" not in ElementTree.tostring(svg, encoding="unicode").lower().replace("nano", "")


@given(st.lists(floats, max_size=8))
def test_any_values_give_bars_inside_the_frame(values):
    svg = ElementTree.fromstring(
        bar_chart([str(i) for i in range(len(values))], {"g": values}, title="T", y_label="y")
    )
    height = float(svg.get("viewBox").split()[3])
    assert all(top >= 0 and tall >= 0 and top + tall <= height for top, tall in bars_of(svg))


def test_a_histogram_shows_every_bin_that_is_not_empty():
    svg = histogram_chart([0, 1, 2, 4], [100_000, 0, 1], title="t <b>", x_label="x", y_label="documents")
    bars = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="[\d.]+" height="([\d.]+)"', svg)
    assert len(bars) == 2 and float(bars[1][1]) == 1.0 < float(bars[0][1]), "the low one is still seen"
    assert "<title>0 to 1: 100,000</title>" in svg and "<title>2 to 4: 1</title>" in svg
    assert "<b>" not in svg and "most, 100,000, from 0 to 1" in svg
    ElementTree.fromstring(svg)


def test_a_histogram_of_nothing_and_a_wrong_one():
    assert ">no data<" in histogram_chart([0], [], title="t", x_label="x", y_label="y")
    assert ">no data<" in histogram_chart([0, 1], [0], title="t", x_label="x", y_label="y")
    with pytest.raises(ValueError, match="2 edges around 2 counts"):
        histogram_chart([0, 1], [1, 1], title="t", x_label="x", y_label="y")


def test_a_histogram_of_many_bins_keeps_its_labels_apart():
    svg = histogram_chart(list(range(101)), [1] * 100, title="t", x_label="x", y_label="y")
    places = [float(x) for x in re.findall(r'<text x="([\d.]+)" y="\d+(?:\.\d)?" text-anchor="middle"', svg)]
    assert all(b - a > 12 for a, b in itertools.pairwise(places[:-1])) and len(places) > 5


def test_shares_of_a_whole_fill_one_bar():
    chart = share_chart({"compute": 0.75, "a <wait>": 0.25, "nothing": 0.0}, title="Time")
    root = ElementTree.fromstring(chart)
    bars = [e for e in root.iter() if e.tag.endswith("rect")]
    places = [(float(bar.get("x")), float(bar.get("width"))) for bar in bars]
    assert places == [(0.0, 539.0), (540.0, 179.0), (720.0, 0.0)]
    assert "compute 75.0 %" in chart and "a &lt;wait&gt; 25.0 %" in chart and "nothing 0.0 %" in chart
    assert "no data" in share_chart({}, title="Time")


def test_numbers_of_narrow_bars_do_not_run_into_one_another():
    wide = bar_chart(["a"], {"x": [16.67]}, title="T", y_label="y")
    narrow = bar_chart([str(i) for i in range(9)], {n: [16.67] * 9 for n in "xyz"}, title="T", y_label="y")
    assert ">16.7<" in wide and ">16.7<" not in narrow and ">17<" in narrow
