"""Scopes of variables, as --trainable_scopes and --exclude_scopes name them."""

import pytest

from trainer.config import Config, FineTuningConfig
from trainer.config.fine_tuning import Scopes
from trainer.errors import ConfigError


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("logits", "resnet_v2_50/logits/weights", True),
        ("logits", "logits/weights", True),
        ("logit", "resnet_v2_50/logits/weights", False),
        ("resnet_v2_50/logits", "resnet_v2_50/logits/weights", True),
        ("block4/unit_*", "resnet_v2_50/block4/unit_3/bottleneck_v2/conv1/weights", True),
        ("block4/*/conv1", "resnet_v2_50/block4/unit_3/bottleneck_v2/conv1/weights", False),
        ("block[12]", "net/block2/weights", True),
        ("a, block2/", "net/block2/weights", True),
        ("weights", "net/block2/weights", True),
        ("block2/weights/x", "net/block2/weights", False),
    ],
)
def test_scopes_are_whole_parts_of_names(pattern, name, fits):
    assert Scopes(pattern).match(name) is fits


@pytest.mark.parametrize("flag", ["trainable_scopes", "exclude_scopes"])
@pytest.mark.parametrize("value", [",", "logits,", " ", "/"])
def test_scopes_without_a_name_are_refused(flag, value):
    with pytest.raises(ConfigError, match=f"--{flag}: must be comma-separated scopes"):
        FineTuningConfig(**{flag: value})


@pytest.mark.parametrize(
    "flags", [{"exclude_scopes": "logits"}, {"ignore_missing": True}, {"init_averages": True}]
)
def test_what_is_about_a_checkpoint_needs_one(flags):
    with pytest.raises(ConfigError, match="--init_checkpoint: must be given with"):
        Config(fine_tuning=FineTuningConfig(**flags))
