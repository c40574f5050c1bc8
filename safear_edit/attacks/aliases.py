"""Aliases: names and sentences for the concept that no training saw."""

from __future__ import annotations

from safear_edit.attacks.base import Concept, stored
from safear_edit.attacks.search import Ask, Option, OptionSearch, unnamed
from safear_edit.families.base import ModelFamily
from safear_edit.registry import attack
from safear_edit.spec.prompts import fill
from safear_edit.spec.spec import Spec


@attack("aliases", access="black-box")
class Aliases(OptionSearch):
    """Every held-out name in the usual sentences, and every held-out sentence with the usual names."""

    def options(self, base: ModelFamily, concept: Concept) -> list[Option]:
        """As the base class says."""
        return wordings(concept.spec)


def wordings(spec: Spec) -> list[Option]:
    """One option per held-out name and per held-out sentence of the spec; of a category (whose names may be a user's
    explicit prompts) records and pages name it by its hash."""
    plain = unnamed(spec)
    names = [Option(stored(spec, name), _called(spec, name), plain) for name in spec.paraphrases.held_out]
    sentences = spec.paraphrases.held_out_templates
    return names + [Option(stored(spec, text), _said(text), plain) for text in sentences]


def _called(spec: Spec, name: str) -> Ask:
    return lambda prompt: fill(spec.erase.templates[prompt.template], alias=name, subject=prompt.subject)


def _said(template: str) -> Ask:
    return lambda prompt: fill(template, alias=prompt.name, subject=prompt.subject)
