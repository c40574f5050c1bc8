"""registry: listing without imports, third parties, model references, built-in files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safear_edit import registry
from safear_edit.cli.listing import listing
from safear_edit.errors import UsageError
from safear_edit.families.load import load_model
from safear_edit.families.reference import ModelRef, all_published, published
from safear_edit.registry import find_builtin, lookup

PLUGIN = '''
from types import SimpleNamespace
class Toy:
    """A family with nothing in it."""
    name = "toy"
    provides = frozenset()
    weight_bytes = 0
    @classmethod
    def load(cls, ref, device="cpu"):
        made = cls()
        made.ref, made.device = ref, SimpleNamespace(type=device)
        return made
'''


def add_plugin(monkeypatch: pytest.MonkeyPatch, folder: Path, points: str, code: str = PLUGIN) -> None:
    """Make `folder` look like an installed distribution with these entry points."""
    (folder / "toy_plugin.py").write_text(code)
    about = folder / "toy_plugin-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugin\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "toy_plugin", raising=False)


def test_listing_and_compiling_need_no_torch() -> None:
    code = (
        "import sys; from safear_edit.cli import listing; from safear_edit.compiler import compile; "
        "from safear_edit.spec import spec; "
        "rows = [listing.listing(what) for what in ('models', 'methods', 'judges', 'concepts', 'recipes')]; "
        "assert all(row.summary for group in rows for row in group); "
        "assert rows[1] and rows[2] and rows[3]; "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_built_in_methods_are_found_by_reading() -> None:
    assert {"vce", "dpo", "sft"} <= set(registry.methods())
    entry = lookup("methods", "vce")
    assert (entry.module, entry.source) == ("safear_edit.methods.vce", "built in")
    loaded = entry.load()
    assert loaded.name == "vce" and loaded.paper.startswith("https://") and loaded.needs == frozenset()


def test_unknown_names_suggest() -> None:
    with pytest.raises(UsageError, match=r"one of .*vce, got 'vcee'; did you mean 'vce'\?"):
        lookup("methods", "vcee")
    with pytest.raises(UsageError, match="take one of these"):
        lookup("judges", "qqqqqq")
    with pytest.raises(UsageError, match="did you mean 'models'"):
        listing("model")


def test_third_party_family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    add_plugin(monkeypatch, tmp_path, "[safear_edit.families]\ntoy = toy_plugin:Toy\n")
    assert lookup("families", "toy").source == "toy-plugin"
    made: Any = load_model("toy:any", "cpu")
    assert (made.ref, made.device.type) == (ModelRef("toy", "any"), "cpu")


def test_a_third_party_family_brings_its_variants_and_layouts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are read from its source, and nothing of it is imported: the module would end this process."""
    code = """
raise SystemExit("imported")
class Toy:
    variants = {"small": Variant("a small one", files=("toy.bin",), repository="me/toy"), "mini": Variant("ours")}
    model_types = ("toy_model",)
    layouts = {"upstream": "run it"}
"""
    site, folder = tmp_path / "site", tmp_path / "weights"
    site.mkdir()
    folder.mkdir()
    add_plugin(monkeypatch, site, "[safear_edit.families]\ntoy = toy_plugin:Toy\n", code)
    assert ModelRef.parse("toy:small") == ModelRef("toy", "small")
    assert published("toy").layouts == {"upstream": "run it"}
    with pytest.raises(UsageError, match="did you mean 'small'"):
        ModelRef.parse("toy:smal")
    (folder / "config.json").write_text('{"model_type": "toy_model"}')
    assert ModelRef.parse(str(folder)) == ModelRef("toy", "weights", folder)
    assert "toy:small" in {row.name for row in listing("models")}


