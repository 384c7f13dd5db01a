"""What a run leaves for programs."""

import json
import math

import pytest

from trainer.config import Config, DataConfig, RunConfig
from trainer.distributed import Worker
from trainer.errors import UserError
from trainer.run import outputs


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
        (b'{"model": "\xff"}', "can't decode byte 0xff"),
        (b"[1]", "not an object"),
        (b'{"image_size": "32"}', "image_size is '32'"),
    ],
)
def test_a_damaged_description_of_the_model_is_one_line(tmp_path, content, reason):
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        outputs.as_trained(Config(run=RunConfig(logdir=str(tmp_path))))
    message = str(error.value)
    assert message.startswith(f"--logdir: {tmp_path}/model.json cannot be read (")
    assert reason in message
    assert "\n" not in message


def test_a_flag_that_is_given_needs_no_good_value_in_the_models_description(tmp_path):
    (tmp_path / "model.json").write_text('{"image_size": "32", "model": "resnet_v2_101"}')
    given = Config(
        run=RunConfig(logdir=str(tmp_path)), data=DataConfig(image_size=64), given=("image_size",)
    )
    config = outputs.as_trained(given)
    assert (config.data.image_size, config.model.model) == (64, "resnet_v2_101")
