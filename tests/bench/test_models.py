"""What is compared is what it is said to be, and how much arithmetic it is."""

import json

import pytest
import torch
from timm.models.convit import ConVit
from timm.models.vision_transformer import VisionTransformer

from comvex.bench.flop import count_flop
from comvex.bench.models import build, make_batch
from comvex.bench.plan import Form, make_plan, preset_configs
from comvex.bench.steps import (
    LARGEST_DIFFERENCE,
    Job,
    calibration_batches,
    difference_to_eager,
    export,
    make_step,
)
from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.convit.config import PRESETS
from comvex.errors import UserError

CLASSES = {"convit": ConViTWithLinearClassifier, "plain_vit": VisionTransformer, "timm_convit": ConVit}


def tiny(**overrides) -> ConViTConfig:
    values = {"image_size": 64, "dim": 24, "num_local_layers": 2, "num_nonlocal_layers": 1, "num_classes": 5}
    return ConViTConfig.ConViT_Ti(**(values | overrides))


def plan_of(config: ConViTConfig, **overrides):
    values = {
        "batch_size": 2,
        "modes": ("inference",),
        "runtimes": ("eager",),
        "precisions": ("float32",),
        "against": ("plain_vit", "timm_convit"),
    }
    return make_plan({"tiny": [config]}, **(values | overrides))


def job_of(form: Form, config: ConViTConfig, *, mode="inference", file=None) -> Job:
    return Job(form, config, batch_size=2, mode=mode, threads=1, device="cpu", file=file)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_others_are_timms_own_classes_of_the_same_width_depth_and_heads(preset):
    config = ConViTConfig.from_preset(preset)
    with torch.device("meta"):
        models = {contestant: build(contestant, config) for contestant in CLASSES}
    for contestant, model in models.items():
        assert type(model) is CLASSES[contestant]
        assert len(model.blocks) == 12
        assert model.blocks[0].mlp.fc1.weight.shape == (4 * config.dim, config.dim)
        assert model.blocks[11].attn.qkv.weight.shape == (3 * config.dim, config.dim)
        assert (model.blocks[11].attn.heads if contestant == "convit" else model.blocks[11].attn.num_heads) == (
            config.num_heads
        )
    gpsa = [type(block.attn).__name__ for block in models["timm_convit"].blocks]
    assert gpsa == ["GPSA"] * 10 + ["MHSA"] * 2


def test_this_convit_and_timms_get_the_same_weights_and_compute_the_same():
    config = tiny()
    pictures, _ = make_batch(config, 2)
    with torch.inference_mode():
        ours, theirs = (build(name, config).eval()(pictures) for name in ("convit", "timm_convit"))
        plain = build("plain_vit", config).eval()(pictures)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # rounding of float32, three layers
    assert not torch.allclose(ours, plain, rtol=1e-2)


def by_hand(contestant: str, config: ConViTConfig, *, batch_size: int) -> tuple[int, int]:
    """FLOP of a forward pass and of a training step, from the sizes of the matrices alone."""
    d, heads = config.dim, config.num_heads
    rows, columns = config.grid
    n = rows * columns
    depth = config.num_local_layers + config.num_nonlocal_layers

    def linear(tokens: int) -> int:  # q, k, v and output are d x d, the feed-forward d x 4d and back
        return 2 * tokens * d * (4 * d + 8 * d)

    def attention(tokens: int) -> int:
        return 2 * 2 * tokens * tokens * d

    patches = 2 * n * (config.image_channel * config.patch_size**2) * d
    head = 2 * d * config.num_classes
    scores = again = 0
    if contestant == "plain_vit":
        layers = depth * (linear(n + 1) + attention(n + 1))
    else:
        layers = config.num_local_layers * (linear(n) + attention(n))
        layers += config.num_nonlocal_layers * (linear(n + 1) + attention(n + 1))
    if contestant == "convit":
        layers += config.num_local_layers * 2 * n * d * (rows + columns)
        again = config.num_local_layers * 2 * n * d * rows  # values mixed along the rows once more in backward
    if contestant == "timm_convit":
        scores = config.num_local_layers * 2 * n * n * 3 * heads
    once = patches + layers + scores + head
    # Two products of the same size for each in backward, one where pictures, offsets or positions need no gradient.
    return batch_size * once, batch_size * (3 * once - patches - scores + again)


@pytest.mark.parametrize("contestant", CLASSES)
@pytest.mark.parametrize("config", [tiny(), ConViTConfig.ConViT_S(image_size=96)], ids=["tiny", "S"])
def test_counted_arithmetic_is_that_worked_out_by_hand(contestant, config):
    modes = ("inference", "training")
    counted = [count_flop(contestant, config, batch_size=3, mode=mode) for mode in modes]
    assert tuple(counted) == by_hand(contestant, config, batch_size=3)


def test_the_published_sizes_have_the_papers_gigaflops():
    """Paper, Table 1, where a multiplication and an addition are one operation."""
    for preset, expected in (("ConViT_Ti", 1), ("ConViT_S", 5.4), ("ConViT_B", 17)):
        counted = count_flop("timm_convit", ConViTConfig.from_preset(preset), batch_size=1, mode="inference") / 2e9
        assert counted == pytest.approx(expected, rel=0.3)


def test_a_job_survives_the_way_to_another_process():
    job = job_of(Form("plain_vit", "openvino", "bfloat16"), tiny(), file="model.xml")
    assert Job.from_dict(json.loads(json.dumps(job.to_dict()))) == job


