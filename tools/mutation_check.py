"""Break the code on purpose, and see that a test notices: `python -m tools.mutation_check`.

Each mutation is a mistake that a careless programmer could make, put into a copy of the project in a temporary folder:
the checkout itself is never changed. The tests named in the table first pass there as the code is; then each mutation
is written, its test alone is run, and the file is put back. A mutation is killed where its test fails; one that
survives says that nothing would notice that mistake.
"""

import argparse
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError, run_command
from data.files import write_json
from data.settings.parser import CommandParser
from data.settings.values import positive_int
from data.volumes.outputs import check_free
from evaluation.report import markdown_table

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
# What tests neither need nor read, and what would make the copy large.
_NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "checkpoints", "datasets", "results")
SECONDS = 300.0  # for one test, on a machine that is busy otherwise
# As pytest's exit codes say it; any other one is no answer of the test.
_OUTCOMES = {0: "survived", 1: "killed"}


@dataclass(frozen=True)
class Mutation:
    """One mistake: in `file`, `old` gives way to `new`.

    Attributes:
        file: path below the root.
        old: stands there exactly once.
        new: what is written in its place.
        breaks: what is wrong then.
        test: which must fail then: file, two colons, name of the function (and its parameters in brackets, for one of
            several).
    """

    file: str
    old: str
    new: str
    breaks: str
    test: str

    def apply(self, root: Path) -> str:
        """Return the file below `root` with the mistake in it; nothing is written.

        Raises:
            InputError: there is no such file, or `old` does not stand in it exactly once.
        """
        path = root / self.file
        if not path.is_file():
            raise InputError(f"{self.file}: no such file, but a mutation is of it ({self.breaks}); correct the table")
        text = path.read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise InputError(
                f"{self.file}: {self.old!r} stands in it {count} times, expected once, for the mutation "
                f"{self.breaks!r}; correct the table in tools/mutation_check.py"
            )
        return text.replace(self.old, self.new)


