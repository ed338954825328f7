"""English words around a number, by what they mean for it."""


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Join two alternatives: "18 or 20".
JOINERS = _words(
    "or and to through till until vs versus either maybe perhaps possibly probably alternatively otherwise else also "
    "even but could be might o ou oder und y e et и или або または 或 或者 和 및 또는"
)
# Introduce the second alternative: "18 or so the final answer is 20".
LEAD_INS = _words(
    "a so thus therefore hence then finally the my final correct answer result is that it text textbf mathrm quad br"
)
# May stand between a marker and its number: "the answer is exactly 18".
FILLERS = _words(
    "is are be a an the of that to just simply only exactly about approximately around roughly nearly almost "
    "therefore thus then so hence clearly now indeed definitely actually equal equals total final answer result "
    "usd eur gbp inr rs dollars us cad aud still probably likely approx ca value at text"
)
NEGATIONS = _words("not no never neither nor isn't cannot can't without except")
# State that there is no number: "the answer is unknown".
NO_VALUE = _words("unknown none nan null nil undefined inf infinity infinite impossible unclear n/a na missing empty")
# Their number is an index and not a value: "Step 7".
NUMBERED = _words(
    "step steps question problem example part page chapter line note case figure table option no number q"
)
MINUS_WORDS = frozenset(("negative", "minus"))
# Their period does not end a sentence.
ABBREVIATIONS = frozenset(("rs", "approx", "ca"))
# Begin a phrase whose number is no alternative: "18 eggs in 2 days".
PREPOSITIONS = _words("in per for at of on from by after before with out over than every each within during times if")
