"""Where the labels of a chart go, so that none covers another: beside marks anywhere in a plot, or in a column.

`beside` is a greedy search over candidate places around each mark. `column` sweeps labels apart in one direction.
Both only compute places; `draw` adds the texts to a drawing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from merino_edge.report.svg import Plot, add, shortened, text_px, write

LINE_PX = 15  # between the baselines of two labels
HALF_PX = 7  # of a label's height
MARK_PX = 6  # half the side of the square that a mark keeps free
GAP_PX = 10  # from a mark's center to a label at its side
RINGS_PX = (0, 14, 28, 44, 62)  # further distances that are tried; from the second on a leader joins mark and label
TIE_PX = 0.5  # marks as near to a label as its own, up to this, do not make it ambiguous
SAME_PX = 6  # marks nearer than this in x and in y coincide, and share one label
COVER_PX = 5  # covering one piece of a line is as bad as lying this much further away
SHARED_WIDTH = 0.5  # of the plot: a shared label is not made wider


@dataclass(frozen=True)
class Box:
    """A rectangle in px of the drawing: y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def distance(self, x: float, y: float) -> float:
        """From a point to the nearest point of the box, px."""
        near_x, near_y = self.nearest(x, y)
        return math.hypot(x - near_x, y - near_y)

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)

    def inside(self, plot: Plot) -> bool:
        across = plot.left <= self.left and self.right <= plot.right
        return across and plot.top <= self.top and self.bottom <= plot.bottom


@dataclass(frozen=True)
class Mark:
    """A point of a chart, in px, and its name."""

    x: float
    y: float
    name: str


@dataclass(frozen=True)
class Label:
    """A text in its box. anchor: as in SVG. leader: (x1, y1, x2, y2) of a line to its mark; None where it touches."""

    text: str
    box: Box
    anchor: str = "start"
    leader: tuple[float, float, float, float] | None = None


def beside(plot: Plot, marks: Sequence[Mark], lines: Sequence[Box] = (), texts: Sequence[Box] = ()) -> list[Label]:
    """A label for each group of coinciding marks, within the plot, on no mark, no other label and none of `texts`.

    A label without a leader is nearer to its own mark than to any other, and a leader crosses no mark and no label.
    lines: pieces of drawn lines, which a label avoids if it can. A group without a free place has no label: a chart
    must show its names in another way too.
    """
    taken = [around(mark.x, mark.y, MARK_PX) for mark in marks] + list(texts)
    waiting = sorted(merged(marks, SHARED_WIDTH * (plot.right - plot.left)), key=lambda one: (one.y, one.x))
    placed: list[Label] = []
    # First the labels with a free place right at their marks: one with a leader would take such places from others.
    for only_at_marks in (True, False):
        for mark in list(waiting):
            places = []
            for cost, label in _candidates(mark):
                covered = sum(label.box.overlaps(piece) for piece in lines)
                postponed = only_at_marks and (label.leader or covered)
                if not postponed and label.box.inside(plot) and _is_free(label, mark, marks, placed, taken):
                    places.append((cost + COVER_PX * covered, label))
            if places:
                label = min(places, key=lambda place: place[0])[1]
                taken += [label.box, *_pieces(label)]
                placed.append(label)
                waiting.remove(mark)
    return placed


def column(plot: Plot, ends: Sequence[Mark], left: float, room_px: float) -> list[Label]:
    """One label per end of a line, all beginning at `left`, in the order of their heights and a line of text apart.

    The sweep downwards moves each label below the one before; the sweep upwards moves the last ones back into the
    plot. Labels are cut to `room_px`. More of them than the plot has room for reach above its top.
    """
    order = sorted(range(len(ends)), key=lambda index: ends[index].y)
    middles = [0.0] * len(ends)
    free = plot.top
    for index in order:
        middles[index] = max(ends[index].y, free)
        free = middles[index] + LINE_PX
    bound = plot.bottom
    for index in reversed(order):
        middles[index] = min(middles[index], bound)
        bound = middles[index] - LINE_PX
    labels = []
    for end, middle in zip(ends, middles, strict=True):
        text = shortened(end.name, room_px)
        box = Box(left, middle - HALF_PX, left + text_px(text), middle + HALF_PX)
        straight = abs(middle - end.y) <= 2 and end.x >= left - 2 * GAP_PX
        labels.append(Label(text, box, "start", None if straight else (end.x + 4, end.y, left - 3, middle)))
    return labels


