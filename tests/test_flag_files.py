"""Flag files: what they may hold, and what a run writes into its own."""

import dataclasses
import os

import pytest
from test_command_line import parse

from flags import flag_files
from trainer.config import DataConfig, flag_file
from trainer.errors import UserError


def test_a_flagfile_carries_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.flags"
    recipe.write_text("# a comment\n--batch_size=5\n--seed=3\n")
    config = parse(f"--flagfile={recipe}", "--seed=4")
    assert (config.data.batch_size, config.run.seed) == (5, 4)


def test_a_flagfile_may_have_comments_and_other_flagfiles(tmp_path):
    own, other = tmp_path / "own.flags", tmp_path / "other.flags"
    own.write_text(
        "\ufeff--batch_size=5  # behind a flag\r\n\r\n// --seed=1\n  --data_dir=a b#1/c #d # e\n"
        f"--flagfile={other}\n--logdir=x#y\n"
    )
    other.write_text(f"--seed=3\t#\n--flagfile={own}\n--steps=7")  # It names the one it is in.
    config = parse("--flagfile", str(own), "--steps=9")
    assert (config.data.batch_size, config.run.seed, config.run.steps) == (5, 3, 9)
    assert (config.data.data_dir, config.run.logdir) == ("a b#1/c", "x#y")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('--data_dir="a #1/b"', "a #1/b"),
        ("--data_dir=' a' #\"b'", " a"),
        ('--data_dir="a" # "b"', "a"),
        ('--data_dir="a"b"', 'a"b'),
        ('--data_dir=a "b" #c', 'a "b"'),
        ('--data_dir="a"#b', '"a"#b'),
        ('--data_dir\n"a #b"', "a #b"),
        ('--data_dir="', '"'),
        ('--data_dir=""', ""),
        ("--data_dir= #a", ""),
    ],
)
def test_a_value_in_quotes_is_what_is_between_them(tmp_path, line, value):
    (tmp_path / "flags").write_text(f"  {line}\t\n--seed=3 #4")
    words = flag_files.expand([f"--flagfile={tmp_path}/flags"])
    assert words[-1] == "--seed=3"
    assert "=".join(words[:-1]) == f"--data_dir={value}"


def test_an_empty_name_of_a_flagfile_is_none():
    assert parse("--flagfile=", "--seed=3").run.seed == 3


def test_what_is_behind_two_dashes_is_no_flagfile():
    assert parse("--mode=predict", "--", "--flagfile=a").files == ("--flagfile=a",)


def test_the_flag_file_of_a_run_tells_how_many_workers_it_had():
    started = parse("--batch_size=5")
    assert "workers" not in flag_file.write(started)
    assert "# Started with 8 workers: --batch_size is that of each\n" in flag_file.write(started, 8)


def test_the_flag_file_of_a_run_repeats_it_from_any_folder(tmp_path):
    flags = ["--batch_size=5", "--notf32", "--deterministic", "--base_learning_rate=1e-05"]
    given = parse("--data_dir=a b/../c#d", *flags)
    of_one_start = ["--logdir=x", "--resume=never", "--new_class_names", "--result_json=r"]
    text = flag_file.write(parse("--data_dir=a b/../c#d", *of_one_start, *flags))
    assert text.startswith(flag_file.HEADER)
    (tmp_path / "flags").write_text(text)
    again = parse(f"--flagfile={tmp_path}/flags")
    assert again.given == given.given
    data_dir = f"{os.getcwd()}/a b/../c#d"
    data = dataclasses.replace(given.data, data_dir=data_dir)
    assert again == dataclasses.replace(given, data=data)


def test_what_a_run_began_with_is_read_where_it_is_repeated_and_nowhere_else(tmp_path):
    begun = ["--init_checkpoint=/w", "--exclude_scopes=logits", "--init_averages"]
    rest = ["--data_dir=/images", "--histogram_every=5"]
    started = parse(*rest, *begun, "--ignore_missing", f"--logdir={tmp_path}")
    (tmp_path / "flags").write_text(flag_file.write(started))
    file, logdir = f"--flagfile={tmp_path}/flags", f"--logdir={tmp_path}"
    assert parse(file, logdir) == started
    for mode in (["--mode=evaluate"], ["--mode", "export"], ["--benchmark"]):
        other = parse(*mode, file, logdir)
        assert other.run.init_checkpoint is None
        assert set(other.given) == {"data_dir", "histogram_every", "logdir"}
    assert parse("--mode=evaluate", logdir).data.data_dir == "/images"


@pytest.mark.parametrize(
    "value", ["a # b", "a #", "/a #1/b", " a ", '"a"', "'a", "a' #b", 'a" #"', "a\"b'"]
)
def test_a_value_that_would_be_read_otherwise_is_in_quotes(tmp_path, value):
    begun = ["--exclude_scopes=a", f"--init_checkpoint={value}"]
    given = parse(f"--dataset={value}", "--model=a:b", *begun)
    (tmp_path / "flags").write_text(flag_file.write(given))
    again = parse(f"--flagfile={tmp_path}/flags")
    assert again.data.dataset == value
    assert again.run.init_checkpoint == os.path.join(os.getcwd(), value)


@pytest.mark.parametrize("value", ["a\nb", "caf\udce9", "a\" #' #", " a\t"])
def test_a_value_that_fits_into_no_line_is_left_out_of_the_flag_file(value):
    text = flag_file.write(parse(f"--data_dir={value}", "--seed=3"))
    assert [line for line in text.splitlines() if line[0] != "#"] == ["--seed=3"]
    assert "# --data_dir has a value" in text


def test_an_evaluation_knows_the_data_of_the_run(tmp_path):
    logdir = f"--logdir={tmp_path}"
    of_run = ["--data_dir=/images", "--validation_fraction=0.2", "--batch_size=5"]
    (tmp_path / "flags").write_text(flag_file.write(parse(*of_run)))
    data = parse("--mode=evaluate", logdir).data
    assert (data.data_dir, data.validation_fraction) == ("/images", 0.2)
    assert data.batch_size == DataConfig().batch_size
    data = parse("--mode=evaluate", logdir, "--validation_fraction=1").data
    assert (data.data_dir, data.validation_fraction) == ("/images", 1.0)
    for other in ("--data_dir=/others", "--dataset=synthetic"):
        given = parse("--mode=evaluate", logdir, other)
        assert given.data == parse(other).data
    assert parse(logdir).data == DataConfig()
    (tmp_path / "flags").write_text("--no_such_flag=1")
    with pytest.raises(UserError, match=f"^--data_dir: must be given, since {tmp_path}/flags is "):
        parse("--mode=evaluate", logdir)


def test_a_flagfile_that_is_no_text_is_one_line(tmp_path):
    recipe = tmp_path / "recipe.flags"
    recipe.write_bytes(b"--batch_size=5\xff\n")
    with pytest.raises(UserError, match=r"^--flagfile: must be UTF-8 \("):
        parse(f"--flagfile={recipe}")
