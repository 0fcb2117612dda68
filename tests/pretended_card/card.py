"""A pretended graphics card: the CUDA code of autoseg runs without one.

Tensors on `cuda` have a shape, strides, a type and a device, but no values; tensors on the
processor are real. `guard.cpp` and `hooks.cpp` give the processor build of torch a CUDA device that
does nothing; g++ compiles them in a few seconds, once. Import this module before torch: torch looks
for devices when it starts.

It finds tensors of two devices in one operation (an error at the line), places where the host waits
for the card, copies over the bus and between memory layouts, the bytes that a step reads and
writes, and the peak of living bytes. It does not cover NCCL, torch.compile, workers and time.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FOUND = importlib.util.find_spec("torch")
assert FOUND is not None
assert FOUND.submodule_search_locations
TORCH = Path(FOUND.submodule_search_locations[0])
LIBRARY = "libguard.so"


def load_guard() -> None:
    """Compile the two files against the installed torch, once, and load them."""
    version = importlib.metadata.version("torch")
    folder = Path(tempfile.gettempdir()) / f"pretended_card_{version}"
    library = folder / LIBRARY
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        include, lib = TORCH / "include", TORCH / "lib"
        new = Path(tempfile.mkdtemp(dir=folder)) / LIBRARY
        command = ["g++", "-O1", "-std=c++20", "-shared", "-fPIC", f"-I{include}"]
        command += [f"-I{include}/torch/csrc/api/include", str(HERE / "guard.cpp")]
        command += [str(HERE / "hooks.cpp"), "-o", str(new), f"-L{lib}", "-ltorch_cpu", "-lc10"]
        subprocess.run([*command, f"-Wl,-rpath,{lib}"], check=True, capture_output=True)
        new.replace(library)
    ctypes.CDLL(str(TORCH / "lib" / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


load_guard()

# ruff: noqa: E402
import contextlib
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any
from unittest import mock

import torch
import torch.cuda.amp.common
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
GB = 1 << 30
LARGE = 100_000  # elements from which a copy between layouts counts
WITHOUT_TRAFFIC = {
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "permute",
    "slice",
    "select",
    "unsqueeze",
    "squeeze",
    "expand",
    "detach",
    "alias",
    "as_strided",
    "split",
    "unbind",
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "lift_fresh",
    "_unsafe_index",
}


def size_of(tensor: torch.Tensor) -> int:
    """Its bytes."""
    return tensor.numel() * tensor.element_size()


def layout_of(tensor: torch.Tensor) -> str:
    """Its memory layout: N C D H W, N D H W C, or both, if one axis has one entry."""
    plain = tensor.is_contiguous()
    last = tensor.is_contiguous(memory_format=torch.channels_last_3d)
    return "both" if plain and last else "NCDHW" if plain else "NDHWC" if last else "other"


def caller() -> str:
    """The line of autoseg that is running."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        _, found, where = frame.f_code.co_filename.rpartition("/autoseg/")
        if found and not where.startswith("tests"):
            return f"{where}:{frame.f_lineno}"
        frame = frame.f_back
    return "(backward)"


