"""Transfer learning: weights of a trained model as the initialisation of another one.

Tensors are matched by name and shape, and a layer is loaded completely or not at all. Two kinds of
layers are adapted:

* The first convolution, if the number of image channels differs: each new channel gets the mean of
  the weights over the old channels, times old channels / new channels. This preserves the sum over
  the channels, and so the scale of the layer's responses. Channels of the same names in another
  order are reordered.
* The heads, with one filter per class: classes of the same name are loaded, new ones stay random.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoseg.common.errors import AutosegError
from autoseg.common.files import write_json
from autoseg.common.progress import counted, say
from autoseg.models import folder as layout
from autoseg.models.archive import is_archive
from autoseg.models.checkpoint import Tensors, without_prefix
from autoseg.plan.plan import Plan
from autoseg.training.learner import Learner

RECORD = "pretrained.json"
HEADS = "heads."
NAMES_IN_A_LINE = 8


@dataclass(frozen=True)
class Pretrained:
    """A trained model's weights.

    Attributes:
        tensors: the weights that prediction uses, by their names in the network.
        plan: the plan of the model.
        source: describes the model in the records of a run that starts from it.
    """

    tensors: Tensors
    plan: Plan
    source: dict[str, Any]


def read_pretrained(path: Path) -> Pretrained:
    """Read the weights of a model folder, a packed model, a fold in one of them, or a file.

    Raises:
        AutosegError: there is no trained model, or its plan is missing or another one.
    """
    files, name = _find_weights(path)
    plan = layout.plan_in(files)
    tensors, about = files.checkpoint(name)
    if about.get("plan_id", plan.id) != plan.id:
        raise AutosegError(
            f"--pretrained {path}: {Path(name).name} was trained by plan {about['plan_id']}, but "
            f"{files.path(layout.PLAN)} is {plan.id}; restore the plan that it was trained by"
        )
    digest = files.sha256(name)
    source = {"task": plan.task, "plan": plan.name, "plan_id": plan.id, "sha256": digest}
    return Pretrained(_weights_in(tensors), plan, source)


def _find_weights(path: Path) -> tuple[layout.ModelFiles, str]:
    """The model that a path refers to, and the name of the weights in it."""
    if is_archive(path) and path.exists():
        return _fold_in(layout.open_model(path), path)
    if is_archive(path.parent) and path.parent.exists():  # model.zip/fold_0
        name = f"{path.name}/{layout.FINAL}"
        packed = layout.open_model(path.parent)
        if packed.has(name):
            return packed, name
    elif path.is_file() and path.suffix == ".safetensors":
        return _beside_plan(path, path)
    elif (path / layout.FINAL).is_file():
        return _beside_plan(path / layout.FINAL, path)
    elif layout.FolderFiles(path).folds():
        _, name = _fold_in(layout.FolderFiles(path), path)
        return _beside_plan(path / name, path)
    raise AutosegError(
        f"--pretrained {path}: there is no trained model; give models/TASK/PLAN, a fold_K in "
        "it, a packed model.zip, or a .safetensors file next to its plan.json"
    )


def _fold_in(files: layout.ModelFiles, path: Path) -> tuple[layout.ModelFiles, str]:
    """The weights of the fold `all`, or of the only fold."""
    folds = files.folds()
    if len(folds) > 1 and "all" not in folds:
        names = [layout.fold_name(fold) for fold in folds]
        raise AutosegError(
            f"--pretrained {path} has the folds {', '.join(names)}; choose one: {path / names[0]}"
        )
    if not folds:
        raise AutosegError(f"--pretrained {path} contains no weights")
    return files, layout.weights_name("all" if "all" in folds else folds[0])


def _beside_plan(file: Path, path: Path) -> tuple[layout.FolderFiles, str]:
    """A file of weights, in the folder of its plan or one level below."""
    above = (folder for folder in file.parents[:2] if (folder / layout.PLAN).is_file())
    if (folder := next(above, None)) is None:
        raise AutosegError(f"--pretrained {path}: there is no {layout.PLAN} next to {file.name}")
    return layout.FolderFiles(folder), file.relative_to(folder).as_posix()


def _weights_in(tensors: Tensors) -> Tensors:
    """The weights that prediction uses: a `latest.safetensors` contains other tensors as well."""
    found = (without_prefix(prefix, tensors) for prefix in ("average.module", "network"))
    return next(filter(None, found), tensors)


@dataclass(frozen=True)
class Transfer:
    """The weights of a new network, and where they come from.

    Attributes:
        tensors: all weights of the new network.
        loaded: names of those from the pretrained model, adapted ones included.
        not_loaded: name -> why it keeps its random initialisation.
        unused: names in the pretrained model that are not loaded.
        remarks: how layers were adapted, for the user.
    """

    tensors: Tensors
    loaded: tuple[str, ...]
    not_loaded: dict[str, str]
    unused: tuple[str, ...]
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        """A summary in one line."""
        counts = f"{len(self.loaded)} of {len(self.tensors)} tensors loaded"
        missing = list(self.not_loaded)
        more = ", ..." if len(missing) > NAMES_IN_A_LINE else ""
        left = [f"not loaded: {', '.join(missing[:NAMES_IN_A_LINE])}{more}"] if missing else []
        return "; ".join([counts, *self.remarks, *left])

    def to_json(self) -> dict[str, Any]:
        """All details but the tensors."""
        return {key: getattr(self, key) for key in ("remarks", "loaded", "not_loaded", "unused")}


def transfer(pretrained: Pretrained, plan: Plan, network: nn.Module) -> Transfer:
    """Adapt pretrained weights to a plan's new network, which itself is not changed.

    Raises:
        AutosegError: no convolution fits except perhaps a head: the networks are too different.
    """
    start = network.state_dict()
    fitter = _Fitter(pretrained, plan, first_convolution(network))
    tensors, not_loaded = dict(start), dict[str, str]()
    for _, names in groupby(start, key=lambda name: name.rpartition(".")[0]):
        layer = {name: fitter.fitted(name, start[name]) for name in names}
        fitting = {name: tensor for name, tensor in layer.items() if tensor is not None}
        if misfit := next((name for name in layer if name not in fitting), None):
            not_loaded |= dict.fromkeys(layer, fitter.misfit(misfit, start[misfit]))
        else:
            tensors |= fitting
    loaded = tuple(name for name in start if name not in not_loaded)
    if not any(start[name].ndim == 5 and not name.startswith(HEADS) for name in loaded):
        plans = (pretrained.plan, plan)  # normalisation layers alone are useless
        old, new = (f"{'-'.join(map(str, p.network.features))} feature maps" for p in plans)
        raise AutosegError(
            f"--pretrained: no convolution of {plans[0].task} {plans[0].name} ({old}) fits the "
            f"network of {plan.task} {plan.name} ({new}); plan with equal network.* values"
        )
    unused = tuple(name for name in pretrained.tensors if name not in loaded)
    return Transfer(tensors, loaded, not_loaded, unused, tuple(fitter.remarks(loaded)))


def start_from(path: Path, learner: Learner, folder: Path) -> dict[str, Any]:
    """Load pretrained weights into a new learner and its weight average.

    Prints a summary and writes the details to `pretrained.json` in the folder.

    Returns:
        the source of the weights.
    """
    pretrained = read_pretrained(path)
    found = transfer(pretrained, learner.plan, learner.network)
    learner.network.load_state_dict(found.tensors)
    if learner.average is not None:
        learner.average.module.load_state_dict(found.tensors)
    if learner.group.leads:
        model = "{task} {plan}, plan {plan_id}".format(**pretrained.source)
        say(f"pretrained on {model}: {found}")
        write_json(folder / RECORD, pretrained.source | found.to_json())
    return pretrained.source


def first_convolution(network: nn.Module) -> str:
    """The name of the weights that are applied to the image."""
    names = (name for name, module in network.named_modules() if isinstance(module, nn.Conv3d))
    return f"{next(names)}.weight"


def adapt_channels(weight: Tensor, old: Sequence[str], new: Sequence[str]) -> Tensor:
    """Weights (maps, old channels, x, y, z) for the new channels, as the module describes."""
    if len(set(old)) == len(old) and sorted(old) == sorted(new):
        return weight[:, [old.index(name) for name in new]]
    if len(old) == len(new):
        return weight
    mean = weight.mean(1, keepdim=True) * (len(old) / len(new))
    return mean.repeat(1, len(new), 1, 1, 1)


@dataclass(frozen=True)
class _Fitter:
    pretrained: Pretrained
    plan: Plan
    first: str

    def fitted(self, name: str, mine: Tensor) -> Tensor | None:
        """The pretrained tensor in the shape of the new network's `mine`; None if it cannot fit."""
        if (theirs := self.pretrained.tensors.get(name)) is None:
            return None
        if name.startswith(HEADS):
            return self._head(mine, theirs)
        if name == self.first:
            theirs = self._first(mine, theirs)
        return theirs.to(mine.dtype) if theirs.shape == mine.shape else None

    def _first(self, mine: Tensor, theirs: Tensor) -> Tensor:
        old, new = self.pretrained.plan, self.plan
        if theirs.shape[2:] != mine.shape[2:] or len(theirs) != len(mine):
            return theirs
        image = adapt_channels(theirs[:, : len(old.channels)], old.channels, new.channels)
        masks, previous = theirs[:, len(old.channels) :], mine[:, len(new.channels) :]
        # The masks of a cascade have the same meaning only if both plans have the same classes.
        same = masks.shape == previous.shape and old.classes == new.classes
        return torch.cat([image, (masks if same else previous).to(image)], dim=1)

    def _head(self, mine: Tensor, theirs: Tensor) -> Tensor | None:
        old, new = (plan.classes.output_names for plan in (self.pretrained.plan, self.plan))
        if theirs.shape[1:] != mine.shape[1:] or not self._common_outputs():
            return None
        head = mine.detach().clone()
        for name in self._common_outputs():
            head[new.index(name)] = theirs[old.index(name)].to(mine)
        return head

    def _common_outputs(self) -> list[str]:
        """Outputs of the same name and kind: a class differs from a region of the same name."""
        old, new = self.pretrained.plan.classes, self.plan.classes
        names = new.output_names if old.are_regions == new.are_regions else ()
        return [name for name in names if name in old.output_names]

    def misfit(self, name: str, mine: Tensor) -> str:
        """Why a tensor is not loaded."""
        if (theirs := self.pretrained.tensors.get(name)) is None:
            return f"{name} is not in the pretrained model"
        if name.startswith(HEADS) and not self._common_outputs():
            return "no class of the same name"
        return f"{name} is {tuple(theirs.shape)} in the pretrained model, {tuple(mine.shape)} here"

    def remarks(self, loaded: Sequence[str]) -> list[str]:
        """How layers were adapted."""
        remarks = []
        old, new = self.pretrained.plan.channels, self.plan.channels
        if self.first in loaded and len(old) != len(new):
            channels = counted(len(new), "channel")
            remarks.append(f"first convolution adapted from {len(old)} to {channels}")
        elif self.first in loaded and old != new and sorted(old) == sorted(new):
            remarks.append("first convolution: channels reordered")
        names, known = self.plan.classes.names[1:], self._common_outputs()
        loaded_names = [name for name in names if name in known]
        head = "all classes loaded"
        if not any(name.startswith(HEADS) for name in loaded):
            head = "new"
        elif len(loaded_names) < len(names):
            fresh = ", ".join(name for name in names if name not in known)
            head = f"{', '.join(loaded_names) or 'only background'} loaded, {fresh} new"
        return [*remarks, f"head: {head}"]
