"""Case reports from PubMed Central: a local server plays NCBI with its faults, and replays recorded answers."""

import json
import logging
import threading
import time
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from fundus_lib import data, mm_retinal_reason, pmc

RECORDED = Path(__file__).parents[2] / "shared" / "knowledge" / "api_fixtures"
JPEG = b"\xff\xd8\xff drawn"
HISTORY = ("A 45-year-old man noticed blurred vision of the right eye two weeks ago. He takes corticosteroids. "
           "Vision was 20/40. ")
HTML = b"<!DOCTYPE html><html><body>busy</body></html>"


@pytest.fixture
def ncbi(tmp_path, monkeypatch):
    """(services that ask a local server, its answers by path, requests seen). Answers of a list come one by one."""
    monkeypatch.delenv("NCBI_API_KEY", raising=False)
    answers, seen = {}, []

    class Replay(BaseHTTPRequestHandler):
        def do_GET(self):
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            query = {key: value[0] for key, value in parse_qs(f"{url.query}&{body}").items()}
            seen.append((self.command, self.path, query))
            about = f"{url.path}?{query.get('id', query.get('prefix', ''))}"
            answer = answers.get(about, answers.get(url.path, 404))
            if isinstance(answer, list):
                answer = answer.pop(0) if len(answer) > 1 else answer[0]
            status, content = (answer, b"") if isinstance(answer, int) else (200, answer)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_):
            pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), Replay)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    client = pmc.Client(tmp_path / "cache", per_second=1000, pause=0.001, tries=3)
    yield pmc.Ncbi(client, f"{base}/eutils", f"{base}/cloud"), answers, seen
    server.shutdown()
    server.server_close()


def jats(licence="by/4.0", year=2024, caption="Fundus photograph of the right eye.", history=HISTORY, extra=""):
    figures = "".join(f'<fig><caption><p>{text}</p></caption><graphic xlink:href="{name}"/></fig>' for name, text in [
        ("f1", caption), ("f2.jpg", "Slit lamp."), ("f3", "OCT, reproduced from Smith."), ("f4", "AS-OCT of it.")])
    return f"""<!DOCTYPE article PUBLIC "-//NLM//DTD JATS" "JATS-archivearticle1.dtd"><article
        xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta><pub-date><year>{year}</year></pub-date>
        <permissions><license xlink:href="http://creativecommons.org/licenses/{licence}/"/></permissions></article-meta></front><body>
        <sec><title>Introduction</title><p>Rare.</p></sec><sec><title>2. Case Presentation</title><p>{history}
        OCT showed central serous chorioretinopathy.</p>{extra}</sec>{figures}</body></article>""".encode()


def search_answers(*titles: str) -> dict:
    ids = range(1, len(titles) + 1)
    items = "".join(f'<DocSum><Id>{i}</Id><Item Name="Title">{title}</Item></DocSum>'
                    for i, title in zip(ids, titles, strict=True))
    listed = "".join(f"<Id>{i}</Id>" for i in ids)
    found = f"<eSearchResult><Count>{len(titles)}</Count>{listed}</eSearchResult>"
    return {"/eutils/esearch.fcgi": [429, found.encode()],
            "/eutils/esummary.fcgi": [HTML, 503, f"<eSummaryResult>{items}</eSummaryResult>".encode()]}


def cloud_answers(number: int, article: bytes | list, licence="CC BY", **about) -> dict:
    name = f"PMC{number}.2"
    listing = f'<ListBucketResult xmlns="x"><Prefix>PMC{number}.1/</Prefix><Prefix>{name}/</Prefix></ListBucketResult>'
    media = [f"s3://pmc-oa-opendata/{name}/{file}?md5=0" for file in ("f1.jpg", "f2.jpg", "video.mp4")]
    return {f"/cloud/?PMC{number}.": listing.encode(), f"/cloud/{name}/{name}.xml": article,
            f"/cloud/{name}/f1.jpg": JPEG, f"/cloud/metadata/{name}.json": json.dumps(
                {"license_code": licence, "media_urls": media} | about).encode()}


CSC = "Central serous chorioretinopathy after steroids: a case report"


