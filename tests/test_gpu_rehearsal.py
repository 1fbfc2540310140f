"""The path on a GPU, rehearsed without one: tensors on cuda:0 that have shapes and no values (torch's FakeTensorMode).

Two devices in one operation raise, as does reading a value, for which a real GPU would have to be waited for. Backward
passes and mixed precision do not work there.
"""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from videossl.config import FOLDER, Augmentation, Config, load_config
from videossl.data.dataset import RawClips
from videossl.data.loader import to_clip_batch
from videossl.engine.build import build_model
from videossl.engine.multitask import MultiTask
from videossl.rng import RowRandom, row_random
from videossl.types import ClipBatch

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
NUM_VIDEOS = 4
# OpenCV takes the camera's motion out on the host, which waits for the frames.
READS_ON_THE_HOST = {"tcam"}
CONFIGS = [path for path in sorted(FOLDER.glob("*.yaml")) if path.stem not in READS_ON_THE_HOST]


def clips(config: Config, model: MultiTask, device: torch.device) -> ClipBatch:
    """Augmented clips of noise, made as those of a training step are."""
    specs = [task.clip_spec for _, task in model.named_tasks()]
    shapes = {
        spec: (NUM_VIDEOS, spec.num_clips, spec.num_frames, 3)
        + (max(config.data.short_side, spec.crop_size),) * 2
        for spec in specs
    }
    frames = {spec: torch.randint(256, shape, dtype=torch.uint8) for spec, shape in shapes.items()}
    times = {spec: torch.zeros(shape[:3], dtype=torch.float64) for spec, shape in shapes.items()}
    raw = RawClips(frames, times, torch.arange(NUM_VIDEOS))
    return to_clip_batch(raw, device, Augmentation(), draws("clips", device))


def draws(purpose: str, device: torch.device) -> RowRandom:
    return row_random(0, purpose, 0, rank=0, world_size=1, num_rows=NUM_VIDEOS, device=device)


def as_if_on_gpu(module: nn.Module) -> None:
    """Every parameter and buffer is replaced by one on cuda:0 without values; to be called in a FakeTensorMode."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(on_gpu(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = on_gpu(buffer)


def on_gpu(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_a_step_forward_and_an_evaluation_run_on_one_device_and_read_no_value(path):
    torch.manual_seed(0)
    config = load_config(path, ["out=x"])
    model = build_model(config)
    batch = clips(config, model, CPU)
    for _, task in model.named_tasks():  # once before training, on values: k-means on the host
        task.prepare(batch, config.seed)
    with FakeTensorMode():
        as_if_on_gpu(model)
        batch = clips(config, model, CUDA)
        loss, results = model(model.make_views(batch, draws("views", CUDA)))
        metric_sums = [
            value for result in results.values() for value in result.metric_sums.values()
        ]
        assert {tensor.device for tensor in (loss, *metric_sums)} == {CUDA}
        model.eval()
        with torch.no_grad():
            evaluated, _ = model(model.make_views(batch, draws("evaluation", CUDA)))
        assert evaluated.device == CUDA


def test_the_rehearsal_sees_a_second_device_and_a_value_that_is_read():
    with FakeTensorMode():
        there, here = torch.empty(3, device=CUDA), torch.empty(3)
        with pytest.raises(RuntimeError, match=r"device.* cuda:0, cpu|cuda:0.*cpu"):
            _ = there + here
        with pytest.raises(DataDependentOutputException):
            there.sum().item()
