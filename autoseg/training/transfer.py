"""Transfer: weights of a trained model as the start of another one.

What fits is taken layer by layer, by name and shape: a layer is taken whole or not at all. Two
kinds of layers are made to fit:

* The first convolution, if the number of image channels differs: its weights' mean over the old
  channels, for every new one, times old channels / new channels. So the sum over the channels stays
  what it was, and with it the size of the responses that the next layers are used to. Channels of
  the same names in another order are put into their new order.
* The heads, one filter a class: classes of the same name are taken, new ones stay random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoseg.common.errors import AutosegError
from autoseg.common.files import write_json
from autoseg.common.progress import say
from autoseg.models.archive import is_archive
from autoseg.models.checkpoint import Tensors, without_prefix
from autoseg.models.folder import FINAL, PLAN, FolderFiles, ModelFiles, open_model, plan_in
from autoseg.plan.plan import Plan
from autoseg.training.learner import Learner

# A trained model on disk, whose weights another run may begin with.


@dataclass(frozen=True)
class Pretrained:
    """A trained model's weights.

    Attributes:
        tensors: the weights that prediction uses, by their names in the network.
        plan: the plan that they were trained by.
        source: what they are, for the records of a run that begins with them.
    """

    tensors: Tensors
    plan: Plan
    source: dict[str, Any]


def read_pretrained(path: Path) -> Pretrained:
    """Read the weights of a model folder, a packed model, a fold in one of them, or a file.

    Raises:
        AutosegError: there is no trained model, the plan is not beside it, or it is of another one.
    """
    files, name = _find_weights(path)
    plan = plan_in(files)
    tensors, about = files.checkpoint(name)
    if about.get("plan_id", plan.id) != plan.id:
        raise AutosegError(
            f"--pretrained {path}: {Path(name).name} was trained by plan {about['plan_id']}, but "
            f"{files.path(PLAN)} is {plan.id}; put the plan back that it was trained by"
        )
    digest = files.sha256(name)
    source = {"task": plan.task, "plan": plan.name, "plan_id": plan.id, "sha256": digest}
    return Pretrained(_weights_in(tensors), plan, source)


def _find_weights(path: Path) -> tuple[ModelFiles, str]:
    """The model that a path means, and the name of the weights in it."""
    if is_archive(path) and path.exists():
        return _fold_in(open_model(path), path)
    if is_archive(path.parent) and path.parent.exists():  # model.zip/fold_0
        name = f"{path.name}/{FINAL}"
        packed = open_model(path.parent)
        if packed.has(name):
            return packed, name
    elif path.is_file() and path.suffix == ".safetensors":
        return _beside_plan(path, path)
    elif (path / FINAL).is_file():
        return _beside_plan(path / FINAL, path)
    elif FolderFiles(path).folds():
        _, name = _fold_in(FolderFiles(path), path)
        return _beside_plan(path / name, path)
    raise AutosegError(
        f"--pretrained {path}: there is no trained model; give models/TASK/PLAN, a fold_K in "
        "it, a packed model.zip, or a .safetensors file with its plan.json beside"
    )


def _fold_in(files: ModelFiles, path: Path) -> tuple[ModelFiles, str]:
    """The weights of the fold of all cases, or of the only one."""
    folds = files.folds()
    if len(folds) > 1 and "all" not in folds:
        names = [f"fold_{fold}" for fold in folds]
        raise AutosegError(
            f"--pretrained {path} has several folds: {', '.join(names)}; choose one: "
            f"{path / names[0]}"
        )
    if not folds:
        raise AutosegError(f"--pretrained {path} holds no weights")
    return files, f"fold_{'all' if 'all' in folds else folds[0]}/{FINAL}"


def _beside_plan(file: Path, path: Path) -> tuple[FolderFiles, str]:
    """A file of weights in the folder of its plan, or one below."""
    folder = next((f for f in file.parents[:2] if (f / PLAN).is_file()), None)
    if folder is None:
        raise AutosegError(f"--pretrained {path}: there is no {PLAN} beside {file.name}")
    return FolderFiles(folder), file.relative_to(folder).as_posix()


def _weights_in(tensors: Tensors) -> Tensors:
    """Those that prediction would use: a run's own file holds other tensors, too."""
    for prefix in ("average.module", "network"):
        if found := without_prefix(prefix, tensors):
            return found
    return tensors


RECORD = "pretrained.json"
HEADS = "heads."
NAMES_IN_A_LINE = 8


@dataclass(frozen=True)
class Transfer:
    """A new network's weights, and where they come from.

    Attributes:
        tensors: all weights of the new network.
        loaded: names of those that come from the pretrained model, adapted ones included.
        not_loaded: name -> why it keeps its random start.
        unused: names in the pretrained model that nothing was taken from.
        remarks: how layers were made to fit, for people.
    """

    tensors: Tensors
    loaded: tuple[str, ...]
    not_loaded: dict[str, str]
    unused: tuple[str, ...]
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        """One line that says what was done."""
        counts = f"{len(self.loaded)} of {len(self.tensors)} tensors loaded"
        missing = list(self.not_loaded)
        more = ", ..." if len(missing) > NAMES_IN_A_LINE else ""
        left = [f"not loaded: {', '.join(missing[:NAMES_IN_A_LINE])}{more}"] if missing else []
        return "; ".join([counts, *self.remarks, *left])

    def to_json(self) -> dict[str, Any]:
        """What was done, in full."""
        return {
            "remarks": list(self.remarks),
            "loaded": list(self.loaded),
            "not_loaded": self.not_loaded,
            "unused": list(self.unused),
        }


