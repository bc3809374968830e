"""An objective that does not fit the model is refused with what to set; one that fits brings its special tokens."""

from dataclasses import replace

import pytest

from pretrain.config import RunConfig
from pretrain.data.config import JsonPairs, TokenizerFile
from pretrain.errors import UserError
from pretrain.models import config as m
from pretrain.objectives import config as c
from pretrain.sharding.mesh import MeshConfig
from tests.objectives.zoo import AHEAD, CASES, GENERATOR, JUDGE, REPLACED, both, decoder, encoder
from tests.train import tiny


def run(objective: c.Objective, model: m.TransformerConfig, **changes) -> RunConfig:
    base = tiny.config("text", objective=objective, model=replace(model, vocab_size=800), **changes)
    corpus = base.data.corpus
    if isinstance(objective, c.SequencePairs):
        corpus = replace(corpus, source=JsonPairs(paths=("a.jsonl",)))
    return replace(base, data=replace(base.data, corpus=corpus))


def problems(config: RunConfig) -> tuple[str, ...]:
    with pytest.raises(UserError) as error:
        config.check()
    return error.value.problems


ALONE = (
    "objective: {} reads text from the left, the model is {}; expected a decoder alone, set model.decoder and "
    "model.encoder=None or choose another objective"
)
SIDES = (
    "objective: {} reads text from both sides, the model is {}; expected an encoder alone, set model.encoder and "
    "model.decoder=None or choose another objective"
)
WRITES = "objective: {} writes text, the model is {}; expected a decoder, set model.decoder or choose another objective"
ONE, LEFT, TWO = "an encoder alone", "a decoder alone", "an encoder with a decoder"
REFUSED = [
    (c.NextToken(), encoder(), [ALONE.format("NextToken", ONE)]),
    (c.NextToken(), both(), [ALONE.format("NextToken", TWO)]),
    (c.PrefixLm(), both(), [ALONE.format("PrefixLm", TWO)]),
    (c.FillInTheMiddle(), encoder(), [ALONE.format("FillInTheMiddle", ONE)]),
    (c.MaskedLm(), decoder(), [SIDES.format("MaskedLm", LEFT)]),
    (c.MaskedLm(), both(), [SIDES.format("MaskedLm", TWO)]),
    (
        c.MaskedLm(sentences=c.Sentences()),
        encoder(),
        [
            "objective: sentences needs a head of two labels; add TaskConfig(name='next_sentence', labels=2) to "
            "model.tasks, or set objective.sentences=None",
            "objective: sentences are of two types, the model knows 0; set model.embed.types=2",
        ],
    ),
    (
        c.ReplacedToken(),
        encoder(),
        [
            "objective: ReplacedToken needs a model that generates; set model.generator",
            "objective: ReplacedToken needs a head of one label a token; add TaskConfig(name='replaced', "
            'pool="token", labels=1) to model.tasks',
        ],
    ),
    (c.SpanCorruption(), encoder(), [WRITES.format("SpanCorruption", ONE)]),
    (c.Ul2(), encoder(), [WRITES.format("Ul2", ONE)]),
    (
        c.Denoising(),
        decoder(),
        [
            f"objective: Denoising has an encoder read and a decoder write, the model is {LEFT}; expected both, set "
            "model.encoder and model.decoder or choose another objective"
        ],
    ),
    (c.SequencePairs(), encoder(), [WRITES.format("SequencePairs", ONE)]),
    (
        c.SequencePairs(target_length=5),
        decoder(),
        ["objective: target_length is of a decoder beside an encoder; set objective.target_length=None"],
    ),
    (
        c.SequencePairs(bidirectional=True),
        both(),
        [
            "objective: bidirectional is of a decoder alone, an encoder sees both sides; set "
            "objective.bidirectional=False"
        ],
    ),
    (
        c.PrefixLm(),
        decoder(ahead=AHEAD),
        ["objective: PrefixLm does not train model.ahead; set model.ahead=None or choose NextToken or FillInTheMiddle"],
    ),
    (
        c.NextToken(),
        decoder(head=None),
        ["objective: NextToken predicts tokens, the model has no head; set model.head"],
    ),
    (
        c.FillInTheMiddle(room=20),
        decoder(),
        ["objective: room=20 of data.sequence_length=32: expected at most half; lower it"],
    ),
]


@pytest.mark.parametrize(("objective", "model", "expected"), REFUSED)
def test_an_objective_that_does_not_fit_is_refused(objective, model, expected):
    assert list(problems(run(objective, model))) == expected


