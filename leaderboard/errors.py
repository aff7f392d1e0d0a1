"""Errors of the leaderboard room. Each message is one sentence: what, where, what now."""


class LeaderboardError(Exception):
    """Base of every error that this room raises on purpose."""


class RecordWriteError(LeaderboardError):
    """A record could not be written; nothing half-written is left behind."""


class MissingExtra(LeaderboardError):
    """A library of the `report` extra is not installed."""
