"""The edits that Horovod 0.28.1 needs to compile and work with TensorFlow 2.21.

Each replaces one passage, and insists on finding that passage exactly once: a changed release ends
in a clear message instead of in a subtly wrong build.
"""

from pathlib import Path
from typing import NamedTuple


class EditError(Exception):
    """The source is not the one that an edit was written for."""


class Edit(NamedTuple):
    """One replacement in a file of Horovod's source."""

    path: str
    old: str
    new: str


EDITS = (
    # It includes XLA headers that TensorFlow has moved, and serves HOROVOD_ENABLE_XLA_OPS=1 alone.
    Edit(
        "horovod/tensorflow/CMakeLists.txt",
        'list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n',
        "",
    ),
    # TensorFlow no longer has the function that is declared here. GPU builds alone need it.
    Edit(
        "horovod/tensorflow/mpi_ops.cc",
        "// Forward declaration of AsGpuStreamValue\n"
        "namespace stream_executor {\n"
        "namespace gpu {\n"
        "GpuStreamHandle AsGpuStreamValue(Stream* stream);\n"
        "} // namespace stream_executor\n"
        "} // namespace gpu\n",
        '#include "xla/stream_executor/stream.h"\n'
        "namespace stream_executor {\n"
        "namespace gpu {\n"
        "inline GpuStreamHandle AsGpuStreamValue(Stream* stream) {\n"
        "  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);\n"
        "}\n"
        "} // namespace gpu\n"
        "} // namespace stream_executor\n",
    ),
    # The headers of CUDA 13 are C++17. GPU builds alone.
    Edit(
        "horovod/common/ops/cuda/CMakeLists.txt",
        "set(CMAKE_CUDA_STANDARD 11)\n",
        "set(CMAKE_CUDA_STANDARD 17)\n",
    ),
    # A vector that is written beyond its size: under Gloo the stall check sees no ranks in it, so
    # that a job with a lost worker hangs for ever, without a word.
    Edit(
        "horovod/common/gloo/gloo_controller.cc",
        "global_ranks_.reserve(size_);\n",
        "global_ranks_.resize(size_);\n",
    ),
    # Horovod's thread looks for tensors once each cycle. Long cycles take little of the time of
    # workers' cores, but what a step waits for would wait for a cycle's end, too. So a tensor whose
    # name begins with "urgent/" ends the cycle, and cycles are short as long as a tensor waits.
    # Without one they double each time, up to 8 ms, since another thread may be about to bring it;
    # then long ones come back. Cycles of 1 ms, the default, stay as they are.
    Edit(
        "horovod/common/operations.cc",
        "    std::this_thread::sleep_for(sleep_duration);\n",
        "    state.process_set_table.Get(0).tensor_queue.SleepUntilUrgent(sleep_duration);\n",
    ),
    Edit(
        "horovod/common/tensor_queue.h",
        "#include <iostream>\n#include <mutex>\n",
        "#include <algorithm>\n#include <chrono>\n#include <condition_variable>\n"
        "#include <iostream>\n\n#include <mutex>\n",
    ),
    Edit(
        "horovod/common/tensor_queue.h",
        "  void RemoveJoinTensor();\n\nprotected:\n",
        """\
  void RemoveJoinTensor();

  void SleepUntilUrgent(std::chrono::steady_clock::duration cycle) {
    constexpr auto kDefault = std::chrono::milliseconds(1);
    constexpr auto kLongest = std::chrono::milliseconds(8);
    std::unique_lock<std::mutex> guard(mutex_);
    urgent_came_.wait_for(guard, is_quick_ && cycle > kDefault ? std::min(cycle, pause_) : cycle);
    pause_ = is_quick_ && tensor_table_.empty() ? 2 * pause_ : kShortest;
    is_quick_ = is_quick_ && pause_ <= kLongest;
  }

protected:
  // The mutex is held.
  void NoteUrgency(const std::string& tensor_name) {
    if (tensor_name.compare(0, 7, "urgent/") == 0) {
      is_quick_ = true;
      pause_ = kShortest;
      urgent_came_.notify_all();
    }
  }

  static constexpr std::chrono::steady_clock::duration kShortest = std::chrono::microseconds(250);
  bool is_quick_ = false;
  std::chrono::steady_clock::duration pause_ = kShortest;
  std::condition_variable urgent_came_;

""",
    ),
    Edit(
        "horovod/common/tensor_queue.cc",
        "  }\n  tensor_table_.emplace(e.tensor_name, std::move(e));\n",
        "  }\n  NoteUrgency(e.tensor_name);\n"
        "  tensor_table_.emplace(e.tensor_name, std::move(e));\n",
    ),
    Edit(
        "horovod/common/tensor_queue.cc",
        "    }\n    tensor_table_.emplace(entries[i].tensor_name, std::move(entries[i]));\n",
        "    }\n    NoteUrgency(entries[i].tensor_name);\n"
        "    tensor_table_.emplace(entries[i].tensor_name, std::move(entries[i]));\n",
    ),
    # Two threads of Gloo wake up a hundred times a second each, to look whether they are to end or
    # somebody waits for them, and take a core from a worker that computes. Now they are told, and
    # look ten times a second.
    Edit(
        "third_party/gloo/gloo/transport/tcp/loop.cc",
        "    done_ = true;\n    loop_->join();\n",
        "    done_ = true;\n    defer([] {});\n    loop_->join();\n",
    ),
    Edit(
        "third_party/gloo/gloo/transport/tcp/loop.cc",
        "    std::unique_lock<std::mutex> lock(m_);\n    cv_.wait(lock);\n",
        "    std::unique_lock<std::mutex> lock(m_);\n    defer([] {});\n    cv_.wait(lock);\n",
    ),
    Edit(
        "third_party/gloo/gloo/transport/tcp/loop.cc",
        "    // Wakeup everyone waiting for a loop tick to finish.\n    cv_.notify_all();\n",
        "    // Wakeup everyone waiting for a loop tick to finish.\n"
        "    {\n"
        "      std::lock_guard<std::mutex> lock(m_);  // Or it may miss who is about to wait.\n"
        "      cv_.notify_all();\n"
        "    }\n",
    ),
    Edit(
        "third_party/gloo/gloo/transport/tcp/loop.cc",
        "epoll_wait(fd_, events.data(), events.size(), 10)",
        "epoll_wait(fd_, events.data(), events.size(), 100)",
    ),
    # One of them comes back at once where another thread holds the lock that it needs: on the only
    # core that both have it keeps that one from going on, for milliseconds. So it sleeps a little.
    Edit(
        "third_party/gloo/gloo/transport/tcp/pair.cc",
        "#include <array>\n#include <algorithm>\n#include <sstream>\n",
        "#include <algorithm>\n#include <array>\n#include <chrono>\n#include <sstream>\n"
        "#include <thread>\n",
    ),
    Edit(
        "third_party/gloo/gloo/transport/tcp/pair.cc",
        "  if (!lock) {\n    return;\n",
        "  if (!lock) {\n"
        "    std::this_thread::sleep_for(std::chrono::microseconds(50));\n"
        "    return;\n",
    ),
    # Workers of one host average through memory that they share.
    Edit(
        "horovod/common/ops/gloo_operations.h",
        "\n} // namespace horovod\n\n#endif // HOROVOD_GLOO_OPERATIONS_H\n",
        "\n} // namespace horovod\n\n"
        + Path(__file__).with_name("shared_memory_allreduce.h").read_text(encoding="utf-8")
        + "\n#endif // HOROVOD_GLOO_OPERATIONS_H\n",
    ),
    Edit(
        "horovod/common/operations.cc",
        "new GlooAllreduce(&state)",
        "new SharedMemoryAllreduce(&state)",
    ),
    # Where a worker has ended when it was asked to, its shell passes its status on. horovodrun ends
    # the shell meanwhile, which then has a status of its own, and waits for it in two threads, of
    # which one gets the status and the other takes 0 for it.
    Edit(
        "horovod/runner/common/util/safe_shell_exec.py",
        "GRACEFUL_TERMINATION_TIME_S = 5\n\n\ndef terminate_executor_shell_and_children(pid):\n",
        """\
GRACEFUL_TERMINATION_TIME_S = 5


def _has_ended(pid):
    end = time.monotonic() + GRACEFUL_TERMINATION_TIME_S
    while psutil.pid_exists(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not psutil.pid_exists(pid)


def terminate_executor_shell_and_children(pid):
""",
    ),
    Edit(
        "horovod/runner/common/util/safe_shell_exec.py",
        "    for child in p.children():\n",
        "    children = p.children()\n    for child in children:\n",
    ),
    Edit(
        "horovod/runner/common/util/safe_shell_exec.py",
        "psutil.wait_procs(p.children(), timeout=GRACEFUL_TERMINATION_TIME_S)\n",
        "psutil.wait_procs(children, timeout=GRACEFUL_TERMINATION_TIME_S)\n\n"
        "    if children and not alive and _has_ended(pid):\n        return\n",
    ),
    Edit(
        "horovod/runner/common/util/safe_shell_exec.py",
        "    try:\n"
        "        p.wait(timeout=GRACEFUL_TERMINATION_TIME_S)\n"
        "    except psutil.TimeoutExpired:\n"
        "        try:\n",
        "    if not _has_ended(pid):\n        try:\n",
    ),
    # horovodrun keeps what its checks found in the home folder, and fails where that is read-only.
    Edit(
        "horovod/runner/launch.py",
        "    if not args.disable_cache:\n",
        "    if not args.disable_cache and os.access(os.path.expanduser('~'), os.W_OK):\n",
    ),
    # horovodrun takes Gloo, which every build here has, unless it is told to take MPI: under MPI it
    # hides its workers' exit statuses, ends them at once at a signal, and binds none to its cores.
    # It need not ask what was built, either, which imports TensorFlow twice before a job.
    Edit(
        "horovod/runner/launch.py",
        "    if use_gloo:\n"
        "        if not gloo_built(verbose=verbose):\n"
        "            raise ValueError('Gloo support has not been built.  If this is not expected, "
        "ensure CMake is installed '\n"
        "                             'and reinstall Horovod with HOROVOD_WITH_GLOO=1 to debug "
        "the build error.')\n"
        "        gloo_run()\n",
        "    if not use_mpi and not use_jsrun:\n        gloo_run()\n",
    ),
    Edit(
        "horovod/runner/launch.py",
        "be the default if Horovod was not built with MPI support.'",
        "be the default.'",
    ),
    Edit(
        "horovod/runner/launch.py",
        "Run Horovod using the MPI controller. This will '\n"
        "                                       "
        "'be the default if Horovod was built with MPI support.'",
        "Run Horovod using the MPI controller.'",
    ),
    Edit(
        "horovod/runner/launch.py",
        " '\n"
        "                                       "
        "'This will be the default if jsrun is installed and Horovod '\n"
        "                                       'was built with MPI support.'",
        "'",
    ),
    # A failed job ends with the status of the worker that failed first, 75 where it was preempted:
    # not always with 1, and without a traceback of horovodrun's own below what the worker said.
    Edit(
        "horovod/runner/gloo_run.py",
        """\
        if exit_code != 0:
            raise RuntimeError('Horovod detected that one or more processes exited with non-zero '
                               'status, thus causing the job to be terminated. The first process '
                               'to do so was:\\nProcess name: {name}\\nExit code: {code}\\n'
                               .format(name=name, code=exit_code))
""",
        """\
        if exit_code != 0:
            sys.exit(exit_code if exit_code > 0 else 128 - exit_code)
""",
    ),
    # Without debugging symbols: a library of 2 MB instead of 51, in less time.
    Edit("setup.py", "else 'RelWithDebInfo'\n", "else 'Release'\n"),
    # The wheel serves every environment with this TensorFlow: libraries are found relative to it,
    # not where they were when it was built. NCCL is the copy that TensorFlow itself loads.
    Edit(
        "CMakeLists.txt",
        "project(horovod CXX)\n",
        "project(horovod CXX)\n"
        "set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)\n"
        'set(CMAKE_INSTALL_RPATH "$ORIGIN/../../nvidia/nccl/lib")\n',
    ),
)


def apply_edit(source: Path, edit: Edit) -> None:
    """Replaces the one passage `edit.old` in the source tree `source`.

    Raises:
      EditError: the file is missing, or the passage is not there exactly once.
    """
    file = source / edit.path
    if not file.is_file():
        raise EditError(f"Horovod's source has no {edit.path}: not the release this edits")
    text = file.read_text(encoding="utf-8")
    found = text.count(edit.old)
    if found != 1:
        first_line = edit.old.strip().splitlines()[0]
        raise EditError(
            f"{edit.path}: expected once, found {found} times: {first_line!r}. "
            "Horovod's release has changed: see EDITS in scripts/horovod/apply.py"
        )
    file.write_text(text.replace(edit.old, edit.new), encoding="utf-8")
