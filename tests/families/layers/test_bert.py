"""families/layers/bert.py against transformers' BertModel with MiniLM's weights: the same bits, padded or not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from safear_edit.families.text import MiniLM, minilm_folder

BATCHES = (
    [""],
    ["a house by Picasso"],
    ["a dog", "a castle under the moon in the manner of a Dutch painter who cut off his ear"],
    [f"a photo of {i} cats{' in a row' * (i % 7)}" for i in range(70)],
)


@pytest.mark.parametrize("prompts", BATCHES, ids=("nothing", "one", "padded", "many"))
def test_states_are_those_of_transformers(prompts: list[str]) -> None:
    from transformers import BertConfig, BertModel

    folder, text = minilm_folder(), MiniLM()
    theirs = BertModel(BertConfig.from_json_file(str(folder / "config.json"))).eval()
    theirs.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    encoded = text._tokenizer.encode_batch(prompts)
    ids = torch.tensor([one.ids for one in encoded])
    mask = torch.tensor([one.attention_mask for one in encoded])
    with torch.no_grad():
        wanted = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    states, seen = text.states(prompts)
    assert torch.equal(seen, mask.bool()) and torch.equal(states, wanted)


def test_gradients_reach_the_words() -> None:
    text = MiniLM()
    table, _ = text.word_table()
    table.requires_grad_(True)
    text.open().states(["a dog on a beach"])[0].square().sum().backward()
    assert table.weight.grad is not None and bool(table.weight.grad.any())


def test_nothing_of_transformers_models_is_imported() -> None:
    """It would take seconds."""
    code = "from safear_edit.families.text import MiniLM; MiniLM().states(['a dog']); import sys; "
    code += "print('transformers.modeling_utils' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
