"""The checklist of one client or application: each item has a deadline and gets one line.

A line is `ok`, `FAIL` or `-`, the name, the item and the reason, with tabs between them: `run` makes a
table of them. `-` says that the library cannot do it at all, whatever server it talks to.
"""

import contextlib
import os
import signal
import subprocess
import sys
import traceback

# Two proxies of one cluster, one that asks for a password, and where cluster clients are pointed.
PORT = int(os.environ["PORT"])
OTHER_PORT = int(os.environ["OTHER_PORT"])
PASSWORD_PORT = int(os.environ["PASSWORD_PORT"])
CLUSTER_PORT = int(os.environ["CLUSTER_PORT"])
PASSWORD = os.environ["PASSWORD"]
CLIENTS = os.environ["CLIENTS"]


class Late(BaseException):
    """An item did not end in time. No library catches it as one of its own errors."""


def late(*_):
    raise Late("not done in time")


class Checklist:
    def __init__(self, name):
        self.name = name
        self.failed = False
        signal.signal(signal.SIGALRM, late)

    def item(self, item, seconds=30):
        """Runs the function it decorates, at once."""

        def run(function):
            signal.alarm(seconds)
            try:
                function()
                self.line("ok", item)
            except (Exception, Late) as error:
                self.failed = True
                traceback.print_exc()
                self.line("FAIL", item, f"{type(error).__name__}: {error}")
            finally:
                signal.alarm(0)

        return run

    def cannot(self, item, reason):
        self.line("-", item, reason)

    def line(self, result, item, reason=""):
        print(result, self.name, item, " ".join(reason.split()), sep="\t", flush=True)

    def end(self):
        # Threads that an item has left behind must not keep it from ending.
        sys.stdout.flush()
        os._exit(1 if self.failed else 0)


@contextlib.contextmanager
def worker(name, *args):
    """Runs a Python module as a worker, meanwhile; what it prints goes to a file beside what is installed."""
    with open(f"{CLIENTS}/{name}.log", "w") as log:
        process = subprocess.Popen([sys.executable, "-m", *args], stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
