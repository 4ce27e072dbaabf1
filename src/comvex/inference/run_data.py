"""The data that a model was trained on, split as they were for it, as far as that is known."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from comvex import run_folder
from comvex.convit.published import packaged_folder, split_name, such_as_data
from comvex.data.sources import DataSet, find_data, open_data, set_aside
from comvex.errors import UserError
from comvex.inference.exported import folder_of, is_exported, read_content

LOGGER = logging.getLogger(__name__)

Part = Literal["test", "val", "train", "all"]
SPLIT = ("split_seed", "fraction", "val_fraction")
"""What a recipe says of the split of its data."""


def training_data(source: str | Path) -> dict[str, Any]:
    """``data``, its ``SPLIT`` and a fingerprint of the ``training_pictures`` of a model's run; nothing if not known.

    ``source`` is a run folder, a weights file in one, or what ``comvex export`` made of either, wherever that lies now.
    Raises ``ValueError`` if the run or the exported model is of another version or damaged.
    """
    if is_exported(source):
        return read_content(folder_of(source)).get("training_data", {})
    run = run_of(source)
    if run is None:
        return {}
    beginning = run_folder.read_beginning(run)
    known = {name: beginning["recipe"][name] for name in ("data", *SPLIT) if name in beginning["recipe"]}
    if "training_pictures" in beginning:
        known["training_pictures"] = beginning["training_pictures"]
    return known


def run_of(source: str | Path) -> Path | None:
    """The run folder that ``source`` is, or that has it among its weights or checkpoints; None if there is none."""
    path = Path(source)
    places = path.absolute().parents[1:3] if path.is_file() else (path,)
    return next((place for place in places if (place / run_folder.RECIPE).is_file()), None)


def evaluation_data(source: str | Path, data: str | None, *, part: Part) -> DataSet:
    """The data set asked for, or else the one that ``source`` was trained on, split as it was there.

    Nothing is set aside for the part "all" of other data than the run's own, nor where there are no training pictures.
    Where the split of the training is not known and another one would have other pictures in the part, the log says so,
    and where the training pictures of the run's own data are no longer those that it had.
    Raises ``ValueError`` if no data are asked for and those that ``source`` was trained on are not known.
    """
    known = training_data(source)
    split = {name: known[name] for name in SPLIT if name in known}
    if data is None:
        if not known:
            raise UserError(
                f"{source} does not say what it was trained on, as a run folder does: --data must say what to evaluate "
                f"it on{such_as_data(source)}."
            )
        try:
            own = open_data(known["data"], **split)
        except UserError as error:
            raise UserError(
                f"{source} was trained on {known['data']}, which --data can name otherwise: {error}"
            ) from error
        if "training_pictures" in known and known["training_pictures"] != own.train.fingerprint():
            LOGGER.warning(
                "The training pictures of %s are not those that %s was trained on, or have another place: some of the "
                "%s pictures may have been among those, and the figures too good.", own.name, source, part,
            )  # fmt: skip
        return own
    found = find_data(data)
    if part == "all" or len(found.train) == 0:
        return found
    data_set = set_aside(found, data, **split)
    of_comvex = packaged_folder(source) is not None or split_name(str(source)) is not None
    if part != "train" and not known and not of_comvex and is_drawn(data, data_set, part):
        LOGGER.warning(
            "It is not known which pictures %s was trained on: if they were some of %s, the %s pictures, drawn here, "
            "may be among them, and the figures too good.", source, data_set.name, part,
        )  # fmt: skip
    return data_set


def is_drawn(data: str, data_set: DataSet, part: Part) -> bool:
    """Whether which pictures are in a part is drawn, not told by the data."""
    if part == "test":
        return data_set.test_drawn
    return data_set.part(part).fingerprint() != open_data(data, split_seed=1).part(part).fingerprint()
