"""WORDS"""


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Words that join two offers, and words that only lead in to the second one ("so the final answer is").
JOINERS = _words(
    "or and to through till until vs versus either maybe perhaps possibly probably alternatively otherwise else also "
    "even but could be might o ou oder und y e et и или або または 或 或者 和 및 또는"
)
LEADS = _words(
    "a so thus therefore hence then finally the my final correct answer result is that it text textbf mathrm quad br"
)


FILLERS = _words(
    "is are be a an the of that to just simply only exactly about approximately around roughly nearly almost "
    "therefore thus then so hence clearly now indeed definitely actually equal equals total final answer result "
    "usd eur gbp inr rs dollars us cad aud still probably likely approx ca value at text"
)
NOT = _words("not no never neither nor isn't cannot can't without except")
NOTHING = _words("unknown none nan null nil undefined inf infinity infinite impossible unclear n/a na missing empty")
NUMBERED = _words(
    "step steps question problem example part page chapter line note case figure table option no number q"
)
SIGNS = frozenset(("negative", "minus"))
ABBREVIATIONS = frozenset(("rs", "approx", "ca"))
# "18 eggs in 2 days": the second number is not another offer
PREPOSITIONS = _words("in per for at of on from by after before with out over than every each within during times if")
