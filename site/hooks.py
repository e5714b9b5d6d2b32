"""Makes the pages of the site from the notebooks in nbs/, with the outputs that are stored in them. MkDocs calls the
functions called on_...; mkdocs.yml names this file.

A cell becomes Markdown. What Markdown can't hold (outputs, formulas as MathML, the ends of a collapsed section) is a
word such as `tavpiece7x` there, and is put in its place when the page is HTML.

Of an output, its best still form is shown: an animated WebP, an image, Markdown, HTML without scripts, text. The bare
`repr` of a widget or a figure is no output: without an image, one line says where the widget works.
"""

import ast
import base64
import configparser
import html
import itertools
import json
import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif", "image/svg+xml": "svg"}
IMAGE_FILE = re.compile(r"\.(png|jpe?g|webp|gif|svg)$")
WIDGET = "application/vnd.jupyter.widget-view+json"
# what is left of a widget that a notebook is saved without
WIDGET_TEXT = r"<(__main__|tav_nb)\.[\w.]+ object>|\w+\(children=|An interactive widget:"
REPR = re.compile(r"<[\w.]+ (object )?at 0x|<Figure size|<IPython\.core\.display|<[\w.]*Axes|[A-Z]\w+\(children=")
PROGRESS = re.compile(r"^.*\d+%\|.*$\n?", re.M)
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
CODE = re.compile(r"(^(`{3,}|~{3,}).*?^\2`*~*[ \t]*$|(?<!`)(`+)(?!`).+?(?<!`)\3(?!`))", re.M | re.S)
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)((?:\\\$|[^$\n])+?)(?<!\s)\$(?![\d$])", re.S)
LINK = re.compile(r"(\]\(|(?:src|href)=\")(?![a-z]+:|#|/)([^)\"\s#]+)(#[^)\"\s]*)?")
CODE_BLOCK = re.compile(r"(<pre[^>]*>(?:<span></span>)?<code>)(.*?)(</code></pre>)", re.S)
WORD = re.compile(r"<code>([^<\s]{1,28})</code>")
COLUMNS = re.compile(r"\S {2,}\S|[│┃|]")
SETTINGS = {"use_style", "manual_seed", "setNumThreads", "set_num_threads", "filterwarnings"}
NOQA = re.compile(r" *# noqa\b.*$")
LONG_LINE, LONG_CELL = 80, 60  # characters, and lines of exported code
PLACES = re.compile(r"(?:<p>)?tavpiece(\d+)x(?:</p>)?")
NOTES = {
    "long": "takes some seconds",
    "slow": "takes minutes",
    "cuda": "needs a GPU",
}

pieces: dict[str, list[str]] = {}  # HTML of each page, by the path of the page's source


def repository() -> str:
    "The address of the repository: of the one whose workflow runs this, or what settings.ini says"
    if "GITHUB_REPOSITORY" in os.environ:
        return f"{os.environ['GITHUB_SERVER_URL']}/{os.environ['GITHUB_REPOSITORY']}"
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    return settings["DEFAULT"]["repository"]


def page_path(notebook: str) -> str:
    return notebook.removesuffix(".ipynb") + ".md"


def navigation() -> list[dict[str, Any]]:
    "The pages in the order of nbs/contents.toml: home, parts, what has been shown, glossary, internals by package"
    sys.path.insert(0, str(ROOT))  # the package need not be installed
    from tav_nb.utils.contents import read_contents

    sys.path.remove(str(ROOT))
    parts, internals = [{"Home": "index.md"}], []
    numbers = iter(range(1, 100))
    for group in read_contents(NBS).groups:
        pages = [{chapter.heading: page_path(chapter.path)} for chapter in group.chapters]
        if group.package:
            internals.append({f"{group.package}: {group.title}": pages})
        else:
            parts.append({f"{next(numbers)}. {group.title}": pages})
    glossary = [{"Glossary": "glossary.md"}] if (NBS / "glossary.ipynb").exists() else []
    shown = [{"What has been shown": "what_is_shown.md"}]
    return [*parts, *shown, *glossary, {"Internals": internals}]


def notebooks() -> list[str]:
    "The notebooks of the course, below nbs/"
    found = [*NBS.glob("*.ipynb"), *NBS.glob("[!._]*/*.ipynb")]
    return sorted(path.relative_to(NBS).as_posix() for path in found)


