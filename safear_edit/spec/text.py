"""The texts, numbers and lists that a spec is made of: what each may be, and in which words it is refused."""

from __future__ import annotations

from datetime import date
from itertools import product
from typing import Annotated, Any, NamedTuple, NoReturn

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from safear_edit.files.strict import FieldPath
from safear_edit.spec.prompts import normalise, one_line, placeholders

MAX_PROMPTS = 100_000
"""Most prompts that one list of templates × names × subjects may give."""
LONGEST = 300
"""Characters of a name, template or prompt."""
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"


class Part(BaseModel):
    """Base of everything in a spec or recipe: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(NamedTuple):
    """What is wrong at a field, in our own words; `at` is its path below what is being validated."""

    expected: str
    got: str
    fix: str
    at: FieldPath = ()


def refuse(expected: str, got: str, fix: str, at: FieldPath = ()) -> NoReturn:
    """Fail a pydantic validator with one problem."""
    raise refused(Problem(expected, got, fix, at))


def refused(problem: Problem, *others: Problem) -> PydanticCustomError:
    """What a pydantic validator raises about several problems at once."""
    also = [other._asdict() for other in others]
    return PydanticCustomError("refused", "expected {expected}, got {got}", {**problem._asdict(), "also": also})


def _printable(text: str) -> str:
    if (plain := one_line(text)) is None:
        refuse("printable text on one line", ascii(text), "remove line breaks and control characters")
    return plain


def _wordy(text: str) -> str:
    plain = _printable(text)
    if not normalise(plain):
        refuse("words", repr(text), "write at least one letter")
    return plain


def _bare(text: str) -> str:
    """A name, which stands in templates and is none itself."""
    if placeholders(text) != []:
        refuse("a name without braces", repr(text), "templates have the braces; write the name alone")
    return text


def _template(*allowed: str, required: tuple[str, ...]) -> AfterValidator:
    """A validator: every placeholder known, each required one there."""

    def check(text: str) -> str:
        found = placeholders(_wordy(text))
        want = " and ".join(f"{{{name}}}" for name in required)
        if found is None or set(found) - set(allowed):
            refuse(f"no braces but those of {want}", repr(text), "remove or correct the others")
        if missing := [name for name in required if name not in found]:
            refuse(f"a template with {want}", repr(text), f"add {{{missing[0]}}}")
        return text

    return AfterValidator(check)


def distinct(texts: tuple[str, ...]) -> tuple[str, ...]:
    seen: dict[str, str] = {}
    for index, text in enumerate(texts):
        if (key := normalise(text)) in seen:
            refuse("distinct entries", f"{text!r} after {seen[key]!r}", "remove one of them", (index,))
        seen[key] = text
    return texts


def _product(value: Any) -> Any:
    """[[a, b], [c, d]] -> ("a c", "a d", "b c", "b d"); a flat list becomes a plain tuple."""
    if not isinstance(value, list):
        return value
    if not value or not all(isinstance(part, list) for part in value):
        return tuple(value)
    if not all(isinstance(word, str) for part in value for word in part):
        refuse("lists of text", "something else inside", "put quotes around it")
    size = 1
    for part in value:
        size *= len(part)
    if size > MAX_PROMPTS:
        refuse(f"at most {MAX_PROMPTS} subjects", str(size), "shorten the lists")
    return tuple(" ".join(word for word in words if word) for words in product(*value))


Text = Annotated[str, Field(min_length=1, max_length=LONGEST), AfterValidator(_wordy)]
Note = Annotated[str, Field(max_length=4000)]
EraseTemplate = Annotated[Text, _template("alias", "subject", required=("alias", "subject"))]
AnchorTemplate = Annotated[Text, _template("subject", required=("subject",))]
MemberTemplate = Annotated[Text, _template("member", "subject", required=("member",))]
QuestionTemplate = Annotated[Text, _template("name", required=("name",))]
Questions = Annotated[tuple[QuestionTemplate, ...], AfterValidator(distinct)]
Name = Annotated[Text, AfterValidator(_bare)]
Names = Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(distinct)]
Subjects = Annotated[
    tuple[Annotated[str, Field(max_length=300), AfterValidator(_printable), AfterValidator(_bare)], ...],
    AfterValidator(distinct),
    BeforeValidator(_product),
    WithJsonSchema(
        {
            "description": "What is in the image. A list of lists is joined part by part: every combination.",
            "anyOf": [
                {"type": "array", "items": {"type": "string"}},
                {"type": "array", "items": {"type": "array", "items": {"type": "string"}}},
            ],
        }
    ),
]


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        refuse("a day as YYYY-MM-DD", repr(text), "write it like 2036-12-31")


Statement = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_wordy)]
Day = Annotated[str, Field(max_length=10), AfterValidator(_day), WithJsonSchema({"type": "string", "format": "date"})]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0, le=MAX_PROMPTS)]
