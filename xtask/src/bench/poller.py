"""A client of the server, for measuring how long it gets no answer.

A poll is GET /settings with the key, on a connection of its own. It begins 100 ms after the one before began, or when that
one has ended. Anything but 200 within 2 seconds is a failure. Downtime is the time from the beginning of a failing poll to
the beginning of the next one that succeeds, all such stretches added up. Once a second a line tells the sums.
"""

import http.client
import json
import os
import time

EVERY = 0.1
TIMEOUT = 2.0


def answers() -> bool:
    connection = http.client.HTTPConnection("memoria-server", 8000, timeout=TIMEOUT)
    try:
        connection.request("GET", "/settings", headers={"X-API-Key": os.environ["MEMORIA_API_KEY"]})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


polls = failed = 0
down = 0.0
down_since = None
tell_at = 0.0
while True:
    begin = time.monotonic()
    polls += 1
    if answers():
        if down_since is not None:
            down += begin - down_since
            down_since = None
    else:
        failed += 1
        down_since = begin if down_since is None else down_since
    now = time.monotonic()
    if now >= tell_at:
        open_down = 0.0 if down_since is None else now - down_since
        line = {"polls": polls, "failed": failed, "downSeconds": round(down + open_down, 3), "up": down_since is None}
        print(json.dumps(line), flush=True)
        tell_at = now + 1
    time.sleep(max(0.0, begin + EVERY - now))
