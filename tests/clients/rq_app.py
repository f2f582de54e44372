"""rq: jobs queued, executed by a worker process, their results read; delays, retries, dependencies."""

import os

# With one hash tag its keys share a slot, which its transactions need, as with Redis Cluster.
os.environ["RQ_KEY_PREFIX"] = "{rq}"

import time
from datetime import timedelta

import redis
import rq
from rq.command import send_stop_job_command

from checklist import OTHER_PORT, PORT, Checklist, worker


def add(a, b):
    return a + b


def now():
    return time.time()


def third_time(key):
    """Fails twice."""
    tries = redis.Redis(port=PORT).incr(key)
    if tries < 3:
        raise ValueError(f"try {tries}")
    return tries


def sleep():
    time.sleep(60)


def eventually(check, what, seconds=20):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.05)


def finished(job):
    eventually(lambda: job.get_status(refresh=True) in ("finished", "failed", "stopped"), job.id)
    return job.get_status()


def main():
    checklist = Checklist(f"rq {rq.VERSION}")
    connection = redis.Redis(port=PORT)
    url = f"redis://127.0.0.1:{OTHER_PORT}"
    with worker("rq", "rq.cli", "worker", "--with-scheduler", "--url", url, "first", "second"):
        check(checklist, connection)
    checklist.end()


def check(checklist, connection):
    first = rq.Queue("first", connection=connection)
    second = rq.Queue("second", connection=connection)

    @checklist.item("jobs and their results", 60)
    def results():
        jobs = [queue.enqueue(add, n, n) for n in range(10) for queue in (first, second)]
        assert all(finished(job) == "finished" for job in jobs)
        assert [job.return_value() for job in jobs] == [2 * (n // 2) for n in range(20)]
        failed = first.enqueue(add, 1, "x")
        assert finished(failed) == "failed" and "TypeError" in failed.latest_result().exc_string

    @checklist.item("a job with a delay")
    def delayed():
        begun = time.time()
        job = first.enqueue_in(timedelta(seconds=2), now)
        # Its clock has whole seconds.
        assert finished(job) == "finished" and job.return_value() - begun >= 1

    @checklist.item("a job that is tried again")
    def retried():
        connection.delete("rq:tries")
        job = first.enqueue(third_time, "rq:tries", retry=rq.Retry(max=3))
        eventually(lambda: job.get_status(refresh=True) == "finished", "the third try")
        assert job.return_value() == 3

    @checklist.item("a job after another")
    def dependent():
        before = first.enqueue(add, 1, 2)
        after = second.enqueue(add, 3, 4, depends_on=before)
        assert finished(after) == "finished" and after.return_value() == 7

    @checklist.item("a job that is stopped")
    def stopped():
        job = first.enqueue(sleep)
        eventually(lambda: job.get_status(refresh=True) == "started", "its start")
        time.sleep(0.5)
        send_stop_job_command(connection, job.id)
        assert finished(job) == "stopped"

    @checklist.item("workers seen")
    def workers():
        (seen,) = rq.Worker.all(connection=connection)
        assert seen.queue_names() == ["first", "second"]
        assert seen.successful_job_count >= 20, seen.successful_job_count


if __name__ == "__main__":
    # The worker must find the jobs' functions by the name of this module.
    import rq_app

    rq_app.main()
