#!/usr/bin/env bash
# Trains under Open MPI's mpirun. From anywhere:
#
#   scripts/launch/mpirun.sh -np 16 -H host1:8,host2:8 [mpirun's options] -- --data_dir=DIR [flags]
#
# mpirun's options come before `--`, the trainer's flags after it. Horovod has to be built with MPI:
# have mpicc on PATH when scripts/setup.sh runs. SLIM_HOROVOD_INTERFACE=eth0 names the network
# interface to use, where hosts have several.
set -euo pipefail

fail() {
  echo "mpirun.sh: $*" >&2
  exit 2
}

# --- What fails most ------------------------------------------------------------------------------

options=()
while (($#)) && [[ $1 != -- ]]; do
  options+=("$1")
  shift
done
(($#)) || fail "the trainer's flags must come after --, as in: mpirun.sh -np 2 -- --data_dir=DIR"
shift

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=$(realpath -ms "${SLIM_HOROVOD_VENV:-$root/.venv}")
[[ -x $venv/bin/python ]] || fail "$venv: is not there: run scripts/setup.sh first"
command -v mpirun >/dev/null ||
  fail "mpirun is not on PATH: apt-get install openmpi-bin libopenmpi-dev, dnf install openmpi-devel"
[[ $(mpirun --version 2>&1) == *"Open MPI"* ]] ||
  fail "mpirun must be Open MPI's; for another: mpiexec -n N $venv/bin/python -m trainer"
linked=$(ldd "$venv"/lib/python3*/site-packages/horovod/tensorflow/mpi_lib*.so 2>/dev/null || true)
[[ $linked == *libmpi.so* ]] ||
  fail "Horovod in $venv was built without MPI: have mpicc on PATH, and run scripts/setup.sh again"
! grep -q 'libmpi.* => not found' <<<"$linked" ||
  fail "MPI's libraries are not found: they are no longer where they were when scripts/setup.sh ran"

# --- The run --------------------------------------------------------------------------------------

# No InfiniBand of Open MPI's own: NCCL has the GPUs' gradients.
command=(mpirun --bind-to none --map-by slot --mca pml ob1 --mca btl ^openib -x PATH
  -x LD_LIBRARY_PATH)
[[ $(id -u) != 0 ]] || command+=(--allow-run-as-root) # As in containers.
if [[ -n ${SLIM_HOROVOD_INTERFACE-} ]]; then
  export NCCL_SOCKET_IFNAME=$SLIM_HOROVOD_INTERFACE
  command+=(--mca btl_tcp_if_include "$SLIM_HOROVOD_INTERFACE"
    --mca oob_tcp_if_include "$SLIM_HOROVOD_INTERFACE" -x NCCL_SOCKET_IFNAME)
fi
export PATH=$venv/bin:$PATH LD_LIBRARY_PATH=${LD_LIBRARY_PATH-}
# Asked to end itself, mpirun kills its workers a second later. SIGUSR1 it passes on: they save, all
# at the same step, and end with status 75. In a session of its own it does not get the terminal's
# Ctrl-C, nor the end of it: it would not leave them to this script.
setsid "${command[@]}" "${options[@]}" python -m trainer "$@" &
mpirun=$!
trap 'kill -USR1 "$mpirun"' TERM INT HUP
while kill -0 "$mpirun" 2>/dev/null; do
  wait "$mpirun" || true # A signal ends it, too.
done
wait "$mpirun"
