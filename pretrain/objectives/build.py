"""The devices' half of an objective."""

from pretrain.objectives import config as c
from pretrain.objectives import language, masked, replaced
from pretrain.objectives.batch import Objective

BUILDERS = {
    c.NextToken: language.next_token,
    c.PrefixLm: language.asked,
    c.FillInTheMiddle: language.next_token,
    c.MaskedLm: masked.masked_lm,
    c.ReplacedToken: replaced.replaced_token,
    c.SpanCorruption: language.asked,
    c.Ul2: language.asked,
    c.Denoising: language.asked,
    c.SequencePairs: language.asked,
}


def build(config: c.Objective) -> Objective:
    return BUILDERS[type(config)](config)
