"""Adds what a schema cannot express about requests, and chooses the process that gets a request.

If READER_URL is set, reads go to another process than writes, as behind a load balancer. That process receives the event
of a write some milliseconds after the write was answered. The next request therefore waits until the event has arrived,
and the run fails if that takes longer than the cache's lease. After that, every answer must be right at once. Requests are
not repeated until the answer is right, because that would hide a reader that still serves the old order.
"""

import json
import os
import re
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path

import schemathesis
from hypothesis import strategies

READER = os.environ.get("READER_URL")
HAS_TOKEN = "HAS_TOKEN" in os.environ
STORED = {json.loads(line) for line in (Path(__file__).parent / "uids.txt").read_text().splitlines()}
LEASE_SECONDS = 5
ORDER = "/api/v1/orders/{order_uid}"
PATHS = (ORDER, "/api/v1/orders")
WRITES = ("PUT", "POST", "PATCH", "DELETE")
SEARCH = "/api/v1/orders/search"
ORDER_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

events_before = 0
etag_before = None

# `date-time` allows any year, but the year of an order in UTC must be in 1..=9999.
schemathesis.openapi.format(
    "date-time",
    strategies.builds(
        "{}{}{}".format,
        strategies.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(lambda at: at.isoformat(timespec="seconds")),
        strategies.from_regex(r"(\.[0-9]{1,9})?", fullmatch=True),
        strategies.from_regex(r"Z|[+-](0[0-9]|1[0-3]):[0-5][0-9]", fullmatch=True),
    ),
)


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """The document says that the token is optional, because most servers in tests have none. With a token, it is required."""
    operations = (each for item in raw_schema["paths"].values() for each in item.values() if isinstance(each, dict))
    for operation in operations:
        if HAS_TOKEN and "security" in operation:
            operation["security"].remove({})


@schemathesis.hook
def before_call(context, case, kwargs):
    global events_before, etag_before
    if is_write(case, "PUT", "PATCH") and isinstance(case.body, dict):
        name_one_order(case)
    if is_write(case, "PUT") and isinstance(case.body, dict):
        demand_absence(case)
    if READER is None:
        return
    if case.method.upper() in ("GET", "HEAD") or case.path == SEARCH:
        kwargs["url"] = case.as_transport_kwargs(base_url=READER)["url"]
    elif is_write(case, *WRITES):
        events_before = events_of_reader()
        etag_before = etag_of_reader(case) if case.method.upper() == "PATCH" else None


@schemathesis.hook
def after_call(context, case, response):
    if READER is None or not is_write(case, *WRITES) or response.status_code not in (200, 201, 204):
        return
    if etag_before is not None and response.headers["etag"] == [etag_before]:
        # The patch has changed nothing, so there is no event.
        return
    deadline = time.monotonic() + LEASE_SECONDS
    while events_of_reader() <= events_before:
        assert time.monotonic() < deadline, "the reader did not receive the event of a write within the lease"
        time.sleep(0.001)


def is_write(case, *methods):
    return case.method.upper() in methods and case.path in PATHS


def name_one_order(case):
    """The order id in the body must equal the one in the path. It is set only if both are valid, to hide no other fault."""
    uid = (case.path_parameters or {}).get("order_uid")
    if all(isinstance(each, str) and ORDER_UID.fullmatch(each) for each in (uid, case.body.get("order_uid"))):
        case.body = {**case.body, "order_uid": uid}


def demand_absence(case):
    """A PUT creates an order only if it demands with `*` that there is none, and `*` is hardly ever generated alone."""
    preconditions = ("If-Match", "If-None-Match")
    uid = case.body.get("order_uid")
    is_new = isinstance(uid, str) and uid not in STORED
    if is_new and not any(name in case.headers for name in preconditions):
        case.headers["If-None-Match"] = "*"


def events_of_reader():
    with urllib.request.urlopen(f"{READER}/api/v1/cache/stats") as answer:
        return json.load(answer)["listener"]["events"]


def etag_of_reader(case):
    try:
        with urllib.request.urlopen(case.as_transport_kwargs(base_url=READER)["url"]) as answer:
            return answer.headers["ETag"]
    except urllib.error.HTTPError:
        return None
