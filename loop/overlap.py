"""Do the prompts that a model makes for itself lie where people's lie? Neighbours, and a map.

Prompts as TF-IDF vectors of their words; their likeness is the cosine. Pure functions over texts;
knows no file and no model.
"""

# A, B prompts of a set, N of all sets, W words of the vocabulary

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loop.texts import quantiles
from sampling.rouge import words

VOCABULARY = 1024  # words, those that most prompts hold
MOST = 1000  # prompts of a set that are compared, evenly chosen
DRAWN = 150  # of them on the map
BLOCK = 512  # prompts compared at once


def prompt_overlap(sets: Mapping[str, Sequence[str]], near: str) -> dict[str, Any]:
    """How near the prompts of each set lie to those of the set `near`, and where all of them lie.

    Returns `nearest`: for each set, the quantiles in per cent of each prompt's likeness to its
    nearest neighbour in `near`, by itself left out; and `map`: for each set, some prompts as
    points [x, y] in the plane that keeps most of the vectors' variance. Empty sets are left out.
    """
    chosen = {name: _evenly(texts, MOST) for name, texts in sets.items() if texts}
    if near not in chosen:
        return {"near": near, "nearest": {}, "map": {}}
    ends = np.cumsum([len(texts) for texts in chosen.values()])
    vectors_NW = vectors([text for texts in chosen.values() for text in texts])
    vectors_of = dict(zip(chosen, np.split(vectors_NW, ends[:-1])))
    points_of = dict(zip(chosen, np.split(plane(vectors_NW), ends[:-1])))
    target_BW = vectors_of[near]
    return {
        "near": near,
        "nearest": {
            name: quantiles(nearest(vectors_AW, target_BW, same=name == near).tolist())
            for name, vectors_AW in vectors_of.items()
        },
        "map": {
            name: np.round(_evenly(points, DRAWN), 4).tolist() for name, points in points_of.items()
        },
    }


def vectors(texts: Sequence[str]) -> np.ndarray:
    """[N, W] of length 1, or 0 for a text without a word of the vocabulary.

    A word counts as often as it stands there, times 1 + ln(N / texts that hold it).
    """
    counts = [Counter(words(text)) for text in texts]
    holders = Counter(word for found in counts for word in found)
    column = {word: i for i, (word, _) in enumerate(holders.most_common(VOCABULARY))}
    vectors_NW = np.zeros((len(texts), len(column)), dtype=np.float32)
    for row, found in enumerate(counts):
        for word, times in found.items():
            if word in column:
                rarity = 1 + np.log(len(texts) / holders[word])
                vectors_NW[row, column[word]] = times * rarity
    length_N1 = np.linalg.norm(vectors_NW, axis=1, keepdims=True)
    return np.asarray(vectors_NW / np.where(length_N1 > 0, length_N1, 1))


def nearest(vectors_AW: np.ndarray, target_BW: np.ndarray, same: bool = False) -> np.ndarray:
    """The cosine [A] of each vector with its nearest in the target; same: the two are one set, and
    nobody is its own neighbour.
    """
    best = []
    for start in range(0, len(vectors_AW), BLOCK):
        cosine_AB = vectors_AW[start : start + BLOCK] @ target_BW.T
        if same:
            rows = np.arange(len(cosine_AB))
            cosine_AB[rows, start + rows] = 0.0
        best.append(cosine_AB.max(axis=1))
    return np.concatenate(best)


def plane(vectors_NW: np.ndarray) -> np.ndarray:
    """The two principal components, [N, 2]; the larger end of each axis points up."""
    centred_NW = vectors_NW - vectors_NW.mean(axis=0)
    axes_WW = np.linalg.eigh(centred_NW.T @ centred_NW).eigenvectors  # of ascending variance
    axes_W2 = axes_WW[:, ::-1][:, :2]
    if axes_W2.shape[1] < 2:  # one word in all
        axes_W2 = np.pad(axes_W2, ((0, 0), (0, 2 - axes_W2.shape[1])))
    sign_2 = np.where(axes_W2.sum(axis=0) < 0, -1.0, 1.0)  # else it is the library's whim
    return np.asarray(centred_NW @ (axes_W2 * sign_2))


def _evenly(items: Any, most: int) -> Any:
    """At most so many, from the first to the last at equal steps."""
    if len(items) <= most:
        return items
    places = np.linspace(0, len(items) - 1, most).round().astype(int)
    return [items[place] for place in places]
