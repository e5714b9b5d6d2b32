"What pytest needs to know about tests that come from notebooks. Written by hand."

import os
import re
import sys

import pytest

SHARED = {}  # hash of the weights that all tests of a process share
os.environ.setdefault("MPLBACKEND", "agg")  # no windows
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores; has to be set before torch is imported


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    "Names the notebook cell that a failing test came from."
    report = yield
    if report.failed and call.excinfo:
        lines = [entry.lineno for entry in call.excinfo.traceback if entry.path == item.path]
        if lines and (cell := notebook_cell(item.path, lines[-1])):
            report.sections.append(("notebook cell", cell))
    return report


def notebook_cell(path, number):
    "`notebook, cell: code` for a line, counted from 0, of a generated test file; None for other files."
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in reversed(lines[:number]):
        if address := re.match(r"# %% (?:\.\./)?(\S+) (#\S+)", line):
            return f"{address[1]}, cell {address[2]}: {lines[number].strip()}"


def pytest_pycollect_makeitem(collector, name, obj):
    "Keeps imported helpers such as fastcore's `test_eq` from being run as tests."
    if getattr(obj, "__module__", None) == "fastcore.test":
        return []


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    "The longest test first: at the end, all workers but one would wait for it."
    items.sort(key=lambda item: "eight_scenes_of_the_test_split" not in item.name)


@pytest.fixture(autouse=True, scope="module")
def shared_model_stays():
    "The embedded model is loaded once for all tests: a file that changes it would change the results of others."
    yield
    generate = sys.modules.get("tav_nb.sampling.generate")
    if generate is None or not generate.embedded_pipeline.cache_info().currsize:
        return
    from tav_nb.models.base import tensors_hash

    pipe = generate.embedded_pipeline()
    parts = pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2
    found = tensors_hash(parameter for part in parts for parameter in part.parameters())
    assert SHARED.setdefault("model", found) == found, "a test of this file changed the weights of embedded_pipeline()"
