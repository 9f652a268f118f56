"""The refusal of a value that does not fit its setting."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_safe.config.document import Mapping, Node, Scalar, Sequence, quote_value


@dataclass(frozen=True)
class Mismatch:
    """One thing that is wrong with a value.

    `problem` continues the sentence "SETTING ...", for example "cannot be 'eight'". Where `expected` is "", the message uses the
    expectation of the setting's type. `suggestion` is what was probably meant, or "".
    """

    node: Node
    problem: str
    expected: str = ""
    suggestion: str = ""


class MismatchError(Exception):
    """A value that cannot be used. `flaws` has everything that is wrong with it."""

    def __init__(self, *flaws: Mismatch) -> None:
        super().__init__(*flaws)
        self.flaws = flaws


def mismatch(node: Node, suggestion: str = "", expected: str = "") -> MismatchError:
    """Return the error "SETTING cannot be VALUE" for a node."""
    return MismatchError(Mismatch(node, f"cannot be {_name(node)}", expected, suggestion))


def node_text(node: Node) -> str:
    """Return the text of a node, quoted or not. Raises MismatchError if the node is a list, a section or empty."""
    if not isinstance(node, Scalar):
        raise mismatch(node)
    if node.tag == "null":
        raise MismatchError(Mismatch(node, "has no value"))
    return node.text


def is_null(node: Node) -> bool:
    """Return whether the node is empty, or YAML's null or ~."""
    return isinstance(node, Scalar) and node.tag == "null"


def _name(node: Node) -> str:
    if isinstance(node, Mapping):
        return "a section"
    return "a list" if isinstance(node, Sequence) else quote_value(node.text)
