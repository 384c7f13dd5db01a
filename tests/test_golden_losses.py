"""Steps compute what they did when tests/golden_losses.json was recorded."""

import itertools

import golden_losses
import pytest

from trainer.distributed import Group


def check(cases, networks, *, workers):
    expected = {
        (f"{network}, {precision}, {workers} workers", setting)
        for network, precision, setting in itertools.product(
            networks, golden_losses.PRECISIONS, golden_losses.kernel_settings()
        )
        if golden_losses.is_in_suite(network, precision, setting, workers)
    }
    assert {(case.name, case.kernels) for case in cases} == expected
    assert [found for case in cases if (found := golden_losses.find_difference(case))] == []


@pytest.mark.slow
@pytest.mark.parametrize("network", golden_losses.NETWORKS)
def test_one_workers_losses_are_the_golden_ones(network):
    check(golden_losses.compute_cases(Group(), [network]), [network], workers=1)


@pytest.mark.processes
def test_two_workers_losses_are_the_golden_ones_on_both(tmp_path):
    cases, others = golden_losses.launch(2, tmp_path)
    assert cases == others
    check(cases, golden_losses.NETWORKS, workers=2)


@pytest.mark.parametrize(
    ("factor", "is_told"), [(1.000019, False), (1.000021, True), (0.998, True)]
)
def test_losses_that_differ_are_told(factor, is_told):
    name = "small, float32, 1 workers"
    golden = golden_losses.json.loads(golden_losses.FILE.read_text(encoding="utf-8"))[name]
    case = golden_losses.Case(name, "float32", "off", [loss * factor for loss in golden])
    assert bool(golden_losses.find_difference(case)) == is_told
    assert golden_losses.find_difference(case._replace(losses=golden[1:]))
    assert golden_losses.find_difference(case._replace(losses=[*golden[:-1], 1.006 * golden[-1]]))