class Card(TorchDispatchMode):
    """Counts what happens on the card.

    Attributes:
        waits: places where the host waits for the card, with their number.
        layouts: bytes of copies of activations between memory layouts, by kind.
        traffic: bytes that operations read and write, by operation.
        to_card, to_host: bytes copied over the bus, by place.
        copies: number of copies to the card, by place.
        living, peak: bytes of storages on the card, now and at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.living = self.peak = 0
        self.storages: set[int] = set()
        self.reset()

    def reset(self) -> None:
        """Count from zero; the living bytes stay."""
        self.waits: Counter[str] = Counter()
        self.layouts: Counter[str] = Counter()
        self.traffic: Counter[str] = Counter()
        self.to_card: Counter[str] = Counter()
        self.to_host: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.peak = self.living

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, on shapes only if it is on the card."""
        kwargs = dict(kwargs or {})
        leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_card = [x for x in leaves if isinstance(x, FakeTensor)]
        device = kwargs.get("device")
        device = torch.device(device) if isinstance(device, str | int) else device
        name = func._schema.name.partition("::")[2]
        is_there = device is not None and device.type == "cuda"
        if name == "device" or not (on_card or is_there):
            return func(*args, **kwargs)
        if name == "to":  # in inference mode, it is not made of a copy yet
            with self:
                return func.decompose(*args, **kwargs)
        if (answer := self._waiting(name, args, kwargs, on_card, device)) is not NotImplemented:
            return answer
        if name.startswith(("_fused_", "_amp_")):
            lists = [x for x in args if isinstance(x, list | tuple)]
            tensors = [x for each in lists for x in each if isinstance(x, torch.Tensor)]
            self.traffic[name] += sum(2 * size_of(x) for x in tensors)
            return args[0] if name == "_amp_update_scale_" else None
        kwargs = {key: None if key == "generator" else value for key, value in kwargs.items()}
        with self.fake:
            out = func(*tree_map(self._as_fake, args), **tree_map(self._as_fake, kwargs))
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self._count(name, leaves, made)
        for tensor in made:
            self._live(tensor)
        return out

    def _as_fake(self, value: Any) -> Any:
        """A real tensor as a fake one on the processor."""
        if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
            return value
        with self.fake:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)

    def _new(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        with self.fake:
            return torch.empty(shape, dtype=dtype, device=CUDA)

    def _waiting(
        self, name: str, args: tuple[Any, ...], kwargs: Any, on_card: list[Any], device: Any
    ) -> Any:
        """Count and answer an operation whose result the host waits for."""
        if name == "_local_scalar_dense":
            self.waits[f"item {caller()}"] += 1
            return 0.5 if on_card[0].dtype.is_floating_point else 0
        if name == "_to_copy" and on_card and device is not None and device.type == "cpu":
            self.waits[f"to the processor {caller()}"] += 1
            self.to_host[caller()] += size_of(on_card[0])
            return torch.zeros(on_card[0].shape, dtype=kwargs.get("dtype") or on_card[0].dtype)
        if name == "copy_" and not isinstance(args[0], FakeTensor):
            self.waits[f"copy_ {caller()}"] += 1
            self.to_host[caller()] += size_of(args[0])
            return args[0].zero_()
        if name == "equal":
            self.waits[f"equal {caller()}"] += 1
            return False
        if name == "nonzero":
            self.waits[f"nonzero {caller()}"] += 1
            return self._new((args[0].numel(), args[0].dim()), torch.long)
        if name == "bincount":
            self.waits[f"bincount {caller()}"] += 1
            count = args[2] if len(args) > 2 else kwargs.get("minlength", 0)
            return self._new((count,), torch.long)
        if name == "index":
            masks = [x for x in args[1] if isinstance(x, torch.Tensor) and x.dtype == torch.bool]
            if masks:
                self.waits[f"mask {caller()}"] += 1
                mask = masks[0]
                return self._new((mask.numel(), *args[0].shape[mask.dim() :]), args[0].dtype)
        return NotImplemented

    def _count(self, name: str, given: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        if name not in WITHOUT_TRAFFIC:
            self.traffic[name] += sum(size_of(tensor) for tensor in given + made)
        if name in ("_to_copy", "copy_"):
            source = given[0] if name == "_to_copy" else given[1]
            if not isinstance(source, FakeTensor) and source.numel() > 1:
                self.to_card[caller()] += size_of(source)
                self.copies[caller()] += 1
        if name == "convolution":
            self._hidden_copy(given[0], given[1], "convolution")
        if name == "convolution_backward":
            for tensor in given[:2]:
                self._hidden_copy(tensor, given[2], "convolution backward")
        if name in ("clone", "_to_copy", "copy_") and len(made) == 1:
            before, after = (given[0] if name != "copy_" else given[1]), made[0]
            is_activation = before.dim() == 5 and before.numel() > LARGE
            if isinstance(before, FakeTensor) and is_activation:
                kinds = {layout_of(before), layout_of(after)} - {"both"}
                if len(kinds) > 1:
                    self.layouts[name] += size_of(before) + size_of(after)

    def _hidden_copy(self, tensor: torch.Tensor, weight: torch.Tensor, name: str) -> None:
        """CuDNN brings an activation into the layout of the weights before it starts."""
        if layout_of(tensor) == "NCDHW" and layout_of(weight) == "NDHWC" and tensor.shape[1] > 1:
            self.layouts[f"hidden in {name}"] += 2 * size_of(tensor)

    def _live(self, tensor: torch.Tensor) -> None:
        if not isinstance(tensor, FakeTensor) or tensor.fake_device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages:
            return
        self.storages.add(key)
        self.living += size
        self.peak = max(self.peak, self.living)

        def end() -> None:
            self.living -= size
            self.storages.discard(key)

        weakref.finalize(storage, end)


class _Generator:
    """Of random numbers that are not drawn."""

    def __init__(self, device: Any = None) -> None: ...

    def manual_seed(self, seed: int) -> None: ...


def _apply(module: torch.nn.Module, fn: Callable[[Any], Any], recurse: bool = True) -> Any:
    """`Module._apply` by new parameters: those of the processor cannot become fake ones."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                with torch.no_grad():
                    new = torch.nn.Parameter(fn(parameter.detach()), parameter.requires_grad)
                    each._parameters[name] = new
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = fn(buffer)
    return module


@contextlib.contextmanager
def pretended_card(capability: tuple[int, int] = (9, 0), free: int = 80 * GB) -> Iterator[Card]:
    """A card of this compute capability and free memory, within the block."""
    card = Card()
    cuda = torch.cuda
    with contextlib.ExitStack() as stack:

        def replaced(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        replaced(cuda, "_lazy_init", lambda: None)
        replaced(cuda, "is_available", lambda: True)
        replaced(cuda, "device_count", lambda: 1)
        replaced(cuda, "get_device_capability", lambda device=None: capability)
        replaced(cuda, "get_device_name", lambda device=None: "a pretended card")
        replaced(cuda, "mem_get_info", lambda device=None: (free - card.living, free))
        replaced(cuda, "memory_reserved", lambda device=None: card.living)
        replaced(cuda, "memory_allocated", lambda device=None: card.living)
        replaced(cuda, "is_bf16_supported", lambda *_, **__: capability >= (8, 0))
        replaced(cuda.amp.common, "amp_definitely_not_available", lambda: False)
        replaced(torch.Tensor, "pin_memory", lambda self, *_: self)
        replaced(torch.nn.Module, "_apply", _apply)
        replaced(torch, "Generator", _Generator)
        stack.enter_context(card)
        yield card
