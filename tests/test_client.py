"""The client of OpenAI-compatible servers, over real sockets against a server with the faults of real ones."""

import asyncio
import multiprocessing
import os
import random
import signal
import time

import pytest
from faulty_server import FaultyServer
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from fundus_lib import client as clients
from fundus_lib import settings
from fundus_lib.client import Client, Request, ServerError

KEY = "sk-very-secret-0123456789"
TEMPORARY = "408 409 429 500 502 503 504 cut reset html broken empty null filter".split()


class Word(BaseModel):
    word: str
    number: int


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Client of a server, on this test's cache; short waits."""
    monkeypatch.setattr(clients, "PAUSE", 0.01)
    monkeypatch.setenv("TEST_KEY", KEY)
    return lambda server, **changes: Client(settings.load("cpu").server.model_copy(update={
        "url": server.url, "key_variable": "TEST_KEY", "timeout_seconds": 9.0, "max_tokens": 100} | changes),
        "model", tmp_path / "cache.sqlite")


def prompt_of(body):
    return body["messages"][0]["content"][-1]["text"]


def test_order_kept_each_asked_once_and_never_again(make):
    requests = [Request(f"q{i % 30}") for i in range(40)]
    with FaultyServer(delay=0.01) as server:
        client = make(server)
        assert client.estimate(requests)[:3] == (40, 30, 0) and client.estimate(requests).tokens_out == 3000
        assert [reply.texts for reply in client.ask(requests, "q")] == [(f"q{i % 30} #0",) for i in range(40)]
        assert len(server.bodies) == 30 and 1 < server.most_flying <= 8
        assert [reply.texts for reply in make(server).ask(requests, "q")] == [(f"q{i % 30} #0",) for i in range(40)]
        assert (len(server.bodies), client.estimate(requests)[1:5]) == (30, (30, 30, 0, 0))
        assert client.ask([Request("q0", seed=3), Request("q0", seed=1, samples=3)], "q")[1].texts[2] == "q0 #3"
        assert len(server.bodies) == 32


def test_faults_are_outlived(make):
    with FaultyServer(lambda body, call: prompt_of(body) * (call == 0)) as server:
        client = make(server)
        for fault, reply in zip(TEMPORARY, client.ask([Request(fault) for fault in TEMPORARY], "q"), strict=True):
            seed = clients.RESEED if fault in ("null", "filter") else 0  # the same seed would end the same way
            assert (reply.texts, server.seen[fault]) == ((f"{fault} #{seed}",), 2)
        assert make(server, timeout_seconds=0.2).ask([Request("hang")], "q")[0].texts == ("hang #0",)
        assert server.seen["hang"] > 1


def test_a_lasting_fault_is_told_and_retried_by_the_next_call_and_the_key_is_nowhere(make, tmp_path):
    calls = {"JSON 500": 7, "JSON 429": 7, "JSON html": 7, "JSON cut": 7, "JSON schema": 3, "JSON length": 3,
             "JSON 404": 1, "JSON null": 3, "JSON 400": 1}
    with FaultyServer(lambda body, call: prompt_of(body)[5:] if call < calls.get(prompt_of(body), 0) else "",
                      echo=True) as server:
        client, requests = make(server), [Request(prompt, schema=Word) for prompt in [*calls, "JSON"]]
        *bad, good = client.ask(requests, "q")
        assert {reply[:2] for reply in bad} == {((), ())} and good.values == (Word(word="JSON", number=0),)
        assert server.seen == calls | {"JSON": 1}
        assert client.estimate(requests).cached == 1  # nothing wrong was kept
        assert [reply.values[0].word for reply in client.ask(requests, "q")] == [*calls, "JSON"]
        assert server.seen["JSON"] == 1
        held = "".join(reply.error for reply in bad).encode() + b"".join(f.read_bytes() for f in tmp_path.iterdir())
        assert held.count(b"Bearer ***") > 4 and KEY.encode() not in held and server.url.encode() not in held


