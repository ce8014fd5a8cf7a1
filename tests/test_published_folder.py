"""A folder as the published code has it, from PNG to images: the shape extractor, a training, `testA`, one page."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import test_pipeline
import train
from ct_segmentation import predict
from ct_segmentation import train as extractor_command
from ct_segmentation.image_masks import image_body
from ct_segmentation.training_data import split_images
from data.errors import InputError
from data.loading.images import read_gray
from data.loading.slices import ImageFolderSlices
from data.volumes.volume import Volume, write_volume
from evaluation.metrics import dice
from models.inference_settings import read_inference_settings
from models.networks import build_generator
from models.shape_extractor import load_extractor
from models.state_dicts import save_network_weights
from models.test_model import TestModel
from tests.cohort_data import NAME, SETTINGS, write_dicom_patient, write_model

CPU = torch.device("cpu")
FIXED = replace(SETTINGS, mr_window=(0.0, 400.0), spacing_mm=None)
SIDE = 96


def body(centre: float, radius: float = 30.0, side: int = SIDE) -> np.ndarray:
    y, x = np.indices((side, side)) * SIDE / side
    return np.hypot(y - 48, x - centre) < radius


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def ct_pixels(inside: np.ndarray) -> np.ndarray:
    """Tissue of 40 HU in air, in the published window of 8 bits."""
    return np.where(inside, np.rint(1040 / 2400 * 255), 0).astype(np.uint8)


@pytest.fixture
def dataroot(tmp_path) -> Path:
    """Two patients of MR with masks in sub-folders, three of CT without masks, one of them larger than the others."""
    root = tmp_path / "set"
    for k in range(2):
        for z in range(2):
            inside = body(40 + 4 * z)
            save(root / f"trainA/p{k}/mr_{z}.png", np.where(inside, 150, 2).astype(np.uint8))
            save(root / f"maskA/p{k}/mrmask_{z}.png", 255 * inside.astype(np.uint8))
            save(root / f"testA/t{k}/mr_{z}.png", np.where(inside, 150, 2).astype(np.uint8))
    for k in range(3):
        for z in range(2):
            save(root / f"trainB/q{k}/ct_{z}.png", ct_pixels(body(40 + 4 * z, side=SIDE if k else 2 * SIDE)))
    return root


def test_bodies_of_ct_images_are_found_whatever_their_scale():
    """The body is taken as that of an image of 500 mm; two thirds of it, or half more, give the same."""
    for radius in (20.0, 30.0, 45.0):
        inside = body(48, radius)
        found = image_body((ct_pixels(inside) / 255.0 * 2400 - 1000).astype(np.float32)[None])
        assert dice(found, inside) > 0.98
    assert not image_body(np.full((1, SIDE, SIDE), -1000, np.float32)).any()
    with_couch = body(48) | (np.indices((SIDE, SIDE))[0] == 90)
    found = image_body((ct_pixels(with_couch) / 255.0 * 2400 - 1000).astype(np.float32)[None])
    assert not found[90].any() and dice(found, body(48)) > 0.98


def test_patients_are_sub_folders_and_blocks_where_there_are_none(dataroot, caplog):
    images = ImageFolderSlices(dataroot / "trainB", dataroot, with_masks=False)
    sides = split_images(images, 0.34, seed=0)
    found = [{images.names[k].split("/")[0] for case in side for k in case.indices} for side in sides]
    assert [len(side) for side in found] == [2, 1] and not found[0] & found[1]
    flat = ImageFolderSlices(dataroot / "trainB/q1", dataroot, with_masks=False)
    assert not caplog.records
    train_part, validation = split_images(flat, 0.2, seed=0)
    assert [case.indices for case in train_part + validation] == [(0,), (1,)]
    assert "the last 1 images by name are used for validation" in caplog.text
    (dataroot / "trainB/q1/ct_0.png").unlink()
    with pytest.raises(InputError, match="one image; expected 2 or more"):
        split_images(ImageFolderSlices(dataroot / "trainB/q1", dataroot, with_masks=False), 0.2, seed=0)


def test_the_extractor_trains_on_the_folder_and_a_training_takes_it(dataroot, tmp_path, caplog):
    """From PNG to PNG: masks are computed, the extractor learns, the third arm trains, `testA` becomes images."""
    small = ["--loadSize", "64", "--fineSize", "64", "--device", "cpu"]
    with caplog.at_level("INFO"):
        extractor_command.main(
            ["--dataroot", str(dataroot), "--width", "4", "--epochs", "40", "--lr", "1e-2", "--batch_size", "2", *small]
        )
    assert "maskB: missing; body masks of 6 images are computed" in caplog.text
    for k in range(3):
        mask = read_gray(dataroot / f"maskB/q{k}/ct_1.png").pixels > 0
        assert dice(mask, body(44, side=SIDE if k else 2 * SIDE)) > 0.98
    extractor = load_extractor(dataroot / "shape_extractor")
    assert (extractor.settings.size, extractor.settings.spacing_mm, extractor.settings.n_classes) == (64, None, 1)
    scores = json.loads((dataroot / "shape_extractor/validation.json").read_text())["dice"]
    assert len(scores) == 1 and min(row["body"] for row in scores.values()) > 0.9
    predict.main(["--model", str(dataroot / "shape_extractor"), "--input", str(dataroot / "trainB"),
                  "--output", str(tmp_path / "found"), "--device", "cpu"])  # fmt: skip
    for k in range(3):  # at each image's own size
        found = read_gray(tmp_path / f"found/q{k}/ct_0.png").pixels > 0
        assert dice(found, body(40, side=SIDE if k else 2 * SIDE)) > 0.9
    with pytest.raises(InputError, match="takes images, not volumes"):
        predict.segment_volume(extractor, Volume(np.full((2, 8, 8), -1000, np.int16)))

    caplog.clear()
    checkpoints = ["--checkpoints_dir", str(tmp_path / "c"), "--name", "arm"]
    line = ["--dataroot", str(dataroot), *checkpoints, *small, "--mr_window", "0", "400", "--netG", "resnet_6blocks"]
    with caplog.at_level("INFO"):
        assert train.main([*line, "--ngf", "2", "--ndf", "2", "--n_epochs", "1", "--n_epochs_decay", "0"]) == 0
    said = [record.getMessage() for record in caplog.records]
    assert any("trained on set" in text and not text.startswith("warning") for text in said)  # of this data set
    settings = read_inference_settings(tmp_path / "c/arm")
    assert (settings.size, settings.spacing_mm, settings.mr_window) == (64, None, (0.0, 400.0))
    assert (
        test_pipeline.main(
            [*checkpoints, "--input_dir", str(dataroot), "--results_dir", str(tmp_path / "out"), "--device", "cpu"]
        )
        == 0
    )
    made = sorted(path.name for path in (tmp_path / "out/arm/test_latest/images").iterdir())
    assert made == [f"t{k}__mr_{z}_{kind}.png" for k in range(2) for z in range(2) for kind in ("fake", "real")]


def convert(root: Path, folder: Path, *more: str) -> int:
    where = ["--name", NAME, "--checkpoints_dir", f"{root}/checkpoints", "--results_dir", f"{root}/out"]
    return test_pipeline.main([*where, "--input_dir", str(folder), "--device", "cpu", "--precision", "fp32", *more])


class Negative(torch.nn.Module):
    def forward(self, x):
        return -x


def known(monkeypatch) -> None:
    """Let every model give the negative of what it takes."""
    build = TestModel.__init__

    def built(self, *of):
        build(self, *of)
        self.netG = Negative().eval()

    monkeypatch.setattr(TestModel, "__init__", built)


def test_images_come_back_at_their_size_in_16_bits_of_the_window(tmp_path, monkeypatch):
    """The negative of a ramp, at the size that the model takes and at three times it."""
    write_model(tmp_path, settings=FIXED)
    known(monkeypatch)
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    save(tmp_path / "set/testA/p/a.png", ramp)
    save(tmp_path / "set/testA/b.png", np.full((96, 60), 51, np.uint8))
    save(tmp_path / "set/trainA/no.png", ramp)
    assert convert(tmp_path, tmp_path / "set") == 0
    out = tmp_path / "out" / NAME / "test_latest"
    fake = read_gray(out / "images/p__a_fake.png")
    assert fake.full_range == 65535
    np.testing.assert_allclose(fake.pixels, 65535 - ramp.astype(float), atol=1)
    flat = read_gray(out / "images/b_fake.png").pixels
    assert flat.shape == (96, 60) and np.all(np.abs(flat - 0.8 * 65535.0) <= 1)
    np.testing.assert_array_equal(read_gray(out / "images/b_real.png").pixels, np.full((96, 60), 51))
    page = (out / "index.html").read_text()
    assert all(f'src="images/{name}' in page for name in ("p__a_real", "p__a_fake", "b_real", "b_fake"))
    assert "0 and 400" in page and "-1000 and 1400" in page and "no.png" not in page
    assert convert(tmp_path, tmp_path / "set", "--num_test", "1") == 0  # its own are renewed


def test_without_html_there_is_no_page_and_threads_change_no_image(tmp_path, monkeypatch):
    write_model(tmp_path, settings=FIXED)
    known(monkeypatch)
    together, read = [], ImageFolderSlices.read
    reading = threading.Semaphore(0)

    def noted(self, number, **kwargs):
        """Let the first image of the second run wait until another thread reads the second."""
        if number == 1:
            reading.release()
        if number == 0 and (out / "images").exists():
            together.append(reading.acquire(timeout=60))
        return read(self, number, **kwargs)

    monkeypatch.setattr(ImageFolderSlices, "read", noted)
    for k in range(5):
        save(tmp_path / f"in/{k}.png", np.full((32, 32), 20 * k, np.uint8))
    out = tmp_path / "out" / NAME / "test_latest"
    assert convert(tmp_path, tmp_path / "in") == 0
    assert (out / "index.html").exists() and not together
    reading.acquire()
    before = {path.name: path.read_bytes() for path in (out / "images").iterdir()}
    assert convert(tmp_path, tmp_path / "in", "--no_html", "--num_threads", "3") == 0
    assert not (out / "index.html").exists()  # the earlier one is gone too
    assert {path.name: path.read_bytes() for path in (out / "images").iterdir()} == before
    assert together == [True]


def test_nothing_of_others_is_replaced(tmp_path):
    write_model(tmp_path, settings=FIXED)
    save(tmp_path / "in/a.png", np.full((32, 32), 9, np.uint8))
    other = save(tmp_path / "out" / NAME / "test_latest/images/a_fake.png", np.zeros((2, 2), np.uint8))
    before = other.read_bytes()
    with pytest.raises(InputError, match=r"a_fake\.png"):
        convert(tmp_path, tmp_path / "in")
    assert other.read_bytes() == before
    assert convert(tmp_path, tmp_path / "in", "--overwrite") == 0
    assert other.read_bytes() != before


def test_the_way_back_takes_test_b(tmp_path, monkeypatch):
    folder = write_model(tmp_path, settings=FIXED) / NAME
    save_network_weights(build_generator(FIXED.generator), folder / "latest_net_G_B.pth")
    known(monkeypatch)
    save(tmp_path / "set/testA/a.png", np.full((32, 32), 51, np.uint8))
    with pytest.raises(InputError, match="has testA and no testB; name the folder to convert"):
        convert(tmp_path, tmp_path / "set", "--direction", "BtoA")
    save(tmp_path / "set/testB/b.png", np.full((32, 32), 51, np.uint8))
    assert convert(tmp_path, tmp_path / "set", "--model_suffix", "_B") == 0
    out = tmp_path / "out" / f"{NAME}_BtoA/test_latest"
    assert [path.name for path in sorted((out / "images").iterdir())] == ["b_fake.png", "b_real.png"]
    assert "synthetic MR" in (out / "index.html").read_text()


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"mr_window": "percentile"}, [], "was trained with --mr_window percentile, but images need one fixed window"),
        ({"slab": 3, "generator": replace(FIXED.generator, input_nc=3, output_nc=3)}, [], "takes slabs"),
        ({}, ["--dicom"], "--dicom: .* holds images"),
        ({}, ["--spacing_mm", "2"], "--spacing_mm: .* holds images"),
        ({}, ["--air_outside"], "--air_outside: .* holds images"),
        ({}, ["--pattern", "*"], "--pattern: .* holds images"),
    ],
)
def test_models_and_options_that_take_volumes_are_refused(tmp_path, changes, more, message):
    write_model(tmp_path, settings=replace(FIXED, **changes))
    save(tmp_path / "in/a.png", np.full((32, 32), 9, np.uint8))
    with pytest.raises(InputError, match=message):
        convert(tmp_path, tmp_path / "in", *more)
    assert not (tmp_path / "out").exists()


def test_pictures_beside_volumes_are_no_images_to_convert(tmp_path):
    """A screenshot beside a patient's volume, or beside DICOM, is passed over as before."""
    write_model(tmp_path)
    write_dicom_patient(tmp_path / "in/T1")
    save(tmp_path / "in/T1/shot.png", np.full((32, 32), 9, np.uint8))
    assert convert(tmp_path, tmp_path / "in") == 0
    assert (tmp_path / "out" / NAME / "T1.nii.gz").exists() and not (tmp_path / "out" / NAME / "test_latest").exists()
    write_volume(Volume(np.zeros((2, 2, 2), np.float32)), tmp_path / "v/a.nii.gz")
    save(tmp_path / "v/shot.png", np.full((32, 32), 9, np.uint8))
    assert convert(tmp_path, tmp_path / "v") == 1  # the volume is a case, if a flat one
