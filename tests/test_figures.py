"""Figures: layout, windows, differences, proportions, options of the commands, smoothing."""

import numpy as np
import pytest
from PIL import Image

from data.errors import InputError
from data.volumes.volume import Volume, write_volume
from scripts import figure, plot_losses
from visualization.figures import (
    axial_slices,
    columns_of,
    draw_comparison,
    draw_losses,
    planes_through,
    save_figure,
    smoothed,
)
from visualization.records import LossRecord
from visualization.windows import UNCERTAINTY_COLOURS, DisplayWindow

WINDOW = DisplayWindow(40, 400)


@pytest.fixture
def volumes():
    """MR, two CTs and the true CT on an oblique-free grid that is stored upside down."""
    rng = np.random.default_rng(0)
    direction = (1.0, 0, 0, 0, 1, 0, 0, 0, -1)

    def volume(array):
        return Volume(array, (2.0, 2.0, 4.0), (-10.0, -20.0, 100.0), direction)

    reference = rng.integers(-1000, 1000, (6, 10, 8)).astype(np.int16)
    return {
        "mr": volume(rng.uniform(0, 700, (6, 10, 8)).astype(np.float32)),
        "a": volume((reference + 50).astype(np.int16)),
        "b": volume((reference - 25).astype(np.int16)),
        "reference": volume(reference),
    }


def test_columns_are_mr_cts_truth_and_differences(volumes):
    v = volumes
    columns = columns_of(v["mr"], [v["a"], v["b"]], v["reference"], ["MR", "one", "two", "true"], WINDOW, 300)
    minus = "\N{MINUS SIGN}"
    assert [c.title for c in columns] == ["MR", "one", "two", "true", f"one {minus} true", f"two {minus} true"]
    assert [(c.low, c.high) for c in columns[1:]] == [(-160, 240)] * 3 + [(-300, 300)] * 2
    assert np.all(columns[4].volume.array == 50) and np.all(columns[5].volume.array == -25)
    assert [c.title for c in columns_of(None, [v["a"]], None, None, WINDOW, 300)] == ["CT"]
    with pytest.raises(InputError, match="3 labels for 2 volumes"):
        columns_of(v["mr"], [v["a"]], None, ["x", "y", "z"], WINDOW, 300)
    with pytest.raises(InputError, match="CT: not on the grid of MR"):
        columns_of(v["mr"], [Volume(v["a"].array)], None, None, WINDOW, 300)


def test_an_uncertainty_has_its_own_colours_and_bar(volumes):
    v = volumes
    deviation = v["mr"].with_array(np.full(v["mr"].array.shape, 30, np.float32))
    columns = columns_of(v["mr"], [v["a"]], v["reference"], ["x", "y", "z"], WINDOW, 300, deviation)
    assert [c.title for c in columns][3:] == ["y \N{MINUS SIGN} z", "uncertainty"]
    drawn = draw_comparison(columns, planes_through(v["mr"], None))
    shown = [axes for axes in drawn.axes if axes.images][4].images[0]
    assert (shown.get_clim(), shown.get_cmap().name) == ((0, 50), UNCERTAINTY_COLOURS)
    bars = {axes.get_ylabel(): axes.get_ylim() for axes in drawn.axes if "HU" in axes.get_ylabel()}
    assert bars["uncertainty (standard deviation) [HU]"] == (0, 50) and len(bars) == 3
    with pytest.raises(InputError, match="uncertainty: not on the grid of MR"):
        columns_of(v["mr"], [], None, None, WINDOW, 300, Volume(deviation.array))


