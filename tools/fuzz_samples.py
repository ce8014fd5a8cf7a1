"""Small valid files of every format that the project reads, for `tools.fuzz` to damage."""

import bz2
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from data.prepared.manifest import Case, Manifest
from data.prepared.training_statistics import HU_EDGES, TrainingStatistics
from data.values.intensity import IntensityMap
from data.volumes.volume import Volume, write_volume
from models.inference_settings import InferenceSettings
from models.networks import Architecture, build_generator
from models.state_dicts import save_network_weights

SIZE, SLICES, SPACING_MM = 8, 4, 2.5
SETTINGS = InferenceSettings(
    generator=Architecture("resnet_6blocks", ngf=2, norm="instance", upsample="resize"), direction="AtoB", size=SIZE,
    spacing_mm=SPACING_MM, slice_mm=None, mr_window="percentile", typical_mr=IntensityMap.window(0, 100),
    ct=IntensityMap.window(-1000, 1400), versions={"torch": "2"},
    training=TrainingStatistics((1,) * (len(HU_EDGES) - 1), (1.0, 2.0), (9.0, 9.5), (0.4, 0.5), (1.0, 1.0), (3.0, 3.0)),
)  # fmt: skip


# Compressed volumes of `content_volume`: the file of the stream, below `content/`, and what names the volume.
CONTENT = {
    "content-nii.gz": ("a.nii.gz", "a.nii.gz"),
    "content-img.gz": ("b.img.gz", "b.img.gz"),
    "content-mha": ("c.mha", "c.mha"),
    "content-mhd": ("d.zraw", "d.mhd"),
    "content-nrrd": ("e.nrrd", "e.nrrd"),
    "content-nhdr": ("f.raw.gz", "f.nhdr"),
    "content-bzip2": ("g.raw.bz2", "g.nhdr"),
    "content-gipl.gz": ("h.gipl.gz", "h.gipl.gz"),
}


def content_volume() -> Volume:
    """Return a volume whose streams are long enough to be damaged in many places."""
    noise = np.random.default_rng(1).normal(0, 9, (12, 40, 40))
    ramp = np.arange(40) * 20
    return Volume((ramp + noise).astype(np.int16), (0.7, 0.8, SPACING_MM))


def write_content(folder: Path) -> None:
    """Write the volumes of `CONTENT`."""
    folder.mkdir(parents=True)
    volume = content_volume()
    for _, name in CONTENT.values():
        if name != "g.nhdr":
            sitk.WriteImage(volume.to_sitk(), str(folder / name), useCompression=True)
    z, y, x = volume.array.shape
    (folder / "g.raw.bz2").write_bytes(bz2.compress(volume.array.astype("<i2").tobytes()))
    (folder / "g.nhdr").write_text(
        f"NRRD0004\ntype: short\ndimension: 3\nsizes: {x} {y} {z}\nspacings: 0.7 0.8 {SPACING_MM}\nendian: little\n"
        "encoding: bzip2\ndata file: g.raw.bz2\n\n"
    )


def write_samples(folder: Path) -> None:
    """Write volumes of each kind, a DICOM series, a slice, a prepared data set and a model into `folder`."""
    write_content(folder / "content")
    array = np.random.default_rng(0).integers(0, 900, (SLICES, 5, 6)).astype(np.int16)
    volume = Volume(array, (0.7, 0.8, SPACING_MM), (-12.5, 30.25, 100.125))
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"):
        write_volume(volume, folder / f"mr{suffix}")
    for k in range(SLICES):
        write_dicom_slice(folder / "dicom" / f"slice{k}.dcm", k, array[k].astype(np.uint16))
    Image.fromarray(array[0].astype(np.uint16)).save(folder / "slice.png")
    write_data_set(folder)
    SETTINGS.write(folder)
    net = build_generator(SETTINGS.generator)
    save_network_weights(net, folder / "latest_net_G_A.pth")
    small = {"0.weight": torch.ones(2, 3), "0.bias": torch.zeros(2)}
    torch.save({"kind": "sample", "epoch": 3, "model": small}, folder / "weights.pth")


def write_dicom_slice(path: Path, k: int, pixels: np.ndarray) -> None:
    """Write slice `k` of an axial MR series; pixels are uint16 (rows, columns)."""
    path.parent.mkdir(exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, f"1.2.3.{k + 1}"
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    header.SeriesInstanceUID, header.StudyInstanceUID, header.Modality = "1.2.3.4", "1.2.3", "MR"
    header.Rows, header.Columns, header.SamplesPerPixel = *pixels.shape, 1
    header.PixelSpacing, header.SliceThickness = [0.8, 0.7], SPACING_MM
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.ImagePositionPatient = [-12.5, 30.25, 100 + k * SPACING_MM]
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation, header.PhotometricInterpretation = 15, 0, "MONOCHROME2"
    header.RescaleSlope, header.RescaleIntercept = 1, 0
    header.PixelData = pixels.tobytes()
    header.save_as(path, enforce_file_format=True)


def write_data_set(root: Path) -> None:
    """Write a prepared data set of one MR and one CT."""
    cases = []
    for domain, dtype in (("A", np.float32), ("B", np.int16)):
        case = Case(
            name=f"case{domain}", patient=f"case{domain}", split="train", domain=domain, source=f"{domain}.nii.gz",
            source_sha256=domain, mask_source_sha256=None, extent_mm=10.0, in_plane_mm=1.0,
            percentiles=(0.0, 100.0) if domain == "A" else None, slices=SLICES, body_slices=(0, SLICES),
            frame={"size": SIZE, "spacing_mm": SPACING_MM, "slice_mm": None},
        )  # fmt: skip
        for name in (case.image_file, case.mask_file):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(root / name, np.ones((SLICES, SIZE, SIZE), dtype if name == case.image_file else np.uint8))
        cases.append(case)
    Manifest(SIZE, SPACING_MM, None, tuple(cases), {"numpy": "2"}).write(root)
