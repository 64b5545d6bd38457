"""The server, asked by OpenAI's own client and by curl."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import tinyqmoe
from exporter.bundle import Bundle
from tests.support.command_line import one_error
from tests.support.command_line import tinyqmoe as command

ASK: Any = [{"role": "user", "content": "the cat"}]
# Each token takes this long, so that an answer is there to be waited for; headers may take 5 s.
SLOW = (
    "from runtime_ref.server.patience import PatientProtocol as protocol\nprotocol.seconds = 5\n"
    "import sys, time, runtime_ref.generate as g\nplain = g.KeptPrefix.forward\n"
    "def forward(self, tokens, position):\n"
    "    time.sleep(0.05)\n    return plain(self, tokens, position)\n"
    "g.KeptPrefix.forward = forward\nfrom exporter.cli.start import main\nmain()"
)


class Server:
    """A server in a process of its own."""

    def __init__(self, folder: Path, bundle: Bundle, *options: str) -> None:
        told, self.log = folder / "address.json", folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", SLOW, "serve", str(bundle.path), "--port", "0"),
                    *("--json", str(told), *options),
                ],
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        while not (told.is_file() and told.read_text().endswith("\n")):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        self.address = json.loads(told.read_text())
        self.model = self.address["model"]
        self.client = openai.OpenAI(
            base_url=self.address["url"], api_key="none", max_retries=0, timeout=60
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(30) == 0, "Ctrl-C is how a server ends"
        assert "Traceback" not in self.log.read_text()

    def chat(self, **options: Any) -> Any:
        asked = {"model": self.model, "messages": ASK, "temperature": 0, "max_tokens": 6}
        return self.client.chat.completions.create(**asked | options)

    def statuses(self) -> list[str]:
        """The statuses of the completions so far."""
        lines = self.log.read_text().splitlines()
        return [line.split()[2] for line in lines if "completions" in line]


@pytest.fixture(scope="module")
def server(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), bundle, "--queue", "1") as there:
        yield there


def expected(bundle: Bundle, **options: Any) -> Any:
    return tinyqmoe.generate(bundle, ASK, max_new_tokens=6, **options).result


def test_a_chat_is_answered_as_run_answers(server: Server, bundle: Bundle) -> None:
    result = expected(bundle)
    answer = server.chat()
    assert answer.choices[0].message.content == result.text
    assert answer.choices[0].finish_reason == ("stop" if result.stopped == "eos" else "length")
    assert answer.usage.prompt_tokens == len(result.prompt_tokens)
    assert answer.usage.completion_tokens == len(result.tokens)
    developer = [{"role": "developer", "content": "be"}, *ASK]
    parts = [{"role": "user", "content": [{"type": "text", "text": "the cat"}]}]
    assert server.chat(messages=parts).choices[0].message.content == result.text
    assert server.chat(messages=developer).usage.prompt_tokens > len(result.prompt_tokens)


def test_a_stream_has_the_same_text_and_ends_with_usage(server: Server, bundle: Bundle) -> None:
    chunks = list(server.chat(stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == expected(bundle).text
    assert [c.usage is not None for c in chunks] == [*[False] * (len(chunks) - 1), True]
    assert chunks[-1].usage.completion_tokens == len(expected(bundle).tokens)
    assert {c.choices[0].finish_reason for c in chunks[:-2]} == {None}


def test_a_seed_gives_the_text_of_run(server: Server, bundle: Bundle) -> None:
    options: Any = {"temperature": 1.5, "top_p": 0.9, "seed": 7}
    assert server.chat(**options).choices[0].message.content == expected(bundle, **options).text
    texts = {server.chat(temperature=2.0).choices[0].message.content for _ in range(4)}
    assert len(texts) > 1, "without a seed each answer has another one"


def test_a_client_that_says_nothing_is_not_waited_for(server: Server) -> None:
    url = urllib.parse.urlsplit(server.address["url"])
    with socket.create_connection((url.hostname, url.port), timeout=120) as client:
        client.sendall(b"GET /health HTTP/1.1\r\n")
        assert client.recv(1) == b""


def test_a_plain_completion(server: Server, bundle: Bundle) -> None:
    result = tinyqmoe.generate(bundle, "the cat", max_new_tokens=8).result
    asked: Any = {"model": server.model, "temperature": 0, "max_tokens": 8}
    for prompt in ("the cat", ["the cat"]):
        answer = server.client.completions.create(prompt=prompt, **asked)
        assert answer.choices[0].text == result.text
    stream = server.client.completions.create(prompt="the cat", stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in stream) == result.text
    cut = server.client.completions.create(prompt="the cat", stop=[result.text[2:4]], **asked)
    assert cut.choices[0].text == result.text[: result.text.index(result.text[2:4])]
    assert cut.choices[0].finish_reason == "stop"


def test_the_model_is_listed(server: Server) -> None:
    assert [model.id for model in server.client.models.list()] == [server.model]
    assert server.client.models.retrieve(server.model).id == server.model
    with pytest.raises(openai.NotFoundError, match="no model"):
        server.client.models.retrieve("gpt-4")


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"n": 2}, openai.BadRequestError, "n: "),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            openai.BadRequestError,
            "tools",
        ),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"frequency_penalty": 0.5}, openai.BadRequestError, "frequency_penalty"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"stop": ["a"] * 5}, openai.BadRequestError, "stop"),
        (
            {"messages": [{"role": "user", "content": "x " * 200}]},
            openai.BadRequestError,
            "context",
        ),
        (
            {"messages": [{"role": "user", "content": "x" * 2_000_000}]},
            openai.APIStatusError,
            "too large",
        ),
        ({"model": "gpt-4"}, openai.NotFoundError, "no model gpt-4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_cannot_be_answered_is_told_in_openais_form(
    server: Server, options: dict[str, Any], kind: type[openai.APIStatusError], said: str
) -> None:
    with pytest.raises(kind) as caught:
        server.chat(**options)
    assert said in str(caught.value.body)
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_what_means_nothing_may_be_there(server: Server) -> None:
    options: Any = {"n": 1, "presence_penalty": 0, "user": "me", "logprobs": False}
    assert server.chat(**options).choices


def test_the_queue_is_bounded(server: Server) -> None:
    """One is answered and one waits: of four that come at once, two are refused."""
    ends: list[Any] = []

    def ask() -> None:
        try:
            ends.append(server.chat().choices[0].message.content)
        except openai.RateLimitError as error:
            ends.append(error.body["code"])  # type: ignore[index]

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [end for end in ends if end == "queue_full"]
    assert 1 <= len(refused) <= 2
    assert len({end for end in ends if end != "queue_full"}) == 1, "two clients get one answer"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_nobody_waits_for_is_ended(
    bundle: Bundle, tmp_path: Path, stream: bool
) -> None:
    """A server of its own: a line is written after its answer, and others' would be counted."""
    with Server(tmp_path, bundle) as server:
        impatient = server.client.with_options(timeout=0.4)
        asked: Any = {"model": server.model, "prompt": "a", "max_tokens": 40, "stream": stream}
        asked["temperature"] = 0  # a token that is drawn may end it before the client gives up
        if stream:
            answer = impatient.completions.create(**asked)
            next(iter(answer))
            answer.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                impatient.completions.create(**asked)
        begin = time.monotonic()
        server.chat(max_tokens=1)
        waited = time.monotonic() - begin
        while len(server.statuses()) < 2:
            assert time.monotonic() - begin < 30, server.log.read_text()
            time.sleep(0.05)
        assert sorted(server.statuses()) == ["200", "200" if stream else "499"]
        assert waited < 30


