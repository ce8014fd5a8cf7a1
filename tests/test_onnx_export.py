"""`scripts.export_model --onnx`: onnxruntime gives torch's values, and the description is enough to use the file."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import InputError
from data.volumes.volume import Volume
from models import onnx_export
from models.inference_settings import read_inference_settings
from models.networks import Architecture, build_generator
from models.state_dicts import load_checkpoint, save_network_weights
from models.synthesis import load_synthesiser, synthesize_volume
from scripts import export_model
from tests.cohort_data import NAME, SETTINGS, patient_mr

CPU = torch.device("cpu")
needs_onnx = pytest.mark.skipif(
    not all(map(find_spec, onnx_export.PACKAGES)), reason=f"{', '.join(onnx_export.PACKAGES)} are not installed"
)
CONTRASTS = ("in_phase", "fat")
# All kinds of generators; several contrasts; slabs; both norms and ways to upsample.
MODELS = {
    "resnet": replace(SETTINGS, solid_body=True),
    "resnet of slabs": replace(
        SETTINGS, slab=3, contrasts=CONTRASTS, mr_window={"in_phase": "tissue", "fat": (0.0, 900.0)},
        generator=Architecture("resnet_9blocks", 2, "batch", True, "transposed", 6, 3),
    ),
    "unet": replace(SETTINGS, slab=5, mirrored="xy", generator=Architecture("unet", 2, "batch", False, "resize", 5, 5)),
    "unet with instance norm": replace(SETTINGS, generator=Architecture("unet", 2, "instance", False, "resize")),
    "published unet": replace(SETTINGS, generator=Architecture("unet_128", 2, "instance", True, "transposed")),
}  # fmt: skip


def write_model(root: Path, settings=SETTINGS) -> list[str]:
    """Write a model whose output fills much of [-1, 1]; return the options that name it."""
    torch.manual_seed(0)
    settings.write(root / "checkpoints" / NAME)
    net = build_generator(settings.generator)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    save_network_weights(net, root / "checkpoints" / NAME / "latest_net_G_A.pth")
    return ["--checkpoints_dir", str(root / "checkpoints"), "--name", NAME]


def session(folder: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


# Tracing takes seconds.
QUICK = ("unet",)


@needs_onnx
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.slow) for kind in MODELS]
)
def test_onnxruntime_gives_torchs_values_for_any_batch_and_size(tmp_path, kind):
    settings = MODELS[kind]
    export_model.main([*write_model(tmp_path, settings), "--out", str(tmp_path / "out"), "--onnx"])
    running, described = session(tmp_path / "out"), json.loads((tmp_path / "out/model.json").read_text())
    net = build_generator(settings.generator).eval()
    net.load_state_dict(load_checkpoint(tmp_path / "out/latest_net_G_A.pth"))  # half: the same weights as the file's
    multiple = described["height_and_width_are_multiples_of"]
    for batch, rows, columns in ((1, 5, 3), (3, 3, 7), (1, 2, 3)):
        shape = (batch, settings.channels[0], rows * multiple, columns * multiple)
        images = np.random.default_rng(batch).uniform(-1, 1, shape).astype(np.float32)
        (found,) = running.run(["ct"], {"mr": images})
        with torch.inference_mode():
            expected = net(torch.from_numpy(images)).numpy()
        assert found.shape == expected.shape == (batch, settings.channels[1], *shape[2:])
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert expected.std() > 1e-3
    check = described["checked_against_torch"]
    assert 0 < check["max_difference"] < 1e-4 and [shape[0] for shape in check["inputs"]] == [1, 3]


def deployed(folder: Path, mr: Volume) -> np.ndarray:
    """Convert a volume, slices of which are the network's, by nothing but onnxruntime and the description."""
    how, running = json.loads((folder / "model.json").read_text()), session(folder)
    (window,) = how["input"]["intensity"].values()
    x = (2 * (mr.array - window["low"]) / (window["high"] - window["low"]) - 1).clip(-1, 1).astype(np.float32)
    offsets = [channel["slice"] for channel in how["input"]["channels"]]
    total, weight = np.zeros(x.shape), np.zeros(len(x))
    for centre in range(len(x)):
        slab = x[[min(max(centre + offset, 0), len(x) - 1) for offset in offsets]][None]
        flips = {"": ((),), "x": ((), (3,))}[how["mirrored"]]
        outputs = [
            np.flip(running.run(None, {how["input"]["name"]: np.flip(slab, axes).copy()})[0], axes) for axes in flips
        ]
        for offset, share, plane in zip(offsets, how["slab_weights"], np.mean(outputs, axis=0)[0], strict=True):
            if 0 <= centre + offset < len(x):
                total[centre + offset] += share * plane
                weight[centre + offset] += share
    hu, network = zip(*how["output"]["intensity"]["knots"], strict=True)
    return np.interp(total / weight[:, None, None], network, hu)


