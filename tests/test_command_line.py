"""Flags become a configuration; a wrong one becomes one line that names flag, rule and value."""

import dataclasses
import os
import re
import subprocess
import sys

import pytest
from absl import flags as absl_flags
from processes import trainer

from flags import command_line
from trainer.config import Config, DataConfig, OptimizerConfig, RunConfig
from trainer.config.statement import PathKind, statement_of
from trainer.errors import ConfigError, UserError
from trainer.process import files, launcher


def parse(*arguments):
    return command_line.parse(["slim-horovod", *arguments], absl_flags.FlagValues())


def test_without_flags_every_value_is_the_fields_default():
    assert parse() == Config()


def test_flags_reach_their_fields():
    config = parse(
        "--batch_size=7",
        "--data_dir=d",
        "--lr_schedule=step",
        "--steps=3",
        "--deterministic",
    )
    assert config == Config(
        data=DataConfig(batch_size=7, data_dir="d"),
        optimizer=OptimizerConfig(lr_schedule="step"),
        run=RunConfig(steps=3, deterministic=True),
    )


def test_benchmark_is_short_for_its_mode():
    assert parse("--benchmark") == parse("--mode=benchmark")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--batch_size=0"], "--batch_size: must be at least 1, got 0"),
        (["--image_size=-1"], "--image_size: must be at least 1, got -1"),
        (["--steps=0"], "--steps: must be at least 1, got 0"),
        (["--epochs=0"], "--epochs: must be greater than 0.0, got 0.0"),
        (["--momentum=1"], "--momentum: must be less than 1.0, got 1.0"),
        (["--weight_decay=nan"], "--weight_decay: must be a finite number, got nan"),
        (
            ["--optimizer=sdg"],
            "--optimizer: must be one of sgd, momentum, .*, got 'sdg'",
        ),
        (["--mode=trian"], "--mode: must be one of train, .*, got 'trian'"),
        (
            ["--steps=3", "--epochs=2"],
            "--steps: must not be given with --epochs, got 3 and 2",
        ),
        (["--batch_size=many"], "--batch_size=many: must be an integer, or auto$"),
        (["--image_size=2.5"], "--image_size=2.5: must be an integer$"),
        (["--epochs=3: x"], "--epochs=3: x: must be a number$"),
        (
            ["--bach_size=3"],
            "Unknown command line flag 'bach_size'. Did you mean: batch_size",
        ),
        (["data"], "argument 'data': --mode=train takes flags only"),
        (
            ["--dataset=folder"],
            "--data_dir: must be given with --dataset=folder, got none",
        ),
        (
            ["--benchmark", "--mode=train"],
            "--benchmark: must not be given with --mode=train",
        ),
        (
            ["--flagfile=nowhere.flags"],
            "--flagfile: must be a file that can be read, got 'nowhere.flags' .No such file",
        ),
        (["--flagfile"], "--flagfile: must be a file that can be read, got ''"),
        (["--lr=1"], "Unknown command line flag 'lr'. Did you mean: base_learning_rate?"),
        (["--epochs 3"], "flag 'epochs 3'. A flag file has --epochs=3$"),
        (["--num-epochs=1"], "Unknown command line flag 'num-epochs'. Did you mean: epochs?"),
        (["--lr-decay-epochs=1"], "'lr-decay-epochs'. Did you mean: lr_decay_epochs?"),
        (
            ["--on_nonfinite=rollback"],
            "--logdir: must be given with --on_nonfinite=rollback, got none",
        ),
        (["--resume=must"], "--logdir: must be given with --resume=must, got none"),
        (
            ["--predictions_csv=p.csv"],
            "--predictions_csv: must not be given with --mode=train, which does not use it .it is "
            "for evaluate, predict.",
        ),
        (
            ["--mode=evaluate", "--checkpoint=best"],
            "--logdir: must be given with --checkpoint=best, got none",
        ),
        (
            ["--mode=predict", "--checkpoint=a", "--init_checkpoint=b"],
            "--checkpoint: must not be given with --init_checkpoint, got 'a' and 'b'",
        ),
        (
            ["--mode=predict", "--predictions_logits"],
            "--predictions_logits: must be given with --predictions_csv or --predictions_jsonl",
        ),
        (
            ["--mode=predict", "--predictions_csv=rows", "--predictions_jsonl=./rows"],
            "--predictions_jsonl: must be another file than --predictions_csv, got './rows'",
        ),
        (
            ["--mode=predict", "--predictions_csv=rows", "--result_json=./rows", "a.jpg"],
            "--predictions_csv: must be another file than --result_json, got 'rows'",
        ),
        (
            ["--result_json=one", "--mllog=one"],
            "--mllog: must be another file than --result_json, got 'one'",
        ),
        (["--nobenchmark=false"], "--nobenchmark=false does not take an argument"),
        (["--benchmark=maybe"], "--benchmark=maybe: must be true or false$"),
        (["--logdir=runs/lr[1]"], "--logdir: must have none of .*, got 'runs/lr.1.'"),
        (["--batch_size=9999999999"], "--batch_size: must be at most 2147483647, got 9999999999"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, line):
    with pytest.raises(UserError, match=line) as caught:
        parse(*arguments)
    assert "\n" not in str(caught.value)


