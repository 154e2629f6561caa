"""TODO"""


def soak(home):
    return 0
