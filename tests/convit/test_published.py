"""Where weights are found: folders, names, the Hub's cache, the authors' files; and what is said where they are not."""

import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import comvex
from checkpoints import random_model, random_state, small_config, write
from comvex.cli import main
from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.convit.published import PUBLISHED, find_weights
from comvex.convit.weights import load_model, save_weights


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of its own, and the Hub's client told that there is no network."""
    cache = tmp_path / "hub-cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return cache


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put_in_cache(cache: Path, hub_id: str, files: dict[str, Path], *, revision: str = "main") -> None:
    """Files as the Hub's client keeps them."""
    folder = cache / f"models--{hub_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / revision).write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    for name, file in files.items():
        (folder / "snapshots" / COMMIT / name).symlink_to(file)


class LocalHub(BaseHTTPRequestHandler):
    """What the Hub answers of one repository, from a folder; requests are kept as (verb, path, authorization)."""

    folder: Path
    requests: list[tuple[str, str, str | None]]

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        self.requests.append((self.command, self.path, self.headers["Authorization"]))
        file = self.folder / self.path.rpartition("/")[2]
        if self.path.startswith("/api/models/someone/my-convit"):
            files = [{"rfilename": served.name} for served in self.folder.iterdir()]
            body = json.dumps({"id": "someone/my-convit", "sha": COMMIT, "siblings": files}).encode()
        elif self.path.startswith("/someone/my-convit/resolve/") and file.is_file():
            body = file.read_bytes()
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{file.name}-1"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on standard error."""


@pytest.fixture
def local_hub(offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[LocalHub]]:
    """A server with one model, which the Hub's client takes for the Hub."""
    random_model().save_pretrained(tmp_path / "served")
    LocalHub.folder, LocalHub.requests = tmp_path / "served", []
    with ThreadingHTTPServer(("127.0.0.1", 0), LocalHub) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield LocalHub
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like timm's published one, with random weights."""
    model = random_model(ConViTConfig.ConViT_Ti())
    file = tmp_path_factory.mktemp("tiny") / "model.safetensors"
    save_file(model.state_dict(), file)
    return file


@pytest.mark.parametrize(
    "name", ["convit_tiny.fb_in1k", "convit_tiny", "timm/convit_tiny.fb_in1k", "hf-hub:timm/convit_tiny.fb_in1k"]
)
def test_published_name_is_found_in_the_hubs_cache(name, tiny, offline):
    put_in_cache(offline, "timm/convit_tiny.fb_in1k", {"model.safetensors": tiny})
    predictor = comvex.load(name, device="cpu")
    assert predictor.model.config == ConViTConfig.ConViT_Ti()
    assert torch.equal(predictor.model.cls_token, load_model(tiny).cls_token)
    assert len(predictor.labels) == 1000
    assert predictor.labels[0] == "tench, Tinca tinca"
    assert (predictor.preprocessing.image_size, predictor.preprocessing.crop_pct) == ((224, 224), 0.875)
    info = predictor.model.info
    assert info is not None
    assert info.figures == {"data": "ImageNet-1k", "top1": 73.1, "source": "paper, Table 1"}
    assert info.licence == "apache-2.0"


def test_the_authors_file_is_found_where_pytorch_keeps_it(tiny, tmp_path):
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"model": load_model(tiny).state_dict()}, folder / "convit_tiny.pth")
    model = load_model("convit_tiny.official", num_classes=10)
    assert model.config == ConViTConfig.ConViT_Ti(num_classes=10)


def test_the_authors_weights_are_those_of_table_1():
    known = {name: (published.hub_id, published.address, published.top1) for name, published in PUBLISHED.items()}
    assert known == {
        f"convit_{size}": (
            f"timm/convit_{size}.fb_in1k",
            f"https://dl.fbaipublicfiles.com/convit/convit_{size}.pth",
            top1,
        )
        for size, top1 in (("tiny", 73.1), ("small", 81.3), ("base", 82.4))
    }


