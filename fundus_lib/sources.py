"""Further references for K[y, m]: reviews in PubMed Central, a folder of PDF, HTML, markdown and text files.

A source returns Found(passages, problems): what could not be had is a problem with its reason and costs nothing else.
A passage belongs to the label that its heading or title names and to the modalities that its words name, else to all.
Nothing here runs by default. What is fetched stays under its own licence, which its citation names. The paper reads
EyeWiki too, which is not free: save the pages that you may use into the folder, and keep what is made from them."""

import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fundus_lib import pmc
from fundus_lib.data.records import HIDDEN, DataError, Problem
from fundus_lib.knowledge import MODALITIES, Passage, embedded_pages
from fundus_lib.lexicon import find_labels, reference

LONGEST = 1500  # characters of a passage, where its paragraphs allow
TERMS = reference("sources.json")
_HEADING = re.compile(r"(?m)^(?:(#{1,6})[ \t]*([^#\s].*?)[ \t]*#*|(\f))$")  # markdown; a new page
_DROPPED = "script style nav footer aside form noscript head".split()


class Found(NamedTuple):
    """What a source has, and what it could not give."""
    passages: list[Passage]
    problems: list[Problem]


def _collect(source: str, wanted: Collection[str], search: Callable, read: Callable[[str], list[Passage]]) -> Found:
    """`read` what `search` finds for each of the wanted, every hit once. A hit that raises DataError is a problem; when
    the search itself does, the service is down: what is left is listed and not asked for."""
    passages, problems, hits = {}, [], []
    for place, label in enumerate(wanted):
        try:
            new = [hit for hit in search(label) if hit not in hits]
        except DataError as error:
            left = ", ".join([*wanted][place + 1:]) or "none"
            problems.append(Problem(source, label, None, f"{error}\n  not asked for: {left}"))
            break
        hits += new
        for hit in new:
            try:
                passages |= {(p.source, p.label, p.text): p for p in read(hit)}  # two names may lead to one page
            except DataError as error:
                problems.append(Problem(source, hit, None, str(error)))
    return Found([*passages.values()], problems)


def _labels(text: str) -> list[str]:
    """The labels that a title or heading names; "normal" is mostly the normal pressure of a glaucoma."""
    return [name for name in dict.fromkeys(m.finding for m in find_labels(text)) if name != "Normal"]


def _shown(section: str, text: str) -> list[str]:
    """The modalities that a heading names, else those that the text names, else all."""
    named = ([m for m, words in TERMS["words of a modality"].items() if re.search("|".join(words), told, re.IGNORECASE)]
             for told in (section, text))
    return next(filter(None, named), MODALITIES.split("|"))


def _passages(place: str, title: str, cite: str, marked: str) -> list[Passage]:
    """The sections of marked text (a form feed begins a page and ends no section) as passages of LONGEST characters or
    one paragraph, once for each label. DataError without any."""
    found, path, page, (first, *rest) = [], [], 1, _HEADING.split(marked)
    for marks, heading, feed, body in [("", "", None, first), *zip(*[iter(rest)] * 4, strict=True)]:
        page += bool(feed)
        if marks:
            path = [*((level, outer) for level, outer in path if level < len(marks)), (len(marks), heading)]
        section = " > ".join(heading for _, heading in path)
        other = "differential" in section.lower()  # it names other diseases: the text is about the title's
        labels, parts = not other and _labels(section) or _labels(title), [""]
        for paragraph in re.split(r"\n\s*\n|\n(?=[-*] )", body.strip()):
            if parts[-1] and len(parts[-1]) + len(paragraph) > LONGEST:
                parts.append("")
            parts[-1] += "\n" * bool(parts[-1]) + paragraph.strip()
        at = f"{place}#page={page}" if place.lower().endswith(".pdf") else f"{place}#{section}"
        found += [Passage(at + f" ({n})" * (n > 1), label, section or title, _shown(section, text), text, [cite])
                  for n, text in enumerate(parts, start=1) for label in labels if text]
    if not found:
        raise DataError(f"neither the title nor a heading above text names a label of labels.json: {title[:80]!r}")
    return found


def _html(content: bytes) -> str:
    """An HTML page as marked text: its headings, and a paragraph a block."""
    import lxml.html
    utf8 = content.decode("utf-8", "ignore").encode() == content  # else what the page itself says
    tree = lxml.html.document_fromstring(content, lxml.html.HTMLParser(encoding="utf-8" if utf8 else None))
    lxml.etree.strip_elements(tree, *_DROPPED, with_tail=False)
    for node in tree.iter():
        node.text, node.tail = (re.sub(r"[\s\0-\x1f]+", " ", text or "") for text in (node.text, node.tail))
        level = re.fullmatch("h([1-6])", str(node.tag))
        if level or node.tag in ("p", "li", "div", "td", "dd", "dt", "tr", "br", "section"):
            node.text, node.tail = "\n\n" + ("#" * int(level[1]) + " " if level else "") + node.text, "\n\n" + node.tail
    return "\n".join(line.strip() for line in tree.text_content().split("\n"))


