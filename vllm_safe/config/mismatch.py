"""What a kind of value says of a node that does not fit."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_safe.config.document import Mapping, Node, Scalar, Sequence, quote_value


@dataclass(frozen=True)
class Mismatch:
    """`problem` continues "SETTING ...", e.g. "cannot be 'eight'"; `expected` "" means: say what the kind expects."""

    node: Node
    problem: str
    expected: str = ""
    suggestion: str = ""


class MismatchError(Exception):
    """A value that cannot be used, with everything that is wrong in it."""

    def __init__(self, *flaws: Mismatch) -> None:
        super().__init__(*flaws)
        self.flaws = flaws


def mismatch(node: Node, suggestion: str = "", expected: str = "") -> MismatchError:
    """The plain refusal of a value."""
    return MismatchError(Mismatch(node, f"cannot be {_name(node)}", expected, suggestion))


def node_text(node: Node) -> str:
    """What is written, for kinds that take a text; quoted or not makes no difference. Flawed if it is a list, a section or nothing."""
    if not isinstance(node, Scalar):
        raise mismatch(node)
    if node.tag == "null":
        raise MismatchError(Mismatch(node, "has no value"))
    return node.text


def is_null(node: Node) -> bool:
    """Whether nothing is written, or YAML's own word for it: null or ~."""
    return isinstance(node, Scalar) and node.tag == "null"


def _name(node: Node) -> str:
    if isinstance(node, Mapping):
        return "a section"
    return "a list" if isinstance(node, Sequence) else quote_value(node.text)
