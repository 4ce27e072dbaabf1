"""The report of a model on pictures: figures that are there, numbers that are right, a page that needs nothing else."""

import base64
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands import completed
from comvex.cli import main
from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.convit.analysis import gates, nonlocality
from comvex.convit.weights import load_model, save_weights
from comvex.data.sources import open_data
from comvex.errors import UserError
from comvex.explain.epochs import load_at
from comvex.explain.report import explain
from comvex.inference.predictor import load


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three pictures, with names that HTML and matplotlib could stumble over."""
    folder, part = tmp_path_factory.mktemp("pictures"), open_data("digits").part("test")
    files = [folder / name for name in ("plain.png", "a <b> & $x_1$.png", "plain.bmp")]
    for index, file in enumerate(files):
        part.read(index, channels=1).save(file)
    return files


@pytest.fixture(scope="module")
def report(small_run: Path, digits: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on a run."""
    out = tmp_path_factory.mktemp("reports") / "of the run"
    assert main(["explain", str(small_run), *map(str, digits), "--out", str(out), "--query", "1,2"]) == 0
    return out


def test_the_page_needs_no_other_file_and_holds_every_figure(report):
    page = (report / "report.html").read_text()
    sources = re.findall(r'\b(?:src|href)="([^"]*)"', page)
    assert all(source.startswith(("data:", "#")) for source in sources), sources
    text = re.sub(r"base64,[\w+/=]+", "", page)
    assert not re.search(r"https?:|url\(|@import|<script|<iframe", text)
    images = [base64.b64decode(source.partition(",")[2]) for source in sources if source.startswith("data:image")]
    assert sorted(images) == sorted(file.read_bytes() for file in report.glob("*.png"))
    assert len(images) == 4 + 2 * 3  # gates, kernels, non-locality, training; class token and patch of each picture
    for image in images:
        with Image.open(io.BytesIO(image)) as figure:
            assert min(figure.size) > 200
            assert np.asarray(figure.convert("L")).std() > 5


def test_names_of_pictures_are_text_in_the_page_and_harmless_in_file_names(report):
    page = (report / "report.html").read_text()
    assert "a &lt;b&gt; &amp; $x_1$.png" in page
    assert "<b>" not in page
    names = [file.name for file in report.glob("*.png")]
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names), names
    assert {"01-plain-patch-1-2.png", "03-plain-patch-1-2.png"} <= set(names)


def test_the_table_has_the_figures_of_the_analysis(report, small_run, digits):
    predictor = load(small_run)
    pictures = torch.stack([predictor.transform(predictor.read(file)) for file in digits])
    found, gate = nonlocality(predictor.model, pictures), gates(predictor.model)
    with (report / "heads.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 4
    for row in rows:
        place = int(row["layer"]), int(row["head"])
        expected = {
            "gate": gate, "nonlocality_content": found.content, "nonlocality_positional": found.positional,
            "nonlocality_blended": found.blended, "class_token_share": found.class_token_share,
        }  # fmt: skip
        for name, values in expected.items():
            value = float(row[name]) if row[name] else np.nan
            # One picture at a time or three at once: float32 sums in another order
            np.testing.assert_allclose(value, values[place], rtol=1e-5)


def test_json_is_one_object_and_an_unreadable_picture_is_named_while_the_others_are_done(
    small_run, digits, tmp_path, capsys
):
    fake = tmp_path / "fake.png"
    fake.write_text("no picture")
    arguments = ["explain", str(small_run), str(fake), str(digits[0]), "--out", str(tmp_path / "out"), "--json"]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [entry["picture"] for entry in found["predictions"]] == ["plain.png"]
    assert [f"comvex: {problem}" for problem in found["unreadable"]] == [captured.err.strip()]
    assert "fake.png" in captured.err
    assert all((tmp_path / "out" / name).is_file() for name in found["figures"])


def test_one_layer_is_shown_with_its_halves_and_chosen_heads_only(small_run, digits, tmp_path):
    heights, widths = [], []
    for number, chosen in enumerate(({}, {"layers": [0]}, {"layers": [0], "heads": [2]})):
        out = tmp_path / str(number)
        found = explain(small_run, digits[:1], out=out, query="0,0", **chosen)
        [name] = [name for name in found["figures"] if "patch" in name]
        with Image.open(out / name) as figure:
            widths.append(figure.width)
            heights.append(figure.height)
    assert heights[1] > heights[0]  # content, positional and blended instead of two layers
    assert widths[2] < widths[1]


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"layers": [2]}, "layer is 2: it must lie between 0 and 1"),
        ({"layers": [-1]}, "layer is -1"),
        ({"heads": [4]}, "head is 4: it must lie between 0 and 3"),
        ({"query": "4,0"}, "query is '4,0': it must be X,Y"),
    ],
)
def test_what_the_model_does_not_have_is_refused_before_anything_is_written(
    small_run, digits, tmp_path, chosen, sentence
):
    with pytest.raises(UserError, match=re.escape(sentence)):
        explain(small_run, digits[:1], out=tmp_path / "out", **chosen)
    assert not (tmp_path / "out").exists()


