"""Segment the body (and bone) in CT with a shape extractor.

--input is a CT volume or DICOM folder in HU, a folder of volumes, a `.npy` of prepared slices (N, H, W) in HU, or a
folder of slice images whose full range is the extractor's CT window. --output is of the same kind, volumes on their
own grid. Labels are uint8: 1 body, 2 bone; 255 in images of the body alone.
"""

import argparse
import logging
import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.errors import InputError, one_by_one, run_command
from data.files import whole_file
from data.loading.augmentation import resized
from data.loading.images import holds_images
from data.loading.slices import ImageFolderSlices
from data.settings.declaration import HelpFormatter
from data.settings.devices import torch_device
from data.settings.parser import CommandParser
from data.settings.values import positive_int
from data.values.intensity import AIR_HU
from data.values.modality import check_ct, in_hu
from data.volumes.outputs import check_free, volume_targets
from data.volumes.slice_frame import SliceFrame
from data.volumes.volume import WRITABLE_SUFFIXES, Volume, read_volume, volume_suffix, write_volume
from evaluation.case_folders import CaseVolumes
from evaluation.cases import case_volumes
from models.shape_extractor import ShapeExtractor, channel_labels, load_extractor

log = logging.getLogger(__name__)


def slice_probabilities(extractor: ShapeExtractor, slices: np.ndarray, batch_size: int = 8) -> np.ndarray:
    """Return the probability of every class, float32 (n_classes, N, H, W), for slices (N, H, W) in HU."""
    device = next(extractor.parameters()).device
    found = np.empty((extractor.settings.n_classes, *slices.shape), np.float32)
    was_training = extractor.training
    extractor.eval()
    with torch.inference_mode():
        for start in range(0, len(slices), batch_size):
            images = extractor.ct_map.to_network(slices[start : start + batch_size])
            logits = extractor(torch.from_numpy(images)[:, None].to(device))
            found[:, start : start + batch_size] = logits.sigmoid().transpose(0, 1).cpu().numpy()
    extractor.train(was_training)
    return found


def segment_slices(extractor: ShapeExtractor, slices: np.ndarray, batch_size: int = 8) -> np.ndarray:
    """Return labels, uint8 (N, H, W), of slices (N, H, W) in HU at the extractor's spacing."""
    return channel_labels(slice_probabilities(extractor, slices, batch_size))


