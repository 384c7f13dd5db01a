#!/usr/bin/env bash
#SBATCH --job-name=slim-horovod
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=1-00:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slim-horovod-%j.log
# Trains under Slurm, with a worker for each GPU. At its time limit and when it is preempted the job
# saves, goes back into the queue and later goes on. From the repository's folder:
#
#   sbatch [sbatch's options] scripts/launch/slurm.sh --data_dir=DIR --logdir=/shared/RUN [flags]
#
# sbatch's options take the place of those above. Horovod has to be built with MPI: load the
# cluster's MPI module before scripts/setup.sh, and put the line that loads it below as well.
set -euo pipefail

# module load openmpi

fail() {
  echo "slurm.sh: $*" >&2
  exit 2
}

# --- What fails most ------------------------------------------------------------------------------

[[ -n ${SLURM_JOB_ID-} ]] || fail "must be started by sbatch; see the head of this file"
root=${SLURM_SUBMIT_DIR:?} # Slurm runs a copy of this file, from a folder of its own.
[[ -f $root/trainer/__main__.py ]] || fail "sbatch must be called in slim-horovod's folder, got $root"
[[ " $*" == *" --logdir"* || " $*" == *" --flagfile"* ]] ||
  fail "--logdir must be given, in a folder that all hosts share: the job goes on from there"
venv=$(realpath -ms "${SLIM_HOROVOD_VENV:-$root/.venv}")
python=$venv/bin/python
[[ -x $python ]] || fail "$venv: is not there: run scripts/setup.sh first"
linked=$(ldd "$venv"/lib/python3*/site-packages/horovod/tensorflow/mpi_lib*.so 2>/dev/null || true)
[[ $linked == *libmpi.so* ]] ||
  fail "Horovod in $venv was built without MPI: have mpicc on PATH, and run scripts/setup.sh again"
! grep -q 'libmpi.* => not found' <<<"$linked" ||
  fail "MPI's libraries are not found: load the MPI module that scripts/setup.sh found"
# srun's help on --mpi goes to either output.
[[ $(srun --mpi=list 2>&1) == *pmix* ]] || fail "this Slurm has no PMIx, by which MPI starts"
srun --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" test -x "$python" ||
  fail "$python is not there on every host: it has to be on a file system that all share"

# --- The run --------------------------------------------------------------------------------------

# Slurm sends --signal to the workers, which save and end with status 75. supervise.py starts them
# again after a failure that may pass, within this job. srun of 22.05 and later wants
# --cpus-per-task anew.
status=0
"$python" "$root/scripts/supervise.py" -- srun --mpi=pmix --kill-on-bad-exit=0 \
  --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$python" -m trainer "$@" || status=$?

# A job that scancel ends is not running any more, and stays ended.
state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
if [[ $status == 75 && $state == RUNNING ]]; then
  echo "slurm.sh: saved; the job goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60 # Slurm ends this script.
fi
exit "$status"
