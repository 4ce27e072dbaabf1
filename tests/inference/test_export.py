"""Exported files compute what the weights do, in runtimes that know nothing of comvex, and are refused when damaged."""

import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

import comvex
from commands import Command
from comvex.cli import main
from comvex.commands.export import describe_export
from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.convit.weights import WeightsInfo, default_preprocessing, save_weights
from comvex.data.picture_set import PictureSet
from comvex.data.sources import open_data
from comvex.data.transforms import Preprocessing
from comvex.errors import UserError
from comvex.inference import export_comparison
from comvex.inference.export import ExportPlan, default_folder, export_model, parse_axes
from comvex.inference.export_comparison import check_comparison, compare, not_compared, same_answers
from comvex.inference.export_pictures import RealPictures, calibration_batches, comparison_pictures
from comvex.inference.exported import ExportedInfo, ExportedModel, Precision, read_exported
from comvex.inference.programs import Axis, trace, with_constant_positions, write_onnx
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


def run_alone(program: str, folder: Path, *, with_torch: bool = False) -> str:
    """What a program prints that cannot import comvex, and PyTorch neither unless it may."""
    blocked = BLOCKED.replace('"torch", ', "") if with_torch else BLOCKED
    done = subprocess.run(
        [sys.executable, "-I", "-c", blocked + program], capture_output=True, text=True, timeout=100, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 20), (2, 4, 6)])
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
    for runtime in ("onnx", "openvino", "torch"):
        shutil.copytree(folders[runtime], tmp_path / "runs" / "mine" / "exported" / f"{runtime}-float32")
    preparation = SNIPPETS["onnx"].rsplit("[logits]", 1)[0].replace("import onnxruntime\n", "")
    assert run_alone(SNIPPETS["onnx"], tmp_path).strip() == expected.label
    for runtime in ("openvino", "torch"):
        program = preparation.replace("onnx-float32", f"{runtime}-float32") + SNIPPETS[runtime]
        assert run_alone(program, tmp_path, with_torch=runtime == "torch").strip() == expected.label


def weights_of(config: ConViTConfig, folder: Path, **preprocessing: Any) -> Path:
    """A file of random weights, whose config.json says how pictures are prepared."""
    torch.manual_seed(0)
    model = ConViTWithLinearClassifier(config)
    info = WeightsInfo(config, default_preprocessing(config) | {"crop_pct": 1.0} | preprocessing)
    save_weights(model, folder / "model.safetensors", info=info)
    return folder / "model.safetensors"


def small(**shape: Any) -> ConViTConfig:
    return ConViTConfig.ConViT_Ti(dim=24, num_local_layers=1, num_nonlocal_layers=1, **shape)


def comvexs_logits(folder: Path, file: Path) -> np.ndarray:
    exported = comvex.load_exported(folder)
    return exported.model(exported.transform(exported.read(file))[None]).numpy()


