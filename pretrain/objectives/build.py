"""The devices' half of an objective."""

from pretrain.objectives import language
from pretrain.objectives.batch import Objective
from pretrain.objectives.config import NextToken

BUILDERS = {NextToken: language.next_token}


def build(config) -> Objective:
    return BUILDERS[type(config)](config)
