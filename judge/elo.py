"""Ranks what was compared two at a time. Knows no text and no model."""

import math
from collections.abc import Mapping, Sequence

Wins = Mapping[tuple[int, int], float]  # (winner, loser) → weight of its wins
PRIOR = 0.1  # of a win each way between any two: who never lost would have no finite score
STEPS = 1000  # at most; a handful of players settles within a few dozen
SETTLED = 1e-10


def elo(players: int, wins: Wins) -> list[float]:
    """Scores of the players 0, 1, …, by maximum likelihood; 0 on average.

    The model is Bradley and Terry's (1952), as Elo's is: i beats j with probability
    1 / (1 + exp(score_j − score_i)). Found by Hunter's MM steps (2004): strength_i becomes
    i's wins / Σ_j games_ij / (strength_i + strength_j).
    """
    others = [(i, j) for i in range(players) for j in range(players) if i != j]
    won = {(i, j): wins.get((i, j), 0.0) + PRIOR for i, j in others}
    strength = [1.0] * players
    for _ in range(STEPS):
        before = strength
        shares = [_share(i, won, strength) for i in range(players)]
        mean = math.exp(math.fsum(map(math.log, shares)) / players)
        strength = [share / mean for share in shares]
        if max(abs(a - b) for a, b in zip(before, strength)) < SETTLED:
            break
    return [math.log(value) for value in strength]


def _share(i: int, won: Mapping[tuple[int, int], float], strength: Sequence[float]) -> float:
    rivals = [j for j in range(len(strength)) if j != i]
    if not rivals:
        return 1.0
    games = sum((won[i, j] + won[j, i]) / (strength[i] + strength[j]) for j in rivals)
    return sum(won[i, j] for j in rivals) / games
