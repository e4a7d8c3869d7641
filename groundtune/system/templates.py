"""Bounds for chat templates, which are programs: how many steps they take, and how much they build.

Jinja's restricted mode keeps a template away from files and code, but loops in loops may run for years, and a text that
is doubled sixty times fills any memory. transformers compiles every template in the environment below instead.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from transformers.utils import chat_template_utils

MOST_STEPS = 300_000  # turns of loops, calls, thousands of characters; a dialogue of 1,000 messages takes 10,000
MOST_CHARACTERS = 10_000_000  # in one value, and written in all
_MOST_PRODUCT = 10**9  # what a call might build of a long text: its length times the largest argument
# In a format: a width of a million, or one that is an argument ("%*d", "{:{}}").
_WIDE = re.compile(r"\d{7,}|%[-+ #0]*\*|\{[^{}]*\{")


def bound_templates() -> None:
    """From now on, every chat template in this process is compiled in `BoundedEnvironment`."""
    setattr(chat_template_utils, "ImmutableSandboxedEnvironment", BoundedEnvironment)  # noqa: B010  it is a type


class _Code(CodeGenerator):
    """Compiles a template so that the environment sees each turn of a loop, and each join (`~`)."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        node.iter = self._call("turns", [node.iter], node)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.visit(self._call("joined", node.nodes, node), frame)

    def _call(self, name: str, arguments: list[Any], at: nodes.Node) -> nodes.Call:
        where: dict[str, Any] = {"lineno": at.lineno, "environment": at.environment}
        return nodes.Call(nodes.EnvironmentAttribute(name, **where), arguments, [], None, None, **where)


class _Template(Template):
    def new_context(self, *args: Any, **kwargs: Any) -> Any:
        """The context of a new rendering, with which counting starts again."""
        self.environment.steps = self.environment.characters = 0  # type: ignore[attr-defined]
        return super().new_context(*args, **kwargs)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's restricted mode in which each rendering has a number of steps, and each value a largest size."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    code_generator_class = _Code
    template_class = _Template

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.steps = self.characters = 0
        self.optimized = False  # nothing is computed while a template is compiled
        self.finalize = self._written
        self.filters = {name: self._filter(function) for name, function in self.filters.items()}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and (abs(left) > 10**6 or abs(right) > 64):
            raise SecurityError("a power is too large")
        if operator == "*":
            self._measure(abs(_size(left) * _size(right)) if _is_long(left) or _is_long(right) else 0)
        if operator == "%" and isinstance(left, str):
            self._check_format(left)
        return self._sized(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        self._step()
        subject = getattr(function, "__self__", None)  # of a method: 'x'.ljust
        if isinstance(subject, (str, list, tuple, dict)):
            self._check_arguments(getattr(function, "__name__", ""), subject, [*args, *kwargs.values()])
        return self._sized(super().call(context, function, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Any:
        if getattr(value, "__name__", "") in ("format", "format_map") and isinstance(value.__self__, str):
            self._check_format(value.__self__)
        return super().wrap_str_format(value)

    def turns(self, values: Iterable[Any]) -> Iterator[Any]:
        """The values of a loop, each of which is a step."""
        for value in values:
            self._step()
            yield value

    def joined(self, *values: Any) -> str:
        """The values as one text."""
        return self._sized("".join(map(str, values)))

    def _filter(self, function: Callable[..., Any]) -> Callable[..., Any]:
        passed = hasattr(function, "jinja_pass_arg")  # then the first argument is Jinja's own

        @functools.wraps(function)  # which copies that mark too
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self._step()
            subject, *others = args[passed:]
            self._check_arguments(function.__name__, subject, [*others, *kwargs.values()])
            return self._sized(function(*args, **kwargs))

        return bounded

    def _check_arguments(self, name: str, subject: Any, others: list[Any]) -> None:
        self._sized(subject)
        if "format" in name:
            self._check_format(str(subject))
        largest = max((abs(_size(other)) for other in others), default=0)
        self._measure(largest)
        if largest * _size(subject) > _MOST_PRODUCT:
            self._measure(_MOST_PRODUCT)

    def _check_format(self, text: str) -> None:
        if _WIDE.search(text):
            raise SecurityError("a format is too wide")

    def _step(self, n: int = 1) -> None:
        self.steps += n
        if self.steps > MOST_STEPS:
            raise SecurityError(f"it takes more than {MOST_STEPS:,} steps")

    def _written(self, value: Any) -> Any:
        self.characters += _size(value) if isinstance(value, str) else 0
        self._measure(self.characters)
        return value

    def _sized(self, value: Any) -> Any:
        """`value`, if it is not too large; a long one counts as several steps, as whatever reads it takes long."""
        size = _size(value) if _is_long(value) else 0
        self._measure(size)
        self._step(size // 1000)
        return value

    def _measure(self, size: float) -> None:
        if size > MOST_CHARACTERS:
            raise SecurityError(f"it builds more than {MOST_CHARACTERS:,} characters")


def _is_long(value: Any) -> bool:
    return isinstance(value, (str, list, tuple, dict, range))


def _size(value: Any) -> Any:
    """The length of a text or list; a number itself, as it may become a length."""
    return len(value) if _is_long(value) else value if isinstance(value, (int, float)) else 0
