"""Images on disk: what their files say of black and white is what is read; what is no single image is refused."""

import logging
import os
import re
import struct

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

import fill_hole
from data.errors import InputError
from data.loading.augmentation import Augmentation
from data.loading.images import image_shape, list_images, read_gray, read_mask_image
from data.loading.slices import ImageFolderSlices
from data.loading.unaligned_dataset import Draw, open_unaligned
from data.prepared.sources import find_volumes
from data.values.intensity import IntensityMap
from data.volumes.volume import Volume, write_volume
from options import train_options

# A ramp as it is shown: 0 is black, 1 is white.
SHOWN = np.add.outer(np.arange(8), np.arange(16)) / 22
APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        " + b"\0" * 200


def write_tiff(path, pixels, photometric, order="<", bits=None, more=()):
    """Write one uncompressed page; `pixels` are the stored numbers, 12 bits are packed by two."""
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    if bits == 12:
        flat = pixels.ravel().tolist()
        data = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in zip(flat[::2], flat[1::2], strict=True))
    height, width = pixels.shape
    bits = bits or 8 * pixels.itemsize
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags = sorted([*tags, (279, len(data)), *more])
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags)
    ifd = struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    start = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(start + struct.pack(order + "I", 8 + len(data)) + data + ifd)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_is_read_as_it_is_shown_whichever_end_is_white(tmp_path, dtype, photometric, order):
    top = np.iinfo(dtype).max
    stored = np.rint((SHOWN if photometric else 1 - SHOWN) * top).astype(dtype)
    path = write_tiff(tmp_path / "a.tif", stored, photometric, order)
    if (dtype, photometric, order) == (np.uint16, 0, ">"):  # Pillow does not know it
        with pytest.raises(InputError, match="cannot be read as an image"):
            read_gray(path)
        return
    image = read_gray(path)
    assert image.full_range == top
    np.testing.assert_allclose(image.pixels / image.full_range, SHOWN, atol=0.51 / top)


def test_white_of_12_bits_is_4095(tmp_path):
    image = read_gray(write_tiff(tmp_path / "a.tif", np.rint(SHOWN * 4095).astype(np.uint16), 1, bits=12))
    assert image.full_range == 4095
    np.testing.assert_allclose(image.pixels / 4095, SHOWN, atol=1e-3)


def test_signed_bytes_are_refused(tmp_path):
    write_tiff(tmp_path / "a.tif", np.full((4, 4), 200, np.uint8), 1, more=[(339, 2)])
    with pytest.raises(InputError, match="signed 8-bit"):
        read_gray(tmp_path / "a.tif")


def test_a_picture_that_its_file_says_is_turned_is_turned(tmp_path):
    upright = np.zeros((8, 16), np.uint8)
    upright[:, :8] = 255
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))  # by 90 degrees to the left
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned to the right
    for name in ("a.jpg", "a.png"):
        turned.save(tmp_path / name, exif=exif, quality=100)
        assert image_shape(tmp_path / name) == (8, 16)
        np.testing.assert_allclose(read_gray(tmp_path / name).pixels, upright, atol=3)


@pytest.mark.parametrize("palette", [[0, 255], [255, 0], [9, 9, 0, 255]])
def test_a_palette_is_read_as_it_is_shown(tmp_path, palette):
    mask = np.zeros((9, 9), np.uint8)
    mask[2:7, 2:7] = 255
    indices = np.where(mask > 0, palette.index(255), palette.index(0)).astype(np.uint8)
    image = Image.fromarray(indices, "L").copy()
    image.putpalette([value for value in palette for _ in range(3)])
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.mode == "P"
    np.testing.assert_array_equal(read_mask_image(tmp_path / "a.png"), mask)
    hollow = mask.copy()
    hollow[4, 4] = 0
    image.putpixel((4, 4), palette.index(0))
    image.save(tmp_path / "hollow.png")
    np.testing.assert_array_equal(read_mask_image(tmp_path / "hollow.png"), hollow)
    fill_hole.main(["--input", str(tmp_path / "hollow.png"), "--output", str(tmp_path / "filled.png")])
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "filled.png")), mask)


def test_a_mask_in_colours_is_refused(tmp_path):
    image = Image.fromarray(np.eye(8, dtype=np.uint8), "L").copy()
    image.putpalette([0, 0, 255, 0, 255, 0])
    image.save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: a palette of colours; expected gray"):
        read_mask_image(tmp_path / "a.png")


def save_stack(path, count, **options):
    pages = [Image.fromarray(np.full((8, 8), 10 * k, np.uint8)) for k in range(count)]
    pages[0].save(path, save_all=True, append_images=pages[1:], **options)


