"""bom.cdx.json: a CycloneDX 1.6 bill of materials of the edited model: identity, ancestor, numbers, limits, and what
took part in making and measuring it.

The library that validates it drops `modelCard` when it reads a BOM back, so the dict is written once and never
round-tripped. The format wants every number as a string.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

from safear_edit.compiler.plugins import Plugin
from safear_edit.evaluate.members import Member
from safear_edit.evaluate.stats import Rate
from safear_edit.report.schema import ConceptReport, Report
from safear_edit.report.sentences import percent

Json = dict[str, Any]
SHA256_DIGITS = 64


def bom(report: Report) -> Json:
    """The BOM as a dict; the serial number follows from the report, so the same report gives the same BOM."""
    reference = f"model:{report.report.id}"
    parts = [_model(report, f"{reference}/model"), *_others(report)]
    generator, _, version = report.report.generator.partition(" ")
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'safear-edit/report/{report.report.id}')}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": generator, "version": version}]},
            "component": {"type": "machine-learning-model", "name": report.subject.name, "bom-ref": reference},
        },
        "components": parts,
        "dependencies": [{"ref": reference, "dependsOn": sorted({part["bom-ref"] for part in parts})}],
    }


def to_json(report: Report) -> str:
    """The text of bom.cdx.json."""
    return json.dumps(bom(report), indent=2, ensure_ascii=False) + "\n"


def _model(report: Report, reference: str) -> Json:
    return {
        "type": "machine-learning-model",
        "bom-ref": reference,
        "name": report.subject.name,
        "version": report.report.id,
        **_hashes(report.subject.weights_digest),
        **_licences(report.subject.licence),
        "pedigree": {
            "ancestors": [
                {
                    "type": "machine-learning-model",
                    "name": report.base_model.reference,
                    **_hashes(report.base_model.digest),
                    **_licences(report.base_model.licence),
                }
            ],
            "notes": "; ".join(
                f"{c.concept} edited out by {c.edit.method}, recipe {c.protocol.recipe_digest}" for c in report.concepts
            ),
        },
        "modelCard": _card(report),
    }


def _others(report: Report) -> Iterator[Json]:
    """The model's files, and what took part beside it: the base's, judges, prompt sets, packages and plug-ins."""
    for file in report.subject.files:
        yield {"type": "file", "bom-ref": f"file:{file.name}", "name": file.name, **_hashes(file.sha256)}
    base = report.base_model.reference
    for name, digest in report.base_model.files.items():
        told = {"name": f"{base}/{name}", "description": "of the base model, as it was before the edit; not released"}
        yield {"type": "file", "bom-ref": f"base:{name}", "scope": "excluded", **told, **_hashes(digest)}
    if encoder := report.environment.text_encoder:
        told = {"name": encoder.name, "description": "reads the captions; not among the released files"}
        yield {"type": "machine-learning-model", "bom-ref": f"text-encoder:{encoder.name}", **told,
               **_hashes(encoder.sha256)}  # fmt: skip
    labels: dict[tuple[str, str], list[str]] = {}
    for judge in report.judges:
        labels.setdefault((judge.id.partition(":")[0], judge.digest), []).append(judge.label)
    for number, ((name, digest), asked) in enumerate(labels.items()):
        looked = ", ".join(asked)
        told = {"name": f"judge {name}: {looked}", "description": f"looked for {looked}"}
        yield {"type": "machine-learning-model", "bom-ref": f"judge:{number}:{name}", "version": digest[:12], **told,
               **_hashes(digest)}  # fmt: skip
    for concept in report.concepts:
        for part in concept.protocol.prompt_sets:
            name = f"prompts {concept.name}/{part.slice}"
            told = {"description": f"first {part.wanted} of {part.n} candidates, {part.source}"}
            yield {"type": "data", "bom-ref": name.replace(" ", ":"), "name": name, **told, **_hashes(part.sha256)}
    for name, version in report.environment.packages.items():
        told = {"name": name, "version": version, "purl": f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"}
        yield {"type": "library", "bom-ref": f"package:{name}", **told}
    yield from map(_plugin, report.environment.plugins)


def _plugin(one: Plugin) -> Json:
    """Code of another distribution that took part: a family, method or judge."""
    return {
        "type": "library",
        "bom-ref": f"plugin:{one.kind}:{one.name}",
        "name": one.distribution,
        "version": one.version,
        "description": f"brings {one.name} ({one.kind}), module {one.module}",
        **_hashes(one.sha256),
    }


def _card(report: Report) -> Json:
    return {
        "modelParameters": {
            "task": "text-to-image",
            "modelArchitecture": report.subject.architecture,
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "image"}],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [metric for concept in report.concepts for metric in _metrics(concept)]
        },
        "considerations": {
            "technicalLimitations": [*report.limitations, *(f"Not tested: {item}" for item in report.scope.not_tested)],
            "ethicalConsiderations": [
                {"name": risk.risk, "mitigationStrategy": f"{risk.mitigation} (evidence: {risk.evidence})"}
                for risk in report.residual_risks
            ],
        },
    }


def _metrics(concept: ConceptReport) -> Iterator[Json]:
    """The edited model's rates, with the base model's as a slice of their own."""
    for part in concept.erasure:
        yield from _metric(part.metric, f"{concept.name}/{part.slice}", part.erased)
        strict = f"{concept.name}/{part.slice} (unreadable counted as found)"
        yield from _metric(part.metric, strict, part.erased_strict)
    for group in concept.preservation:
        yield from _metric(group.metric, f"{concept.name}/{group.group}", group.edited_kept)
        yield from _metric(group.metric, f"{concept.name}/{group.group} (base model)", group.base_kept)
        yield from (_member(f"{concept.name}/{group.group}", one) for one in group.members)


def _metric(kind: str, part: str, rate: Rate | None) -> Iterator[Json]:
    if rate is not None:
        yield {
            "type": kind,
            "value": f"{rate.estimate:.6f}",
            "slice": f"{part}: {rate.k} of {rate.n}, {percent(rate.confidence)} {rate.method}",
            "confidenceInterval": {"lowerBound": f"{rate.low:.6f}", "upperBound": f"{rate.high:.6f}"},
        }


def _member(part: str, one: Member) -> Json:
    """What one member lost; the interval is open below, because only its upper bound decides."""
    way = " by content" if one.upper > one.upper95 else ""
    return {
        "type": "keep.drop",
        "value": f"{one.drop:.6f}",
        "slice": f"{part}/{one.name}: lost {one.lost}, gained {one.gained} of {one.n}, one-sided 95 % Tango bound{way}",
        "confidenceInterval": {"lowerBound": "-1.000000", "upperBound": f"{one.upper:.6f}"},
    }


def _hashes(digest: str) -> Json:
    """The field when there is a digest of that form, else nothing."""
    known = len(digest) == SHA256_DIGITS and all(c in "0123456789abcdef" for c in digest)
    return {"hashes": [{"alg": "SHA-256", "content": digest}]} if known else {}


def _licences(name: str) -> Json:
    """By name: the format's `id` takes only names of the SPDX list, which a base model's licence need not be."""
    return {"licenses": [{"license": {"name": name}}]}
