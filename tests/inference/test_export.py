"""Exported files compute what the weights do, in runtimes that know nothing of comvex, and are refused when damaged."""

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import comvex
from comvex.cli import main
from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.convit.weights import WeightsInfo, default_preprocessing, save_weights
from comvex.data.sources import open_data
from comvex.errors import UserError
from comvex.inference import export_comparison
from comvex.inference.export import ExportPlan, export_model, parse_axes
from comvex.inference.export_comparison import check_comparison, compare
from comvex.inference.export_pictures import comparison_pictures
from comvex.inference.programs import trace, with_constant_positions, write_onnx
from comvex.inference.run_evaluation import evaluate_run
from made_pictures import shape_pictures

for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(package)

DOCS = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"^```python (\w+)\n(.*?)^```$", DOCS, flags=re.DOTALL | re.MULTILINE))
OPEN = ("batch", "size")
BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] not in ("comvex", "torch", "timm"), name

sys.meta_path.insert(0, Blocker())
"""
SIGNALS = """
import faulthandler, signal, subprocess, sys
from pathlib import Path
import numpy as np
from comvex.inference.programs import read_for_openvino
from comvex.inference.quantisation import quantise
from comvex.inference.runtimes import open_openvino

faulthandler.enable()  # as pytest and notebooks do: handlers have a stack of their own
signal.signal(signal.SIGCHLD, lambda *_: print("handled"))  # as PyTorch's loader does
onnx_file, model = map(Path, sys.argv[1:])
pictures = np.random.default_rng(0).standard_normal((4, 1, 8, 8), np.float32)
opened = [open_openvino(model, hint="f32", threads=1) for _ in range(3)]
for run in opened:
    run(pictures)
del run
while opened:
    opened.pop(0)
subprocess.run(["true"])
quantised = [quantise(read_for_openvino(onnx_file), [pictures]) for _ in range(2)]
subprocess.run(["true"])
"""


@pytest.fixture(scope="module")
def reports(small_run, tmp_path_factory) -> dict[str, str]:
    """What the command printed while it exported the small run in five ways."""
    root = tmp_path_factory.mktemp("exported")
    arguments = {
        "onnx": ["--to", "onnx", "--dynamic", "batch,size"],
        "fixed": ["--to", "onnx", "--batch-size", "4"],
        "openvino": ["--to", "openvino", "--dynamic", "batch,size", "--json"],
        "int8": ["--to", "openvino", "--precision", "int8", "--num-calibration", "40", "--json"],
        "torch": ["--to", "torch", "--dynamic", "batch,size", "--json"],
    }
    printed = {}
    for name, chosen in arguments.items():
        with redirect_stdout(StringIO()) as output:
            assert main(["export", str(small_run), "--out", str(root / name), *chosen]) == 0
        printed[name] = output.getvalue()
    return printed


@pytest.fixture(scope="module")
def folders(reports) -> dict[str, Path]:
    """Where those lie; not to be changed."""
    root = Path(json.loads(reports["int8"])["out"]).parent
    return {name: root / name for name in reports}


@pytest.fixture(scope="module")
def known_figures(small_run, tmp_path_factory) -> dict[str, Any]:
    """What evaluation of the run's own weights says."""
    return evaluate_run(small_run, data="digits", out=tmp_path_factory.mktemp("evaluation"))


@pytest.fixture
def copied(folders, tmp_path) -> Path:
    """The ONNX folder, to be damaged."""
    return Path(shutil.copytree(folders["onnx"], tmp_path / "copied"))


def digits(num: int, *, run: Path, size: tuple[int, int] = (8, 8)) -> torch.Tensor:
    """Test pictures as the run's model wants them: (num, 1, height, width)."""
    transform = comvex.load(run).transform
    test = open_data("digits").test
    pictures = torch.stack([transform(test.read(index, channels=1)) for index in range(num)])
    return torch.nn.functional.interpolate(pictures, size=size)


