#!/usr/bin/env bash
# Trains on hosts that are reached by ssh, under horovodrun. From anywhere:
#
#   scripts/launch/ssh.sh -np 16 -H host1:8,host2:8 [horovodrun's options] -- --data_dir=DIR [flags]
#
# horovodrun's options come before `--`, the trainer's flags after it. The hosts have this folder
# and its environment in the same place, and so the data.
set -euo pipefail

fail() {
  echo "ssh.sh: $*" >&2
  exit 2
}

# --- What fails most ------------------------------------------------------------------------------

options=() hosts='' by_ssh=()
while (($#)) && [[ $1 != -- ]]; do
  case $1 in
    -H | --hosts) hosts=${2-} ;;
    --hosts=*) hosts=${1#*=} ;;
    -p | --ssh-port) by_ssh+=(-p "${2-}") ;;
    --ssh-port=*) by_ssh+=(-p "${1#*=}") ;;
    -i | --ssh-identity-file) by_ssh+=(-i "${2-}") ;;
    --ssh-identity-file=*) by_ssh+=(-i "${1#*=}") ;;
  esac
  options+=("$1")
  shift
done
(($#)) || fail "the trainer's flags must come after --, as in: ssh.sh -np 2 -H a:1,b:1 -- --data_dir=DIR"
shift
[[ $hosts =~ ^[^:,]+:[1-9][0-9]*(,[^:,]+:[1-9][0-9]*)*$ ]] ||
  fail "-H must be hosts with their numbers of workers, as in -H host1:8,host2:8, got '$hosts'"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=$(realpath -ms "${SLIM_HOROVOD_VENV:-$root/.venv}")
[[ -x $venv/bin/python ]] || fail "$venv: is not there: run scripts/setup.sh first"
[[ " $*" != *" --logdir="[^/]* ]] || fail "--logdir must be an absolute path"
for host in $(tr , '\n' <<<"$hosts" | cut -d: -f1 | sort -u); do
  getent hosts "$host" >/dev/null || fail "$host: has no address; add it to /etc/hosts, or to DNS"
  # As horovodrun calls it: a password or an unknown host key would have it wait for ever.
  said=$(ssh "${by_ssh[@]}" -o BatchMode=yes -o StrictHostKeyChecking=no -o ConnectTimeout=10 "$host" \
    "test -x '$venv/bin/python' || { echo has no $venv/bin/python; exit 1; }" 2>&1 </dev/null) ||
    fail "$host: ${said##*$'\n'} (this must work: ssh $host true)"
done

# --- The run --------------------------------------------------------------------------------------

export PATH=$venv/bin:$PATH
exec "$root/scripts/worker_environment.py" horovodrun "${options[@]}" python -m trainer "$@"
