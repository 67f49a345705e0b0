"""httpx-sse, which leaves coming back to its caller: waits as `retry` says, and presents the last id.

Tells each event in a line, its name and its data.
"""

import sys
import time

import httpx
from httpx_sse import connect_sse

last_id = ""
retry_s = 1.0
with httpx.Client(timeout=None, trust_env=False) as client:
    while True:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        try:
            with connect_sse(client, "GET", sys.argv[1], headers=headers) as source:
                for event in source.iter_sse():
                    last_id = event.id or last_id
                    if event.retry is not None:
                        retry_s = event.retry / 1000
                    # A block that only moves the id, or says when to come back, counts as one too.
                    if event.data:
                        print(event.event, event.data, sep="\t", flush=True)
        except httpx.TransportError:
            pass
        time.sleep(retry_s)
