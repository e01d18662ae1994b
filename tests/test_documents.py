"""Every command block of README.md and docs/*.md runs here, or gives the reason why it does not.

How to write a document:

- Blocks fenced as ```sh, ```python and ```console run. Of a console block, the lines that begin with
  "$ " run (with the lines after them that begin with "> "); the rest is output, which is not compared.
- A line directly above the fence exempts the block:  <!-- not run: REASON -->
  It belongs above whatever downloads, installs, needs a GPU, nox or another person's files, or takes
  minutes. Commands that can run go into a block of their own; --impl numpy makes them fast.
- A block of commands must exit with 0, or with the code in a line directly above:  <!-- exits: 1 -->
- Every fence names its language. Those in OTHER are not commands; any other language is refused, so that
  no command escapes under another name.
- The blocks of one document run in order, in one temporary folder, where parity is this tree's. It holds
  right.py, a right NumPy implementation, and nothing else. The python blocks of a document share one
  namespace, which begins with DIR = "DIR".
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from commands import SPECIMEN

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ("sh", "python", "console")
OTHER = ("text", "yaml", "json", "toml", "html", "xml", "c", "rust", "diff", "bibtex")
REFUSED = ("nox", "pip", "pipx", "uv", "conda", "asv", "git", "curl", "wget", "sudo", "docker")
SECONDS = 120  # that a block may take; whatever takes longer is to be marked
FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<language>.*)")
MARK = re.compile(r" *<!-- *(?P<key>not run|exits): *(?P<value>.*?) *-->")


class Block(NamedTuple):
    """A fenced block: where it begins, its language, its text, and what the line above it says."""

    line: int  # of its first line of text, counted from 1
    language: str
    text: str
    not_run: str = ""  # the reason
    exits: int = 0


class Malformed(Exception):
    """Its text names the line."""


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a document. Raises Malformed where one could escape being run."""
    lines = text.splitlines()
    number = 0
    marks: dict[str, str] = {}
    while number < len(lines):
        line, number = lines[number], number + 1
        if found := MARK.fullmatch(line):
            if not found["value"]:
                raise Malformed(f"{number}: {found['key']}: says nothing")
            marks[found["key"]] = found["value"]
            continue
        fence = FENCE.fullmatch(line)
        if not fence:
            if marks:
                raise Malformed(
                    f"{number}: a block has to follow directly on <!-- {next(iter(marks))} -->"
                )
            continue
        language = fence["language"].strip()
        if language not in RUN + OTHER:
            raise Malformed(f"{number}: language {language!r}: expected one of {', '.join(RUN + OTHER)}")
        first = number
        while number < len(lines) and lines[number].strip() != fence["ticks"]:
            number += 1
        if number == len(lines):
            raise Malformed(f"{first}: the block never ends")
        body = textwrap.dedent("\n".join(lines[first:number])) + "\n"
        exits = marks.get("exits", "0")
        if not exits.isdigit():
            raise Malformed(f"{first - 1}: exits {exits!r}: expected a number")
        yield Block(first + 1, language, body, marks.get("not run", ""), int(exits))
        number += 1
        marks = {}
    if marks:
        raise Malformed(f"{number}: no block follows")


def script(block: Block) -> str:
    """The commands of a block, as a shell script."""
    if block.language == "sh":
        return block.text
    lines = re.findall(r"^(?:\$|>) (.*)$", block.text, re.MULTILINE)
    return "\n".join(lines) + "\n"


def world(folder: Path) -> dict[str, str]:
    """A folder in which a document's blocks run; returns their environment."""
    tools = folder.with_name(f"{folder.name}-bin")
    for made in (folder, tools):
        made.mkdir()
    (folder / "right.py").write_text(SPECIMEN)
    python = shlex.quote(sys.executable)
    programs = {name: f"refuse {name}" for name in REFUSED}
    programs["parity"] = f'[ "$1" != fetch ] || refuse "parity fetch"\nexec {python} -m gpt2_parity "$@"'
    programs["python"] = f'[ "$2" != pip ] || refuse pip\nexec {python} "$@"'
    programs["pytest"] = f'exec {python} -m pytest -p no:cacheprovider "$@"'
    refuse = 'refuse() { echo "$1 does not run here: mark the block" >&2; exit 99; }'
    for name, lines in programs.items():
        (tools / name).write_text(f"#!/bin/sh\n{refuse}\n{lines}\n")
        (tools / name).chmod(0o755)
    paths = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "harness")}
    return dict(os.environ) | paths


