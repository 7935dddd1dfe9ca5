"""The judge behind an endpoint, against a server on this machine: order, patience, memory, and loud failures."""

import base64
import contextlib
import io
import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from helpers import Pictures

import viot
from viot.problem import SteeringWarning
from viot.reward import asks_for
from viot.rewards import Judge, as_reward
from viot.rewards.judge import number, png


class Server:
    """An endpoint on this machine. `reply(request number, body)` gives a text, or (status, headers, bytes); what was asked is kept."""

    def __init__(self, reply):
        self.bodies, self.headers, self.lock = [], [], threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):
                body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                with self.lock:
                    self.bodies.append(body)
                    self.headers.append(dict(handler.headers) | {"path": handler.path})
                    count = len(self.bodies)
                answer = reply(count, body)
                text = isinstance(answer, str) or answer is None
                status, headers, data = (200, {}, json.dumps({"choices": [{"message": {"content": answer}}]}).encode()) if text else answer
                handler.send_response(status)
                for key, value in headers.items():
                    handler.send_header(key, value)
                handler.send_header("Content-Length", str(len(data)))
                handler.end_headers()
                # A client that has stopped waiting has hung up.
                with contextlib.suppress(ConnectionError):
                    handler.wfile.write(data)

            def log_message(handler, *args):
                pass

        # The queue of connections is short by default, and one that finds it full tries again after a second.
        Queue = type("Queue", (ThreadingHTTPServer,), {"request_queue_size": 64})
        self.http = Queue(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def serve(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = []

    def start(reply, question="Rate {prompt}", **settings):
        running.append(Server(reply))
        return running[-1], Judge("eyes", question, base_url=running[-1].url + "/", **{"wait": 0.01, **settings})

    yield start
    for server in running:
        server.close()


def greys(*levels):
    """Flat pictures, each of one of these grey levels."""
    return torch.tensor(levels).float().div(255)[:, None, None, None].expand(-1, 3, 6, 5)


def seen(body):
    """The pictures that a request shows, as the server's own library reads them, and its question."""
    from PIL import Image

    content = body["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))) for url in urls]
    return pictures, "|".join(part["text"] for part in content if part["type"] == "text")


def level(body):
    return seen(body)[0][0].getpixel((2, 3))[0]


def test_judge_keeps_the_order_of_the_samples(serve):
    """The earlier samples are answered last; each score is that of its own picture and prompt."""

    def slow_for_the_first(count, body):
        time.sleep(0.02 * (10 - level(body)))
        return f"{level(body) / 2} / 10" if "cat" in seen(body)[1] else str(level(body))

    server, judge = serve(slow_for_the_first)
    scores = judge(greys(*range(8)), ["a cat", "a dog"] * 4)
    assert scores.tolist() == [0, 1, 1, 3, 2, 5, 3, 7]
    assert [level(b) for b in server.bodies] != sorted([level(b) for b in server.bodies], reverse=True)
    body = server.bodies[0]
    assert (body["model"], body["temperature"]) == ("eyes", 0)
    assert {h["path"] for h in server.headers} == {"/v1/chat/completions"}
    assert {seen(b)[1] for b in server.bodies} == {"Rate a cat", "Rate a dog"}
    assert not judge.differentiable


def test_judge_tries_again_when_busy(serve):
    answers = [(429, {"Retry-After": "0.05"}, b"slow down"), (503, {}, b""), (200, {}, b"<html>"), "6"]
    server, judge = serve(lambda count, body: answers[count - 1])
    start = time.monotonic()
    assert judge(greys(9), ["a cat"]).tolist() == [6]
    assert len(server.bodies) == 4
    assert time.monotonic() - start > 0.05, "it waits as long as it is told"


def test_judge_waits_longer_each_time(serve, monkeypatch):
    pauses = []

    def wait(event, timeout=None, real=threading.Event.wait):
        # Only the workers' own: a progress bar of an earlier run has a thread that waits too.
        if not threading.current_thread().name.startswith("endpoint"):
            return real(event, timeout)
        pauses.append(timeout)
        return real(event, 0)

    monkeypatch.setattr(threading.Event, "wait", wait)
    _, judge = serve(lambda count, body: (500, {}, b"broken"), workers=1, retries=4, wait=0.5)
    pauses.clear()
    with pytest.raises(ConnectionError, match=r"gave no answer in 5 tries: 500 Internal Server Error: broken"):
        judge(greys(9), ["a cat"])
    pauses = [p for p in pauses if p and p >= 0.25]
    assert [0.5 <= p / (0.5 * 2**i) <= 1 for i, p in enumerate(pauses)] == [True] * 4


def test_judge_is_loud(serve, monkeypatch):
    """What will not pass is raised at once, without the key; the others are not waited for. So are dead and silent servers, after all tries."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server, judge = serve(lambda count, body: (401, {}, b"no such key: sk-secret"), retries=9)
    with pytest.raises(ConnectionError, match="refused: 401 Unauthorized: no such key: …"):
        judge(greys(9), ["a cat"])
    assert len(server.bodies) == 1
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in repr(vars(judge))
    server, judge = serve(lambda count, body: (302, {"Location": server.url + "/elsewhere"}, b""))
    with pytest.raises(ConnectionError, match="refused: 302"):
        judge(greys(9), ["a cat"])
    dead = Judge("eyes", base_url="http://127.0.0.1:9/v1", retries=1, wait=0.01)
    with pytest.raises(ConnectionError, match="gave no answer in 2 tries: URLError"):
        dead(greys(9), ["a cat"])
    server, judge = serve(lambda count, body: time.sleep(0.3) or "5", timeout=0.05, retries=1)
    with pytest.raises(ConnectionError, match=r"in 2 tries: .*timed out"):
        judge(greys(9), ["a cat"])


def test_judge_keeps_what_was_answered_beside_a_failure(serve, tmp_path):
    """One request fails for good: the answers before it, and those under way, are not paid for twice; none is begun after it."""

    def reply(count, body):
        time.sleep({1: 0.0, 2: 0.1, 3: 0.2}.get(level(body), 0.0))
        return (400, {}, b"too grey") if level(body) == 2 else str(level(body))

    server, judge = serve(reply, workers=2, cache=tmp_path / "a")
    with pytest.raises(ConnectionError, match="too grey"):
        judge(greys(1, 2, 3, *range(20, 80)), ["a cat"] * 63)
    asked = len(server.bodies)
    assert asked < 10
    assert judge(greys(1, 3), ["a cat"] * 2).tolist() == [1, 3]
    assert len(server.bodies) == asked


def test_judge_asks_once(serve, tmp_path):
    """Per picture, prompt, question and model: in memory, and in a file that later runs read."""
    file = tmp_path / "answers" / "judge.jsonl"
    server, judge = serve(lambda count, body: str(level(body)), cache=file)
    assert judge(greys(4, 5, 4, 4), ["a", "a", "a", "b"]).tolist() == [4, 5, 4, 4]
    assert len(server.bodies) == 3
    judge(greys(5, 4), ["a", "b"])
    assert len(server.bodies) == 3
    with file.open("a") as end:
        end.write('{"key": "half a li')
    again = Judge("eyes", "Rate {prompt}", base_url=server.url, cache=file)
    assert again(greys(4, 5, 4), ["b", "a", "a"]).tolist() == [4, 5, 4]
    assert len(server.bodies) == 3
    for other in (Judge("other", "Rate {prompt}", base_url=server.url), Judge("eyes", "Really rate {prompt}", base_url=server.url)):
        other.answers |= again.answers
        assert other(greys(4), ["a"]).tolist() == [4]
    assert len(server.bodies) == 5
    assert again(greys(4), ["c"]).tolist() == [4]
    assert len(server.bodies) == 6


def test_unreadable_answers_are_faults(serve):
    """NaN, told once, asked again the next time; a run counts them and goes on."""
    server, judge = serve(lambda count, body: "I would rather not" if level(body) > 130 else "7", question="Rate it")
    with pytest.warns(UserWarning, match="answered 'I would rather not', which is not one number"):
        scores = judge(greys(200, 50))
    assert scores[1] == 7
    assert math.isnan(scores[0])
    assert math.isnan(judge(greys(200))[0])
    assert len(server.bodies) == 3
    assert judge.asks == ()
    with pytest.warns(SteeringWarning, match="judge:eyes#.* returned NaN"):
        p = viot.sample(Pictures(), judge, "base", particles=8, groups=2, steps=3, progress=False)
    dark = p.rewards == 7
    assert dark.any()
    assert p.faults == (~dark).sum() > 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7), (" 7.5\n", 7.5), ("7,5", 7.5), ("8/10", 8), ("8 / 10.", 8), ("**10**", 10), ("10/10", 10), ("I give it 7 out of 10.", 7),
        ("On a scale of 0 to 10: 6", 6), ("Score (0-10): 0", 0), ("<think>maybe 3, or 4</think>\n5", 5),
        ("between 6 and 8", math.nan), ("", math.nan), ("eleven", math.nan), ("11", math.nan), ("-3", math.nan), ("85/100", math.nan),
    ],
)  # fmt: skip
def test_numbers_in_answers(text, value):
    assert number(text) == pytest.approx(value, nan_ok=True)


def test_judge_sees_videos_texts_and_transparency(serve):
    server, judge = serve(lambda count, body: str(len(seen(body)[0])), question="Rate it", frames=3)
    video = torch.stack([greys(level, level + 100) for level in range(10, 19)], 1)
    assert judge(video).tolist() == [3, 3]
    shown = sorted([[p.getpixel((0, 0))[0] for p in seen(b)[0]] for b in server.bodies])
    assert shown == [[10, 14, 18], [110, 114, 118]], "first, middle, last"
    assert judge(["one text", "another"]).tolist() == [0, 0]
    assert {seen(b)[1] for b in server.bodies[2:]} == {"Rate it|one text", "Rate it|another"}
    for channels, mode in ((1, "L"), (3, "RGB"), (4, "RGBA")):
        picture = torch.randint(256, (channels, 5, 7), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        from PIL import Image

        read = Image.open(io.BytesIO(png(picture)))
        assert (read.mode, read.size) == (mode, (7, 5))
        assert read.tobytes() == bytes(picture.permute(1, 2, 0).flatten().tolist())


def test_judge_by_name_and_its_mistakes(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    judge = as_reward("judge:qwen2.5-vl@http://localhost:8000/v1")
    assert (judge.name, judge.endpoint.url, judge.model) == ("judge:qwen2.5-vl", "http://localhost:8000/v1", "qwen2.5-vl")
    assert asks_for(judge) == ("prompts",)
    with pytest.raises(ValueError, match="needs a key in the environment variable OPENAI_API_KEY"):
        as_reward("judge:gpt-4o-mini")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1/")
    assert as_reward("judge:a@b").endpoint.url == "http://localhost:1/v1"
    assert Judge("a", "Is it red?").name != Judge("a", "Is it blue?").name
    with pytest.raises(ValueError, match="write judge:MODEL"):
        as_reward("judge")
    with pytest.raises(ValueError, match="name of a model"):
        Judge("")
    for bad in ({"workers": 0}, {"frames": 0}, {"retries": -1}, {"timeout": 0}, {"base_url": "file:///etc/passwd"}):
        with pytest.raises(ValueError, match=r"judge is shown|endpoint"):
            Judge("a", **bad)
    with pytest.raises(ValueError, match="needs one prompt"):
        Judge("a")(greys(1, 2), ["only one"])
    with pytest.raises(ValueError, match=r"floats in \[0, 1\]"):
        Judge("a", "Rate it")(torch.zeros(2, 3))
