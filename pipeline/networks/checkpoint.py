"""Checkpoints: a trained stream in one file, with everything needed to use it correctly.

A file holds only tensors and plain values and is read with weights_only=True, so loading it never runs code from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.catalog import Catalog
from pipeline.networks import Network, build_untrained
from pipeline.networks.starting import CHECKPOINT_FORMAT
from pipeline.specs import STREAMS, StackSpec, StreamSpec
from pipeline.system.console import class_difference, some
from pipeline.system.errors import DamagedFile, UserError
from pipeline.system.files import inside
from pipeline.system.tensors import read_tensors, save_tensors

FORMAT_VERSION = 1


class Checkpoint(NamedTuple):
    """A trained stream, as `load_checkpoint` rebuilds it."""

    network: Network
    """On the CPU, in evaluation mode."""
    spec: StreamSpec
    """The settings it was trained with."""
    classes: tuple[str, ...]
    """Class names; the position is the label."""
    other_classes: tuple[str, ...]
    """Classes of the other dataset in the training, if the network has outputs for them."""
    record: dict[str, Any]
    """Everything else in the file, such as catalog_key, inputs, data_digest, best_step, validation_top1, torch."""


def save_checkpoint(
    path: Path,
    state: dict[str, torch.Tensor],
    spec: StreamSpec,
    catalog: Catalog,
    *,
    other_classes: Sequence[str] = (),
    **record: str | int | float | Sequence[str] | None,
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: the checkpoint file.
        state: the network's tensors by name.
        spec, catalog: the settings and clips of the training.
        other_classes: classes of another dataset for which the network has outputs too.
        record: further plain values to store; `trained_on` and `chosen_on` are what `clips_seen` reads.
    """
    about = {
        "format": CHECKPOINT_FORMAT,
        "format_version": FORMAT_VERSION,
        "stream_spec": spec.as_dict(),
        "classes": list(catalog.classes),
        "other_classes": list(other_classes),
        "catalog_key": catalog.key,
        "torch": str(torch.__version__),
    }
    save_tensors(path, {**about, **record, "state": state})


def weights_hash(state: dict[str, torch.Tensor]) -> str:
    """16 hex digits of BLAKE2b over the names and values of a network's tensors."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_tensors(path: Path, kind: str, version: int, *, mmap: bool = False, cure: str = "") -> dict[str, Any]:
    """Read what `save_tensors` wrote with this format and version; see `read_tensors`.

    Raises:
        FileNotFoundError: no such file.
        OSError, MemoryError: the file cannot be read now.
        ValueError: a damaged file (`DamagedFile`), or one of another format or format version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; train the stream first")
    try:
        values = read_tensors(path, mmap=mmap)
    except DamagedFile as error:
        raise DamagedFile(f"{error}{cure}") from error
    found = values.get("format", "no format") if isinstance(values, dict) else type(values).__name__
    if found != kind:
        raise UserError(f"{path} holds {found!r}, not {kind!r}; give the path of the right file")
    found = values.get("format_version")
    if not isinstance(found, int) or found != version:  # of others it may be a tensor, which compares with nothing
        raise UserError(
            f"{path} has format version {found}; this code reads {version}: update the code, or train again"
        )
    return values


def settings_in(path: Path) -> StreamSpec:
    """The settings of a trained stream; its weights are not read.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`.
    """
    return spec_of(path, _load(path, mmap=True)["stream_spec"])


def other_inputs(path: Path, spec: StreamSpec) -> str:
    """Settings by which the inputs of the temporal stream in a file differ from those of `spec`; "" if none do.

    It is "" too for weights that are no checkpoint of ours, and for those of a spatial stream.

    Raises:
        FileNotFoundError, DamagedFile: as `read_tensors`.
    """
    trained = _values_of_ours(path).get("stream_spec")
    if not isinstance(trained, dict) or not spec.stack or not isinstance(trained.get("stack"), dict):
        return ""
    there, here = ({"flow_unit_px": of.get("flow_unit_px"), **of["stack"]} for of in (trained, spec.as_dict()))
    return ", ".join(f"{name} {there.get(name)} (here {here[name]})" for name in here if there.get(name) != here[name])


