"""MM-Retinal-Reason's complex part, made from PubMed Central: one case report, its history, its retinal figures.

Search and titles come from the E-utilities, articles from the PMC Cloud Service. A rerun asks for nothing that the
cache folder has; delete that folder to search anew."""

import hashlib
import json
import os
import re
import time
from calendar import monthrange
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tqdm import tqdm

from fundus_lib.benchmarks import write_json
from fundus_lib.data import DataError
from fundus_lib.data.records import Problem
from fundus_lib.lexicon import find_labels, reference
from fundus_lib.mm_retinal_reason import MOST_IMAGES
from fundus_lib.questions import prompt

UNTIL = date(2025, 6, 20)  # OphthaReason's cut-off
LICENCES = ("CC BY", "CC BY-SA", "CC0")
TERMS = reference("sources.json")
QUESTION = "What is the most likely diagnosis?"
MODALITY = re.compile("|".join(TERMS["captions"]), re.IGNORECASE)
BORROWED = re.compile(r"\b(reproduced|reprinted|adapted|courtesy)\b", re.IGNORECASE)  # not under the article's licence
CASE = re.compile(r"\bcases?\b|\bpatient (information|presentation)|\bclinical (presentation|history)", re.IGNORECASE)
HREF = "{http://www.w3.org/1999/xlink}href"
IMAGES = (".jpg", ".jpeg", ".png")
TEMPORARY, LONGEST_WAIT = (408, 429, 500, 502, 503, 504), 60.0  # HTTP statuses worth another try; seconds


class Client:
    """Requests that wait their turn and are cached: one file an answer, written whole, so that a rerun asks nothing.
    per_second: requests; pause: seconds before the second try, doubled for each further one unless the server says."""

    def __init__(self, cache: Path, per_second: float = 3, pause: float = 1.0, tries: int = 5):
        import requests  # a third of a second that only downloads need
        self.cache, self.gap, self.pause, self.tries = Path(cache), 1 / per_second, pause, tries
        self.session, self.failures, self.requests, self.free_at = requests.Session(), requests.RequestException, 0, 0.0
        self.cache.mkdir(parents=True, exist_ok=True)

    def get(self, url: str, params: dict, check: Callable, secret: dict | None = None):
        """check(content) of the answer; `check` raises DataError for what is none (HTML with status 200, cut XML).
        secret: parameters such as a key, sent in the body of a POST with the others: in no URL, log or cache name.
        Raises DataError when no try succeeds."""
        file = self.cache / hashlib.sha256(json.dumps([url, params], sort_keys=True).encode()).hexdigest()
        if file.exists():
            return check(file.read_bytes())
        for attempt in range(self.tries):
            time.sleep(max(0.0, self.free_at - time.monotonic()))
            self.free_at, wait = time.monotonic() + self.gap, self.pause * 2 ** attempt
            self.requests += 1
            try:
                response = self.session.post(url, data=params | secret, timeout=60) if secret else \
                    self.session.get(url, params=params, timeout=60)
                reason, said = f"HTTP {response.status_code}", response.headers.get("Retry-After", "")
                if response.status_code == 200:
                    value, part = check(response.content), file.with_suffix(".part")
                    part.write_bytes(response.content)
                    os.replace(part, file)
                    return value
                if response.status_code not in TEMPORARY:
                    break
                wait = float(said) if said.isdigit() else wait
            except self.failures as error:
                reason = type(error).__name__  # its message may hold the whole request
            except DataError as error:
                reason = str(error)
            if attempt + 1 < self.tries:
                time.sleep(min(wait, LONGEST_WAIT))
        raise DataError(f"{url} gives no usable answer: {reason}\n  run again later; {self.cache} keeps what is there")


def xml(content: bytes, *roots: str) -> ElementTree.Element:
    """The root element. DataError for XML that is broken, declares entities, or has another root (HTML)."""
    if b"<!ENTITY" in content or b"\0" in content[:100]:
        raise DataError("XML that declares entities, or is not UTF-8, is not read")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise DataError(f"no well-formed XML ({error}); it starts with {content[:40]!r}") from None
    if root.tag.rpartition("}")[2] not in roots or root.find("ERROR") is not None:
        raise DataError(f"<{root.tag}> {(root.findtext('ERROR') or '')[:80]} instead of <{roots[0]}>")
    return root