@needs_onnx
def test_the_description_is_enough_to_convert_a_volume(tmp_path):
    """A slab of three, mirrored, on the network's own grid: the HU are those of this software."""
    generator = replace(SETTINGS.generator, input_nc=3, output_nc=3)
    settings = replace(
        SETTINGS, size=60, spacing_mm=2.0, slab=3, mirrored="x", mr_window=(50.0, 900.0), generator=generator
    )
    export_model.main([*write_model(tmp_path, settings), "--out", str(tmp_path / "out"), "--onnx"])
    mr = patient_mr()
    expected = synthesize_volume(mr, load_synthesiser(tmp_path / "out", "latest", CPU), np.ones(mr.array.shape, bool))
    found = deployed(tmp_path / "out", mr)
    assert any("columns in reverse order" in line for line in onnx_export._how(settings))
    assert any("mean of four" in line for line in onnx_export._how(replace(settings, mirrored="xy")))
    assert found.std() > 20
    np.testing.assert_allclose(found, expected.array, atol=0.6)  # int16 and rounding
    assert read_inference_settings(tmp_path / "out") == settings


@needs_onnx
def test_a_file_that_differs_from_torch_is_not_written(tmp_path, monkeypatch):
    """What is saved in place of the network clips at 0.5 what that gives back as it is."""
    onnx = pytest.importorskip("onnx")
    ends = [onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [end]) for name, end in (("a", -0.5), ("b", 0.5))]
    images = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 1, "h", "w"]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Clip", ["x", "a", "b"], ["y"])], "clip", images[:1], images[1:], ends
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    monkeypatch.setattr(onnx_export, "_save", lambda *given: onnx.save(model, given[-1]))
    with pytest.raises(InputError, match=r"onnxruntime's output differs from torch's by 0.5; expected 0.001 at most"):
        onnx_export.export_onnx(torch.nn.Identity(), SETTINGS, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    onnx_export.export_onnx(torch.nn.Hardtanh(-0.5, 0.5), SETTINGS, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.json", "model.onnx"]


@pytest.mark.parametrize("missing", [["onnxruntime"], ["onnx", "onnxscript"]])
def test_missing_packages_are_named_before_anything_is_written(tmp_path, monkeypatch, missing):
    real = onnx_export.importlib.import_module

    def importing(name):
        if name in missing:
            raise ImportError(name)
        return real(name) if name not in onnx_export.PACKAGES else None

    options = write_model(tmp_path)
    monkeypatch.setattr(onnx_export.importlib, "import_module", importing)
    with pytest.raises(InputError, match=f"--onnx: {', '.join(missing)} cannot be imported; pip install onnx onnxru"):
        export_model.main([*options, "--out", str(tmp_path / "out"), "--onnx"])
    assert not (tmp_path / "out").exists()


def test_an_onnx_file_that_is_there_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(export_model, "require_packages", lambda: None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.onnx").write_bytes(b"another")
    options = [*write_model(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"model.onnx: exists already; choose another --out"):
        export_model.main([*options, "--onnx"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]


def test_the_description_says_channels_windows_and_ways():
    described = onnx_export.describe(MODELS["resnet of slabs"], ("mr", "ct"))
    assert described["input"]["channels"][:4] == [
        {"image": "in_phase", "slice": -1}, {"image": "in_phase", "slice": 0}, {"image": "in_phase", "slice": 1},
        {"image": "fat", "slice": -1},
    ]  # fmt: skip
    assert described["input"]["intensity"] == {
        "in_phase": {"rule": "tissue", "low": 0, "high": "1.263158 times the intensity of fat"},
        "fat": {"rule": "fixed", "low": 0.0, "high": 900.0},
    }
    assert described["slab_weights"] == [1, 2, 1]
    assert described["output"]["intensity"] == {"knots": [[-1000.0, -1.0], [1400.0, 1.0]], "unit": "HU"}
    back = onnx_export.describe(replace(SETTINGS, direction="BtoA", mr_window=(0.0, 800.0)), ("ct", "mr"))
    assert back["input"]["channels"] == [{"image": "ct", "slice": 0}]
    assert back["output"]["intensity"] == {"knots": [[0.0, -1.0], [800.0, 1.0]], "unit": "MR"}
    assert any("no couch" in line for line in back["how"])