def test_who_waits_does_not_stop_the_others_and_waits_as_long_as_told(make):
    with FaultyServer(lambda body, call: "429" * (call == 0 and len(server.bodies) == 1), retry_after="0.2") as server:
        start = time.monotonic()
        assert make(server, in_flight=1).ask([Request(f"q{i}") for i in range(10)], "q")
        assert time.monotonic() > start + 0.2
        assert [prompt_of(body) for body in server.bodies] == [f"q{i}" for i in range(10)] + ["q0"]


def test_no_request_goes_out_that_could_exceed_the_budget(make):
    requests = [Request(f"q{i}") for i in range(20)]
    with FaultyServer() as server:  # a completion costs 10 of at most 100 tokens, at 1 each
        with pytest.raises(ServerError, match=r"14 requests are left, at most 1400 to pay"):
            (client := make(server, price_out=1e6, budget=155.0)).ask(requests, "q")
        assert (len(server.bodies), client.estimate(requests).spent) == (6, 60)  # 60 + 100 > 155
        with pytest.raises(ServerError, match="budget"):  # of the file, so a rerun spends nothing more
            make(server, price_out=1e6, budget=155.0).ask(requests, "q")
        assert len(server.bodies) == 6 and make(server, price_out=1e6, budget=300.0).ask(requests, "q")
        server.fault = lambda body, call: "cut"  # perhaps paid for, though nothing is heard: one fits, the next not
        with pytest.raises(ServerError, match=r"has no room for a request of 100"):
            make(server, price_out=1e6, budget=300.0).ask([Request("unheard")], "q")
        assert (server.seen["unheard"], client.estimate(requests).spent) == (1, 300)


def test_a_dead_server_stops_the_run_and_what_was_answered_stays(make):
    requests = [Request(f"q{i}") for i in range(100)]
    with FaultyServer(lambda body, call: "" if len(server.bodies) <= 20 else "503", echo=True) as server:
        with pytest.raises(ServerError) as error:
            (client := make(server, in_flight=4)).ask(requests, "q")
        wanted = (server.url, "HTTP 503", "vllm serve model", "make", "80 requests", KEY)
        assert [part in str(error.value) for part in wanted] == [True] * 5 + [False]
        assert len(server.bodies) <= 20 + 2 * 6 * 4  # without a stop: 20 + 80 * 7
        server.fault, before = lambda body, call: "", len(server.bodies)
        assert not any(reply.error for reply in client.ask(requests, "q")) and len(server.bodies) == before + 80
    with pytest.raises(ServerError, match="ConnectError"):  # nobody listens any more
        make(server).ask([Request(f"new{i}") for i in range(10)], "q")


@pytest.mark.parametrize("usage", [True, False])
def test_a_server_that_drops_images_is_found_out(make, usage):
    with FaultyServer(usage=usage) as server:
        make(server).check_image_arrives()
        server.sees = False  # asked again in spite of the cache
        with pytest.raises(ServerError, match="shows model no images"):
            make(server).check_image_arrives()
        server.fault = lambda body, call: "400"
        with pytest.raises(ServerError, match="HTTP 400"):
            make(server).check_image_arrives()


def test_reasoning_is_put_in_front_in_a_notebook_too(make):
    async def cell(server):  # where a loop runs already
        return make(server).ask([Request("q")], "q")

    with FaultyServer(reasoning="because {1}") as server:
        assert asyncio.run(cell(server))[0].texts == ("<think>because {1}</think>q #0",)
        assert make(server).ask([Request("JSON", schema=Word)], "q")[0].values == (Word(word="JSON", number=0),)
    assert clients._read({"message": {"reasoning": "cut he"}, "finish_reason": "length"}, None) == "<think>cut he"
    assert clients._read({"message": {"content": "<think>a</think>b", "reasoning": "a"}}, None) == "<think>a</think>b"


@pytest.mark.parametrize(("does_n", "fault", "calls"), [(True, "", 1), (False, "", 5), (True, "422", 6)])
def test_five_samples_whether_the_server_does_n_or_not(make, does_n, fault, calls):
    with FaultyServer(lambda body, call: fault if body.get("n") else "", does_n=does_n) as server:
        for _ in range(2):
            reply, = make(server).ask([Request("q", samples=5, temperature=1.0)], "q")
            assert (reply.texts, server.seen["q"]) == (tuple(f"q #{i}" for i in range(5)), calls)
        assert make(server).ask([Request("r", seed=2)], "q")[0].texts == ("r #2",)
        assert make(server).ask([Request("r", samples=4)], "q")[0].texts == ("r #0", "r #1", "r #2", "r #3")
        assert server.seen["r"] == 4  # 0, 1 and 3 are no row of seeds