def perform(block: Block, where: str, folder: Path, environment: dict[str, str], names: dict[str, Any]):
    """Run one block; where is its file. What goes wrong is a failure that names file and line."""
    if block.language == "python":
        code = compile("\n" * (block.line - 1) + block.text, where, "exec")
        try:
            exec(code, names)
        except Exception as error:
            trace, line = error.__traceback__, block.line
            while trace:  # the innermost line that is the document's own
                line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == where else line
                trace = trace.tb_next
            pytest.fail(f"{where}:{line}: {type(error).__name__}: {error}", pytrace=False)
        return
    running = subprocess.Popen(
        ["sh", "-e", "-c", script(block)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that all it started can be ended
    )
    try:
        said, _ = running.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        pytest.fail(f"{where}:{block.line}: took longer than {SECONDS} s: mark it", pytrace=False)
    if running.returncode != block.exits:
        ended = f"exit code {running.returncode}, expected {block.exits}"
        said = said[-2000:].strip()
        pytest.fail(f"{where}:{block.line}: {ended}\n{block.text}\n{said}", pytrace=False)


def follow(text: str, where: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the blocks of a document; returns the namespace of its python blocks."""
    environment = world(folder)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"DIR": "DIR", "__name__": "document"}
    try:
        for block in blocks(text):
            if block.language in RUN and not block.not_run:
                perform(block, where, folder, environment, names)
    except Malformed as error:
        pytest.fail(f"{where}:{error}", pytrace=False)
    return names


def reading_results(names: dict[str, Any], folder: Path) -> None:
    assert names["verdicts"].loc[("numpy", "cpu", "float32"), "pass"] > 100
    assert len(names["by_layer"]) == 4
    assert (folder / "results.parquet").stat().st_size > 1000


AFTER: dict[str, Callable[[dict[str, Any], Path], None]] = {"docs/reading_results.md": reading_results}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_of_a_document_runs_or_says_why_not(path, tmp_path, monkeypatch, prepared):
    where, folder = path.relative_to(ROOT).as_posix(), tmp_path / "here"
    names = follow(path.read_text(encoding="utf-8"), where, folder, monkeypatch)
    if where in AFTER:
        AFTER[where](names, folder)


def test_what_is_looked_for_is_there():
    """A document that moved, or a fence that is written otherwise, must not go unseen."""
    assert len(DOCUMENTS) > 5
    assert set(AFTER) <= {path.relative_to(ROOT).as_posix() for path in DOCUMENTS}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = list(blocks(text))
    assert len(found) == len(re.findall(r"^ *(?:```|~~~)", text, re.MULTILINE)) / 2
    assert {block.language for block in found} >= {"sh", "python"}
    assert any(block.language == "sh" and not block.not_run for block in found)


# -- the test can fail

F = "```"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"# A\n\n{F}sh\ntrue\nfalse\n{F}\n", r"doc\.md:4: exit code 1, expected 0"),
        (f"{F}sh\nfalse\ntrue\n{F}\n", r"doc\.md:2: exit code 1"),
        (f"{F}console\n$ false\nsome output\n{F}\n", r"doc\.md:2: exit code 1"),
        (f"{F}console\n$ test \\\n> a = b\n{F}\n", r"doc\.md:2: exit code 1"),
        (f"- item\n\n  {F}sh\n  nonesuch\n  {F}\n", r"doc\.md:4: exit code 127"),
        (f"<!-- exits: 2 -->\n{F}sh\nfalse\n{F}\n", r"doc\.md:3: exit code 1, expected 2"),
        (f"{F}sh\nnox -s tests\n{F}\n", "nox does not run here: mark the block"),
        (f"{F}sh\npython -m pip install x\n{F}\n", "pip does not run here: mark the block"),
        (f"{F}sh\nparity fetch 124M\n{F}\n", "parity fetch does not run here: mark the block"),
        (f"{F}sh\nsleep 9\n{F}\n", r"doc\.md:2: took longer than 1 s: mark it"),
        (f"{F}sh\nparity verify --impl nonesuch\n{F}\n", "exit code 2, expected 0"),
        (f"{F}python\nx = 1\n\n1 / 0\n{F}\n", r"doc\.md:4: ZeroDivisionError"),
        (
            f"{F}python\nx = 1\n{F}\ntext\n{F}python\nassert x == 2, x\n{F}\n",
            r"doc\.md:6: AssertionError: 1",
        ),
        (f"{F}bash\ntrue\n{F}\n", r"doc\.md:1: language 'bash'"),
        (f"{F}\ntrue\n{F}\n", r"doc\.md:1: language ''"),
        ("~~~shell\ntrue\n~~~\n", r"doc\.md:1: language 'shell'"),
        (f"{F}sh\ntrue\n", r"doc\.md:1: the block never ends"),
        (f"<!-- not run: -->\n{F}sh\nfalse\n{F}\n", r"doc\.md:1: not run: says nothing"),
        (f"<!-- not run: slow -->\n\n{F}sh\nfalse\n{F}\n", r"doc\.md:2: a block has to follow directly"),
        ("<!-- not run: slow -->\n", r"doc\.md:1: no block follows"),
        (f"<!-- exits: one -->\n{F}sh\nfalse\n{F}\n", r"doc\.md:1: exits 'one'"),
    ],
)
def test_what_does_not_run_is_named_with_file_and_line(text, message, tmp_path, monkeypatch, home):
    if "sleep" in text:
        monkeypatch.setattr(sys.modules[__name__], "SECONDS", 1)
    with pytest.raises(pytest.fail.Exception, match=message):
        follow(text, "doc.md", tmp_path / "here", monkeypatch)


def test_what_is_marked_does_not_run_and_the_rest_does(tmp_path, monkeypatch, home):
    text = f"""
<!-- not run: it would fail -->
{F}sh
false
{F}
<!-- exits: 1 -->
{F}sh
touch made
false
{F}
{F}python
from pathlib import Path
found = Path("made").exists(), DIR
{F}
{F}console
$ parity --version > version
$ test -f \\
> right.py
this is output
{F}
{F}text
false
{F}
"""
    names = follow(text, "doc.md", tmp_path / "here", monkeypatch)
    assert names["found"] == (True, "DIR")
    assert (tmp_path / "here" / "version").read_text().startswith("gpt2-parity ")
