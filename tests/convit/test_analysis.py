"""What the analysis says of a model, against maps written out densely from the layers' weights and their own inputs."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from comvex.convit import ConViTBackbone, ConViTConfig, ConViTWithLinearClassifier, analysis
from comvex.convit.analysis import inputs as analysis_inputs
from comvex.convit.attention import GatedPositionalSelfAttention
from comvex.errors import UserError
from oracle import gpsa as oracle

EXACT = 1e-9
"""Relative; float64 against sums in another order."""


def small_model(**changes) -> ConViTWithLinearClassifier:
    """Two local layers and a class-token layer in float64, with weights so large that attention is far from uniform."""
    settings = {
        "image_size": (12, 20), "image_channel": 1, "patch_size": 4, "dim": 16, "heads": 4, "num_local_layers": 2,
        "num_nonlocal_layers": 1, "num_classes": 3,
    }  # fmt: skip
    model = ConViTWithLinearClassifier(ConViTConfig.ConViT_Ti(**settings | changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.6)
    return model


def pictures(num: int = 2, height: int = 12, width: int = 20) -> torch.Tensor:
    return torch.randn(num, 1, height, width, dtype=torch.float64)


def own_inputs(model: ConViTWithLinearClassifier, batch: torch.Tensor) -> list[np.ndarray]:
    """What the attention of each layer gets, from the model's parts one after the other: (B, T, dim) each."""
    with torch.no_grad():
        tokens, grid, _ = model._embed(batch)
        found = []
        for index, layer in enumerate(model.blocks):
            if index == model.config.num_local_layers:
                tokens = torch.cat([model.cls_token.expand(len(batch), -1, -1), tokens], dim=1)
            found.append((layer.norm1(tokens) if layer.pre_norm else tokens).numpy())
            tokens = layer(tokens, grid)
    return found


def dense_maps(model: ConViTWithLinearClassifier, layer: int, tokens: np.ndarray, grid: tuple[int, int]) -> dict:
    """Content, positional and blended maps of one picture's tokens (T, dim): (heads, T, T), in loops over the heads."""
    attention = model.blocks[layer].attn
    weights = {name: value.detach().numpy() for name, value in attention.state_dict().items()}
    head_dim = attention.head_dim
    joint = weights["qk.weight"] if "qk.weight" in weights else weights["qkv.weight"]
    queries, keys = tokens @ joint[: attention.dim].T, tokens @ joint[attention.dim : 2 * attention.dim].T
    heads = [slice(head * head_dim, (head + 1) * head_dim) for head in range(attention.heads)]
    content = np.stack([oracle.content_map(queries[:, own], keys[:, own]) for own in heads])
    if "qk.weight" not in weights:
        return {"content": content, "positional": None, "blended": content}
    positional = oracle.positional_map(weights["pos_proj.weight"], weights["pos_proj.bias"], grid)
    gates = weights["gating_param"]
    blended = np.stack([oracle.blend(c, p, float(g)) for c, p, g in zip(content, positional, gates, strict=True)])
    return {"content": content, "positional": positional, "blended": blended}


def mean_distance(attention: np.ndarray, grid: tuple[int, int]) -> float:
    """The paper's definition for one map over patches (N, N), in loops."""
    places = list(itertools.product(range(grid[0]), range(grid[1])))
    total = 0.0
    for query, (row, column) in enumerate(places):
        for key, (key_row, key_column) in enumerate(places):
            total += attention[query, key] * math.sqrt((row - key_row) ** 2 + (column - key_column) ** 2)
    return total / len(places)


def over_patches(attention: np.ndarray) -> tuple[np.ndarray, float]:
    """A map (1 + N, 1 + N) with a class token: over patches alone, renormalised, and the token's mean share."""
    rows = attention[1:]
    return rows[:, 1:] / rows[:, 1:].sum(axis=1, keepdims=True), float(rows[:, 0].mean())


# Non-locality


