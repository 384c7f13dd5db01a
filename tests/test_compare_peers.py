"""The comparison with other programs, with contestants that are told how fast they are."""

import compare_peers
import pytest
from peers import contestants as contestants_lib

PLAN = compare_peers.Plan(batch_size=10, image_size=32, rounds=3, steps=1)
OURS = contestants_lib.OURS


class FakeContestant:
    """Answers as a process would; writes down whose turn it was."""

    def __init__(self, name, turns, durations_sec, *, parameters=7, fails=False):
        self._name = name
        self._turns = turns
        self._durations_sec = iter(durations_sec)
        self._parameters = parameters
        self._fails = fails

    def ask(self, request):
        if self._fails:
            return {"error": "no compiler"}
        if "prepare" in request:
            return {"parameters": self._parameters, "gflops_per_image": 2.0, "prepare_sec": 1.0}
        self._turns.append(self._name)
        return {"durations_sec": [next(self._durations_sec)], "peak_memory_bytes": 3 * 2**30}


@pytest.fixture
def case(monkeypatch):
    monkeypatch.setattr(compare_peers, "_PAUSE_SEC", 0)
    turns = []
    contestants = {
        OURS: FakeContestant(OURS, turns, [0.5, 9.0, 0.5]),
        "same": FakeContestant("same", turns, [1.0, 1.0, 2.0]),
        "smaller": FakeContestant("smaller", turns, [0.25] * 3, parameters=6),
        "broken": FakeContestant("broken", turns, [], fails=True),
    }
    return turns, compare_peers.time_case(contestants, PLAN, "train", "float32")


def test_contestants_take_turns(case):
    turns, _ = case
    assert turns == [OURS, "same", "smaller"] * 3


def test_the_median_step_counts_against_ours(case):
    contestants = case[1]["contestants"]
    assert contestants[OURS]["images_per_sec"] == 20
    assert contestants["same"]["images_per_sec"] == 10
    assert contestants["same"]["ours_to_this"] == 2
    assert contestants["smaller"]["ours_to_this"] == 0.5


def test_the_table_says_what_failed_and_what_is_not_the_same_network(case):
    lines = compare_peers.format_table([case[1]]).splitlines()
    assert lines[0] == "| | train float32 |"
    assert lines[2:6] == [
        f"| {OURS} | 20.0, 3.0 GiB |",
        "| same | 10.0 (2.00x), 3.0 GiB |",
        "| smaller | 40.0 (0.50x) *, 3.0 GiB |",
        "| broken | failed |",
    ]
    assert "broken, train float32: no compiler" in lines
    assert any(line.startswith("* smaller, train float32: 6 parameters") for line in lines)


def test_a_busy_machine_is_told(case):
    quiet, busy = ({**case[1], "foreign_cores": cores} for cores in (0.0, 0.8))
    assert "QUIET" not in compare_peers.format_table([quiet])
    assert "other programs used up to 0.8 cores" in compare_peers.format_table([quiet, busy])