def test_a_figure_shows_each_cut_in_patient_orientation_and_proportion(volumes):
    v = volumes
    columns = columns_of(v["mr"], [v["a"]], v["reference"], None, WINDOW, 300)
    drawn = draw_comparison(columns, planes_through(v["mr"], None))
    panels = [axes for axes in drawn.axes if axes.images]
    assert len(panels) == 3 * 4
    axial, coronal, sagittal = (panels[4 * row + 1] for row in range(3))
    stored = v["a"].array[::-1]  # slice 0 is the lowest, but stored last
    np.testing.assert_array_equal(axial.images[0].get_array(), stored[3])
    np.testing.assert_array_equal(coronal.images[0].get_array(), stored[::-1, 5])
    np.testing.assert_array_equal(sagittal.images[0].get_array(), stored[::-1, :, 4])
    assert [axes.get_aspect() for axes in (axial, coronal, sagittal)] == [1, 2, 2]
    assert axial.images[0].get_clim() == (-160, 240)
    assert panels[3].images[0].get_clim() == (-300, 300)
    bars = {axes.get_ylabel(): axes.get_ylim() for axes in drawn.axes if "HU" in axes.get_ylabel()}
    assert bars == {"synthetic - true CT [HU]": (-300, 300), "CT [HU]": (-160, 240)}


def test_one_volume_has_its_slices_in_a_numbered_grid_with_as_many_pixels_a_mm_each_way(volumes):
    mr = volumes["mr"]  # 16 mm wide, 20 mm deep, 24 mm high
    columns = columns_of(mr, [], None, ["$ MR"], WINDOW, 300)
    drawn = draw_comparison(columns, axial_slices(mr, 5))
    panels = [axes for axes in drawn.axes if axes.images]
    assert [axes.get_title() for axes in panels] == [f"axial, slice {k}" for k in (6, 5, 4, 3, 2)]
    assert [axes.get_subplotspec().get_geometry()[:2] for axes in panels] == [(2, 3)] * 5
    assert drawn.get_suptitle() == "$ MR"
    planes = draw_comparison(columns, planes_through(mr, None))
    planes.draw_without_rendering()
    inches = planes.get_size_inches()
    sizes = {}
    for axes in planes.axes:
        box = axes.get_position()
        sizes[axes.get_title()] = (box.width * inches[0], box.height * inches[1])
    assert list(sizes) == ["axial, slice 4", "coronal", "sagittal"]
    for name, mm in (("axial, slice 4", (16, 20)), ("coronal", (16, 24)), ("sagittal", (20, 24))):
        assert np.array(sizes[name]) / mm == pytest.approx([sizes["coronal"][0] / 16] * 2, rel=0.03)
    several = draw_comparison(columns_of(mr, [volumes["a"]], None, None, WINDOW, 300), axial_slices(mr, [5, 1]))
    assert [axes.get_ylabel() for axes in several.axes if axes.images][::2] == ["axial\nslice 5", "axial\nslice 1"]


def test_a_mask_is_outlined_along_the_edges_of_its_pixels(volumes):
    mr = volumes["mr"]
    mask = np.zeros(mr.array.shape, np.uint8)
    mask[2, 3:6, 0:4] = 1  # up to the image's left border
    columns = columns_of(mr, [], None, None, WINDOW, 300)
    drawn = draw_comparison(columns, axial_slices(mr, [4]), mr.with_array(mask))  # stored upside down: 5 - 2
    (panel,) = [axes for axes in drawn.axes if axes.images]
    outlines = [line for line in panel.collections if line.get_paths() and len(line.get_paths()[0].vertices)]
    assert len(outlines) == 2  # black below yellow
    points = outlines[1].get_paths()[0].vertices
    np.testing.assert_allclose([points.min(axis=0), points.max(axis=0)], [[-0.5, 2.5], [3.5, 5.5]], atol=0.07)
    assert panel.get_xlim() == (-0.5, 7.5) and panel.get_ylim() == (9.5, -0.5)
    assert [text.get_path_effects() != [] for text in panel.texts] == [True, True]


