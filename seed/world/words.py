"""The words of the small world: eight categories of fourteen words. Knows no task and no score."""

_LISTS = """
animals: bear cat dog eagle fox goat horse lion mouse owl pig rabbit sheep wolf
clothes: apron belt boot cap coat dress glove hat jacket scarf shirt skirt sock tie
colours: amber black blue brown cream gold green grey pink purple red silver white yellow
drinks: ale beer cider cocoa coffee gin juice milk punch rum tea vodka water wine
fruits: apple banana cherry date fig grape kiwi lemon mango olive peach pear plum quince
jobs: actor baker chef doctor editor farmer guard judge lawyer miner nurse pilot singer tailor
tools: axe brush chisel drill file hammer knife ladder nail pliers rake saw spade wrench
vehicles: bike boat bus car ferry jet lorry plane ship sled taxi train tram van
"""
CATEGORIES: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in (line.split(": ") for line in _LISTS.strip().splitlines())
}
CATEGORY_OF = {word: name for name, words in CATEGORIES.items() for word in words}
NUMBER_WORDS = (
    "none",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)
NUMBERS = {NUMBER_WORDS[count]: count for count in (3, 4, 5, 6)}  # how many a task may ask for
SEPARATORS = {"commas": ", ", "dashes": " - ", "slashes": " / ", "stars": " * "}
CLOSINGS = ("bye", "cheers", "done", "thanks")

assert len(CATEGORY_OF) == 8 * 14, "a word belongs to one category only"
assert all(list(words) == sorted(words) for words in CATEGORIES.values()), "kept in order"
