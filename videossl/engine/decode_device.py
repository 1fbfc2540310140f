"""Where videos are decoded: on the processor, or on the GPU if that is measured to be quicker here."""

import logging
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from videossl.data.dataset import ClipDataset
from videossl.data.loader import StepPositions, frame_batches
from videossl.distributed import World
from videossl.errors import UserError

log = logging.getLogger("videossl")

PROBE_SECONDS = 5.0  # for each device, after its first batch
PROBE_STEPS = 10_000  # more than any machine decodes in that time


def resolve_decode_device(asked: str, world: World, measure: Callable[[str], float]) -> str:
    """ "cpu", or the process's own "cuda:N": what `decode.device` asks for, or what `measure` finds the quicker.

    `measure(device)` gives videos/s or raises UserError; only the main rank measures, and all follow it. Raises
    UserError for cuda in a process that computes on the processor.
    """
    on_gpu = world.device.type == "cuda"
    if asked == "cuda" and not on_gpu:
        raise UserError(
            "decode.device=cuda hands frames to the GPU that the process computes on, and this one computes on the "
            "cpu: set device=cuda, or decode.device=cpu"
        )
    if asked == "cpu" or not on_gpu:
        return "cpu"
    # Named by its number: the threads that decode each start on GPU 0.
    gpu = f"cuda:{world.device.index or 0}"
    if asked == "cuda":
        return gpu
    is_gpu_quicker = _is_gpu_quicker(gpu, measure) if world.is_main else False
    return gpu if _agreed(is_gpu_quicker, world) else "cpu"


def videos_per_second(dataset: ClipDataset, *, num_workers: int, timeout_seconds: float) -> float:
    """What the loader delivers when nobody else computes, over PROBE_SECONDS."""
    positions = StepPositions(0, PROBE_STEPS, rank=0, world_size=1, videos_per_rank=8)
    batches = frame_batches(
        dataset, positions, num_workers=num_workers, timeout_seconds=timeout_seconds
    )
    try:
        next(batches)
        started, num_videos = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < PROBE_SECONDS:
            num_videos += len(next(batches).video_ids)
        return num_videos / elapsed
    finally:
        batches.close()


def _is_gpu_quicker(gpu: str, measure: Callable[[str], float]) -> bool:
    try:
        on_gpu = measure(gpu)
    except UserError as error:
        log.info("decode.device=auto: cpu, because %s", error)
        return False
    on_cpu = measure("cpu")
    log.info(
        "decode.device=auto: %s (measured: cuda %.0f videos/s, cpu %.0f)",
        "cuda" if on_gpu > on_cpu else "cpu",
        on_gpu,
        on_cpu,
    )
    return on_gpu > on_cpu


def _agreed(decision: bool, world: World) -> bool:
    """The main rank's decision."""
    if not dist.is_initialized():
        return decision
    flag = torch.tensor(int(decision), device=world.device)
    dist.broadcast(flag, src=0)
    return bool(flag.item())