def test_from_search_to_records(ncbi, tmp_path, monkeypatch):
    service, answers, seen = ncbi
    answers |= search_answers(CSC, CSC, CSC, CSC, CSC, "Macular hole after retinal detachment", CSC, CSC)
    answers |= cloud_answers(1, [jats()[:300], HTML, jats()]) | cloud_answers(2, jats(), licence="CC BY-NC")
    answers |= cloud_answers(3, jats(year=2025)) | cloud_answers(7, jats(), is_retracted=True)
    answers |= cloud_answers(8, jats(caption="Brain MRI."))
    answers |= {"/cloud/?PMC4.": b"<ListBucketResult/>"} | cloud_answers(5, jats())
    problems = pmc.write_complex(tmp_path / "out", service)
    assert {problem.file: problem.reason.split("\n")[0] for problem in problems} == {
        "PMC2": "licence CC BY, CC BY-NC; accepted: CC BY, CC BY-SA, CC0",
        "PMC3": "published 2025-12-31, the cut-off is 2025-06-20",
        "PMC4": "the Cloud Service does not have it: not open access",
        "PMC6": "the title names 2 diagnoses that have a label, not 1: 'Macular hole after retinal detachment'",
        "PMC7": "the article is retracted",
        "PMC8": "no figure of its own whose caption names a retinal imaging modality"}
    assert sorted(file.name for file in (tmp_path / "out/images").iterdir()) == ["PMC1_f1.jpg", "PMC5_f1.jpg"]
    read = mm_retinal_reason.read_mm_retinal_reason(tmp_path / "out")
    assert read[["pmcid", "path", "kind", "task", "caption"]].to_numpy().tolist() == [
        [f"PMC{i}", f"images/PMC{i}_f1.jpg", "open", "complex", "Fundus photograph of the right eye."] for i in (1, 5)]
    assert set(read.answer) == {"Central serous chorioretinopathy"}
    assert set(read.question) == {f"{HISTORY}What is the most likely diagnosis?"}         # it is not told
    asked, before = len(seen), (tmp_path / "out/complex_reason.json").read_bytes()
    again = pmc.write_complex(tmp_path / "out", service)
    assert len(seen) == asked and again == problems                                     # a rerun asks for nothing
    assert (tmp_path / "out/complex_reason.json").read_bytes() == before
    monkeypatch.setattr(pmc, "LICENCES", [*pmc.LICENCES, "CC BY-NC"])
    monkeypatch.setattr(pmc, "UNTIL", date(2026, 1, 1))
    wider = pmc.write_complex(tmp_path / "nc", service)
    assert {problem.file for problem in wider} == {"PMC4", "PMC6", "PMC7", "PMC8"}
    assert len(seen) == asked + 3                                                       # the search and two pictures


@pytest.mark.parametrize(("article", "reason"), [
    (jats(history=""), "no case presentation that does not begin with the diagnosis"),
    (jats().replace(b'<license xlink:href="http://creativecommons.org/licenses/by/4.0/"/>', b""), "licence not stated"),
    (jats(year="n.d."), "published at an unknown date"), (jats()[:-20], "no well-formed XML"),
    (b'<!DOCTYPE article [<!ENTITY a "b">]><article/>', "declares entities"),
    (jats(caption="OCT").replace(b"f1", b"f9"), "no JPEG or PNG of the figure 'f9'")])
def test_a_refused_article_has_its_reason(ncbi, tmp_path, article, reason):
    service, answers, _ = ncbi
    answers |= cloud_answers(1, article, licence=None)
    with pytest.raises(data.DataError, match=reason):
        pmc.case(service, "PMC1", CSC, tmp_path)


def test_at_most_six_images(ncbi, tmp_path):
    service, answers, _ = ncbi
    answers |= cloud_answers(1, jats(extra='<fig><caption><p>OCT</p></caption><graphic xlink:href="f1"/></fig>' * 7))
    record = pmc.case(service, "PMC1", CSC, tmp_path)
    assert len(record["image"]) == 6 and record["caption"].split() == ["OCT"] * 6


def test_an_incomplete_date_is_taken_at_its_latest():
    dates = (b"<article><pub-date><year>2024</year><month>2</month></pub-date><pub-date><year>2024</year>"
             b"<month>13</month><day>40</day></pub-date></article>")
    assert pmc.published(pmc.xml(dates, "article")) == date(2024, 2, 29)