def test_uniform_attention_on_a_three_by_three_grid_looks_as_far_as_a_hand_computation_says():
    # Of the 81 pairs 9 are the same patch, 24 are 1 apart, 16 sqrt(2), 12 two, 16 sqrt(5), 4 sqrt(8).
    by_hand = (24 + 16 * math.sqrt(2) + 12 * 2 + 16 * math.sqrt(5) + 4 * math.sqrt(8)) / 81
    model = small_model(image_size=12)
    with torch.no_grad():
        for layer in model.blocks:
            layer.attn.get_parameter("qkv.weight" if hasattr(layer.attn, "qkv") else "qk.weight").zero_()
            if isinstance(layer.attn, GatedPositionalSelfAttention):
                layer.attn.pos_proj.weight.zero_()
    found = analysis.nonlocality(model, pictures(3, 12, 12))
    assert found.content == pytest.approx(np.full((3, 4), by_hand), rel=EXACT)
    assert found.positional[:2] == pytest.approx(np.full((2, 4), by_hand), rel=EXACT)
    assert found.blended == pytest.approx(np.full((3, 4), by_hand), rel=EXACT)
    assert found.class_token_share[2] == pytest.approx(0.1)


def test_a_head_that_sees_its_right_neighbour_alone_looks_two_thirds_of_a_patch_on_a_three_by_three_grid():
    model = small_model(image_size=12)
    with torch.no_grad():
        for layer in model.blocks[:2]:
            layer.attn.pos_proj.weight.copy_(torch.tensor([[2.0, 0.0, -1.0]]) * 500)  # centre dx = 1, no width
            layer.attn.gating_param.fill_(50)  # the gate is 1
    found = analysis.nonlocality(model, pictures(1, 12, 12))
    # Six patches have a right neighbour; the three at the border see themselves.
    assert found.positional[:2] == pytest.approx(np.full((2, 4), 6 / 9), rel=EXACT)
    assert found.blended[:2] == pytest.approx(np.full((2, 4), 6 / 9), rel=EXACT)
    assert (np.abs(found.content[:2] - 6 / 9) > 0.05).all()


@pytest.mark.parametrize("pre_norm", [True, False])
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), seed=st.integers(0, 1000))
def test_nonlocality_is_that_of_dense_maps_of_each_layers_own_input(pre_norm, rows, columns, seed):
    torch.manual_seed(seed)
    model, grid, batch = small_model(pre_norm=pre_norm), (rows, columns), pictures(2, 4 * rows, 4 * columns)
    found = analysis.nonlocality(model, batch)
    assert found.num_pictures == 2
    for layer, tokens in enumerate(own_inputs(model, batch)):
        maps = [dense_maps(model, layer, picture, grid) for picture in tokens]
        for head in range(4):
            if layer == 2:
                cut = [over_patches(dense["content"][head]) for dense in maps]
                expected = np.mean([mean_distance(attention, grid) for attention, _ in cut])
                assert found.content[layer, head] == pytest.approx(expected, rel=EXACT, abs=1e-12)
                assert found.class_token_share[layer, head] == pytest.approx(np.mean([s for _, s in cut]), rel=EXACT)
                continue
            for name in ("content", "positional", "blended"):
                expected = np.mean([mean_distance(dense[name][head], grid) for dense in maps])
                assert getattr(found, name)[layer, head] == pytest.approx(expected, rel=EXACT, abs=1e-12), name
    assert np.isnan(found.positional[2]).all()
    assert np.isnan(found.class_token_share[:2]).all()
    np.testing.assert_array_equal(found.blended[2], found.content[2])


def test_raw_patch_embeddings_would_give_other_figures_for_all_but_the_first_layer():
    """What the official script measures: the sanity check that feeding each layer its own input matters."""
    model, batch = small_model(), pictures()
    found = analysis.nonlocality(model, batch)
    raw = own_inputs(model, batch)[0]
    differences = []
    for layer in (0, 1):
        maps = [dense_maps(model, layer, picture, (3, 5))["content"][0] for picture in raw]
        differences.append(abs(np.mean([mean_distance(m, (3, 5)) for m in maps]) - found.content[layer, 0]))
    assert differences[0] < 1e-12
    assert differences[1] > 0.01


