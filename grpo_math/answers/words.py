"""English words around a number, by what they mean for it. A test reads each of them."""


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Offer another value, also at the beginning of a sentence: "18. Or maybe 20".
OR_WORDS = _words("or maybe perhaps possibly alternatively")
# Join two values: "18 or 20", "18 to 20".
JOINERS = OR_WORDS | _words("and to but either")
# May stand between a marker and its number: "the answer is exactly 18".
FILLERS = _words(
    "a the of is are be it that total just simply only exactly about approximately around roughly nearly almost "
    "therefore thus then so hence clearly now indeed actually still probably likely equals at donc also could"
)
# May stand between a joining word and the next marker: "18, or so the answer is 20".
LEAD_INS = _words("so thus therefore hence then finally the my final correct answer result is that it maybe")
# Take back an answer before another: "\\boxed{20}. No, I forgot the eggs: the answer is 18".
CORRECTIONS = _words(
    "wait no not wrong incorrect mistake error actually oops sorry instead hm hmm correction however but forgot should "
    "again rather"
)
NEGATIONS = _words("not never isn't cannot without")
# The number is a limit and not the value: "at least 18".
BOUNDS = _words("less more fewer greater larger least most up under over below above between within")
# State that there is no number: "the answer is unknown".
NO_VALUE = _words("unknown none nan null undefined inf infinity infinite impossible unclear")
# Their number is an index: "Step 7".
NUMBERED = _words("step steps question problem example part page option no number")
MINUS_WORDS = _words("negative minus")
# Begin a phrase whose number is no alternative: "18 eggs in 2 days".
PREPOSITIONS = _words("in per for at of on from by after before with within during every each than over")
# Begin an explanation, whose numbers are not the answer: "18, since 16 - 7 = 9".
EXPLAINING = _words("because since given assuming where")
# Letters after a number that make it a multiple: "18x".
VARIABLES = _words("x y z n")
# Words after a number that compute with it: "18 squared".
OPERATIONS = _words("squared cubed divided")
