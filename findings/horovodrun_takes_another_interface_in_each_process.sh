#!/usr/bin/env bash
# Which of two network interfaces that all hosts have in common does horovodrun (Horovod 0.28.1) give
# to its workers, in twenty starts of the same command? Sometimes the one, sometimes the other.
#
# Guess before: the first that it found, the same at each start on the same hosts, since nothing in
# the command or on the hosts has changed.
# It keeps the names in a set of texts, whose order Python draws anew in each process, and takes its
# first: a job may use the fast network today and the slow one tomorrow. --network-interface with
# one name avoids it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet setuptools==75.8.0 wheel==0.45.1 packaging==25.0 cloudpickle==3.1.2 \
  psutil==7.2.1 pyyaml==6.0.3
venv/bin/pip download --quiet --no-deps --no-build-isolation horovod==0.28.1
tar --no-same-owner -xzf horovod-0.28.1.tar.gz
cat > ask.py <<'END'
from horovod.runner.gloo_run import create_run_env_vars

print(create_run_env_vars("192.0.2.1", {"eth0", "eth1"}, 1234)["HOROVOD_GLOO_IFACE"])
END
for _ in {1..20}; do
  PYTHONPATH=horovod-0.28.1 PYTHONHASHSEED=random venv/bin/python ask.py
done | sort | uniq -c | tee said
[[ $(awk '{ print $2 }' said) == $'eth0\neth1' ]]
