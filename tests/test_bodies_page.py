"""The page of body masks: outlines where the masks end, doubtful masks first, drawn anew where something changed."""

import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image, ImageColor

from data.errors import InputError
from data.volumes.volume import Volume, read_volume, write_volume
from scripts import prepare_dataset
from tests.test_preparation import ct_volume, mr_volume
from visualization import bodies_page
from visualization.mask_sheet import SHEET_SIZE, fitted, mask_sheet, outlined, sheet_slices
from visualization.windows import MARK_COLOUR

YELLOW = ImageColor.getrgb(MARK_COLOUR)


@pytest.fixture
def raw(tmp_path):
    for k in range(2):
        write_volume(mr_volume(scale=1 + k), tmp_path / f"mr/p{k}.nii.gz")
    write_volume(ct_volume(), tmp_path / "ct/q #1.nii.gz")
    return tmp_path


def prepare(raw, *arguments) -> int:
    globs = ["--mr", f"{raw}/mr/*", "--ct", f"{raw}/ct/*"]
    return prepare_dataset.main([*globs, "--out", str(raw / "set"), "--size", "64", "--workers", "1", *arguments])


def pictures(raw) -> dict[str, int]:
    """Return when each picture was written, by its path."""
    return {
        file.relative_to(raw / "set/bodies").as_posix(): file.stat().st_mtime_ns
        for file in (raw / "set/bodies/pictures").rglob("*.png")
    }


def test_slices_are_spaced_evenly_from_the_head_down():
    assert sheet_slices(80) == [75, 65, 55, 45, 35, 25, 15, 5]
    assert sheet_slices(3) == [2, 1, 0]


def test_slices_fill_their_box_with_as_many_pixels_a_mm_each_way():
    assert fitted((10, 40), (5.0, 2.0), (200, 200)) == (200, 125)  # 50 mm high, 80 mm wide
    assert fitted((100, 10), (8.0, 2.0), (200, 404)) == (10, 404)


def test_an_outline_is_the_mask_s_outermost_pixels_and_dark_around():
    inside = np.zeros((5, 6), bool)
    inside[1:4, :4] = True  # up to the left border
    pixels = np.array(outlined(np.full((5, 6), 200, np.uint8), inside, (60, 50)))
    yellow = (pixels == YELLOW).all(axis=2)
    expected = np.zeros((50, 60), bool)
    expected[10:40, :40] = True
    expected[11:39, 1:39] = False
    np.testing.assert_array_equal(yellow, expected)
    assert (pixels[9, :40] == 0).all() and (pixels[10:40, 40] == 0).all() and (pixels[8] == 200).all()
    assert (pixels[11:39, 1:39] == 200).all()


def test_a_sheet_shows_slices_in_patient_order_at_their_places():
    """Stored from the head down; slice k of eight has a mask whose left half ends k voxels from the border."""
    array = np.full((8, 20, 20), -1000, np.int16)
    mask = np.zeros(array.shape, bool)
    for k in range(8):
        mask[7 - k, :, : k + 2] = True
    volume = Volume(array, (1.0, 1.0, 1.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, -1))
    sheet = mask_sheet(volume, mask, "B")
    assert sheet.size == SHEET_SIZE == (1220, 404)
    pixels = np.array(sheet)
    for k in range(8):
        column, line = (7 - k) % 4, (7 - k) // 4
        x, y = (2 + column) * 204, line * 204
        row = (pixels[y + 100, x : x + 200] == YELLOW).all(axis=1)
        assert np.flatnonzero(row).tolist() == [0, 10 * (k + 2) - 1]


def test_the_page_shows_every_mask_and_names_its_file(raw, caplog):
    caplog.set_level("INFO")
    assert prepare(raw) == 0
    page = raw / "set/bodies/index.html"
    assert f"look at the body masks first: {page}" in caplog.messages
    text = page.read_text()
    links = [unquote(link) for link in re.findall(r'(?:src|href)="([^"]+)"', text) if link != "data:,"]
    assert links == ["pictures/trainA/p0.png", "pictures/trainA/p1.png", "pictures/trainB/q_1.png"]
    masks = [Path(path) for path in re.findall("<code>([^<]+)</code>", text)]
    assert masks == [page.parent / name for name in ("trainA/p0.nii.gz", "trainA/p1.nii.gz", "trainB/q_1.nii.gz")]
    assert all((page.parent / link).is_file() for link in [*links, *masks])
    assert text.count('loading="lazy"') == 3
    assert re.findall("<h2>([^<]*)</h2>", text) == ["MR to train on: 2", "CT to train on: 1"]
    with Image.open(page.parent / "pictures/trainA/p0.png") as image:
        yellow = (np.array(image)[:200, 408:608] == YELLOW).all(axis=2)
    y, x = np.nonzero(yellow[20:])  # below the slice's number
    radius = np.hypot(y + 20.5 - 100, x + 0.5 - 100) * 120 / 200  # 60 pixels of 2 mm
    assert np.median(radius) == pytest.approx(40, abs=2)


def test_only_what_changed_is_drawn_again(raw, caplog):
    prepare(raw)
    first = pictures(raw)
    page = (raw / "set/bodies/index.html").read_text()
    prepare(raw)
    assert pictures(raw) == first and (raw / "set/bodies/index.html").read_text() == page
    path = raw / "set/bodies/trainA/p0.nii.gz"
    body = read_volume(path)
    write_volume(body.with_array(np.where(np.arange(60) < 30, body.array, 0).astype(np.uint8)), path)
    (raw / "set/bodies/pictures/trainB/q_1.png").write_bytes(b"damaged")
    prepare(raw)
    again = pictures(raw)
    assert {name for name in again if again[name] != first[name]} == {
        "pictures/trainA/p0.png", "pictures/trainB/q_1.png",
    }  # fmt: skip
    text = (raw / "set/bodies/index.html").read_text()
    assert text.count("corrected by hand") == 1 and "supplied" not in text


def test_doubtful_masks_and_failures_come_first(raw):
    mr = mr_volume()
    write_volume(mr.with_array(mr.array + 300), raw / "mr/p1.nii.gz")
    (raw / "ct/bad.nii.gz").write_bytes(b"")
    for _ in range(2):  # the second run reads why from the picture
        assert prepare(raw, "--spacing_mm", "1") == 1  # 90 mm of the CT do not fit
        text = (raw / "set/bodies/index.html").read_text()
        titles = ["Not prepared", "Look at these first: 3"]
        assert re.findall("<h2>([^<]*)</h2>", text) == titles
        assert "bad.nii.gz: the file is empty" in text
        assert text.count("is taken for tissue; if that is air of a shifted MR") == 1
        assert text.count("voxels of the body lie outside the frame of the slices") == 3


def test_a_page_can_be_left_out(raw, caplog):
    caplog.set_level("INFO")
    assert prepare(raw, "--no_html") == 0
    assert not list((raw / "set/bodies").rglob("*.html")) and not list((raw / "set").rglob("*.png"))
    assert f"look at the body masks first: {raw}/set/bodies" in caplog.messages


def test_a_page_that_fails_costs_a_warning(raw, monkeypatch, caplog):
    def fail(*_):
        raise InputError("index.html: cannot be written: full")

    monkeypatch.setattr(bodies_page, "write_document", fail)
    monkeypatch.setattr(bodies_page, "mask_sheet", lambda *_: fail())
    assert prepare(raw) == 0
    warnings = [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"]
    assert warnings == [
        *["warning: no picture of a mask: index.html: cannot be written: full"] * 3,
        "warning: no page of the body masks: index.html: cannot be written: full",
    ]
