"""HTML pages: what is in them, and what they do in a real browser, opened from the disk without a network."""

import json
import math
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
import torch

import test_adapt
from cohort.checks import Check
from data.errors import InputError
from data.values.intensity import IntensityMap
from data.volumes.volume import Volume, write_volume
from evaluation.report import COLUMNS, EXPLANATIONS, FIGURES
from options import train_options
from tests.browser import open_browser, visit, wait_until
from visualization import case_page as case_pages
from visualization import training_page
from visualization.case_page import joint_counts, write_case_page
from visualization.cohort_page import CohortRow, write_cohort_page
from visualization.console import Console
from visualization.display import RunInfo
from visualization.pages import link_to, to_js
from visualization.panels import VisualsStyle
from visualization.svg_charts import Axis, box_chart
from visualization.training_log import TrainingLog
from visualization.training_page import TrainingPage

EVIL = "<script>alert(1)</script>"
EVIL_NAMES = (EVIL, '"><img src=x onerror=alert(1)>', "a&b 'c' #1 100%?", "Ä\u2028é")
SCORES = {name: 0.5 + k for k, name in enumerate(COLUMNS)}


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


def patient(shape=(12, 20, 30), spacing=(2.0, 3.0, 5.0), hu=300) -> tuple[Volume, Volume, Volume]:
    """MR, synthetic and true CT of a block of 300 HU in air, with marks: a different HU at every end of the block."""
    mr, ct = np.zeros(shape, np.float32), np.full(shape, -1000, np.int16)
    block = (slice(2, -2), slice(4, -4), slice(5, -5))
    mr[block], ct[block] = 500, hu
    ct[-3, 4:-4, 5:-5] = 1000  # head
    ct[2:-2, -5, 5:-5] = -200  # back
    ct[2:-2, 4:-4, -6] = 40  # left
    reference = ct.copy()
    reference[5, 10, 15] -= 100
    return tuple(Volume(array, spacing, (-30.0, -20.0, 700.0)) for array in (mr, ct, reference))


# ------------------------------------------------------------------ without a browser


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (Axis(0, 10, 0, 100), [0, 2, 4, 6, 8, 10]),
        (Axis(-1024, 1600, 0, 100), [-1000, -500, 0, 500, 1000, 1500]),
        (Axis(1e-3, 10, 0, 100, log=True), [0.001, 0.01, 0.1, 1, 10]),
    ],
)
def test_axes_have_round_ticks(axis, expected):
    assert axis.ticks() == pytest.approx(expected)
    assert (axis(axis.low), axis(axis.high)) == (0, 100)


def test_text_cannot_become_markup_or_script():
    text = to_js({"a": EVIL, "b": "\u2028", "c": float("nan"), "d": [1, float("inf")]})
    assert "<" not in text and "\u2028" not in text
    assert json.loads(text) == {"a": EVIL, "b": "\u2028", "c": None, "d": [1, None]}


def test_links_are_relative_and_quoted(tmp_path):
    page = tmp_path / "a b#1" / "index.html"
    assert link_to(page, tmp_path) == "a%20b%231/index.html"
    assert link_to(tmp_path / "index.html", tmp_path / "a b#1") == "../index.html"


