"""django-redis: Django's cache and sessions."""

import importlib.metadata
import threading
import time

import django
from django.conf import settings
from django.core.cache import caches

from checklist import OTHER_PORT, PORT, Checklist

# With one hash tag its keys share a slot: what sets many of them is a transaction.
SERVER = {
    "KEY_PREFIX": "{django}",
    "BACKEND": "django_redis.cache.RedisCache",
    "OPTIONS": {"CLIENT_CLASS": "django_redis.client.DefaultClient"},
}
settings.configure(
    CACHES={
        "default": {**SERVER, "LOCATION": f"redis://127.0.0.1:{PORT}/4"},
        "other": {**SERVER, "LOCATION": f"redis://127.0.0.1:{OTHER_PORT}/4"},
    },
    SESSION_ENGINE="django.contrib.sessions.backends.cache",
    INSTALLED_APPS=["django.contrib.sessions"],
    SECRET_KEY="of a test",
)
django.setup()
checklist = Checklist(f"django-redis {importlib.metadata.version('django-redis')}")
mine, yours = caches["default"], caches["other"]


@checklist.item("values cached")
def values():
    mine.set("a", {"b": [1, 2]}, timeout=60)
    assert yours.get("a") == {"b": [1, 2]} and 0 < yours.ttl("a") <= 60
    assert mine.add("a", 1) is False and mine.get("none", "default") == "default"
    assert mine.get_or_set("computed", lambda: 7) == 7
    mine.set("short", 1, timeout=1)
    time.sleep(1.1)
    assert mine.get("short") is None
    mine.set("n", 1)
    assert mine.incr("n") == 2 and mine.decr("n", 2) == 0


@checklist.item("many at once")
def many():
    wanted = {f"k{n}": n for n in range(200)}
    mine.set_many(wanted)
    assert yours.get_many(wanted) == wanted
    mine.delete_many(wanted)
    assert yours.get_many(wanted) == {}


@checklist.item("keys by a pattern")
def patterns():
    mine.set_many({f"user:{n}": n for n in range(300)})
    mine.set("left", 1)
    assert len(set(yours.iter_keys("user:*"))) == 300
    assert yours.delete_pattern("user:*", itersize=50) == 300
    assert mine.get("left") == 1 and list(mine.iter_keys("user:*")) == []


@checklist.item("a lock")
def lock():
    order = []

    def second():
        with yours.lock("work", timeout=10, blocking_timeout=10):
            order.append("second")

    with mine.lock("work", timeout=10):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"], order


@checklist.item("sessions")
def sessions():
    from django.contrib.sessions.backends.cache import SessionStore

    session = SessionStore()
    session["user"] = 42
    session.create()
    again = SessionStore(session_key=session.session_key)
    assert again["user"] == 42
    again.flush()
    assert not again.exists(session.session_key)


@checklist.item("cache cleared")
def cleared():
    mine.set("a", 1)
    mine.clear()
    assert yours.get("a") is None


checklist.end()
