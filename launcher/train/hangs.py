"""Which rank hangs: decided from what ranks show, and from how long the same attempt took for the same so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launcher.train.pulse import Phase, Sight

TIMES_LONGEST = 3.0  # a step is overdue after this many times the longest one so far
TIMES_OTHER_PHASES = 100.0  # of the shortest patience: a start may download, a save may wait half an hour for a disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """The rank that is to blame and why, in one line; and what each living rank does."""

    rank: int
    cause: str
    ranks: dict[int, str]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Hang:
        return cls(**{**value, "ranks": {int(rank): cause for rank, cause in value["ranks"].items()}})


@dataclass(slots=True)
class _Track:
    """One rank as it was seen last, and when it was seen to change."""

    sight: Sight
    progressed: float
    beaten: float
    ran: float  # seen not stopped
    disturbed: float  # seen stopped, or in another phase than stepping


class HangDetector:
    """`seconds` is the shortest patience; with infinity nothing hangs.

    `now` may be of any clock in seconds. One that stands still while the whole machine does accuses nobody of that.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._longest_step = 0.0
        self._longest_silence = 0.0
        self._caution = 1.0
        self._tracks: dict[int, _Track] = {}

    def begin(self, failures_in_a_row: int) -> None:
        """New ranks. Where an alarm was false it would come again: patience doubles until there is a new commit."""
        self._caution = 2.0**failures_in_a_row
        self._tracks = {}

    def look(self, sights: Sequence[Sight], now: float) -> Hang | None:
        """Note what the living ranks show `now`; the hang, if it is one."""
        self._tracks = {sight.rank: self._track(sight, now) for sight in sights}
        disturbed = max((track.disturbed for track in self._tracks.values()), default=now)
        for sight in sights:
            self._note_changes(self._tracks[sight.rank], sight, disturbed, now)
        if any(self._is_overdue(track, disturbed, now) for track in self._tracks.values()):
            return self._explain(now)
        return None

    def _track(self, sight: Sight, now: float) -> _Track:
        track = self._tracks.get(sight.rank)
        if track is None:
            return _Track(sight, now, now, now, now)
        if not sight.is_stopped:
            track.ran = now
        if sight.is_stopped or sight.phase is not Phase.STEPPING:
            track.disturbed = now
        return track

    def _note_changes(self, track: _Track, sight: Sight, disturbed: float, now: float) -> None:
        """Only what happened while all ranks did ordinary steps teaches how long these take, and the first of all."""
        if sight.progress != track.sight.progress:
            if disturbed < track.progressed or track.sight.phase is Phase.FIRST_STEP:
                self._longest_step = max(self._longest_step, now - track.progressed)
            track.progressed = now
        if sight.beats != track.sight.beats:
            if track.disturbed < track.beaten:
                self._longest_silence = max(self._longest_silence, now - track.beaten)
            track.beaten = now
        track.sight = sight

    def _is_overdue(self, track: _Track, disturbed: float, now: float) -> bool:
        if track.sight.is_stopped:
            return now - track.ran > self._seconds
        in_other_phases = TIMES_OTHER_PHASES * self._seconds
        if track.sight.phase is Phase.STEPPING:
            is_silent = self._silence(track, now) > self._patience(self._longest_silence)
        else:
            is_silent = now - track.beaten > in_other_phases
        # While one rank evaluates or saves, the others wait for it in their next step.
        if disturbed < now:
            is_late = now - max(track.progressed, disturbed) > self._patience(self._longest_step)
        else:
            is_late = now - track.progressed > in_other_phases
        return is_silent or is_late

    def _patience(self, longest: float) -> float:
        return self._caution * max(self._seconds, TIMES_LONGEST * longest)

    @staticmethod
    def _silence(track: _Track, now: float) -> float:
        """Seconds without a beat in a step; a rank that comes out of another phase may need a moment to beat again."""
        return now - max(track.beaten, track.disturbed)

    def _explain(self, now: float) -> Hang:
        tracks = self._tracks
        stopped = {rank for rank, track in tracks.items() if track.sight.is_stopped}
        silent = {rank for rank, track in tracks.items() if self._silence(track, now) > self._seconds / 2} - stopped
        joined = max(track.sight.collectives for track in tracks.values())
        behind = {rank for rank, track in tracks.items() if track.sight.collectives < joined} - stopped - silent
        causes = dict.fromkeys(tracks, "waits for other ranks")
        causes |= dict.fromkeys(behind, "has not joined the collective that other ranks wait in")
        causes |= {rank: _describe_silence(tracks[rank].sight) for rank in silent}
        causes |= dict.fromkeys(stopped, "stopped (by SIGSTOP or a debugger)")
        if not stopped | silent | behind:
            causes = dict.fromkeys(tracks, "no progress, and no rank is behind the others")
        guilty = min(stopped or silent or behind or tracks)
        track = tracks[guilty]
        since = track.ran if guilty in stopped else track.beaten if guilty in silent else track.progressed
        place = _place(track.sight)
        return Hang(rank=guilty, cause=f"{causes[guilty]} for {now - since:.0f} s {place}", ranks=causes)


def _describe_silence(sight: Sight) -> str:
    return f"runs no Python: it holds the GIL, or is busy outside Python (process state {sight.state})"


def _place(sight: Sight) -> str:
    match sight.phase:
        case Phase.STARTING:
            return "before its first step"
        case Phase.FIRST_STEP:
            return "in its first step"
        case Phase.STEPPING:
            return f"at step {sight.step + 1}"
        case Phase.EVALUATING:
            return f"in the evaluation after step {sight.step}"
        case Phase.SAVING:
            return f"in the save after step {sight.step}"
