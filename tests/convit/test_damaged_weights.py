"""Over two hundred damaged weights files: each is refused with its cause, none runs code, nothing is half loaded.

One undamaged file of each kind is the control. Files are damaged the same way on every run.
"""

import builtins
import io
import json
import os
import pickle
import random
import re
import shutil
import struct
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from checkpoints import State, random_model, random_state, small_config, write
from comvex.cli import main
from comvex.convit import ConViTWithLinearClassifier
from comvex.convit.weights import load_model, load_weights, save_weights
from comvex.convit.weights.config_file import checksum

STATE = random_state()
FOREIGN = ("official.pth", "timm.safetensors")
EMPTY = {
    "head.weight": (2**60, 0),
    "mlp.fc1.weight": (2**58, 0),
    "pos_embed": (1, 2**62, 0),
    "patch_embed.proj.weight": (0, 2**50, 16, 16),
}
"""Sides so long that nothing may be counted or made of them, of tensors that have no numbers."""
Damage = Callable[[Path], Path]
"""Makes a damaged file in an empty folder and returns it."""


def truncated(name: str, share: float) -> Damage:
    def make(folder: Path) -> Path:
        file = write(name, STATE, folder)
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
        return file

    return make


def changed(name: str, change: Callable[[State], Any]) -> Damage:
    def make(folder: Path) -> Path:
        state = dict(STATE)
        change(state)
        return write(name, state, folder)

    return make


def drop(key: str) -> Callable[[State], Any]:
    return lambda state: state.pop(key)


def rename(key: str) -> Callable[[State], Any]:
    return lambda state: state.update({key.replace("0", "7") + "s": state.pop(key)})


def replace(key: str, value: torch.Tensor) -> Callable[[State], Any]:
    return lambda state: state.update({key: value})


def poisoned(key: str, value: float) -> Callable[[State], Any]:
    def change(state: State) -> None:
        tensor = state[key].clone()
        tensor.view(-1)[len(tensor.view(-1)) // 2] = value
        state[key] = tensor

    return change


def lying_header(change: Callable[[dict[str, Any]], Any], *, length: int | None = None) -> Damage:
    """A safetensors file whose header says something else than what follows."""

    def make(folder: Path) -> Path:
        file = write("timm.safetensors", STATE, folder)
        content = file.read_bytes()
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + content[8 + size :])
        return file

    return make


class Call:
    """Pickles to a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def calling(wrap: Callable[[Any], Any], function: Callable[..., Any], *arguments: str, zipped: bool = True) -> Damage:
    """A pickle that would make the file "executed" if it were run."""

    def make(folder: Path) -> Path:
        mark = str(folder / "executed")
        content = wrap(Call(function, *(argument.replace("MARK", mark) for argument in arguments)))
        file = folder / "evil.pth"
        if zipped:
            torch.save(content, file)
        else:
            file.write_bytes(pickle.dumps(content, protocol=2))
        return file

    return make


def own(damage: Callable[[Path], Any]) -> Damage:
    """A file of ours, damaged after it was written."""

    def make(folder: Path) -> Path:
        save_weights(random_model(), folder / "model.safetensors")
        damage(folder)
        return folder / "model.safetensors"

    return make


def flip(name: str, place: float, bit: int) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[int(place * len(content))] ^= 1 << bit
        (folder / name).write_bytes(content)

    return damage


def cut(name: str, share: float) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return damage


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        change(content)
        (folder / "config.json").write_text(json.dumps(content))

    return damage


def entry(content: dict[str, Any]) -> dict[str, Any]:
    return content["files"]["model.safetensors"]


def signed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """Our config.json changed with a checksum that is right: as by a program that does not know the format."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        change(content)
        (folder / "config.json").write_text(json.dumps(content | {"checksum": checksum(content)}))

    return damage


def beside(config: dict[str, Any]) -> Damage:
    """A whole file in timm's layout beside a config.json in timm's layout that is not right."""

    def make(folder: Path) -> Path:
        (folder / "config.json").write_text(json.dumps(config))
        return write("timm.safetensors", STATE, folder)

    return make


def written(content: bytes) -> Damage:
    def make(folder: Path) -> Path:
        (folder / "weights.pth").write_bytes(content)
        return folder / "weights.pth"

    return make


def saved(content: Any) -> Damage:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return written(buffer.getvalue())