def json_object(content: bytes) -> dict:
    """A JSON object. Raises DataError for anything else."""
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError):
        raise DataError(f"no JSON object; it starts with {content[:40]!r}") from None


def picture(content: bytes) -> bytes:
    """The content when it is a JPEG or PNG file. Raises DataError otherwise."""
    if not content.startswith((b"\xff\xd8\xff", b"\x89PNG")):
        raise DataError(f"no JPEG or PNG; it starts with {content[:40]!r}")
    return content


class Ncbi(NamedTuple):
    """The services and the client that asks them; a test puts its own server here."""
    client: Client
    eutils: str = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils"
    cloud: str = "https://pmc-oa-opendata.s3.amazonaws.com"

    def search(self, tool: str, params: dict, root: str) -> ElementTree.Element:
        """One answer of the E-utilities about PubMed Central."""
        key = os.environ.get("NCBI_API_KEY")
        return self.client.get(f"{self.eutils}/{tool}.fcgi", {"db": "pmc"} | params, lambda raw: xml(raw, root),
                               {"api_key": key} if key else None)


def ncbi(cache: Path) -> Ncbi:
    """NCBI's services at the pace that NCBI allows: 3 requests a second, 10 with NCBI_API_KEY in the environment."""
    return Ncbi(Client(cache, per_second=10 if os.environ.get("NCBI_API_KEY") else 3))


def text(element: ElementTree.Element | None) -> str:
    """All text of an element, blanks collapsed."""
    return "" if element is None else " ".join("".join(element.itertext()).split())


def search(service: Ncbi, term: str) -> dict[str, str]:
    """pmcid -> title of everything in PubMed Central that `term` finds and that was published until UNTIL."""
    titles, ids, count = {}, [], 1
    query = {"term": term, "datetype": "pdat", "mindate": "1900", "maxdate": f"{UNTIL:%Y/%m/%d}", "retmax": 10_000}
    while len(ids) < count:
        page = service.search("esearch", query | {"retstart": len(ids)}, "eSearchResult")
        new, count = [node.text for node in page.iter("Id")], int(page.findtext("Count") or 0)
        if count > len(ids) and set(new) <= set(ids):
            raise DataError(f"{service.eutils} counts {count} articles and lists {len(ids)}; search for fewer")
        ids += new
    for start in range(0, len(ids), 200):
        page = service.search("esummary", {"id": ",".join(ids[start:start + 200])}, "eSummaryResult")
        titles |= {f"PMC{item.findtext('Id')}": text(item.find("Item[@Name='Title']")) for item in page.iter("DocSum")}
    return titles


class Article(NamedTuple):
    """Licence as the service states it, JATS, and how to get each media file by its name."""
    licence: str | None
    content: ElementTree.Element
    files: dict[str, Callable[[], bytes]]


def from_cloud(service: Ncbi, pmcid: str) -> Article:
    """The newest version of an article in the Cloud Service. DataError when it is not there, or retracted."""
    url, get = service.cloud, service.client.get
    listed = get(f"{url}/", {"list-type": "2", "prefix": f"{pmcid}.", "delimiter": "/"},
                 lambda content: text(xml(content, "ListBucketResult")))
    versions = [int(number) for number in re.findall(rf"{pmcid}\.(\d+)/", listed)]
    if not versions:
        raise DataError("the Cloud Service does not have it: not open access")
    name = f"{pmcid}.{max(versions)}"
    about = get(f"{url}/metadata/{name}.json", {}, json_object)
    if about.get("is_retracted"):
        raise DataError("the article is retracted")
    names = [Path(media.partition("?")[0]).name for media in about.get("media_urls") or ()]
    jats = get(f"{url}/{name}/{name}.xml", {}, lambda content: xml(content, "article", "pmc-articleset"))
    return Article(about.get("license_code"), jats,
                   {file: partial(get, f"{url}/{name}/{file}", {}, picture) for file in names})


def licences_of(article: Article) -> set[str]:
    """The licences that the service and the article itself state, such as {"CC BY"}; empty when neither states one."""
    stated = " ".join(ElementTree.tostring(node, "unicode") for node in article.content.iter("license"))
    own = re.findall(r"creativecommons\.org/(?:licenses/([a-z-]+)|publicdomain/(zero|mark))", stated)
    codes = {f"CC {code.upper()}" if code else {"zero": "CC0", "mark": "public domain"}[mark] for code, mark in own}
    return codes | ({article.licence} if article.licence and article.licence.lower() != "none" else set())


