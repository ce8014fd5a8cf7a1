"""The commands on a trained shape extractor: predict, eval, import_extractor."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ct_segmentation import eval as score
from ct_segmentation import import_extractor, predict, train
from data.errors import InputError
from data.values.intensity import IntensityMap
from data.volumes.volume import Volume, read_volume, same_grid, write_volume
from models.shape_extractor import FILE_NAME, ExtractorSettings, ShapeExtractor, load_extractor, save_extractor
from models.state_dicts import save_network_weights
from tests.shape_data import SIZE, SPACING_MM, as_volume, draw_ct
from unet.unet_model import UNet

SETTINGS = ExtractorSettings(
    width=2, n_classes=2, ct=IntensityMap.window(-1000, 1000), size=SIZE, spacing_mm=SPACING_MM
)


def threshold_extractor(settings: ExtractorSettings = SETTINGS) -> ShapeExtractor:
    """An extractor whose weights make body of all above -500 HU and bone of all above 500 HU (at 2 features a pixel).

    Every convolution on the way of the first feature passes the pixel on; the others are 0.
    """
    extractor = ShapeExtractor(settings).eval()
    low, high = settings.input_range
    with torch.no_grad():
        for value in extractor.state_dict().values():
            value.zero_()
        for name, value in extractor.state_dict().items():
            if name.endswith("running_var") or name.endswith((".1.weight", ".4.weight")):
                value.fill_(1.0)
        net = extractor.net
        for block in (net.inc.conv.conv, net.up4.conv.conv):
            block[0].weight[0, 0, 1, 1] = block[3].weight[0, 0, 1, 1] = 1.0
        net.inc.conv.conv[0].bias[0] = -low  # what ReLU cuts off is the value of air
        for k, threshold in enumerate((0.25, 0.75)[: settings.n_classes]):
            net.outc.conv.weight[k, 0] = 1e4
            net.outc.conv.bias[k] = -1e4 * threshold * (high - low)
    return extractor


@pytest.fixture
def model(tmp_path) -> Path:
    save_extractor(threshold_extractor(), tmp_path / "model" / FILE_NAME)
    return tmp_path / "model"


def expected_labels(hu: np.ndarray) -> np.ndarray:
    return (hu > -500).astype(np.uint8) + (hu > 500)


def run(command, *words) -> None:
    command.main([str(word) for word in words])


def test_volume_on_the_extractor_s_own_grid(model, tmp_path):
    ct, _ = draw_ct(1, bone=True)
    write_volume(as_volume(ct), tmp_path / "ct.nii.gz")
    run(predict, "--model", model, "--input", tmp_path / "ct.nii.gz", "--output", tmp_path / "mask.nii.gz")
    mask = read_volume(tmp_path / "mask.nii.gz")
    assert mask.array.dtype == np.uint8
    assert same_grid(mask, as_volume(ct))
    assert set(np.unique(mask.array)) == {0, 1, 2}
    np.testing.assert_array_equal(mask.array, expected_labels(ct))


@pytest.mark.parametrize("spacing", [2.0, 8.0])
def test_volume_on_another_grid(model, tmp_path, spacing):
    """Larger than the extractor's frame, finer or coarser, oriented otherwise: labels come back in place."""
    count = int(240 / spacing)  # 240 mm; the extractor's frame is 128 mm wide
    y, x = np.mgrid[:count, :count] * spacing - 120
    plane = np.where((np.abs(y + 60) < 40) & (np.abs(x - 40) < 60), 100, -1000).astype(np.int16)
    hu = np.stack([plane] * 4)
    ct = Volume(hu, (spacing, spacing, 4.0), (5.0, 6.0, 7.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    write_volume(ct, tmp_path / "ct.mha")
    run(predict, "--model", model / FILE_NAME, "--input", tmp_path / "ct.mha", "--output", tmp_path / "mask.mha")
    mask = read_volume(tmp_path / "mask.mha")
    assert same_grid(mask, ct)
    overlap = np.count_nonzero((mask.array > 0) & (hu > 0))
    assert 2 * overlap / (np.count_nonzero(mask.array) + np.count_nonzero(hu > 0)) > 0.93
    assert mask.array[1, count // 4, int(160 / spacing)] == 1
    assert mask.array[1, count * 3 // 4, int(160 / spacing)] == 0


@pytest.mark.parametrize("what", ["MR", "stored values", "window"])
def test_a_volume_that_is_no_ct_in_hu_is_refused_by_name(model, tmp_path, what):
    ct, _ = draw_ct(1, bone=True)
    array = {"MR": np.abs(ct), "stored values": ct + 1024, "window": ct.clip(-160, 240)}[what]
    write_volume(as_volume(array), tmp_path / "ct.nii.gz")
    write_volume(as_volume(expected_labels(ct)), tmp_path / "ref.nii.gz")
    np.save(tmp_path / "ct.npy", array)
    where = ["--model", model, "--input", tmp_path / "ct.nii.gz"]
    with pytest.raises(InputError, match=rf"^{tmp_path}/ct.nii.gz: not a CT in HU \(values"):
        run(predict, *where, "--output", tmp_path / "mask.nii.gz")
    with pytest.raises(InputError, match=rf"^{tmp_path}/ct.nii.gz: not a CT in HU \(values"):
        run(score, *where, "--ref", tmp_path / "ref.nii.gz")
    with pytest.raises(InputError, match=rf"^{tmp_path}/ct.npy: not a CT in HU \(values"):
        run(predict, "--model", model, "--input", tmp_path / "ct.npy", "--output", tmp_path / "mask.npy")
    assert not list(tmp_path.glob("mask*"))


def test_padding_below_hu_is_air(model, tmp_path):
    ct, _ = draw_ct(1, bone=True)
    padded = ct.astype(np.int16)
    padded[:, :2] = -3024
    write_volume(as_volume(padded), tmp_path / "ct.nii.gz")
    run(predict, "--model", model, "--input", tmp_path / "ct.nii.gz", "--output", tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "mask.nii.gz").array, expected_labels(padded))


def test_folder_of_volumes(model, tmp_path):
    for k in range(2):
        write_volume(as_volume(draw_ct(k)[0]), tmp_path / "in" / f"p{k}.nii.gz")
    run(predict, "--model", model, "--input", tmp_path / "in", "--output", tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["p0.nii.gz", "p1.nii.gz"]
    np.testing.assert_array_equal(read_volume(tmp_path / "out/p1.nii.gz").array, expected_labels(draw_ct(1)[0]))


def test_one_bad_volume_of_a_folder_costs_no_other(model, tmp_path, caplog, capsys):
    for k in range(3):
        ct = draw_ct(k)[0]
        write_volume(as_volume(np.abs(ct) if k == 1 else ct), tmp_path / "in" / f"p{k}.nii.gz")
        write_volume(as_volume(expected_labels(ct)), tmp_path / "ref" / f"p{k}.nii.gz")
    words = ["--model", str(model), "--input", str(tmp_path / "in")]
    assert predict.main([*words, "--output", str(tmp_path / "out")]) == 1
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["p0.nii.gz", "p2.nii.gz"]
    said = [f"failed: {tmp_path}/in/p1.nii.gz: not a CT in HU", "2 of 3 cases done, 1 failed"]
    assert [text in caplog.text for text in said] == [True, True]
    assert score.main([*words, "--ref", str(tmp_path / "ref")]) == 1
    rows = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line[2] != "-"]
    assert rows == ["case", "p0", "p2", "mean"]
    for k in (0, 2):
        (tmp_path / f"in/p{k}.nii.gz").write_bytes(b"")
    assert score.main([*words, "--ref", str(tmp_path / "ref")]) == 1  # and no table of nothing
    assert capsys.readouterr().out == ""


def test_prepared_slices(model, tmp_path):
    ct, _ = draw_ct(2, bone=True)
    np.save(tmp_path / "ct.npy", ct)
    run(
        predict,
        "--model",
        model,
        "--input",
        tmp_path / "ct.npy",
        "--output",
        tmp_path / "out/mask.npy",
        "--batch_size",
        4,
    )
    found = np.load(tmp_path / "out/mask.npy")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected_labels(ct))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mask.npy"]  # no temporary file stays


@pytest.mark.parametrize("n_classes", [1, 2])
def test_slice_images(tmp_path, n_classes):
    """8-bit images over the extractor's window; an odd size; a mask of body alone is one to look at."""
    save_extractor(threshold_extractor(replace(SETTINGS, n_classes=n_classes)), tmp_path / FILE_NAME)
    pixels = np.random.default_rng(0).integers(0, 256, (33, 21)).astype(np.uint8)
    pixels[np.abs(pixels.astype(int) - 64) < 3] = 0  # clear of the thresholds
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in/ct_01.png")
    run(predict, "--model", tmp_path / FILE_NAME, "--input", tmp_path / "in", "--output", tmp_path / "out")
    found = np.array(Image.open(tmp_path / "out/ct_01.png"))
    labels = expected_labels(pixels / 255.0 * 2000 - 1000)
    np.testing.assert_array_equal(found, labels if n_classes == 2 else (labels > 0) * 255)


def test_published_input_range_is_respected(tmp_path):
    """An extractor of [0, 1] gives the same mask as one of [-1, 1]; with the range forgotten it does not."""
    ct, _ = draw_ct(3)
    published = replace(SETTINGS, input_range=(0.0, 1.0))
    right = threshold_extractor(published)
    np.testing.assert_array_equal(predict.segment_slices(right, ct), expected_labels(ct))
    wrong = ShapeExtractor(replace(published, input_range=(-1.0, 1.0)))
    wrong.load_state_dict(right.state_dict())
    assert np.count_nonzero(predict.segment_slices(wrong, ct) != expected_labels(ct)) > 100


def test_probabilities_are_the_network_s_whatever_the_batch():
    extractor = threshold_extractor()
    with torch.no_grad():
        extractor.net.outc.conv.weight *= 1e-4  # logits of the order of 1
        extractor.net.outc.conv.bias *= 1e-4
    ct, _ = draw_ct(4)
    with torch.inference_mode():
        expected = extractor(torch.from_numpy(SETTINGS.ct.to_network(ct))[:, None]).sigmoid().numpy().swapaxes(0, 1)
    assert 0.1 < expected.min() < 0.5 < expected.max() < 0.95
    for batch_size in (1, 4, 100):
        found = predict.slice_probabilities(extractor, ct, batch_size)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_unusable_inputs_are_refused(model, tmp_path):
    write_volume(as_volume(draw_ct(0)[0]), tmp_path / "ct.nii.gz")
    np.save(tmp_path / "flat.npy", np.zeros((3, 4)))
    np.save(tmp_path / "slices.npy", np.zeros((3, 4, 4)))
    (tmp_path / "empty").mkdir()
    for source, target, message in (
        ("ct.nii.gz", "mask.png", "expected a volume's name"),
        ("ct.nii.gz", "ct.nii.gz", "is one of the inputs"),
        ("flat.npy", "mask.npy", r"expected slices \(N, H, W\)"),
        ("slices.npy", "mask.nii.gz", r"ending in \.npy"),
        ("missing.npy", "mask.npy", "cannot be read"),
        ("missing.nii.gz", "mask.nii.gz", "no such file"),
        ("empty", "masks", r"no file ending in \S+( or \S+)* lies in it$"),
    ):
        with pytest.raises(InputError, match=message):
            run(predict, "--model", model, "--input", tmp_path / source, "--output", tmp_path / target)
        assert not (tmp_path / "masks").exists()
        assert not (tmp_path / "mask.npy").exists()


@pytest.fixture
def cohort(tmp_path):
    """Two CTs and reference masks, in folders of their own; the second reference lacks a row of its body."""
    for k in range(2):
        ct, _ = draw_ct(k, bone=True)
        reference = expected_labels(ct)
        if k == 1:
            reference[:, : SIZE // 2] = 0
        write_volume(as_volume(ct), tmp_path / f"ct/p{k}_ct.nii.gz")
        write_volume(as_volume(reference), tmp_path / f"ref/p{k}.nii.gz")
    return tmp_path


def test_eval_of_a_model(cohort, model, capsys):
    words = ("--input", cohort / "ct", "--input_pattern", "{case}_ct.nii.gz", "--reference", cohort / "ref")
    run(score, "--model", model, *words, "--json", cohort / "scores.json")
    ct, _ = draw_ct(1, bone=True)
    labels = expected_labels(ct)
    whole, half = np.count_nonzero(labels), np.count_nonzero(labels[:, SIZE // 2 :])
    scores = json.loads((cohort / "scores.json").read_text())["dice"]
    assert scores["p0"] == {"body": 1.0, "bone": 1.0}
    assert scores["p1"]["body"] == pytest.approx(2 * half / (whole + half))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line[2] != "-"] == ["case", "p0", "p1", "mean"]
    assert f"{scores['p1']['body']:.4f}" in lines[3]


def test_eval_of_masks(cohort, tmp_path, capsys):
    run(score, "--pred", cohort / "ref", "--ref", cohort / "ref", "--cases", "p1")
    assert capsys.readouterr().out.splitlines()[2].split()[3:6:2] == ["1.0000", "1.0000"]
    # References of body alone, 0 or 255: there is no bone to score.
    labels = read_volume(cohort / "ref/p0.nii.gz")
    write_volume(labels.with_array((labels.array > 0).astype(np.uint8) * 255), tmp_path / "body.nii.gz")
    run(score, "--pred", cohort / "ref/p0.nii.gz", "--ref", tmp_path / "body.nii.gz")
    out = capsys.readouterr().out
    assert "bone" not in out
    assert "1.0000" in out
    # A prediction without the bone that the reference has scores 0 for it.
    run(score, "--pred", tmp_path / "body.nii.gz", "--ref", cohort / "ref/p0.nii.gz")
    assert capsys.readouterr().out.splitlines()[2].split()[3:6:2] == ["1.0000", "0.0000"]


def test_eval_proposes_masks_as_references_and_ct_as_input(cohort, model):
    for k in range(2):
        for name in ("mr", "ct", "mask"):
            (cohort / f"patients/p{k}").mkdir(parents=True, exist_ok=True)
            (cohort / f"patients/p{k}/{name}.nii.gz").touch()
    mask = "give --ref_pattern '{case}/mask.nii.gz', which matches all 2 cases"
    with pytest.raises(InputError) as error:
        run(score, "--pred", cohort / "ref", "--ref", cohort / "patients")
    assert str(error.value).endswith(mask)
    words = ("--model", model, "--input", cohort / "patients")
    with pytest.raises(InputError) as error:
        run(score, *words, "--ref", cohort / "ref", "--ref_pattern", "{case}.nii.gz")
    assert str(error.value).endswith("give --input_pattern '{case}/ct.nii.gz', which matches all 2 cases")
    for file in (cohort / "patients").glob("*/ct.nii.gz"):
        file.unlink()
    with pytest.raises(InputError, match=r"e\.g\. --input_pattern '{case}/ct\.nii\.gz'$"):
        run(score, *words, "--ref", cohort / "ref", "--ref_pattern", "{case}.nii.gz")
    (cohort / "empty").mkdir()
    with pytest.raises(InputError, match=r"e\.g\. --ref_pattern '{case}/mask\.nii\.gz'$"):
        run(score, "--pred", cohort / "ref", "--ref", cohort / "empty")


def test_eval_refuses_other_grids_and_half_a_model(cohort, tmp_path, capsys):
    labels = read_volume(cohort / "ref/p0.nii.gz")
    write_volume(replace(labels, spacing=(1.0, 1.0, 1.0)), tmp_path / "other.nii.gz")
    with pytest.raises(InputError, match="not on the reference's grid"):
        run(score, "--pred", tmp_path / "other.nii.gz", "--ref", cohort / "ref/p0.nii.gz")
    for words in (("--model", "m", "--pred", "p"), ("--input", "i"), ("--pred", "p", "--input_pattern", "{case}")):
        with pytest.raises(SystemExit, match="2"):
            run(score, *words, "--ref", "r")
        assert "error: " in capsys.readouterr().err


def test_import_of_published_weights(tmp_path):
    """Bare weights become a file that says what they take, and act as before."""
    published = threshold_extractor(replace(SETTINGS, n_classes=1, input_range=(0.0, 1.0)))
    save_network_weights(published.net, tmp_path / "unet.pth")
    words = ("--weights", tmp_path / "unet.pth", "--out", tmp_path / "run", "--size", SIZE, "--spacing_mm", SPACING_MM)
    words = (*words, "--input_range", 0, 1, "--ct_window", -1000, 1000)
    run(import_extractor, *words)
    loaded = load_extractor(tmp_path / "run")
    assert replace(loaded.settings, versions=None, training=None) == published.settings
    assert loaded.settings.training == {"dataset": "data elsewhere (weights unet.pth)"}
    ct, _ = draw_ct(5)
    np.testing.assert_array_equal(predict.segment_slices(loaded, ct), (ct > -500).astype(np.uint8))
    with pytest.raises(InputError, match="exists already"):
        run(import_extractor, *words)
    save_network_weights(UNet(n_channels=2, width=2), tmp_path / "two.pth")
    with pytest.raises(InputError, match=r"takes 2 channels; expected 1 \(a CT slice\), or 3 that all show it"):
        run(import_extractor, "--weights", tmp_path / "two.pth", "--out", tmp_path / "c", *words[4:])


def test_the_published_network_of_three_channels_becomes_one_that_gives_the_same(tmp_path, caplog):
    caplog.set_level("INFO")
    torch.manual_seed(0)
    published = UNet(n_channels=3, width=4)
    for parameter in published.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save({f"module.{key}": value for key, value in published.state_dict().items()}, tmp_path / "CP5.pth")
    words = ("--weights", tmp_path / "CP5.pth", "--out", tmp_path / "run", "--size", SIZE, "--spacing_mm", SPACING_MM)
    run(import_extractor, *words, "--input_range", 0, 255)
    loaded = load_extractor(tmp_path / "run")
    images = torch.rand(2, 1, 32, 32) * 2 - 1  # -1 and 1 are 0 and 255 of the network
    with torch.inference_mode():
        expected = published.eval()((images + 1) * 127.5 * torch.ones(1, 3, 1, 1))
        found = loaded.eval()(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert "takes 3 channels" in caplog.text


@pytest.mark.parametrize("command", [train, predict, score, import_extractor])
def test_commands_explain_themselves(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        command.parse(["--help"])
    assert f"usage: python -m {command.__name__}" in capsys.readouterr().out
