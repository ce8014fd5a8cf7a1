"""What is said to a wrong command line: one line, with the option that was meant, and how to get help."""

import importlib
import re

import pytest

from data.errors import InputError, did_you_mean
from data.settings.declaration import options_of
from data.settings.parser import CommandParser
from options import pipeline_options, test_options, train_options
from options.train_options import METHODS
from scripts import prepare_dataset
from tests.documented import ROOT
from training.settings import SHARED_GROUPS

COMMANDS = [
    *(f"scripts.{path.stem}" for path in sorted((ROOT / "scripts").glob("[a-z]*.py"))),
    *(f"ct_segmentation.{name}" for name in ("train", "predict", "eval", "import_extractor")),
]


VALUE = ". If it is a value, write --option=VALUE."


def said(capsys, parse, *words: str) -> str:
    """Return what a command says to a line that it refuses, and where help is, without its end of line."""
    with pytest.raises(SystemExit) as stop:
        parse(list(words))
    output = capsys.readouterr()
    assert (stop.value.code, output.out) == (2, "")
    error, where = output.err.splitlines()
    assert where.startswith("help: python ")
    return f"{error} {where}"


@pytest.mark.parametrize("form", ["{} 3", "{}=3"])
def test_an_option_of_one_patient_is_answered_by_the_column_of_a_cohort(capsys, form):
    with_pattern = {"reference": "--reference_pattern with --input_dir, or "}
    for name in ("reference", "mask", "series_uid", "patient_name", "patient_id"):
        assert said(capsys, pipeline_options.parse, "--input_dir", "d", *form.format(f"--{name}").split()) == (
            f"error: --{name}: no such option; give {with_pattern.get(name, '')}a --list with a column {name} "
            "(docs/batch_conversion.md). "
            "help: python test_pipeline.py --help_all"
        )


@pytest.mark.parametrize(
    ("parse", "word", "meant"),
    [
        (train_options.parse, "--ngff", "; did you mean --ngf? help: python train.py --help_all"),
        (train_options.parse, "--n-epochs", "; did you mean --n_epochs? help: python train.py --help_all"),
        (train_options.parse, "--epochs", "; did you mean --n_epochs? help: python train.py --help_all"),
        (train_options.parse, "-name", "; did you mean --name? help: python train.py --help_all"),
        (train_options.parse, "--quux", f"{VALUE} help: python train.py --help_all"),
        (train_options.parse, "\u2014ngf", "; did you mean --ngf? help: python train.py --help_all"),
        (test_options.parse, "--Input", "; did you mean --input? help: python test_adapt.py --help_all"),
        (test_options.parse, "--inptu", "; did you mean --input? help: python test_adapt.py --help_all"),
        (
            pipeline_options.parse,
            "--inputdir",
            "; did you mean --input_dir? help: python test_pipeline.py --help_all",
        ),
    ],
)
@pytest.mark.parametrize("form", ["{} 3", "{}=3"])
def test_an_unknown_option_is_answered_by_the_nearest(capsys, parse, word, meant, form):
    """Before what is missing: the option that is missing is the one that was meant."""
    assert said(capsys, parse, *form.format(word).split()) == f"error: {word}: no such option{meant}"


def test_options_of_other_methods_and_files_in_place_of_models_are_told(capsys, tmp_path):
    told = (
        "error: --steps_per_epoch: no such option; it is an option of --model simulated_pairs, refined_pairs, paired. "
    )
    assert said(capsys, train_options.parse, "--steps_per_epoch", "5").startswith(told + "help: ")
    told = told.replace("steps_per_epoch", "lambda_co_A").split(" simulated")[0]
    assert said(capsys, train_options.parse, "--model", "simulated_pairs", "--lambda_co_A", "2").startswith(told)
    for word in (str(tmp_path / "mr.nii.gz"), "mr.nii.gz"):
        expected = (
            f"error: argument --name: {word}: a volume file; expected the name of a model. An MR goes to --input "
        )
        for parse in (test_options.parse, pipeline_options.parse):
            assert said(capsys, parse, "--name", "recommended", word).startswith(expected)
    begun = did_you_mean("STS_012", ["STS_024", "STS_012_MR_T1_2", "STS_012_MR_T1"])
    assert begun == "; did you mean STS_012_MR_T1?"
    assert (
        did_you_mean("recommended_mine", ["recommended"])
        == did_you_mean("recommended_mine_small", ["recommended"])
        == ""
    )
    assert did_you_mean("recomended", ["recommended", "wholebody"]) == "; did you mean recommended?"


