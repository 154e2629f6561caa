"""Sampling: prompts → text. Imports llama, and none of its neighbours."""

from sampling.batch import Decoding, Sample
from sampling.complete import Completer, Completion
from sampling.engine import generate
from sampling.spread import Request

__all__ = ["Completer", "Completion", "Decoding", "Request", "Sample", "generate"]
