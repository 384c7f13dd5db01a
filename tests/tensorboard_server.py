"""TensorBoard's own server, on the loopback interface, asked over HTTP."""

import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request

from processes import environment

# `python -m tensorboard.main`, which loads TensorFlow, without Keras.
_PROGRAM = "import fast_tensorflow; from tensorboard import main; main.run_main()"
_START_SEC = 120
_LOAD_SEC = 120


class Server:
    """A running server."""

    def __init__(self, url):
        self._url = url

    def get(self, path, **query):
        """Returns the response of a path under /data/."""
        url = f"{self._url}/data/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            text = answer.read().decode()
            is_json = "json" in answer.headers["Content-Type"]
        return json.loads(text) if is_json else text

    def post(self, path, request):
        """The JSON that a path under /data/ answers to a JSON request."""
        data = json.dumps(request).encode()
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{self._url}/data/{path}", data, headers)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.loads(answer.read())

    def scalars(self, run, tag):
        """[(step, value)] of a tag, in the server's order."""
        points = self.get("plugin/scalars/scalars", run=run, tag=tag)
        return [(step, value) for _, step, value in points]


@contextlib.contextmanager
def serve(logdir, *flags, ready):
    """Starts a server; waits until it has read what `ready`, a function of it, asks for."""
    command = [sys.executable, "-c", _PROGRAM, f"--logdir={logdir}"]
    command += ["--host=127.0.0.1", "--port=0", "--samples_per_plugin=scalars=100000", *flags]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            server = Server(_find_url(process))
            deadline = time.monotonic() + _LOAD_SEC
            while not ready(server):
                assert time.monotonic() < deadline, "TensorBoard has not read the logs"
                time.sleep(0.5)
            yield server
        finally:
            process.terminate()
            process.stdout.read()
            process.wait(timeout=30)


def _find_url(process):
    """The address that the server says it is at."""
    deadline = time.monotonic() + _START_SEC
    for line in process.stdout:
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        if found:
            return found[0]
        assert time.monotonic() < deadline
    raise AssertionError("TensorBoard has ended")
