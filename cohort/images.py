"""Convert a folder of images to images, with a page that shows them, as upstream's `test.py` does."""

import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import batched
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from data.errors import InputError
from data.files import read_json, whole_file, write_json
from data.loading.augmentation import resized
from data.loading.images import holds_images
from data.loading.slices import ImageFolderSlices
from data.values.mr_rules import rules_in_order
from data.volumes.outputs import check_free
from models.ensemble import called
from models.inference_settings import InferenceSettings, model_sha256
from models.synthesis import find_generator
from models.test_model import TestModel
from options.pipeline_options import CohortSettings
from visualization.image_page import ImagePair, write_image_page

log = logging.getLogger(__name__)

RECORD_NAME = "images.json"
_WHITE = 65535
# Images that are in memory at a time.
_TOGETHER = 32


class ImageJob(NamedTuple):
    """One image: its number in the folder, and where its picture and its result go."""

    number: int
    real: Path
    fake: Path


def takes_images(opt: CohortSettings) -> bool:
    """Tell whether `--input_dir` holds images and no volumes."""
    return opt.input_dir is not None and opt.input_dir.is_dir() and holds_images(opt.input_dir)


def _image_folder(root: Path, direction: str) -> Path:
    """Return the folder of images to convert: that of the test images in a data set, else the folder itself."""
    domain = "A" if direction == "AtoB" else "B"
    sets = [name for name in ("trainA", "trainB", "testA", "testB") if (root / name).is_dir()]
    if sets and f"test{domain}" not in sets:
        raise InputError(f"--input_dir {root}: has {', '.join(sets)} and no test{domain}; name the folder to convert")
    return root / f"test{domain}" if sets else root


def convert_images(opt: CohortSettings, device: torch.device) -> int:
    """Convert the images of `--input_dir`, or of `testA` in it (`testB` for MR from CT); return the exit code.

    They go to RESULTS_DIR/NAME/test_EPOCH, with a page that shows them unless `--no_html` says otherwise. An image is
    converted at the size that the model was trained on, and comes back at its own. What is made is 16-bit: 0 and 65535
    are the ends of the window of what it shows, in HU or in the MR's units.

    Raises:
        InputError: the model takes no images, an option concerns volumes, an image cannot be read, or something is in
            the way.
    """
    if len(opt.name) > 1:
        raise InputError(f"--name {' '.join(opt.name)}: {opt.input_dir} holds images, which one model converts")
    generator = find_generator(opt.folders[0], opt.epoch, None, opt.direction, for_images=True)
    source_range, target_range = _ranges(generator.settings, opt)
    assert opt.input_dir is not None, "see `takes_images`"
    folder = _image_folder(opt.input_dir, generator.settings.direction)
    images = ImageFolderSlices(folder, folder, with_masks=False)
    name = called(opt.name, [generator])
    out = opt.results_dir / name / f"test_{opt.epoch}"
    todo, page, known = _plan(images, out, opt)
    log.info("%s: read as images with black at %g and white at %g", folder, *source_range)
    model = TestModel(generator.settings, generator.weights, device, opt.precision)
    made = [str(path.relative_to(out)) for one in todo for path in (one.real, one.fake)]
    made += [page.name] if known or not opt.no_html else []
    write_json(out / RECORD_NAME, {"input": str(folder.resolve()), "made": made})  # first: what is killed is its own
    if known or not opt.no_html:  # of an earlier run: it would show the new images under the old numbers
        page.unlink(missing_ok=True)
    with ThreadPoolExecutor(opt.num_threads or 1) as threads:
        for some in batched(todo, _TOGETHER):
            _convert(images, some, model, generator.settings.size, opt.batch_size, threads)
    if opt.no_html:
        log.info("%d images: %s", len(todo), out / "images")
        return 0
    rows = [ImagePair(images.names[one.number], one.real, one.fake) for one in todo]
    kinds = ("MR", "synthetic CT") if generator.settings.direction == "AtoB" else ("CT", "synthetic MR")
    details = {
        "images": str(folder),
        "model": str(opt.folders[0]),
        "epoch": opt.epoch,
        "weights and settings (SHA-256)": model_sha256(generator.settings, generator.weights),
        f"black and white of the {kinds[0]}": "{:g} and {:g}".format(*source_range),
        f"black and white of the {kinds[1]}": "{:g} and {:g}".format(*target_range),
    }
    write_image_page(out, rows, kinds, f"{name}, {len(rows)} images", details)
    log.info("%d images: %s", len(todo), page)
    return 0


