"""Explanations of YAML errors for people who do not know YAML's grammar."""

from __future__ import annotations

import re

import yaml

TOO_DEEP = "nested too deeply"

_TAB = "a tab; YAML is indented with spaces: replace it by spaces"

# A part of PyYAML's problem, and the message in its place. The first one that matches is used.
_WORDS = (
    (TOO_DEEP, "lists or sections nested more than 32 deep; expected two or three levels"),
    (r"character '\t' that cannot start", _TAB),
    ("character '%' that cannot start", "a value cannot begin with %; expected a number before it, as in 90%, or the text in quotes"),
    ("that cannot start any token", "a text cannot begin with this character; put the text in quotes"),
    ("found unexpected document separator", "a quote that is not closed"),
    ("found unexpected end of stream", "a quote that is not closed"),
    ("could not find expected ':'", "a line without a colon; expected `key: value`"),
    ("sequence entries are not allowed", "a list item (-) where none is allowed; put it in a line of its own, indented below its key"),
    ("mapping keys are not allowed", "a key where none is allowed; put it in a line of its own"),
    ("mapping values are not allowed", "a second colon in one line, or a line indented too far; put a text that contains ': ' in quotes"),
    ("expected alphabetic or numeric character", "an unquoted text cannot begin with * or &; put it in quotes"),
    ("undefined alias", "an alias (*) for a name that no & above defines; put a text that begins with * in quotes"),
    ("duplicate anchor", "the same name is defined twice with &; use another name"),
    ("unknown escape character", "an unknown \\ escape; in single quotes a backslash has no special meaning"),
    ("escape sequence of", "an incomplete \\ escape; in single quotes a backslash has no special meaning"),
    ("another document", "a second document begins here (---); expected one document"),
    ("expected '<document start>'", "something after the end of the document; expected one document"),
    ("expected ',' or ']'", "a list [...] that is not closed, or lacks a comma"),
    ("expected ',' or '}'", "a mapping {...} that is not closed, or lacks a comma"),
    ("expected <block end>, but found '<scalar>'", "text after the end of a value; put all of it in one pair of quotes"),
    ("expected <block end>", "wrong indentation; indent all keys of one section by the same number of spaces"),
    ("expected the node content, but found '<stream end>'", "the file ends inside a [ or { that is not closed"),
    ("expected the node content", "a value is missing here"),
    ("chomping or indentation", "only a comment may follow | or >; the text begins in the next line"),
    ("comment or a line break", "only a comment may follow | or >; the text begins in the next line"),
    ("undefined tag handle", "an unknown tag (!); put a text that begins with ! in quotes"),
)

Place = tuple[int, int, str]


def explain_yaml_error(error: yaml.MarkedYAMLError, text: str) -> list[Place]:
    """Return the mistake as (line, column, text), counted from 1, and further mistakes of the same kind where they can be seen."""
    problem = str(error.problem)
    mark = error.problem_mark or error.context_mark
    words = next((words for part, words in _WORDS if part in problem), f"not valid YAML: {problem}")
    if any(
        part in problem for part in ("end of stream", "stream end", "document separator", "expected ':'")
    ):  # PyYAML notices these far from where they begin
        mark = error.context_mark or mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
    found = [(line, column, words)]
    if words == _TAB:  # a file that is indented with tabs has them in every line
        rest = enumerate(text.splitlines()[line:], line + 1)
        found += [(number, len(indent[0]), _TAB) for number, row in rest if (indent := re.match(r" *\t", row))]
    return found