def test_several_results_may_go_to_a_device():
    assert parse("--result_json=/dev/null", "--mllog=/dev/null").telemetry.mllog == "/dev/null"


def test_a_folder_that_was_removed_is_told_of_when_a_file_in_it_is_to_be_written(
    tmp_path, monkeypatch
):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    config = parse("--result_json=r.json", "--mllog=m.log")
    with pytest.raises(UserError, match=r"--result_json: must be writable, got r\.json .No such"):
        files.check_writable(config.run.result_json or "", "result_json", is_folder=False)


def test_predict_takes_files():
    assert parse("--mode=predict", "a.png", "b.jpg").files == ("a.png", "b.jpg")


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
def test_help_lists_every_flag_with_its_default_and_its_choices(flag):
    with pytest.raises(command_line.HelpRequested) as caught:
        parse(flag)
    line = re.compile(r"^  (?:-\w,)?--(?:\[no\])?(\w+): ", re.MULTILINE)
    names_and_helps = line.split(str(caught.value))[1:]
    helps = dict(zip(names_and_helps[::2], names_and_helps[1::2], strict=True))
    for group in command_line.GROUPS.values():
        for field in dataclasses.fields(group):
            assert "(default: " in helps[field.name] or field.default is None
            choices = statement_of(field).choices or ()
            assert all(choice in helps[field.name] for choice in choices)


def test_names_of_other_programs_are_no_flags_here_and_stand_for_one():
    fields = [
        field for group in command_line.GROUPS.values() for field in dataclasses.fields(group)
    ]
    names = [field.name for field in fields]
    names += [name for field in fields for name in statement_of(field).elsewhere]
    assert sorted(names) == sorted(set(names))


def test_the_versions_are_told_without_tensorflow():
    done = trainer("--version", TF_CPP_MIN_LOG_LEVEL="0")
    assert done.returncode == 0
    assert re.fullmatch(
        r"slim-horovod \S+ on Python 3\S+, tensorflow 2\S+, tf-slim 1\S+, horovod 0\.28\S+\n",
        done.stdout,
    )
    assert done.stderr == ""


def test_the_program_prints_one_line_and_exits_with_2():
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "--batch_size=0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "slim-horovod: --batch_size: must be at least 1, got 0\n"
    assert done.stdout == ""


