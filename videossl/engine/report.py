"""The record of a log interval: tasks beside chance and cheats, speed, features, gradients, alarms."""

from typing import Any

from videossl.config import Config
from videossl.data.dataset import ClipDataset
from videossl.engine.alarms import Alarms
from videossl.engine.feed import Feed
from videossl.engine.finite import FiniteGuard
from videossl.engine.gradients import TaskGradients, describe_gradients
from videossl.engine.health import FeatureProbe
from videossl.engine.interval import Interval
from videossl.engine.logger import RunLogger
from videossl.engine.multitask import MultiTask
from videossl.engine.status_lines import peak_memory_gib, step_line


class Report:
    """Looks at a run, at log steps only. The step arms `probe` and lets `gradients` measure; neither waits for a GPU."""

    def __init__(
        self,
        config: Config,
        model: MultiTask,
        data: ClipDataset,
        feed: Feed,
        guard: FiniteGuard,
        alarms: Alarms,
    ) -> None:
        self.probe = FeatureProbe(model.encoder)
        self.gradients = TaskGradients(model.encoder)
        self._config, self._model, self._data = config, model, data
        self._feed, self._guard, self._alarms = feed, guard, alarms

    def write(self, logger: RunLogger, step: int, interval: Interval, lr: float) -> None:
        """Every rank must call it: the tallies of all are added up."""
        config = self._config
        self._guard.read()
        tasks = interval.tallies.values()
        self._alarms.check_tasks(tasks, "training")
        steps = step - interval.first_step
        videos = steps * config.data.videos_per_step * config.train.accumulate
        clips = videos * sum(spec.num_clips for spec in self._data.specs)
        values = {
            "epoch": step * videos / steps / len(self._data),
            "lr": lr,
            "clips_per_second": clips / interval.seconds,
            "data_wait_share": interval.waited / interval.seconds,
            "seconds_left": (config.train.steps - step) * interval.seconds / steps,
            "memory_gib": peak_memory_gib(self._feed.device),
            "bad_videos": self._feed.quarantine.num_failures,
            "skipped_steps": self._guard.count,
        }
        insight, lines = self._insight()
        line = step_line(step, config.train.steps, tasks, values)
        logger.write(step, line, {"tasks": tasks, **values, **insight}, "train/")
        for text in lines:
            logger.say(f"  {text}")

    def _insight(self) -> tuple[dict[str, Any], list[str]]:
        """What is known of features, gradients and learned weights: for the record, and in lines for people."""
        insight: dict[str, Any] = {}
        lines = []
        if weights := self._model.learned_weights():
            insight["weights"] = weights
            said = ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())
            lines.append(f"weights learned: {said}")
        if gradients := self.gradients.read():
            insight["gradients"] = gradients
            lines.append(describe_gradients(gradients))
        if (health := self.probe.read()) is not None:
            self._alarms.check_health(health)
            insight["features"] = health.as_dict()
            if gradients:  # now and then is enough for people
                lines.append(str(health))
        return insight, lines