def eager(run: Path, pictures: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return comvex.load(run, device="cpu").model(pictures).numpy()


def run_alone(program: str, folder: Path) -> str:
    """What a program prints that cannot import comvex or PyTorch."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", BLOCKED + program], capture_output=True, text=True, timeout=100, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 20)])
def test_plain_runtimes_give_the_eager_logits_at_sizes_that_were_not_exported(folders, small_run, shape, tmp_path):
    num, *size = shape
    pictures = digits(num, run=small_run, size=tuple(size))
    np.save(tmp_path / "pictures.npy", pictures.numpy())
    program = f"""
import json, numpy as np, onnxruntime, openvino
pictures = np.load("pictures.npy")
session = onnxruntime.InferenceSession({str(folders["onnx"] / "model.onnx")!r})
np.save("onnx.npy", session.run(["logits"], {{"pictures": pictures}})[0])
properties = json.load(open({str(folders["openvino"] / "config.json")!r}))["openvino_properties"]
model = openvino.Core().compile_model({str(folders["openvino"] / "model.xml")!r}, "CPU", properties)
np.save("openvino.npy", model({{"pictures": pictures}})["logits"])
assert not {{"comvex", "torch"}} & set(sys.modules)
"""
    run_alone(program, tmp_path)
    for runtime in ("onnx", "openvino"):
        logits = np.load(tmp_path / f"{runtime}.npy")
        # Sums of float32 in another order, over two layers
        np.testing.assert_allclose(logits, eager(small_run, pictures), rtol=1e-4, atol=1e-5)


def test_the_documented_programs_run_as_they_stand_and_name_the_class(folders, small_run, tmp_path):
    picture = open_data("digits").test.read(3, channels=1)
    picture.save(tmp_path / "photo.jpg", quality=100)
    [[expected]] = comvex.load(small_run).predict(tmp_path / "photo.jpg", top=1)
    for runtime, place in (("onnx", "onnx-float32"), ("openvino", "openvino-float32")):
        shutil.copytree(folders[runtime], tmp_path / "runs" / "mine" / "exported" / place)
    preparation = SNIPPETS["onnx"].rsplit("[logits]", 1)[0]
    prepared_for_openvino = preparation.replace("onnx-float32", "openvino-float32").replace("import onnxruntime\n", "")
    for program in (SNIPPETS["onnx"], prepared_for_openvino + SNIPPETS["openvino"]):
        assert run_alone(program, tmp_path).strip() == expected.label


def test_pytorchs_program_needs_no_comvex_and_is_bit_identical(folders, small_run, tmp_path):
    pictures = digits(3, run=small_run, size=(10, 16))
    np.save(tmp_path / "pictures.npy", pictures.numpy())
    program = (
        "import numpy, torch; torch.set_num_threads(1)\n"
        f"module = torch.export.load({str(folders['torch'] / 'model.pt2')!r}).module()\n"
        "with torch.no_grad(): numpy.save('logits.npy', module(torch.from_numpy(numpy.load('pictures.npy'))))"
    )
    run_alone_with_torch = BLOCKED.replace('"torch", ', "") + program
    subprocess.run([sys.executable, "-I", "-c", run_alone_with_torch], check=True, timeout=100, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), eager(small_run, pictures))


def test_a_bfloat16_program_of_pytorch_computes_in_bfloat16_between_float32(small_run, tmp_path):
    report = export_model(small_run, ExportPlan("torch", precision="bfloat16"), out=tmp_path / "out")
    assert 1e-4 < report["relative_difference"] < 5e-2
    program = torch.export.load(tmp_path / "out" / "model.pt2")
    assert {tensor.dtype for tensor in program.state_dict.values()} == {torch.bfloat16}
    # The size is fixed: positional softmaxes were computed while exporting, content attention is one fused call
    assert not [node for node in program.graph.nodes if "softmax" in str(node.target)]
    assert comvex.load_exported(tmp_path / "out").model(digits(2, run=small_run)).dtype == torch.float32


def test_signals_are_handled_after_models_were_released_in_any_order(folders):
    """OpenVINO changes the stack that a thread handles signals on, and may leave it one that is gone."""
    arguments = [str(folders["onnx"] / "model.onnx"), str(folders["openvino"] / "model.xml")]
    done = subprocess.run([sys.executable, "-c", SIGNALS, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("handled") >= 2


@pytest.mark.parametrize("name", ["onnx", "fixed", "openvino"])
def test_predictions_and_figures_are_those_of_the_weights(folders, small_run, known_figures, name, tmp_path):
    test = open_data("digits").test
    pictures = [test.read(index, channels=1) for index in range(6)]  # one and a half batches of the fixed file
    exported = comvex.load_exported(folders[name])
    for one, other in zip(exported.predict(pictures), comvex.load(small_run).predict(pictures), strict=True):
        assert [entry.label for entry in one] == [entry.label for entry in other]
        assert [entry.probability for entry in one] == pytest.approx([entry.probability for entry in other], abs=1e-5)
    found = evaluate_run(folders[name], data="digits", out=tmp_path)
    assert found["top1"] == known_figures["top1"]
    assert found["loss"] == pytest.approx(known_figures["loss"], rel=1e-5)


def test_int8_is_quantised_and_classifies_nearly_as_well(folders, known_figures, tmp_path):
    import openvino

    kinds = [node.get_type_name() for node in openvino.Core().read_model(folders["int8"] / "model.xml").get_ops()]
    assert kinds.count("FakeQuantize") >= 8  # the inputs of two layers' products
    content = json.loads((folders["int8"] / "config.json").read_text())
    assert content["comparison"]["calibrated_on"] == 40
    assert 1e-4 < content["comparison"]["relative_difference"] < 0.2
    quantised = evaluate_run(folders["int8"], data="digits", out=tmp_path)
    assert (
        abs(quantised["top1"] - known_figures["top1"]) < 3
    )  # of 360 pictures; the 0.3 needs Fashion-MNIST's 10,000


def test_positional_attention_is_constant_where_the_size_is(folders):
    import onnx

    def softmaxes(folder: Path) -> int:
        return sum(node.op_type == "Softmax" for node in onnx.load(folder / "model.onnx").graph.node)

    assert softmaxes(folders["fixed"]) == 2  # content attention in two layers
    assert softmaxes(folders["onnx"]) == 4  # and the row and column factors of the one with GPSA


def test_constant_positions_change_no_logit_and_not_the_model():
    torch.manual_seed(0)
    model = ConViTWithLinearClassifier(
        ConViTConfig.ConViT_Ti(image_size=(64, 96), dim=24, num_local_layers=2, num_nonlocal_layers=1, num_classes=5)
    ).eval()
    pictures = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(pictures)
        assert torch.equal(with_constant_positions(model, (4, 6))(pictures), expected)
        assert torch.equal(model(pictures), expected)
        assert model(pictures[..., :64]).shape == (2, 5)


def test_config_says_what_a_program_needs_to_know(folders, small_run):
    content = json.loads((folders["fixed"] / "config.json").read_text())
    known = comvex.load(small_run)
    assert content["input"] == {"name": "pictures", "type": "float32", "shape": [4, 1, 8, 8]}
    assert content["output"] == {"name": "logits", "type": "float32", "shape": [4, 10]}
    assert content["labels"] == list(known.labels)
    assert content["preprocessing"]["mean"] == list(known.preprocessing.mean)
    assert content["sha256"] == {
        "model.onnx": hashlib.sha256((folders["fixed"] / "model.onnx").read_bytes()).hexdigest()
    }
    content = json.loads((folders["onnx"] / "config.json").read_text())
    assert content["input"]["shape"] == ["batch", 1, "2 * rows", "2 * columns"]
    assert {file.name for file in folders["openvino"].iterdir()} == {"config.json", "model.xml", "model.bin"}


def test_pictures_that_are_no_square_with_several_labels(tmp_path):
    torch.manual_seed(0)
    model = ConViTWithLinearClassifier(
        ConViTConfig(
            image_size=(256, 128), patch_size=32, dim=32, ff_dim=32, heads=4, num_local_layers=1, num_classes=3
        )
    )
    preprocessing = default_preprocessing(model.config)
    labels = ("circle", "square", "stripe")
    info = WeightsInfo(model.config, preprocessing, labels=labels, licence="CC0-1.0", multi_label=True)
    save_weights(model, tmp_path / "model.safetensors", info=info)
    data = str(shape_pictures(tmp_path / "pictures", num=40))
    report = export_model(tmp_path / "model.safetensors", ExportPlan("torch", dynamic=("size",)), data=data)
    assert report["sizes"] == [[256, 128], [288, 192]]
    assert report["input_shape"] == [1, 3, "32 * rows", "32 * columns"]
    assert report["same_answers"] == 100
    assert json.loads((Path(report["out"]) / "config.json").read_text())["licence"] == "CC0-1.0"
    found = evaluate_run(report["out"], data=data, out=tmp_path / "exported")
    known = evaluate_run(tmp_path / "model.safetensors", data=data, out=tmp_path / "weights")
    assert found["mean_average_precision"] == pytest.approx(known["mean_average_precision"])


def test_another_size_is_that_of_the_weights_resampled(small_run, tmp_path):
    export_model(small_run, ExportPlan("torch", image_size=(16, 12)), out=tmp_path / "out")
    pictures = digits(3, run=small_run, size=(16, 12))
    exported = comvex.load_exported(tmp_path / "out")
    assert exported.preprocessing.image_size == (16, 12)
    np.testing.assert_allclose(exported.model(pictures), eager(small_run, pictures), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="8 x 8 pixels: this model was exported for 16 x 12 alone"):
        exported.model(digits(1, run=small_run))


# Refusals


def test_logits_that_are_not_the_weights_leave_nothing_behind(small_run, tmp_path, monkeypatch):
    monkeypatch.setitem(export_comparison.TOLERANCE, "float32", -1.0)  # PyTorch's program is exact
    with pytest.raises(UserError, match=r"computes something else: on digits .* nothing was written"):
        export_model(small_run, ExportPlan("torch"), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_another_models_logits_and_no_numbers_are_beyond_every_tolerance(folders, small_run):
    exported = comvex.load_exported(folders["onnx"])
    known = comvex.load(small_run)
    pictures = comparison_pictures(small_run, None, known.preprocessing)
    right = compare(known.model, exported.model, pictures, known.preprocessing)
    check_comparison(right, exported.model.info)
    assert right["num_pictures"] == 64
    assert right["same_top1"] == 100
    torch.manual_seed(1)
    other = ConViTWithLinearClassifier(known.model.config).eval()
    wrong = compare(other, exported.model, pictures, known.preprocessing)
    assert wrong["relative_difference"] > max(export_comparison.TOLERANCE.values())
    for figures in (wrong, right | {"relative_difference": math.nan}):
        with pytest.raises(UserError, match="computes something else"):
            check_comparison(figures, exported.model.info)


def test_an_export_is_replaced_only_when_asked_and_foreign_folders_never(small_run, tmp_path):
    out = tmp_path / "out"
    report = export_model(small_run, ExportPlan("torch"), out=out)
    (out / "evaluation").mkdir()
    (out / "model.onnx").write_text("of another export")
    with pytest.raises(UserError, match="is there already: choose another --out, or --overwrite"):
        export_model(small_run, ExportPlan("torch"), out=out)
    export_model(small_run, ExportPlan("torch"), out=out, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"model.pt2", "config.json", "evaluation"}
    assert report["out"] == str(out)
    for foreign in (small_run, tmp_path):
        with pytest.raises(UserError, match="is no exported model"):
            export_model(small_run, ExportPlan("torch"), out=foreign, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export_model(small_run, ExportPlan("torch"), out=tmp_path / "file" / "out")


def test_weights_without_data_are_compared_on_photographs_and_not_quantised(small_run_copy, tmp_path):
    weights = tmp_path / "weights" / "model.safetensors"
    model = comvex.load(small_run_copy).model
    save_weights(model, weights)
    report = export_model(weights, ExportPlan("torch"))
    assert report["compared_on"] == "scikit-learn's photographs"
    assert report["num_pictures"] == 2
    assert Path(report["out"]) == weights.parent / "exported" / "torch-float32"
    with pytest.raises(UserError, match="--data must say where some are"):
        export_model(weights, ExportPlan("openvino", precision="int8"), out=tmp_path / "int8")

    recipe = small_run_copy / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"digits"', '"/gone/pictures.csv"'))
    report = export_model(small_run_copy, ExportPlan("torch"))
    assert report["compared_on"] == "scikit-learn's photographs"
    assert "/gone/pictures.csv" in report["why_these_pictures"]


def test_what_there_is_not_is_refused_by_name():
    for to, precision in (("onnx", "bfloat16"), ("onnx", "int8"), ("torch", "int8")):
        with pytest.raises(UserError, match=f"precision is '{precision}', which there is not for {to}: onnx takes"):
            ExportPlan(to, precision=precision)
    with pytest.raises(UserError, match="to is 'coreml'"):
        ExportPlan("coreml")
    with pytest.raises(UserError, match="batch_size is 0"):
        ExportPlan("torch", batch_size=0)
    assert parse_axes("size, batch") == OPEN
    assert parse_axes("") == ()
    with pytest.raises(UserError, match="dynamic is 'batch,width'"):
        parse_axes("batch,width")


def test_a_model_without_a_head_has_nothing_to_export(tmp_path):
    config = ConViTConfig.ConViT_Ti(image_size=32, dim=24, num_local_layers=1, num_nonlocal_layers=1, num_classes=0)
    save_weights(ConViTWithLinearClassifier(config), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no head"):
        export_model(tmp_path / "model.safetensors", ExportPlan("torch"))


def test_a_missing_package_is_named(small_run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"Export to onnx needs the package onnx, .* pip install 'comvex\[export\]'"):
        ExportPlan("onnx")


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_damaged_missing_and_edited_files_are_refused_by_name(copied):
    model, config = copied / "model.onnx", copied / "config.json"
    whole, content = model.read_bytes(), config.read_text()

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            comvex.load_exported(copied)

    damage(model)
    refused("model.onnx is damaged: its SHA-256")
    model.unlink()
    refused("lacks the file .*model.onnx")
    model.write_bytes(whole)
    comvex.load_exported(copied)

    config.write_text(content.replace('"float32"', '"int8"', 1))
    refused("was edited")
    config.write_text(json.dumps(json.loads(content) | {"format": 99}))
    refused("has format 99")
    for text in (content[:100], "[]", "{}"):
        config.write_text(text)
        refused("config.json is damaged")
    config.unlink()
    refused("has no config.json that can be read")
    assert main(["predict", str(copied), "picture.png"]) == 2


def test_what_an_exported_model_cannot_do_is_one_sentence(folders, capsys, tmp_path):
    fixed = str(folders["fixed"])
    picture = tmp_path / "picture.png"
    Image.new("L", (8, 8)).save(picture)

    def refusal(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        return line

    assert "exported for 8 x 8 alone" in refusal("evaluate", fixed, "--data", "digits", "--image-size", "16")
    assert "cannot be masked" in refusal("evaluate", fixed, "--data", "digits", "--mask-position-embedding")
    assert "device is 'cuda'" in refusal("predict", fixed, str(picture), "--device", "cuda")
    assert "is an exported model" in refusal("explain", fixed, str(picture), "--out", str(tmp_path / "report"))
    assert "is an exported model" in refusal("export", fixed, "--to", "torch")
    dynamic = str(folders["onnx"])
    message = refusal("evaluate", dynamic, "--data", "digits", "--image-size", "9")
    assert "each side must be a multiple of 2, and at least 4" in message


def test_the_command_prints_the_comparison_and_its_json_stands_alone(reports):
    report = json.loads(reports["int8"])  # what the quantiser prints must not be in it
    assert report["calibrated_on"] == 40
    assert report["precision"] == "int8"
    assert report["files"] == [f"{report['out']}/model.xml", f"{report['out']}/model.bin"]
    assert json.loads(reports["torch"])["largest_difference"] == 0
    printed = reports["onnx"]
    assert "pictures (batch, 1, 2 * rows, 2 * columns)" in printed
    assert "64 pictures of digits, 8 x 8 and 10 x 12 pixels" in printed
    assert re.search(r"largest [\d.]+e-0[678], mean [\d.]+e-0[78] of a logit; [\d.]+e-0[78] of their norm", printed)
    assert "the same on 100.0 % of the pictures" in printed


def test_an_onnx_file_holds_its_weights(tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    write_onnx(trace(model, torch.zeros(1, 3, 2, 2)), tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