def damages() -> Iterator[tuple[str, Damage]]:
    draw = random.Random(0)
    keys = list(STATE)
    for name in (*FOREIGN, "official-legacy.pth"):
        for share in [0.0, 0.0001, 0.001, 0.999, *(draw.random() for _ in range(11))]:
            yield f"{name} truncated to {share:.4f}", truncated(name, share)
    for name in FOREIGN:
        for key in draw.sample(keys, 20):
            yield f"{name} without {key}", changed(name, drop(key))
        for key in draw.sample([key for key in keys if key != "head.bias"], 12):
            yield f"{name} with {key} renamed", changed(name, rename(key))
        for key in (
            "extra",
            "blocks.1.attn.extra",
            "blocks.999999999.norm1.weight",
            "head.9.weight",
            "head_dist.weight",
        ):
            yield f"{name} with {key} added", changed(name, replace(key, torch.zeros(16)))
        for key in draw.sample([key for key in keys if key not in ("pos_embed", "cls_token")], 12):
            shape = list(STATE[key].shape)
            shape[draw.randrange(len(shape))] += 1
            yield f"{name} with {key} of {shape}", changed(name, replace(key, torch.zeros(shape)))
        for shape in ((1, 15, 16), (1, 16, 17), (16, 16), (2, 16, 16), (1, 0, 16)):
            yield f"{name} with pos_embed of {shape}", changed(name, replace("pos_embed", torch.zeros(shape)))
        for key in draw.sample(keys, 4):
            for dtype in (torch.int64, torch.bool, torch.uint8, torch.complex64):
                yield f"{name} with {key} of {dtype}", changed(name, replace(key, STATE[key].to(dtype)))
        for key in draw.sample(keys, 4):
            for value in (float("nan"), float("inf")):
                yield f"{name} with {value} in {key}", changed(name, poisoned(key, value))

    def first(header: dict[str, Any]) -> dict[str, Any]:
        return header["head.weight"]

    yield "header of another shape", lying_header(lambda header: first(header).update(shape=[5, 17]))
    yield "header of another type", lying_header(lambda header: first(header).update(dtype="F64"))
    yield "header of no type", lying_header(lambda header: first(header).update(dtype="Q7"))
    yield (
        "header with data beyond the end",
        lying_header(lambda header: first(header).update(data_offsets=[0, 1 << 40])),
    )
    yield "header with overlapping data", lying_header(lambda header: first(header).update(data_offsets=[0, 320]))
    yield "header with a hole", lying_header(lambda header: header.pop("head.weight"))
    yield "header of 2^63 bytes", lying_header(lambda header: None, length=1 << 63)
    yield "header of 2^27 bytes", lying_header(lambda header: None, length=1 << 27)
    yield "header of 9 bytes", lying_header(lambda header: None, length=9)
    yield "header with negative shape", lying_header(lambda header: first(header).update(shape=[-5, -16]))

    functions: list[tuple[Callable[..., Any], str]] = [
        (os.system, "touch MARK"),
        (builtins.eval, "open('MARK', 'w').close()"),
        (builtins.exec, "open('MARK', 'w').close()"),
        (subprocess.check_output, "touch MARK"),
        (os.mkdir, "MARK"),
    ]
    wraps: dict[str, Callable[[Any], Any]] = {
        "alone": lambda call: call,
        "as a weight": lambda call: {"model": {**STATE, "head.bias": call}},
        "beside the model": lambda call: {"model": STATE, "args": call},
    }
    for function, argument in functions:
        for where, wrap in wraps.items():
            yield f"a call of {function.__name__} {where}", calling(wrap, function, argument)
    yield "a bare pickle that calls", calling(lambda call: call, os.system, "touch MARK", zipped=False)

    for _ in range(25):
        yield "our weights, a bit flipped", own(flip("model.safetensors", draw.random(), draw.randrange(8)))
        yield "our config, a bit flipped", own(flip("config.json", draw.random(), draw.randrange(8)))
    for share in (0.0, 0.3, 0.99):
        yield "our weights truncated", own(cut("model.safetensors", share))
        yield "our config truncated", own(cut("config.json", share))
    for field in ("sha256", "architecture", "preprocessing", "labels", "licence", "figures"):
        yield f"our config without {field}", own(signed(lambda content, field=field: entry(content).pop(field)))
    for field, value in (
        ("labels", 3),
        ("labels", ["a", "b"]),
        ("preprocessing", [1]),
        ("preprocessing", {"mean": "x"}),
        ("architecture", 1),
        ("figures", 7),
    ):
        yield (
            f"our config with {field} {value}",
            own(signed(lambda content, f=field, v=value: entry(content).update({f: v}))),
        )
    yield "our config with a list of files", own(signed(lambda content: content.update(files=[1])))
    yield (
        "our config with a name for an entry",
        own(signed(lambda content: content.update(files={"model.safetensors": "x"}))),
    )
    yield "our config nested without end", own(lambda folder: (folder / "config.json").write_text("[" * 200_000))
    yield "timm's config with labels 5", beside({"label_names": 5, "pretrained_cfg": {}})
    yield "timm's config with two labels", beside({"label_names": ["a", "b"], "pretrained_cfg": {}})
    yield "timm's config with deviation 0", beside({"pretrained_cfg": {"std": [0, 0, 0]}})
    yield "timm's config with a mean of words", beside({"pretrained_cfg": {"mean": ["a"]}})
    for config in (
        {"global_pool": ["avg"]},
        {"model_args": {"global_pool": "max"}},
        {"model_args": {"img_size": "32"}},
        {"model_args": {"img_size": [32]}},
        {"model_args": [32]},
    ):
        yield f"timm's config with {config}", beside({"pretrained_cfg": {}} | config)
    yield "timm's config with a mean of two", beside({"pretrained_cfg": {"mean": [0.1, 0.2]}})
    yield "timm's config with a label 7", beside({"label_names": {"7": "a"}, "pretrained_cfg": {}})
    yield "timm's config with a label by name", beside({"label_names": {"a": "b"}, "pretrained_cfg": {}})
    yield "timm's config with an input size of 5", beside({"pretrained_cfg": {"input_size": 5}})
    yield "our config missing", own(lambda folder: (folder / "config.json").unlink())
    yield "our config of version 2", own(edit(lambda content: content.update(format=2)))
    yield "our config for other files", own(edit(lambda content: content.update(files={})))
    yield "our config with another dim", own(edit(lambda content: entry(content)["architecture"].update(dim=32)))
    yield "our config with a field too many", own(edit(lambda content: entry(content)["architecture"].update(width=2)))
    yield "our config a list", own(lambda folder: (folder / "config.json").write_text("[]"))
    yield (
        "our weights those of another model",
        own(lambda folder: save_file(random_state(seed=2), folder / "model.safetensors")),
    )

    huge = torch.zeros(1).expand(2_000_000_000, 16)
    yield "a huge tensor of one number", saved({**STATE, "head.weight": huge})
    for key, shape in EMPTY.items():
        lying = {name: torch.empty(shape) for name in STATE if key in name}
        yield f"{key} of {shape}", saved({**STATE, **lying})
        if len(shape) > 2:
            yield (
                f"{key} of {shape} in safetensors",
                changed("timm.safetensors", lambda state, new=lying: state.update(new)),
            )
    yield "a number for a name", saved({**STATE, 1: torch.zeros(2)})
    yield "a name of two lines", saved({**STATE, "a\nb": torch.zeros(2)})
    yield "a tensor without numbers", saved({**STATE, "head.weight": torch.empty(5, 16, device="meta")})
    yield "a sparse tensor", saved({**STATE, "head.weight": torch.eye(5, 16).to_sparse()})
    yield "a call of PosixPath beside the model", saved({"model": STATE, "args": {"out": Path("x")}})
    for content in (b"", b"PK", b"\x80", b"hello", bytes(1000), b"{}" * 20, b'{"model": 1}'):
        yield f"the bytes {content[:12]!r}", written(content)
    for value in (
        1,
        [STATE],
        {},
        {"model": {}},
        {"model": 3},
        {1: torch.zeros(2)},
        torch.zeros(3),
        {"model": {"a": "b"}},
    ):
        yield f"a saved {str(value)[:30]}", saved(value)