def test_a_new_model_looks_as_near_as_its_kernels_and_its_content_everywhere():
    """The convolutional start: with nine heads the nearest is the centre's own kernel, and no head looks farther."""
    model = ConViTWithLinearClassifier(
        ConViTConfig.ConViT_Ti(image_size=64, image_channel=1, patch_size=8, dim=72, heads=9, num_classes=2)
    )
    found = analysis.nonlocality(model, torch.randn(4, 1, 64, 64))
    assert (found.positional[:10].argmin(axis=1) == 4).all()
    assert (found.positional[:10] < 2).all()
    assert (found.content > 3.5).all()  # of uniform attention on 8 x 8: 4.1
    assert (found.blended[:10] < found.content[:10]).all()


def test_how_the_pictures_come_in_batches_changes_nothing_and_every_picture_counts_the_same():
    model, batch = small_model(), pictures(7)
    whole = analysis.nonlocality(model, batch)
    labelled = ((part, torch.zeros(len(part))) for part in (batch[:1], batch[1:1], batch[1:6], batch[6:]))
    parts = analysis.nonlocality(model, labelled)
    assert parts.num_pictures == whole.num_pictures == 7
    larger = pictures(2, 24, 8)
    mixed = analysis.nonlocality(model, [batch, larger])
    for name in ("content", "positional", "blended", "class_token_share"):
        expected = getattr(whole, name)
        np.testing.assert_allclose(getattr(parts, name), expected, rtol=EXACT)
        other = getattr(analysis.nonlocality(model, larger), name)
        np.testing.assert_allclose(getattr(mixed, name), (7 * expected + 2 * other) / 9, rtol=EXACT)


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that any operation gives while it is on."""

    num = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **keywords or {})
        results = result if isinstance(result, tuple | list) else [result]
        sizes = [value.numel() for value in results if isinstance(value, torch.Tensor)]
        self.num = max([self.num, *sizes])
        return result


@pytest.mark.parametrize("largest", [1, 700, 20_000])
def test_pieces_of_the_maps_give_what_whole_maps_give_and_none_is_larger_than_allowed(monkeypatch, largest):
    model, batch = small_model(), pictures(3, 40, 60)
    whole, rollout = analysis.nonlocality(model, batch), analysis.attention_rollout(model, batch)
    monkeypatch.setattr(analysis_inputs, "LARGEST_MAP", largest)
    with LargestTensor() as seen:
        pieces = analysis.nonlocality(model, batch)
    num_tokens, heads = 151, 4
    tokens = 3 * num_tokens * 4 * 16  # the widest that the forward pass itself has: the feed-forward network's
    assert seen.num <= max(tokens, 2 * largest, heads * num_tokens) < 3 * heads * num_tokens**2
    np.testing.assert_allclose(pieces.content, whole.content, rtol=EXACT)
    np.testing.assert_allclose(pieces.class_token_share, whole.class_token_share, rtol=EXACT)
    torch.testing.assert_close(analysis.attention_rollout(model, batch), rollout, rtol=EXACT, atol=0)


def test_no_picture_is_refused():
    with pytest.raises(ValueError, match="There are no pictures"):
        analysis.nonlocality(small_model(), [])
    with pytest.raises(ValueError, match="batch, 1, height, width"):
        analysis.nonlocality(small_model(), [torch.randn(1, 12, 12, dtype=torch.float64)])
    with pytest.raises(ValueError, match="is a str"):
        analysis.nonlocality(small_model(), ["a.png"])


# What does not fit


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        ([{"image": torch.zeros(1, 1, 12, 20)}], "A batch of pictures is a dict: it must be a tensor"),
        ([()], "A batch of pictures is a tuple"),
        (None, "pictures is a NoneType"),
        (torch.zeros(4), "pictures has shape (4,): it must be a tensor (batch, 1, height, width)."),
        (pictures().half(), "pictures is of torch.float16: it must be of the model's torch.float64."),
    ],
)
def test_batches_that_are_no_pictures_are_named(batches, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        analysis.nonlocality(small_model(), batches)


@pytest.mark.parametrize(
    "analyse",
    [
        analysis.attention_inputs,
        analysis.attention_rollout,
        analysis.class_token_attention,
        lambda model, batch: analysis.attention_maps(model, batch, queries=[(0, 0)]),
    ],
)
def test_one_batch_must_be_one_tensor_of_the_models_type(analyse):
    model = small_model()
    with pytest.raises(UserError, match=r"pictures is a list: it must be a tensor \(batch, 1, height, width\)"):
        analyse(model, [pictures(), pictures()])
    with pytest.raises(UserError, match=r"pictures is of torch\.float32: it must be of the model's torch\.float64"):
        analyse(model, pictures().float())


def test_batches_to_measure_accuracy_on_have_labels():
    for batch in (pictures(), {"image": pictures(), "label": torch.zeros(2)}):
        with pytest.raises(UserError, match=r"A batch is a \w+: it must be a tuple \(pictures, labels\)"):
            analysis.position_embedding_effect(small_model(), [batch])


@pytest.mark.parametrize(
    "analyse",
    [
        analysis.gates,
        analysis.positional_kernels,
        analysis.position_embedding_similarity,
        analysis.without_position_embedding,
        lambda model: analysis.nonlocality(model, pictures()),
        lambda model: analysis.attention_rollout(model, pictures()),
        lambda model: analysis.class_token_attention(model, pictures()),
        lambda model: analysis.attention_inputs(model, pictures()),
        lambda model: analysis.attention_maps(model, pictures(), queries=[(0, 0)]),
        lambda model: analysis.position_embedding_effect(model, []),
    ],
)
def test_what_is_no_convit_is_named(analyse):
    with pytest.raises(UserError, match="The model is a Linear: it must be a ConViTBackbone"):
        analyse(torch.nn.Linear(2, 2))


def test_a_compiled_model_is_analysed_as_the_one_that_it_was_made_of():
    model, batch = small_model(), pictures()
    expected = analysis.nonlocality(model, batch)
    np.testing.assert_array_equal(analysis.nonlocality(torch.compile(model), batch).blended, expected.blended)
    np.testing.assert_array_equal(analysis.gates(torch.compile(model)), analysis.gates(model))


# What the trainer writes down


def test_head_figures_are_a_row_for_each_layer_and_head_the_same_every_time():
    model, batch = small_model(), pictures(5)
    rows = analysis.head_figures(model, batch)
    assert rows == analysis.head_figures(model, batch)
    found, gates = analysis.nonlocality(model, batch), analysis.gates(model)
    assert [(row["layer"], row["head"]) for row in rows] == list(itertools.product(range(3), range(4)))
    for row in rows:
        place = row["layer"], row["head"]
        assert row["nonlocality_content"] == found.content[place]
        assert row["nonlocality_blended"] == found.blended[place]
        if row["layer"] == 2:
            assert row["gate"] is row["nonlocality_positional"] is None
        else:
            assert row["gate"] == gates[place]
            assert row["nonlocality_positional"] == found.positional[place]


def test_a_plain_vision_transformer_has_content_and_nothing_else():
    model, batch = small_model(use_gpsa=False), pictures()
    found = analysis.nonlocality(model, batch)
    assert np.isnan(found.positional).all()
    assert np.isnan(analysis.gates(model)).all()
    for layer, tokens in enumerate(own_inputs(model, batch)[:2]):
        maps = [dense_maps(model, layer, picture, (3, 5))["content"][1] for picture in tokens]
        assert found.content[layer, 1] == pytest.approx(np.mean([mean_distance(m, (3, 5)) for m in maps]), rel=EXACT)
    assert {row["gate"] for row in analysis.head_figures(model, batch)} == {None}


# Maps


def test_maps_of_chosen_patches_are_rows_of_the_dense_maps():
    model, batch, grid, queries = small_model(), pictures(), (3, 5), [(0, 0), (2, 4), (1, 2)]
    maps = analysis.attention_maps(model, batch, queries=queries)
    assert [layer.layer for layer in maps] == [0, 1, 2]
    places = [row * grid[1] + column for row, column in queries]
    for found, tokens in zip(maps, own_inputs(model, batch), strict=True):
        for picture in range(2):
            dense = dense_maps(model, found.layer, tokens[picture], grid)
            if found.layer == 2:
                cut = np.stack([over_patches(head)[0] for head in dense["content"]])[:, places]
                np.testing.assert_allclose(found.content[picture].flatten(2), cut, rtol=EXACT)
                share = dense["content"][:, [1 + place for place in places], 0]
                np.testing.assert_allclose(found.class_token_share[picture], share, rtol=EXACT)
                assert found.positional is None
                continue
            assert found.class_token_share is None
            for name in ("content", "blended"):
                rows = dense[name][:, places].reshape(4, 3, *grid)
                np.testing.assert_allclose(getattr(found, name)[picture].detach(), rows, rtol=EXACT)
            positional = dense["positional"][:, places].reshape(4, 3, *grid)
            np.testing.assert_allclose(found.positional.detach(), positional, rtol=EXACT, atol=1e-25)
    [last] = analysis.attention_maps(model, batch, queries=queries, layers=[-1])
    assert torch.equal(last.blended, maps[2].blended)


def test_a_patch_or_layer_that_is_not_there_is_refused():
    model, batch = small_model(), pictures()
    for queries, words in (([(3, 0)], r"\(3, 0\) lies outside"), ([(0, -1)], "columns to 4"), ([], "queries is empty")):
        with pytest.raises(ValueError, match=words):
            analysis.attention_maps(model, batch, queries=queries)
    for queries in ((1, 1), [(1.5, 2)], [(0, 0, 0)], 3):
        with pytest.raises(UserError, match=r"queries is .*: it must be a list of patches \(row, column\)"):
            analysis.attention_maps(model, batch, queries=queries)
    for layers, words in (
        ([3], r"layers is \[3\]: layers must lie between -3 and 2"),
        (5, "layers is 5: a number of last layers must lie between 1 and 3"),
        ([0.5], r"layers is \[0\.5\]: it must be a number of last layers, or a list of layers"),
    ):
        with pytest.raises(UserError, match=words):
            analysis.attention_maps(model, batch, queries=[(0, 0)], layers=layers)
    numbered = analysis.attention_maps(model, batch, queries=np.array([[2, 4]]), layers=np.array([1]))
    assert [maps.layer for maps in numbered] == [1]


def test_the_class_tokens_map_is_its_row_of_the_dense_map_over_the_patches():
    model, batch = small_model(num_nonlocal_layers=2), pictures()
    found = analysis.class_token_attention(model, batch)
    assert found.shape == (2, 2, 4, 3, 5)
    for layer, tokens in enumerate(own_inputs(model, batch)[2:]):
        for picture in range(2):
            row = dense_maps(model, 2 + layer, tokens[picture], (3, 5))["content"][:, 0, 1:]
            expected = (row / row.sum(axis=1, keepdims=True)).reshape(4, 3, 5)
            np.testing.assert_allclose(found[layer, picture].detach(), expected, rtol=EXACT)


@pytest.mark.parametrize(("global_pool", "num_local_layers"), [("token", 2), ("avg", 2), ("token", 0)])
def test_rollout_is_the_product_of_all_layers_dense_maps(global_pool, num_local_layers):
    model = small_model(global_pool=global_pool, num_local_layers=num_local_layers, num_nonlocal_layers=2)
    batch, grid = pictures(), (3, 5)
    found = analysis.attention_rollout(model, batch)
    for picture in range(2):
        product = np.eye(16)
        for layer, tokens in enumerate(own_inputs(model, batch)):
            attention = dense_maps(model, layer, tokens[picture], grid)["blended"].mean(axis=0)
            if len(attention) == 15:  # the class token waits beside the patches
                attention = np.pad(attention, ((1, 0), (1, 0)))
                attention[0, 0] = 1
            product = (attention + np.eye(16)) / 2 @ product
        row = product[0] if global_pool == "token" else product[1:].mean(axis=0)
        expected = row[1:] / row[1:].sum()
        np.testing.assert_allclose(found[picture].flatten(), expected, rtol=EXACT)


def test_without_non_local_layers_no_patch_reaches_the_class_token():
    model = small_model(num_nonlocal_layers=0)
    for function in (analysis.attention_rollout, analysis.class_token_attention):
        with pytest.raises(ValueError, match="num_nonlocal_layers is 0"):
            function(model, pictures())
    averaged = small_model(num_nonlocal_layers=0, global_pool="avg")
    assert analysis.attention_rollout(averaged, pictures()).sum().item() == pytest.approx(2)


# Weights


@pytest.mark.parametrize("heads", [4, 9])
@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_new_kernels_stand_at_the_offsets_of_a_convolution_as_wide_as_the_locality_strength_says(heads, strength):
    config = ConViTConfig.ConViT_Ti(image_size=32, dim=72, heads=heads, locality_strength=strength, num_classes=2)
    kernels = analysis.positional_kernels(ConViTWithLinearClassifier(config))
    side = math.isqrt(heads)
    offsets = [(i - (side - 1) / 2, j - (side - 1) / 2) for i in range(side) for j in range(side)]
    for layer in range(10):
        assert np.stack([kernels.dx[layer], kernels.dy[layer]], axis=1) == pytest.approx(np.array(offsets))
        assert kernels.width[layer] == pytest.approx(np.full(heads, 1 / math.sqrt(2 * strength)))
    assert np.isnan(kernels.width[10:]).all()


def test_a_kernels_centre_and_width_are_the_mean_and_deviation_of_its_map_far_from_the_borders():
    model = small_model()
    weight = torch.tensor([[0.3, -0.2, -0.1]], dtype=torch.float64)
    with torch.no_grad():
        model.blocks[0].attn.pos_proj.weight[:1] = weight
        model.blocks[0].attn.pos_proj.weight[1] = torch.tensor([0.3, -0.2, 0.1])  # grows with the distance
    kernels = analysis.positional_kernels(model)
    side = 41
    attention = oracle.positional_map(weight.numpy(), np.zeros(1), (side, side))[0, side * side // 2]
    row, column = np.divmod(np.arange(side * side), side)
    dx, dy = column - side // 2, row - side // 2
    assert kernels.dx[0, 0] == pytest.approx(attention @ dx, rel=1e-6)
    assert kernels.dy[0, 0] == pytest.approx(attention @ dy, rel=1e-6)
    assert kernels.width[0, 0] == pytest.approx(math.sqrt(attention @ (dx - attention @ dx) ** 2), rel=1e-6)
    assert np.isnan([kernels.dx[0, 1], kernels.dy[0, 1], kernels.width[0, 1]]).all()


def test_gates_are_the_sigmoid_of_their_parameters():
    model = small_model()
    with torch.no_grad():
        model.blocks[1].attn.gating_param.copy_(torch.tensor([0.0, 1.0, -2.0, 700.0]))
    expected = [1 / (1 + math.exp(-value)) for value in (0.0, 1.0, -2.0, 700.0)]
    assert analysis.gates(model)[1] == pytest.approx(expected, rel=1e-12)


def test_position_embeddings_are_compared_by_their_cosine():
    model = small_model()
    found = analysis.position_embedding_similarity(model)
    embedding = model.pos_embed[0].detach().numpy()
    one, other = embedding[1 * 5 + 2], embedding[2 * 5 + 4]
    assert found.shape == (3, 5, 3, 5)
    assert found[1, 2, 2, 4] == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    assert found[1, 2, 1, 2] == pytest.approx(1)
    without = small_model(position_embedding=False)
    for function in (analysis.position_embedding_similarity, analysis.without_position_embedding):
        with pytest.raises(ValueError, match="position_embedding is False"):
            function(without)


def test_masking_the_position_embedding_is_setting_it_to_zero_and_leaves_the_model_alone(unchanged):
    model, batch = small_model(), pictures(40)
    with torch.no_grad():
        before = model(batch)
        with unchanged(model):
            masked = analysis.without_position_embedding(model)
            answers = masked(batch)
        zeroed = small_model()
        zeroed.load_state_dict(model.state_dict() | {"pos_embed": torch.zeros_like(model.pos_embed)})
        assert torch.equal(answers, zeroed(batch))
        assert not torch.allclose(answers, before)
    labels = before.argmax(dim=1)
    labels[:10] = (labels[:10] + 1) % 3
    unreadable = torch.empty(0), torch.empty(0)
    batches = [(batch[:33], labels[:33]), unreadable, (batch[33:], labels[33:])]
    effect = analysis.position_embedding_effect(model, batches)
    assert (effect.top1, effect.num_pictures) == (75.0, 40)
    assert effect.top1_masked == pytest.approx(100 * float((answers.argmax(dim=1) == labels).double().mean()))
    with pytest.raises(ValueError, match="no pictures"):
        analysis.position_embedding_effect(model, [])


# What the analysis leaves behind


@pytest.mark.parametrize(
    "analyse",
    [
        analysis.nonlocality,
        analysis.head_figures,
        analysis.attention_rollout,
        analysis.class_token_attention,
        analysis.attention_inputs,
        lambda model, batch: analysis.attention_maps(model, batch, queries=[(0, 0)]),
        lambda model, batch: analysis.position_embedding_effect(model, [(batch, torch.zeros(len(batch)))]),
    ],
)
def test_the_model_is_left_as_it_was_with_every_part_in_its_own_mode(analyse, unchanged):
    model = small_model(drop_path=0.5, ff_dropout=0.5, attention_dropout=0.5)
    model.train()
    model.blocks[0].eval()  # somebody's frozen layer
    modes = [module.training for module in model.modules()]
    with unchanged(model):
        first = analyse(model, pictures())
    assert [module.training for module in model.modules()] == modes
    torch.manual_seed(0)
    batch = pictures()
    torch.manual_seed(1)
    once = analyse(model, batch)
    torch.manual_seed(2)
    assert str(analyse(model, batch)) == str(once)  # no dropout has its say
    with pytest.raises(ValueError, match="multiple of the patch size"):
        analyse(model, torch.randn(1, 1, 13, 20, dtype=torch.float64))
    assert [module.training for module in model.modules()] == modes
    assert not any(layer.attn._forward_pre_hooks for layer in model.blocks)
    assert first is not None


def test_a_backbone_and_pictures_that_are_no_whole_patches_are_analysed_too():
    backbone = ConViTBackbone(
        image_size=16, image_channel=1, patch_size=4, dim=16, heads=4, num_local_layers=1, num_nonlocal_layers=1,
        pad_to_patch=True,
    )  # fmt: skip
    batch = torch.randn(2, 1, 13, 18)
    assert analysis.nonlocality(backbone, batch).content.shape == (2, 4)
    assert analysis.class_token_attention(backbone, batch).shape == (1, 2, 4, 4, 5)
    assert analysis.attention_rollout(backbone, batch).shape == (2, 4, 5)


def test_the_maps_of_a_half_precision_model_are_float32_and_close():
    model, batch = small_model(), pictures()
    exact = analysis.nonlocality(model.float(), batch.float())
    found = analysis.nonlocality(model.bfloat16(), batch.bfloat16())
    np.testing.assert_allclose(found.positional, exact.positional, rtol=0.05)  # weights of 8 bits
    [maps, *_] = analysis.attention_maps(model, batch.bfloat16(), queries=[(0, 0)])
    assert maps.blended.dtype == torch.float32
    torch.testing.assert_close(maps.blended.sum(dim=(-1, -2)), torch.ones(2, 4, 1))
