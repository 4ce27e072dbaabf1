"""timm's plain ViT on the splits of a study, by the script that records it: a small real run."""

import dataclasses
import json
import runpy
from pathlib import Path

import pytest
from timm.models.vision_transformer import VisionTransformer

from comvex.study.carry_out import carry_out
from comvex.study.plan import Study
from comvex.training.recipe import Architecture, Options, Recipe

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "timm_baseline.py"
MODEL = Architecture(dim=32, heads=4, num_local_layers=1, num_nonlocal_layers=1)
RECIPE = Recipe(data="digits", model=MODEL, steps=30, batch_size=32)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_timms_vit_takes_the_plain_runs_recipe_and_is_compared_with_it(precision, tmp_path, monkeypatch, capsys):
    recipe = dataclasses.replace(RECIPE, precision=precision)
    study = Study("sample-efficiency", recipe, (1.0,), (0,))
    carry_out(study, tmp_path / "study", options=Options(threads=1))
    words = [
        "timm_baseline.py",
        str(tmp_path / "study"),
        "--fractions",
        "1",
        "--seeds",
        "0",
        "--out",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr("sys.argv", words)
    script = runpy.run_path(str(SCRIPT))
    script["main"]()
    found = json.loads((tmp_path / "out" / "plain-100pc-seed0.json").read_text())
    assert (found["num_pictures"], found["steps"]) == (1295, 30)
    table = (tmp_path / "out" / "table.md").read_text()
    assert f"| 100 % | 0 | {found['top1']:.2f} |" in table
    assert "over 1 runs" in table
    # a finished run is not trained again
    monkeypatch.setitem(script["main"].__globals__, "trained", None)
    script["main"]()
    assert table.splitlines()[2:] == (tmp_path / "out" / "table.md").read_text().splitlines()[2:]
    # ... nor taken for one of a study with another recipe, or of an earlier version, which did not note it
    file = tmp_path / "out" / "plain-100pc-seed0.json"
    for recipe, why in (({**found["recipe"], "steps": 60}, "steps: 60 -> 30"), (None, "which one was not noted")):
        file.write_text(json.dumps({**found, "recipe": recipe} if recipe else {"top1": 99.0}))
        with pytest.raises(ValueError, match=rf"plain-100pc-seed0\.json is of another study \({why}\)"):
            script["main"]()


def test_the_others_vit_is_timms_own_class_of_the_same_size():
    script = runpy.run_path(str(SCRIPT))
    from comvex.convit import ConViTConfig

    vit = script["timm_vit"](ConViTConfig.ConViT_Ti(image_size=28, patch_size=4, image_channel=1, dim=72, heads=9))
    assert type(vit) is VisionTransformer
    assert (vit.embed_dim, len(vit.blocks), vit.blocks[0].attn.num_heads) == (72, 12, 9)
