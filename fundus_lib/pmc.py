"""MM-Retinal-Reason's complex part, made from PubMed Central: one case report, its history, its retinal figures.

Search and titles come from the E-utilities; articles from the PMC Cloud Service, and where it has none from the OA web
service with its packages (PMC announced their end for August 2026). A rerun asks for nothing that the cache folder has;
delete that folder to search anew.
"""

import os
import re
from calendar import monthrange
from collections.abc import Callable, Collection
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tqdm import tqdm

from fundus_lib.benchmarks import write_json
from fundus_lib.data import DataError
from fundus_lib.data.records import Problem
from fundus_lib.fetching import Client, json_object, picture, unpacked, xml
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
IMAGES, JATS = (".jpg", ".jpeg", ".png"), (".nxml", ".xml")


class Ncbi(NamedTuple):
    """The services and the client that asks them; a test puts its own server here."""

    client: Client
    eutils: str = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils"
    cloud: str = "https://pmc-oa-opendata.s3.amazonaws.com"
    oa: str = "https://www.ncbi.nlm.nih.gov/pmc/utils/oa/oa.fcgi"
    packages: str = "https://ftp.ncbi.nlm.nih.gov"  # stands for ftp://ftp.ncbi.nlm.nih.gov

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


def search(service: Ncbi, term: str, until: date) -> dict[str, str]:
    """pmcid -> title of everything in PubMed Central that `term` finds and that was published until then."""
    titles, ids, count = {}, [], 1
    query = {"term": term, "datetype": "pdat", "mindate": "1900", "maxdate": f"{until:%Y/%m/%d}", "retmax": 10_000}
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


def from_cloud(service: Ncbi, pmcid: str) -> Article | None:
    """The newest version of an article in the Cloud Service; None when it is not there. DataError when retracted."""
    url, get = service.cloud, service.client.get
    listed = get(f"{url}/", {"list-type": "2", "prefix": f"{pmcid}.", "delimiter": "/"},
                 lambda content: text(xml(content, "ListBucketResult")))
    versions = [int(number) for number in re.findall(rf"{pmcid}\.(\d+)/", listed)]
    if not versions:
        return None
    name = f"{pmcid}.{max(versions)}"
    about = get(f"{url}/metadata/{name}.json", {}, json_object)
    if about.get("is_retracted"):
        raise DataError("the article is retracted")
    names = [Path(media.partition("?")[0]).name for media in about.get("media_urls") or ()]
    jats = get(f"{url}/{name}/{name}.xml", {}, lambda content: xml(content, "article", "pmc-articleset"))
    return Article(about.get("license_code"), jats,
                   {file: partial(get, f"{url}/{name}/{file}", {}, picture) for file in names})


def from_oa(service: Ncbi, pmcid: str) -> Article:
    """An article's package by the OA web service. DataError when the service or the package does not have it."""
    answer = service.client.get(service.oa, {"id": pmcid}, lambda content: xml(content, "OA"))
    record, link = answer.find(".//record"), answer.find(".//link[@format='tgz']")
    if record is None or link is None:
        raise DataError(f"the OA service has no package: {text(answer.find('error')) or 'no record'}")
    url = link.get("href", "").replace("ftp://ftp.ncbi.nlm.nih.gov", service.packages)
    if not url.startswith(service.packages + "/"):
        raise DataError(f"the package is on an unknown server: {url}")
    files = service.client.get(url, {}, partial(unpacked, suffixes=IMAGES + JATS))
    jats = next((content for name, content in files.items() if name.endswith(JATS)), b"")
    return Article(record.get("license"), xml(jats, "article"),
                   {name: partial(picture, content) for name, content in files.items()})


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


def case(service: Ncbi, pmcid: str, title: str, folder: Path, until: date, licences: Collection[str]) -> dict:
    """One record, its first images saved in folder/images. Raises DataError with the reason for a refusal."""
    labels = {mention.finding for mention in find_labels(title)} - {"Normal"}
    if len(labels) != 1:
        raise DataError(f"the title names {len(labels)} diagnoses that have a label, not 1: {title[:80]!r}")
    article, diagnosis = from_cloud(service, pmcid) or from_oa(service, pmcid), labels.pop()
    if not (stated := licences_of(article)) or not stated <= set(licences):
        raise DataError(f"licence {', '.join(sorted(stated)) or 'not stated'}; accepted: {', '.join(licences)}")
    if (day := published(article.content)) is None or day > until:
        raise DataError(f"published {day or 'at an unknown date'}, the cut-off is {until}")
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
    return {"image": images, "reason": "", "pmcid": pmcid, "title": title, "licence": ", ".join(sorted(stated)),
            "caption": "\n".join(caption for _, caption in figures[:MOST_IMAGES]), "conversations": [
                {"from": "human", "value": prompt(f"{told} {QUESTION}", None)},
                {"from": "gpt", "value": f"<answer> {diagnosis} </answer>"}]}


def write_complex(folder: Path, service: Ncbi, until: date = UNTIL,
                  licences: Collection[str] = LICENCES) -> list[Problem]:
    """complex_reason.json and its images in `folder`; returns every article that was refused, with the reason."""
    records, problems = [], []
    for pmcid, title in tqdm(search(service, TERMS["case reports"], until).items(), desc="case reports", disable=None):
        try:
            records.append(case(service, pmcid, title, folder, until, licences))
        except DataError as error:
            problems.append(Problem("PubMed Central", pmcid, None, str(error)))
    write_json(folder / "complex_reason.json", records)
    return problems