class Page(HTMLParser):
    """A page as a browser would take it apart: names of elements in order, texts and attributes by element."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.texts, self.attributes, self._open = [], {}, [], None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += attrs
        self._open = tag
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open:
            self.texts[self._open][-1] += data


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_names_are_text_everywhere(tmp_path, name):
    """Wherever a name stands it is read back as it is, and it makes no element that a harmless name would not."""

    def pages(folder, name):
        case_file = folder / name.replace("/", "_") / "index.html"
        write_case_page(case_file.parent, name, *patient()[:2], details={"input": name, name: "x"})
        rows = [CohortRow(name, SCORES, case_file, note=name)]
        cohort_file = write_cohort_page(folder / "cohort", rows, title=name, details={"m": name})
        return Page(case_file), Page(cohort_file), case_file

    case, cohort, case_file = pages(tmp_path, name)
    for page, harmless in zip((case, cohort), pages(tmp_path, "p"), strict=False):
        assert page.elements == harmless.elements
        assert page.texts["title"][0] == name and page.texts["h1"] == [name] and page.texts["dd"][0] == name
        assert any("default-src 'none'" in (value or "") for _, value in page.attributes)
        assert {key for key, _ in page.attributes} == {key for key, _ in harmless.attributes}
    assert case.texts["dt"][1] == name
    values = [value for key, value in cohort.attributes if key == "data-value"]
    assert values[0] == values[-1] == name
    assert name in cohort.texts["a"] and cohort.texts["title"][1] == f"{name}: {SCORES['mae']:g}"
    links = {value for key, value in cohort.attributes if key == "href" and value.startswith("../")}
    assert [(tmp_path / "cohort" / unquote(link)).resolve() for link in links] == [case_file.resolve()]


def test_a_name_that_is_no_utf_8_does_no_harm(tmp_path):
    name = "p\udcff"  # what Python makes of the byte 0xff in a file's name
    page = write_case_page(tmp_path / "c", name, *patient()[:2], details={"input": Path(name)})
    assert Page(page).texts["h1"] == ["p?"]
    assert link_to(tmp_path / name, tmp_path) == "p%FF"


def test_a_page_leaves_nothing_of_an_earlier_one(tmp_path, monkeypatch):
    mr, ct, reference = patient()
    page = write_case_page(tmp_path / "c", "p", mr, ct, reference)
    data = tmp_path / "c/data"
    assert {file.name for file in data.iterdir()} == {"mr.js", "ct.js", "reference.js"}
    assert write_case_page(tmp_path / "c", "q", mr, ct) == page
    assert {file.name for file in data.iterdir()} == {"mr.js", "ct.js"}
    with pytest.raises(InputError, match="not on the grid"):  # a mistake does not cost the page that there is
        write_case_page(tmp_path / "c", "r", mr, Volume(ct.array))
    assert "<h1>q</h1>" in page.read_text()

    def fail(shown, region):
        if shown.id == "ct":
            raise OSError("full")
        return "x"

    monkeypatch.setattr(case_pages, "pack", fail)
    with pytest.raises(InputError, match="cannot be written: full"):
        write_case_page(tmp_path / "c", "r", mr, ct)
    assert not page.exists()  # rather none than the old one's geometry over new voxels


def test_histograms_have_all_voxels_of_the_body(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 300, (2, 5, 6, 7)).astype(np.float32)
    body = rng.random(x.shape) < 0.7
    body[0, 0, :3] = True
    x[0, 0, :3], y[0, 0, :3] = (-2000, 3000, 50), (-1500, 3071, 4000)  # air beyond CT's scale, metal
    edges = np.arange(-1000.0, 1001.0, 100.0)
    counts = joint_counts(x, y, body, edges, edges)
    expected = np.histogram2d(x[body].clip(-1000, 1000), y[body].clip(-1000, 1000), (edges, edges))[0]
    np.testing.assert_array_equal(counts, expected)
    assert counts.sum() == body.sum() and counts[0, 0] >= 1 and counts[-1, -1] >= 1 and counts[10, -1] >= 1
    mr, ct, _ = patient()
    metal = ct.with_array(np.full_like(ct.array, 3000))
    text = write_case_page(tmp_path / "c", "p", mr, metal, body=np.ones(ct.array.shape, bool)).read_text()
    (curve,) = re.findall(r'<path class="line a" d="([^"]*)"', text)
    heights = [float(height) for height in re.findall(r"[ML][\d.]+ ([\d.]+)", curve)]
    assert heights[-1] == 10 and set(heights[:-1]) == {286}  # 100 % in the last bin, nothing elsewhere
    assert "the last one all above 1551 HU" in text


def test_volumes_on_other_grids_are_refused(tmp_path):
    mr, ct, _ = patient()
    with pytest.raises(InputError, match="p1: the true CT is not on the grid of the MR"):
        write_case_page(tmp_path / "c", "p1", mr, ct, Volume(ct.array, (9.0, 9.0, 9.0)))


# ------------------------------------------------------------------ a case in the browser


@pytest.fixture
def case_page(tmp_path):
    mr, ct, reference = patient()
    cohort = write_cohort_page(tmp_path, [])
    page = write_case_page(
        tmp_path / "case #1", EVIL, mr, ct, reference, {**SCORES, "psnr": float("nan")}, cohort_page=cohort
    )
    moved = shutil.move(page.parent, tmp_path / "moved")  # self-contained: it may be moved
    return (tmp_path / moved / "index.html").as_uri()


PIXELS = """([volume, plane]) => {
  const canvas = document.querySelector(`.view[data-volume=${volume}][data-plane=${plane}] canvas`);
  const image = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return [canvas.height, canvas.width, [...image.data]];
}"""


def pixels(page, volume, plane):
    height, width, data = page.evaluate(PIXELS, [volume, plane])
    return np.array(data).reshape(height, width, 4)[..., :3]


def act(page, action):
    """Do something and wait until it is drawn."""
    drawn = page.evaluate("Number(document.body.dataset.drawn)")
    action()
    wait_until(page, f"Number(document.body.dataset.drawn) > {drawn}")


def ready(page):
    page.wait_for_selector("body[data-ready=true]")
    wait_until(page, "Number(document.body.dataset.drawn) > 0")


def shown_gray(hu, level, width):
    return round(float(np.clip((hu - (level - width / 2)) / width, 0, 1)) * 255)


def test_a_case_shows_hu_in_its_windows_planes_and_slices(browser, case_page):
    _, ct, _ = patient()
    with visit(browser, case_page) as page:
        ready(page)
        assert page.inner_text("h1") == EVIL
        axial = pixels(page, "ct", "axial")
        slice_shown = ct.array[6, :, 1:29].astype(float)  # what `region_to_show` leaves
        expected = np.vectorize(lambda hu: shown_gray(hu, 40, 800))(slice_shown)  # as in the picture
        assert np.abs(axial - expected[..., None]).max() <= 1
        assert page.get_attribute("button:text-is('Soft tissue and bone')", "aria-pressed") == "true"
        assert (page.input_value("#level"), page.input_value("#width")) == ("40", "800")
        act(page, lambda: page.click("button:text-is('Bone')"))
        assert np.abs(pixels(page, "ct", "axial")[10, 10] - shown_gray(300, 400, 1800)).max() <= 1
        assert page.get_attribute("button:text-is('Bone')", "aria-pressed") == "true"
        assert page.get_attribute("button:text-is('Soft tissue and bone')", "aria-pressed") == "false"
        page.fill("#level", "300")
        act(page, lambda: page.press("#level", "Enter"))
        assert np.abs(pixels(page, "ct", "axial")[10, 10] - shown_gray(300, 300, 1800)).max() <= 1
        # the slider, by keyboard: to the head end, where the block's last slice has 1000 HU
        page.focus("#slice-axial")
        for _ in range(3):
            act(page, lambda: page.keyboard.press("ArrowRight"))
        assert page.inner_text("#place-axial") == "slice 10 of 12, H 745 mm"
        assert np.abs(pixels(page, "ct", "axial")[10, 10] - shown_gray(1000, 300, 1800)).max() <= 1
        act(page, lambda: page.click("button[data-planes=coronal]"))
        assert page.is_visible("#plane-coronal") and not page.is_visible("#plane-axial")
        # coronal: head up, the patient's left at the right
        coronal = pixels(page, "ct", "coronal")
        assert coronal[2, 14, 0] == shown_gray(1000, 300, 1800)
        assert abs(int(coronal[6, 23, 0]) - shown_gray(40, 300, 1800)) <= 1  # left, x = 24, less one cut off


def test_the_difference_is_coloured_and_read_out(browser, case_page):
    with visit(browser, case_page) as page:
        ready(page)
        view = page.locator(".view[data-volume=difference][data-plane=axial]")
        box = view.bounding_box()
        place = {"x": box["width"] * 14.5 / 28, "y": box["height"] * 10.5 / 20}
        act(page, lambda: view.click(position=place))
        page.focus("#slice-axial")
        act(page, lambda: page.keyboard.press("ArrowLeft"))
        text = page.inner_text("#readout")
        assert "L 0, P 10, H 725 mm" in text
        assert re.search(
            "synthetic CT\\s+300 HU\\s+true CT\\s+200 HU\\s+synthetic CT \N{MINUS SIGN} true CT\\s+100 HU", text
        )
        colours = page.evaluate("page.difference.colours")
        difference = pixels(page, "difference", "axial")
        assert difference[10, 14].tolist() == colours[round((100 / 400 + 1) / 2 * 255)]
        assert difference[0, 0].tolist() == colours[128]
        act(page, lambda: page.select_option("#spread", "100"))
        assert pixels(page, "difference", "axial")[10, 14].tolist() == colours[255]


def test_proportions_are_those_of_the_patient(browser, case_page):
    with visit(browser, case_page) as page:
        ready(page)
        for plane, (width_mm, height_mm) in {"axial": (56, 60), "coronal": (56, 60), "sagittal": (60, 60)}.items():
            for box in [view.bounding_box() for view in page.locator(f".view[data-plane={plane}]").all()]:
                assert box["width"] / box["height"] == pytest.approx(width_mm / height_mm, rel=0.01)


def test_a_case_has_its_histograms_and_scores(browser, case_page, tmp_path):
    with visit(browser, case_page) as page:
        ready(page)
        assert page.locator("section[aria-label=Histograms] svg").count() == 2
        cells = page.locator("section[aria-label='Scores and values'] td").all_inner_texts()
        assert cells[:3] == ["0.5", "-", "2.5000"]
        page.pdf(path=tmp_path / "case.pdf")
        page.emulate_media(media="print")
        assert not page.is_visible(".controls") and page.is_visible(".view canvas")
    assert (tmp_path / "case.pdf").stat().st_size > 20_000


def test_a_case_without_truth_has_mr_and_ct_only(browser, tmp_path):
    mr, ct, _ = patient()
    with visit(browser, write_case_page(tmp_path / "c", "p", mr, ct).as_uri(), color_scheme="dark") as page:
        ready(page)
        assert page.locator(".view").count() == 6 and page.locator("#spread").count() == 0


@pytest.mark.parametrize("with_truth", [False, True])
def test_an_uncertainty_is_a_layer_with_colours_and_a_bar(browser, tmp_path, with_truth):
    mr, ct, reference = patient()
    deviation = np.zeros(ct.array.shape, np.float32)
    deviation[2:-2, 4:-4, 5:-5] = 20
    deviation[6, 10, 15] = 90  # less than 2 % of the voxels: colours end at 25 HU
    page_file = write_case_page(
        tmp_path / "c", "p", mr, ct, reference if with_truth else None, uncertainty=mr.with_array(deviation)
    )
    with visit(browser, page_file.as_uri()) as page:
        ready(page)
        titles = page.locator("#plane-axial figcaption").all_inner_texts()
        difference = ["true CT", "synthetic CT \N{MINUS SIGN} true CT"] if with_truth else []
        assert titles == ["MR", "synthetic CT", *difference, "uncertainty (standard deviation)"]
        colours = page.evaluate("page.uncertainty.colours")
        assert colours[0] == [0, 0, 3] and sum(colours[255]) > 600  # from black to bright yellow
        seen = pixels(page, "uncertainty", "axial")
        assert seen[9, 9].tolist() == colours[round(20 / 25 * 255)] and seen[0, 0].tolist() == colours[0]
        assert seen[10, 14].tolist() == colours[255]  # x = 15, less one cut off
        assert (page.inner_text("#uncertainty-low"), page.inner_text("#uncertainty-high")) == ("0 HU", "25 HU")
        assert page.input_value("#reach") == "25"
        act(page, lambda: page.select_option("#reach", "100"))
        assert pixels(page, "uncertainty", "axial")[10, 14].tolist() == colours[round(0.9 * 255)]
        assert page.inner_text("#uncertainty-high") == "100 HU"
        gray = shown_gray(300, 40, 800)
        assert pixels(page, "ct", "axial")[10, 10].tolist() == [gray] * 3  # the CT stays as it is
        assert re.search(r"uncertainty\s+(20|90)\.0 HU", page.inner_text("#readout"))
    write_case_page(tmp_path / "c", "p", mr, ct)
    assert not (tmp_path / "c/data/uncertainty.js").exists()


def test_pages_could_not_even_ask_the_network(browser, case_page):
    """The policy in the page refuses it, whatever a script might try."""
    attempt = """() => new Promise((done) => {
      document.addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective));
      new Image().src = 'http://127.0.0.1:9/x.png';
      setTimeout(() => done('nothing stopped it'), 3000);
    })"""
    with pytest.raises(AssertionError, match="Content Security Policy"), visit(browser, case_page) as page:
        ready(page)
        assert page.evaluate(attempt) == "img-src"
        send = attempt.replace(
            "new Image().src = 'http://127.0.0.1:9/x.png'", "fetch('http://127.0.0.1:9/').catch(() => 0)"
        )
        assert page.evaluate(send) == "connect-src"


def test_a_page_without_its_data_says_so(browser, tmp_path):
    mr, ct, _ = patient()
    page_file = write_case_page(tmp_path / "c", "p", mr, ct)
    (tmp_path / "c/data/ct.js").unlink()
    with pytest.raises(AssertionError, match=r"failed: .*ct\.js"), visit(browser, page_file.as_uri()) as page:
        page.wait_for_selector(".warning")
        assert "data/ct.js is missing: keep the whole folder together" in page.inner_text(".warning")


# ------------------------------------------------------------------ a cohort in the browser


@pytest.fixture
def cohort_page(tmp_path):
    mr, ct, _ = patient()
    rows = [
        CohortRow(f"p{k}", {"mae": mae, "ssim": 0.9 - mae / 1000}, note="" if k else "first")
        for k, mae in enumerate((100.0, 9.5, 30.0))
    ]
    first = write_case_page(tmp_path / EVIL.replace("/", "_"), EVIL, mr, ct)
    rows.append(CohortRow(EVIL, {"mae": 20.0, "ssim": float("nan")}, first))
    rows.append(CohortRow("p3", {"body_l": 60.0}))
    rows.append(CohortRow("broken", failed=True, note="no body"))
    return write_cohort_page(tmp_path, rows, "cohort").as_uri()


def test_the_tables_sort_search_and_lead_to_the_cases(browser, cohort_page):
    with visit(browser, cohort_page) as page:
        page.wait_for_selector("body[data-ready=true]")
        scores, every = page.locator("table").all()

        def cases(table):
            return table.locator("tbody tr:visible [data-case]").all_inner_texts()

        assert page.locator("h3").all_inner_texts() == [
            "Scores against the true CT", "All cases: values that need no true CT",
        ]  # fmt: skip
        assert scores.locator("th button").all_inner_texts() == ["case", "MAE [HU]", "SSIM"]
        assert every.locator("th button").all_inner_texts() == ["case", "body [l]", "warnings and notes"]
        # The worst first in both tables, as the arrow says; then those without a score, as they were given.
        assert cases(scores) == ["p0", "p2", EVIL, "p1"] and cases(every) == ["p0", "p2", EVIL, "p1", "p3", "broken"]
        assert page.locator("th[aria-sort=descending]").all_inner_texts() == ["MAE [HU]"]
        said = page.locator("p.note:has-text('Worst first, by MAE')").inner_text()
        assert said.endswith("click again for the other order.")
        for name, button in (("mae", "MAE [HU]"), ("body_l", "body [l]")):
            assert page.get_attribute(f"button:text-is('{button}')", "title") == EXPLANATIONS[name]
        page.click("th >> text=MAE [HU]")
        assert cases(scores) == ["p1", EVIL, "p2", "p0"] and cases(every)[:2] == ["p0", "p2"]
        assert page.locator("th[aria-sort=ascending]").inner_text().startswith("MAE")
        page.locator("th >> text=MAE [HU]").press("Enter")  # by keyboard, the other way
        assert cases(scores) == ["p0", "p2", EVIL, "p1"]
        page.click("th >> text=SSIM")
        assert cases(scores) == ["p0", "p2", "p1", EVIL]  # the lowest, which is the worst, first; undefined ones last
        page.click("th >> text=MAE [HU]")
        assert cases(scores) == ["p0", "p2", EVIL, "p1"]  # of errors the highest is the worst
        assert scores.locator("tfoot tr").first.locator("td").first.inner_text() == "39.9"  # mean MAE
        page.fill("#search", "first")  # a note, which stands in the other table
        assert cases(scores) == cases(every) == ["p0"]
        page.fill("#search", "p")
        assert set(cases(every)) == {"p0", "p1", "p2", "p3", EVIL}
        assert page.locator(".boxes svg").count() == 2
        assert page.locator(".boxes svg").first.locator("circle").count() == 4
        page.fill("#search", "alert")
        assert page.inner_text("#count") == "1 of 6 cases"
        page.click("#cases tbody a")
        ready(page)
        assert page.inner_text("h1") == EVIL


def test_without_scripts_the_worst_case_is_first_and_nothing_speaks_of_clicks(browser, cohort_page):
    with visit(browser, cohort_page, java_script_enabled=False) as page:
        assert page.locator("table").first.locator("[data-case]").first.inner_text() == "p0"
        assert page.locator(".scripted:visible").count() == 0 and page.locator("p.note:visible").count() == 2


def test_warnings_stand_out_in_the_table_and_are_counted(tmp_path):
    rows = [
        CohortRow("p0", {"body_l": 61.5}, note="bone: 2 <pieces>", warnings=("another contrast", "few steps")),
        CohortRow("p1", {"body_l": 4.2}, note="no warnings"),
    ]
    text = write_cohort_page(tmp_path, rows).read_text()
    assert re.findall(r'<p class="warning">(.*?)</p>', text) == ["warning: another contrast", "warning: few steps"]
    assert "<p>bone: 2 &lt;pieces&gt;</p>" in text and "<p>2 cases, 1 with warnings</p>" in text
    assert "with warnings" not in write_cohort_page(tmp_path, rows[1:]).read_text()


def test_an_axis_of_dice_ends_at_one():
    charts = [
        box_chart([0.9, 0.96, 1.0], ["a", "b", "c"], [None] * 3, "Dice", most).render() for most in (1.0, math.inf)
    ]
    ends, beyond = ([float(x) for x in re.findall(r'cx="([\d.]+)"', chart)] for chart in charts)
    assert ends[-1] == 540 > beyond[-1]  # the chart is 560 wide, and its axis 20 shorter at each side
    assert max(float(text) for text in re.findall(r"<text[^>]*>([\d.]+)</text>", charts[0])) == 1


def test_points_that_are_all_zero_have_an_axis_from_zero():
    chart = box_chart([0.0, 0.0], ["a", "b"], [None, None], "unusual slices").render()
    ticks = [float(tick) for tick in re.findall(r"<text[^>]*>([^<]+)</text>", chart)]
    assert min(ticks) == 0 and max(ticks) == 1


def test_a_cohort_without_a_true_ct_has_one_table(tmp_path):
    page = Page(write_cohort_page(tmp_path, [CohortRow("p0", {"body_l": 61.5}), CohortRow("p1", {"body_l": 4.25})]))
    assert page.elements.count("table") == 1 and "h3" not in page.elements
    assert page.texts["button"] == ["case", "body [l]"]
    assert "61.50" in page.texts["td"] and "32.88" in page.texts["td"]  # and the mean
    assert page.texts["tfoot"] and page.texts["td"][-2:] == ["-", "2"]  # of two cases there is no standard deviation


def test_notes_look_unlike_warnings(tmp_path):
    mr, ct, _ = patient()
    said = {"warnings": ["look at this", "and at that"], "notes": ["the series leaves out StudyID"]}
    text = write_case_page(tmp_path, "p", mr, ct, details=said).read_text()
    assert '<p class="warning" role="note">warning: look at this</p>' in text
    assert '<p class="warning" role="note">warning: and at that</p>' in text
    assert text.count("<dd>look at this</dd>") == text.count("<dd>and at that</dd>") == 1
    assert '<p class="note" role="note">note: the series leaves out StudyID</p>' in text


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_cases_are_points_without_a_box(tmp_path, count):
    rows = [CohortRow(f"p{k}", {"mae": 50.0 + 7 * k, "body_l": 3.0}) for k in range(count)]
    file = write_cohort_page(tmp_path, rows)
    page = Page(file)
    drawn = [value for name, value in page.attributes if name == "class" and value in ("box", "median", "whisker")]
    assert page.elements.count("circle") == count
    assert drawn == (["whisker", "box", "median"] if count == 4 else [])
    (note,) = [text for text in page.texts["p"] if text.startswith("Each point is a case")]
    assert ("quartiles" in note) == (count == 4)
    assert (", 1 case</figcaption>" in file.read_text()) == (count == 1)


def test_every_figure_is_explained_in_one_sentence_with_its_unit():
    assert EXPLANATIONS.keys() == FIGURES.keys()
    for name, (title, _) in FIGURES.items():
        text, unit = EXPLANATIONS[name], re.search(r"\[(.*)\]", title)
        assert text.endswith(".") and ". " not in text
        assert f"in {dict(l='litres').get(unit[1], unit[1])}" in text if unit else "without a unit" in text


# ------------------------------------------------------------------ a training in the browser


def train(folder, epochs, steps=20, visuals=None, seconds=None, ends_after=None):
    length = None if seconds else ends_after or epochs
    run = RunInfo(EVIL, folder, {"dataroot": EVIL}, {"torch": "2"}, length, steps, seconds)
    style = VisualsStyle(IntensityMap.window(-1000, 1400))
    with TrainingLog(run, style, [("log files", Console(folder)), ("page", TrainingPage(run))], (1, 0)) as training_log:
        for epoch in range(1, epochs + 1):
            training_log.start_epoch(epoch, 0)
            for iteration in range(5, steps + 1, 5):
                training_log.step(0.0)
                values = {"G": torch.tensor(10.0 / epoch), "gan_A": torch.tensor(0.5), "gan_B": torch.tensor(0.25)}
                training_log.write_losses(epoch, iteration, values, 2e-4)
            training_log.write_pictures(epoch, steps, visuals or {"real_A": torch.zeros(1, 1, 16, 16)})
            training_log.end_epoch()
    return folder / "web/index.html"


def looks(page) -> bool:
    """Tell whether the page looks for news every 30 seconds; it shows the box for that just then."""
    did = page.evaluate("() => { const before = refresh; let did = false; refresh = () => { did = true; }; look();"
                        " refresh = before; return did; }")  # fmt: skip
    assert page.locator("#refresh").is_visible() == did
    return did


def test_the_page_of_a_training(browser, tmp_path):
    with visit(browser, train(tmp_path, 4).as_uri()) as page:
        page.wait_for_selector("body[data-ready=true]")
        page.wait_for_selector("path.line")
        assert page.inner_text("h1") == EVIL
        assert "epoch 4 of 4" in page.inner_text("#status") and "finished" in page.inner_text("#status")
        assert not looks(page)
        places = page.locator("#earlier button").all_inner_texts()
        assert [text.strip() for text in places] == [f"epoch {epoch}, iteration 20" for epoch in (4, 3, 2, 1)]
        wait_until(page, "document.getElementById('sheet').naturalWidth > 0")
        assert page.inner_text("#where") == "epoch 4, iteration 20 (newest)"
        page.focus("#time")
        page.keyboard.press("ArrowLeft")
        assert page.inner_text("#where") == "epoch 3, iteration 20"
        assert page.locator(".chart").count() == 4  # G, adversarial, learning rate, seconds
        titles = page.locator(".chart figcaption").all_inner_texts()
        assert titles == ["Total", "Adversarial loss of the generators", "Learning rate", "Seconds a step"]
        curve = page.get_attribute("path[data-name=G]", "d")
        assert len(re.findall("[ML]", curve)) == 16
        last_height = [float(y) for y in re.findall(r"[\d.]+ ([\d.]+)", curve)]
        assert last_height == sorted(last_height)  # G falls, which is down: larger y
        assert page.inner_text("#chart-0 .readout").split() == ["G", "2.5"]
        assert page.inner_text("#chart-1 .readout").split() == [*"MR to CT gan_A 0.5 CT to MR gan_B 0.25".split()]
        assert page.locator("#chart-1 .key").all_inner_texts() == ["gan_A", "gan_B"]


def test_one_record_is_a_marker_and_said_to_be_one(browser, tmp_path):
    with visit(browser, train(tmp_path, 1, steps=5).as_uri()) as page:
        page.wait_for_selector("#chart-0 circle.dot")
        assert page.locator(".chart circle.dot").count() == 5  # G, gan_A, gan_B, learning rate, seconds
        assert page.locator(".chart text:text-is('one record so far')").count() == 4
        assert page.locator("details").count() == 2 and page.locator("details[open]").count() == 0
        with (tmp_path / "web/data/curves.js").open("a") as file:
            file.write("point(2,2e-4,0.5,7,1,1);\n")
        page.evaluate("refresh()")
        wait_until(page, "!document.querySelector('.chart circle')")
        assert page.locator("text=one record so far").count() == 0


@pytest.mark.parametrize(
    ("seconds", "start", "ends"),
    [
        (600, "epoch 2 · ", ("trains for 10 min in all", "ended")),
        (None, "epoch 2 of 4 · ", ("about 67 min left", "stopped")),
    ],
)
def test_time_is_left_while_a_training_runs_only(browser, tmp_path, seconds, start, ends):
    """By the clock no last epoch is named. 2 of 4 epochs of 20 steps are left, at 100 s a step."""
    file = tmp_path / "web/data/curves.js"
    running, over = ends
    with visit(browser, train(tmp_path, 2, seconds=seconds, ends_after=4).as_uri()) as page:
        page.wait_for_selector("body[data-ready=true]")

        def status(content: str) -> str:
            file.write_text(content)
            page.evaluate("refresh()")
            said = page.inner_text("#status")
            assert said.startswith(start)
            assert looks(page) == (not said.endswith("ended"))  # a run that was stopped may be resumed
            return said.rpartition(" · ")[2]

        content = re.sub(r"(point\([^,]*,[^,]*,)[^,]*", r"\g<1>100", file.read_text())
        assert content.endswith("ended();\n") and status(content) == over
        content = content.removesuffix("ended();\n")
        assert status(content) == running
        old = re.sub(r"updated\((\d+)\)", lambda found: f"updated({int(found[1]) - 1800})", content)
        assert status(old) == "last heard of 30 min ago"  # killed, or it validates
        assert status(old + "ended();\n") == over


def test_curves_zoom_by_mouse_and_by_keyboard(browser, tmp_path):
    with visit(browser, train(tmp_path, 4).as_uri()) as page:
        page.wait_for_selector("path.line")
        ticks = "[...document.querySelectorAll('#chart-0 text[text-anchor=middle]')].map((t) => Number(t.textContent))"
        assert max(page.evaluate(ticks)) == 4
        page.locator("#chart-0").scroll_into_view_if_needed()
        box = page.locator("#chart-0 svg").bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.55, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 50, steps=4)
        page.mouse.up()
        wait_until(page, "!document.getElementById('whole').disabled")
        zoomed = page.evaluate(ticks)
        assert min(zoomed) >= 1.5 and max(zoomed) <= 3.2
        page.click("#whole")
        wait_until(page, "document.getElementById('whole').disabled")
        page.focus("#chart-0")
        page.keyboard.press("+")
        wait_until(page, "!document.getElementById('whole').disabled")
        page.keyboard.press("0")
        wait_until(page, "document.getElementById('whole').disabled")


def test_new_records_appear_without_reloading(browser, tmp_path):
    with visit(browser, train(tmp_path, 2).as_uri()) as page:
        page.wait_for_selector("path.line")
        with (tmp_path / "web/data/curves.js").open("a") as file:
            file.write("point(3,2e-4,0.5,7,1,1);\n")
        page.evaluate("refresh()")
        wait_until(page, "document.querySelector('#chart-0 .readout').textContent.includes('7')")


def bytes_written() -> int:
    """What this process has written so far, to any file."""
    return int(re.search(r"^wchar: (\d+)", Path("/proc/self/io").read_text(), re.M)[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts what a process writes")
def test_an_update_costs_the_same_in_any_epoch(tmp_path, monkeypatch):
    """The records and the picture of epoch 200 write what those of epoch 5 did, and curves are seldom written anew."""
    written = Counter()

    def measured(method):
        def measure(self, epoch, *rest):
            before = bytes_written()
            method(self, epoch, *rest)
            written[epoch] += bytes_written() - before

        return measure

    for name in ("write_losses", "write_pictures"):
        monkeypatch.setattr(TrainingLog, name, measured(getattr(TrainingLog, name)))
    noise = torch.rand((1, 1, 192, 192), generator=torch.Generator().manual_seed(0))
    page = train(tmp_path, 200, steps=100, visuals={"real_A": noise})  # 4000 records: twice what curves may hold
    assert 10_000 < written[200] <= 1.5 * written[5]
    assert sum(written[epoch] for epoch in range(101, 201)) / 100 <= 1.5 * written[5]
    assert (page.parent / "data/curves.js").read_text().count("point(") <= 2000
    assert len(list((page.parent / "images").iterdir())) <= training_page.MAX_PICTURES


# ------------------------------------------------------------------ what leads to pages


def adapt(folder, monkeypatch, write=None):
    """Run `test_adapt.py` with a mask, where the networks' work is done already; `write` in place of its page's."""
    mr, ct, _ = patient()
    body = np.zeros(mr.array.shape, np.uint8)
    body[4:6, 8:10, 10:20] = 1
    write_volume(mr, folder / "mr.nii.gz")
    write_volume(mr.with_array(body), folder / "mask.nii.gz")
    settings = SimpleNamespace(
        direction="AtoB", contrasts=("mr",), training=None, steps=None, solid_body=False, caution="", unfinished=""
    )
    monkeypatch.setattr(test_adapt, "find_generator", lambda *_: SimpleNamespace(settings=settings, suffix=""))
    monkeypatch.setattr(test_adapt, "load_synthesiser", lambda *_: SimpleNamespace(settings=settings, model=None))

    monkeypatch.setattr(test_adapt, "model_hash", lambda *_: "0" * 64)
    monkeypatch.setattr(test_adapt, "describe_computation", lambda *_: {})

    def made(source, synthesiser, body, *_, look, **__):
        look(synthesiser, SimpleNamespace(body=body, to_ct=True)).finish(ct)
        return ct

    monkeypatch.setattr(test_adapt, "synthesize_volume", made)
    for step in ("_begin", "_finish"):
        monkeypatch.setattr(Check, step, lambda *_: None)
    if write:
        monkeypatch.setattr(test_adapt, "write_case_page", write)
    inputs = ["--input", str(folder / "mr.nii.gz"), "--mask", str(folder / "mask.nii.gz")]
    code = test_adapt.main(["--name", "m", *inputs, "--output", str(folder / "out.nii.gz")])
    return code, body.astype(bool)


def test_the_mask_of_the_command_is_the_body_of_the_page(tmp_path, monkeypatch):
    given = {}
    code, body = adapt(tmp_path, monkeypatch, lambda *_, **named: given.update(named))
    assert code == 0
    np.testing.assert_array_equal(given["body"], body)


@pytest.mark.parametrize("error", [MemoryError(), UnicodeEncodeError("utf-8", "\udcff", 0, 1, "no"), OSError("full")])
def test_no_failure_of_a_page_costs_the_result(tmp_path, monkeypatch, caplog, error):
    def fail(*_, **__):
        raise error

    assert adapt(tmp_path, monkeypatch, fail)[0] == 1
    (warning,) = [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"]
    why = str(error) or "MemoryError"
    assert warning == f"warning: page not made: {why}; the volume itself is written: {tmp_path / 'out.nii.gz'}"
    assert (tmp_path / "out.nii.gz").exists() and (tmp_path / "out.json").exists()


START = ["--dataroot", "d", "--name", "n", "--display_id", "1", "--display_start", "--display_server"]


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1"),
        ("localhost", "http://localhost"),
        ("http://localhost/", "http://localhost"),
        ("HTTP://LocalHost", "http://localhost"),
    ],
)
def test_a_server_started_here_is_known_however_it_is_written(given, address):
    assert train_options.parse([*START, given]).display.display_server == address


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("localhost.example.org", "is elsewhere"),
        ("http://127.0.0.1@far", "is elsewhere"),
        ("https://localhost", "is elsewhere"),
        ("localhost:9000", "the port in --display_port"),
    ],
)
def test_no_server_is_started_elsewhere(given, message, capsys):
    with pytest.raises(SystemExit):
        train_options.parse([*START, given])
    assert message in capsys.readouterr().err
