#!/usr/bin/env python3
"""Runs a command with those variables of the environment alone that training needs.

  scripts/worker_environment.py horovodrun -np 8 python -m trainer [flags]

horovodrun writes the whole environment into its workers' command lines, which every user of their
hosts can read: tokens and passwords too. What else is to be passed on is named in
SLIM_HOROVOD_PASS, with spaces between.
"""

import os
import sys
from collections.abc import Mapping

_NAMES = frozenset(
    (
        *("HOME", "HOSTNAME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "PWD", "SHELL", "TERM"),
        *("TMPDIR", "TZ", "USER", "VIRTUAL_ENV", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"),
        *("COLUMNS", "LINES", "NO_COLOR", "LD_LIBRARY_PATH", "LD_PRELOAD", "GLIBC_TUNABLES"),
        # Where keys are, not what they are.
        *("GOOGLE_APPLICATION_CREDENTIALS", "SSL_CERT_FILE", "SSL_CERT_DIR", "CONDA_PREFIX"),
        *("KRB5CCNAME", "PE_HOSTFILE", "SSH_AUTH_SOCK", "CLOUDSDK_CONFIG", "NO_GCE_CHECK"),
    )
)
_PREFIXES = (
    *("CUDA_", "GOMP_", "HOROVOD_", "HYDRA_", "I_MPI_", "KMP_", "LC_", "MALLOC_", "MKL_"),
    *("LSB_", "NCCL_", "NVIDIA_", "OMPI_", "OMP_", "OPAL_", "ORTE_", "PBS_", "PMI", "PRTE_"),
    *("PYTHON", "SLIM_HOROVOD_", "SLURM_", "TF_", "UCX_", "XLA_"),
    # Of fast networks, and of data in Google's storage.
    *("FI_", "HCOLL_", "MPICH_", "MV2_", "OFI_NCCL_", "PSM2_", "PSM3_", "RDMAV_", "GCE_METADATA_"),
)
PASS = "SLIM_HOROVOD_PASS"


def select(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that training needs, and those that $SLIM_HOROVOD_PASS names."""
    names = _NAMES | set(environ.get(PASS, "").split())
    return {
        name: value
        for name, value in environ.items()
        if name in names or name.startswith(_PREFIXES)
    }


def main() -> None:
    """Becomes the command that the arguments give."""
    command = sys.argv[1:]
    if not command or command[0] in ("-h", "--help"):
        print(__doc__ or "")
        sys.exit(0 if command else 1)
    try:
        os.execvpe(command[0], command, select(os.environ))
    except OSError as error:
        sys.exit(f"worker_environment.py: {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