def text_of(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def relink(markdown: str, notebook: str, copies: set[str]) -> str:
    """Links of a notebook made for the site: other notebooks are pages, images are copied beside them (`copies` gets
    their paths below the root), and any other file is shown by the repository.
    """

    def replace(match: re.Match) -> str:
        start, path, anchor = match[1], match[2], match[3] or ""
        folder = posixpath.dirname(notebook)
        target = posixpath.normpath(posixpath.join("nbs", folder, path))  # below the root
        if target.startswith("nbs/") and target.endswith(".ipynb"):
            return start + posixpath.relpath(page_path(target[4:]), folder or ".") + anchor
        if IMAGE_FILE.search(target):
            copies.add(target)
            return start + posixpath.relpath(f"files/{target}", folder or ".")
        return f"{start}{repository()}/blob/main/{target}{anchor}"

    return LINK.sub(replace, markdown)


def outside_code(change: Callable[[str], str], markdown: str) -> str:
    "`change` done to the text of Markdown that is no code"
    parts, end = [], 0
    for match in CODE.finditer(markdown):
        parts += [change(markdown[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*parts, change(markdown[end:])])


def imports_alone(code: str) -> bool:
    "Does code only import, and choose settings such as the style of figures?"
    try:
        body = ast.parse(code).body
    except SyntaxError:
        return False

    def harmless(node: ast.stmt) -> bool:
        if isinstance(node, (ast.With, ast.If)):
            return all(isinstance(inner, (ast.Import, ast.ImportFrom)) for inner in node.body)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            return ast.unparse(node.value.func).rpartition(".")[2] in SETTINGS
        return isinstance(node, (ast.Import, ast.ImportFrom))

    return all(map(harmless, body)) and bool(re.search(r"^\s*(import|from) ", code, re.M) or not body)


def defined(code: str) -> list[str]:
    "The names of the public functions and classes in code"
    kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    names = [node.name for node in ast.parse(code).body if isinstance(node, kinds)]
    return [name for name in names if not name.startswith("_")] or names


def wrap_long_lines(page: str) -> str:
    "Long lines of code are broken where the page ends, and go on below their own beginning."

    def wrapped(line: str) -> str:
        text = html.unescape(re.sub(r"<[^>]+>", "", line))
        if len(text) <= LONG_LINE:
            return line
        indent = len(text) - len(text.lstrip()) + 4
        return f'<span class="tav-long" style="--tav-indent:{indent}ch">{line}</span>'

    def block(match: re.Match) -> str:
        return match[1] + "\n".join(map(wrapped, match[2].split("\n"))) + match[3]

    return CODE_BLOCK.sub(block, page)


def mend_anchors(markdown: str) -> str:
    "Links to a heading of the page itself are written as GitHub wants them, in lower case; here its id has capitals."
    headings = re.findall(r"^#+ +(.+)", markdown, re.M)
    ids = [re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in headings]
    known = {name.lower(): name for name in ids}
    return re.sub(r"\]\(#([^)\s]+)\)", lambda match: f"](#{known.get(match[1].lower(), match[1])})", markdown)


def fence(text: str, info: str) -> str:
    "A block of code in Markdown"
    longest = max([2, *map(len, re.findall(r"`{3,}", text))])
    marks = "`" * (longest + 1)
    return f"{marks} {info}\n{text.rstrip()}\n{marks}"


def code_of(cell: dict[str, Any]) -> str:
    "The code of a cell without directives and comments for the linter"
    lines = [line for line in text_of(cell["source"]).split("\n") if not line.startswith("#|")]
    return "\n".join(NOQA.sub("", line) for line in lines).strip("\n")


def imports_or_nothing(cell: dict[str, Any]) -> bool:
    "Does the page lose nothing if this cell is collapsed with its neighbours?"
    return cell["cell_type"] == "code" and not cell["outputs"] and imports_alone(code_of(cell))


def joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    "Outputs, of which printed text that follows printed text is one"
    found: list[dict[str, Any]] = []
    for output in outputs:
        if found and output["output_type"] == found[-1]["output_type"] == "stream":
            found[-1] = found[-1] | {"text": text_of(found[-1]["text"]).rstrip("\n") + "\n" + text_of(output["text"])}
        else:
            found.append(output)
    return found


class Converter:
    "One notebook as Markdown; afterwards it has the pieces of HTML, the images and the files that the page needs."

    def __init__(self, notebook: dict[str, Any], path: str):
        self.notebook, self.path = notebook, path
        self.stem = posixpath.splitext(path)[0]
        self.module = None
        self.pieces: list[str] = []
        self.images: dict[str, bytes] = {}  # by path on the site
        self.copies: set[str] = set()
        self.section: tuple[int, int, str] | None = None  # of the open collapsed section: level, piece, title
        self.tests = 0  # in that section

    def piece(self, text: str) -> str:
        self.pieces.append(text)
        return f"tavpiece{len(self.pieces) - 1}x"

    def fold(self, summary: str) -> str:
        "The start of a collapsed part; `</details>` ends it"
        return self.piece(f'<details class="tav-code"><summary>{summary}</summary>')

    def markdown(self) -> str:
        blocks = []
        for imports, group in itertools.groupby(self.notebook["cells"], imports_or_nothing):
            cells = list(group)
            found = [block for cell in cells for block in self.cell(cell)]
            if imports and sum(block.count("\n") - 1 for block in found) > 3:
                found = [self.fold("Imports"), *found, self.piece("</details>")]
            blocks += found
        return "\n\n".join([*blocks, *self.close_section()]) + "\n"

    def cell(self, cell: dict[str, Any]) -> Iterator[str]:
        source = text_of(cell["source"])
        if cell["cell_type"] == "markdown":
            yield from self.markdown_cell(cell, source)
        elif cell["cell_type"] == "code":
            yield from self.code_cell(cell, source)

    def markdown_cell(self, cell: dict[str, Any], source: str) -> Iterator[str]:
        heading = re.match(r"(#+) +(.+)", source)
        if heading and self.section and len(heading[1]) <= self.section[0]:
            yield from self.close_section()
        if heading and cell["metadata"].get("jp-MarkdownHeadingCollapsed"):
            yield from self.close_section()
            level, title = len(heading[1]), heading[2]
            if level < 3:
                yield heading[0]
            self.tests, source = 0, source[heading.end() :]
            self.section = level, len(self.pieces), title
            yield self.piece("")
        yield self.text(source)

    def close_section(self) -> Iterator[str]:
        if self.section:
            level, opening, title = self.section
            count = f"Show {self.tests} test{'s' if self.tests != 1 else ''}"
            summary = html.escape(title) if level > 2 else count if self.tests else "Show"
            self.pieces[opening] = f'<details class="tav-section"><summary>{summary}</summary>'
            self.section = None
            yield self.piece("</details>")

    def text(self, source: str) -> str:
        "Markdown of the notebook as Markdown of the site"
        source = outside_code(lambda text: FORMULA.sub(self.formula, text), source)
        source = re.sub(r"^<details>", '<details markdown="1">', source, flags=re.M)
        return outside_code(lambda text: relink(text, self.path, self.copies), source)

    def formula(self, match: re.Match) -> str:
        from latex2mathml.converter import convert

        block = match[1] is not None
        token = self.piece(convert((match[1] or match[2]).strip(), display="block" if block else "inline"))
        return f"\n\n{token}\n\n" if block else token

    def code_cell(self, cell: dict[str, Any], source: str) -> Iterator[str]:
        lines = source.split("\n")
        directives = dict(
            re.match(r"#\|\s*(\w+)\s*(.*)", line).groups() for line in lines if re.match(r"#\|\s*\w", line)
        )
        code = code_of(cell)
        self.module = directives.get("default_exp", self.module)
        if "hide" in directives:
            return
        self.tests += "test" in directives
        if code:
            title, summary = self.title(directives).replace('"', "'"), ""
            if cell["metadata"].get("jupyter", {}).get("source_hidden"):
                summary = "Code of this cell"
            elif not self.section and title.startswith("tav_nb/") and code.count("\n") >= LONG_CELL:
                names = ", ".join(f"<code>{html.escape(name)}</code>" for name in defined(code)[:4])
                summary = f"{names}: {code.count(chr(10)) + 1} lines of {title}".removeprefix(": ")
            if summary:
                yield self.fold(summary)
            yield fence(code, f'{{ .python title="{title}" }}' if title else "python")
            if summary:
                yield self.piece("</details>")
        for number, output in enumerate(joined(cell["outputs"])):
            yield from self.output(output, f"{self.stem}/{cell['id']}-{number}")

    def title(self, directives: dict[str, str]) -> str:
        "The line above the code of a cell, which its directives give"
        notes = ", ".join(note for name, note in NOTES.items() if name in directives)
        if "test" in directives:
            claim = re.sub(r"^the solution of exercise \d+: ", "", directives["test"])
            return f"Test: {claim}" + f" ({notes})" * bool(notes)
        if {"export", "exporti", "exports"} & directives.keys():
            return f"tav_nb/{str(self.module).replace('.', '/')}.py"
        if "setup" in directives:
            return "Also used by the tests"
        return notes[:1].upper() + notes[1:]

    def output(self, output: dict[str, Any], name: str) -> Iterator[str]:
        "The best still form of an output; `name` is for an image's file"
        data = {
            kind: text_of(value) for kind, value in output.get("data", {}).items() if isinstance(value, (str, list))
        }
        text = text_of(output.get("text", data.get("text/plain", "")))
        if output["output_type"] == "error":
            text = "\n".join(output["traceback"]) or f"{output['ename']}: {output['evalue']}"
        page, kind = data.get("text/html", ""), next((kind for kind in IMAGES if kind in data), None)
        widget = WIDGET in output.get("data", {}) or bool(re.match(WIDGET_TEXT, text))
        if "data:image/webp" in page:
            yield self.block(page)
        elif kind:
            yield self.image(kind, data[kind], output.get("metadata", {}).get(kind, {}).get("width"), name, widget)
        elif "text/markdown" in data:
            yield from (self.piece('<div class="tav-output">'), self.text(data["text/markdown"]), self.piece("</div>"))
        elif page and not re.search(r"<(script|iframe)", page):
            yield self.block(page)
        elif widget:
            yield self.block(
                "<p class='tav-note'>An interactive widget: it works when the chapter runs in JupyterLab.</p>"
            )
        elif (text := self.plain(text)) and not REPR.match(text):
            kind = ' class="tav-prose"' * (not COLUMNS.search(text))
            yield self.block(f"<pre{kind}>{html.escape(text)}</pre>")

    def plain(self, text: str) -> str:
        "Text of an output as a terminal would leave it, without progress bars"
        text = re.sub(r"^.*\r(?!\n)", "", ESCAPES.sub("", text), flags=re.M)
        return PROGRESS.sub("", text).rstrip()

    def block(self, text: str) -> str:
        return self.piece(f'<div class="tav-output">{text}</div>')

    def image(self, kind: str, data: str, width: int | None, name: str, widget: bool) -> str:
        path = f"{name}.{IMAGES[kind]}"
        self.images[path] = data.encode() if kind.endswith("xml") else base64.b64decode(data)
        address = html.escape(posixpath.relpath(path, posixpath.dirname(self.path) or "."))
        size = f' width="{width}"' if width else ""
        note = (
            "<p class='tav-note'>A still picture of a widget: it moves when the chapter runs in JupyterLab.</p>"
            if widget
            else ""
        )
        return self.block(f'<img alt="what the code above draws" src="{address}"{size}>{note}')


def front_matter(notebook: dict[str, Any], path: str) -> str:
    "What MkDocs reads at the top of a page: its description, and that internals are found after chapters"
    first = text_of(notebook["cells"][0]["source"]) if notebook["cells"] else ""
    promise = re.search(r"^> (.+)", first, re.M)
    described = {"description": promise[1].replace("`", "")} if promise else {}
    weight = {"search": {"boost": 0.5}} if path.startswith("internals/") else {}
    return f"---\n{json.dumps(described | weight, ensure_ascii=False)}\n---\n\n"


def on_config(config: "MkDocsConfig") -> "MkDocsConfig":
    config.nav = navigation()
    icon = {"icon": "fontawesome/brands/github", "link": repository(), "name": "The repository"}
    config.extra["social"] = [icon]
    return config


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    "Adds a page for each notebook, the images of their outputs, and the image files that they show."
    from mkdocs.structure.files import File

    copies = set()
    for path in notebooks():
        notebook = json.loads((NBS / path).read_text(encoding="utf-8"))
        converter = Converter(notebook, path)
        text = front_matter(notebook, path) + mend_anchors(converter.markdown())
        files.append(File.generated(config, page_path(path), content=text))
        for name, data in converter.images.items():
            files.append(File.generated(config, name, content=data))
        pieces[page_path(path)] = converter.pieces
        copies |= converter.copies
    for path in sorted(copies):
        files.append(File.generated(config, f"files/{path}", content=(ROOT / path).read_bytes()))
    return files


def on_page_content(text: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    found = pieces[page.file.src_uri]
    text = WORD.sub(r'<code class="tav-word">\1</code>', wrap_long_lines(text))
    return PLACES.sub(lambda match: found[int(match[1])], text)
