"What the chapters promise as a whole: their table, their links, their order. Written by hand."

import json
import posixpath
import re
import tomllib
from pathlib import Path

import pytest
from test_package import ROOT, tracked

from tav_nb.utils.contents import MARK, exported_module, notebooks_below, read_contents, read_notebook, write_contents
from tav_nb.utils.course import chapter_form
from tav_nb.utils.glossary import read_glossary, write_glossary

NBS = ROOT / "nbs"
CONTENTS = read_contents(NBS)
NOTEBOOKS = {path: read_notebook(NBS / path) for path in ["index.ipynb", *notebooks_below(NBS)]}


def texts(notebook):
    "`(cell, kind, text)` of the sources and of the printed outputs of a notebook"
    for number, cell in enumerate(notebook["cells"]):
        yield number, cell["cell_type"], "".join(cell["source"])
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            for text in [output.get("text", ""), *(data[kind] for kind in data if kind.startswith("text/"))]:
                yield number, "output", "".join(text)


def test_every_notebook_stands_in_the_table_and_the_table_has_no_other():
    assert {chapter.path for chapter in CONTENTS.chapters} == NOTEBOOKS.keys() - {"index.ipynb"}
    for group in CONTENTS.groups:
        for chapter in group.chapters:
            if group.package:
                module = exported_module(NOTEBOOKS[chapter.path])
                assert chapter.name == module.replace(".", "_").strip("_"), f"{chapter.path} exports {module}"
                assert module.partition(".")[0] in (group.package, "__main__"), f"{chapter.path} is in another package"


