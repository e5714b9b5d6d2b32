"""The static site: `make site`. Written by hand.

Most tests need no more than the notebooks. Those marked `browser` build the site and look at it in Chromium without a
network; `make test-browser` runs them, and TAV_SHOTS=FOLDER keeps screenshots there.
"""

import functools
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import types

import pytest
from test_browser import ARGS, NAMES
from test_package import ROOT

CHAPTERS = ["temporal_attention", "noise", "scheduler", "metrics"]  # the chapters that the browser opens

BROKEN = "[...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src)"


def load_hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "site" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load_hooks()


@pytest.fixture
def formulas(monkeypatch):
    "A stand-in for the package that makes MathML"
    converter = types.SimpleNamespace(convert=lambda formula, display: f"<math {display}>{formula}</math>")
    monkeypatch.setitem(sys.modules, "latex2mathml", types.SimpleNamespace(converter=converter))
    monkeypatch.setitem(sys.modules, "latex2mathml.converter", converter)


def leaves(entries):
    for entry in entries:
        for target in entry.values():
            yield from leaves(target) if isinstance(target, list) else [target]


def test_the_navigation_has_every_notebook_once():
    pages = list(leaves(hooks.navigation()))
    assert sorted(pages) == sorted(map(hooks.page_path, hooks.notebooks())) and len(pages) > 80
    titles = [title for entry in hooks.navigation() for title in entry]
    assert titles[0] == "Home" and titles[1] == "1. First video" and titles[-1] == "Internals"


LOAD = """
import importlib.util, sys
before = list(sys.path)
spec = importlib.util.spec_from_file_location("hooks", sys.argv[1])
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)
sys.path[:] = before  # as MkDocs does
hooks.navigation()
"""


def test_the_navigation_needs_no_installed_package():
    subprocess.run([sys.executable, "-I", "-S", "-c", LOAD, str(ROOT / "site" / "hooks.py")], check=True)


def markdown(source, **metadata):
    return {"cell_type": "markdown", "id": "m", "metadata": metadata, "source": source}


def code(source, *outputs, **metadata):
    return {"cell_type": "code", "id": "c", "metadata": metadata, "source": source, "outputs": list(outputs)}


def result(**data):
    data = {kind.replace("_", "/", 1): value for kind, value in data.items()}
    return {"output_type": "execute_result", "data": data, "metadata": {}}


def convert(*cells):
    "The page of some cells, with the pieces of HTML in their places, and the converter"
    converter = hooks.Converter({"cells": list(cells)}, "2_method/05_noise.ipynb")
    text = converter.markdown()
    return hooks.PLACES.sub(lambda match: converter.pieces[int(match[1])], text), converter


def test_directives_become_titles_or_disappear():
    page, _ = convert(
        code("#| default_exp sampling.noise"),
        code("#| hide\nsecret()"),
        code("#| export\ndef draw(): ..."),
        code("#| test noise has variance 1\n#| slow\nassert True"),
        code("#| setup\nshade = 1"),
        code("#| test the solution of exercise 1: it is less\nassert 1"),
        code("#| notest\ntrain()"),
        code("draw()"),
    )
    assert page.count("```") == 12 and "#|" not in page and "secret" not in page
    titles = ["tav_nb/sampling/noise.py", "Test: noise has variance 1 (takes minutes)", "Also used by the tests"]
    titles += ["Test: it is less"]
    assert re.findall('title="(.*)"', page) == titles


def test_a_collapsed_section_ends_where_the_next_heading_of_its_level_begins():
    folded = {"jp-MarkdownHeadingCollapsed": True}
    page, _ = convert(
        markdown("## Exercises"),
        markdown("### Exercise 1: halve it"),
        markdown("#### Solution", **folded),
        code("half()"),
        markdown("### Exercise 2: double it"),
        markdown("## Checks\n\nOf the whole chapter.", **folded),
        code("#| test one\nassert 1"),
        code("#| test two\nassert 2"),
    )
    order = [
        "1: halve",
        "<details",
        ">Solution<",
        "half()",
        "</details>",
        "2: double",
        "## Checks",
        "<details",
        "2 tests",
    ]
    order += ["Of the whole", "assert 1", "assert 2", "</details>"]
    places = [0]
    for text in order:
        places.append(page.index(text, places[-1]))
    assert page.count("<details") == page.count("</details>") == 2 and "#### Solution" not in page


