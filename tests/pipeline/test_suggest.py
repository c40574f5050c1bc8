"""A description of a known concept gives a valid spec; that of an unknown one a draft that says it must be checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from safear_edit.cli import main
from safear_edit.errors import UsageError
from safear_edit.families.sentences import ROWS
from safear_edit.families.text import minilm
from safear_edit.pipeline import suggest
from safear_edit.pipeline.suggest import confirmed, propose
from safear_edit.spec.spec import load_spec


def test_a_known_concept_is_meant_by_its_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["init", "--from", "the woodblock prints of Katsushika Hokusai", "--yes"]) == 0
    assert "taken for the built-in concept hokusai" in capsys.readouterr().err
    spec = load_spec(Path("hokusai.yaml"))
    assert spec.judge.label == "style=hokusai" and "Katsushika Hokusai" in spec.erase.aliases
    assert main.run(["validate", "hokusai.yaml"]) == 0, "its gates can be decided"
    assert main.run(["init", "pets", "--from", "puppies and dogs", "--yes"]) == 0
    spec = load_spec(Path("pets.yaml"))
    assert (spec.name, spec.kind, spec.judge.label) == ("pets", "object", "object=dog")
    assert all("dog" not in template for template in spec.anchor.templates)
    assert main.run(["validate", "pets.yaml"]) == 0


def test_an_unknown_one_is_a_draft(tmp_path: Path) -> None:
    found = propose("the etchings of Rembrandt")
    assert found.known == "" and found.words.concept == "Etchings Rembrandt" and found.nearness < suggest.KNOWN
    assert "check every one" in found.lines()[0] and len(found.neighbours) == suggest.NEIGHBOURS
    with pytest.raises(UsageError, match="a description in words"):
        propose(" ?! ")


def test_all_names_are_encoded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Concept by concept, each wrote the whole cache again."""
    encode, asked = minilm().vectors, list[int]()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(type(minilm()), "vectors", lambda self, texts: asked.append(len(texts)) or encode(texts))
    propose("cubist faces")
    assert asked[0] == 1 and sum(asked) > 100 and len(asked) == 1 + -(-sum(asked[1:]) // ROWS)


def test_an_assistants_names_are_split_between_training_and_evaluation() -> None:
    asked: list[str] = []

    def assistant(question: str) -> str:
        asked.append(question)
        return "\n".join(
            ["- Rembrandt van Rijn", "2. the Dutch master", "* Rembrandt van Rijn", "{x}", "a", "b", "c", "d"]
        )

    found = propose("the etchings of Rembrandt", name="rembrandt", assistant=assistant)
    words = found.words
    assert "the etchings of Rembrandt" in asked[0] and words.name == "rembrandt"
    assert words.held_out == ("Rembrandt van Rijn", "b") and words.train == ("d",)
    assert words.aliases == ("Rembrandt", "the Dutch master", "a", "c")
    few = propose("the etchings of Rembrandt", name="rembrandt", assistant=lambda question: "one\ntwo")
    assert few.words.held_out[0] == "the manner of Rembrandt"


def test_a_local_instruction_model_is_asked(tmp_path: Path) -> None:
    """A random one of four words: that it answers, and with words of its own, is all that can be said of it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"[UNK]": 0, "List": 1, "names": 2, "red": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]")
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}{% endfor %}"
    config = LlamaConfig(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, eos_token_id=None
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    answer = suggest.local_assistant(tmp_path)("List names")
    assert set(answer.split()) <= {"List", "names", "red"}


def test_a_no_takes_a_name_away() -> None:
    found = propose("the etchings of Rembrandt", name="rembrandt")
    left = confirmed(found, lambda question: "follower" not in question).words
    assert left.held_out == ("the manner of Rembrandt", "works of Rembrandt") and left.aliases == found.words.aliases


def test_bad_words_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, said in ((["init"], "a NAME"), (["init", "x", "--yes"], "--from"),
                        (["init", "--from", "x", "--assistant", str(tmp_path)], "transformers loads")):  # fmt: skip
        capsys.readouterr()
        assert main.run(words) == 2
        err = capsys.readouterr().err
        assert said in err and len(err.splitlines()) == 1, err