def test_headings_and_contents_are_those_of_the_table(tmp_path):
    nbs = tmp_path / "nbs"
    for path, notebook in [*NOTEBOOKS.items(), ("contents.toml", None), ("../settings.ini", None)]:
        (nbs / path).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(notebook) if notebook else (NBS / path).read_text(encoding="utf-8")
        (nbs / path).write_text(text, encoding="utf-8")
    assert not write_contents(nbs), "run `make readme`"
    for path, notebook in NOTEBOOKS.items():
        marked = ["".join(cell["source"]).count(MARK) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
        assert sum(marked) == 1 and (path == "index.ipynb" or marked[0] == 1), path


def slug(heading):
    "The anchors that JupyterLab and GitHub give to a heading"
    text = re.sub(r"\[([^]]*)\]\([^)]*\)|`", lambda match: match[1] or "", heading).strip()
    return {text.replace(" ", "-"), re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")}


def anchors(path):
    "Anchors of the headings in a notebook or a markdown file"
    if path.suffix == ".ipynb":
        cells = [cell for cell in read_notebook(path)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    else:
        text = path.read_text(encoding="utf-8")
    return set().union(*map(slug, re.findall(r"^#+ (.+)$", text, re.M)), {""})


def broken_links(path, text):
    "Relative links in the markdown of a file of the repository that lead to no file or to no heading"
    code = re.sub(r"^```.*?^```|`[^`\n]*`(?!\])", "", text, flags=re.M | re.S)
    for target in re.findall(r'\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"', code):
        name, _, anchor = "".join(target).partition("#")
        if re.match(r"[a-z]+:|//|attachment:", name + ":" * name.startswith("data")):
            continue
        place = Path(posixpath.normpath((path.parent / name).as_posix())) if name else path
        if not place.exists() or place.suffix in (".ipynb", ".md") and anchor not in anchors(place):
            yield "".join(target)


def test_relative_links_resolve():
    found = {}
    beside = {path.name: read_notebook(path) for path in NBS.glob("*.ipynb")}
    for path, notebook in (NOTEBOOKS | beside).items():
        for number, kind, text in texts(notebook):
            if kind == "markdown" and (broken := list(broken_links(NBS / path, text))):
                found[f"{path}, cell {number}"] = broken
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md"]:
        if broken := list(broken_links(path, path.read_text(encoding="utf-8"))):
            found[path.name] = broken
    assert not found, found


def test_a_link_to_nothing_is_found():
    text = "[a](04_gone.ipynb) [b](../index.ipynb#Contents) [c](../index.ipynb#Nothing) `[d](e)` [f](https://g.h)"
    assert list(broken_links(NBS / "2_method" / "x.ipynb", text)) == ["04_gone.ipynb", "../index.ipynb#Nothing"]


def test_paths_of_notebooks_in_other_files_exist():
    "Such as `nbs/<part>/<chapter>.ipynb` in CONTRIBUTING.md"
    folders = "|".join({group.folder for group in CONTENTS.groups})
    found = []
    for path in tracked():
        if path.suffix in (".py", ".md", ".toml", ".yml", ""):
            text = path.read_text(encoding="utf-8", errors="replace")
            targets = re.findall(rf"\bnbs/(?:{folders})/\w+\.ipynb", text)
            found += [f"{path.name}: {target}" for target in targets if not (ROOT / target).exists()]
    assert not found, found


def numbered_references(text):
    'Places such as "chapter 12", also over the end of a line, a comment or a string'
    joined = re.sub(r"\"\s*\n\s*f?\"|'\s*\n\s*f?'|\n\s*#?", " ", text)
    return re.findall(r"\bchapters?\s+(?:no\.?\s+)?\d+[^.,;)]*", joined, re.I)


def text_files():
    "`(name, text)` of every cell, printed output and text file that is written by hand"
    for path, notebook in NOTEBOOKS.items():
        for number, _, text in texts(notebook):
            yield f"{path}, cell {number}", text
    for path in tracked():
        if (
            path.suffix in (".py", ".md", ".toml", ".yml", ".json", ".ini", ".html", ".js", "")
            and path.stat().st_size < 2e6
        ):
            if path != Path(__file__):
                yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8", errors="replace")


def test_no_text_names_a_chapter_by_its_number():
    "A chapter that is inserted would change it: a link with the title does not change, nor does the title in quotes"
    found = {name: numbers for name, text in text_files() if (numbers := numbered_references(text))}
    assert not found, found


def test_titles_in_quotes_are_titles():
    titles = {chapter.title for chapter in CONTENTS.chapters}
    found = {
        f"{name}: {title}"
        for name, text in text_files()
        for title in re.findall(r"\bchapter ['\"]([A-Z][^'\"\n]*)['\"]", text)
        if title not in titles
    }
    assert not found, found


@pytest.mark.parametrize(
    "text, count",
    [
        ("as in Chapter 12.", 1),
        ("chapters 3 and 4", 1),
        ("# chapter\n    # 07 has it", 1),
        ('"(chapter"\n    " 16)"', 1),
        ("each chapter has 12 cells; the chapter 'CUDA graphs'", 0),
    ],
)
def test_numbered_references_are_found(text, count):
    assert len(numbered_references(text)) == count


def plain(text):
    "Text in which spaces, hyphens and underscores are the same"
    return re.sub(r"[-_\s]+", " ", text.lower())


def test_terms_are_sorted_and_stand_in_their_chapters(tmp_path):
    terms = read_glossary(NBS)
    names = [term.term.lower() for term in terms]
    assert names == sorted(set(names)) and len(terms) >= 50
    for term in terms:
        text = " ".join(text for _, kind, text in texts(NOTEBOOKS[CONTENTS[term.chapter].path]) if kind != "output")
        assert plain(term.words or term.term) in plain(text), f"{term.term} does not occur in {term.chapter}"
        assert term.meaning.endswith(".") and "\n" not in term.meaning, term
    for name in ("contents.toml", "glossary.toml", "index.ipynb", "glossary.ipynb"):
        (tmp_path / name).write_bytes((NBS / name).read_bytes())
    assert not write_glossary(tmp_path), "run `make readme`"


def test_chapters_need_only_chapters_before_them():
    for chapter in CONTENTS.numbered:
        after = [name for name in chapter.needs if not (CONTENTS[name].number or 0) < chapter.number]
        internals = [name for name in chapter.needs if not CONTENTS[name].number]
        assert not after and not internals, f"{chapter.path} needs {after + internals}"


def code_cells(notebook):
    "`(number, source, story)` of code cells; those that are exported or belong to tests are not of the story"
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            yield number, source, not re.search(r"^#\| (export|test|setup)\b", source, re.M)


def test_cells_of_the_story_are_not_wider_than_a_page():
    "Exported cells and tests have ruff's 120 columns, comments and texts included"
    found = []
    for path, notebook in NOTEBOOKS.items():
        for number, source, story in code_cells(notebook):
            wide = max(map(len, source.splitlines()), default=0)
            if wide > (100 if story and re.match(r"\d_\w+/\d", path) else 120):
                found.append(f"{path}, cell {number}: {wide} columns")
    assert not found, found


def test_tables_in_outputs_are_not_wider_than_a_page():
    "A row of a table has at least four columns, with two spaces or more between them"
    found = []
    for path, notebook in NOTEBOOKS.items():
        for number, cell in enumerate(notebook["cells"]):
            lines = "".join("".join(output.get("text", "")) for output in cell.get("outputs", [])).splitlines()
            rows = [line for line in lines if len(re.findall(r"\S {2,}(?=\S)", line)) >= 3 and not line.startswith("#")]
            if wide := max((len(row) for row in rows if len(row) > 100), default=0):
                found.append(f"{path}, cell {number}: {wide} columns")
    assert not found, found


SMALL = r"fontsize=[0-8]\b|labelsize=[0-8]\b|font\.size\W+[0-8]\b|\bdpi=\d|figsize=\(([7-9]|\d\d)"


def test_figures_keep_the_size_and_the_text_of_the_style():
    "No text below nine points, no figure wider than the page, and none that is kept outside the style"
    found = []
    for path, notebook in NOTEBOOKS.items():
        sources = [source for _, source, _ in code_cells(notebook)]
        drawn = [n for n, cell in enumerate(notebook["cells"]) if "<Figure size" in json.dumps(cell.get("outputs", []))]
        if drawn and not any("use_style()" in source for source in sources):
            found.append(f"{path} has figures without use_style()")
        for number, source, _ in code_cells(notebook):
            if match := re.search(SMALL, source):
                found.append(f"{path}, cell {number}: {match[0]}")
    assert not found, found


@pytest.mark.parametrize("name", [chapter.name for chapter in CONTENTS.numbered])
def test_chapters_have_the_form_of_the_course(name):
    chapter = CONTENTS[name]
    assert not chapter_form(NOTEBOOKS[chapter.path], chapter, CONTENTS).faults


def test_chapters_read_records_through_one_function_and_say_when_weights_were_others():
    from tav_nb.evaluation.records import other_weights

    records = {path.stem: json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert all("weights" in record for record in records.values())
    old = {name for name, record in records.items() if other_weights(record)}
    for path, notebook in NOTEBOOKS.items():
        code = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
        direct = re.search(r"json\.loads?\([^\n]*benchmarks/results", code)
        assert not direct, f"{path}: {direct[0] if direct else ''}; read_record reads a record"
        used = {name for name in old if re.search(rf"results/{name}\.json|\"{name}\.json\"", code)}
        said = set(re.findall(r"(\w+)\.json: Recorded with earlier weights", json.dumps(notebook)))
        assert used <= said, f"{path}: {used - said} were recorded with earlier weights; execute the chapter"


def test_the_readme_has_the_number_of_updates_of_the_preset():
    preset = tomllib.loads((ROOT / "tav_nb" / "presets" / "a100-20gb-768.toml").read_text(encoding="utf-8"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"its {preset['steps']:,} updates" in text and f"seconds_an_update * {preset['steps']} / 3600" in text
