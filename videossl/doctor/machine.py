"""What the machine gives: memory, shared memory, open files, cores, and folders that can be written."""

import ctypes
import importlib
import importlib.metadata
import multiprocessing
import os
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from videossl.version import __version__
from videossl.workers.pool import num_cores

State = Literal["ok", "warning", "missing", "broken"]


@dataclass(frozen=True)
class Row:
    """One thing looked at. `is_required`: without it scan, train or track cannot run."""

    what: str
    state: State
    found: str
    mend: str = ""
    is_required: bool = False

    @property
    def stops(self) -> bool:
        """Whether this alone keeps the project from running here."""
        return self.is_required and self.state in ("missing", "broken")

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Place:
    """Where the checks work: `folder` is temporary and theirs, `targets` are the folders a user wants to write into."""

    folder: Path
    targets: tuple[Path, ...] = ()


def reason(error: BaseException) -> str:
    """The error in one line, its kind first."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def mib(num_bytes: float) -> str:
    """A size to read: GiB from one on, else MiB."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


# Frames travel in anonymous memory, so that locks are all that /dev/shm must hold: a page each.
LOCK_BYTES = 2**20
# NCCL puts buffers of about 10 MB for each pair of GPUs there; its manual asks for 1 GB.
NCCL_BYTES = 2**30
MORE_SHARED_MEMORY = "in Docker: --ipc=host, or --shm-size=1g"
BASE_FILES = (
    256  # torch's libraries, logs, the reading of videos in the process itself; chosen, generous
)
FILES_A_WORKER = 4  # a socket, two ends of pipes, and one while it starts
FREE_MEMORY_BYTES = 4 * 2**30  # a training process takes 1 to 2 GiB on a CPU, a worker some 100 MiB
FREE_DISK_BYTES = 2**30


def shared_memory(place: Place) -> list[Row]:
    """/dev/shm: locks between processes, and NCCL between GPUs."""
    what = "shared memory"
    multiprocessing.get_context("spawn").Lock()  # an OSError where there is no room, or no right
    space = shared_memory_space()
    if space is None:
        return [Row(what, "ok", "no /dev/shm on this system; locks work")]
    total, free = space
    found, num_gpus = f"/dev/shm {mib(total)}, {mib(free)} free", num_gpu_devices()
    if free < LOCK_BYTES:
        return [Row(what, "broken", f"{found}: locks need {mib(LOCK_BYTES)}", MORE_SHARED_MEMORY)]
    if num_gpus > 1 and free < NCCL_BYTES:
        return [
            Row(
                what,
                "warning",
                f"{found}: NCCL on {num_gpus} GPUs needs {mib(NCCL_BYTES)}",
                MORE_SHARED_MEMORY,
            )
        ]
    return [Row(what, "ok", f"{found} (data workers need none of it)")]


def open_files(place: Place) -> list[Row]:
    """The limits on open files, against a data worker on each core."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    workers = num_cores()
    needed = BASE_FILES + FILES_A_WORKER * workers
    limits = f"at most {_limit(soft)} at a time (could be set to {_limit(hard)})"
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return [Row("open files", "ok", limits)]
    mend = f"ulimit -n {needed if hard == resource.RLIM_INFINITY else min(needed, hard)}"
    found = f"{limits}; with {workers} workers a run may need {needed}"
    return [Row("open files", "warning", found, mend)]


def memory(place: Place) -> list[Row]:
    """Main memory that can still be had, within the container's limit."""
    available = available_memory()
    if available is None:
        return [Row("memory", "warning", "unknown on this system", "see that 4 GiB are free")]
    if available < FREE_MEMORY_BYTES:
        mend = f"{mib(FREE_MEMORY_BYTES)} are good for a small run: fewer workers, smaller batches"
        return [Row("memory", "warning", f"{mib(available)} available", mend)]
    return [Row("memory", "ok", f"{mib(available)} available")]


def processor(place: Place) -> list[Row]:
    """Cores that this process may use, and what bounds them."""
    cores, quota = num_cores(), cpu_quota()
    found = f"{cores} of {os.cpu_count()} cores may be used"
    if threads := os.environ.get("OMP_NUM_THREADS"):
        found += f", OMP_NUM_THREADS={threads}"
    if quota is not None and quota < cores:
        found += f", but the container is given the time of {quota:g}"
        mend = f"data.num_workers={max(1, int(quota))}, --workers {max(1, int(quota))}, or --cpus"
        return [Row("processor", "warning", found, mend)]
    return [Row("processor", "ok", found)]


def writing(place: Place) -> list[Row]:
    """Whether the folders that a user writes into can be written, and their free space."""
    return [_folder(target) for target in place.targets]


def _folder(target: Path) -> Row:
    what = f"folder {target}" if str(target) != "." else "working folder"
    folder = next(f for f in (target.resolve(), *target.resolve().parents) if f.exists())
    if not folder.is_dir():
        return Row(what, "broken", f"{folder} is a file", "name a folder")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        mend = "choose another folder, or mend its rights or its disk"
        return Row(what, "broken", f"cannot be written: {error.strerror or error}", mend)
    found = f"{mib(free)} free"
    if free < FREE_DISK_BYTES:
        return Row(what, "warning", found, "make room: a run's checkpoints alone take up to 1 GiB")
    return Row(what, "ok", found)


def shared_memory_space() -> tuple[int, int] | None:
    """Bytes of /dev/shm, all and free; None where there is none."""
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return None
    return usage.total, usage.free


def num_gpu_devices() -> int:
    """NVIDIA GPUs that the system shows, without asking torch."""
    return sum(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia*"))


def available_memory() -> int | None:
    """Bytes, of the machine or of this container, whichever is less; None where neither can be told."""
    found = []
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    limit, used = _text("/sys/fs/cgroup/memory.max"), _text("/sys/fs/cgroup/memory.current")
    if limit.isdigit() and used.isdigit():
        found.append(int(limit) - int(used))
    return min(found) if found else None


def cpu_quota() -> float | None:
    """Cores whose time the container is given; None without a limit."""
    quota, _, period = _text("/sys/fs/cgroup/cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _limit(number: int) -> str:
    import resource

    return "any number" if number == resource.RLIM_INFINITY else str(number)


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
    """The version of the NVIDIA driver, with the CUDA that it is good for; "" without one."""
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