def test_values_that_a_third_party_computes_come_from_its_class(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = PLUGIN + "    layouts = {name: 'run it' for name in ('one', 'two')}\n"
    add_plugin(monkeypatch, tmp_path, "[safear_edit.families]\ntoy = toy_plugin:Toy\n", code)
    assert published("toy").layouts == {"one": "run it", "two": "run it"}


def test_what_is_read_of_a_family_is_what_its_class_has() -> None:
    for name, facts in all_published().items():
        own = lookup("families", name).load()
        assert (dict(own.variants), tuple(own.model_types), dict(own.layouts)) == (
            facts.variants, facts.model_types, facts.layouts,
        )  # fmt: skip
        assert facts.variants and facts.layouts
        assert all(one.licence for one in facts.variants.values() if one.repository)


def test_a_name_that_is_a_folder_too_is_asked_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llamagen").mkdir()
    assert ModelRef.parse("llamagen") == ModelRef("llamagen", "mini"), "no model in it: nobody means it"
    (tmp_path / "llamagen" / "safear.json").write_text('{"family": "llamagen", "variant": "mine"}')
    with pytest.raises(UsageError, match=r"write llamagen:mini or \./llamagen"):
        ModelRef.parse("llamagen")
    assert ModelRef.parse("./llamagen").variant == "mine" and ModelRef.parse("llamagen:mini").path is None


def test_a_hubs_name_is_answered_with_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for text, ours in (
        ("deepseek-ai/Janus-Pro-1B", "janus:pro-1b"),
        ("deepseek-community/janus-pro-7b", "janus:pro-7b"),
        ("FoundationVision/Infinity", "infinity:125m"),
    ):
        with pytest.raises(UsageError, match=f"hub's repository; write {ours}"):
            ModelRef.parse(text)
    with pytest.raises(UsageError, match="nothing there"):
        ModelRef.parse("somebody/Something")


def test_third_party_that_does_not_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    add_plugin(monkeypatch, tmp_path, "[safear_edit.judges]\nbroken = toy_plugin:Gone\n")
    with pytest.raises(UsageError, match="repair toy-plugin"):
        lookup("judges", "broken").load()


def test_third_party_may_not_take_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    add_plugin(monkeypatch, tmp_path, "[safear_edit.methods]\nvce = toy_plugin:Toy\n")
    with pytest.raises(UsageError, match="uninstall toy-plugin"):
        registry.methods()


@pytest.fixture
def toy_family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    add_plugin(monkeypatch, folder, "[safear_edit.families]\ntoy = toy_plugin:Toy\n")
    return tmp_path


def test_exported_directory(toy_family: Path) -> None:
    model = toy_family / "model"
    model.mkdir()
    (model / "safear.json").write_text(json.dumps({"family": "toy", "variant": "mini", "more": 1}))
    assert ModelRef.parse(str(model)) == ModelRef("toy", "mini", model)
    (model / "safear.json").write_text(json.dumps({"family": "toy"}))
    with pytest.raises(UsageError, match=r"safear.json variant: .* export the model again"):
        ModelRef.parse(str(model))
    for odd in ("../../mini", "a\nb", "a" * 200):
        (model / "safear.json").write_text(json.dumps({"family": "toy", "variant": odd}))
        with pytest.raises(UsageError, match=r"safear.json variant: expected a name, got '.*; export the model again"):
            ModelRef.parse(str(model))
    (model / "safear.json").write_text(json.dumps({"family": "tay", "variant": "mini"}))
    with pytest.raises(UsageError, match="did you mean 'toy'"):
        ModelRef.parse(str(model))


def test_published_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing there"):
        ModelRef.parse(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="ls models"):
        ModelRef.parse(str(tmp_path))
    for name in ("t2i_XL_stage1_256.pt", "vq_ds16_t2i.pt"):
        (tmp_path / name).touch()
    assert ModelRef.parse(str(tmp_path)) == ModelRef("llamagen", "xl-256", tmp_path)
    (tmp_path / "t2i_XL_stage2_512.pt").touch()
    with pytest.raises(UsageError, match="several variants"):
        ModelRef.parse(str(tmp_path))
    with pytest.raises(UsageError, match="a file"):
        ModelRef.parse(str(tmp_path / "vq_ds16_t2i.pt"))


def test_references_by_name() -> None:
    assert ModelRef.parse("llamagen") == ModelRef.parse("llamagen:mini") == ModelRef("llamagen", "mini")
    assert str(ModelRef.parse("llamagen:xl-256")) == "llamagen:xl-256"
    with pytest.raises(UsageError, match="did you mean 'llamagen'"):
        ModelRef.parse("lamagen")
    with pytest.raises(UsageError, match="did you mean 'xl-256'"):
        ModelRef.parse("llamagen:xl-257")
    with pytest.raises(UsageError, match="after the colon"):
        ModelRef.parse("llamagen:")
    with pytest.raises(UsageError, match=r"put t2i_XL_stage1_256\.pt and vq_ds16_t2i\.pt into one folder"):
        load_model("llamagen:xl-256")


def test_built_in_files() -> None:
    assert find_builtin("concepts", "picasso") == find_builtin("concepts", "picasso.yaml")
    with pytest.raises(UsageError, match="did you mean 'picasso'"):
        find_builtin("concepts", "picaso")
    with pytest.raises(UsageError):
        find_builtin("recipes", "../concepts/picasso")
    assert {row.name for row in listing("recipes")} >= {"vce", "dpo", "sft"}


def test_built_in_files_of_an_installed_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a wheel they lie inside the package; a stranger's `concepts` folder beside it is not ours."""
    package = tmp_path / "site-packages" / "safear_edit"
    (package / "concepts").mkdir(parents=True)
    (package / "concepts" / "inside.yaml").touch()
    (package.parent / "recipes").mkdir()
    (package.parent / "recipes" / "strange.yaml").touch()
    monkeypatch.setattr(registry, "PACKAGE", package)
    assert find_builtin("concepts", "inside") == package / "concepts" / "inside.yaml"
    with pytest.raises(UsageError, match="none installed"):
        find_builtin("recipes", "strange")


def test_a_mini_without_weights_is_neither_listed_nor_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A family's code may come before its mini."""
    assert "llamagen:mini" in {row.name for row in listing("models")}
    monkeypatch.setattr("safear_edit.families.load.shipped", lambda ref: ref.family == "llamagen")
    names = {row.name for row in listing("models")}
    assert {"llamagen:mini", "infinity:2b"} <= names and "infinity:mini" not in names
    with pytest.raises(UsageError, match=r"infinity:mini: expected weights that ship .* or take llamagen:mini"):
        load_model("infinity")


def test_what_a_module_is_changes_with_what_it_imports_from_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own source, and that of what it imports from beside it, directly or not; nothing else."""
    package = tmp_path / "digested_pack"
    package.mkdir()
    sources = {
        "__init__": "",
        "a": "from digested_pack.b import x\n",
        "b": "from digested_pack import c\n",
        "c": "import json\n",
        "d": "",
    }
    for name, text in sources.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = {name: registry.source_digest([f"digested_pack.{name}"]) for name in "abcd"}
    assert len(set(before.values())) == 4 and registry.source_digest(["no_such_module_here"])
    (package / "c.py").write_text("import json  # and more\n")
    after = {name: registry.source_digest([f"digested_pack.{name}"]) for name in "abcd"}
    assert {name for name in "abcd" if after[name] != before[name]} == {"a", "b", "c"}
