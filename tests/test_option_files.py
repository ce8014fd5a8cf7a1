"""Options from files: `--config`, and a run that resumes with its own."""

import json
import logging

import pytest
import torch

import train
from ct_segmentation import train as train_extractor
from data.errors import InputError
from options import train_options
from options.train_options import METHODS
from tests.test_datasets import dataroot  # noqa: F401
from tests.test_train import assert_same_weights, run

REQUIRED = ["--dataroot", "D", "--name", "N", "--device", "cpu"]
# Values other than the default, one of every kind, of each method.
OTHERS = {
    "cycle_gan": "--ngf 7 --mr_window in_phase=tissue fat=0:400 --ct_transfer -1000:-1,0:0,2000:1 --lambda_shape 0 "
    "--lambda_shape_gan 0 --warm_start simulated_mr --n_epochs_warm 2 --seed 5 --use_dropout --gan_mode vanilla",
    "simulated_pairs": "--ct_window -900 1200 --slab 3 --display_window 40 400.5 --flip --limbs 0.5 --lr 2.5e-7",
    "refined_pairs": "--refined_share 0.25 --lambda_keep 2.5 --netD n_layers --n_layers_D 4 --skin_mm 0",
    "paired": "--mr_window -3 400.5 --save_latest_freq 10min --flip xy --preprocess body_crop --crop_size 32 "
    "--lr_policy warmup_cosine --seconds 60 --val",
    "shape_extractor": "--width 4 --val_share 0.5 --display_id 2 --display_env e",
}