def transfer(pretrained: Pretrained, plan: Plan, network: nn.Module) -> Transfer:
    """Make pretrained weights fit a plan's new network; the network itself is not changed.

    Raises:
        AutosegError: nothing but perhaps a head fits; the networks are too different.
    """
    start = network.state_dict()
    fitter = _Fitter(pretrained, plan, first_convolution(network))
    tensors = dict(start)
    not_loaded: dict[str, str] = {}
    for _, names in groupby(start, key=lambda name: name.rpartition(".")[0]):
        layer = {name: fitter.fitted(name, start[name]) for name in names}
        if misfits := [name for name, tensor in layer.items() if tensor is None]:
            reason = fitter.misfit(misfits[0], start[misfits[0]])
            not_loaded |= dict.fromkeys(layer, reason)
        else:
            tensors |= {name: tensor for name, tensor in layer.items() if tensor is not None}
    loaded = tuple(name for name in start if name not in not_loaded)
    _check_any(loaded, start, pretrained, plan)
    unused = tuple(name for name in pretrained.tensors if name not in loaded)
    return Transfer(tensors, loaded, not_loaded, unused, tuple(fitter.remarks(loaded)))


def begin_with(path: Path, learner: Learner, folder: Path) -> dict[str, Any]:
    """Put pretrained weights into a learner that has not learnt yet, and into its average.

    What was done is said, and written in full to `pretrained.json` in the folder.

    Returns:
        the weights' source.
    """
    pretrained = read_pretrained(path)
    done = transfer(pretrained, learner.plan, learner.network)
    learner.network.load_state_dict(done.tensors)
    if learner.average is not None:
        learner.average.module.load_state_dict(done.tensors)
    if learner.group.leads:
        of = "{task} {plan}, plan {plan_id}".format(**pretrained.source)
        say(f"pretrained on {of}: {done}")
        write_json(folder / RECORD, pretrained.source | done.to_json())
    return pretrained.source


def first_convolution(network: nn.Module) -> str:
    """The name of the weights that see the image."""
    names = (name for name, module in network.named_modules() if isinstance(module, nn.Conv3d))
    return f"{next(names)}.weight"


def adapt_channels(weight: Tensor, old: Sequence[str], new: Sequence[str]) -> Tensor:
    """Weights (maps, old channels, x, y, z) for the new channels, see the module's rule."""
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
        """The pretrained tensor in the shape of the new network's `mine`; None if it cannot be."""
        theirs = self.pretrained.tensors.get(name)
        if theirs is None:
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
        # A cascade's masks mean the same only where both plans have the same classes.
        same = masks.shape == previous.shape and old.classes == new.classes
        return torch.cat([image, (masks if same else previous).to(image)], dim=1)

    def _head(self, mine: Tensor, theirs: Tensor) -> Tensor | None:
        old, new = outputs_of(self.pretrained.plan), outputs_of(self.plan)
        if theirs.shape[1:] != mine.shape[1:] or not self._taken_classes():
            return None
        head = mine.detach().clone()
        for name in self._taken_classes():
            head[new.index(name)] = theirs[old.index(name)].to(mine)
        return head

    def _taken_classes(self) -> list[str]:
        """Outputs of the same name and kind: a softmax's differ from a region's sigmoid."""
        if self.pretrained.plan.classes.are_regions != self.plan.classes.are_regions:
            return []
        old = outputs_of(self.pretrained.plan)
        return [name for name in outputs_of(self.plan) if name in old]

    def misfit(self, name: str, mine: Tensor) -> str:
        """Why a tensor was not taken."""
        theirs = self.pretrained.tensors.get(name)
        if theirs is None:
            return f"{name} is not in the pretrained model"
        if name.startswith(HEADS) and not self._taken_classes():
            return "no class of the same name"
        return f"{name} is {tuple(theirs.shape)} in the pretrained model, {tuple(mine.shape)} here"

    def remarks(self, loaded: Sequence[str]) -> list[str]:
        """What was made to fit."""
        said = []
        old, new = self.pretrained.plan.channels, self.plan.channels
        if self.first in loaded and len(old) != len(new):
            channels = "channel" if len(new) == 1 else "channels"
            said.append(f"first convolution adapted from {len(old)} to {len(new)} {channels}")
        elif self.first in loaded and old != new and sorted(old) == sorted(new):
            said.append("first convolution: channels put into their new order")
        if any(name.startswith(HEADS) for name in loaded):
            said.append(f"head: {self._classes_in_words()}")
        else:
            said.append("head: new")
        return said

    def _classes_in_words(self) -> str:
        taken, names = self._taken_classes(), list(self.plan.classes.names)[1:]
        fresh = [name for name in names if name not in taken]
        known = [name for name in names if name in taken]
        if not fresh:
            return "all classes taken"
        parts = [f"{', '.join(known)} taken"] if known else ["only background taken"]
        return ", ".join([*parts, f"{', '.join(fresh)} new"])


def outputs_of(plan: Plan) -> list[str]:
    """The names of what the network gives, in order: regions have no background."""
    classes = plan.classes
    return list(classes.names[1:] if classes.are_regions else classes.names)


def _check_any(loaded: Sequence[str], start: Tensors, pretrained: Pretrained, plan: Plan) -> None:
    """Some convolution must fit: normalisations alone carry nothing over."""
    if any(start[name].ndim == 5 and not name.startswith(HEADS) for name in loaded):
        return
    old, new = (
        f"{'-'.join(map(str, p.network.features))} feature maps" for p in (pretrained.plan, plan)
    )
    raise AutosegError(
        f"--pretrained: no convolution of {pretrained.plan.task} {pretrained.plan.name} ({old}) "
        f"fits the network of {plan.task} {plan.name} ({new}); plan with the same network.*"
    )
