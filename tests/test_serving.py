"""One real server of the recorded small model, asked as any client would ask it."""

import base64
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import product

import numpy as np
import pytest
import requests
from faulty_server import FaultyServer
from PIL import Image

from fundus_lib import answering, client, generation, serving, settings, world
from fundus_lib.perception import MODALITIES, RECORDED, ask_option

QUESTION, DESCRIBE = ask_option("Which imaging modality is this?", MODALITIES), "Describe the findings in this image."


@pytest.fixture(scope="module")
def drawings():
    files = []
    for modality, number in product(("CFP", "OCT"), range(3)):  # PNG files, of random findings
        rng = np.random.default_rng((11, number))
        drawn = world.draw(rng, modality, world.random_findings(rng, modality), camera="any", height=192)
        Image.fromarray(np.asarray(drawn.image)).save(file := BytesIO(), "PNG")
        files.append(file.getvalue())
    return files


@pytest.fixture(scope="module")
def url():
    with serving.serve(RECORDED) as url:
        yield url
    with pytest.raises(requests.ConnectionError):  # nothing is left behind
        requests.get(url + "/models", timeout=5)


def ask(url, image=None, text=QUESTION, **sampling):
    parts = [] if image is None else [{"type": "image_url", "image_url": {
        "url": image if isinstance(image, str) else f"data:image/png;base64,{base64.b64encode(image).decode()}"}}]
    body = {"model": RECORDED.name, "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}],
            "temperature": 0, "max_tokens": 60} | sampling
    answer = requests.post(url + "/chat/completions", json=body, timeout=60)
    return answer.status_code, answer.json()


def texts(*args, **sampling):
    choices = ask(*args, **sampling)[1]["choices"]
    assert [choice["index"] for choice in choices] == list(range(sampling.get("n", 1)))
    return [choice["message"]["content"] for choice in choices]


def test_the_model_is_listed_under_its_folders_name_and_nothing_else_is_served(url):
    assert [model["id"] for model in requests.get(url + "/models", timeout=5).json()["data"]] == ["base_model"]
    assert requests.post(url + "/responses", json={"model": "base_model", "input": "x"}, timeout=5).status_code == 404


def test_the_image_arrives_and_the_answer_is_the_one_given_in_process(url, drawings):
    here = generation.generate(*answering.placed(RECORDED), drawings, [QUESTION] * 6, max_new_tokens=60, batch_size=1)
    served = [texts(url, file) for file in drawings]
    assert here == served == [[f"<think> This is a {modality} image. </think> <answer> {modality} </answer>"]
                              for modality in ("CFP", "CFP", "CFP", "OCT", "OCT", "OCT")]
    with_image, without = (ask(url, image)[1]["usage"]["prompt_tokens"] for image in (drawings[0], None))
    assert with_image > without + 10


def test_a_request_and_its_seed_give_the_same_text_however_many_are_open(url, drawings):
    def sample(seed):
        return texts(url, drawings[0], DESCRIBE, temperature=1.0, seed=seed)

    alone = [sample(seed) for seed in range(5)]
    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(sample, [*range(5), *range(5)])) == alone * 2 and alone.count(alone[0]) < 5


def test_n_completions_come_from_one_request(url, drawings):
    sampling = {"temperature": 1.0, "n": 5, "seed": 3, "max_tokens": 200}
    _, answer = ask(url, drawings[0], DESCRIBE, **sampling)
    written = [choice["message"]["content"] for choice in answer["choices"]]
    assert len(set(written)) > 1 and not any("<|" in text for text in written)
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}  # at the end of the turn
    assert written == [text for seed in range(3, 8) for text in texts(
        url, drawings[0], DESCRIBE, **sampling | {"n": 1, "seed": seed})]  # choice i has the seed + i
    assert len(set(texts(url, drawings[0], n=2))) == 1  # greedily
    _, cut = ask(url, text=DESCRIBE, **sampling | {"max_tokens": 3})
    assert [choice["finish_reason"] for choice in cut["choices"]] == ["length"] * 5
    assert cut["usage"]["completion_tokens"] == 5 * 3


@pytest.mark.parametrize(("bad", "said"), [
    ({"model": "other"}, "only base_model"), ({"stream": True}, "not as a stream"),
    ({"image": "/etc/hostname"}, "data URLs"), ({"image": "http://127.0.0.1:9/x.png"}, "data URLs"),
    ({"image": "data:image/png;base64,AAAA"}, "image"), ({"messages": []}, "IndexError"),
])
def test_a_request_that_cannot_be_answered_is_refused_with_a_reason(url, bad, said):
    status, answer = ask(url, **bad)
    assert status == 400 and said in answer["error"]["message"]


def test_the_projects_client_is_served_once_and_sees_a_server_that_drops_images(url, drawings, tmp_path):
    server = settings.load("cpu").server.model_copy(update={"url": url, "max_tokens": 60, "timeout_seconds": 60})
    asker = client.Client(server, RECORDED.name, tmp_path / "cache.sqlite")
    asker.check_image_arrives()
    request = client.Request(DESCRIBE, (drawings[0],), samples=5, temperature=1.0)
    reply, = asker.ask([request], "five")
    assert (len(reply.texts), reply.error) == (5, "") and len(set(reply.texts)) > 1
    with FaultyServer(lambda body, call: "500", sees=False) as blind:  # what is cached asks no server
        away = client.Client(server.model_copy(update={"url": blind.url}), RECORDED.name, tmp_path / "cache.sqlite")
        assert away.ask([request], "again") == [reply] and blind.bodies == []
        blind.fault = lambda body, call: ""
        with pytest.raises(client.ServerError, match="no images"):
            away.check_image_arrives()


def test_a_folder_without_a_model_dies_with_one_message(tmp_path):
    with pytest.raises(RuntimeError) as error, serving.serve(tmp_path):
        pass
    *_, reason, remedy = lines = str(error.value).splitlines()
    assert len(lines) == 3 and f"{tmp_path} holds no model" in reason and "make base_model PROFILE=cpu" in remedy