def test_only_the_first_worker_of_a_job_complains_of_a_flag(monkeypatch):
    for rank, lines in ((0, 1), (1, 0)):
        monkeypatch.setenv("HOROVOD_RANK", str(rank))
        monkeypatch.setenv("HOROVOD_SIZE", "2")
        done = subprocess.run(
            [sys.executable, "-m", "trainer", "--steps=-3"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == lines


PATHS = {flag.name: flag.statement.path for flag in Config().flags() if flag.statement.path}


def test_the_flags_that_are_paths():
    remote = {name for name, kind in PATHS.items() if kind is PathKind.LOCAL_OR_REMOTE}
    assert set(PATHS) == {
        *("logdir", "init_checkpoint", "result_json", "result_csv", "export_dir", "mllog"),
        *("checkpoint", "predictions_csv", "predictions_jsonl"),
        "data_dir",
    }
    assert remote == {"data_dir"}
    described = {
        flag.name: flag.statement.help for flag in Config().flags() if flag.default is None
    }
    named = {n for n, text in described.items() if any(w in text for w in ("Folder", "File "))}
    assert named
    assert named <= set(PATHS)


@pytest.mark.parametrize("name", PATHS)
def test_a_path_may_begin_with_the_home_folder(name, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    (modes,) = (flag.statement.modes for flag in Config().flags() if flag.name == name)
    config = parse(f"--mode={modes[0] if modes else 'train'}", f"--{name}=~/place")
    given = {flag.name: flag.value for flag in config.flags()}
    assert given[name] == "/home/somebody/place"


@pytest.mark.parametrize("name", ["logdir", "init_checkpoint", "export_dir"])
def test_a_path_that_tensorflow_can_not_open_is_refused(name, tmp_path, monkeypatch):
    expected = f"--{name}: must be in a folder whose path is UTF-8, .*got "
    with pytest.raises(ConfigError, match=rf"{expected}'caf\\udce9'"):
        parse(f"--{name}={os.fsdecode(bytes([99, 97, 102, 0xE9]))}")
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=f"{expected}'runs'"):
        parse(f"--{name}=runs")


@pytest.mark.parametrize("name", sorted(set(PATHS) - {"data_dir"}))
def test_a_remote_path_is_refused_where_files_are_written(name):
    with pytest.raises(UserError, match=f"--{name}: must be in a local .*, got 'gs://bucket/x'"):
        parse(f"--{name}=gs://bucket/x")


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (
            {"HOROVOD_RANK": "abc", "HOROVOD_SIZE": "2"},
            "HOROVOD_RANK: must be a number, as horovod",
        ),
        (
            {"HOROVOD_RANK": "0", "HOROVOD_SIZE": ""},
            "HOROVOD_SIZE: must be a number, as horovodrun",
        ),
        ({"OMPI_COMM_WORLD_RANK": "-1", "OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK: must"),
        ({"SLURM_PROCID": "x", "SLURM_STEP_NUM_TASKS": "2"}, "SLURM_PROCID: must be a number"),
        (
            {"PMI_RANK": "2", "PMI_SIZE": "2"},
            "rank 2 of 2 workers: must be less, as mpirun sets it",
        ),
        ({"PMIX_RANK": "1"}, "PMIX_RANK: must not be set alone: prterun sets it.* got '1'"),
        ({"HOROVOD_RANK": "0", "HOROVOD_SIZE": "2"}, "must not be set without HOROVOD_GLOO_RENDEZ"),
    ],
    ids=str,
)
def test_what_no_launcher_sets_is_one_line(environ, line):
    with pytest.raises(ConfigError, match=line):
        launcher.check(environ)
    launcher.find(environ)


def test_a_rank_that_no_worker_has_is_told_by_the_process_that_has_it():
    done = trainer("--mode=describe", OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_SIZE="1")
    assert done.returncode == 2
    assert done.stderr.startswith("slim-horovod: rank 1 of 1 workers: must be less, as mpirun sets")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_PROCID": "x"},
        {"HOROVOD_RANK": "0", "HOROVOD_SIZE": "1"},
        {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1"},
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "1"},
    ],
    ids=str,
)
def test_what_launchers_set_is_believed(environ):
    launcher.check(environ)