@pytest.mark.parametrize("name", CASES)
def test_an_objective_that_fits_is_not(name):
    run(CASES[name].objective, CASES[name].model).check()


def test_pairs_need_pairs_that_end():
    config = run(c.SequencePairs(), decoder())
    corpus = replace(tiny.config("text").data.corpus, add_eos=False)
    assert problems(replace(config, data=replace(config.data, corpus=corpus))) == (
        "objective: SequencePairs reads pairs, data.corpus.source is TextFiles; set it to JsonPairs",
        "objective: SequencePairs ends each text with eos; set data.corpus.add_eos=True",
    )


def test_shares_that_make_no_sense_are_refused():
    wrong = c.Denoising(infill=1.0, permute=2.0, mean=0.5, delete=0.6, mask_tokens=0.6)
    assert problems(run(wrong, both())) == (
        "objective.permute=2.0: expected a share from 0 to 1; BART: infill=0.3, permute=1",
        "objective.infill=1.0: expected some text to be left; 0.3 is usual",
        "objective.mean=0.5: expected spans of at least 1 token; 3.5 is usual",
        "objective.delete=0.6 and mask_tokens=0.6: expected at most 1 together; lower one",
    )
    masking = c.Masking(rate=0.0, masked=0.9, random=0.2)
    assert problems(run(c.MaskedLm(masking=masking), encoder())) == (
        "objective.masking.rate=0.0: expected a share between 0 and 1; 0.15 is usual",
        "objective.masking.masked=0.9 and random=0.2: expected shares that add up to at most 1; 0.8 and 0.1 are usual",
    )


def test_tables_of_positions_hold_the_rows_of_each_stack():
    table = m.LearnedPositions(length=5)
    model = both()
    model = replace(
        model, decoder=replace(model.decoder, positions=table), encoder=replace(model.encoder, positions=table)
    )
    assert problems(run(c.SpanCorruption(), model)) == (
        "data.sequence_length=32 makes rows of 8 tokens, more than the table of 5 positions; shorten it or lengthen "
        "model.decoder.positions",
        "data.sequence_length=32 is longer than the table of 5 positions; shorten it or lengthen "
        "model.encoder.positions",
    )


TOKENS = {
    "masked": {"[MASK]"},
    "next sentence": {"[MASK]", "[CLS]", "[SEP]"},
    "replaced": {"[MASK]"},
    "spans": {f"<extra_id_{i}>" for i in range(100)},
    "ul2": {"[NLU]", "[S2S]", "[NLG]", *(f"<extra_id_{i}>" for i in range(100))},
    "noise": {"<mask>"},
    "middle": {"<fim_prefix>", "<fim_suffix>", "<fim_middle>"},
    "pairs": set(),
    "next": set(),
}


@pytest.mark.parametrize("name", TOKENS)
def test_a_tokenizer_that_is_trained_gets_the_objectives_tokens(name):
    config = run(CASES[name].objective, CASES[name].model)
    assert set(config.prepared().corpus.tokenizer.special_tokens) == TOKENS[name]


def test_tokens_that_are_there_are_not_added_again():
    names = c.Sentences(cls="<s>", sep="</s>")
    config = run(c.MaskedLm(sentences=names, masking=c.Masking(mask="<m>")), encoder(**JUDGE))
    tokenizer = replace(config.data.corpus.tokenizer, special_tokens=("<m>", "<x>"))
    config = replace(config, data=replace(config.data, corpus=replace(config.data.corpus, tokenizer=tokenizer)))
    assert config.prepared().corpus.tokenizer.special_tokens == ("<m>", "<x>")


def test_a_finished_tokenizer_stays_as_it_is():
    config = run(c.MaskedLm(), encoder())
    corpus = replace(config.data.corpus, tokenizer=TokenizerFile(path="t"))
    config = replace(config, data=replace(config.data, corpus=corpus))
    assert config.prepared() == config.data


def test_a_generator_is_read_by_no_other_objective_than_its_own():
    assert run(c.ReplacedToken(), encoder(head=None, tasks=(REPLACED,), generator=GENERATOR)).check() is None


def test_a_mesh_divides_the_rows_of_both_stacks():
    config = run(c.SequencePairs(target_length=30), both(), rules="fsdp_tp", mesh=MeshConfig(fsdp=1, tensor=4))
    with pytest.raises(UserError) as error:
        config.check(4)
    assert (
        "mesh.tensor=4 does not divide the last stack's row=30; choose 1 or 2 or 3 or 5 or 6 or 10"
        in error.value.problems
    )
