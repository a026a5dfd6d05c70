"""Made-up purchases of 2017 in the form of the transactions task, small enough to load in a blink."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl

START = datetime(2017, 1, 1)
CATEGORIES = ("BREAD", "MILK", "TEA", "SOAP", "RICE", "JAM", None)


def purchases(*, households: int = 60, seed: int = 0) -> pl.DataFrame:
    """About 80 purchases a household, in no order; some households fall silent for a while."""
    generator = np.random.default_rng(seed)
    parts = []
    for household in range(households):
        days = np.sort(generator.uniform(0, 364, 100))
        silence = generator.uniform(0, 330)
        days = days[(days < silence) | (days > silence + generator.uniform(0, 80))]
        kind = generator.integers(0, len(CATEGORIES), len(days))
        parts.append(
            pl.DataFrame(
                {
                    "household": [household] * len(days),
                    "time": [START + timedelta(days=float(day)) for day in days],
                    "category": [CATEGORIES[place] for place in kind],
                    "department": ["FOOD" if place < 3 else "OTHER" for place in kind],
                    "amount": generator.gamma(2.0, 1.0 + household % 7, len(days)).round(2),
                }
            )
        )
    return pl.concat(parts).sample(fraction=1.0, shuffle=True, seed=seed)
