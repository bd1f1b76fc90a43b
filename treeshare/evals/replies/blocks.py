"""Blocks of code in a reply: fenced ones as CommonMark has them, and code that stands there without a fence.

Lists, quotes, indentation and fences are markdown-it-py's work, which passes CommonMark's own tests and takes
time in proportion to the text. Beyond CommonMark, as models write it and people read it: a fence may open
after words and close after the last line of code; blocks of HTML hide no fence.
"""

from __future__ import annotations

import html
import re
import textwrap
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from treeshare.evals.replies.source import Source, parsed
from treeshare.evals.replies.unfenced import code_runs

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.ruler import RuleOptionsType
    from markdown_it.rules_block import StateBlock
    from markdown_it.token import Token

_PYTHON = re.compile(
    r"i?py(?:thon)?[0-9.]{0,8}|py(?:thon)?[-_]?(?:repl|console|con)|sage|\S{1,200}\.py", re.IGNORECASE
)
_NO_LANGUAGE = ("", "text", "txt", "plaintext", "plain", "code", "none", "pseudocode")
_MARKDOWN = ("markdown", "md")
_LANGUAGE_END = re.compile(r"[\s,;:={}]")
_LIKE_PYTHON = re.compile(r"^[ \t]{0,40}(?:async )?def \w{1,200}\(|= ?(?:int\()?input\(", re.MULTILINE)
_FENCE_BEHIND_WORDS = re.compile(r"(?P<words>[^`\n]*+)(?P<fence>`{3,}+)[ \t]{0,9}[\w+#.-]{0,40}[ \t]*+")
_HTML_TAG = re.compile(r"</?(?:pre|code)(?: [^<>\n]{0,200})?>", re.IGNORECASE)
_EARLY_CLOSERS = 4
"""Lines of one block that are tried as its end, at most."""
_EARLY_CLOSED = 16
"""Blocks of one text that are looked through for such a line, at most."""
_MAX_NESTING = 2


@dataclass(frozen=True, kw_only=True)
class Block:
    """Code in a reply.

    Attributes:
        source: The code, and what is known of it.
        lead_in: The words before it.
        is_fenced: Whether it stands in a fence, or is indented as code.
    """

    source: Source
    lead_in: str
    is_fenced: bool = True


def python_blocks(text: str) -> list[Block]:
    """What in a text is Python, in its order: of other languages, data or output nothing."""
    return _python_blocks(text, 0)


def _python_blocks(text: str, depth: int) -> list[Block]:
    lines = text.split("\n")
    tokens = _reply_parser().parse(text)
    found: list[tuple[int, Block]] = []
    free_from = 0
    for token in tokens:
        if token.type != "fence":
            continue
        assert token.map is not None
        first, end = token.map
        found += _unfenced(lines, free_from, first)
        free_from = max(free_from, end)
        language = _language(token.info)
        lead_in = _lead_in(lines, first)
        if language in _MARKDOWN and depth < _MAX_NESTING:
            found += [(first, block) for block in _python_blocks(token.content, depth + 1)]
        elif (is_named := _PYTHON.fullmatch(language)) or language in _NO_LANGUAGE:
            source = _without_words(token, Source.of(token.content))
            if is_named or _is_python(source, token.content):
                found.append((first, Block(source=source, lead_in=lead_in)))
    found += _unfenced(lines, free_from, len(lines))
    if not found:
        found = _indented(tokens)
    return [block for _, block in found]


def _without_words(token: Token, source: Source) -> Source:
    """The code of a fence that never closes, without words after it; code that is cut off stays whole."""
    assert token.map is not None
    num_lines = token.content.count("\n") + (not token.content.endswith("\n"))
    is_closed = token.map[1] - token.map[0] - 1 > num_lines
    if source.tree is not None or is_closed:
        return source
    runs = code_runs(token.content)
    first = runs[0][1] if len(runs) == 1 else source
    return first if source.defines <= first.defines else source


def _unfenced(lines: list[str], first: int, end: int) -> list[tuple[int, Block]]:
    if not any(line.strip() for line in lines[first:end]):
        return []
    text = "\n".join(lines[first:end]) + ("\n" if end < len(lines) else "")
    if "<code" in text or "<pre" in text:
        text = html.unescape(_HTML_TAG.sub("\n", text))
    own_lines = text.split("\n")
    return [
        (first, Block(source=source, lead_in=_lead_in(own_lines, line), is_fenced=False))
        for line, source in code_runs(text)
    ]


