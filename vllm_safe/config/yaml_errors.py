"""What is wrong with a file that is no YAML, in words for people who do not know YAML's grammar."""

from __future__ import annotations

import re

import yaml

TOO_DEEP = "nested too deeply"

_TAB = "a tab; YAML is indented with spaces: put spaces in its place"

# A part of PyYAML's problem, and what to say instead. The first that fits is used.
_WORDS = (
    (TOO_DEEP, "lists or sections nested more than 32 deep; expected two or three levels"),
    (r"character '\t' that cannot start", _TAB),
    ("character '%' that cannot start", "a value cannot begin with %; expected a number before it, as in 90%, or the text in quotes"),
    ("that cannot start any token", "a text cannot begin with this character; put the text in quotes"),
    ("found unexpected document separator", "a quote that is not closed"),
    ("found unexpected end of stream", "a quote that is not closed"),
    ("could not find expected ':'", "a line without a colon; expected `key: value`"),
    ("sequence entries are not allowed", "a list item (-) where no list can stand; put it in a line of its own, indented below its key"),
    ("mapping keys are not allowed", "a key where none can stand; put it in a line of its own"),
    ("mapping values are not allowed", "a second colon in one line, or a line indented too far; put a text that has ': ' in it in quotes"),
    ("expected alphabetic or numeric character", "an unquoted text cannot begin with * or &; put it in quotes"),
    ("undefined alias", "an alias (*) for a name that is not given with & above; for a text that begins with *, put it in quotes"),
    ("duplicate anchor", "the same name is given twice with &; use another name"),
    ("unknown escape character", "an unknown \\ escape; in single quotes a backslash is just a backslash"),
    ("escape sequence of", "an incomplete \\ escape; in single quotes a backslash is just a backslash"),
    ("another document", "a second document begins here (---); expected one document"),
    ("expected '<document start>'", "something after the end of the document; expected one document"),
    ("expected ',' or ']'", "a list [...] that is not closed, or lacks a comma"),
    ("expected ',' or '}'", "a mapping {...} that is not closed, or lacks a comma"),
    ("expected <block end>, but found '<scalar>'", "text after the end of a value; put all of it in one pair of quotes"),
    ("expected <block end>", "this does not line up with what is above it; give keys of one section the same indentation"),
    ("expected the node content, but found '<stream end>'", "the end of the file within a [ or { that is not closed"),
    ("expected the node content", "a value is missing here"),
    ("chomping or indentation", "only a comment may follow | or >; the text begins in the next line"),
    ("comment or a line break", "only a comment may follow | or >; the text begins in the next line"),
    ("undefined tag handle", "an unknown tag (!); for a text that begins with !, put it in quotes"),
)

Place = tuple[int, int, str]


def explain_yaml_error(error: yaml.MarkedYAMLError, text: str) -> list[Place]:
    """(line, column, text) of the mistake, from 1; of each, where more of the same kind can be seen."""
    problem = str(error.problem)
    mark = error.problem_mark or error.context_mark
    words = next((words for part, words in _WORDS if part in problem), f"not valid YAML: {problem}")
    if any(
        part in problem for part in ("end of stream", "stream end", "document separator", "expected ':'")
    ):  # noticed far from where it began
        mark = error.context_mark or mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
    found = [(line, column, words)]
    if words == _TAB:  # whoever indents with tabs does it in every line
        rest = enumerate(text.splitlines()[line:], line + 1)
        found += [(number, len(indent[0]), _TAB) for number, row in rest if (indent := re.match(r" *\t", row))]
    return found
