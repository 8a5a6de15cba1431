"""What README and docs say: their blocks of code, and every command in them. `test_docs.py` runs these."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

PAGES = [
    page.relative_to(REPOSITORY).as_posix()
    for page in (
        REPOSITORY / "README.md",
        REPOSITORY / "CONTRIBUTING.md",
        *sorted((REPOSITORY / "docs").glob("*.md")),
        *sorted((REPOSITORY / "docs" / "adr").glob("*.md")),
        *sorted((REPOSITORY / "charts").glob("*/README.md")),
    )
]

_PROGRAM = re.compile(r"(?:.*/)?(scripts/[a-z0-9]+|\.ci/run)|(?:.*/)?(mnist-job|mnist-k8s|helm|kubectl|docker)")
_BEFORE_A_PROGRAM = re.compile(r"[A-Za-z_]\w*=.*|timeout|-s|KILL|\d+|until|exec|do", re.DOTALL)
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_OPERATORS = ";&|()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block of code or of printed text.

    Attributes:
        line: of its first line of text, from 1.
        language: such as `python`; empty for an indented block.
        text: without its indentation.
    """

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command of a page, without what is before the program and after a redirection.

    Attributes:
        block: the block that it is in; None for one in the running text or in a table.
        words: the program, such as `mnist-job` or `scripts/run`, and its arguments.
    """

    page: str
    line: int
    words: tuple[str, ...]
    block: Block | None = None

    @property
    def program(self) -> str:
        return self.words[0]

    @property
    def text(self) -> str:
        return shlex.join(self.words)

    @property
    def is_mention(self) -> bool:
        """Whether the text only names the command: nothing but the program and its verb."""
        return self.block is None and all(re.fullmatch(r"[a-z]+", word) for word in self.words[1:])

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command line of a block, as typed, and what the page says it prints."""

    script: str
    printed: tuple[str, ...]


def read_text(page: str) -> list[tuple[int, str]]:
    """The lines of a page outside of blocks, each with its number; a block counts as an empty line."""
    inside = {number for block in read_blocks(page) for number in _lines_of(block)}
    return [(number, "" if number in inside else line) for number, line in enumerate(_lines(page), 1)]


def read_blocks(page: str) -> list[Block]:
    """All blocks of a page, fenced and indented, in their order."""
    lines, blocks, at = _lines(page), [], 0
    while at < len(lines):
        start, line = at, lines[at]
        at += 1
        if line.startswith("```"):
            at = lines.index("```", at)
            blocks.append(_block(page, start + 1, lines[start + 1 : at], language=line[3:]))
            at += 1
        elif line.startswith("    ") and not lines[start - 1].strip():
            while at < len(lines) and (lines[at].startswith("    ") or not lines[at].strip()):
                at += 1
            blocks.append(_block(page, start, lines[start:at], language=""))
    return blocks


def find_block(page: str, text: str) -> Block:
    """The one block of a page that holds this text."""
    found = [block for block in read_blocks(page) if text in block.text]
    assert len(found) == 1, f"{page}: {len(found)} blocks hold {text!r}"
    return found[0]


def read_commands(page: str) -> list[Command]:
    """Every command of a page that begins with a program of ours, or with one that it is used with."""
    return sorted([*_commands_of_blocks(page), *_commands_of_text(page)], key=lambda command: command.line)


def steps_of(block: Block) -> list[Step]:
    """A printed session: each line after `$ `, and what follows it."""
    steps: list[tuple[str, list[str]]] = []
    for _, line in _whole_lines(block):
        if line.startswith("$ "):
            steps.append((line[2:], []))
        elif steps and line.strip():
            steps[-1][1].append(line)
    return [Step(script=script, printed=tuple(printed)) for script, printed in steps]