def test_the_command_outlines_a_mask_and_says_what_it_lacks(volumes, tmp_path, capsys):
    mr = volumes["mr"]
    write_volume(mr, tmp_path / "mr.nii.gz")
    write_volume(mr.with_array((mr.array > 300).astype(np.uint8)), tmp_path / "mask.nii.gz")
    write_volume(Volume(np.ones((2, 3, 4), np.uint8)), tmp_path / "other.nii.gz")
    arguments = ["--mr", str(tmp_path / "mr.nii.gz"), "--dpi", "60"]
    pictures = []
    for name, more in (("without", []), ("with", ["--mask", str(tmp_path / "mask.nii.gz")])):
        figure.main([*arguments, *more, "--out", str(tmp_path / f"{name}.png")])
        with Image.open(tmp_path / f"{name}.png") as image:
            pictures.append(np.array(image.convert("RGB")).astype(int))
    yellow = [int(((p[..., 0] - p[..., 2]) > 60).sum()) for p in pictures]
    assert yellow[1] > 3 * yellow[0] > 0  # the letters are yellow, too
    with pytest.raises(InputError, match=r"other\.nii\.gz: the mask is not on the volumes' grid; resample it first"):
        figure.main([*arguments, "--mask", str(tmp_path / "other.nii.gz"), "--out", str(tmp_path / "f.png")])
    for words, told in (([], "--mr or --ct"), (["--mr", "m.nii", "--reference", "r.nii"], "--reference: there is no")):
        with pytest.raises(SystemExit):
            figure.main([*words, "--out", str(tmp_path / "f.png")])
        assert told in capsys.readouterr().err


def test_cuts_are_where_they_are_asked_for(volumes):
    grid = volumes["mr"]  # S from 80 (stored last) to 100, every 4 mm
    cuts = {plane.name: index for plane, index in planes_through(grid, (-10 + 2 * 7, -20 + 2 * 3, 80 + 4 * 1))}
    assert cuts == {"axial": 1, "coronal": 3, "sagittal": 7}
    assert [index for _, index in axial_slices(grid, [1, 6])] == [0, 5]
    assert [index for _, index in axial_slices(grid, 2)] == [4, 2]
    with pytest.raises(InputError, match="--slices 0: the volume has slices 1 to 6"):
        axial_slices(grid, [0])
    assert [index for _, index in axial_slices(grid, 6)] == [5, 4, 3, 2, 1, 0]
    with pytest.raises(InputError, match="--n_slices 7: the volume has 6 axial slices"):
        axial_slices(grid, 7)
    with pytest.raises(InputError, match="--at 0 0 0: outside the volume"):
        planes_through(grid, (0, 0, 0))


def test_the_command_writes_a_figure(volumes, tmp_path):
    for name, volume in volumes.items():
        write_volume(volume, tmp_path / f"{name}.nii.gz")
    inputs = ["--mr", str(tmp_path / "mr.nii.gz"), "--ct", *(str(tmp_path / f"{n}.nii.gz") for n in "ab")]
    reference = ["--reference", str(tmp_path / "reference.nii.gz"), "--labels", "MR", "A", "B", "truth"]
    for k, more in enumerate(([], ["--at", "-2", "-10", "90"], ["--slices", "1", "4"], ["--n_slices", "2"])):
        out = tmp_path / f"figure{k}.png"
        figure.main([*inputs, *reference, *more, "--window", "-600", "1500", "--dpi", "60", "--out", str(out)])
        with Image.open(out) as image:
            assert image.size[0] > 500 and np.array(image.convert("L")).std() > 10
    figure.main([*inputs, "--out", str(tmp_path / "figure.pdf")])
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(InputError, match="--window bones: expected"):
        figure.main([*inputs, "--window", "bones", "--out", str(tmp_path / "figure.png")])


def test_a_figure_of_no_known_kind_is_refused_before_anything_is_read(tmp_path, capsys):
    for command in (["figure", "--ct", "none.nii.gz"], ["plot_losses", "nobody"]):
        with pytest.raises(SystemExit) as stop:
            {"figure": figure, "plot_losses": plot_losses}[command[0]].main([*command[1:], "--out", "f.bmp"])
        assert stop.value.code == 2
        assert "f.bmp: expected a file ending in .png" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["$", r"$\frac$", "a $x_1$ $", "50 % & #1"])
def test_titles_and_names_are_no_formulas(volumes, tmp_path, name):
    v = volumes
    columns = columns_of(v["mr"], [v["a"]], v["reference"], [name, name, name], WINDOW, 300)
    save_figure(draw_comparison(columns, planes_through(v["mr"], None)), tmp_path / "f.png", dpi=40)
    records = [LossRecord(1, i, 0.0, 1e-4, 0.1, 0.0, {name: 1.0}) for i in (1, 2)]
    drawn = draw_losses({name: records}, None, 0.0)
    save_figure(drawn, tmp_path / "l.svg")
    assert drawn.legends[0].get_texts()[0].get_text() == name
    assert not drawn.legends[0].get_texts()[0].get_parse_math()


