"""Tables of captions and texts beside clips, changed in ways in which files go wrong: each ends as clips, as reasons,
or as one line that names the file and the line.

Writes a folder of six clips with captions in a .csv, .jsonl or .parquet table, in a Sakuga table, or in texts beside
them, changes one thing with a seeded generator (bytes, ends of lines, encodings, separators, columns, cells, types,
paths, lengths), and opens the folder as `tav prepare` does. No clip is decoded. Each case runs in a process of its own
with 60 s and 4 GiB.

"silent" is a row that became nothing, or a caption that changed although only its writing did; "nowhere" is a refusal
that does not name the file, or not the line where there is one.
"""

import csv
import io
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from bounds import options, record

from tav_nb.data.sources import open_source
from tav_nb.data.tables import CollectionError

CAPTIONS = (
    "a girl with pink hair, blue dress",
    'a boy says "hello"',
    "two\nlines",
    "歩く少女",
    "a café by the sea",
    "a plain caption",
)
NAMES = [f"clip{i}.mp4" for i in range(len(CAPTIONS))]
COLUMNS = ("id", "file", "caption", "licence", "start", "stop")
LINES = re.compile(r", (line|row|entry) \d+: ")
FILE_ERRORS = (
    "cannot be read",
    "has no column",
    "has a header and no rows",
    "is empty",
    "none of its",
    "clips have no caption",
    "is not JSON",
    "expected `object`",
    "has the column",
    "more than",
    "has two captions",
)  # of a file, and not of a line
SAME = ("encoding", "line ends", "header", "suffix")  # only the writing changes


def rows_of(random_):
    return [
        dict(id=f"row{i}", file=name, caption=caption, licence="CC0", start="0.25", stop=str(random_.choice([1, 2, 3])))
        for i, (name, caption) in enumerate(zip(NAMES, CAPTIONS))
    ]


def as_csv(rows, separator=",", quoting=csv.QUOTE_MINIMAL):
    out = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.writer(
        out,
        delimiter=separator,
        quoting=quoting,
        escapechar=None if quoting != csv.QUOTE_NONE else "\\",
        quotechar='"',
        lineterminator="\n",
    )
    writer.writerows([columns, *([row.get(name, "") for name in columns] for row in rows)])
    return out.getvalue()


