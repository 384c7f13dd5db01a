"""The flags of --mode=doctor for several hosts."""

import dataclasses

from trainer.config.statement import Checked, flag


@dataclasses.dataclass(frozen=True)
class HostsConfig(Checked):
    """The hosts of a run to come, which --mode=doctor looks at over ssh."""

    hosts: str | None = flag(
        None,
        "Hosts to look at over ssh, and workers on each, as for horovodrun: host1:8,host2:8; one "
        "worker where there is no number. Default: this installation alone is looked at.",
        changes_training=False,
        modes=("doctor",),
        short_name="H",
    )
    network_interface: str | None = flag(
        None,
        "Name of the network interface that the workers of --hosts will use. Default: the first by "
        "name that all hosts have.",
        changes_training=False,
        modes=("doctor",),
    )
