"""The pretext tasks on clips of held-out videos: the same ones at every call, without augmentation."""

import contextlib
import math

from videossl.config import Config
from videossl.data.dataset import ClipDataset
from videossl.engine.alarms import Alarms
from videossl.engine.build import autocast
from videossl.engine.evaluation import Measured, Poll
from videossl.engine.feed import Feed
from videossl.engine.logger import describe_tasks
from videossl.engine.multitask import MultiTask
from videossl.engine.tallies import Tallies
from videossl.intervals import too_few

ERRORS_OF_INTERVAL = 1.96  # standard errors to each side, of 95 %


class HeldOut:
    """An Evaluation: each task's metrics over `train.evaluate_batches` batches, and pictures of the first of them."""

    name = "heldout"

    def __init__(self, config: Config, feed: Feed, data: ClipDataset, alarms: Alarms) -> None:
        self.every = config.train.evaluate_every
        self._config, self._feed, self._data, self._alarms = config, feed, data, alarms

    def __call__(self, model: MultiTask, poll: Poll) -> Measured:
        """See Evaluation."""
        tallies, pictures = Tallies(), {}
        batches = self._feed.batches(self._data, 0, self._config.train.evaluate_batches)
        with contextlib.closing(batches):
            for index, raw in enumerate(batches):
                poll(lambda raw=raw: self._data.source_names(raw.video_ids))  # type: ignore[misc]
                self._feed.quarantine.record(raw.failures, step=0)
                batch = self._feed.clips(raw, None)
                rng = self._feed.rows("heldout views", index, len(raw.video_ids))
                with autocast(self._config, self._feed.device):
                    views = model.make_views(batch, rng)
                    _, results = model(views)
                    if index == 0 and self._feed.is_main and self._config.monitor.pictures:
                        pictures = model.draw(views)
                tallies.add(results)
        tasks = tallies.values()
        self._alarms.check_tasks(tasks, "held-out")
        return Measured(tasks, f"on {self._describe_videos()}: {describe_tasks(tasks)}", pictures)

    def _describe_videos(self) -> str:
        """How many are asked, and how far an accuracy of theirs is known: answers of one video are not independent."""
        asked = self._config.train.evaluate_batches * self._config.data.videos_per_step
        count = min(len(self._data), asked)
        widest = ERRORS_OF_INTERVAL * math.sqrt(0.25 / count)
        return too_few(count, "held-out videos") or (
            f"{count} held-out videos (95 % within {widest:.2f})"
        )
