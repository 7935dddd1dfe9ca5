"""An OpenAI-compatible chat endpoint, asked with patience and with nothing but the standard library."""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

OPENAI = "https://api.openai.com/v1"
#: Refusals of a server that deserve another try, beside the 5xx.
PASSING = {408, 409, 425, 429}
LONGEST_WAIT = 60.0


class Passing(Exception):
    """A failure that may be over in a moment; `wait` is how many seconds the server asks for, if it says."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Stay(urllib.request.HTTPRedirectHandler):
    """urllib would carry the key along to wherever a server redirects; a redirect is an error instead."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Stay)


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how patiently.

    url        up to and with `/v1`
    key_from   the environment variable that holds the key: read at every request, never kept
    workers    requests under way at once          timeout   seconds that one may take
    retries    how many more times a request is tried after a failure that may pass
    wait       the pauses between are wait, 2 · wait, 4 · wait, … seconds, a little less at random, or what the server asks for; at most a minute
    """

    url: str
    key_from: str
    workers: int
    timeout: float
    retries: int
    wait: float

    def __post_init__(self) -> None:
        if urllib.parse.urlsplit(self.url).scheme not in ("http", "https"):
            raise ValueError(f"an endpoint is an http(s) address such as http://localhost:8000/v1, not {self.url!r}")
        if self.workers < 1 or self.retries < 0 or min(self.timeout, self.wait) <= 0:
            raise ValueError("an endpoint needs workers ≥ 1, retries ≥ 0, and a timeout and wait > 0")

    def ask_all(self, requests: dict[str, Callable[[], dict[str, Any]]]) -> Iterable[tuple[str, str]]:
        """(name, answer) of each request, as they come.

        When one fails for good, none is begun any more, those under way are heard out, for they are paid for, and then its ConnectionError is
        raised. A request is a function that makes its body, so that only those under way are in memory.
        """
        stop, pool = threading.Event(), ThreadPoolExecutor(min(self.workers, len(requests)), thread_name_prefix="endpoint")
        failure: BaseException | None = None
        try:
            waiting = {pool.submit(self.ask, make, stop): name for name, make in requests.items()}
            for done in as_completed(waiting):
                if done.cancelled():
                    continue
                if (error := done.exception()) is None:
                    yield waiting[done], done.result()
                elif failure is None:
                    failure = error
                    stop.set()
                    for other in waiting:
                        other.cancel()
        finally:
            # Also when interrupted: those that wait for another try give up, those not begun never are.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        if failure is not None:
            raise failure

    def ask(self, make: Callable[[], dict[str, Any]], stop: threading.Event) -> str:
        """The answer to one request, tried until it comes, or until `stop`."""
        body = json.dumps(make()).encode()
        # Of its own, so that nobody's random numbers move; it spreads the tries of the workers apart.
        jitter = random.Random()
        trial = 0
        while True:
            try:
                return self._post(body)
            except Passing as failure:
                trial += 1
                if trial > self.retries:
                    raise ConnectionError(f"{self.url} gave no answer in {trial} tries: {failure}") from failure
                pause = failure.wait or self.wait * 2 ** (trial - 1) * (0.5 + 0.5 * jitter.random())
                if stop.wait(min(pause, LONGEST_WAIT)):
                    raise

    def _post(self, body: bytes) -> str:
        """One request; the answer's text. Raises Passing for what may pass, ConnectionError for what will not."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_from):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", data=body, headers=headers)
        try:
            with _OPENER.open(request, timeout=self.timeout) as reply:
                raw = reply.read()
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(500).decode(errors="replace").strip()
            # A server may repeat the key that it refuses.
            said = f"{error.code} {error.reason}: {said.replace(key, '…') if key else said}"
            if error.code in PASSING or error.code >= 500:
                raise Passing(said, _seconds(error.headers.get("Retry-After"))) from error
            raise ConnectionError(f"{self.url} refused: {said}") from error
        except (OSError, http.client.HTTPException) as error:
            raise Passing(f"{type(error).__name__}: {error}") from error
        try:
            text = json.loads(raw)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise Passing(f"a reply that is no chat completion: {raw[:200].decode(errors='replace')!r}") from error
        if isinstance(text, list):
            text = "".join(part.get("text", "") for part in text if isinstance(part, dict))
        # A refusal may come without any content.
        return text if isinstance(text, str) else ""


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        # A date, which no known endpoint sends.
        return 0.0
