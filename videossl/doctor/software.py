"""What is installed: Python, videossl, the libraries it needs, torch with torchvision, CUDA. All but the first two in a
process of their own: a broken build may end the process that imports it.
"""

import ctypes
import importlib
import importlib.metadata
import platform
import re
import sys
from pathlib import Path

from videossl.doctor.rows import Place, Row, State, mib, reason
from videossl.version import __version__

LEAST_PYTHON = (3, 11)
# Rows of their own: they are looked at more closely, or can be done without.
_APART = {"torch", "torchvision", "torchcodec", "av", "decord"}
_INSTALL = "pip install --upgrade"


def python(place: Place) -> list[Row]:
    """The interpreter and this package."""
    found = f"{platform.python_version()}, {sys.executable}"
    is_new = sys.version_info[:2] >= LEAST_PYTHON
    least = ".".join(map(str, LEAST_PYTHON))
    return [
        Row("Python", "ok", found)
        if is_new
        else Row("Python", "broken", found, f"install {least}"),
        Row("videossl", "ok", f"{__version__}, {Path(__file__).parents[1]}"),
    ]


def libraries(place: Place) -> list[Row]:
    """Whether everything that videossl's metadata asks for is installed; whether it works shows when it is used."""
    needed = [_required_name(line) for line in importlib.metadata.requires("videossl") or []]
    names = sorted({name for name in needed if name} - _APART)
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        lacking = " ".join(missing)
        return [Row("libraries", "missing", f"not installed: {lacking}", f"pip install {lacking}")]
    return [Row("libraries", "ok", f"{len(names)} installed")]


def torch(place: Place) -> list[Row]:
    """torch and torchvision: each imports, and an operator of torchvision runs, so that they fit each other."""
    try:
        import torch
    except Exception as error:  # a broken build raises anything
        mend = f"{_INSTALL} torch torchvision"
        state = state_of(error, "torch")
        return [
            Row("torch", state, reason(error), mend),
            Row("torchvision", "broken", "it needs torch", mend),
        ]
    rows = [Row("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")]
    try:
        import torchvision
        from torchvision.ops import roi_align  # compiled against one version of torch

        boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
        roi_align(torch.ones(1, 1, 4, 4), boxes, 2)
    except Exception as error:
        state = state_of(error, "torchvision")
        mend = f"{_INSTALL} torch torchvision   (both from one place, at once)"
        found = f"with torch {torch.__version__}: {reason(error)}"
        return [*rows, Row("torchvision", state, found, mend)]
    found = f"{torchvision.__version__}, loads with torch {torch.__version__}"
    return [*rows, Row("torchvision", "ok", found)]


def cuda(place: Place) -> list[Row]:
    """The CUDA that torch is built for, the driver, and each GPU, which really adds numbers."""
    import torch

    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else ""
    if not built:
        mend = "none on the processor; for a GPU install a torch with CUDA"
        return [Row("CUDA", "missing", "torch is built without CUDA", mend)]
    driver = _driver_version()
    if not driver:
        mend = "none on the processor; a GPU needs NVIDIA's driver (in Docker: --gpus all)"
        return [Row("CUDA", "missing", f"{built}; no NVIDIA driver here", mend)]
    found = f"{built}; driver {driver}"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        mend = (
            "update the driver, or install a torch for an older CUDA; look at CUDA_VISIBLE_DEVICES"
        )
        return [Row("CUDA", "broken", f"{found}; {reason(error)}", mend)]
    return [Row("CUDA", "ok", found), *(_gpu(index) for index in range(torch.cuda.device_count()))]


def _gpu(index: int) -> Row:
    import torch

    what, name = f"GPU {index}", torch.cuda.get_device_name(index)
    try:
        total = float(torch.ones(1024, device=f"cuda:{index}").sum())
        free, size = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        return Row(
            what, "broken", f"{name}: {reason(error)}", "look at nvidia-smi: full or faulty?"
        )
    if total != 1024:
        return Row(what, "broken", f"{name}: 1024 ones add up to {total:g}", "replace it")
    return Row(what, "ok", f"{name}, {mib(free)} free of {mib(size)}")


def _driver_version() -> str:
    """Of the NVIDIA driver, with the CUDA that it is good for; "" without one."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ""
    number = ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(number))
    good_for = f"for CUDA up to {number.value // 1000}.{number.value % 1000 // 10}"
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return good_for
    version = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return f"{version[0]} {good_for}" if version else good_for


def _required_name(requirement: str) -> str:
    """The distribution that a line of the metadata names, "" for one of an extra."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    return "" if name is None or re.search(r"\bextra\s*==", requirement) else name[0]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def state_of(error: Exception, module: str) -> State:
    """What an error at an import says of the module: that it is not there, or that it is broken."""
    is_absent = isinstance(error, ModuleNotFoundError) and error.name == module
    return "missing" if is_absent else "broken"