def _indented(tokens: list[Token]) -> list[tuple[int, Block]]:
    """Markdown's indented code, where there is no other; a fence that is indented too far is in there."""
    found = []
    for token in tokens:
        if token.type == "code_block" and token.map is not None:
            content = textwrap.dedent(token.content)
            inner = [token.content for token in _reply_parser().parse(content) if token.type == "fence"]
            for code in inner or [content]:
                source = Source.of(code)
                if _is_python(source, code):
                    found.append((token.map[0], Block(source=source, lead_in="")))
    return found


def _language(info: str) -> str:
    """The language that a fence's info string names: ``{.Python title="a"}`` is ``python``."""
    words = info.strip().lstrip("{.").strip()
    return _LANGUAGE_END.split(words, maxsplit=1)[0].lower() if words else ""


def _is_python(source: Source, code: str) -> bool:
    """Whether code of no language is Python, and more than a value such as a sample's numbers."""
    return source.has_statements if source.tree is not None else bool(_LIKE_PYTHON.search(code))


def _lead_in(lines: list[str], line: int) -> str:
    """The last words before a line."""
    for before in range(line - 1, max(-1, line - 4), -1):
        if lines[before].strip():
            return lines[before][-300:]
    return ""


@cache
def _reply_parser() -> MarkdownIt:
    """Blocks alone; what cannot hide or open a fence is not looked for."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"maxNesting": 100})
    parser.core.ruler.enableOnly(["normalize", "block"])
    parser.disable(["html_block", "reference", "lheading"])
    rest: RuleOptionsType = {"alt": ["paragraph", "blockquote", "list"]}
    parser.block.ruler.at("fence", _fence, rest)
    parser.block.ruler.before("paragraph", "fence_behind_words", _fence_behind_words, rest)
    return parser


def _fence(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """A rule of markdown-it's: CommonMark's fences, and those that close after the last line of code."""
    from markdown_it.rules_block import fence

    found = fence(state, start_line, end_line, silent)
    if found and not silent:
        token = state.tokens[-1]
        _keep_indentation(state, token, start_line)
        _close_early(state, token, start_line)
    return found


def _keep_indentation(state: StateBlock, token: Token, start_line: int) -> None:
    """Take off a fence's indentation only if all lines of its code have it.

    CommonMark takes what there is: harmless in a text, but of lines with less the others' depth would change.
    """
    indentation = " " * (state.sCount[start_line] - state.blkIndent)
    end = start_line + 1 + token.content.count("\n")
    lines = state.getLines(start_line + 1, end, state.blkIndent, True)
    if not all(line.startswith(indentation) for line in lines.split("\n") if line.strip()):
        token.content = lines


def _fence_behind_words(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """A rule of markdown-it's: a fence at the end of a line of words."""
    begin = state.bMarks[start_line] + state.tShift[start_line]
    line = state.src[begin : state.eMarks[start_line]]
    found = _FENCE_BEHIND_WORDS.fullmatch(line) if "```" in line else None
    if found is None or not found["words"].strip() or state.is_code_block(start_line):
        return False
    shift = state.tShift[start_line]
    state.tShift[start_line] += found.start("fence")
    try:
        return _fence(state, start_line, end_line, silent)
    finally:
        state.tShift[start_line] = shift


def _close_early(state: StateBlock, token: Token, start_line: int) -> None:
    """End a block at a fence after a line of code, where it is Python up to there and not up to its end."""
    if token.markup not in token.content or state.env.get("early", 0) >= _EARLY_CLOSED:
        return
    state.env["early"] = state.env.get("early", 0) + 1
    if parsed(token.content) is not None:
        return
    lines = token.content.split("\n")
    ends = [i for i, line in enumerate(lines) if line.rstrip().endswith(token.markup)]
    for i in ends[:_EARLY_CLOSERS]:
        last = lines[i].rstrip().removesuffix(token.markup)
        code = "\n".join([*lines[:i], last] if last.strip() else lines[:i]) + "\n"
        if token.markup[0] not in last and parsed(code) is not None:
            token.content = code
            state.line = start_line + i + 2
            token.map = [start_line, state.line]
            return