def test_a_report_is_replaced_only_on_request(report, small_run, digits, tmp_path):
    before = (report / "report.html").read_bytes()
    with pytest.raises(UserError, match=r"has a report\.html already"):
        explain(small_run, digits[:1], out=report)
    assert (report / "report.html").read_bytes() == before
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="which is a file"):
        explain(small_run, digits[:1], out=file)


def test_a_replaced_report_leaves_no_figure_of_the_old_one(small_run, digits, tmp_path):
    (tmp_path / "mine.png").write_bytes(b"is no figure of the report")
    for query in ("0,0", "1,2"):
        found = explain(small_run, digits[:1], out=tmp_path, query=query, overwrite=True)
        assert {file.name for file in tmp_path.glob("*.png")} == {*found["figures"], "mine.png"}


def test_no_readable_picture_is_one_sentence(small_run, tmp_path):
    with pytest.raises(UserError, match=r"There is no picture .*nowhere\.png"):
        explain(small_run, [tmp_path / "nowhere.png"], out=tmp_path / "out")


@pytest.mark.parametrize("layers", [{"use_gpsa": False}, {"num_nonlocal_layers": 0}])
def test_models_without_gates_or_without_class_token_layers_have_a_report_too(tmp_path, digits, layers):
    sizes = {"dim": 16, "heads": 4, "ff_dim": 16, "num_local_layers": 2, "num_nonlocal_layers": 1, "num_classes": 3}
    config = ConViTConfig(image_size=(16, 24), image_channel=1, patch_size=8, **(sizes | layers))
    save_weights(ConViTWithLinearClassifier(config), tmp_path / "model.safetensors")
    found = explain(tmp_path / "model.safetensors", digits[:1], out=tmp_path / "out")
    gated = "use_gpsa" not in layers
    assert ("gates.png" in found["figures"]) == gated
    assert ("kernels.png" in found["figures"]) == gated
    assert any("class-token" in name for name in found["figures"]) == (not gated)


def test_a_file_whose_shapes_do_not_tell_its_architecture_is_explained_with_it(tmp_path, digits, capsys):
    config = ConViTConfig.ConViT_Ti(
        image_size=(16, 24), image_channel=1, patch_size=8, dim=16, heads=4, num_local_layers=1, num_nonlocal_layers=1,
        num_classes=3,
    )  # fmt: skip
    file, told = tmp_path / "official.pth", tmp_path / "told.json"
    torch.save({"model": ConViTWithLinearClassifier(config).state_dict()}, file)
    told.write_text(config.to_json())
    arguments = [str(file), str(digits[0]), "--json"]
    report = ["--out", str(tmp_path / "out")]
    assert main(["explain", *arguments, *report]) == 2
    assert "--config FILE" in capsys.readouterr().err
    assert main(["explain", *arguments, *report, "--config", str(told)]) == 0
    [explained] = json.loads(capsys.readouterr().out)["predictions"]
    assert "2 × 3 patches" in (tmp_path / "out" / "report.html").read_text()
    assert main(["predict", *arguments, "--config", str(told)]) == 0
    [[best, *_]] = json.loads(capsys.readouterr().out)["predictions"].values()
    assert best == {"label": explained["label"], "probability": pytest.approx(explained["probability"])}
    assert load_at(file, config=config).model.config == config


def test_a_folder_that_cannot_be_made_or_is_a_runs_own_is_refused_in_a_sentence(small_run, digits, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"The report cannot be written to .*file/out \(Not a directory\): choose"):
        explain(small_run, digits[:1], out=tmp_path / "file" / "out")
    before = (small_run / "heads.csv").read_bytes()
    with pytest.raises(UserError, match=r"which is a run folder, whose heads\.csv the report's would replace"):
        explain(small_run, digits[:1], out=small_run, overwrite=True)
    assert (small_run / "heads.csv").read_bytes() == before


def test_a_disk_that_is_full_ends_the_report_in_a_sentence(small_run, digits, tmp_path):
    """The limit on the size of a file stands in for it."""
    done = completed("explain", small_run, digits[0], "--out", tmp_path / "out", largest_file=10_000)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("comvex: The report cannot be written to")
    assert "(File too large)" in line
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_an_epoch_whose_checkpoint_is_kept_is_shown_and_another_refused(small_run, digits, tmp_path):
    last = load_model(small_run / "weights" / "last.safetensors")
    found = explain(small_run, digits, out=tmp_path / "last", epoch=10)
    predictor = load(small_run)
    pictures = torch.stack([predictor.transform(predictor.read(file)) for file in digits])
    expected = nonlocality(last, pictures).blended.mean(axis=1)
    np.testing.assert_allclose(found["nonlocality"], expected, atol=1e-4)  # they are rounded to four digits
    assert "small after epoch 10" in (tmp_path / "last" / "report.html").read_text()
    with pytest.raises(UserError, match=r"epoch is 1: it must be one whose checkpoint the run .* has kept \(.*10\)"):
        explain(small_run, digits, out=tmp_path / "first", epoch=1)
    with pytest.raises(
        UserError, match=r"epoch is 10, but .*last\.safetensors is no run folder: only a run has epochs"
    ):
        explain(small_run / "weights" / "last.safetensors", digits, out=tmp_path / "file", epoch=10)
    with pytest.raises(UserError, match=r"The folder .* is no run folder: it has no recipe\.json"):
        explain(small_run / "weights", digits, out=tmp_path / "folder", epoch=10)
