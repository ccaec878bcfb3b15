"""The builders of pairs of prompts for tinyworld, by name.

>>> pair = BUILDERS["ioi"](3, seed=0)
"""

from collections.abc import Callable

from mechkit.core.prompts import Pair
from mechkit.zoo.tinyworld import (
    agreement,
    analogies,
    calendar,
    facts,
    false_belief,
    greater_than,
    in_context,
    induction,
    ioi,
    pronouns,
    sums,
)

BUILDERS: dict[str, Callable[..., Pair]] = {
    "agreement": agreement.agreement,
    "analogies": analogies.analogies,
    "calendar": calendar.calendar,
    "facts": facts.facts,
    "false_belief": false_belief.false_belief,
    "greater_than": greater_than.greater_than,
    "in_context": in_context.in_context,
    "induction": induction.induction,
    "ioi": ioi.ioi,
    "pronouns": pronouns.pronouns,
    "sums": sums.sums,
}
"""Each is called as `build(n, seed)`, some with more keyword options."""