def _plain(text: str) -> str:
    """Text without marks: a short line that begins a page, a paragraph or a sentence, looks like a title and does not
    run on is a heading, in capitals one of the first level. A guess: the size of the type is not known."""
    lines, before = [line.strip(" \t\r") for line in text.split("\n")], ""
    for i, line in enumerate(lines):
        words, after = line.split(), "".join(lines[i + 1:i + 2])
        if 0 < len(words) <= 8 and re.fullmatch(r"[\d. ]*[A-Z].*[A-Za-z)]", line) and not after[:1].islower() and (
                line[0].isdigit() or before[-1:] in ".:?!\f" or all(w[0].isupper() for w in words if w[3:])):
            lines[i] = f"{'#' if line.isupper() else '##'} {line}"
        before = line
    return re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", "\n".join(lines))  # a word that the line's end divides


def _file(root: Path, name: str) -> list[Passage]:
    """The passages of one file. DataError with the reason when it has none."""
    file, kind, title = root / name, Path(name).suffix.lower(), ""
    if kind not in (".pdf", ".html", ".htm", ".md", ".txt"):
        raise DataError("no .pdf, .html, .htm, .md or .txt")
    try:
        if kind == ".pdf":
            import pypdf
            reader = pypdf.PdfReader(file)
            pages, title = [page.extract_text() for page in reader.pages], (reader.metadata or {}).get("/Title", "")
            text = _plain("\n\f\n".join(pages)) if 2 * sum(map(bool, map(str.strip, pages))) > len(pages) else ""
        elif kind.startswith(".htm"):
            text = _html(file.read_bytes())
        else:
            text = file.read_text(encoding="utf-8-sig")
            text = text if re.search("^#", text, re.MULTILINE) else _plain(text)
    except Exception as error:  # pypdf and lxml raise whatever a damaged or locked file makes them stumble over
        raise DataError(f"cannot be read: {type(error).__name__}: {error}") from None
    if not text.strip():
        raise DataError("at most half of it has text: a scan?\n  let ocrmypdf or the like recognise its characters")
    return _passages(name, title if _labels(title) else re.sub("[_-]+", " ", file.stem), name, text)


def folder(path: Path) -> Found:
    """Every PDF, HTML page, markdown and text file below a folder, such as the guidelines that you have downloaded, is
    cited by its name; places are pages of a PDF (`file.pdf#page=3`), headings elsewhere. DataError without folder."""
    if not (root := Path(path)).is_dir():
        raise DataError(f"{root} is no folder\n  put PDF, HTML, markdown or text files into one and name it")
    files = (p for p in sorted(root.rglob("*")) if p.is_file() and not p.name.startswith(HIDDEN))
    return _collect("folder", [""], lambda _: (p.relative_to(root).as_posix() for p in files), partial(_file, root))


def _jats(node, level: int = 1) -> str:
    """The sections of a JATS body as marked text."""
    return "\n\n".join(part for section in node.findall("sec") for part in (
        "#" * level + " " + (pmc.text(section.find("title")) or "Untitled"), *map(pmc.text, section.findall("p")),
        _jats(section, level + 1)))


def _article(service: pmc.Ncbi, pmcid: str) -> list[Passage]:
    """One article. DataError when its licence or date does not allow it, it is retracted, or is about no label."""
    article = pmc.from_cloud(service, pmcid)
    licence, day = pmc.accepted(article)
    title = pmc.text(article.content.find(".//article-title"))
    told = "\n\n".join(map(_jats, article.content.iter("body")))
    return _passages(pmcid, title, f"{title}. {pmcid}, {day.year}. Licence: {licence}.", told)


def pmc_articles(labels: Collection[str], service: pmc.Ncbi) -> Found:
    """The ten most relevant open-access reviews of each label in PubMed Central, published until pmc.UNTIL."""
    def search(label: str) -> list[str]:
        page = service.search("esearch", {
            "term": TERMS["reviews"].format(label=label), "retmax": 10, "sort": "relevance", "datetype": "pdat",
            "mindate": "1900", "maxdate": f"{pmc.UNTIL:%Y/%m/%d}"}, "eSearchResult")
        return [f"PMC{node.text}" for node in page.iter("Id")]
    return _collect("PubMed Central", labels, search, partial(_article, service))


def gather(labels: Collection[str], cache: Path, files: Path | None = None, online: bool = False) -> Found:
    """The embedded pages, a folder of files when given, and with `online` reviews from PubMed Central."""
    parts = [Found(embedded_pages(), []), *([folder(files)] if files else [])]
    parts += [pmc_articles(labels, pmc.ncbi(Path(cache) / "pmc"))] if online else []
    return Found(*(sum(lists, []) for lists in zip(*parts, strict=True)))
