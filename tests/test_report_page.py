"""The page of a report: what it tells, and that names which strangers chose are only text on it."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from pages import HOSTILE, Page
from reports import CURVE, arguments, grouped, write

from pipeline.report import figures


@pytest.mark.parametrize(
    "shown",
    [
        "Spatial stream",
        "66.7",
        "temporal weight 0.65",
        "1f3a9c2e04b7",
        "stack.length",
        "tvl1",
        "scikit-learn",
        "Misclassified by the fused average: 2",
        "clip4",
        "Used, but odd: 1",
        "68 of 444 promised frames decode",
        "1 test clip failed and counts as wrong",
        "Weights of step 6",
    ],
)
def test_the_page_shows_what_it_should(html, shown):
    assert shown in re.sub(r"\s+", " ", Page(html).text)


def test_the_page_holds_its_drawings(html):
    assert Page(html).tags.count("svg") == 4


def test_tables_scroll_inside_their_own_container(hostile_page, html):
    assert re.search(r"\.wide \{[^}]*overflow-x: auto", html)
    for shown in (hostile_page, Page(html)):
        assert shown.tags.count("table") >= 9 and not shown.loose_tables


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("page")
    write(folder, **arguments())
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory) -> Page:
    folder = tmp_path_factory.mktemp("hostile")
    given = arguments(ids=HOSTILE, classes=tuple(f"{name} class" for name in HOSTILE[:3]))
    given |= {"dataset": HOSTILE[0], "split": HOSTILE[1]}
    given["failed"] = [{"id": HOSTILE[5], "stage": HOSTILE[0], "reason": HOSTILE[3]}]
    given["odd"] = {HOSTILE[0]: HOSTILE[4]}
    given["settings"] = {HOSTILE[0]: {HOSTILE[3]: HOSTILE[5]}}
    given["stages"] = [{"stage": HOSTILE[0], HOSTILE[3]: HOSTILE[1]}]
    write(folder, drawn=True, **given)
    for drawing in (folder / "figures").glob("*.svg"):
        ElementTree.parse(drawing)  # well-formed, whatever the class names
    return Page((folder / "report.html").read_bytes().decode("utf-8"))


def test_hostile_names_are_only_text(hostile_page):
    assert not {"script", "img", "iframe", "object", "link", "form"} & set(hostile_page.tags)
    assert not [name for name in hostile_page.attributes if name.startswith("on")]
    assert '<script>alert("x")</script>' in hostile_page.text
    assert "<img src=http://evil.example/x.png>" in hostile_page.text
    assert "{{ 7*7 }}" in hostile_page.text
    assert "broken\ufffd\ufffdname" in hostile_page.text


def test_the_page_fetches_nothing(hostile_page):
    assert hostile_page.addresses
    assert all(address.startswith("#") for address in hostile_page.addresses)


def test_the_style_fetches_nothing(html):
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}


def test_a_page_without_validation_clips_claims_no_choice(tmp_path):
    curve = {**CURVE, "validation": []}
    given = arguments(curves={"spatial": curve}, fusion={"average": {"weight": 0.5, "val_top1": None}})
    given["fused"] = {"average": given["fused"]["average"]}
    write(tmp_path, **given)
    html = (tmp_path / "report.html").read_text()
    assert "Nothing was chosen: without validation clips the weights of the last step are kept" in html
    assert "The plain mean, which has nothing to choose" in html and "and a p just below 0.05 is no proof" in html
    assert "on validation clips" not in html and "1 fusions" not in html
    titles = [[axes.get_title(loc="left") for axes in figures.training(c, "spatial").axes] for c in (curve, CURVE)]
    assert titles == [["loss", "learning rate"], ["loss", "validation accuracy", "learning rate"]]


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"chosen_from": [0.1, 1.0], "right": [5, 4]}, True),
        ({"note": "given"}, False),
        ({"chosen_from": [0.1, 1.0], "right": []}, False),  # no folds: it is the default
    ],
)
def test_a_c_that_was_given_is_not_called_chosen(tmp_path, choice, said):
    svm = {"c": 1.0, "choice": choice, "fitted_top1": 1.0}
    write(tmp_path, **arguments(fusion={**arguments()["fusion"], "svm": svm}))
    assert ("the SVM with its C were chosen" in (tmp_path / "report.html").read_text()) == said


def test_the_page_tells_where_and_how_a_stream_was_trained(tmp_path):
    write(tmp_path, **arguments(curves={"spatial": {**CURVE, "device": "abacus", "precision": "bfloat16"}}))
    assert "in bfloat16 on abacus." in (tmp_path / "report.html").read_text()


def test_the_page_tells_which_intervals_are_wilsons(tmp_path):
    write(tmp_path / "few", drawn=True, **grouped())
    write(tmp_path / "many", drawn=True, **grouped(clips=60, groups=20, wrong=12))
    few, many = (Page((tmp_path / name / "report.html").read_text()).text for name in ("few", "many"))
    assert "for 5 trials: here every one." in few and "It comes from drawing" not in few
    assert "for 20 trials." in many and "It comes from drawing the 20 groups 5000 times" in many


@pytest.mark.parametrize(
    ("clips", "groups", "few"), [(10, 1, True), (150, 4, True), (90, 9, True), (120, 6, False), (500, 500, False)]
)
def test_the_page_tells_how_many_clips_were_chosen_on(tmp_path, clips, groups, few):
    write(tmp_path, **arguments(counts={"val": {"clips": clips, "groups": groups}}))
    shown = re.sub(r"\s+", " ", Page((tmp_path / "report.html").read_text()).text)
    assert f"chosen on {clips} validation clips of {groups} group{'s' * (groups > 1)}, nothing on the test" in shown
    assert ("So few say little" in shown) == few


def test_the_page_tells_its_groups_and_the_command(tmp_path):
    names = [f"person{k:02}" for k in range(14)]
    counts = {"train": {"clips": 28, "groups": 14}, "test": {"clips": 2, "groups": 1}}
    command = "luigi --module tasks FullPipeline --dataset '<b>'"
    given = arguments(counts=counts, groups={"train": names, "test": ["<i>"]}, command=command, inputs="0123456789ab")
    numbers = write(tmp_path, **given)
    assert numbers["groups"] == {"train": names, "test": ["<i>"]} and numbers["command"] == command
    page = Page((tmp_path / "report.html").read_text())
    assert not {"b", "i"} & set(page.tags)
    for shown in (command, "0123456789ab", "person00, person01, ", "person11 and 2 more", "<i>"):
        assert shown in page.text
    assert "person12" not in page.text