def test_the_help_of_a_method_has_its_own_defaults_alone():
    simulated, published = (train_options.train_parser(name).format_all() for name in ("simulated_pairs", "cycle_gan"))
    assert "(default: 160)" in simulated and "(default: 256)" not in simulated
    assert "(default: 256)" in published and "(default: none;" in " ".join(published.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_in_one_line(capsys, name):
    command = importlib.import_module(name)
    parse = next(
        getattr(command, parse) for parse in ("parse", "parse_arguments", "_parse", "main") if hasattr(command, parse)
    )
    near = rf"(; did you mean --out\w*\?|{re.escape(VALUE)})"
    expected = rf"error: --outt: no such option{near} help: python -m {name} --help(_all)?"
    assert re.fullmatch(expected, said(capsys, parse, "--outt", "x"))


def test_a_word_that_belongs_to_no_option(capsys, tmp_path):
    parser = CommandParser(prog="python -m scripts.x")
    parser.add_argument("--ct")
    parse = parser.parse_args
    lost = "expected an option before it help: python -m scripts.x --help"
    assert said(capsys, parse, "--ct", "a", "b") == f"error: b: {lost}"
    assert said(capsys, parse, "--ct", "a", "b", "c") == f"error: b and 1 more word: {lost}"
    assert said(capsys, parse, "--ct", "a", "b" * 300) == f"error: {'b' * 300}: {lost}"
    assert said(capsys, parse, "--ct", "a", "b", "c", "d") == f"error: b and 2 more words: {lost}"
    files = [tmp_path / name for name in ("a.nii", "b.nii")]
    for file in files:
        file.touch()
    assert "expected an option before it; put a glob in quotes help: " in said(capsys, parse, "--ct", *map(str, files))


def test_numbers_and_texts_are_values(capsys):
    parser = CommandParser(prog="x.py")
    parser.add_argument("--level", type=float)
    parser.add_argument("--text")
    assert vars(parser.parse_args(["--level", "-.5", "--text", "-a b"])) == {"level": -0.5, "text": "-a b"}
    assert parser.parse_args(["--level=-1e3"]).level == -1000
    assert vars(parser.parse_args(["--level", "-1e3", "--text", "-1.nii"])) == {"level": -1000, "text": "-1.nii"}
    assert said(capsys, parser.parse_args, "--level", "low") == (
        "error: argument --level: invalid float value: 'low' help: python x.py --help"
    )
    assert said(capsys, parser.parse_args, "--txet=my text", "--level", "1") == (
        "error: --txet: no such option; did you mean --text? help: python x.py --help"
    )
    assert said(capsys, parser.parse_args, "--lev", "1") == (
        "error: --lev: no such option; did you mean --level? help: python x.py --help"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model cyclegan", "argument --model: invalid choice: 'cyclegan'; did you mean cycle_gan? Choose from "),
        ("--model simulated-pairs", "; did you mean simulated_pairs? Choose from "),
        ("--netG resnet9", "invalid choice: 'resnet9'; did you mean resnet_9blocks? Choose from resnet_9blocks, "),
        ("--gan_mode x", "argument --gan_mode: invalid choice: 'x'. Choose from lsgan, vanilla"),
    ],
)  # fmt: skip
def test_the_nearest_choice_is_named(words, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        train_options.parse(["--dataroot", "d", "--name", "n", *words.split()])
    assert said in capsys.readouterr().err


def test_a_config_file_s_nearest_choice_is_named(tmp_path):
    for text, said in (("model: pair", "; did you mean paired?"), ("netG: resnet6", "; did you mean resnet_6blocks?")):
        (tmp_path / "run.yaml").write_text(f"dataroot: d\nname: n\n{text}\n")
        with pytest.raises(InputError) as error:
            train_options.parse(["--config", str(tmp_path / "run.yaml")])
        assert str(error.value).endswith(said)


def test_the_help_of_a_training_is_short_and_says_where_the_rest_is(capsys):
    texts = {}
    for word in ("--help", "-h", "--help_all"):
        with pytest.raises(SystemExit, match="0"):
            train_options.parse([word])
        texts[word] = capsys.readouterr().out
    assert texts["--help"] == texts["-h"] and texts["--help"].count("\n") < 0.4 * texts["--help_all"].count("\n")
    options = re.findall(r"^  (--\w+)", texts["--help"], re.MULTILINE)
    everything = set(re.findall(r"^  (--\w+)", texts["--help_all"], re.MULTILINE))
    assert {"--dataroot", "--name", "--model", "--n_epochs", "--continue_train"} <= set(options) < everything
    assert everything >= {f"--{field.name}" for group in SHARED_GROUPS for field, _ in options_of(group)}
    left = len(everything) - len(options)
    assert texts["--help"].rstrip().endswith(f"{left} more options: python train.py --help_all, or docs/options.md")


SHORT = {
    test_options.parse: (
        "usage: test_adapt.py --name NAME --input PATH [options]",
        "--help_all --input --reference --output --no_solid_body --overwrite --results_dir --air_outside --name "
        "--device --series_description --contrast --resample_reference --dicom --anonymous --mu_map",
        "18 more options: python test_adapt.py --help_all, or docs/options.md",
    ),
    pipeline_options.parse: (
        "usage: test_pipeline.py --name NAME --input_dir FOLDER [options]",
        "--help_all --input_dir --list --pattern --reference_pattern --overwrite --results_dir --air_outside --name "
        "--device --series_description --contrast --resample_reference --dicom --anonymous --mu_map",
        "15 more options: python test_pipeline.py --help_all, or docs/options.md",
    ),
    prepare_dataset.parse: (
        "usage: python -m scripts.prepare_dataset [--mr GLOB] --ct GLOB --out DIR [options]",
        "--help_all --mr --ct --test_mr --test_ct --mr_mask --ct_mask --out --size --spacing_mm",
        "9 more options: python -m scripts.prepare_dataset --help_all, or docs/options.md",
    ),
}


@pytest.mark.parametrize("parse", SHORT, ids=lambda parse: parse.__module__)
def test_the_short_help_shows_what_everybody_needs(parse, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    texts = {}
    for word in ("--help", "--help_all"):
        with pytest.raises(SystemExit, match="0"):
            parse([word])
        texts[word] = capsys.readouterr().out
    usage, options, rest = SHORT[parse]
    lines = texts["--help"].splitlines()
    assert (lines[0], lines[-1]) == (usage, rest)
    assert texts["--help_all"].splitlines()[0] == usage
    assert re.findall(r"^  (--\w+)", texts["--help"], re.MULTILINE) == options.split()
    for option, value in re.findall(r"(--\w+) ([A-Z]+)", usage):  # the options below call it the same
        assert re.search(rf"^  {option} (\[NAME=\])?{value}\b", texts["--help"], re.MULTILINE), option
    assert not re.search(r"--(input_dir|reference|output) (INPUT_DIR|REFERENCE|OUTPUT)", texts["--help"])
    everything = re.findall(r"^  (--\w+)", texts["--help_all"], re.MULTILINE)
    assert len(everything) - len(options.split()) == int(rest.split()[0])


@pytest.mark.parametrize("method", METHODS)
def test_each_method_shows_what_is_its_own(method, capsys):
    with pytest.raises(SystemExit, match="0"):
        train_options.parse(["--model", method, "-h"])
    shown, chosen = capsys.readouterr().out, "" if method == "cycle_gan" else f" --model {method}"
    assert shown.rpartition("more options: ")[2].startswith(f"python train.py{chosen} --help_all,")
    shown = re.findall(r"^  (--\w+)", shown, re.MULTILINE)
    own = [f"--{field.name}" for field, described in options_of(METHODS[method].settings_type) if described.first]
    assert own and set(own) <= set(shown)


def test_a_method_s_help_leaves_out_what_does_nothing_to_it(capsys):
    method = METHODS["shape_extractor"]
    with pytest.raises(SystemExit, match="0"):
        train_options.parse(["--model", "shape_extractor", "--help_all"])
    shown = re.findall(r"^  (--\w+)", capsys.readouterr().out, re.MULTILINE)
    assert {"--mr_window", "--val"} <= {f"--{name}" for name in (*method.unused_options, "val")}
    assert not {f"--{name}" for name in (*method.unused_options, "val", "val_patients", "val_criterion")} & set(shown)
    assert "--val_freq" in shown and "--ct_window" in shown


@pytest.mark.parametrize("name", [*COMMANDS, "train", "test_adapt", "test_pipeline", "fill_hole"])
def test_no_help_shows_a_value_of_python(name, capsys):
    """Nor a default twice."""
    command = {"train": train_options, "test_adapt": test_options, "test_pipeline": pipeline_options}.get(name)
    command = command or importlib.import_module(name)
    parse = next(
        getattr(command, parse) for parse in ("parse", "parse_arguments", "_parse", "main") if hasattr(command, parse)
    )
    for word in ("--help", "--help_all"):
        with pytest.raises(SystemExit) as stop:
            parse([word])
        text = " ".join(capsys.readouterr().out.split())
        if stop.value.code == 0:
            assert not re.search(r"default:? (None|False|True|\(|\[)|\(default[^)]*\) \(default|==SUPPRESS", text), text
