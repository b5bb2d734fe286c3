"""Charts and graphs as numbers: marks lie where their values are, and nothing lies on anything else."""

from __future__ import annotations

import re

from adapterline.dashboard.charts import line_chart, rank_chart
from adapterline.dashboard.graph import draw
from adapterline.lineage.answers import Relative
from adapterline.values import ComponentSummary
from tests.dashboard.seeded import Seeded


def component(rank: int | list[int]) -> ComponentSummary:
    return ComponentSummary(rank=rank, alpha=1, modules=2, adapter_type="lora", dtype="F32", parameters=1)


def test_a_rank_lies_in_proportion_on_an_axis_from_zero_to_a_power_of_two() -> None:
    chart = rank_chart({"unet": component([4, 24]), "text_encoder": component(8), "odd": component([])})
    assert [tick.value for tick in chart.ticks] == [0, 8, 16, 24, 32]
    odd, text, unet = chart.rows
    assert (odd.name, odd.marks) == ("odd", ())
    step = chart.ticks[1].x - chart.ticks[0].x
    assert [mark.x for mark in (*text.marks, *unet.marks)] == [
        round(chart.left + step * part, 1) for part in (1, 0.5, 3)
    ]
    assert rank_chart({}).rows == ()


def test_a_line_is_broken_where_nothing_is_known_and_labels_do_not_meet() -> None:
    chart = line_chart(["a", "b", "c", "d"], {"x": [1.0, None, 0.5, 0.5], "y": [1.0, 1.0, 1.0, 0.5]}, high=1.0)
    x, y = sorted(chart.lines, key=lambda line: line.name)
    assert x.path.count("M") == 2
    assert [len(x.points), len(y.points)] == [3, 4]
    assert abs(x.label_y - y.label_y) >= 15
    assert x.points[0].y == y.points[0].y < x.points[1].y  # up is more
    assert x.points[-1].x == chart.right
    assert [text for text, _ in chart.ticks] == ["0", "0.25", "0.5", "0.75", "1"]
    assert line_chart(["a"], {"x": [-0.5]}, high=1.0).ticks[0][0] == "-0.5"
    assert line_chart(["a"], {"x": [None]}).lines == ()


def test_no_box_lies_on_another_and_every_line_goes_to_the_right(seeded: Seeded) -> None:
    assert seeded.shown.manifest
    found = seeded.index.show(seeded.shown.manifest.digest)
    assert found.version
    child = Relative(kind="resumed-from", stated="ab" * 32, name="child", digest="ab" * 32)
    stranger = Relative(kind="resumed-from", stated="elsewhere", name=None, digest=None)
    many = found.model_copy(update={"children": (child,) * 40, "parents": (*found.parents, stranger)})
    graph = draw(many, found.version)
    boxes = [(box.x, box.y, box.x + graph.box_width, box.y + graph.box_height) for box in graph.boxes]
    for number, (left, top, right, bottom) in enumerate(boxes):
        assert 0 <= left < right <= graph.width
        assert 0 <= top < bottom <= graph.height
        for other in boxes[:number]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
    for line in graph.lines:
        start, *_, end = (int(x) for x, _ in re.findall(r"(\d+) (\d+)", line))
        assert start < end
    titles = [box.fact.title for box in graph.boxes]
    assert titles[-1] == "and 28 more"
    assert next(box for box in graph.boxes if box.fact.title == "elsewhere").fact.link is None