MUTATIONS = (
    # Geometry
    Mutation("data/volumes/volume.py", "affine[:2] *= -1  # LPS to RAS", "affine[:1] *= -1  # LPS to RAS",
             "LPS to RAS turns one axis only: NIfTI files are mirrored front to back",
             "tests/test_volume.py::test_write_then_read_is_the_same_volume"),
    Mutation("data/volumes/volume.py", "image.SetSpacing(self.spacing)", "image.SetSpacing(self.spacing[::-1])",
             "spacing in the array's order (z, y, x) instead of (x, y, z)",
             "tests/test_volume.py::test_axes_and_geometry_are_simpleitk_s"),
    Mutation("data/volumes/volume.py", "for patient_axis in (2, 1, 0))", "for patient_axis in (2, 0, 1))",
             "rows and columns of axial slices swapped",
             "tests/test_slice_frame.py::test_slices_are_axial_whatever_the_stored_order"),
    Mutation("data/volumes/slice_frame.py", "- (self.count - 1) / 2) * self._step", "- self.count / 2) * self._step",
             "resampled slices are half a pixel beside the volume's centre",
             "tests/test_slice_frame.py::test_forward_agrees_with_simpleitk_when_upsampling"),
    Mutation("visualization/planes.py", 'Plane("coronal", 1, True,', 'Plane("coronal", 1, False,',
             "coronal pictures stand on their heads",
             "tests/test_case_volumes.py::test_planes_follow_the_radiological_convention"),
    # DICOM
    Mutation("data/volumes/dicom.py", "sitk.sitkFloat64 if deep else sitk.sitkFloat32",
             "sitk.sitkInt16",
             "fractions of the rescale slope and intercept are cut off",
             "tests/test_volume.py::test_fractional_rescaling_is_kept"),
    Mutation("data/volumes/dicom_checks.py",
             'if (tag in header or header.get("Modality") == "CT") and', "if tag in header and",
             "a CT without rescale slope and intercept is taken for HU",
             "tests/test_volume.py::test_slices_that_make_no_volume_are_refused"),
    Mutation("data/volumes/dicom.py", 'header.get("SeriesDescription", "no description")',
             'pydicom.dcmread(self.files[0][0], stop_before_pixels=True).get("PatientName")',
             "messages name the patient",
             "tests/faults/test_dicom_faults.py::test_two_series_are_told_apart_without_naming_anybody"),
    # Intensities
    Mutation("data/values/intensity.py", "CT_WINDOW_HU = (-1000.0, 1400.0)", "CT_WINDOW_HU = (-1024.0, 1400.0)",
             "the HU window begins elsewhere than the published one",
             "tests/test_intensity.py::test_the_published_window"),
    Mutation("data/values/intensity.py", "np.percentile(mr[body], MR_PERCENTILES)", "np.percentile(mr, MR_PERCENTILES)",
             "the MR's window depends on how much air is around the patient",
             "tests/test_intensity.py::test_mr_window_is_of_the_body_alone"),
    Mutation("data/loading/slices.py", "IntensityMap.window(0, full_range).to_network(image)",
             "(image / full_range).astype(np.float32)",
             "images of a plain folder are in [0, 1], not in [-1, 1]",
             "tests/test_datasets.py::test_plain_image_folders_of_8_and_16_bits_are_read"),
    Mutation("data/prepared/slice_writing.py", "np.rint(slices).clip(*CT_STORED_HU).astype(np.int16)",
             "np.rint(slices).astype(np.int16)",
             "HU beyond int16 wrap round: metal becomes air",
             "tests/test_preparation.py::test_hu_are_rounded_and_clipped_to_what_int16_holds"),
    # Samples and their order
    Mutation("data/loading/augmentation.py", "rng.integers(height - self.crop_size + 1)",
             "rng.integers(height - self.crop_size)",
             "crops never reach the last row",
             "tests/test_datasets.py::test_slice_and_mask_go_through_the_same_transform"),
    Mutation("data/loading/augmentation.py", "interpolation=F.InterpolationMode.BILINEAR",
             "interpolation=F.InterpolationMode.NEAREST",
             "images are turned by nearest neighbour, as masks are",
             "tests/test_datasets.py::test_images_are_turned_and_resized_by_interpolation"),
    Mutation("data/loading/augmentation.py", "NEAREST_EXACT if labels else F.InterpolationMode.BILINEAR",
             "NEAREST_EXACT",
             "images are resized by nearest neighbour, as masks are",
             "tests/test_datasets.py::test_images_are_turned_and_resized_by_interpolation"),
    Mutation("data/loading/batches.py", "range(self.start, ", "range(self.start + 1, ",
             "a run that resumes in mid-epoch leaves a sample out",
             "tests/test_datasets.py::test_order_derives_from_seed_and_epoch_and_resumes_in_mid_epoch"),
    Mutation("data/prepared/manifest.py",
             "    check_splits(manifest.cases)\n    return manifest", "    return manifest",
             "a patient may stand in both train and test",
             "tests/test_datasets.py::test_the_manifest_refuses_what_would_spoil_results"),
    # Channels: contrasts and slabs
    Mutation("data/loading/slices.py", "min(max(z + k - self.slab // 2, begin), end - 1)",
             "min(max(z + k - self.slab // 2, 0), end - 1)",
             "a slab reaches beyond the body's first slice",
             "tests/test_channels.py::test_channels_are_contrast_major_and_the_ends_repeat_the_last_slice"),
    Mutation("data/volumes/contrasts.py", "return [by_name[name] for name in names]", "return list(by_name.values())",
             "contrasts go in as they stand on the command line",
             "tests/test_contrasts.py::test_the_order_given_does_not_matter"),
    Mutation("data/prepared/case_volumes.py", "without_field(volume, field) for volume in volumes",
             "without_field(volume, log_bias_field(volume, body)) for volume in volumes",
             "each contrast is corrected for a bias field of its own",
             "tests/test_contrast_preparation.py::test_the_shading_is_the_first_contrasts"),
    Mutation("data/values/bias_field.py", "plane += legendre", "plane -= legendre",
             "what N4 left of a bias field is doubled",
             "tests/test_bias_field.py::test_what_n4_leaves_is_found"),
    Mutation("data/values/bias_field.py", ">= 0.5, factors[::-1], margins[::-1])", ">= 0.5, factors, margins[::-1])",
             "blocks of a bias field are placed by the factors of other axes",
             "tests/test_bias_field.py::test_what_n4_leaves_is_found"),
    Mutation("models/losses.py", "x.unflatten(1, (-1, slices)).expand(-1, contrasts, -1, -1, -1)",
             "x.unflatten(1, (slices, -1)).transpose(1, 2).expand(-1, contrasts, -1, -1, -1)",
             "correlation pairs other slices: channels taken as slice-major",
             "tests/test_losses.py::test_several_contrasts_against_one_ct_are_the_mean_over_contrasts_and_slices"),
    # Losses and the step
    Mutation("models/losses.py",
             "(y.square().mean(dim=1) + eps)\n        return (1 - covariance.square() / variances).mean()",
             "(y.square().mean(dim=1) + eps)\n        return (1 + covariance.square() / variances).mean()",
             "sign of the correlation loss: structure is unlearnt",
             "tests/test_losses.py::test_correlation_is_blind_to_gain_offset_and_sign"),
    Mutation("models/losses.py", "x = _centred(_at_least_float32(fake))", "x = _centred(fake)",
             "correlation of a bfloat16 image in bfloat16",
             "tests/test_losses.py::test_half_precision_is_computed_in_float32"),
    Mutation("models/losses.py", "return F.l1_loss(torch.sigmoid(logits), mask)",
             "return F.l1_loss(torch.sigmoid(torch.sigmoid(logits)), mask)",
             "sigmoid twice: the shape is never below 1/2",
             "tests/test_shape_constraint.py::test_the_shape_terms_are_those_of_the_method"),
    Mutation("models/cycle_gan_model.py", "(gan_loss(score_real, True, mode) + gan_loss(score_fake, False, mode)) / 2",
             "(gan_loss(score_real, False, mode) + gan_loss(score_fake, True, mode)) / 2",
             "discriminators learn real as fake and fake as real",
             "tests/test_cycle_gan_model.py::test_the_losses_are_those_of_the_method"),
    Mutation("models/cycle_gan_model.py", "s.lambda_B * F.l1_loss(rec_B, real_B)",
             "s.lambda_A * F.l1_loss(rec_B, real_B)",
             "lambda_A weighs the cycle of B", "tests/test_cycle_gan_model.py::test_every_loss_has_its_own_weight"),
    Mutation("models/cycle_gan_model.py", "self._run_together(self.netG_A, real_A, as_A)",
             "self._run_together(self.netG_A, real_A, real_A)",
             "identity loss on the wrong domain",
             "tests/test_cycle_gan_model.py::test_the_losses_are_those_of_the_method"),
    Mutation("models/cycle_gan_model.py", " require_gradients(discriminators, False)",
             " require_gradients(discriminators, True)",
             "the generators' update leaves gradients in the discriminators",
             "tests/test_cycle_gan_model.py::test_each_optimiser_moves_its_own_networks"),
    Mutation("models/cycle_gan_model.py", "mask = label_channels(labels.flatten(0, 1).unsqueeze(1), ",
             "mask = label_channels(labels[:1].expand_as(labels).flatten(0, 1).unsqueeze(1), ",
             "all slices of a batch have the first one's mask",
             "tests/test_shape_constraint.py::test_every_sample_has_its_own_mask"),
    Mutation("models/base_model.py", "        bad = self.finite.watch(losses, total, batch)\n",
             "        self.optimisers[name].zero_grad(set_to_none=True)\n"
             "        total.backward(retain_graph=True)\n"
             "        self.optimisers[name].step()\n"
             "        bad = self.finite.watch(losses, total, batch)\n",
             "a loss is checked for NaN after the weights have moved",
             "tests/test_cycle_gan_model.py::test_a_non_finite_loss_stops_before_the_update"),
    Mutation("models/averages.py", "self.module.state_dict().values(), model.state_dict().values()",
             "self.module.parameters(), model.parameters()",
             "averaged weights with batch-norm statistics that are not averaged",
             "tests/test_cycle_gan_model.py::test_the_average_of_the_generators_is_exponential"),
    Mutation("models/image_pool.py", "images.detach()", "images",
             "the discriminators' loss reaches the generators",
             "tests/test_image_pool.py::test_answers_have_no_gradient_and_stored_images_are_copies"),
    Mutation("models/image_pool.py", "if swap else k", "if swap and not swap else k",
             "the pool always gives the new image out",
             "tests/test_image_pool.py::test_every_image_is_returned_or_stored_and_none_twice"),
    Mutation("models/image_pool.py", "torch.randint(self.size,", "torch.randint(max(self.size - 1, 1),",
             "the pool's last place is never exchanged",
             "tests/test_image_pool.py::test_half_come_from_the_pool_and_any_place_in_it"),
    # The shape extractor
    Mutation("models/shape_extractor.py", "return super().train(mode and not self.frozen)",
             "return super().train(mode)",
             "the frozen extractor goes back to training mode with its owner",
             "tests/test_shape_constraint.py::test_the_extractor_is_frozen_and_lets_gradients_through"),
    Mutation("models/shape_extractor.py", "low + (high - low) / 2 * (images + 1)", "low + (high - low) / 2 * images",
             "an extractor of [0, 1] gets [-1/2, 1/2]",
             "tests/test_shape_extractor.py::test_conversion_goes_through_hu"),
    # Schedule, states, resuming
    Mutation("models/schedules.py", "max(0, epoch - n_epochs) /", "max(0, epoch - n_epochs + 1) /",
             "the learning rate falls one epoch too early", "tests/test_schedules.py::test_linear_published"),
    Mutation("models/base_model.py", 'yield "optimisers", self.optimisers', 'yield "optimisers", {}',
             "optimisers start anew when a run resumes",
             "tests/test_cycle_gan_model.py::test_a_restored_model_resumes_bit_for_bit"),
    Mutation("models/run_folder.py", 'torch.set_rng_state(state["cpu"])', "torch.get_rng_state()",
             "dropout is drawn anew when a run resumes",
             "tests/test_train.py::test_a_killed_run_resumes_bit_for_bit[6-linear]"),
    Mutation("models/run_folder.py", 'Position(*(state["position"][name] for name in Position._fields))',
             'Position(state["position"]["epoch"] + 1)',
             "a run resumes with the next epoch instead of within its own",
             "tests/test_train.py::test_a_killed_run_resumes_bit_for_bit[6-linear]"),
    Mutation("data/files.py", "yield scratch / path.name", "yield path",
             "files are written under their own name: a full disk costs the old one",
             "tests/test_state_dicts.py::test_failed_write_leaves_the_old_file_and_nothing_else"),
    Mutation("models/state_dicts.py", "state[key].shape != own[key].shape",
             "state[key].numel() != own[key].numel()",
             "weights of another shape but as many numbers end in a traceback of torch",
             "tests/test_state_dicts.py::test_a_weight_of_another_shape_is_refused_though_it_has_as_many_numbers"),
    Mutation("models/test_model.py", "self.netG.to(device).eval()", "self.netG.to(device).train()",
             "batch norm learns from the patients that a model is used on",
             "tests/test_synthesis.py::test_inference_changes_no_weight_and_does_not_depend_on_the_batch"),
    Mutation("models/test_model.py", "self.netG(batch.flip(axes)).flip(axes)", "self.netG(batch.flip(axes))",
             "the mean over mirrorings is taken of slices that lie differently",
             "tests/test_synthesis.py::test_mirrored_is_the_mean_over_mirrorings_and_undone[xy]"),
    Mutation("models/solid_body.py", "near, spacing[::-1])", "near, spacing)",
             "the nearest tissue is sought with the spacings of other axes",
             "tests/test_synthesis.py::test_air_in_a_solid_body_becomes_the_nearest_tissue_of_it_in_mm[7.0--200]"),
    Mutation("models/solid_body.py", "farthest <= around * sampling[0] or", "True or",
             "air is filled by tissue that is not the nearest, where that lies in the next part",
             "tests/test_streaming.py::test_air_is_filled_alike_in_parts_and_at_once[0.99-0]"),
    Mutation("data/loading/single_dataset.py", "max(0, centre - middle + 1))", "max(0, centre - middle + 2))",
             "a slice is taken before the last slab that holds it",
             "tests/test_slabs.py::test_a_slice_is_complete_with_the_last_slab_that_holds_it[3-5]"),
    Mutation("cohort/results.py", "or not is_made(record.key, key, bool(record.scores))", "",
             "a cohort keeps a volume whose input, model or options have changed",
             "tests/test_cohort.py::test_current_is_what_was_written_of_the_same_key"),
    # Scores
    Mutation("evaluation/metrics.py", "np.abs(pred[mask] - ref[mask]).mean()",
             "np.abs(pred[~mask] - ref[~mask]).mean()",
             "MAE outside the mask", "tests/test_metrics.py::test_mae_and_mae_bone_in_closed_form"),
    Mutation("evaluation/metrics.py", "size += int(np.count_nonzero(one)) + int(np.count_nonzero(other))",
             "size += int(np.count_nonzero(one | other))",
             "Dice divides by the union", "tests/test_metrics.py::test_dice_in_closed_form_and_inside_a_mask"),
    Mutation("evaluation/metrics.py", "math.log10((hu_range[1] - hu_range[0]) ** 2 / squared_error)",
             "math.log10(hu_range[1] ** 2 / squared_error)",
             "PSNR of the upper HU bound instead of the range", "tests/test_metrics.py::test_psnr_agrees_with_skimage"),
    # Pages and servers
    Mutation("visualization/case_page.py", "tags.h1(case)", "tags.h1(raw(case))",
             "a patient's name can be HTML", "tests/test_pages.py::test_names_are_text_everywhere"),
    Mutation("visualization/pages.py", '.replace("<", "\\\\u003c")', "",
             "a text in a script can end the script", "tests/test_pages.py::test_text_cannot_become_markup_or_script"),
    Mutation("visualization/visdom_server.py", "bind_local=True", "bind_local=False",
             "the visdom server is reached from the whole network",
             "tests/test_visdom.py::test_the_server_of_a_run_is_reached_from_this_machine_only"),
)  # fmt: skip


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m tools.mutation_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", type=positive_int, metavar="N", help=f"only this one, 1 to {len(MUTATIONS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result of each")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --json")
    options = parser.parse_args(arguments)
    if options.only and options.only > len(MUTATIONS):
        parser.error(f"--only {options.only}: expected 1 to {len(MUTATIONS)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the mutations, print what became of them, and return 0, or 1 where one was not killed.

    Raises:
        InputError: the table does not fit the code, or its tests fail on the code as it is.
    """
    opt = parse_arguments(arguments)
    if opt.json:
        check_free([opt.json], "--json", overwrite=opt.overwrite)
    chosen = {k: m for k, m in enumerate(MUTATIONS, start=1) if opt.only in (None, k)}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        root = Path(folder) / "project"
        shutil.copytree(ROOT, root, ignore=_NOT_COPIED)
        for mutation in chosen.values():
            mutation.apply(root)  # all are looked at before any is tried
        check_unmutated(root, chosen.values())
        outcomes = {}
        for number, mutation in chosen.items():
            outcomes[number] = outcome_of(mutation, root)
            log.info("%d/%d %s: %s", number, len(MUTATIONS), outcomes[number], mutation.breaks)
    rows = [[str(k), outcomes[k], m.file, m.breaks, m.test] for k, m in chosen.items()]
    sys.stdout.write(markdown_table([["", "outcome", "file", "mutation", "test"], *rows]) + "\n")
    killed = sum(outcome == "killed" for outcome in outcomes.values())
    log.info("%d of %d mutations killed in %.0f s", killed, len(chosen), time.monotonic() - started)
    if opt.json:
        names = ("number", "outcome", "file", "breaks", "test")
        write_json(opt.json, {"killed": killed, "mutations": [dict(zip(names, row, strict=True)) for row in rows]})
    return 0 if killed == len(chosen) else 1


def check_unmutated(root: Path, mutations: Iterable[Mutation]) -> None:
    """Run the named tests of the project at `root` together.

    Raises:
        InputError: they do not pass on the code as it is, so that a failure would tell nothing.
    """
    tests = sorted({mutation.test for mutation in mutations})
    result = _run_pytest(root, tests, seconds=None)
    if result.returncode:
        last = "\n".join(result.stdout.splitlines()[-30:])
        raise InputError(f"the tests do not pass on the code as it is; fix them first:\n{last}")


def outcome_of(mutation: Mutation, root: Path) -> str:
    """Return 'killed' or 'survived', or in words why there is no answer; the file is afterwards as before."""
    path = root / mutation.file
    original = path.read_bytes()
    path.write_text(mutation.apply(root), encoding="utf-8")
    try:
        code = _run_pytest(root, [mutation.test], SECONDS).returncode
    except subprocess.TimeoutExpired:
        return f"no answer in {SECONDS:g} s"
    finally:
        path.write_bytes(original)
    return _OUTCOMES.get(code, f"pytest ended with {code}")


def _run_pytest(root: Path, tests: Sequence[str], seconds: float | None) -> subprocess.CompletedProcess:
    # Without bytecode: its time stamps count whole seconds, so that a file written twice in one would be the old one.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds,
        check=False,
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main)