def merged(marks: Sequence[Mark], width_px: float) -> list[Mark]:
    """Marks that coincide with an earlier one add their name to it, as long as the names fit into `width_px`."""
    groups: list[Mark] = []
    for mark in marks:
        for index, other in enumerate(groups):
            names = f"{other.name}, {mark.name}"
            if _coincide(mark, other) and text_px(names) <= width_px:
                groups[index] = Mark(other.x, other.y, names)
                break
        else:
            groups.append(mark)
    return groups


def around(x: float, y: float, half_px: float) -> Box:
    return Box(x - half_px, y - half_px, x + half_px, y + half_px)


def along(points: Sequence[tuple[float, float]], half_px: float = 3) -> list[Box]:
    """Small boxes that cover a polyline through `points`, in px."""
    boxes = []
    for (x1, y1), (x2, y2) in zip(points, points[1:], strict=False):
        pieces = max(1, round(max(abs(x2 - x1), abs(y2 - y1)) / (2 * half_px)))
        boxes += [around(x1 + (x2 - x1) * each / pieces, y1 + (y2 - y1) * each / pieces, half_px)
                  for each in range(pieces + 1)]  # fmt: skip
    return boxes


def draw(svg: Element, labels: Sequence[Label], class_: str = "label") -> None:
    """Leaders first, so that no leader crosses over a text."""
    for label in labels:
        if label.leader:
            x1, y1, x2, y2 = label.leader
            add(svg, "line", x1=x1, y1=y1, x2=x2, y2=y2, class_="leader")
    for label in labels:
        at = {"start": label.box.left, "middle": (label.box.left + label.box.right) / 2, "end": label.box.right}
        write(svg, at[label.anchor], label.box.bottom - 3, label.text, class_, label.anchor)


def _candidates(mark: Mark) -> Iterator[tuple[float, Label]]:
    """(cost in px, label) of each place around a mark: nearer rings first; right, left, above, below, diagonals."""
    wide = text_px(mark.name)
    for ring, distance in enumerate(RINGS_PX):
        side = GAP_PX + distance
        up = GAP_PX + HALF_PX + distance
        for preference, (anchor, dx, dy) in enumerate((
            ("start", side, 0), ("end", -side, 0), ("middle", 0, -up), ("middle", 0, up),
            ("start", 0.7 * side, -up), ("start", 0.7 * side, up), ("end", -0.7 * side, -up), ("end", -0.7 * side, up),
        )):  # fmt: skip
            left = mark.x + dx - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
            box = Box(left, mark.y + dy - HALF_PX, left + wide, mark.y + dy + HALF_PX)
            leader = _leader(mark, box) if ring else None
            yield distance + 2.0 * preference, Label(mark.name, box, anchor, leader)


def _leader(mark: Mark, box: Box) -> tuple[float, float, float, float]:
    """From the mark's edge to the label."""
    to_x, to_y = box.nearest(mark.x, mark.y)
    share = MARK_PX / math.hypot(to_x - mark.x, to_y - mark.y)
    return mark.x + share * (to_x - mark.x), mark.y + share * (to_y - mark.y), to_x, to_y


def _is_free(
    label: Label, mark: Mark, marks: Sequence[Mark], placed: Sequence[Label], taken: Sequence[Box]
) -> bool:
    """Whether the label covers nothing that is taken, and a reader sees which mark it belongs to."""
    if any(label.box.overlaps(box) for box in taken):
        return False
    others = [other for other in marks if not _coincide(other, mark)]
    if label.leader is None:
        own_px = label.box.distance(mark.x, mark.y) - TIE_PX
        return all(own_px <= label.box.distance(other.x, other.y) for other in others)
    crossed = [around(other.x, other.y, MARK_PX - 1) for other in others] + [other.box for other in placed]
    return not any(piece.overlaps(box) for piece in _pieces(label) for box in crossed)


def _pieces(label: Label) -> list[Box]:
    return along([label.leader[:2], label.leader[2:]], 1) if label.leader else []


def _coincide(one: Mark, other: Mark) -> bool:
    return abs(one.x - other.x) < SAME_PX and abs(one.y - other.y) < SAME_PX
