"""The comparisons of workers before the first step, in a group whose other workers are invented."""

import dataclasses

import pytest
import tensorflow as tf
import tiny

from trainer.config import Config
from trainer.cpu_kernels import library, switch
from trainer.distributed import Group, Worker
from trainer.errors import UserError
from trainer.safety import agreement


class OtherWorkers(Group):
    """A group in which every other worker answers as a function of this one's answer says."""

    def __init__(self, *others):
        super().__init__(Worker(0, 1 + len(others)))
        self.others = others
        self.sent = []

    def gather(self, value):
        self.sent.append(value)
        return [value, *(other(value) for other in self.others)]


def same(value):
    return value


def other(**changes):
    """A worker whose facts differ: its digest does, and then the facts themselves."""

    def answer(value):
        if value is None:  # No error.
            return None
        return {**value, **changes} if isinstance(value, dict) else "another digest"

    return answer


CONFIG = Config(**tiny.config_groups())


def test_workers_that_agree_send_a_digest_only():
    group = OtherWorkers(same, same)
    agreement.check(group, {"flag --seed": "0"})
    assert [len(value) for value in group.sent] == [64]


def test_the_first_worker_that_differs_is_named_and_what_differs():
    facts = {
        "flag --seed": "0",
        "version of numpy": "2.5",
        "file trainer/graph/train_step.py": "aaaa",
    }
    changes = other(**{"flag --seed": "1", "version of numpy": "2.4"})
    with pytest.raises(UserError) as caught:
        agreement.check(OtherWorkers(same, changes), facts)
    assert str(caught.value) == (
        "worker 2 of 3 does not run what worker 0 does: flag --seed is 1, not 0; "
        "version of numpy is 2.4, not 2.5. Give all workers the same flags, code, packages and data"
    )


def test_many_differences_are_counted():
    facts = {str(number): "x" for number in range(10)}
    changes = other(**{str(number): "y" for number in range(10)})
    with pytest.raises(UserError, match="0 is y, not x; 1 is y, not x; 2 is y, not x; and 7 more"):
        agreement.check(OtherWorkers(changes), facts)


def test_every_flag_counts():
    changed = dataclasses.replace(
        CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, momentum=0.5)
    )
    before, after = agreement.flags_of(CONFIG), agreement.flags_of(changed)
    groups = [getattr(CONFIG, group.name) for group in dataclasses.fields(CONFIG)]
    names = {
        field.name
        for group in groups
        if dataclasses.is_dataclass(group)
        for field in dataclasses.fields(group)
    }
    assert set(before) == {f"flag --{name}" for name in {"mode", *names}}
    assert {name for name in before if before[name] != after[name]} == {"flag --momentum"}


def test_the_code_of_the_program_and_of_plug_ins_counts(tmp_path, monkeypatch):
    facts = agreement.code_of(CONFIG)
    assert {"file trainer/graph/train_step.py", "file models/resnet_v2.py", "file of tiny"} <= set(
        facts
    )
    (tmp_path / "plug_in.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    data = dataclasses.replace(CONFIG.data, dataset="plug_in:dataset")
    config = dataclasses.replace(CONFIG, data=data)
    before = agreement.code_of(config)
    (tmp_path / "plug_in.py").write_text("x = 2\n")
    after = agreement.code_of(config)
    assert {name for name in before if before[name] != after[name]} == {"file of plug_in"}


def test_a_plug_in_that_is_missing_is_a_users_mistake():
    data = dataclasses.replace(CONFIG.data, dataset="no_such_module:dataset")
    with pytest.raises(UserError, match="module no_such_module: must be there on every worker"):
        agreement.code_of(dataclasses.replace(CONFIG, data=data))


def without(which, reason):
    """A worker without an error, which does without these kernels."""

    def answer(value):
        return [which, reason] if isinstance(value, tuple) else value

    return answer


with_kernels = without("", "")
OFF = without("the compiled kernels", "this CPU lacks AVX-512 with bfloat16")
NO_CONVOLUTIONS = without("the compiled kernels of convolutions", "it has a matrix unit")


def test_workers_with_other_libraries_of_kernels_are_refused(monkeypatch, tmp_path):
    assert agreement._named_kernels() == {}
    named = []
    for name in ("theirs.so", "own.so"):
        (tmp_path / name).write_bytes(name.encode())
        monkeypatch.setenv(switch.VARIABLE, str(tmp_path / name))
        named.append(agreement._named_kernels())
    with pytest.raises(UserError, match=r"worker 2 .*library of SLIM_HOROVOD_KERNELS"):
        agreement.check_program(OtherWorkers(same, other(**named[0])), CONFIG)


def test_workers_with_and_without_the_compiled_kernels_are_refused(monkeypatch):
    monkeypatch.setenv(switch.VARIABLE, "0")
    with pytest.raises(UserError) as caught:
        agreement.check_kernels(OtherWorkers(same, with_kernels), tf.float32)
    assert str(caught.value) == (
        "worker 0 of 3 does without the compiled kernels (SLIM_HOROVOD_KERNELS=0 turns them off), "
        "which worker 2 uses. Give all workers the same SLIM_HOROVOD_KERNELS, build and kind of "
        "CPU, or set SLIM_HOROVOD_KERNELS=0 for all"
    )
    agreement.check_kernels(OtherWorkers(OFF), tf.float32)


@pytest.mark.parametrize(
    ("reason", "of_convolutions", "others", "message"),
    [
        ("", "it has AMX", [same, with_kernels], "0 of 3 .* of convolutions .it has AMX., .* 2 "),
        ("", "", [same, NO_CONVOLUTIONS], "2 of 3 .* of convolutions .it has a .* unit., .* 0 "),
        ("off", "it has AMX", [NO_CONVOLUTIONS], "0 of 2 .* compiled kernels .off., .* 1 "),
        ("", "it has AMX", [NO_CONVOLUTIONS, OFF], "2 of 3 .* kernels .this CPU lacks .*, .* 0 "),
        ("", "it has AMX", [NO_CONVOLUTIONS], None),
    ],
)
def test_so_are_those_whose_convolutions_alone_differ(
    monkeypatch, reason, of_convolutions, others, message
):
    monkeypatch.setattr(library, "reason_for_none", lambda: reason)
    asked = {tf.bfloat16: of_convolutions, tf.float32: ""}
    monkeypatch.setattr(library, "reason_for_no_convolutions", asked.get)
    if message is None:
        agreement.check_kernels(OtherWorkers(*others), tf.bfloat16)
    else:
        with pytest.raises(UserError, match=f"^worker {message}"):
            agreement.check_kernels(OtherWorkers(*others), tf.bfloat16)


def test_a_switch_that_is_none_is_one_line_on_every_worker(monkeypatch):
    monkeypatch.setenv(switch.VARIABLE, "maybe")
    with pytest.raises(UserError, match=r"^SLIM_HOROVOD_KERNELS: must be .* got 'maybe'$"):
        agreement.check_kernels(OtherWorkers(same), tf.float32)
