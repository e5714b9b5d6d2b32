"What the package promises as a whole. Written by hand."

import ast
import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import tav_nb

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tav_nb"


def run(*command, cwd=ROOT, **variables):
    "What a command prints; the test fails if it does."
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **variables})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked(*paths):
    "Files that git tracks, or would track once added, below some paths of the repository."
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    names = run("git", "ls-files", "-co", "--exclude-standard", "-z", "--", *paths).split("\0")
    return [path for name in names if name and (path := ROOT / name).exists()]


def settings():
    config = ConfigParser()
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def modules_after(code):
    "Names of the modules that a fresh Python has loaded after some code."
    return set(
        run(sys.executable, "-c", f"{code}\nimport sys\nprint('modules', *sys.modules)")
        .rpartition("modules ")[2]
        .split()
    )


def test_import_loads_nothing():
    new = modules_after("import tav_nb") - modules_after("pass")
    assert new == {"tav_nb"}, "import tav_nb has to stay under 0.2 s: let __init__.py import nothing"


def modules():
    "The package's modules by name, without `__init__` and nbdev's index"
    paths = {path.relative_to(ROOT): path for path in PACKAGE.rglob("[!_]*.py")}
    return {".".join(name.with_suffix("").parts): path for name, path in paths.items()}


def test_every_public_name_is_there_and_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = [name for name in tav_nb.__all__ if name != "__version__"]
    assert not [name for name in names if f"`{name}`" not in text]
    run(sys.executable, "-c", "import tav_nb\n" + "\n".join(f"assert callable(tav_nb.{name})" for name in names))
    assert set(names) < set(dir(tav_nb))
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        tav_nb.generat  # noqa: B018


def test_only_the_course_needs_jupyter():
    missing = ["IPython", "ipywidgets", "jupyterlab", "matplotlib", "nbconvert", "nbdev", "fastcore"]
    names = modules().keys() - {
        "tav_nb.utils.notebook_images",
        "tav_nb.utils.notebook_tests",
        "tav_nb.evaluation.widgets",
    }
    hide = f"import sys\nsys.modules.update(dict.fromkeys({missing}))\n"
    run(sys.executable, "-c", hide + "\n".join(f"import {name}" for name in sorted(names)))


FLOORS = [{"utils"}, {"models"}, {"sampling", "data"}, {"training", "evaluation"}, {"toy"}, {"cli"}]
FLOOR = {package: number for number, packages in enumerate(FLOORS) for package in packages}


def forbidden_imports(name, code):
    "Those of the package's own modules that a module may not import: all but those of its package and of lower floors"
    package, found = name.split(".")[1], []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            targets = [f"{base}.{alias.name}" for alias in node.names] if base == "tav_nb" else [base]
        else:
            continue
        for target in targets:
            other = [*target.split("."), ""][1]
            if target.startswith("tav_nb.") and other in FLOOR and other != package and FLOOR[other] >= FLOOR[package]:
                found.append(target)
    return found


def test_a_package_imports_only_lower_ones():
    assert {name.split(".")[1] for name in modules()} == FLOOR.keys()
    found = {name: forbidden_imports(name, path.read_text(encoding="utf-8")) for name, path in modules().items()}
    assert not any(found.values()), found


def functions(node, names=()):
    "`(qualified name, function, public)` of everything that is defined in a module, Triton kernels left out"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from functions(child, (*names, child.name))
        elif isinstance(child, ast.FunctionDef):
            if not any(isinstance(mark, ast.Name) and mark.id == "jit" for mark in child.decorator_list):
                full = (*names, child.name)
                public = all(name == "__init__" or not name.startswith("_") for name in full)
                yield ".".join(full), child, public
        elif isinstance(child, (ast.If, ast.Try, ast.With)):
            yield from functions(child, names)


def parameters(function):
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument for argument in named if argument.arg not in ("self", "cls")]


def test_modules_functions_and_signatures_stay_small():
    "At most 400 lines in a module, 60 in a function, 10 parameters; Triton kernels take their tensors one by one"
    found = []
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > 400:
            found.append(f"{name} has {lines} lines")
        for function, node, _ in functions(ast.parse(text)):
            if (lines := node.end_lineno - node.lineno + 1) > 60:
                found.append(f"{name}.{function} has {lines} lines")
            if len(parameters(node)) > 10:
                found.append(f"{name}.{function} has {len(parameters(node))} parameters")
    assert not found, found


def test_public_functions_annotate_parameters_and_returns():
    found = []
    for name, path in modules().items():
        for function, node, public in functions(ast.parse(path.read_text(encoding="utf-8"))):
            missing = [one.arg for one in parameters(node) if not one.annotation and one.arg != "context"]
            if public and (missing or (node.returns is None and node.name != "__init__")):
                found.append(f"{name}.{function}: {', '.join(missing) or 'its return'}")
    assert not found, found


FIGURATIVE = set(
    "answers asked bell deaf dice ferry film films hear heard hearing nobody picture pictures polite question questions"
    " said say sealed seam seats spell told unheard visitors".split()
)  # instead: predictions, generator, video, attend, frame or image, UNet call, conditioning, log_line, test split, ...


def test_identifiers_are_terms_of_the_field():
    found = []
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in (getattr(node, kind, None) for kind in ("id", "attr", "arg", "name")):
                if isinstance(name, str) and FIGURATIVE & set(name.lower().split("_")):
                    found.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '')} {name}")
    assert not found, found


