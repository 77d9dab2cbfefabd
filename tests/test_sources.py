"""Further references: a folder of files, and PubMed Central played by a local server, recorded answers."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pypdf
import pytest

from fundus_lib import data, knowledge, pmc, sources

RECORDED = Path(__file__).parents[2] / "shared" / "knowledge" / "api_fixtures"
ALL = ["CFP", "OCT", "UWF", "FFA"]
BULLETS = "- Required: a full-thickness foveal\n  defect.\n- Supportive: cystoid spaces of intraretinal fluid."
HTML = b"""<html><head><title>x</title><style>p {}</style></head><body><nav>Drusen menu</nav><h1>Central  retinal vein
occlusion</h1><h2>Clinical <i>features</i></h2><p>On <b>fundus photographs</b> blood lies
in all quadrants.</p><ul><li>Veins are <a href="/">wide</a>.</li></ul><!-- hidden --><script>"Drusen"</script></body>"""
JATS = """<article xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta><article-title>{}</article-title>
<pub-date><year>{}</year></pub-date><license xlink:href="http://creativecommons.org/licenses/{}/4.0/"/></article-meta>
</front><body><p>No.</p><sec><title>Diagnosis</title><sec><title>Fluorescein angiography</title><p>Dye <b>leaks</b>.</p>
<p>Late.</p></sec></sec></body></article>"""


def pdf(*pages: str) -> bytes:
    """A PDF without compression and cross-references, its lines set one below the other."""
    parts = ["<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Count {len(pages)}/Kids[" + " ".join(
        f"{4 + 2 * i} 0 R" for i in range(len(pages))) + "]>>", "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    for i, page in enumerate(pages):
        shown = "BT /F1 11 Tf 40 800 Td " + " ".join(f"0 -14 Td ({line}) Tj" for line in page.split("\n")) + " ET"
        parts += [f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</Font<</F1 3 0 R>>>>/Contents "
                  f"{5 + 2 * i} 0 R>>", f"<</Length {len(shown)}>>stream\n{shown}\nendstream"]
    numbered = "".join(f"{number} 0 obj{content}endobj\n" for number, content in enumerate(parts, start=1))
    return f"%PDF-1.4\n{numbered}trailer<</Root 1 0 R/Info<</Title(Cataract)>>>>\nstartxref\n0\n%%EOF".encode()


def test_a_folder_of_files(tmp_path):
    paper = pdf("DIAGNOSIS\nPhysical Examination\nIt is gray and undu-\nlates.\nOptical Coherence Tomography\nFluid.",
                "It reaches the macula.\nSerous Fluid\nis clear.\nCARE\nOperate.", "")
    for name, content in {"a.html": HTML, "b.md": f"# Macular hole\n## Signs on OCT\n{BULLETS}".encode(),
                          "2024.pdf": paper, "Soft_drusen.md": b"Dots.", "broken.pdf": paper[:30], "letter.docx": b"PK",
                          "latin.txt": b"Signs\xff", "empty.htm": b"", "menu.md": b"# Lunch\nDrusen."}.items():
        (tmp_path / name).write_bytes(content)
    writer = pypdf.PdfWriter()
    writer.add_blank_page(100, 100)
    writer.write(tmp_path / "blank.pdf")
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    found = sources.folder(tmp_path)
    assert [(p.source[-13:], p.label[:9], p.modalities, p.text) for p in found.passages] == [
        ("24.pdf#page=1", "Cataract", ALL, "It is gray and undulates."),
        ("24.pdf#page=1", "Cataract", ["OCT"], "Fluid."),                                # and its heading goes on:
        ("24.pdf#page=2", "Cataract", ["OCT"], "It reaches the macula.\nSerous Fluid\nis clear."),
        ("24.pdf#page=2", "Cataract", ALL, "Operate."), ("ft_drusen.md#", "Drusen", ALL, "Dots."),
        ("ical features", "Central r", ["CFP"], "On fundus photographs blood lies in all quadrants.\nVeins are wide."),
        (" Signs on OCT", "Macular h", ["OCT"], BULLETS)]
    assert {problem.file: problem.reason.split("\n")[0][:29] for problem in found.problems} == {
        "latin.txt": "cannot be read: UnicodeDecode", "letter.docx": "no .pdf, .html, .htm, .md or ",
        "broken.pdf": "cannot be read: PdfStreamErro", "blank.pdf": "at most half of it has text: ",
        "locked.pdf": "cannot be read: FileNotDecryp", "empty.htm": "cannot be read: ParserError: ",
        "menu.md": "neither the title nor a headi"}
    with pytest.raises(data.DataError, match="is no folder"):
        sources.folder(tmp_path / "gone")
    assert len(sources.gather([], tmp_path, tmp_path).passages) == len(knowledge.embedded_pages()) + 7


@pytest.mark.parametrize(("title", "text", "label", "modalities"), [
    ("Diabetic retinopathy", "## Severe NPDR ##\nOCTA", "Severe NPDR", ALL),
    ("Drusen", "# Differential diagnosis: macular hole\nA hole.", "Drusen", ALL),
    ("Drusen in normal eyes", "# Signs on OCT #\nFundoscopy is normal.", "Drusen", ["OCT"]),
    ("Drusen", "# Signs\nFundoscopy and FFA.", "Drusen", ["CFP", "UWF", "FFA"])])
def test_whose_passage_it_is(title, text, label, modalities):
    one, two = sources._passages("x", title, "cite", f"{text}\n\n{'word ' * 150}\n\n{'word ' * 200}")  # at most 1,500
    assert (one.label, one.modalities) == (label, modalities) and two.source == one.source + " (2)"


@pytest.fixture
def server():  # set its `answer`: a function of path and query that gives bytes, a status, or what becomes JSON
    class Replay(BaseHTTPRequestHandler):
        def do_GET(self):
            url = urlsplit(self.path)
            said = self.server.answer(url.path, {key: value[0] for key, value in parse_qs(url.query).items()})
            self.send_response(said if isinstance(said, int) else 200)
            self.end_headers()
            self.wfile.write(said if isinstance(said, bytes) else json.dumps(said).encode())

        def log_message(self, *_):
            pass
    replay = ThreadingHTTPServer(("127.0.0.1", 0), Replay)
    replay.url = f"http://127.0.0.1:{replay.server_port}"
    threading.Thread(target=replay.serve_forever, args=[0.01], daemon=True).start()
    yield replay
    replay.shutdown()
    replay.server_close()


def test_reviews_from_pubmed_central(server, tmp_path, monkeypatch):
    monkeypatch.delenv("NCBI_API_KEY", raising=False)
    articles = {"1": ("Drusen: a review", 2020, "by"), "2": ("Drusen", 2020, "by-nc"), "3": ("Drusen", 2025, "by"),
                "4": ("Lunch", 2020, "by")}

    def answer(path, query):
        if "esearch" in path:
            listed = "".join(f"<Id>{number}</Id>" for number in articles)
            return f"<eSearchResult>{listed}</eSearchResult>".encode() if '"Drusen"' in query["term"] else 500
        if "prefix" in query:
            return f"<ListBucketResult><Prefix>{query['prefix']}1/</Prefix></ListBucketResult>".encode()
        return {} if "metadata" in path else JATS.format(*articles[Path(path).name[3]]).encode()
    server.answer = answer
    service = pmc.Ncbi(pmc.Client(tmp_path, per_second=1000, pause=0.001, tries=1), server.url, server.url)
    found, section = sources.pmc_articles(["Drusen", "PDR"], service), "Diagnosis > Fluorescein angiography"
    assert found.passages == [(f"PMC1#{section}", "Drusen", section, ["FFA"], "Dye leaks.\nLate.",
                               ["Drusen: a review. PMC1, 2020. Licence: CC BY."])]
    assert [problem.file + problem.reason[:34] for problem in found.problems] == [
        "PMC2licence CC BY-NC; accepted: CC BY,", "PMC3published 2025-12-31, the cut-off ",
        "PMC4neither the title nor a heading ab", "PDR" + f"{server.url}/esearch.fcgi gives"[:34]]


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded answers are not beside this checkout")
def test_recorded_articles():
    article = pmc.xml((RECORDED / "pmc_jats/journal.pone.0152025.xml").read_bytes(), "article")
    assert "\n# Materials and Methods\n\n## Animals\n\n" in sources._jats(article.find(".//body"))