def test_code_that_is_folded_and_long_imports_are_collapsed_and_outputs_are_not():
    page, _ = convert(
        code("import a\nimport b\nfrom c import (\n    d\n)"),
        code("draw()", result(text_plain="drawn"), jupyter={"source_hidden": True}),
        code("import e"),
    )
    assert re.findall("<summary>(.*)</summary>", page) == ["Imports", "Code of this cell"]
    assert page.index("draw()") < page.rindex("</details>") < page.index("drawn") < page.index("import e")


def test_imports_that_follow_each_other_are_one_collapsed_part():
    page, _ = convert(
        code("#| default_exp sampling.noise"),
        code("#| export\nimport a\n\nwith quiet():\n    from b import c"),
        code("#| setup\nimport e"),
        code("from f import use_style\n\nuse_style()\ntorch.manual_seed(0);"),
        code("import g\n\ng.draw()"),
    )
    order = [
        "<summary>Imports",
        "tav_nb/sampling/noise.py",
        "import a",
        "import e",
        "use_style()",
        "</details>",
        "g.draw",
    ]
    assert [page.index(text) for text in order] == sorted(page.index(text) for text in order)
    assert page.count("<details") == page.count("</details>") == 1


def test_a_long_cell_of_exported_code_is_collapsed_and_its_names_are_shown():
    long = "def draw():\n" + "    pass\n" * 80 + "def _part(): ..."
    page, _ = convert(code("#| default_exp sampling.noise"), code(f"#| export\n{long}"), code(long))
    assert re.findall("<summary>(.*)</summary>", page) == ["<code>draw</code>: 82 lines of tav_nb/sampling/noise.py"]


def test_long_lines_of_code_are_broken_and_the_rest_is_as_it_was():
    line, short = "    return <b>x</b> &lt; " + 70 * "y", "def f():"
    page = f"<p>{line}</p><pre><span></span><code>{short}\n{line}\n</code></pre>"
    wrapped = f'<span class="tav-long" style="--tav-indent:8ch">{line}</span>'
    assert hooks.wrap_long_lines(page) == page.replace(f"\n{line}", f"\n{wrapped}")


def test_links_in_lower_case_lead_to_the_headings_of_their_page():
    page = "## Change it: how?\n\n[a](#change-it-how) [b](#other) [c](x.md#change-it-how)"
    assert hooks.mend_anchors(page) == page.replace("(#change-it-how)", "(#Change-it-how)")


def test_printed_text_that_follows_printed_text_is_one_output_and_prose_is_broken():
    def printed(text):
        return {"output_type": "stream", "name": "stdout", "text": text}

    page, _ = convert(code("a", printed("one\n"), printed("two\n")), code("b", printed("x   1\ny   2")))
    assert re.findall("(?s)<pre.*?</pre>", page) == ['<pre class="tav-prose">one\ntwo</pre>', "<pre>x   1\ny   2</pre>"]


def test_links_lead_to_pages_to_copies_of_images_and_to_the_repository():
    page, converter = convert(
        markdown("[a](../index.ipynb#Contents) [b](06_scheduler.ipynb) `[c](d.ipynb)`"),
        markdown("[e](https://f.g/h.ipynb) ![i](../x.webp)"),
        markdown("[j](../../tav_nb/cli.py)\n\n```\n[k](l.ipynb)\n```"),
    )
    assert "[a](../index.md#Contents) [b](06_scheduler.md) `[c](d.ipynb)`\n\n[e](https://f.g/h.ipynb)" in page
    assert "![i](../files/nbs/x.webp)" in page and converter.copies == {"nbs/x.webp"} and "[k](l.ipynb)" in page
    assert f"[j]({hooks.repository()}/blob/main/tav_nb/cli.py)" in page