def test_a_repository_with_a_pytorch_file_is_read_too(tmp_path, offline):
    file = write("pytorch_model.bin", random_state(), tmp_path)
    put_in_cache(offline, "someone/older", {"pytorch_model.bin": file})
    assert load_model("someone/older").config == small_config()
    assert load_model(file.parent).config == small_config()


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_without_network_one_sentence_says_what_to_fetch_and_where_to_put_it(name, capsys):
    assert main(["predict", name, "photo.jpg"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"fetch model.safetensors and config.json from https://huggingface.co/timm/{name}.fb_in1k" in told
    assert "into a folder and give that folder" in told


def test_without_network_the_authors_file_is_named_with_its_place(monkeypatch):
    def refuse(*arguments: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(
        ValueError, match=r"fetch https://.*/convit_base\.pth and put it at .*/checkpoints/convit_base\.pth"
    ):
        find_weights("convit_base.official")


@pytest.mark.parametrize(
    "name",
    [
        "convit_tiny_plus",
        "convit_small_plus.fb_in1k",
        "convit_base_plus",
        "timm/convit_tiny_plus.fb_in1k",
        "hf-hub:timm/convit_tiny_plus.fb_in1k",
        "ConViT_Ti_plus",
    ],
)
def test_the_plus_sizes_have_no_published_weights(name):
    with pytest.raises(ValueError, match=r"(?i)no published weights for convit_.*_plus: the authors published"):
        comvex.load(name)


def test_unknown_names_are_refused_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"'convit_tinny\.fb_in1k': did you mean 'convit_tiny\.fb_in1k'\?"):
        find_weights("convit_tinny.fb_in1k")
    with pytest.raises(ValueError, match="There is no run folder, weights file or published model 'resnet50'"):
        find_weights("resnet50")
    (tmp_path / "runs").mkdir()  # a path that is mistyped is no repository of the Hub
    with pytest.raises(ValueError, match="There is no run folder or weights file runs/firsst: give the --out folder"):
        find_weights("runs/firsst")
    with pytest.raises(ValueError, match=r"There is no run folder or weights file weights/x\.pth"):
        find_weights("weights/x.pth")


def test_a_run_folder_stands_for_its_best_weights(small_run):
    assert find_weights(small_run).file == small_run / "weights" / "best.safetensors"


def test_a_folder_is_a_repository_or_has_one_weights_file(tmp_path):
    with pytest.raises(ValueError, match=r"is no run folder \(it has no recipe\.json\) and has no weights file"):
        find_weights(tmp_path)
    file = write("official.pth", random_state(), tmp_path)
    assert find_weights(tmp_path).file == file
    write("timm.pth", random_state(), tmp_path)
    with pytest.raises(ValueError, match=r"several weights files \(official\.pth, timm\.pth\): name one"):
        find_weights(tmp_path)
    save_weights(random_model(), tmp_path / "model.safetensors")
    assert find_weights(tmp_path).file == tmp_path / "model.safetensors"


# The Hub's own verbs


def test_save_pretrained_and_from_pretrained_keep_weights_and_what_is_known_of_them(small_run, tmp_path):
    model = comvex.load(small_run).model
    model.save_pretrained(tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    again = ConViTWithLinearClassifier.from_pretrained(tmp_path / "saved")
    assert again.info == model.info
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.cpu())
    adapted = ConViTWithLinearClassifier.from_pretrained(tmp_path / "saved", num_classes=3, image_size=(16, 8))
    assert adapted(torch.randn(1, 1, 16, 8)).shape == (1, 3)
    predictor = comvex.load(tmp_path / "saved")
    assert predictor.labels == tuple("0123456789")


def test_model_card_has_the_runs_figures_data_and_the_hubs_metadata(small_run, tmp_path):
    from huggingface_hub import ModelCard

    model = comvex.load(small_run).model
    model.save_pretrained(tmp_path / "saved")
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert card.data.library_name == "comvex"
    assert card.data.pipeline_tag == "image-classification"
    assert "# ConViT trained on the data set `digits`" in card.text
    assert "8 x 8 pixels and 1 channel;" in card.text
    assert "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in card.text
    assert model.info is not None
    assert f"| validation top-1 accuracy | {model.info.figures['val_top1']:.4g} % |" in card.text
    assert "comvex.load(" in card.text


def test_saving_again_writes_the_card_anew_but_leaves_a_card_of_ones_own(tmp_path):
    card = tmp_path / "README.md"
    random_model().save_pretrained(tmp_path)
    assert "- 5 classes" in card.read_text()
    assert "- 2 GPSA layers and 1 self-attention layer, 4 heads" in card.read_text()
    random_model(small_config(num_classes=7)).save_pretrained(tmp_path)
    assert "- 7 classes" in card.read_text()
    card.write_text("# Mine\n")
    random_model().save_pretrained(tmp_path)
    assert card.read_text() == "# Mine\n"


def test_saving_beside_other_weights_keeps_what_is_known_of_them(small_run, tmp_path):
    folder = shutil.copytree(small_run, tmp_path / "run") / "weights"
    predictor = comvex.load(folder.parent)
    predictor.model.save_pretrained(folder)
    again = comvex.load(folder.parent)
    assert again.labels == predictor.labels
    assert again.model.info == predictor.model.info
    assert load_model(folder / "model.safetensors").info == predictor.model.info


def test_another_programs_config_is_refused_and_left(tmp_path):
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"config\.json is not one that this version of comvex writes"):
        random_model().save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    assert config.read_text() == '{"model_type": "bert"}'


def test_a_model_from_the_hubs_cache_is_found_by_its_id(tmp_path, offline):
    random_model().save_pretrained(tmp_path / "saved")
    files = {name: tmp_path / "saved" / name for name in ("model.safetensors", "config.json")}
    put_in_cache(offline, "someone/my-convit", files)
    for source in ("someone/my-convit", "hf-hub:someone/my-convit"):
        model = ConViTWithLinearClassifier.from_pretrained(source)
        assert model.config == small_config()
        assert torch.equal(model.cls_token, random_model().cls_token)
    with pytest.raises(
        ValueError, match=r"someone/other is neither a file or folder here .*huggingface\.co/someone/other"
    ):
        ConViTWithLinearClassifier.from_pretrained("someone/other")


def test_push_to_hub_uploads_weights_config_and_card(monkeypatch):
    """The client's two calls that need the network are watched; everything before them is real."""
    from huggingface_hub import HfApi

    uploaded = {}

    def create_repo(self: HfApi, repo_id: str, **_: object):
        return type("Repository", (), {"repo_id": repo_id})()

    def upload_folder(self: HfApi, *, folder_path: Path, repo_id: str, **_: object) -> str:
        uploaded[repo_id] = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
        return "https://huggingface.co/" + repo_id

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    random_model().push_to_hub("someone/my-convit")
    assert uploaded["someone/my-convit"].keys() == {"model.safetensors", "config.json", "README.md"}
    assert 'comvex.load("someone/my-convit")' in uploaded["someone/my-convit"]["README.md"].decode()


def test_a_model_is_fetched_once_with_its_config_and_then_comes_from_the_cache_unless_forced(local_hub):
    def fetched() -> list[str]:
        return sorted(
            path.rpartition("/")[2] for verb, path, _ in local_hub.requests if verb == "GET" and "/resolve/" in path
        )

    for _ in range(2):
        model = ConViTWithLinearClassifier.from_pretrained("someone/my-convit")
        assert model.config == small_config()
        assert torch.equal(model.cls_token, random_model().cls_token)
    assert fetched() == ["config.json", "model.safetensors"]
    ConViTWithLinearClassifier.from_pretrained("someone/my-convit", force_download=True)
    assert fetched() == 2 * ["config.json"] + 2 * ["model.safetensors"]


def test_a_pytorch_file_without_config_is_fetched_too(local_hub, tmp_path):
    local_hub.folder = tmp_path / "older"
    local_hub.folder.mkdir()
    write("pytorch_model.bin", random_state(), local_hub.folder)
    assert load_model("someone/my-convit").config == small_config()


def test_revision_token_and_cache_reach_every_request(local_hub, tmp_path):
    where = {"revision": "v2", "token": "hf_secret", "cache_dir": tmp_path / "elsewhere"}
    ConViTWithLinearClassifier.from_pretrained("someone/my-convit", **where)
    assert {authorization for _, _, authorization in local_hub.requests} == {"Bearer hf_secret"}
    assert all("/v2" in path or COMMIT in path for _, path, _ in local_hub.requests), local_hub.requests
    assert (tmp_path / "elsewhere" / "models--someone--my-convit" / "refs" / "v2").read_text() == COMMIT
    num_requests = len(local_hub.requests)
    ConViTWithLinearClassifier.from_pretrained("someone/my-convit", **where)
    assert len(local_hub.requests) == num_requests


def test_with_local_files_only_nothing_is_asked(local_hub):
    with pytest.raises(ValueError, match="someone/my-convit is neither a file or folder here nor in the local cache"):
        ConViTWithLinearClassifier.from_pretrained("someone/my-convit", local_files_only=True)
    assert local_hub.requests == []


def test_a_repository_that_does_not_exist_is_one_sentence(local_hub):
    with pytest.raises(
        ValueError, match=r"could not be fetched .*\(RepositoryNotFoundError\): fetch model\.safetensors"
    ):
        load_model("someone/else")
