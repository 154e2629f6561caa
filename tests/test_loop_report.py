"""The report holds every measure, known or not; table, plot and page show what there is."""

import copy
import json
import re
from xml.etree import ElementTree

import pytest

from loop.page import render_page
from loop.report import MEASURES, SIGNS, build_report, cell, headline, render_text


def evaluation(perfect, pairwise, wins=None):
    return {
        "instruction_following": {
            "truth_score": 5 * perfect, "truth_score_ci": [5 * perfect - 0.1, 5 * perfect + 0.1],
            "truth_perfect": perfect, "truth_perfect_ci": [perfect - 0.05, perfect + 0.05],
            "win_rate_vs_previous": wins, "mean_length": 31.5,
        },
        "judging": {"pairwise_accuracy": pairwise, "pairwise_accuracy_ci": [0.5, 1.0]},
        "counts": {"pairs": 1234, "unparsed <&> judgements": 5},
        "seconds": {"responses": 12.25},
    }  # fmt: skip


MODELS = {"M1": evaluation(0.4, 0.8), "M2": evaluation(0.6, 0.75, 0.55), "M3": evaluation(0.5, 0.9)}


def test_the_report_has_each_measure_and_null_for_what_does_not_apply():
    report = build_report(MODELS)
    assert list(report["models"]) == ["M1", "M2", "M3"]
    for name, model in report["models"].items():
        for measure in (*MEASURES, *SIGNS):
            axis = model[measure.axis]
            assert axis[measure.key] == MODELS[name].get(measure.axis, {}).get(measure.key)
            assert f"{measure.key}_ci" in axis
        assert model["counts"] == MODELS[name]["counts"]
        assert model["instruction_following"]["mean_length"] == 31.5
    assert report["models"]["M1"]["instruction_following"]["win_rate_vs_previous"] is None
    assert json.loads(json.dumps(report)) == report


def test_an_empty_evaluation_is_all_null():
    report = build_report({"M1": {}})
    assert set(report["models"]["M1"]["judging"].values()) == {None}
    assert "M1" in render_text(report) and "M1" in render_page(report, "t")


def test_building_a_report_changes_nothing_that_it_was_given():
    before = copy.deepcopy(MODELS)
    report = build_report(MODELS)
    report["models"]["M1"]["counts"]["pairs"] = 0
    report["models"]["M1"]["judging"]["kendall"] = 1
    assert before == MODELS


def test_the_table_shows_value_and_interval_and_leaves_out_what_nobody_has():
    text = render_text(build_report(MODELS))
    row = next(line for line in text.splitlines() if "all five points met" in line)
    assert re.split(r" {3,}", row.strip()) == [
        "all five points met",
        "0.400 [0.350, 0.450]",
        "0.600 [0.550, 0.650]",
        "0.500 [0.450, 0.550]",
    ]
    assert "Kendall" not in text and "–   " in text.split("wins over the model before")[1]
    assert max(map(len, text.splitlines())) <= 120


def test_a_cell_of_the_table():
    assert cell(None, None) == "–"
    assert cell(0.5, None) == "0.500"
    assert cell(0.5, [0.25, 1]) == "0.500 [0.250, 1.000]"


def plotted(text, title):
    """The lines M1 … of the plot under `title`."""
    return [line for line in text.split(title)[1].split("\n\n")[0].splitlines() if "│" in line]


def test_the_plot_stands_in_the_order_of_the_values():
    lines = plotted(
        render_text(build_report(MODELS)), "Following instructions: all five points met"
    )
    places = {line[:2]: line.index("●") for line in lines}
    assert places["M1"] < places["M3"] < places["M2"]
    assert places["M2"] - places["M3"] == pytest.approx(places["M3"] - places["M1"], abs=1)
    for line in lines:  # an interval of one width around each
        assert line.index("├") < line.index("●") < line.index("┤")
    assert lines[0].index("├") == 4 and lines[1].rstrip("│").endswith("┤")  # the scale is used up


def test_a_plot_of_one_number_alone_is_drawn():
    report = build_report({"M1": {"judging": {"pairwise_accuracy": 0.5}}})
    assert "●" in render_text(report)
    assert "<circle" in render_page(report, "t")


def test_the_plots_show_the_truth_where_it_is_known():
    report = build_report(MODELS)
    assert headline(report, "instruction_following").key == "truth_perfect"
    real = {name: {"instruction_following": {"win_rate_vs_previous": 0.5}} for name in MODELS}
    assert headline(build_report(real), "instruction_following").key == "win_rate_vs_previous"
    assert headline(build_report(real), "judging") is None