def test_formulas_become_mathml_and_prices_and_code_do_not(formulas):
    page, _ = convert(markdown("With $x_1 < 2$, $$y$$ `$z$` for $5 or $6.\n\n```\n$a$\n```"))
    assert re.findall("<math.*?</math>", page) == ["<math inline>x_1 < 2</math>", "<math block>y</math>"]
    assert "`$z$` for $5 or $6." in page and "\n$a$\n" in page


def test_the_best_still_form_of_an_output_is_shown():
    loop = result(text_html='<img src="data:image/webp;base64,AA">', image_png="iVBO", text_plain="a loop")
    still = result(image_png="iVBO", text_plain="<Figure size 1x1>")
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "VBox(children=(Play(),))"}
    bare = {"output_type": "display_data", "data": widget, "metadata": {}}
    progress = {"output_type": "stream", "name": "stderr", "text": "  0%|   | 0/2\r 50%|#  | 1/2\n"}
    page, converter = convert(
        code("a", loop),
        code("b", still),
        code("c", bare),
        code("d", result(text_plain="<Figure size 10x10 with 1 Axes>")),
        code("e", result(text_plain="tensor([1 < 2])"), progress),
        code("f", result(text_html="<script>run()</script>", text_plain="7")),
    )
    assert "data:image/webp" in page and 'src="05_noise/c-0.png"' in page
    assert list(converter.images) == ["2_method/05_noise/c-0.png"]
    assert "works when the chapter runs in JupyterLab" in page and "VBox" not in page
    assert "Figure" not in page and "%|" not in page and "<script" not in page
    assert re.findall("<pre.*>(.*)</pre>", page) == ["tensor([1 &lt; 2])", "7"]


@pytest.mark.parametrize(
    "text",
    [
        "<__main__.FrameScrubber object>",
        "<tav_nb.evaluation.widgets.FrameScrubber object>",
        "interactive(children=(IntSlider(),))",
        "An interactive widget: it works when the chapter runs in JupyterLab.",
    ],
)
def test_a_widget_that_was_dropped_is_known_by_its_text(text):
    page, _ = convert(code("a", result(text_plain=text)), code("b", result(image_png="iVBO", text_plain=text)))
    assert page.count(">An interactive widget: it works") == page.count(">A still picture of a widget") == 1
    assert "<pre" not in page


def test_no_page_shows_the_bare_repr_of_a_widget_or_a_directive(formulas):
    for path in hooks.notebooks():
        converter = hooks.Converter(json.loads((ROOT / "nbs" / path).read_text(encoding="utf-8")), path)
        text = converter.markdown()
        if path != "internals/utils_notebook_tests.ipynb":  # it is about them
            assert not re.search(r"^#\| ?(export|test|setup|default_exp)", text, re.M), path
        outputs = [piece for piece in converter.pieces if "<pre" in piece]
        assert not [piece for piece in outputs if re.search(r"children=\(|object at 0x|<pre[^>]*>&lt;Figure", piece)], (
            path
        )
        opened = sum(piece.startswith("<details") for piece in converter.pieces)
        assert opened == converter.pieces.count("</details>"), path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The folder of the built site"
    pytest.importorskip("material", reason="MkDocs is not installed: pip install -c constraints.txt -e '.[site]'")
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", "site/mkdocs.yml"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [*command, "--site-dir", str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def served(built):
    "The site's address on this machine"
    handler = functools.partial(Handler, directory=str(built))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(tmp_path, request):
    "A page of a headless browser that reaches this machine alone; an error or a failed request is a failure"
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if not browser:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=browser, headless=True, args=ARGS
        )
        faults = []

        def local(route):
            if re.match(r"http://127\.0\.0\.1:|file:|data:|blob:", route.request.url):
                return route.continue_()
            faults.append(f"it wants {route.request.url}")
            route.abort()

        context.route("**/*", local)
        page = context.pages[0]
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("response", lambda answer: faults.append(f"{answer.status} {answer.url}") if not answer.ok else None)
        yield page
        context.close()
        assert not faults, faults


