"""What a run leaves for programs."""

import json
import math

from trainer.config import Config, RunConfig
from trainer.distributed import Worker
from trainer.run import outputs


def test_the_result_is_json_where_a_run_has_diverged(tmp_path):
    path = tmp_path / "result.json"
    config = Config(run=RunConfig(result_json=str(path)))
    result = {"final_loss": math.nan, "steps": 3, "losses": [math.inf, 0.1]}
    outputs.report(config, Worker(), result, text="done")
    content = json.loads(path.read_text(), parse_constant=lambda name: f"not JSON: {name}")
    assert content["result"] == {"final_loss": None, "steps": 3, "losses": [None, 0.1]}