def config(tmp_path, text, name="run.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return ["--config", str(path)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("others", [True, False])
def test_an_opt_json_gives_back_every_option(method, others, tmp_path):
    words = [*REQUIRED, "--model", method, *(OTHERS[method].split() if others else [])]
    expected = train_options.parse(words)
    text = json.dumps(expected.values())
    assert train_options.parse(config(tmp_path, text, "opt.json")) == expected
    assert train_options.parse(config(tmp_path, text, "opt.yaml")) == expected


def test_the_command_line_wins_over_the_file(tmp_path):
    file = config(
        tmp_path, "model: cycle_gan\nname: F\nngf: 8\nlr: 1e-3\nflip: true\nmr_window: [0, 1200]\nuse_dropout: true\n"
    )
    settings = train_options.parse([*file, "--dataroot", "D", "--ngf", "16", "--name", "N", "--mr_window", "tissue"])
    assert (settings.run.name, settings.model.ngf, settings.model.lr) == ("N", 16, 1e-3)
    assert (settings.data.flip, settings.data.mr_window, settings.model.use_dropout) == ("x", "tissue", True)


def test_a_warm_start_is_switched_on_and_off_on_the_command_line(tmp_path):
    def parsed(*words):
        return train_options.parse([*REQUIRED, *words]).model

    def told(model):
        return model.warm_epochs, model.warm_lr, model.lambda_simulated, model.simulates

    cold = config(tmp_path, json.dumps(train_options.parse(REQUIRED).values()), "cold.json")
    warm_words = [*REQUIRED, "--warm_start", "simulated_mr", "--n_epochs_warm", "4"]
    warm = config(tmp_path, json.dumps(train_options.parse(warm_words).values()), "warm.json")
    assert told(parsed(*cold, "--warm_start", "simulated_mr")) == (10, 1e-3, 10, True)
    assert told(parsed(*warm, "--warm_start", "none")) == (0, 0, 0, False)
    assert told(parsed(*warm, "--warm_start", "none", "--lambda_simulated", "2")) == (0, 0, 2, True)
    assert told(parsed(*warm, "--warm_start", "simulated_mr"))[0] == told(parsed(*warm))[0] == 4
    own = config(tmp_path, "n_epochs_warm: 4\nwarm_lr: 0.01\nlambda_simulated: 3\n", "own.yaml")
    assert told(parsed(*own, "--warm_start", "simulated_mr")) == (4, 0.01, 3, True)
    both = config(tmp_path, "warm_start: none\nn_epochs_warm: 10\n", "both.yaml")
    assert told(parsed(*both, "--warm_start", "none", "--lambda_simulated", "0"))[0::3] == (0, False)


def test_epochs_on_the_command_line_replace_seconds_of_a_file(tmp_path):
    file = config(tmp_path, "model: paired\nseconds: 60\n")
    assert train_options.parse([*REQUIRED, *file]).epochs is None
    assert train_options.parse([*REQUIRED, *file, "--n_epochs", "5"]).epochs == 5


def test_mirroring_is_switched_off_by_a_word():
    assert train_options.parse([*REQUIRED, "--model", "simulated_pairs"]).data.flip == "xy"
    data = train_options.parse([*REQUIRED, "--model", "simulated_pairs", "--flip", "none"]).data
    assert data.augmentation.flip == ""


def test_curve_and_window_replace_each_other(tmp_path):
    curve, window = config(tmp_path, "ct_transfer: soft_tissue"), config(tmp_path, "ct_window: [-900, 900]", "w.yaml")
    data = train_options.parse([*REQUIRED, *curve, "--ct_window", "-500", "500"]).data
    assert (data.ct_window, data.ct_transfer) == ((-500, 500), None)
    data = train_options.parse([*REQUIRED, *window, "--ct_transfer", "soft_tissue"]).data
    assert (data.ct_window, data.ct_transfer) == (None, "soft_tissue")
    with pytest.raises(SystemExit):
        train_options.parse([*REQUIRED, *config(tmp_path, "ct_transfer: soft_tissue\nct_window: [-900, 900]")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lambda_ident: 1", "run.yaml: lambda_ident: no such option; did you mean lambda_identity?"),
        ("--ngff: 1", "did you mean ngf?"),
        ("width: 3", "run.yaml: width: no such option"),  # of another method
        ("ngf: many", "run.yaml: ngf: 'many': expected a whole number of 1 or more"),
        ("ngf: true", "run.yaml: ngf: True: expected one value"),
        ("ngf: [1, 2]", r"run.yaml: ngf: \[1, 2\]: expected one value"),
        ("ngf:", "run.yaml: ngf: None: expected one value"),
        ("use_dropout: 1", "run.yaml: use_dropout: 1: expected true or false"),
        ("netG: vgg", "run.yaml: netG: 'vgg': expected one of resnet_9blocks"),
        ("mr_window: [9, 1]", "run.yaml: mr_window: expected percentile, tissue or LO HI with LO below HI"),
        ("model: diffusion", "diffusion: no such --model; expected one of cycle_gan"),
        ("ngf: 1\nngf: 2", "run.yaml: ngf: given twice"),
        ("- ngf", "expected options by name"),
        ("ngf", "expected options by name"),
        ("", "expected options by name"),
        ("ngf: [1", "run.yaml: cannot be read"),
    ],
)
def test_a_config_file_that_cannot_be_used_is_refused_by_name(text, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train_options.parse([*REQUIRED, *config(tmp_path, text)])


def test_a_config_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.yaml: no such file"):
        train_options.parse([*REQUIRED, "--config", str(tmp_path / "nowhere.yaml")])
    with pytest.raises(InputError, match="ngf: given twice"):
        train_options.parse([*REQUIRED, *config(tmp_path, '{"ngf": 1, "ngf": 2}', "opt.json")])


def test_an_option_in_a_file_that_does_nothing_is_refused(tmp_path, capsys):
    file = config(tmp_path, "lr_policy: step\nlr_decay_iters: 20")
    assert train_options.parse([*REQUIRED, *file]).schedule.lr_decay_iters == 20
    # The command line chose otherwise: nobody has to edit the file.
    assert train_options.parse([*REQUIRED, *file, "--lr_policy", "linear"]).schedule.lr_policy == "linear"
    with pytest.raises(SystemExit):
        train_options.parse([*REQUIRED, *config(tmp_path, "lr_decay_iters: 20")])
    assert "--lr_decay_iters does nothing without --lr_policy step" in capsys.readouterr().err


def test_a_name_is_enough_to_continue(dataroot, tmp_path, caplog):  # noqa: F811
    caplog.set_level(logging.INFO)
    options = ["--lr", "1e-3", "--flip", "--batch_size", "2"]
    whole = run(dataroot, tmp_path, *options, "--n_epochs", "3", name="whole")
    parts = run(dataroot, tmp_path, *options, name="parts")
    resume = ["--continue_train", "--name", "parts", "--checkpoints_dir", str(tmp_path)]
    train.main([*resume, "--n_epochs", "3", "--print_freq", "2", "--save_latest_freq", "10min"])
    assert "resumed with another option: print_freq: was 1, now 2" in caplog.text
    assert "resumed with another option: save_latest_freq: was 4, now 10min" in caplog.text
    assert "n_epochs: was 2, now 3" in caplog.text and "lr: was" not in caplog.text
    # A decay of one epoch begins later than in the run of 2 and 1: the third epoch trained twice, at other rates.
    assert not torch.equal(*(torch.load(f / "latest_net_G_A.pth")["model.1.weight"] for f in (whole, parts)))
    own = json.loads((parts / "opt.json").read_text())
    assert (own["n_epochs"], own["print_freq"], own["continue_train"], own["lr"]) == (3, 2, False, 1e-3)
    caplog.clear()
    train.main(resume)  # what it resumed with last is now its own
    assert "was" not in caplog.text


def test_a_run_continued_by_name_alone_ends_as_if_it_had_not_stopped(dataroot, tmp_path, monkeypatch):  # noqa: F811
    from models.cycle_gan_model import CycleGANModel

    options = ["--lr", "1e-3", "--use_dropout"]
    whole = run(dataroot, tmp_path, *options, name="whole")
    step, calls = CycleGANModel.step, []

    def dying(self, batch):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(CycleGANModel, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        run(dataroot, tmp_path, *options, name="killed")
    monkeypatch.setattr(CycleGANModel, "step", step)
    train.main(["--continue_train", "--name", "killed", "--checkpoints_dir", str(tmp_path)])
    assert_same_weights(whole, tmp_path / "killed")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--ngf", "3"], "ngf: was 2, now 3"),
        (["--netD", "basic", "--ndf", "4"], "ndf: was 2, now 4; netD: was pixel, now"),
    ],
)
def test_what_the_state_fixes_is_refused(dataroot, tmp_path, changed, message):  # noqa: F811
    folder = run(dataroot, tmp_path)
    before = {file: file.read_bytes() for file in folder.glob("*.*")}
    with pytest.raises(InputError, match=message):
        train.main(["--continue_train", "--name", "run", "--checkpoints_dir", str(tmp_path), *changed])
    assert {file: file.read_bytes() for file in folder.glob("*.*")} == before


def test_a_run_without_its_options_or_state(dataroot, tmp_path, caplog):  # noqa: F811
    resume = ["--continue_train", "--name", "run", "--checkpoints_dir", str(tmp_path)]
    with pytest.raises(InputError, match=r"latest_state.pth: no such file: nothing to continue"):
        train.main(resume)
    folder = run(dataroot, tmp_path)
    for state in folder.glob("*_state.pth"):
        state.rename(tmp_path / state.name)
    with pytest.raises(InputError, match="the run was stopped before it saved its first state; start it again"):
        train.main(resume)
    for state in tmp_path.glob("*_state.pth"):
        state.rename(folder / state.name)
    (folder / "opt.json").write_text('{"ngf"')
    run(dataroot, tmp_path, "--continue_train")
    assert "opt.json: damaged" in caplog.text and "the options of the command line only" in caplog.text
    assert json.loads((folder / "opt.json").read_text())["ngf"] == 2
    old = json.loads((folder / "opt.json").read_text()) | {"lambda_of_old": 3, "device": "cuda:9"}
    (folder / "opt.json").write_text(json.dumps(old))
    train.main([*resume, "--device", "cpu"])
    assert "lambda_of_old" in caplog.text and "cuda:9" in caplog.text


def test_a_run_says_first_that_it_resumes_and_then_where(dataroot, tmp_path, caplog):  # noqa: F811
    folder = run(dataroot, tmp_path)
    caplog.clear()
    caplog.set_level(logging.INFO)
    train.main(["--continue_train", "--name", "run", "--checkpoints_dir", str(tmp_path), "--n_epochs", "3"])
    said = [message for message in caplog.messages if "run: " in message]
    assert said[:2] == [
        f"run: resuming from its last saved state, {folder}/latest_state.pth",
        "run: resumed at epoch 4 of 4, step 0 of 6",
    ]
    assert caplog.messages[0] == said[0]
    caplog.clear()
    train.main(["--continue_train", "--name", "run", "--checkpoints_dir", str(tmp_path)])  # it is trained
    assert caplog.messages[0] == said[0] and not any("resumed at" in message for message in caplog.messages)
    assert "the training is complete; to continue, give a larger --n_epochs or --seconds" in caplog.messages


def test_fewer_epochs_than_a_run_has_are_answered_by_what_it_has(dataroot, tmp_path, caplog):  # noqa: F811
    """It has two and one in which the rate falls; that one stays. Weights are kept every second epoch."""
    folder = run(dataroot, tmp_path)
    again = ["--continue_train", "--name", "run", "--checkpoints_dir", str(tmp_path), "--n_epochs", "1"]
    said = (
        "warning: the run already has 3 epochs, but --n_epochs 1 asks for 2 in total: nothing to train; to continue, "
        "give a larger --n_epochs; the weights of epoch 2 "
    )
    train.main(again)
    assert f"{said}are kept: use them with --epoch 2" in caplog.messages
    (folder / "2_net_G_A.pth").unlink()
    train.main(again)
    assert f"{said}were not kept (--save_epoch_freq)" in caplog.messages
    assert not any("the training is complete" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("name", "meant"), [("limb_1", "; did you mean Limbs_1?"), ("limbs1", "; did you mean Limbs_1?"), ("xyz", ".")]
)
def test_a_name_that_cannot_be_continued_is_answered_by_those_that_can(tmp_path, name, meant):
    for there in ("Limbs_1", "trunk", "exported"):
        (tmp_path / there).mkdir()
    for there, state in (("Limbs_1", "latest_state.pth"), ("trunk", "previous_state.pth")):
        (tmp_path / there / state).touch()
    with pytest.raises(InputError) as error:
        train_options.parse(["--continue_train", "--name", name, "--checkpoints_dir", str(tmp_path)])
    assert str(error.value) == (
        f"{tmp_path / name}/latest_state.pth: no such file: nothing to continue{meant} Runs in {tmp_path} that can be "
        "continued: Limbs_1, trunk. Leave out --continue_train to start a new run"
    )


@pytest.mark.parametrize(("processes", "start"), [(1, "python"), (2, "torchrun --standalone --nproc_per_node=2")])
def test_the_command_that_resumes_can_be_copied(tmp_path, processes, start):
    settings = train_options.parse([*REQUIRED, "--name", "my run"])
    assert settings.run.resume_command(processes) == f"{start} train.py --continue_train --name 'my run'"
    elsewhere = train_options.parse([*REQUIRED, "--checkpoints_dir", "/data/my runs"])
    ending = f"--name {elsewhere.run.name} --checkpoints_dir '/data/my runs'"
    assert elsewhere.run.resume_command(processes) == f"{start} train.py --continue_train {ending}"
    for_machines = "start torchrun on each of the 3 machines as before, with: train.py --continue_train"
    assert elsewhere.run.resume_command(processes, machines=3) == f"{for_machines} {ending}"


def test_a_script_that_starts_the_training_gives_the_command_that_resumes(monkeypatch):
    monkeypatch.setenv("RESUME_COMMAND", "bash recipe.sh 'my data'")
    assert train_options.parse([*REQUIRED, "--name", "run"]).run.resume_command(2) == "bash recipe.sh 'my data'"


def test_options_that_a_run_is_started_with_come_from_a_file(dataroot, tmp_path):  # noqa: F811
    folder = run(dataroot, tmp_path)
    again = ["--config", str(folder / "opt.json"), "--name", "again"]
    train.main(again)
    assert_same_weights(folder, tmp_path / "again")
    with pytest.raises(InputError, match="already holds a run"):
        train.main(again)


def test_the_extractor_continues_by_its_folder_alone(tmp_path):
    folder = tmp_path / "E"
    base = ["--dataroot", "D", "--width", "4", "--epochs", "3", "--device", "cpu"]
    expected = train_extractor.parse([*base, "--out", str(folder)])
    folder.mkdir()
    (folder / "latest_state.pth").touch()
    (folder / "opt.json").write_text(json.dumps(expected.values()))
    for where in (["--out", str(folder)], ["--name", "E", "--checkpoints_dir", str(tmp_path)]):
        resumed = train_extractor.parse(["--continue_train", *where])
        assert (resumed.model, resumed.schedule, resumed.data) == (expected.model, expected.schedule, expected.data)
        assert resumed.run.folder == folder and resumed.run.continue_train
    file = config(tmp_path, "dataroot: D\nwidth: 4\nn_epochs: 3\ndevice: cpu\n")
    from_file = train_extractor.parse(file)
    assert from_file.model == expected.model and from_file.run.folder.name == "shape_extractor"
    assert from_file.run.folder.parent.name == "D"
