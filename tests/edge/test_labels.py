"""Labels of charts as a property of any marks: none covers another, none leaves the plot, no name is lost in a join."""

import math
from collections import Counter
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from merino_edge.report.labels import SHARED_WIDTH, Box, Mark, along, around, beside, column, merged
from merino_edge.report.svg import Plot, text_px

PLOTS = st.sampled_from([Plot(62, 88, 776, 498), Plot(44, 34, 294, 296), Plot(44, 34, 530, 256)])
NAMES = st.text("abcM- 1", min_size=1, max_size=30)
SHARES = st.floats(0, 1)
POINTS = st.lists(st.tuples(SHARES, SHARES, NAMES), min_size=1, max_size=24)


def marks_in(plot, points):
    return [Mark(plot.left + x * (plot.right - plot.left), plot.top + y * (plot.bottom - plot.top), name)
            for x, y, name in points]  # fmt: skip


@given(PLOTS, POINTS, st.lists(st.tuples(SHARES, SHARES, st.just("")), min_size=2, max_size=6))
def test_labels_beside_marks_cover_nothing_and_stay_in_the_plot(plot, points, corners):
    marks = marks_in(plot, points)
    lines = along([(corner.x, corner.y) for corner in marks_in(plot, corners)])
    text = Box(plot.left + 20, plot.top, plot.left + 120, plot.top + 18)
    result = beside(plot, marks, lines, [text])
    assert not any(one.box.overlaps(other.box) for one, other in combinations(result, 2))
    for label in result:
        assert label.box.inside(plot) and not label.box.overlaps(text)
        assert not any(label.box.overlaps(around(mark.x, mark.y, 5.9)) for mark in marks)
        assert label.box.right - label.box.left >= text_px(label.text) - 1e-6
    groups = merged(marks, SHARED_WIDTH * (plot.right - plot.left))
    assert not Counter(label.text for label in result) - Counter(one.name for one in groups), "one label a group"


@given(PLOTS, st.lists(st.tuples(SHARES, SHARES), min_size=2, max_size=24))
def test_a_reader_sees_whose_label_each_is(plot, places):
    marks = {f"mark {index}": mark for index, mark in enumerate(marks_in(plot, [(x, y, "") for x, y in places]))}
    result = beside(plot, [Mark(mark.x, mark.y, name) for name, mark in marks.items()])
    for label in result:
        own = marks[label.text.split(", ")[0]]
        others = [mark for mark in marks.values() if max(abs(mark.x - own.x), abs(mark.y - own.y)) >= 6]
        if label.leader is None:
            nearest = min((label.box.distance(mark.x, mark.y) for mark in others), default=math.inf)
            assert label.box.distance(own.x, own.y) <= nearest + 0.5 + 1e-6
        else:
            line = along([label.leader[:2], label.leader[2:]], 0.5)
            assert math.hypot(label.leader[0] - own.x, label.leader[1] - own.y) < 6.1
            assert not any(piece.overlaps(around(mark.x, mark.y, 4)) for piece in line for mark in others)
            assert not any(piece.overlaps(other.box) for piece in line for other in result if other is not label)


@given(PLOTS, st.lists(st.tuples(SHARES, NAMES), min_size=1, max_size=14))
def test_labels_of_a_column_cover_nothing_stay_in_the_plot_and_keep_the_order_of_their_lines(plot, ends):
    marks = marks_in(plot, [(1, y, name) for y, name in ends])
    result = column(plot, marks, plot.right + 7, 90)
    assert len(result) == len(marks)
    assert not any(one.box.overlaps(other.box) for one, other in combinations(result, 2))
    for label in result:
        assert label.box.right <= plot.right + 7 + 90 + 7
        assert plot.top <= label.box.bottom - 7 + 1e-6 and label.box.bottom - 7 <= plot.bottom + 1e-6
    for (one, label), (other, lower) in combinations(zip(marks, result, strict=True), 2):
        if one.y < other.y:
            assert label.box.top < lower.box.top


@given(PLOTS, POINTS)
def test_a_join_keeps_every_name_and_no_label_is_wider_than_asked(plot, points):
    marks = marks_in(plot, points)
    groups = merged(marks, 150)
    assert sorted(", ".join(one.name for one in groups)) == sorted(", ".join(mark.name for mark in marks))
    assert all(text_px(one.name) <= 150 or one.name in {mark.name for mark in marks} for one in groups)


def test_coinciding_marks_share_a_label_and_distant_ones_do_not():
    plot = Plot(0, 0, 800, 500)
    result = beside(plot, [Mark(100, 100, "GPT-2"), Mark(102, 101, "OPT-125M"), Mark(300, 100, "SmolLM")])
    assert sorted(label.text for label in result) == ["GPT-2, OPT-125M", "SmolLM"]
    narrow = beside(Plot(0, 0, 200, 500), [Mark(100, 100, "GPT-2"), Mark(102, 101, "OPT-125M")])
    assert sorted(label.text for label in narrow) == ["GPT-2", "OPT-125M"]


def test_a_label_gives_way_to_a_line_and_a_far_one_has_a_leader():
    plot = Plot(0, 0, 800, 500)
    (label,) = beside(plot, [Mark(100, 100, "GPT-2")], along([(100, 100), (400, 100)]))
    assert label.anchor == "end" and label.leader is None
    wall = [Box(0, 70, 90, 130), Box(110, 70, 800, 130), Box(0, 75, 800, 92), Box(0, 108, 800, 125)]
    (far,) = beside(plot, [Mark(100, 100, "GPT-2")], texts=wall)
    assert far.leader is not None and math.hypot(far.leader[0] - 100, far.leader[1] - 100) < 7