def smooth(height: int, width: int) -> np.ndarray:
    """Values in [0, 1] (height, width, 3), of another shade at every corner."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([rows, columns, (rows + np.sin(9 * columns) ** 2) / 2], axis=-1)


def test_the_documented_program_prepares_pictures_as_comvex_does(tmp_path, monkeypatch):
    """Turned by EXIF, transparent, of 16 bits, with another interpolation than the usual one."""
    weights = weights_of(small(image_size=(32, 48), num_classes=4), tmp_path, interpolation="bilinear")
    folder = tmp_path / "runs" / "mine" / "exported" / "onnx-float32"
    export_model(weights, ExportPlan("onnx"), out=folder)
    monkeypatch.chdir(tmp_path)
    values = smooth(64, 96)
    plain = Image.fromarray((255 * values).astype(np.uint8))
    palette, turned = plain.quantize(16), Image.Exif()
    turned[274] = 6  # to be turned by 90 degrees
    opacity = Image.fromarray((255 * values[..., 2]).astype(np.uint8))
    pictures = {
        "plain": (plain, {}),
        "turned": (plain.transpose(Image.Transpose.ROTATE_90), {"exif": turned}),
        "transparent": (Image.merge("RGBA", (*plain.split(), opacity)), {}),
        "transparent palette": (palette, {"transparency": 3}),
        "16 bits": (Image.fromarray((9000 + 900 * values[..., 0]).astype(np.uint16)), {}),
    }
    seen = []
    for name, (picture, options) in pictures.items():
        picture.save("photo.jpg", format="png", **options)
        known: dict[str, Any] = {}
        exec(SNIPPETS["onnx"], known)
        expected = comvexs_logits(folder, tmp_path / "photo.jpg")
        np.testing.assert_allclose(known["logits"], expected, rtol=1e-4, atol=1e-5, err_msg=name)
        seen.append(expected)
    np.testing.assert_array_equal(seen[0], seen[1])
    assert all(np.abs(one - seen[0]).max() > 1e-3 for one in seen[2:])  # what is not prepared so would not go unseen


def test_the_documented_program_scales_values_of_full_depth_as_comvex_does(tmp_path, monkeypatch):
    shape = {"channels": 5, "mean": [0.3] * 5, "std": [0.2] * 5, "full_depth": True}
    weights = weights_of(small(image_size=32, image_channel=5, num_classes=4), tmp_path, **shape)
    with pytest.raises(UserError, match=r"takes pictures of 5 channels, .* are RGB: --data must name pictures"):
        export_model(weights, ExportPlan("onnx"))
    values = np.concatenate([smooth(48, 48), smooth(48, 48)[..., :2] ** 2], axis=-1)
    arrays = {"integers": (65535 * values).astype(np.uint16), "floats": values.astype(np.float32)}
    for label, array in arrays.items():
        for number in range(10):
            file = tmp_path / "data" / label / f"{number}.tif"
            file.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(file, array, photometric="minisblack", planarconfig="contig")
    folder = tmp_path / "runs" / "mine" / "exported" / "onnx-float32"
    export_model(weights, ExportPlan("onnx"), out=folder, data=str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("photo.jpg")
    with pytest.raises(SystemExit, match="takes all bits and channels"):
        exec(SNIPPETS["onnx"], {})
    refusal, use = "if how[", "pictures = (("
    opened, prepared = SNIPPETS["onnx"].split(refusal)[0], SNIPPETS["onnx"].split(use)[1]
    for label, array in arrays.items():
        known: dict[str, Any] = {"array": array}
        exec(f"{opened}height, width = how['image_size']\n{SNIPPETS['full_depth']}{use}{prepared}", known)
        expected = comvexs_logits(folder, tmp_path / "data" / label / "0.tif")
        np.testing.assert_allclose(known["logits"], expected, rtol=1e-3, atol=1e-4)
    assert known["config"]["input"]["divide_integers_by"] == "the largest of their type"


def test_pytorchs_program_needs_no_comvex_and_is_bit_identical(folders, small_run, tmp_path):
    pictures = digits(3, run=small_run, size=(10, 16))
    np.save(tmp_path / "pictures.npy", pictures.numpy())
    program = (
        "import numpy, torch; torch.set_num_threads(1)\n"
        f"module = torch.export.load({str(folders['torch'] / 'model.pt2')!r}).module()\n"
        "with torch.no_grad(): numpy.save('logits.npy', module(torch.from_numpy(numpy.load('pictures.npy'))))"
    )
    run_alone(program, tmp_path, with_torch=True)
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


def test_int8_leaves_mixing_by_positional_factors_in_floating_point(folders):
    import openvino

    products = [
        node
        for node in openvino.Core().read_model(folders["int8"] / "model.xml").get_ops()
        if node.get_type_name() == "MatMul"
    ]
    sources = [[side.get_source_output().get_node().get_type_name() for side in node.inputs()] for node in products]
    mixing = [kinds for kinds in sources if kinds[0] == "Constant"]
    assert len(mixing) == 2  # one layer has positional attention: along its rows and its columns
    assert all("FakeQuantize" not in kinds for kinds in mixing)


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
    expected = {"name": "pictures", "type": "float32", "shape": [4, 1, 8, 8], "divide_integers_by": 255}
    assert content["input"] == expected
    assert content["output"] == {"name": "logits", "type": "float32", "shape": [4, 10]}
    assert content["labels"] == list(known.labels)
    assert content["preprocessing"]["mean"] == list(known.preprocessing.mean)
    assert content["sha256"] == {
        "model.onnx": hashlib.sha256((folders["fixed"] / "model.onnx").read_bytes()).hexdigest()
    }
    content = json.loads((folders["onnx"] / "config.json").read_text())
    assert content["input"]["shape"] == ["batch", 1, "2 * rows", "2 * columns"]
    assert {file.name for file in folders["openvino"].iterdir()} == {"config.json", "model.xml", "model.bin"}


def test_open_axes_have_the_names_of_the_config(folders):
    import onnx

    graph = onnx.load(folders["onnx"] / "model.onnx").graph
    content = json.loads((folders["onnx"] / "config.json").read_text())
    for side, [value] in (("input", graph.input), ("output", graph.output)):
        found = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        assert found == content[side]["shape"]
    inside = {axis.dim_param for value in graph.value_info for axis in value.type.tensor_type.shape.dim}
    assert not [name for name in inside if re.search(r"s\d", name)]


def test_calibration_uses_whole_batches_of_what_can_be_read_and_counts_it(folders, tmp_path):
    info = read_exported(folders["fixed"])  # batches of 4
    files = [tmp_path / f"{number:02}.png" for number in range(27)]
    for number, file in enumerate(files):
        file.write_bytes(b"no picture")
        if number % 3:
            Image.fromarray(np.full((8, 8), number, np.uint8)).save(file)
    pictures = RealPictures("made", PictureSet(files, np.zeros(len(files), np.int64)))
    found = calibration_batches(pictures, info)
    assert [batch.shape for batch in found.batches] == [(4, 1, 8, 8)] * 4
    assert (found.num_pictures, found.num_unreadable) == (16, 9)
    mean, std = info.preprocessing["mean"], info.preprocessing["std"]
    shades = [picture.mean() * std[0] + mean[0] for batch in found.batches for picture in batch]
    assert [round(255 * shade) for shade in shades] == [number for number in range(27) if number % 3][:16]
    few = RealPictures("made", PictureSet(files[:5], np.zeros(5, np.int64)))
    with pytest.raises(UserError, match="Of 5 training pictures of made to calibrate on 3 can be read: at least 4"):
        calibration_batches(few, info)


def test_what_this_processor_cannot_compute_in_is_said(folders, reports, monkeypatch):
    import openvino

    there = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    report = json.loads(reports["int8"])
    assert bool(report["not_compared"]) is not there
    content = json.loads((folders["int8"] / "config.json").read_text())
    assert content["comparison"]["not_compared"] == report["not_compared"]
    monkeypatch.setattr(export_comparison, "openvino_has_bfloat16", lambda: False)
    int8 = read_exported(folders["int8"])
    said = {
        "int8": "bfloat16, which this processor does not have: what is not int8 was computed in float32",
        "bfloat16": "bfloat16, which this processor does not have: all was computed in float32",
        "float32": "",
    }
    for precision, expected in said.items():
        assert not_compared(replace(int8, precision=precision)) == expected
    assert not_compared(replace(int8, to="torch", precision="bfloat16")) == ""
    report |= {"not_compared": said["int8"], "calibration_unreadable": 2}
    lines = describe_export(report).splitlines()
    assert f"not tested  {said['int8']}" in lines
    assert "calibrated  on 40 training pictures; 2 cannot be read and were skipped" in lines
    monkeypatch.setattr(export_comparison, "openvino_has_bfloat16", lambda: True)
    assert not_compared(int8) == ""


def test_a_side_of_one_patch_is_no_open_size(tmp_path):
    weights = weights_of(small(image_size=16, num_classes=4), tmp_path)
    with pytest.raises(UserError, match=r"image_size is \(16, 16\): for --dynamic size .* at least 32; --image-size"):
        export_model(weights, ExportPlan("torch", dynamic=("size",)))
    report = export_model(weights, ExportPlan("torch", dynamic=("size",), image_size=32))
    assert Path(report["out"]).name == "model-torch-float32-32x32-any-size"
    Image.new("RGB", (40, 40)).save(tmp_path / "picture.png")
    assert main(["predict", report["out"], str(tmp_path / "picture.png")]) == 0


def test_what_differs_has_a_folder_of_its_own(tmp_path):
    def name(source: str, plan: ExportPlan) -> str:
        return str(default_folder(source, plan, native=(224, 224)))

    plain = ExportPlan("torch", image_size=224)
    assert name(str(tmp_path), plain) == str(tmp_path / "exported" / "torch-float32")
    assert name("convit_tiny.fb_in1k", plain) == "exported/convit_tiny.fb_in1k-torch-float32"
    assert name("hf-hub:owner/name", plain) == "exported/hf-hub-owner-name-torch-float32"
    shaped = ExportPlan("torch", image_size=(96, 64), batch_size=8)
    assert name(str(tmp_path), shaped).endswith("/torch-float32-96x64-batch8")


def test_what_is_half_written_goes_when_the_process_is_told_to_end(small_run, tmp_path):
    folder, said = tmp_path / "exports", tmp_path / "said.txt"
    folder.mkdir()
    process = Command("export", small_run, "--to", "torch", "--out", folder / "out", out=said, err=said)
    while not list(folder.iterdir()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 143
    assert list(folder.iterdir()) == []


def test_what_a_killed_export_has_left_goes_with_one_the_day_after(small_run, tmp_path):
    for name, hours in ((".out.0123abcd.tmp", 25), (".out.4567abcd.tmp", 23), (".other.89abcdef.tmp", 25)):
        leftover = tmp_path / name
        leftover.mkdir()
        (leftover / "model.pt2").touch()
        os.utime(leftover, times=(time.time() - 3600 * hours,) * 2)
    export_model(small_run, ExportPlan("torch"), out=tmp_path / "out")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {
        "out",
        ".out.4567abcd.tmp",
        ".other.89abcdef.tmp",
    }  # perhaps of one that runs, and of another export


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
    assert report["sizes"] == [[256, 128], [288, 192], [128, 64]]
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


def test_predict_takes_a_size_of_its_own_as_evaluate_does(folders, small_run, tmp_path, capsys):
    picture = tmp_path / "picture.png"
    open_data("digits").test.read(3, channels=1).resize((24, 32)).save(picture)
    known = comvex.load(small_run)
    [usual] = known.predict(picture, top=1)
    known.preprocessing = replace(known.preprocessing, image_size=(16, 12))
    [expected] = known.predict(picture, top=1)
    assert usual[0].probability != pytest.approx(expected[0].probability, abs=1e-3)
    for source in (small_run, folders["onnx"]):
        options = ["--image-size", "16", "12", "--top", "1", "--json"]
        assert main(["predict", str(source), str(picture), *options]) == 0
        [[found]] = json.loads(capsys.readouterr().out)["predictions"].values()
        assert found == {"label": expected[0].label, "probability": pytest.approx(expected[0].probability, abs=1e-5)}
    for source, size, said in (
        (folders["fixed"], "16", "exported for 8 x 8 alone"),
        (small_run, "0", "image_size is (0, 0): each side must be at least 1 pixel."),
    ):
        assert main(["predict", str(source), str(picture), "--image-size", size]) == 2
        assert said in capsys.readouterr().err


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


def unwritten(precision: Precision, dynamic: tuple[Axis, ...] = ()) -> tuple[ConViTWithLinearClassifier, ExportedModel]:
    """A small model of pictures of 16 x 16, and itself in place of what an export of it would run."""
    model = ConViTWithLinearClassifier(small(image_size=16, num_classes=4)).eval()
    preprocessing = default_preprocessing(model.config)
    info = ExportedInfo("openvino", precision, dynamic, 4, model.config, preprocessing, labels=("a", "b", "c", "d"))

    def run(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            return model(torch.from_numpy(pictures)).numpy()

    return model, ExportedModel(info, run)


def test_a_program_that_is_wrong_for_one_picture_alone_is_found():
    shades = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    pictures = RealPictures("noise", PictureSet(shades, np.zeros(20, np.int64)))
    model, exported = unwritten("float32", ("batch",))
    preprocessing = Preprocessing.from_dict(exported.info.preprocessing)
    right = compare(model, exported, pictures, preprocessing)
    assert right["num_pictures"] == 20
    assert right["relative_difference_alone"] == 0
    check_comparison(right, exported.info)
    rightly = exported.run
    exported.run = lambda given: rightly(given) + np.float32(0.01 if len(given) == 1 else 0)
    wrong = compare(model, exported, pictures, preprocessing)
    assert wrong == right | {"relative_difference_alone": wrong["relative_difference_alone"]}
    with pytest.raises(UserError, match="on noise, one picture alone, its logits differ"):
        check_comparison(wrong, exported.info)
    exported.info = replace(exported.info, dynamic=())  # four at a time, whatever is given
    assert compare(model, exported, pictures, preprocessing)["relative_difference_alone"] is None


def test_of_the_answers_that_the_weights_are_sure_of_one_or_five_percent_may_be_others():
    sure, tie = torch.tensor([5.0, 0.0, 0.0]), torch.tensor([0.01, 0.0, 0.0])
    info = unwritten("int8")[1].info
    near = {"compared_on": "digits", "relative_difference": 0.0, "relative_difference_alone": None, "tolerance": 0.2}

    def check(*, num_sure: int, num_turned: int, num_ties: int = 0) -> None:
        eager = torch.stack([sure] * num_sure + [tie] * num_ties)
        run = torch.cat([eager[:num_turned].flip(1), eager[num_turned:num_sure], eager[num_sure:].flip(1)])
        found = same_answers(eager, run, multi_label=False)
        same = 100 * (num_sure - num_turned) / len(eager)
        assert found == {"same_top1": pytest.approx(same), "num_sure": num_sure, "num_turned": num_turned}
        check_comparison(near | found, info)

    check(num_sure=60, num_turned=3, num_ties=40)
    check(num_sure=2, num_turned=1)
    check(num_sure=0, num_turned=0, num_ties=9)
    for num_sure, num_turned in ((60, 4), (2, 2)):
        with pytest.raises(UserError, match=f"of {num_sure} answers on digits .* {num_turned} are others, where int8"):
            check(num_sure=num_sure, num_turned=num_turned)


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
    assert Path(report["out"]) == weights.parent / "exported" / "model-torch-float32"
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
    assert "takes the run or the weights it was made of" in refusal("export", fixed, "--to", "torch")
    assert main(["predict", f"{fixed}/model.onnx", str(picture)]) == 0
    capsys.readouterr()
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
    assert "64 pictures of digits, 8 x 8, 10 x 12, 4 x 4 pixels" in printed
    assert re.search(r"largest [\d.]+e-0[678], mean [\d.]+e-0[78] of a logit; [\d.]+e-0[78] of their norm", printed)
    assert "the same on 100.0 % of the pictures" in printed


def test_an_onnx_file_holds_its_weights(tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    write_onnx(trace(model, torch.zeros(1, 3, 2, 2)), tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