def test_several_pictures_in_one_file_are_refused_with_their_number(tmp_path):
    save_stack(tmp_path / "a.tif", 10)
    save_stack(tmp_path / "b.png", 4)
    save_stack(tmp_path / "c.jpg", 3, format="MPO")
    save_stack(tmp_path / "d.tiff", 2, compression="tiff_lzw")
    for name, count in (("a.tif", 10), ("b.png", 4), ("c.jpg", 3), ("d.tiff", 2)):
        with pytest.raises(InputError, match=rf"{name}: holds {count} pages; expected one image a file"):
            image_shape(tmp_path / name)


def test_other_formats_under_an_image_s_name_are_not_opened(tmp_path, monkeypatch):
    def started(*_, **__):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    gray = Image.fromarray(np.zeros((8, 8), np.uint8))
    for name, kind in (("a.png", "EPS"), ("b.tif", "GIF"), ("c.jpg", "PPM"), ("d.bmp", "ICO"), ("e.png", "WEBP")):
        gray.save(tmp_path / name, format=kind)
        with pytest.raises(InputError, match=rf"{name}: cannot be read as an image"):
            read_gray(tmp_path / name)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    (tmp_path / "c.png").mkdir()
    (tmp_path / "d.png").symlink_to(tmp_path / "gone")
    (tmp_path / "e.png").symlink_to(tmp_path / "e.png")
    expected = {"a": "a named pipe", "b": "a device", "c": "a folder", "d": "no such", "e": "no such"}
    for name, what in expected.items():
        with pytest.raises(InputError, match=rf"{name}\.png: {what}"):
            ImageFolderSlices(tmp_path, tmp_path, with_masks=False)
        (tmp_path / f"{name}.png").rename(tmp_path / f"{name}.done")


def test_a_png_with_torn_pixels_is_refused_from_its_header_on(tmp_path):
    """Its EXIF data may stand behind the pixels, so that they are read for its size."""
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(data)
    for read in (image_shape, read_gray):
        with pytest.raises(InputError, match=r"a\.png: damaged"):
            read(path)


