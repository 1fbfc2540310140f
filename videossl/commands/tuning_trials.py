"""The settings that `videossl tune` has tried: each once, with what it reached, and the table of them."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from videossl.errors import UserError
from videossl.eval.davis import DavisSequence
from videossl.eval.presets import PRESETS, preset
from videossl.eval.protocol import Protocol
from videossl.eval.settings_search import Settings, changes
from videossl.eval.stored_features import StoredFeatures
from videossl.eval.tuning import Scores, Trial, scores_of
from videossl.eval.tuning_journal import TuningJournal

log = logging.getLogger("videossl")


@dataclass
class Search:
    """Tries settings on all sequences and remembers what they reached, in the order they were first asked for."""

    preset_name: str
    sequences: Sequence[DavisSequence]
    features: StoredFeatures
    cell_pixels: int
    journal: TuningJournal
    each: Callable[[Trial, Sequence[DavisSequence]], Iterator]
    tried: dict[Protocol, Scores] = field(default_factory=dict)

    def __call__(self, settings: Settings) -> float | None:
        """J&F; None, with the reason logged, for settings that do not go together."""
        try:
            protocol = self._protocol(settings)
        except UserError as error:
            log.info("left out: %s", error)
            return None
        if protocol not in self.tried:
            begin = time.perf_counter()
            known = self.journal.get(protocol)
            self.tried[protocol] = known or self._try(protocol)
            best = max(scores.j_and_f for scores in self.tried.values())
            log.info(
                "%d: J&F %.1f (best %.1f), %s  %s",
                len(self.tried),
                100 * self.tried[protocol].j_and_f,
                100 * best,
                "known" if known else f"{time.perf_counter() - begin:.1f} s",
                self.shown(protocol),
            )
        return self.tried[protocol].j_and_f

    def shown(self, protocol: Protocol) -> str:
        """What a setting changes of the preset."""
        changed = changes(protocol, self.preset_name)
        return " ".join(f"{key}={value}" for key, value in changed.items()) or "as published"

    def _protocol(self, settings: Settings) -> Protocol:
        # One source, so that equal settings are one however they were come by.
        return replace(preset(self.preset_name, settings), source=PRESETS[self.preset_name].source)

    def _try(self, protocol: Protocol) -> Scores:
        trial = Trial(protocol, self.features, self.cell_pixels)
        objects = [score for found in self.each(trial, self.sequences) for score in found]
        scores = scores_of(objects)
        self.journal.add(protocol, scores)
        return scores

    @property
    def start(self) -> Scores:
        """What was asked for first."""
        return next(iter(self.tried.values()))

    @property
    def ranked(self) -> list[tuple[Protocol, Scores]]:
        """All settings, best first; of equals the one tried first."""
        return sorted(self.tried.items(), key=lambda item: -item[1].j_and_f)

    def table(self) -> list[str]:
        """A line per setting, best first; `won`: the sequences on which it is better than the start."""
        lines = [f"{'J&F':>5}  {'J':>5}  {'F':>5}  {'won':>7}  settings"]
        for protocol, scores in self.ranked:
            won = f"{scores.sequences_won(self.start)}/{len(self.sequences)}"
            lines.append(
                f"{100 * scores.j_and_f:5.1f}  {100 * scores.j:5.1f}  {100 * scores.f:5.1f}  "
                f"{'start' if scores is self.start else won:>7}  {self.shown(protocol)}"
            )
        return lines
