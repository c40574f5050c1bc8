"""Where a release's files lie: one concept's at the top, those of a stack in a folder each."""

from __future__ import annotations

from pathlib import Path

from safear_edit.files.layout import BASE, STACK, Layout, is_release, looks_released


def test_a_stack_has_a_folder_per_concept_and_one_concept_none(tmp_path: Path) -> None:
    alone = Layout.of(tmp_path)
    assert alone.concept("picasso") == tmp_path and alone.found_by("picasso") == tmp_path / "recipe.json"
    (tmp_path / STACK).write_text("{}")
    stack = Layout.of(tmp_path)
    assert stack.concept("picasso") == tmp_path / "concepts/picasso"
    assert stack.found_by("picasso") == tmp_path / "concepts/picasso/edit/recipe.json"


def test_an_edited_model_without_its_base_is_no_release(tmp_path: Path) -> None:
    assert not looks_released(tmp_path) and not is_release(tmp_path)
    (tmp_path / "edit").mkdir()
    (tmp_path / "edit/edit.json").write_text("{}")
    assert looks_released(tmp_path) and not is_release(tmp_path)
    (tmp_path / BASE).write_bytes(b"")
    assert is_release(tmp_path)


def test_one_concept_added_to_a_base_is_written_without_files_about_a_stack(tmp_path: Path) -> None:
    assert not Layout.to_write(tmp_path, concepts=1, changes=1).stacked
    for concepts, changes in ((2, 1), (1, 2), (2, 2)):  # a joint edit, one reweighted or left over, two edits
        assert Layout.to_write(tmp_path, concepts=concepts, changes=changes).stacked