DAMAGES = list(damages())


def test_there_are_at_least_two_hundred_damaged_files() -> None:
    assert len(DAMAGES) >= 200


@pytest.mark.parametrize(("name", "make"), DAMAGES, ids=[name for name, _ in DAMAGES])
def test_damaged_file_is_refused_with_its_cause(name: str, make: Damage, tmp_path, unchanged) -> None:
    file = make(tmp_path)
    with pytest.raises(ValueError, match=r".") as alone:
        load_model(file)
    model = random_model(seed=3)
    with unchanged(model), pytest.raises(ValueError, match=r".") as into_model:
        load_weights(model, file)
    for caught in (alone, into_model):
        assert type(caught.value).__name__ in ("UserError", "UnknownArchitectureError"), caught.value
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()
    if called := re.match(r"a (?:call of|bare pickle that calls) ?(\w*)", name):
        assert "would run code that it names (" in str(alone.value), alone.value
        assert (called[1] or "system") in str(alone.value), alone.value


@pytest.mark.parametrize("name", [*FOREIGN, "official-legacy.pth"])
def test_undamaged_controls_load(name: str, tmp_path) -> None:
    file = write(name, STATE, tmp_path)
    assert load_model(file).config.num_classes == 5
    save_weights(random_model(), tmp_path / "own" / "model.safetensors")
    assert torch.equal(load_model(tmp_path / "own").cls_token, STATE["cls_token"])