def test_the_key_is_in_no_url_log_or_file(ncbi, tmp_path, monkeypatch, caplog):
    service, answers, seen = ncbi
    monkeypatch.setenv("NCBI_API_KEY", "s3cret")
    answers |= search_answers(CSC)
    with caplog.at_level(logging.DEBUG):
        assert pmc.search(service, "x") == {"PMC1": CSC}
    assert [query["api_key"] for _, _, query in seen] == ["s3cret"] * 5 and len(caplog.records) > 0
    assert not any("s3cret" in path for _, path, _ in seen) and "s3cret" not in caplog.text
    assert not any(b"s3cret" in file.read_bytes() for file in (tmp_path / "cache").iterdir())
    assert pmc.ncbi(tmp_path).client.gap == 0.1
    monkeypatch.delenv("NCBI_API_KEY")
    assert pmc.search(service, "x") == {"PMC1": CSC} and len(seen) == 5    # same cache without the key
    assert pmc.ncbi(tmp_path).client.gap == 1 / 3


def test_a_server_that_stays_down_or_says_no(ncbi):
    service, answers, seen = ncbi
    answers |= {"/eutils/esearch.fcgi": 500, "/cloud/": 404}
    with pytest.raises(data.DataError, match=r"esearch.fcgi gives no usable answer: HTTP 500\n  run again later"):
        pmc.search(service, "x")
    assert len(seen) == 3
    with pytest.raises(data.DataError, match="HTTP 404"):
        pmc.from_cloud(service, "PMC1")
    assert len(seen) == 4                                              # a refusal is not asked twice
    gone = pmc.Ncbi(service.client, eutils="http://127.0.0.1:9/none")
    with pytest.raises(data.DataError, match="no usable answer: ConnectionError"):
        pmc.search(gone, "x")
    answers["/eutils/esearch.fcgi"] = b"<eSearchResult><Count>9</Count><Id>1</Id></eSearchResult>"
    with pytest.raises(data.DataError, match="counts 9 articles and lists 1"):
        pmc.search(service, "x")


def test_requests_wait_their_turn(ncbi, tmp_path):
    service, answers, _ = ncbi
    answers["/cloud/"] = b"<a/>"
    client, times = pmc.Client(tmp_path / "slow", per_second=20), []
    for i in range(4):
        client.get(f"{service.cloud}/", {"id": i}, bytes)
        times.append(time.monotonic())
    assert times[3] - times[0] >= 0.14 and client.requests == 4


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded answers of NCBI are not beside this checkout")
def test_recorded_answers(ncbi, tmp_path):
    service, answers, _ = ncbi
    recorded = {name: (RECORDED / "entrez" / f"{name}.xml").read_bytes()
                for name in ("esearch5", "esearch8", "esummary1", "esummary8")}
    answers |= {"/eutils/esearch.fcgi": recorded["esearch5"], "/eutils/esummary.fcgi": recorded["esummary1"]}
    titles = pmc.search(service, "recorded")
    assert titles["PMC11850928"] == "Zirconium granuloma following treatment of rhus dermatitis."
    answers["/eutils/esearch.fcgi"] = recorded["esearch8"]
    assert pmc.search(service, "nothing") == {}
    with pytest.raises(data.DataError, match="Neither query_key nor id specified"):
        pmc.xml(recorded["esummary8"], "eSummaryResult")
    found = {}
    for number, file in enumerate(sorted((RECORDED / "pmc_jats").iterdir()), start=1):
        answers |= cloud_answers(number, file.read_bytes(), licence=None)
        article = pmc.from_cloud(service, f"PMC{number}")
        found[file.name] = (sorted(pmc.licences_of(article)), pmc.published(article.content).isoformat())
        with pytest.raises(data.DataError, match="licence|no figure"):
            pmc.case(service, f"PMC{number}", CSC, tmp_path)
    assert found["journal.pone.0152025.xml"] == (["CC BY"], "2016-03-24")
    assert found["ehp-116-1694.nxml"] == (["public domain"], "2008-08-01") and found["pntd.0002065.nxml"][0] == []
    assert len(found) == 12