def make_run(folder, name, epochs, steps, scale):
    run = folder / name
    run.mkdir(parents=True)
    records = [
        LossRecord(e, i, 0.0, 1e-4, 0.1, 0.0, {"G": scale / (e + i / steps), "D_A": 0.5})
        for e in range(1, epochs + 1)
        for i in range(2, steps + 1, 2)
    ]
    (run / "losses.jsonl").write_text("".join(f"{record.to_json()}\n" for record in records))
    return records


def test_runs_are_compared_over_epochs(tmp_path):
    runs = {"short": make_run(tmp_path, "short", 2, 10, 1.0), "long": make_run(tmp_path, "long", 4, 20, 2.0)}
    drawn = draw_losses(runs, None, smooth=0.0)
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["G", "D_A"]
    short, long = drawn.axes[0].lines[:2]
    assert short.get_xdata()[-1] == 2 and long.get_xdata()[-1] == 4
    np.testing.assert_allclose(short.get_ydata(), [record.losses["G"] for record in runs["short"]])
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["short", "long"]
    assert short.get_color() != long.get_color() and short.get_linestyle() != long.get_linestyle()


def test_a_run_with_one_record_is_a_point():
    drawn = draw_losses({"a": [LossRecord(1, 2, 0.0, 1e-4, 0.1, 0.0, {"G": 3.0})]}, None, smooth=0.9)
    point = drawn.axes[0].lines[0]
    assert (point.get_marker(), list(point.get_ydata())) == ("o", [3.0])


def test_an_unfinished_first_epoch_is_told(tmp_path, caplog):
    """Nobody can tell where in its only epoch a killed run stopped: the steps of the others are the best guess."""
    long, killed = make_run(tmp_path, "long", 2, 20, 1.0), make_run(tmp_path, "killed", 1, 6, 1.0)
    drawn = draw_losses({"long": long}, None, 0.0)
    assert drawn.axes[0].lines[0].get_xdata()[-1] == 2 and caplog.text == ""
    drawn = draw_losses({"long": long, "killed": killed}, None, 0.0)
    assert [line.get_xdata()[-1] for line in drawn.axes[0].lines[:2]] == [2, 0.3]
    assert caplog.text.count("killed: it has one epoch only") == 1 and "20 steps per epoch" in caplog.text
    assert "long:" not in caplog.text
    caplog.clear()
    drawn = draw_losses({"killed": killed}, None, 0.0)
    assert drawn.axes[0].lines[0].get_xdata()[-1] == 1
    assert "killed: it has one epoch only" in caplog.text and "6 steps per epoch" in caplog.text


def test_smoothing_is_unbiased_from_the_start():
    np.testing.assert_allclose(smoothed(np.full(50, 3.0), 0.95), 3.0)
    np.testing.assert_allclose(smoothed(np.array([1.0, 4.0]), 0.5), [1, (0.25 * 1 + 0.5 * 4) / 0.75])
    np.testing.assert_array_equal(smoothed(np.array([1.0, 4.0, -2.0]), 0.0), [1, 4, -2])


def test_the_command_compares_runs_and_names_what_is_missing(tmp_path):
    make_run(tmp_path, "a run", 2, 10, 1.0)
    where = ["--checkpoints_dir", str(tmp_path)]
    plot_losses.main(["a run", *where, "--losses", "G", "--out", str(tmp_path / "l.png")])
    assert (tmp_path / "l.png").stat().st_size > 5000
    with pytest.raises(InputError, match="no losses; runs with losses: a run"):
        plot_losses.main(["nobody", *where])
    with pytest.raises(InputError, match="--losses H: no run has it; there are G, D_A"):
        plot_losses.main(["a run", *where, "--losses", "H"])


def test_a_figure_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    drawn = draw_losses({"a": make_run(tmp_path, "a", 1, 4, 1.0)}, None, 0.0)
    monkeypatch.setattr(type(drawn), "savefig", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(InputError, match="cannot be written: full"):
        save_figure(drawn, tmp_path / "f.png")
    assert not (tmp_path / "f.png").exists()