def curl(*arguments: str) -> tuple[str, str]:
    """(body, status)."""
    if shutil.which("curl") is None:
        pytest.skip("NOT TESTED: curl is absent")
    done = subprocess.run(
        ["curl", "-sS", "-N", "-w", "\n%{http_code}", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    return body, status


def test_curl(server: Server, bundle: Bundle) -> None:
    url = server.address["url"]
    asked = {"model": server.model, "messages": ASK, "temperature": 0, "max_tokens": 6}
    json_type = ("-H", "Content-Type: application/json", "-d")
    body, status = curl(f"{url}/chat/completions", *json_type, json.dumps(asked))
    assert status == "200"
    assert json.loads(body)["choices"][0]["message"]["content"] == expected(bundle).text
    body, _ = curl(f"{url}/chat/completions", *json_type, json.dumps(asked | {"stream": True}))
    events = [line.removeprefix("data: ") for line in body.splitlines() if line]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(d.get("content", "") for d in deltas) == expected(bundle).text
    assert curl(url.replace("/v1", "/health")) == ('{"status":"ok"}', "200")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["/models", "-H", "Host: evil.example"], "403"),
        (["/chat/completions", "-H", "Transfer-Encoding: chunked", "-d", "{}"], "411"),
        (["/chat/completions", "-H", "Content-Type: application/json", "-d", "{"], "400"),
        (["/nowhere"], "404"),
        (["/chat/completions"], "405"),
    ],
)
def test_other_requests_are_refused(server: Server, arguments: list[str], status: str) -> None:
    path, *rest = arguments
    body, got = curl(server.address["url"] + path, *rest)
    assert got == status
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_an_answer_ends_after_its_time(bundle: Bundle, tmp_path: Path) -> None:
    with Server(tmp_path, bundle, "--timeout", "0.2", "--max-tokens", "30") as there:
        answer = there.chat(max_tokens=None)
        assert answer.choices[0].finish_reason in ("length", "stop")
        assert answer.usage.completion_tokens < 30


def test_a_port_that_is_taken_is_2(bundle: Bundle) -> None:
    with tinyqmoe.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        result = command("serve", bundle.path, "--port", str(port))
    assert "cannot listen on 127.0.0.1" in one_error(result, 2)


def test_a_missing_extra_is_5_with_its_pip_line(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    message = one_error(command("serve", bundle.path, "--port", "0"), 5)
    assert "pip install 'tiny-qmoe[serve]'" in message