def test_every_import_inside_the_package_finds_its_name():
    "Imports in functions are run late: a name that was renamed would be missed until then"
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.level or node.module.split(".")[0] == "tav_nb"):
                above = name.split(".")[: -node.level] if node.level else []
                base = importlib.import_module(".".join([*above, *filter(None, [node.module])]))
                for alias in node.names:
                    found = hasattr(base, alias.name) or importlib.util.find_spec(f"{base.__name__}.{alias.name}")
                    assert found, f"{path}, line {node.lineno}: {base.__name__} has no {alias.name}"


@pytest.mark.parametrize(
    "name, line, forbidden",
    [
        ("tav_nb.models.base", "from ..toy.captions import vocabulary", ["tav_nb.toy.captions"]),
        ("tav_nb.sampling.generate", "def f():\n    from tav_nb.data import cache", ["tav_nb.data"]),
        ("tav_nb.utils.images", "import tav_nb.cli.main", ["tav_nb.cli.main"]),
        ("tav_nb.training.trainer", "from tav_nb import evaluation", ["tav_nb.evaluation"]),
        (
            "tav_nb.training.trainer",
            "from .config import TrainConfig\nfrom ..models.messages import quiet\nimport tav_nb",
            [],
        ),
    ],
)
def test_the_rule_of_imports_finds_what_it_forbids(name, line, forbidden):
    assert forbidden_imports(name, line) == forbidden


@pytest.mark.parametrize("argument", ["--help", "generate --help", "--no-such-option"])
def test_help_and_argument_errors_come_before_torch(argument):
    code = (
        f"import sys\nsys.argv = 'tav {argument}'.split()\nfrom tav_nb.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass"
    )
    slow = {"torch", "diffusers", "transformers", "matplotlib", "IPython"} & modules_after(code)
    assert not slow, f"`tav {argument}` loads {slow}"


HELP = """
import runpy, sys
for script in sys.argv[1:]:
    sys.path[0], sys.argv = script.rpartition("/")[0], [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    print("answered", script)
"""


@pytest.mark.long
def test_every_benchmark_answers_help():
    "In one process, for most of them load the same libraries"
    helpers = {"bounds.py", "sdxl_config.py", "small_run.py", "peers.py", "toy_scores.py"}
    scripts = [path for path in sorted((ROOT / "benchmarks").rglob("*.py")) if path.name not in helpers]
    pytest.importorskip("cv2")
    said = run(sys.executable, "-c", HELP, *map(str, scripts))
    assert len(scripts) > 25 and all(f"answered {path}\n" in said for path in scripts)
    assert said.count("usage: ") == len(scripts)


def test_versions_agree():
    assert settings()["version"] == tav_nb.__version__
    assert run(sys.executable, "-m", "tav_nb", "--version").split() == ["tav", tav_nb.__version__]


def test_every_requirement_has_a_tested_version():
    listed = "".join(value for name, value in settings().items() if name.endswith("requirements")).split()
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    odd = [pin for pin in pins if not re.fullmatch(r"[a-z0-9._-]+==[0-9][0-9a-z.]*", pin)]
    assert not odd, "constraints.txt holds exact versions without local labels"
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in listed}
    assert not names - {pin.partition("==")[0] for pin in pins}


def test_every_tested_version_runs_on_the_oldest_python():
    oldest = settings()["min_python"] + ".0"
    for name in re.findall("(?m)^([^#=\n]+)==", (ROOT / "constraints.txt").read_text()):
        with contextlib.suppress(PackageNotFoundError):  # of an extra that is not installed here
            needs = metadata(name)["Requires-Python"] or ""
            assert oldest in SpecifierSet(needs), f"{name} needs Python {needs}: pin an older version"


def test_the_repository_stays_small():
    total = sum(path.stat().st_size for path in tracked()) / 2**20
    assert total < 26, f"{total:.1f} MiB are tracked"


def test_nothing_generated_outlives_its_notebook():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").glob("*.py")]:
        source = re.search(r"^# AUTOGENERATED.* File to edit: (.+)\.$", path.read_text(encoding="utf-8"), re.M)
        assert not source or (path.parent / source[1]).exists(), f"{path} comes from {source[1]}, which is gone"


def test_everything_in_the_package_is_installed(tmp_path):
    pytest.importorskip("setuptools")
    for name in ["setup.py", "settings.ini", "README.md"]:
        shutil.copy(ROOT / name, tmp_path)
    for path in tracked("tav_nb"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    run(sys.executable, "setup.py", "-q", "build_py", "--build-lib", "built", cwd=tmp_path)

    def names(folder):
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    assert names(tmp_path / "built" / "tav_nb") == names(tmp_path / "tav_nb")


def test_the_readme_is_the_index():
    from tav_nb.utils.notebook_tests import readme

    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme(ROOT / "nbs" / "index.ipynb"), "run `make readme`"


def test_a_failing_test_names_its_cell(tmp_path):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_sums.py").write_text(
        "from fastcore.test import test_eq\n\ndef test_by_hand():\n    assert 3 > 4\n\n# %% ../nbs/00_sums.ipynb #abc\n"
        "def test_one():\n    assert 1 > 2\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n0", str(tmp_path)], capture_output=True, text=True
    )
    assert (
        re.findall("nbs/.*", done.stdout) == ["nbs/00_sums.ipynb, cell #abc: assert 1 > 2"]
        and " 2 failed in " in done.stdout
    )
