"""Steps compute what they did when tests/golden_losses.json was recorded."""

import json

import golden_losses
import numpy as np
import pytest

from trainer.distributed import Group

# Relative, of a loss: CPUs, numbers of threads and the compiled kernels round differently.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.02}


def check(cases, networks, *, workers):
    golden = json.loads(golden_losses.FILE.read_text(encoding="utf-8"))
    expected = {
        (f"{network}, {precision}, {workers} workers", setting)
        for network in networks
        for precision in golden_losses.PRECISIONS
        for setting in golden_losses.kernel_settings()
    }
    assert {(case.name, case.kernels) for case in cases} == expected
    for case in cases:
        tolerance = TOLERANCE[case.precision]
        np.testing.assert_allclose(case.losses, golden[case.name], rtol=tolerance, err_msg=case)


def test_a_small_networks_losses_are_the_golden_ones():
    check(golden_losses.compute_cases(Group(), ["small"]), ["small"], workers=1)


@pytest.mark.slow
def test_resnets_losses_are_the_golden_ones():
    check(golden_losses.compute_cases(Group(), ["resnet_v2_50"]), ["resnet_v2_50"], workers=1)


@pytest.mark.processes
def test_two_workers_losses_are_the_golden_ones_on_both(tmp_path):
    cases, others = golden_losses.launch(2, tmp_path)
    assert cases == others
    check(cases, golden_losses.NETWORKS, workers=2)