def published(article: ElementTree.Element) -> date | None:
    """The first publication date, taken at the end of its month or year where that is all that is given."""
    dates = []
    for node in article.iter("pub-date"):
        year, month, day = (int(part) if (part := node.findtext(name) or "").strip().isdigit() else 0
                            for name in ("year", "month", "day"))
        if 0 < year < 10_000:
            month = month if 0 < month <= 12 else 12
            dates.append(date(year, month, min(day or 31, monthrange(year, month)[1])))
    return min(dates, default=None)


def accepted(article: Article) -> tuple[str, date]:
    """The licences and the date of an article. DataError when they are not accepted, or not stated."""
    stated, day = licences_of(article), published(article.content)
    if not stated or not stated <= set(LICENCES):
        raise DataError(f"licence {', '.join(sorted(stated)) or 'not stated'}; accepted: {', '.join(LICENCES)}")
    if day is None or day > UNTIL:
        raise DataError(f"published {day or 'at an unknown date'}, the cut-off is {UNTIL}")
    return ", ".join(sorted(stated)), day


def history_of(article: ElementTree.Element, diagnosis: str) -> str:
    """The case presentation up to the sentence that names the diagnosis. Raises DataError when there is none."""
    for section in article.iter("sec"):
        if CASE.search(text(section.find("title"))) or section.get("sec-type", "").startswith("case"):
            told = " ".join(text(paragraph) for paragraph in section.iter("p") if paragraph.find(".//fig") is None)
            named = [mention.start for mention in find_labels(told) if mention.finding == diagnosis]
            told = told if not named else told[: named[0]].rpartition(". ")[0] + "."
            if len(told) >= 100:
                return told
    raise DataError("no case presentation that does not begin with the diagnosis")


def case(service: Ncbi, pmcid: str, title: str, folder: Path) -> dict:
    """One record, its first images saved in folder/images. Raises DataError with the reason for a refusal."""
    labels = {mention.finding for mention in find_labels(title)} - {"Normal"}
    if len(labels) != 1:
        raise DataError(f"the title names {len(labels)} diagnoses that have a label, not 1: {title[:80]!r}")
    article, diagnosis = from_cloud(service, pmcid), labels.pop()
    licence, _ = accepted(article)
    figures = [(Path(graphic.get(HREF, "")).name, caption) for figure in article.content.iter("fig")
               if (graphic := figure.find(".//graphic")) is not None
               and MODALITY.search(caption := text(figure.find("caption"))) and not BORROWED.search(caption)]
    if not figures:
        raise DataError("no figure of its own whose caption names a retinal imaging modality")
    told, images = history_of(article.content, diagnosis), []
    for wanted, _ in figures[:MOST_IMAGES]:
        name = next((n for n in article.files if wanted in (n, Path(n).stem) and n.endswith(IMAGES)), None)
        if name is None:
            raise DataError(f"the service has no JPEG or PNG of the figure {wanted!r}")
        images.append(f"images/{pmcid}_{re.sub('[^A-Za-z0-9.-]', '_', name)}")
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / images[-1]).write_bytes(article.files[name]())
    return {"image": images, "reason": "", "pmcid": pmcid, "title": title, "licence": licence,
            "caption": "\n".join(caption for _, caption in figures[:MOST_IMAGES]), "conversations": [
                {"from": "human", "value": prompt(f"{told} {QUESTION}", None)},
                {"from": "gpt", "value": f"<answer> {diagnosis} </answer>"}]}


def write_complex(folder: Path, service: Ncbi) -> list[Problem]:
    """complex_reason.json and its images in `folder`; returns every article that was refused, with the reason."""
    records, problems = [], []
    for pmcid, title in tqdm(search(service, TERMS["case reports"]).items(), desc="case reports", disable=None):
        try:
            records.append(case(service, pmcid, title, folder))
        except DataError as error:
            problems.append(Problem("PubMed Central", pmcid, None, str(error)))
    write_json(folder / "complex_reason.json", records)
    return problems
