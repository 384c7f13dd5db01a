"""The compiled kernels' work, shared by any number of threads."""

import pytest
from kernels import needs_kernels
from processes import check_with_and_without_onednn

CODE = """
import os
import test_cpu_convolutions, test_cpu_gradients, test_cpu_norm
test_cpu_gradients.check_threads()
test_cpu_gradients.check_norms()
test_cpu_norm.check_threads()
test_cpu_convolutions.check_threads()
os._exit(0)  # Without taking TensorFlow apart. What fails has raised before.
"""


@needs_kernels
@pytest.mark.processes
def test_any_number_of_threads_shares_the_work_with_and_without_onednn():
    check_with_and_without_onednn(CODE)