def gray_file(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


def test_hidden_files_are_passed_over(tmp_path):
    gray_file(tmp_path / "trainA/s.png")
    for name in ("._s.png", ".hidden.tif", ".DS_Store"):
        (tmp_path / "trainA" / name).write_bytes(APPLE_DOUBLE)
    assert [path.name for path in list_images(tmp_path / "trainA")] == ["s.png"]
    write_volume(Volume(np.zeros((2, 2, 2), np.uint8)), tmp_path / "mr/p1.nii.gz")
    (tmp_path / "mr/._p1.nii.gz").write_bytes(APPLE_DOUBLE)
    assert [path.name for path in find_volumes(str(tmp_path / "mr"))] == ["p1.nii.gz"]
    assert [path.name for path in find_volumes(str(tmp_path / "*/*"))] == ["p1.nii.gz"]


def test_sub_folders_are_walked_once(tmp_path):
    for name in ("b.png", "p1/a.png", "p2/deep/a.PNG", "p2/deep/b.tif", ".hidden/x.png", "elsewhere/p3/c.png"):
        gray_file(tmp_path / name)
    (tmp_path / "p1/p3").symlink_to(tmp_path / "elsewhere/p3")
    (tmp_path / "p1/up").symlink_to(tmp_path)  # in circles
    (tmp_path / "p1/p3/here").symlink_to(".")
    (tmp_path / "empty").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["b.png", "elsewhere/p3/c.png", "p1/a.png", "p1/p3/c.png", "p2/deep/a.PNG", "p2/deep/b.tif"]
    with pytest.raises(InputError, match=r"empty: no image .* in it or in a folder below it"):
        list_images(tmp_path / "empty")


def test_masks_lie_as_their_images_do(tmp_path):
    """Two patients share the name of a slice: each gets its own mask, in the published name too."""
    for k, name in enumerate(("p1/mr_1.png", "p2/mr_1.png", "p2/s2.png")):
        gray_file(tmp_path / "trainA" / name, 10 + k)
    for name in ("p1/mrmask_1.png", "p2/mr_1.png", "p2/s2.png"):
        gray_file(tmp_path / "maskA" / name, 255)
    images = ImageFolderSlices(tmp_path / "trainA", tmp_path / "maskA", with_masks=True)
    found = [mask.relative_to(tmp_path / "maskA").as_posix() for mask in images.masks]
    assert found == ["p1/mrmask_1.png", "p2/mr_1.png", "p2/s2.png"]
    assert images.read(1, True).origin == "p2/mr_1.png"
    (tmp_path / "maskA/p1/mrmask_1.png").rename(tmp_path / "maskA/mr_1.png")
    with pytest.raises(InputError, match=r"no mask for p1/mr_1.png; expected p1/mr_1.png or p1/mrmask_1.png$"):
        ImageFolderSlices(tmp_path / "trainA", tmp_path / "maskA", with_masks=True)
    (tmp_path / "trainA/p2/mr_1.png").unlink()  # now its name is its own
    images = ImageFolderSlices(tmp_path / "trainA", tmp_path / "maskA", with_masks=True)
    assert images.masks == [tmp_path / "maskA/mr_1.png", tmp_path / "maskA/p2/s2.png"]


@pytest.mark.parametrize(
    ("dtype", "brightest", "said"),
    [
        (np.uint16, 4095, "the highest value is 4095 of 65535, as if 12-bit values .* times 16,"),
        (np.uint16, 300, "the highest value is 300 of 65535, as if 9-bit values .* times 128,"),
        (np.uint8, 20, "the highest value is 20 of 255, as if 5-bit values .* times 8,"),
        (np.uint16, 9000, None),
        (np.uint8, 255, None),
        (np.uint8, 0, None),
    ],
)
def test_dark_images_are_warned_of_with_the_way_out(tmp_path, caplog, dtype, brightest, said):
    for k in range(40):
        pixels = np.zeros((8, 8), dtype)
        pixels[3, 3] = brightest if k % 10 == 4 else brightest // 2
        Image.fromarray(pixels).save(tmp_path / f"{k:02}.png")
    ImageFolderSlices(tmp_path, tmp_path, with_masks=False)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (said is not None)
    if said:
        assert re.search(rf"{tmp_path}: nearly black: {said}", warnings[0])


def test_images_are_resized_to_256_as_published_and_it_is_said(tmp_path, caplog):
    """Of several sizes too; a prepared data set is taken as it is."""
    for name, shape in (("trainA/p/a.png", (512, 512)), ("trainA/q/b.png", (300, 200)), ("trainB/c.png", (256, 256))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(shape, 200, np.uint8)).save(tmp_path / name)
    line = ["--dataroot", str(tmp_path), "--name", "n"]
    data = train_options.parse(line).data
    assert data == train_options.parse([*line, "--loadSize", "286", "--fineSize", "256"]).data
    assert (data.preprocess, data.augmentation.load_size, data.augmentation.crop_size) == ("resize_and_crop", 256, 256)
    caplog.set_level(logging.INFO)
    images = open_unaligned(tmp_path, (0, 400), data.ct_map, data.augmentation, masks=False, seed=0, one_size=True)
    assert {images[Draw(1, 0, k, 0)]["A"].shape for k in range(2)} == {(1, 256, 256)}
    assert "trainA: images of 200 x 300, 512 x 512 pixels are resized to 256 x 256; --preprocess none" in caplog.text
    assert "trainB: images" not in caplog.text
    assert train_options.parse([*line, "--preprocess", "none"]).data.augmentation.preprocess == "none"
    larger = train_options.parse([*line, "--loadSize", "512", "--fineSize", "512"]).data.augmentation
    assert (larger.load_size, larger.crop_size) == (512, 512)
    assert train_options.parse(["--dataroot", str(tmp_path / "none"), "--name", "n"]).data.preprocess == "none"
    (tmp_path / "manifest.json").write_text("{}")
    assert train_options.parse(line).data.preprocess == "none"


def test_files_that_are_no_images_are_counted(tmp_path, caplog):
    gray_file(tmp_path / "a.png")
    for name in ("a.dcm", "b.dcm", "c.webp", "note"):
        (tmp_path / name).write_bytes(b"?")
    with caplog.at_level(logging.WARNING):
        assert len(list_images(tmp_path)) == 1
    assert "4 files are skipped; their endings: .dcm (2), .webp (1), none (1)" in caplog.text


def test_a_mask_of_another_size_is_refused_before_anything_is_read(tmp_path):
    gray_file(tmp_path / "trainA/a.png")
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"mask of shape \(8, 9\), its image has \(8, 8\)"):
        ImageFolderSlices(tmp_path / "trainA", tmp_path, with_masks=True)


def test_images_of_several_sizes_are_refused_before_the_start_where_they_would_meet(tmp_path):
    for k, rows in enumerate((8, 12, 16)):
        (tmp_path / "trainA").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((rows, 8), np.uint8)).save(tmp_path / f"trainA/{k}.png")
    gray_file(tmp_path / "trainB/a.png")

    def open_set(preprocess, one_size):
        augmentation = Augmentation(preprocess, load_size=8, crop_size=8)
        ct_map = IntensityMap.window(-1000, 1400)
        return open_unaligned(tmp_path, (0, 400), ct_map, augmentation, masks=False, seed=0, one_size=one_size)

    with pytest.raises(InputError, match=r"trainA: images of 3 sizes \(8 x 8, 8 x 12, 8 x 16\).*--pool_size 0"):
        open_set("none", one_size=True)
    assert open_set("none", one_size=False)[Draw(1, 0, 2, 0)]["A"].shape == (1, 16, 8)
    assert open_set("resize_and_crop", one_size=True)[Draw(1, 0, 2, 0)]["A"].shape == (1, 8, 8)