def segment_volume(extractor: ShapeExtractor, ct: Volume, batch_size: int = 8) -> Volume:
    """Return labels, uint8, of a CT in HU, on its own grid; the couch and all else outside the body is 0.

    Slices have the extractor's spacing, and its size or more: the whole width of the CT is looked at.

    Raises:
        InputError: it is no CT in HU, or the extractor's pixel spacing is not known.
    """
    check_ct(ct)
    ct = in_hu(ct)
    settings = extractor.settings
    if settings.spacing_mm is None:
        raise InputError("the extractor was trained on images without a pixel spacing; it takes images, not volumes")
    widest = SliceFrame.of(ct, 1, settings.spacing_mm, view=settings.view).body_extent_mm(np.ones(ct.array.shape, bool))
    size = max(settings.size, math.ceil(widest / settings.spacing_mm - 1e-6))
    frame = SliceFrame.of(ct, size, settings.spacing_mm, view=settings.view)
    probabilities = slice_probabilities(extractor, frame.prepare(ct, fill=AIR_HU), batch_size)
    return ct.with_array(channel_labels(np.stack([frame.restore(p, fill=0.0).array for p in probabilities])))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command's options."""
    parser = CommandParser(
        prog="python -m ct_segmentation.predict",
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="an extractor's file or the folder of its run")
    parser.add_argument("--input", type=Path, required=True, help="CT volume, folder of them, .npy or image folder")
    parser.add_argument("--output", type=Path, required=True, help="mask, or folder of masks, to write")
    parser.add_argument("--overwrite", action="store_true", help="replace existing masks")
    parser.add_argument("--batch_size", type=positive_int, default=8, help="slices in one pass of the network")
    parser.add_argument("--device", type=torch_device, default="auto", help="auto, cpu, cuda, cuda:1, ... or mps")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Segment the input; return 1 where some volumes of a folder failed, else 0.

    Raises:
        InputError: the model or the input cannot be read, or the output not be written.
    """
    opt = parse(arguments)
    extractor = load_extractor(opt.model, opt.device)
    if opt.input.suffix == ".npy":
        _segment_array(extractor, opt)
        return 0
    if opt.input.is_dir() and holds_images(opt.input):
        _segment_images(extractor, opt)
        return 0
    found = case_volumes(CaseVolumes("--input", opt.input, takes_pattern=False))
    if found is None and volume_suffix(opt.output) not in WRITABLE_SUFFIXES:
        raise InputError(f"--output {opt.output}: expected a volume's name, ending in {' '.join(WRITABLE_SUFFIXES)}")
    if found is None:
        targets = {opt.output: opt.input}
    else:
        targets = {opt.output / f"{name}.nii.gz": path for name, path in found.items()}
    files = [file for target in targets for file in volume_targets(target)]
    check_free(files, "--output", targets.values(), overwrite=opt.overwrite)
    return one_by_one(targets.items(), lambda paths: _segment_volume(extractor, *paths, opt.batch_size))


def _segment_volume(extractor: ShapeExtractor, target: Path, source: Path, batch_size: int) -> None:
    ct = read_volume(source)
    try:
        labels = segment_volume(extractor, ct, batch_size)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    write_volume(labels, target)
    litres = np.count_nonzero(labels.array) * math.prod(labels.spacing) / 1e6
    log.info("%s: body of %.2f litres", target, litres)


def _segment_array(extractor: ShapeExtractor, opt: argparse.Namespace) -> None:
    try:
        slices = np.load(opt.input, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{opt.input}: cannot be read: {error}") from error
    if slices.ndim != 3 or slices.dtype.kind not in "iuf":
        raise InputError(f"{opt.input}: {slices.dtype} of shape {slices.shape}; expected slices (N, H, W) in HU")
    if opt.output.suffix != ".npy":
        raise InputError(f"--output {opt.output}: expected a name ending in .npy, as --input does")
    check_free([opt.output], "--output", [opt.input], overwrite=opt.overwrite)
    try:
        check_ct(Volume(slices))
    except InputError as error:
        raise InputError(f"{opt.input}: {error}") from error
    labels = segment_slices(extractor, slices, opt.batch_size)
    with whole_file(opt.output) as scratch:
        np.save(scratch, labels)
    log.info("%s: %d slices", opt.output, len(labels))


def _segment_images(extractor: ShapeExtractor, opt: argparse.Namespace) -> None:
    """Segment each image at its own size; by an extractor of images, which knows one size, at that and back."""
    slices = ImageFolderSlices(opt.input, opt.input, with_masks=False)
    targets = [opt.output / Path(name).with_suffix(".png") for name in slices.names]
    twice = sorted(path.name for path, count in Counter(targets).items() if count > 1)
    if twice:
        raise InputError(f"--input {opt.input}: the masks of several images would be called {', '.join(twice[:5])}")
    check_free(targets, "--output", slices.files, overwrite=opt.overwrite)
    settings = extractor.settings
    for index, target in enumerate(targets):
        image = slices.read(index, with_mask=False).image
        at = image if settings.spacing_mm else resized(image, (settings.size, settings.size))
        labels = segment_slices(extractor, extractor.ct_map.to_physical(at))
        labels = resized(labels, image.shape[1:], labels=True)[0]
        shown = 255 * labels if settings.n_classes == 1 else labels
        with whole_file(target) as scratch:
            Image.fromarray(shown).save(scratch)
    log.info("%s: %d images", opt.output, len(slices))


if __name__ == "__main__":
    run_command(main)
