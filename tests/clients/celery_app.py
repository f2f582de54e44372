"""celery: tasks queued, executed by two worker processes, their results read over pub/sub."""

import time

import celery
from celery import chord, group

from checklist import OTHER_PORT, PORT, Checklist, worker

# With one hash tag its keys share a slot, which its transactions need, as with Redis Cluster.
PREFIX = {"global_keyprefix": "{celery}"}
app = celery.Celery(
    "celery_app", broker=f"redis://127.0.0.1:{PORT}/1", backend=f"redis://127.0.0.1:{OTHER_PORT}/2"
)
app.conf.update(
    broker_transport_options={**PREFIX, "visibility_timeout": 60},
    result_backend_transport_options=PREFIX,
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=4,
    task_acks_late=True,
)


@app.task
def add(a, b):
    return a + b


@app.task
def total(numbers):
    return sum(numbers)


@app.task
def now():
    return time.time()


@app.task(bind=True, max_retries=3, default_retry_delay=0.2)
def third_time(self):
    if self.request.retries < 2:
        raise self.retry()
    return self.request.retries


@app.task
def fails():
    raise ValueError("as it should")


def main():
    checklist = Checklist(f"celery {celery.__version__}")
    with worker("celery", "celery", "-A", "celery_app", "worker", "--concurrency", "2"):
        check(checklist)
    checklist.end()


def check(checklist):
    @checklist.item("tasks and their results", 60)
    def results():
        sums = [add.delay(n, n) for n in range(100)]
        assert [each.get(timeout=40) for each in sums] == [2 * n for n in range(100)]
        failed = fails.delay()
        assert str(failed.get(timeout=10, propagate=False)) == "as it should"
        assert failed.state == "FAILURE"

    @checklist.item("a task with a delay")
    def delayed():
        begun = time.time()
        ran = now.apply_async(countdown=1.5).get(timeout=20)
        assert 1.5 <= ran - begun < 15, ran - begun

    @checklist.item("a task that is tried again")
    def retried():
        assert third_time.delay().get(timeout=20) == 2

    @checklist.item("groups and chords")
    def chords():
        assert group(add.s(n, 1) for n in range(20))().get(timeout=20) == list(range(1, 21))
        assert chord(add.s(n, n) for n in range(20))(total.s()).get(timeout=20) == 380

    @checklist.item("workers asked and told")
    def control():
        assert len(app.control.ping(timeout=2)) == 1
        # A task that is revoked before its time does not run.
        revoked = now.apply_async(countdown=2)
        revoked.revoke()
        try:
            revoked.get(timeout=20)
            raise AssertionError("it ran")
        except celery.exceptions.TaskRevokedError:
            pass


if __name__ == "__main__":
    main()