def shoot(page, name):
    if folder := os.environ.get("TAV_SHOTS"):
        os.makedirs(folder, exist_ok=True)
        page.screenshot(path=f"{folder}/site-{name}.png")


def address_of(name):
    pages = [path for path in leaves(hooks.navigation()) if re.search(rf"/\d+_{name}\.md$", path)]
    return pages[0].removesuffix(".md") + ".html"


@pytest.mark.browser
def test_pages_fit_the_window_in_both_colours_without_a_network(served, page):
    for path in ["index.html", *map(address_of, CHAPTERS)]:
        for width in (700, 1280):
            for scheme in ("light", "dark"):
                page.set_viewport_size(dict(width=width, height=1000))
                page.emulate_media(color_scheme=scheme)
                page.goto(f"{served}/{path}", wait_until="networkidle")
                shoot(page, f"{path.rpartition('/')[2].removesuffix('.html')}-{width}-{scheme}")
                assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{path} is too wide"
                colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
                brightness = sum(map(int, re.findall(r"\d+", colour)[:3]))
                assert (brightness > 600) == (scheme == "light"), colour
                assert not page.evaluate(BROKEN)
                assert not page.evaluate("document.body.innerText.match(/tavpiece|VBox\\(|^#\\|/m)")


@pytest.mark.browser
def test_formulas_links_and_long_lines_of_code(served, page):
    page.set_viewport_size(dict(width=700, height=1000))
    page.goto(f"{served}/{address_of('noise')}")
    assert page.locator("math").count() > 10 and page.locator("math[display=block]").first.bounding_box()["height"] > 15
    wide = "[...document.querySelectorAll('pre > code')].some(code => code.scrollWidth > code.clientWidth)"
    assert not page.evaluate(wide), "long lines of code are broken"
    lines = "[...document.querySelectorAll('.tav-long')].map(line => line.getBoundingClientRect().height)"
    assert max(page.evaluate(lines)) > 25
    assert page.evaluate(
        "[...document.querySelectorAll('code.tav-word')].every(word => word.getClientRects().length < 2)"
    )
    page.locator("article").get_by_role("link", name="Contents", exact=True).first.click()
    page.wait_for_url("**/index.html#Contents")
    page.locator("article table a", has_text="Temporal self-attention").first.click()
    page.wait_for_url(f"**/{address_of('temporal_attention')}")


@pytest.mark.browser
@pytest.mark.parametrize("where", ["served", "disk"])
def test_a_word_is_searched(where, built, page, request):
    start = request.getfixturevalue("served") if where == "served" else built.as_uri()
    page.set_viewport_size(dict(width=1280, height=1000))
    page.goto(f"{start}/index.html")
    page.get_by_role("textbox", name="Search").click()
    page.get_by_role("textbox", name="Search").press_sequentially("karras", delay=30)
    found = page.locator(".md-search-result__link", has_text="Karras").first
    found.wait_for()
    shoot(page, f"search-{where}")
    found.click()
    page.locator("article", has_text="Karras").wait_for()


@pytest.mark.browser
def test_a_collapsed_section_opens(served, page):
    names = [
        path for path in hooks.notebooks() if '"jp-MarkdownHeadingCollapsed": true' in (hooks.NBS / path).read_text()
    ]
    if not names:
        pytest.skip("no notebook has a collapsed section")
    page.goto(f"{served}/{names[0].removesuffix('.ipynb')}.html")
    section = page.locator("details.tav-section").first
    assert section.get_attribute("open") is None
    section.locator("summary").first.click()
    code = section.locator("pre").first
    code.wait_for()
    shoot(page, "opened")
