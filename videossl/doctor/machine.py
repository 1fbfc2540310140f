"""What the machine gives: memory, shared memory, open files, cores, and folders that can be written."""

import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

from videossl.doctor.rows import Place, Row, mib
from videossl.workers import num_cores

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
