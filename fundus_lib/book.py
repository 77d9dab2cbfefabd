"""The executed notebooks of a run as web pages with an index: python -m fundus_lib.book --profile cpu"""

import argparse
import html
import sys

import nbformat

from fundus_lib import runs

PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 17px/1.5 sans-serif; max-width: 46em; margin: 2em auto; padding: 0 1em }} li {{ margin: .8em 0 }}
small {{ color: #555 }}</style>
<h1>{title}</h1><p>Not for clinical use. Commit {commit}, {device}.</p><ul>{items}</ul>"""


def write(first: runs.Stage) -> str:
    """A page for every finished stage of the run into its folder `book`, and index.html, whose path is returned.
    RunError when nothing is finished. What is not finished, or stale, is in the index with the word that says so."""
    from nbconvert import HTMLExporter
    stages = sorted(map(first.of, runs.STAGES), key=lambda stage: stage.notebook.name)
    folder, items = first.folder.parent / "book", []
    if not (finished := [stage.manifest for stage in stages if stage.manifest]):
        raise runs.RunError(f"{first.folder.parent} has no finished stage\n  make reproduce PROFILE={first.profile}")
    folder.mkdir(exist_ok=True)
    for stage in stages:
        state, facts = stage.state()[0], stage.manifest
        title, question = nbformat.read(stage.notebook, as_version=4).cells[0].source.splitlines()[:2]
        title = html.escape(title.lstrip("# ")) + (": the generic model" if stage.name == "base_model" else "")
        if facts:
            page, _ = HTMLExporter().from_filename(str(stage.folder / "notebook.ipynb"))
            (folder / f"{stage.name}.html").write_text(page, encoding="utf-8")
            title, state = f'<a href="{stage.name}.html">{title}</a>', f"{state}, {facts['seconds'] / 60:.1f} minutes"
        items.append(f"<li>{title}<br>{html.escape(question.strip('*'))}<br><small>{state}</small></li>")
    page = PAGE.format(title=f"Fundus laboratory, profile {first.profile}", items="\n".join(items),
                       commit=html.escape(finished[-1]["commit"][:12]), device=html.escape(finished[-1]["device"]))
    (folder / "index.html").write_text(page, encoding="utf-8")
    return str(folder / "index.html")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m fundus_lib.book", description=__doc__)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--data", default="")
    chosen = parser.parse_args()
    try:
        print(write(runs.Stage("01_data", chosen.profile, chosen.data)))
    except (runs.RunError, ValueError) as error:
        sys.exit(str(error))