def _load(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read the values of a checkpoint; refuse one in which a part is missing or of the wrong type."""
    cure = "; if TrainStream made it, delete it and run the same command again to retrain"
    values = load_tensors(path, CHECKPOINT_FORMAT, FORMAT_VERSION, mmap=mmap, cure=cure)
    parts = {"stream_spec": dict, "state": dict, "classes": list, "other_classes": list}
    whole = all(isinstance(values.get(name), kind) for name, kind in parts.items())
    whole = whole and values["stream_spec"].get("stream") in STREAMS
    if not whole or not all(isinstance(name, str) for name in values["classes"] + values["other_classes"]):
        raise UserError(f"{path} lacks the settings, the classes or the weights of a trained stream; train it again")
    return values


def clips_seen(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Content of the clips that the weights in a file were trained on, and of those that they were chosen on.

    Both are empty if the file does not say, as weights of others do not.

    Raises:
        FileNotFoundError, DamagedFile: as `read_tensors`.
        UserError: what it says is not the content of clips.
    """
    values = _values_of_ours(path)
    seen = [values.get(name, ()) for name in ("trained_on", "chosen_on")]
    if not all(isinstance(clips, (list, tuple)) and all(isinstance(clip, str) for clip in clips) for clips in seen):
        raise UserError(f"{path} does not say plainly which clips it was trained and chosen on; train it again")
    return frozenset(seen[0]), frozenset(seen[1])


def _values_of_ours(path: Path) -> dict[str, Any]:
    """What a file of weights holds, if it is a checkpoint of ours; else {}."""
    values = read_tensors(path, mmap=True)
    return values if isinstance(values, dict) and values.get("format") == CHECKPOINT_FORMAT else {}


def refuse_unfit(path: Path, stream: str, data_digest: str, classes: Sequence[str] | None = None) -> None:
    """Refuse a file that is not a checkpoint of this stream, or was trained on other data than it is to score.

    Args:
        path: the file.
        stream: "spatial" or "temporal".
        data_digest: digest of the settings of what is to be scored; "" if unknown.
        classes: its classes, in order; None if unknown.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint` and `refuse_other_data`; or the other stream's checkpoint.
    """
    values = _load(path, mmap=True)
    found = values["stream_spec"]["stream"]
    if found != stream:
        raise UserError(f"{path} is a trained {found} stream, not the {stream} one")
    refuse_other_data(path, values.get("data_digest"), data_digest)
    _refuse_other_classes(path, values["classes"], classes)


def refuse_other_data(path: Path | str, trained_on: str | None, given: str) -> None:
    """Refuse frames or flow made with other settings than a training's; "" and None mean unknown.

    Raises:
        UserError: both digests are known, and they differ.
    """
    if trained_on and given and trained_on != given:
        raise UserError(
            f"{path} was trained on data made with other settings (digest {trained_on}) than these ({given}); give "
            "the preset and the flags for frames and flow of its training"
        )


def classes_in(path: Path) -> tuple[str, ...]:
    """The classes of a trained stream; its weights are not read.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`.
    """
    return tuple(_load(path, mmap=True)["classes"])


def load_checkpoint(path: Path | str, *, classes: Sequence[str] | None = None) -> Checkpoint:
    """Rebuild a trained stream.

    Args:
        path: the checkpoint, or an artifact's folder with a `checkpoint.pt`.
        classes: the class names it must have been trained on, in order; None accepts any.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, one of another format or version, other classes, or weights that do not fit the
            network; the message says what was found and what was expected.
    """
    path = inside(path, "checkpoint.pt")
    record = _load(path)
    spec, found = spec_of(path, record.pop("stream_spec")), tuple(record.pop("classes"))
    others = tuple(record.pop("other_classes"))
    _refuse_other_classes(path, found, classes)
    with torch.random.fork_rng(devices=[]):  # initial weights are overwritten: keep the caller's state
        rebuilt = build_untrained(spec, len(found), len(others))
    try:
        rebuilt.load_state_dict(record.pop("state"))
    except (RuntimeError, KeyError, AttributeError) as error:
        raise UserError(f"the weights in {path} do not fit its network {spec.network!r}: {error}") from None
    return Checkpoint(rebuilt.eval(), spec, found, others, record)


def _refuse_other_classes(path: Path | str, found: Sequence[str], expected: Sequence[str] | None) -> None:
    if expected is not None and tuple(found) != tuple(expected):
        own, other = (f"{len(names)} classes ({some(names, 4)})" for names in (found, expected))
        raise UserError(f"{path} was trained on {own}; expected {other}: they have {class_difference(found, expected)}")


def spec_of(path: Path | str, values: dict[str, Any]) -> StreamSpec:
    """A stream's settings from the plain values of `as_dict`; `path` is where they were found, for the message.

    Raises:
        UserError: settings that this code does not know.
    """
    try:
        stack = StackSpec(**values["stack"]) if values.get("stack") else None
        return StreamSpec(**{**values, "stack": stack})
    except TypeError as error:
        raise UserError(
            f"{path} has settings that this code does not know ({error}); update the code, or train again"
        ) from None
