"""The model's way to the Hugging Face Hub and back: weights, configuration and a card in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelHubMixin

from comvex.convit.published import WEIGHTS_NAME

if TYPE_CHECKING:
    from comvex.convit.model import ConViTWithLinearClassifier


class HubModel(ModelHubMixin, library_name="comvex", pipeline_tag="image-classification", tags=["convit"]):
    """``save_pretrained(folder)``, ``push_to_hub("owner/name")`` and ``from_pretrained(folder or "owner/name")``.

    A folder holds model.safetensors, config.json (architecture, preprocessing, labels, checksum) and a model card.
    """

    # huggingface_hub's own removes config.json first, and with it what was known of other weights in the folder.
    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write model.safetensors, config.json and a model card into a folder; arguments as in ``huggingface_hub``.

        Entries of other weights files in the folder's config.json stay, and so does a card of one's own. ``config`` is
        taken for ``huggingface_hub``'s sake alone: the model has its own. With ``push_to_hub`` returns the address of
        the commit. Raises ``ValueError`` if the folder's config.json is damaged or not comvex's; nothing is written
        then.
        """
        from comvex.convit.model_card import MARK
        from comvex.convit.weights import save_weights  # which needs the model

        folder = Path(save_directory)
        save_weights(self, folder / WEIGHTS_NAME)  # pyright: ignore
        card = folder / "README.md"
        if not card.exists() or MARK in card.read_text(encoding="utf-8", errors="replace"):
            self.generate_model_card(**(model_card_kwargs or {})).save(card)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs)

    def push_to_hub(self, repo_id: str, **arguments: Any) -> str:
        """Upload weights, configuration and card to a repository of the Hub; returns the address of the commit.

        ``repo_id`` is "owner/name", or "name" for the owner of the token. Arguments are those of ``huggingface_hub``.
        """
        card = {"repo_id": repo_id if "/" in repo_id else f"OWNER/{repo_id}"}
        card |= arguments.pop("model_card_kwargs", None) or {}
        return super().push_to_hub(repo_id, model_card_kwargs=card, **arguments)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card of the model as it is now, written from what is known of its weights."""
        from comvex.convit.model_card import model_card

        repository = kwargs.get("repo_id") or "OWNER/NAME"
        return ModelCard(model_card(self.config, self.info, repository=repository))  # pyright: ignore

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> ConViTWithLinearClassifier:
        """The model in a folder or in a repository of the Hub; ``overrides`` are fields of ``ConViTConfig``.

        ``from_pretrained("owner/name", num_classes=10, image_size=(256, 128))`` adapts the weights as ``load_model``
        does. The model is on the CPU and all of its weights must fit, so there is no ``map_location`` or ``strict``.
        Raises ``ValueError`` if there is no such model here or on the Hub, or its files are damaged.
        """
        from comvex.convit.weights import load_model

        download = {
            "revision": revision,
            "cache_dir": cache_dir,
            "token": token,
            "force_download": force_download,
            "local_files_only": local_files_only,
        }
        return load_model(pretrained_model_name_or_path, download=download, **overrides)
