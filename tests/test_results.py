"""The files that a run leaves for programs."""

import dataclasses
import json
import math

import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.checkpoints import model_file, search
from trainer.config import Config, DataConfig, ModelConfig, RunConfig
from trainer.distributed import Group, Worker
from trainer.errors import UserError
from trainer.inputs.dataset import DatasetInfo
from trainer.run import outputs
from trainer.safety.status import Status


def test_the_result_is_json_where_a_run_has_diverged(tmp_path):
    path = tmp_path / "result.json"
    config = Config(run=RunConfig(result_json=str(path)))
    result = {"final_loss": math.nan, "steps": 3, "losses": [math.inf, 0.1]}
    outputs.report(config, Worker(), result, text="done")
    content = json.loads(path.read_text(), parse_constant=lambda name: f"not JSON: {name}")
    assert content["result"] == {"final_loss": None, "steps": 3, "losses": [None, 0.1]}


def test_a_result_that_can_not_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file"
    config = Config(run=RunConfig(result_json=f"{folder}/result.json", logdir=str(folder)))
    with pytest.raises(UserError, match=f"^--result_json: {folder}/result.json could not be writ"):
        outputs.report(config, Worker(), {}, text="done")
    with pytest.raises(UserError, match=f"^--logdir: {folder}/model.json could not be written "):
        outputs.write_model(config, Worker(), None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "Expecting property name"),
        (b'{"model": "\xff"}', "it is not UTF-8 from byte 11 on"),
        (b"[1]", "not an object"),
        (b'{"image_size": "32"}', "image_size is '32'"),
        (b'{"image_size": true}', "image_size is True"),
        (b'{"image_size": 0}', "must be at least 1"),
        (b'{"class_names": "ab"}', "class_names is a text, not a list"),
        (b'{"class_names": [1]}', "class_names[0] is 1, not a text"),
        (b"[" * 100_000, "it is nested too deeply"),
    ],
)
def test_a_damaged_description_of_the_model_is_one_line(tmp_path, content, reason):
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        outputs.as_trained(Config(run=RunConfig(logdir=str(tmp_path))))
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/model.json: cannot be read (")
    assert reason in message
    assert "\n" not in message


def test_a_flag_that_is_given_needs_no_good_value_in_the_models_description(tmp_path):
    (tmp_path / "model.json").write_text('{"image_size": "32", "model": "resnet_v2_101"}')
    given = Config(
        run=RunConfig(logdir=str(tmp_path)), data=DataConfig(image_size=64), given=("image_size",)
    )
    config = outputs.as_trained(given).config
    assert (config.data.image_size, config.model.model) == (64, "resnet_v2_101")


def write_model(folder, **content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps(content))


def test_a_row_of_numbers_is_a_line(tmp_path):
    path = tmp_path / "result.json"
    result = {
        "confusion": [[3, 0], [1, 2]],
        "rates": [1e-07, -2.5e22, 0.5],
        "none": [],
        "a": ["[ 1 ]"],
    }
    config = Config(run=RunConfig(result_json=str(path)))
    outputs.report(config, Worker(), result, text="")
    text = path.read_text()
    assert json.loads(text)["result"] == result
    assert "      [1, 2]\n" in text
    assert '"rates": [1e-07, -2.5e+22, 0.5],' in text


def test_the_best_checkpoint_of_a_run_without_evaluations_is_none(tmp_path):
    run = RunConfig(logdir=str(tmp_path), checkpoint="best")
    with pytest.raises(UserError, match=f"^--checkpoint: {tmp_path} has no best checkpoint"):
        search.choose(run)
    run = RunConfig(logdir=str(tmp_path), checkpoint="runs/gone")
    with pytest.raises(UserError, match=r"^--checkpoint: must be latest, best, .* got .runs/gone."):
        search.choose(run)


def test_a_size_that_is_given_is_that_of_the_evaluation(tmp_path):
    write_model(tmp_path, image_size=32, eval_image_size=48)

    def size(**given):
        config = Config(
            run=RunConfig(logdir=str(tmp_path)), data=DataConfig(**given), given=tuple(given)
        )
        return outputs.as_trained(config).config.data.evaluation_size

    assert (size(), size(image_size=64), size(eval_image_size=64)) == (48, 64, 64)
    write_model(tmp_path, image_size=32)
    assert size() == 32


def test_a_checkpoint_is_described_by_the_file_beside_it(tmp_path):
    """Of the best one also by the run's; not by that of another run in --logdir."""
    run, other, logs = tmp_path / "run", tmp_path / "other", tmp_path / "logs"

    def image_size(checkpoint, logdir=None):
        config = RunConfig(
            init_checkpoint=checkpoint and f"{checkpoint}/model.ckpt-5", logdir=logdir
        )
        return outputs.as_trained(Config(run=config)).config.data.image_size

    write_model(run, image_size=32)
    write_model(logs, image_size=48)
    assert image_size(run) == image_size(run / "best") == image_size(run, str(logs)) == 32
    assert image_size(None, str(run / "best")) == 32
    write_model(run / "best", image_size=64)
    assert image_size(run / "best") == 64
    assert image_size(None, str(logs)) == 48
    assert image_size(other, str(logs)) == image_size(other) == 224


def test_what_is_assumed_without_such_a_file_is_told(tmp_path):
    config = Config(run=RunConfig(init_checkpoint=f"{tmp_path}/model.ckpt-5"))
    (said,) = outputs.as_trained(config).remarks
    assert said.startswith(f"{tmp_path} has no model.json; assumed are --model=resnet_v2_50 ")
    assert " --image_size=224 " in said
    given = tuple(flag.name for flag in model_file.list_flags(config))
    assert outputs.as_trained(dataclasses.replace(config, given=given)).remarks == ()
    write_model(tmp_path, image_size=32)
    assert outputs.as_trained(config).remarks == ()
    assert outputs.as_trained(Config()).remarks == ()


def test_a_start_from_weights_of_another_network_is_told(tmp_path):
    """Keras' networks have slim's variables, to the name and shape."""
    keras = {"model": "keras_resnet_v2_50", "batch_norm_epsilon": 1.001e-5}
    weights, logs = tmp_path / "weights", tmp_path / "logs"
    write_model(weights, image_size=299, **keras)

    def told(checkpoint=weights, **flags):
        run = RunConfig(init_checkpoint=f"{checkpoint}/model.ckpt-0", logdir=str(logs))
        return model_file.describe_start(Config(run=run, model=ModelConfig(**flags)))

    assert told() == (
        "the weights were made with --model=keras_resnet_v2_50 --batch_norm_epsilon=1.001e-05 "
        f"({weights}/model.json); this run has --model=resnet_v2_50 --batch_norm_epsilon=1e-05",
    )
    assert told(**keras) == told(tmp_path / "none") == ()
    assert model_file.describe_start(Config(run=RunConfig(logdir=str(logs)))) == ()
    logs.mkdir()
    (logs / "model.ckpt-5.index").touch()
    assert told() == ()  # It is resumed.
    (logs / "model.ckpt-5.index").unlink()
    (weights / "model.json").write_text("{")
    assert told() == ()


def resume(folder, names, *, classes=2, **flags):
    config = Config(run=RunConfig(logdir=str(folder), **flags))
    info = DatasetInfo("folder", 4, 0, classes, names, "")
    outputs.check_classes(config, Worker(), info)


def test_a_run_goes_on_with_the_classes_that_it_began_with(tmp_path):
    write_model(tmp_path, class_names=["a", "b"])
    resume(tmp_path, ("b", "a"))  # It has saved no checkpoint.
    (tmp_path / "model.ckpt-5.index").touch()  # Damaged: its number of classes can't be told.
    resume(tmp_path, ("a", "b"))
    resume(tmp_path, None)
    with pytest.raises(UserError, match=r"class 0 was 'a' and is 'b'.*--new_class_names"):
        resume(tmp_path, ("b", "a"))
    resume(tmp_path, ("b", "a"), new_class_names=True)
    (tmp_path / "model.json").write_text("{")  # It will be written anew.
    resume(tmp_path, ("b", "a"))


@pytest.mark.parametrize("flags", [{}, {"new_class_names": True}])
def test_a_run_is_refused_other_data_by_their_number_of_classes(tmp_path, flags):
    with tf.Graph().as_default(), tf1.Session() as session:
        session.run(
            tf.raw_ops.SaveV2(
                prefix=f"{tmp_path}/model.ckpt-5",
                tensor_names=["net/logits/weights"],
                shape_and_slices=[""],
                tensors=[tf.zeros([1, 1, 4, 5])],
            )
        )
    counts = rf"this data has 3 classes, the run in {tmp_path} had 5"
    with pytest.raises(UserError, match=rf"{counts}\. Give the data"):
        resume(tmp_path, ("a", "b", "x"), classes=3, **flags)
    write_model(tmp_path, class_names=["a", "b", "c", "d", "e"])
    only = r"\(the run alone has 'c', 'd', 'e'; the data alone have 'x'\)"
    with pytest.raises(UserError, match=f"{counts} {only}"):
        resume(tmp_path, ("a", "b", "x"), classes=3, **flags)
    resume(tmp_path, ("a", "b", "c", "d", "e"), classes=5, **flags)


def test_a_start_that_is_refused_keeps_the_step_that_is_saved(tmp_path):
    path = tmp_path / "status.json"
    path.write_text('{"state": "preempted", "step": 500}')
    Status(str(tmp_path), rank=0).set("failed", reason="refused")
    assert json.loads(path.read_text()) == {"state": "failed", "step": 500, "reason": "refused"}


@pytest.mark.parametrize(
    "content", ['{"state": "finished", "step": 9}', '{"state": "running"}', "["]
)
def test_a_start_that_is_refused_changes_nothing_of_a_run_that_is_complete(tmp_path, content):
    path = tmp_path / "status.json"
    path.write_text(content)
    Status(str(tmp_path), rank=0).set("failed", reason="refused")
    if "finished" in content:
        assert path.read_text() == content
    else:
        assert json.loads(path.read_text())["reason"] == "refused"
    begun = Status(str(tmp_path), rank=0)
    begun.set("running", step=9)
    begun.set("failed", reason="ended")
    assert json.loads(path.read_text()) == {"state": "failed", "step": 9, "reason": "ended"}


def test_what_an_earlier_version_has_trained_is_used_as_it_was_trained(tmp_path):
    """Its model.json has no flags for what that version did not do."""
    write_model(tmp_path, image_size=32)
    trained = outputs.as_trained(Config(run=RunConfig(logdir=str(tmp_path)))).config.data
    assert (trained.resize, trained.exif_orientation) == ("bilinear", "ignore")
    given = Config(
        data=DataConfig(resize="antialias"), run=RunConfig(logdir=str(tmp_path)), given=("resize",)
    )
    trained = outputs.as_trained(given).config.data
    assert (trained.resize, trained.exif_orientation) == ("antialias", "ignore")


class OfTwo(Group):
    """The first of two workers, or the second, which has what the first has sent."""

    def __init__(self, rank, sent=None):
        super().__init__()
        self.worker = Worker(rank, 2)
        self.sent = sent

    def gather(self, value):
        self.sent = value if self.worker.rank == 0 else self.sent
        return [self.sent, value]


def test_a_run_that_an_earlier_version_began_goes_on_as_it_began(tmp_path):
    data = DataConfig(data_dir="images")
    config = Config(data=data, run=RunConfig(logdir=str(tmp_path / "run")))
    (tmp_path / "run").mkdir()
    write_model(tmp_path / "run", image_size=32)
    assert outputs.as_begun(config, OfTwo(0)) == (config, ())  # There is no checkpoint yet.
    (tmp_path / "run" / "model.ckpt-7.index").touch()
    first = OfTwo(0)
    changed, (line,) = outputs.as_begun(config, first)
    assert (changed.data.resize, changed.data.exif_orientation) == ("bilinear", "ignore")
    assert line == "the run goes on as before, with --resize=bilinear --exif_orientation=ignore"
    outputs.write_flags(changed, Worker())
    written = (tmp_path / "run" / "flags").read_text().splitlines()
    assert {"--resize=bilinear", "--exif_orientation=ignore"} <= {*written}
    # On the other's disk there is nothing of the run.
    elsewhere = Config(data=data, run=RunConfig(logdir=str(tmp_path / "other")))
    other, lines = outputs.as_begun(elsewhere, OfTwo(1, first.sent))
    assert (other.data, lines) == (changed.data, (line,))
    synthetic = dataclasses.replace(config, data=DataConfig())  # It is not read there.
    assert outputs.as_begun(synthetic, OfTwo(0)) == (synthetic, ())
    never = dataclasses.replace(config, run=dataclasses.replace(config.run, resume="never"))
    assert outputs.as_begun(never, OfTwo(0)) == (never, ())
    given = dataclasses.replace(config, given=("resize", "exif_orientation"))
    assert outputs.as_begun(given, OfTwo(0)) == (given, ())
    outputs.write_model(changed, Worker(), None)  # Now the file has the flags.
    # It can't be told from what data decide at the beginning, which is no news.
    line = "the run goes on as before, with --resize=bilinear"
    assert outputs.as_begun(config, OfTwo(0)) == (changed, (line,))
    assert outputs.as_begun(changed, OfTwo(0)) == (changed, ())


def test_a_run_that_is_complete_keeps_what_it_was_trained_with(tmp_path):
    config = Config(run=RunConfig(logdir=str(tmp_path)))
    info = DatasetInfo("folder", 4, 0, 2, None, "", exif_orientation="apply")
    data = DataConfig(crop_fraction=0.5)
    other = dataclasses.replace(config, data=data, given=("crop_fraction",))
    outputs.describe_run(config, Worker(), info, replaces=False)  # They were not there.
    first = [(tmp_path / name).read_text() for name in ("model.json", "flags")]
    outputs.describe_run(other, Worker(), info, replaces=False)
    assert [(tmp_path / name).read_text() for name in ("model.json", "flags")] == first
    (tmp_path / "model.json").write_text("{")
    outputs.describe_run(config, Worker(), info, replaces=False)
    assert (tmp_path / "model.json").read_text() == first[0]
    outputs.describe_run(other, Worker(), info, replaces=True)
    assert json.loads((tmp_path / "model.json").read_text())["crop_fraction"] == 0.5
    assert "--crop_fraction=0.5" in (tmp_path / "flags").read_text()