@pytest.mark.parametrize("rows", [4, 10])
def test_a_head_of_two_numbers_of_classes_is_told_by_both_tensors(rows: int, tmp_path) -> None:
    file = write("official.pth", {**STATE, "head.weight": torch.zeros(rows, 16)}, tmp_path)
    with pytest.raises(ValueError, match=rf"head.weight \({rows}, 16\) and head.bias \(5,\) are not of one number"):
        load_model(file)


@pytest.mark.parametrize("key", ["head.weight", "head.bias"])
def test_a_tensor_of_the_head_with_an_axis_too_many_is_named_alone(key: str, tmp_path) -> None:
    file = write("official.pth", {**STATE, key: STATE[key][None]}, tmp_path)
    with pytest.raises(ValueError, match=rf"ConViT: 1 of another shape: {key} \(1, 5.* instead of \(5"):
        load_model(file)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_was_cut_is_told_in_one_sentence_without_pytorchs_advice(share: float, tmp_path) -> None:
    told = []
    for number in range(12):
        with pytest.raises(ValueError, match=r"is damaged or no PyTorch file: \w") as caught:
            load_model(truncated("official.pth", share - number / 1000)(tmp_path))
        told.append(str(caught.value))
    assert not [message for message in told if "Errno" in message or ". " in message]


def test_all_else_at_fault_is_named_beside_a_head_of_two_numbers_of_classes(tmp_path) -> None:
    state = {**STATE, "head.weight": torch.zeros(4, 16), "extra": torch.zeros(2)}
    del state["norm.bias"]
    with pytest.raises(ValueError, match=r"1 missing: norm.bias; 1 unexpected: extra; head.weight \(4, 16\) and"):
        load_model(write("official.pth", state, tmp_path))


@pytest.mark.parametrize("length", [1, 3, 5])
def test_the_gates_of_the_only_gpsa_layer_are_named_if_they_are_not_one_a_head(length: int, tmp_path) -> None:
    state = random_state(small_config(num_local_layers=1))
    state["blocks.0.attn.gating_param"] = torch.zeros(length)
    with pytest.raises(ValueError, match=rf"1 of another shape: blocks.0.attn.gating_param \({length},\) instead of"):
        load_model(write("official.pth", state, tmp_path))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_names_that_have_or_lack_the_prefix_of_the_others_are_told(prefix: str, tmp_path) -> None:
    some = {prefix + name if name == "norm.weight" else name: tensor for name, tensor in STATE.items()}
    most = {name if name == "norm.weight" else prefix + name: tensor for name, tensor in STATE.items()}
    with pytest.raises(
        ValueError, match=rf"1 of its {len(STATE)} names have the prefix {prefix} .*: {prefix}norm.weig"
    ):
        load_model(write("official.pth", some, tmp_path))
    with pytest.raises(ValueError, match=rf"1 of its {len(STATE)} names lack the prefix {prefix} .*: norm.weight"):
        load_model(write("official.pth", most, tmp_path))


def test_archives_that_are_programs_are_refused_without_advice_to_run_them(tmp_path) -> None:
    with warnings.catch_warnings(action="ignore"):  # TorchScript is on its way out
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pth")
    with pytest.raises(ValueError, match="is a TorchScript archive, which only running code would open") as caught:
        load_model(tmp_path / "script.pth")
    assert "weights_only" not in str(caught.value)


def test_damage_is_told_in_one_line_on_the_command_line(tmp_path, capsys) -> None:
    picture = Path(shutil.copy(Path(__file__).parents[2] / "docs" / "images" / "demo.png", tmp_path / "picture.png"))
    for name, make in DAMAGES[:: len(DAMAGES) // 12]:
        folder = tmp_path / str(abs(hash(name)))
        folder.mkdir()
        file = make(folder)
        assert main(["predict", str(file), str(picture)]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("comvex: ")
        assert told.err.count("\n") == 1, told.err


def test_a_model_is_not_touched_before_all_of_the_file_is_checked(tmp_path) -> None:
    state = dict(STATE)
    last = list(state)[-1]
    state[last] = torch.full_like(state[last], float("nan"))
    model = ConViTWithLinearClassifier(random_model().config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="not finite"):
        load_weights(model, write("timm.pth", state, tmp_path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
