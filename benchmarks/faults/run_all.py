"""Runs every script beside this file with its defaults, one after another, and prints one table of all their
records.

python benchmarks/faults/run_all.py                   # an hour on two cores
python benchmarks/faults/run_all.py media tables      # these only
python benchmarks/faults/run_all.py --quick           # three cases of each, recorded in a temporary folder
python benchmarks/faults/run_all.py --table           # what was recorded last
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"


def scripts() -> list[Path]:
    "The scripts that inject faults"
    return sorted(path for path in HERE.glob("*.py") if path.name not in ("bounds.py", "run_all.py", "small_run.py"))


def record_of(script: Path, folder: Path = RESULTS) -> Path:
    "Where a script writes what it found"
    return folder / f"faults_{script.stem}.json"


def table(records: list[Path]) -> str:
    "Markdown: one row for each kind of fault, and one with the whole of each record"
    lines = ["| script | kind | tried | survived | slowest | largest |", "|---|---|---|---|---|---|"]
    for path in records:
        record = json.loads(path.read_text())
        name = path.stem.removeprefix("faults_")
        slowest, largest = record.get("slowest_seconds"), record.get("largest_gib")
        bounds = [f"{slowest} s" if slowest is not None else "", f"{largest} GiB" if largest is not None else ""]
        kinds = [(name, kind, row["tried"], row["survived"], "", "") for kind, row in record["kinds"].items()]
        for row in [*kinds, (f"**{name}**", "all", record["tried"], record["survived"], *bounds)]:
            lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [path.stem for path in scripts()]
    parser.add_argument("script", nargs="*", help=f"which; all without one: {', '.join(names)}")
    parser.add_argument("--table", action="store_true", help="only print the table of the records that there are")
    parser.add_argument("--quick", action="store_true", help="three cases of each, recorded in a temporary folder")
    parser.add_argument("--minutes", type=float, default=60.0, help="the longest that one script may take (60)")
    args = parser.parse_args()
    if unknown := set(args.script) - set(names):
        parser.error(f"no such script: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [path for path in scripts() if not args.script or path.stem in args.script]
    failed, folder = [], Path(tempfile.mkdtemp(prefix="faults-")) if args.quick else RESULTS
    for path in [] if args.table else chosen:
        print(f"== {path.stem}", flush=True)
        command = [sys.executable, str(path), "--out", str(record_of(path, folder)), *["--quick"] * args.quick]
        try:
            if subprocess.run(command, timeout=60 * args.minutes).returncode:
                failed.append(path.stem)
        except subprocess.TimeoutExpired:
            failed.append(f"{path.stem} (longer than {args.minutes:g} minutes)")
    print(table([record for path in chosen if (record := record_of(path, folder)).exists()]))
    if failed:
        print(f"ended with an error: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