def test_json_is_found_or_refused():
    good = '{"word": "a", "number": 1}'
    for text in (good, f"```json\n{good}\n```", '<think>{"word": "b"}</think>' + good, '{x}, {"word": "b"}: ' + good):
        assert clients.json_value(text, Word) == Word(word="a", number=1)
    for text in ("", "a", good[:-1], '{"word": "a"}', "[1]", '{"word": 1, "number": 1}', f"<think>{good}</think> no"):
        with pytest.raises(ValueError):
            clients.json_value(text, Word)


def test_killed_five_times_nothing_is_lost_and_little_asked_twice(make):
    requests, chance = [Request(f"q{i}") for i in range(60)], random.Random(4)
    with FaultyServer(delay=0.01) as server:
        for _ in range(5):
            child = multiprocessing.get_context("fork").Process(target=make(server).ask, args=(requests, "q"))
            enough, patience = len(server.bodies) + chance.randint(1, 18), time.monotonic() + 5
            child.start()
            while len(server.bodies) < enough and child.is_alive() and time.monotonic() < patience:
                time.sleep(0.001)
            child.kill()
            child.join()
        assert len(server.bodies) > 5 and make(server).estimate(requests).cached >= len(server.bodies) - 5 * 8
        assert [reply.texts for reply in make(server).ask(requests, "q")] == [(f"q{i} #0",) for i in range(60)]
        assert len(server.bodies) <= 60 + 5 * 8


def test_ctrl_c_keeps_what_came(make):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the background job of a shell ignores it
    requests = [Request(f"q{i}") for i in range(60)]
    with FaultyServer(lambda body, call: len(server.bodies) == 30 and os.kill(os.getpid(), 2) or "") as server:
        with pytest.raises(KeyboardInterrupt):
            make(server, in_flight=4).ask(requests, "q")
        assert make(server).estimate(requests).cached > 0
        make(server).ask(requests, "q")
        assert 60 <= len(server.bodies) <= 60 + 4
    signal.signal(signal.SIGINT, before)


def test_bad_input_is_refused(make, tmp_path):
    with pytest.raises(ServerError, match="vllm serve"):
        Client(settings.load("cpu").server, "model", tmp_path / "cache")
    with FaultyServer() as server, pytest.raises(ValueError, match="neither PNG nor JPEG"):
        make(server).ask([Request("q"), Request("q", (b"GIF89a",))], "q")
    assert not server.bodies


FIELDS = st.fixed_dictionaries({
    "prompt": st.text(), "images": st.lists(st.binary()).map(tuple), "schema": st.sampled_from([None, Word]),
    "seed": st.integers(0, 9), "temperature": st.sampled_from([0, 1]), "model": st.text(), "tokens": st.integers(1, 9)})


@given(FIELDS, FIELDS)
def test_a_key_stands_for_every_field_and_for_nothing_else(one, other):
    def key(model, tokens, samples=1, **fields):
        return list(clients.sample_keys(Request(**fields, samples=samples), model, tokens).values())

    for field in one:
        assert (key(**one) == key(**one | {field: other[field]})) == (one[field] == other[field])
    assert key(**one, samples=3)[:1] == key(**one)


def test_a_stage_refuses_to_go_on_without_its_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("FUNDUS_CACHE", str(tmp_path))
    section = settings.load("cpu").server
    with FaultyServer(fault=lambda body, call: "400" if prompt_of(body) == "bad" else "") as server:
        stage = clients.connect(section.model_copy(update={"url": server.url}), "model")
        with pytest.raises(ServerError, match="1 of 2 requests failed.*400"):
            stage.ask([Request("good"), Request("bad")], "ask")
        assert stage.ask([Request("good")], "ask")[0].texts == ("good #0",)
    with pytest.raises(ServerError, match="names none"):
        clients.connect(section, None)