def _ranges(settings: InferenceSettings, opt: CohortSettings) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return black and white of input and output; refuse models and options that are for volumes."""
    volumes_only = {
        "--pattern": opt.pattern, "--series_description": opt.series_description, "--dicom": opt.dicom,
        "--mu_map": opt.mu_map, "--uncertainty": opt.uncertainty, "--air_outside": opt.air_outside,
        "--fusion": opt.fusion, "--contrast, --echo": opt.chosen, "--spacing_mm": opt.spacing_mm,
    }  # fmt: skip
    if asked := [option for option, value in volumes_only.items() if value]:
        raise InputError(
            f"{', '.join(asked)}: {opt.input_dir} holds images, and these options are for volumes; leave them out"
        )
    folder = opt.folders[0]
    rule = rules_in_order(settings.mr_window, settings.contrasts)[0]
    if settings.slab > 1 or len(settings.contrasts) > 1:
        raise InputError(
            f"{folder}: the model takes slabs or several contrasts, which images do not have; convert volumes with it"
        )
    if isinstance(rule, str) or len(settings.ct.knots) > 2:
        scale = f"--mr_window {rule}" if isinstance(rule, str) else "a curve for CT (--ct_transfer)"
        raise InputError(
            f"{folder}: was trained with {scale}, but images need one fixed window: convert volumes with it, or train "
            "on images, or on volumes with --mr_window LO HI and --ct_window LO HI"
        )
    mr, ct = rule, settings.ct.range
    return (mr, ct) if settings.direction == "AtoB" else (ct, (settings.mr_units or settings.ct).range)


def _plan(images: ImageFolderSlices, out: Path, opt: CohortSettings) -> tuple[list[ImageJob], Path, bool]:
    """Return the images to convert, at most `--num_test`, the place of the page, and whether an earlier run made one.

    Raises:
        InputError: this would replace what this command did not make.
    """
    stems = [Path(name).with_suffix("").as_posix().replace("/", "__") for name in images.names[: opt.num_test]]
    if twice := [stem for stem, count in Counter(stems).items() if count > 1]:
        raise InputError(
            f"{opt.input_dir}: the results of several images would be called {', '.join(twice[:5])}; rename one"
        )
    folder = out / "images"
    todo = [ImageJob(k, folder / f"{stem}_real.png", folder / f"{stem}_fake.png") for k, stem in enumerate(stems)]
    try:
        record = read_json(out / RECORD_NAME)
        own = [out / name for name in record["made"]]
    except (InputError, KeyError, TypeError):
        own = []
    page = out / "index.html"
    targets = [path for one in todo for path in (one.real, one.fake)] + ([] if opt.no_html else [page])
    check_free(targets, "--results_dir", images.files, own, opt.overwrite)
    return todo, page, page in own


def _convert(
    images: ImageFolderSlices, todo: tuple[ImageJob, ...], model: TestModel, size: int, batch_size: int | None,
    threads: ThreadPoolExecutor,
) -> None:  # fmt: skip
    """Convert some images; `threads` read and write them."""
    reals = list(threads.map(lambda one: images.read(one.number, with_mask=False).image, todo))
    slices = np.concatenate([resized(real, (size, size)) for real in reals])
    fakes = model.translate(slices, batch_size)

    def write(one: ImageJob, real: np.ndarray, fake: np.ndarray) -> None:
        fake = resized(fake[None].clip(-1, 1), real.shape[1:])[0]
        _write(np.rint((real[0] + 1) / 2 * 255).astype(np.uint8), one.real)
        _write(np.rint((fake + 1) / 2 * _WHITE).astype(np.uint16), one.fake)

    list(threads.map(write, todo, reals, fakes))  # the list: an error is raised here


def _write(pixels: np.ndarray, path: Path) -> None:
    with whole_file(path) as scratch:
        Image.fromarray(pixels).save(scratch)
