"""Lines that nobody should overlook: a task that is too good, features that collapse."""

import logging
from collections.abc import Mapping

from videossl.engine.health import Health
from videossl.engine.logger import describe_bars

log = logging.getLogger("videossl")

SUSPICIOUS_ACCURACY = 0.95  # of a self-made question: a cheat until shown otherwise
MIN_ANSWERS = 100  # before an accuracy is believed: chosen
MIN_SPREAD = 0.02  # of features: every untrained encoder here has .3 to .8 on real clips (measured)
MIN_RANK_SHARE = 0.02  # of the effective rank that so many rows could have; chosen


class Alarms:
    """Says each alarm once, and again when it had gone in between. `said` counts them.

    Every rank keeps one; only the main one speaks.
    """

    def __init__(self, *, is_main: bool) -> None:
        self.said = 0
        self._is_main = is_main
        self._standing: set[str] = set()

    def check_tasks(self, tasks: Mapping[str, Mapping[str, float]], where: str) -> None:
        """A task whose accuracy is beyond belief."""
        for name, metrics in tasks.items():
            self._sound(
                f"{where} {name}",
                metrics["answers"] >= MIN_ANSWERS and metrics["accuracy"] > SUSPICIOUS_ACCURACY,
                f"{name} answers {metrics['accuracy']:.3f} of the {where} questions ({describe_bars(metrics)}): "
                "suspiciously perfect, a shortcut until shown otherwise",
            )

    def check_health(self, health: Health) -> None:
        """Features that tell nothing apart."""
        is_flat = health.spread < MIN_SPREAD
        is_thin = health.effective_rank < 1 + MIN_RANK_SHARE * (health.max_rank - 1)
        self._sound(
            "collapse",
            is_flat or is_thin,
            f"the encoder's features collapse: relative standard deviation {health.spread:.1e}, effective rank "
            f"{health.effective_rank:.1f} of {health.max_rank}, {100 * health.dead_share:.0f} % dead channels; lower "
            "optim.lr, or go back to an earlier checkpoint",
        )

    def _sound(self, key: str, is_on: bool, text: str) -> None:
        if is_on and key not in self._standing and self._is_main:
            self.said += 1
            log.warning("ALARM: %s", text)
        (self._standing.add if is_on else self._standing.discard)(key)