def split_commands(text: str, *, aliases: dict[str, str] | None = None) -> Iterator[tuple[str, ...]]:
    """The words of each simple command of a line of shell that begins with a known program."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=_OPERATORS + "<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for token in [*lexer, ";"]:
        if set(token) <= set(_OPERATORS):
            yield from _simple(words, aliases if aliases is not None else {})
            words = []
        else:
            words.append(token)


def _simple(words: list[str], aliases: dict[str, str]) -> Iterator[tuple[str, ...]]:
    for at, word in enumerate(words):
        if set(word) <= set("<>"):
            words = words[:at]
            break
    if len(words) == 1 and (assignment := _ASSIGNMENT.fullmatch(words[0])):
        aliases["$" + assignment[1]] = assignment[2]
    while words and not _PROGRAM.fullmatch(words[0]):
        if words[0] in aliases:
            words = [*shlex.split(aliases[words[0]]), *words[1:]]
        elif _BEFORE_A_PROGRAM.fullmatch(words[0]):
            words = words[1:]
        else:
            return
    if words:
        inner = words.index("--") if words[0] == "kubectl" and "--" in words else len(words)
        found = _PROGRAM.fullmatch(words[0])
        assert found
        yield (found[1] or found[2], *words[1:inner])
        yield from _simple(words[inner + 1 :], aliases)


def _commands_of_blocks(page: str) -> Iterator[Command]:
    for block in read_blocks(page):
        if block.language not in ("", "sh", "bash", "console"):
            continue
        aliases: dict[str, str] = {}
        is_session = any(line.startswith("$ ") for line in block.text.splitlines())
        for number, line in _whole_lines(block):
            if is_session and not line.startswith("$ "):
                continue
            for words in _try_split(line.removeprefix("$ "), aliases):
                yield Command(page=page, line=number, words=words, block=block)


def _try_split(line: str, aliases: dict[str, str]) -> list[tuple[str, ...]]:
    """None for what is no shell, such as printed text with one quote."""
    try:
        return list(split_commands(line, aliases=aliases))
    except ValueError:
        if _PROGRAM.fullmatch(line.split(maxsplit=1)[0]):
            raise
        return []


def _commands_of_text(page: str) -> Iterator[Command]:
    """In spans of code; in a table of commands `show RUN` goes on with the program of the command before it."""
    program = ""
    for number, is_cell, paragraph in _paragraphs(read_text(page)):
        verb: tuple[str, ...] = ()
        for match in _SPAN.finditer(paragraph):
            text = " ".join(re.sub(r"[\[\]]", "", match[1]).split())
            if text.startswith("--set "):
                text = f"helm install {text}"
            elif is_cell and program and not _PROGRAM.fullmatch(text.split()[0]):
                text = " ".join((program, *(verb if text.startswith("-") else ()), text))
            for words in _try_split(text, {}):
                program, verb = words[0], words[1:2]
                yield Command(page=page, line=number + paragraph[: match.start()].count("\n"), words=words)


def _paragraphs(lines: Sequence[tuple[int, str]]) -> Iterator[tuple[int, bool, str]]:
    """Text between empty lines, and each cell of a table: its first line, whether it is of a column `command`, the text."""
    gathered: list[str] = []
    is_commands = False
    for number, line in [*lines, (len(lines) + 1, "")]:
        if line.startswith("|"):
            first, _, rest = line[1:].replace(r"\|", " ").partition("|")
            is_commands = first.strip() == "command" or (is_commands and not gathered)
            yield number, is_commands, first
            yield number, False, rest
        elif line.strip():
            gathered.append(line)
            continue
        if not line.startswith("|"):
            is_commands = False
        if gathered:
            yield number - len(gathered), False, "\n".join(gathered)
            gathered = []


def _whole_lines(block: Block) -> Iterator[tuple[int, str]]:
    """Lines with those that a backslash continues, each with the number of its first line."""
    begun, start = "", 0
    for number, line in enumerate(block.text.splitlines(), block.line):
        start, begun = (start, begun + line.strip()) if begun else (number, line)
        if begun.endswith("\\"):
            begun = begun[:-1]
            continue
        yield start, begun
        begun = ""


def _block(page: str, start: int, lines: list[str], *, language: str) -> Block:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return Block(page=page, line=start + 1, language=language, text="\n".join(line[margin:] for line in lines))


def _lines_of(block: Block) -> range:
    return range(block.line - bool(block.language), block.line + len(block.text.splitlines()) + bool(block.language))


def _lines(page: str) -> list[str]:
    return Path(REPOSITORY / page).read_text("utf-8").splitlines()
