"""Which questions to ask next: those whose rollouts are expected to disagree.

A group whose rollouts earn the same has no advantage and teaches nothing. DAPO (arXiv 2503.14476) samples until enough
groups disagree and throws the others away, tokens and all. Here nothing is thrown away: what a question's rollouts did
before, and those of other questions of its topic, says how likely they are to disagree, and of several candidates the
likeliest are asked. The batch keeps its size. The price is a bias: what the policy always or never gets right is asked
more rarely, so it may be forgotten unseen; what is remembered fades, and every question comes back as a candidate.
"""

from collections.abc import Sequence

import numpy as np

PRIOR, FADING = 1.0, 0.98  # guesses: groups that the topic's mean counts for; what a group counts one generation later


class Curriculum:
    """Counts of asked and of informative groups by question, and what they make likely.

    topics: of each question, what it has in common with others (its task and label). candidates: questions drawn for
    each one that is asked; 1 asks what is drawn.
    """

    def __init__(self, topics: Sequence[str], candidates: int):
        names, self.topic = np.unique(np.asarray(topics, dtype=str), return_inverse=True)
        self.candidates, self.topics = candidates, len(names)
        self.asked, self.informative = np.zeros((2, len(self.topic)))

    def chances(self) -> np.ndarray:
        """(questions,) how likely each question's next group is to disagree: its own record, with the topic's mean
        counting as PRIOR groups; a topic never asked stands at one half."""
        said, told = (np.bincount(self.topic, counts, self.topics) for counts in (self.asked, self.informative))
        mean = ((told + 0.5) / (said + 1))[self.topic]
        return (self.informative + PRIOR * mean) / (self.asked + PRIOR)

    def choose(self, count: int, rng: np.random.Generator) -> list[int]:
        """`count` questions: the likeliest to disagree of `candidates` times as many drawn at random."""
        drawn = rng.permutation(len(self.topic))[:count * self.candidates]
        best = np.argsort(-self.chances()[drawn], kind="stable")[:count]  # equal chances: as they were drawn
        return rng.permutation(drawn[best]).tolist()

    def note(self, questions: Sequence[int], disagreed: Sequence[bool]) -> None:
        """What the groups of these questions, just asked, did."""
        self.asked *= FADING
        self.informative *= FADING
        np.add.at(self.asked, list(questions), 1)
        np.add.at(self.informative, list(questions), np.asarray(disagreed, dtype=float))