def page_tree(report, title):
    """The page's body as a tree: it is well-formed XML too."""
    body = re.search(r"<body>.*</body>", render_page(report, title), re.DOTALL)[0]
    return ElementTree.fromstring(body)


def test_the_page_holds_the_numbers_and_loads_nothing():
    page = render_page(build_report(MODELS), "runs/world")
    assert not re.search(r"https?:|<script|<link|<img|@import|url\(", page)
    tree = page_tree(build_report(MODELS), "runs/world")
    texts = list(tree.itertext())
    for text in ("runs/world", "0.600", "[0.550, 0.650]", "1,234", "12.2", "responses"):
        assert text in texts
    assert len(tree.findall(".//svg")) == 2
    assert len(tree.findall(".//circle")) == 6


def test_the_curve_goes_up_where_the_values_do():
    tree = page_tree(build_report(MODELS), "t")
    points = [
        tuple(map(float, (dot.get("cx"), dot.get("cy")))) for dot in tree.findall(".//circle")
    ]
    (x1, y1), (x2, y2), (x3, y3) = points[:3]
    assert x1 < x2 < x3 and y2 < y3 < y1  # y counts down from the top
    assert y1 - y3 == pytest.approx(y3 - y2, abs=0.11)


def test_names_from_outside_cannot_become_markup():
    texts = list(page_tree(build_report(MODELS), "<b>&").itertext())
    assert "<b>&" in texts and "unparsed <&> judgements" in texts


SICK = {
    "model": "M2", "rule": "length <drift>", "value": 2.5, "threshold": 2.0, "stops": False,
    "meaning": "long & longer",
}  # fmt: skip
PROMPTS = {
    "near": "IFT",
    "nearest": {"made": {"10": 0.25, "50": 0.5}, "IFT": {"10": 0.125, "50": 0.75}},
    "map": {"made": [[0.0, 1.0], [0.5, 0.5], [0.5, 0.0]], "IFT": [[1.0, 0.0]]},
}
SCORED = {"M1": {"scores": {"histogram": {"1": 3, "4": 1}, "mean_score": 1.75}}, "M2": {}}


def test_the_page_shows_findings_prompts_and_scores():
    report = build_report(MODELS | SCORED, [SICK], PROMPTS)
    assert json.loads(json.dumps(report)) == report
    tree = page_tree(report, "t")
    words = " ".join(tree.itertext())
    for text in ("length <drift>", "from 2 on; a warning", "long & longer", "0.25", "50 %", "75%"):
        assert text in words, text
    assert len(tree.findall(".//circle[@class='prompt']")) == 4
    bars = {bar.get("height") for bar in tree.findall(".//rect")}
    heights = sorted(float(height) for height in bars)
    assert heights[0] == 0 and heights[-1] == pytest.approx(
        3 * heights[1], abs=0.2
    )  # 3 of 4, 1 of 4
    assert "No rule" not in words and "No rule" in render_page(build_report(MODELS), "t")


def test_the_page_shows_how_the_canaries_are_scored():
    judged = {"judging": {"canaries": {"empty": 0.25, "closing_tag": None}}}
    report = build_report(MODELS | {"M1": judged | SCORED["M1"]})
    page = render_page(report, "t")
    (table,) = re.findall(r"<h2>Canaries</h2>.*?</table>", page, re.DOTALL)
    rows = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:]]
    assert rows == [
        ["", "M1"],  # the others judged none
        ["what people ranked", "1.75"],
        ["empty", "0.25"],
        ["closing tag", "–"],
    ]
    assert "Canaries" not in render_page(build_report(MODELS), "t")


def test_the_map_stays_in_its_frame_and_keeps_its_order():
    circles = page_tree(build_report(MODELS, [], PROMPTS), "t").findall(
        ".//circle[@class='prompt']"
    )
    xs, ys = ([float(c.get(axis)) for c in circles] for axis in ("cx", "cy"))
    assert xs[0] < xs[1] == xs[2] < xs[3] and ys[0] < ys[1] < ys[2] == ys[3]  # y from the top
    assert min(xs) >= 0 and max(xs) <= 420 and min(ys) >= 0 and max(ys) <= 240


def test_a_stages_counts_stand_under_its_name():
    model = {"counts": {"pairs.jsonl": {"equal_scores": 1234}}}
    texts = list(page_tree(build_report({"M1": model}), "t").itertext())
    assert "pairs.jsonl: equal_scores" in texts and "1,234" in texts
