"""A summary of how the compiled kernels were tested, from the reports of a run's tests.

It needs no TensorFlow: the process that prints it may have handed out the tests to others.
"""

# Properties of reports: how the kernels ran; by the test that runs others by emulation, how many.
HOW = "kernels"
EMULATED = "emulated_kernel_tests"
# What the reason begins with for which a test of the kernels is skipped.
REASON = "kernels: "


def describe(reports):
    """A line about the kernels' tests; empty where there were none."""
    of_kernels = [report for report in reports if "test_cpu_" in report.nodeid]
    if not of_kernels:
        return ""
    properties = [dict(report.user_properties) for report in reports if report.passed]
    how = next((each[HOW] for each in properties if each.get(HOW)), "")
    emulated = sum(each.get(EMULATED, 0) for each in properties)
    if how:
        return f"compiled kernels: tested {how}"
    if emulated:
        return f"compiled kernels: tested by emulation ({emulated} tests)"
    texts = (str(report.longrepr[-1]) for report in of_kernels if report.skipped)
    reasons = (text.partition(REASON)[2] for text in texts)
    return f"compiled kernels: not tested: {next(filter(None, reasons), 'no test needed them')}"
