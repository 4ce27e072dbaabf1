"""The switches of the paper's ablation (Table 3): what they start from, and what they keep from being trained."""

import dataclasses

import pytest
import torch

from comvex.convit.attention import GatedPositionalSelfAttention
from comvex.convit.config import ConViTConfig
from comvex.convit.model import ConViTBackbone, ConViTWithLinearClassifier
from comvex.convit.weights import load_model, save_weights

SMALL = {"image_size": 16, "patch_size": 4, "dim": 36, "heads": 9, "num_local_layers": 2, "num_nonlocal_layers": 1}


def model(**switches: bool) -> ConViTWithLinearClassifier:
    return ConViTWithLinearClassifier(ConViTConfig.ConViT_Ti(**SMALL, num_classes=5, **switches))


def frozen(network: ConViTWithLinearClassifier) -> set[str]:
    return {name for name, parameter in network.named_parameters() if not parameter.requires_grad}


def test_frozen_gates_give_content_and_position_equal_parts():
    torch.manual_seed(1)
    gpsa = GatedPositionalSelfAttention(36, heads=9, train_gates=False)
    assert torch.equal(gpsa.gating_param, torch.zeros(9))
    x = torch.randn(2, 20, 36)

    def with_gates_at(value: float) -> torch.Tensor:
        ends = GatedPositionalSelfAttention(36, heads=9)
        ends.load_state_dict({**gpsa.state_dict(), "gating_param": torch.full((9,), value)})
        return ends(x, (4, 5))

    # Rounding alone: values of about 1e-2, sums of 36 terms in float32
    assert torch.allclose(gpsa(x, (4, 5)), (with_gates_at(-100) + with_gates_at(100)) / 2, atol=1e-7)


def test_without_the_convolutional_start_positions_and_values_are_random_and_the_rest_is_as_before():
    gpsa = GatedPositionalSelfAttention(144, heads=9, convolutional_init=False)
    assert gpsa.v.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert gpsa.v.weight.diagonal().mean().abs() < 0.01
    assert gpsa.pos_proj.weight.abs().max() < 0.1
    assert gpsa.pos_proj.weight.std() > 0.005
    assert torch.equal(gpsa.gating_param, torch.ones(9))


def test_only_what_a_switch_names_is_frozen():
    gates = {f"blocks.{index}.attn.gating_param" for index in (0, 1)}
    assert frozen(model()) == set()
    assert frozen(model(convolutional_init=False)) == set()
    assert frozen(model(train_gates=False)) == gates
    attention = {name for name, _ in model().named_parameters() if ".attn." in name and not name.startswith("blocks.2")}
    assert frozen(model(freeze_positional=True)) == attention
    assert gates < attention
    assert frozen(model(use_gpsa=False, train_gates=False, freeze_positional=True)) == set()


@pytest.mark.parametrize("switch", ["train_gates", "convolutional_init", "freeze_positional"])
def test_a_switch_keeps_the_names_of_the_weights_and_goes_through_json_and_weights_files(switch, tmp_path):
    plain = model()
    switched = model(**{switch: not getattr(plain.config, switch)})
    assert list(switched.state_dict()) == list(plain.state_dict())
    assert ConViTConfig.from_json(switched.config.to_json()) == switched.config != plain.config
    save_weights(switched, tmp_path / "weights.safetensors")
    again = load_model(tmp_path / "weights.safetensors")
    assert again.config == switched.config
    assert frozen(again) == frozen(switched)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, switched.state_dict()[name]), name


def test_a_backbone_s_config_knows_its_switches():
    switches = {"train_gates": False, "convolutional_init": False, "freeze_positional": True}
    config = ConViTBackbone(**SMALL, **switches).config
    assert {name: getattr(config, name) for name in switches} == switches


def test_a_config_from_before_the_switches_is_the_papers_model():
    config = model().config
    old = dataclasses.asdict(config)
    for name in ("train_gates", "convolutional_init", "freeze_positional"):
        del old[name]
    assert ConViTConfig.from_dict(old) == config


@pytest.mark.parametrize("switch", ["train_gates", "convolutional_init", "freeze_positional"])
def test_a_switch_that_is_no_truth_value_is_named(switch):
    with pytest.raises(ValueError, match=f"{switch} is 1: it must be True or False"):
        ConViTConfig(heads=4, **{switch: 1})


def test_the_start_of_every_matrix_of_the_layers_has_the_deviation_asked_for():
    for init_std in (0.02, 0.1):
        network = ConViTWithLinearClassifier(
            ConViTConfig.ConViT_Ti(dim=144, heads=9, num_local_layers=1, num_nonlocal_layers=1, init_std=init_std)
        )
        for name, weight in network.named_parameters():
            if (
                weight.ndim == 2
                and name.startswith("blocks")
                and not name.endswith(("attn.v.weight", "pos_proj.weight"))
            ):
                assert weight.std().item() == pytest.approx(init_std, rel=0.05), name
        assert torch.equal(network.blocks[0].attn.v.weight, torch.eye(144))
        assert network.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    random = GatedPositionalSelfAttention(144, heads=9, convolutional_init=False, init_std=0.1)
    assert random.v.weight.std().item() == pytest.approx(0.1, rel=0.05)
    with pytest.raises(ValueError, match=r"init_std is 0: it must be a positive number"):
        ConViTConfig(heads=4, init_std=0)