def as_jsonl(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"


def as_parquet(rows, path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def flip(random_, data):
    data = bytearray(data)
    for _ in range(random_.randint(1, 4)):
        data[random_.randrange(len(data))] = random_.randrange(256)
    return bytes(data)


def encode(random_, text):
    name = random_.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp932", "cp1252", "gb18030", "latin-1"])
    return (
        text.encode(name, "replace" if name in ("cp932", "cp1252", "latin-1") else "strict"),
        name.startswith("utf") and name != "utf-16-le",
    )


CELLS = (
    "",
    "   ",
    "nan",
    "NULL",
    "x" * 40_000,
    "\x1b[31mred",
    "\u202egnp",
    "1:2:3:4",
    "-1",
    "1e400",
    "inf",
    "١٢",
    "0.25 s",
    "=1+1",
    '"',
    "'",
    "\\",
    "\t",
    "\x85",
    "\u2028",
    "\x0b",
)
PATHS = (
    "clips\\clip0.mp4",
    "C:\\clips\\clip0.mp4",
    "../clip0.mp4",
    "/etc/passwd",
    "/dev/zero",
    ".",
    "..",
    "",
    "clip0.txt",
    "CLIP0.MP4",
    "./clip0.mp4",
    "a/../clip0.mp4",
    "x" * 5000,
    "clip0.mp4/",
    "file:///clip0.mp4",
    "~/clip0.mp4",
    "\x07.mp4",
    "m.csv",
)
VALUES = (
    [],
    ["a girl"],
    {},
    {"a": 1},
    5,
    -1,
    1.5,
    1e300,
    10**40,
    True,
    None,
    "\ud83d",
    "a\0b",
    [[[[]]]],
    float("nan"),
    float("inf"),
    "x" * 40_000,
)


def change_rows(random_, rows, kind):
    "Rows with one thing changed"
    row = random_.choice(rows)
    if kind == "cell":
        row[random_.choice(COLUMNS)] = random_.choice(CELLS)
    elif kind == "path":
        row["file"] = random_.choice(PATHS)
    elif kind == "row twice":
        rows.insert(random_.randrange(len(rows)), dict(row, id="again"))
    elif kind == "rows gone":
        del rows[random_.randrange(len(rows)) :]
    elif kind == "column gone":
        name = random_.choice(COLUMNS)
        rows = [{key: value for key, value in row.items() if key != name} for row in rows]
    elif kind == "header":
        names = [
            name if name == "id" else random_.choice([name.upper(), f" {name}", f"{name} ", name.title()])
            for name in COLUMNS
        ]
        rows = [dict(zip(names, row.values())) for row in rows]
    return rows


def write_text(random_, path, text, kind, same):
    "Write a table's text in another encoding, damaged or as it is; returns whether its content is the same"
    data = text.encode("utf-8", "surrogatepass")
    if kind == "encoding":
        data, same = encode(random_, text)
    elif kind == "bytes":
        data = flip(random_, data)
    elif kind == "cut off":
        data = data[: random_.randrange(len(data))]
    path.write_bytes(data)
    return same


def write_csv(random_, folder, kind):
    rows, same = change_rows(random_, rows_of(random_), kind), kind in SAME
    text = as_csv(rows)
    if kind == "unquoted":
        text = as_csv(rows, quoting=csv.QUOTE_NONE).replace("\\", "")
    elif kind == "separator":
        text = as_csv(rows, random_.choice(";\t|"))
    elif kind == "line ends":
        text = (
            text.replace("\n", random_.choice(["\r\n", "\n\n", "\r", "\r\n\r\n"]))
            if random_.random() < 0.7
            else text.rstrip("\n")
        )
        same = False  # a line end inside quotation marks changes as well
    elif kind == "quotes":
        index = random_.randrange(len(text))
        text = text[:index] + random_.choice(['"', ",", "\n", '""', '","']) + text[index:]
    return write_text(random_, folder / "m.csv", text, kind, same)


def write_jsonl(random_, folder, kind):
    rows, same = change_rows(random_, rows_of(random_), kind), kind in SAME
    if kind == "type":
        random_.choice(rows)[random_.choice(COLUMNS)] = random_.choice(VALUES)
    text = as_jsonl(rows)
    if kind == "list":
        text = json.dumps(rows, ensure_ascii=False, indent=random_.choice([None, 1]))
        same = True
    elif kind == "key twice":
        text = text.replace('"caption":', '"caption": "hidden", "caption":', 1)
    elif kind == "line ends":
        text = text.replace("\n", random_.choice(["\r\n", "\n\n \n", "\r\n\r\n"]))
    elif kind == "nested":
        text += random_.choice(
            [
                "[" * 10**5,
                '{"file": ' * 10**4,
                '{"file": "clip0.mp4", "caption": "x", "more": ' + "[" * 40 + "]" * 40 + "}",
            ]
        )
    elif kind == "no object":
        text += random_.choice(["null", "5", '"text"', "[1]", "true", "{", "}", "NaN", "//"]) + "\n"
    return write_text(random_, folder / "m.jsonl", text, kind, same)


def write_parquet(random_, folder, kind):
    rows, path = change_rows(random_, rows_of(random_), kind), folder / "m.parquet"
    if kind == "type":
        name, value = (
            random_.choice(COLUMNS),
            random_.choice([[], ["a girl"], {"a": 1}, 5, 1.5, True, None, b"bytes", float("nan")]),
        )
        rows = [dict(row, **{name: value}) for row in rows]
    as_parquet(rows, path)
    if kind == "bytes":
        path.write_bytes(flip(random_, path.read_bytes()))
    elif kind == "cut off":
        path.write_bytes(path.read_bytes()[: random_.randrange(path.stat().st_size)])
    return kind in SAME


def write_sakuga(random_, folder, kind):
    rows = [
        dict(
            identifier=f"clip{i}:1",
            scene_start_time="00:00:00.250",
            scene_end_time="00:00:01.000",
            text_description=caption,
        )
        for i, caption in enumerate(CAPTIONS)
    ]
    row = random_.choice(rows)
    row[random_.choice(list(row)[:3] if kind == "time" else list(row))] = random_.choice(
        [None, "soon", "", "1:2:3:4:5", "-1", "00:00:00.100", "1e400", "nan"]
    )
    as_parquet(rows, folder / "m.parquet")
    if kind == "bytes":
        (folder / "m.parquet").write_bytes(flip(random_, (folder / "m.parquet").read_bytes()))
    return False


def write_texts(random_, folder, kind):
    same = kind in SAME
    for name, caption in zip(NAMES, CAPTIONS):
        (folder / name).with_suffix(
            random_.choice([".txt", ".TXT", ".Txt"]) if kind == "suffix" else ".txt"
        ).write_text(caption, encoding="utf-8")
    text = random_.choice(sorted(path for path in folder.iterdir() if path.suffix.lower() == ".txt"))
    data = text.read_bytes()
    if kind == "encoding":
        data, same = encode(random_, data.decode())
    elif kind == "bytes":
        data = flip(random_, data)
    elif kind == "odd":
        data = random_.choice(
            [b"", b" \n", b"a\0b", b"x" * 10**6, b"\xff\xfe", b"\xef\xbb\xbf", b"nan", "\u2028".encode(), b"\x1b[2J"]
        )
    elif kind == "twice":
        text.with_suffix(".tXt").write_bytes(b"another")
    elif kind == "no file":
        text.unlink()
        text.mkdir()
    if kind != "no file":
        text.write_bytes(data)
    return same


WRITERS = {
    "csv": (
        write_csv,
        (
            "bytes",
            "cut off",
            "cell",
            "path",
            "row twice",
            "rows gone",
            "column gone",
            "header",
            "unquoted",
            "separator",
            "line ends",
            "quotes",
            "encoding",
        ),
    ),
    "jsonl": (
        write_jsonl,
        (
            "bytes",
            "cut off",
            "cell",
            "path",
            "row twice",
            "rows gone",
            "column gone",
            "header",
            "type",
            "list",
            "key twice",
            "line ends",
            "nested",
            "no object",
            "encoding",
        ),
    ),
    "parquet": (
        write_parquet,
        ("bytes", "cut off", "cell", "path", "row twice", "rows gone", "column gone", "header", "type"),
    ),
    "sakuga": (write_sakuga, ("time", "cell", "bytes")),
    "texts": (write_texts, ("bytes", "encoding", "odd", "twice", "suffix", "no file")),
}


def decoded(path):
    data = path.read_bytes()
    return data.decode(
        "utf-32"
        if data[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
        else "utf-16"
        if data[:2] in (b"\xff\xfe", b"\xfe\xff")
        else "utf-8-sig"
    )


def ids_in(folder):
    "The identifiers in a table, read without the package"
    if (path := folder / "m.csv").exists():
        ids = [row.get("id") for row in csv.DictReader(io.StringIO(decoded(path), newline=""), skipinitialspace=True)]
    elif (path := folder / "m.jsonl").exists():
        text = decoded(path)
        ids = [
            row.get("id")
            for row in (
                json.loads(text)
                if text.lstrip().startswith("[")
                else [json.loads(line) for line in text.split("\n") if line.strip()]
            )
        ]
    elif (path := folder / "m.parquet").exists():
        from pyarrow import parquet

        ids = [row.get("id") for row in parquet.read_table(path).to_pylist()]
    else:
        ids = []
    return [
        one
        for one in ids
        if one == one
        and one is not None
        and not (isinstance(one, str) and one.strip().lower() in ("", "nan", "none", "null"))
    ]


def sakuga_rows(items):
    "How many rows of a Sakuga table the items stand for"
    away = sum(int(re.search(r"\d+", item.refusal)[0]) for item in items if item.refusal.startswith("not there"))
    return away + sum(item.path.name != "m.parquet" and "no row of" not in item.refusal for item in items)


def outcome_of(folder, form, same, caption):
    "Outcome of opening the folder, and its message"
    try:
        items = open_source(folder / "m.parquet" if form == "sakuga" else folder, caption, licence="CC0")
    except CollectionError as error:
        text = str(error)
        if "\n" in text or not text.isprintable():
            return "wordy", text
        named = re.search(r"m\.(csv|jsonl|parquet)|clip\d\.(txt|TXT|Txt|tXt|mp4)", text)
        return (
            "refused" if named and (LINES.search(text) or any(word in text for word in FILE_ERRORS)) else "nowhere"
        ), text
    import pyarrow

    rows = [
        dict(file=str(item.path), caption=item.caption, source=item.source, licence=item.licence, reason=item.refusal)
        for item in items
    ]
    pyarrow.Table.from_pylist(rows, pyarrow.schema([(name, pyarrow.string()) for name in rows[0]]))
    json.dumps([asdict(item) for item in items], ensure_ascii=False, default=str).encode()
    if any(item.caption is None for item in items):
        return "silent", "an item without a caption"
    if form == "sakuga" and sakuga_rows(items) != len(CAPTIONS):
        return "silent", f"{len(CAPTIONS)} rows became {[item.refusal for item in items]}"
    if form != "sakuga" and (there := len(ids_in(folder))) != (got := sum("id" in item.extra for item in items)):
        return "silent", f"{there} rows became {got} items"
    if same and {item.caption for item in items} != set(CAPTIONS):
        return "silent", f"captions became {sorted(item.caption for item in items)}"
    return (
        "done",
        f"{sum(not item.refusal for item in items)} clips, {sum(bool(item.refusal) for item in items)} reasons",
    )


def run_case(seed, form, kind):
    "One case in a process of its own"
    receive, send = os.pipe()
    start = time.monotonic()
    if not (child := os.fork()):
        resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
        signal.alarm(60)
        result = None
        try:
            with tempfile.TemporaryDirectory() as home:
                folder, random_ = Path(home) / "in", random.Random(f"{seed} {form} {kind}")
                folder.mkdir()
                for name in NAMES:
                    (folder / name).write_bytes(name.encode())
                same = WRITERS[form][0](random_, folder, kind)
                result = outcome_of(folder, form, same, None if same else random_.choice([None, "for all"]))
                result = result[0], result[1].replace(home, "")
        except BaseException as error:
            result = "traceback", f"{type(error).__name__}: {error}"
        os.write(
            send, json.dumps([*result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]).encode()[:60_000]
        )
        os._exit(0)
    os.close(send)
    with open(receive, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    seconds = round(time.monotonic() - start, 2)
    if not text:
        return dict(
            outcome="hang" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM else "crash",
            seconds=seconds,
            message="",
        )
    outcome, message, gib = json.loads(text)
    return dict(outcome=outcome, seconds=seconds, gib=round(gib, 2), message=message[:300])


def main():
    args = options(__doc__, "tables", count=460)
    kinds = [(form, kind) for form, (_, kinds) in WRITERS.items() for kind in kinds]
    rows = []
    for number in range(args.count):
        form, kind = kinds[number % len(kinds)]
        rows.append(dict(kind=f"{form}: {kind}", number=number, **run_case(f"{args.seed} {number}", form, kind)))
    return 0 if record(args.out, rows, packages=("pyarrow", "msgspec"), count=args.count, seed=args.seed) else 1


if __name__ == "__main__":
    sys.exit(main())
