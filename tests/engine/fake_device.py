"""A CUDA device that is not there: tensors on the CPU that say they lie on it; a graph that is a recording.

``OnDevice`` tensors hold CPU memory and report ``cuda``. ``FakeDevice`` sees every call of torch's functions:

- one that mixes tensors of the device with the host's fails, but for what CUDA allows: copies between them,
  and numbers (tensors without dimensions) of the host;
- one that makes the host wait (``item``, ``tolist``, ``cpu``, boolean masks ...) is noted in ``waits``;
- in a capture, waiting and copies from the host fail, and every call and kernel launch is recorded. A replay
  runs the recorded calls on the same tensors and writes their results where the capture left them, so
  whatever the capture took from its own step by value is stale in a replay, as in a CUDA graph.
"""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda")
WAITS = {
    "item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero", "unique",
    "masked_select", "equal", "__contains__", "is_nonzero",
}  # fmt: skip
INDEXING = {"__getitem__", "__setitem__"}
ATTRIBUTES = {"__get__", "__set__"}


class OnDevice(torch.Tensor):
    """A tensor of the device."""

    device = CUDA
    is_cuda = True

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return run_plain(func, args, kwargs or {})


def disguise(x):
    return x.as_subclass(OnDevice) if type(x) is torch.Tensor else x


def plain(x):
    return x.as_subclass(torch.Tensor) if isinstance(x, OnDevice) else x


def run_plain(func, args, kwargs):
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


class FakeDevice(TorchFunctionMode):
    """See the module's text.

    Attributes:
        waits: What the host waited for, by name, since it was last cleared.
        launches: Kernels launched.
        graphs: Graphs captured.
        replays: How often one was replayed.
    """

    def __init__(self):
        super().__init__()
        self.waits, self.launches, self.graphs, self.replays = [], 0, 0, 0
        self.recording = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        on_device = any(isinstance(x, OnDevice) for x in flat)
        if name == "_has_compatible_shallow_copy_type":  # no: modules take the new tensors, not their memory
            return False
        if name in ATTRIBUTES:
            return run_plain(func, args, kwargs)
        if name == "pin_memory":  # needs a driver; what it returns may be copied without waiting
            return args[0]
        target = self._target(name, args, kwargs)
        if target is not None and (on_device or target.type == "cuda"):
            move = self._move if name in ("to", "cpu") else self._make
            return move(func, args, kwargs, target)
        if not on_device:
            return run_plain(func, args, kwargs)
        self._check(name, flat, args)
        result = tree_map(disguise, run_plain(func, tree_map(plain, args), tree_map(plain, kwargs)))
        if self.recording is not None:
            self.recording.append((func, args, kwargs, result))
        if name.endswith("_") and not name.endswith("__") and isinstance(args[0], OnDevice):
            return args[0]
        return result

    def _target(self, name, args, kwargs):
        """The device that a call names, if it makes or moves a tensor."""
        if name == "cpu":
            return torch.device("cpu")
        if name == "to":
            named = [x for x in (*args[1:], kwargs.get("device")) if _is_device(x)]
            return torch.device(named[0]) if named else None
        return torch.device(kwargs["device"]) if kwargs.get("device") is not None else None

    def _move(self, func, args, kwargs, target):
        """A copy between host and device, and whatever else ``to`` asks for."""
        moves = isinstance(args[0], OnDevice) != (target.type == "cuda")
        args = [plain(x) if isinstance(x, torch.Tensor) else "cpu" if _is_device(x) else x for x in args]
        result = run_plain(func, args, kwargs | ({"device": "cpu"} if "device" in kwargs else {}))
        if moves:
            assert self.recording is None, "a copy between host and device in a capture"
            self.waits += ["cpu"] * (target.type == "cpu")
            result = result.clone() if result.data_ptr() == args[0].data_ptr() else result
        elif self.recording is not None:
            assert result.data_ptr() == args[0].data_ptr(), "a conversion that is not recorded"
        return disguise(result) if target.type == "cuda" else result

    def _make(self, func, args, kwargs, target):
        assert target.type == "cuda", "a tensor of the host made from one of the device"
        kwargs = {**kwargs, "device": "cpu"}
        result = run_plain(func, tree_map(plain, args), tree_map(plain, kwargs))
        of_data = func.__name__ in ("tensor", "as_tensor")
        assert self.recording is None or not of_data, f"{func.__name__} copies to the device in a capture"
        if self.recording is not None and func.__name__ not in ("empty", "empty_like"):
            self.recording.append((func, args, kwargs, result))
        return disguise(result)

    def _check(self, name, flat, args):
        host = [x for x in flat if not isinstance(x, OnDevice) and x.dim()]
        if name == "copy_":
            assert self.recording is None or not host, "a copy from the host in a capture"
            return
        assert not host, f"{name} mixes tensors of the host and of the device"
        masks = name in INDEXING and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_flatten(args[1])[0]
        )
        if name in WAITS or masks:
            assert self.recording is None, f"{name} waits for the device in a capture"
            self.waits.append(name)

    def launch(self, kernel, grid, args, constants):
        """A kernel over memory of the device alone."""
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        assert all(isinstance(x, OnDevice) for x in tensors), "a kernel got memory of the host"
        with torch._C.DisableTorchFunction():
            kernel[grid](*(plain(x) for x in args), **constants)
        self.launches += 1

    def kernels(self, real):
        """The Triton kernels, launched on this device."""
        names = ("store_tokens", "attend_slices", "attend_pages", "merge_states")
        return SimpleNamespace(**{name: _Kernel(self, getattr(real, name)) for name in names})


def _is_device(x):
    return isinstance(x, (torch.device, str))


class _Kernel:
    def __init__(self, device, kernel):
        self._device, self._kernel = device, kernel

    def __getitem__(self, grid):
        def launch(*args, **constants):
            self._device.launch(self._kernel, grid, args, constants)
            if self._device.recording is not None:
                self._device.recording.append(
                    (self._device.launch, (self._kernel, grid, args, constants), {}, None)
                )

        return launch


class FakeGraph:
    """In place of ``torch.cuda.CUDAGraph``."""

    def __init__(self, device):
        self._device, self._calls = device, []
        device.graphs += 1

    def pool(self):
        return 0, 0

    @contextmanager
    def capture(self):
        self._device.recording = self._calls
        try:
            yield
        finally:
            self._device.recording = None

    def replay(self):
        self._device.replays += 1
        for func, args, kwargs, result in self._calls:
            if result is None:
                func(*args, **kwargs)
                continue
            again = run_plain(func, tree_map(plain, args), tree_map(plain, kwargs))
            for old, new in zip(tree_flatten(result)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    plain(old).copy_(plain(new))


class _Stream:
    def __init__(self, *_):
        pass

    def wait_stream(self, _):
        pass

    def synchronize(self):
        pass


def install(monkeypatch, device):
    """Make torch believe in ``device``."""
    import treeshare.attention.triton.backend as backend

    @contextmanager
    def on(stream):
        yield

    @contextmanager
    def capture(graph, **_):
        with graph.capture():
            yield

    load = backend.load_kernels
    monkeypatch.setattr(backend, "load_kernels", lambda: device.kernels(load()))
    monkeypatch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
    fakes = {
        "mem_get_info": lambda _: (1 << 30, 1 << 31),
        "get_device_properties": lambda _: SimpleNamespace(multi_processor_count=2),
        "Stream": _Stream,
        "current_stream": _Stream,
        "stream": on,
        "graph": capture,
        "is_current_stream_capturing": lambda: device.recording is not None,
        "CUDAGraph": lambda: FakeGraph(device),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