@pytest.mark.parametrize("contestant", CLASSES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_form_in_eager_computes_and_trains(contestant, precision):
    form = Form(contestant, "eager", precision)
    step = make_step(job_of(form, tiny()))
    assert step().shape == (2, 5)
    assert step().dtype == getattr(torch, precision)
    difference = difference_to_eager(job_of(form, tiny()), step)
    assert difference == 0 if precision == "float32" else 1e-4 < difference < 5e-2
    train = make_step(job_of(form, tiny(), mode="training"))
    train()
    train()


def test_a_step_of_training_changes_every_parameter_that_is_used():
    config = tiny()
    job = job_of(Form("convit", "eager", "float32"), config, mode="training")
    step = make_step(job)
    model = next(cell.cell_contents for cell in step.__closure__ if isinstance(cell.cell_contents, torch.nn.Module))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    step()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize(
    ("runtime", "contestant"),
    [("onnxruntime", "convit"), ("openvino", "convit"), ("onnxruntime", "plain_vit"), ("openvino", "timm_convit")],
)
def test_an_exported_file_computes_what_eager_does(contestant, runtime, tmp_path):
    pytest.importorskip(runtime)
    config = tiny(num_local_layers=1)
    [scene] = plan_of(config).scenes
    form = Form(contestant, runtime, "float32")
    file = export(scene, form, tmp_path)
    job = job_of(form, config, file=str(file))
    assert 0 < difference_to_eager(job, make_step(job)) < 1e-5  # a different order of sums, no more


def test_a_quantised_file_is_near_eager_by_its_own_measure_and_both_int8_share_it(tmp_path):
    pytest.importorskip("nncf")
    config = tiny(num_local_layers=1)
    [scene] = plan_of(config).scenes
    forms = [Form("convit", "openvino", precision) for precision in ("float32", "int8", "int8_float32")]
    files = [export(scene, form, tmp_path) for form in forms]
    assert files[0] != files[1] == files[2]
    assert files[1].with_suffix(".bin").stat().st_size < files[0].with_suffix(".bin").stat().st_size / 2
    for form in forms[1:]:
        job = job_of(form, config, file=str(files[1]))
        assert 1e-3 < difference_to_eager(job, make_step(job)) < LARGEST_DIFFERENCE["int8"]


@pytest.mark.parametrize("contestant", CLASSES)
@pytest.mark.parametrize("image_size", [64, 224])
def test_a_model_that_does_not_look_at_its_pictures_is_further_off_than_int8_may_be(contestant, image_size):
    config = ConViTConfig.ConViT_Ti(image_size=image_size)
    with torch.inference_mode():
        logits = build(contestant, config).eval()(make_batch(config, 4)[0])
    blind = logits.mean(dim=0)  # the best of answers that are the same for all
    assert (logits - blind).norm() / logits.norm() > 1.5 * LARGEST_DIFFERENCE["int8"]


def test_calibration_pictures_are_whole_batches_and_not_those_that_are_timed():
    [scene] = plan_of(tiny()).scenes
    batches = [torch.from_numpy(batch) for batch in calibration_batches(scene)]
    assert [len(batch) for batch in batches] == [2] * 8
    timed, _ = make_batch(scene.config, 2)
    assert not any(torch.equal(picture, other) for other in timed for batch in batches for picture in batch)
    assert timed.std() == pytest.approx(1, abs=0.5)


def test_logits_that_are_not_eagers_are_not_timed():
    job = job_of(Form("convit", "eager", "float32"), tiny())
    right = make_step(job)()
    for wrong in (right * 1.001, right * float("nan")):
        with pytest.raises(UserError, match="differ from those in eager float32"):
            difference_to_eager(job, lambda wrong=wrong: wrong)


def test_every_mode_has_every_contestant_in_every_precision():
    plan = plan_of(tiny(), modes=("inference", "training"), precisions=("float32", "bfloat16"))
    assert [len(plan.forms[mode]) for mode in ("inference", "training")] == [6, 6]
    assert plan.left_out == []


def test_what_cannot_be_measured_is_said(monkeypatch):
    for field in ("modes", "runtimes", "precisions"):
        with pytest.raises(UserError, match="is empty"):
            plan_of(tiny(), **{field: ()})
    with pytest.raises(UserError, match="batch_size is 0"):
        plan_of(tiny(), batch_size=0)
    with pytest.raises(UserError, match="did you mean 'ConViT_Ti'"):
        preset_configs(["ConViT_T"], [224])
    with pytest.raises(UserError, match="image_size is 225"):
        preset_configs(["ConViT_Ti"], [225])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(UserError, match="training in OpenVINO, which only infers"):
        plan_of(tiny(), modes=("training",), runtimes=("openvino",))
    both = plan_of(tiny(), modes=("inference",), runtimes=("onnxruntime",), precisions=("float32", "bfloat16"))
    assert len(both.forms["inference"]) == 3
    assert both.left_out == ["bfloat16 in ONNX Runtime, which has no such kernels for CPUs"]
    for runtime, name in (("eager", "eager"), ("onnxruntime", "ONNX Runtime")):
        with pytest.raises(UserError, match=f"no int8 in {name}: only OpenVINO's models are quantised here"):
            plan_of(tiny(), runtimes=(runtime,), precisions=("int8",))
    with pytest.raises(UserError, match="training in OpenVINO, which only infers"):
        plan_of(tiny(), modes=("training",), runtimes=("openvino",), precisions=("int8_float32",))
    assert len(plan_of(tiny(), runtimes=("openvino",), precisions=("int8", "int8_float32")).forms["inference"]) == 6
    with pytest.raises(UserError, match="precision is 'int4': it must be one of"):
        plan_of(tiny(), precisions=("int4",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "nncf" else object())
    with pytest.raises(UserError, match=r"precision 'int8' needs the package nncf, .* 'comvex\[export\]' brings it"):
        plan_of(tiny(), runtimes=("openvino",), precisions=("int8",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"runtime 'openvino' needs the package openvino, which is not installed"):
        plan_of(tiny(), runtimes=("openvino",))
